"""Demo category 'fabric': twill off the loom, in front of a monochrome camera.

Letters: s side of an image; u v coordinates in threads, across warp and weft.
"""

import functools

from jaxtyping import Float
import numpy as np

from uadjax.data.demo import defects, noise, scene
from uadjax.data.demo.scene import Surface, SurfaceFn, View

_NUM_THREADS = 40
_TABLE_COLOR = 0.03
_WARP_COLOR, _WEFT_COLOR = 0.13, 0.31

Plane = Float[np.ndarray, 's s']


def make_surface(rng: np.random.Generator, view: View) -> Surface:
  """Draw a piece of cloth."""
  size = view.size
  angle = rng.normal(0, 0.012)
  u = _NUM_THREADS * (view.x + angle * view.y) + rng.uniform(0, 300)
  v = _NUM_THREADS * (view.y - angle * view.x) + rng.uniform(0, 300)
  u += 0.16 * noise.octaves(rng, size, 2, 30, stretch=0.3)  # Threads are not perfectly straight.
  v += 0.16 * noise.octaves(rng, size, 2, 30, stretch=3)
  warp = _thread_height(u) + 0.62 * np.cos(2 * np.pi * (np.floor(u) + v) / 3)
  weft = _thread_height(v) - 0.62 * np.cos(2 * np.pi * (u + np.floor(v)) / 3) - 0.35
  warp_on_top = noise.smoothstep((warp - weft) / 0.5 + 0.5)
  fuzz = noise.octaves(rng, size, 30, 400, fade=0.2)
  warp_shade = _thread_shades(rng, u, noise.octaves(rng, size, 3, 100, fade=0.5, stretch=0.15))
  weft_shade = _thread_shades(rng, v, noise.octaves(rng, size, 3, 100, fade=0.5, stretch=7))
  twist = np.sin(2 * np.pi * (1.6 * v + 0.9 * u))
  warp_color = _WARP_COLOR * (1 + 0.13 * warp_shade + 0.10 * twist + 0.16 * fuzz)
  weft_color = _WEFT_COLOR * (1 + 0.09 * weft_shade + 0.12 * fuzz)
  color = np.clip(warp_on_top * warp_color + (1 - warp_on_top) * weft_color, 0.005, 1)
  pile_height = np.maximum(warp, weft)
  color *= 0.55 + 0.45 * noise.smoothstep(0.5 + 0.6 * pile_height)  # Gaps get little light.
  height = 0.0042 * pile_height + 0.0006 * fuzz + 0.004 * noise.octaves(rng, size, 1, 5, fade=1.5)
  return Surface(height, color[..., None], np.full_like(u, 0.012), 6, np.ones_like(u))


def _thread_height(across: Plane) -> Plane:
  """Return the height of a round thread, 1 in its middle, at coordinates across the threads."""
  return np.sqrt(np.maximum(1 - (2 * (across - np.floor(across)) - 1) ** 2, 0))


def _thread_shades(rng: np.random.Generator, across: Plane, along: Plane) -> Plane:
  """Return the shade of the dye, which differs between threads and along each thread."""
  shade_by_thread = rng.uniform(-1.7, 1.7, 512)
  return 0.6 * shade_by_thread[np.floor(across).astype(int) % 512] + 0.6 * along


def _pull_threads(
  rng: np.random.Generator, make_surface: SurfaceFn, scene_rng: np.random.Generator, view: View
) -> Surface:
  """Displace the threads near a point."""
  center = tuple(rng.uniform(0.2, 0.8, 2))
  return make_surface(scene_rng, defects.warp_view(rng, view, center, rng.uniform(0.08, 0.15)))


def _tear_hole(
  rng: np.random.Generator, make_surface: SurfaceFn, scene_rng: np.random.Generator, view: View
) -> Surface:
  """Tear a hole that shows the table below, with frayed threads at its rim."""
  surface = make_surface(scene_rng, view)
  y, x = scene.grid(view.size)
  center_y, center_x = rng.uniform(0.15, 0.85, 2)
  radius = rng.uniform(0.016, 0.05)
  depth = noise.blot_distance(rng, y - center_y, x - center_x, radius, roughness=0.12)
  fraying = 0.006 * noise.octaves(rng, view.size, 20, 120, fade=0.3)
  hole_mask = noise.linear_step(depth + fraying, 2 * view.pixel_size)
  rim = np.exp(-((depth / 0.01) ** 2)) * np.maximum(1 + fraying / 0.004, 0) * (1 - hole_mask)
  color = surface.color * (1 - hole_mask[..., None]) + _TABLE_COLOR * hole_mask[..., None]
  height = surface.height + 0.004 * rim
  return surface._replace(
    height=height * (1 - hole_mask) - 0.02 * hole_mask,
    color=color + 0.25 * rim[..., None] * (0.45 - color),
  )


PRODUCT = scene.Product(
  make_surface,
  {
    'contamination': defects.add_contamination,
    'deformation': _pull_threads,
    'missing': _tear_hole,
    'spot': functools.partial(defects.add_spot, transmission=(0.05,)),
  },
  lamp=(-0.9, -0.7, 1.2),
)
