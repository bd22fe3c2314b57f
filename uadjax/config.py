"""Machinery of settings: typed trees with bounds and help, filled from files, text and overrides.

A package declares its settings as a frozen dataclass whose fields are made by `field`; a field that
is a dataclass itself is a section. `training.settings` composes the tree of a run. A dotted key,
such as fit.batch_size, names one setting. Files in YAML are never executed.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import difflib
import importlib.util
import math
import operator
import os
from pathlib import Path
import traceback
import types
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable, TypeAlias, TypeVar

import ml_collections
from ml_collections.config_dict import config_dict
import yaml

from uadjax.errors import about, ConfigError, refuse, Setting, UnknownName, UserError

Values = Mapping[str, object]
ConfigDict: TypeAlias = Any  # An ml_collections.ConfigDict; no type checker can know its fields.
T = TypeVar('T')


@runtime_checkable
class Settings(Protocol):
  """Instance of a dataclass whose fields are settings or sections."""

  __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


S = TypeVar('S', bound=Settings)

_BOOLS = {'true': True, 'yes': True, '1': True, 'false': False, 'no': False, '0': False}
_TYPE_TEXTS = {
  int: 'a whole number',
  float: 'a number',
  bool: 'true or false',
  str: 'text',
  tuple: 'a list such as layer1,layer2',
}
_CONFIG_HINT = (
  'Let get_config start from `uadjax.training.settings.default_config(NAME)`, as configs/stfpm.py '
  'does.'
)
# Directory of the built-in configs in an installed package, and in a checkout.
_CONFIG_DIRS = (Path(__file__).parent / 'configs', Path(__file__).parent.parent / 'configs')


class Limits(NamedTuple):
  """Help, unit, bounds and choices of a setting.

  Attributes:
    help: one sentence.
    unit: unit of the value, such as 's'.
    minimum: smallest value.
    above: bound that every value exceeds.
    maximum: largest value.
    below: bound that every value is less than.
    choices: all values, for text.
    check: function that raises an error for an invalid value.
  """

  help: str
  unit: str = ''
  minimum: float | None = None
  above: float | None = None
  maximum: float | None = None
  below: float | None = None
  choices: tuple[str, ...] = ()
  check: Callable[[Any], object] | None = None

  def __str__(self) -> str:
    """Return the bounds or choices in words, or '' if every value of the type is valid."""
    if self.choices:
      return f'one of {", ".join(repr(choice) for choice in self.choices)}'
    return ' and '.join(f'{words} {bound:g}' for words, _, bound in self._bounds())

  def allow(self, value: object) -> bool:
    """Return whether a value of the right type is within the bounds or among the choices."""
    if isinstance(value, str):
      return not self.choices or value in self.choices
    if not isinstance(value, int | float):
      return True
    is_within = all(is_valid(value, bound) for _, is_valid, bound in self._bounds())
    return is_within and abs(value) < math.inf

  def _bounds(self) -> list[tuple[str, Callable[[Any, Any], bool], int | float]]:
    """Return the bounds that are set, each with its words and its comparison."""
    bounds = (
      ('at least', operator.ge, self.minimum), ('above', operator.gt, self.above),
      ('at most', operator.le, self.maximum), ('below', operator.lt, self.below),
    )  # fmt: skip
    return [(words, is_valid, bound) for words, is_valid, bound in bounds if bound is not None]


class SettingInfo(NamedTuple):
  """Setting of a tree: its dotted key, type, current value and limits.

  Attributes:
    key: dotted key.
    type: int, float, bool, str or tuple.
    is_optional: whether the value may be None.
    value: value in the tree that was described; its default in a tree of defaults.
    limits: help and bounds.
  """

  key: str
  type: type
  is_optional: bool
  value: object
  limits: Limits

  def __str__(self) -> str:
    """Return type, bounds and unit in words, such as 'a whole number, at least 1 (steps)'."""
    unit = f' ({self.limits.unit})' if self.limits.unit else ''
    return ', '.join(filter(None, (_TYPE_TEXTS[self.type], str(self.limits)))) + unit


def field(default: T, help: str, **limits: Any) -> T:
  """Declare a field of a settings dataclass; `limits` are the fields of `Limits`."""
  return dataclasses.field(default=default, metadata={'limits': Limits(help, **limits)})


def one_of(kinds: Callable[[], Mapping[str, Callable[..., Settings]]]) -> dict[str, object]:
  """Return the metadata of a section whose setting `name` chooses one of several dataclasses."""
  return {'kinds': kinds}


def describe(settings: Settings, prefix: str = '') -> dict[str, SettingInfo]:
  """Return all settings of a tree by dotted key, without fields that `field` has not made."""
  infos: dict[str, SettingInfo] = {}
  for field in dataclasses.fields(settings):
    key, value = prefix + field.name, getattr(settings, field.name)
    if isinstance(value, Settings):
      infos |= describe(value, f'{key}.')
    if 'limits' not in field.metadata:
      continue  # A section, or a value that no text can give.
    kinds = _kinds(field.type)
    kind = getattr(kinds[0], '__origin__', kinds[0])  # tuple of tuple[str, ...].
    infos[key] = SettingInfo(key, kind, len(kinds) > 1, value, field.metadata['limits'])
  return infos


def _kinds(annotation: Any) -> tuple[Any, ...]:
  """Return the members of a union, or a single type."""
  return annotation.__args__ if isinstance(annotation, types.UnionType) else (annotation,)


def from_values(
  kind: type[T], values: Values, source: str = '', overrides: Values | None = None
) -> T:
  """Return settings with the given values; the others have their defaults.

  Therefore saved settings remain readable when a later version adds keys.

  Args:
    kind: dataclass of the tree.
    values: values by dotted key or in nested mappings; may be text.
    source: name of the file that the values come from, for error messages.
    overrides: values that take precedence, and are not from the file.

  Raises:
    ConfigError: a key is unknown (the message suggests the closest match), or a value is invalid.
  """
  changes = flatten(overrides or {})
  try:
    return _from_flat_values(kind, flatten(values) | changes)
  except UserError as error:
    if source and error.key not in changes:
      error.message = f'{source}: {error.message}'
    raise


def _from_flat_values(kind: type[T], flat: Values) -> T:
  assert dataclasses.is_dataclass(kind)
  sections: dict[str, Any] = {}
  for field in dataclasses.fields(kind):
    if 'kinds' not in field.metadata:
      continue
    choices = field.metadata['kinds']()
    key = f'{field.name}.name'
    if key not in flat:
      refuse(key, None, f'{key} is missing; choose from {list(choices)}.', allowed=choices)
    name = flat[key]
    if not isinstance(name, str) or name not in choices:
      message = f'Unknown {key} {name!r}; choose from {list(choices)}.'
      raise UnknownName(message, key=key, value=name, allowed=tuple(choices))
    sections[field.name] = choices[name]()
  return replace(kind(**sections), flat)


def replace(settings: S, values: Values) -> S:
  """Return a copy of a tree with other values, which are by dotted key and may be text.

  Raises:
    ConfigError: a key is unknown or a section, or a value has the wrong type or is out of bounds.
  """
  infos = describe(settings)
  for key in values:
    if key not in infos:
      raise unknown_key(key, tuple(infos))
  for key, value in values.items():
    settings = _replace(settings, key, _convert(infos[key], value))
  return settings


def _replace(settings: S, key: str, value: object) -> S:
  name, _, rest = key.partition('.')
  changed = _replace(getattr(settings, name), rest, value) if rest else value
  return dataclasses.replace(settings, **{name: changed})


def unknown_key(key: str, keys: Sequence[str]) -> ConfigError:
  """Return the error for a key that is none of `keys`; it suggests the closest ones."""
  section_keys = [k for k in keys if k.startswith(f'{key}.')]
  if section_keys:
    message = f'Config key {key!r} is a section; set one of {section_keys}.'
    return ConfigError(message, key=key, allowed=section_keys)
  matches = closest_keys(key, keys)
  hint = f'did you mean {" or ".join(map(repr, matches))}?' if matches else f'choose from {keys}.'
  return ConfigError(f'Unknown config key {key!r}; {hint}', key=key, allowed=matches or keys)


def closest_keys(key: str, keys: Sequence[str]) -> tuple[str, ...]:
  """Return the keys that a wrong key may stand for.

  If keys end with the last part of the wrong one, such as `image_threshold` with `threshold`, these
  are all returned; else the one that is spelled most like it, in the same section if that exists.
  """
  section, _, name = key.rpartition('.')
  siblings = [k for k in keys if k.rpartition('.')[0] == section]
  if longer := tuple(k for k in siblings if k.endswith(f'_{name}')):
    return longer
  if section and siblings:
    return tuple(difflib.get_close_matches(key, siblings, 1, cutoff=0))
  return tuple(difflib.get_close_matches(key, keys, 1, cutoff=0.5))


def _convert(info: SettingInfo, value: object) -> object:
  """Return a value in the type of a setting, after checking its bounds."""
  key, kind, limits = info.key, info.type, info.limits
  if info.is_optional and value in (None, 'None'):
    return None
  try:
    converted = _cast(kind, value)
  except (ValueError, TypeError, OverflowError, KeyError):
    requirement = _TYPE_TEXTS[kind]
    message = f'{key} must be {requirement}, got {value!r}; its current value is {info.value!r}.'
    raise ConfigError(message, key=key, value=value, allowed=requirement) from None
  spellings = {choice.lower(): choice for choice in limits.choices}
  converted = spellings.get(str(converted).lower(), converted)
  if not limits.allow(converted):
    is_finite = not isinstance(converted, int | float) or abs(converted) < math.inf
    requirement = ' and '.join(filter(None, (str(limits), '' if is_finite else 'finite')))
    error = UnknownName if limits.choices else ConfigError
    message = f'{key} must be {requirement}, got {value!r}.'
    raise error(message, key=key, value=value, allowed=limits.choices or requirement)
  if limits.check:
    with about(key, converted):
      limits.check(converted)
  return converted


def _cast(kind: type, value: object) -> Any:
  if kind is tuple:
    if isinstance(value, str):
      value = [item.strip(' \'"') for item in value.strip('()[] ').split(',') if item.strip()]
    if not isinstance(value, Sequence):
      raise TypeError(value)
    return tuple(_cast(str, item) for item in value)
  if not isinstance(value, str | int | float | os.PathLike):
    raise TypeError(value)
  text = str(value)
  if kind is bool:
    return _BOOLS[text.lower()]
  if kind is int:
    number = float(text) if 'e' in text.lower() else int(text)
    if number != int(number):
      raise ValueError(text)
    return int(number)
  return kind(text)


def flatten(values: Values, prefix: str = '') -> dict[str, Any]:
  """Return the values of nested mappings by dotted key."""
  leaves = {}
  for key, value in values.items():
    if isinstance(value, Mapping):
      leaves |= flatten(value, f'{prefix}{key}.')
    else:
      leaves[f'{prefix}{key}'] = value
  return leaves


def to_plain_dict(settings: Settings) -> dict[str, Any]:
  """Return a tree as nested dictionaries, with lists for tuples, for JSON and YAML."""

  def to_dict(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in items}

  return dataclasses.asdict(settings, dict_factory=to_dict)


def to_yaml(settings: Settings) -> str:
  """Return a tree as YAML."""
  return yaml.safe_dump(to_plain_dict(settings), sort_keys=False)


def to_config_dict(settings: Settings) -> ConfigDict:
  """Return a tree as a ConfigDict, for the functions `get_config` in configs/."""
  config = ml_collections.ConfigDict(dataclasses.asdict(settings))
  unset = {key: info.type for key, info in describe(settings).items() if info.value is None}
  placeholders = {key: config_dict.placeholder(kind) for key, kind in unset.items()}
  config.update_from_flattened_dict(placeholders)
  return config


def builtin_files() -> dict[str, Path]:
  """Return the files of configs/ by name: patchcore for configs/patchcore.py."""
  folder = next((folder for folder in _CONFIG_DIRS if folder.is_dir()), _CONFIG_DIRS[0])
  return {path.stem: path for path in folder.glob('*.py')}


def read(source: str) -> dict[str, Any]:
  """Read the values of a configuration by dotted key.

  Args:
    source: `FILE.py[:argument]`, `FILE.yaml`, or `NAME[:argument]` of a config in configs/.

  Raises:
    ConfigError: the file is missing or invalid.
  """
  name, _, argument = source.partition(':')
  builtin_configs = builtin_files()
  path = builtin_configs.get(name, Path(name))
  if not path.is_file():
    names, example = sorted(builtin_configs), Setting('config', 'configs/stfpm.py')
    hint = 'Pass an existing file, such as ', example, f', or one of {names}.'
    refuse('config', name, f'No config file {name!r}.', *hint, allowed=names)
  is_yaml = path.suffix in ('.yaml', '.yml')
  return flatten(_read_yaml(path) if is_yaml else _run_python(path, argument))


def _read_yaml(path: Path) -> Values:
  try:
    values = yaml.safe_load(path.read_text())
  except (yaml.YAMLError, UnicodeDecodeError) as error:
    refuse('config', path, f'{path} is not valid YAML: {error}')
  if not isinstance(values, dict):
    problem = 'is not a configuration; it must be a mapping with sections such as data and fit.'
    refuse('config', path, f'{path} {problem}')
  return values


def _run_python(path: Path, argument: str) -> Values:
  module_spec = importlib.util.spec_from_file_location(f'uadjax_config_{path.stem}', path)
  if module_spec is None or module_spec.loader is None:
    problem = 'is neither .py nor .yaml; pass a file such as configs/stfpm.py.'
    refuse('config', path, f'{path} {problem}')
  module = importlib.util.module_from_spec(module_spec)
  try:
    module_spec.loader.exec_module(module)
    if not hasattr(module, 'get_config'):
      refuse('config', path, f'{path} does not define get_config(arg); see configs/stfpm.py.')
    config = module.get_config(argument)
    if not isinstance(config, ml_collections.ConfigDict):
      problem = f'returned {type(config).__name__} instead of ConfigDict'
      refuse('config', path, f'get_config in {path} {problem}.', _CONFIG_HINT)
    values = config.to_dict()
  except UserError:
    raise
  except SyntaxError as error:
    refuse('config', path, f'{path} is not valid Python: {error}')
  except Exception as error:  # The file may raise an error of any class.
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == module_spec.origin]
    location = f'{path}, line {lines[-1]},' if lines else str(path)
    reason = traceback.format_exception_only(error)[0].strip()
    refuse('config', path, f'{location} raised {reason.rstrip(".")}.', _CONFIG_HINT)
  return values
