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


class View(NamedTuple):
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
  def pixel_size(self) -> float:
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
  shininess: float
  product_coverage: Plane


SurfaceFn = Callable[..., Surface]  # (rng, stage) and what a defect of its own may ask for.
DefectFn = Callable[[np.random.Generator, SurfaceFn, np.random.Generator, View], Surface]


class Product(NamedTuple):
  """A category.

  Attributes:
    make: draws a good one.
    defects: by name, what draws a bad one: (what decides the defect, make, make's own arguments).
    lamp: where the light is, about (y, x, z).
    ambient: share of the light that comes from everywhere.
  """

  make_surface: SurfaceFn
  defects: Mapping[str, DefectFn]
  lamp: tuple[float, float, float] = (-0.6, -0.5, 1.2)
  ambient: float = 0.35


def shade(surface: Surface, view: View, ambient: float) -> Color:
  """Light that reaches the camera; 1 of a white sheet in the middle."""
  y, x = grid(view.size)
  ly, lx, lz = view.lamp[0] + 0.5 - y, view.lamp[1] + 0.5 - x, view.lamp[2]
  lamp_distance = np.sqrt(ly**2 + lx**2 + lz**2)
  slope_y, slope_x = np.gradient(surface.height, view.pixel_size)
  normal_z = 1 / np.sqrt(1 + slope_y**2 + slope_x**2)
  diffuse = np.maximum(lz - slope_y * ly - slope_x * lx, 0) * normal_z / lamp_distance
  # Half way between light and camera, which is far above: (ly, lx, lz + far).
  half_vector_length = np.sqrt(ly**2 + lx**2 + (lz + lamp_distance) ** 2)
  highlight = (
    np.clip(
      (lz + lamp_distance - slope_y * ly - slope_x * lx) * normal_z / half_vector_length, 0, 1
    )
    ** surface.shininess
  )
  center_lamp_distance = np.sqrt(sum(coordinate**2 for coordinate in view.lamp))
  falloff = (center_lamp_distance / lamp_distance) ** 2 * _lamp_visibility(surface.height, view)
  diffuse_light = (
    ambient * _sky_visibility(surface.height)
    + (1 - ambient) * falloff * diffuse * center_lamp_distance / lz
  )
  return surface.color * diffuse_light[..., None] + (surface.gloss * highlight * falloff)[..., None]


def grid(size: int) -> tuple[Plane, Plane]:
  """Coordinates y and x of the pixels, 0 to 1."""
  y, x = (np.mgrid[:size, :size] + 0.5) / size
  return y, x


def make_view(size: int, lamp: tuple[float, float, float]) -> View:
  """Look at nothing yet."""
  return View(*grid(size), lamp)


def _sky_visibility(height: Plane) -> Plane:
  """Share of the sky that is seen, about: less in pits and beside walls."""
  size = len(height)
  fine_blur, coarse_blur = noise.blur(height, size / 100), noise.blur(height, size / 30)
  return 1 / (1 + 18 * np.maximum(fine_blur - height, 0) + 18 * np.maximum(coarse_blur - height, 0))


def _lamp_visibility(height: Plane, view: View) -> Plane:
  """Share of the lamp that is seen: soft shadows, by steps toward the light."""
  ly, lx, lz = view.lamp
  horizontal_distance, size = np.hypot(ly, lx), view.size
  shadow_length = (
    (height.max() - height.min()) * horizontal_distance / lz * size
  )  # Pixels that a shadow is long.
  num_steps = int(np.ceil(shadow_length))
  padded = np.pad(height, num_steps, 'edge')
  shadow = np.zeros_like(height)
  for step in range(1, num_steps + 1):
    dy, dx = round(step * ly / horizontal_distance), round(step * lx / horizontal_distance)
    height_difference = (
      padded[num_steps + dy : num_steps + dy + size, num_steps + dx : num_steps + dx + size]
      - height
    )
    excess_height = height_difference - step / size * lz / horizontal_distance
    shadow = np.maximum(
      shadow, excess_height / (0.003 + 0.35 * step / size)
    )  # Softer further away.
  return 1 - 0.85 * np.clip(shadow, 0, 1)
