"""Trade-off between false alarms and missed defects: the image threshold of each budget.

Letters: m defective images.
"""

from typing import NamedTuple

from jaxtyping import Float
import numpy as np

from uadjax.model import calibration
from uadjax.model.settings import CalibrateSettings

_BUDGETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3)


class Choice(NamedTuple):
  """Thresholds of a budget, and what to expect of them.

  The defects of labeled images are counted by their scores alone. All counts are None without
  labels.

  Attributes:
    budget: allowed share of good images that are NG.
    image_threshold: an image with a larger score is NG.
    review_threshold: an image with a larger score is for review, unless it is NG.
    expected_false_alarm_rate: expected share of unseen good images that are NG.
    false_alarm_rate_bound: upper limit of that share, with 95 % confidence.
    defects_found: number of defective images that are NG.
    defects_to_review: number of defective images that are for review.
    defects_missed: number of defective images that are OK.
  """

  budget: float
  image_threshold: float
  review_threshold: float
  expected_false_alarm_rate: float
  false_alarm_rate_bound: float
  defects_found: int | None = None
  defects_to_review: int | None = None
  defects_missed: int | None = None


def at_budget(
  scores: calibration.CalibrationScores, options: CalibrateSettings, budget: float
) -> calibration.Thresholds:
  """Return the thresholds of a budget; the review budget is at least as large.

  Args:
    scores: calibration scores of the model.
    options: settings with the review budget and the method. All methods but 'confident' count as
      'normals', because labels do not change the false alarms to expect.
    budget: allowed share of good images that are NG, in (0, 1).

  Raises:
    DataError: there is no score, or one is not finite.
  """
  review_budget, is_confident = max(options.review_budget, budget), options.method == 'confident'
  return calibration.from_normals(scores.scores, scores.peaks, budget, review_budget, is_confident)


def choices(
  scores: calibration.CalibrationScores | None,
  options: CalibrateSettings,
  anomalous_scores: Float[np.ndarray, ' m'] | None = None,
) -> list[Choice]:
  """Return the choices from the smallest to the largest budget; none without calibration scores.

  With few images, several budgets have the same threshold. Only the largest of them is returned.

  Args:
    scores: calibration scores of the model, or None.
    options: settings of the calibration; their budget is one of the choices.
    anomalous_scores: scores of labeled defective images, or None.

  Raises:
    DataError: a calibration score is not finite.
  """
  if scores is None or not len(scores.scores):
    return []
  by_threshold: dict[float, Choice] = {}
  for budget in sorted({*_BUDGETS, options.budget}):
    thresholds = at_budget(scores, options, budget)
    limits, counts = (thresholds.image_threshold, thresholds.review_threshold), ()
    if anomalous_scores is not None:
      num_found, num_not_ok = (int((anomalous_scores > limit).sum()) for limit in limits)
      counts = num_found, num_not_ok - num_found, len(anomalous_scores) - num_not_ok
    rates = thresholds.expected_false_alarm_rate, thresholds.false_alarm_rate_bound
    by_threshold[thresholds.image_threshold] = Choice(budget, *limits, *rates, *counts)
  return list(by_threshold.values())
