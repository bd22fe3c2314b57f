"""Demo category 'board': a small circuit board from above, and the components on it.

Lengths are in sides of the board.

Letters: h w height and width of an image or a window of it; r rows of pins; n pins of a row.
"""

from collections.abc import Callable, Sequence
import functools
from typing import NamedTuple

from jaxtyping import Float
import numpy as np
from numpy.random import Generator

from uadjax.data.demo import artwork, defects, noise, scene
from uadjax.data.demo.noise import Plane
from uadjax.data.demo.scene import DrawFn, Surface, View

_LACQUER, _LACQUER_OVER_COPPER = np.array([0.010, 0.075, 0.030]), np.array([0.022, 0.155, 0.058])
_COPPER, _TIN = np.array([0.52, 0.30, 0.14]), np.array([0.42, 0.42, 0.40])
_EPOXY = np.array([0.020, 0.020, 0.021])
_ALUMINUM, _STEEL = np.array([0.40, 0.41, 0.42]), np.array([0.36, 0.36, 0.35])


Pose = tuple[float, float, float]  # Coordinates y and x of a center, and an angle.


class Component(NamedTuple):
  """Component on the board.

  Attributes:
    draw_body: function of (window, component) that draws it.
    y: vertical coordinate of its center.
    x: horizontal coordinate of its center.
    half_height: half its extent along y.
    half_width: half its extent along x.
  """

  draw_body: Callable[..., None]
  y: float
  x: float
  half_height: float
  half_width: float


# Rows of pins: (y, x) of the middle of the row, where pins leave the body; direction (y, x) of the
# pins; number of pins.
_PIN_ROWS = (
  (0.30, 0.325, (0, 1), 6), (0.30, 0.155, (0, -1), 6), (0.72, 0.815, (0, 1), 6),
  (0.72, 0.585, (0, -1), 6), (0.835, 0.70, (1, 0), 5), (0.605, 0.70, (-1, 0), 5),
)  # fmt: skip
_HALF_ROW_LENGTH = 0.13  # Half the length of the longest row.
_PIN_PITCH, _PIN_LENGTH = 0.040, 0.034
_STRAIGHT_PINS = np.zeros((len(_PIN_ROWS), 6))


class Window(NamedTuple):
  """Window of a board's surface; painting into it changes the board, because it holds views.

  Attributes:
    y: coordinates of the pixels along the vertical axis of the component, from its center.
    x: coordinates of the pixels along the horizontal axis of the component, from its center.
    pixel: side of a pixel.
    height: height of the board's surface in the window.
    color: color of the board's surface in the window.
    gloss: gloss of the board's surface in the window.
    solder: noise that modulates solder.
    grain: noise that modulates molded and rolled materials.
  """

  y: Plane
  x: Plane
  pixel: float
  height: Plane
  color: Float[np.ndarray, 'h w 3']
  gloss: Plane
  solder: Plane
  grain: Plane

  def paint(self, depth: Plane, color: np.ndarray, gloss: float, height: Plane | float) -> None:
    """Blend a material over the surface in place, where `depth` is positive."""
    coverage = noise.linear_step(depth, self.pixel)
    self.height[:] += coverage * (height - self.height)
    self.color[:] += coverage[..., None] * (color - self.color)
    self.gloss[:] += coverage * (gloss - self.gloss)


