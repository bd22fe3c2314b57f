import functools

import hypothesis
from hypothesis import strategies as st
import jax
from jax import export, extend, numpy as jnp
import numpy as np
import pytest

from uadjax.numerics import neighbors

# Few, for each is compiled; 300 rows are more than are searched without chunks where k is 1.
SHAPES = st.sampled_from([(5, 1, 1), (3, 40, 2), (4, 300, 3)])
BUDGETS = st.sampled_from([1, 60, 2**22])


@functools.partial(jax.jit, static_argnames=('k', 'approx', 'max_elements'))
def search(queries, bank, k=1, **options):
  return neighbors.nearest(queries, neighbors.build_index(bank), k, **options)


def slow_nearest(queries, bank, k):
  """The definition: every distance in float64, ordered by (distance, row)."""
  queries, bank = queries.astype(np.float64), bank.astype(np.float64)
  shape = len(queries), min(k, len(bank))
  distance, row = np.zeros(shape), np.zeros(shape, int)
  for i, query in enumerate(queries):
    candidates = [(np.sqrt(np.sum((query - other) ** 2)), j) for j, other in enumerate(bank)]
    for column, (value, j) in enumerate(sorted(candidates)[:k]):
      distance[i, column], row[i, column] = value, j
  return distance, row


def true_distances(queries, bank, row):
  return np.linalg.norm(queries[:, None].astype(np.float64) - bank[row].astype(np.float64), axis=-1)


def normal(n, d, seed=0, offset=0.0):
  return (np.random.default_rng(seed).normal(size=(n, d)) + offset).astype(np.float32)


@pytest.mark.accelerator
@hypothesis.settings(max_examples=12)  # Each shape, k and budget is compiled.
@hypothesis.given(SHAPES, st.sampled_from([1, 9]), BUDGETS, st.integers(0, 2**32))
def test_whole_numbers_are_searched_without_error(shape, k, budget, seed):
  """Few values, so that most neighbors are tied: the smaller row wins, however it is blocked."""
  q, n, d = shape
  random = np.random.default_rng(seed)
  offset = random.choice([0, 1000, -4000])
  queries, bank = (random.integers(-3, 4, (x, d)).astype(np.float32) + offset for x in (q, n))
  queries, bank = queries.astype(np.float32), bank.astype(np.float32)
  got = search(queries, bank, k, max_elements=budget)
  distance, row = slow_nearest(queries, bank, k)
  np.testing.assert_array_equal(got.row, row)
  np.testing.assert_allclose(got.distance, distance, rtol=1e-6)


@pytest.mark.accelerator
@hypothesis.given(
  st.sampled_from([1, 9]), st.floats(-6, 6), st.floats(-4, 4), st.integers(0, 2**32)
)
def test_distances_are_those_of_the_rows_and_the_rows_are_nearest(k, scale, offset, seed):
  """At any scale, and with any common offset of up to 1e4 deviations."""
  random = np.random.default_rng(seed)
  queries, bank = (
    random.normal(size=(x, 8)) + np.sign(offset) * 10 ** abs(offset) for x in (6, 300)
  )
  queries, bank = ((x * 10**scale).astype(np.float32) for x in (queries, bank))
  got = search(queries, bank, k)
  true = true_distances(queries, bank, np.asarray(got.row))
  distance, _ = slow_nearest(queries, bank, k)
  np.testing.assert_allclose(got.distance, true, rtol=2e-6)
  np.testing.assert_allclose(true, distance, rtol=2e-6)


@hypothesis.settings(max_examples=3)  # Each is compiled.
@hypothesis.given(st.integers(1, 40 * 700 + 1), st.sampled_from([1, 4]))
def test_blocked_equals_whole(budget, k):
  queries, bank = normal(40, 5), normal(700, 5, 1)
  whole = search(queries, bank, k)
  blocked = search(queries, bank, k, max_elements=budget)
  np.testing.assert_array_equal(blocked.row, whole.row)
  np.testing.assert_allclose(blocked.distance, whole.distance, rtol=1e-6)


@pytest.mark.parametrize('budget', [2000, 2**22])
def test_the_first_of_equal_rows_is_the_nearest(budget):
  bank = normal(900, 33)
  bank[[17, 403, 898]] = bank[450]
  got = search(bank[[450]], bank, 6, max_elements=budget)
  np.testing.assert_array_equal(got.row[0, :4], [17, 403, 450, 898])
  np.testing.assert_array_equal(got.distance[0, :4], 0)
  assert got.distance[0, 4] > 0


