import itertools

from hypothesis import given, strategies as st
from matplotlib.backends import backend_agg
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
  edges, log = score_histogram.bin_edges(np.linspace(0, 10, 50), 3.3, 5.0, 40)
  assert not log
  assert {3.3, 5.0} <= set(edges)


def test_scores_over_decades_are_shown_by_decades():
  for most, log in ((1.9, False), (21.0, True)):
    assert score_histogram.bin_edges(np.array([0.1, most]), 1.0, 1.5, 40)[1] is log, most
    # Zero has no logarithm.
    assert not score_histogram.bin_edges(np.array([0.0, most]), 1.0, 1.5, 40)[1], most


def drawn(rows, width, review=1.8, ng=2.0):
  with figures.style():
    figure = figures.new_figure(width, 4.5)
    axes = figure.subplots()
    score_histogram.draw(axes, rows, review, ng)
    backend_agg.FigureCanvasAgg(figure).draw()
  return axes


def test_strips_have_bars_and_ticks_that_are_seen_and_names_that_stay_inside():
  scores = np.random.default_rng(0).normal(1.7, 0.3, 300)
  rows = [
    score_histogram.Row('good, held out\n(thresholds)', scores, True),
    score_histogram.Row('manipulat…ad_and_more', scores, False),
    *(score_histogram.Row(f'type {i}', scores, False) for i in range(8)),
  ]
  for width in (5.0, 10.0):
    axes = drawn(rows, width)
    figure = axes.get_figure(root=True)
    assert axes.bbox.width > 0.4 * figure.bbox.width
    bars = [patch.get_window_extent().width for patch in axes.patches]
    assert min(bars) > 0.05 * figure.dpi
    low, high = axes.get_xlim()
    assert sum(low <= tick <= high for tick in axes.get_xticks()) >= 3
    (count_axis,) = axes.child_axes
    for labels in (axes.get_yticklabels(), count_axis.get_yticklabels()):
      boxes = [label.get_window_extent() for label in labels]
      assert min(box.x0 for box in boxes) > 0
      assert max(box.x1 for box in boxes) < figure.bbox.x1
      for first, second in itertools.combinations(boxes, 2):
        assert not first.overlaps(second)
    ticks = [label.get_window_extent() for label in axes.get_xticklabels()]
    for first, second in itertools.pairwise(ticks):
      assert not first.overlaps(second)
    assert axes.get_legend().get_window_extent().y1 < axes.xaxis.label.get_window_extent().y0


def test_counts_and_thresholds_are_written_beside_the_strips():
  scores = np.array([1.0, 1.9, 3.0, 4.0])  # OK, review, NG, NG.
  axes = drawn([score_histogram.Row('hole', scores, False)], 5.0)
  counts = [label.get_text() for label in axes.child_axes[0].get_yticklabels()]
  assert counts == ['OK / review / NG', '1 / 1 / 2']
  texts = [text.get_text() for text in axes.get_legend().get_texts()]
  assert texts == ['NG (not good) above 2.00', 'to review above 1.80']


def test_bars_are_dark_where_images_are_called_wrongly_and_say_so():
  scores = np.array([1.0, 1.9, 3.0])  # OK, review, NG.
  axes = drawn(
    [score_histogram.Row('good', scores, True), score_histogram.Row('hole', scores, False)], 5.0
  )
  dark = [
    [sum(patch.get_facecolor()[:3]) < 1 for patch in bars.patches] for bars in axes.containers
  ]
  assert dark == [[False, False, True], [True, False, False]]
  assert 'dark: defective but OK, good but NG' in axes.get_xlabel()
  assert 'each row has its own scale' in axes.get_xlabel()
