"""Hooks of the fit loop: logging and TensorBoard, the best step, checkpoints.

A hook is (step, state, metrics) -> None, called after each step. It must be done with the state
when it returns: the next update donates its buffers.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import datetime
from pathlib import Path
import time
from typing import Any, NamedTuple

from uadjax.system import logging, tensorflow
from uadjax.types import Metrics


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
    logging.LOG.info(
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
  tensorflow.tensorflow()  # Quietly; clu imports it too.
  from clu import metric_writers

  writer = metric_writers.SummaryWriter(str(directory))
  try:
    yield writer.write_scalars
  finally:
    writer.close()
