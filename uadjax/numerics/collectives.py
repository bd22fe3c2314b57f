"""Collective operations between the shards of an array.

A function that runs on every shard takes `axis_name`, the name of the mesh axis over which arrays
are sharded, or None if there is a single shard; it never sees a mesh. With None nothing is
communicated: the operations return their argument, except that `gather_rows` selects rows.

Letters: b images, h rows of pixels or patches of an image, as far as they are on this shard.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple, TypeVar

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from uadjax.types import PyTree

Tree = TypeVar('Tree')


def axis_size(axis_name: str | None) -> int:
  """Return the number of shards: 1 if `axis_name` is None."""
  return 1 if axis_name is None else jax.lax.axis_size(axis_name)


def axis_index(axis_name: str | None) -> Any:
  """Return the index of this shard: 0 if `axis_name` is None."""
  return 0 if axis_name is None else jax.lax.axis_index(axis_name)


def all_gather_tiled(tree: Tree, axis_name: str | None) -> Tree:
  """Return the leaves of all shards, on every shard, concatenated along the first axis."""
  return tree if axis_name is None else jax.lax.all_gather(tree, axis_name, tiled=True)


def psum(tree: Tree, axis_name: str | None) -> Tree:
  """Return the sum of every leaf over all shards."""
  return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def pmean(tree: Tree, axis_name: str | None) -> Tree:
  """Return the mean of every leaf over all shards."""
  return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def all_max(x: Array, axis_name: str | None) -> Array:
  """Return the largest of the values that the shards hold, one each."""
  return x if axis_name is None else jax.lax.all_gather(x, axis_name).max()


def all_min(x: Array, axis_name: str | None) -> Array:
  """Return the smallest of the values that the shards hold, one each."""
  return x if axis_name is None else jax.lax.all_gather(x, axis_name).min()


def scatter_min(x: Float[Array, 'n ...'], axis_name: str | None) -> Float[Array, '_n ...']:
  """Return this shard's slice, along the first axis, of the elementwise minimum over all shards.

  The size of the first axis must be a multiple of the number of shards.
  """
  if axis_name is None:
    return x
  x = jax.lax.all_to_all(x, axis_name, 0, 0, tiled=True)
  return x.reshape(axis_size(axis_name), -1, *x.shape[1:]).min(axis=0)


def local_slice(tree: Tree, axis_name: str | None) -> Tree:
  """Return this shard's part of leaves that are replicated: the inverse of `all_gather_tiled`.

  Leaves are cut along the first axis, whose size must be a multiple of the number of shards.
  """
  if axis_name is None:
    return tree

  def slice_shard(x: Array) -> Array:
    size = len(x) // axis_size(axis_name)
    return jax.lax.dynamic_slice_in_dim(x, axis_index(axis_name) * size, size)

  return jax.tree.map(slice_shard, tree)


def images_to_rows(x: Float[Array, 'b h ...'], axis_name: str | None) -> Float[Array, '_b _h ...']:
  """Reshard a batch from whole images to rows of all images (all-to-all).

  On each of s shards, b whole images of h rows become h / s rows of all s · b images. The number of
  rows must be a multiple of the number of shards.
  """
  return x if axis_name is None else jax.lax.all_to_all(x, axis_name, 1, 0, tiled=True)


def rows_to_images(x: Float[Array, 'b h ...'], axis_name: str | None) -> Float[Array, '_b _h ...']:
  """Reshard a batch from rows of all images to whole images: the inverse of `images_to_rows`.

  On each of s shards, h rows of all b images become b / s whole images of s · h rows (all-to-all).
  The number of images must be a multiple of the number of shards.
  """
  return x if axis_name is None else jax.lax.all_to_all(x, axis_name, 0, 1, tiled=True)


def gather_rows(rows: Array, positions: Int[Array, '...'], axis_name: str | None) -> Array:
  """Return rows of an array that is sharded along its first axis, on every shard.

  The result has the shape of `positions`, followed by that of a row. Every row is summed over the
  shards, all but one of which contribute zeros.

  Args:
    rows: this shard's rows.
    positions: positions in the whole array, the same on all shards; must lie within the array.
    axis_name: mesh axis over which the rows are sharded, or None if there is a single shard.
  """
  if axis_name is None:
    return rows[positions]
  local = positions - axis_index(axis_name) * len(rows)
  is_local = (local >= 0) & (local < len(rows))
  local_or_zero = jnp.where(is_local, local, 0)
  mask = is_local.reshape(*positions.shape, *(1,) * (rows.ndim - 1))
  return jax.lax.psum(jnp.where(mask, rows[local_or_zero], jnp.zeros((), rows.dtype)), axis_name)


class Shards(NamedTuple):
  """Shards of arrays: one per device of a mesh, or a single one.

  Attributes:
    mesh: devices along the only axis, `data`; None for a single shard.
  """

  mesh: jax.sharding.Mesh | None = None

  @property
  def num_shards(self) -> int:
    """Number of shards; a sharded axis is a multiple of it, as shards have equal sizes."""
    return self.mesh.size if self.mesh else 1

  def shard_map(
    self, f: Callable[..., Any], in_specs: tuple[PyTree, ...], out_specs: PyTree
  ) -> Callable[..., Any]:
    """Return a function of whole arrays that runs `f(..., axis_name=...)` on every shard.

    With a single shard, `f` gets whole arrays and `axis_name` None, without `jax.shard_map`:
    exporters cannot take that.

    Args:
      f: function of this shard's part of the arrays.
      in_specs: one tree of `PartitionSpec`s per argument.
      out_specs: tree of `PartitionSpec`s of the result.
    """
    if self.mesh is None:
      return functools.partial(f, axis_name=None)
    f = functools.partial(f, axis_name=self.mesh.axis_names[0])
    # Without check_vma, because JAX cannot infer that the result of all_gather is replicated.
    return jax.shard_map(f, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


SINGLE_SHARD = Shards()
