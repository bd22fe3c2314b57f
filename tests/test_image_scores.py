"""Scores and thresholds of experiments/image_scores.py are those that it says they are."""

from pathlib import Path

import distance_runs
import image_scores
from jax import numpy as jnp
import numpy as np
import pytest

from uadjax.data.records import Record
from uadjax.numerics import resampling


@pytest.fixture
def distances():
  return np.random.default_rng(0).gamma(2.0, size=(23, 8, 10)).astype(np.float32)


def test_every_image_is_split_off_once_with_its_near_duplicates():
  records = [Record(Path(f'{i}.png')) for i in range(13)]
  records[7] = records[7]._replace(duplicate_of=records[2].path)
  unseen_paths = []
  for seed in range(4):
    fit, unseen = distance_runs.split_off(records, seed, 4)
    assert not {r.duplicate_of or r.path for r in fit} & {r.path for r in unseen}
    unseen_paths += [r.path for r in unseen]
  assert sorted(unseen_paths) == sorted(r.path for r in records if not r.duplicate_of)
  assert distance_runs.split_off(records, 3, 0) == (tuple(records), [])


@pytest.mark.parametrize('sigma', [2.0, 4.0])
def test_maps_are_upsampled_as_detectors_do(distances, sigma):
  expected = resampling.upsample(jnp.asarray(distances), 32, 40, sigma)
  maps = image_scores.upsample(distances, (32, 40), sigma)
  np.testing.assert_allclose(maps, expected, rtol=1e-4)


@pytest.mark.parametrize('name', image_scores._STATISTICS)
def test_an_image_does_not_change_its_own_scale(distances, name):
  statistic = image_scores._STATISTICS[name]
  held_out, test = distances[:18], distances[18:]
  normalized = image_scores.normalize(held_out, test, statistic)
  for i in (0, 7, 20):
    larger = distances.copy()
    larger[i] *= 3
    changed = image_scores.normalize(larger[:18], larger[18:], statistic)
    np.testing.assert_allclose(changed[i], 3 * normalized[i], rtol=1e-5)


def test_means_of_larger_shares_are_lower(distances):
  maps = image_scores.upsample(distances, (64, 80), 4.0)
  means = np.stack([maps.max(axis=(1, 2)), *image_scores.top_means(maps).values()])
  assert (np.diff(means, axis=0) <= 1e-6).all()
  for values in image_scores.top_means(np.full_like(maps, 2.5)).values():
    np.testing.assert_allclose(values, 2.5)


@pytest.mark.parametrize('kind', image_scores._THRESHOLDS)
def test_thresholds_keep_their_budgets(kind):
  scores = np.random.default_rng(0).exponential(size=4000)
  thresholds = image_scores._THRESHOLDS[kind](scores)
  assert np.exp(-thresholds.image_threshold) == pytest.approx(0.01, rel=0.4)
  assert np.exp(-thresholds.review_threshold) == pytest.approx(0.05, rel=0.2)


def test_alarms_count_each_good_image_once():
  outcome = image_scores.Outcome(*[0.0] * 7, alarms={'a': True, 'b': False})
  other = outcome._replace(alarms={'a': False, 'c': True})
  assert image_scores.count_alarms({'seed_3': outcome, 'seed_4': other}) == (1.5, 3)
