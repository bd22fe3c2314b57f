"""Selecting from patches that may be split over devices.

Each device holds some of the rows, and all select together. A patch's number tells where it stands
among all patches ever folded in, so that what is selected does not depend on who holds it.

Letters: n rows, d embedding, e fewer dimensions, s shards, m rows that are selected.
"""

import functools
import math
from typing import NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from uadjax.detectors.patchcore.capacity import BankConfig
from uadjax.numerics import collectives, coreset
from uadjax.numerics.collectives import Shards
from uadjax.system.progress import no_progress
from uadjax.types import Arrays, Key

_MIN_PROGRESS_STEP = 1024  # Centers between two signs of life, at least.


class Patches(NamedTuple):
  """Patches, the image that each is from, and their numbers."""

  embeddings: Float[Array, 'n d']
  image_id: Int[Array, ' n']
  patch_id: Int[Array, ' n']


def from_arrays(arrays: Arrays, prefix: str = '') -> Patches:
  """The patches among arrays by name."""
  return Patches(*(jnp.asarray(arrays[prefix + name]) for name in Patches._fields))


def k_center(
  key: Key,
  patches: Patches,
  valid: Bool[Array, ' n'],
  bank_config: BankConfig,
  num_centers: int,
  description: str = '',
) -> coreset.Selection:
  """Select so many of the valid rows, or all there are; progress is shown of what is named."""
  # Always room for as many, so that all selections of a run are one compilation.
  max_centers = max(num_centers, bank_config.coreset_size)
  embeddings = project(key, patches.embeddings, bank_config.projection_dim)
  center, sketch, selection = _init_selection(
    key, embeddings, patches.patch_id, valid, max_centers, bank_config.shards
  )
  point_set = coreset.PointSet(embeddings, patches.patch_id, center, sketch)
  # Not too often: a pass that ends early for being told of measures fewer centers at once.
  targets = [
    *range(step := max(_MIN_PROGRESS_STEP, num_centers // 50), num_centers, step),
    num_centers,
  ]
  progress = bank_config.progress if description else no_progress
  for target in progress(targets, len(targets), description):
    selection = _select_until(point_set, selection, jnp.int32(target), bank_config.shards)
    jax.block_until_ready(selection)
  return selection


def take_selected(patches: Patches, selection: coreset.Selection, shards: Shards) -> Patches:
  """The rows that were selected, in that order, on every device."""
  return _gather_rows(patches, selection.centers[: int(selection.num_centers)], shards)


def scatter_evenly(patches: Patches, shards: Shards) -> tuple[Patches, Int[np.ndarray, ' s']]:
  """Split rows that all devices have, as evenly as can be, and tell how many each got."""
  num_shards, n = shards.num_shards, len(patches.embeddings)
  shard_size = math.ceil(n / num_shards)
  rows_per_shard = np.clip(n - shard_size * np.arange(num_shards), 0, shard_size).astype(np.int32)

  def slice_shard(patches: Patches, axis_name: str | None) -> Patches:
    return collectives.local_slice(patches, axis_name)

  padded = jax.tree.map(
    lambda x: jnp.pad(x, [(0, shard_size * num_shards - n), *[(0, 0)] * (x.ndim - 1)]), patches
  )
  return jax.jit(shards.shard_map(slice_shard, (False,), True))(padded), rows_per_shard


def to_host(x: Array, shards: Shards) -> np.ndarray:
  """What is split over devices, on the host."""
  return np.asarray(jax.jit(shards.shard_map(collectives.all_gather_tiled, (True,), False))(x))


@functools.partial(jax.jit, static_argnames='shards')
def valid_mask(
  patches: Patches, rows_per_shard: Int[Array, ' s'], shards: Shards
) -> Bool[Array, ' n']:
  """Which rows are: the first of every shard, up to its cursor."""

  def shard_mask(patches: Patches, num_rows: Array, axis_name: str | None) -> Bool[Array, ' n']:
    return range_mask(len(patches.embeddings), jnp.int32(0), num_rows[0])

  return shards.shard_map(shard_mask, (True, True), True)(patches, rows_per_shard)


def range_mask(n: int, start: Int[Array, ''], stop: Int[Array, '']) -> Bool[Array, ' n']:
  """Which of a shard's rows lie from `start` to before `stop`."""
  rows = jnp.arange(n)
  return (rows >= start) & (rows < stop)


def project(key: Key, embeddings: Float[Array, 'n d'], projection_dim: int) -> Float[Array, 'n _e']:
  """The rows in the few random dimensions that selections are made in; 0 leaves them all."""
  if not 0 < projection_dim < embeddings.shape[1]:
    return embeddings
  projection = jax.random.normal(jax.random.fold_in(key, 1), (embeddings.shape[1], projection_dim))
  return jnp.matmul(
    embeddings, projection / projection_dim**0.5, precision=jax.lax.Precision.HIGHEST
  )


@functools.partial(jax.jit, static_argnames=('max_centers', 'shards'))
def _init_selection(
  key: Key,
  embeddings: Float[Array, 'n d'],
  patch_id: Int[Array, ' n'],
  valid: Bool[Array, ' n'],
  max_centers: int,
  shards: Shards,
) -> tuple[Float[Array, ' d'], Float[Array, 'n e'], coreset.Selection]:
  """Center and sketch, without the rows, of which there would be a copy; the first center."""
  point_set = shards.shard_map(coreset.make_point_set, (True, True, True), coreset.POINT_SET_SPECS)(
    embeddings, valid, patch_id
  )
  init = shards.shard_map(
    functools.partial(coreset.init, max_centers=max_centers),
    (False, True, True),
    coreset.SELECTION_SPECS,
  )
  return point_set.center, point_set.sketch, init(key, valid, patch_id)


@functools.partial(jax.jit, donate_argnums=1, static_argnames='shards')
def _select_until(
  point_set: coreset.PointSet, selection: coreset.Selection, target: Int[Array, ''], shards: Shards
) -> coreset.Selection:
  in_specs = coreset.POINT_SET_SPECS, coreset.SELECTION_SPECS, False
  return shards.shard_map(coreset.select_until, in_specs, coreset.SELECTION_SPECS)(
    point_set, selection, target
  )


@functools.partial(jax.jit, static_argnames='shards')
def _gather_rows(patches: Patches, rows: Int[Array, ' m'], shards: Shards) -> Patches:
  def gather_shard(patches: Patches, rows: Int[Array, ' m'], axis_name: str | None) -> Patches:
    return jax.tree.map(lambda x: collectives.gather_rows(x, rows, axis_name), patches)

  return shards.shard_map(gather_shard, (True, False), False)(patches, rows)
