"""Turned metal washers on a conveyor belt, before a monochrome camera.

Letters: s the side of a picture; r polar radius and a angle about the washer's center.
"""

from typing import NamedTuple

from jaxtyping import Float
import numpy as np

from uadjax.data.demo import defects, noise, scene
from uadjax.data.demo.scene import Maker, Stage, Surface

_OUTER, _THICK = 0.36, 0.03
_LAMP = (-0.75, -0.55, 1.1)

Plane = Float[np.ndarray, 's s']


class Pose(NamedTuple):
  """A washer in place.

  Attributes:
    r: distance from its center, where the outer edge is 1.
    a: angle about its center, from the picture's x to its y.
    hole: radius of the hole.
    edge: size of a pixel in r, for soft edges.
  """

  r: Plane
  a: Plane
  hole: float
  edge: float


def make(rng: np.random.Generator, stage: Stage, bite: Plane | None = None) -> Surface:
  """Draw a washer; where `bite` is 1, a piece is broken out."""
  pose = _pose(rng, stage)
  ground, dirt = _belt(rng, stage.size)
  body = noise.inside(1 - pose.r, pose.edge) * noise.inside(pose.r - pose.hole, pose.edge)
  face, relief, gloss = _metal(rng, pose, stage)
  bevel = noise.smooth((1 - pose.r) / 0.075) * noise.smooth((pose.r - pose.hole) / 0.075)
  rise = 0.55 + 0.45 * np.sqrt(bevel)
  if bite is not None:
    body, rise = body * (1 - noise.smooth(bite)), rise - 0.2 * noise.blur(bite, stage.size / 100)
  height = ground * (1 - body) + (_THICK * rise + relief) * body
  color = dirt * (1 - body) + face * body
  return Surface(height, color[..., None], 0.03 * (1 - body) + gloss * body, 30, body)


def _pose(rng: np.random.Generator, stage: Stage) -> Pose:
  outer = _OUTER * rng.normal(1, 0.006)
  dy, dx = stage.y - 0.5 - rng.uniform(-0.02, 0.02), stage.x - 0.5 - rng.uniform(-0.02, 0.02)
  return Pose(
    np.hypot(dy, dx) / outer, np.arctan2(dy, dx), 0.42 * rng.normal(1, 0.006), stage.pixel / outer
  )


def _belt(rng: np.random.Generator, size: int) -> tuple[Plane, Plane]:
  """Height and color of dark woven rubber, worn along the way it runs, and dusty."""
  y, x = scene.grid(size)
  u, v = np.pi * (34 * x + rng.random()), np.pi * (34 * y + rng.random())
  weave = np.sin(u) * np.sin(v)
  wear = noise.octaves(rng, size, 2, 40, stretch=0.15)
  dust = noise.octaves(rng, size, 10, 200, fade=0.4)
  height = 0.0011 * weave + 0.0002 * dust
  color = 0.030 + 0.006 * weave + 0.004 * wear + 0.006 * np.maximum(dust - 0.5, 0)
  return height, np.maximum(color, 0.004)


def _metal(rng: np.random.Generator, pose: Pose, stage: Stage) -> tuple[Plane, Plane, Plane]:
  """Color, height and gloss of a lathe's work: fine rings, and fans where the light glances."""
  turn = rng.uniform(0, 1)
  radius, around = np.clip(pose.r / 2, 0, 1), np.mod(pose.a / (2 * np.pi) + turn, 1)
  rings = 0.6 * noise.line(rng, radius, 360, 0.0) + 0.6 * noise.line(rng, radius, 90, 0.3)
  rays = noise.line(rng, around, 720, 0.35)
  smudge = noise.octaves(rng, stage.size, 1.5, 12)
  grain = noise.octaves(rng, stage.size, 20, 300, fade=0.2)
  light = np.arctan2(stage.lamp[0], stage.lamp[1])
  glance = np.cos(pose.a - light) ** 2
  fans = glance**6 * (1 + 0.14 * rays) + 0.3 * glance**2
  color = 0.165 + 0.25 * fans + 0.016 * rings * (0.5 + fans) + 0.010 * smudge + 0.008 * grain
  return np.maximum(color, 0.01), 0.00006 * rings + 0.00008 * grain, 0.22 + 0.05 * rings.clip(-2, 2)


def _missing(
  rng: np.random.Generator, make: Maker, scene_rng: np.random.Generator, stage: Stage
) -> Surface:
  """Break a piece out of one of the edges."""
  edge = _OUTER * rng.choice([0.44, 1.0], p=[0.3, 0.7])
  way, radius = rng.uniform(0, 2 * np.pi), rng.uniform(0.028, 0.075)
  y, x = scene.grid(stage.size)
  depth = noise.blot(rng, y - 0.5 - edge * np.sin(way), x - 0.5 - edge * np.cos(way), radius)
  return make(scene_rng, stage, bite=noise.inside(depth, 1.5 * stage.pixel))


def _deformation(
  rng: np.random.Generator, make: Maker, scene_rng: np.random.Generator, stage: Stage
) -> Surface:
  """Knock a part of the rim out of round."""
  way, edge = rng.uniform(0, 2 * np.pi), _OUTER * rng.uniform(0.8, 1.0)
  at = (0.5 + edge * np.sin(way), 0.5 + edge * np.cos(way))
  return make(scene_rng, defects.bent(rng, stage, at, rng.uniform(0.07, 0.13)))


PRODUCT = scene.Product(
  make,
  {
    'contamination': defects.contamination,
    'deformation': _deformation,
    'missing': _missing,
    'scratch': defects.scratch,
    'spot': defects.spot,
  },
  _LAMP,
)
