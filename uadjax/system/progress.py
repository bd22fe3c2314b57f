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
Track = Callable[[Iterable[Any], int, str], Iterable[Any]]


def silently(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
  """Show no progress."""
  return items


_SILENCE_S = 10.0  # Without a sign of life, at most.

Item = TypeVar('Item')


def draws() -> bool:
  """Whether bars are shown: where there is a terminal that can move its cursor."""
  # Not `is_terminal`, which FORCE_COLOR makes true of a pipe.
  return logging.CONSOLE.file.isatty() and not logging.CONSOLE.is_dumb_terminal


def track(items: Iterable[Item], total: int | None, what: str) -> Iterator[Item]:
  """Iterate with a progress bar where there is a terminal, with a line now and then elsewhere."""
  if draws():
    with _progress() as progress:
      yield from progress.track(items, total, description=what)
    return
  told = began = time.monotonic()
  for number, item in enumerate(items, 1):
    yield item
    now = time.monotonic()
    if now - told > _SILENCE_S and number != total:
      left = total and datetime.timedelta(seconds=round((now - began) / number * (total - number)))
      logging.LOG.info('%s: %d%s', what, number, f' of {total}, ETA {left}' if total else '')
      told = now


@contextlib.contextmanager
def busy(what: str) -> Iterator[None]:
  """Show what is being waited for, where there is a terminal that can."""
  with logging.CONSOLE.status(f'{what} …') if draws() else contextlib.nullcontext():
    yield


def _progress() -> rich.progress.Progress:
  """A bar that leaves stdout alone, which may well be a pipe."""
  columns = (
    *rich.progress.Progress.get_default_columns()[:3],
    rich.progress.MofNCompleteColumn(),
    rich.progress.TimeRemainingColumn(),
  )
  return rich.progress.Progress(
    *columns, console=logging.CONSOLE, transient=True, disable=not draws(), redirect_stdout=False
  )


@contextlib.contextmanager
def bar(total: int, start: int, what: str) -> Iterator[Callable[[int, Any, Metrics], None]]:
  """Open a progress bar; yields the hook that moves it. Silent without a terminal."""
  with _progress() as progress:
    task = progress.add_task(what, total=total, completed=start)
    yield lambda step, state, metrics: progress.update(task, completed=step)
