"""Rendering of one image of the demo dataset, with its defect and the exact mask of it.

Letters: s side of an image; c channels, 1 for a monochrome camera, else 3.
"""

from typing import NamedTuple
import zlib

from jaxtyping import Bool, Float, UInt8
import numpy as np

from uadjax.data.demo import board, camera, fabric, noise, scene, steel, washer, wood

PRODUCTS = {
  'board': board.PRODUCT,
  'disc': washer.PRODUCT,
  'fabric': fabric.PRODUCT,
  'steel': steel.PRODUCT,
  'wood': wood.PRODUCT,
}
GOOD = 'good'

# Levels of 255 by which the neighborhood of a pixel must differ to be masked; twice the noise.
_MIN_DIFFERENCE = 4.0
_MIN_AREA = 4e-4  # Fraction of an image that a defect must cover.
_MAX_ATTEMPTS = 16

Pixels = UInt8[np.ndarray, 's s c']


class RenderedImage(NamedTuple):
  """Rendered image of a product.

  Attributes:
    pixels: the image.
    defect_free: the same image without the defect, with identical noise.
    mask: True where the two differ.
  """

  pixels: Pixels
  defect_free: Pixels
  mask: Bool[np.ndarray, 's s']


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
  name = f'{category}/{split}/{defect}/{number}'.encode()

  def random_stream(*stream_ids: int) -> np.random.Generator:
    key = (zlib.crc32(name), *stream_ids)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))

  lamp = tuple(np.array(product.lamp) + random_stream(0).normal(0, 0.035, 3))
  view = scene.make_view(size, lamp)

  def expose_surface(surface: scene.Surface) -> Float[np.ndarray, 's s c']:
    return camera.expose(random_stream(1), scene.shade(surface, view, product.ambient))

  good_levels = expose_surface(product.make_surface(random_stream(2), view))
  defect_free = camera.add_sensor_noise(random_stream(3), good_levels)
  levels, mask = good_levels, np.zeros((size, size), bool)
  if defect == GOOD:
    return RenderedImage(defect_free, defect_free, mask)
  for attempt in range(_MAX_ATTEMPTS):  # A defect may land where it is invisible.
    add_defect = product.defects[defect]
    levels = expose_surface(
      add_defect(random_stream(4, attempt), product.make_surface, random_stream(2), view)
    )
    mask = _visible_difference(levels, good_levels)
    if mask.sum() >= max(1, _MIN_AREA * size**2):
      break
  # Invisible differences are undone, so that the images are identical outside of the mask.
  visible_levels = np.where(mask[..., None], levels, good_levels)
  return RenderedImage(camera.add_sensor_noise(random_stream(3), visible_levels), defect_free, mask)


def _visible_difference(
  first: Float[np.ndarray, 's s c'], second: Float[np.ndarray, 's s c']
) -> Bool[np.ndarray, 's s']:
  """Return a mask of the pixels where two images differ visibly."""
  squared_difference = ((first - second) ** 2).max(axis=-1)
  local_mean = noise.blur(squared_difference, max(len(squared_difference) / 300, 0.5))
  return np.sqrt(local_mean) > _MIN_DIFFERENCE
