"""Components of a circuit board, and the functions that draw them.

Letters: h w height and width of a window of the board; n pins of a row.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float
import numpy as np

from uadjax.data.demo import noise
from uadjax.data.demo.scene import Surface, View

_TIN, _EPOXY = np.array([0.42, 0.42, 0.40]), np.array([0.020, 0.020, 0.021])

Plane = Float[np.ndarray, 'h w']


class Component(NamedTuple):
  """Component on the board; lengths are in sides of the board.

  Attributes:
    kind: key of the function in `_DRAW_BODY` that draws it.
    y: vertical coordinate of its center.
    x: horizontal coordinate of its center.
    half_height: half its extent along y.
    half_width: half its extent along x.
  """

  kind: str
  y: float
  x: float
  half_height: float
  half_width: float


class PinRow(NamedTuple):
  """Row of pins along a side of a circuit; lengths are in sides of the board.

  Attributes:
    y: vertical coordinate of the middle of the row, where pins leave the body.
    x: horizontal coordinate of the middle of the row.
    quarter_turns: direction of the pins in right angles: 0 is right, 1 is down.
    num_pins: number of pins.
  """

  y: float
  x: float
  quarter_turns: int
  num_pins: int


COMPONENTS = (
  Component('resistor', 0.11, 0.58, 0.021, 0.050), Component('resistor', 0.205, 0.58, 0.021, 0.050),
  Component('resistor', 0.30, 0.58, 0.021, 0.050), Component('ceramic', 0.645, 0.20, 0.042, 0.024),
  Component('ceramic', 0.645, 0.355, 0.042, 0.024), Component('can', 0.21, 0.83, 0.095, 0.095),
  Component('crystal', 0.84, 0.26, 0.048, 0.115), Component('circuit', 0.30, 0.24, 0.135, 0.085),
  Component('circuit', 0.72, 0.70, 0.115, 0.115),
)  # fmt: skip
PIN_ROWS = (
  PinRow(0.30, 0.325, 0, 6), PinRow(0.30, 0.155, 2, 6),
  PinRow(0.72, 0.815, 0, 6), PinRow(0.72, 0.585, 2, 6),
  PinRow(0.835, 0.70, 1, 5), PinRow(0.605, 0.70, 3, 5),
)  # fmt: skip
_PIN_PITCH, _PIN_LENGTH = 0.040, 0.034


class BoardWindow(NamedTuple):
  """Window of a board's surface; painting into it changes the board, because it holds views.

  Attributes:
    y: coordinates of the pixels along the vertical axis of the component, from its center.
    x: coordinates of the pixels along the horizontal axis of the component, from its center.
    pixel_size: side of a pixel.
    height: height of the board's surface in the window.
    color: color of the board's surface in the window.
    gloss: gloss of the board's surface in the window.
    solder: noise that modulates solder.
    grain: noise that modulates molded and rolled materials.
  """

  y: Plane
  x: Plane
  pixel_size: float
  height: Plane
  color: Float[np.ndarray, 'h w 3']
  gloss: Plane
  solder: Plane
  grain: Plane

  def paint(self, depth: Plane, color: np.ndarray, gloss: float, height: Plane | float) -> None:
    """Blend a material over the surface in place, where `depth` is positive."""
    coverage = noise.linear_step(depth, self.pixel_size)
    self.height[:] += coverage * (height - self.height)
    self.color[:] += coverage[..., None] * (color - self.color)
    self.gloss[:] += coverage * (gloss - self.gloss)


def cut_window(
  board: Surface,
  view: View,
  noise_planes: Sequence[Plane],
  pose: tuple[float, float, float],
  half_size: float,
) -> BoardWindow:
  """Return the window around a pose (y, x, angle) that extends a little beyond `half_size`."""
  y, x, angle = pose
  slices = tuple(
    slice(
      max(int((center - half_size - 0.05) * view.size), 0),
      int((center + half_size + 0.05) * view.size) + 1,
    )
    for center in (y, x)
  )
  dy, dx = view.y[slices] - y, view.x[slices] - x
  local_axes = dy * np.cos(angle) - dx * np.sin(angle), dy * np.sin(angle) + dx * np.cos(angle)
  planes = (board.height, board.color, board.gloss, *noise_planes)
  return BoardWindow(*local_axes, view.pixel_size, *(plane[slices] for plane in planes))


def draw_pins(window: BoardWindow, row: PinRow, tip_offsets: Float[np.ndarray, ' n']) -> None:
  """Draw the soldered pads and the pins of a row; `tip_offsets` are in pitches, sideways."""
  outward, sideways = (
    (window.x, window.y), (window.y, window.x), (-window.x, window.y), (-window.y, window.x)
  )[row.quarter_turns]  # fmt: skip
  position = sideways / _PIN_PITCH + row.num_pins / 2
  pin_index = np.clip(np.floor(position), 0, row.num_pins - 1).astype(int)
  across = (position - pin_index - 0.5) * _PIN_PITCH
  _draw_solder(
    window, _box_depth(across, outward - 0.7 * _PIN_LENGTH, 0.0125, 0.55 * _PIN_LENGTH, 0.003)
  )
  tip_offset = tip_offsets[pin_index] * _PIN_PITCH * noise.smoothstep(outward / _PIN_LENGTH)
  height = 0.013 - 0.009 * noise.smoothstep(outward / (0.6 * _PIN_LENGTH)) + 0.0003 * window.solder
  color = _TIN * (1 + 0.08 * window.solder[..., None])
  window.paint(
    _box_depth(across - tip_offset, outward - 0.4 * _PIN_LENGTH, 0.0072, 0.6 * _PIN_LENGTH),
    color,
    0.30,
    height,
  )


def draw_pads(window: BoardWindow, component: Component) -> None:
  """Draw the two pads of a component with two ends."""
  half_length, half_breadth, along, across = _principal_axes(window, component)
  # Resistors and ceramics end in wide metal caps, other components in narrow feet.
  relative_width = 1.1 if component.kind in ('resistor', 'ceramic') else 0.3
  _draw_solder(
    window,
    _box_depth(
      across,
      abs(along) - 0.85 * half_length,
      relative_width * half_breadth,
      0.3 * half_length,
      0.004,
    ),
  )


def draw_body(window: BoardWindow, component: Component) -> None:
  """Draw the body of a component."""
  _DRAW_BODY[component.kind](window, component)


def _draw_solder(window: BoardWindow, depth: Plane) -> None:
  color = _TIN * (1.05 + 0.10 * window.solder[..., None])
  height = 0.001 + 0.0035 * noise.smoothstep(depth / 0.012) + 0.0006 * window.solder
  window.paint(depth, color.clip(0), 0.35, height)


def _principal_axes(window: BoardWindow, component: Component) -> tuple[float, float, Plane, Plane]:
  """Return half the length and breadth of a component, and coordinates along and across it."""
  if component.half_width > component.half_height:
    return component.half_width, component.half_height, window.x, window.y
  return component.half_height, component.half_width, window.y, window.x


def _box_depth(
  y: Plane, x: Plane, half_height: float, half_width: float, corner_radius: float = 0.0
) -> Plane:
  """Return the depth inside a box with rounded corners around the origin; negative outside."""
  dy, dx = abs(y) - half_height + corner_radius, abs(x) - half_width + corner_radius
  return corner_radius - np.hypot(dy.clip(0), dx.clip(0)) - np.minimum(np.maximum(dy, dx), 0)


def _draw_two_ended(window: BoardWindow, component: Component, base_color: Sequence[float]) -> None:
  """Draw a block with metal ends."""
  half_length, _, along, _ = _principal_axes(window, component)
  grain = window.grain[..., None]
  depth = _box_depth(window.y, window.x, component.half_height, component.half_width, 0.003)
  metal_mask = noise.linear_step(abs(along) - 0.64 * half_length, window.pixel_size)
  color = np.array(base_color) * (1 + 0.08 * grain)
  color = color + metal_mask[..., None] * (_TIN * (1.05 + 0.06 * grain) - color)
  height = (
    0.008 + 0.008 * noise.smoothstep(depth / 0.008) + 0.001 * metal_mask + 0.0001 * window.grain
  )
  window.paint(depth, color, 0.10, height)


def _draw_resistor(window: BoardWindow, component: Component) -> None:
  _draw_two_ended(window, component, (0.022, 0.021, 0.021))
  stripes = [
    noise.linear_step(0.002 - abs(window.x - dx), window.pixel_size) for dx in (-0.014, 0.0, 0.014)
  ]
  stripe_mask = np.max(stripes, axis=0) * noise.linear_step(
    0.0095 - abs(window.y), window.pixel_size
  )
  window.color[:] += 0.30 * stripe_mask[..., None]


def _draw_ceramic(window: BoardWindow, component: Component) -> None:
  _draw_two_ended(window, component, (0.34, 0.23, 0.13))


def _draw_circuit(window: BoardWindow, component: Component) -> None:
  """Draw a molded block with a dimple at its first pin."""
  depth = _box_depth(window.y, window.x, component.half_height, component.half_width, 0.005)
  dimple = 0.012 - np.hypot(
    window.y + component.half_height - 0.028, window.x + component.half_width - 0.028
  )
  height = (
    0.012 + 0.012 * noise.smoothstep(depth / 0.013) - 0.004 * noise.smoothstep(dimple / 0.006)
  )
  color = _EPOXY * (1 + 0.14 * window.grain[..., None])
  window.paint(depth, color, 0.035, height + 0.00012 * window.grain)


def _draw_can(window: BoardWindow, component: Component) -> None:
  """Draw an electrolytic capacitor: a black foot and an aluminum can with a printed segment."""
  window.paint(
    _box_depth(window.y, window.x, component.half_height, component.half_width, 0.02),
    _EPOXY,
    0.03,
    0.012,
  )
  depth = 0.9 * component.half_height - np.hypot(window.y, window.x)
  height = 0.035 + 0.022 * np.sqrt(noise.smoothstep(depth / 0.02)) + 0.00008 * window.grain
  print_mask = noise.linear_step(
    np.minimum(window.x - 0.35 * component.half_width, depth - 0.01), window.pixel_size
  )
  color = np.array([0.40, 0.41, 0.42]) * (1 + 0.03 * window.grain[..., None])
  window.paint(depth, color + print_mask[..., None] * (_EPOXY * 1.6 - color), 0.25, height)


def _draw_crystal(window: BoardWindow, component: Component) -> None:
  """Draw a deep-drawn steel case with a flange."""
  depth = _box_depth(
    window.y, window.x, component.half_height, component.half_width, component.half_height
  )
  height = 0.004 + 0.020 * noise.smoothstep((depth - 0.009) / 0.014) + 0.00006 * window.grain
  window.paint(
    depth, np.array([0.36, 0.36, 0.35]) * (1 + 0.05 * window.grain[..., None]), 0.30, height
  )


_DRAW_BODY = {
  'can': _draw_can,
  'ceramic': _draw_ceramic,
  'circuit': _draw_circuit,
  'crystal': _draw_crystal,
  'resistor': _draw_resistor,
}
