"""What a run says of itself: console, log file, TensorBoard, a bar. Only here is clu known."""

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import datetime
import logging
import os
from pathlib import Path
import sys
import time
import traceback
from typing import Any, NamedTuple, TypeVar

import rich.console
import rich.logging
import rich.progress

from uadjax.data import pipeline
from uadjax.types import Metrics

LOG = logging.getLogger('uadjax')
CONSOLE = rich.console.Console(stderr=True)
_SILENCE_S = 10.0  # Without a sign of life, at most.
_LINE = logging.Formatter('%(asctime)s %(levelname)s %(message)s')

Item = TypeVar('Item')


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


def draws() -> bool:
  """Whether bars are shown: where there is a terminal that can move its cursor."""
  # Not `is_terminal`, which FORCE_COLOR makes true of a pipe.
  return CONSOLE.file.isatty() and not CONSOLE.is_dumb_terminal


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
      LOG.info('%s: %d%s', what, number, f' of {total}, ETA {left}' if total else '')
      told = now


@contextlib.contextmanager
def busy(what: str) -> Iterator[None]:
  """Show what is being waited for, where there is a terminal that can."""
  with CONSOLE.status(f'{what} …') if draws() else contextlib.nullcontext():
    yield


def _progress() -> rich.progress.Progress:
  """A bar that leaves stdout alone, which may well be a pipe."""
  columns = (
    *rich.progress.Progress.get_default_columns()[:3],
    rich.progress.MofNCompleteColumn(),
    rich.progress.TimeRemainingColumn(),
  )
  return rich.progress.Progress(
    *columns, console=CONSOLE, transient=True, disable=not draws(), redirect_stdout=False
  )


class Clock(NamedTuple):
  """Seconds since it was last read, in all and of them waiting for data."""

  wall: Callable[[], float]
  waited: Callable[[], float]
  watch: Callable[[Iterator[Any]], Iterator[Any]]


def clock() -> Clock:
  """Start a clock."""
  since, waits = time.perf_counter(), 0.0

  def wall() -> float:
    nonlocal since
    before, since = since, time.perf_counter()
    return since - before

  def waited() -> float:
    nonlocal waits
    total, waits = waits, 0.0
    return total

  def watch(items: Iterator[Any]) -> Iterator[Any]:
    nonlocal waits
    while True:
      start = time.perf_counter()
      try:
        item = next(items)
      except StopIteration:
        return
      waits += time.perf_counter() - start
      yield item

  return Clock(wall, waited, watch)


def log_steps(
  total: int,
  start: int,
  batch_size: int,
  every: int,
  clock: Clock,
  scalars: Callable[[int, Mapping[str, float]], None] = lambda step, values: None,
) -> Callable[[int, Any, Metrics], None]:
  """Make the hook that logs a line and TensorBoard scalars each `every` steps, and at the end."""
  logged = start

  def hook(step: int, state: Any, metrics: Metrics) -> None:
    nonlocal logged
    if step % every and step != total:
      return
    values = {k: float(v) for k, v in metrics.items()}  # Waits for the device.
    steps, logged = step - logged, step
    step_s, data_s = clock.wall() / steps, clock.waited() / steps
    eta = datetime.timedelta(seconds=round((total - step) * step_s))
    LOG.info(
      'step %d/%d  %s  step %.3f s  data %.3f s  %.1f images/s  ETA %s',
      step, total, '  '.join(f'{_SHORT.get(k, k)} {v:.4g}' for k, v in values.items()),
      step_s, data_s, batch_size / step_s, eta,
    )  # fmt: skip
    scalars(
      step, {**values, 'step_s': step_s, 'data_s': data_s, 'images_per_s': batch_size / step_s}
    )

  return hook


_SHORT = {'learning_rate': 'lr'}


@contextlib.contextmanager
def tensorboard(directory: Path) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
  """Open an event file; yields (step, scalars) -> None."""
  pipeline.tensorflow()  # Quietly; clu imports it too.
  from clu import metric_writers

  writer = metric_writers.SummaryWriter(str(directory))
  try:
    yield writer.write_scalars
  finally:
    writer.close()


@contextlib.contextmanager
def bar(total: int, start: int, what: str) -> Iterator[Callable[[int, Any, Metrics], None]]:
  """Open a progress bar; yields the hook that moves it. Silent without a terminal."""
  with _progress() as progress:
    task = progress.add_task(what, total=total, completed=start)
    yield lambda step, state, metrics: progress.update(task, completed=step)
