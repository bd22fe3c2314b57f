"""Selection against plain greedy selection, with constants so small that every branch is taken."""

from collections.abc import Iterator
import contextlib
import functools
import itertools

import hypothesis
from hypothesis import strategies as st
import jax
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from uadjax.distributed import mesh
from uadjax.numerics import coreset

SMALL = {
  '_CANDIDATES': 32,
  '_MAX_PLAIN': 12,
  '_GROUP': 4,
  '_MAX_NEW_CENTERS': 8,
  '_CHUNK': 3,
  '_BLOCK': 64,
  '_SUBSET_SHARES': (8, 2),
  '_SKETCH': 8,
  '_SAMPLE': 80,
}


@contextlib.contextmanager
def constants(values) -> Iterator[None]:
  """With other constants, and nothing that was compiled with the former."""
  with pytest.MonkeyPatch.context() as patch:
    for name, value in values.items():
      patch.setattr(coreset, name, value)
    jax.clear_caches()
    yield
  jax.clear_caches()


AS_THEY_ARE = {name: getattr(coreset, name) for name in SMALL}


@pytest.fixture(scope='module', autouse=True)
def small():
  with constants(SMALL):
    yield


def every(points):
  return np.ones(len(points), bool)


def cloud(points, valid=None):
  valid = jnp.asarray(every(points) if valid is None else valid)
  points, number = jnp.asarray(points), jnp.arange(len(points))
  return coreset.PointSet(points, number, *coreset.center_and_sketch(points, valid, number))


def select(points, count, valid=None, key=0, steps=None, room=120):
  valid = jnp.asarray(every(points) if valid is None else valid)
  of = cloud(points, valid)
  selection = coreset.init(jax.random.key(key), valid, of.point_id, room)
  for target in steps or [count]:
    selection = coreset.select_until(of, selection, jnp.int32(target))
  return selection


def slow_select(points, first, count, valid=None):
  """Gonzalez in float64: the farthest point, of equals the first, until none is left."""
  points = points.astype(np.float64)
  valid = every(points) if valid is None else valid
  distance = np.where(valid, np.inf, -np.inf)
  picks, pick = [], int(first)
  while len(picks) < count and distance[pick] >= 0:
    picks.append(pick)
    distance = np.minimum(distance, np.sum((points - points[pick]) ** 2, axis=1))
    distance[picks] = -1
    pick = int(np.argmax(distance))
  return picks, distance


def check(points, count, valid=None, **options):
  """Compare with plain selection, all there is to compare."""
  got = select(points, count, valid, **options)
  picks, distance = slow_select(points, got.centers[0], count, valid)
  np.testing.assert_array_equal(got.centers[: len(picks)], picks)
  np.testing.assert_array_equal(got.centers[len(picks) :], -1)
  assert got.num_centers == len(picks)
  spread = np.var(points.astype(np.float64), axis=0).sum()
  np.testing.assert_allclose(got.squared_distance, distance, rtol=1e-4, atol=1e-5 * spread)
  return got


def normal(n, d, seed=0):
  return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def clusters(n, d, seed=0):
  """Tight and far apart, in no order: of most points, few centers are near."""
  random = np.random.default_rng(seed)
  centers = 10 * random.normal(size=(12, d))
  return (centers[random.integers(0, 12, n)] + random.normal(size=(n, d))).astype(np.float32)


@pytest.mark.accelerator
# Each shape is compiled.
@pytest.mark.parametrize(
  ('n', 'd'),
  [
    (65, 3),
    (200, 20),
    *(pytest.param(n, d, marks=pytest.mark.slow) for n, d in ((1, 3), (63, 7), (64, 20))),
  ],
)
def test_picks_are_those_of_plain_selection(n, d):
  """Below, at and above a block; fewer dimensions than the sketch, as many, and more."""
  check(normal(n, d), min(n, 90))


def test_picks_of_clusters_are_those_of_plain_selection():
  for seed in range(3):
    check(clusters(200, 20, seed), 90)


@pytest.mark.parametrize('make', [normal, clusters])
def test_a_common_offset_changes_no_pick(make):
  check(make(200, 20) + np.float32(1000), 90)


