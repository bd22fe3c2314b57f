"""Exact search of the nearest neighbor within a window of positions.

Queries are the patches of images on a grid, and each row of the memory bank has the position in the
grid of the patch that it is. A query is compared only with the rows in its window: those at most
`radius` rows and columns of the grid away. Around a cell without such rows the window is larger,
just enough to contain some. So a larger radius never increases a distance, and with one as large as
the grid the distances are those of `neighbors`.

The bank is sorted by position. The windows of all cells in a row of the grid are therefore within
one range of bank rows, about (2 · radius + 1) / h of the bank, and only this range is searched.

Letters: b batch, h w grid, d dimensions, n bank rows, m rows of a block, q queries, c candidates.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from uadjax.numerics import collectives, neighbors

_MIN_BLOCK = 256  # Rows that are searched at a time, at least.
_BLOCKS_PER_RANGE = 4  # A range of many rows takes about so many blocks, the last mostly not full.
_MAX_ELEMENTS = 2**22  # Elements of the table of a block and the queries in a row of the grid.
# Added to the entries of rows outside of a window; the sum of three is finite.
_FAR = np.float32(1e30)
_PADDING_POSITION = 1 << 30  # Far from every window.


class Index(NamedTuple):
  """Memory bank in the order of positions, prepared for the search by `build_index`.

  Attributes:
    rows: rows of the bank, minus `center`.
    center: see `neighbors.Index`.
    squared_norms: squared norms of `rows`.
    position: position of each row in the grid, row by row; ascending.
  """

  rows: Float[Array, 'n d']
  center: Float[Array, ' d']
  squared_norms: Float[Array, ' n']
  position: Int[Array, ' n']


INDEX_SPECS = Index._make((P('data'), P(), P('data'), P('data')))


@jax.jit  # One compilation instead of one per operation.
def build_index(memory_bank: Float[Array, 'n d'], position: Int[Array, ' n']) -> Index:
  """Return a memory bank prepared for the search, given the position of each row in the grid."""
  order = jnp.argsort(position)
  rows, center, squared_norms = neighbors.build_index(memory_bank[order])
  return Index(rows, center, squared_norms, position[order])


def pad_index(index: Index, num_shards: int) -> Index:
  """Return the index padded to equal shards, each with rows from the whole grid.

  The padding rows are in no window.
  """
  padded = neighbors.pad_index(neighbors.Index(*index[:3]), num_shards)
  # NumPy arrays stay on the host.
  pad: Any = np.pad if isinstance(index.position, np.ndarray) else jnp.pad
  num_missing = len(padded.rows) - len(index.rows)
  position = pad(index.position, (0, num_missing), constant_values=_PADDING_POSITION)

  def deal_out(x: Any) -> Any:
    # Shard i gets the rows i, i + num_shards, ..., so that every window is shared by all shards.
    return x.reshape(-1, num_shards, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)

  rows, center, squared_norms = padded
  return Index(deal_out(rows), center, deal_out(squared_norms), deal_out(position))


def nearest_sharded(
  queries: Float[Array, 'b h w d'], index: Index, radius: int, axis_name: str | None
) -> Float[Array, 'b h w']:
  """Return the distances of this shard's queries to the nearest rows of a sharded bank.

  Args:
    queries: vectors of this shard's images, not centered; as many as on every other shard.
    index: this shard's rows of the index.
    radius: radius of the windows, in cells.
    axis_name: mesh axis over which queries and rows are sharded, or None for a single shard.

  Returns:
    Distances with the precision of `neighbors.nearest`.
  """
  h, w = queries.shape[1:3]
  counts = collectives.psum(_count_rows(index.position, h, w), axis_name)
  radii = _window_radii(counts, radius)
  all_queries = collectives.all_gather_tiled(queries, axis_name)
  distance = _nearest(all_queries, index, radii, _block_size(len(index.rows), radius, all_queries))
  return collectives.scatter_min(distance, axis_name)


def _count_rows(position: Int[Array, ' n'], h: int, w: int) -> Int[Array, 'h w']:
  """Return the number of rows at each position, without padding rows."""
  counts = jnp.zeros(h * w + 1, jnp.int32).at[jnp.minimum(position, h * w)].add(1)
  return counts[:-1].reshape(h, w)


def _window_radii(counts: Int[Array, 'h w'], radius: int) -> Int[Array, 'h w']:
  """Return the radius of the window of each cell: the given one, or that to the nearest row."""
  h, w = counts.shape
  i, j = jnp.arange(h), jnp.arange(w)
  # The nearest row of the bank within each row of the grid, then over all rows of the grid.
  columns_away = jnp.where(counts[:, None] > 0, jnp.abs(j[:, None] - j[None])[None], h + w)
  columns_away = columns_away.min(axis=2)
  rows_away = jnp.abs(i[:, None] - i[None])[:, :, None]
  return jnp.maximum(jnp.maximum(rows_away, columns_away[None]).min(axis=1), radius)


def _block_size(n: int, radius: int, queries: Float[Array, 'b h w d']) -> int:
  """Return the number of bank rows to search at a time."""
  b, h, w, _ = queries.shape
  range_size = n * min(2 * radius + 1, h) // h
  max_size = _MAX_ELEMENTS // (b * w)
  return min(n, max(_MIN_BLOCK, min(range_size // _BLOCKS_PER_RANGE, max_size)))


def _nearest(
  queries: Float[Array, 'b h w d'], index: Index, radii: Int[Array, 'h w'], block_size: int
) -> Float[Array, 'b h w']:
  """Return the distance of each query to the nearest row in its window; infinite without any."""
  x = queries - index.center[None, None, None]
  b, h, w, d = x.shape
  num_candidates = min(1 + neighbors.NUM_EXTRA_CANDIDATES, len(index.rows))
  grid_rows = index.position // w

  def search_grid_row(arguments: tuple[Array, Array, Array]) -> Float[Array, 'b w']:
    i, x, radii = arguments
    reach = radii.max()
    start, stop = jnp.searchsorted(grid_rows, jnp.stack([i - reach, i + reach + 1]))

    def merge_block(k: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
      first = start + k * block_size
      offset = jnp.minimum(first, len(grid_rows) - block_size)
      rows, squared_norms, position = (
        jax.lax.dynamic_slice_in_dim(array, offset, block_size)
        for array in (index.rows, index.squared_norms, index.position)
      )
      # The last block of the bank overlaps the one before, whose rows must not be selected twice.
      is_new = offset + jnp.arange(block_size) >= first
      table = _window_table(x, rows, squared_norms, position, i, radii, is_new)
      values, positions = neighbors.smallest(table, num_candidates)
      return neighbors.merge_smallest(best, (values, positions + offset))

    shape = (b * w, num_candidates)
    best = jnp.full(shape, jnp.inf), jnp.zeros(shape, jnp.int32)
    num_blocks = (stop - start + block_size - 1) // block_size
    values, rows = jax.lax.fori_loop(0, num_blocks, merge_block, best)
    # Candidates outside of the window, where it has few rows, could be nearer.
    rows = jnp.where(values == jnp.inf, rows[:, :1], rows)
    distance = neighbors.sort_candidates(x.reshape(-1, d), index.rows, rows, 1).distance[:, 0]
    # A sum, so that a query that is no number has no distance.
    return (distance + jnp.where(values[:, 0] == jnp.inf, jnp.inf, 0.0)).reshape(b, w)

  distance = jax.lax.map(search_grid_row, (jnp.arange(h), jnp.moveaxis(x, 1, 0), radii))
  return jnp.moveaxis(distance, 0, 1)


def _window_table(
  x: Float[Array, 'b w d'],
  rows: Float[Array, 'm d'],
  squared_norms: Float[Array, ' m'],
  position: Int[Array, ' m'],
  i: Int[Array, ''],
  radii: Int[Array, ' w'],
  is_valid: Bool[Array, ' m'],
) -> Float[Array, 'm q']:
  """Return ``|b|² - 2ab`` for the queries a in row i of the grid and bank rows b.

  Entries of bank rows that are not valid, or outside of the window of a query, are infinite.
  """
  w = x.shape[1]
  rows_away = jnp.abs(position // w - i)[:, None]
  columns_away = jnp.abs((position % w)[:, None] - jnp.arange(w)[None])
  is_in_window = (jnp.maximum(rows_away, columns_away) <= radii[None]) & is_valid[:, None]
  table = jnp.einsum('md,bwd->mbw', rows, -2 * x, precision=jax.lax.Precision.HIGHEST)
  table = jnp.where(is_in_window[:, None], table + squared_norms[:, None, None], jnp.inf)
  return table.reshape(len(rows), -1)


def make_export_search(
  index: Index, grid: tuple[int, int], radius: int
) -> Callable[[Float[Array, 'b h w d']], Float[Array, 'b h w']]:
  """Return a search of a fixed bank with operations that other runtimes execute fast.

  Windows raise the entries of other rows in the table of `neighbors.nearest_for_export`, which has
  all rows.

  Args:
    index: the bank.
    grid: height and width of the grid.
    radius: radius of the windows, in cells.
  """
  h, w = grid
  radii = np.asarray(_window_radii(_count_rows(jnp.asarray(index.position), h, w), radius))
  position = np.asarray(index.position)
  position = np.pad(position, (0, -len(position) % neighbors.CHUNK))
  rows_away = np.abs(np.arange(h)[:, None] - position[None] // w)
  columns_away = np.abs(np.arange(w)[:, None] - position[None] % w)

  def exclude(table: Float[Array, '_q _n']) -> Float[Array, '_q _n']:
    # Tables by grid row and by column are much smaller than one by cell, which runtimes would make
    # of their sum if that did not depend on the images.
    entries = table.reshape(-1, h, w, table.shape[1])
    raised = [raise_others(entries, r) for r in np.unique(radii).tolist()]
    return functools.reduce(jnp.minimum, raised)

  def raise_others(entries: Float[Array, 'b h w _n'], r: int) -> Float[Array, '_q _n']:
    """Raise the entries outside of windows of a radius, and those of cells with another one."""
    entries += jnp.asarray(_FAR * (rows_away > r))[None, :, None]
    entries += jnp.asarray(_FAR * (columns_away > r))[None, None]
    if (radii != r).any():
      entries += jnp.asarray(_FAR * (radii != r))[None, :, :, None]
    return entries.reshape(-1, entries.shape[3])

  def search(queries: Float[Array, 'b h w d']) -> Float[Array, 'b h w']:
    vectors = queries.reshape(-1, queries.shape[3])
    nearest = neighbors.nearest_for_export(vectors, neighbors.Index(*index[:3]), exclude)
    return nearest.distance.reshape(queries.shape[:3])

  return search
