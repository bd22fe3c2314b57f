import itertools
import json
import math

from hypothesis import given, strategies as st
import numpy as np
import pytest

from uadjax import config as configs
from uadjax.errors import ConfigError, DataError, UnknownName, UserError
from uadjax.model import calibration
from uadjax.model.settings import CalibrateSettings, CALIBRATION_METHODS
from uadjax.numerics import metrics
from uadjax.system import files

budgets = st.floats(0.001, 0.999)
# Few distinct values, so that ties are common; halves and negative ones, so that none is special.
values = st.integers(-3, 6).map(lambda i: i / 2)
score_arrays = st.lists(values, min_size=1, max_size=12).map(np.array)


def from_scores(scores, budget=0.01, **options):
  return calibration.from_normals(scores, scores, budget, max(budget, 0.05), **options)


def at_most(above, n, share):
  """Chance that at most `above` of n draws exceed what the share of all exceeds."""
  return sum(math.comb(n, i) * share**i * (1 - share) ** (n - i) for i in range(above + 1))


# What good images promise.


@given(st.integers(1, 400), budgets)
def test_on_average_the_budget_is_kept_where_good_images_suffice(n, budget):
  scores = np.random.default_rng(n).permutation(n) + 1.0
  limits = from_scores(scores, budget)
  assert limits.num_normals == n
  # The definition: n + 1 places are equally likely for an unseen score among the n known ones.
  above = sum(place > limits.image_threshold for place in np.arange(n + 1) + 0.5)
  assert limits.expected_false_alarm_rate == pytest.approx(above / (n + 1))
  assert limits.is_over_budget == (limits.expected_false_alarm_rate > budget + 1e-9)
  if n >= 1 / budget - 1 + 1e-9:
    assert not limits.is_over_budget
  else:
    assert scores.max() <= limits.image_threshold <= scores.max() * (1 + 2e-4)


@given(st.integers(1, 400), budgets, st.floats(-9e-5, 9e-5))
def test_labels_of_the_images_it_stands_on_survive_what_exports_may_differ_by(n, budget, change):
  scores = np.arange(1.0, n + 1)
  limits = from_scores(scores, budget)
  assert [calibration.label(s * (1 + change), limits) for s in scores] == [
    calibration.label(s, limits) for s in scores
  ]


@given(st.integers(1, 400), budgets)
def test_no_lower_score_keeps_the_budget_with_confidence(n, budget):
  limits = from_scores(np.arange(1.0, n + 1), budget, confident=True)
  above = n - int(limits.image_threshold)
  # A share larger than the bound leaves so few above in less than one of twenty draws.
  assert at_most(above, n, limits.false_alarm_rate_bound) == pytest.approx(0.05, rel=1e-6)
  assert above == 0 or at_most(above, n, budget) <= 0.05 + 1e-9
  assert above == n - 1 or at_most(above + 1, n, budget) > 0.05 - 1e-9
  assert limits.is_over_budget == (n < limits.num_normals_required)


def test_needed_is_the_smallest_number_whose_maximum_keeps_the_budget():
  for budget in (0.001, 0.01, 0.05, 0.3, 0.95, 0.99):
    needed = from_scores(np.ones(1), budget).num_normals_required
    first = next(n for n in itertools.count(1) if (1 - budget) ** n <= 0.05 + 1e-12)
    assert needed == first, budget


def test_42_good_images_cannot_promise_one_percent():
  limits = from_scores(np.arange(42.0))
  assert limits.expected_false_alarm_rate == pytest.approx(1 / 43)
  assert limits.is_over_budget
  assert 'Expect about 2.3 % false alarms (95 % sure: below 6.9 %)' in str(limits)
  assert 'from 42 independent good images' in str(limits)
  assert 'For your budget of 1 %: at least 99 images, 299 to be 95 % sure.' in str(limits)