@pytest.mark.accelerator
@hypothesis.settings(max_examples=10)
@hypothesis.given(st.sampled_from([3, 12]), st.integers(1, 3), st.integers(0, 2**32))
def test_whole_numbers_are_selected_without_error(d, largest, seed):
  """All of them, with ties throughout and points that coincide: of equals the first is taken.

  Points come with their opposites, so that the mean is 0 and nothing is rounded. Where they vary in
  three dimensions the others are zeros, so that nothing has to be compiled again.
  """
  random = np.random.default_rng(seed)
  half = random.integers(-largest, largest + 1, (60, d)).astype(np.float32)
  half = np.pad(half, ((0, 0), (0, 12 - d)))
  valid = random.random(60) < random.random()
  valid[0] = True
  order = random.permutation(120)
  points, valid = np.concatenate([half, -half])[order], np.concatenate([valid, valid])[order]
  got = check(points, 120, valid)
  _, kinds = np.unique(points[valid], axis=0, return_index=True)
  first = points[np.asarray(got.centers[: len(kinds)])]
  assert len(np.unique(first, axis=0)) == len(kinds)  # None came twice before all came once.


def test_picks_of_few_points_are_those_of_plain_selection():
  """With ties, points that coincide, and points that are not valid; they have no sketches."""
  for seed in range(20):
    random = np.random.default_rng(seed)
    half = random.integers(-1, 2, (SMALL['_MAX_PLAIN'] // 2, 3)).astype(np.float32)
    points, valid = np.concatenate([half, -half]), random.random(2 * len(half)) < 0.8
    got = check(points, 12, valid, key=seed, steps=[5, 5, 12], room=12)
    assert got.num_centers == valid.sum()
  assert cloud(normal(12, 3)).sketch.shape == (12, 0)
  assert cloud(normal(13, 3)).sketch.shape == (13, 4)


def test_distinct_points_come_before_duplicates():
  """Also far from the origin, and where distances are rounded."""
  points = np.repeat(normal(40, 20), 5, axis=0)[np.random.default_rng(0).permutation(200)]
  picks = np.asarray(select(points + np.float32(1000), 90).centers)
  assert len(np.unique(points[picks[:40]], axis=0)) == 40
  assert len(np.unique(picks[:90])) == 90


def test_points_that_are_not_valid_are_never_picked():
  """However far away they are; those that are valid are all picked, and then no more."""
  points, valid = normal(200, 20), np.random.default_rng(1).random(200) < 0.3
  points[~valid] *= 1e4
  got = check(points, 90, valid)
  assert got.num_centers == valid.sum() < 90
  np.testing.assert_array_equal(np.sort(got.centers[: got.num_centers]), np.flatnonzero(valid))


def test_where_no_point_is_valid_none_is_picked():
  got = select(normal(200, 20), 90, np.zeros(200, bool))
  assert got.num_centers == 0
  np.testing.assert_array_equal(got.centers, -1)


def test_picks_do_not_need_a_valid_sample():
  """Directions are found from every second point, of which here none is valid."""
  check(normal(200, 20), 90, np.arange(200) % 2 == 1)


def test_the_radius_is_how_far_the_farthest_point_is_from_the_centers():
  points, valid = clusters(200, 20), np.arange(200) % 3 > 0
  got = select(points, 30, valid)
  centers = points[np.asarray(got.centers[:30])].astype(np.float64)
  away = np.linalg.norm(points[valid].astype(np.float64)[:, None] - centers[None], axis=-1)
  # Squares in float32, and the tests compile without fused multiply-adds: a few units of rounding.
  assert coreset.covering_radius(got) == pytest.approx(away.min(axis=1).max(), rel=5e-5)


def test_the_radius_is_0_where_all_are_centers():
  for count in (64, 65):  # A whole block, and one that is padded.
    assert coreset.covering_radius(select(normal(count, 20), count)) == 0


def test_advancing_in_steps_is_advancing_at_once():
  points = clusters(200, 20)
  at_once, in_steps = select(points, 90), select(points, 90, steps=[1, 2, 19, 20, 20, 71, 90])
  np.testing.assert_array_equal(in_steps.centers, at_once.centers)
  assert in_steps.num_centers == 90
  np.testing.assert_allclose(
    in_steps.squared_distance, at_once.squared_distance, rtol=1e-4, atol=1e-4
  )


def test_a_step_selects_exactly_the_requested_number():
  got = select(normal(200, 20), 90, steps=[37])
  assert (
    got.num_centers
    == 37
    == (np.asarray(got.centers) >= 0).sum()
    == (got.squared_distance == -1).sum()
  )


def test_the_key_draws_the_first_center_from_all_that_are_valid():
  valid = np.arange(200) % 20 == 3
  again = [int(select(normal(200, 20), 1, valid, key).centers[0]) for key in [*range(80), 7]]
  assert again[7] == again[-1]
  assert set(again) == set(np.flatnonzero(valid).tolist())


def pairs(x):
  """Squared norms, and squared distances, of all pairs in float64."""
  x = np.asarray(x, np.float64)
  squares = np.sum(x**2, axis=1)
  return squares[:, None] + squares[None], np.sum((x[:, None] - x[None]) ** 2, axis=-1)


def lonely(n, d):
  """All but one vary in one dimension by no more than rounding keeps, beside the others."""
  x = normal(n, d)
  x[:, -1] *= 3e-4
  x[0, -1] = 2
  return x


@pytest.mark.parametrize(
  'points', [normal(200, 20), clusters(200, 20), 1e-3 * normal(200, 3), lonely(200, 8)]
)
def test_sketches_are_no_farther_apart_than_points(points):
  point_set = cloud(points)
  assert point_set.sketch.shape == (200, min(points.shape[1] + 1, SMALL['_SKETCH']))
  norms, true = pairs(
    np.asarray(point_set.points, np.float64) - np.asarray(point_set.center, np.float64)
  )
  _, bound = pairs(point_set.sketch)
  assert (bound <= true + coreset._ROUNDING_MARGIN * norms).all()


def test_sketches_lose_nothing_where_few_dimensions_hold_all_variance():
  """Whatever they are: the bound is as tight as it can be."""
  points = normal(200, 6) @ normal(6, 20, 1)
  point_set = cloud(points)
  np.testing.assert_allclose(pairs(point_set.sketch)[1], pairs(points)[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('d', [3, 20])
def test_bytes_per_point_equal_the_size_of_the_arrays(d):
  points = normal(200, d)
  point_set = cloud(points)
  held = (
    point_set.points.nbytes
    + point_set.point_id.nbytes
    + point_set.sketch.nbytes
    + select(points, 1).squared_distance.nbytes
  )
  assert held == 200 * coreset.bytes_per_point(d)


@pytest.mark.slow
def test_picks_are_those_of_plain_selection_with_the_constants_as_they_are():
  """More points than a block, more centers than a pass; whole numbers, so nothing is rounded."""
  random = np.random.default_rng(0)
  centers = random.integers(-30, 31, (12, 70))[random.integers(0, 12, 2250)]
  half = (centers + random.integers(-3, 4, (2250, 70))).astype(np.float32)
  with constants(AS_THEY_ARE):
    check(np.concatenate([half, -half]), 1320, room=1320)


@functools.partial(jax.jit, static_argnums=(3, 4))
def select_split(points, number, valid, count, devices):
  shards = mesh.shards(jax.sharding.Mesh(np.array(jax.devices()[:devices]), ('data',)))
  specs = coreset.CENTER_AND_SKETCH_SPECS
  center_and_sketch = shards.shard_map(coreset.center_and_sketch, (P('data'),) * 3, specs)
  point_set = coreset.PointSet(points, number, *center_and_sketch(points, valid, number))
  begin = functools.partial(coreset.init, jax.random.key(5), max_centers=count)
  begun = shards.shard_map(begin, (P('data'), P('data')), coreset.SELECTION_SPECS)(valid, number)
  advance = shards.shard_map(
    coreset.select_until,
    (coreset.POINT_SET_SPECS, coreset.SELECTION_SPECS, P()),
    coreset.SELECTION_SPECS,
  )
  return advance(point_set, begun, jnp.int32(count))


def sharded_select(points, number, valid, count, devices):
  """The numbers of what is picked where points are split, in the order of the picks."""
  selection = select_split(points, number, valid, count, devices)
  return (
    number[np.asarray(selection.centers)],
    int(selection.num_centers),
    float(coreset.covering_radius(selection)),
  )


@pytest.mark.parametrize('devices', [(2,), pytest.param((3, 4, 5, 8), marks=pytest.mark.slow)])
def test_picks_do_not_depend_on_how_points_are_split(devices):
  """Nor on their order: whole numbers, with ties throughout, and others; some take no part."""
  n, d, count = 480, 20, 90
  for seed, few, whole in itertools.product(range(2), (5, 20), (True, False)):
    random = np.random.default_rng(seed)
    points = random.integers(-3, 4, (n, d)).astype(np.float32) if whole else clusters(n, d, seed)
    points[:, few:] = 0
    number, valid = np.arange(n, dtype=np.int32), random.random(n) < 0.8
    want = sharded_select(points, number, valid, count, 1)
    assert want[1] == count
    for parts in devices:
      order, case = random.permutation(n), f'{seed=} {few=} {whole=} {parts=}'
      got = sharded_select(points[order], number[order], valid[order], count, parts)
      np.testing.assert_array_equal(got[0], want[0], case)
      assert got[1:] == (want[1], pytest.approx(want[2], rel=1e-5)), case
