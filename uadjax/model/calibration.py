"""Thresholds from good images that the detector has not learned from, or from labelled ones.

An image is OK at or below `review`, NG above `image`, and to be looked at in between.

What good images tell is free of any assumption but that unseen ones are of the same kind. Let a
threshold be one of n scores, with `above` of the others above it. The share of unseen good images
above it is then a draw of Beta(above + 1, n − above), however scores are distributed (Wilks 1941);
ties only make it smaller. `expected` is its mean, `bound` its 95 % quantile.

Letters: n good images, m defective ones, k distinct map values of defective pixels.
"""

import math
from typing import NamedTuple

from jaxtyping import Float, Int
import numpy as np
from scipy import special

from uadjax.errors import ConfigError, DataError, Setting, UnknownName

METHODS = ('normals', 'confident', 'f1', 'cost')
CONFIDENCE = 0.95
_LABELLED = ('f1', 'cost')
_GIVEN = 'given'  # Of thresholds that nothing stands on.


class Limits(NamedTuple):
  """Thresholds, and what they stand on; plain numbers and text, as JSON can hold them.

  Attributes:
    image: an image whose score exceeds it is NG.
    pixel: a pixel whose map value exceeds it is marked.
    review: an image whose score exceeds it, but not `image`, is to be looked at; at most `image`.
    method: 'normals': on average over calibrations the budget is kept; 'confident': it is kept
      with `confidence`; 'f1' and 'cost': from labelled images.
    budget: the share of good images that may be called NG; in labelled methods of the pixel
      threshold alone, and only where no masks were given.
    review_budget: the share of good images that may exceed `review`.
    normals: number of good images that it was set on.
    expected: the share of unseen good images that will be called NG, in expectation. In labelled
      methods the share of the given ones, on which the threshold was also chosen: optimistic.
    bound: what that share does not exceed, with `confidence`; optimistic likewise (Clopper and
      Pearson 1934).
    needed: number of good images from which 'confident' keeps the budget.
    labelled: number of defective images that it was set on; 0 without labels.
    missed: how many of them are not NG.
    confidence: of `bound` and `needed`.
  """

  image: float
  pixel: float
  review: float
  method: str
  budget: float
  review_budget: float
  normals: int
  expected: float
  bound: float
  needed: int
  labelled: int = 0
  missed: int = 0
  confidence: float = CONFIDENCE

  @property
  def given(self) -> bool:
    """Whether the image thresholds were set by hand."""
    return self.method == _GIVEN

  @property
  def over_budget(self) -> bool:
    """Whether good images were too few for what the method is to keep."""
    kept = {'normals': self.expected, 'confident': self.bound}.get(self.method, 0.0)
    return kept > self.budget + 1e-9

  def __str__(self) -> str:
    band = f'review above {self.review:.4g}'
    if self.review >= self.image:
      band = 'nothing to review'
      if self.method not in (*_LABELLED, _GIVEN):
        band += f' (a band takes more than {self.normals} good images)'
    thresholds = f'NG above {self.image:.4g}, {band}, pixels marked above {self.pixel:.4g}'
    if self.method in _LABELLED:
      return f'{thresholds}: {_told_of_labels(self)}.'
    if self.given:
      return f'{thresholds}: set by hand, so that nothing is promised of unseen good images.'
    return f'{thresholds}: {(_told_of_few if self.over_budget else _told_of_normals)(self)}.'


