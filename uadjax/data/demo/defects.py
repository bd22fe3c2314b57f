"""Defects that befall any product: each takes one in place, and gives the same one, damaged.

They differ in strength, from what an eye must look for to what none would miss.

Letters: s the side of a picture.
"""

from collections.abc import Sequence

from jaxtyping import Float
import numpy as np

from uadjax.data.demo import noise, scene
from uadjax.data.demo.scene import Maker, Stage, Surface

Plane = Float[np.ndarray, 's s']
Tone = Sequence[float]  # A color; (one,) of a monochrome camera.

_INK = {'hair': 0.012, 'lint': 0.75, 'dust': 0.25}


def scratch(
  rng: np.random.Generator,
  make: Maker,
  scene_rng: np.random.Generator,
  stage: Stage,
  bare: Tone = (0.9,),
) -> Surface:
  """Draw a groove with raised rims; `bare` is what shows in it."""
  surface = make(scene_rng, stage)
  strength = rng.uniform(0.25, 0.85)
  along, across = _local(rng, stage, surface.part)
  length, width = rng.uniform(0.05, 0.16), rng.uniform(0.0015, 0.0032)
  across = across + rng.uniform(-1.5, 1.5) * along**2 + 0.002 * np.sin(along * rng.uniform(20, 60))
  ends = noise.smooth((length - abs(along)) / (0.5 * length)) * surface.part
  groove = ends * _thin(across, width, stage.pixel)
  rims = ends * np.exp(-((abs(across) / width - 2.2) ** 2))
  height = surface.height + width * strength * (0.8 * rims - 1.6 * groove)
  color = _mixed(surface.color, bare, groove * strength)
  return surface._replace(height=height, color=color, gloss=surface.gloss * (1 - 0.5 * groove))


def spot(
  rng: np.random.Generator,
  make: Maker,
  scene_rng: np.random.Generator,
  stage: Stage,
  through: Tone = (0.2,),
  own: Tone = (0.0,),
) -> Surface:
  """Spill something that dries with a rim: a color of its own, and a share of what is below."""
  surface = make(scene_rng, stage)
  strength = rng.uniform(0.35, 0.95)
  along, across = _local(rng, stage, surface.part)
  radius = rng.uniform(0.022, 0.07)
  depth = noise.blot(rng, across, along, radius)
  soaked = noise.smooth(depth / max(0.25 * radius, stage.pixel) + 0.5)
  rim = np.exp(-((depth / (0.14 * radius)) ** 2))
  uneven = 1 + 0.12 * noise.octaves(rng, stage.size, 4, 40)
  amount = np.clip(strength * (0.75 * soaked * uneven + 0.25 * rim), 0, 1) * surface.part
  color = _mixed(surface.color, surface.color * np.array(through) + np.array(own), amount)
  return surface._replace(color=color, gloss=surface.gloss * (1 - 0.7 * amount))


def contamination(
  rng: np.random.Generator, make: Maker, scene_rng: np.random.Generator, stage: Stage
) -> Surface:
  """Drop a hair, a fiber of cloth or a few grains of dust."""
  surface = make(scene_rng, stage)
  kind = rng.choice(sorted(_INK))
  cover = _grains(rng, stage, surface.part) if kind == 'dust' else _fiber(rng, stage, surface.part)
  thickness = 0.012 if kind == 'dust' else 0.0045
  tone = _INK[kind] * rng.uniform(0.8, 1.2, surface.color.shape[-1])
  return surface._replace(
    height=surface.height + thickness * cover * _full(cover),
    color=_mixed(surface.color, tone, cover),
    gloss=surface.gloss * (1 - cover),
  )


def dent(
  rng: np.random.Generator,
  make: Maker,
  scene_rng: np.random.Generator,
  stage: Stage,
  soft: float = 1.0,
) -> Surface:
  """Press something blunt into it, the deeper the softer it is."""
  surface = make(scene_rng, stage)
  along, across = _local(rng, stage, surface.part)
  radius, longer = rng.uniform(0.025, 0.06), rng.uniform(1, 1.8)
  far = np.hypot(along / longer, across) / radius
  pressed = np.exp(-(far**2)) - 0.25 * np.exp(-((far - 1.6) ** 2) * 4)
  depth = soft * radius * rng.uniform(0.08, 0.28)
  return surface._replace(height=surface.height - depth * pressed * surface.part)


