import itertools

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from uadjax.numerics import projections, resampling

CHANNELS = (5, 9, 14)
KEY = jax.random.key(3)

project = jax.jit(projections.project, static_argnums=(2, 3, 4))


def counts(p, channels):
  """How many columns of a one-hot matrix choose a channel of each stage."""
  return [int(rows.sum()) for rows in np.split(np.asarray(p), np.cumsum(channels)[:-1])]


def stages(b=2):
  rng = np.random.default_rng(0)
  return [
    rng.standard_normal((b, s, s + 1, c)).astype(np.float32)
    for s, c in zip((12, 6, 4), CHANNELS, strict=True)
  ]


def slow_nearest(x, height, width):
  """Pixel by pixel: the one that the center falls in."""
  h, w = x.shape[1:3]
  out = np.zeros((len(x), height, width, x.shape[3]), np.float32)
  for i in range(height):
    for j in range(width):
      out[:, i, j] = x[:, int((i + 0.5) * h / height), int((j + 0.5) * w / width)]
  return out


def slow_bilinear(x, height, width):
  channels = [
    resampling.upsample(jnp.asarray(channel), height, width) for channel in np.moveaxis(x, 3, 0)
  ]
  return np.stack(channels, axis=-1)


def test_sampling_chooses_different_channels_in_order():
  for method, d in itertools.product(('sample', 'h_sample'), (1, 9, 28)):
    p, case = np.asarray(projections.draw(KEY, method, CHANNELS, d)), f'{method} {d}'
    assert p.shape == (28, d), case
    assert set(np.unique(p)) <= {0, 1}, case
    np.testing.assert_array_equal(p.sum(0), 1, case)
    assert (np.diff(p.argmax(0)) > 0).all(), case


def test_stages_share_equally_and_fill_up_for_each_other():
  for channels, d, want in (
    ((64, 128, 256), 99, [33, 33, 33]),
    ((64, 128, 256), 100, [33, 33, 34]),
    ((64, 128, 256), 300, [64, 118, 118]),
    ((256, 128, 64), 448, [256, 128, 64]),
    ((9, 2, 9), 12, [5, 2, 5]),
    ((4, 4), 1, [0, 1]),
    ((6,), 5, [5]),
  ):
    assert counts(projections.draw(KEY, 'h_sample', channels, d), channels) == want, (channels, d)


def test_sampling_is_even():
  """Each of 6 channels is among 2 in a third of 600 draws: 200, give or take six deviations."""
  drawn = jax.vmap(lambda k: projections.draw(k, 'sample', (2, 4), 2))(jax.random.split(KEY, 600))
  np.testing.assert_allclose(drawn.sum((0, 2)), 200, atol=70)


def test_columns_are_orthonormal():
  for method in ('sample', 'h_sample', 'ortho', 'svd_ortho'):
    for d in (1, 9, 28):
      p = np.asarray(projections.draw(KEY, method, CHANNELS, d), np.float64)
      np.testing.assert_allclose(p.T @ p, np.eye(d), atol=1e-5, err_msg=f'{method} {d}')


def test_orthogonal_matrices_have_no_preferred_sign():
  """Of a QR as it comes the diagonal is negative: signs must not lean either way."""
  drawn = jax.vmap(lambda k: projections.draw(k, 'ortho', (8,), 4))(jax.random.split(KEY, 200))
  positive = (np.asarray(drawn)[:, range(4), range(4)] > 0).mean(0)
  np.testing.assert_allclose(positive, 0.5, atol=0.2)


def test_gaussian_projections_keep_squared_lengths_in_the_mean():
  p = projections.draw(KEY, 'gaussian', (64, 128, 256), 400)
  lengths = np.linalg.norm(p, axis=1) ** 2
  np.testing.assert_allclose(lengths.mean(), 1, atol=0.02)
  np.testing.assert_allclose(lengths, 1, atol=0.5)


def test_a_key_determines_the_projection():
  for method in projections.METHODS:
    draw = [projections.draw(jax.random.key(k), method, CHANNELS, 9) for k in (1, 1, 2)]
    np.testing.assert_array_equal(draw[0], draw[1], method)
    assert (np.asarray(draw[0]) != np.asarray(draw[2])).any(), method


@pytest.mark.parametrize('enlarge', ['bilinear', 'nearest'])
@pytest.mark.parametrize(('height', 'width'), [(12, 13), (15, 14)])
def test_projecting_before_enlarging_is_projecting_after(enlarge, height, width):
  slow = {'bilinear': slow_bilinear, 'nearest': slow_nearest}[enlarge]
  whole = np.concatenate([slow(x, height, width) for x in stages()], axis=-1)
  for method in projections.METHODS:
    p = projections.draw(KEY, method, CHANNELS, 9)
    got = project(p, [jnp.asarray(x) for x in stages()], height, width, enlarge)
    np.testing.assert_allclose(got, whole @ np.asarray(p), rtol=1e-4, atol=1e-5, err_msg=method)


def test_sampling_without_enlarging_is_exact():
  x = stages()[0]
  p = projections.draw(KEY, 'sample', CHANNELS[:1], 3)
  got = projections.project(p, [jnp.asarray(x)], 12, 13)
  np.testing.assert_array_equal(got, x[..., np.asarray(p).argmax(0)])


def test_nearest_by_a_whole_factor_repeats_pixels():
  x = stages()[1]
  p = jnp.eye(CHANNELS[1])
  got = projections.project(p, [jnp.asarray(x)], 12, 14, 'nearest')
  np.testing.assert_array_equal(got, x.repeat(2, axis=1).repeat(2, axis=2))


def test_unknown_names_list_the_choices():
  with pytest.raises(ValueError, match=r"'coreset'; choose from .*'sample', 'h_sample', 'ortho'"):
    projections.draw(KEY, 'coreset', CHANNELS, 3)
  with pytest.raises(ValueError, match=r"'cubic'; choose from .*'bilinear', 'nearest'"):
    projections.project(jnp.eye(5), [jnp.asarray(stages()[0])], 12, 13, 'cubic')


def test_as_many_channels_as_there_are():
  for d in (-1, 0, 29):
    with pytest.raises(ValueError, match=rf'keep {d} channels of 28'):
      projections.draw(KEY, 'sample', CHANNELS, d)
