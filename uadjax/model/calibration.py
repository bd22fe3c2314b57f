"""Calibration: decision thresholds from scores of held-out good images, or of labeled images.

An image is OK if its score is at most the review threshold, NG if it is above the image threshold,
and 'review' in between. If there are warnings about it, it is 'review' instead of OK.

Good images suffice for a distribution-free guarantee, which assumes only that unseen good images
are exchangeable with them. Let the threshold be an order statistic of n scores, with `num_above`
scores above it. Over many calibrations, each with n new images, the share of unseen good images
above it has the distribution Beta(num_above + 1, n − num_above), whatever the distribution of
scores (Wilks 1941); ties only make the share smaller. The mean of this Beta distribution is the
expected false-alarm rate, its 95 % quantile the bound.

Letters: n good images, m defective ones.
"""

from collections.abc import Mapping
import math
from typing import Any, NamedTuple

from jaxtyping import Float
import numpy as np
from scipy import special

from uadjax.errors import DataError, refuse, Setting
from uadjax.model.settings import CalibrateSettings
from uadjax.numerics import metrics
from uadjax.system.text import format_percent

CONFIDENCE = 0.95
_THRESHOLD_NAMES = ('image_threshold', 'review_threshold', 'pixel_threshold')
_LABELED_METHODS = ('f1', 'cost')
_MANUAL = 'manual'  # Thresholds set by hand have this method; no calibration supports them.
# Thresholds have this method if no good image could be held out. All scores are between them.
_UNCALIBRATED = 'uncalibrated'
_BELOW_ALL_SCORES, ABOVE_ALL_SCORES = -1e-30, 1e30
_MAX_USEFUL_BOUND = 0.5  # A higher bound of the false-alarm rate says nothing.


