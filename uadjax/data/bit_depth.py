"""Decision on the bit depth of a dataset whose images have 16 bits."""

from collections.abc import Sequence
from concurrent import futures
from pathlib import Path

from uadjax.data import image_io, pixel_range
from uadjax.data.records import Record
from uadjax.errors import DataError
from uadjax.system import logging as log, threads


def decide(records: Sequence[Record]) -> str:
  """Return the smallest bit depth that holds all values of the images, for `data.bits`.

  Only images of 16 bits are decoded, and no more of them once one needs all bits. Without any, the
  bit depth is 16. The decision is logged if there are any.
  """
  largest, source = -1, Path()
  pool = futures.ThreadPoolExecutor(threads.num_cores(), 'uadjax-bits')
  try:
    paths = [record.path for record in records]
    for path, value in zip(paths, pool.map(_largest_value, paths), strict=True):
      if value > largest:
        largest, source = value, path
      if largest >= 1 << 14:
        break
  finally:
    pool.shutdown(cancel_futures=True)
  if largest < 0:
    return str(pixel_range.FULL_RANGE.bits)
  bits = pixel_range.bits_for(largest)
  log.LOG.info(
    'Bit depth of 16-bit images (data.bits=auto): %d, because the training image %s has the value '
    '%d.', bits, source, largest,
  )  # fmt: skip
  return str(bits)


def _largest_value(path: Path) -> int:
  """Return the largest value of an image of 16 bits; -1 for others and for unreadable ones."""
  try:
    value = image_io.largest_16_bit_value(path)
  except DataError:  # The check of the dataset reports it.
    return -1
  return -1 if value is None else value
