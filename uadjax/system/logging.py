"""Logging of the package: console, log file, and error reports.

`console_level` sets the lowest level that the console shows. The log file has all messages.
"""

from collections.abc import Iterator
import contextlib
import logging
import os
from pathlib import Path
import sys
import traceback
import warnings

import rich.console
import rich.logging

from uadjax import errors

LOG = logging.getLogger('uadjax')
CONSOLE = rich.console.Console(stderr=True)
_LINE_FORMATTER = logging.Formatter('%(asctime)s %(levelname)s %(message)s')
_console_level = logging.INFO
_logged_once: set[str] = set()


@contextlib.contextmanager
def console_level(verbose: bool, quiet: bool) -> Iterator[None]:
  """Set what the console shows in the block.

  Args:
    verbose: whether to show details, too.
    quiet: whether to show only warnings and errors, without progress; it overrides `verbose`.
  """
  global _console_level
  level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
  previous_level, _console_level = _console_level, level
  try:
    yield
  finally:
    _console_level = previous_level


def shown_level() -> int:
  """Return the lowest level of messages that the console shows."""
  return _console_level


def is_quiet() -> bool:
  """Return whether the console shows only warnings and errors."""
  return _console_level > logging.INFO


class _LogFile(logging.FileHandler):
  """Log file; a run goes on without it when its disk is full."""

  def handleError(self, record: logging.LogRecord) -> None:
    """Report in one line, without a traceback, that a record cannot be written."""
    print(f'{self.baseFilename} cannot be written: {sys.exc_info()[1]}', file=sys.stderr)

  def close(self) -> None:
    """Close the file, and forget what cannot be written."""
    with contextlib.suppress(OSError):
      super().close()


@contextlib.contextmanager
def logging_to(file: Path | None = None) -> Iterator[None]:
  """Log the package's messages to the console and, if `file` is given, append them to it.

  The file also has details, which the console shows only on request.
  """
  handlers: list[logging.Handler] = [_console_handler()]
  if file is not None:
    handlers.append(_LogFile(file))
    handlers[-1].setFormatter(_LINE_FORMATTER)
  previous_handlers, previous_level, previous_propagate = LOG.handlers, LOG.level, LOG.propagate
  LOG.handlers, LOG.propagate = handlers, False
  LOG.setLevel(logging.DEBUG)
  try:
    yield
  finally:
    LOG.handlers, LOG.propagate = previous_handlers, previous_propagate
    LOG.setLevel(previous_level)
    for handler in handlers:
      handler.close()


@contextlib.contextmanager
def silence(name: str = '') -> Iterator[None]:
  """Suppress Python's warnings and, below errors, a library's log messages.

  Args:
    name: name of the library's logger; '' for the root logger.
  """
  logger, handler = logging.getLogger(name), logging.NullHandler()
  previous_level = logger.level
  logger.addHandler(handler)  # Without one, logging would be set up for the whole process.
  logger.setLevel(logging.ERROR)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      yield
  finally:
    logger.setLevel(previous_level)
    logger.removeHandler(handler)


def warn_once(name: str, message: str, *arguments: object) -> None:
  """Log a warning, unless this process has logged one of this name before."""
  if name not in _logged_once:
    _logged_once.add(name)
    LOG.warning(message, *arguments)


def report_error(error: BaseException, file: Path | None) -> None:
  """Print an error that a user can fix to stderr and append it to the log file.

  Its traceback is printed only where the console shows details.
  """
  message = f'{type(error).__name__}: {errors.describe(error)}'
  print(message, file=sys.stderr)
  if _console_level < logging.INFO:
    traceback.print_exception(error)
  _append_to_file(file, message)


def report_internal_error(error: BaseException, file: Path | None) -> None:
  """Report an internal error, which users cannot fix.

  The traceback is written to the log file, or to stderr without a writable log file.
  """
  text = ''.join(traceback.format_exception(error))
  location = f'; the traceback is in {file}.' if _append_to_file(file, text) else f':\n{text}'
  print(f'{type(error).__name__}: {error}', file=sys.stderr)
  print(f'Internal error: a bug in uadjax or a fault of the machine{location}', file=sys.stderr)


def _append_to_file(file: Path | None, text: str) -> bool:
  """Append text to a file and return whether that was possible."""
  if file is not None:
    with contextlib.suppress(OSError), file.open('a') as stream:
      stream.write(text.rstrip() + '\n')
      return True
  return False


def relative_log_path(workdir: Path) -> str:
  """Return the path of the active log file relative to `workdir`, or '' without a log file."""
  paths = [h.baseFilename for h in LOG.handlers if isinstance(h, logging.FileHandler)]
  return os.path.relpath(paths[0], workdir) if paths else ''


def _console_handler() -> logging.Handler:
  if CONSOLE.is_terminal:
    return rich.logging.RichHandler(
      _console_level, console=CONSOLE, show_path=False, show_level=False
    )
  handler = logging.StreamHandler()  # Rich would wrap lines in pipes and files at 80 columns.
  handler.setLevel(_console_level)
  handler.setFormatter(_LINE_FORMATTER)
  return handler
