"""Connected regions of masks, and run-length encoding of masks.

Letters: h w image, r regions.
"""

from collections.abc import Sequence
import math
from typing import cast, NamedTuple

from jaxtyping import Bool, Float, Int32, Int64
import numpy as np
from scipy import ndimage

_MAX_BITS = 40  # Of a number in compressed run lengths; an image has at most 2 ** 32 pixels.


def label_regions(
  mask: Bool[np.ndarray, 'h w'],
) -> tuple[Int32[np.ndarray, 'h w'], Int64[np.ndarray, ' r']]:
  """Return labels of the 8-connected regions of a mask, from 1 on, and the regions' areas."""
  labels, num_regions = cast(tuple[np.ndarray, int], ndimage.label(mask, np.ones((3, 3))))
  return labels, np.bincount(labels[mask], minlength=num_regions + 1)[1:]


class Region(NamedTuple):
  """Region of 8-connected pixels of a mask.

  Attributes:
    box: left, top, right and bottom in pixels of the original image; the last two are exclusive.
    area: number of pixels.
    peak: largest value of the anomaly map in the region.
    at: x and y of the peak.
  """

  box: tuple[int, int, int, int]
  area: int
  peak: float
  at: tuple[int, int]


def find_regions(
  mask: Bool[np.ndarray, 'h w'], anomaly_map: Float[np.ndarray, 'h w']
) -> list[Region]:
  """Return the regions of a mask, from top to bottom, with their peaks in the anomaly map."""
  if not mask.any():
    return []  # The image may be empty, for which the code below fails.
  labels, sizes = label_regions(mask)
  regions = []
  for label, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
    inside = labels[rows, columns] == label
    values = np.where(inside, anomaly_map[rows, columns], -np.inf)
    y, x = divmod(int(values.argmax()), values.shape[1])
    box = columns.start, rows.start, columns.stop, rows.stop
    at = columns.start + x, rows.start + y
    regions.append(Region(box, int(sizes[label - 1]), float(values[y, x]), at))
  return regions


def find_peak(
  anomaly_map: Float[np.ndarray, 'h w'], visible: Bool[np.ndarray, 'h w']
) -> tuple[float, tuple[int, int]]:
  """Return the largest value of the visible pixels, and its x and y; NaN for an empty map."""
  if not anomaly_map.size:
    return math.nan, (0, 0)
  values = np.where(visible, anomaly_map, -np.inf)
  y, x = divmod(int(values.argmax()), values.shape[1])
  return float(values[y, x]), (x, y)


def encode_run_lengths(mask: Bool[np.ndarray, 'h w']) -> dict[str, Sequence[int]]:
  """Encode a mask as COCO's uncompressed run lengths: column by column, background first."""
  flat = mask.ravel(order='F')
  ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
  counts = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
  return {'size': list(mask.shape), 'counts': [0, *counts] if flat.size and flat[0] else counts}


def decode_run_lengths(counts: Sequence[int] | str, h: int, w: int) -> Bool[np.ndarray, 'h w']:
  """Decode COCO's run lengths, column by column and background first.

  Args:
    counts: run lengths as a list, or compressed as a string.
    h: height of the mask.
    w: width of the mask.

  Raises:
    ValueError: the run lengths do not cover the mask exactly, or the string is not valid.
  """
  lengths = decompress_run_lengths(counts) if isinstance(counts, str) else counts
  if not all(0 <= length <= h * w for length in lengths) or sum(lengths) != h * w:
    raise ValueError(f'its run lengths do not sum to {w}x{h} pixels')
  values = np.arange(len(lengths)) % 2 == 1
  return np.repeat(values, lengths).reshape(w, h).T


def decompress_run_lengths(text: str) -> list[int]:
  """Return the run lengths of COCO's compressed string, like `rleFrString` of cocoapi's maskApi.c.

  Each character has six bits; numbers are differences from the last but one.

  Raises:
    ValueError: a character is not in the alphabet, or a number is too long or incomplete.
  """
  counts: list[int] = []
  value = shift = 0
  for character in text:
    bits = ord(character) - 48
    if not 0 <= bits < 64:
      raise ValueError(f'{character!r} is not a valid character of compressed run lengths')
    if shift >= _MAX_BITS:  # Otherwise, time would grow with the square of the number's length.
      raise ValueError(f'a number in its run lengths has more than {_MAX_BITS} bits')
    value |= (bits & 31) << shift
    shift += 5
    if not bits & 32:  # The number ends here; its sign is in bit 16.
      value -= (1 << shift) if bits & 16 else 0
      counts.append(value + (counts[-2] if len(counts) > 2 else 0))
      value = shift = 0
  if shift:
    raise ValueError('its run lengths end within a number')
  return counts
