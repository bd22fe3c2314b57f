"""Scene of a product in front of the camera: its surface, and the light on it.

Lengths are in sides of the image, y down, x right, z toward the camera; light is linear.

Letters: h w height and width of an image; c channels, 1 for a monochrome camera, else 3.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

from jaxtyping import Float
import numpy as np
from numpy.random import Generator

from uadjax.data.demo import noise
from uadjax.data.demo.noise import Plane

Color: TypeAlias = Float[np.ndarray, 'h w c']

_AMBIENT = 0.35  # Fraction of the light that comes from all directions.


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
  def pixel(self) -> float:
    """Side of a pixel, as a fraction of the image's side."""
    return 1 / len(self.y)


class Surface(NamedTuple):
  """Surface that reflects the light.

  Attributes:
    height: height above the ground.
    color: fraction of the light that is scattered, per channel.
    gloss: strength of the highlight.
    shininess: exponent of the Blinn-Phong highlight; larger is narrower.
    coverage: fraction of each pixel that shows the product and not its support.
  """

  height: Plane
  color: Color
  gloss: Plane
  shininess: float
  coverage: Plane


# Arguments are (view), and keywords for the product's own defects; always draws the same product.
DrawFn = Callable[..., Surface]
# Arguments are (rng of the defect, function that draws the product, and the view for it).
DefectFn = Callable[[Generator, DrawFn, View], Surface]


class Product(NamedTuple):
  """Category of the demo dataset.

  Attributes:
    draw: function of (rng, view) that draws a good product.
    defects: functions that draw a defective product, by name of the defect.
    lamp: approximate position (y, x, z) of the lamp.
  """

  draw: Callable[..., Surface]
  defects: Mapping[str, DefectFn]
  lamp: tuple[float, float, float]


def shade(surface: Surface, view: View) -> Color:
  """Return the light that reaches the camera; a white sheet in the center gives 1."""
  y, x = grid(view.size)
  ly, lx, lz = view.lamp[0] + 0.5 - y, view.lamp[1] + 0.5 - x, view.lamp[2]
  distance = np.sqrt(ly**2 + lx**2 + lz**2)
  dy, dx = np.gradient(surface.height, view.pixel)
  normal_z = 1 / np.sqrt(1 + dy**2 + dx**2)
  diffuse = np.maximum(lz - dy * ly - dx * lx, 0) * normal_z / distance
  # Blinn-Phong half vector for a camera far above: (ly, lx, lz + distance).
  half_vector = np.sqrt(ly**2 + lx**2 + (lz + distance) ** 2)
  cosine = (lz + distance - dy * ly - dx * lx) * normal_z / half_vector
  highlight = np.clip(cosine, 0, 1) ** surface.shininess
  center_distance = np.sqrt(sum(coordinate**2 for coordinate in view.lamp))
  falloff = (center_distance / distance) ** 2 * _lamp_visibility(surface.height, view)
  sky_light = _AMBIENT * _sky_visibility(surface.height)
  light = sky_light + (1 - _AMBIENT) * falloff * diffuse * center_distance / lz
  return surface.color * light[..., None] + (surface.gloss * highlight * falloff)[..., None]


def grid(size: int, center: tuple[float, float] = (0.0, 0.0)) -> tuple[Plane, Plane]:
  """Return the coordinates y and x of pixel centers, from 0 to 1, relative to a point (y, x)."""
  y, x = (np.mgrid[:size, :size] + 0.5) / size
  return y - center[0], x - center[1]


def _sky_visibility(height: Plane) -> Plane:
  """Return the approximate fraction of visible sky, which is lower in pits and next to walls."""
  fine, coarse = (noise.blur(height, len(height) / divisor) for divisor in (100, 30))
  return 1 / (1 + 18 * np.maximum(fine - height, 0) + 18 * np.maximum(coarse - height, 0))


def _lamp_visibility(height: Plane, view: View) -> Plane:
  """Return the visible fraction of the lamp (soft shadows), by marching toward the light."""
  ly, lx, lz = view.lamp
  horizontal, size = np.hypot(ly, lx), view.size
  num_steps = int(np.ceil((height.max() - height.min()) * horizontal / lz * size))
  padded = np.pad(height, num_steps, 'edge')
  shadow = np.zeros_like(height)
  for step in range(1, num_steps + 1):
    top, left = (num_steps + round(step * axis / horizontal) for axis in (ly, lx))
    excess = padded[top : top + size, left : left + size] - height - step / size * lz / horizontal
    # Shadows get softer with the distance from the object.
    shadow = np.maximum(shadow, excess / (0.003 + 0.35 * step / size))
  return 1 - 0.85 * np.clip(shadow, 0, 1)
