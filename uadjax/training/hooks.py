"""Hooks of the fit loop: logging and TensorBoard, the best step, checkpoints.

A hook is (step, state, metrics) -> None, called after each step. It must be done with the state
when it returns: the next update donates its buffers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import datetime
import math
from pathlib import Path
import threading
import time
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
import numpy as np

from uadjax.detectors.base import Detector
from uadjax.distributed import processes
from uadjax.errors import ConfigError, Interrupted, Setting
from uadjax.system import logging, tensorflow
from uadjax.training import checkpoint
from uadjax.types import Batch, Metrics


class StepTimer(NamedTuple):
  """Seconds since it was last read, in all and of them waiting for data."""

  read_elapsed: Callable[[], float]
  read_data_wait: Callable[[], float]
  time_iterator: Callable[[Iterator[Any]], Iterator[Any]]


def start_timer() -> StepTimer:
  """Start a clock."""
  last_read, wait_seconds = time.perf_counter(), 0.0

  def read_elapsed() -> float:
    nonlocal last_read
    previous_read, last_read = last_read, time.perf_counter()
    return last_read - previous_read

  def read_data_wait() -> float:
    nonlocal wait_seconds
    seconds, wait_seconds = wait_seconds, 0.0
    return seconds

  def time_iterator(iterator: Iterator[Any]) -> Iterator[Any]:
    nonlocal wait_seconds
    while True:
      start = time.perf_counter()
      try:
        item = next(iterator)
      except StopIteration:
        return
      wait_seconds += time.perf_counter() - start
      yield item

  return StepTimer(read_elapsed, read_data_wait, time_iterator)


def make_log_hook(
  num_steps: int,
  start_step: int,
  batch_size: int,
  log_every: int,
  timer: StepTimer,
  write_scalars: Callable[[int, Mapping[str, float]], None] = lambda step, values: None,
) -> Callable[[int, Any, Metrics], None]:
  """Make the hook that logs a line and TensorBoard scalars each `every` steps, and at the end."""
  last_logged_step = start_step

  def hook(step: int, state: Any, metrics: Metrics) -> None:
    nonlocal last_logged_step
    if step % log_every and step != num_steps:
      return
    values = {k: float(v) for k, v in metrics.items()}  # Waits for the device.
    steps_since_log, last_logged_step = step - last_logged_step, step
    step_s, data_s = (
      timer.read_elapsed() / steps_since_log,
      timer.read_data_wait() / steps_since_log,
    )
    eta = datetime.timedelta(seconds=round((num_steps - step) * step_s))
    logging.LOG.info(
      'step %d/%d  %s  step %.3f s  data %.3f s  %.1f images/s  ETA %s',
      step, num_steps, '  '.join(f'{_SHORT_NAMES.get(k, k)} {v:.4g}' for k, v in values.items()),
      step_s, data_s, batch_size / step_s, eta,
    )  # fmt: skip
    write_scalars(
      step, {**values, 'step_s': step_s, 'data_s': data_s, 'images_per_s': batch_size / step_s}
    )

  return hook


_SHORT_NAMES = {'learning_rate': 'lr'}


@contextlib.contextmanager
def open_tensorboard(directory: Path) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
  """Open an event file; yields (step, scalars) -> None."""
  tensorflow.import_tensorflow()  # Quietly; clu imports it too.
  from clu import metric_writers

  writer = metric_writers.SummaryWriter(str(directory))
  try:
    yield writer.write_scalars
  finally:
    writer.close()


Hook = Callable[[int, Any, Metrics], None]


class BestStep(NamedTuple):
  """The state of the lowest held-out loss; of the last step, with NaN, where none is measured."""

  step: int
  loss: float
  state: Any


def make_best_step_hook(
  detector: Detector,
  validation_batches: Sequence[Batch],
  eval_every: int,
  num_steps: int,
  best: BestStep | None,
) -> tuple[Hook, Callable[[], BestStep | None]]:
  """Make the hook that keeps the state of the lowest held-out loss, and what tells it."""
  if detector.validate is None:
    return lambda step, state, metrics: None, lambda: None
  validate = jax.jit(detector.validate)

  def hook(step: int, state: Any, metrics: Metrics) -> None:
    nonlocal best
    if step % eval_every and step != num_steps:
      return
    counts = [int(batch.valid.sum()) for batch in validation_batches]
    losses = [float(validate(state, batch)['loss']) for batch in validation_batches]
    loss = float(np.average(losses, weights=counts))
    if not math.isfinite(loss):
      raise ConfigError(
        f'The held-out loss is {loss} at step {step}: training diverged. Lower '
        'fit.learning_rate, or warm it up with fit.warmup_steps.'
      )
    if best is None or loss < best.loss:
      best = BestStep(step, loss, jax.tree.map(jnp.copy, state))

  return hook, lambda: best


def make_checkpoint_hook(
  rolling_manager: checkpoint.Manager,
  best_manager: checkpoint.Manager,
  get_best: Callable[[], BestStep | None],
  interval_s: float,
  num_steps: int,
  stop_event: threading.Event,
) -> tuple[Hook, Callable[[], float]]:
  """Make the hook that writes checkpoints by the clock, at the end, and when asked to stop.

  Returns:
    The hook, and a function that tells how many seconds it has spent writing.
  """
  next_save_time = time.monotonic() + interval_s
  resumed_best = get_best()
  saved_best_step, save_seconds = (
    resumed_best and resumed_best.step,
    0.0,
  )  # What a run goes on with is on disk already.

  def hook(step: int, state: Any, metrics: Metrics) -> None:
    nonlocal next_save_time, saved_best_step, save_seconds
    start_time, stop_requested = time.monotonic(), processes.any_process(stop_event.is_set())
    if (
      not stop_requested
      and not processes.any_process(start_time >= next_save_time)
      and step != num_steps
    ):
      return
    # The best one first: a rolling checkpoint must never refer to a best that is not on disk.
    best = get_best()
    if best is not None and best.step != saved_best_step:
      checkpoint.save(best_manager, best.step, best.state, {'loss': best.loss})
      saved_best_step = best.step
    checkpoint.save(rolling_manager, step, state, {})
    save_seconds += time.monotonic() - start_time
    next_save_time = time.monotonic() + interval_s
    if stop_requested and step != num_steps:
      raise Interrupted(
        f'Stopped at step {step}/{num_steps}; it is saved.',
        hint=('Go on with ', Setting('fit.resume', 'latest'), '.'),
      )

  return hook, lambda: save_seconds
