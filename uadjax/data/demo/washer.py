"""Demo category 'disc': turned metal washers on a conveyor belt, with a monochrome camera.

Letters: s side of an image; r polar radius and a angle around the washer's center.
"""

from typing import NamedTuple

from jaxtyping import Float
import numpy as np

from uadjax.data.demo import defects, noise, scene
from uadjax.data.demo.scene import Surface, SurfaceFn, View

_OUTER_RADIUS, _THICKNESS = 0.36, 0.03
_LAMP = (-0.75, -0.55, 1.1)

Plane = Float[np.ndarray, 's s']


class Pose(NamedTuple):
  """Position of a washer, as polar coordinates of the pixels.

  Attributes:
    r: distance from the washer's center, 1 at the outer edge.
    a: angle around the washer's center, from the image's x axis to its y axis.
    hole_radius: radius of the hole, in units of r.
    pixel_size: size of a pixel in units of r, for soft edges.
  """

  r: Plane
  a: Plane
  hole_radius: float
  pixel_size: float


def make_surface(rng: np.random.Generator, view: View, bite_mask: Plane | None = None) -> Surface:
  """Draw a washer; a piece is broken out where `bite_mask` is 1."""
  pose = _random_pose(rng, view)
  belt_height, belt_color = _draw_belt(rng, view.size)
  body_mask = noise.linear_step(1 - pose.r, pose.pixel_size) * noise.linear_step(
    pose.r - pose.hole_radius, pose.pixel_size
  )
  metal_color, metal_relief, gloss = _draw_metal(rng, pose, view)
  bevel = noise.smoothstep((1 - pose.r) / 0.075) * noise.smoothstep(
    (pose.r - pose.hole_radius) / 0.075
  )
  profile = 0.55 + 0.45 * np.sqrt(bevel)
  if bite_mask is not None:
    body_mask, profile = (
      body_mask * (1 - noise.smoothstep(bite_mask)),
      profile - 0.2 * noise.blur(bite_mask, view.size / 100),
    )
  height = belt_height * (1 - body_mask) + (_THICKNESS * profile + metal_relief) * body_mask
  color = belt_color * (1 - body_mask) + metal_color * body_mask
  return Surface(
    height, color[..., None], 0.03 * (1 - body_mask) + gloss * body_mask, 30, body_mask
  )


def _random_pose(rng: np.random.Generator, view: View) -> Pose:
  outer_radius = _OUTER_RADIUS * rng.normal(1, 0.006)
  dy, dx = view.y - 0.5 - rng.uniform(-0.02, 0.02), view.x - 0.5 - rng.uniform(-0.02, 0.02)
  return Pose(
    np.hypot(dy, dx) / outer_radius,
    np.arctan2(dy, dx),
    0.42 * rng.normal(1, 0.006),
    view.pixel_size / outer_radius,
  )


def _draw_belt(rng: np.random.Generator, size: int) -> tuple[Plane, Plane]:
  """Return height and color of the belt: dusty woven rubber, worn along its direction."""
  y, x = scene.grid(size)
  u, v = np.pi * (34 * x + rng.random()), np.pi * (34 * y + rng.random())
  weave = np.sin(u) * np.sin(v)
  wear = noise.octaves(rng, size, 2, 40, stretch=0.15)
  dust = noise.octaves(rng, size, 10, 200, fade=0.4)
  height = 0.0011 * weave + 0.0002 * dust
  color = 0.030 + 0.006 * weave + 0.004 * wear + 0.006 * np.maximum(dust - 0.5, 0)
  return height, np.maximum(color, 0.004)


def _draw_metal(rng: np.random.Generator, pose: Pose, view: View) -> tuple[Plane, Plane, Plane]:
  """Return color, height and gloss of turned metal, with fine rings and fans of highlights."""
  phase = rng.uniform(0, 1)
  radius, angle = np.clip(pose.r / 2, 0, 1), np.mod(pose.a / (2 * np.pi) + phase, 1)
  rings = 0.6 * noise.periodic_1d(rng, radius, 360, 0.0) + 0.6 * noise.periodic_1d(
    rng, radius, 90, 0.3
  )
  rays = noise.periodic_1d(rng, angle, 720, 0.35)
  smudge = noise.octaves(rng, view.size, 1.5, 12)
  grain = noise.octaves(rng, view.size, 20, 300, fade=0.2)
  lamp_angle = np.arctan2(view.lamp[0], view.lamp[1])
  highlight = np.cos(pose.a - lamp_angle) ** 2
  fans = highlight**6 * (1 + 0.14 * rays) + 0.3 * highlight**2
  color = 0.165 + 0.25 * fans + 0.016 * rings * (0.5 + fans) + 0.010 * smudge + 0.008 * grain
  return np.maximum(color, 0.01), 0.00006 * rings + 0.00008 * grain, 0.22 + 0.05 * rings.clip(-2, 2)


def _break_edge(
  rng: np.random.Generator, make_surface: SurfaceFn, scene_rng: np.random.Generator, view: View
) -> Surface:
  """Break a piece out of one of the edges."""
  edge_radius = _OUTER_RADIUS * rng.choice([0.44, 1.0], p=[0.3, 0.7])
  direction, radius = rng.uniform(0, 2 * np.pi), rng.uniform(0.028, 0.075)
  y, x = scene.grid(view.size)
  depth = noise.blot_distance(
    rng,
    y - 0.5 - edge_radius * np.sin(direction),
    x - 0.5 - edge_radius * np.cos(direction),
    radius,
  )
  return make_surface(scene_rng, view, bite_mask=noise.linear_step(depth, 1.5 * view.pixel_size))


def _deform_rim(
  rng: np.random.Generator, make_surface: SurfaceFn, scene_rng: np.random.Generator, view: View
) -> Surface:
  """Deform a section of the rim."""
  direction, edge_radius = rng.uniform(0, 2 * np.pi), _OUTER_RADIUS * rng.uniform(0.8, 1.0)
  center = (0.5 + edge_radius * np.sin(direction), 0.5 + edge_radius * np.cos(direction))
  return make_surface(scene_rng, defects.warp_view(rng, view, center, rng.uniform(0.07, 0.13)))


PRODUCT = scene.Product(
  make_surface,
  {
    'contamination': defects.add_contamination,
    'deformation': _deform_rim,
    'missing': _break_edge,
    'scratch': defects.add_scratch,
    'spot': defects.add_spot,
  },
  _LAMP,
)
