"""Pixel scores of a test set with their ground truth, at original resolution, in bounded memory.

Letters: h w original image, height width scaled image, m defective pixels.
"""

from collections.abc import Iterator, Sequence
import math
from pathlib import Path
import tempfile
from typing import NamedTuple

from jaxtyping import Bool, Float, UInt8
import numpy as np

from uadjax.data import image_io, layouts, transforms
from uadjax.data.records import Record
from uadjax.errors import DataError
from uadjax.numerics import metrics
from uadjax.system import files, threads

Mask = Bool[np.ndarray, 'h w']


def read_defect_mask(record: Record, size: tuple[int, int], mask_reading: str) -> Mask | None:
  """Read the mask of defective pixels: all False for a good image, None without ground truth.

  Raises:
    DataError: the mask cannot be read, or its size differs from the (height, width) of its image.
  """
  if not record.is_anomalous:
    return np.zeros(size, bool)
  if record.mask is None:
    return None
  truth = image_io.read_mask(record.mask, mask_reading)
  if problem := layouts.mask_size_mismatch(record, size, truth.shape):
    raise DataError(problem)
  return truth


class ImagePixels(NamedTuple):
  """Pixels of an image with ground truth.

  Attributes:
    size: height and width of the original.
    normal_bits: its normal pixels that the network saw, as packed bits.
    anomalous_scores: map values of its defective pixels that the network saw.
    region_weights: weights of the defective pixels, see `metrics.region_weights`.
  """

  size: tuple[int, int]
  normal_bits: UInt8[np.ndarray, ' bytes']
  anomalous_scores: Float[np.ndarray, ' m']
  region_weights: Float[np.ndarray, ' m']


class PixelScores(NamedTuple):
  """Pixel scores of the images added so far, for a ranking of pixels.

  Defective pixels are few, so their map values are stored. Values of normal pixels are upsampled
  again, image by image, when they are counted, from maps of scaled images in an anonymous file.

  Attributes:
    ops: preprocessing, which can restore maps to the original size.
    anomaly_maps: maps of all scaled images.
    images: pixels of each image; None without ground truth, and before the image is added.
  """

  ops: transforms.Ops
  anomaly_maps: Sequence[Float[np.ndarray, 'height width']]
  images: list[ImagePixels | None]


def empty(ops: transforms.Ops, paths: Sequence[Path]) -> PixelScores:
  """Create pixel scores without images, with space for those of some files.

  Raises:
    DataError: the header of an image that will be tiled cannot be read.
  """
  sizes = [(ops.height, ops.width)] * len(paths)
  if ops.is_tiled:
    sizes = [ops.scaled_size(*image_io.image_size(path)) for path in paths]
  ends = np.cumsum([math.prod(size) for size in sizes], dtype=np.int64)
  num_pixels = max(int(ends[-1:].sum()), 1)
  files.announce_size('temporary anomaly maps', Path(tempfile.gettempdir()), 4 * num_pixels)
  with tempfile.TemporaryFile() as file:  # The memory map remains valid after the file is closed.
    pixels = np.memmap(file, np.float32, 'w+', shape=(num_pixels,))
  maps = [
    pixels[end - math.prod(size) : end].reshape(size)
    for size, end in zip(sizes, ends.tolist(), strict=True)
  ]
  return PixelScores(ops, maps, [None] * len(paths))


def add_image(
  pixel_scores: PixelScores,
  index: int,
  anomaly_map: Float[np.ndarray, 'height width'],
  restored: transforms.RestoredMap,
  truth: Mask | None,
) -> None:
  """Add an image; without ground truth only its map is stored. Threads may add different images.

  Args:
    pixel_scores: pixel scores to add to.
    index: position of the image.
    anomaly_map: map of the scaled image.
    restored: map at original size; pixels that the network did not see are excluded.
    truth: defective pixels, or None without ground truth.
  """
  pixel_scores.anomaly_maps[index][:] = anomaly_map
  if truth is None:
    return
  height, width = truth.shape
  defective = truth & restored.visible
  pixel_scores.images[index] = ImagePixels(
    (height, width),
    np.packbits(restored.visible & ~truth),
    restored.anomaly_map[defective],
    metrics.region_weights(defective),
  )


def ranking(pixel_scores: PixelScores) -> metrics.Ranking | None:
  """Rank the pixels of all images by score; return None unless both classes are present."""
  images = [image for image in pixel_scores.images if image]
  scores = np.concatenate([np.zeros(0, np.float32), *(image.anomalous_scores for image in images)])
  if not len(scores) or not any(image.normal_bits.any() for image in images):
    return None
  weights = np.concatenate([image.region_weights for image in images])
  return metrics.rank(scores, _normal_scores(pixel_scores), weights)


def _normal_scores(pixel_scores: PixelScores) -> Iterator[Float[np.ndarray, ' _n']]:
  def normal_scores(item: tuple[Float[np.ndarray, 'height width'], ImagePixels]) -> np.ndarray:
    anomaly_map, (size, bits, *_) = item
    is_normal = np.unpackbits(bits, count=size[0] * size[1]).astype(bool).reshape(size)
    return pixel_scores.ops.restore(anomaly_map, *size).anomaly_map[is_normal]

  maps_and_images = zip(pixel_scores.anomaly_maps, pixel_scores.images, strict=False)
  items = ((anomaly_map, image) for anomaly_map, image in maps_and_images if image)
  with threads.thread_pool(threads.num_cores(), 'uadjax-rank') as pool:
    yield from threads.map_ahead(pool, normal_scores, items, threads.num_cores())