def from_normals(
  scores: Float[np.ndarray, ' n'],
  peaks: Float[np.ndarray, ' n'],
  budget: float,
  review_budget: float = 0.05,
  confident: bool = False,
) -> Limits:
  """Set thresholds by quantiles of good images.

  On average the budget is kept by the conformal quantile (Vovk et al. 2005, section 2.2); with 95 %
  confidence, so in 19 of 20 calibrations, by a tolerance limit (Wilks 1941), which lies higher.
  Where good images are too few for either, it is their maximum, and `over_budget` says so.

  The pixel threshold is set likewise on the maps' peaks, so that as few good images show any
  marked pixel.

  Args:
    scores: image scores.
    peaks: the largest map value of each image.
    budget: share of good images that may be called NG, in (0, 1).
    review_budget: share of good images that may be reviewed or called NG, in [budget, 1).
    confident: keep both budgets with confidence rather than on average.
  """
  _check_budgets(budget, review_budget)
  n = _count(scores, 'good')
  _count(peaks, 'good')  # As many; but they may not be numbers.
  rank_of = _confident_rank if confident else _average_rank
  rank, review_rank = rank_of(n, budget), rank_of(n, review_budget)
  images, maps = np.sort(scores).tolist(), np.sort(peaks).tolist()
  return Limits(
    image=_just_above(images[rank - 1], _ROOM),
    pixel=_just_above(maps[rank - 1], _ROOM),
    review=_just_above(images[review_rank - 1], _ROOM),
    method='confident' if confident else 'normals',
    budget=budget,
    review_budget=review_budget,
    normals=n,
    expected=(n - rank + 1) / (n + 1),
    bound=_bound(n - rank, n),
    needed=_needed(budget),
  )


def from_labelled(
  normal: Float[np.ndarray, ' n'],
  peaks: Float[np.ndarray, ' n'],
  anomalous: Float[np.ndarray, ' m'],
  method: str,
  budget: float,
  review_budget: float = 0.05,
  miss_cost: float = 10.0,
  pixel: float | None = None,
) -> Limits:
  """Set the image threshold where it tells the given images apart best.

  It lies midway between two neighboring scores; of several that are equally good it is the lowest,
  which misses fewest. The review threshold comes from the good images, as without labels, for
  defects of a kind that was not given. So does the pixel threshold where there are no masks: image
  labels do not tell where a defect is.

  Args:
    normal: scores of good images that the detector has not learned from.
    peaks: the largest map value of each of them.
    anomalous: scores of defective images.
    method: 'f1', the largest F1; or 'cost', the least false alarms + miss_cost · misses.
    budget: share of good images that may show marked pixels, if `pixel` is None.
    review_budget: as for `from_normals`.
    miss_cost: what a missed defect costs, in false alarms.
    pixel: the map's threshold, which `pixel_by_f1` finds from masks for either method: what a
      pixel missed costs nobody knows, but that marks should cover defects holds always.
  """
  if method not in _LABELLED:
    raise UnknownName(f'Unknown method for labelled images {method!r}; choose from {_LABELLED}.')
  _check_cost(miss_cost)
  n, m = _count(normal, 'good'), _count(anomalous, 'defective')
  by_normals = from_normals(normal, peaks, budget, review_budget)
  image = _best(normal, anomalous, miss_cost if method == 'cost' else None)
  above = int((normal > image).sum())
  return by_normals._replace(
    image=image,
    pixel=by_normals.pixel if pixel is None else pixel,
    review=min(by_normals.review, image),
    method=method,
    expected=above / n,
    bound=_bound(above, n),
    labelled=m,
    missed=int((anomalous <= image).sum()),
  )


def pixel_by_f1(
  score: Float[np.ndarray, ' k'], anomalous: Int[np.ndarray, ' k'], normal: Int[np.ndarray, ' k']
) -> float:
  """Find the map's threshold of the largest pixel F1; of several the lowest.

  It lies just below a value of a defective pixel, for raising it up to the next one loses none
  of them.

  Args:
    score: the distinct values of defective pixels, from the largest on.
    anomalous: number of defective pixels at or above each.
    normal: number of normal pixels at or above each. All three as in `metrics.Ranking`.
  """
  if not len(score):
    raise DataError('Masks set a pixel threshold only where they mark some pixel; none does.')
  f1 = 2 * anomalous / (anomalous + normal + anomalous[-1])
  return _just_below(float(score[np.flatnonzero(f1 == f1.max())[-1]]))