def test_the_first_of_more_equal_rows_than_candidates_is_the_nearest():
  """Also where a chunk that comes later has the nearest row, and as many equal ones."""
  bank = np.full((900, 1), 5, np.float32)
  bank[300] = 0
  got = search(np.zeros((1, 1), np.float32), bank, 2)
  np.testing.assert_array_equal(got.row, [[300, 0]])


def test_equal_distances_are_ordered_by_row_however_they_were_nominated():
  bank = jnp.array([[1.0], [-1.0], [3.0]])
  candidates = jnp.array([[2, 1, 0]], jnp.int32)
  got = neighbors.sort_candidates(jnp.zeros((1, 1)), bank, candidates, 3)
  np.testing.assert_array_equal(got.row, [[0, 1, 2]])


def test_the_last_row_is_found_once():
  """900 rows are no whole number of chunks."""
  bank = normal(900, 5)
  got = search(bank[[899]], bank, 2)
  np.testing.assert_array_equal(got.row, slow_nearest(bank[[899]], bank, 2)[1])


@pytest.mark.parametrize('budget', [1, 21, 2**22])
def test_every_row_is_found_once(budget):
  got = search(normal(3, 4), normal(50, 4, 1), 50, max_elements=budget)
  np.testing.assert_array_equal(np.sort(got.row, axis=1), np.tile(np.arange(50), (3, 1)))


def test_fewer_rows_than_neighbors_give_fewer_columns():
  queries, bank = normal(3, 4), normal(2, 4, 1)
  got = search(queries, bank, 9)
  assert got.row.shape == got.distance.shape == (3, 2)
  np.testing.assert_array_equal(got.row, slow_nearest(queries, bank, 9)[1])


def test_a_query_that_is_no_number_has_no_distance():
  got = search(np.full((1, 4), np.nan, np.float32), normal(300, 4))
  assert np.isnan(got.distance[0, 0])


