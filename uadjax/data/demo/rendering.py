"""Rendering of one image of the demo dataset, with its defect and the exact mask of it.

Letters: h w height and width of an image; c channels, 1 for a monochrome camera, else 3.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias
import zlib

from jaxtyping import Bool, UInt8
import numpy as np
from numpy.random import Generator

from uadjax.data.demo import board, cover, materials, noise, scene, washer
from uadjax.data.demo.scene import Color, Surface, View
from uadjax.data.records import GOOD

PRODUCTS = {'board': board.PRODUCT, 'disc': washer.PRODUCT, **materials.PRODUCTS}

_GAMMA, _MAX_LEVEL = 1 / 2.2, 255
# Levels of 255 by which the neighborhood of a pixel must differ to be masked; twice the noise.
_MIN_DIFFERENCE = 4.0
_MIN_AREA = 4e-4  # Fraction of an image that a defect must cover.
_MAX_ATTEMPTS = 16

Pixels: TypeAlias = UInt8[np.ndarray, 'h w c']


class RenderedImage(NamedTuple):
  """Rendered image of a product.

  Attributes:
    pixels: the image.
    defect_free: the same image without the defect, with identical noise.
    mask: True where the two differ.
  """

  pixels: Pixels
  defect_free: Pixels
  mask: Bool[np.ndarray, 'h w']


def render_image(
  category: str, split: str, defect: str, number: int, seed: int, size: int
) -> RenderedImage:
  """Render one image of the demo dataset, independently of all others.

  For one seed, the composition is the same at all sizes, but details differ, because noise is drawn
  per pixel.

  Args:
    category: name of a product in `PRODUCTS`.
    split: 'train' or 'test'.
    defect: 'good', or the name of a defect of the product.
    number: index of the image within its split and defect.
    seed: seed of the dataset.
    size: side of the image in pixels.
  """
  product = PRODUCTS[category]
  random_stream = _random_streams(f'{category}/{split}/{defect}/{number}', seed)

  def draw(view: View, **options: object) -> Surface:
    return product.draw(random_stream(2), view, **options)

  def photograph(surface: Surface) -> Color:
    return _expose(random_stream(1), scene.shade(surface, view))

  lamp_y, lamp_x, lamp_z = np.array(product.lamp) + random_stream(0).normal(0, 0.035, 3)
  view = View(*scene.grid(size), (lamp_y, lamp_x, lamp_z))
  good_levels = levels = photograph(draw(view))
  mask, num_attempts = np.zeros((size, size), bool), 0 if defect == GOOD else _MAX_ATTEMPTS
  for attempt in range(num_attempts):  # A defect may land where it is invisible.
    levels = photograph(product.defects[defect](random_stream(4, attempt), draw, view))
    mask = _visible_difference(levels, good_levels)
    if mask.sum() >= max(1, _MIN_AREA * size**2):
      break
  # Invisible differences are undone, so that the images are identical outside of the mask.
  levels = np.where(mask[..., None], levels, good_levels)
  pixels, defect_free = (_add_sensor_noise(random_stream(3), x) for x in (levels, good_levels))
  return RenderedImage(pixels, defect_free, mask)


def render_cover(split: str, defect: str, number: int, seed: int) -> RenderedImage:
  """Render one image of the large product, independently of all others.

  Args:
    split: 'train' or 'test'.
    defect: 'good', or a name from `cover.DEFECTS`.
    number: index of the image within its split and defect.
    seed: seed of the dataset.
  """
  random_stream = _random_streams(f'cover/{split}/{defect}/{number}', seed)
  good_cover = cover.draw_cover(random_stream(0))
  good_levels = levels = good_cover.levels
  if defect != GOOD:
    levels = cover.add_defect(random_stream(1), good_cover, defect)
  mask = abs(levels - good_levels) > _MIN_DIFFERENCE
  levels = np.where(mask, levels, good_levels)
  planes = (levels[..., None], good_levels[..., None])
  pixels, defect_free = (_add_sensor_noise(random_stream(2), plane) for plane in planes)
  return RenderedImage(pixels, defect_free, mask)


def _random_streams(name: str, seed: int) -> Callable[..., Generator]:
  """Return a function of ids that starts the random streams of one image of a dataset."""

  def random_stream(*stream_ids: int) -> Generator:
    key = (zlib.crc32(name.encode()), *stream_ids)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))

  return random_stream


def _expose(rng: Generator, light: Color) -> Color:
  """Convert light to levels of an image from 0 to 255: optics and exposure, without noise."""
  size, _, channels = light.shape
  y, x = scene.grid(size, (0.5, 0.5))
  tilt_y, tilt_x = rng.normal(0, 0.04, 2)  # Tolerance of the lamp's position.
  vignette = 1 - 0.3 * (y**2 + x**2) + tilt_y * y + tilt_x * x
  channel_gain = rng.normal(1, 0.012, channels) * rng.normal(1, 0.025)
  sigma = rng.uniform(0.55, 0.8) * max(size / 256, 0.5)
  blurred = noise.blur(light, sigma)
  exposure = np.clip(blurred * vignette[..., None] * channel_gain, 0, None)
  compressed = np.where(exposure > 0.7, 0.7 + 0.3 * np.tanh((exposure - 0.7) / 0.3), exposure)
  return compressed**_GAMMA * _MAX_LEVEL


def _add_sensor_noise(rng: Generator, levels: Color) -> Pixels:
  """Add sensor noise, whose variance grows with the level, and round to integers."""
  noisy = levels + np.sqrt(0.2 + 0.005 * levels) * rng.standard_normal(levels.shape)
  return np.round(np.clip(noisy, 0, _MAX_LEVEL)).astype(np.uint8)


def _visible_difference(first: Color, second: Color) -> Bool[np.ndarray, 'h w']:
  """Return a mask of the pixels where two images differ visibly."""
  squared_difference = ((first - second) ** 2).max(axis=-1)
  local_mean = noise.blur(squared_difference, max(len(first) / 300, 0.5))
  return np.sqrt(local_mean) > _MIN_DIFFERENCE
