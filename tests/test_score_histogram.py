import itertools

from hypothesis import given, strategies as st
import numpy as np

from uadjax.visualization import figures, score_histogram

scales = st.sampled_from([1e-30, 1e-3, 1.0, 20.0, 1e30])
values = st.lists(st.floats(-9, 9, width=32) | st.sampled_from([np.inf, -np.inf]), max_size=30)
thresholds = st.floats(-9, 9) | st.sampled_from([np.inf, -np.inf])


@given(
  scale=scales,
  values=values,
  a=thresholds,
  b=thresholds,
  positive=st.booleans(),
  about=st.sampled_from([1, 16, 40]),
)
def test_every_score_is_counted_once_and_every_bin_called_one_thing(
  scale, values, a, b, positive, about
):
  scores = np.array(values, np.float64) * scale
  review, ng = sorted([a * scale, b * scale])
  if positive:
    scores, review, ng = np.exp(scores / scale), np.exp(review / scale), np.exp(ng / scale)
  edges, _ = score_histogram.bin_edges(scores, review, ng, about)
  assert len(edges) < 2 * about + 6
  assert (np.diff(edges) > 0).all()
  assert not np.isfinite(ng) or ng in edges
  counts = score_histogram.count_per_bin(scores, edges)
  assert counts.sum() == len(scores)
  for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
    inside = [low < score <= high for score in scores if np.isfinite(score)]
    ends = (scores == -np.inf).sum() * (low == edges[0])
    ends += (scores == np.inf).sum() * (high == edges[-1])
    assert count == sum(inside) + ends
  if np.isfinite(ng):
    finite = scores[np.isfinite(scores)]
    above = score_histogram.count_per_bin(finite, edges)[edges[:-1] >= ng].sum()
    assert above == (finite > ng).sum()


def test_a_wide_review_band_begins_at_an_edge():
  edges, log = score_histogram.bin_edges(np.linspace(0, 10, 50), 3.3, 5.0)
  assert not log
  assert {3.3, 5.0} <= set(edges)


def test_scores_over_decades_are_shown_by_decades():
  for most, log in ((1.9, False), (21.0, True)):
    assert score_histogram.bin_edges(np.array([0.1, most]), 1.0, 1.5)[1] is log, most
    # Zero has no logarithm.
    assert not score_histogram.bin_edges(np.array([0.0, most]), 1.0, 1.5)[1], most


def drawn(rows, width, review=1.8, ng=2.0):
  figure = figures.new_figure(width, 4.5)
  with figures.style():
    score_histogram.draw(figure, figures.Box(0, 0, width, 4.5), rows, review, ng)
  (axes,) = figure.axes
  return axes


def test_strips_have_bars_and_ticks_that_are_seen_and_names_that_stay_inside():
  scores = np.random.default_rng(0).normal(1.7, 0.3, 300)
  rows = [
    score_histogram.Row('good, held out (thresholds)', scores, True),
    score_histogram.Row('manipulated_front_of_head_and_more', scores, False),
    score_histogram.Row('裂纹裂纹裂纹裂纹', scores, False),
  ]
  for width in (5.0, 7.5, 10.0):
    axes = drawn(rows, width)
    assert axes.bbox.width > 0.4 * width * figures.DPI
    bars = [
      path.get_extents(axes.transData).width for c in axes.collections for path in c.get_paths()
    ]
    assert min(bars) > 0.08 * figures.DPI
    low, high = axes.get_xlim()
    assert sum(low <= tick <= high for tick in axes.get_xticks()) >= 3
    labels = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert min(box.x0 for box in labels) > 0.1 * figures.DPI
    for upper, lower in itertools.pairwise(labels):
      assert not upper.overlaps(lower)
    assert max(text.get_window_extent().x1 for text in axes.texts) < width * figures.DPI


def test_bars_are_dark_where_images_are_called_wrongly_and_say_so():
  scores = np.array([1.0, 1.9, 3.0])  # OK, review, NG.
  axes = drawn(
    [score_histogram.Row('good', scores, True), score_histogram.Row('hole', scores, False)], 5.0
  )
  good, hole = axes.collections[:2]
  dark = [
    (np.asarray(bars.get_facecolor())[:, :3].sum(axis=1) < 1).tolist() for bars in (good, hole)
  ]
  assert dark == [[False, False, True], [True, False, False]]
  assert 'dark: defective but OK, good but NG' in axes.get_xlabel()
  assert 'each row has its own scale' in axes.get_xlabel()


def test_names_take_two_lines_at_most():
  assert (
    score_histogram._wrap_name('good, held out (thresholds)', 16) == 'good, held out\n(thresholds)'
  )
  assert score_histogram._wrap_name('a b c d e f g h', 3).count('\n') == 0
  assert max(map(len, score_histogram._wrap_name('a_very_long_name indeed', 9).split('\n'))) <= 9
