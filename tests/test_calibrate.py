from hypothesis import given, strategies as st
import numpy as np
import pytest

from uadjax import calibrate
from uadjax.types import ConfigError, DataError


@given(st.integers(1, 400), st.floats(0.001, 0.999))
def test_expected_false_alarms_keep_the_budget_where_normals_suffice(n, budget):
  scores = np.random.default_rng(n).permutation(n).astype(float)
  limits = calibrate.from_normals(scores, scores, budget)
  assert limits.normals == n
  # The definition: n + 1 places are equally likely for an unseen score among the n known ones.
  above = sum(place > limits.image for place in np.arange(n + 1) - 0.5)
  assert limits.expected == pytest.approx(above / (n + 1))
  if n >= 1 / budget - 1 + 1e-9:
    assert limits.expected <= budget + 1e-9
  else:
    assert scores.max() <= limits.image <= scores.max() * (1 + 2e-6)


def test_false_alarms_on_unseen_good_images_keep_the_budget():
  rng = np.random.default_rng(0)
  rates = []
  for _ in range(400):
    limits = calibrate.from_normals(rng.normal(size=99), rng.normal(size=99), 0.05)
    rates.append((rng.normal(size=200) > limits.image).mean())
  assert np.mean(rates) == pytest.approx(0.05, abs=0.005)


def test_42_normals_cannot_promise_one_percent():
  scores = np.arange(42.0)
  assert calibrate.from_normals(scores, scores, 0.01).expected == pytest.approx(1 / 43)


def test_nothing_to_calibrate_on_is_refused():
  with pytest.raises(DataError, match='at least one'):
    calibrate.from_normals(np.array([]), np.array([]), 0.01)
  with pytest.raises(ConfigError, match=r'got 1\.5'):
    calibrate.from_normals(np.ones(3), np.ones(3), 1.5)
