"""Flags of an experiment, read and written: `--config.KEY=VALUE`."""

from collections.abc import Sequence
import shlex

from uadjax import errors
from uadjax.errors import Setting

_PREFIX = '--config.'
# Settings that are no keys of the configuration.
_FLAGS = {'config': '--config', 'workdir': '--workdir'}
_ELSEWHERE = {'access.private': '--allow-private-urls of uadjax predict'}


def split_overrides(argv: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
  """Take `--config.key=value`, `--config.key value` and `--config.flag` out of the arguments."""
  overrides, rest, words = [], [], list(argv)
  while words:
    word = words.pop(0)
    if not word.startswith(_PREFIX):
      rest.append(word)
      continue
    key, given, value = word.removeprefix(_PREFIX).partition('=')
    if not given:
      value = words.pop(0) if words and not words[0].startswith('--') else 'true'
    overrides.append((key, value))
  return overrides, rest


def format_setting(setting: Setting) -> str:
  """Write a setting as a flag that can be pasted into a shell."""
  if setting.key in _ELSEWHERE:
    return _ELSEWHERE[setting.key]
  flag = _FLAGS.get(setting.key, _PREFIX + setting.key)
  if setting.value is ...:
    return flag
  return shlex.quote(f'{flag}={errors.format_value(setting.value)}')
