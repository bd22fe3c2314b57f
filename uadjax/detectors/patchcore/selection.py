"""Coreset selection from patches that may be sharded over devices.

Each device holds some of the rows, and all devices select one coreset together (whereas
`memory_bank.compact` selects in each shard by itself). Ties are broken by the id of a patch, which
does not depend on its device, so that the selection does not depend on how the rows are sharded.

Letters: n rows, d embedding, e fewer dimensions, s shards, m rows that are selected.
"""

import functools
import math
from typing import NamedTuple

import jax
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from uadjax.detectors.patchcore.capacity import BankConfig
from uadjax.numerics import collectives, coreset
from uadjax.numerics.collectives import Shards
from uadjax.types import Arrays, Key

_MIN_PROGRESS_STEP = 1024  # Centers between two progress updates, at least.


class Patches(NamedTuple):
  """Patch embeddings and their origin.

  Attributes:
    embeddings: patch embeddings.
    image_id: image of each patch, counted from the first image ever added, earlier runs included.
    patch_id: id of each patch: `image_id` times the number of patches per image, plus the position
      in the image's patch grid. Breaks ties.
  """

  embeddings: Float[Array, 'n d']
  image_id: Int[Array, ' n']
  patch_id: Int[Array, ' n']


def from_arrays(arrays: Arrays, prefix: str = '') -> Patches:
  """Return the patches whose fields `arrays` holds under the names of the fields with a prefix."""
  return Patches(*(jnp.asarray(arrays[prefix + name]) for name in Patches._fields))


