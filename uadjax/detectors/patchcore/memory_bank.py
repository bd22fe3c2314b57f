"""PatchCore's memory of normal patches: filled image by image, reduced when it is full.

What makes room is a k-center selection of the patches that came since the last time; when the
selected alone fill half of the bank, one of them all. Each keeps more than is needed, so that the
last selection still has a choice. The radii of selections of selections add up: what is reported is
their sum, which no patch that was ever folded in exceeds (Charikar et al. 2004, section 3).

The rows may be split over devices: each keeps the patches of the images that it was given, and
makes room for itself.

Letters: n rows, d embedding, b batch, h w patch grid, s shards, m centers.
"""

import functools
import math
from typing import NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from uadjax.detectors.patchcore import selection as selections
from uadjax.detectors.patchcore.capacity import BankConfig, OVERSAMPLING
from uadjax.detectors.patchcore.selection import Patches
from uadjax.errors import ConfigError
from uadjax.numerics import collectives, coreset
from uadjax.numerics.collectives import Shards
from uadjax.types import Arrays, Key


class MemoryBank(NamedTuple):
  """Patches, and what is known of them.

  Attributes:
    patches: those of one image at the end of every shard are scratch.
    chosen: how many rows at the beginning of each shard are left of a selection.
    cursor: how many rows of each shard are in use.
    seen: images folded in, those of earlier runs included.
    radius: every patch ever folded in is at most as far from some row in use; of selections in a
      projection, as far there.
  """

  patches: Patches
  num_selected: Int[Array, ' s']
  num_rows: Int[Array, ' s']
  num_images: Int[Array, '']
  covering_radius: Float[Array, '']


class Coreset(NamedTuple):
  """What remains of a bank in the end: rows as they were selected, whole on all devices."""

  patches: Patches
  num_images: Int[Array, '']
  covering_radius: Float[Array, '']


# How the parts are held by shards: split (True), or the same on all (False).
BANK_SPECS = MemoryBank(True, True, True, False, False)  # pyright: ignore[reportArgumentType]


def empty(bank_config: BankConfig, d: int) -> MemoryBank:
  """A bank of nothing, made where it belongs."""
  size = bank_config.capacity + bank_config.patches_per_image

  def empty_shard(axis_name: str | None) -> MemoryBank:
    image_id, patch_id = (jnp.full(size, -1, jnp.int32) for _ in range(2))
    num_selected, num_rows = (jnp.zeros(1, jnp.int32) for _ in range(2))
    # Buffers of their own each, for all of them are donated.
    patches = Patches(jnp.zeros((size, d)), image_id, patch_id)
    return MemoryBank(patches, num_selected, num_rows, jnp.zeros((), jnp.int32), jnp.zeros(()))

  return jax.jit(bank_config.shards.shard_map(empty_shard, (), BANK_SPECS))()


def append(
  memory_bank: MemoryBank,
  x: Float[Array, 'b h w d'],
  valid: Bool[Array, ' b'],
  image_index: Int[Array, ' b'],
  shards: Shards,
) -> MemoryBank:
  """Append the patches of the valid images, in place where the bank is donated."""
  return shards.shard_map(_append_shard, (BANK_SPECS, True, True, True), BANK_SPECS)(
    memory_bank, x, valid, image_index
  )


def _append_shard(
  memory_bank: MemoryBank,
  x: Float[Array, 'b h w d'],
  valid: Bool[Array, ' b'],
  image_index: Int[Array, ' b'],
  axis_name: str | None,
) -> MemoryBank:
  num_patches, d = x.shape[1] * x.shape[2], x.shape[3]
  scratch_row = len(memory_bank.patches.embeddings) - num_patches
  patch_offsets = jnp.arange(num_patches, dtype=jnp.int32)

  def append_image(i: Array, carry: tuple[Patches, Array]) -> tuple[Patches, Array]:
    patches, num_rows = carry
    row = jnp.where(valid[i], num_rows, scratch_row)
    # Beyond 2^31 patches numbers come again, and of equals another may come first.
    image_id = jnp.full(num_patches, image_index[i], jnp.int32)
    new_patches = Patches(
      x[i].reshape(num_patches, d), image_id, image_index[i] * num_patches + patch_offsets
    )
    patches = jax.tree.map(
      lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, row, 0), patches, new_patches
    )
    return patches, num_rows + jnp.where(valid[i], num_patches, 0)

  patches, num_rows = jax.lax.fori_loop(
    0, len(x), append_image, (memory_bank.patches, memory_bank.num_rows[0])
  )
  num_images = memory_bank.num_images + collectives.psum(jnp.sum(valid, dtype=jnp.int32), axis_name)
  return memory_bank._replace(patches=patches, num_rows=num_rows[None], num_images=num_images)


