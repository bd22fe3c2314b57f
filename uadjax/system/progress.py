"""Progress bars on a terminal, and log lines at intervals elsewhere."""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import datetime
import time
from typing import Any, TypeVar

import rich.progress

from uadjax.system import logging
from uadjax.types import Metrics, PyTree

# (items, total, description) -> the items; progress is shown while they are consumed.
Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]


def no_progress(items: Iterable[Any], total: int, description: str) -> Iterable[Any]:
  """Return the items without showing progress."""
  return items


_LOG_INTERVAL_S = 10.0

Item = TypeVar('Item')


def is_interactive() -> bool:
  """Return whether the console is a terminal that can show progress bars."""
  # `is_terminal` does not suffice: FORCE_COLOR makes it true for a pipe.
  return logging.CONSOLE.file.isatty() and not logging.CONSOLE.is_dumb_terminal


def show_progress(items: Iterable[Item], total: int | None, description: str) -> Iterator[Item]:
  """Yield the items with a progress bar on a terminal, or a log line at intervals elsewhere."""
  if is_interactive():
    with _make_progress_bar() as progress:
      yield from progress.track(items, total, description=description)
    return
  last_logged = start = time.monotonic()
  for num_done, item in enumerate(items, 1):
    yield item
    now = time.monotonic()
    if now - last_logged > _LOG_INTERVAL_S and num_done != total:
      remaining_s = round((now - start) / num_done * ((total or num_done) - num_done))
      rest = f' of {total}, ETA {datetime.timedelta(seconds=remaining_s)}' if total else ''
      logging.LOG.info('%s: %d%s', description, num_done, rest)
      last_logged = now


@contextlib.contextmanager
def show_status(description: str) -> Iterator[None]:
  """Show a spinner with a description on a terminal; do nothing elsewhere."""
  with logging.CONSOLE.status(f'{description} …') if is_interactive() else contextlib.nullcontext():
    yield


def _make_progress_bar() -> rich.progress.Progress:
  """Return a progress bar that does not redirect stdout, which may be a pipe."""
  columns = *rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn()
  hidden = not is_interactive()
  return rich.progress.Progress(
    *columns, console=logging.CONSOLE, transient=True, disable=hidden, redirect_stdout=False
  )


@contextlib.contextmanager
def progress_bar(
  total: int, start: int, description: str
) -> Iterator[Callable[[int, PyTree, Metrics], None]]:
  """Yield a training hook (step, state, metrics) that moves a progress bar to the step.

  Shows nothing without a terminal.
  """
  with _make_progress_bar() as bar_display:
    task = bar_display.add_task(description, total=total, completed=start)
    yield lambda step, state, metrics: bar_display.update(task, completed=step)
