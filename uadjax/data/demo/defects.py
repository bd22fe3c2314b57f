"""Defects that any product can have: each function draws a product and returns it damaged.

Their strength varies from barely visible to obvious.

Letters: s side of an image.
"""

from collections.abc import Sequence

from jaxtyping import Float
import numpy as np

from uadjax.data.demo import noise, scene
from uadjax.data.demo.scene import Surface, SurfaceFn, View

Plane = Float[np.ndarray, 's s']
Tone = Sequence[float]  # Color; a single value for a monochrome camera.

_BRIGHTNESS = {'hair': 0.012, 'lint': 0.75, 'dust': 0.25}


def add_scratch(
  rng: np.random.Generator,
  make_surface: SurfaceFn,
  scene_rng: np.random.Generator,
  view: View,
  exposed_color: Tone = (0.9,),
) -> Surface:
  """Add a groove with raised rims, in which `exposed_color` shows."""
  surface = make_surface(scene_rng, view)
  strength = rng.uniform(0.25, 0.85)
  along, across = _local_coordinates(rng, view, surface.product_coverage)
  length, width = rng.uniform(0.05, 0.16), rng.uniform(0.0015, 0.0032)
  across = across + rng.uniform(-1.5, 1.5) * along**2 + 0.002 * np.sin(along * rng.uniform(20, 60))
  taper = noise.smoothstep((length - abs(along)) / (0.5 * length)) * surface.product_coverage
  groove = taper * _thin_line(across, width, view.pixel_size)
  rims = taper * np.exp(-((abs(across) / width - 2.2) ** 2))
  height = surface.height + width * strength * (0.8 * rims - 1.6 * groove)
  color = _blend(surface.color, exposed_color, groove * strength)
  return surface._replace(height=height, color=color, gloss=surface.gloss * (1 - 0.5 * groove))


def add_spot(
  rng: np.random.Generator,
  make_surface: SurfaceFn,
  scene_rng: np.random.Generator,
  view: View,
  transmission: Tone = (0.2,),
  deposit_color: Tone = (0.0,),
) -> Surface:
  """Add a dried stain with a pronounced rim.

  Its color is `deposit_color` plus the fraction `transmission` of the color below.
  """
  surface = make_surface(scene_rng, view)
  strength = rng.uniform(0.35, 0.95)
  along, across = _local_coordinates(rng, view, surface.product_coverage)
  radius = rng.uniform(0.022, 0.07)
  depth = noise.blot_distance(rng, across, along, radius)
  stain = noise.smoothstep(depth / max(0.25 * radius, view.pixel_size) + 0.5)
  rim = np.exp(-((depth / (0.14 * radius)) ** 2))
  variation = 1 + 0.12 * noise.octaves(rng, view.size, 4, 40)
  opacity = (
    np.clip(strength * (0.75 * stain * variation + 0.25 * rim), 0, 1) * surface.product_coverage
  )
  color = _blend(
    surface.color, surface.color * np.array(transmission) + np.array(deposit_color), opacity
  )
  return surface._replace(color=color, gloss=surface.gloss * (1 - 0.7 * opacity))


def add_contamination(
  rng: np.random.Generator, make_surface: SurfaceFn, scene_rng: np.random.Generator, view: View
) -> Surface:
  """Add a hair, a fiber of cloth or a few grains of dust."""
  surface = make_surface(scene_rng, view)
  contaminant = rng.choice(sorted(_BRIGHTNESS))
  coverage = (
    _dust_coverage(rng, view, surface.product_coverage)
    if contaminant == 'dust'
    else _fiber_coverage(rng, view, surface.product_coverage)
  )
  thickness = 0.012 if contaminant == 'dust' else 0.0045
  tone = _BRIGHTNESS[contaminant] * rng.uniform(0.8, 1.2, surface.color.shape[-1])
  return surface._replace(
    height=surface.height + thickness * coverage * _height_correction(coverage),
    color=_blend(surface.color, tone, coverage),
    gloss=surface.gloss * (1 - coverage),
  )


