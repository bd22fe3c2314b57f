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
_THREADS = 2  # Sorting lets go of the GIL. Each thread holds counts for every anomalous score.

_AREAS = (100, 1000, 10000)  # Of regions, in pixels: where one class ends and the next begins.
_CLASSES = ('<100', '100-999', '1000-9999', '>=10000')

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

  score: Float[np.ndarray, ' k']
  anomalous: Int64[np.ndarray, ' k']
  normal_above: Int64[np.ndarray, ' k']
  normal: Int64[np.ndarray, ' k']
  overlap: Float[np.ndarray, ' k']
  normals: int


def rank(
  anomalous: Float[np.ndarray, ' m'],
  normal: Iterable[Float[np.ndarray, ' _n']],
  weight: Float[np.ndarray, ' m'] | None = None,
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
  _refuse_nan(anomalous)
  order = np.argsort(anomalous)[::-1]
  score = anomalous[order]
  last = np.flatnonzero(np.append(score[1:] != score[:-1], [True] * (len(score) > 0)))  # Of ties.
  overlap = (last + 1.0) if weight is None else np.cumsum(weight[order], dtype=np.float64)[last]
  score = score[last]
  below, not_above, normals = _count(score[::-1], normal)
  if not len(score) or not normals:
    raise ValueError(
      f'A ranking needs both classes, got {len(anomalous)} anomalous and {normals} normal scores.'
    )
  return Ranking(
    score, last + 1, normals - not_above[::-1], normals - below[::-1], overlap, normals
  )


def roc_curve(r: Ranking) -> Curve:
  """False-positive rate and recall at the corners of the curve, from (0, 0) to (1, 1)."""
  return _staircase(r, r.anomalous / r.anomalous[-1])


def pro_curve(r: Ranking) -> Curve:
  """False-positive rate and mean overlap of regions; of a ranking by `region_weights`."""
  return _staircase(r, r.overlap / r.overlap[-1])


def pr_curve(r: Ranking) -> Curve:
  """Recall and the best precision there, from (0, 1) on; between two points precision dips."""
  recall, precision = r.anomalous / r.anomalous[-1], r.anomalous / (r.anomalous + r.normal)
  return np.append(0.0, recall), np.append(1.0, precision)


def auroc(r: Ranking) -> float:
  """Chance that an anomaly outscores a normal; ties count half (Mann and Whitney 1947)."""
  times = np.diff(r.anomalous, prepend=0)
  # Integers, which hold 2^31 pixels of each class: nothing is rounded before the quotient.
  won_twice = int(times @ (2 * r.normals - r.normal_above - r.normal))
  return won_twice / (2 * int(r.anomalous[-1]) * r.normals)


def average_precision(r: Ranking) -> float:
  """Mean precision over recall, by steps and not by trapezoids, as scikit-learn has it."""
  recall, precision = pr_curve(r)
  return float(np.diff(recall) @ precision[1:])


def f1_max(r: Ranking) -> float:
  """F1 at the best of all thresholds: an oracle, for nobody knows that one beforehand."""
  # More normals only lower it: the best threshold is an anomalous score.
  return float((2 * r.anomalous / (r.anomalous + r.normal + r.anomalous[-1])).max())


def au_pro(r: Ranking, limit: float = 0.3) -> float:
  """Area under the PRO curve up to a false-positive rate, as a share of what is possible.

  Bergmann et al. 2021, 'The MVTec Anomaly Detection Dataset', section 5.1.2. The ranking must be by
  `region_weights`, its normals all normal pixels, those of good images included; limit in (0, 1].
  """
  fpr, overlap = pro_curve(r)
  inside = int(np.searchsorted(fpr, limit, 'right'))
  edge = np.interp(limit, fpr, overlap)
  area = np.trapezoid(np.append(overlap[:inside], edge), np.append(fpr[:inside], limit))
  return float(area / limit)


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
  sizes: Int[np.ndarray, ' r'], found: Bool[np.ndarray, ' r']
) -> dict[str, dict[str, int | float]]:
  """Number of regions and share of missed ones by decade of area; decades without are left out."""
  decade = np.digitize(sizes, _AREAS)
  hits = {name: found[decade == i] for i, name in enumerate(_CLASSES)}
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
  def of(cls, pred: Bool[np.ndarray, '*shape'], truth: Bool[np.ndarray, '*shape']) -> 'Confusion':
    """Compare one by one."""
    marked, bad, tp = (int(np.count_nonzero(x)) for x in (pred, truth, pred & truth))
    return cls(tp, marked - tp, bad - tp, pred.size - marked - bad + tp)

  def merge(self, other: 'Confusion') -> 'Confusion':
    """Counts of both together."""
    return Confusion(*(a + b for a, b in zip(self, other, strict=True)))

  @property
  def precision(self) -> float | None:
    """Share of the marked that is defective."""
    return _share(self.tp, self.tp + self.fp)

  @property
  def recall(self) -> float | None:
    """Share of the defective that is marked."""
    return _share(self.tp, self.tp + self.fn)

  @property
  def f1(self) -> float | None:
    """Harmonic mean of precision and recall."""
    return _share(2 * self.tp, 2 * self.tp + self.fp + self.fn)

  @property
  def iou(self) -> float | None:
    """Intersection of the marked and the defective over their union."""
    return _share(self.tp, self.tp + self.fp + self.fn)

  @property
  def dice(self) -> float | None:
    """Twice the intersection over the sum of both sizes: the name of F1 among pixels."""
    return self.f1

  @property
  def accuracy(self) -> float | None:
    """Share that is judged right."""
    return _share(self.tp + self.tn, sum(self))

  @property
  def kappa(self) -> float | None:
    """Agreement beyond chance as a share of what is possible (Cohen 1960)."""
    tp, fp, fn, tn = self
    chance = (tp + fp) * (fp + tn) + (tp + fn) * (fn + tn)
    return _share(2 * (tp * tn - fp * fn), chance)


