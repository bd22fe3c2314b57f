import functools
import re

import hypothesis
from hypothesis import strategies as st
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from uadjax.detectors import padim
from uadjax.distributed import mesh as meshes
from uadjax.errors import ConfigError
from uadjax.numerics import gaussian

H, W, D = 2, 3, 4

add = jax.jit(gaussian.add_batch)
merge = jax.jit(gaussian.merge)
of_batch = jax.jit(lambda x, valid: gaussian.add_batch(gaussian.empty(*x.shape[1:]), x, valid))
whiten = jax.jit(gaussian.whitening_matrices, static_argnums=(1, 2))
mahalanobis = jax.jit(gaussian.mahalanobis)
left_out_distance = jax.jit(gaussian.leave_one_out_distance)
ROWS = 64  # Vectors are filled up to so many, so that one compilation does for any number of them.


def vectors(n, seed=0, h=H, w=W, d=D, mean=0.0):
  """Correlated, and with another mean at each position."""
  rng = np.random.default_rng(seed)
  mix = rng.standard_normal((h, w, d, d)) + np.eye(d)
  x = np.einsum('hwij,nhwj->nhwi', mix, rng.standard_normal((n, h, w, d)))
  return (x + rng.standard_normal((h, w, d)) + mean).astype(np.float32)


def every(x):
  return jnp.ones(len(x), bool)


def filled(x):
  return jnp.asarray(np.pad(x, [(0, ROWS - len(x)), (0, 0), (0, 0), (0, 0)]))


def fit(x):
  return of_batch(filled(x), jnp.arange(ROWS) < len(x))


def slow_covariance(x, at):
  """In float64, at one position."""
  return np.cov(x[:, *at].astype(np.float64), rowvar=False)


def slow_distance(x, mean, covariance):
  """In float64, of one vector to one Gaussian."""
  delta = x.astype(np.float64) - mean
  return np.sqrt(delta @ np.linalg.inv(covariance) @ delta)


def assert_close(a, b, rtol=1e-4):
  """Equal to rounding, which is relative to an array's largest value."""
  for x, y in zip(a, b, strict=True):
    np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * (1e-6 + float(np.abs(y).max())))


@pytest.mark.accelerator
def test_moments_are_numpys():
  x = vectors(9)
  moments = fit(x)
  assert moments.n == 9
  np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-5, atol=1e-6)
  for at in np.ndindex(H, W):
    np.testing.assert_allclose(moments.m2[at] / 8, slow_covariance(x, at), rtol=1e-4, atol=1e-5)