def add_dent(
  rng: np.random.Generator,
  make_surface: SurfaceFn,
  scene_rng: np.random.Generator,
  view: View,
  softness: float = 1.0,
) -> Surface:
  """Add a dent of a blunt object, whose depth is proportional to `softness`."""
  surface = make_surface(scene_rng, view)
  along, across = _local_coordinates(rng, view, surface.product_coverage)
  radius, elongation = rng.uniform(0.025, 0.06), rng.uniform(1, 1.8)
  distance = np.hypot(along / elongation, across) / radius
  dent_profile = np.exp(-(distance**2)) - 0.25 * np.exp(-((distance - 1.6) ** 2) * 4)
  depth = softness * radius * rng.uniform(0.08, 0.28)
  return surface._replace(height=surface.height - depth * dent_profile * surface.product_coverage)


def warp_view(
  rng: np.random.Generator, view: View, center: tuple[float, float], radius: float
) -> View:
  """Warp the view near a point (y, x), in one direction and by up to half the radius."""
  dy, dx = view.y - center[0], view.x - center[1]
  weight = np.exp(-(((dy**2 + dx**2) / radius**2) ** 1.5))
  direction, shift = rng.uniform(0, 2 * np.pi), radius * rng.uniform(0.25, 0.5)
  return view._replace(
    y=view.y + shift * np.sin(direction) * weight, x=view.x + shift * np.cos(direction) * weight
  )


def choose_point(rng: np.random.Generator, product_coverage: Plane) -> tuple[float, float]:
  """Choose a point (y, x) well inside the product and the image, as far as possible."""
  size = len(product_coverage)
  depth = noise.blur(product_coverage, size / 60)
  margin = round(0.1 * size)
  depth[:margin] = depth[-margin:] = depth[:, :margin] = depth[:, -margin:] = 0
  candidates = np.flatnonzero(depth >= min(0.97, depth.max()))
  y, x = divmod(int(rng.choice(candidates)), size)
  return (y + 0.5) / size, (x + 0.5) / size


def _local_coordinates(
  rng: np.random.Generator, view: View, product_coverage: Plane
) -> tuple[Plane, Plane]:
  """Return coordinates around a random point of the product, along randomly rotated axes."""
  y, x = scene.grid(view.size)
  (center_y, center_x), angle = choose_point(rng, product_coverage), rng.uniform(0, np.pi)
  dy, dx = y - center_y, x - center_x
  return dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)


def _thin_line(across: Plane, width: float, pixel: float) -> Plane:
  """Return the coverage of pixels by a line; one thinner than a pixel still covers half of it."""
  visible_width = max(width, 0.7 * pixel)
  return max(width / visible_width, 0.5) * np.exp(-((across / visible_width) ** 2))


def _blend(color: np.ndarray, tone: Tone | np.ndarray, weight: Plane) -> np.ndarray:
  return color + weight[..., None] * (np.asarray(tone) - color)


def _height_correction(coverage: Plane) -> float:
  """Return the factor for the height of a thin object that is drawn a pixel wide."""
  return 1 / max(coverage.max(), 1e-9) * min(1.0, coverage.max())


def _fiber_coverage(rng: np.random.Generator, view: View, product_coverage: Plane) -> Plane:
  """Return the coverage of pixels by a randomly curved fiber."""
  y, x = scene.grid(view.size)
  num_steps, length = 24, rng.uniform(0.13, 0.32)
  curvature = np.cumsum(rng.normal(0, 0.035, num_steps)) + rng.normal(0, 0.04)
  heading = rng.uniform(0, 2 * np.pi) + np.cumsum(curvature)
  center_y, center_x = choose_point(rng, product_coverage)
  py = np.cumsum(np.sin(heading)) * length / num_steps
  px = np.cumsum(np.cos(heading)) * length / num_steps
  points = np.stack([py + center_y - py.mean(), px + center_x - px.mean()], axis=1)
  distance = noise.polyline_distance(
    y, x, [(float(point_y), float(point_x)) for point_y, point_x in points]
  )
  return _thin_line(distance, rng.uniform(0.0022, 0.0036), view.pixel_size)


def _dust_coverage(rng: np.random.Generator, view: View, product_coverage: Plane) -> Plane:
  y, x = scene.grid(view.size)
  center_y, center_x = choose_point(rng, product_coverage)
  coverage = np.zeros_like(y)
  for _ in range(rng.integers(2, 6)):
    dy, dx = y - center_y - rng.normal(0, 0.03), x - center_x - rng.normal(0, 0.03)
    radius = rng.uniform(0.006, 0.016)
    depth = noise.blot_distance(rng, dy, dx, radius, roughness=0.16)
    coverage = np.maximum(coverage, noise.linear_step(depth, max(view.pixel_size, 0.4 * radius)))
  return coverage