def override(
  limits: Limits,
  image: float | None = None,
  review: float | None = None,
  pixel: float | None = None,
) -> Limits:
  """Replace thresholds; an image threshold below the review threshold pulls that down to itself.

  Where those of images are, what was promised of the calibrated ones is dropped.
  """
  given = {'image': image, 'review': review, 'pixel': pixel}
  for name, value in given.items():
    if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
      raise ConfigError(f'The {name} threshold must be a finite number, got {value!r}.')
  limits = limits._replace(**{name: value for name, value in given.items() if value is not None})
  if image is not None or review is not None:
    limits = limits._replace(method=_GIVEN, expected=math.nan, bound=math.nan)
  return limits._replace(review=min(limits.review, limits.image))


def label(score: float, limits: Limits) -> str:
  """Tell 'OK', 'review' or 'NG'; a score that is NaN is NG, for it was never seen to be good."""
  if score <= limits.review:
    return 'OK'
  return 'review' if score <= limits.image else 'NG'


def check(
  budget: float,
  review_budget: float = 0.05,
  method: str = 'normals',
  miss_cost: float = 10.0,
  labelled: str = '',
) -> None:
  """Refuse what cannot be carried out; before hours of fitting, not after."""
  _check_budgets(budget, review_budget)
  if method not in METHODS:
    raise UnknownName(f'Unknown calibrate.method {method!r}; choose from {METHODS}.')
  _check_cost(miss_cost)
  if method in _LABELLED and not labelled:
    raise ConfigError(
      f'calibrate.method {method!r} needs labelled images.',
      key='calibrate.labelled',
      hint=(
        'Name a dataset directory with good and defective ones in ',
        Setting('calibrate.labelled'), ', or pass ', Setting('calibrate.method', 'normals'), '.',
      ),
    )  # fmt: skip
  if labelled and method not in _LABELLED:
    raise ConfigError(
      f'calibrate.labelled means nothing to calibrate.method {method!r}; leave it out, or choose '
      f'a method from {_LABELLED}.'
    )


def _check_budgets(budget: float, review_budget: float) -> None:
  if not 0 < budget < 1:
    raise ConfigError(f'calibrate.budget must lie between 0 and 1, got {budget}.')
  if not budget <= review_budget < 1:
    raise ConfigError(
      f'calibrate.review_budget must lie between calibrate.budget ({budget}) and 1, got '
      f'{review_budget}: images called NG have exceeded the review threshold, too.',
      key='calibrate.review_budget',
      value=review_budget,
      allowed=(budget, 1),
      hint=('Pass ', Setting('calibrate.review_budget', budget), ' for no review.'),
    )


def _check_cost(miss_cost: float) -> None:
  if not 0 < miss_cost < math.inf:
    raise ConfigError(f'calibrate.miss_cost must be positive and finite, got {miss_cost}.')


def _count(scores: Float[np.ndarray, ' n'], kind: str) -> int:
  if not len(scores):
    raise DataError(
      f'Calibration needs at least one {kind} image that was not learned from, got none.'
    )
  if odd := int((~np.isfinite(scores)).sum()):
    raise DataError(
      f'{odd} of {len(scores)} scores of {kind} images are no finite numbers, so no threshold can '
      'be set; fit the model again, at a smaller fit.learning_rate if it descends one.'
    )
  return len(scores)


def _average_rank(n: int, budget: float) -> int:
  """Of n + 1 exchangeable scores the last exceeds this one of the others with chance <= budget."""
  return min(n, max(1, math.ceil((1 - budget) * (n + 1) - 1e-9)))


def _confident_rank(n: int, budget: float) -> int:
  ranks = np.arange(1, n + 1)
  kept = ranks[special.betaincinv(n - ranks + 1, ranks, CONFIDENCE) <= budget]
  return int(kept[0]) if len(kept) else n