def test_so_few_images_that_more_than_half_may_be_above_promise_nothing():
  for n in range(1, 10):
    text = str(from_scores(np.arange(n) + 1.0))
    promise = f'No rate can be promised from {n} image{"s" * (n > 1)}: review all above {n}'
    assert (promise in text) == (1 - 0.05 ** (1 / n) > 0.5) == (n < 5), text
    assert 'For your budget of 1 %: at least 99 images' in text


def test_without_an_image_to_hold_out_everything_is_for_review(tmp_path):
  limits = calibration.uncalibrated(0.01)
  scores = [0.0, 1e-30, 0.5, 1e6]
  assert {calibration.label(score, limits) for score in scores} == {'review'}
  assert calibration.label(math.nan, limits) == 'NG'
  assert limits.is_over_budget
  assert calibration.region_threshold('review', 2.0, limits) < 2
  text = str(limits)
  assert text.startswith('none, every image is for review')
  assert 'at least 2 distinct good images' in text
  assert 'budget of 1 %: at least 99 images, 299 to be 95 % sure' in text
  files.write_json(tmp_path / 'limits.json', limits._asdict())
  stored = calibration.from_json(files.read_json(tmp_path / 'limits.json'))
  assert stored.is_uncalibrated
  assert math.isnan(stored.false_alarm_rate_bound)
  manual = calibration.override(stored, image_threshold=0.9, review_threshold=0.5)
  assert [calibration.label(x, manual) for x in (0.4, 0.7, 1.0)] == ['OK', 'review', 'NG']


def test_one_percent_with_confidence_needs_299_good_images():
  for n, is_met in ((298, False), (299, True)):
    limits = from_scores(np.arange(float(n)), confident=True)
    assert limits.num_normals_required == 299, n
    assert (limits.false_alarm_rate_bound <= 0.01) == is_met, n
    assert limits.is_over_budget == (not is_met), n
    assert limits.image_threshold == pytest.approx(n - 1, rel=2e-4), n


def test_one_percent_on_average_needs_99_good_images():
  assert from_scores(np.arange(98.0)).is_over_budget
  assert not from_scores(np.arange(99.0)).is_over_budget


def test_each_percent_of_99_scores_has_its_own_threshold():
  limits = [from_scores(np.arange(1.0, 100), percent / 100) for percent in range(1, 100)]
  assert [int(limit.image_threshold) for limit in limits] == [*range(99, 0, -1)]
  assert not any(limit.is_over_budget for limit in limits)


def test_the_largest_budget_takes_the_smallest_score():
  assert from_scores(np.arange(1.0, 10), 1 - 1e-12).image_threshold < 2


@pytest.mark.parametrize('confident', [False, True])
@pytest.mark.parametrize(('n', 'budget'), [(20, 0.01), (60, 0.1), (150, 0.05)])
def test_promises_hold_over_many_calibrations(n, budget, confident):
  rng, draws = np.random.default_rng(n), 3000
  limits = [from_scores(rng.exponential(size=n), budget, confident=confident) for _ in range(draws)]
  shares = np.exp(
    [-limit.image_threshold for limit in limits]
  )  # Known exactly: of an exponential law.
  expected, bound = limits[0].expected_false_alarm_rate, limits[0].false_alarm_rate_bound
  assert abs(shares.mean() - expected) < 4 * shares.std() / draws**0.5 + 1e-5
  held = (shares <= bound).mean()
  assert abs(held - 0.95) < 4 * (0.95 * 0.05 / draws) ** 0.5


@given(score_arrays)
def test_ties_only_make_false_alarms_rarer(scores):
  # Each of n + 1 equally likely scores in turn is the unseen one.
  odd_one_out = [
    scores[i] > from_scores(np.delete(scores, i), 0.3).image_threshold
    for i in range(1, len(scores))
  ]
  if len(scores) > 1:
    first = scores[0] > from_scores(scores[1:], 0.3).image_threshold
    expected = from_scores(scores[1:], 0.3).expected_false_alarm_rate
    assert (sum(odd_one_out) + first) / len(scores) <= expected + 1e-9


