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
_LINE = logging.Formatter('%(asctime)s %(levelname)s %(message)s')


@contextlib.contextmanager
def logging_to(file: Path | None = None) -> Iterator[None]:
  """Send the package's messages to the console and, where named, append them to a file."""
  handlers: list[logging.Handler] = [_console_handler()]
  if file is not None:
    handlers.append(logging.FileHandler(file))
    handlers[-1].setFormatter(_LINE)
  before = LOG.handlers, LOG.level, LOG.propagate
  LOG.handlers, LOG.propagate = handlers, False
  LOG.setLevel(logging.INFO)
  try:
    yield
  finally:
    LOG.handlers, LOG.propagate = before[0], before[2]
    LOG.setLevel(before[1])
    for handler in handlers:
      handler.close()


def complain(error: BaseException, file: Path | None) -> None:
  """Say why a run failed, to the console and the log."""
  told = f'{type(error).__name__}: {error}'
  print(told, file=sys.stderr)
  _append(file, told)


def report(error: Exception, file: Path | None) -> None:
  """Say that something went wrong that no user can cause, the traceback in the log alone."""
  told = ''.join(traceback.format_exception(error))
  where = f'; its traceback is in {file}' if _append(file, told) else f':\n{told}'
  print(
    f'{type(error).__name__}: {error}\nThis is a fault of uadjax, or of the machine{where}.',
    file=sys.stderr,
  )


def _append(file: Path | None, text: str) -> bool:
  """Whether it could be written."""
  try:
    if file is not None and file.parent.is_dir():
      with file.open('a') as log:
        log.write(text.rstrip() + '\n')
        return True
  except OSError:
    pass
  return False


def log_file(workdir: Path) -> str:
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
  plain = logging.StreamHandler()  # Rich would wrap what a pipe or a file takes at 80 columns.
  plain.setFormatter(_LINE)
  return plain
