"""Defects that any product can have: each function draws a product and returns it damaged.

Their strength varies from barely visible to obvious.
"""

from collections.abc import Sequence
import functools

import numpy as np
from numpy.random import Generator

from uadjax.data.demo import noise, scene
from uadjax.data.demo.noise import Plane
from uadjax.data.demo.scene import DrawFn, Surface, View

Tone = Sequence[float]  # Color; a single value for a monochrome camera.

_BRIGHTNESS = {'hair': 0.012, 'lint': 0.75, 'dust': 0.25}


def common_defects(
  scratch_color: Tone | None = (0.9,), spot_transmission: Tone = (0.2,), spot_deposit: Tone = (0.0,)
) -> dict[str, scene.DefectFn]:
  """Return the functions that draw defects of any product, by name.

  Args:
    scratch_color: color below the surface, which a scratch exposes; None without scratches.
    spot_transmission: fraction of the product's color that shows through a spot.
    spot_deposit: color of a spot itself.
  """
  spot = functools.partial(add_spot, transmission=spot_transmission, deposit=spot_deposit)
  add_defect: dict[str, scene.DefectFn] = {'contamination': add_contamination, 'spot': spot}
  if scratch_color:
    add_defect['scratch'] = functools.partial(add_scratch, exposed_color=scratch_color)
  return add_defect


def add_scratch(rng: Generator, draw: DrawFn, view: View, exposed_color: Tone) -> Surface:
  """Add a groove with raised rims, in which `exposed_color` shows."""
  surface, strength = draw(view), rng.uniform(0.25, 0.85)
  along, across = _local_coordinates(rng, surface.coverage)
  length, width = rng.uniform(0.05, 0.16), rng.uniform(0.0015, 0.0032)
  across = across + rng.uniform(-1.5, 1.5) * along**2 + 0.002 * np.sin(along * rng.uniform(20, 60))
  taper = noise.smoothstep((length - abs(along)) / (0.5 * length)) * surface.coverage
  groove = taper * _thin_line(across, width, view.pixel)
  rims = taper * np.exp(-((abs(across) / width - 2.2) ** 2))
  height = surface.height + width * strength * (0.8 * rims - 1.6 * groove)
  color = blend(surface.color, exposed_color, groove * strength)
  return surface._replace(height=height, color=color, gloss=surface.gloss * (1 - 0.5 * groove))


def add_spot(
  rng: Generator, draw: DrawFn, view: View, transmission: Tone, deposit: Tone
) -> Surface:
  """Add a dried stain with a pronounced rim.

  Its color is `deposit` plus the fraction `transmission` of the color below.
  """
  surface, strength = draw(view), rng.uniform(0.35, 0.95)
  along, across = _local_coordinates(rng, surface.coverage)
  radius = rng.uniform(0.022, 0.07)
  depth = noise.blot_distance(rng, across, along, radius)
  stain = noise.smoothstep(depth / max(0.25 * radius, view.pixel) + 0.5)
  rim = np.exp(-((depth / (0.14 * radius)) ** 2))
  variation = 1 + 0.12 * noise.octaves(rng, view.size, 4, 40)
  opacity = np.clip(strength * (0.75 * stain * variation + 0.25 * rim), 0, 1) * surface.coverage
  stained = surface.color * np.array(transmission) + np.array(deposit)
  color = blend(surface.color, stained, opacity)
  return surface._replace(color=color, gloss=surface.gloss * (1 - 0.7 * opacity))


def add_contamination(rng: Generator, draw: DrawFn, view: View) -> Surface:
  """Add a hair, a fiber of cloth or a few grains of dust."""
  surface = draw(view)
  contaminant = rng.choice(sorted(_BRIGHTNESS))
  draw_coverage, thickness = (_dust, 0.012) if contaminant == 'dust' else (_fiber, 0.0045)
  coverage = draw_coverage(rng, surface.coverage)
  tone = _BRIGHTNESS[contaminant] * rng.uniform(0.8, 1.2, surface.color.shape[-1])
  height, color = surface.height + thickness * coverage, blend(surface.color, tone, coverage)
  return surface._replace(height=height, color=color, gloss=surface.gloss * (1 - coverage))


