"""Banks without some of the images, to score these by as if they had never been seen.

Leaving an image out of the bank is more than passing over its rows: they kept the selection from
rows of other images nearby, and their absence leaves holes that an unseen image does not meet. So
the images are dealt to folds, of each fold's patches a selection stands in for them, and the bank
without a fold is selected anew, from the stand-ins of the others (experiments/README.md).

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

# Of the projection that stand-ins are selected in: five times faster, and as good for what they do.
_MAX_PROJECTION_DIM = 64


def select_calibration_coresets(
  key: Key, memory_bank: MemoryBank, bank_config: BankConfig, previous_coresets: Patches | None
) -> Patches:
  """Select from the patches of every fold: those in the bank, and those that stood in `before`."""
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
    # One fold's patches at a time: there may be gigabytes of all.
    positions = [by_fold[fold] for by_fold, _ in fold_rows]
    fold_patches, valid = _gather_rows(
      [source for source, _ in sources], positions, [v[fold] for _, v in fold_rows], bank_config
    )
    num_centers = min(rows_per_fold, sum(int(v[fold].sum()) for _, v in fold_rows))
    selection = selections.k_center(key, fold_patches, valid, low_dim_config, num_centers)
    coresets.append(selections.take_selected(fold_patches, selection, bank_config.shards))
  return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *coresets)


def coreset_without_fold(
  coresets: Patches, bank_config: BankConfig, fold: int, max_rows: int
) -> Float[Array, 'm d']:
  """Select a bank of so many rows, or all there are, from what stands in for the other folds."""
  patches, rows_per_shard = selections.scatter_evenly(coresets, bank_config.shards)
  valid = selections.valid_mask(patches, jnp.asarray(rows_per_shard), bank_config.shards)
  valid &= patches.image_id % bank_config.num_folds != fold
  selection = selections.k_center(jax.random.key(fold), patches, valid, bank_config, max_rows)
  return selections.take_selected(patches, selection, bank_config.shards).embeddings


def _rows_by_fold(
  image_id: Int[Array, ' n'], rows_per_shard: Int[np.ndarray, ' s'], bank_config: BankConfig
) -> tuple[Int[np.ndarray, 'f s m'], Bool[np.ndarray, 'f s m']]:
  """For every fold and shard the places of its rows, as many for each, and which are valid."""
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


def _gather_rows(
  sources: Sequence[Patches],
  positions: Sequence[Int[np.ndarray, 's _m']],
  valid: Sequence[Bool[np.ndarray, 's _m']],
  bank_config: BankConfig,
) -> tuple[Patches, Bool[Array, ' n']]:
  """The rows at places of every shard, those of one source after those of another."""

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
