"""Each number against its definition, written out slowly, and against scikit-learn."""

import itertools

from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np
import pytest
from sklearn import metrics as sklearn

from uadjax.numerics import metrics, regions

# Few distinct values: ties are where implementations go wrong.
SCORES = st.one_of(
  st.sampled_from([0.0, -0.0, 0.5, 1.0, np.inf, -np.inf]), st.floats(-9, 9, width=32)
)


@st.composite
def labelled_scores(draw):
  n = draw(st.integers(2, 30))
  labels = draw(hnp.arrays(bool, n))
  labels[:2] = [True, False]
  return labels, draw(hnp.arrays(np.float32, n, elements=SCORES))


@st.composite
def image_sets(draw):
  """(map, mask) of a few small images, at least one of them with defects, and one normal pixel."""
  images = []
  for _ in range(draw(st.integers(1, 3))):
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=6))
    masks = st.one_of(st.just(np.zeros(shape, bool)), hnp.arrays(bool, shape))
    images.append((draw(hnp.arrays(np.float32, shape, elements=SCORES)), draw(masks)))
  mask = np.array([[True, False, False], [False, True, False], [False, False, False]])
  return [*images, (draw(hnp.arrays(np.float32, (3, 3), elements=SCORES)), mask)]


def ranked(labels, scores):
  return metrics.rank(scores[labels], [scores[~labels]])


def ranked_pixels(images):
  anomalous = np.concatenate([scores[truth] for scores, truth in images])
  weight = np.concatenate([metrics.region_weights(truth) for _, truth in images])
  return metrics.rank(anomalous, (scores[~truth] for scores, truth in images), weight)


def finite(scores):
  """In the same order and with the same ties: scikit-learn takes no infinities."""
  return np.nan_to_num(scores, posinf=99, neginf=-99)


def thresholds(scores):
  return sorted({float(score) for score in scores}, reverse=True)


def area(points):
  """Of trapezoids."""
  return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(points))


def slow_auroc(labels, scores):
  """Over all pairs, how often the anomaly scores higher; a tie is half a win."""
  wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in scores[labels] for b in scores[~labels]]
  return sum(wins) / len(wins)


def slow_precision_and_recall(labels, scores):
  """At every score that occurs, from the largest down."""
  points = []
  for threshold in thresholds(scores):
    marked = [
      bool(label) for label, score in zip(labels, scores, strict=True) if score >= threshold
    ]
    points.append((sum(marked) / len(marked), sum(marked) / int(labels.sum())))
  return points


def slow_average_precision(labels, scores):
  total, before = 0.0, 0.0
  for precision, recall in slow_precision_and_recall(labels, scores):
    total += (recall - before) * precision
    before = recall
  return total


def slow_f1_max(labels, scores):
  both = slow_precision_and_recall(labels, scores)
  return max(2 * p * r / (p + r) if p + r else 0.0 for p, r in both)


def slow_regions(mask):
  """Pixels of each region, by a flood that also runs over corners."""
  left = {(int(i), int(j)) for i, j in zip(*np.nonzero(mask), strict=True)}
  components = []
  while left:
    region, edge = set(), {min(left)}
    while edge:
      region |= edge
      left -= edge
      neighborhood = {(i + a, j + b) for i, j in edge for a in (-1, 0, 1) for b in (-1, 0, 1)}
      edge = neighborhood & left
    components.append(sorted(region))
  return components


def slow_pro_curve(images):
  """MVTec's: at every score the mean share of a region that is marked, and of normal pixels."""
  regions = [(scores, region) for scores, truth in images for region in slow_regions(truth)]
  normals = sum(int((~truth).sum()) for _, truth in images)
  points = [(0.0, 0.0)]
  for threshold in thresholds(np.concatenate([scores.ravel() for scores, _ in images])):
    overlaps = [
      sum(scores[at] >= threshold for at in region) / len(region) for scores, region in regions
    ]
    false = sum(int((scores[~truth] >= threshold).sum()) for scores, truth in images)
    points.append((false / normals, sum(overlaps) / len(overlaps)))
  return points


def slow_au_pro(images, limit):
  inside = []
  for (x, y), (after, above) in itertools.pairwise(slow_pro_curve(images)):
    inside.append((x, y))
    if after > limit:
      inside.append((limit, y + (above - y) * (limit - x) / (after - x)))
      break
    inside.append((after, above))
  return area(inside) / limit


