"""Sizes of PatchCore's memory bank.

The bank holds the patches of all images, or as many as fit into the bytes that a device may spend
on them and on selecting from them. The final coreset is a share of all patches, and at most half of
what fits.
"""

import math
from typing import NamedTuple

from uadjax.detectors.base import RunContext
from uadjax.detectors.settings import PatchcoreSettings
from uadjax.errors import refuse
from uadjax.numerics import coreset
from uadjax.numerics.collectives import Shards
from uadjax.system.progress import Progress

# Intermediate coresets, which later selections choose from, keep this many times as many rows as
# their part of the final coreset.
OVERSAMPLING = 4
# Five folds calibrate as ten do, in slightly less time (experiments/README.md, "Does PatchCore
# score training images as if unseen?").
_NUM_FOLDS = 5


class BankConfig(NamedTuple):
  """Sizes and settings of a memory bank.

  Attributes:
    d: number of channels of a patch embedding.
    patches_per_image: number of patches of an image.
    ratio: share of all patches that the final coreset keeps, if memory suffices.
    capacity: number of rows that one shard holds before it must be compacted.
    needs_compaction: True if the images of the run can exceed the capacity of a shard.
    coreset_size: number of rows of the final coreset, over all shards: `ratio` times all patches of
      this run and earlier ones, or what memory allows.
    num_folds: number of folds that images are assigned to, to hold them out for calibration.
    projection_dim: number of dimensions of the random projection for selections; 0 for none.
    progress: (items, number of items, description) -> the items, showing progress as they are
      iterated over.
    shards: shards of the rows.
  """

  d: int
  patches_per_image: int
  ratio: float
  capacity: int
  needs_compaction: bool
  coreset_size: int
  num_folds: int
  projection_dim: int
  progress: Progress
  shards: Shards


def configure_bank(
  d: int,
  patches_per_image: int,
  context: RunContext,
  options: PatchcoreSettings,
  other_dims: tuple[int, ...] = (),
) -> BankConfig:
  """Return the sizes of a memory bank for the images of a run and of those that it extends.

  Args:
    d: number of channels of a patch embedding.
    patches_per_image: number of patches of an image.
    context: numbers of images of this run and of earlier ones, progress, and shards.
    options: settings. Of these, `max_bytes` also limits the memory for selecting from the bank, and
      the coreset takes at most half of it. To select in all dimensions is affordable here and more
      accurate than the paper's random projection to `coreset_dim` (experiments/README.md). Coresets
      for calibration are projected in either case (`leave_out`).
    other_dims: numbers of channels of further banks of the same patches, which share the memory.

  Raises:
    ConfigError: `max_bytes` holds the patches of fewer than 4 images.
  """
  num_images, num_shards = context.max_images, context.shards.num_shards
  max_rows = _max_rows((d, *other_dims), patches_per_image, options)
  max_coreset_size = num_shards * (max_rows // 2)

  def coreset_size(num_images: int) -> int:
    num_rows = options.ratio * num_images * patches_per_image * context.inspected_share
    return min(round(num_rows), max_coreset_size)

  images_per_shard = math.ceil(max(num_images, 1) / num_shards) + context.max_extra_images_per_shard
  previous_rows = math.ceil(coreset_size(context.num_previous_images) / num_shards)
  needed_rows = previous_rows + images_per_shard * patches_per_image
  total_images = context.num_previous_images + num_images
  return BankConfig(
    d,
    patches_per_image,
    options.ratio,
    capacity=min(needed_rows, max_rows),
    needs_compaction=needed_rows > max_rows,
    coreset_size=max(1, coreset_size(total_images)),
    num_folds=_NUM_FOLDS,  # The same in every run, because near-duplicates share a fold.
    projection_dim=options.coreset_dim,
    progress=context.progress,
    shards=context.shards,
  )


def _max_rows(dims: tuple[int, ...], patches_per_image: int, options: PatchcoreSettings) -> int:
  """Return the rows that fit into each bank within `max_bytes`, at least those of 4 images."""
  max_bytes, min_rows = options.max_bytes, 4 * patches_per_image
  bytes_per_patch = sum(coreset.bytes_per_point(d) + 4 * options.coreset_dim for d in dims)
  max_rows, min_bytes = max_bytes // bytes_per_patch, min_rows * bytes_per_patch
  if max_rows < min_rows:
    capacity = f'the patches of only {max_rows / patches_per_image:.1f} images'
    needs = f'at least {min_bytes} bytes are needed, for 4'
    message = f'detector.max_bytes={max_bytes} holds {capacity}; {needs}.'
    refuse('detector.max_bytes', max_bytes, message, allowed=(min_bytes, None))
  return max_rows