# Thresholds.


@given(score_arrays, budgets, budgets, st.booleans())
def test_a_larger_budget_never_raises_a_threshold(scores, first, second, confident):
  small, large = sorted([first, second])
  strict, lax = (
    calibration.from_normals(scores, scores[::-1], b, large, confident) for b in (small, large)
  )
  assert lax.image_threshold <= strict.image_threshold
  assert lax.pixel_threshold <= strict.pixel_threshold
  assert strict.review_threshold <= strict.image_threshold
  assert lax.review_threshold == lax.image_threshold  # No share is left to be reviewed.
  narrow = calibration.from_normals(scores, scores, small, small, confident)
  assert strict.review_threshold <= narrow.review_threshold


@given(score_arrays, budgets)
def test_confidence_never_lowers_a_threshold(scores, budget):
  assert (
    from_scores(scores, budget).image_threshold
    <= from_scores(scores, budget, confident=True).image_threshold
  )


@given(score_arrays, st.floats(1e-3, 1e3))
def test_thresholds_lie_a_hair_above_a_score_and_scale_with_it(scores, scale):
  limits = calibration.from_normals(scores, scores * scale, 0.2, 0.4)
  below = scores[scores < limits.image_threshold]
  # Computed in float32, or in another runtime, that score is not above.
  assert np.any(limits.image_threshold <= below + 2e-4 * np.abs(below) + 1e-29)
  assert limits.pixel_threshold == pytest.approx(limits.image_threshold * scale, rel=1e-5)


def test_marked_pixels_have_the_rank_of_images():
  scores, peaks = np.arange(1.0, 41), np.arange(1.0, 41)[::-1] ** 2
  limits = calibration.from_normals(scores, peaks, 0.1, 0.2)
  assert (scores > limits.image_threshold).sum() == (peaks > limits.pixel_threshold).sum() == 3
  assert (scores > limits.review_threshold).sum() == 7


# Labelled images.


def thresholds_between(scores):
  """Every way to part the scores: below all, at each."""
  return [min(scores) - 1, *sorted(set(scores))]


def f1(normal, anomalous, threshold):
  hits, alarms = (anomalous > threshold).sum(), (normal > threshold).sum()
  return 2 * hits / (hits + alarms + len(anomalous))


@given(score_arrays, score_arrays)
def test_f1_is_the_largest_of_all_thresholds_with_the_fewest_misses(normal, anomalous):
  limits = calibration.from_labeled(normal, normal, anomalous, 'f1', 0.01)
  every = thresholds_between([*normal, *anomalous])
  best = max(f1(normal, anomalous, t) for t in every)
  fewest = min((anomalous <= t).sum() for t in every if f1(normal, anomalous, t) == best)
  assert f1(normal, anomalous, limits.image_threshold) == best
  assert (anomalous <= limits.image_threshold).sum() == fewest


@given(score_arrays, score_arrays, st.sampled_from([0.1, 0.3, 1.0, 7.0]))
def test_cost_is_the_least_of_all_thresholds_with_the_fewest_misses(normal, anomalous, miss_cost):
  def cost(threshold):
    return (normal > threshold).sum() + miss_cost * (anomalous <= threshold).sum()

  limits = calibration.from_labeled(normal, normal, anomalous, 'cost', 0.01, miss_cost=miss_cost)
  every = thresholds_between([*normal, *anomalous])
  best = min(map(cost, every)) + 1e-9
  assert cost(limits.image_threshold) <= best
  fewest = min((anomalous <= t).sum() for t in every if cost(t) <= best)
  assert (anomalous <= limits.image_threshold).sum() == fewest