@given(labelled_scores())
def test_numbers_are_their_definitions(case):
  r = ranked(*case)
  assert metrics.auroc(r) == pytest.approx(slow_auroc(*case), abs=1e-12)
  assert metrics.average_precision(r) == pytest.approx(slow_average_precision(*case), abs=1e-12)
  assert metrics.f1_max(r) == pytest.approx(slow_f1_max(*case), abs=1e-12)


@given(labelled_scores())
def test_numbers_are_scikit_learns(case):
  labels, scores = case
  r, scores = ranked(*case), finite(scores)
  want = sklearn.roc_auc_score(labels, scores)
  assert metrics.auroc(r) == pytest.approx(want, abs=1e-9)
  want = sklearn.average_precision_score(labels, scores)
  assert metrics.average_precision(r) == pytest.approx(want, abs=1e-9)


@given(labelled_scores())
def test_roc_curve_is_scikit_learns(case):
  """Each of its points lies on ours, and ours turns at no other: each is a point of its steps."""
  labels, scores = case
  fpr, tpr = metrics.roc_curve(ranked(*case))
  want = sklearn.roc_curve(labels, finite(scores), drop_intermediate=False)[:2]
  ours, theirs = (
    set(zip(*np.round(curve, 12).tolist(), strict=True))
    for curve in (np.stack([fpr, tpr]), np.stack(want))
  )
  assert ours <= theirs
  assert all(np.diff(fpr) >= 0)
  assert all(np.diff(tpr) >= 0)
  # What we leave out is on a level stretch.
  for x, y in theirs - ours:
    assert {y} == set(np.round(tpr[[np.searchsorted(fpr, x) - 1, np.searchsorted(fpr, x)]], 12))
  assert area(list(zip(fpr, tpr, strict=True))) == pytest.approx(slow_auroc(*case), abs=1e-12)


@given(labelled_scores())
def test_pr_curve_is_scikit_learns_where_precision_is_best(case):
  labels, scores = case
  recall, precision = metrics.pr_curve(ranked(*case))
  p, r, _ = sklearn.precision_recall_curve(labels, finite(scores))
  best = {}
  for x, y in zip(r, p, strict=True):
    best[round(x, 12)] = max(y, best.get(round(x, 12), 0.0))
  np.testing.assert_allclose(recall, sorted(best), atol=1e-9)
  np.testing.assert_allclose(precision[1:], [best[x] for x in sorted(best)][1:], atol=1e-9)
  assert (recall[0], precision[0]) == (0, 1)


@given(image_sets(), st.sampled_from([0.05, 0.3, 1.0]))
def test_au_pro_is_mvtecs(images, limit):
  r = ranked_pixels(images)
  assert metrics.au_pro(r, limit) == pytest.approx(slow_au_pro(images, limit), abs=1e-9)
  fpr, overlap = metrics.pro_curve(r)
  whole = area(slow_pro_curve(images))
  assert area(list(zip(fpr, overlap, strict=True))) == pytest.approx(whole, abs=1e-9)


def test_au_pro_by_hand():
  """Two regions, of one pixel and of three; the limit falls on a slope."""
  truth = np.array([[1, 0, 1, 1, 1], [0, 0, 0, 0, 0]], bool)
  scores = np.array([[9, 0, 5, 5, 1], [5, 0, 0, 0, 0]], np.float32)
  # (0, 1/2) after the first; then one normal of six ties with two pixels of three; then the rest.
  slope = 1 / 6 * (1 / 2 + 5 / 6) / 2
  level = 1.0 * (0.3 - 1 / 6)
  assert metrics.au_pro(ranked_pixels([(scores, truth)])) == pytest.approx((slope + level) / 0.3)


def test_good_images_count_in_the_false_positive_rate():
  truth = np.eye(3, dtype=bool)
  scores = np.where(truth, 1.0, 2.0).astype(np.float32)
  good = np.zeros((6, 9), np.float32), np.zeros((6, 9), bool)
  assert metrics.au_pro(ranked_pixels([(scores, truth)])) == 0
  assert metrics.au_pro(ranked_pixels([(scores, truth), good])) == pytest.approx(2 / 3)


def test_constant_scores_say_nothing():
  labels = np.array([True, False, False, False])
  r = ranked(labels, np.full(4, 0.3))
  assert (metrics.auroc(r), metrics.average_precision(r)) == (0.5, 0.25)
  assert metrics.f1_max(r) == 0.4
  assert metrics.au_pro(r) == pytest.approx(0.15)


