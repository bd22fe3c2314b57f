"""Pixel scores of a test set with their ground truth, at original resolution, in bounded memory.

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


def read_defect_mask(record: Record, size: tuple[int, int], mask_threshold: int) -> Mask | None:
  """Read the mask of defective pixels: all False for a good image, None without ground truth.

  Raises:
    DataError: the mask cannot be read, or its size differs from the (height, width) of its image.
  """
  if not record.is_anomalous:
    return np.zeros(size, bool)
  if record.mask is None:
    return None
  truth = image_io.read_mask(record.mask, mask_threshold)
  if problem := layouts.mask_size_mismatch(record, size, truth.shape):
    raise DataError(problem)
  return truth


class PixelScores(NamedTuple):
  """Pixel scores of the images added so far, for a ranking of pixels.

  Defective pixels are few, so their map values are stored. Values of normal pixels are upsampled
  again, image by image, when they are counted, from maps at network size in an anonymous file.

  Attributes:
    ops: preprocessing, which can restore maps to the original size.
    anomaly_maps: maps at network size, with space for all images.
    normal_masks: size of each image added so far, and its normal pixels as packed bits; no bits
      for an image without ground truth.
    anomalous_scores: map values of the defective pixels of each image.
    region_weights: weights of the defective pixels, see `metrics.region_weights`.
  """

  ops: transforms.Ops
  anomaly_maps: Float[np.ndarray, 'n height width']
  normal_masks: list[tuple[tuple[int, ...], UInt8[np.ndarray, ' bytes']]]
  anomalous_scores: list[Float[np.ndarray, ' m']]
  region_weights: list[Float[np.ndarray, ' m']]


def empty(ops: transforms.Ops, num_images: int) -> PixelScores:
  """Create pixel scores without images, with space for the maps of `num_images`."""
  shape = (max(num_images, 1), ops.height, ops.width)
  with tempfile.TemporaryFile() as file:  # The memory map remains valid after the file is closed.
    anomaly_maps = np.memmap(file, np.float32, 'w+', shape=shape)
  return PixelScores(ops, anomaly_maps, [], [], [])


def add_image(
  pixel_scores: PixelScores,
  anomaly_map: Float[np.ndarray, 'height width'],
  restored_map: Float[np.ndarray, 'h w'],
  visible: Mask,
  truth: Mask | None,
) -> None:
  """Add an image; without ground truth only its map is stored.

  Args:
    pixel_scores: pixel scores to add to.
    anomaly_map: map at network size.
    restored_map: map at original size.
    visible: pixels that the network saw; the others are excluded.
    truth: defective pixels, or None without ground truth.
  """
  pixel_scores.anomaly_maps[len(pixel_scores.normal_masks)] = anomaly_map
  if truth is None:
    pixel_scores.normal_masks.append((visible.shape, np.zeros(0, np.uint8)))
    return
  pixel_scores.normal_masks.append((truth.shape, np.packbits(visible & ~truth)))
  defective = truth & visible
  pixel_scores.anomalous_scores.append(restored_map[defective])
  pixel_scores.region_weights.append(metrics.region_weights(defective))


def ranking(pixel_scores: PixelScores) -> metrics.Ranking | None:
  """Rank the pixels of all images by score; return None unless both classes are present."""
  defective_scores = np.concatenate([np.zeros(0, np.float32), *pixel_scores.anomalous_scores])
  if not len(defective_scores) or not any(bits.any() for _, bits in pixel_scores.normal_masks):
    return None
  return metrics.rank(
    defective_scores, _normal_scores(pixel_scores), np.concatenate(pixel_scores.region_weights)
  )


def _normal_scores(pixel_scores: PixelScores) -> Iterator[Float[np.ndarray, ' _n']]:
  for anomaly_map, (size, bits) in zip(
    pixel_scores.anomaly_maps, pixel_scores.normal_masks, strict=False
  ):
    if not len(bits):
      continue
    normal_mask = np.unpackbits(bits, count=size[0] * size[1]).astype(bool).reshape(size)
    yield pixel_scores.ops.restore(anomaly_map, size[0], size[1]).anomaly_map[normal_mask]