@given(score_arrays, score_arrays, st.sampled_from(['f1', 'cost']))
def test_a_labelled_threshold_lies_midway_between_neighbors(normal, anomalous, method):
  limits = calibration.from_labeled(normal, normal, anomalous, method, 0.01)
  scores = np.concatenate([normal, anomalous])
  below, above = scores[scores <= limits.image_threshold], scores[scores > limits.image_threshold]
  if len(below) and len(above):
    assert limits.image_threshold == (below.max() + above.min()) / 2
  assert limits.review_threshold <= limits.image_threshold
  # Those to review are not missed.
  assert limits.num_missed == (anomalous <= limits.review_threshold).sum()
  assert limits.expected_false_alarm_rate == (normal > limits.image_threshold).mean()
  called = int((normal > limits.image_threshold).sum())
  if called < len(normal):
    assert at_most(called, len(normal), limits.false_alarm_rate_bound) == pytest.approx(
      0.05, rel=1e-6
    )
  else:
    assert limits.false_alarm_rate_bound == 1


def test_neighbors_with_no_number_between_them_are_told_apart():
  for ulps in range(4):
    low = 0.1 + ulps * math.ulp(0.1)  # A mean of neighbors is rounded down and up in turn.
    high = math.nextafter(low, 1)
    normal = np.full(5, low)
    limits = calibration.from_labeled(normal, normal, np.array([low, high]), 'f1', 0.01)
    assert limits.image_threshold == low, ulps
    assert (limits.num_missed, limits.expected_false_alarm_rate) == (1, 0), ulps


def test_costs_that_only_rounding_tells_apart_are_equal():
  normal, anomalous = np.repeat([0.0, 1.0], [9, 3]), np.repeat([0.0, 1.0], [2, 10])
  limits = calibration.from_labeled(normal, normal, anomalous, 'cost', 0.01, miss_cost=0.3)
  assert 0.3 * 12 < 3 + 0.3 * 2  # In floating point.
  assert limits.image_threshold == 0.5


def test_the_dearer_a_miss_the_lower_the_threshold():
  rng = np.random.default_rng(0)
  normal, anomalous = rng.normal(size=80), rng.normal(1.5, size=60)
  limits = [
    calibration.from_labeled(normal, normal, anomalous, 'cost', 0.01, miss_cost=cost)
    for cost in (0.01, 0.5, 1.0, 5.0, 100.0)
  ]
  assert all(a.image_threshold >= b.image_threshold for a, b in itertools.pairwise(limits))
  assert limits[0].image_threshold > limits[-1].image_threshold


def test_without_masks_pixels_and_review_are_those_of_good_images():
  normal, peaks, anomalous = np.arange(40.0), np.arange(40.0) * 3, np.array([100.0, 101.0])
  by_normals = calibration.from_normals(normal, peaks, 0.1, 0.2)
  limits = calibration.from_labeled(normal, peaks, anomalous, 'f1', 0.1, 0.2)
  assert limits.image_threshold == (39 + 100) / 2
  assert (limits.pixel_threshold, limits.review_threshold) == (
    by_normals.pixel_threshold,
    by_normals.review_threshold,
  )
  assert (
    calibration.from_labeled(
      normal, peaks, anomalous, 'f1', 0.1, 0.2, pixel_threshold=7.0
    ).pixel_threshold
    == 7
  )


def test_a_threshold_below_all_that_good_images_need_pulls_review_down():
  normal, anomalous = np.arange(10.0), np.array([2.5])
  limits = calibration.from_labeled(normal, normal, anomalous, 'cost', 0.01, miss_cost=100.0)
  assert limits.review_threshold == limits.image_threshold == 2.25


@given(score_arrays, score_arrays)
def test_pixels_are_marked_with_the_largest_f1_and_the_fewest_misses(normal, anomalous):
  score = np.unique(anomalous)[::-1].astype(np.float32)
  counts = [np.array([(x >= s).sum() for s in score]) for x in (anomalous, normal)]
  ranking = metrics.Ranking(score, *counts, counts[1], counts[0] * 1.0, len(normal))
  threshold = calibration.pixel_threshold_by_f1(ranking)
  every = thresholds_between([*normal, *anomalous])
  best = max(f1(normal, anomalous, t) for t in every)
  # As maps are: float32, compared with a number of Python's.
  assert f1(normal.astype(np.float32), anomalous.astype(np.float32), threshold) == best
  misses = [(anomalous <= t).sum() for t in every if f1(normal, anomalous, t) == best]
  assert (anomalous <= threshold).sum() == min(misses)


