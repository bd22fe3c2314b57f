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

from uadjax.detectors.patchcore.capacity import Plan
from uadjax.numerics import collectives, coreset
from uadjax.numerics.collectives import Shards
from uadjax.system.progress import silently
from uadjax.types import Arrays, Key

_STEP = 1024  # Centers between two signs of life, at least.


class Patches(NamedTuple):
  """Patches, the image that each is from, and their numbers."""

  rows: Float[Array, 'n d']
  image: Int[Array, ' n']
  number: Int[Array, ' n']


def named(arrays: Arrays, prefix: str = '') -> Patches:
  """The patches among arrays by name."""
  return Patches(*(jnp.asarray(arrays[prefix + name]) for name in Patches._fields))


def k_center(
  key: Key, known: Patches, valid: Bool[Array, ' n'], plan: Plan, count: int, what: str = ''
) -> coreset.Selection:
  """Select so many of the valid rows, or all there are; progress is shown of what is named."""
  # Always room for as many, so that all selections of a run are one compilation.
  room = max(count, plan.final)
  rows = projected(key, known.rows, plan.dim)
  center, sketch, selection = _begun(key, rows, known.number, valid, room, plan.shards)
  cloud = coreset.Cloud(rows, known.number, center, sketch)
  # Not too often: a pass that ends early for being told of measures fewer centers at once.
  targets = [*range(step := max(_STEP, count // 50), count, step), count]
  track = plan.track if what else silently
  for target in track(targets, len(targets), what):
    selection = _advanced(cloud, selection, jnp.int32(target), plan.shards)
    jax.block_until_ready(selection)
  return selection


def fetched(known: Patches, selection: coreset.Selection, over: Shards) -> Patches:
  """The rows that were selected, in that order, on every device."""
  return _rows_at(known, selection.centers[: int(selection.taken)], over)


def dealt(known: Patches, over: Shards) -> tuple[Patches, Int[np.ndarray, ' s']]:
  """Split rows that all devices have, as evenly as can be, and tell how many each got."""
  parts, n = over.number, len(known.rows)
  share = math.ceil(n / parts)
  cursor = np.clip(n - share * np.arange(parts), 0, share).astype(np.int32)

  def one(known: Patches, axis: str | None) -> Patches:
    return collectives.dealt(known, axis)

  filled = jax.tree.map(
    lambda x: jnp.pad(x, [(0, share * parts - n), *[(0, 0)] * (x.ndim - 1)]), known
  )
  return jax.jit(over.over(one, (False,), True))(filled), cursor


def whole(x: Array, over: Shards) -> np.ndarray:
  """What is split over devices, on the host."""
  return np.asarray(jax.jit(over.over(collectives.joined, (True,), False))(x))


@functools.partial(jax.jit, static_argnames='over')
def in_use(known: Patches, cursor: Int[Array, ' s'], over: Shards) -> Bool[Array, ' n']:
  """Which rows are: the first of every shard, up to its cursor."""

  def one(known: Patches, cursor: Array, axis: str | None) -> Bool[Array, ' n']:
    return between(len(known.rows), jnp.int32(0), cursor[0])

  return over.over(one, (True, True), True)(known, cursor)


def between(n: int, start: Int[Array, ''], stop: Int[Array, '']) -> Bool[Array, ' n']:
  """Which of a shard's rows lie from `start` to before `stop`."""
  places = jnp.arange(n)
  return (places >= start) & (places < stop)


def projected(key: Key, rows: Float[Array, 'n d'], dim: int) -> Float[Array, 'n _e']:
  """The rows in the few random dimensions that selections are made in; 0 leaves them all."""
  if not 0 < dim < rows.shape[1]:
    return rows
  projection = jax.random.normal(jax.random.fold_in(key, 1), (rows.shape[1], dim))
  return jnp.matmul(rows, projection / dim**0.5, precision=jax.lax.Precision.HIGHEST)


@functools.partial(jax.jit, static_argnames=('room', 'over'))
def _begun(
  key: Key,
  rows: Float[Array, 'n d'],
  number: Int[Array, ' n'],
  valid: Bool[Array, ' n'],
  room: int,
  over: Shards,
) -> tuple[Float[Array, ' d'], Float[Array, 'n e'], coreset.Selection]:
  """Center and sketch, without the rows, of which there would be a copy; the first center."""
  cloud = over.over(coreset.cloud, (True, True, True), coreset.CLOUD)(rows, valid, number)
  begin = over.over(
    functools.partial(coreset.begin, centers=room), (False, True, True), coreset.SELECTION
  )
  return cloud.center, cloud.sketch, begin(key, valid, number)


@functools.partial(jax.jit, donate_argnums=1, static_argnames='over')
def _advanced(
  cloud: coreset.Cloud, selection: coreset.Selection, target: Int[Array, ''], over: Shards
) -> coreset.Selection:
  given = coreset.CLOUD, coreset.SELECTION, False
  return over.over(coreset.advance, given, coreset.SELECTION)(cloud, selection, target)


@functools.partial(jax.jit, static_argnames='over')
def _rows_at(known: Patches, at: Int[Array, ' m'], over: Shards) -> Patches:
  def one(known: Patches, at: Int[Array, ' m'], axis: str | None) -> Patches:
    return jax.tree.map(lambda x: collectives.fetched(x, at, axis), known)

  return over.over(one, (True, False), False)(known, at)
