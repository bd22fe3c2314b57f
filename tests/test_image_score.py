from jax import numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from uadjax import config as configs
from uadjax.detectors import image_score, settings_types
from uadjax.errors import ConfigError


def anomaly_maps(height=37, width=52):
  return np.random.default_rng(0).gamma(2, size=(3, height, width)).astype(np.float32)


def constant_maps():
  """Maps of one value, as a camera without an image has, and as a floor leaves."""
  return np.full((3, 37, 52), np.float32(1.7)) * np.arange(3, dtype=np.float32)[:, None, None]


def nearly_constant_maps():
  maps = np.zeros((3, 37, 52), np.float32)
  maps[:, 4, 6] = 5
  return maps


@pytest.mark.accelerator
@pytest.mark.parametrize('make', [anomaly_maps, constant_maps, nearly_constant_maps])
@pytest.mark.parametrize(('share', 'num_pixels'), [(0.003, 1), (0.01, 5), (0.25, 124), (1, 494)])
def test_the_score_is_the_mean_of_the_largest_share_of_every_fourth_pixel(share, num_pixels, make):
  maps = make()
  scores = image_score.from_map(jnp.asarray(maps), f'top:{share}')
  largest = np.sort(maps[:, ::2, ::2].reshape(3, -1).astype(np.float64))[:, -num_pixels:]
  mean, width = largest.mean(axis=1), np.ptp(maps, axis=(1, 2)) / 2**16
  assert (scores.image >= mean * (1 - 1e-6)).all()
  assert (scores.image <= (mean + width) * (1 + 1e-6)).all()
  np.testing.assert_array_equal(scores.map, maps)


def test_the_score_of_a_smooth_map_is_exact():
  maps = ndimage.gaussian_filter(anomaly_maps(256, 256), (0, 4, 4))
  scores = image_score.from_map(jnp.asarray(maps), 'top:0.003')
  largest = np.sort(maps[:, ::2, ::2].reshape(3, -1).astype(np.float64))[:, -49:]
  assert scores.image == pytest.approx(largest.mean(axis=1), rel=1e-6)


def test_max_is_the_largest_of_all_pixels():
  maps = anomaly_maps()
  scores = image_score.from_map(jnp.asarray(maps), 'max')
  np.testing.assert_array_equal(scores.image, maps.max(axis=(1, 2)))


@pytest.mark.parametrize('rule', ['max', 'top:0.003', 'top:0.2'])
def test_an_error_of_the_map_is_no_larger_in_the_score(rule):
  """So that runtimes that agree on the map agree on the score."""
  maps = anomaly_maps(64, 64)
  noise = np.random.default_rng(1).uniform(-1e-3, 1e-3, maps.shape).astype(np.float32)
  exact, noisy = (image_score.from_map(jnp.asarray(x), rule).image for x in (maps, maps + noise))
  assert np.abs(exact - noisy).max() < 1.01e-3


@pytest.mark.parametrize('size', [(1, 1), (1, 7), (2, 2)])
def test_maps_of_few_pixels_have_a_score(size):
  maps = anomaly_maps(*size)
  scores = image_score.from_map(jnp.asarray(maps), 'top:0.003')
  assert scores.image == pytest.approx(maps[:, ::2, ::2].max(axis=(1, 2)))


@pytest.mark.parametrize(
  'rule', ['', 'min', 'max:1', 'max:0.1', 'top', 'top:', 'top:0', 'top:1.1', 'top:-1', 'top:x',
           'top:nan', 'top:inf', 'Max', 'mean:0.1'],
)  # fmt: skip
@pytest.mark.parametrize('name', sorted(settings_types()))
def test_other_rules_are_refused(name, rule):
  with pytest.raises(ConfigError, match=r'choose max, or top:S .* such as top:0\.01'):
    configs.replace(settings_types()[name](), {'image_score': rule})
