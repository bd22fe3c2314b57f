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
NUM_EXTRA_CANDIDATES = 3
CHUNK = 32  # Rows whose minimum is taken first: see _smallest.
_MAX_TABLE_ELEMENTS = (
  2**20
)  # Numbers of the table of candidates, queries x candidates x dimensions.
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
  squared_norms: Float[Array, ' n']


class Neighbors(NamedTuple):
  """The nearest rows, ascending by distance; equal distances by row.

  Attributes:
    distance: Euclidean.
    row: position in the bank.
  """

  distance: Float[Array, 'q k']
  row: Int32[Array, 'q k']


def build_index(memory_bank: Float[Array, 'n d']) -> Index:
  """Prepare a bank for searching.

  A common offset is what the matrix product cannot bear, so it is subtracted: in every dimension
  the mean, rounded to a power of two of about four to eight deviations, and only where it is at
  least two such steps. Any x between half and twice the center is then subtracted without rounding
  (Sterbenz), and all others have center 0: distances and ties stay those of the bank as given.
  """
  mean, deviation = memory_bank.mean(axis=0), memory_bank.std(axis=0)
  # A mean is known to some 2^-20 of itself: a constant dimension must not get a finer step.
  min_step = jnp.maximum(2.0**-12 * jnp.abs(mean), jnp.finfo(memory_bank.dtype).tiny)
  _, exponent = jnp.frexp(jnp.maximum(4 * deviation, min_step))
  step = jnp.ldexp(jnp.ones_like(mean), exponent)
  steps = jnp.round(mean / step)
  center = jnp.where(jnp.abs(steps) >= 2, steps * step, 0.0)
  rows = memory_bank - center[None]
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

  def search(query_block: Float[Array, 'p d'], rows_per_block: int) -> Neighbors:
    candidates = _find_candidates(
      query_block, index, min(k + NUM_EXTRA_CANDIDATES, n), approx, rows_per_block
    )
    return _sort_candidates(query_block, index.rows, candidates, min(k, n))

  queries -= index.center[None]
  if not isinstance(q, int):
    return search(queries, n)
  # As square as can be: a product of such blocks reads the least.
  queries_per_block = _even_block_size(q, max(math.isqrt(max_elements), max_elements // n))
  rows_per_block = _even_block_size(n, max_elements // max(1, queries_per_block))
  if queries_per_block == q:
    return search(queries, rows_per_block)

  def search_block(start: Int[Array, '']) -> Neighbors:
    return search(jax.lax.dynamic_slice_in_dim(queries, start, queries_per_block), rows_per_block)

  starts = jnp.minimum(jnp.arange(0, q, queries_per_block), q - queries_per_block)
  out = jax.lax.map(search_block, starts)
  # The last block overlaps the one before: only its end is new.
  num_new = q - (len(starts) - 1) * queries_per_block
  return jax.tree.map(
    lambda x: jnp.concatenate(
      [x[:-1].reshape(-1, x.shape[-1]), x[-1, queries_per_block - num_new :]]
    ),
    out,
  )


INDEX_SPECS = Index(True, False, True)  # pyright: ignore[reportArgumentType]
_PADDING_VALUE = 1e18  # Of rows that only fill up; their squares are infinite.


def pad_index(index: Index, num_shards: int) -> Index:
  """The index with rows that are never found, so that so many parts of it are equal."""
  num_missing = -len(index.rows) % num_shards
  # What a host has stays there.
  pad: Any = np.pad if isinstance(index.rows, np.ndarray) else jnp.pad
  rows = pad(index.rows, ((0, num_missing), (0, 0)), constant_values=_PADDING_VALUE)
  return Index(
    rows, index.center, pad(index.squared_norms, (0, num_missing), constant_values=np.inf)
  )


def nearest_sharded(
  queries: Float[Array, 'q d'], index: Index, k: int, approx: bool, axis_name: str | None
) -> Neighbors:
  """The same as `nearest`, where each shard has rows and queries of its own.

  Rows are those of the whole. Where it has fewer than k, distances of what fills up are infinite.
  """
  if axis_name is None:
    return nearest(queries, index, k, approx=approx)
  neighbors = nearest(collectives.all_gather_tiled(queries, axis_name), index, k, approx=approx)
  neighbors = neighbors._replace(
    row=neighbors.row + collectives.axis_index(axis_name) * len(index.rows)
  )

  def send_back(x: Array) -> Array:
    # To whom asked: of every shard what it found.
    x = jax.lax.all_to_all(x, axis_name, 0, 0, tiled=True).reshape(-1, len(queries), x.shape[1])
    return jnp.moveaxis(x, 0, 1).reshape(len(queries), -1)

  distance, row = jax.lax.sort(
    (send_back(neighbors.distance), send_back(neighbors.row)), num_keys=2
  )
  return Neighbors(distance[:, :k], row[:, :k])


def take_rows(
  index: Index, positions: Int[Array, 'b k'], axis_name: str | None
) -> Float[Array, 'b k d']:
  """Rows that `nearest_of_all` told of, without the center."""
  if axis_name is None:
    return jnp.take(index.rows, positions, axis=0, mode='clip')
  return collectives.local_slice(
    collectives.gather_rows(
      index.rows, collectives.all_gather_tiled(positions, axis_name), axis_name
    ),
    axis_name,
  )


def nearest_for_export(queries: Float[Array, 'q d'], index: Index) -> Neighbors:
  """Find the nearest row as other runtimes do it best: no sort, no top-k, no loop, one candidate.

  Which row it is `nearest` may see otherwise where two are equally near but for the product's
  rounding; the distance is exact for the row that is told, and bounded as there.
  """
  queries -= index.center[None]
  # Rows of the product belong to queries, so that the bank is the side that runtimes pack ahead.
  table = jnp.matmul(queries, -2 * index.rows.T, precision=jax.lax.Precision.HIGHEST)
  row = jnp.argmin(table + index.squared_norms[None], axis=1).astype(jnp.int32)
  difference = queries - jnp.take(index.rows, row, axis=0, mode='clip')
  return Neighbors(jnp.sqrt(jnp.sum(difference**2, axis=1, keepdims=True)), row[:, None])


def measure_recall(queries: Float[Array, 'q d'], index: Index, k: int = 1) -> float:
  """Measure the share of the k nearest rows that the approximate search finds on this device."""
  search = jax.jit(nearest, static_argnames=('k', 'approx'))
  exact, approximate = (
    search(queries, index, k, approx=use_approx).row for use_approx in (False, True)
  )
  return float(_recall(exact, approximate))


def _recall(exact: Int[Array, 'q k'], approximate: Int[Array, 'q k']) -> Float[Array, '']:
  return (exact[:, :, None] == approximate[:, None, :]).any(axis=2).mean()


def _even_block_size(total: int, max_size: int) -> int:
  """Size of the fewest blocks within a limit, made as even as can be."""
  num_blocks = max(1, -(-total // max_size))
  return -(-total // num_blocks)


def _find_candidates(
  queries: Float[Array, 'q d'],
  index: Index,
  num_candidates: int,
  approx: bool,
  rows_per_block: int,
) -> Int32[Array, 'q c']:
  """The rows of least |b|² - 2ab, from blocks of `height` rows."""
  n = index.rows.shape[0]
  scaled_queries = -2 * queries

  def smallest_in_block(rows, squared_norms, num_smallest: int) -> tuple[Array, Array]:
    # Rows first: a minimum over them is then one of whole vectors of queries, which CPUs like.
    table = jnp.einsum('nd,qd->nq', rows, scaled_queries, precision=jax.lax.Precision.HIGHEST)
    table += squared_norms[:, None]
    if approx:
      values, positions = jax.lax.approx_min_k(
        table, num_smallest, 0, RECALL_TARGET, reduction_input_size_override=n
      )
      return values.T, positions.T
    return _smallest(table, num_smallest)

  if rows_per_block == n:
    return smallest_in_block(index.rows, index.squared_norms, num_candidates)[1]
  num_per_block = min(num_candidates, rows_per_block)

  def merge_block(i, best: tuple[Array, Array]) -> tuple[Array, Array]:
    start = jnp.minimum(i * rows_per_block, n - rows_per_block)
    rows, squared_norms = (
      jax.lax.dynamic_slice_in_dim(x, start, rows_per_block)
      for x in (index.rows, index.squared_norms)
    )
    # The last block overlaps the one before: what was seen must not be found twice.
    squared_norms = jnp.where(
      start + jnp.arange(rows_per_block) < i * rows_per_block, jnp.inf, squared_norms
    )
    values, positions = smallest_in_block(rows, squared_norms, num_per_block)
    values = jnp.concatenate([best[0], values], axis=1)
    positions = jnp.concatenate([best[1], positions + start], axis=1)
    # Of equal values top_k takes the first, which are those of smaller rows.
    negated_values, order = jax.lax.top_k(-values, num_candidates)
    return -negated_values, jnp.take_along_axis(positions, order, axis=1)

  shape = (queries.shape[0], num_candidates)
  initial = jnp.full(shape, jnp.inf), jnp.zeros(shape, jnp.int32)
  return jax.lax.fori_loop(0, -(-n // rows_per_block), merge_block, initial)[1]


def _smallest(
  table: Float[Array, 'n q'], num_smallest: int
) -> tuple[Float[Array, 'q c'], Int32[Array, 'q c']]:
  """The `count` least entries of every column and their rows; of equal ones the first rows.

  They lie in the `count` chunks of least minimum: every chunk before holds an entry before them.
  Sorting is slow, and so are searches for a minimum's place; minima alone are not.
  """
  n, q = table.shape
  if n <= 2 * CHUNK * num_smallest:
    values, rows = jax.lax.top_k(-table.T, num_smallest)
    return -values, rows
  num_chunks, remainder = divmod(n, CHUNK)
  minima = table[: num_chunks * CHUNK].reshape(num_chunks, CHUNK, q).min(axis=1)
  if remainder:
    minima = jnp.concatenate([minima, table[num_chunks * CHUNK :].min(axis=0, keepdims=True)])
  _, chunks = jax.lax.top_k(-minima.T, num_smallest)
  # By position, so that of equal entries the first row comes first again.
  rows = jnp.sort(chunks, axis=1)[:, :, None] * CHUNK + jnp.arange(CHUNK)[None, None]
  rows = rows.reshape(q, num_smallest * CHUNK)
  entries = jnp.take_along_axis(table, jnp.minimum(rows, n - 1).T, axis=0).T
  values, order = jax.lax.top_k(-jnp.where(rows < n, entries, jnp.inf), num_smallest)
  return -values, jnp.take_along_axis(rows, order, axis=1)


def _sort_candidates(
  queries: Float[Array, 'q d'],
  rows: Float[Array, 'n d'],
  candidates: Int32[Array, 'q c'],
  k: int,
) -> Neighbors:
  """The k nearest candidates by distances taken directly."""
  q, c = candidates.shape

  def squared_distance_to(candidate: Int32[Array, 'q m']) -> Float[Array, 'q m']:
    return jnp.sum((queries[:, None] - rows.at[candidate].get(mode='clip')) ** 2, axis=2)

  if isinstance(q, int) and q * c * rows.shape[1] <= _MAX_TABLE_ELEMENTS:
    squared_distance = squared_distance_to(candidates)
  else:  # One candidate at a time.
    squared_distance = jnp.concatenate(
      [squared_distance_to(candidates[:, i : i + 1]) for i in range(c)], axis=1
    )
  distance, row = jax.lax.sort((jnp.sqrt(squared_distance), candidates), num_keys=2)
  return Neighbors(distance[:, :k], row[:, :k])
