"""A product before the camera: what it is made of, and how light falls on it.

Lengths are in sides of the picture, y down, x right, z toward the camera; light is linear.

Letters: s the side of a picture; c channels, 1 of a monochrome camera or 3.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxtyping import Float
import numpy as np

from uadjax.data.demo import noise

Plane = Float[np.ndarray, 's s']
Color = Float[np.ndarray, 's s c']


class Stage(NamedTuple):
  """Where a product is looked at.

  Attributes:
    y: of every pixel, 0 to 1; bent where the product is.
    x: likewise.
    lamp: where the light is (y, x, z).
  """

  y: Plane
  x: Plane
  lamp: tuple[float, float, float]

  @property
  def size(self) -> int:
    """Side in pixels."""
    return len(self.y)

  @property
  def pixel(self) -> float:
    """Side of a pixel."""
    return 1 / len(self.y)


class Surface(NamedTuple):
  """What light meets.

  Attributes:
    height: above the ground.
    color: share of the light that is scattered.
    gloss: strength of the highlight.
    polish: how narrow the highlight is: exponent of Blinn and Phong.
    part: how much of a pixel is the product; the rest is what it lies on.
  """

  height: Plane
  color: Color
  gloss: Plane
  polish: float
  part: Plane


Maker = Callable[..., Surface]  # (rng, stage) and what a defect of its own may ask for.
Defect = Callable[[np.random.Generator, Maker, np.random.Generator, Stage], Surface]


class Product(NamedTuple):
  """A category.

  Attributes:
    make: draws a good one.
    defects: by name, what draws a bad one: (what decides the defect, make, make's own arguments).
    lamp: where the light is, about (y, x, z).
    ambient: share of the light that comes from everywhere.
  """

  make: Maker
  defects: Mapping[str, Defect]
  lamp: tuple[float, float, float] = (-0.6, -0.5, 1.2)
  ambient: float = 0.35


def shade(surface: Surface, stage: Stage, ambient: float) -> Color:
  """Light that reaches the camera; 1 of a white sheet in the middle."""
  y, x = grid(stage.size)
  ly, lx, lz = stage.lamp[0] + 0.5 - y, stage.lamp[1] + 0.5 - x, stage.lamp[2]
  far = np.sqrt(ly**2 + lx**2 + lz**2)
  slope_y, slope_x = np.gradient(surface.height, stage.pixel)
  up = 1 / np.sqrt(1 + slope_y**2 + slope_x**2)
  toward = np.maximum(lz - slope_y * ly - slope_x * lx, 0) * up / far
  # Half way between light and camera, which is far above: (ly, lx, lz + far).
  half = np.sqrt(ly**2 + lx**2 + (lz + far) ** 2)
  glance = np.clip((lz + far - slope_y * ly - slope_x * lx) * up / half, 0, 1) ** surface.polish
  middle = np.sqrt(sum(length**2 for length in stage.lamp))
  falloff = (middle / far) ** 2 * _lit(surface.height, stage)
  scattered = ambient * _open(surface.height) + (1 - ambient) * falloff * toward * middle / lz
  return surface.color * scattered[..., None] + (surface.gloss * glance * falloff)[..., None]


def grid(size: int) -> tuple[Plane, Plane]:
  """Coordinates y and x of the pixels, 0 to 1."""
  y, x = (np.mgrid[:size, :size] + 0.5) / size
  return y, x


def stage(size: int, lamp: tuple[float, float, float]) -> Stage:
  """Look at nothing yet."""
  return Stage(*grid(size), lamp)


def _open(height: Plane) -> Plane:
  """Share of the sky that is seen, about: less in pits and beside walls."""
  size = len(height)
  near, wide = noise.blur(height, size / 100), noise.blur(height, size / 30)
  return 1 / (1 + 18 * np.maximum(near - height, 0) + 18 * np.maximum(wide - height, 0))


def _lit(height: Plane, stage: Stage) -> Plane:
  """Share of the lamp that is seen: soft shadows, by steps toward the light."""
  ly, lx, lz = stage.lamp
  level, size = np.hypot(ly, lx), stage.size
  reach = (height.max() - height.min()) * level / lz * size  # Pixels that a shadow is long.
  steps = int(np.ceil(reach))
  around = np.pad(height, steps, 'edge')
  hidden = np.zeros_like(height)
  for step in range(1, steps + 1):
    dy, dx = round(step * ly / level), round(step * lx / level)
    over = around[steps + dy : steps + dy + size, steps + dx : steps + dx + size] - height
    rise = over - step / size * lz / level
    hidden = np.maximum(hidden, rise / (0.003 + 0.35 * step / size))  # Softer further away.
  return 1 - 0.85 * np.clip(hidden, 0, 1)
