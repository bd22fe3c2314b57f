"""Verdicts on test images: counts by class, their summary, and warnings about the model.

A defective image is found if it is NG (not good), and missed if it is OK. A good image passes if it
is OK, and is falsely rejected if it is NG. An image to review is none of these.
"""

import collections
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

from scipy import special

from uadjax.model import calibration
from uadjax.system.text import format_percent

# Number of images by class and verdict, as `at_threshold.counts` in result files has it.
Counts: TypeAlias = dict[str, dict[str, int]]

# Name of each verdict by class, in the order of all summaries: correct ones first, errors last.
_OUTCOMES = {
  'defective': {'ng': 'found', 'review': 'to review', 'ok': 'missed'},
  'good': {'ok': 'passed', 'review': 'to review', 'ng': 'falsely rejected'},
}
_SURPRISE = 1e-3  # Probability below which so many false rejections are not taken for chance.


class Outcome(NamedTuple):
  """Test images of one class with the same verdict.

  Attributes:
    image_class: 'defective' or 'good'.
    verdict: 'ng', 'review' or 'ok'.
    name: what the verdict means for the class, such as 'missed'.
    num_images: number of these images.
    num_in_class: number of images of the class, at least 1.
  """

  image_class: str
  verdict: str
  name: str
  num_images: int
  num_in_class: int

  @property
  def percent(self) -> str:
    """Share of the images of the class, as text."""
    return format_percent(self.num_images / self.num_in_class)


def count(labels: Sequence[str], is_defective: Sequence[bool]) -> Counts:
  """Count images by class and verdict; the counts add up to the number of images.

  Args:
    labels: label of each image: 'OK', 'review' or 'NG'.
    is_defective: whether each image shows a defect.
  """
  classes = ['defective' if defective else 'good' for defective in is_defective]
  verdicts = [label.lower() for label in labels]
  counter = collections.Counter(zip(classes, verdicts, strict=True))
  return {
    image_class: {verdict: counter[image_class, verdict] for verdict in names}
    for image_class, names in _OUTCOMES.items()
  }


def outcomes(counts: Counts) -> Iterator[Outcome]:
  """Yield the three outcomes of defective images, then those of good ones; skip missing classes."""
  for image_class, names in _OUTCOMES.items():
    by_verdict = counts.get(image_class, {})
    if total := sum(by_verdict.values()):
      for verdict, name in names.items():
        yield Outcome(image_class, verdict, name, by_verdict[verdict], total)


def by_outcome(counts: Counts) -> dict[str, int]:
  """Return the number of images by column name: Defective_found, ..., Good_falsely_rejected."""
  return {
    f'{image_class} {name}'.replace(' ', '_').capitalize(): counts[image_class][verdict]
    for image_class, names in _OUTCOMES.items()
    for verdict, name in names.items()
  }


def summarize(counts: Counts, noun: str = 'image') -> str:
  """Summarize counts of images, or of another noun, in a sentence per class, with percentages."""
  texts: dict[str, list[str]] = {}
  for outcome in outcomes(counts):
    plural = 's' * (outcome.num_in_class > 1)
    title = f'{outcome.num_in_class} {outcome.image_class} {noun}{plural}'
    texts.setdefault(title, []).append(f'{outcome.num_images} {outcome.name} ({outcome.percent})')
  sentences = (f'{title}: {", ".join(parts)}.' for title, parts in texts.items())
  return ' '.join(sentences) or 'There are no test images.'


def model_warnings(counts: Counts, thresholds: calibration.Thresholds) -> list[dict[str, str]]:
  """Return a warning, with code and message, if the model does not seem to fit the good images.

  The warning has two conditions:

  - More than half of the good images are NG. Fewer may be a drift of the same product.
  - So many are improbable: below 0.1 % by the binomial distribution, even if the false-alarm rate
    is at the 95 % bound of the calibration. With few images they are not improbable.

  Thresholds set by hand have no such bound and cause no warning.
  """
  num_ng, num_good = counts['good']['ng'], sum(counts['good'].values())
  if 2 * num_ng <= num_good:
    return []
  # The probability of at least num_ng false alarms; NaN if the bound is NaN.
  bound = thresholds.false_alarm_rate_bound
  if not special.betainc(num_ng, num_good - num_ng + 1, bound) < _SURPRISE:
    return []
  message = f'{num_ng} of {num_good} good images are NG; was this model fitted on other images?'
  return [{'code': 'other_images', 'message': message}]
