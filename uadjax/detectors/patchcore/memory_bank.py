"""PatchCore's memory bank of normal patches: filled image by image, compacted when it is full.

Compaction reduces the patches added since the last compaction to a k-center coreset, which is put
behind the earlier coresets. Once the coresets would fill more than half of the bank, it instead
reduces all rows to a single coreset of half the capacity. Each compaction keeps more rows than
needed, so that the final selection still has a choice. The reported covering radius bounds the
distance of every patch ever added to its nearest row: coresets of different patches contribute the
largest of their radii, a coreset of coresets adds its own (Charikar et al. 2004, section 3).

The rows may be sharded: each device keeps the patches of the images that it received, and compacts
them without regard to other shards. Only the final selection is made over all shards.

Letters: n rows, d embedding, b batch, h w patch grid, s shards, m centers.
"""

import functools
import math
from typing import NamedTuple

import jax
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from uadjax.detectors.patchcore import selection as selections
from uadjax.detectors.patchcore.capacity import BankConfig, OVERSAMPLING
from uadjax.detectors.patchcore.selection import Patches
from uadjax.errors import refuse, Setting
from uadjax.numerics import collectives, coreset
from uadjax.types import Arrays, Key


class MemoryBank(NamedTuple):
  """Memory bank of patches while it fills.

  Attributes:
    patches: rows, sharded. Each shard has `capacity` rows, and scratch rows at its end: the patches
      of padding images are written there, and never in use.
    num_selected: number of rows at the beginning of each shard that are coresets already; the rows
      behind them were added since the last compaction.
    num_rows: number of rows in use in each shard, those of coresets included.
    num_images: number of images added over all shards, those of earlier runs included.
    covering_radius: upper bound on the distance of every patch ever added to its nearest row in
      use; in the projected space if selections use a projection.
  """

  patches: Patches
  num_selected: Int[Array, ' s']
  num_rows: Int[Array, ' s']
  num_images: Int[Array, '']
  covering_radius: Float[Array, '']


class Coreset(NamedTuple):
  """Final memory bank: rows in the order of their selection, replicated on all devices.

  Attributes:
    patches: rows of the coreset.
    num_images: number of images ever added, those of earlier runs included.
    covering_radius: upper bound on the distance of every patch ever added to its nearest row; in
      the projected space if selections use a projection.
  """

  patches: Patches
  num_images: Int[Array, '']
  covering_radius: Float[Array, '']


BANK_SPECS = MemoryBank._make((P('data'), P('data'), P('data'), P(), P()))


def empty(config: BankConfig) -> MemoryBank:
  """Create an empty memory bank, already sharded."""
  size = config.capacity + config.patches_per_image

  def empty_shard(axis_name: str | None) -> MemoryBank:
    image_id, patch_id = (jnp.full(size, -1, jnp.int32) for _ in range(2))
    num_selected, num_rows = (jnp.zeros(1, jnp.int32) for _ in range(2))
    # Each array needs a buffer of its own, because all of them are donated.
    patches = Patches(jnp.zeros((size, config.d)), image_id, patch_id)
    return MemoryBank(patches, num_selected, num_rows, jnp.zeros((), jnp.int32), jnp.zeros(()))

  return jax.jit(config.shards.shard_map(empty_shard, (), BANK_SPECS))()


def append(
  memory_bank: MemoryBank,
  x: Float[Array, 'b h w d'],
  valid: Bool[Array, ' b'],
  image_index: Int[Array, ' b'],
  axis_name: str | None,
  has_blanks: bool = False,
) -> MemoryBank:
  """Append the patches of the valid images, in place where the bank is donated to jit.

  Every device appends the images that it holds to its own shard.

  Args:
    memory_bank: this shard of a bank with space for the images, see `compact`.
    x: patch embeddings of this shard's images.
    valid: False for padding images.
    image_index: `Patches.image_id` of each image, counted from the first image ever added.
    axis_name: mesh axis over which the bank is sharded, or None if there is a single shard.
    has_blanks: whether patches that are NaN are left out.
  """
  num_patches, d = x.shape[1] * x.shape[2], x.shape[3]
  scratch_row = len(memory_bank.patches.embeddings) - num_patches
  patch_offsets = jnp.arange(num_patches, dtype=jnp.int32)

  def append_image(i: Array, carry: tuple[Patches, Array]) -> tuple[Patches, Array]:
    patches, num_rows = carry
    row = jnp.where(valid[i], num_rows, scratch_row)
    # Patch ids wrap around beyond 2^31 patches, after which ties may be broken differently.
    image_id = jnp.full(num_patches, image_index[i], jnp.int32)
    patch_id = image_index[i] * num_patches + patch_offsets
    new_patches, num_new = Patches(x[i].reshape(num_patches, d), image_id, patch_id), num_patches
    if has_blanks:  # Those left out come last, where the next image overwrites them.
      new_patches, num_new = _move_blanks_last(new_patches)
    patches = _put_rows(patches, new_patches, row)
    return patches, num_rows + jnp.where(valid[i], num_new, 0)

  state = memory_bank.patches, memory_bank.num_rows[0]
  patches, num_rows = jax.lax.fori_loop(0, len(x), append_image, state)
  num_images = memory_bank.num_images + collectives.psum(jnp.sum(valid, dtype=jnp.int32), axis_name)
  return memory_bank._replace(patches=patches, num_rows=num_rows[None], num_images=num_images)


