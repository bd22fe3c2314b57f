"""Parts of a circuit board, and how each is drawn on it.

Letters: s the side of a picture; h w a window of it; n pins of a row.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float
import numpy as np

from uadjax.data.demo import noise
from uadjax.data.demo.scene import Stage, Surface

_TIN, _EPOXY = np.array([0.42, 0.42, 0.40]), np.array([0.020, 0.020, 0.021])

Plane = Float[np.ndarray, 'h w']


class Part(NamedTuple):
  """A part on the board.

  Attributes:
    kind: how it is drawn.
    y: of its center, in sides of the board.
    x: likewise.
    high: half its height on the board.
    wide: half its width.
  """

  kind: str
  y: float
  x: float
  high: float
  wide: float


class Row(NamedTuple):
  """Pins along a side of a circuit.

  Attributes:
    y: of the middle of the row, where pins leave the body.
    x: likewise.
    turn: way the pins point, in right angles: 0 is right, 1 down.
    n: number of pins.
  """

  y: float
  x: float
  turn: int
  n: int


PARTS = (
  Part('resistor', 0.11, 0.58, 0.021, 0.050), Part('resistor', 0.205, 0.58, 0.021, 0.050),
  Part('resistor', 0.30, 0.58, 0.021, 0.050), Part('ceramic', 0.645, 0.20, 0.042, 0.024),
  Part('ceramic', 0.645, 0.355, 0.042, 0.024), Part('can', 0.21, 0.83, 0.095, 0.095),
  Part('crystal', 0.84, 0.26, 0.048, 0.115), Part('circuit', 0.30, 0.24, 0.135, 0.085),
  Part('circuit', 0.72, 0.70, 0.115, 0.115),
)  # fmt: skip
ROWS = (
  Row(0.30, 0.325, 0, 6), Row(0.30, 0.155, 2, 6),
  Row(0.72, 0.815, 0, 6), Row(0.72, 0.585, 2, 6), Row(0.835, 0.70, 1, 5), Row(0.605, 0.70, 3, 5),
)  # fmt: skip
_PITCH, _PIN = 0.040, 0.034  # Between pins; length of one.


class Patch(NamedTuple):
  """A window of a board: what is laid on it stays on the board.

  Attributes:
    y: of its pixels, from where a part is placed, along its own axes.
    x: likewise.
    pixel: side of one.
    height: of the board's surface; see `Surface`.
    color: likewise.
    gloss: likewise.
    solder: noise of melted tin.
    grain: noise of what is molded or rolled.
  """

  y: Plane
  x: Plane
  pixel: float
  height: Plane
  color: Float[np.ndarray, 'h w 3']
  gloss: Plane
  solder: Plane
  grain: Plane

  def lay(self, depth: Plane, tone: np.ndarray, gloss: float, height: Plane | float) -> None:
    """Lay something over what is there, where `depth` is positive."""
    cover = noise.inside(depth, self.pixel)
    self.height[:] += cover * (height - self.height)
    self.color[:] += cover[..., None] * (tone - self.color)
    self.gloss[:] += cover * (gloss - self.gloss)


def cut(
  board: Surface, stage: Stage, rough: Sequence[Plane], at: tuple[float, float, float], reach: float
) -> Patch:
  """The patch about a place (y, x) and a turn, as far as `reach` and a little more."""
  y, x, turn = at
  window = tuple(
    slice(max(int((c - reach - 0.05) * stage.size), 0), int((c + reach + 0.05) * stage.size) + 1)
    for c in (y, x)
  )
  dy, dx = stage.y[window] - y, stage.x[window] - x
  along = dy * np.cos(turn) - dx * np.sin(turn), dy * np.sin(turn) + dx * np.cos(turn)
  planes = (board.height, board.color, board.gloss, *rough)
  return Patch(*along, stage.pixel, *(plane[window] for plane in planes))


def pins(patch: Patch, row: Row, lean: Float[np.ndarray, ' n']) -> None:
  """Draw pads with solder on them, and on these the pins, their tips `lean` pitches aside."""
  out, along = (
    (patch.x, patch.y), (patch.y, patch.x), (-patch.x, patch.y), (-patch.y, patch.x)
  )[row.turn]  # fmt: skip
  place = along / _PITCH + row.n / 2
  number = np.clip(np.floor(place), 0, row.n - 1).astype(int)
  across = (place - number - 0.5) * _PITCH
  _solder(patch, _box(across, out - 0.7 * _PIN, 0.0125, 0.55 * _PIN, 0.003))
  aside = lean[number] * _PITCH * noise.smooth(out / _PIN)
  slope = 0.013 - 0.009 * noise.smooth(out / (0.6 * _PIN)) + 0.0003 * patch.solder
  tone = _TIN * (1 + 0.08 * patch.solder[..., None])
  patch.lay(_box(across - aside, out - 0.4 * _PIN, 0.0072, 0.6 * _PIN), tone, 0.30, slope)


def pads(patch: Patch, part: Part) -> None:
  """Draw the two pads of a part with two ends."""
  long, short, along, across = _axes(patch, part)
  share = 1.1 if part.kind in ('resistor', 'ceramic') else 0.3  # The others stand on narrow feet.
  _solder(patch, _box(across, abs(along) - 0.85 * long, share * short, 0.3 * long, 0.004))


def body(patch: Patch, part: Part) -> None:
  """Draw the part itself."""
  _BODIES[part.kind](patch, part)


def _solder(patch: Patch, depth: Plane) -> None:
  tone = _TIN * (1.05 + 0.10 * patch.solder[..., None])
  bulge = 0.001 + 0.0035 * noise.smooth(depth / 0.012) + 0.0006 * patch.solder
  patch.lay(depth, tone.clip(0), 0.35, bulge)


def _axes(patch: Patch, part: Part) -> tuple[float, float, Plane, Plane]:
  """Half the length and breadth of a part, and coordinates along and across it."""
  if part.wide > part.high:
    return part.wide, part.high, patch.x, patch.y
  return part.high, part.wide, patch.y, patch.x


def _box(y: Plane, x: Plane, high: float, wide: float, corner: float = 0.0) -> Plane:
  """Depth inside a box about the origin, half as high and wide, with rounded corners."""
  dy, dx = abs(y) - high + corner, abs(x) - wide + corner
  return corner - np.hypot(dy.clip(0), dx.clip(0)) - np.minimum(np.maximum(dy, dx), 0)


def _two_ended(patch: Patch, part: Part, tone: Sequence[float]) -> None:
  """A block with metal ends."""
  long, _, along, _ = _axes(patch, part)
  grain = patch.grain[..., None]
  depth = _box(patch.y, patch.x, part.high, part.wide, 0.003)
  metal = noise.inside(abs(along) - 0.64 * long, patch.pixel)
  color = np.array(tone) * (1 + 0.08 * grain)
  color = color + metal[..., None] * (_TIN * (1.05 + 0.06 * grain) - color)
  rise = 0.008 + 0.008 * noise.smooth(depth / 0.008) + 0.001 * metal + 0.0001 * patch.grain
  patch.lay(depth, color, 0.10, rise)


def _resistor(patch: Patch, part: Part) -> None:
  _two_ended(patch, part, (0.022, 0.021, 0.021))
  strokes = [noise.inside(0.002 - abs(patch.x - dx), patch.pixel) for dx in (-0.014, 0.0, 0.014)]
  code = np.max(strokes, axis=0) * noise.inside(0.0095 - abs(patch.y), patch.pixel)
  patch.color[:] += 0.30 * code[..., None]


def _ceramic(patch: Patch, part: Part) -> None:
  _two_ended(patch, part, (0.34, 0.23, 0.13))


def _circuit(patch: Patch, part: Part) -> None:
  """A molded block with a dimple at its first pin."""
  depth = _box(patch.y, patch.x, part.high, part.wide, 0.005)
  dimple = 0.012 - np.hypot(patch.y + part.high - 0.028, patch.x + part.wide - 0.028)
  rise = 0.012 + 0.012 * noise.smooth(depth / 0.013) - 0.004 * noise.smooth(dimple / 0.006)
  tone = _EPOXY * (1 + 0.14 * patch.grain[..., None])
  patch.lay(depth, tone, 0.035, rise + 0.00012 * patch.grain)


def _can(patch: Patch, part: Part) -> None:
  """An electrolytic capacitor: a black foot, and an aluminum can with a printed segment."""
  patch.lay(_box(patch.y, patch.x, part.high, part.wide, 0.02), _EPOXY, 0.03, 0.012)
  depth = 0.9 * part.high - np.hypot(patch.y, patch.x)
  rise = 0.035 + 0.022 * np.sqrt(noise.smooth(depth / 0.02)) + 0.00008 * patch.grain
  printed = noise.inside(np.minimum(patch.x - 0.35 * part.wide, depth - 0.01), patch.pixel)
  tone = np.array([0.40, 0.41, 0.42]) * (1 + 0.03 * patch.grain[..., None])
  patch.lay(depth, tone + printed[..., None] * (_EPOXY * 1.6 - tone), 0.25, rise)


def _crystal(patch: Patch, part: Part) -> None:
  """A drawn steel case with a flange."""
  depth = _box(patch.y, patch.x, part.high, part.wide, part.high)
  rise = 0.004 + 0.020 * noise.smooth((depth - 0.009) / 0.014) + 0.00006 * patch.grain
  patch.lay(depth, np.array([0.36, 0.36, 0.35]) * (1 + 0.05 * patch.grain[..., None]), 0.30, rise)


_BODIES = {
  'can': _can,
  'ceramic': _ceramic,
  'circuit': _circuit,
  'crystal': _crystal,
  'resistor': _resistor,
}
