"""Demo categories without a shape of their own: steel sheet, wood and fabric.

Letters: h w height and width of an image; u v coordinates in threads, across warp and weft.
"""

import functools

import numpy as np
from numpy.random import Generator

from uadjax.data.demo import defects, noise, scene
from uadjax.data.demo.noise import Plane
from uadjax.data.demo.scene import DrawFn, Surface, View

_LIGHT_WOOD, _DARK_WOOD = np.array([0.42, 0.235, 0.105]), np.array([0.17, 0.075, 0.026])
_NUM_THREADS = 40
_TABLE_COLOR, _WARP_COLOR, _WEFT_COLOR = 0.03, 0.13, 0.31


def draw_steel(rng: Generator, view: View) -> Surface:
  """Draw a piece of cold-rolled steel sheet."""
  bands = noise.octaves(rng, view.size, 1, 60, fade=0.9, stretch=40)
  streaks = noise.octaves(rng, view.size, 20, 400, fade=0.3, stretch=30)
  short_streaks = noise.octaves(rng, view.size, 40, 500, fade=0.1, stretch=6)
  cloud = noise.octaves(rng, view.size, 1, 6, fade=1.2, stretch=2)
  color = 0.21 * (1 + 0.05 * bands + 0.09 * streaks + 0.05 * short_streaks + 0.03 * cloud)
  height = 0.00030 * streaks + 0.00012 * short_streaks + 0.0003 * bands
  gloss = np.maximum(0.16 * (1 + 0.10 * streaks + 0.05 * cloud), 0)
  return Surface(height, np.maximum(color, 0.02)[..., None], gloss, 22, np.ones_like(color))


def draw_wood(rng: Generator, view: View) -> Surface:
  """Draw a piece of a planed and oiled board of a brown wood whose grain runs along x."""
  drift = 0.045 * noise.octaves(rng, view.size, 0.8, 6, fade=1.4, stretch=4)
  waves = 0.004 * noise.octaves(rng, view.size, 5, 40, fade=1, stretch=6)
  depth = rng.uniform(0, 1) + view.y + rng.normal(0, 0.03) * view.x + drift + waves
  annual_rings = np.mod(depth, 1) + 0.018 * noise.periodic_1d(rng, np.mod(depth, 1), 40)
  phase = np.mod(13 * annual_rings, 1)
  latewood = noise.smoothstep(phase / 0.86) ** 2 * noise.smoothstep((1 - phase) / 0.14)
  ring_darkness = 0.15 + 0.45 * latewood + 0.10 * noise.periodic_1d(rng, np.mod(depth, 1), 160, 0.4)
  fibers = noise.octaves(rng, view.size, 30, 120, fade=0.3, stretch=22)
  figure = noise.octaves(rng, view.size, 2, 12, fade=1, stretch=0.8)
  pores = np.clip(noise.octaves(rng, view.size, 60, 160, fade=0, stretch=14) - 1.35, 0, 1.2)
  pores *= 1.15 - latewood
  darkness = np.clip(ring_darkness + 0.09 * fibers + 0.05 * figure, 0, 1)[..., None]
  pore_shade = (1 - 0.62 * np.clip(pores, 0, 1))[..., None]
  color = (_LIGHT_WOOD * (1 - darkness) + _DARK_WOOD * darkness) * pore_shade
  height = 0.0002 * fibers - 0.0012 * pores + 0.0006 * latewood
  return Surface(height, color, 0.035 * (1 - pores / 1.3), 16, np.ones_like(latewood))


def draw_fabric(rng: Generator, view: View) -> Surface:
  """Draw a piece of twill off the loom."""
  size, angle = view.size, rng.normal(0, 0.012)
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
  pile = np.maximum(warp, weft)
  color *= 0.55 + 0.45 * noise.smoothstep(0.5 + 0.6 * pile)  # Gaps get little light.
  height = 0.0042 * pile + 0.0006 * fuzz + 0.004 * noise.octaves(rng, size, 1, 5, fade=1.5)
  return Surface(height, color[..., None], np.full_like(u, 0.012), 6, np.ones_like(u))


