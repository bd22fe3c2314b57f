"""The nearest rows of a bank, exactly.

`|a - b|²` is `|b|² - 2ab + |a|²`, where `|a|²` is the same for all rows b: one matrix product ranks
them. But its rounding grows with the norms and not with the distance, so it only nominates a few
candidates; their distances are then taken directly, and order them.

The rows may be split over devices: each finds the nearest of its own, and the nearest of all are
among them.

Letters: q queries, n bank rows, d dimensions, k neighbors, c candidates.
"""

import math
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int, Int32
import numpy as np

from uadjax.numerics import collectives

# Candidates beyond k, so that rows whose order the product's rounding swapped are still among them.
SPARE = 3
CHUNK = 32  # Rows whose minimum is taken first: see _smallest.
_AT_ONCE = 2**20  # Numbers of the table of candidates, queries x candidates x dimensions.
RECALL_TARGET = 0.95  # Of the approximate search, on TPU.


class Index(NamedTuple):
  """What the search needs of a bank; made once by `index` and stored with the model.

  Attributes:
    rows: the bank minus center.
    center: a rounded mean, so coarse that subtracting it is exact (see `index`).
    squares: squared norms of rows.
  """

  rows: Float[Array, 'n d']
  center: Float[Array, ' d']
  squares: Float[Array, ' n']


class Neighbors(NamedTuple):
  """The nearest rows, ascending by distance; equal distances by row.

  Attributes:
    distance: Euclidean.
    row: position in the bank.
  """

  distance: Float[Array, 'q k']
  row: Int32[Array, 'q k']


def index(bank: Float[Array, 'n d']) -> Index:
  """Prepare a bank for searching.

  A common offset is what the matrix product cannot bear, so it is subtracted: in every dimension
  the mean, rounded to a power of two of about four to eight deviations, and only where it is at
  least two such steps. Any x between half and twice the center is then subtracted without rounding
  (Sterbenz), and all others have center 0: distances and ties stay those of the bank as given.
  """
  mean, spread = bank.mean(axis=0), bank.std(axis=0)
  # A mean is known to some 2^-20 of itself: a constant dimension must not get a finer step.
  finest = jnp.maximum(2.0**-12 * jnp.abs(mean), jnp.finfo(bank.dtype).tiny)
  _, exponent = jnp.frexp(jnp.maximum(4 * spread, finest))
  step = jnp.ldexp(jnp.ones_like(mean), exponent)
  steps = jnp.round(mean / step)
  center = jnp.where(jnp.abs(steps) >= 2, steps * step, 0.0)
  rows = bank - center[None]
  return Index(rows, center, jnp.sum(rows**2, axis=-1))


