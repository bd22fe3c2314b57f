"""Metrics of how well scores separate anomalous from normal, exact and in bounded memory.

All threshold-free metrics follow from one `Ranking`. Between two distinct anomalous scores only
the count of normal ones changes, so counting normal scores at the anomalous ones loses nothing.

Letters: n normal, m anomalous images or pixels; k distinct anomalous scores; p points of a curve;
h w image, r regions of its ground truth.
"""

from collections.abc import Iterable, Iterator
from concurrent import futures
from typing import NamedTuple

from jaxtyping import Bool, Float, Int, Int64
import numpy as np

from uadjax.numerics import regions

# Normal scores are sorted in batches of this size (128 MiB). Larger ones would hardly be faster;
# smaller ones would need more searches.
_BATCH = 1 << 25
# Sorting releases the GIL. Each thread holds counts for every anomalous score.
_NUM_THREADS = 2

_AREA_BOUNDS = (100, 1000, 10000)  # Each is the least area in pixels of the next class of regions.
_AREA_CLASSES = ('<100', '100-999', '1000-9999', '>=10000')

Curve = tuple[Float[np.ndarray, ' p'], Float[np.ndarray, ' p']]


class Ranking(NamedTuple):
  """Cumulative counts at each distinct anomalous score, from the largest score down.

  Attributes:
    scores: distinct scores of anomalous images or pixels, descending.
    num_anomalous: number of anomalous scores that are at least as large.
    num_normal_above: number of normal scores that are larger.
    num_normal: number of normal scores that are at least as large.
    overlap: total weight of the anomalous scores that are at least as large.
    total_normals: number of all normal scores.
  """

  scores: Float[np.ndarray, ' k']
  num_anomalous: Int64[np.ndarray, ' k']
  num_normal_above: Int64[np.ndarray, ' k']
  num_normal: Int64[np.ndarray, ' k']
  overlap: Float[np.ndarray, ' k']
  total_normals: int


def rank(
  anomalous_scores: Float[np.ndarray, ' m'],
  normal_scores: Iterable[Float[np.ndarray, ' _n']],
  weights: Float[np.ndarray, ' m'] | None = None,
) -> Ranking:
  """Return the counts of anomalous and normal scores at each distinct anomalous score.

  Args:
    anomalous_scores: scores of anomalous images or pixels; may be infinite.
    normal_scores: scores of normal ones in chunks of any size, such as one per image. Consumed
      once; chunks are held for a while, so a chunk must not be overwritten by the next.
    weights: weights of the anomalous scores, see `region_weights`; None for equal weights.

  Raises:
    ValueError: a class is empty, or a score is NaN.
  """
  _require_no_nan(anomalous_scores)
  order = np.argsort(anomalous_scores)[::-1]
  scores = anomalous_scores[order]
  last_of_ties = np.flatnonzero(np.append(scores[1:] != scores[:-1], [True] * (len(scores) > 0)))
  overlap = last_of_ties + 1.0
  if weights is not None:
    overlap = np.cumsum(weights[order], dtype=np.float64)[last_of_ties]
  scores = scores[last_of_ties]
  num_below, num_not_above, total_normals = _count_below(scores[::-1], normal_scores)
  if not len(scores) or not total_normals:
    counts = f'{len(anomalous_scores)} anomalous and {total_normals} normal scores'
    raise ValueError(f'A ranking needs scores of both classes, got {counts}.')
  num_normal_above, num_normal = (total_normals - x[::-1] for x in (num_not_above, num_below))
  return Ranking(scores, last_of_ties + 1, num_normal_above, num_normal, overlap, total_normals)


def roc_curve(ranking: Ranking) -> Curve:
  """Return the ROC curve: false-positive rates and recalls, from (0, 0) to (1, 1)."""
  return _staircase(ranking, ranking.num_anomalous / ranking.num_anomalous[-1])


def pro_curve(ranking: Ranking) -> Curve:
  """Return the PRO curve: false-positive rates and mean overlaps of regions, from (0, 0) to (1, 1).

  The ranking must be weighted by `region_weights`.
  """
  return _staircase(ranking, ranking.overlap / ranking.overlap[-1])


