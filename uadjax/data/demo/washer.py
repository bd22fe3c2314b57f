"""Demo category 'disc': turned metal washers on a conveyor belt, with a monochrome camera.

Letters: h w height and width of an image; r polar radius, 1 at the outer edge, and a angle around
the washer's center.
"""

import numpy as np
from numpy.random import Generator

from uadjax.data.demo import defects, noise, scene
from uadjax.data.demo.noise import Plane
from uadjax.data.demo.scene import DrawFn, Surface, View

_OUTER_RADIUS, _THICKNESS = 0.36, 0.03


def draw_washer(rng: Generator, view: View, bite: Plane | None = None) -> Surface:
  """Draw a washer; a piece is broken out where `bite` is 1."""
  radius = _OUTER_RADIUS * rng.normal(1, 0.006)
  dy, dx = view.y - 0.5 - rng.uniform(-0.02, 0.02), view.x - 0.5 - rng.uniform(-0.02, 0.02)
  r, a, hole, pixel = np.hypot(dy, dx) / radius, np.arctan2(dy, dx), 0.42, view.pixel / radius
  hole *= rng.normal(1, 0.006)
  belt_height, belt_color = _draw_belt(rng, view.size)
  body = noise.linear_step(1 - r, pixel) * noise.linear_step(r - hole, pixel)
  color, relief, gloss = _draw_metal(rng, r, a, view)
  bevel = noise.smoothstep((1 - r) / 0.075) * noise.smoothstep((r - hole) / 0.075)
  profile = 0.55 + 0.45 * np.sqrt(bevel)
  if bite is not None:
    body = body * (1 - noise.smoothstep(bite))
    profile = profile - 0.2 * noise.blur(bite, view.size / 100)
  height = belt_height * (1 - body) + (_THICKNESS * profile + relief) * body
  color = belt_color * (1 - body) + color * body
  return Surface(height, color[..., None], 0.03 * (1 - body) + gloss * body, 30, body)


def _draw_belt(rng: Generator, size: int) -> tuple[Plane, Plane]:
  """Return height and color of the belt: dusty woven rubber, worn along its direction."""
  y, x = scene.grid(size)
  weave = np.sin(np.pi * (34 * x + rng.random())) * np.sin(np.pi * (34 * y + rng.random()))
  wear = noise.octaves(rng, size, 2, 40, stretch=0.15)
  dust = noise.octaves(rng, size, 10, 200, fade=0.4)
  color = 0.030 + 0.006 * weave + 0.004 * wear + 0.006 * np.maximum(dust - 0.5, 0)
  return 0.0011 * weave + 0.0002 * dust, np.maximum(color, 0.004)


def _draw_metal(rng: Generator, r: Plane, a: Plane, view: View) -> tuple[Plane, Plane, Plane]:
  """Return color, height and gloss of turned metal, with fine rings and fans of highlights."""
  radius, angle = np.clip(r / 2, 0, 1), np.mod(a / (2 * np.pi) + rng.uniform(0, 1), 1)
  fine_rings = 0.6 * noise.periodic_1d(rng, radius, 360, 0.0)
  rings = fine_rings + 0.6 * noise.periodic_1d(rng, radius, 90, 0.3)
  rays = noise.periodic_1d(rng, angle, 720, 0.35)
  smudge = noise.octaves(rng, view.size, 1.5, 12)
  grain = noise.octaves(rng, view.size, 20, 300, fade=0.2)
  highlight = np.cos(a - np.arctan2(view.lamp[0], view.lamp[1])) ** 2
  fans = highlight**6 * (1 + 0.14 * rays) + 0.3 * highlight**2
  color = 0.165 + 0.25 * fans + 0.016 * rings * (0.5 + fans) + 0.010 * smudge + 0.008 * grain
  return np.maximum(color, 0.01), 0.00006 * rings + 0.00008 * grain, 0.22 + 0.05 * rings.clip(-2, 2)


def _break_edge(rng: Generator, draw: DrawFn, view: View) -> Surface:
  """Break a piece out of one of the edges."""
  edge = _OUTER_RADIUS * rng.choice([0.44, 1.0], p=[0.3, 0.7])
  direction, radius = rng.uniform(0, 2 * np.pi), rng.uniform(0.028, 0.075)
  y, x = scene.grid(view.size)
  dy, dx = y - 0.5 - edge * np.sin(direction), x - 0.5 - edge * np.cos(direction)
  depth = noise.blot_distance(rng, dy, dx, radius)
  return draw(view, bite=noise.linear_step(depth, 1.5 * view.pixel))


def _deform_rim(rng: Generator, draw: DrawFn, view: View) -> Surface:
  """Deform a section of the rim."""
  direction, edge = rng.uniform(0, 2 * np.pi), _OUTER_RADIUS * rng.uniform(0.8, 1.0)
  center = (0.5 + edge * np.sin(direction), 0.5 + edge * np.cos(direction))
  return draw(defects.warp_view(rng, view, center, rng.uniform(0.07, 0.13)))


PRODUCT = scene.Product(
  draw_washer,
  {**defects.common_defects(), 'deformation': _deform_rim, 'missing': _break_edge},
  lamp=(-0.75, -0.55, 1.1),
)
