"""Demo category 'steel': cold-rolled sheet under a near lamp, with a monochrome camera."""

import functools

import numpy as np

from uadjax.data.demo import defects, noise, scene
from uadjax.data.demo.scene import Surface, View


def make_surface(rng: np.random.Generator, view: View) -> Surface:
  """Draw a piece of steel sheet."""
  size = view.size
  broad_bands = noise.octaves(rng, size, 1, 60, fade=0.9, stretch=40)
  streaks = noise.octaves(rng, size, 20, 400, fade=0.3, stretch=30)
  short_streaks = noise.octaves(rng, size, 40, 500, fade=0.1, stretch=6)
  cloud = noise.octaves(rng, size, 1, 6, fade=1.2, stretch=2)
  color = 0.21 * (1 + 0.05 * broad_bands + 0.09 * streaks + 0.05 * short_streaks + 0.03 * cloud)
  height = 0.00030 * streaks + 0.00012 * short_streaks + 0.0003 * broad_bands
  gloss = 0.16 * (1 + 0.10 * streaks + 0.05 * cloud)
  ones = np.ones_like(color)
  return Surface(height, np.maximum(color, 0.02)[..., None], np.maximum(gloss, 0), 22, ones)


PRODUCT = scene.Product(
  make_surface,
  {
    'contamination': defects.add_contamination,
    'deformation': defects.add_dent,
    'scratch': functools.partial(defects.add_scratch, exposed_color=(0.75,)),
    'spot': functools.partial(defects.add_spot, transmission=(0.35,)),
  },
  lamp=(-0.75, 0.15, 0.8),
)