def _share(part: int, whole: int) -> float | None:
  return part / whole if whole else None


def _staircase(r: Ranking, height: Float[np.ndarray, ' k']) -> Curve:
  """Level while only normals pass, then a rise; it slopes where normals tie with anomalies."""
  fpr = np.stack([r.normal_above, r.normal], axis=1).ravel() / r.normals
  return np.concatenate([[0.0], fpr, [1.0]]), np.repeat(np.append(0.0, height), 2)


def _count(
  score: Float[np.ndarray, ' k'], chunks: Iterable[Float[np.ndarray, ' _n']]
) -> tuple[Int64[np.ndarray, ' k'], Int64[np.ndarray, ' k'], int]:
  """Number of values below each of the ascending scores, of those not above, and of all."""
  below, not_above, total = np.zeros(len(score), np.int64), np.zeros(len(score), np.int64), 0

  def search(values: Float[np.ndarray, ' _n']) -> tuple[np.ndarray, np.ndarray]:
    values.sort()
    return np.searchsorted(values, score, 'left'), np.searchsorted(values, score, 'right')

  with futures.ThreadPoolExecutor(_THREADS) as pool:
    for batch in _batches(chunks):
      _refuse_nan(batch)
      for left, right in pool.map(search, np.array_split(batch, _THREADS)):
        below += left
        not_above += right
      total += len(batch)
  return below, not_above, total


def _batches(chunks: Iterable[Float[np.ndarray, ' _n']]) -> Iterator[Float[np.ndarray, ' _n']]:
  """Join chunks into arrays of our own that are large enough for a search to pay."""
  held: list[np.ndarray] = []
  size = 0
  for chunk in chunks:
    held.append(chunk)
    size += len(chunk)
    if size >= _BATCH:
      yield np.concatenate(held)
      held, size = [], 0
  if held:
    yield np.concatenate(held)


def _refuse_nan(scores: Float[np.ndarray, ' _n']) -> None:
  nans = int(np.isnan(scores).sum())
  if nans:
    raise ValueError(f'A ranking needs numbers, got {nans} NaN among {len(scores)} scores.')
