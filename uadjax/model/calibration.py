"""Thresholds from good images that the detector has not learned from, or from labeled ones.

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
_LABELED_METHODS = ('f1', 'cost')
_MANUAL = 'manual'  # Of thresholds that nothing stands on.


class Thresholds(NamedTuple):
  """Thresholds, and what they stand on; plain numbers and text, as JSON can hold them.

  Attributes:
    image: an image whose score exceeds it is NG.
    pixel: a pixel whose map value exceeds it is marked.
    review: an image whose score exceeds it, but not `image`, is to be looked at; at most `image`.
    method: 'normals': on average over calibrations the budget is kept; 'confident': it is kept
      with `confidence`; 'f1' and 'cost': from labeled images.
    budget: the share of good images that may be called NG; in labeled methods of the pixel
      threshold alone, and only where no masks were given.
    review_budget: the share of good images that may exceed `review`.
    normals: number of good images that it was set on.
    expected: the share of unseen good images that will be called NG, in expectation. In labeled
      methods the share of the given ones, on which the threshold was also chosen: optimistic.
    bound: what that share does not exceed, with `confidence`; optimistic likewise (Clopper and
      Pearson 1934).
    needed: number of good images from which 'confident' keeps the budget.
    labeled: number of defective images that it was set on; 0 without labels.
    missed: how many of them are not NG.
    confidence: of `bound` and `needed`.
  """

  image_threshold: float
  pixel_threshold: float
  review_threshold: float
  method: str
  budget: float
  review_budget: float
  num_normals: int
  expected_false_alarm_rate: float
  false_alarm_rate_bound: float
  num_normals_required: int
  num_anomalous: int = 0
  num_missed: int = 0
  confidence: float = CONFIDENCE

  @property
  def is_manual(self) -> bool:
    """Whether the image thresholds were set by hand."""
    return self.method == _MANUAL

  @property
  def is_over_budget(self) -> bool:
    """Whether good images were too few for what the method is to keep."""
    rate = {
      'normals': self.expected_false_alarm_rate,
      'confident': self.false_alarm_rate_bound,
    }.get(self.method, 0.0)
    return rate > self.budget + 1e-9

  def __str__(self) -> str:
    review_text = f'review above {self.review_threshold:.4g}'
    if self.review_threshold >= self.image_threshold:
      review_text = 'nothing to review'
      if self.method not in (*_LABELED_METHODS, _MANUAL):
        review_text += f' (a band takes more than {self.num_normals} good images)'
    threshold_text = f'NG above {self.image_threshold:.4g}, {review_text}, pixels marked above {self.pixel_threshold:.4g}'
    if self.method in _LABELED_METHODS:
      return f'{threshold_text}: {_describe_labeled_method(self)}.'
    if self.is_manual:
      return f'{threshold_text}: set by hand, so that nothing is promised of unseen good images.'
    return f'{threshold_text}: {(_describe_over_budget if self.is_over_budget else _describe_normals_method)(self)}.'


def from_normals(
  scores: Float[np.ndarray, ' n'],
  peaks: Float[np.ndarray, ' n'],
  budget: float,
  review_budget: float = 0.05,
  confident: bool = False,
) -> Thresholds:
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
  _validate_budgets(budget, review_budget)
  n = _count_finite_scores(scores, 'good')
  _count_finite_scores(peaks, 'good')  # As many; but they may not be numbers.
  rank_for_budget = _confident_rank if confident else _average_rank
  rank, review_rank = rank_for_budget(n, budget), rank_for_budget(n, review_budget)
  sorted_scores, sorted_peaks = np.sort(scores).tolist(), np.sort(peaks).tolist()
  return Thresholds(
    image_threshold=_just_above(sorted_scores[rank - 1], _EXPORT_MARGIN),
    pixel_threshold=_just_above(sorted_peaks[rank - 1], _EXPORT_MARGIN),
    review_threshold=_just_above(sorted_scores[review_rank - 1], _EXPORT_MARGIN),
    method='confident' if confident else 'normals',
    budget=budget,
    review_budget=review_budget,
    num_normals=n,
    expected_false_alarm_rate=(n - rank + 1) / (n + 1),
    false_alarm_rate_bound=_rate_upper_bound(n - rank, n),
    num_normals_required=_num_normals_required(budget),
  )


def from_labeled(
  normal_scores: Float[np.ndarray, ' n'],
  peaks: Float[np.ndarray, ' n'],
  anomalous_scores: Float[np.ndarray, ' m'],
  method: str,
  budget: float,
  review_budget: float = 0.05,
  miss_cost: float = 10.0,
  pixel_threshold: float | None = None,
) -> Thresholds:
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
  if method not in _LABELED_METHODS:
    raise UnknownName(
      f'Unknown method for labeled images {method!r}; choose from {_LABELED_METHODS}.'
    )
  _validate_miss_cost(miss_cost)
  n, m = (
    _count_finite_scores(normal_scores, 'good'),
    _count_finite_scores(anomalous_scores, 'defective'),
  )
  normals_thresholds = from_normals(normal_scores, peaks, budget, review_budget)
  image_threshold = _best_image_threshold(
    normal_scores, anomalous_scores, miss_cost if method == 'cost' else None
  )
  num_false_alarms = int((normal_scores > image_threshold).sum())
  return normals_thresholds._replace(
    image_threshold=image_threshold,
    pixel_threshold=normals_thresholds.pixel_threshold
    if pixel_threshold is None
    else pixel_threshold,
    review_threshold=min(normals_thresholds.review_threshold, image_threshold),
    method=method,
    expected_false_alarm_rate=num_false_alarms / n,
    false_alarm_rate_bound=_rate_upper_bound(num_false_alarms, n),
    num_anomalous=m,
    num_missed=int((anomalous_scores <= image_threshold).sum()),
  )


def pixel_threshold_by_f1(
  scores: Float[np.ndarray, ' k'],
  num_anomalous: Int[np.ndarray, ' k'],
  num_normal: Int[np.ndarray, ' k'],
) -> float:
  """Find the map's threshold of the largest pixel F1; of several the lowest.

  It lies just below a value of a defective pixel, for raising it up to the next one loses none
  of them.

  Args:
    score: the distinct values of defective pixels, from the largest on.
    anomalous: number of defective pixels at or above each.
    normal: number of normal pixels at or above each. All three as in `metrics.Ranking`.
  """
  if not len(scores):
    raise DataError('Masks set a pixel threshold only where they mark some pixel; none does.')
  f1 = 2 * num_anomalous / (num_anomalous + num_normal + num_anomalous[-1])
  return _just_below(float(scores[np.flatnonzero(f1 == f1.max())[-1]]))


def override(
  thresholds: Thresholds,
  image_threshold: float | None = None,
  review_threshold: float | None = None,
  pixel_threshold: float | None = None,
) -> Thresholds:
  """Replace thresholds; an image threshold below the review threshold pulls that down to itself.

  Where those of images are, what was promised of the calibrated ones is dropped.
  """
  overrides = {
    'image_threshold': image_threshold,
    'review_threshold': review_threshold,
    'pixel_threshold': pixel_threshold,
  }
  for name, value in overrides.items():
    if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
      raise ConfigError(f'{name} must be a finite number, got {value!r}.')
  thresholds = thresholds._replace(
    **{name: value for name, value in overrides.items() if value is not None}
  )
  if image_threshold is not None or review_threshold is not None:
    thresholds = thresholds._replace(
      method=_MANUAL, expected_false_alarm_rate=math.nan, false_alarm_rate_bound=math.nan
    )
  return thresholds._replace(
    review_threshold=min(thresholds.review_threshold, thresholds.image_threshold)
  )


def label(score: float, thresholds: Thresholds) -> str:
  """Tell 'OK', 'review' or 'NG'; a score that is NaN is NG, for it was never seen to be good."""
  if score <= thresholds.review_threshold:
    return 'OK'
  return 'review' if score <= thresholds.image_threshold else 'NG'


def validate_settings(
  budget: float,
  review_budget: float = 0.05,
  method: str = 'normals',
  miss_cost: float = 10.0,
  labeled: str = '',
) -> None:
  """Refuse what cannot be carried out; before hours of fitting, not after."""
  _validate_budgets(budget, review_budget)
  if method not in METHODS:
    raise UnknownName(f'Unknown calibrate.method {method!r}; choose from {METHODS}.')
  _validate_miss_cost(miss_cost)
  if method in _LABELED_METHODS and not labeled:
    raise ConfigError(
      f'calibrate.method {method!r} needs labeled images.',
      key='calibrate.labeled',
      hint=(
        'Name a dataset directory with good and defective ones in ',
        Setting('calibrate.labeled'), ', or pass ', Setting('calibrate.method', 'normals'), '.',
      ),
    )  # fmt: skip
  if labeled and method not in _LABELED_METHODS:
    raise ConfigError(
      f'calibrate.labeled means nothing to calibrate.method {method!r}; leave it out, or choose '
      f'a method from {_LABELED_METHODS}.'
    )


def _validate_budgets(budget: float, review_budget: float) -> None:
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


def _validate_miss_cost(miss_cost: float) -> None:
  if not 0 < miss_cost < math.inf:
    raise ConfigError(f'calibrate.miss_cost must be positive and finite, got {miss_cost}.')


def _count_finite_scores(scores: Float[np.ndarray, ' n'], kind: str) -> int:
  if not len(scores):
    raise DataError(
      f'Calibration needs at least one {kind} image that was not learned from, got none.'
    )
  if num_nonfinite := int((~np.isfinite(scores)).sum()):
    raise DataError(
      f'{num_nonfinite} of {len(scores)} scores of {kind} images are no finite numbers, so no threshold can '
      'be set; fit the model again, at a smaller fit.learning_rate if it descends one.'
    )
  return len(scores)


def _average_rank(n: int, budget: float) -> int:
  """Of n + 1 exchangeable scores the last exceeds this one of the others with chance <= budget."""
  return min(n, max(1, math.ceil((1 - budget) * (n + 1) - 1e-9)))


def _confident_rank(n: int, budget: float) -> int:
  ranks = np.arange(1, n + 1)
  valid_ranks = ranks[special.betaincinv(n - ranks + 1, ranks, CONFIDENCE) <= budget]
  return int(valid_ranks[0]) if len(valid_ranks) else n


def _rate_upper_bound(num_above: int, n: int) -> float:
  """Upper limit of a share of which `above` of n were seen."""
  return (
    float(special.betaincinv(num_above + 1, n - num_above, CONFIDENCE)) if num_above < n else 1.0
  )


def _num_normals_required(budget: float) -> int:
  """How many scores it takes for their maximum to keep the budget with confidence."""
  return max(1, math.ceil(math.log1p(-CONFIDENCE) / math.log1p(-budget) - 1e-9))


# In another batch size a score may come out an ulp of float32 larger or smaller; in another runtime
# by what exports are allowed to differ, and the image that a threshold stands on must stay below.
_ULP_MARGIN, _EXPORT_MARGIN, _MIN_MAGNITUDE = 1e-6, 1e-4, 1e-30


def _just_above(score: float, margin: float = _ULP_MARGIN) -> float:
  return score + margin * max(abs(score), _MIN_MAGNITUDE)


def _just_below(score: float) -> float:
  return -_just_above(-score)


def _best_image_threshold(
  normal_scores: Float[np.ndarray, ' n'],
  anomalous_scores: Float[np.ndarray, ' m'],
  miss_cost: float | None,
) -> float:
  """Find the threshold of the least cost, or of the largest F1 where there is none."""
  scores = np.unique(np.concatenate([normal_scores, anomalous_scores]).astype(np.float64))
  lower, upper = scores[:-1], scores[1:]
  midpoints = lower / 2 + upper / 2
  separators = np.where(
    (lower <= midpoints) & (midpoints < upper), midpoints, lower
  )  # No double may be between.
  candidates = np.array(
    [_just_below(float(scores[0])), *separators, _just_above(float(scores[-1]))]
  )
  num_false_alarms = len(normal_scores) - np.searchsorted(
    np.sort(normal_scores), candidates, 'right'
  )
  num_misses = np.searchsorted(np.sort(anomalous_scores), candidates, 'right')
  if miss_cost is None:
    num_hits = len(anomalous_scores) - num_misses
    loss = -2 * num_hits / (num_hits + num_false_alarms + len(anomalous_scores))
  else:
    loss = num_false_alarms + miss_cost * num_misses
  # Equal but for rounding: 3 · 0.1 is a little more than 0.3.
  max_equal_loss = loss.min() + 1e-12 * abs(loss.min())
  return float(candidates[np.flatnonzero(loss <= max_equal_loss)[0]])


def _describe_normals_method(thresholds: Thresholds) -> str:
  return (
    f'of unseen good images {_format_percent(thresholds.expected_false_alarm_rate)} are expected to be NG, and at most '
    f'{_format_percent(thresholds.false_alarm_rate_bound)} with {_format_percent(thresholds.confidence)} confidence (budget '
    f'{_format_percent(thresholds.budget)}, set on {thresholds.num_normals} good images held or left out)'
  )


def _describe_over_budget(thresholds: Thresholds) -> str:
  num_required_on_average = max(1, math.ceil(1 / thresholds.budget - 1e-9) - 1)
  confidence_text = f'{_format_percent(thresholds.confidence)} confidence'
  return (
    f'with {thresholds.num_normals} good images held or left out nothing below '
    f'{_format_percent(thresholds.expected_false_alarm_rate)} false alarms can be promised on average, or '
    f'{_format_percent(thresholds.false_alarm_rate_bound)} with {confidence_text}; a budget of {_format_percent(thresholds.budget)} needs '
    f'{num_required_on_average} on average, {thresholds.num_normals_required} with {confidence_text}'
  )


def _describe_labeled_method(thresholds: Thresholds) -> str:
  criterion = {'f1': 'the best F1', 'cost': 'the least cost'}[thresholds.method]
  num_false_alarms = round(thresholds.expected_false_alarm_rate * thresholds.num_normals)
  return (
    f'{criterion} on {thresholds.num_anomalous} defective and {thresholds.num_normals} good images, of which it misses '
    f'{thresholds.num_missed} and calls {num_false_alarms} NG ({_format_percent(thresholds.expected_false_alarm_rate)}; at most '
    f'{_format_percent(thresholds.false_alarm_rate_bound)} with {_format_percent(thresholds.confidence)} confidence), optimistic because '
    'it was chosen on the same images'
  )


def _format_percent(fraction: float) -> str:
  return f'{100 * fraction:.2g} %' if fraction < 0.1 else f'{100 * fraction:.0f} %'


class CalibrationScores(NamedTuple):
  """What is left of scored images without their maps.

  Attributes:
    path: the files, '' where only embeddings were kept.
    image: image scores.
    map: largest map values.
  """

  paths: tuple[str, ...]
  scores: Float[np.ndarray, ' n']
  peaks: Float[np.ndarray, ' n']
