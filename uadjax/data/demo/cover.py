"""Demo product 'cover': a large image of a painted cover of a housing, with tiny defects.

An inspection camera sees the whole cover at once, so a defect takes about ten of 2048 pixels. The
camera is monochrome. Lengths are in pixels, levels from 0 to 255.

Letters: h w height and width of an image or a window of it.
"""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Float
import numpy as np
from numpy.random import Generator
from PIL import Image

from uadjax.data.demo import noise
from uadjax.data.demo.noise import Plane

HEIGHT, WIDTH = 1536, 2048

_BODY_SIZE = (610.0, 860.0)  # Half the height and half the width of the cover.
_BODY_RADIUS = 90.0
_PANEL_SIZE, _PANEL_RADIUS = (455.0, 700.0), 60.0  # The sunken panel in its middle.
_HOLES = tuple((y, x) for y in (-532.0, 532.0) for x in (-780.0, 0.0, 780.0))
_SLOTS = tuple((y, 430.0) for y in (-225.0, -135.0, -45.0, 45.0, 135.0, 225.0))
_RIBS = tuple((0.0, x) for x in (-560.0, -450.0, -340.0, -230.0))
_RING_CENTER = (0.0, 60.0)
_PAINT_LEVEL, _BELT_LEVEL, _HOLE_LEVEL, _METAL_LEVEL = 112.0, 40.0, 16.0, 205.0
_RELIEF = 26.0  # Levels by which a slope of 1 toward the lamp is brighter.
_WINDOW = 40  # Side of the window that a defect may change.
_MIN_EDGE_DISTANCE = 45.0  # Of a defect, from the edge of the cover.
_MAX_SLOPE = 0.02  # Of the surface where a defect lies, so that no edge hides it.


class Cover(NamedTuple):
  """Drawn cover without a defect.

  Attributes:
    levels: levels of the image, without noise of the sensor.
    distance: distance to the edge of the cover; negative outside.
    slope: slope of the surface without its texture.
    lamp: direction (y, x) toward the lamp, a unit vector.
  """

  levels: Plane
  distance: Plane
  slope: Plane
  lamp: tuple[float, float]


def draw_cover(rng: Generator) -> Cover:
  """Draw a good cover; its position, angle, light and texture vary."""
  y, x = _rotated_grid(rng.uniform(-14, 14), rng.uniform(-14, 14), rng.normal(0, 0.004))
  angle = np.pi * 1.25 + rng.normal(0, 0.03)
  lamp = (float(np.sin(angle)), float(np.cos(angle)))
  distance = _box_distance(y, x, _BODY_SIZE, _BODY_RADIUS)
  height, openings = _relief(y, x, distance)
  slope_y, slope_x = np.gradient(height)
  texture = 0.5 * _blotches(rng, 10) + 0.85 * _blotches(rng, 4) + 0.3 * _blotches(rng, 2)
  clouds = _blotches(rng, 128)
  light = slope_y * np.float32(-lamp[0]) + slope_x * np.float32(-lamp[1])
  paint = _PAINT_LEVEL * (1 + 0.02 * clouds) + _RELIEF * light.clip(-3, 3) + 7 * texture
  paint = paint + (_HOLE_LEVEL - paint) * openings
  coverage = noise.linear_step(distance, 1.6)
  belt = _draw_belt(rng) * _shade_beside(y, x, lamp)
  levels = (belt + (paint - belt) * coverage) * _vignette(rng)
  return Cover(levels, distance, np.hypot(slope_y, slope_x), lamp)


def region_of_interest() -> Plane:
  """Return 1 where every good cover shows paint, else 0."""
  y, x = _rotated_grid(0.0, 0.0, 0.0)
  return (_box_distance(y, x, _BODY_SIZE, _BODY_RADIUS) > 25).astype(np.float32)


def add_defect(rng: Generator, cover: Cover, defect: str) -> Plane:
  """Return the levels of a cover with one defect, about 10 pixels wide, on its paint.

  Args:
    rng: random generator of the defect.
    cover: good cover.
    defect: name from `DEFECTS`.
  """
  top, left = _choose_window(rng, cover)
  window = np.s_[top : top + _WINDOW, left : left + _WINDOW]
  y, x = (np.mgrid[:_WINDOW, :_WINDOW] - (_WINDOW - 1) / 2).astype(np.float32)
  levels = cover.levels.copy()
  levels[window] = DEFECTS[defect](rng, levels[window], y, x, cover.lamp)
  return levels


