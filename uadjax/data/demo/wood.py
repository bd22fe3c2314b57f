"""Demo category 'wood': planed and oiled boards of a brown wood."""

import functools

import numpy as np

from uadjax.data.demo import defects, noise, scene
from uadjax.data.demo.scene import Surface, SurfaceFn, View

_LIGHT_COLOR, _DARK_COLOR = np.array([0.42, 0.235, 0.105]), np.array([0.17, 0.075, 0.026])


def make_surface(rng: np.random.Generator, view: View) -> Surface:
  """Draw a piece of a wooden board whose grain runs along x."""
  size = view.size
  drift = 0.045 * noise.octaves(rng, size, 0.8, 6, fade=1.4, stretch=4)
  waves = 0.004 * noise.octaves(rng, size, 5, 40, fade=1, stretch=6)
  depth = rng.uniform(0, 1) + view.y + rng.normal(0, 0.03) * view.x + drift + waves
  annual_rings = np.mod(depth, 1) + 0.018 * noise.periodic_1d(rng, np.mod(depth, 1), 40)
  ring_phase = np.mod(13 * annual_rings, 1)
  latewood = noise.smoothstep(ring_phase / 0.86) ** 2 * noise.smoothstep((1 - ring_phase) / 0.14)
  ring_darkness = 0.15 + 0.45 * latewood + 0.10 * noise.periodic_1d(rng, np.mod(depth, 1), 160, 0.4)
  fibers = noise.octaves(rng, size, 30, 120, fade=0.3, stretch=22)
  figure = noise.octaves(rng, size, 2, 12, fade=1, stretch=0.8)
  pores = np.clip(noise.octaves(rng, size, 60, 160, fade=0, stretch=14) - 1.35, 0, 1.2)
  pores *= 1.15 - latewood
  darkness = np.clip(ring_darkness + 0.09 * fibers + 0.05 * figure, 0, 1)[..., None]
  color = (_LIGHT_COLOR * (1 - darkness) + _DARK_COLOR * darkness) * (
    1 - 0.62 * np.clip(pores, 0, 1)
  )[..., None]
  height = 0.0002 * fibers - 0.0012 * pores + 0.0006 * latewood
  return Surface(height, color, 0.035 * (1 - pores / 1.3), 16, np.ones_like(latewood))


def _tear_splinter(
  rng: np.random.Generator, make_surface: SurfaceFn, scene_rng: np.random.Generator, view: View
) -> Surface:
  """Tear a splinter out along the grain."""
  surface = make_surface(scene_rng, view)
  y, x = scene.grid(view.size)
  center_y, center_x = rng.uniform(0.12, 0.88, 2)
  elongation, radius = rng.uniform(3, 7), rng.uniform(0.010, 0.024)
  depth = noise.blot_distance(
    rng, y - center_y, (x - center_x) / elongation, radius, roughness=0.12
  )
  roughness = 0.003 * noise.octaves(rng, view.size, 20, 300, fade=0.3, stretch=8)
  torn_mask = noise.smoothstep((depth + roughness) / 0.006)
  raw_color = _LIGHT_COLOR * (1.7 + 40 * roughness[..., None])
  color = np.clip(surface.color + torn_mask[..., None] * (raw_color - surface.color), 0.01, 1)
  height = surface.height - (0.009 + roughness) * torn_mask
  return surface._replace(height=height, color=color, gloss=surface.gloss * (1 - torn_mask))


PRODUCT = scene.Product(
  make_surface,
  {
    'contamination': defects.add_contamination,
    'deformation': functools.partial(defects.add_dent, softness=3.0),
    'missing': _tear_splinter,
    'scratch': functools.partial(defects.add_scratch, exposed_color=(0.60, 0.43, 0.27)),
    'spot': functools.partial(defects.add_spot, transmission=(0.15, 0.13, 0.13)),
  },
  lamp=(-0.9, 0.5, 0.9),
)
