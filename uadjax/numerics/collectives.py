"""What the shards of an array say to each other.

A function that is to run on every shard takes `axis`, the name of the mesh's axis that the array is
split over; None where it is not split, and the one shard is all there is. It never sees a mesh.

Letters: s shards, n rows of a shard, m rows that are asked for.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple, TypeVar

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

Tree = TypeVar('Tree')


def axis_size(axis_name: str | None) -> int:
  """How many shards there are."""
  return 1 if axis_name is None else jax.lax.axis_size(axis_name)


def axis_index(axis_name: str | None) -> Any:
  """Which of them this one is."""
  return 0 if axis_name is None else jax.lax.axis_index(axis_name)


def all_gather(tree: Tree, axis_name: str | None) -> Tree:
  """What every shard has, one after the other along a new first axis."""
  if axis_name is None:
    return jax.tree.map(lambda x: x[None], tree)
  return jax.lax.all_gather(tree, axis_name)


def all_gather_tiled(tree: Tree, axis_name: str | None) -> Tree:
  """What every shard has, one after the other along the first axis."""
  return tree if axis_name is None else jax.lax.all_gather(tree, axis_name, tiled=True)


def psum(tree: Tree, axis_name: str | None) -> Tree:
  """The sum over all shards."""
  return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def pmean(tree: Tree, axis_name: str | None) -> Tree:
  """The mean over all shards."""
  return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def local_slice(tree: Tree, axis_name: str | None) -> Tree:
  """This shard's rows of what all of them have; they must be a multiple of the shards."""
  if axis_name is None:
    return tree
  num_shards, shard_index = axis_size(axis_name), axis_index(axis_name)

  def slice_shard(x: Array) -> Array:
    shard_size = len(x) // num_shards
    return jax.lax.dynamic_slice_in_dim(x, shard_index * shard_size, shard_size)

  return jax.tree.map(slice_shard, tree)


def images_to_rows(x: Float[Array, 'b h ...'], axis_name: str | None) -> Float[Array, '_b _h ...']:
  """From some images whole to some rows of all images; rows must be a multiple of the shards."""
  return x if axis_name is None else jax.lax.all_to_all(x, axis_name, 1, 0, tiled=True)


def rows_to_images(x: Float[Array, 'b h ...'], axis_name: str | None) -> Float[Array, '_b _h ...']:
  """And back."""
  return x if axis_name is None else jax.lax.all_to_all(x, axis_name, 0, 1, tiled=True)


def gather_rows(rows: Array, positions: Int[Array, '...'], axis_name: str | None) -> Array:
  """The rows at positions in the whole, wherever they are; positions must lie within it."""
  if axis_name is None:
    return rows[positions]
  local = positions - axis_index(axis_name) * len(rows)
  is_local = (local >= 0) & (local < len(rows))
  local_or_zero = jnp.where(is_local, local, 0)
  mask = is_local.reshape(*positions.shape, *(1,) * (rows.ndim - 1))
  return jax.lax.psum(jnp.where(mask, rows[local_or_zero], jnp.zeros((), rows.dtype)), axis_name)


class Shards(NamedTuple):
  """Over how many devices batches are split, and what is learned where it can be.

  Attributes:
    number: of parts, all of the same size.
    over: (function, given, gives) -> the function of whole arrays that runs `function(..., axis)`
      on each part. `given`, a tuple, tells of the arguments and `gives` of the result whether they
      are split along the first axis (True) or the same on all (False), for leaves or whole trees.
  """

  num_shards: int
  shard_map: Callable[[Callable[..., Any], Any, Any], Callable[..., Any]]


def _on_single_shard(f: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
  return functools.partial(f, axis_name=None)


SINGLE_SHARD = Shards(1, _on_single_shard)