def _thread_height(across: Plane) -> Plane:
  """Return the height of a round thread, 1 in its middle, at coordinates across the threads."""
  return np.sqrt(np.maximum(1 - (2 * (across - np.floor(across)) - 1) ** 2, 0))


def _thread_shades(rng: Generator, across: Plane, along: Plane) -> Plane:
  """Return the shade of the dye, which differs between threads and along each thread."""
  shades = rng.uniform(-1.7, 1.7, 512)
  return 0.6 * shades[np.floor(across).astype(int) % 512] + 0.6 * along


def _tear_splinter(rng: Generator, draw: DrawFn, view: View) -> Surface:
  """Tear a splinter out along the grain."""
  surface, (center_y, center_x) = draw(view), rng.uniform(0.12, 0.88, 2)
  y, x = scene.grid(view.size, (center_y, center_x))
  stretch, radius = rng.uniform(3, 7), rng.uniform(0.010, 0.024)
  depth = noise.blot_distance(rng, y, x / stretch, radius, roughness=0.12)
  roughness = 0.003 * noise.octaves(rng, view.size, 20, 300, fade=0.3, stretch=8)
  torn = noise.smoothstep((depth + roughness) / 0.006)
  raw_color = _LIGHT_WOOD * (1.7 + 40 * roughness[..., None])
  color = np.clip(defects.blend(surface.color, raw_color, torn), 0.01, 1)
  height = surface.height - (0.009 + roughness) * torn
  return surface._replace(height=height, color=color, gloss=surface.gloss * (1 - torn))


def _pull_threads(rng: Generator, draw: DrawFn, view: View) -> Surface:
  """Displace the threads near a point."""
  center_y, center_x = rng.uniform(0.2, 0.8, 2)
  return draw(defects.warp_view(rng, view, (center_y, center_x), rng.uniform(0.08, 0.15)))


def _tear_hole(rng: Generator, draw: DrawFn, view: View) -> Surface:
  """Tear a hole that shows the table below, with frayed threads at its rim."""
  surface, (center_y, center_x) = draw(view), rng.uniform(0.15, 0.85, 2)
  y, x = scene.grid(view.size, (center_y, center_x))
  depth = noise.blot_distance(rng, y, x, rng.uniform(0.016, 0.05), roughness=0.12)
  fraying = 0.006 * noise.octaves(rng, view.size, 20, 120, fade=0.3)
  hole = noise.linear_step(depth + fraying, 2 * view.pixel)
  rim = np.exp(-((depth / 0.01) ** 2)) * np.maximum(1 + fraying / 0.004, 0) * (1 - hole)
  color = surface.color * (1 - hole[..., None]) + _TABLE_COLOR * hole[..., None]
  height = (surface.height + 0.004 * rim) * (1 - hole) - 0.02 * hole
  return surface._replace(height=height, color=color + 0.25 * rim[..., None] * (0.45 - color))


_STEEL = scene.Product(
  draw_steel,
  {**defects.common_defects((0.75,), (0.35,)), 'deformation': defects.add_dent},
  lamp=(-0.75, 0.15, 0.8),
)
_WOOD = scene.Product(
  draw_wood,
  {
    **defects.common_defects((0.60, 0.43, 0.27), (0.15, 0.13, 0.13)),
    'deformation': functools.partial(defects.add_dent, softness=3.0),
    'missing': _tear_splinter,
  },
  lamp=(-0.9, 0.5, 0.9),
)
_FABRIC = scene.Product(
  draw_fabric,
  {**defects.common_defects(None, (0.05,)), 'deformation': _pull_threads, 'missing': _tear_hole},
  lamp=(-0.9, -0.7, 1.2),
)
PRODUCTS = {'fabric': _FABRIC, 'steel': _STEEL, 'wood': _WOOD}