def pr_curve(ranking: Ranking) -> Curve:
  """Return the precision-recall curve: recalls and the best precision at each, from (0, 1) on.

  Between two points the precision is lower than at either end.
  """
  recall = ranking.num_anomalous / ranking.num_anomalous[-1]
  precision = ranking.num_anomalous / (ranking.num_anomalous + ranking.num_normal)
  return np.append(0.0, recall), np.append(1.0, precision)


def auroc(ranking: Ranking) -> float:
  """Return the area under the ROC curve.

  It is the probability that an anomalous score exceeds a normal one, where ties count half (Mann
  and Whitney 1947).
  """
  counts = np.diff(ranking.num_anomalous, prepend=0)
  # Integers hold 2^31 pixels of each class, so nothing is rounded before the division.
  total = ranking.total_normals
  doubled_wins = int(counts @ (2 * total - ranking.num_normal_above - ranking.num_normal))
  return doubled_wins / (2 * int(ranking.num_anomalous[-1]) * total)


def average_precision(ranking: Ranking) -> float:
  """Return the mean precision over recall, by steps rather than trapezoids, as in scikit-learn."""
  recall, precision = pr_curve(ranking)
  return float(np.diff(recall) @ precision[1:])


def f1_max(ranking: Ranking) -> float:
  """Return F1 at the best threshold in hindsight (an oracle, unknown beforehand)."""
  # Between anomalous scores a lower threshold only adds false positives, so one of them is best.
  tp = ranking.num_anomalous
  return float((2 * tp / (tp + ranking.num_normal + tp[-1])).max())


def au_pro(ranking: Ranking, max_fpr: float = 0.3) -> float:
  """Return the area under the PRO curve up to a false-positive rate, divided by that rate.

  Bergmann et al. 2021, 'The MVTec Anomaly Detection Dataset', section 5.1.2.

  Args:
    ranking: ranking of pixels weighted by `region_weights`; its normal scores are those of all
      normal pixels, including the ones of good images.
    max_fpr: false-positive rate to integrate up to, in (0, 1].
  """
  fpr, overlap = pro_curve(ranking)
  n = int(np.searchsorted(fpr, max_fpr, 'right'))
  y = np.append(overlap[:n], np.interp(max_fpr, fpr, overlap))
  return float(np.trapezoid(y, np.append(fpr[:n], max_fpr)) / max_fpr)


def region_weights(mask: Bool[np.ndarray, 'h w']) -> Float[np.ndarray, ' m']:
  """Return 1 / (area of its region) for each pixel of the mask, in the order of `x[mask]`.

  The weights of every region sum to one, as the PRO curve requires.
  """
  labels, sizes = regions.label_regions(mask)
  return (1 / sizes)[labels[mask] - 1]


def region_hits(
  pred: Bool[np.ndarray, 'h w'], truth: Bool[np.ndarray, 'h w']
) -> tuple[Int64[np.ndarray, ' r'], Bool[np.ndarray, ' r']]:
  """Return the area of each true region in pixels, and whether it has any predicted pixel."""
  labels, sizes = regions.label_regions(truth)
  return sizes, np.bincount(labels[pred], minlength=len(sizes) + 1)[1:] > 0


def miss_rate_by_size(
  sizes: Int[np.ndarray, ' r'], is_hit: Bool[np.ndarray, ' r']
) -> dict[str, dict[str, int | float]]:
  """Return the number of regions and the fraction of missed ones for each class of area.

  Classes are decades of pixels; those without regions are excluded.
  """
  decade = np.digitize(sizes, _AREA_BOUNDS)
  hits = {name: is_hit[decade == i] for i, name in enumerate(_AREA_CLASSES)}
  return {
    name: {'regions': len(hit), 'missed': float(1 - hit.mean())}
    for name, hit in hits.items()
    if len(hit)
  }