@given(labelled_scores())
def test_ranking_is_counted(case):
  labels, scores = case
  r = ranked(labels, scores)
  bad, good = scores[labels], scores[~labels]
  assert r.scores.tolist() == thresholds(bad)
  assert r.num_anomalous.tolist() == [sum(bad >= score) for score in r.scores]
  assert r.overlap.tolist() == r.num_anomalous.tolist()
  assert r.num_normal_above.tolist() == [sum(good > score) for score in r.scores]
  assert r.num_normal.tolist() == [sum(good >= score) for score in r.scores]
  assert r.total_normals == len(good)


@given(labelled_scores(), st.lists(st.integers(0, 30)), st.integers(1, 9), st.integers(1, 3))
def test_chunks_batches_and_threads_change_nothing(case, cuts, batch, threads):
  labels, scores = case
  whole = ranked(labels, scores)
  chunks = np.split(scores[~labels], np.minimum(sorted(cuts), (~labels).sum()))
  copies = [chunk.copy() for chunk in chunks]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(metrics, '_BATCH', batch)
    patch.setattr(metrics, '_NUM_THREADS', threads)
    parts = metrics.rank(scores[labels], iter(chunks))
  for a, b in zip(whole, parts, strict=True):
    np.testing.assert_array_equal(a, b)
  for a, b in zip(chunks, copies, strict=True):  # The caller's own arrays stay as they are.
    np.testing.assert_array_equal(a, b)


def test_no_more_than_a_batch_is_held(monkeypatch):
  """Chunks are drawn one by one, and given up once counted."""
  monkeypatch.setattr(metrics, '_BATCH', 100)
  alive, most = [0], [0]

  class Chunk(np.ndarray):
    def __del__(self):
      alive[0] -= 1

  def chunks():
    for _ in range(50):
      alive[0] += 1
      most[0] = max(most[0], alive[0])
      yield np.arange(10.0).view(Chunk)

  assert metrics.rank(np.array([4.0]), chunks()).total_normals == 500
  assert most[0] <= 11


def test_scores_of_other_precision_are_compared_exactly():
  single = np.array([0.1], np.float32)  # A little more than 0.1.
  assert metrics.auroc(metrics.rank(single, [np.array([0.1])])) == 1.0
  assert metrics.auroc(metrics.rank(np.array([0.1]), [single])) == 0.0


@pytest.mark.parametrize(
  ('anomalous', 'normal', 'words'),
  [
    ([0.1, 0.2], [], '2 anomalous and 0 normal'),
    ([0.1, 0.2], [[], []], '2 anomalous and 0 normal'),
    ([], [[0.1], [0.3]], '0 anomalous and 2 normal'),
    ([np.nan, 0.2, np.nan], [[0.3]], '2 NaN among 3'),
    ([0.2], [[0.3, 0.1], [np.nan]], '1 NaN among 3'),
  ],
)
def test_rank_refuses_what_has_no_answer(anomalous, normal, words):
  with pytest.raises(ValueError, match=words):
    metrics.rank(np.array(anomalous), [np.array(chunk) for chunk in normal])


def test_auroc_of_scores():
  assert metrics.auroc(metrics.rank(np.array([0.2, 0.3]), [np.array([0.1, 0.2])])) == 0.875


MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=8))


@given(MASKS)
def test_regions_are_flooded(mask):
  labels, sizes = regions.label_regions(mask)
  want = slow_regions(mask)
  assert sorted(sizes) == sorted(len(region) for region in want)
  assert (labels > 0).tolist() == mask.tolist()
  for region in want:
    (label,) = {int(labels[at]) for at in region}
    assert sizes[label - 1] == len(region)
  weights = np.zeros(mask.shape)
  weights[mask] = metrics.region_weights(mask)
  assert all(weights[at] == 1 / len(region) for region in want for at in region)


def test_regions_touch_diagonally():
  mask = np.array([[1, 0, 0, 0], [0, 1, 0, 1], [1, 0, 0, 0]], bool)
  labels, sizes = regions.label_regions(mask)
  assert sorted(sizes) == [1, 3]
  assert labels[0, 0] == labels[1, 1] == labels[2, 0] != labels[1, 3]


@given(st.data(), MASKS)
def test_hits_of_regions_are_looked_up(data, truth):
  pred = data.draw(hnp.arrays(bool, truth.shape))
  sizes, hits = metrics.region_hits(pred, truth)
  want = [(len(region), any(pred[at] for at in region)) for region in slow_regions(truth)]
  assert sorted(zip(sizes.tolist(), hits.tolist(), strict=True)) == sorted(want)


