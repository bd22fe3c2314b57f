"""Steps of a run and their progress: bars on a terminal and in notebooks, log lines elsewhere.

Everything here goes to stderr or into the output of a notebook cell, never to stdout.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import dataclasses
import datetime
import html
import time
from typing import Any, NamedTuple, TypeVar

import rich.progress

from uadjax.system import logging
from uadjax.types import Metrics, PyTree

# (items, total, description) -> the items; progress is shown while they are consumed.
Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]


def no_progress(items: Iterable[Any], total: int, description: str) -> Iterable[Any]:
  """Return the items without showing progress."""
  return items


_LINE_INTERVAL_S, _LINE_INTERVAL_SHARE = 10.0, 0.1
_NOTEBOOK_INTERVAL_S = 0.2

Item = TypeVar('Item')
ShowFunction = Callable[[int, str], None]  # (number of finished items, remaining time) -> None.


class Step(NamedTuple):
  """Step of a run.

  Attributes:
    title: short name.
    num_scored: number of images, if the step mainly scores images; else 0.
  """

  title: str
  num_scored: int = 0


@dataclasses.dataclass
class _Run:
  """Steps of the active run, and the title of the current one."""

  steps: Sequence[Step] = ()
  title: str = ''

  @property
  def following(self) -> Sequence[Step]:
    """Steps after the current one; none if the current one is not planned."""
    titles = [step.title for step in self.steps]
    return self.steps[titles.index(self.title) + 1 :] if self.title in titles else ()


_run = _Run()


@contextlib.contextmanager
def planned_steps(steps: Sequence[Step]) -> Iterator[None]:
  """Plan the steps of a run, so that `announce` and remaining times can name those that follow.

  If `steps` is a list, the block may change it once more is known.
  """
  global _run
  previous_run, _run = _run, _Run(steps)
  try:
    yield
  finally:
    _run = previous_run


def announce(title: str) -> None:
  """Log that a step begins, and which steps of the run follow."""
  _run.title = title
  following = f'; then {_join_titles(_run.following)}' if _run.following else ''
  logging.LOG.info('Next step: %s%s.', title, following)


def remaining_time(seconds: float, seconds_per_image: float | None = None) -> str:
  """Format the remaining time of a step, and name the steps that follow.

  Args:
    seconds: estimated remaining time of the current step.
    seconds_per_image: time per image of the current step, if the steps that follow score images in
      the same time, which is then included; None if their time is unknown.
  """
  included = [step for step in _run.following if step.num_scored and seconds_per_image]
  others = [step for step in _run.following if step not in included]
  seconds += sum(step.num_scored for step in included) * (seconds_per_image or 0)
  text = f'ETA {datetime.timedelta(seconds=round(seconds))}'
  text += f' with {_join_titles(included)}' if included else ''
  return text + (f', then {_join_titles(others)}' if others else '')


def _join_titles(steps: Sequence[Step]) -> str:
  return ', '.join(step.title for step in steps)


@dataclasses.dataclass
class Pace:
  """Pace of progress lines: one every 10 s or every 10 % of the items, whichever is rarer.

  Attributes:
    total: number of all items; None if it is unknown.
    num_logged: number of finished items in the last line.
  """

  total: int | None
  num_logged: int = 0

  def __post_init__(self):
    self._time_logged = time.monotonic()

  def is_due(self, num_done: int) -> bool:
    """Return whether a line is due after `num_done` items; if so, the caller writes it now."""
    now, min_items = time.monotonic(), _LINE_INTERVAL_SHARE * (self.total or 0)
    if now - self._time_logged < _LINE_INTERVAL_S or num_done - self.num_logged < min_items:
      return False
    self._time_logged, self.num_logged = now, num_done
    return True


def is_interactive() -> bool:
  """Return whether the console is a terminal that shows progress bars."""
  # `is_terminal` does not suffice: FORCE_COLOR makes it true for a pipe.
  console, is_quiet = logging.CONSOLE, logging.is_quiet()
  return not is_quiet and console.file.isatty() and not console.is_dumb_terminal


def show_progress(
  items: Iterable[Item], total: int | None, description: str, scores_images: bool = False
) -> Iterator[Item]:
  """Yield the items with a progress bar, or with log lines where no bar can be shown.

  Args:
    items: what to iterate over.
    total: number of items; None if it is unknown.
    description: what is done with the items.
    scores_images: whether each item is an image that takes as long to score as in later steps of
      the run. The remaining time then includes those steps.
  """
  start = time.monotonic()
  with (_bar() or _log_lines)(total, description) as show:
    for num_done, item in enumerate(items, 1):
      yield item
      seconds_per_item = (time.monotonic() - start) / num_done
      seconds = seconds_per_item * ((total or num_done) - num_done)
      show(num_done, remaining_time(seconds, seconds_per_item if scores_images else None))


@contextlib.contextmanager
def show_status(description: str) -> Iterator[None]:
  """Show a spinner with a description on a terminal; log the description elsewhere."""
  if is_interactive():
    with logging.CONSOLE.status(f'{description} …'):
      yield
  else:
    logging.LOG.info('%s.', description)
    yield


@contextlib.contextmanager
def progress_bar(
  total: int, start: int, description: str
) -> Iterator[Callable[[int, PyTree, Metrics], None]]:
  """Yield a training hook (step, state, metrics) that moves a progress bar to the step.

  Shows nothing where no bar can be shown: there the hook that logs steps writes lines.
  """
  if not (bar := _bar()):
    yield lambda step, state, metrics: None
    return
  start_time = time.monotonic()
  with bar(total, description) as show:

    def move(step: int, state: PyTree, metrics: Metrics) -> None:
      seconds_per_step = (time.monotonic() - start_time) / max(1, step - start)
      show(step, remaining_time(seconds_per_step * (total - step)))

    yield move


OpenFunction = Callable[[int | None, str], contextlib.AbstractContextManager[ShowFunction]]


def _bar() -> OpenFunction | None:
  """Return the function that opens a progress bar; None where no bar can be shown."""
  if logging.CONSOLE.is_jupyter and not logging.is_quiet():
    return _notebook_bar
  return _terminal_bar if is_interactive() else None


@contextlib.contextmanager
def _terminal_bar(total: int | None, description: str) -> Iterator[ShowFunction]:
  columns = (
    rich.progress.TextColumn('{task.description}'),
    rich.progress.BarColumn(),
    rich.progress.TaskProgressColumn(),
    rich.progress.MofNCompleteColumn(),
    rich.progress.TextColumn('{task.fields[rest]}'),
  )
  # Stdout is not redirected, as it may be a pipe.
  with rich.progress.Progress(
    *columns, console=logging.CONSOLE, transient=True, redirect_stdout=False
  ) as display:
    task = display.add_task(description, total=total, rest='')
    # Without a total the remaining time is unknown, too.
    yield lambda num_done, rest: display.update(
      task, completed=num_done, rest=rest if total else ''
    )


@contextlib.contextmanager
def _notebook_bar(total: int | None, description: str) -> Iterator[ShowFunction]:
  from IPython import display  # Every notebook has it, and nothing else needs it.

  handle, last_time = display.DisplayHandle(), -_NOTEBOOK_INTERVAL_S
  handle.display(display.HTML(''))

  def show(num_done: int, rest: str) -> None:
    nonlocal last_time
    now = time.monotonic()
    if now - last_time < _NOTEBOOK_INTERVAL_S:
      return
    last_time = now
    bar = f'<progress value="{num_done}" max="{total}"></progress> ' if total else ''
    text = f'{num_done}/{total}, {rest}' if total else str(num_done)
    handle.update(display.HTML(f'{html.escape(description)} {bar}{html.escape(text)}'))

  try:
    yield show
  finally:
    handle.update(display.HTML(''))


@contextlib.contextmanager
def _log_lines(total: int | None, description: str) -> Iterator[ShowFunction]:
  pace = Pace(total)

  def show(num_done: int, rest: str) -> None:
    if num_done != total and pace.is_due(num_done):
      suffix = f' of {total}, {rest}' if total else ''
      logging.LOG.info('%s: %d%s', description, num_done, suffix)

  yield show
