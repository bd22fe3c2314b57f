"""Memory banks without a fold of the images, to score that fold as if it were unseen.

Skipping the rows of an image is not enough: because of them, the selection passed over nearby
patches of other images, so that skipping leaves holes that a bank selected without the image does
not have. Therefore images are assigned to folds, a calibration coreset is selected from the patches
of each fold, and the bank without a fold is selected anew from the coresets of all other folds
(experiments/README.md).

Letters: n rows, d embedding, f folds, s shards, m rows of a fold or of a bank.
"""

from collections.abc import Sequence
import math
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from uadjax.detectors.patchcore import selection as selections
from uadjax.detectors.patchcore.capacity import BankConfig, OVERSAMPLING
from uadjax.detectors.patchcore.memory_bank import MemoryBank
from uadjax.detectors.patchcore.selection import Patches
from uadjax.types import Key

# Calibration coresets are selected in a random projection to at most this many dimensions, even if
# the final coreset uses all of them: five times faster, and just as good for calibration.
_MAX_PROJECTION_DIM = 64


def select_calibration_coresets(
  key: Key, memory_bank: MemoryBank, bank_config: BankConfig, previous_coresets: Patches | None
) -> Patches:
  """Select a calibration coreset from the patches of each fold, and concatenate the coresets.

  Together they have about `OVERSAMPLING` times as many rows as the final coreset, or all patches.

  Args:
    key: key of the random projection and of the first centers.
    memory_bank: bank before its final selection.
    bank_config: sizes and settings of the bank.
    previous_coresets: calibration coresets of the run that is extended, which stand for the patches
      of its images; None for a new run.

  Returns:
    The rows of all coresets, replicated on all devices. The fold of a row follows from `image_id`.
  """
  sources = [(memory_bank.patches, selections.to_host(memory_bank.num_rows, bank_config.shards))]
  if previous_coresets is not None:
    sources.append(selections.scatter_evenly(previous_coresets, bank_config.shards))
  fold_rows = [
    _rows_by_fold(source.image_id, rows_per_shard, bank_config)
    for source, rows_per_shard in sources
  ]
  rows_per_fold = math.ceil(OVERSAMPLING * bank_config.coreset_size / bank_config.num_folds)
  low_dim_config = bank_config._replace(
    projection_dim=min(bank_config.projection_dim or _MAX_PROJECTION_DIM, _MAX_PROJECTION_DIM)
  )
  coresets = []
  for fold in bank_config.progress(
    range(bank_config.num_folds), bank_config.num_folds, 'Selecting for calibration'
  ):
    # One fold at a time is gathered, because a copy of all patches may take gigabytes.
    fold_positions = [positions[fold] for positions, _ in fold_rows]
    fold_masks = [masks[fold] for _, masks in fold_rows]
    fold_patches, valid = _gather_fold(
      [source for source, _ in sources], fold_positions, fold_masks, bank_config
    )
    num_centers = min(rows_per_fold, sum(int(mask.sum()) for mask in fold_masks))
    selection = selections.k_center(key, fold_patches, valid, low_dim_config, num_centers)
    coresets.append(selections.take_selected(fold_patches, selection, bank_config.shards))
  return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *coresets)


def coreset_without_fold(
  coresets: Patches, bank_config: BankConfig, fold: int, max_rows: int
) -> Float[Array, 'm d']:
  """Select the rows of a memory bank that has seen no image of one fold.

  Args:
    coresets: calibration coresets of all folds, replicated.
    bank_config: number of folds, random projection, and shards to select on.
    fold: fold that is held out.
    max_rows: number of rows to select; all rows of the other folds if these are fewer.

  Returns:
    Embeddings of the bank, replicated on all devices.
  """
  patches, rows_per_shard = selections.scatter_evenly(coresets, bank_config.shards)
  valid = selections.valid_mask(patches, jnp.asarray(rows_per_shard), bank_config.shards)
  valid &= patches.image_id % bank_config.num_folds != fold
  selection = selections.k_center(jax.random.key(fold), patches, valid, bank_config, max_rows)
  return selections.take_selected(patches, selection, bank_config.shards).embeddings


def _rows_by_fold(
  image_id: Int[Array, ' n'], rows_per_shard: Int[np.ndarray, ' s'], bank_config: BankConfig
) -> tuple[Int[np.ndarray, 'f s m'], Bool[np.ndarray, 'f s m']]:
  """Return the positions of each fold's rows in each shard, padded to equal length, and a mask.

  Args:
    image_id: image of each row, sharded.
    rows_per_shard: number of rows in use at the beginning of each shard.
    bank_config: number of folds, and shards.

  Returns:
    Positions within the shard, and a mask that is True where a position is not padding.
  """
  fold_ids = (
    selections.to_host(image_id, bank_config.shards).reshape(len(rows_per_shard), -1)
    % bank_config.num_folds
  )
  rows_of_folds = [
    [
      np.flatnonzero(shard_fold_ids[:num_rows] == fold)
      for shard_fold_ids, num_rows in zip(fold_ids, rows_per_shard, strict=True)
    ]
    for fold in range(bank_config.num_folds)
  ]
  size = max(len(rows) for shard_rows in rows_of_folds for rows in shard_rows)
  positions = [
    [np.pad(rows, (0, size - len(rows))) for rows in shard_rows] for shard_rows in rows_of_folds
  ]
  valid = [[np.arange(size) < len(rows) for rows in shard_rows] for shard_rows in rows_of_folds]
  return np.array(positions, np.int32), np.array(valid)


def _gather_fold(
  sources: Sequence[Patches],
  positions: Sequence[Int[np.ndarray, 's _m']],
  valid: Sequence[Bool[np.ndarray, 's _m']],
  bank_config: BankConfig,
) -> tuple[Patches, Bool[Array, ' n']]:
  """Gather the rows of one fold within each shard, and concatenate those of all sources.

  Args:
    sources: patches of the memory bank and of previous coresets, sharded by row.
    positions: per source, positions of the fold's rows within each shard.
    valid: per source, False where a position is padding.
    bank_config: shards of the rows.

  Returns:
    The patches, and a mask of the valid ones, both sharded by row.
  """

  def gather_shard(
    sources: Any, positions: Any, valid: Any, axis_name: str | None
  ) -> tuple[Patches, Array]:
    source_patches = [
      jax.tree.map(lambda x, index=index: x[index[0]], source)
      for source, index in zip(sources, positions, strict=True)
    ]
    patches = jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *source_patches)
    return patches, jnp.concatenate([mask[0] for mask in valid])

  gather_sharded = bank_config.shards.shard_map(gather_shard, (True, True, True), True)
  return jax.jit(gather_sharded)(list(sources), list(positions), list(valid))