def add_dent(rng: Generator, draw: DrawFn, view: View, softness: float = 1.0) -> Surface:
  """Add a dent of a blunt object, whose depth is proportional to `softness`."""
  surface = draw(view)
  along, across = _local_coordinates(rng, surface.coverage)
  radius, elongation = rng.uniform(0.025, 0.06), rng.uniform(1, 1.8)
  distance = np.hypot(along / elongation, across) / radius
  profile = np.exp(-(distance**2)) - 0.25 * np.exp(-((distance - 1.6) ** 2) * 4)
  depth = softness * radius * rng.uniform(0.08, 0.28)
  return surface._replace(height=surface.height - depth * profile * surface.coverage)


def warp_view(rng: Generator, view: View, center: tuple[float, float], radius: float) -> View:
  """Warp the view near a point (y, x), in one direction and by up to half the radius."""
  dy, dx = view.y - center[0], view.x - center[1]
  weight = np.exp(-(((dy**2 + dx**2) / radius**2) ** 1.5))
  direction, shift = rng.uniform(0, 2 * np.pi), radius * rng.uniform(0.25, 0.5)
  y, x = view.y + shift * np.sin(direction) * weight, view.x + shift * np.cos(direction) * weight
  return view._replace(y=y, x=x)


def blend(color: scene.Color, tone: Tone | np.ndarray, weight: Plane) -> scene.Color:
  """Mix a color with another, whose share is `weight`."""
  return color + weight[..., None] * (np.asarray(tone) - color)


def _choose_point(rng: Generator, coverage: Plane) -> tuple[float, float]:
  """Choose a point (y, x) well inside the product and the image, as far as possible."""
  size = len(coverage)
  depth, margin = noise.blur(coverage, size / 60), round(0.1 * size)
  depth[:margin] = depth[-margin:] = depth[:, :margin] = depth[:, -margin:] = 0
  candidates = np.flatnonzero(depth >= min(0.97, depth.max()))
  y, x = divmod(int(rng.choice(candidates)), size)
  return (y + 0.5) / size, (x + 0.5) / size


def _local_coordinates(rng: Generator, coverage: Plane) -> tuple[Plane, Plane]:
  """Return coordinates around a random point of the product, along randomly rotated axes."""
  center, angle = _choose_point(rng, coverage), rng.uniform(0, np.pi)
  dy, dx = scene.grid(len(coverage), center)
  return dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)


def _thin_line(across: Plane, width: float, pixel: float) -> Plane:
  """Return the coverage of pixels by a line; one thinner than a pixel still covers half of it."""
  visible_width = max(width, 0.7 * pixel)
  return max(width / visible_width, 0.5) * np.exp(-((across / visible_width) ** 2))


def _fiber(rng: Generator, coverage: Plane) -> Plane:
  """Return the coverage of pixels by a randomly curved fiber."""
  n, length = 24, rng.uniform(0.13, 0.32)
  curvature = np.cumsum(rng.normal(0, 0.035, n)) + rng.normal(0, 0.04)
  heading = rng.uniform(0, 2 * np.pi) + np.cumsum(curvature)
  center_y, center_x = _choose_point(rng, coverage)
  y, x = np.cumsum(np.sin(heading)) * length / n, np.cumsum(np.cos(heading)) * length / n
  points = np.stack([y + center_y - y.mean(), x + center_x - x.mean()], axis=1).tolist()
  distance = noise.polyline_distance(*scene.grid(len(coverage)), [(y, x) for y, x in points])
  return _thin_line(distance, rng.uniform(0.0022, 0.0036), 1 / len(coverage))


def _dust(rng: Generator, coverage: Plane) -> Plane:
  """Return the coverage of pixels by a few grains of dust."""
  y, x = scene.grid(len(coverage), _choose_point(rng, coverage))
  dust = np.zeros_like(y)
  for _ in range(rng.integers(2, 6)):
    dy, dx = y - rng.normal(0, 0.03), x - rng.normal(0, 0.03)
    radius = rng.uniform(0.006, 0.016)
    depth = noise.blot_distance(rng, dy, dx, radius, roughness=0.16)
    dust = np.maximum(dust, noise.linear_step(depth, max(1 / len(y), 0.4 * radius)))
  return dust
