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

_VISIBLE = 4.0  # Levels of 255 by which a pixel and those beside it must differ: twice the noise.
_FEWEST = 4e-4  # Share of a picture that a defect must cover.
_TRIES = 16

Pixels = UInt8[np.ndarray, 's s c']


class Picture(NamedTuple):
  """A product as the camera saw it.

  Attributes:
    pixels: the picture.
    twin: the same without a defect, down to the noise.
    mask: where they differ.
  """

  pixels: Pixels
  twin: Pixels
  mask: Bool[np.ndarray, 's s']


def take(category: str, part: str, defect: str, number: int, seed: int, size: int) -> Picture:
  """Take the picture with this number of a part ('train', 'test') and defect; of no others.

  What is the same for all sizes is decided by the seed, but details are not: noise is drawn for
  each pixel.
  """
  product = PRODUCTS[category]
  name = f'{category}/{part}/{defect}/{number}'.encode()

  def stream(*what: int) -> np.random.Generator:
    key = (zlib.crc32(name), *what)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))

  lamp = tuple(np.array(product.lamp) + stream(0).normal(0, 0.035, 3))
  stage = scene.stage(size, lamp)

  def levels(surface: scene.Surface) -> Float[np.ndarray, 's s c']:
    return camera.expose(stream(1), scene.shade(surface, stage, product.ambient))

  good = levels(product.make(stream(2), stage))
  twin = camera.sense(stream(3), good)
  bad, mask = good, np.zeros((size, size), bool)
  if defect == GOOD:
    return Picture(twin, twin, mask)
  for attempt in range(_TRIES):  # Some fall where they do not show.
    draw = product.defects[defect]
    bad = levels(draw(stream(4, attempt), product.make, stream(2), stage))
    mask = _visible(bad, good)
    if mask.sum() >= max(1, _FEWEST * size**2):
      break
  # What nobody could see is taken back: outside the mask, nothing differs at all.
  seen = np.where(mask[..., None], bad, good)
  return Picture(camera.sense(stream(3), seen), twin, mask)


def _visible(
  one: Float[np.ndarray, 's s c'], other: Float[np.ndarray, 's s c']
) -> Bool[np.ndarray, 's s']:
  """Where two pictures differ so much that an eye could tell."""
  apart = ((one - other) ** 2).max(axis=-1)
  near = noise.blur(apart, max(len(apart) / 300, 0.5))
  return np.sqrt(near) > _VISIBLE