def bent(rng: np.random.Generator, stage: Stage, at: tuple[float, float], radius: float) -> Stage:
  """Pull what is near a point (y, x) aside, by up to half the radius."""
  dy, dx = stage.y - at[0], stage.x - at[1]
  window = np.exp(-(((dy**2 + dx**2) / radius**2) ** 1.5))
  way, far = rng.uniform(0, 2 * np.pi), radius * rng.uniform(0.25, 0.5)
  return stage._replace(
    y=stage.y + far * np.sin(way) * window, x=stage.x + far * np.cos(way) * window
  )


def place(rng: np.random.Generator, part: Plane) -> tuple[float, float]:
  """Choose a point (y, x) well inside the product and the picture, as far as there is one."""
  size = len(part)
  depth = noise.blur(part, size / 60)
  edge = round(0.1 * size)
  depth[:edge] = depth[-edge:] = depth[:, :edge] = depth[:, -edge:] = 0
  core = np.flatnonzero(depth >= min(0.97, depth.max()))
  y, x = divmod(int(rng.choice(core)), size)
  return (y + 0.5) / size, (x + 0.5) / size


def _local(rng: np.random.Generator, stage: Stage, part: Plane) -> tuple[Plane, Plane]:
  """Coordinates about a point of the product, turned at random."""
  y, x = scene.grid(stage.size)
  (at_y, at_x), turn = place(rng, part), rng.uniform(0, np.pi)
  dy, dx = y - at_y, x - at_x
  return dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)


def _thin(across: Plane, width: float, pixel: float) -> Plane:
  """A line that may be thinner than a pixel: then it covers only a share of it, half at least."""
  seen = max(width, 0.7 * pixel)
  return max(width / seen, 0.5) * np.exp(-((across / seen) ** 2))


def _mixed(color: np.ndarray, tone: Tone | np.ndarray, share: Plane) -> np.ndarray:
  return color + share[..., None] * (np.asarray(tone) - color)


def _full(cover: Plane) -> float:
  """How much of a height is left where what is thinner than a pixel is drawn a pixel wide."""
  return 1 / max(cover.max(), 1e-9) * min(1.0, cover.max())


def _fiber(rng: np.random.Generator, stage: Stage, part: Plane) -> Plane:
  """A strand that turns as it likes."""
  y, x = scene.grid(stage.size)
  steps, length = 24, rng.uniform(0.13, 0.32)
  bend = np.cumsum(rng.normal(0, 0.035, steps)) + rng.normal(0, 0.04)
  turn = rng.uniform(0, 2 * np.pi) + np.cumsum(bend)
  at_y, at_x = place(rng, part)
  py = np.cumsum(np.sin(turn)) * length / steps
  px = np.cumsum(np.cos(turn)) * length / steps
  points = np.stack([py + at_y - py.mean(), px + at_x - px.mean()], axis=1)
  distance = noise.strand(y, x, [(float(a), float(b)) for a, b in points])
  return _thin(distance, rng.uniform(0.0022, 0.0036), stage.pixel)


def _grains(rng: np.random.Generator, stage: Stage, part: Plane) -> Plane:
  y, x = scene.grid(stage.size)
  at_y, at_x = place(rng, part)
  cover = np.zeros_like(y)
  for _ in range(rng.integers(2, 6)):
    dy, dx = y - at_y - rng.normal(0, 0.03), x - at_x - rng.normal(0, 0.03)
    radius = rng.uniform(0.006, 0.016)
    depth = noise.blot(rng, dy, dx, radius, rough=0.16)
    cover = np.maximum(cover, noise.inside(depth, max(stage.pixel, 0.4 * radius)))
  return cover
