"""Verdicts on parts, each of which one or several images show, such as those of several cameras.

The verdict on a part is the worst of its images, in any order.
"""

import collections
from collections.abc import Iterable, Mapping
from pathlib import PurePath
import re

from uadjax.errors import refuse, Setting
from uadjax.inference.result import UNREADABLE

COLUMNS = ('part', 'label', 'images')
PREDICT_KEY, EVALUATE_KEY = 'predict.part_pattern', 'evaluate.part_pattern'
_EXAMPLE = r'(?P<part>.+)_cam\d+'
# From the best to the worst. A part with an unreadable image was not inspected completely.
_LABELS = ('OK', 'review', UNREADABLE, 'NG')


def part_of(name: str, pattern: str, key: str = PREDICT_KEY) -> str:
  """Return the name of the part that an image shows.

  Args:
    name: path or URL of the image.
    pattern: regular expression with a group `part` that must match the whole file name without its
      suffix. A pattern with a slash must match the end of the path, from any folder on.
    key: setting that the pattern comes from, for errors.

  Raises:
    ConfigError: the name does not match, or the pattern is not valid.
  """
  path = PurePath(name)
  names = (path.with_suffix('') if path.name else path).parts  # '.' and '/' have no name.
  num_ends = len(names) if '/' in pattern else 1
  ends = ('/'.join(names[-i:]) for i in range(1, num_ends + 1))
  matches = map(compile_pattern(pattern, key).fullmatch, ends)
  part = next((match['part'] for match in matches if match), None)
  if not part:
    message = f'{name} does not match {pattern!r}, so its part is unknown.'
    refuse(key, pattern, message, 'Change ', Setting(key), ', or leave the image out.')
  return part


def compile_pattern(pattern: str, key: str = PREDICT_KEY) -> re.Pattern[str]:
  """Return the compiled pattern of a setting.

  Raises:
    ConfigError: the pattern is not valid, or lacks the group `part`.
  """
  hint = 'Pass for example ', Setting(key, _EXAMPLE), '.'
  try:
    compiled = re.compile(pattern)
  except re.error as error:
    refuse(key, pattern, f'{pattern!r} is not a regular expression: {error}.', *hint)
  if 'part' not in compiled.groupindex:
    refuse(key, pattern, f'{pattern!r} has no group (?P<part>...) for the part.', *hint)
  return compiled


def worst_label(labels: Iterable[str]) -> str:
  """Return the worst of some labels, which may include UNREADABLE."""
  return max(labels, key=_LABELS.index)


class PartVerdicts:
  """Verdicts on parts from the labels of their images, in any order."""

  def __init__(self, pattern: str | None = None) -> None:
    """Create verdicts on no part; `pattern` is that of `part_of`, or empty for no parts."""
    self._pattern = pattern
    self._labels: dict[str, collections.Counter[str]] = {}

  def add(self, part: str, label: str) -> None:
    """Add an image of a part; its label may be UNREADABLE."""
    self._labels.setdefault(part, collections.Counter())[label] += 1

  def add_image(self, name: str, label: str | None) -> str | None:
    """Add an image to the part that it shows, and return the part; None without a pattern.

    Args:
      name: path or URL of the image.
      label: label of the image; empty if it is unreadable.
    """
    if not self._pattern:
      return None
    part = part_of(name, self._pattern)
    self.add(part, label or UNREADABLE)
    return part

  @property
  def labels(self) -> Mapping[str, str]:
    """Label of each part, sorted by name."""
    return {part: worst_label(labels) for part, labels in sorted(self._labels.items())}

  @property
  def counts(self) -> collections.Counter[str]:
    """Number of parts by label."""
    return collections.Counter(self.labels.values())

  def rows(self) -> list[dict[str, object]]:
    """Return name, label and number of images of each part; the keys are COLUMNS."""
    return [
      dict(zip(COLUMNS, (part, label, self._labels[part].total()), strict=True))
      for part, label in self.labels.items()
    ]

  def table(self) -> list[list[object]]:
    """Return the rows below the names of their columns, for a CSV file."""
    return [[*COLUMNS], *([*row.values()] for row in self.rows())]
