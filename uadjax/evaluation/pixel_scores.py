"""Maps of test images beside what is known of them, at original resolution and in bounded memory.

Letters: h w original image, height width network image, m defective pixels.
"""

from collections.abc import Iterator
import tempfile
from typing import NamedTuple

from jaxtyping import Bool, Float, UInt8
import numpy as np

from uadjax.data import image_io, layouts, transforms
from uadjax.data.records import Record
from uadjax.errors import DataError
from uadjax.numerics import metrics

Mask = Bool[np.ndarray, 'h w']


def read(record: Record, size: tuple[int, int], threshold: int) -> Mask | None:
  """Read which pixels are defective: none of a good image; None where nobody has told.

  Raises:
    DataError: the mask cannot be read, or has not the (height, width) of its image.
  """
  if not record.is_anomalous:
    return np.zeros(size, bool)
  if record.mask is None:
    return None
  truth = image_io.read_mask(record.mask, threshold)
  if told := layouts.mask_size_mismatch(record, size, truth.shape):
    raise DataError(told)
  return truth


class Pixels(NamedTuple):
  """What a ranking of pixels needs of the images so far.

  Defective pixels are few: their map values are kept. Normal ones are enlarged again, image by
  image, when they are counted, from maps at network size in a file without a name.

  Attributes:
    ops: bring maps back to the original size.
    maps: at network size, as many as there are images at most.
    normal: of each image so far its size, and its normal pixels as bits; of one without truth no
      bits.
    anomalous: map values of the defective pixels of each.
    weight: of these, see `metrics.region_weights`.
  """

  ops: transforms.Ops
  maps: Float[np.ndarray, 'n height width']
  normal: list[tuple[tuple[int, ...], UInt8[np.ndarray, ' bytes']]]
  anomalous: list[Float[np.ndarray, ' m']]
  weight: list[Float[np.ndarray, ' m']]


def nothing(ops: transforms.Ops, images: int) -> Pixels:
  """Begin with no pixels, and room for so many images."""
  shape = (max(images, 1), ops.height, ops.width)
  with tempfile.TemporaryFile() as file:  # The map outlives it.
    maps = np.memmap(file, np.float32, 'w+', shape=shape)
  return Pixels(ops, maps, [], [], [])


def add(
  pixels: Pixels,
  map: Float[np.ndarray, 'height width'],
  restored: Float[np.ndarray, 'h w'],
  seen: Mask,
  truth: Mask | None,
) -> None:
  """Add an image: its map, that at original size, the pixels the network saw, the defective ones.

  What was not seen is left out, and so is an image of which nobody knows what is defective; its map
  is kept.
  """
  pixels.maps[len(pixels.normal)] = map
  if truth is None:
    pixels.normal.append((seen.shape, np.zeros(0, np.uint8)))
    return
  pixels.normal.append((truth.shape, np.packbits(seen & ~truth)))
  bad = truth & seen
  pixels.anomalous.append(restored[bad])
  pixels.weight.append(metrics.region_weights(bad))


def ranking(pixels: Pixels) -> metrics.Ranking | None:
  """Rank the pixels of all images; None where there are only normal or only defective ones."""
  bad = np.concatenate([np.zeros(0, np.float32), *pixels.anomalous])
  if not len(bad) or not any(bits.any() for _, bits in pixels.normal):
    return None
  return metrics.rank(bad, _normal(pixels), np.concatenate(pixels.weight))


def _normal(pixels: Pixels) -> Iterator[Float[np.ndarray, ' _n']]:
  for map, (size, bits) in zip(pixels.maps, pixels.normal, strict=False):
    if not len(bits):
      continue
    normal = np.unpackbits(bits, count=size[0] * size[1]).astype(bool).reshape(size)
    yield pixels.ops.restore(map, size[0], size[1]).anomaly_map[normal]
