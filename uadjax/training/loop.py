"""The one loop that fits any detector.

What happens between two batches is a hook, (step, state, metrics) -> None, called after each
step; its cadence is its own business. A hook must be done with the state when it returns: the next
update donates its buffers.
"""

from collections.abc import Callable, Iterable, Sequence
import contextlib
import math
from pathlib import Path
import threading
import time
from typing import Any, NamedTuple

import jax
import optax

from uadjax.data import batches as batch_streams, transforms
from uadjax.data.records import Record
from uadjax.detectors.base import Detector
from uadjax.distributed import mesh as meshes, processes
from uadjax.errors import ConfigError
from uadjax.model import scoring
from uadjax.system import logging, progress
from uadjax.training import checkpoint, feature_cache, hooks as fit_hooks
from uadjax.types import Batch, Config, Metrics, Variables

UpdateFn = Callable[[Any, Batch], tuple[Any, Metrics]]


class Splits(NamedTuple):
  """The good images: to learn from, to choose the best step by, to set the threshold by."""

  train: Sequence[Record]
  validation: Sequence[Record]
  calibration: Sequence[Record]


class GradientFit(NamedTuple):
  """How a fit went.

  Attributes:
    fitted: what scoring needs, of the best step.
    best: that step.
    seconds: from the first file opened to `fitted` ready, without writing checkpoints.
    images: how many were folded in by this process.
  """

  fitted: Any
  best: fit_hooks.BestStep
  fit_seconds: float
  num_images: int


