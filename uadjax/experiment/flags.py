"""Flags of an experiment, read and written: `--config.KEY=VALUE`."""

from collections.abc import Sequence
import shlex

from uadjax import errors
from uadjax.errors import Setting

_PREFIX = '--config.'
_OWN = {'config': '--config', 'workdir': '--workdir'}  # What is no key of the configuration.


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


def spelled(setting: Setting) -> str:
  """A setting as a flag, to be pasted into a shell."""
  flag = _OWN.get(setting.key, _PREFIX + setting.key)
  return flag if setting.value is None else shlex.quote(f'{flag}={errors.text(setting.value)}')
