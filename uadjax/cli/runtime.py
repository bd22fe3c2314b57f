"""Setup that all commands share: memory, signals, logging, error messages and exit status."""

from collections.abc import Callable, Sequence
import contextlib
import functools
import json
import os
from pathlib import Path
import shlex
import signal
import sys
import traceback
from typing import Any

import typer

from uadjax import errors
from uadjax.errors import Setting

_SIGPIPE = getattr(signal, 'SIGPIPE', 13)  # Windows lacks it; 13 is its number elsewhere.
# Options that every command has that can fail because of them; the others are those of a section.
_OPTION_BY_SETTING = {
  'access.private': '--allow-private-urls',
  'config': '--models',
  'device': '--device',
  'image_threshold': '--image-threshold',
  'review_threshold': '--review-threshold',
  'workdir': '--workdir',
}
# Arguments that stand for settings, which a message can only name: a value needs --override.
_ARGUMENT_BY_SETTING = {'data.category': '--category', 'data.root': 'DATASET'}
# Options of single commands. Unlike a sweep, `fit` takes a single config.
_OPTION_BY_COMMAND = {
  'check': {f'data.{name}': f'--{name}' for name in ('layout', 'mask', 'bits', 'range')},
  'fit': {'config': '--model', 'fit.extend': '--extend'},
}
# Sections whose settings are options of a command of another name; 'root' is `uadjax` without one.
_SECTION_BY_COMMAND = {'report': 'evaluate', 'threshold': 'calibrate', 'root': 'predict'}
# The --override of these commands takes any setting of an experiment.
_COMMANDS_WITH_OVERRIDE = ('fit', 'sweep')


def report_errors(command: Callable[..., None]) -> Callable[..., None]:
  """Wrap a command so that it is set up, and a failure becomes one message and an exit status."""
  format_for_command = functools.partial(format_setting, command.__name__)

  @functools.wraps(command)
  def wrapper(verbose: bool, quiet: bool, **options: Any) -> None:
    if verbose and quiet:
      raise typer.BadParameter('contradicts --verbose; pass one of them.', param_hint='--quiet')
    try:
      from uadjax.system import logging, memory, signals

      memory.retain_freed_pages()
      format_context = errors.setting_format(format_for_command)
      level = logging.console_level(verbose, quiet)
      with format_context, signals.raise_on_signal(), level, logging.logging_to():
        command(**options)
    except (typer.TyperException, typer.Exit, SystemExit):
      raise
    except BaseException as error:  # Interrupted does not derive from Exception.
      if isinstance(error, OSError) and (status := stdout_failure_status(error)):
        raise typer.Exit(status) from None
      raise typer.Exit(_report_failure(error, options.get('as_json', False), verbose)) from None

  return wrapper


def format_setting(command: str, setting: Setting) -> str:
  """Format a setting as an option of a command, quoted so that it can be pasted into a shell.

  Commands without --override point to `python -m uadjax.main`, which takes every setting.
  """
  section, _, name = setting.key.rpartition('.')
  takes_override = command in _COMMANDS_WITH_OVERRIDE
  is_own = section == _SECTION_BY_COMMAND.get(command, command) and not takes_override
  own_option = f'--{name.replace("_", "-")}' if is_own else None
  options = _OPTION_BY_SETTING | _OPTION_BY_COMMAND.get(command, {})
  option = options.get(setting.key, own_option)
  if setting.value is ... and setting.key in _ARGUMENT_BY_SETTING:
    return _ARGUMENT_BY_SETTING[setting.key]
  if option is None and takes_override:
    # Without a value the setting is only named, but --override always takes one.
    setting = setting._replace(value='...') if setting.value is ... else setting
    return f'--override {shlex.quote(errors.format_plain(setting))}'
  if option is None:
    from uadjax.experiment import flags  # Imports JAX, so it is not at the top.

    return f'{flags.format_setting(setting)} of python -m uadjax.main'
  if setting.value is ... or setting.value is True:
    return option
  return shlex.quote(f'{option}={errors.format_value(setting.value)}')


