"""What surrounds every command: preparing JAX, signals, error messages and the exit status."""

from collections.abc import Callable, Iterator
import contextlib
import functools
import json
import os
import shlex
import signal
import sys
from typing import Any

import typer

from uadjax import errors
from uadjax.errors import Setting

EXIT_FAILURE, EXIT_USAGE = 1, 2
_SIGNAL_STATUS_BASE = 128  # As shells have it: plus the number of the signal.
_OPTION_BY_SETTING = {  # Settings that have an option of their own.
  'access.private': '--allow-private-urls',
  'config': '--models',
  'device': '--device',
  'export.images': '--images',
  'export.output': '--output',
  'predict.shard': '--shard',
  'workdir': '--workdir',
}
_COMMANDS_WITH_OVERRIDE = (
  'fit',
  'sweep',
)  # Commands whose --override takes any setting of an experiment.


def report_errors(command: Callable[..., None]) -> Callable[..., None]:
  """Make a command tell of its failures in one message, and exit with their status."""
  format_for_command = functools.partial(format_setting, command.__name__)

  @functools.wraps(command)
  def wrapper(*args: Any, **options: Any) -> None:
    try:
      with errors.setting_format(format_for_command):
        command(*args, **options)
    except (typer.TyperException, typer.Exit, SystemExit):
      raise
    except BrokenPipeError:
      discard_stdout()
      raise typer.Exit(_SIGNAL_STATUS_BASE + signal.SIGPIPE) from None
    except BaseException as error:  # Interrupted is no Exception.
      raise typer.Exit(_report_failure(error, options.get('as_json', False))) from None

  return wrapper


def format_setting(command: str, setting: Setting) -> str:
  """Write a setting as an option of a command that can be pasted into a shell.

  Commands that only have options of their own point to `python -m uadjax.main`, which has all.
  """
  option = _OPTION_BY_SETTING.get(setting.key)
  if option is None and command in _COMMANDS_WITH_OVERRIDE:
    return f'--override {shlex.quote(errors.format_plain(setting))}'
  if option is None:
    from uadjax.experiment import flags  # Loads JAX.

    return f'{flags.format_setting(setting)} of python -m uadjax.main'
  if setting.value is ... or setting.value is True:
    return option
  return shlex.quote(f'{option}={errors.format_value(setting.value)}')


@contextlib.contextmanager
def prepare() -> Iterator[None]:
  """Be ready to compute, to be interrupted, and to log to stderr."""
  from uadjax.system import logging, memory, signals

  memory.retain_freed_pages()
  with signals.raise_on_signal(), logging.logging_to():
    yield


def print_error(error: BaseException, message: str, as_json: bool) -> None:
  """Say what is wrong: to people on stderr, in one piece; to machines as an object on stdout."""
  if as_json:
    print(json.dumps({'error': message, 'type': type(error).__name__}), flush=True)
  else:
    print('Error:', to_printable(message, allowed='\n'), file=sys.stderr)


def to_printable(string: str, allowed: str = '') -> str:
  """Escape what would move the cursor or color the terminal, and what is no UTF-8."""
  return ''.join(
    c if c.isprintable() or c in allowed else c.encode('unicode_escape').decode('ascii')
    for c in string
  )


def discard_stdout() -> None:
  """Let what is yet to be flushed go nowhere: nobody reads it."""
  with contextlib.suppress(OSError, ValueError):
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report_failure(error: BaseException, as_json: bool) -> int:
  """The exit status of a failure, which is told."""
  from uadjax.system import logging

  if isinstance(error, KeyboardInterrupt):  # Before signals were taken care of.
    error = errors.Interrupted(f'Stopped by {signal.SIGINT.name}.')
  expected_errors = errors.UserError, errors.Interrupted, OSError
  if as_json or isinstance(error, expected_errors):
    print_error(error, str(error), as_json)
  if not isinstance(error, expected_errors):
    logging.report_internal_error(error, None)  # pyright: ignore[reportArgumentType]
  if isinstance(error, errors.Interrupted):
    signal_numbers = (
      number for number in (signal.SIGINT, signal.SIGTERM) if number.name in str(error)
    )
    return _SIGNAL_STATUS_BASE + next(signal_numbers, signal.SIGINT)
  return EXIT_USAGE if isinstance(error, errors.ConfigError | errors.UnknownName) else EXIT_FAILURE