def _choose_window(rng: Generator, cover: Cover) -> tuple[int, int]:
  """Return the upper left corner (y, x) of a window on flat paint."""
  while True:
    top, left = (int(rng.integers(0, side - _WINDOW)) for side in (HEIGHT, WIDTH))
    window = np.s_[top : top + _WINDOW, left : left + _WINDOW]
    is_inside = cover.distance[window].min() > _MIN_EDGE_DISTANCE
    if is_inside and cover.slope[window].max() < _MAX_SLOPE:
      return top, left


def _rotated_grid(shift_y: float, shift_x: float, angle: float) -> tuple[Plane, Plane]:
  """Return coordinates of the pixels relative to the shifted and rotated cover's center."""
  y = np.arange(HEIGHT, dtype=np.float32)[:, None] - np.float32((HEIGHT - 1) / 2 + shift_y)
  x = np.arange(WIDTH, dtype=np.float32)[None] - np.float32((WIDTH - 1) / 2 + shift_x)
  sine, cosine = np.float32(np.sin(angle)), np.float32(np.cos(angle))
  return y * cosine - x * sine, x * cosine + y * sine


def _box_distance(y: Plane, x: Plane, half_size: tuple[float, float], radius: float) -> Plane:
  """Return the signed distance to the edge of a box with rounded corners; positive inside."""
  dy, dx = abs(y) - (half_size[0] - radius), abs(x) - (half_size[1] - radius)
  outside = np.hypot(np.maximum(dy, 0), np.maximum(dx, 0))
  return radius - outside - np.minimum(np.maximum(dy, dx), 0)


def _relief(y: Plane, x: Plane, distance: Plane) -> tuple[Plane, Plane]:
  """Return the height of the cover, and the fraction of each pixel that shows an opening."""
  height = 20 * noise.smoothstep(distance / 22)
  height -= 9 * noise.smoothstep(_box_distance(y, x, _PANEL_SIZE, _PANEL_RADIUS) / 14)
  openings = np.zeros_like(height)
  for center in _HOLES:
    window = _window_around(center, 80)
    radius = np.hypot(y[window] - center[0], x[window] - center[1])
    height[window] -= 12 * noise.smoothstep((58 - radius) / 20)
    openings[window] = noise.linear_step(32 - radius, 1.6)
  for center in _SLOTS:
    window = _window_around(center, 240)
    depth = _box_distance(y[window] - center[0], x[window] - center[1], (15.0, 190.0), 15.0)
    height[window] -= 4 * noise.smoothstep((depth + 8) / 8)
    openings[window] = np.maximum(openings[window], noise.linear_step(depth, 1.6))
  for center in _RIBS:
    window = _window_around(center, 340)
    depth = _box_distance(y[window] - center[0], x[window] - center[1], (300.0, 17.0), 17.0)
    height[window] += 10 * noise.smoothstep(depth / 14)
  window = _window_around(_RING_CENTER, 160)
  radius = np.hypot(y[window] - _RING_CENTER[0], x[window] - _RING_CENTER[1])
  height[window] += 6 * noise.smoothstep((12 - abs(radius - 105)) / 9)
  return height, openings


def _window_around(center: tuple[float, float], half_side: int) -> tuple[slice, slice]:
  """Return the square of the image around a point of the cover, clipped to the image."""
  middle = round(center[0] + HEIGHT / 2), round(center[1] + WIDTH / 2)
  return np.s_[
    max(middle[0] - half_side, 0) : middle[0] + half_side,
    max(middle[1] - half_side, 0) : middle[1] + half_side,
  ]


