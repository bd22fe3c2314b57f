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
  tensorflow.import_tensorflow()  # Quietly; clu imports it too.
  from clu import metric_writers

  writer = metric_writers.SummaryWriter(str(directory))
  try:
    yield writer.write_scalars
  finally:
    writer.close()


Hook = Callable[[int, Any, Metrics], None]


class Best(NamedTuple):
  """The state of the lowest held-out loss; of the last step, with NaN, where none is measured."""

  step: int
  loss: float
  state: Any


def choosing(
  detector: Detector, held_out: Sequence[Batch], every: int, total: int, best: Best | None
) -> tuple[Hook, Callable[[], Best | None]]:
  """Make the hook that keeps the state of the lowest held-out loss, and what tells it."""
  if detector.validate is None:
    return lambda step, state, metrics: None, lambda: None
  validate = jax.jit(detector.validate)

  def hook(step: int, state: Any, metrics: Metrics) -> None:
    nonlocal best
    if step % every and step != total:
      return
    counts = [int(batch.valid.sum()) for batch in held_out]
    losses = [float(validate(state, batch)['loss']) for batch in held_out]
    loss = float(np.average(losses, weights=counts))
    if not math.isfinite(loss):
      raise ConfigError(
        f'The held-out loss is {loss} at step {step}: training diverged. Lower '
        'fit.learning_rate, or warm it up with fit.warmup_steps.'
      )
    if best is None or loss < best.loss:
      best = Best(step, loss, jax.tree.map(jnp.copy, state))

  return hook, lambda: best


def saving(
  rolling: checkpoint.Manager,
  keeper: checkpoint.Manager,
  best_yet: Callable[[], Best | None],
  every_s: float,
  total: int,
  stop: threading.Event,
) -> tuple[Hook, Callable[[], float]]:
  """Make the hook that writes checkpoints by the clock, at the end, and when asked to stop.

  Returns:
    The hook, and a function that tells how many seconds it has spent writing.
  """
  due = time.monotonic() + every_s
  found = best_yet()
  kept, seconds = found and found.step, 0.0  # What a run goes on with is on disk already.

  def hook(step: int, state: Any, metrics: Metrics) -> None:
    nonlocal due, kept, seconds
    began, asked = time.monotonic(), processes.any_process(stop.is_set())
    if not asked and not processes.any_process(began >= due) and step != total:
      return
    # The best one first: a rolling checkpoint must never refer to a best that is not on disk.
    best = best_yet()
    if best is not None and best.step != kept:
      checkpoint.save(keeper, best.step, best.state, {'loss': best.loss})
      kept = best.step
    checkpoint.save(rolling, step, state, {})
    seconds += time.monotonic() - began
    due = time.monotonic() + every_s
    if asked and step != total:
      raise Interrupted(
        f'Stopped at step {step}/{total}; it is saved.',
        hint=('Go on with ', Setting('fit.resume', 'latest'), '.'),
      )

  return hook, lambda: seconds