def _bound(above: int, n: int) -> float:
  """Upper limit of a share of which `above` of n were seen."""
  return float(special.betaincinv(above + 1, n - above, CONFIDENCE)) if above < n else 1.0


def _needed(budget: float) -> int:
  """How many scores it takes for their maximum to keep the budget with confidence."""
  return max(1, math.ceil(math.log1p(-CONFIDENCE) / math.log1p(-budget) - 1e-9))


# In another batch size a score may come out an ulp of float32 larger or smaller; in another runtime
# by what exports are allowed to differ, and the image that a threshold stands on must stay below.
_HAIR, _ROOM, _TINY = 1e-6, 1e-4, 1e-30


def _just_above(score: float, hair: float = _HAIR) -> float:
  return score + hair * max(abs(score), _TINY)


def _just_below(score: float) -> float:
  return -_just_above(-score)


def _best(
  normal: Float[np.ndarray, ' n'], anomalous: Float[np.ndarray, ' m'], miss_cost: float | None
) -> float:
  """Find the threshold of the least cost, or of the largest F1 where there is none."""
  scores = np.unique(np.concatenate([normal, anomalous]).astype(np.float64))
  low, high = scores[:-1], scores[1:]
  middle = low / 2 + high / 2
  between = np.where((low <= middle) & (middle < high), middle, low)  # No double may be between.
  thresholds = np.array([_just_below(float(scores[0])), *between, _just_above(float(scores[-1]))])
  false_alarms = len(normal) - np.searchsorted(np.sort(normal), thresholds, 'right')
  misses = np.searchsorted(np.sort(anomalous), thresholds, 'right')
  if miss_cost is None:
    hits = len(anomalous) - misses
    loss = -2 * hits / (hits + false_alarms + len(anomalous))
  else:
    loss = false_alarms + miss_cost * misses
  # Equal but for rounding: 3 · 0.1 is a little more than 0.3.
  best = loss.min() + 1e-12 * abs(loss.min())
  return float(thresholds[np.flatnonzero(loss <= best)[0]])


def _told_of_normals(limits: Limits) -> str:
  return (
    f'of unseen good images {_percent(limits.expected)} are expected to be NG, and at most '
    f'{_percent(limits.bound)} with {_percent(limits.confidence)} confidence (budget '
    f'{_percent(limits.budget)}, set on {limits.normals} good images held or left out)'
  )


def _told_of_few(limits: Limits) -> str:
  on_average = max(1, math.ceil(1 / limits.budget - 1e-9) - 1)
  sure = f'{_percent(limits.confidence)} confidence'
  return (
    f'with {limits.normals} good images held or left out nothing below '
    f'{_percent(limits.expected)} false alarms can be promised on average, or '
    f'{_percent(limits.bound)} with {sure}; a budget of {_percent(limits.budget)} needs '
    f'{on_average} on average, {limits.needed} with {sure}'
  )


def _told_of_labels(limits: Limits) -> str:
  best = {'f1': 'the best F1', 'cost': 'the least cost'}[limits.method]
  alarms = round(limits.expected * limits.normals)
  return (
    f'{best} on {limits.labelled} defective and {limits.normals} good images, of which it misses '
    f'{limits.missed} and calls {alarms} NG ({_percent(limits.expected)}; at most '
    f'{_percent(limits.bound)} with {_percent(limits.confidence)} confidence), optimistic because '
    'it was chosen on the same images'
  )


def _percent(share: float) -> str:
  return f'{100 * share:.2g} %' if share < 0.1 else f'{100 * share:.0f} %'


class Peaks(NamedTuple):
  """What is left of scored images without their maps.

  Attributes:
    path: the files, '' where only embeddings were kept.
    image: image scores.
    map: largest map values.
  """

  path: tuple[str, ...]
  image: Float[np.ndarray, ' n']
  map: Float[np.ndarray, ' n']