def draw_board(
  rng: Generator,
  view: View,
  missing: int | None = None,
  tip_offsets: Float[np.ndarray, 'r n'] = _STRAIGHT_PINS,
  rotated: tuple[int, float] | None = None,
) -> Surface:
  """Draw a circuit board.

  Args:
    rng: random generator for the variation between good boards.
    view: view of the camera.
    missing: index of a component to omit.
    tip_offsets: sideways offsets of the tips of pins, in pitches, by row and pin.
    rotated: index of a component, and the angle by which it is rotated.
  """
  view = _place_board(rng, view)
  art = artwork.sample_artwork(view.y, view.x)
  board = _draw_laminate(rng, view, art)
  solder = noise.octaves(rng, view.size, 12, 90, fade=0.5)
  grain = noise.octaves(rng, view.size, 20, 300, fade=0.3)
  window = functools.partial(_cut_window, board, view, (solder, grain))
  for (y, x, direction, num_pins), offsets in zip(_PIN_ROWS, tip_offsets, strict=True):
    _draw_pins(window((y, x, 0.0), _HALF_ROW_LENGTH), direction, num_pins, offsets)
  for index, component in enumerate(_COMPONENTS):
    _, y, x, half_height, half_width = component
    half_size = max(half_height, half_width)
    # Tolerances of a machine that places components.
    (dy, dx), angle = rng.normal(0, 0.0012, 2), rng.normal(0, 0.0006 / half_size)
    if component.draw_body is not _draw_circuit:
      _draw_pads(window((y, x, 0.0), 1.2 * half_size), component)
    if index != missing:
      angle = rotated[1] if rotated and index == rotated[0] else angle
      component.draw_body(window((y + dy, x + dx, angle), half_size), component)
  marks = 0.11 * noise.linear_step(art.laser, view.pixel) * (1 + 0.2 * solder).clip(0)
  return board._replace(color=board.color + marks[..., None])


def _place_board(rng: Generator, view: View) -> View:
  """Shift and rotate the view a little, because boards never lie quite straight."""
  angle, (dy, dx) = rng.normal(0, 0.007), rng.normal(0, 0.004, 2)
  y, x = view.y - 0.5, view.x - 0.5
  board_y = 0.5 + y * np.cos(angle) - x * np.sin(angle) + dy
  board_x = 0.5 + y * np.sin(angle) + x * np.cos(angle) + dx
  return view._replace(y=board_y, x=board_x)


def _draw_laminate(rng: Generator, view: View, art: artwork.Artwork) -> Surface:
  """Draw the empty board: green lacquer over glass cloth and copper, printed and drilled."""
  weave = np.sin(2 * np.pi * 46 * view.x) * np.sin(2 * np.pi * 46 * view.y)
  cloud = noise.octaves(rng, view.size, 2, 30)
  grain = noise.octaves(rng, view.size, 30, 300, fade=0.2)
  traces = noise.smoothstep((art.trace + 0.004) / 0.008)
  lacquer = _LACQUER + traces[..., None] * (_LACQUER_OVER_COPPER - _LACQUER)
  shading = rng.normal(1, 0.04) * (1 + 0.05 * cloud + 0.03 * weave + 0.02 * grain)
  height = 0.0015 * traces + 0.00006 * weave + 0.00002 * grain
  ones = np.ones_like(height)
  board = Surface(height, (lacquer * shading[..., None]).clip(0), 0.05 * ones, 40, ones)
  window = _cut_window(board, view, (grain, grain), (0.5, 0.5, 0.0), 1.0)
  window.paint(art.silk, 0.56 + 0.05 * (grain - cloud)[..., None], 0.02, height + 0.0006)
  window.paint(art.ring, _COPPER * (1 + 0.08 * grain[..., None]), 0.25, 0.0022)
  window.paint(art.drill, np.full(3, 0.004), 0.0, -0.004)
  return board


def _cut_window(
  board: Surface, view: View, noises: tuple[Plane, Plane], pose: Pose, half_size: float
) -> Window:
  """Return the window around a pose that extends a little beyond `half_size`."""
  y, x, angle = pose
  reach = half_size + 0.05
  slices = tuple(
    slice(max(int((c - reach) * view.size), 0), int((c + reach) * view.size) + 1) for c in (y, x)
  )
  dy, dx = view.y[slices] - y, view.x[slices] - x
  axes = dy * np.cos(angle) - dx * np.sin(angle), dy * np.sin(angle) + dx * np.cos(angle)
  planes = (board.height, board.color, board.gloss, *noises)
  return Window(*axes, view.pixel, *(plane[slices] for plane in planes))


