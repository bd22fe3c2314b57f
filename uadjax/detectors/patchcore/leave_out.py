"""Memory banks without a fold of the images, to score that fold as if it were unseen.

Skipping the rows of an image is not enough: because of them, the selection passed over nearby
patches of other images, so that skipping leaves holes that a bank selected without the image does
not have. Therefore images are assigned to folds, a calibration coreset is selected from the patches
of each fold, and the bank without a fold is selected anew from the coresets of all other folds
(experiments/README.md).

Letters: n rows, s shards, m rows of a fold.
"""

import functools
import math

import jax
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Int
import numpy as np

from uadjax.detectors.patchcore import selection as selections
from uadjax.detectors.patchcore.capacity import BankConfig, OVERSAMPLING
from uadjax.detectors.patchcore.memory_bank import MemoryBank
from uadjax.detectors.patchcore.selection import Patches
from uadjax.numerics.collectives import Shards
from uadjax.system.progress import no_progress
from uadjax.types import Key

# Calibration coresets are selected in a random projection to at most this many dimensions, even if
# the final coreset uses all of them: five times faster, and just as good for calibration.
_MAX_PROJECTION_DIM = 64


def select_calibration_coresets(
  key: Key, memory_bank: MemoryBank, config: BankConfig, previous_coresets: Patches | None
) -> Patches:
  """Select a calibration coreset from the patches of each fold, and concatenate the coresets.

  Together they have about `OVERSAMPLING` times as many rows as the final coreset, or all patches.

  Args:
    key: key of the random projection and of the first centers.
    memory_bank: bank before its final selection.
    config: sizes and settings of the bank.
    previous_coresets: calibration coresets of the run that is extended, which stand for the patches
      of its images; None for a new run.

  Returns:
    The rows of all coresets, replicated on all devices. The fold of a row follows from `image_id`.
  """
  shards, num_folds = config.shards, config.num_folds
  sources = [(memory_bank.patches, selections.to_host(memory_bank.num_rows, shards))]
  if previous_coresets is not None:
    sources.append(selections.scatter_evenly(previous_coresets, shards))
  patches = [source for source, _ in sources]
  fold_ids = [_fold_ids(source, num_rows, config) for source, num_rows in sources]
  used_folds = [fold for fold in range(num_folds) if any((x == fold).any() for x in fold_ids)]
  sizes = [max((x == fold).sum(axis=1).max() for fold in used_folds) for x in fold_ids]
  rows_per_fold = math.ceil(OVERSAMPLING * config.coreset_size / len(used_folds))
  dim = min(config.projection_dim or _MAX_PROJECTION_DIM, _MAX_PROJECTION_DIM)
  low_dim_config = config._replace(projection_dim=dim, progress=no_progress)
  coresets = []
  for fold in config.progress(used_folds, len(used_folds), 'Selecting for calibration'):
    # Rows of the fold come first, in order; `valid` is False for the rows of padding after them.
    rows = [
      np.argsort(x != fold, axis=1, kind='stable')[:, :size].astype(np.int32)
      for x, size in zip(fold_ids, sizes, strict=True)
    ]
    valid = [np.take_along_axis(x, i, 1) == fold for x, i in zip(fold_ids, rows, strict=True)]
    # One fold at a time is gathered, because a copy of all patches may take gigabytes.
    fold_patches, is_valid = _gather_fold(patches, rows, valid, shards)
    num_centers = min(rows_per_fold, sum(int(x.sum()) for x in valid))
    selection = selections.k_center(key, fold_patches, is_valid, low_dim_config, num_centers)
    coresets.append(selections.take_selected(fold_patches, selection, shards))
    del fold_patches  # Otherwise it would stay until the patches of the next fold are gathered.
  return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *coresets)


def coreset_without_fold(
  coresets: Patches, config: BankConfig, fold: int, max_rows: int
) -> Patches:
  """Select the rows of a memory bank that has seen no image of one fold.

  Args:
    coresets: calibration coresets of all folds, replicated.
    config: number of folds, random projection, and shards to select on.
    fold: fold that is held out.
    max_rows: number of rows to select; all rows of the other folds if these are fewer.

  Returns:
    The rows of the bank, replicated on all devices.
  """
  patches, rows_per_shard = selections.scatter_evenly(coresets, config.shards)
  valid = selections.valid_mask(patches, jnp.asarray(rows_per_shard), config.shards)
  valid &= patches.image_id % config.num_folds != fold
  config = config._replace(progress=no_progress)
  selection = selections.k_center(jax.random.key(fold), patches, valid, config, max_rows)
  return selections.take_selected(patches, selection, config.shards)


def _fold_ids(
  patches: Patches, rows_per_shard: Int[np.ndarray, ' s'], config: BankConfig
) -> Int[np.ndarray, 's n']:
  """Return the fold of each row of each shard; -1 for rows that are not in use."""
  image_id = selections.to_host(patches.image_id, config.shards).reshape(len(rows_per_shard), -1)
  is_used = np.arange(image_id.shape[1]) < rows_per_shard[:, None]
  return np.where(is_used, image_id % config.num_folds, -1)


@functools.partial(jax.jit, static_argnames='shards')
def _gather_fold(
  sources: list[Patches],
  rows: list[Int[Array, 's _m']],
  valid: list[Bool[Array, 's _m']],
  shards: Shards,
) -> tuple[Patches, Bool[Array, ' n']]:
  """Gather the rows of one fold within each shard, and concatenate those of all sources.

  Args:
    sources: patches of the memory bank and of previous coresets, sharded by row.
    rows: per source, positions of the fold's rows within each shard.
    valid: per source, False where a position is padding.
    shards: shards of the rows.

  Returns:
    The patches, and a mask of the valid ones, both sharded by row.
  """

  def gather_shard(
    sources: list[Patches], rows: list[Array], valid: list[Array], axis_name: str | None
  ) -> tuple[Patches, Array]:
    del axis_name
    parts = [
      jax.tree.map(lambda x, i=i: x[i[0]], source) for source, i in zip(sources, rows, strict=True)
    ]
    patches = jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)
    return patches, jnp.concatenate([mask[0] for mask in valid])

  return shards.shard_map(gather_shard, (P('data'),) * 3, P('data'))(sources, rows, valid)