@hypothesis.given(
  sizes=st.lists(st.integers(0, 5), min_size=1, max_size=5),
  filling=st.sampled_from([0.0, 7.0, np.nan]),  # What fills a batch up may be anything.
  mean=st.sampled_from([0.0, 30.0]),
  seed=st.integers(0, 2**16),
)
@hypothesis.settings(max_examples=25)
def test_any_splitting_order_and_padding_give_the_same_moments(sizes, filling, mean, seed):
  rng = np.random.default_rng(seed)
  x = vectors(sum(sizes), seed, mean=mean)
  moments = gaussian.empty(H, W, D)
  for part in np.split(rng.permutation(x), np.cumsum(sizes)[:-1]):
    rows = np.full((8, H, W, D), filling, np.float32)
    place = rng.permutation(8)[: len(part)]
    rows[place] = part
    moments = add(moments, jnp.asarray(rows), jnp.asarray(np.isin(np.arange(8), place)))
  assert moments.n == len(x)
  if len(x):
    delta = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    m2 = np.einsum('nhwi,nhwj->hwij', delta, delta)
    np.testing.assert_allclose(moments.mean, x.mean(0, dtype=np.float64), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(moments.m2, m2, atol=1e-4 * (1 + m2.max()))
  else:
    assert_close(moments, gaussian.empty(H, W, D))


@hypothesis.given(sizes=st.tuples(*[st.integers(0, 3)] * 3), seed=st.integers(0, 2**16))
@hypothesis.settings(max_examples=20)
def test_merge_is_associative_and_empty_is_neutral(sizes, seed):
  a, b, c = (
    of_batch(jnp.asarray(vectors(3, seed + k)), jnp.arange(3) < n) for k, n in enumerate(sizes)
  )
  assert_close(merge(merge(a, b), c), merge(a, merge(b, c)))
  nothing = gaussian.empty(H, W, D)
  for pair in ((a, nothing), (nothing, a)):
    assert_close(merge(*pair), a, rtol=1e-7)


@hypothesis.given(removed=st.integers(0, 6), seed=st.integers(0, 2**16))
@hypothesis.settings(max_examples=20)
def test_removing_vectors_equals_never_adding_them(removed, seed):
  x = vectors(10, seed, mean=5.0)
  batches = [x[:removed][i : i + 4] for i in range(0, removed, 4)]
  got, want = gaussian.remove_batches(fit(x), batches), fit(x[removed:])
  assert got.n == want.n
  np.testing.assert_allclose(got.mean, want.mean, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(got.m2, want.m2, rtol=1e-3, atol=1e-3 * float(want.m2.max()))


def test_add_is_merging_the_batch():
  x = jnp.asarray(vectors(4, seed=1, mean=5.0))
  for before in (0, 1, 5):
    moments = fit(vectors(before)) if before else gaussian.empty(H, W, D)
    for valid in ([1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]):
      which = jnp.asarray(valid, bool)
      assert_close(add(moments, x, which), merge(moments, of_batch(x, which)))


def test_covariances_far_from_the_origin_keep_three_digits():
  x = np.random.default_rng(0).normal(1000, 1, (192, H, W, D)).astype(np.float32)
  for size in (1, 8, 64):
    moments = gaussian.empty(H, W, D)
    for part in np.split(x, len(x) // size):
      moments = add(moments, jnp.asarray(part), every(part))
    for at in np.ndindex(H, W):
      want = slow_covariance(x, at)
      scale = np.sqrt(np.outer(np.diag(want), np.diag(want)))
      off = np.abs(np.asarray(moments.m2)[at] / (len(x) - 1) - want)
      assert (off <= 1e-3 * scale).all(), (size, at)


@pytest.mark.accelerator
def test_whiten_is_a_triangular_root_of_the_inverse():
  """Also of more than one block of LAPACK's, cut where halves are not equal."""
  for n, d, ridge, left_out in (
    (12, 4, 0.0, 0), (12, 4, 0.01, 0), (12, 4, 0.0, 1), (3, 4, 0.01, 1), (60, 33, 0.01, 1),
    (30, 33, 1.0, 0),
  ):  # fmt: skip
    x = vectors(n, d=d)
    root = np.asarray(whiten(fit(x), ridge, left_out), np.float64)
    np.testing.assert_array_equal(root, np.tril(root))
    for at in np.ndindex(H, W):
      covariance = slow_covariance(x, at) * (n - 1) / (n - 1 - left_out) + ridge * np.eye(d)
      want = np.linalg.inv(covariance)
      got, atol = root[at].T @ root[at], 2e-4 * np.abs(want).max()
      np.testing.assert_allclose(got, want, rtol=2e-3, atol=atol, err_msg=f'{n=} {d=} {ridge=}')


@pytest.mark.accelerator
def test_mahalanobis_is_the_definition():
  x, new = vectors(12), vectors(5, seed=1)
  moments = fit(x)
  got = mahalanobis(jnp.asarray(new), moments.mean, whiten(moments, 0.01))
  for k, i, j in np.ndindex(5, H, W):
    covariance = slow_covariance(x, (i, j)) + 0.01 * np.eye(D)
    want = slow_distance(new[k, i, j], x[:, i, j].astype(np.float64).mean(0), covariance)
    np.testing.assert_allclose(got[k, i, j], want, rtol=1e-3)


def test_distances_from_bands_equal_those_from_full_matrices():
  for d in (1, 3, 4, 9):
    random = np.random.default_rng(d)
    x, mean = (random.normal(size=(*n, 3, 2, d)).astype(np.float32) for n in ((5,), ()))
    whiten = np.tril(random.normal(size=(3, 2, d, d))).astype(np.float32)
    bands = gaussian.cut_into_bands(jnp.asarray(whiten))
    assert sum(band.size for band in bands) <= whiten.size, d
    got = jax.jit(functools.partial(gaussian.mahalanobis_from_bands, bands=bands))(x, mean)
    np.testing.assert_allclose(got, mahalanobis(x, mean, whiten), rtol=1e-5, err_msg=f'{d}')


@pytest.mark.accelerator
def test_left_out_distance_is_that_of_refitting():
  for n, d, ridge in ((3, 4, 0.01), (12, 4, 0.0), (12, 4, 0.01), (12, 20, 0.01), (40, 20, 0.01)):
    x = vectors(n, d=d)
    moments = fit(x)
    root = whiten(moments, ridge, 1)
    got = np.asarray(left_out_distance(filled(x), moments.n, moments.mean, root))
    for k, i, j in np.ndindex(n, H, W):
      rest = np.delete(x, k, axis=0)
      covariance = slow_covariance(rest, (i, j)) + ridge * np.eye(d)
      want = slow_distance(x[k, i, j], rest[:, i, j].astype(np.float64).mean(0), covariance)
      assert got[k, i, j] == pytest.approx(want, rel=1e-2), (n, d, ridge)


def test_left_out_distance_stays_finite_where_nothing_else_spans_the_vector():
  x = vectors(5)  # Without one of them four deviations of rank three are left, in four dimensions.
  moments = fit(x)
  got = left_out_distance(filled(x), moments.n, moments.mean, whiten(moments, 0.0, 1))
  assert np.isfinite(got[:5]).all()


def root(m2, n):
  return gaussian.whitening_matrices(gaussian.Moments(n, m2[..., 0], m2), 0.01)


def test_no_second_array_of_covariances_is_made():
  moments = gaussian.empty(8, 32, 32)
  for function, arguments in (
    (gaussian.add_batch, (moments, jnp.zeros((4, 8, 32, 32)), jnp.ones(4, bool))),
    (gaussian.merge, (moments, moments)),
    (root, (moments.m2, moments.n)),
  ):
    program = jax.jit(function, donate_argnums=0).lower(*arguments).compile()
    memory = program.memory_analysis()
    assert memory.temp_size_in_bytes < moments.m2.nbytes / 4
    assert memory.alias_size_in_bytes >= moments.m2.nbytes


def test_rows_of_the_map_split_over_devices_without_exchange():
  x = vectors(6, h=8)
  whole = fit(x)
  mesh = meshes.make_mesh('cpu', 8, 8)
  assert mesh.size == 8
  n, mean, m2 = gaussian.empty(8, W, D)
  split = gaussian.Moments(n, *meshes.shard_batch(mesh, (mean, m2)))
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, 'data'))
  arguments = split, jax.device_put(x, rows), every(x)
  adding = add.lower(*arguments).compile()
  folded = adding(*arguments)
  assert_close(folded, whole)
  whitening = whiten.lower(folded, 0.01).compile()
  assert_close([whitening(folded)], [whiten(whole, 0.01)])
  for program in (adding.as_text() or '', whitening.as_text() or ''):
    assert 'fusion' in program
    assert not re.search('all-gather|all-reduce|all-to-all|collective', program)


def test_gaussians_that_cannot_be_fitted_are_refused_and_others_pass():
  wrong = {}
  for images, channels, ridge, expected in (
    (2, 10, 0.0, r'2 good images are too few .* at least 12 images, or detector.ridge=0.01\.'),
    (1, 10, 0.01, '^$'),
    (60, 100, 0.0, '60 good images .* 100 channels .* detector.channels=58 .* detector.ridge=0.01'),
    (101, 100, 0.0, 'at least 102 images'),
    (3, 100, 0.01, '^$'),
    (102, 100, 0.0, '^$'),
    (101, 100, 1.0, '^$'),
  ):
    message = ''
    try:
      padim.validate_settings(images, channels, ridge)
    except ConfigError as error:
      message = str(error)
    if not re.search(expected, message):
      wrong[images, channels, ridge] = message
  assert not wrong


def test_without_a_ridge_the_others_need_a_covariance_when_one_is_left_out():
  """2 more than there are dimensions; with a ridge, one vector is enough."""
  assert [gaussian.min_vectors(d, 0.01) for d in (1, 5)] == [1, 1]
  assert [gaussian.min_vectors(d, 0.0) for d in (1, 2, 5)] == [3, 4, 7]
  for ridge in (-0.1, float('nan')):
    with pytest.raises(ValueError, match='0 or more'):
      gaussian.min_vectors(5, ridge)