class Confusion(NamedTuple):
  """Confusion counts of pixels or images at a threshold, a monoid with identity `Confusion()`.

  Metrics that are 0 / 0 are None: if nothing is predicted although there are defects, precision is
  None, but recall, F1, IoU and Dice are 0.
  """

  tp: int = 0
  fp: int = 0
  fn: int = 0
  tn: int = 0

  @classmethod
  def from_predictions(
    cls, pred: Bool[np.ndarray, '*shape'], truth: Bool[np.ndarray, '*shape']
  ) -> 'Confusion':
    """Return the counts of predictions compared with the ground truth, element by element."""
    num_pred, num_true, tp = (int(np.count_nonzero(x)) for x in (pred, truth, pred & truth))
    return cls(tp, num_pred - tp, num_true - tp, pred.size - num_pred - num_true + tp)

  def merge(self, other: 'Confusion') -> 'Confusion':
    """Return the sum of both counts."""
    return Confusion(*(a + b for a, b in zip(self, other, strict=True)))

  @property
  def precision(self) -> float | None:
    """Fraction of the predicted positives that are defective."""
    return _ratio(self.tp, self.tp + self.fp)

  @property
  def recall(self) -> float | None:
    """Fraction of the defective ones that are predicted."""
    return _ratio(self.tp, self.tp + self.fn)

  @property
  def f1(self) -> float | None:
    """Harmonic mean of precision and recall."""
    return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

  @property
  def iou(self) -> float | None:
    """Intersection of the predicted and the defective over their union."""
    return _ratio(self.tp, self.tp + self.fp + self.fn)

  dice = f1  # Twice the intersection over the sum of both sizes.

  @property
  def accuracy(self) -> float | None:
    """Fraction of correct predictions."""
    return _ratio(self.tp + self.tn, sum(self))

  @property
  def kappa(self) -> float | None:
    """Agreement beyond chance, as a fraction of the possible maximum (Cohen 1960)."""
    tp, fp, fn, tn = self
    chance = (tp + fp) * (fp + tn) + (tp + fn) * (fn + tn)
    return _ratio(2 * (tp * tn - fp * fn), chance)


def _ratio(numerator: int, denominator: int) -> float | None:
  return numerator / denominator if denominator else None


def _staircase(ranking: Ranking, y: Float[np.ndarray, ' k']) -> Curve:
  """Return a curve of `y` over the false-positive rate, from (0, 0) to (1, 1).

  It is level between distinct anomalous scores and rises at each of them: vertically, or with a
  slope if normal scores tie with it.
  """
  fpr = np.stack([ranking.num_normal_above, ranking.num_normal], axis=1).ravel()
  fpr = fpr / ranking.total_normals
  return np.concatenate([[0.0], fpr, [1.0]]), np.repeat(np.append(0.0, y), 2)


def _count_below(
  scores: Float[np.ndarray, ' k'], chunks: Iterable[Float[np.ndarray, ' _n']]
) -> tuple[Int64[np.ndarray, ' k'], Int64[np.ndarray, ' k'], int]:
  """Return for ascending scores how many values are below, and how many not above, each of them.

  The third result is the number of all values.
  """
  num_below, num_not_above = np.zeros((2, len(scores)), np.int64)
  total = 0

  def search(values: Float[np.ndarray, ' _n']) -> tuple[np.ndarray, np.ndarray]:
    values.sort()
    return np.searchsorted(values, scores, 'left'), np.searchsorted(values, scores, 'right')

  with futures.ThreadPoolExecutor(_NUM_THREADS) as pool:
    for batch in _concatenate_chunks(chunks):
      _require_no_nan(batch)
      for left, right in pool.map(search, np.array_split(batch, _NUM_THREADS)):
        num_below += left
        num_not_above += right
      total += len(batch)
  return num_below, num_not_above, total


def _concatenate_chunks(
  chunks: Iterable[Float[np.ndarray, ' _n']],
) -> Iterator[Float[np.ndarray, ' _n']]:
  """Yield copies of chunks, concatenated to arrays large enough for a search to pay off."""
  pending: list[np.ndarray] = []
  size = 0
  for chunk in chunks:
    pending.append(chunk)
    size += len(chunk)
    if size >= _BATCH:
      yield np.concatenate(pending)
      pending, size = [], 0
  if pending:
    yield np.concatenate(pending)


def _require_no_nan(scores: Float[np.ndarray, ' _n']) -> None:
  num_nan = int(np.isnan(scores).sum())
  if num_nan:
    raise ValueError(f'Scores must not be NaN, got {num_nan} NaN among {len(scores)} scores.')