# What is kept and told.


def calibrated():
  normal = np.linspace(1, 2, 50)
  yield calibration.from_normals(normal, normal, 0.01)
  yield calibration.from_normals(
    normal.astype(np.float32), normal.astype(np.float32), 0.1, 0.2, True
  )
  for method in ('f1', 'cost'):
    anomalous = np.linspace(1.9, 3, 20)
    yield calibration.from_labeled(normal, normal, anomalous, method, 0.01, pixel_threshold=1.5)


def test_a_manifest_keeps_everything(tmp_path):
  for limits in calibrated():
    files.write_json(tmp_path / 'manifest.json', limits._asdict())
    stored = json.loads((tmp_path / 'manifest.json').read_text())
    assert calibration.Thresholds(**stored) == limits
    assert None not in stored.values(), stored


def test_a_manifest_keeps_that_thresholds_were_set_by_hand(tmp_path):
  limits = calibration.override(LIMITS, image_threshold=3.0)
  files.write_json(tmp_path / 'manifest.json', limits._asdict())
  stored = calibration.from_json(json.loads((tmp_path / 'manifest.json').read_text()))
  assert math.isnan(stored.expected_false_alarm_rate)
  assert stored.is_manual
  assert str(stored) == str(limits)


def test_thresholds_are_described_in_sentences():
  for limits in calibrated():
    text = str(limits)
    reviewed = limits.review_threshold < limits.image_threshold
    band = f'review above {limits.review_threshold:.4g}' if reviewed else 'nothing to review'
    assert text.startswith(f'NG above {limits.image_threshold:.4g}, {band}')
    assert text.endswith('.')
    assert '50 independent good images' in text or 'and 50 good images' in text


def test_why_there_is_nothing_to_review_is_told():
  scores = np.arange(60.0)
  few = str(calibration.from_normals(scores[:20], scores[:20], 0.01))
  assert 'nothing to review (a review band needs more than 20 good images)' in few
  equal = str(calibration.from_normals(scores, scores, 0.05, 0.05))
  assert 'nothing to review (the review budget equals the budget)' in equal


def test_a_labelled_threshold_is_said_to_be_optimistic():
  normal, anomalous = np.arange(20.0), np.array([17.5, 30, 31])
  text = str(calibration.from_labeled(normal, normal, anomalous, 'f1', 0.01))
  assert 'on 3 defective images, of which 1 are missed, and 20 good images' in text
  assert 'optimistic' in text


LIMITS = calibration.from_normals(np.arange(100.0), np.arange(100.0), 0.01)._replace(
  image_threshold=4.0, review_threshold=2.0
)


def test_a_verdict_at_its_edges():
  cases = [
    (2.0, {}, 'OK'),
    (np.nextafter(2.0, 3), {}, 'review'),
    (4.0, {}, 'review'),
    (np.nextafter(4.0, 5), {}, 'NG'),
    (math.inf, {}, 'NG'),
    (-math.inf, {}, 'OK'),
    (math.nan, {}, 'NG'),
    (4.5, {'image_threshold': 5.0}, 'review'),
    (1.0, {'image_threshold': 1.0}, 'OK'),
    (1.5, {'image_threshold': 1.0}, 'NG'),
    (1.5, {'review_threshold': 1.0}, 'review'),
    (3.0, {'review_threshold': 3.0}, 'OK'),
    (0.5, {'image_threshold': 0.0, 'review_threshold': -1.0}, 'NG'),
    (0.0, {'image_threshold': 0.0, 'review_threshold': -1.0}, 'review'),
  ]
  wrong = []
  for score, overrides, expected in cases:
    limits = calibration.override(LIMITS, **overrides)
    if (
      calibration.label(score, limits) != expected
      or limits.review_threshold > limits.image_threshold
    ):
      wrong.append((score, overrides, expected, limits))
  assert not wrong