def nearest(
  queries: Float[Array, 'q d'],
  index: Index,
  k: int = 1,
  *,
  approx: bool = False,
  max_elements: int = 2**22,
) -> Neighbors:
  """Find the k nearest rows of the bank, or all where it has fewer: min(k, n) columns.

  Args:
    queries: vectors as the bank's were before `index`.
    index: of the bank.
    k: neighbors per query.
    approx: let accelerators miss a few neighbors (`jax.lax.approx_min_k`); exact on CPU.
    max_elements: of the queries x rows table that may exist at once. One that fits is not looped
      over; nor is one with a symbolic number of queries, whatever its size.

  Returns:
    Distances within 2e-6 of those of their rows, relatively. The true square of the nearest one
    exceeds the least there is by at most 1e-6 of the query's squared distance to the center
    (measured in 384 dimensions on CPU), which is nothing unless the rows near a query differ by
    less than about a hundredth of their norms. Vectors of whole numbers are ranked without any
    error while their squared norms stay below 2^22.

  Raises:
    ValueError: for an empty bank, or k or max_elements below 1.
  """
  q, (n, _) = queries.shape[0], index.rows.shape
  if n < 1 or k < 1 or max_elements < 1:
    raise ValueError(f'{n} rows, k = {k} and max_elements = {max_elements} must be at least 1.')

  def search(part: Float[Array, 'p d'], height: int) -> Neighbors:
    found = _candidates(part, index, min(k + SPARE, n), approx, height)
    return _ordered(part, index.rows, found, min(k, n))

  queries -= index.center[None]
  if not isinstance(q, int):
    return search(queries, n)
  # As square as can be: a product of such blocks reads the least.
  width = _even(q, max(math.isqrt(max_elements), max_elements // n))
  height = _even(n, max_elements // max(1, width))
  if width == q:
    return search(queries, height)

  def block(start: Int[Array, '']) -> Neighbors:
    return search(jax.lax.dynamic_slice_in_dim(queries, start, width), height)

  starts = jnp.minimum(jnp.arange(0, q, width), q - width)
  out = jax.lax.map(block, starts)
  # The last block overlaps the one before: only its end is new.
  new = q - (len(starts) - 1) * width
  return jax.tree.map(
    lambda x: jnp.concatenate([x[:-1].reshape(-1, x.shape[-1]), x[-1, width - new :]]), out
  )


SPLIT = Index(True, False, True)  # pyright: ignore[reportArgumentType]
_FAR = 1e18  # Of rows that only fill up; their squares are infinite.


def filled(index: Index, parts: int) -> Index:
  """The index with rows that are never found, so that so many parts of it are equal."""
  missing = -len(index.rows) % parts
  # What a host has stays there.
  pad: Any = np.pad if isinstance(index.rows, np.ndarray) else jnp.pad
  rows = pad(index.rows, ((0, missing), (0, 0)), constant_values=_FAR)
  return Index(rows, index.center, pad(index.squares, (0, missing), constant_values=np.inf))


def nearest_of_all(
  queries: Float[Array, 'q d'], index: Index, k: int, approx: bool, axis: str | None
) -> Neighbors:
  """The same as `nearest`, where each shard has rows and queries of its own.

  Rows are those of the whole. Where it has fewer than k, distances of what fills up are infinite.
  """
  if axis is None:
    return nearest(queries, index, k, approx=approx)
  found = nearest(collectives.joined(queries, axis), index, k, approx=approx)
  found = found._replace(row=found.row + collectives.place(axis) * len(index.rows))

  def back(x: Array) -> Array:
    # To whom asked: of every shard what it found.
    x = jax.lax.all_to_all(x, axis, 0, 0, tiled=True).reshape(-1, len(queries), x.shape[1])
    return jnp.moveaxis(x, 0, 1).reshape(len(queries), -1)

  distance, row = jax.lax.sort((back(found.distance), back(found.row)), num_keys=2)
  return Neighbors(distance[:, :k], row[:, :k])


def rows_of(index: Index, at: Int[Array, 'b k'], axis: str | None) -> Float[Array, 'b k d']:
  """Rows that `nearest_of_all` told of, without the center."""
  if axis is None:
    return jnp.take(index.rows, at, axis=0, mode='clip')
  return collectives.dealt(
    collectives.fetched(index.rows, collectives.joined(at, axis), axis), axis
  )


def nearest_row(queries: Float[Array, 'q d'], index: Index) -> Neighbors:
  """Find the nearest row as other runtimes do it best: no sort, no top-k, no loop, one candidate.

  Which row it is `nearest` may see otherwise where two are equally near but for the product's
  rounding; the distance is exact for the row that is told, and bounded as there.
  """
  queries -= index.center[None]
  # Rows of the product belong to queries, so that the bank is the side that runtimes pack ahead.
  table = jnp.matmul(queries, -2 * index.rows.T, precision=jax.lax.Precision.HIGHEST)
  row = jnp.argmin(table + index.squares[None], axis=1).astype(jnp.int32)
  away = queries - jnp.take(index.rows, row, axis=0, mode='clip')
  return Neighbors(jnp.sqrt(jnp.sum(away**2, axis=1, keepdims=True)), row[:, None])


def recall(queries: Float[Array, 'q d'], index: Index, k: int = 1) -> float:
  """Measure the share of the k nearest rows that the approximate search finds on this device."""
  search = jax.jit(nearest, static_argnames=('k', 'approx'))
  exact, approximate = (search(queries, index, k, approx=a).row for a in (False, True))
  return float(_share_found(exact, approximate))


def _share_found(exact: Int[Array, 'q k'], found: Int[Array, 'q k']) -> Float[Array, '']:
  return (exact[:, :, None] == found[:, None, :]).any(axis=2).mean()


def _even(total: int, limit: int) -> int:
  """Size of the fewest blocks within a limit, made as even as can be."""
  blocks = max(1, -(-total // limit))
  return -(-total // blocks)


def _candidates(
  queries: Float[Array, 'q d'],
  index: Index,
  count: int,
  approx: bool,
  height: int,
) -> Int32[Array, 'q c']:
  """The rows of least |b|² - 2ab, from blocks of `height` rows."""
  n = index.rows.shape[0]
  probes = -2 * queries

  def best(rows, squares, keep: int) -> tuple[Array, Array]:
    # Rows first: a minimum over them is then one of whole vectors of queries, which CPUs like.
    table = jnp.einsum('nd,qd->nq', rows, probes, precision=jax.lax.Precision.HIGHEST)
    table += squares[:, None]
    if approx:
      values, found = jax.lax.approx_min_k(
        table, keep, 0, RECALL_TARGET, reduction_input_size_override=n
      )
      return values.T, found.T
    return _smallest(table, keep)

  if height == n:
    return best(index.rows, index.squares, count)[1]
  keep = min(count, height)

  def fold(i, kept: tuple[Array, Array]) -> tuple[Array, Array]:
    start = jnp.minimum(i * height, n - height)
    rows, squares = (
      jax.lax.dynamic_slice_in_dim(x, start, height) for x in (index.rows, index.squares)
    )
    # The last block overlaps the one before: what was seen must not be found twice.
    squares = jnp.where(start + jnp.arange(height) < i * height, jnp.inf, squares)
    values, found = best(rows, squares, keep)
    values = jnp.concatenate([kept[0], values], axis=1)
    found = jnp.concatenate([kept[1], found + start], axis=1)
    # Of equal values top_k takes the first, which are those of smaller rows.
    least, order = jax.lax.top_k(-values, count)
    return -least, jnp.take_along_axis(found, order, axis=1)

  shape = (queries.shape[0], count)
  empty = jnp.full(shape, jnp.inf), jnp.zeros(shape, jnp.int32)
  return jax.lax.fori_loop(0, -(-n // height), fold, empty)[1]


def _smallest(
  table: Float[Array, 'n q'], count: int
) -> tuple[Float[Array, 'q c'], Int32[Array, 'q c']]:
  """The `count` least entries of every column and their rows; of equal ones the first rows.

  They lie in the `count` chunks of least minimum: every chunk before holds an entry before them.
  Sorting is slow, and so are searches for a minimum's place; minima alone are not.
  """
  n, q = table.shape
  if n <= 2 * CHUNK * count:
    values, rows = jax.lax.top_k(-table.T, count)
    return -values, rows
  m, rest = divmod(n, CHUNK)
  minima = table[: m * CHUNK].reshape(m, CHUNK, q).min(axis=1)
  if rest:
    minima = jnp.concatenate([minima, table[m * CHUNK :].min(axis=0, keepdims=True)])
  _, chunks = jax.lax.top_k(-minima.T, count)
  # By position, so that of equal entries the first row comes first again.
  rows = jnp.sort(chunks, axis=1)[:, :, None] * CHUNK + jnp.arange(CHUNK)[None, None]
  rows = rows.reshape(q, count * CHUNK)
  entries = jnp.take_along_axis(table, jnp.minimum(rows, n - 1).T, axis=0).T
  values, order = jax.lax.top_k(-jnp.where(rows < n, entries, jnp.inf), count)
  return -values, jnp.take_along_axis(rows, order, axis=1)


def _ordered(
  queries: Float[Array, 'q d'],
  rows: Float[Array, 'n d'],
  found: Int32[Array, 'q c'],
  k: int,
) -> Neighbors:
  """The k nearest candidates by distances taken directly."""
  q, c = found.shape

  def squares(of: Int32[Array, 'q m']) -> Float[Array, 'q m']:
    return jnp.sum((queries[:, None] - rows.at[of].get(mode='clip')) ** 2, axis=2)

  if isinstance(q, int) and q * c * rows.shape[1] <= _AT_ONCE:
    square = squares(found)
  else:  # One candidate at a time.
    square = jnp.concatenate([squares(found[:, i : i + 1]) for i in range(c)], axis=1)
  distance, row = jax.lax.sort((jnp.sqrt(square), found), num_keys=2)
  return Neighbors(distance[:, :k], row[:, :k])