def _move_blanks_last(patches: Patches) -> tuple[Patches, Int[Array, '']]:
  """Move patches that are NaN behind the others, as zeros, and return the number of the others."""
  is_blank = jnp.isnan(patches.embeddings[:, 0])
  embeddings = jnp.where(is_blank[:, None], 0.0, patches.embeddings)
  order = jnp.argsort(is_blank, stable=True)
  patches = jax.tree.map(lambda x: x[order], patches._replace(embeddings=embeddings))
  return patches, jnp.sum(~is_blank, dtype=jnp.int32)


def _put_rows(patches: Patches, new_patches: Patches, start: Array | int) -> Patches:
  """Return the patches with the rows from `start` on replaced."""
  return jax.tree.map(
    lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, start, 0), patches, new_patches
  )


def compact(key: Key, memory_bank: MemoryBank, config: BankConfig, num_images: int) -> MemoryBank:
  """Compact all shards, each by itself, if the next images would not fit into one of them.

  Args:
    key: key of the random projection and of the first centers.
    memory_bank: bank to compact; donated if it is compacted, returned unchanged otherwise.
    config: sizes and settings of the bank.
    num_images: number of images that will be appended next, in equal parts to all shards.

  Raises:
    ConfigError: the images do not fit, and alone take more than half of the capacity.
  """
  num_new_rows = math.ceil(num_images / config.shards.num_shards) * config.patches_per_image
  starts = selections.to_host(memory_bank.num_selected, config.shards)
  stops = selections.to_host(memory_bank.num_rows, config.shards)
  if stops.max() + num_new_rows <= config.capacity:
    return memory_bank
  half_capacity = config.capacity // 2
  if num_new_rows > half_capacity:
    max_images = config.capacity // config.patches_per_image
    message = f'The memory bank holds {max_images} images, too few for batches of {num_images}.'
    hint = 'Lower ', Setting('fit.batch_size'), ' or raise ', Setting('detector.max_bytes'), '.'
    refuse('detector.max_bytes', None, message, *hint)
  start = starts.max()
  num_selected = math.ceil(OVERSAMPLING * config.ratio * (stops - starts).max())
  reselect_all = start + num_selected > half_capacity
  num_selected = half_capacity if reselect_all else num_selected
  # A single item, so that progress names the step while the fit pauses.
  for _ in config.progress(range(1), 1, 'Compacting the memory bank'):
    memory_bank = _compact_shards(key, memory_bank, config, num_selected, bool(reselect_all))
    jax.block_until_ready(memory_bank)
  return memory_bank


