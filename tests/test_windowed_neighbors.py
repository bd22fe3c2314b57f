"""Laws of the search within a window of positions, against every distance in float64."""

import functools

import hypothesis
from hypothesis import strategies as st
import jax
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from uadjax.distributed import mesh as meshes
from uadjax.numerics import neighbors, windowed_neighbors

B, H, W, D = 2, 5, 7, 3
# Few, for each is compiled. 700 rows are three blocks; three rows leave most windows empty.
NUM_ROWS = st.sampled_from([1, 3, 40, 700])


@functools.partial(jax.jit, static_argnames='radius')
def search(queries, bank, position, radius):
  index = windowed_neighbors.build_index(bank, position)
  return windowed_neighbors.nearest_sharded(queries, index, radius, None)


def slow_distances(queries, bank, position, radius):
  """The definition: windows grow until they hold a row; the nearest of their rows counts."""
  distance = np.zeros(queries.shape[:3])
  rows, columns = np.divmod(position, queries.shape[2])
  for k, i, j in np.ndindex(distance.shape):
    away = np.maximum(np.abs(rows - i), np.abs(columns - j))
    is_in_window = away <= max(radius, away.min())
    differences = bank[is_in_window].astype(np.float64) - queries[k, i, j]
    distance[k, i, j] = np.sqrt((differences**2).sum(axis=1)).min()
  return distance


def draw(num_rows, seed, num_images=B, positions=H * W):
  """Queries, and a bank whose rows are in any order."""
  random = np.random.default_rng(seed)
  queries = random.normal(size=(num_images, H, W, D)).astype(np.float32)
  bank = random.normal(size=(num_rows, D)).astype(np.float32)
  return queries, bank, random.integers(0, positions, num_rows).astype(np.int32)


@pytest.mark.accelerator
@hypothesis.settings(max_examples=20)  # Each number of rows and radius is compiled.
@hypothesis.given(NUM_ROWS, st.sampled_from([1, 2, 9]), st.integers(0, 2**16))
def test_distances_are_those_to_the_nearest_row_of_the_window(num_rows, radius, seed):
  queries, bank, position = draw(num_rows, seed)
  got = search(queries, bank, position, radius)
  expected = slow_distances(queries, bank, position, radius)
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_windows_are_searched_block_by_block(monkeypatch):
  """Also where the last block of the bank overlaps the one before."""
  monkeypatch.setattr(windowed_neighbors, '_MIN_BLOCK', 4)
  monkeypatch.setattr(windowed_neighbors, '_BLOCKS_PER_RANGE', 100)
  for num_rows, positions in ((103, H * W), (50, 3), (9, 1)):
    queries, bank, position = draw(num_rows, 1, positions=positions)
    index = windowed_neighbors.build_index(jnp.asarray(bank), jnp.asarray(position))
    assert windowed_neighbors._block_size(num_rows, 1, jnp.asarray(queries)) == 4
    got = windowed_neighbors.nearest_sharded(jnp.asarray(queries), index, 1, None)
    np.testing.assert_allclose(got, slow_distances(queries, bank, position, 1), rtol=1e-5)


def test_a_larger_radius_never_increases_a_distance_and_the_largest_sees_all_rows():
  queries, bank, position = draw(40, 2)
  distances = [np.asarray(search(queries, bank, position, radius)) for radius in (1, 2, 3, 7)]
  for smaller, larger in zip(distances[1:], distances, strict=False):
    assert (smaller <= larger * (1 + 1e-6)).all()
  assert (distances[0] > distances[-1] * 1.1).any()
  index = neighbors.build_index(jnp.asarray(bank))
  nearest = neighbors.nearest(jnp.asarray(queries.reshape(-1, D)), index)
  np.testing.assert_allclose(distances[-1].ravel(), nearest.distance[:, 0], rtol=1e-6)


def test_a_row_is_found_at_its_own_position_however_many_are_near_by():
  """More equal rows outside of the window than there are candidates."""
  queries, bank, position = draw(60, 3)
  bank[:], position[:] = queries[0, 0, 0], 30
  bank[7], position[7] = queries[0, 0, 0] + 2, 0
  got = search(queries, bank, position, 1)
  np.testing.assert_allclose(got[0, 0, 0], 2 * D**0.5, rtol=1e-5)


def test_embeddings_far_from_the_origin_keep_their_distances():
  queries, bank, position = draw(100, 4)
  got = search(queries + np.float32(512), bank + np.float32(512), position, 1)
  expected = slow_distances(queries + np.float32(512), bank + np.float32(512), position, 1)
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_a_query_that_is_no_number_has_no_distance():
  queries, bank, position = draw(40, 5)
  queries[1, 2, 3] = np.nan
  is_nan = np.isnan(search(queries, bank, position, 1))
  assert is_nan[1, 2, 3]
  assert is_nan.sum() == 1


@pytest.mark.parametrize('num_rows', [2, 100])
@pytest.mark.parametrize('devices', [1, 3, 8])
def test_sharded_equals_single(num_rows, devices):
  """Also where some shards have no rows but padding."""
  queries, bank, position = draw(num_rows, 6, num_images=24)
  mesh = meshes.make_mesh('cpu', devices, 0)
  shards = meshes.shards(mesh)
  index = windowed_neighbors.build_index(jnp.asarray(bank), jnp.asarray(position))
  padded = windowed_neighbors.pad_index(index, devices)
  host = windowed_neighbors.pad_index(jax.tree.map(np.asarray, index), devices)
  jax.tree.map(np.testing.assert_array_equal, host, padded)
  for part in np.split(np.asarray(padded.position), devices):
    assert (np.diff(part) >= 0).all()
    # Every shard has its share of all windows.
    assert abs((part < H * W).sum() - num_rows / devices) < 1

  def search_shard(index, queries, axis_name):
    return windowed_neighbors.nearest_sharded(queries, index, 1, axis_name)

  find = shards.shard_map(search_shard, (windowed_neighbors.INDEX_SPECS, P('data')), P('data'))
  got = jax.jit(find)(padded, jnp.asarray(queries))
  np.testing.assert_allclose(got, slow_distances(queries, bank, position, 1), rtol=1e-5)


@pytest.mark.parametrize(('num_rows', 'radius'), [(3, 1), (300, 1), (300, 3), (33, 9)])
def test_the_export_variant_has_the_same_distances(num_rows, radius):
  """Without sort, top-k and loop, and without a table of all cells and rows that is constant."""
  queries, bank, position = draw(num_rows, 7)
  index = windowed_neighbors.build_index(jnp.asarray(bank), jnp.asarray(position))
  find = windowed_neighbors.make_export_search(index, (H, W), radius)
  got = jax.jit(find)(jnp.asarray(queries))
  np.testing.assert_allclose(got, slow_distances(queries, bank, position, radius), rtol=1e-4)
  closed = jax.make_jaxpr(find)(jnp.asarray(queries))
  primitives = {equation.primitive.name for equation in closed.jaxpr.eqns}
  assert not {'sort', 'top_k', 'while', 'scan'} & primitives
  num_padded = max(num_rows, neighbors.CHUNK)
  assert max(np.size(constant) for constant in closed.consts) < H * W * num_padded
