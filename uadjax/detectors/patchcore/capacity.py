"""How large a bank of patches may become.

It has room for the patches of all images, or for as many as fit into the bytes that a device may
spend on them and on selecting from them. In the end a share of all remains, and no more than half
of what fits.
"""

import math
from typing import NamedTuple

from uadjax.detectors.base import RunContext
from uadjax.errors import ConfigError
from uadjax.numerics import coreset
from uadjax.numerics.collectives import Shards
from uadjax.system.progress import Progress

OVERSAMPLING = (
  4  # So many times the ratio is kept where there will be a selection from what is kept.
)
_MAX_FOLDS = 10


class BankConfig(NamedTuple):
  """Sizes and settings of a bank.

  Attributes:
    patches: of an image.
    ratio: share of all patches that is kept in the end.
    capacity: rows of a shard until room must be made.
    bounded: whether that can happen.
    final: rows in the end.
    folds: that images are dealt to, to leave them out.
    dim: of the random projection that selections are made in; 0 for none.
    track: (items, number, what is done) -> items, while progress is shown.
    shards: over which devices the rows are split.
  """

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
  ratio: float,
  max_bytes: int,
  projection_dim: int,
) -> BankConfig:
  """Size a bank for the images of the spec, after those that an earlier run folded in.

  Raises:
    ConfigError: max_bytes, which every device may use, hold too few images to select from.
  """
  num_images, num_previous_images, num_shards = (
    context.max_images,
    context.num_previous_images,
    context.shards.num_shards,
  )
  bytes_per_patch = coreset.bytes_per_point(d) + 4 * projection_dim
  max_rows = max_bytes // bytes_per_patch
  if max_rows < 4 * patches_per_image:
    raise ConfigError(
      f'detector.max_bytes={max_bytes} hold the patches of {max_rows / patches_per_image:.1f} images; at least '
      f'{4 * patches_per_image * bytes_per_patch} are needed, for 4.'
    )
  max_coreset_size = num_shards * (max_rows // 2)
  previous_coreset_size, coreset_size = (
    min(round(ratio * n * patches_per_image), max_coreset_size)
    for n in (num_previous_images, num_previous_images + num_images)
  )
  images_per_shard = math.ceil(max(num_images, 1) / num_shards) + context.max_extra_images_per_shard
  needed_rows = math.ceil(previous_coreset_size / num_shards) + images_per_shard * patches_per_image
  num_folds = min(_MAX_FOLDS, max(1, num_previous_images + num_images))
  capacity, coreset_size = min(needed_rows, max_rows), max(1, coreset_size)
  return BankConfig(
    patches_per_image,
    ratio,
    capacity,
    needed_rows > max_rows,
    coreset_size,
    num_folds,
    projection_dim,
    context.progress,
    context.shards,
  )