@functools.partial(jax.jit, donate_argnums=1, static_argnums=(2, 3, 4))
def _compact_shards(
  key: Key, memory_bank: MemoryBank, config: BankConfig, num_selected: int, reselect_all: bool
) -> MemoryBank:
  """Reduce all rows of each shard, or those since the last compaction, to a k-center coreset.

  Args:
    key: key of the random projection and of the first centers.
    memory_bank: bank to compact; donated.
    config: random projection, and shards of the rows.
    num_selected: number of rows to select in each shard; all candidates if these are fewer.
    reselect_all: True to select from all rows; False to keep earlier coresets, and to select from
      the rows added since the last compaction.
  """

  def compact_shard(memory_bank: MemoryBank, axis_name: str | None) -> MemoryBank:
    start = jnp.zeros((), jnp.int32) if reselect_all else memory_bank.num_selected[0]
    embeddings = selections.project(key, memory_bank.patches.embeddings, config.projection_dim)
    patch_id = memory_bank.patches.patch_id
    valid = selections.range_mask(len(embeddings), start, memory_bank.num_rows[0])
    center, sketch = coreset.center_and_sketch(embeddings, valid, patch_id)
    point_set = coreset.PointSet(embeddings, patch_id, center, sketch)
    selection = coreset.init(key, valid, patch_id, num_selected)
    selection = coreset.select_until(point_set, selection, jnp.int32(num_selected))
    # Radii add up only if rows of earlier coresets, which stand for other patches, are dropped.
    # Otherwise a patch belongs to either an earlier coreset or the new one.
    new_radius = collectives.all_max(coreset.covering_radius(selection), axis_name)
    radius = memory_bank.covering_radius
    radius = radius + new_radius if reselect_all else jnp.maximum(radius, new_radius)
    memory_bank = _move_selected(memory_bank, selection, start)
    return memory_bank._replace(covering_radius=radius)

  return config.shards.shard_map(compact_shard, (BANK_SPECS,), BANK_SPECS)(memory_bank)


def select_coreset(key: Key, memory_bank: MemoryBank, config: BankConfig) -> Coreset:
  """Select the final coreset from the rows of all shards (section 3.2).

  Args:
    key: key of the random projection and of the first center.
    memory_bank: bank to select from.
    config: settings and `coreset_size`; a bank with fewer rows is selected entirely.
  """
  patches = memory_bank.patches
  valid = selections.valid_mask(patches, memory_bank.num_rows, config.shards)
  selection = selections.k_center(key, patches, valid, config, config.coreset_size)
  radius = memory_bank.covering_radius + coreset.covering_radius(selection)
  patches = selections.take_selected(patches, selection, config.shards)
  return Coreset(patches, memory_bank.num_images, radius)


def to_arrays(final_coreset: Coreset) -> dict[str, Array]:
  """Return the arrays of a coreset by the names that they have in files.

  These are the fields of `Patches`, `num_images` and `covering_radius`.
  """
  arrays = final_coreset._asdict()
  return arrays.pop('patches')._asdict() | arrays


def from_arrays(memory_bank: MemoryBank, arrays: Arrays, config: BankConfig) -> MemoryBank:
  """Fill an empty memory bank with the coreset of an earlier run, to add more images.

  The rows are split over the shards, and count as already compacted.

  Args:
    memory_bank: empty bank.
    arrays: arrays of the coreset, from `to_arrays`.
    config: shards of the rows.
  """
  patches, rows_per_shard = selections.scatter_evenly(selections.from_arrays(arrays), config.shards)

  def fill_shard(
    memory_bank: MemoryBank, patches: Patches, num_rows: Int[Array, ' s'], axis_name: str | None
  ) -> MemoryBank:
    patches = _put_rows(memory_bank.patches, patches, 0)
    return memory_bank._replace(patches=patches, num_selected=num_rows, num_rows=jnp.copy(num_rows))

  fill_shards = config.shards.shard_map(fill_shard, (BANK_SPECS, P('data'), P('data')), BANK_SPECS)
  memory_bank = jax.jit(fill_shards)(memory_bank, patches, jnp.asarray(rows_per_shard))
  num_images, radius = (jnp.asarray(arrays[name]) for name in ('num_images', 'covering_radius'))
  return memory_bank._replace(num_images=num_images, covering_radius=radius)


def _move_selected(
  memory_bank: MemoryBank, selection: coreset.Selection, start: Int[Array, '']
) -> MemoryBank:
  """Replace all rows of a shard from `start` on by the selected rows among them.

  The rows before `start` stay. Selected rows move in ascending order, in place, so that none is
  overwritten before it is read.

  Args:
    memory_bank: one shard of the bank.
    selection: selected rows of the shard, all from `start` on.
    start: position of the first row to overwrite.
  """
  centers, num_centers, _ = selection
  sorted_centers = jnp.sort(jnp.where(centers < 0, len(memory_bank.patches.embeddings), centers))

  def move_row(i: Array, patches: Patches) -> Patches:
    center = sorted_centers[i]
    row = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, center, 1), patches)
    return _put_rows(patches, row, start + i)

  patches = jax.lax.fori_loop(0, num_centers, move_row, memory_bank.patches)
  num_rows = (start + num_centers)[None]
  return memory_bank._replace(patches=patches, num_selected=num_rows, num_rows=jnp.copy(num_rows))
