"""Progress bars where there is a terminal, a line now and then elsewhere."""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import datetime
import time
from typing import Any, TypeVar

import rich.console
import rich.logging
import rich.progress

from uadjax.system import logging
from uadjax.types import Metrics

# (items, their number, what is done) -> the items, while progress is shown.
Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]


def no_progress(items: Iterable[Any], total: int, description: str) -> Iterable[Any]:
  """Show no progress."""
  return items


_LOG_INTERVAL_S = 10.0  # Without a sign of life, at most.

Item = TypeVar('Item')


def is_interactive() -> bool:
  """Whether bars are shown: where there is a terminal that can move its cursor."""
  # Not `is_terminal`, which FORCE_COLOR makes true of a pipe.
  return logging.CONSOLE.file.isatty() and not logging.CONSOLE.is_dumb_terminal


def show_progress(items: Iterable[Item], total: int | None, description: str) -> Iterator[Item]:
  """Iterate with a progress bar where there is a terminal, with a line now and then elsewhere."""
  if is_interactive():
    with _make_progress_bar() as progress:
      yield from progress.track(items, total, description=description)
    return
  last_logged = start = time.monotonic()
  for num_done, item in enumerate(items, 1):
    yield item
    now = time.monotonic()
    if now - last_logged > _LOG_INTERVAL_S and num_done != total:
      remaining = total and datetime.timedelta(
        seconds=round((now - start) / num_done * (total - num_done))
      )
      logging.LOG.info(
        '%s: %d%s', description, num_done, f' of {total}, ETA {remaining}' if total else ''
      )
      last_logged = now


@contextlib.contextmanager
def show_status(description: str) -> Iterator[None]:
  """Show what is being waited for, where there is a terminal that can."""
  with logging.CONSOLE.status(f'{description} …') if is_interactive() else contextlib.nullcontext():
    yield


def _make_progress_bar() -> rich.progress.Progress:
  """A bar that leaves stdout alone, which may well be a pipe."""
  columns = (
    *rich.progress.Progress.get_default_columns()[:3],
    rich.progress.MofNCompleteColumn(),
    rich.progress.TimeRemainingColumn(),
  )
  return rich.progress.Progress(
    *columns,
    console=logging.CONSOLE,
    transient=True,
    disable=not is_interactive(),
    redirect_stdout=False,
  )


@contextlib.contextmanager
def progress_bar(
  total: int, start: int, description: str
) -> Iterator[Callable[[int, Any, Metrics], None]]:
  """Open a progress bar; yields the hook that moves it. Silent without a terminal."""
  with _make_progress_bar() as bar_display:
    task = bar_display.add_task(description, total=total, completed=start)
    yield lambda step, state, metrics: bar_display.update(task, completed=step)