def test_a_review_threshold_above_the_image_threshold_is_refused_with_the_way_out():
  for section, overrides in (
    ('', {'review_threshold': 9.0}),
    ('', {'image_threshold': 1.0, 'review_threshold': 1.5}),
    ('evaluate', {'review_threshold': 9.0}),
  ):
    with pytest.raises(ConfigError) as caught:
      calibration.override(LIMITS, section, **overrides)
    prefix, review = f'{section}.' * bool(section), overrides['review_threshold']
    image = overrides.get('image_threshold', LIMITS.image_threshold)
    assert (caught.value.key, caught.value.value) == (f'{prefix}review_threshold', review)
    for name, value in (('review', image), ('image', review)):  # Either is a way out.
      assert f'{prefix}{name}_threshold={value}' in str(caught.value)
      repaired = calibration.override(LIMITS, **{**overrides, f'{name}_threshold': value})
      assert repaired.review_threshold == repaired.image_threshold == value


def test_thresholds_that_are_not_overridden_stay():
  assert calibration.override(LIMITS) == LIMITS
  assert calibration.override(LIMITS, pixel_threshold=0.0) == LIMITS._replace(pixel_threshold=0.0)


# What is refused.


@pytest.mark.parametrize(
  ('options', 'kind', 'message'),
  [
    ({'budget': 1.5}, ConfigError, r'budget .* got 1\.5'),
    ({'budget': 0.0}, ConfigError, r'got 0\.0'),
    ({'budget': math.nan}, ConfigError, 'got nan'),
    ({'budget': 0.1}, ConfigError, r'got 0\.05.*calibrate\.review_budget=0\.1'),
    ({'review_budget': 1.0}, ConfigError, r'review_budget .* got 1\.0'),
    ({'method': 'f2'}, UnknownName, "'f1'.* got 'f2'"),
    ({'method': 'f1'}, ConfigError, r'calibrate\.labeled'),
    ({'method': 'cost'}, ConfigError, r'calibrate\.labeled'),
    ({'method': 'confident', 'labeled': 'data'}, ConfigError, 'does not use'),
    ({'method': 'cost', 'labeled': 'data', 'miss_cost': 0.0}, ConfigError, r'got 0\.0'),
    ({'method': 'cost', 'labeled': 'data', 'miss_cost': math.inf}, ConfigError, 'got inf'),
  ],
)
def test_a_setting_that_cannot_be_carried_out_is_refused(options, kind, message):
  with pytest.raises(kind, match=message):
    calibration.validate_settings(configs.replace(CalibrateSettings(), options))


def test_a_method_is_one_that_can_be_carried_out():
  assert {limits.method for limits in calibrated()} == set(CALIBRATION_METHODS)
  refused = {}
  for method in CALIBRATION_METHODS:
    try:
      options = {'method': method, 'labeled': 'data' if method in ('f1', 'cost') else ''}
      calibration.validate_settings(configs.replace(CalibrateSettings(), options))
    except UserError as error:
      refused[method] = error
  assert not refused


def test_too_few_or_infinite_scores_are_refused():
  single, empty = np.ones(1), np.zeros(0)
  with pytest.raises(DataError, match='one good image'):
    from_scores(empty)
  with pytest.raises(DataError, match='one defective image'):
    calibration.from_labeled(single, single, empty, 'f1', 0.01)
  with pytest.raises(DataError, match='1 of 2 scores of good'):
    from_scores(np.array([1.0, math.nan]))
  with pytest.raises(DataError, match='1 of 1 scores of defective'):
    calibration.from_labeled(single, single, np.array([math.inf]), 'cost', 0.01)
  with pytest.raises(KeyError, match='normals'):
    calibration.from_labeled(single, single, single, 'normals', 0.01)