def require_writable(option: str, folder: Path | None) -> None:
  """Refuse an output folder that cannot be written, before any work is done.

  Args:
    option: option or argument that names the output.
    folder: the folder, which may not exist yet; None if there is no output.
  """
  from uadjax.system import files

  if folder and (reason := files.unwritable_reason(folder)):
    message = f'cannot write to {folder} ({reason}); name another place.'
    raise typer.BadParameter(message, param_hint=option)


def parse_overrides(assignments: Sequence[str] | None) -> dict[str, str]:
  """Return the values of KEY=VALUE assignments by key."""
  pairs = [assignment.partition('=') for assignment in assignments or ()]
  for key, equals, _ in pairs:
    if not equals:
      raise typer.BadParameter(f'{key!r} has no value; write KEY=VALUE.', param_hint='--override')
  return {key: value for key, _, value in pairs}


def print_error(error: BaseException, message: str, as_json: bool) -> None:
  """Print an error as one message on stderr, or with `as_json` as an object on stdout."""
  if as_json:
    data = {name: getattr(error, name, None) for name in ('key', 'value', 'allowed')}
    fields = {name: value for name, value in data.items() if value is not None}
    content = {'error': message, 'type': type(error).__name__, **fields}
    print(json.dumps(content, default=str), flush=True)
  else:
    print('Error:', to_printable(message, allowed_chars='\n'), file=sys.stderr)


def to_printable(string: str, allowed_chars: str = '') -> str:
  """Escape what could move the cursor or color the terminal, and what is not valid UTF-8."""
  return ''.join(
    c if c.isprintable() or c in allowed_chars else c.encode('unicode_escape').decode('ascii')
    for c in string
  )


def stdout_failure_status(error: OSError | None = None) -> int:
  """Flush stdout; if that failed, or `error` is of writing to it, return the exit status.

  A reader that has gone, as `head` does, is no failure to report: the status is that of SIGPIPE. A
  full disk is reported on stderr. Output that is still buffered is discarded, because Python would
  fail again to flush it at exit.

  Args:
    error: error of a command.

  Returns:
    The exit status; 0 if stdout does not fail.
  """
  stdout = sys.stdout
  try:
    if stdout is not None:  # It is closed.
      stdout.flush()
  except OSError as flush_error:
    error = flush_error
  if stdout is None or error is None or not _is_of_stdout(error):
    return 0
  with contextlib.suppress(OSError, ValueError):
    os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
  if isinstance(error, BrokenPipeError):
    return errors.SIGNAL_STATUS_BASE + _SIGPIPE
  error.filename = 'standard output'
  print_error(error, errors.describe(error), False)
  return errors.EXIT_FAILURE


def _is_of_stdout(error: OSError) -> bool:
  """Return whether an error is of writing to stdout, which this package or a library prints to.

  Errors of files have a name, except those of files that other packages of uadjax have open.
  """
  frames = traceback.extract_tb(error.__traceback__)
  path = Path(frames[-1].filename) if frames else Path()
  package = Path(__file__).parent
  is_of_other_package = path.is_relative_to(package.parent) and not path.is_relative_to(package)
  return isinstance(error, BrokenPipeError) or not (error.filename or is_of_other_package)


def _report_failure(error: BaseException, as_json: bool, verbose: bool) -> int:
  """Print the message of a failure, with `verbose` its traceback, and return its exit status."""
  from uadjax.system import logging

  if isinstance(error, KeyboardInterrupt):  # Ctrl-C came before the signal handlers were set.
    error = errors.Interrupted(f'Stopped by {signal.SIGINT.name}.')
  expected_errors = errors.UserError, errors.Interrupted, OSError
  if as_json or isinstance(error, expected_errors):
    print_error(error, errors.describe(error), as_json)
  if not isinstance(error, expected_errors):
    logging.report_internal_error(error, None)
  elif verbose:
    traceback.print_exception(error)
  return errors.exit_status(error)