@pytest.mark.parametrize('offset', [0.0, 500.0])
def test_the_export_variant_finds_an_equally_near_row(offset):
  """Also where many rows are equal; and by what only a few operations are needed for."""
  queries, bank = normal(40, 6, 1, offset), normal(300, 6, 2, offset)
  bank[100:200] = bank[:100]
  queries[:20] = bank[:20]
  index = neighbors.build_index(jnp.asarray(bank))
  got = jax.jit(neighbors.nearest_for_export)(queries, index)
  assert got.row.shape == (40, 1)
  np.testing.assert_array_equal(got.distance[:20], 0)
  np.testing.assert_allclose(got.distance, slow_nearest(queries, bank, 1)[0], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(got.distance, true_distances(queries, bank, got.row), rtol=2e-6)
  used = primitives(jax.make_jaxpr(neighbors.nearest_for_export)(queries, index).jaxpr)
  assert not {'sort', 'top_k', 'while', 'scan'} & set(used)


@pytest.mark.parametrize('offset', [0.0, 3.0, 100.0, 1e4])
def test_centering_is_exact_and_removes_the_offset(offset):
  bank = normal(500, 7, offset=offset)
  bank[:, 3] = offset  # A dimension in which nothing happens.
  index = neighbors.build_index(jnp.asarray(bank))
  center = np.asarray(index.center, np.float64)
  np.testing.assert_array_equal(np.asarray(index.rows, np.float64) + center, bank)
  assert np.abs(index.rows).max() < 20


def test_far_clusters_keep_exact_distances():
  """Distances that the product cannot tell apart are off by its rounding alone; see `nearest`."""
  random = np.random.default_rng(0)
  centers = random.normal(size=(10, 64)) * 1e3 / 8  # Norms about 1e3.
  bank = (centers[np.arange(600) % 10] + 0.1 * random.normal(size=(600, 64))).astype(np.float32)
  queries = (centers + 0.1 * random.normal(size=(10, 64))).astype(np.float32)
  got = search(queries, bank)
  true = true_distances(queries, bank, np.asarray(got.row))
  np.testing.assert_allclose(got.distance, true, rtol=2e-6)
  best, _ = slow_nearest(queries, bank, 1)
  norms = np.linalg.norm(queries, axis=1, keepdims=True) ** 2
  assert (true**2 <= best**2 + 1e-6 * norms).all()


@pytest.mark.accelerator
def test_rows_misordered_by_the_matrix_product_are_reordered():
  """Rows that differ by a hundredth of their norms: the product alone errs in some 4 % of them."""
  random = np.random.default_rng(0)
  centers = random.normal(size=(10, 384)) * 1e3 / np.sqrt(384)
  spread = 10 / np.sqrt(2 * 384)
  queries, bank = (
    (np.resize(centers, (x, 384)) + spread * random.normal(size=(x, 384))).astype(np.float32)
    for x in (100, 1000)
  )
  np.testing.assert_array_equal(search(queries, bank).row, slow_nearest(queries, bank, 1)[1])


def jaxprs(jaxpr):
  """This one and all within."""
  yield jaxpr
  for equation in jaxpr.eqns:
    for inner in extend.core.jaxprs_in_params(equation.params):
      yield from jaxprs(inner)


def trace(q, n, **options):
  prepared = neighbors.build_index(jnp.asarray(normal(n, 2)))
  return jax.make_jaxpr(functools.partial(neighbors.nearest, **options))(
    jnp.asarray(normal(q, 2)), prepared
  ).jaxpr


def largest(jaxpr):
  return max(v.aval.size for j in jaxprs(jaxpr) for e in j.eqns for v in e.outvars)


def primitives(jaxpr):
  return {e.primitive.name for j in jaxprs(jaxpr) for e in j.eqns}


@pytest.mark.parametrize(('q', 'n', 'budget'), [(64, 3000, 9000), (3000, 700, 7000)])
def test_no_array_exceeds_the_limit(q, n, budget):
  assert largest(trace(q, n)) >= q * n  # So the measure sees the table.
  assert largest(trace(q, n, max_elements=budget)) <= budget


def test_a_table_that_fits_is_not_looped_over():
  assert not {'while', 'scan'} & primitives(trace(64, 3000, k=3))
  assert {'while', 'scan'} & primitives(trace(64, 3000, k=3, max_elements=64 * 3000 - 1))


def test_any_number_of_queries_can_be_exported():
  queries = jnp.asarray(normal(6, 3))
  bank = neighbors.build_index(jnp.asarray(normal(400, 3, 1)))
  (q,) = export.symbolic_shape('q')
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), bank)
  exported = export.export(jax.jit(neighbors.nearest))(
    jax.ShapeDtypeStruct((q, 3), np.float32), shapes
  )
  got = exported.call(queries, bank)
  np.testing.assert_array_equal(got[1], jax.jit(neighbors.nearest)(queries, bank).row)


@pytest.mark.accelerator
def test_the_approximate_search_misses_few_rows_and_on_a_cpu_none(record_property):
  prepared = neighbors.build_index(jnp.asarray(normal(700, 5)))
  recall = neighbors.measure_recall(jnp.asarray(normal(20, 5, 1)), prepared, 3)
  record_property('recall of the approximate search', recall)
  assert recall >= (1.0 if jax.default_backend() == 'cpu' else 0.9)


@pytest.mark.parametrize('budget', [3000, 2**22])
def test_the_approximate_search_is_the_exact_one_on_a_cpu(budget):
  queries, bank = normal(20, 5), normal(700, 5, 1)
  got = search(queries, bank, 3, approx=True, max_elements=budget)
  np.testing.assert_array_equal(got.row, slow_nearest(queries, bank, 3)[1])


def test_share_found_counts_neighbors_in_any_order():
  exact, approximate = jnp.array([[1, 2], [3, 4]]), jnp.array([[2, 9], [4, 3]])
  assert neighbors._recall(exact, approximate) == 0.75


def test_impossible_arguments_are_named():
  prepared = neighbors.build_index(jnp.asarray(normal(5, 3)))
  for options, message in (({'k': 0}, 'k = 0'), ({'max_elements': 0}, 'max_elements = 0')):
    with pytest.raises(ValueError, match=message):
      neighbors.nearest(jnp.asarray(normal(2, 3)), prepared, **options)


def test_an_empty_bank_is_named():
  empty = neighbors.Index(jnp.zeros((0, 3)), jnp.zeros(3), jnp.zeros(0))
  with pytest.raises(ValueError, match='0 rows'):
    neighbors.nearest(jnp.zeros((2, 3)), empty)