def compact(
  key: Key, memory_bank: MemoryBank, bank_config: BankConfig, num_images: int
) -> MemoryBank:
  """Reduce every shard by itself if so many images would not fit in any more."""
  num_new_rows = (
    math.ceil(num_images / bank_config.shards.num_shards) * bank_config.patches_per_image
  )
  starts, stops = (
    selections.to_host(x, bank_config.shards)
    for x in (memory_bank.num_selected, memory_bank.num_rows)
  )
  if stops.max() + num_new_rows <= bank_config.capacity:
    return memory_bank
  half_capacity = bank_config.capacity // 2
  if num_new_rows > half_capacity:
    raise ConfigError(
      f'detector.max_bytes hold the patches of {bank_config.capacity // bank_config.patches_per_image} images, too few for '
      f'batches of {num_images}; lower fit.batch_size or raise detector.max_bytes.'
    )
  start, num_selected = (
    starts.max(),
    math.ceil(OVERSAMPLING * bank_config.ratio * (stops - starts).max()),
  )
  reselect_all = start + num_selected > half_capacity
  num_selected = half_capacity if reselect_all else num_selected
  for _ in bank_config.progress(range(1), 1, 'Making room'):
    memory_bank = jax.block_until_ready(
      _compact_shards(
        key,
        memory_bank,
        bank_config.projection_dim,
        num_selected,
        bool(reselect_all),
        bank_config.shards,
      )
    )
  return memory_bank


@functools.partial(
  jax.jit,
  donate_argnums=1,
  static_argnames=('projection_dim', 'num_selected', 'reselect_all', 'shards'),
)
def _compact_shards(
  key: Key,
  memory_bank: MemoryBank,
  projection_dim: int,
  num_selected: int,
  reselect_all: bool,
  shards: Shards,
) -> MemoryBank:
  def compact_shard(memory_bank: MemoryBank, axis_name: str | None) -> MemoryBank:
    start = jnp.zeros((), jnp.int32) if reselect_all else memory_bank.num_selected[0]
    embeddings, patch_id = (
      selections.project(key, memory_bank.patches.embeddings, projection_dim),
      memory_bank.patches.patch_id,
    )
    valid = selections.range_mask(len(embeddings), start, memory_bank.num_rows[0])
    point_set = coreset.make_point_set(embeddings, valid, patch_id)
    selection = coreset.init(key, valid, patch_id, num_selected)
    selection = coreset.select_until(point_set, selection, jnp.int32(num_selected))
    # What was kept before stands for patches as far away as it did.
    new_radius = collectives.all_gather(coreset.covering_radius(selection), axis_name).max()
    covering_radius = (
      memory_bank.covering_radius + new_radius
      if reselect_all
      else jnp.maximum(memory_bank.covering_radius, new_radius)
    )
    return _move_selected(memory_bank, selection.centers, start, selection.taken)._replace(
      covering_radius=covering_radius
    )

  return shards.shard_map(compact_shard, (BANK_SPECS,), BANK_SPECS)(memory_bank)


def select_coreset(key: Key, memory_bank: MemoryBank, bank_config: BankConfig) -> Coreset:
  """Select the rows that stay, and drop the others with the scratch."""
  patches = memory_bank.patches
  valid = selections.valid_mask(patches, memory_bank.num_rows, bank_config.shards)
  selection = selections.k_center(
    key, patches, valid, bank_config, bank_config.coreset_size, 'Selecting the coreset'
  )
  coreset_patches = selections.take_selected(patches, selection, bank_config.shards)
  return Coreset(
    coreset_patches,
    memory_bank.num_images,
    memory_bank.covering_radius + coreset.covering_radius(selection),
  )


def state_arrays(final_coreset: Coreset) -> dict[str, Array]:
  """By name, as files hold it."""
  return final_coreset.patches._asdict() | {
    'num_images': final_coreset.num_images,
    'covering_radius': final_coreset.covering_radius,
  }


def from_arrays(memory_bank: MemoryBank, arrays: Arrays, bank_config: BankConfig) -> MemoryBank:
  """Begin an empty bank with what was kept of a settled one."""
  patches, rows_per_shard = selections.scatter_evenly(
    selections.from_arrays(arrays), bank_config.shards
  )

  def fill_shard(
    memory_bank: MemoryBank, patches: Patches, num_rows: Int[Array, ' s'], axis_name: str | None
  ) -> MemoryBank:
    filled_patches = jax.tree.map(
      lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, 0, 0), memory_bank.patches, patches
    )
    return memory_bank._replace(
      patches=filled_patches, num_selected=num_rows, num_rows=jnp.copy(num_rows)
    )

  fill_shards = bank_config.shards.shard_map(fill_shard, (BANK_SPECS, True, True), BANK_SPECS)
  num_images, covering_radius = (
    jnp.asarray(arrays['num_images']),
    jnp.asarray(arrays['covering_radius']),
  )
  return jax.jit(fill_shards)(memory_bank, patches, jnp.asarray(rows_per_shard))._replace(
    num_images=num_images, covering_radius=covering_radius
  )


def _move_selected(
  memory_bank: MemoryBank,
  centers: Int[Array, ' m'],
  start: Int[Array, ''],
  num_centers: Int[Array, ''],
) -> MemoryBank:
  """Move the first `count` centers to `start`, in place: ascending, none is overwritten unread."""
  sorted_centers = jnp.sort(jnp.where(centers < 0, len(memory_bank.patches.embeddings), centers))

  def move_row(i: Array, patches: Patches) -> Patches:
    def move(x: Array) -> Array:
      row = jax.lax.dynamic_slice_in_dim(x, sorted_centers[i], 1)
      return jax.lax.dynamic_update_slice_in_dim(x, row, start + i, 0)

    return jax.tree.map(move, patches)

  patches = jax.lax.fori_loop(0, num_centers, move_row, memory_bank.patches)
  num_rows = (start + num_centers)[None]
  return memory_bank._replace(patches=patches, num_selected=num_rows, num_rows=jnp.copy(num_rows))
