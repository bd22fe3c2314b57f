"""Planed boards of a brown wood, oiled.

Letters: s the side of a picture.
"""

import functools

import numpy as np

from uadjax.data.demo import defects, noise, scene
from uadjax.data.demo.scene import Maker, Stage, Surface

_LIGHT, _DARK = np.array([0.42, 0.235, 0.105]), np.array([0.17, 0.075, 0.026])


def make(rng: np.random.Generator, stage: Stage) -> Surface:
  """Draw a piece of a board whose grain runs along x."""
  size = stage.size
  drift = 0.045 * noise.octaves(rng, size, 0.8, 6, fade=1.4, stretch=4)
  waves = 0.004 * noise.octaves(rng, size, 5, 40, fade=1, stretch=6)
  depth = rng.uniform(0, 1) + stage.y + rng.normal(0, 0.03) * stage.x + drift + waves
  years = np.mod(depth, 1) + 0.018 * noise.line(rng, np.mod(depth, 1), 40)
  ring = np.mod(13 * years, 1)
  late = noise.smooth(ring / 0.86) ** 2 * noise.smooth((1 - ring) / 0.14)
  dark = 0.15 + 0.45 * late + 0.10 * noise.line(rng, np.mod(depth, 1), 160, 0.4)
  fibers = noise.octaves(rng, size, 30, 120, fade=0.3, stretch=22)
  flame = noise.octaves(rng, size, 2, 12, fade=1, stretch=0.8)
  pores = np.clip(noise.octaves(rng, size, 60, 160, fade=0, stretch=14) - 1.35, 0, 1.2)
  pores *= 1.15 - late
  share = np.clip(dark + 0.09 * fibers + 0.05 * flame, 0, 1)[..., None]
  color = (_LIGHT * (1 - share) + _DARK * share) * (1 - 0.62 * np.clip(pores, 0, 1))[..., None]
  height = 0.0002 * fibers - 0.0012 * pores + 0.0006 * late
  return Surface(height, color, 0.035 * (1 - pores / 1.3), 16, np.ones_like(late))


def _missing(
  rng: np.random.Generator, make: Maker, scene_rng: np.random.Generator, stage: Stage
) -> Surface:
  """Tear out a splinter along the grain."""
  surface = make(scene_rng, stage)
  y, x = scene.grid(stage.size)
  at_y, at_x = rng.uniform(0.12, 0.88, 2)
  longer, radius = rng.uniform(3, 7), rng.uniform(0.010, 0.024)
  depth = noise.blot(rng, y - at_y, (x - at_x) / longer, radius, rough=0.12)
  torn = 0.003 * noise.octaves(rng, stage.size, 20, 300, fade=0.3, stretch=8)
  gone = noise.smooth((depth + torn) / 0.006)
  fresh = _LIGHT * (1.7 + 40 * torn[..., None])
  raw = np.clip(surface.color + gone[..., None] * (fresh - surface.color), 0.01, 1)
  height = surface.height - (0.009 + torn) * gone
  return surface._replace(height=height, color=raw, gloss=surface.gloss * (1 - gone))


PRODUCT = scene.Product(
  make,
  {
    'contamination': defects.contamination,
    'deformation': functools.partial(defects.dent, soft=3.0),
    'missing': _missing,
    'scratch': functools.partial(defects.scratch, bare=(0.60, 0.43, 0.27)),
    'spot': functools.partial(defects.spot, through=(0.15, 0.13, 0.13)),
  },
  lamp=(-0.9, 0.5, 0.9),
)
