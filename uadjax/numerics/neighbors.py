"""Exact search of the nearest neighbors in a memory bank.

The squared distance of a query a and a row b is ``|b|² - 2ab + |a|²``, where ``|a|²`` is the same
for all rows, so one matrix product ranks them. But its rounding error grows with the norms and not
with the distance. Therefore it only selects a few candidates, which are then sorted by distances
that are computed directly from the differences.

The rows may be sharded over devices: each shard searches its own rows, and the nearest rows of the
whole bank are among the results of all shards.

Letters: q queries, n bank rows, d dimensions, k neighbors, c candidates.
"""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Int32
import numpy as np

from uadjax.numerics import collectives

# Rounding of the product may swap the order of rows, so more than k candidates are selected.
NUM_EXTRA_CANDIDATES = 3
CHUNK = 32  # Minima of chunks of 32 rows are computed first, see `smallest`.
# A larger table of differences (queries x candidates x dimensions) is computed per candidate.
_MAX_TABLE_ELEMENTS = 2**20
RECALL_TARGET = 0.95  # The approximate search aims at this recall on TPU.


class Index(NamedTuple):
  """Memory bank prepared for the search by `build_index`, and stored with the model.

  Attributes:
    rows: rows of the bank, minus `center`.
    center: mean of the bank, rounded so coarsely that subtracting it is exact; 0 in dimensions
      whose mean is small, see `build_index`.
    squared_norms: squared norms of `rows`.
  """

  rows: Float[Array, 'n d']
  center: Float[Array, ' d']
  squared_norms: Float[Array, ' n']


class Neighbors(NamedTuple):
  """Nearest rows of each query, ascending by distance, and by row for equal distances.

  Attributes:
    distance: Euclidean distances.
    row: positions of the rows in the bank.
  """

  distance: Float[Array, 'q k']
  row: Int32[Array, 'q k']