class Thresholds(NamedTuple):
  """Decision thresholds and how they were calibrated; only numbers and text, to be stored as JSON.

  Attributes:
    image_threshold: an image with a larger score is NG.
    pixel_threshold: a pixel with a larger anomaly-map value is marked as anomalous.
    review_threshold: an image with a larger score, but not above `image_threshold`, is for review;
      at most `image_threshold`.
    method: 'normals' keeps the budgets on average over calibrations, 'confident' keeps them with
      probability `confidence`, 'f1' and 'cost' use labeled images. 'manual' means that the image or
      review threshold was set by hand; budgets and counts are still those of the calibration.
      'uncalibrated' means that there was no image to calibrate with: every image is for review.
    budget: allowed share of good images that are NG, and of those with a marked pixel. For 'f1' and
      'cost' it only applies to marked pixels, and only if there were no masks.
    review_budget: allowed share of good images above `review_threshold`, NG ones included.
    num_normals: number of good images used for calibration; near-duplicates count once.
    expected_false_alarm_rate: expected share of unseen good images that are NG; NaN if unknown. For
      'f1' and 'cost' the share of good calibration images that are NG, which is optimistic because
      the threshold was chosen on them.
    false_alarm_rate_bound: upper limit, with confidence `confidence`, of the share of unseen good
      images that are NG (Clopper and Pearson 1934); NaN if unknown. For 'f1' and 'cost' it is
      optimistic for the same reason.
    num_normals_required: smallest number of distinct images for which 'confident' keeps the budget.
    num_anomalous: number of defective images used for calibration; 0 without labels.
    num_missed: number of these defective images that are OK; those to review are not missed.
    confidence: confidence level of `false_alarm_rate_bound` and `num_normals_required`.
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
    """Return whether the image or review threshold was set by hand."""
    return self.method == _MANUAL

  @property
  def is_uncalibrated(self) -> bool:
    """Return whether every image is for review, because no image could be held out."""
    return self.method == _UNCALIBRATED

  def for_charts(self) -> dict[str, float]:
    """Return the thresholds by name; those that no score can exceed are infinite."""
    thresholds = by_name(self)
    return {name: math.inf if x >= ABOVE_ALL_SCORES else x for name, x in thresholds.items()}

  @property
  def review_pixel_threshold(self) -> float:
    """Value of the anomaly map above which pixels of an image to review belong to its regions.

    It is the pixel threshold, multiplied by the ratio of the review threshold to the image
    threshold. Without a review band, or if either is not positive and finite, it is the pixel
    threshold.
    """
    if not (0 < self.review_threshold < self.image_threshold < math.inf):
      return self.pixel_threshold
    scaled = self.pixel_threshold * (self.review_threshold / self.image_threshold)
    return min(self.pixel_threshold, scaled)

  @property
  def is_over_budget(self) -> bool:
    """Return whether there were too few good images for 'normals' or 'confident' to keep `budget`.

    Other methods do not aim at the budget, so it is False for them.
    """
    rates = {'normals': self.expected_false_alarm_rate, 'confident': self.false_alarm_rate_bound}
    rates[_UNCALIBRATED] = 1.0
    return rates.get(self.method, 0.0) > self.budget + 1e-9

  def __str__(self) -> str:
    """Return the thresholds and their expected false-alarm rate in sentences."""
    if self.is_uncalibrated:
      return f'none, every image is for review. {_describe_basis(self)}'
    has_review = self.review_threshold < self.image_threshold
    review_text = f'review above {self.review_threshold:.4g}' if has_review else 'nothing to review'
    if not has_review:
      if self.is_manual:
        review_text += ' (the review threshold equals the image threshold)'
      elif self.method in _LABELED_METHODS:
        review_text += ' (a review band needs a larger review budget)'
      elif self.review_budget > self.budget:
        review_text += f' (a review band needs more than {self.num_normals} good images)'
      else:
        review_text += ' (the review budget equals the budget)'
    return (
      f'NG above {self.image_threshold:.4g}, {review_text}, '
      f'pixels marked above {self.pixel_threshold:.4g}. {_describe_basis(self)}'
    )


def from_json(values: Mapping[str, Any]) -> Thresholds:
  """Return thresholds from the JSON of their fields, in which NaN is null.

  Raises:
    TypeError: a field is missing or unknown.
  """
  fields: dict[str, Any] = {k: math.nan if v is None else v for k, v in values.items()}
  return Thresholds(**fields)


def from_normals(
  scores: Float[np.ndarray, ' n'],
  peaks: Float[np.ndarray, ' n'],
  budget: float,
  review_budget: float = 0.05,
  confident: bool = False,
) -> Thresholds:
  """Return thresholds just above order statistics of the scores of held-out good images.

  The order statistic is the conformal quantile, which keeps a budget on average over calibrations
  (Vovk et al. 2005, section 2.2), or a tolerance limit (Wilks 1941), which is no lower and keeps it
  with 95 % confidence, that is, in 19 of 20 calibrations. If there are too few good images for
  `budget`, it is their maximum score, and `Thresholds.is_over_budget` is True. The threshold is
  higher by a relative margin of 1e-4, so that an image with that score is not above it in another
  runtime either.

  The pixel threshold is derived from the peaks as the image threshold is from the scores, so that
  the share of good images with any marked pixel keeps `budget`, too.

  Args:
    scores: scores of the good images.
    peaks: largest anomaly-map value of each good image.
    budget: allowed share of good images that are NG, in (0, 1).
    review_budget: allowed share of good images that are NG or for review, in [budget, 1).
    confident: True to keep both budgets with 95 % confidence rather than on average.

  Raises:
    DataError: there is no score, or one is not finite.
  """
  n = _count_finite_scores(scores, 'good')
  _count_finite_scores(peaks, 'good')  # The peaks must be finite, too.
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


def uncalibrated(budget: float, review_budget: float = 0.05) -> Thresholds:
  """Return thresholds by which every image is for review, for a model without held-out images.

  Args:
    budget: share of good images that may be NG, as it would be with enough images.
    review_budget: the same for images that are NG or for review.
  """
  return Thresholds(
    image_threshold=ABOVE_ALL_SCORES,
    pixel_threshold=ABOVE_ALL_SCORES,
    review_threshold=_BELOW_ALL_SCORES,
    method=_UNCALIBRATED,
    budget=budget,
    review_budget=review_budget,
    num_normals=0,
    expected_false_alarm_rate=math.nan,
    false_alarm_rate_bound=math.nan,
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
  review_threshold: float | None = None,
) -> Thresholds:
  """Return thresholds whose image threshold separates labeled images best.

  The image threshold lies midway between two neighboring scores, or just below or above all scores;
  of several equally good ones it is the lowest, which misses fewest defects. The review threshold
  is one of `from_normals`, because kinds of defects that were not labeled may have lower scores;
  it is lowered to the image threshold if it would lie above. The pixel threshold is that of
  `from_normals`, too, if there are no masks, because image labels do not locate defects.

  Args:
    normal_scores: scores of good images that were held out from fitting.
    peaks: largest anomaly-map value of each good image.
    anomalous_scores: scores of defective images.
    method: 'f1' for the largest F1 of defective images, 'cost' for the least number of false alarms
      + miss_cost · number of defective images that are not NG.
    budget: allowed share of good images with marked pixels, if `pixel_threshold` is None.
    review_budget: allowed share of good images above the review threshold, in [budget, 1).
    miss_cost: cost of a defective image that is not NG, relative to that of a false alarm.
    pixel_threshold: threshold of the anomaly map, from `pixel_threshold_by_f1` for either method:
      the cost of a missed pixel is unknown, but marks should always cover defects. None if there
      are no masks.
    review_threshold: review threshold of other good images, such as those of an earlier
      calibration, which are often more; None for that of `normal_scores`.

  Raises:
    DataError: there is no score of a class, or one is not finite.
  """
  n = _count_finite_scores(normal_scores, 'good')
  m = _count_finite_scores(anomalous_scores, 'defective')
  normals_thresholds = from_normals(normal_scores, peaks, budget, review_budget)
  cost = {'f1': None, 'cost': miss_cost}[method]
  image_threshold = _best_image_threshold(normal_scores, anomalous_scores, cost)
  if pixel_threshold is None:
    pixel_threshold = normals_thresholds.pixel_threshold
  if review_threshold is None:
    review_threshold = normals_thresholds.review_threshold
  review_threshold = min(review_threshold, image_threshold)
  num_false_alarms = int((normal_scores > image_threshold).sum())
  return normals_thresholds._replace(
    image_threshold=image_threshold,
    pixel_threshold=pixel_threshold,
    review_threshold=review_threshold,
    method=method,
    expected_false_alarm_rate=num_false_alarms / n,
    false_alarm_rate_bound=_rate_upper_bound(num_false_alarms, n),
    num_anomalous=m,
    num_missed=int((anomalous_scores <= review_threshold).sum()),
  )


def pixel_threshold_by_f1(ranking: metrics.Ranking) -> float:
  """Return the anomaly-map threshold with the largest pixel F1; of equally good ones the lowest.

  It lies just below the map value of a defective pixel, which is thus still marked: raising a
  threshold up to there loses no defective pixel, and marks no more normal ones.
  """
  num_hits = ranking.num_anomalous
  f1 = 2 * num_hits / (num_hits + ranking.num_normal + num_hits[-1])
  return _just_below(float(ranking.scores[np.flatnonzero(f1 == f1.max())[-1]]))


def by_name(source: object) -> dict[str, Any]:
  """Return the image, review and pixel threshold of `Thresholds`, or of settings, by name."""
  return {name: getattr(source, name) for name in _THRESHOLD_NAMES}


def override(thresholds: Thresholds, section: str = '', /, **values: float | None) -> Thresholds:
  """Return thresholds with some of them replaced by hand; None keeps a threshold.

  A review threshold that is not given is lowered to an image threshold below it. A new image or
  review threshold makes the method 'manual' and both false-alarm rates NaN, since no calibration
  supports them. A new pixel threshold does not.

  Args:
    thresholds: calibrated thresholds.
    section: section of the settings that have the values, for error messages; '' without one.
    values: new thresholds by name.

  Raises:
    ConfigError: a threshold is not a finite number, or the review threshold is above the image
      threshold.
  """
  prefix = f'{section}.' if section else ''
  overrides = {name: value for name, value in values.items() if value is not None}
  for name, value in overrides.items():
    if not (isinstance(value, int | float) and math.isfinite(value)):
      message = f'{name} must be a finite number, got {value!r}.'
      refuse(prefix + name, value, message, allowed='a finite number')
  thresholds = thresholds._replace(**overrides)
  if not overrides.keys() <= {'pixel_threshold'}:
    thresholds = thresholds._replace(
      method=_MANUAL, expected_false_alarm_rate=math.nan, false_alarm_rate_bound=math.nan
    )
  review, image = thresholds.review_threshold, thresholds.image_threshold
  if 'review_threshold' not in overrides:
    return thresholds._replace(review_threshold=min(review, image))
  if problem := describe_wrong_order(thresholds):
    lower, higher = (f'{prefix}{name}_threshold' for name in ('review', 'image'))
    hint = 'Pass ', Setting(lower, image), ' or less, or ', Setting(higher, review), ' or more.'
    refuse(lower, review, problem, *hint, allowed=f'at most {image}')
  return thresholds


def describe_wrong_order(thresholds: Thresholds) -> str:
  """Return a message if the review threshold is above the image threshold; '' if it is not."""
  review, image = thresholds.review_threshold, thresholds.image_threshold
  if not review > image:
    return ''
  return (
    f'The review threshold, {review}, is above the image threshold, {image}, but an image above '
    'the image threshold is NG, not for review.'
  )


def label(score: float, thresholds: Thresholds, has_warnings: bool = False) -> str:
  """Return 'OK', 'review' or 'NG' for an image score; NaN is NG, as it is not a valid score.

  An image with warnings is 'review' even if its score is OK.
  """
  if score <= thresholds.review_threshold:
    return 'review' if has_warnings else 'OK'
  return 'review' if score <= thresholds.image_threshold else 'NG'


def region_threshold(label: str, peak: float, thresholds: Thresholds) -> float:
  """Return the value of the anomaly map above which the pixels of an image belong to its regions.

  It is the pixel threshold or, for an image to review, the review pixel threshold. Image and pixel
  threshold are chosen separately, and an image with a warning is for review, so an image that is NG
  or for review may have a lower map. Its regions then reach down to 95 % of the peak. So it has at
  least one region.

  Args:
    label: label of the image.
    peak: largest value of the anomaly map.
    thresholds: thresholds that gave the label.
  """
  if label == 'OK':
    return thresholds.pixel_threshold
  is_review = label == 'review'
  threshold = thresholds.review_pixel_threshold if is_review else thresholds.pixel_threshold
  near_peak = peak - _PEAK_MARGIN * max(abs(peak), _MIN_MAGNITUDE)
  return min(threshold, near_peak)  # It is the first if the peak is NaN.


_PEAK_MARGIN = 0.05


def worst_first_key(
  score: float, label: str, image_threshold: float, is_defective: bool = False
) -> tuple[bool, float]:
  """Return the key that sorts images with the worst first, in every interface.

  Wrong verdicts come first: NG for a good image, OK for a defective one. Then the distance of the
  score to the image threshold decides, on the wrong side of it first. An image of unknown class
  counts as good, so that the highest score comes first.
  """
  is_wrong = label == ('OK' if is_defective else 'NG')
  score = math.inf if math.isnan(score) else score  # As in labels: NaN is NG.
  distance = 0.0 if score == image_threshold else score - image_threshold
  return not is_wrong, distance if is_defective else -distance


def validate_settings(options: CalibrateSettings) -> None:
  """Check settings that depend on each other; call it before fitting, which takes hours.

  Raises:
    ConfigError: `review_budget` is below `budget`, or `method` and `labeled` do not match.
  """
  budget, review_budget, method = options.budget, options.review_budget, options.method
  if review_budget < budget:
    message = (
      f'calibrate.review_budget must be at least calibrate.budget ({budget}), got {review_budget}: '
      'images that are NG also exceed the review threshold.'
    )
    hint = 'Pass ', Setting('calibrate.review_budget', budget), ' for no review band.'
    refuse('calibrate.review_budget', review_budget, message, *hint, allowed=(budget, 1))
  if method in _LABELED_METHODS and not options.labeled:
    message = f'calibrate.method {method!r} needs labeled images.'
    hint = (
      'Set a dataset directory with good and defective images in ', Setting('calibrate.labeled'),
      ', or pass ', Setting('calibrate.method', 'normals'), '.',
    )  # fmt: skip
    refuse('calibrate.labeled', None, message, *hint)
  if options.labeled and method not in _LABELED_METHODS:
    message = f'calibrate.method {method!r} does not use labeled images.'
    hint = 'Choose one of ', f'{_LABELED_METHODS} (', Setting('calibrate.method'), ').'
    refuse('calibrate.labeled', options.labeled, message, *hint, allowed='')


def _count_finite_scores(scores: Float[np.ndarray, ' n'], kind: str) -> int:
  """Return the number of scores; raise DataError if there are none, or some are not finite.

  The error calls the images by `kind`, 'good' or 'defective'.
  """
  if not len(scores):
    raise DataError(f'Calibration needs at least one {kind} image held out from fitting, got none.')
  if num_nonfinite := int((~np.isfinite(scores)).sum()):
    message = f'{num_nonfinite} of {len(scores)} scores of {kind} images are not finite.'
    hint = 'Fit again; for STFPM, with a smaller ', Setting('fit.learning_rate'), '.'
    raise DataError(message, hint=hint)
  return len(scores)


def _average_rank(n: int, budget: float) -> int:
  """Return the ascending rank, from 1, of the conformal quantile of n scores.

  An unseen score, exchangeable with them, exceeds the score of rank r with probability at most
  (n + 1 − r) / (n + 1). This is the smallest rank for which that is at most `budget`, or n if there
  is none.
  """
  # The small number hides rounding errors of a product that should be an integer.
  return min(n, max(1, math.ceil((1 - budget) * (n + 1) - 1e-9)))


def _confident_rank(n: int, budget: float) -> int:
  """Return the ascending rank, from 1, of the upper tolerance limit of n scores (Wilks 1941).

  The share of unseen scores above the score of rank r has the distribution Beta(n − r + 1, r). This
  is the smallest rank for which its `CONFIDENCE` quantile is at most `budget`, or n if there is
  none.
  """
  ranks = np.arange(1, n + 1)
  valid_ranks = ranks[special.betaincinv(n - ranks + 1, ranks, CONFIDENCE) <= budget]
  return int(valid_ranks[0]) if len(valid_ranks) else n


def _rate_upper_bound(num_above: int, n: int) -> float:
  """Return the one-sided upper confidence limit of a false-alarm rate (Clopper and Pearson 1934).

  Of the n scores of good images, `num_above` are above the threshold; the confidence level is
  `CONFIDENCE`.
  """
  return (
    float(special.betaincinv(num_above + 1, n - num_above, CONFIDENCE)) if num_above < n else 1.0
  )


def _num_normals_required(budget: float) -> int:
  """Return the smallest number of scores whose maximum keeps the budget with confidence.

  It is the smallest n with (1 − budget)ⁿ <= 1 − `CONFIDENCE`.
  """
  return max(1, math.ceil(math.log1p(-CONFIDENCE) / math.log1p(-budget) - 1e-9))


# A threshold just above a score is higher by a relative margin, so that the image with that score
# is not above it when it is scored again. In another batch size the score may differ by an ulp of
# float32, in another runtime by the tolerance of exports. Scores near 0 count as _MIN_MAGNITUDE, so
# that the margin is never 0.
_ULP_MARGIN, _EXPORT_MARGIN, _MIN_MAGNITUDE = 1e-6, 1e-4, 1e-30


def _just_above(score: float, margin: float = _ULP_MARGIN) -> float:
  return score + margin * max(abs(score), _MIN_MAGNITUDE)


def _just_below(score: float) -> float:
  return -_just_above(-score)


def _best_image_threshold(
  normal: Float[np.ndarray, ' n'], anomalous: Float[np.ndarray, ' m'], miss_cost: float | None
) -> float:
  """Return the threshold with the least cost, or with the largest F1 if `miss_cost` is None.

  Candidates are a threshold below all scores, the midpoints of neighboring scores, and a threshold
  above all scores. The lowest of equally good candidates is returned.
  """
  scores = np.unique(np.concatenate([normal, anomalous]).astype(np.float64))
  lower, upper = scores[:-1], scores[1:]
  midpoints = lower / 2 + upper / 2
  # If no double lies between two scores, the lower score itself separates them.
  separators = np.where((lower <= midpoints) & (midpoints < upper), midpoints, lower)
  lowest, highest = _just_below(float(scores[0])), _just_above(float(scores[-1]))
  candidates = np.array([lowest, *separators, highest])
  num_not_above, num_misses = (
    np.searchsorted(np.sort(x), candidates, 'right') for x in (normal, anomalous)
  )
  num_false_alarms = len(normal) - num_not_above
  if miss_cost is None:
    num_hits = len(anomalous) - num_misses
    loss = -2 * num_hits / (num_hits + num_false_alarms + len(anomalous))
  else:
    loss = num_false_alarms + miss_cost * num_misses
  # Equal losses may differ by rounding: 3 · 0.1 is a little more than 0.3.
  max_equal_loss = loss.min() + 1e-12 * abs(loss.min())
  return float(candidates[np.flatnonzero(loss <= max_equal_loss)[0]])


def _describe_basis(t: Thresholds) -> str:
  """Return the false-alarm rate to expect, and the images that this rests on, in sentences."""
  if t.is_manual:
    return 'A threshold was set by hand, so the false-alarm rate is unknown.'
  # The expected share of unseen scores above the maximum of n scores is 1 / (n + 1).
  num_required_on_average = max(1, math.ceil(1 / t.budget - 1e-9) - 1)
  if t.is_uncalibrated:
    return (
      'A threshold needs a good image that the model has not learned from, and there is no other: '
      f'fit on at least 2 distinct good images. For your budget of {format_percent(t.budget, 2)}: '
      f'at least {num_required_on_average} images, {t.num_normals_required} to be '
      f'{format_percent(t.confidence, 2)} sure.'
    )
  expected, bound, confidence, budget = (
    format_percent(share, 2)
    for share in (t.expected_false_alarm_rate, t.false_alarm_rate_bound, t.confidence, t.budget)
  )
  rate = f'about {expected} false alarms ({confidence} sure: below {bound})'
  if t.method in _LABELED_METHODS:
    criterion = {'f1': 'Largest F1', 'cost': 'Least cost'}[t.method]
    return (
      f'{criterion} on {t.num_anomalous} defective images, of which {t.num_missed} are missed, and '
      f'{t.num_normals} good images: {rate}. This is optimistic, because the threshold '
      'was chosen on these images.'
    )
  basis = f'Expect {rate}, from {t.num_normals} independent good images.'
  if t.false_alarm_rate_bound > _MAX_USEFUL_BOUND:
    images = f'{t.num_normals} image{"s" * (t.num_normals > 1)}'
    basis += f' No rate can be promised from {images}: review all above {t.image_threshold:.4g}.'
  if t.is_over_budget:
    numbers = (
      f'at least {num_required_on_average} images, {t.num_normals_required} to be {confidence} sure'
    )
    return f'{basis} For your budget of {budget}: {numbers}.'
  if t.num_normals < t.num_normals_required:
    numbers = f'at least {t.num_normals_required} images'
    return f'{basis} To be {confidence} sure of your budget of {budget}: {numbers}.'
  return f'{basis} Your budget is {budget}.'


class CalibrationScores(NamedTuple):
  """Scores of the calibration images, without their anomaly maps.

  Attributes:
    paths: paths of the images; '' for images of earlier runs.
    scores: image scores.
    peaks: largest anomaly-map value of each image.
  """

  paths: tuple[str, ...]
  scores: Float[np.ndarray, ' n']
  peaks: Float[np.ndarray, ' n']

  def join(self, other: 'CalibrationScores') -> 'CalibrationScores':
    """Return the scores of these images and of others."""
    scores = np.concatenate([self.scores, other.scores])
    return CalibrationScores(
      self.paths + other.paths, scores, np.concatenate([self.peaks, other.peaks])
    )