def _blotches(rng: Generator, scale: int) -> Plane:
  """Draw noise of mean 0 and variance 1 whose blotches are about 3 times `scale` wide.

  It is drawn at a coarser resolution, which costs little.
  """
  shape = (HEIGHT // scale + 2, WIDTH // scale + 2)
  plane = noise.blur(rng.standard_normal(shape, np.float32), 1.0)
  plane = (plane - plane.mean()) / plane.std()
  box = (0.5, 0.5, 0.5 + WIDTH / scale, 0.5 + HEIGHT / scale)
  resampling = Image.Resampling.BICUBIC
  return np.asarray(Image.fromarray(plane).resize((WIDTH, HEIGHT), resampling, box))


def _draw_belt(rng: Generator) -> Plane:
  """Draw the conveyor belt below the cover: woven rubber, worn along its direction."""
  y = np.arange(HEIGHT, dtype=np.float32)[:, None] + np.float32(rng.uniform(0, 100))
  x = np.arange(WIDTH, dtype=np.float32)[None] + np.float32(rng.uniform(0, 100))
  weave = np.sin(y * np.float32(2 * np.pi / 17)) * np.sin(x * np.float32(2 * np.pi / 17))
  wear = 0.10 * _blotches(rng, 32) + 0.08 * _blotches(rng, 3)
  return _BELT_LEVEL * (1 + 0.28 * weave + wear)


def _shade_beside(y: Plane, x: Plane, lamp: tuple[float, float]) -> Plane:
  """Return the fraction of light that reaches the belt beside the cover, opposite the lamp."""
  shifted_y, shifted_x = y + np.float32(26 * lamp[0]), x + np.float32(26 * lamp[1])
  depth = _box_distance(shifted_y, shifted_x, _BODY_SIZE, _BODY_RADIUS)
  return 1 - 0.55 * noise.smoothstep((depth + 16) / 32)


def _vignette(rng: Generator) -> Plane:
  """Return the factor of exposure of every pixel: optics, and tolerance of the lamp."""
  y = np.linspace(-0.5, 0.5, HEIGHT, dtype=np.float32)[:, None]
  x = np.linspace(-0.5, 0.5, WIDTH, dtype=np.float32)[None]
  tilt_y, tilt_x = rng.normal(0, 0.03, 2).astype(np.float32)
  return np.float32(rng.normal(1, 0.02)) * (1 - 0.25 * (y**2 + x**2) + tilt_y * y + tilt_x * x)


def _blot(rng: Generator, y: Plane, x: Plane, roughness: float) -> tuple[Plane, float]:
  """Return the coverage of an irregular blot, and its radius."""
  radius = rng.uniform(4.2, 5.6)
  return noise.linear_step(noise.blot_distance(rng, y, x, radius, roughness), 2.0), radius


def _add_pinhole(
  rng: Generator, levels: Plane, y: Plane, x: Plane, lamp: tuple[float, float]
) -> Plane:
  """Add a hole in the paint: dark, with light on its side away from the lamp."""
  coverage, radius = _blot(rng, y, x, 0.03)
  toward_lamp = (y * lamp[0] + x * lamp[1]) / radius
  tone = rng.uniform(0.30, 0.45) * levels - 28 * np.clip(toward_lamp, -1, 0.3)
  return levels + coverage * (tone - levels)


def _add_chip(
  rng: Generator, levels: Plane, y: Plane, x: Plane, lamp: tuple[float, float]
) -> Plane:
  """Chip the paint off bright metal."""
  coverage, radius = _blot(rng, y, x, 0.05)
  toward_lamp = (y * lamp[0] + x * lamp[1]) / radius
  tone = rng.uniform(0.80, 1.0) * _METAL_LEVEL - 35 * np.clip(toward_lamp, 0, 1)
  return levels + coverage * (tone - levels)


def _add_inclusion(
  rng: Generator, levels: Plane, y: Plane, x: Plane, lamp: tuple[float, float]
) -> Plane:
  """Add a grain of dust under the paint: a bump, bright toward the lamp and dark away from it."""
  radius, strength = rng.uniform(3.0, 3.8), rng.uniform(75, 105)
  toward_lamp = (y * lamp[0] + x * lamp[1]) / radius
  return levels + strength * toward_lamp * np.exp(-(y**2 + x**2) / (2 * radius**2) * 1.6)


DEFECTS: dict[str, Callable[..., Float[np.ndarray, 'h w']]] = {
  'chip': _add_chip,
  'inclusion': _add_inclusion,
  'pinhole': _add_pinhole,
}
