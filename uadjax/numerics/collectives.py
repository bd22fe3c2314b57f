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


def count(axis: str | None) -> int:
  """How many shards there are."""
  return 1 if axis is None else jax.lax.axis_size(axis)


def place(axis: str | None) -> Any:
  """Which of them this one is."""
  return 0 if axis is None else jax.lax.axis_index(axis)


def gathered(tree: Tree, axis: str | None) -> Tree:
  """What every shard has, one after the other along a new first axis."""
  if axis is None:
    return jax.tree.map(lambda x: x[None], tree)
  return jax.lax.all_gather(tree, axis)


def joined(tree: Tree, axis: str | None) -> Tree:
  """What every shard has, one after the other along the first axis."""
  return tree if axis is None else jax.lax.all_gather(tree, axis, tiled=True)


def total(tree: Tree, axis: str | None) -> Tree:
  """The sum over all shards."""
  return tree if axis is None else jax.lax.psum(tree, axis)


def mean(tree: Tree, axis: str | None) -> Tree:
  """The mean over all shards."""
  return tree if axis is None else jax.lax.pmean(tree, axis)


def dealt(tree: Tree, axis: str | None) -> Tree:
  """This shard's rows of what all of them have; they must be a multiple of the shards."""
  if axis is None:
    return tree
  parts, mine = count(axis), place(axis)

  def own(x: Array) -> Array:
    rows = len(x) // parts
    return jax.lax.dynamic_slice_in_dim(x, mine * rows, rows)

  return jax.tree.map(own, tree)


def by_row(x: Float[Array, 'b h ...'], axis: str | None) -> Float[Array, '_b _h ...']:
  """From some images whole to some rows of all images; rows must be a multiple of the shards."""
  return x if axis is None else jax.lax.all_to_all(x, axis, 1, 0, tiled=True)


def by_image(x: Float[Array, 'b h ...'], axis: str | None) -> Float[Array, '_b _h ...']:
  """And back."""
  return x if axis is None else jax.lax.all_to_all(x, axis, 0, 1, tiled=True)


def fetched(rows: Array, at: Int[Array, '...'], axis: str | None) -> Array:
  """The rows at positions in the whole, wherever they are; positions must lie within it."""
  if axis is None:
    return rows[at]
  local = at - place(axis) * len(rows)
  here = (local >= 0) & (local < len(rows))
  own = jnp.where(here, local, 0)
  mask = here.reshape(*at.shape, *(1,) * (rows.ndim - 1))
  return jax.lax.psum(jnp.where(mask, rows[own], jnp.zeros((), rows.dtype)), axis)


class Shards(NamedTuple):
  """Over how many devices batches are split, and what is learned where it can be.

  Attributes:
    number: of parts, all of the same size.
    over: (function, given, gives) -> the function of whole arrays that runs `function(..., axis)`
      on each part. `given`, a tuple, tells of the arguments and `gives` of the result whether they
      are split along the first axis (True) or the same on all (False), for leaves or whole trees.
  """

  number: int
  over: Callable[[Callable[..., Any], Any, Any], Callable[..., Any]]


def _on_one(function: Callable[..., Any], given: Any, gives: Any) -> Callable[..., Any]:
  return functools.partial(function, axis=None)


ALONE = Shards(1, _on_one)
