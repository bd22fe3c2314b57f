"""Scene of a product in front of the camera: its surface, and the light on it.

Lengths are in sides of the image, y down, x right, z toward the camera; light is linear.

Letters: s side of an image; c channels, 1 for a monochrome camera, else 3.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxtyping import Float
import numpy as np

from uadjax.data.demo import noise

Plane = Float[np.ndarray, 's s']
Color = Float[np.ndarray, 's s c']


class View(NamedTuple):
  """Coordinates of the pixels on the product, and the position of the lamp.

  Attributes:
    y: vertical coordinate of every pixel, 0 to 1; warped where the product is deformed.
    x: horizontal coordinate of every pixel, 0 to 1; warped where the product is deformed.
    lamp: position (y, x, z) of the lamp.
  """

  y: Plane
  x: Plane
  lamp: tuple[float, float, float]

  @property
  def size(self) -> int:
    """Side of the image in pixels."""
    return len(self.y)

  @property
  def pixel_size(self) -> float:
    """Side of a pixel, as a fraction of the image's side."""
    return 1 / len(self.y)


class Surface(NamedTuple):
  """Surface that reflects the light.

  Attributes:
    height: height above the ground.
    color: fraction of the light that is scattered, per channel.
    gloss: strength of the highlight.
    shininess: exponent of the Blinn-Phong highlight; larger is narrower.
    product_coverage: fraction of each pixel that shows the product and not its support.
  """

  height: Plane
  color: Color
  gloss: Plane
  shininess: float
  product_coverage: Plane


# Arguments are (rng, view), and keywords for the product's own defects.
SurfaceFn = Callable[..., Surface]
# Arguments are (rng of the defect, function that draws the product, and its rng and view).
DefectFn = Callable[[np.random.Generator, SurfaceFn, np.random.Generator, View], Surface]


class Product(NamedTuple):
  """Category of the demo dataset.

  Attributes:
    make_surface: function that draws a good product.
    defects: functions that draw a defective product, by name of the defect.
    lamp: approximate position (y, x, z) of the lamp.
    ambient: fraction of the light that comes from all directions.
  """

  make_surface: SurfaceFn
  defects: Mapping[str, DefectFn]
  lamp: tuple[float, float, float] = (-0.6, -0.5, 1.2)
  ambient: float = 0.35


def shade(surface: Surface, view: View, ambient: float) -> Color:
  """Return the light that reaches the camera; a white sheet in the center gives 1."""
  y, x = grid(view.size)
  ly, lx, lz = view.lamp[0] + 0.5 - y, view.lamp[1] + 0.5 - x, view.lamp[2]
  lamp_distance = np.sqrt(ly**2 + lx**2 + lz**2)
  slope_y, slope_x = np.gradient(surface.height, view.pixel_size)
  normal_z = 1 / np.sqrt(1 + slope_y**2 + slope_x**2)
  diffuse = np.maximum(lz - slope_y * ly - slope_x * lx, 0) * normal_z / lamp_distance
  # Blinn-Phong half vector for a camera far above: (ly, lx, lz + lamp_distance).
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
  """Return the coordinates y and x of pixel centers, from 0 to 1."""
  y, x = (np.mgrid[:size, :size] + 0.5) / size
  return y, x


def make_view(size: int, lamp: tuple[float, float, float]) -> View:
  """Return a view without deformation."""
  return View(*grid(size), lamp)


def _sky_visibility(height: Plane) -> Plane:
  """Return the approximate fraction of visible sky, which is lower in pits and next to walls."""
  size = len(height)
  fine_blur, coarse_blur = noise.blur(height, size / 100), noise.blur(height, size / 30)
  return 1 / (1 + 18 * np.maximum(fine_blur - height, 0) + 18 * np.maximum(coarse_blur - height, 0))


def _lamp_visibility(height: Plane, view: View) -> Plane:
  """Return the visible fraction of the lamp (soft shadows), by marching toward the light."""
  ly, lx, lz = view.lamp
  horizontal_distance, size = np.hypot(ly, lx), view.size
  shadow_length = (height.max() - height.min()) * horizontal_distance / lz * size  # Pixels.
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
    # Shadows get softer with the distance from the object.
    shadow = np.maximum(shadow, excess_height / (0.003 + 0.35 * step / size))
  return 1 - 0.85 * np.clip(shadow, 0, 1)
