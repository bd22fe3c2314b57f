"""Type and range of every value in a model's manifest, and the check of a manifest against them.

`_MANIFEST` has the structure of the JSON file. The values of `config` are those of settings, whose
types and ranges are declared with the settings.
"""

from collections.abc import Iterator, Mapping
import itertools
from pathlib import Path
import re
import reprlib
import sys
from typing import Any, NamedTuple, TypeAlias

from uadjax.config import Limits
from uadjax.data.image_statistics import ImageStatistics
from uadjax.errors import ModelError
from uadjax.model.settings import CALIBRATION_METHODS

FORMAT_VERSION = 7
HINT = 'Fit the model again, or restore the file.'

_KIND_TEXTS = {int: 'a whole number', float: 'a number', str: 'text'}
_MAX_FLOAT32 = 3.4e38  # Scores are of this type.
_MAX_FLOAT64 = sys.float_info.max
_MAX_DEPTH = 5  # Of the configuration: sections, sections in them, and lists.


class Value(NamedTuple):
  """Number or text.

  Attributes:
    kind: int, float or str.
    limits: bounds or choices; numbers are finite in any case.
    is_nullable: whether it may be null, which stands for NaN.
    pattern: regular expression that matches all of a text; '' for any text.
  """

  kind: type
  limits: Limits = Limits('')
  is_nullable: bool = False
  pattern: str = ''

  def allow(self, value: object) -> bool:
    """Return whether a value of a JSON file has this type and range."""
    if value is None:
      return self.is_nullable
    kinds = (int, float) if self.kind is float else (self.kind,)
    if type(value) not in kinds or not self.limits.allow(value):  # A bool is an int, too.
      return False
    return not self.pattern or bool(re.fullmatch(self.pattern, str(value)))

  def __str__(self) -> str:
    """Return type and range in words, such as 'a number, at least 0'."""
    pattern = self.pattern and f'matching {self.pattern}'
    null = 'or null' if self.is_nullable else ''
    return ', '.join(filter(None, (_KIND_TEXTS[self.kind], str(self.limits), pattern, null)))


class Items(NamedTuple):
  """List or object with any number of equal items.

  Attributes:
    kind: list or dict.
    item: description of each item.
  """

  kind: type
  item: 'Description'


class Settings(NamedTuple):
  """Nested objects and lists of settings.

  Attributes:
    required: names of sections that must be there.
  """

  required: tuple[str, ...]


# A dict describes an object by its keys, a list describes a list by its items.
Description: TypeAlias = Value | Items | Settings | dict[str, 'Description'] | list['Description']

_TEXT = Value(str)
_DIGEST = Value(str, pattern='[0-9a-f]{64}')
_SHARE = Value(float, Limits('', above=0, below=1))
_RATE = Value(float, Limits('', minimum=0, maximum=1), is_nullable=True)
_COUNT = Value(int, Limits('', minimum=0, maximum=10**12))
_POSITIVE_COUNT = Value(int, Limits('', minimum=1, maximum=10**12))
# Scores are not negative. A threshold just below 0 lies below all of them.
THRESHOLD = Value(float, Limits('', minimum=-1e-30, maximum=_MAX_FLOAT32))
_THRESHOLDS: dict[str, Description] = {
  'image_threshold': THRESHOLD,
  'review_threshold': THRESHOLD,
  'pixel_threshold': THRESHOLD,
}
_GRAY = Value(float, Limits('', minimum=0, maximum=255))
_RATIO = Value(float, Limits('', minimum=0, maximum=_MAX_FLOAT32))
_STATISTICS: dict[str, Description] = {
  'brightness': _GRAY, 'contrast': _GRAY, 'sharpness': _RATIO, 'saturation': _GRAY,
  'height': _POSITIVE_COUNT, 'width': _POSITIVE_COUNT,
  'further_pages': Value(int, Limits('', minimum=0, maximum=1)),
}  # fmt: skip
_MANIFEST: dict[str, Description] = {
  'format': Value(int, Limits('', minimum=FORMAT_VERSION, maximum=FORMAT_VERSION)),
  'model_name': _TEXT,
  'uadjax': _TEXT,
  'jax': _TEXT,
  'thresholds': {
    **_THRESHOLDS,
    'method': Value(str, Limits('', choices=(*CALIBRATION_METHODS, 'manual', 'uncalibrated'))),
    'budget': _SHARE,
    'review_budget': _SHARE,
    'num_normals': _COUNT,
    'expected_false_alarm_rate': _RATE,
    'false_alarm_rate_bound': _RATE,
    'num_normals_required': Value(int, Limits('', minimum=1, maximum=_MAX_FLOAT64)),
    'num_anomalous': _COUNT,
    'num_missed': _COUNT,
    'confidence': _SHARE,
  },
  'image_statistics': {name: [_STATISTICS[name]] * 2 for name in ImageStatistics._fields},
  'weights': {
    'name': _TEXT,
    'source': _TEXT,
    'sha256': Value(str, pattern='([0-9a-f]{64})?'),
    'license': _TEXT,
  },
  'summary': Items(
    dict, Value(float, Limits('', minimum=-_MAX_FLOAT64, maximum=_MAX_FLOAT64), is_nullable=True)
  ),
  'arrays_sha256': _DIGEST,
  'region_sha256': _DIGEST,
  'config_sha256': _DIGEST,
  'threshold_changes': Items(list, {'time': _TEXT, 'reason': _TEXT, **_THRESHOLDS}),
  'config': Settings(('data', 'backbone', 'detector')),
}
# What scoring does not need. `threshold_changes` only exist after the first change, and the hash of
# the region of interest only if there is one.
_OPTIONAL_KEYS = ('uadjax', 'jax', 'summary', 'threshold_changes', 'region_sha256')


