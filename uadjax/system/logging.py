"""Logging of the package: console, log file, and how failures are reported."""

from collections.abc import Iterator
import contextlib
import logging
import os
from pathlib import Path
import sys
import traceback

import rich.console
import rich.logging
import rich.progress

LOG = logging.getLogger('uadjax')
CONSOLE = rich.console.Console(stderr=True)
_LINE_FORMATTER = logging.Formatter('%(asctime)s %(levelname)s %(message)s')


@contextlib.contextmanager
def logging_to(file: Path | None = None) -> Iterator[None]:
  """Send the package's messages to the console and, where named, append them to a file."""
  handlers: list[logging.Handler] = [_console_handler()]
  if file is not None:
    handlers.append(logging.FileHandler(file))
    handlers[-1].setFormatter(_LINE_FORMATTER)
  previous_settings = LOG.handlers, LOG.level, LOG.propagate
  LOG.handlers, LOG.propagate = handlers, False
  LOG.setLevel(logging.INFO)
  try:
    yield
  finally:
    LOG.handlers, LOG.propagate = previous_settings[0], previous_settings[2]
    LOG.setLevel(previous_settings[1])
    for handler in handlers:
      handler.close()


def report_error(error: BaseException, file: Path | None) -> None:
  """Say why a run failed, to the console and the log."""
  message = f'{type(error).__name__}: {error}'
  print(message, file=sys.stderr)
  _append_to_file(file, message)


def report_internal_error(error: Exception, file: Path | None) -> None:
  """Say that something went wrong that no user can cause, the traceback in the log alone."""
  traceback_text = ''.join(traceback.format_exception(error))
  traceback_location = (
    f'; its traceback is in {file}'
    if _append_to_file(file, traceback_text)
    else f':\n{traceback_text}'
  )
  print(
    f'{type(error).__name__}: {error}\nThis is a fault of uadjax, or of the machine{traceback_location}.',
    file=sys.stderr,
  )


def _append_to_file(file: Path | None, text: str) -> bool:
  """Whether it could be written."""
  try:
    if file is not None and file.parent.is_dir():
      with file.open('a') as stream:
        stream.write(text.rstrip() + '\n')
        return True
  except OSError:
    pass
  return False


def relative_log_path(workdir: Path) -> str:
  """The log that is being written, as seen from a folder."""
  for handler in LOG.handlers:
    if isinstance(handler, logging.FileHandler):
      return os.path.relpath(handler.baseFilename, workdir)
  return ''


def _console_handler() -> logging.Handler:
  if CONSOLE.is_terminal:
    return rich.logging.RichHandler(
      console=CONSOLE, show_path=False, show_level=False, highlighter=None
    )
  handler = logging.StreamHandler()  # Rich would wrap what a pipe or a file takes at 80 columns.
  handler.setFormatter(_LINE_FORMATTER)
  return handler
