"""Hooks of the fit loop: logging and TensorBoard, best step, checkpoints.

A hook is a function (step, state, metrics) -> None that the loop calls after each step. It must not
use the state after it returns, because the next update donates the buffers of the state.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
from logging import DEBUG, INFO
import math
from pathlib import Path
import time
from typing import NamedTuple

import jax
from jax import numpy as jnp
import numpy as np

from uadjax.distributed import processes
from uadjax.errors import Interrupted, refuse, Setting
from uadjax.system import logging, progress, signals, tensorflow
from uadjax.training import checkpoint
from uadjax.types import Batch, Metrics, PyTree

Hook = Callable[[int, PyTree, Metrics], None]
ScalarWriter = Callable[[int, Mapping[str, float]], None]

_SHORT_NAMES = {'learning_rate': 'lr'}


@dataclasses.dataclass
class LogHook:
  """Hook that writes a log line and scalars every `log_every` steps and at the last step.

  The console shows lines only at the pace of progress lines, unless it shows details.

  Attributes:
    num_steps: number of the last step.
    logged_step: step of the last line; at first the step at which the run starts.
    batch_size: number of images per step.
    log_every: interval of the lines in steps.
    write_scalars: function (step, scalars) -> None.
  """

  num_steps: int
  logged_step: int
  batch_size: int
  log_every: int
  write_scalars: ScalarWriter = lambda step, values: None

  def __post_init__(self):
    self._start, self._data_seconds = time.perf_counter(), 0.0
    self._console_pace = progress.Pace(self.num_steps, self.logged_step)

  def time_data(self, batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yield the batches of the fit loop, and count the time of waiting for them."""
    start = time.perf_counter()
    for batch in batches:
      self._data_seconds += time.perf_counter() - start
      yield batch
      start = time.perf_counter()

  def __call__(self, step: int, state: PyTree, metrics: Metrics) -> None:
    """Write a line, if one is due."""
    if step % self.log_every and step != self.num_steps:
      return
    values = {k: float(v) for k, v in metrics.items()}  # Blocks until the device has the metrics.
    now, num_steps = time.perf_counter(), step - self.logged_step
    step_s, data_s = (now - self._start) / num_steps, self._data_seconds / num_steps
    self.logged_step, self._start, self._data_seconds = step, now, 0.0
    metric_text = '  '.join(f'{_SHORT_NAMES.get(k, k)} {v:.4g}' for k, v in values.items())
    rest = progress.remaining_time((self.num_steps - step) * step_s)
    speed = {'step_s': step_s, 'data_s': data_s, 'images_per_s': self.batch_size / step_s}
    is_shown = self._console_pace.is_due(step) or step == self.num_steps
    logging.LOG.log(
      INFO if is_shown else DEBUG,
      'step %d/%d  %s  step %.3f s  data %.3f s  %.1f images/s  %s',
      step, self.num_steps, metric_text, *speed.values(), rest,
    )  # fmt: skip
    self.write_scalars(step, values | speed)


@contextlib.contextmanager
def open_tensorboard(directory: Path) -> Iterator[ScalarWriter]:
  """Open a TensorBoard event file and yield the function (step, scalars) -> None that writes it."""
  # Before clu imports TensorFlow, so that its start-up messages are suppressed.
  tensorflow.import_tensorflow()
  from clu import metric_writers

  with contextlib.closing(metric_writers.SummaryWriter(str(directory))) as writer:
    yield writer.write_scalars


class BestStep(NamedTuple):
  """Training state with the lowest held-out loss.

  For detectors without `validate` it is the state of the last step, with a loss of NaN.
  """

  step: int
  loss: float
  state: PyTree


@dataclasses.dataclass
class BestStepHook:
  """Hook that keeps a copy of the state with the lowest held-out loss.

  Raises ConfigError if the loss is not finite.

  Attributes:
    validate: function (state, batch) -> metrics with the held-out loss; None to keep no state.
    batches: held-out normal images, already on the devices.
    eval_every: interval of evaluations in steps; the last step is always evaluated.
    num_steps: number of the last step.
    best: best step so far; at first that of the run that is resumed, if any.
  """

  validate: Callable[[PyTree, Batch], Metrics] | None
  batches: Sequence[Batch]
  eval_every: int
  num_steps: int
  best: BestStep | None = None

  def __post_init__(self):
    self.validate = self.validate and jax.jit(self.validate)
    self._counts = [int(batch.valid.sum()) for batch in self.batches]

  def __call__(self, step: int, state: PyTree, metrics: Metrics) -> None:
    """Evaluate the state, if that is due, and keep it if it is the best."""
    if self.validate is None or (step % self.eval_every and step != self.num_steps):
      return
    losses = [float(self.validate(state, batch)['loss']) for batch in self.batches]
    loss = float(np.average(losses, weights=self._counts))
    if not math.isfinite(loss):
      message = f'The held-out loss is {loss} at step {step}: training diverged.'
      hint = 'Lower ', Setting('fit.learning_rate'), ', or raise ', Setting('fit.warmup_steps'), '.'
      refuse('fit.learning_rate', None, message, *hint)
    if self.best is None or loss < self.best.loss:
      self.best = BestStep(step, loss, jax.tree.map(jnp.copy, state))


@dataclasses.dataclass
class CheckpointHook:
  """Hook that saves checkpoints every `interval_s`, at the last step and on a stop.

  If a signal asked any process to stop, all raise Interrupted after the checkpoint was saved.

  Attributes:
    managers: where checkpoints are saved.
    best_step_hook: hook whose best step is saved as well; it must run before this one.
    interval_s: seconds between checkpoints.
    num_steps: number of the last step.
    stop_request: request to stop this process.
    save_seconds: total time spent on saving.
  """

  managers: checkpoint.Managers
  best_step_hook: BestStepHook
  interval_s: float
  num_steps: int
  stop_request: signals.StopRequest
  save_seconds: float = 0.0

  def __post_init__(self):
    self._next_save_time = time.monotonic() + self.interval_s
    self._saved_best = self.best_step_hook.best  # That of a resumed run is on disk already.

  def __call__(self, step: int, state: PyTree, metrics: Metrics) -> None:
    """Save checkpoints, if they are due."""
    start, is_last = time.monotonic(), step == self.num_steps
    signal_number = processes.largest(self.stop_request.signal_number)
    if not (signal_number or processes.any_process(start >= self._next_save_time) or is_last):
      return
    # Save the best step first: a rolling checkpoint needs the best step until then on disk.
    best = self.best_step_hook.best
    if best is not None and best is not self._saved_best:
      checkpoint.save(self.managers.best, best.step, best.state, {'loss': best.loss})
      self._saved_best = best
    checkpoint.save(self.managers.rolling, step, state, {})
    self.save_seconds += time.monotonic() - start
    self._next_save_time = time.monotonic() + self.interval_s
    if signal_number and not is_last:
      message = f'Training stopped at step {step}/{self.num_steps}; a checkpoint is saved.'
      error = Interrupted(message, hint=('Resume with ', Setting('fit.resume', 'latest'), '.'))
      error.signal_number = signal_number
      processes.expect_exit()
      raise error
