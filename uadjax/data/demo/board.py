"""A small circuit board, from above.

Letters: s the side of a picture; r rows of pins; n pins of a row.
"""

import functools

from jaxtyping import Float
import numpy as np

from uadjax.data.demo import artwork, components, defects, noise, scene
from uadjax.data.demo.scene import Maker, Stage, Surface

_LACQUER, _OVER_COPPER = np.array([0.010, 0.075, 0.030]), np.array([0.022, 0.155, 0.058])
_COPPER = np.array([0.52, 0.30, 0.14])
# Parts by number: a circuit's marks would be left in the air, were it gone.
_LOOSE = [i for i, part in enumerate(components.PARTS) if part.kind != 'circuit']
_SMALL = [i for i, part in enumerate(components.PARTS) if part.kind in ('resistor', 'ceramic')]
_ALONG_ROW, _PINS = 0.13, 6  # Half the length of the longest row of pins; how many these are.


def make(
  rng: np.random.Generator,
  stage: Stage,
  absent: int | None = None,
  lean: Float[np.ndarray, 'r n'] | None = None,
  askew: tuple[int, float] | None = None,
) -> Surface:
  """Draw a board.

  Args:
    rng: decides what differs between good boards.
    stage: where it is looked at.
    absent: number of a part that was forgotten.
    lean: how far the tips of pins are aside, in pitches, by row and pin.
    askew: number of a part, and how far it is turned.
  """
  stage = _posed(rng, stage)
  art = artwork.at(stage.y, stage.x)
  board = _laminate(rng, stage, art)
  rough = (
    noise.octaves(rng, stage.size, 12, 90, fade=0.5),
    noise.octaves(rng, stage.size, 20, 300, fade=0.3),
  )
  straight = np.zeros((len(components.ROWS), _PINS))
  for row, aside in zip(components.ROWS, straight if lean is None else lean, strict=True):
    components.pins(
      components.cut(board, stage, rough, (row.y, row.x, 0.0), _ALONG_ROW), row, aside
    )
  for number, part in enumerate(components.PARTS):
    reach = max(part.high, part.wide)
    slip, skew = rng.normal(0, 0.0012, 2), rng.normal(0, 0.0006 / reach)  # As machines place parts.
    if part.kind != 'circuit':
      components.pads(components.cut(board, stage, rough, (part.y, part.x, 0.0), 1.2 * reach), part)
    if number != absent:
      turn = askew[1] if askew and number == askew[0] else skew
      at = (part.y + slip[0], part.x + slip[1], turn)
      components.body(components.cut(board, stage, rough, at, reach), part)
  mark = 0.11 * noise.inside(art.laser, stage.pixel) * (1 + 0.2 * rough[0]).clip(0)
  return board._replace(color=board.color + mark[..., None])


def _posed(rng: np.random.Generator, stage: Stage) -> Stage:
  """Lay the board down, never quite straight."""
  turn, (dy, dx) = rng.normal(0, 0.007), rng.normal(0, 0.004, 2)
  y, x = stage.y - 0.5, stage.x - 0.5
  return stage._replace(
    y=0.5 + y * np.cos(turn) - x * np.sin(turn) + dy,
    x=0.5 + y * np.sin(turn) + x * np.cos(turn) + dx,
  )


def _laminate(rng: np.random.Generator, stage: Stage, art: artwork.Artwork) -> Surface:
  """Green lacquer over glass cloth and copper, printed and drilled."""
  size = stage.size
  weave = np.sin(2 * np.pi * 46 * stage.x) * np.sin(2 * np.pi * 46 * stage.y)
  cloud, grain = noise.octaves(rng, size, 2, 30), noise.octaves(rng, size, 30, 300, fade=0.2)
  raised = noise.smooth((art.trace + 0.004) / 0.008)
  lacquer = _LACQUER + raised[..., None] * (_OVER_COPPER - _LACQUER)
  uneven = rng.normal(1, 0.04) * (1 + 0.05 * cloud + 0.03 * weave + 0.02 * grain)
  height = 0.0015 * raised + 0.00006 * weave + 0.00002 * grain
  whole = np.ones_like(height)
  board = Surface(height, (lacquer * uneven[..., None]).clip(0), 0.05 * whole, 40, whole)
  patch = components.cut(board, stage, (grain, grain), (0.5, 0.5, 0.0), 1.0)
  patch.lay(art.silk, 0.56 + 0.05 * (grain - cloud)[..., None], 0.02, height + 0.0006)
  patch.lay(art.ring, _COPPER * (1 + 0.08 * grain[..., None]), 0.25, 0.0022)
  patch.lay(art.drill, np.full(3, 0.004), 0.0, -0.004)
  return board


def _missing(
  rng: np.random.Generator, make: Maker, scene_rng: np.random.Generator, stage: Stage
) -> Surface:
  """Forget a part."""
  return make(scene_rng, stage, absent=int(rng.choice(_LOOSE)))


def _deformation(
  rng: np.random.Generator, make: Maker, scene_rng: np.random.Generator, stage: Stage
) -> Surface:
  """Bend pins that are neighbors, or solder a part askew."""
  if rng.random() < 0.4:
    turn = rng.choice([-1, 1]) * rng.uniform(0.15, 0.6)
    return make(scene_rng, stage, askew=(int(rng.choice(_SMALL)), float(turn)))
  lean = np.zeros((len(components.ROWS), _PINS))
  row, many = int(rng.integers(len(components.ROWS))), int(rng.integers(1, 4))
  first = int(rng.integers(components.ROWS[row].n - many + 1))
  lean[row, first : first + many] = rng.choice([-1, 1]) * rng.uniform(0.22, 0.42, many)
  return make(scene_rng, stage, lean=lean)


PRODUCT = scene.Product(
  make,
  {
    'contamination': defects.contamination,
    'deformation': _deformation,
    'missing': _missing,
    'scratch': functools.partial(defects.scratch, bare=(0.60, 0.46, 0.28)),
    # Flux that was not washed off is pale.
    'spot': functools.partial(defects.spot, through=(0.7,), own=(0.085, 0.088, 0.070)),
  },
  lamp=(-0.8, -0.6, 1.3),
)
