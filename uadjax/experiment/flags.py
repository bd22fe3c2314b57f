"""Command line flags `--config.KEY=VALUE` of an experiment: parsing and formatting."""

from collections.abc import Sequence
import shlex

from uadjax import errors
from uadjax.errors import Setting

_PREFIX = '--config.'
# Settings that are not keys of the configuration.
_OWN_FLAGS = {'config': '--config', 'workdir': '--workdir'}
_OTHER_COMMAND_FLAGS = {'access.private': '--allow-private-urls of uadjax predict'}


def extract_overrides(argv: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
  """Split arguments into overrides (key, value) and the other arguments.

  Overrides are written `--config.key=value`, `--config.key value` or, for true, `--config.key`.
  """
  overrides, other_arguments, words = [], [], list(argv)
  while words:
    word = words.pop(0)
    if not word.startswith(_PREFIX):
      other_arguments.append(word)
      continue
    key, separator, value = word.removeprefix(_PREFIX).partition('=')
    if not separator:
      value = words.pop(0) if words and not words[0].startswith('--') else 'true'
    overrides.append((key, value))
  return overrides, other_arguments


def format_setting(setting: Setting) -> str:
  """Format a setting as a flag that can be pasted into a shell."""
  if setting.key in _OTHER_COMMAND_FLAGS:
    return _OTHER_COMMAND_FLAGS[setting.key]
  flag = _OWN_FLAGS.get(setting.key, _PREFIX + setting.key)
  if setting.value is ...:
    return flag
  return shlex.quote(f'{flag}={errors.format_value(setting.value)}')
