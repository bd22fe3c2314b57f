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


def read_defect_mask(record: Record, size: tuple[int, int], mask_threshold: int) -> Mask | None:
  """Read which pixels are defective: none of a good image; None where nobody has told.

  Raises:
    DataError: the mask cannot be read, or has not the (height, width) of its image.
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
  anomaly_maps: Float[np.ndarray, 'n height width']
  normal_masks: list[tuple[tuple[int, ...], UInt8[np.ndarray, ' bytes']]]
  anomalous_scores: list[Float[np.ndarray, ' m']]
  region_weights: list[Float[np.ndarray, ' m']]


def empty(ops: transforms.Ops, num_images: int) -> PixelScores:
  """Begin with no pixels, and room for so many images."""
  shape = (max(num_images, 1), ops.height, ops.width)
  with tempfile.TemporaryFile() as file:  # The map outlives it.
    anomaly_maps = np.memmap(file, np.float32, 'w+', shape=shape)
  return PixelScores(ops, anomaly_maps, [], [], [])


def add_image(
  pixel_scores: PixelScores,
  anomaly_map: Float[np.ndarray, 'height width'],
  restored_map: Float[np.ndarray, 'h w'],
  visible: Mask,
  truth: Mask | None,
) -> None:
  """Add an image: its map, that at original size, the pixels the network saw, the defective ones.

  What was not seen is left out, and so is an image of which nobody knows what is defective; its map
  is kept.
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
  """Rank the pixels of all images; None where there are only normal or only defective ones."""
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