def test_miss_rate_goes_by_decades_of_area():
  sizes = np.array([1, 99, 100, 999, 999, 10000, 250000])
  hits = np.array([True, False, True, False, False, True, True])
  assert metrics.miss_rate_by_size(sizes, hits) == {
    '<100': {'regions': 2, 'missed': 0.5},
    '100-999': {'regions': 3, 'missed': pytest.approx(2 / 3)},
    '>=10000': {'regions': 2, 'missed': 0.0},
  }
  assert metrics.miss_rate_by_size(np.array([1000, 9999]), np.array([False, False])) == {
    '1000-9999': {'regions': 2, 'missed': 1.0}
  }
  assert metrics.miss_rate_by_size(np.zeros(0, int), np.zeros(0, bool)) == {}


def slow_confusion(pred, truth):
  """Every number from loops over the pixels; None where nothing is divided by nothing."""
  pairs = [(bool(p), bool(t)) for p, t in zip(pred.ravel(), truth.ravel(), strict=True)]
  marked = {i for i, (p, _) in enumerate(pairs) if p}
  bad = {i for i, (_, t) in enumerate(pairs) if t}
  n, both = len(pairs), len(marked & bad)
  precision = both / len(marked) if marked else None
  recall = both / len(bad) if bad else None
  either = len(marked | bad)
  agreed, kappa = None, None
  if n:
    agreed = sum(p == t for p, t in pairs) / n
    p, t = len(marked) / n, len(bad) / n
    chance = p * t + (1 - p) * (1 - t)
    kappa = (agreed - chance) / (1 - chance) if chance < 1 - 1e-12 else None
  return {
    'precision': precision,
    'recall': recall,
    'f1': 2 * both / (len(marked) + len(bad)) if either else None,
    'iou': both / either if either else None,
    'dice': 2 * both / (len(marked) + len(bad)) if either else None,
    'accuracy': agreed,
    'kappa': kappa,
  }


@given(st.data(), MASKS)
def test_confusion_is_counted(data, truth):
  pred = data.draw(hnp.arrays(bool, truth.shape))
  confusion = metrics.Confusion.from_predictions(pred, truth)
  assert confusion == (
    (pred & truth).sum(), (pred & ~truth).sum(), (~pred & truth).sum(), (~pred & ~truth).sum()
  )  # fmt: skip
  assert all(type(count) is int for count in confusion)  # NumPy's would overflow in kappa.
  for name, want in slow_confusion(pred, truth).items():
    got = getattr(confusion, name)
    assert got == (None if want is None else pytest.approx(want, abs=1e-12)), name


@given(*[hnp.arrays(bool, (3, 8)) for _ in range(2)], st.integers(0, 8), st.integers(0, 8))
def test_confusion_is_a_monoid(pred, truth, i, j):
  i, j = sorted((i, j))
  of = metrics.Confusion.from_predictions
  a, b, c = (of(pred[:, s], truth[:, s]) for s in (slice(i), slice(i, j), slice(j, None)))
  assert a.merge(b).merge(c) == a.merge(b.merge(c)) == of(pred, truth)
  assert a.merge(metrics.Confusion()) == metrics.Confusion().merge(a) == a


def test_a_model_that_never_fires_is_not_rewarded():
  """PaddleX's mIoU of it is 1."""
  silent = metrics.Confusion.from_predictions(np.zeros(9, bool), np.arange(9) < 2)
  assert (silent.recall, silent.f1, silent.iou, silent.dice, silent.kappa) == (0, 0, 0, 0, 0)
  assert silent.precision is None
  nothing = metrics.Confusion.from_predictions(np.zeros(9, bool), np.zeros(9, bool))
  assert (nothing.recall, nothing.f1, nothing.iou, nothing.kappa) == (None, None, None, None)
  assert nothing.accuracy == 1


def test_kappa_is_scikit_learns_at_the_size_of_a_test_set():
  confusion = metrics.Confusion(3_000_000, 200_000, 400_000, 164_000_000)
  labels, preds = [1, 0, 1, 0], [1, 1, 0, 0]
  want = sklearn.cohen_kappa_score(labels, preds, sample_weight=np.array(confusion, float))
  assert confusion.kappa == pytest.approx(want, abs=1e-9)