def _draw_pins(
  window: Window, direction: tuple[int, int], num_pins: int, tip_offsets: Float[np.ndarray, ' n']
) -> None:
  """Draw the soldered pads and the pins of a row; `tip_offsets` are in pitches, sideways."""
  dy, dx = direction
  outward, sideways = dy * window.y + dx * window.x, abs(dx) * window.y + abs(dy) * window.x
  position = sideways / _PIN_PITCH + num_pins / 2
  pin_index = np.clip(np.floor(position), 0, num_pins - 1).astype(int)
  across = (position - pin_index - 0.5) * _PIN_PITCH
  pad = _box_depth(across, outward - 0.7 * _PIN_LENGTH, 0.0125, 0.55 * _PIN_LENGTH, 0.003)
  _draw_solder(window, pad)
  tip_offset = tip_offsets[pin_index] * _PIN_PITCH * noise.smoothstep(outward / _PIN_LENGTH)
  height = 0.013 - 0.009 * noise.smoothstep(outward / (0.6 * _PIN_LENGTH)) + 0.0003 * window.solder
  color = _TIN * (1 + 0.08 * window.solder[..., None])
  pin = _box_depth(across - tip_offset, outward - 0.4 * _PIN_LENGTH, 0.0072, 0.6 * _PIN_LENGTH)
  window.paint(pin, color, 0.30, height)


def _draw_pads(window: Window, component: Component) -> None:
  """Draw the two pads of a component with two ends."""
  half_length, half_breadth, along, across = _principal_axes(window, component)
  # Resistors and ceramics end in wide metal caps, other components in narrow feet.
  half_width = (1.1 if component.draw_body in _SMALL_BODIES else 0.3) * half_breadth
  outward = abs(along) - 0.85 * half_length
  _draw_solder(window, _box_depth(across, outward, half_width, 0.3 * half_length, 0.004))


def _draw_solder(window: Window, depth: Plane) -> None:
  color = _TIN * (1.05 + 0.10 * window.solder[..., None])
  height = 0.001 + 0.0035 * noise.smoothstep(depth / 0.012) + 0.0006 * window.solder
  window.paint(depth, color.clip(0), 0.35, height)


def _principal_axes(window: Window, component: Component) -> tuple[float, float, Plane, Plane]:
  """Return half the length and breadth of a component, and coordinates along and across it."""
  _, _, _, half_height, half_width = component
  if half_width > half_height:
    return half_width, half_height, window.x, window.y
  return half_height, half_width, window.y, window.x


def _box_depth(
  y: Plane, x: Plane, half_height: float, half_width: float, corner_radius: float = 0.0
) -> Plane:
  """Return the depth inside a box with rounded corners around the origin; negative outside."""
  dy, dx = abs(y) - half_height + corner_radius, abs(x) - half_width + corner_radius
  return corner_radius - np.hypot(dy.clip(0), dx.clip(0)) - np.minimum(np.maximum(dy, dx), 0)


def _body_depth(window: Window, component: Component, corner_radius: float) -> Plane:
  return _box_depth(window.y, window.x, component.half_height, component.half_width, corner_radius)


def _draw_ceramic(
  window: Window, component: Component, base_color: Sequence[float] = (0.34, 0.23, 0.13)
) -> None:
  """Draw a block with metal ends."""
  half_length, _, along, _ = _principal_axes(window, component)
  grain, depth = window.grain[..., None], _body_depth(window, component, 0.003)
  metal = noise.linear_step(abs(along) - 0.64 * half_length, window.pixel)
  color = np.array(base_color) * (1 + 0.08 * grain)
  color = color + metal[..., None] * (_TIN * (1.05 + 0.06 * grain) - color)
  height = 0.008 + 0.008 * noise.smoothstep(depth / 0.008) + 0.001 * metal
  window.paint(depth, color, 0.10, height + 0.0001 * window.grain)


def _draw_resistor(window: Window, component: Component) -> None:
  """Draw a dark block with metal ends and printed stripes."""
  _draw_ceramic(window, component, (0.022, 0.021, 0.021))
  offset = np.min([abs(window.x - dx) for dx in (-0.014, 0.0, 0.014)], axis=0)
  stripes = noise.linear_step(0.002 - offset, window.pixel)
  stripes = stripes * noise.linear_step(0.0095 - abs(window.y), window.pixel)
  window.color[:] += 0.30 * stripes[..., None]


