"""Logging of the package: console, log file, and error reports."""

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

LOG = logging.getLogger('uadjax')
CONSOLE = rich.console.Console(stderr=True)
_LINE_FORMATTER = logging.Formatter('%(asctime)s %(levelname)s %(message)s')


@contextlib.contextmanager
def logging_to(file: Path | None = None) -> Iterator[None]:
  """Log the package's messages to the console and, if `file` is given, append them to it."""
  handlers: list[logging.Handler] = [_console_handler()]
  if file is not None:
    handlers.append(logging.FileHandler(file))
    handlers[-1].setFormatter(_LINE_FORMATTER)
  previous_handlers, previous_level, previous_propagate = LOG.handlers, LOG.level, LOG.propagate
  LOG.handlers, LOG.propagate = handlers, False
  LOG.setLevel(logging.INFO)
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


def report_error(error: BaseException, file: Path | None) -> None:
  """Print an error that a user can fix to stderr and append it to the log file."""
  message = f'{type(error).__name__}: {error}'
  print(message, file=sys.stderr)
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
    return rich.logging.RichHandler(console=CONSOLE, show_path=False, show_level=False)
  handler = logging.StreamHandler()  # Rich would wrap lines in pipes and files at 80 columns.
  handler.setFormatter(_LINE_FORMATTER)
  return handler
