"""Counts of verdicts, their summary, and when a model is said to belong to other images."""

import math

from hypothesis import given, strategies as st
import pytest

from uadjax.evaluation import verdicts
from uadjax.model import calibration

LABELS = ('OK', 'review', 'NG')
THRESHOLDS = calibration.Thresholds(2.0, 3.0, 1.5, 'normals', 0.01, 0.05, 100, 0.01, 0.03, 299)

images = st.lists(st.tuples(st.sampled_from(LABELS), st.booleans()), max_size=60)


def counts_of(pairs):
  return verdicts.count([label for label, _ in pairs], [defective for _, defective in pairs])


def good_counts(num_ng, num_good):
  return counts_of([('NG', False)] * num_ng + [('OK', False)] * (num_good - num_ng))


def warns(num_ng, num_good, bound):
  thresholds = THRESHOLDS._replace(false_alarm_rate_bound=bound)
  return bool(verdicts.model_warnings(good_counts(num_ng, num_good), thresholds))


def binomial(k, n, rate):
  return math.comb(n, k) * rate**k * (1 - rate) ** (n - k)


@given(images)
def test_every_image_is_counted_once_and_in_the_order_of_the_contract(pairs):
  counts = counts_of(pairs)
  assert sum(sum(by_verdict.values()) for by_verdict in counts.values()) == len(pairs)
  assert [(name, list(by_verdict)) for name, by_verdict in counts.items()] == [
    ('defective', ['ng', 'review', 'ok']), ('good', ['ok', 'review', 'ng']),
  ]  # fmt: skip
  for defective, name in ((True, 'defective'), (False, 'good')):
    for label in LABELS:
      assert counts[name][label.lower()] == pairs.count((label, defective))


@given(images)
def test_images_to_review_are_neither_missed_nor_found(pairs):
  by_name = {(o.image_class, o.name): o for o in verdicts.outcomes(counts_of(pairs))}
  for defective, image_class, wrong, name in (
    (True, 'defective', 'OK', 'missed'), (False, 'good', 'NG', 'falsely rejected'),
  ):  # fmt: skip
    labels = [label for label, d in pairs if d == defective]
    if labels:
      assert by_name[image_class, name].num_images == labels.count(wrong)
      assert by_name[image_class, 'to review'].num_images == labels.count('review')
    assert ((image_class, name) in by_name) == bool(labels)


def test_the_summary_has_defects_first_and_errors_last():
  pairs = [('NG', True)] * 89 + [('review', True)] * 3 + [('OK', True)] * 27
  pairs += [('OK', False)] * 39 + [('review', False)] + [('NG', False)]
  defective = '119 defective images: 89 found (75 %), 3 to review (3 %), 27 missed (23 %).'
  good = '41 good images: 39 passed (95 %), 1 to review (2 %), 1 falsely rejected (2 %).'
  assert verdicts.summarize(counts_of(pairs)) == f'{defective} {good}'
  assert verdicts.summarize(counts_of(pairs[119:])) == good
  assert verdicts.summarize(counts_of([])) == 'There are no test images.'


def test_a_model_whose_good_images_are_all_ng_is_said_to_belong_to_others():
  (warning,) = verdicts.model_warnings(good_counts(41, 41), THRESHOLDS)
  assert warning['code'] == 'other_images'
  assert warning['message'] == (
    '41 of 41 good images are NG; was this model fitted on other images?'
  )


@given(st.integers(0, 60), st.sampled_from([0.003, 0.03, 0.2, 0.5, 1.0]))
def test_a_fitting_model_is_suspected_less_than_once_in_a_thousand(num_good, bound):
  suspected = [num_ng for num_ng in range(num_good + 1) if warns(num_ng, num_good, bound)]
  assert sum(binomial(num_ng, num_good, bound) for num_ng in suspected) < 1e-3
  assert all(2 * num_ng > num_good for num_ng in suspected)
  # The more good images are NG, the stronger is the suspicion; it is raised as soon as it may be.
  assert suspected == [*range(num_good + 1)][num_good + 1 - len(suspected) :]
  fewest = num_good - len(suspected)
  tail = sum(binomial(k, num_good, bound) for k in range(fewest, num_good + 1))
  assert 2 * fewest <= num_good or tail >= 1e-3


@pytest.mark.parametrize('bound', [math.nan, 1.0])
def test_thresholds_without_a_promise_raise_no_suspicion(bound):
  assert not warns(41, 41, bound)