def total_steps(options: Config, num_images: int) -> int:
  """Steps of the whole run: `fit.steps`, or as many as `fit.epochs` passes take."""
  return options.steps or max(1, options.epochs * num_images // min(options.batch_size, num_images))


def learning_rate_schedule(options: Config) -> optax.Schedule:
  """Linear warm-up, then a constant rate, as in STFPM's paper."""
  initial_rate = 0.0 if options.warmup_steps else options.learning_rate
  return optax.warmup_constant_schedule(initial_rate, options.learning_rate, options.warmup_steps)


def fit(
  detector: Detector,
  variables: Variables,
  config: Config,
  splits: Splits,
  mesh: meshes.Mesh,
  workdir: Path,
  stop_event: threading.Event,
) -> GradientFit:
  """Fold in the images to learn from, and keep the best step.

  Raises:
    Interrupted: `stop` was set; a checkpoint of the last step is saved.
  """
  options, checkpoint_dir = config.fit, workdir / 'checkpoints'
  ops = transforms.parse(config.data.ops)
  batch_size, process_shard = (
    min(options.batch_size, len(splits.train)),
    processes.index_and_count(),
  )
  num_steps = total_steps(options, len(splits.train))
  with contextlib.ExitStack() as stack:
    rolling_manager = stack.enter_context(checkpoint.open_manager(checkpoint_dir, 'rolling'))
    best_manager = stack.enter_context(checkpoint.open_manager(checkpoint_dir, 'best'))
    state = initial_state(detector, variables, config.seed, mesh)
    start_step, state, best = resume(
      options.resume, num_steps, rolling_manager, best_manager, state
    )
    write_scalars = stack.enter_context(fit_hooks.open_tensorboard(workdir / 'tensorboard'))
    start_time, timer = (
      time.perf_counter(),
      fit_hooks.start_timer(),
    )  # Nothing is imported after this.

    def cache_features_of(records: Sequence[Record]) -> Callable[[Batch], Batch]:
      return feature_cache.cache_features(
        detector, state, records, ops, batch_size, options.cache_bytes, mesh
      )

    add_train_features, add_validation_features = (
      cache_features_of(splits.train),
      cache_features_of(splits.validation),
    )
    batches = batch_streams.train_batches(
      splits.train,
      ops,
      batch_size,
      config.seed,
      start_step,
      *process_shard,
      cache_bytes=options.cache_bytes,
    )
    stack.callback(batches.close)
    batches = timer.time_iterator(
      scoring.prefetch_to_device(
        batches, lambda batch: meshes.shard_batch(mesh, add_train_features(batch))
      )
    )
    best_step_hook, get_best = fit_hooks.make_best_step_hook(
      detector,
      [
        meshes.shard_batch(mesh, add_validation_features(b))
        for b in batch_streams.eval_batches(splits.validation, ops, batch_size, *process_shard)
      ],
      options.eval_every or max(1, len(splits.train) // batch_size),
      num_steps,
      best,
    )
    checkpoint_hook, get_save_seconds = fit_hooks.make_checkpoint_hook(
      rolling_manager, best_manager, get_best, options.checkpoint_every_s, num_steps, stop_event
    )
    hooks = [
      best_step_hook,
      fit_hooks.make_log_hook(
        num_steps, start_step, batch_size, options.log_every, timer, write_scalars
      ),
      stack.enter_context(
        progress.progress_bar(num_steps, start_step, f'Fitting {config.detector.name}')
      ),
      checkpoint_hook,
    ]
    state = run(detector.update, state, batches, range(start_step + 1, num_steps + 1), hooks)
    best = get_best() or fit_hooks.BestStep(num_steps, math.nan, state)
    fitted = jax.block_until_ready(detector.to_fitted(best.state))
    fit_seconds = time.perf_counter() - start_time - get_save_seconds()
  return GradientFit(fitted, best, fit_seconds, max(num_steps - start_step, 0) * batch_size)


def run(
  update: UpdateFn,
  state: Any,
  batches: Iterable[Batch],
  steps: Iterable[int],
  hooks: Sequence[fit_hooks.Hook],
  before_update: Callable[[Any, int], Any] | None = None,
) -> Any:
  """The loop itself."""
  update = jax.jit(update, donate_argnums=0)
  previous_metrics: Metrics = {}
  for step, batch in zip(steps, batches, strict=False):  # Steps first: zip must not eat a batch.
    if before_update is not None:
      state = before_update(state, len(batch.valid))
    state, metrics = update(state, batch)
    jax.block_until_ready(
      previous_metrics
    )  # Two steps in flight keep the device busy and memory bounded.
    previous_metrics = metrics
    for hook in hooks:
      hook(step, state, metrics)
  return state


def initial_state(detector: Detector, variables: Variables, seed: int, mesh: meshes.Mesh) -> Any:
  """The state before the first step, on the mesh, in buffers of its own that may be donated."""
  # The variables alone are others' too; a copy of the state may be gigabytes.
  state = detector.init(jax.random.key(seed), meshes.replicate(mesh, variables, copy=True))
  return meshes.put_on_mesh(
    mesh, state, detector.sharding_specs.state if detector.sharding_specs else False
  )


def resume(
  resume_from: str,
  num_steps: int,
  rolling_manager: checkpoint.Manager,
  best_manager: checkpoint.Manager,
  state: Any,
) -> tuple[int, Any, fit_hooks.BestStep | None]:
  """Read back the step to go on from (`latest`, `best` or a number), and the best until then.

  A best step beyond it, left by a run that was killed before its next rolling checkpoint, is
  passed over: going on reaches it again, on a CPU to the bit.
  """
  if not resume_from:
    return 0, state, None
  if resume_from not in ('latest', 'best') and not resume_from.isdigit():
    raise ConfigError(f"fit.resume must be 'latest', 'best' or a step, got {resume_from!r}.")
  manager = best_manager if resume_from == 'best' else rolling_manager
  saved_steps = manager.all_steps()
  if not saved_steps:
    raise ConfigError(
      f'fit.resume={resume_from}, but {manager.directory} holds no checkpoint; leave fit.resume out.'
    )
  step = int(resume_from) if resume_from.isdigit() else max(saved_steps)
  start_step, state, _ = checkpoint.restore(manager, step, state)
  if start_step > num_steps:
    raise ConfigError(
      f'Step {start_step} is beyond the {num_steps} steps of this run; raise fit.steps.'
    )
  logging.LOG.info('Going on from step %d of %s.', start_step, manager.directory)
  best_steps = [step for step in best_manager.all_steps() if step <= start_step]
  if not best_steps:
    return start_step, state, None
  step, best_state, metadata = checkpoint.restore(best_manager, max(best_steps), state)
  return start_step, state, fit_hooks.BestStep(step, metadata['loss'], best_state)