def k_center(
  key: Key, patches: Patches, valid: Bool[Array, ' n'], config: BankConfig, num_centers: int
) -> coreset.Selection:
  """Select rows of all shards by greedy k-center (section 3.2).

  Args:
    key: key of the random projection and of the first center.
    patches: rows to select from, sharded.
    valid: False for rows that must not be selected.
    config: random projection, progress and shards.
    num_centers: number of rows to select; all valid rows if these are fewer.

  Returns:
    The selection. Its centers are positions counted over all shards, of which the first
    `num_centers` are in use.
  """
  is_valid = to_host(valid, config.shards)
  if num_centers >= is_valid.sum():
    return _select_all(patches, valid, is_valid, config.shards)
  # Selections of up to `coreset_size` centers share a buffer size, and thus compiled functions.
  max_centers = max(num_centers, config.coreset_size)
  embeddings = project(key, patches.embeddings, config.projection_dim)
  patches = patches._replace(embeddings=embeddings)
  center, sketch, selection = _init_selection(key, patches, valid, max_centers, config.shards)
  point_set = coreset.PointSet(embeddings, patches.patch_id, center, sketch)
  # A pass over the rows measures their distances to several centers at once, but to fewer if it
  # must stop at a target. Therefore targets are few.
  step = max(_MIN_PROGRESS_STEP, num_centers // 50)
  targets = [*range(step, num_centers, step), num_centers]
  for target in config.progress(targets, len(targets), 'Selecting the coreset'):
    selection = _select_until(point_set, selection, jnp.int32(target), config.shards)
    jax.block_until_ready(selection)
  return selection


def _select_all(
  patches: Patches, valid: Bool[Array, ' n'], is_valid: Bool[np.ndarray, ' n'], shards: Shards
) -> coreset.Selection:
  """Select all valid rows, in the order of their ids, without measuring any distance."""
  rows = np.flatnonzero(is_valid)
  rows = rows[np.argsort(to_host(patches.patch_id, shards)[rows])].astype(np.int32)
  squared_distance = jnp.where(valid, jnp.float32(-1), -jnp.inf)
  return coreset.Selection(jnp.asarray(rows), jnp.int32(len(rows)), squared_distance)


def take_selected(patches: Patches, selection: coreset.Selection, shards: Shards) -> Patches:
  """Return the selected rows in the order of their selection, replicated on all devices."""
  return _gather_rows(patches, selection.centers[: int(selection.num_centers)], shards)


def scatter_evenly(patches: Patches, shards: Shards) -> tuple[Patches, Int[np.ndarray, ' s']]:
  """Split replicated rows into consecutive shards of equal size, the last padded with zeros.

  Several of the last shards may hold padding only, if the rows are few.

  Returns:
    The sharded patches, and the number of rows of each shard that are not padding.
  """
  num_shards, n = shards.num_shards, len(patches.embeddings)
  shard_size = math.ceil(n / num_shards)
  rows_per_shard = np.clip(n - shard_size * np.arange(num_shards), 0, shard_size).astype(np.int32)
  num_missing = shard_size * num_shards - n
  padded = jax.tree.map(lambda x: jnp.pad(x, [(0, num_missing), *[(0, 0)] * (x.ndim - 1)]), patches)
  slice_shards = shards.shard_map(collectives.local_slice, (P(),), P('data'))
  return jax.jit(slice_shards)(padded), rows_per_shard


def to_host(x: Array, shards: Shards) -> np.ndarray:
  """Return all shards of an array, concatenated in host memory."""
  return np.asarray(jax.jit(shards.shard_map(collectives.all_gather_tiled, (P('data'),), P()))(x))


@functools.partial(jax.jit, static_argnames='shards')
def valid_mask(
  patches: Patches, rows_per_shard: Int[Array, ' s'], shards: Shards
) -> Bool[Array, ' n']:
  """Return a sharded mask of the rows in use: the first `rows_per_shard` of each shard."""

  def shard_mask(num_rows: Array, axis_name: str | None) -> Bool[Array, ' n']:
    del axis_name
    return range_mask(num_patches, jnp.int32(0), num_rows[0])

  num_patches = len(patches.embeddings) // shards.num_shards
  return shards.shard_map(shard_mask, (P('data'),), P('data'))(rows_per_shard)


def range_mask(n: int, start: Int[Array, ''], stop: Int[Array, '']) -> Bool[Array, ' n']:
  """Return a mask of length n that is True from `start` to before `stop`."""
  rows = jnp.arange(n)
  return (rows >= start) & (rows < stop)


def project(key: Key, embeddings: Float[Array, 'n d'], projection_dim: int) -> Float[Array, 'n _e']:
  """Project embeddings at random to few dimensions for a selection (section 3.2).

  The projection preserves squared distances in expectation.

  Args:
    key: the same key gives the same projection.
    embeddings: rows to project.
    projection_dim: number of dimensions; the embeddings are returned unchanged for 0, and if they
      have no more dimensions than this.
  """
  if not 0 < projection_dim < embeddings.shape[1]:
    return embeddings
  projection = jax.random.normal(jax.random.fold_in(key, 1), (embeddings.shape[1], projection_dim))
  projection /= projection_dim**0.5
  return jnp.matmul(embeddings, projection, precision=jax.lax.Precision.HIGHEST)


@functools.partial(jax.jit, static_argnames=('max_centers', 'shards'))
def _init_selection(
  key: Key, patches: Patches, valid: Bool[Array, ' n'], max_centers: int, shards: Shards
) -> tuple[Float[Array, ' d'], Float[Array, 'n e'], coreset.Selection]:
  """Return `PointSet.center` and `PointSet.sketch` of the rows, and a selection of one center.

  The first center is drawn at random.

  Args:
    key: key of the first center.
    patches: rows to select from, sharded.
    valid: False for rows that must not be selected.
    max_centers: largest number of centers that the selection can hold.
    shards: shards of the rows.
  """
  out_specs = coreset.CENTER_AND_SKETCH_SPECS
  center_and_sketch = shards.shard_map(coreset.center_and_sketch, (P('data'),) * 3, out_specs)
  center, sketch = center_and_sketch(patches.embeddings, valid, patches.patch_id)
  init_fn = functools.partial(coreset.init, max_centers=max_centers)
  init = shards.shard_map(init_fn, (P(), P('data'), P('data')), coreset.SELECTION_SPECS)
  return center, sketch, init(key, valid, patches.patch_id)


@functools.partial(jax.jit, donate_argnums=1, static_argnames='shards')
def _select_until(
  point_set: coreset.PointSet, selection: coreset.Selection, target: Int[Array, ''], shards: Shards
) -> coreset.Selection:
  """Continue a selection until it has `target` centers in total, or no row is left."""
  in_specs = coreset.POINT_SET_SPECS, coreset.SELECTION_SPECS, P()
  select = shards.shard_map(coreset.select_until, in_specs, coreset.SELECTION_SPECS)
  return select(point_set, selection, target)


@functools.partial(jax.jit, static_argnames='shards')
def _gather_rows(patches: Patches, rows: Int[Array, ' m'], shards: Shards) -> Patches:
  """Return the patches at positions counted over all shards, replicated on all devices."""
  gather = shards.shard_map(collectives.gather_rows, (P('data'), P()), P())
  return jax.tree.map(lambda x: gather(x, rows), patches)