class Problem(NamedTuple):
  """Value that does not match its description.

  Attributes:
    key: dotted key of the value.
    value: the value; None if it is missing.
    requirement: type and range in words; '' if the value is missing.
  """

  key: str
  value: object
  requirement: str


def require_valid(manifest: Mapping[str, Any], path: Path) -> None:
  """Check types and ranges of all values of a manifest; other keys of its top level are ignored.

  Raises:
    ModelError: a value is missing, or has another type or range. The error has its dotted key.
  """
  problems = itertools.chain(_problems(_MANIFEST, manifest, ''), _contradictions(manifest))
  for key, value, requirement in problems:
    if not requirement:
      raise ModelError(f'{path} lacks {key!r}.', key=key, hint=HINT)
    message = f'{key} in {path} must be {requirement}, got {reprlib.repr(value)}.'
    raise ModelError(message, key=key, value=value, allowed=requirement, hint=HINT)


def _problems(description: Description, value: object, key: str) -> Iterator[Problem]:
  match description:
    case Value():
      if not description.allow(value):
        yield Problem(key, value, str(description))
    case Settings():
      requirement = f'an object of settings with at most {_MAX_DEPTH} levels'
      if not isinstance(value, dict) or _is_deeper(value, _MAX_DEPTH):
        yield Problem(key, value, requirement)
      else:
        missing = (name for name in description.required if name not in value)
        yield from (Problem(f'{key}.{name}', None, '') for name in missing)
    case Items(kind, item):
      if kind is dict and isinstance(value, dict):
        for name, element in value.items():
          yield from _problems(item, element, f'{key}.{name}')
      elif kind is list and isinstance(value, list):
        for i, element in enumerate(value):
          yield from _problems(item, element, f'{key}.{i}')
      else:
        yield Problem(key, value, 'a list' if kind is list else 'a JSON object')
    case list():
      if not isinstance(value, list) or len(value) != len(description):
        yield Problem(key, value, f'a list of {len(description)} values')
      else:
        for i, item in enumerate(description):
          yield from _problems(item, value[i], f'{key}.{i}')
    case dict():
      if not isinstance(value, dict):
        yield Problem(key, value, 'a JSON object')
      else:
        yield from _problems_of_object(description, value, key)


def _problems_of_object(
  description: dict[str, Description], values: Mapping[str, object], key: str
) -> Iterator[Problem]:
  for name, item in description.items():
    item_key = f'{key}.{name}' if key else name
    if name in values:
      yield from _problems(item, values[name], item_key)
    elif item_key not in _OPTIONAL_KEYS:
      yield Problem(item_key, None, '')
  if key:
    unknown = values.keys() - description.keys()
    yield from (Problem(f'{key}.{name}', values[name], 'absent') for name in sorted(unknown))


def _is_deeper(value: object, num_levels: int) -> bool:
  """Return whether objects and lists are nested in more than so many levels."""
  if not isinstance(value, dict | list):
    return False
  items = value.values() if isinstance(value, dict) else value
  return num_levels == 0 or any(_is_deeper(item, num_levels - 1) for item in items)


def _contradictions(manifest: Mapping[str, Any]) -> Iterator[Problem]:
  """Yield the values that others exclude."""
  for name, limits in manifest['image_statistics'].items():
    if limits[0] > limits[1]:
      yield Problem(f'image_statistics.{name}', limits, 'the minimum and the maximum')
  thresholds = manifest['thresholds']
  if thresholds['num_missed'] > thresholds['num_anomalous']:
    requirement = f'at most {thresholds["num_anomalous"]}, the number of defective images'
    yield Problem('thresholds.num_missed', thresholds['num_missed'], requirement)