@jax.jit  # One compilation instead of one per operation.
def build_index(memory_bank: Float[Array, 'n d']) -> Index:
  """Return a memory bank prepared for the search.

  A common offset would cost the matrix product its precision, so a center is subtracted. In each
  dimension it is the mean, rounded to a multiple of a step, which is a power of two of four to
  eight standard deviations (more if they are close to 0). It is 0 in dimensions where the rounded
  mean is below two steps. Subtracting the center from values between half and twice the center,
  that is, at least those within two standard deviations of the mean, is exact (Sterbenz lemma), so
  their distances and ties are those of the original bank.
  """
  mean, deviation = memory_bank.mean(axis=0), memory_bank.std(axis=0)
  # The mean has a relative error of about 2^-20: a constant dimension must not get a finer step.
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
  """Find the k nearest rows of the bank for each query, or all rows if there are fewer than k.

  Args:
    queries: vectors, not centered.
    index: index of the bank.
    k: number of neighbors per query.
    approx: True to let accelerators miss a few neighbors (`jax.lax.approx_min_k`); the search on
      CPU is always exact.
    max_elements: maximum number of elements of the queries x rows table in memory; larger tables
      are computed in blocks, except if the number of queries is symbolic (`jax.export`).

  Returns:
    Neighbors in min(k, n) columns. Distances have a relative error of at most 2e-6. The first row
    may not be the nearest one, if rounding excluded that from the candidates: its squared distance
    exceeds the smallest one by at most 1e-6 of the query's squared distance to the center (measured
    in 384 dimensions on CPU). This only matters if the rows near a query differ from each other by
    less than about a hundredth of their norms. Vectors of integers are ranked without error if
    their squared norms are below 2^22. With `approx` more rows may be missed.

  Raises:
    ValueError: the bank is empty, or `k` or `max_elements` is below 1.
  """
  q, (n, _) = queries.shape[0], index.rows.shape
  if n < 1 or k < 1 or max_elements < 1:
    sizes = f'{n} rows, k = {k}, max_elements = {max_elements}'
    raise ValueError(f'A search needs at least 1 row, k >= 1 and max_elements >= 1, got {sizes}.')

  def search(query_block: Float[Array, 'p d'], rows_per_block: int) -> Neighbors:
    num_candidates = min(k + NUM_EXTRA_CANDIDATES, n)
    candidates = _find_candidates(query_block, index, num_candidates, approx, rows_per_block)
    return sort_candidates(query_block, index.rows, candidates, min(k, n))

  queries -= index.center[None]
  if not isinstance(q, int):
    return search(queries, n)
  # Blocks are as square as possible, because their product then reads the least memory.
  queries_per_block = _even_block_size(q, max(math.isqrt(max_elements), max_elements // n))
  rows_per_block = _even_block_size(n, max_elements // max(1, queries_per_block))
  return _map_blocks(lambda x: search(x, rows_per_block), queries, queries_per_block)


def _map_blocks(
  search: Callable[[Array], Neighbors], queries: Float[Array, 'q d'], block_size: int
) -> Neighbors:
  """Return the neighbors of all queries, searched block by block."""
  q = len(queries)
  if block_size == q:
    return search(queries)
  starts = jnp.minimum(jnp.arange(0, q, block_size), q - block_size)
  blocks = jax.lax.map(
    lambda start: search(jax.lax.dynamic_slice_in_dim(queries, start, block_size)), starts
  )
  # The last block overlaps the one before, so only its end is new.
  first_new = len(starts) * block_size - q

  def join(x: Array) -> Array:
    return jnp.concatenate([x[:-1].reshape(-1, x.shape[-1]), x[-1, first_new:]])

  return jax.tree.map(join, blocks)


INDEX_SPECS = Index._make((P('data'), P(), P('data')))
# Padding rows are far from every query, but finite, because products with infinity may be NaN. Only
# their entries of `Index.squared_norms` are infinite.
_PADDING_VALUE = 1e18


def pad_index(index: Index, num_shards: int) -> Index:
  """Return the index padded to a multiple of `num_shards` rows.

  A search finds the padding rows last, only if there are fewer than k other rows.
  """
  num_missing = -len(index.rows) % num_shards
  # NumPy arrays stay on the host.
  pad: Any = np.pad if isinstance(index.rows, np.ndarray) else jnp.pad
  rows = pad(index.rows, ((0, num_missing), (0, 0)), constant_values=_PADDING_VALUE)
  squared_norms = pad(index.squared_norms, (0, num_missing), constant_values=np.inf)
  return Index(rows, index.center, squared_norms)


def nearest_sharded(
  queries: Float[Array, 'q d'], index: Index, k: int, approx: bool, axis_name: str | None
) -> Neighbors:
  """Find the k nearest rows of a sharded bank for this shard's queries.

  Args:
    queries: this shard's vectors, not centered; as many as on every other shard.
    index: this shard's rows of the index.
    k: number of neighbors per query.
    approx: True to let accelerators miss a few neighbors; the search on CPU is always exact.
    axis_name: mesh axis over which queries and rows are sharded, or None for a single shard.

  Returns:
    Neighbors, whose rows are positions in the whole bank. If the bank has fewer than k rows, the
    padding rows of `pad_index` come last, at distances of about 1e18 or more.
  """
  if axis_name is None:
    return nearest(queries, index, k, approx=approx)
  all_queries = collectives.all_gather_tiled(queries, axis_name)
  distance, row = nearest(all_queries, index, k, approx=approx)
  row += collectives.axis_index(axis_name) * len(index.rows)

  def send_back(x: Array) -> Array:
    # Each shard receives the results of all shards for its queries, side by side.
    x = jax.lax.all_to_all(x, axis_name, 0, 0, tiled=True).reshape(-1, len(queries), x.shape[1])
    return jnp.moveaxis(x, 0, 1).reshape(len(queries), -1)

  distance, row = jax.lax.sort((send_back(distance), send_back(row)), num_keys=2)
  return Neighbors(distance[:, :k], row[:, :k])


def nearest_for_export(
  queries: Float[Array, 'q d'],
  index: Index,
  exclude: Callable[[Array], Array] = lambda table: table,
) -> Neighbors:
  """Find the nearest row with operations that other runtimes execute fast: no sort, top-k or loop.

  The row is an argmin of the matrix product, that is, a single candidate. It may differ from that
  of `nearest` if two rows are equally near up to rounding of the product. The distance is that of
  the returned row, computed directly, with a relative error of at most 2e-6.
  """
  queries -= index.center[None]
  # Whole chunks of rows; the norms make those that are added infinitely far.
  num_missing = -len(index.rows) % CHUNK
  rows = jnp.pad(index.rows, ((0, num_missing), (0, 0)))
  squared_norms = jnp.pad(index.squared_norms, (0, num_missing), constant_values=jnp.inf)
  # The bank is the right-hand side of the product, which runtimes pack ahead of time.
  table = jnp.matmul(queries, -2 * rows.T, precision=jax.lax.Precision.HIGHEST)
  # Runtimes compute minima several times as fast as an argmin, which reads only one chunk of each
  # query here.
  chunks = exclude(table + squared_norms[None]).reshape(-1, len(rows) // CHUNK, CHUNK)
  chunk = jnp.argmin(chunks.min(axis=2), axis=1)
  entries = jnp.take_along_axis(chunks, chunk[:, None, None], axis=1)[:, 0]
  row = (chunk * CHUNK + jnp.argmin(entries, axis=1)).astype(jnp.int32)
  difference = queries - jnp.take(index.rows, row, axis=0, mode='clip')
  return Neighbors(jnp.sqrt(jnp.sum(difference**2, axis=1, keepdims=True)), row[:, None])


def measure_recall(queries: Float[Array, 'q d'], index: Index, k: int = 1) -> float:
  """Return the share of the k nearest rows that the approximate search finds on this device."""
  search = jax.jit(nearest, static_argnames=('k', 'approx'))
  exact, approximate = (search(queries, index, k, approx=x).row for x in (False, True))
  return float(_recall(exact, approximate))


def _recall(exact: Int[Array, 'q k'], approximate: Int[Array, 'q k']) -> Float[Array, '']:
  return (exact[:, :, None] == approximate[:, None, :]).any(axis=2).mean()


def _even_block_size(total: int, max_size: int) -> int:
  """Return the block size that splits `total` evenly into as few blocks as `max_size` allows."""
  num_blocks = max(1, -(-total // max_size))
  return -(-total // num_blocks)


def _find_candidates(
  queries: Float[Array, 'q d'], index: Index, num_candidates: int, approx: bool, rows_per_block: int
) -> Int32[Array, 'q c']:
  """Return the positions of the rows b with the smallest ``|b|² - 2ab`` for each query a.

  Queries are minus the center, as the rows are; the table is computed for blocks of
  `rows_per_block` rows.
  """
  n = index.rows.shape[0]
  scaled_queries = -2 * queries

  def smallest_in_block(rows, squared_norms, num_smallest: int) -> tuple[Array, Array]:
    # With rows as the first axis, minima over them are vectorized over queries: fast on CPUs.
    table = jnp.einsum('nd,qd->nq', rows, scaled_queries, precision=jax.lax.Precision.HIGHEST)
    table += squared_norms[:, None]
    if approx:
      values, positions = jax.lax.approx_min_k(
        table, num_smallest, 0, RECALL_TARGET, reduction_input_size_override=n
      )
      return values.T, positions.T
    return smallest(table, num_smallest)

  if rows_per_block == n:
    return smallest_in_block(index.rows, index.squared_norms, num_candidates)[1]
  num_per_block = min(num_candidates, rows_per_block)

  def merge_block(i, best: tuple[Array, Array]) -> tuple[Array, Array]:
    start = jnp.minimum(i * rows_per_block, n - rows_per_block)
    rows = jax.lax.dynamic_slice_in_dim(index.rows, start, rows_per_block)
    squared_norms = jax.lax.dynamic_slice_in_dim(index.squared_norms, start, rows_per_block)
    # The last block overlaps the one before, whose rows must not be selected twice.
    is_repeated = start + jnp.arange(rows_per_block) < i * rows_per_block
    squared_norms = jnp.where(is_repeated, jnp.inf, squared_norms)
    values, positions = smallest_in_block(rows, squared_norms, num_per_block)
    return merge_smallest(best, (values, positions + start))

  shape = (queries.shape[0], num_candidates)
  initial = jnp.full(shape, jnp.inf), jnp.zeros(shape, jnp.int32)
  return jax.lax.fori_loop(0, -(-n // rows_per_block), merge_block, initial)[1]


def merge_smallest(
  best: tuple[Float[Array, 'q c'], Int32[Array, 'q c']],
  further: tuple[Float[Array, 'q _m'], Int32[Array, 'q _m']],
) -> tuple[Float[Array, 'q c'], Int32[Array, 'q c']]:
  """Return the smallest of the best values of each query and of further ones, with their rows.

  The further values belong to rows at higher positions.
  """
  values, positions = (jnp.concatenate(pair, axis=1) for pair in zip(best, further, strict=True))
  # Of equal values top_k takes the first, which belong to rows at lower positions.
  negated_values, order = jax.lax.top_k(-values, best[0].shape[1])
  return -negated_values, jnp.take_along_axis(positions, order, axis=1)


def smallest(
  table: Float[Array, 'n q'], num_smallest: int
) -> tuple[Float[Array, 'q c'], Int32[Array, 'q c']]:
  """Return the smallest entries of every column, and their rows; ties go to the first rows.

  The `num_smallest` entries lie in the `num_smallest` chunks of `CHUNK` rows with the smallest
  minima, because the minimum of each of these chunks is no larger than any entry of other chunks.
  So only the entries of these chunks are sorted. Sorting is slow, and so is an argmin;
  minima alone are fast.
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
  # Chunks are sorted by position, so that ties go to the first row again.
  rows = jnp.sort(chunks, axis=1)[:, :, None] * CHUNK + jnp.arange(CHUNK)[None, None]
  rows = rows.reshape(q, num_smallest * CHUNK)
  entries = jnp.take_along_axis(table, jnp.minimum(rows, n - 1).T, axis=0).T
  values, order = jax.lax.top_k(-jnp.where(rows < n, entries, jnp.inf), num_smallest)
  return -values, jnp.take_along_axis(rows, order, axis=1)


def sort_candidates(
  queries: Float[Array, 'q d'], rows: Float[Array, 'n d'], candidates: Int32[Array, 'q c'], k: int
) -> Neighbors:
  """Return the k nearest candidates, by distances computed directly from the differences.

  Queries are minus the center, as the rows are; candidates are positions of rows.
  """
  q, c = candidates.shape

  def squared_distance_to(candidate: Int32[Array, 'q m']) -> Float[Array, 'q m']:
    return jnp.sum((queries[:, None] - rows.at[candidate].get(mode='clip')) ** 2, axis=2)

  if isinstance(q, int) and q * c * rows.shape[1] <= _MAX_TABLE_ELEMENTS:
    squared_distance = squared_distance_to(candidates)
  else:  # The table would be too large, so candidates are processed one at a time.
    squared_distance = jnp.concatenate(
      [squared_distance_to(candidates[:, i : i + 1]) for i in range(c)], axis=1
    )
  distance, row = jax.lax.sort((jnp.sqrt(squared_distance), candidates), num_keys=2)
  return Neighbors(distance[:, :k], row[:, :k])
