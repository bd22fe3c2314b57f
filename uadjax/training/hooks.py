"""Hooks of the fit loop: logging and TensorBoard, best step, checkpoints.

A hook is a function (step, state, metrics) -> None that the loop calls after each step. It must not
use the state after it returns, because the next update donates the buffers of the state.
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
  """Timer of the fit loop; each reading restarts the interval that it measures.

  Attributes:
    read_elapsed: () -> seconds since the previous reading.
    read_data_wait: () -> seconds of waiting for data since the previous reading.
    time_iterator: iterator -> iterator of the same items whose waiting time is counted.
  """

  read_elapsed: Callable[[], float]
  read_data_wait: Callable[[], float]
  time_iterator: Callable[[Iterator[Any]], Iterator[Any]]


def start_timer() -> StepTimer:
  """Start a timer of the time per step and of the time spent waiting for data."""
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
  """Make the hook that writes a log line and scalars every `log_every` steps and at the last."""
  last_logged_step = start_step

  def hook(step: int, state: Any, metrics: Metrics) -> None:
    nonlocal last_logged_step
    if step % log_every and step != num_steps:
      return
    values = {k: float(v) for k, v in metrics.items()}  # Blocks until the device has the metrics.
    steps_since_log, last_logged_step = step - last_logged_step, step
    step_s = timer.read_elapsed() / steps_since_log
    data_s = timer.read_data_wait() / steps_since_log
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
  """Open a TensorBoard event file and yield the function (step, scalars) -> None that writes it."""
  # Before clu imports TensorFlow, so that its start-up messages are suppressed.
  tensorflow.import_tensorflow()
  from clu import metric_writers

  writer = metric_writers.SummaryWriter(str(directory))
  try:
    yield writer.write_scalars
  finally:
    writer.close()


Hook = Callable[[int, Any, Metrics], None]


class BestStep(NamedTuple):
  """Training state with the lowest held-out loss.

  For detectors without `validate` it is the state of the last step, with a loss of NaN.
  """

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
  """Make the hook that keeps a copy of the state with the lowest held-out loss.

  Args:
    detector: detector whose `validate` computes the loss.
    validation_batches: held-out normal images, already on the devices.
    eval_every: interval of evaluations in steps; the last step is always evaluated.
    num_steps: number of the last step.
    best: best step of the run that is resumed, if any.

  Returns:
    The hook, and a function that returns the best step so far. Without `detector.validate` the
    function returns None.

  Raises:
    ConfigError: raised by the hook when the held-out loss is not finite.
  """
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
        'fit.learning_rate, or raise fit.warmup_steps.'
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
  """Make the hook that saves checkpoints every `interval_s`, at the last step and on a stop.

  Returns:
    The hook, and a function that returns the total seconds spent on saving.

  Raises:
    Interrupted: raised by the hook after `stop_event` was set and the checkpoint was saved.
  """
  next_save_time = time.monotonic() + interval_s
  resumed_best, save_seconds = get_best(), 0.0
  # The best step of a resumed run is on disk already.
  saved_best_step = resumed_best and resumed_best.step

  def hook(step: int, state: Any, metrics: Metrics) -> None:
    nonlocal next_save_time, saved_best_step, save_seconds
    start_time, stop_requested = time.monotonic(), processes.any_process(stop_event.is_set())
    if (
      not stop_requested
      and not processes.any_process(start_time >= next_save_time)
      and step != num_steps
    ):
      return
    # Save the best step first: a rolling checkpoint needs the best step until then on disk.
    best = get_best()
    if best is not None and best.step != saved_best_step:
      checkpoint.save(best_manager, best.step, best.state, {'loss': best.loss})
      saved_best_step = best.step
    checkpoint.save(rolling_manager, step, state, {})
    save_seconds += time.monotonic() - start_time
    next_save_time = time.monotonic() + interval_s
    if stop_requested and step != num_steps:
      raise Interrupted(
        f'Training stopped at step {step}/{num_steps}; a checkpoint is saved.',
        hint=('Resume with ', Setting('fit.resume', 'latest'), '.'),
      )

  return hook, lambda: save_seconds
