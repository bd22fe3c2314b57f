"""Twill off the loom, before a monochrome camera.

Letters: s the side of a picture; u v coordinates in threads, across warp and weft.
"""

import functools

from jaxtyping import Float
import numpy as np

from uadjax.data.demo import defects, noise, scene
from uadjax.data.demo.scene import Maker, Stage, Surface

_THREADS = 40
_TABLE = 0.03
_WARP, _WEFT = 0.13, 0.31

Plane = Float[np.ndarray, 's s']


def make(rng: np.random.Generator, stage: Stage) -> Surface:
  """Draw a piece of cloth."""
  size = stage.size
  turn = rng.normal(0, 0.012)
  u = _THREADS * (stage.x + turn * stage.y) + rng.uniform(0, 300)
  v = _THREADS * (stage.y - turn * stage.x) + rng.uniform(0, 300)
  u += 0.16 * noise.octaves(rng, size, 2, 30, stretch=0.3)  # Threads are not drawn with a ruler.
  v += 0.16 * noise.octaves(rng, size, 2, 30, stretch=3)
  warp = _thread(u) + 0.62 * np.cos(2 * np.pi * (np.floor(u) + v) / 3)
  weft = _thread(v) - 0.62 * np.cos(2 * np.pi * (u + np.floor(v)) / 3) - 0.35
  over = noise.smooth((warp - weft) / 0.5 + 0.5)
  fuzz = noise.octaves(rng, size, 30, 400, fade=0.2)
  long = _shades(rng, u, noise.octaves(rng, size, 3, 100, fade=0.5, stretch=0.15))
  cross = _shades(rng, v, noise.octaves(rng, size, 3, 100, fade=0.5, stretch=7))
  twist = np.sin(2 * np.pi * (1.6 * v + 0.9 * u))
  tops = _WARP * (1 + 0.13 * long + 0.10 * twist + 0.16 * fuzz)
  below = _WEFT * (1 + 0.09 * cross + 0.12 * fuzz)
  color = np.clip(over * tops + (1 - over) * below, 0.005, 1)
  pile = np.maximum(warp, weft)
  color *= 0.55 + 0.45 * noise.smooth(0.5 + 0.6 * pile)  # Little light gets between.
  height = 0.0042 * pile + 0.0006 * fuzz + 0.004 * noise.octaves(rng, size, 1, 5, fade=1.5)
  return Surface(height, color[..., None], np.full_like(u, 0.012), 6, np.ones_like(u))


def _thread(across: Plane) -> Plane:
  """Height of the thread in whose place one is: round, 1 in the middle."""
  return np.sqrt(np.maximum(1 - (2 * (across - np.floor(across)) - 1) ** 2, 0))


def _shades(rng: np.random.Generator, across: Plane, along: Plane) -> Plane:
  """No two threads took the dye alike, nor one all along its way."""
  each = rng.uniform(-1.7, 1.7, 512)
  return 0.6 * each[np.floor(across).astype(int) % 512] + 0.6 * along


def _deformation(
  rng: np.random.Generator, make: Maker, scene_rng: np.random.Generator, stage: Stage
) -> Surface:
  """Pull the threads aside."""
  at = tuple(rng.uniform(0.2, 0.8, 2))
  return make(scene_rng, defects.bent(rng, stage, at, rng.uniform(0.08, 0.15)))


def _missing(
  rng: np.random.Generator, make: Maker, scene_rng: np.random.Generator, stage: Stage
) -> Surface:
  """Tear a hole: what lies under the cloth shows, and ends of threads stand out."""
  surface = make(scene_rng, stage)
  y, x = scene.grid(stage.size)
  at_y, at_x = rng.uniform(0.15, 0.85, 2)
  radius = rng.uniform(0.016, 0.05)
  depth = noise.blot(rng, y - at_y, x - at_x, radius, rough=0.12)
  frayed = 0.006 * noise.octaves(rng, stage.size, 20, 120, fade=0.3)
  gone = noise.inside(depth + frayed, 2 * stage.pixel)
  rim = np.exp(-((depth / 0.01) ** 2)) * np.maximum(1 + frayed / 0.004, 0) * (1 - gone)
  color = surface.color * (1 - gone[..., None]) + _TABLE * gone[..., None]
  height = surface.height + 0.004 * rim
  return surface._replace(
    height=height * (1 - gone) - 0.02 * gone,
    color=color + 0.25 * rim[..., None] * (0.45 - color),
  )


PRODUCT = scene.Product(
  make,
  {
    'contamination': defects.contamination,
    'deformation': _deformation,
    'missing': _missing,
    'spot': functools.partial(defects.spot, through=(0.05,)),
  },
  lamp=(-0.9, -0.7, 1.2),
)