def _draw_circuit(window: Window, component: Component) -> None:
  """Draw a molded block with a dimple at its first pin."""
  depth = _body_depth(window, component, 0.005)
  y, x = window.y + component.half_height - 0.028, window.x + component.half_width - 0.028
  dimple = noise.smoothstep((0.012 - np.hypot(y, x)) / 0.006)
  height = 0.012 + 0.012 * noise.smoothstep(depth / 0.013) - 0.004 * dimple
  color = _EPOXY * (1 + 0.14 * window.grain[..., None])
  window.paint(depth, color, 0.035, height + 0.00012 * window.grain)


def _draw_can(window: Window, component: Component) -> None:
  """Draw an electrolytic capacitor: a black foot and an aluminum can with a printed segment."""
  window.paint(_body_depth(window, component, 0.02), _EPOXY, 0.03, 0.012)
  depth = 0.9 * component.half_height - np.hypot(window.y, window.x)
  height = 0.035 + 0.022 * np.sqrt(noise.smoothstep(depth / 0.02)) + 0.00008 * window.grain
  segment = np.minimum(window.x - 0.35 * component.half_width, depth - 0.01)
  color = _ALUMINUM * (1 + 0.03 * window.grain[..., None])
  color = defects.blend(color, _EPOXY * 1.6, noise.linear_step(segment, window.pixel))
  window.paint(depth, color, 0.25, height)


def _draw_crystal(window: Window, component: Component) -> None:
  """Draw a deep-drawn steel case with a flange."""
  depth = _body_depth(window, component, component.half_height)
  height = 0.004 + 0.020 * noise.smoothstep((depth - 0.009) / 0.014) + 0.00006 * window.grain
  window.paint(depth, _STEEL * (1 + 0.05 * window.grain[..., None]), 0.30, height)


_COMPONENTS = (
  *(Component(_draw_resistor, y, 0.58, 0.021, 0.050) for y in (0.11, 0.205, 0.30)),
  *(Component(_draw_ceramic, 0.645, x, 0.042, 0.024) for x in (0.20, 0.355)),
  Component(_draw_can, 0.21, 0.83, 0.095, 0.095),
  Component(_draw_crystal, 0.84, 0.26, 0.048, 0.115),
  Component(_draw_circuit, 0.30, 0.24, 0.135, 0.085),
  Component(_draw_circuit, 0.72, 0.70, 0.115, 0.115),
)
_SMALL_BODIES = (_draw_resistor, _draw_ceramic)
# Indices of components. Circuits are not removable, because their laser marks would remain.
_REMOVABLE = [i for i, c in enumerate(_COMPONENTS) if c.draw_body is not _draw_circuit]
_SMALL = [i for i, c in enumerate(_COMPONENTS) if c.draw_body in _SMALL_BODIES]


def _omit_component(rng: Generator, draw: DrawFn, view: View) -> Surface:
  """Omit a component."""
  return draw(view, missing=int(rng.choice(_REMOVABLE)))


def _deform_component(rng: Generator, draw: DrawFn, view: View) -> Surface:
  """Bend neighboring pins, or rotate a component."""
  if rng.random() < 0.4:
    angle = rng.choice([-1, 1]) * rng.uniform(0.15, 0.6)
    return draw(view, rotated=(int(rng.choice(_SMALL)), float(angle)))
  row, num_bent = int(rng.integers(len(_PIN_ROWS))), int(rng.integers(1, 4))
  first = int(rng.integers(_PIN_ROWS[row][-1] - num_bent + 1))
  tip_offsets = np.zeros_like(_STRAIGHT_PINS)
  offsets = rng.choice([-1, 1]) * rng.uniform(0.22, 0.42, num_bent)
  tip_offsets[row, first : first + num_bent] = offsets
  return draw(view, tip_offsets=tip_offsets)


# The spots are flux that was not washed off, which is pale.
PRODUCT = scene.Product(
  draw_board,
  {
    **defects.common_defects((0.60, 0.46, 0.28), (0.7,), spot_deposit=(0.085, 0.088, 0.070)),
    'deformation': _deform_component,
    'missing': _omit_component,
  },
  lamp=(-0.8, -0.6, 1.3),
)
