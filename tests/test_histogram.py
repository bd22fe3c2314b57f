from hypothesis import given, strategies as st
import numpy as np
import pytest

from uadjax import histogram

scales = st.sampled_from([1e-30, 1e-3, 1.0, 20.0, 1e30])
values = st.lists(st.floats(-9, 9, width=32) | st.sampled_from([np.inf, -np.inf]), max_size=30)
thresholds = st.floats(-9, 9) | st.sampled_from([np.inf, -np.inf])


@given(scale=scales, values=values, a=thresholds, b=thresholds, positive=st.booleans())
def test_every_score_is_counted_once_and_every_bin_called_one_thing(scale, values, a, b, positive):
  scores = np.array(values, np.float64) * scale
  review, ng = sorted([a * scale, b * scale])
  if positive:
    scores, review, ng = np.exp(scores / scale), np.exp(review / scale), np.exp(ng / scale)
  edges, _ = histogram.bins(scores, review, ng)
  assert len(edges) < 100
  assert (np.diff(edges) > 0).all()
  assert not np.isfinite(ng) or ng in edges
  counts = histogram.counted(scores, edges)
  assert counts.sum() == len(scores)
  for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
    inside = [low < score <= high for score in scores if np.isfinite(score)]
    ends = (scores == -np.inf).sum() * (low == edges[0])
    ends += (scores == np.inf).sum() * (high == edges[-1])
    assert count == sum(inside) + ends
  if np.isfinite(ng):
    finite = scores[np.isfinite(scores)]
    above = histogram.counted(finite, edges)[edges[:-1] >= ng].sum()
    assert above == (finite > ng).sum()


def test_a_wide_review_band_begins_at_an_edge():
  edges, log = histogram.bins(np.linspace(0, 10, 50), 3.3, 5.0)
  assert not log
  assert {3.3, 5.0} <= set(edges)


@pytest.mark.parametrize(('most', 'log'), [(1.9, False), (21.0, True)])
def test_scores_over_decades_are_shown_by_decades(most, log):
  assert histogram.bins(np.array([0.1, most]), 1.0, 1.5)[1] is log
  assert not histogram.bins(np.array([0.0, most]), 1.0, 1.5)[1]  # Zero has no logarithm.
