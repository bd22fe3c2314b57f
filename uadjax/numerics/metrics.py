"""How well scores tell defects from normal, exactly and in bounded memory.

Every number that needs no threshold follows from one `Ranking`. Between two distinct anomalous
scores only normals come and go, so that counting normals at the anomalous scores loses nothing.

Letters: n normal, m anomalous images or pixels; k distinct anomalous scores; p points of a curve;
h w image, r regions of its ground truth.
"""

from collections.abc import Iterable, Iterator
from concurrent import futures
from typing import NamedTuple

from jaxtyping import Bool, Float, Int, Int64
import numpy as np

from uadjax.numerics import regions

# Normal scores sorted at once: 128 MiB. More would hardly be faster, less searches more often.
_BATCH = 1 << 25
_NUM_THREADS = 2  # Sorting lets go of the GIL. Each thread holds counts for every anomalous score.

_AREA_BOUNDS = (
  100,
  1000,
  10000,
)  # Of regions, in pixels: where one class ends and the next begins.
_AREA_CLASSES = ('<100', '100-999', '1000-9999', '>=10000')

Curve = tuple[Float[np.ndarray, ' p'], Float[np.ndarray, ' p']]


class Ranking(NamedTuple):
  """Where anomalous scores stand among normal ones, from the largest distinct score down.

  Attributes:
    score: the distinct scores of anomalous images or pixels.
    anomalous: number of anomalous ones that score as much or more.
    normal_above: number of normal ones that score more.
    normal: number of normal ones that score as much or more.
    overlap: weight of the anomalous ones that score as much or more.
    normals: number of all normal ones.
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
  """Count anomalous and normal scores at each distinct anomalous one.

  Args:
    anomalous: scores; infinite ones are as good as any.
    normal: scores in chunks of any size, say one of each image; consumed once. Some are held for a
      while: a chunk must not be overwritten by the next.
    weight: of the anomalous, see `region_weights`; by default they count alike.

  Raises:
    ValueError: where a class is missing, or a score is NaN.
  """
  _require_no_nan(anomalous_scores)
  order = np.argsort(anomalous_scores)[::-1]
  scores = anomalous_scores[order]
  last_of_ties = np.flatnonzero(
    np.append(scores[1:] != scores[:-1], [True] * (len(scores) > 0))
  )  # Of ties.
  overlap = (
    (last_of_ties + 1.0)
    if weights is None
    else np.cumsum(weights[order], dtype=np.float64)[last_of_ties]
  )
  scores = scores[last_of_ties]
  num_below, num_not_above, total_normals = _count_below(scores[::-1], normal_scores)
  if not len(scores) or not total_normals:
    raise ValueError(
      f'A ranking needs both classes, got {len(anomalous_scores)} anomalous and {total_normals} normal scores.'
    )
  return Ranking(
    scores,
    last_of_ties + 1,
    total_normals - num_not_above[::-1],
    total_normals - num_below[::-1],
    overlap,
    total_normals,
  )


def roc_curve(ranking: Ranking) -> Curve:
  """False-positive rate and recall at the corners of the curve, from (0, 0) to (1, 1)."""
  return _staircase(ranking, ranking.num_anomalous / ranking.num_anomalous[-1])


def pro_curve(ranking: Ranking) -> Curve:
  """False-positive rate and mean overlap of regions; of a ranking by `region_weights`."""
  return _staircase(ranking, ranking.overlap / ranking.overlap[-1])


def pr_curve(ranking: Ranking) -> Curve:
  """Recall and the best precision there, from (0, 1) on; between two points precision dips."""
  recall, precision = (
    ranking.num_anomalous / ranking.num_anomalous[-1],
    ranking.num_anomalous / (ranking.num_anomalous + ranking.num_normal),
  )
  return np.append(0.0, recall), np.append(1.0, precision)


def auroc(ranking: Ranking) -> float:
  """Chance that an anomaly outscores a normal; ties count half (Mann and Whitney 1947)."""
  counts = np.diff(ranking.num_anomalous, prepend=0)
  # Integers, which hold 2^31 pixels of each class: nothing is rounded before the quotient.
  doubled_wins = int(
    counts @ (2 * ranking.total_normals - ranking.num_normal_above - ranking.num_normal)
  )
  return doubled_wins / (2 * int(ranking.num_anomalous[-1]) * ranking.total_normals)


def average_precision(ranking: Ranking) -> float:
  """Mean precision over recall, by steps and not by trapezoids, as scikit-learn has it."""
  recall, precision = pr_curve(ranking)
  return float(np.diff(recall) @ precision[1:])


def f1_max(ranking: Ranking) -> float:
  """F1 at the best of all thresholds: an oracle, for nobody knows that one beforehand."""
  # More normals only lower it: the best threshold is an anomalous score.
  return float(
    (
      2
      * ranking.num_anomalous
      / (ranking.num_anomalous + ranking.num_normal + ranking.num_anomalous[-1])
    ).max()
  )


def au_pro(ranking: Ranking, max_fpr: float = 0.3) -> float:
  """Area under the PRO curve up to a false-positive rate, as a share of what is possible.

  Bergmann et al. 2021, 'The MVTec Anomaly Detection Dataset', section 5.1.2. The ranking must be by
  `region_weights`, its normals all normal pixels, those of good images included; limit in (0, 1].
  """
  fpr, overlap = pro_curve(ranking)
  num_inside = int(np.searchsorted(fpr, max_fpr, 'right'))
  edge_overlap = np.interp(max_fpr, fpr, overlap)
  area = np.trapezoid(
    np.append(overlap[:num_inside], edge_overlap), np.append(fpr[:num_inside], max_fpr)
  )
  return float(area / max_fpr)


def region_weights(mask: Bool[np.ndarray, 'h w']) -> Float[np.ndarray, ' m']:
  """One over the size of its region for each pixel of `x[mask]`: every region weighs one."""
  labels, sizes = regions.label_regions(mask)
  return (1 / sizes)[labels[mask] - 1]


def region_hits(
  pred: Bool[np.ndarray, 'h w'], truth: Bool[np.ndarray, 'h w']
) -> tuple[Int64[np.ndarray, ' r'], Bool[np.ndarray, ' r']]:
  """Sizes of the true regions in pixels, and whether any pixel of theirs is marked."""
  labels, sizes = regions.label_regions(truth)
  return sizes, np.bincount(labels[pred], minlength=len(sizes) + 1)[1:] > 0


def miss_rate_by_size(
  sizes: Int[np.ndarray, ' r'], is_hit: Bool[np.ndarray, ' r']
) -> dict[str, dict[str, int | float]]:
  """Number of regions and share of missed ones by decade of area; decades without are left out."""
  decade = np.digitize(sizes, _AREA_BOUNDS)
  hits = {name: is_hit[decade == i] for i, name in enumerate(_AREA_CLASSES)}
  return {
    name: {'regions': len(hit), 'missed': float(1 - hit.mean())}
    for name, hit in hits.items()
    if len(hit)
  }


class Confusion(NamedTuple):
  """Counts of pixels or images at a threshold; a monoid whose empty element is `Confusion()`.

  A quotient of nothing by nothing is None. A model that never fires where there are defects has no
  precision, but a recall, F1, IoU and Dice of 0.
  """

  tp: int = 0
  fp: int = 0
  fn: int = 0
  tn: int = 0

  @classmethod
  def from_predictions(
    cls, pred: Bool[np.ndarray, '*shape'], truth: Bool[np.ndarray, '*shape']
  ) -> 'Confusion':
    """Compare one by one."""
    num_predicted, num_defective, tp = (
      int(np.count_nonzero(x)) for x in (pred, truth, pred & truth)
    )
    return cls(
      tp, num_predicted - tp, num_defective - tp, pred.size - num_predicted - num_defective + tp
    )

  def merge(self, other: 'Confusion') -> 'Confusion':
    """Counts of both together."""
    return Confusion(*(a + b for a, b in zip(self, other, strict=True)))

  @property
  def precision(self) -> float | None:
    """Share of the marked that is defective."""
    return _ratio(self.tp, self.tp + self.fp)

  @property
  def recall(self) -> float | None:
    """Share of the defective that is marked."""
    return _ratio(self.tp, self.tp + self.fn)

  @property
  def f1(self) -> float | None:
    """Harmonic mean of precision and recall."""
    return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

  @property
  def iou(self) -> float | None:
    """Intersection of the marked and the defective over their union."""
    return _ratio(self.tp, self.tp + self.fp + self.fn)

  @property
  def dice(self) -> float | None:
    """Twice the intersection over the sum of both sizes: the name of F1 among pixels."""
    return self.f1

  @property
  def accuracy(self) -> float | None:
    """Share that is judged right."""
    return _ratio(self.tp + self.tn, sum(self))

  @property
  def kappa(self) -> float | None:
    """Agreement beyond chance as a share of what is possible (Cohen 1960)."""
    tp, fp, fn, tn = self
    chance = (tp + fp) * (fp + tn) + (tp + fn) * (fn + tn)
    return _ratio(2 * (tp * tn - fp * fn), chance)


def _ratio(numerator: int, denominator: int) -> float | None:
  return numerator / denominator if denominator else None


def _staircase(ranking: Ranking, y: Float[np.ndarray, ' k']) -> Curve:
  """Level while only normals pass, then a rise; it slopes where normals tie with anomalies."""
  fpr = (
    np.stack([ranking.num_normal_above, ranking.num_normal], axis=1).ravel() / ranking.total_normals
  )
  return np.concatenate([[0.0], fpr, [1.0]]), np.repeat(np.append(0.0, y), 2)


def _count_below(
  scores: Float[np.ndarray, ' k'], chunks: Iterable[Float[np.ndarray, ' _n']]
) -> tuple[Int64[np.ndarray, ' k'], Int64[np.ndarray, ' k'], int]:
  """Number of values below each of the ascending scores, of those not above, and of all."""
  num_below, num_not_above, total = (
    np.zeros(len(scores), np.int64),
    np.zeros(len(scores), np.int64),
    0,
  )

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
  """Join chunks into arrays of our own that are large enough for a search to pay."""
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
    raise ValueError(f'A ranking needs numbers, got {num_nan} NaN among {len(scores)} scores.')
