"""One picture of the demo set: a product, what is wrong with it, and the exact mask of that.

Letters: s the side of a picture; c channels, 1 of a monochrome camera or 3.
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

_MIN_DIFFERENCE = (
  4.0  # Levels of 255 by which a pixel and those beside it must differ: twice the noise.
)
_MIN_AREA = 4e-4  # Share of a picture that a defect must cover.
_MAX_ATTEMPTS = 16

Pixels = UInt8[np.ndarray, 's s c']


class RenderedImage(NamedTuple):
  """A product as the camera saw it.

  Attributes:
    pixels: the picture.
    twin: the same without a defect, down to the noise.
    mask: where they differ.
  """

  pixels: Pixels
  defect_free: Pixels
  mask: Bool[np.ndarray, 's s']


def render_image(
  category: str, split: str, defect: str, number: int, seed: int, size: int
) -> RenderedImage:
  """Take the picture with this number of a part ('train', 'test') and defect; of no others.

  What is the same for all sizes is decided by the seed, but details are not: noise is drawn for
  each pixel.
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
  for attempt in range(_MAX_ATTEMPTS):  # Some fall where they do not show.
    add_defect = product.defects[defect]
    levels = expose_surface(
      add_defect(random_stream(4, attempt), product.make_surface, random_stream(2), view)
    )
    mask = _visible_difference(levels, good_levels)
    if mask.sum() >= max(1, _MIN_AREA * size**2):
      break
  # What nobody could see is taken back: outside the mask, nothing differs at all.
  visible_levels = np.where(mask[..., None], levels, good_levels)
  return RenderedImage(camera.add_sensor_noise(random_stream(3), visible_levels), defect_free, mask)


def _visible_difference(
  first: Float[np.ndarray, 's s c'], second: Float[np.ndarray, 's s c']
) -> Bool[np.ndarray, 's s']:
  """Where two pictures differ so much that an eye could tell."""
  squared_difference = ((first - second) ** 2).max(axis=-1)
  local_mean = noise.blur(squared_difference, max(len(squared_difference) / 300, 0.5))
  return np.sqrt(local_mean) > _MIN_DIFFERENCE
