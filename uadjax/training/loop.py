"""Fit loop for every detector, and the gradient fit with checkpoints that is built on it.

After each step the loop calls hooks (step, state, metrics) -> None; each hook decides at which
steps it acts. A hook must not use the state after it returns, because the next update donates the
buffers of the state.
"""

from collections.abc import Callable, Iterable, Sequence
import contextlib
import math
from pathlib import Path
import time
from typing import NamedTuple

import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import optax

from uadjax.data import batches as batch_streams
from uadjax.data.image_cache import ImageCache
from uadjax.data.records import Record
from uadjax.detectors.base import Detector
from uadjax.distributed import mesh as meshes, processes
from uadjax.errors import refuse, Setting
from uadjax.model import scoring
from uadjax.system import logging, progress, signals
from uadjax.training import checkpoint, hooks as fit_hooks
from uadjax.training.hooks import Hook
from uadjax.training.settings import FitSettings, Settings
from uadjax.types import Batch, Metrics, PyTree, Variables

UpdateFn = Callable[[PyTree, Batch], tuple[PyTree, Metrics]]


class GradientFit(NamedTuple):
  """Result of a fit by gradient descent.

  Attributes:
    fitted: parameters for scoring, from the best step.
    best: step with the lowest held-out loss.
    fit_seconds: wall time from opening the first file until `fitted` is ready, without writing
      checkpoints.
    num_images: number of images in the steps since the start or the resumed step, repeats included.
  """

  fitted: PyTree
  best: fit_hooks.BestStep
  fit_seconds: float
  num_images: int


def total_steps(options: FitSettings, num_images: int) -> int:
  """Return the number of steps of a run: `fit.steps` if set, else that of `fit.epochs` epochs."""
  return options.steps or max(1, options.epochs * num_images // min(options.batch_size, num_images))


def learning_rate_schedule(options: FitSettings) -> optax.Schedule:
  """Return the learning rate schedule: linear warm-up, then the constant rate of STFPM's paper."""
  initial_rate = 0.0 if options.warmup_steps else options.learning_rate
  return optax.warmup_constant_schedule(initial_rate, options.learning_rate, options.warmup_steps)


def fit(
  detector: Detector,
  variables: Variables,
  config: Settings,
  train_records: Sequence[Record],
  validation_records: Sequence[Record],
  cache: ImageCache,
  mesh: meshes.Mesh,
  workdir: Path,
  stop_request: signals.StopRequest,
) -> GradientFit:
  """Train on the train records, and return the best step by the loss on the validation records.

  Raises:
    ConfigError: `fit.resume` names no usable checkpoint, or the held-out loss is not finite.
    Interrupted: a signal asked a process to stop; a checkpoint of the last step is saved.
  """
  options = config.fit
  num_tiles = len(cache.list_tiles(record.path for record in train_records))
  batch_size = min(options.batch_size, num_tiles)
  num_steps = total_steps(options, num_tiles)
  process_shard = processes.index_and_count()
  with contextlib.ExitStack() as stack:
    managers = stack.enter_context(checkpoint.open_managers(workdir / 'checkpoints'))
    state = initial_state(detector, variables, config.seed, mesh)
    checkpoint.announce_size(workdir, state)
    start_step, state, best = resume(options.resume, num_steps, managers, state)
    write_scalars = stack.enter_context(fit_hooks.open_tensorboard(workdir / 'tensorboard'))
    # All slow imports are done: from here on, time counts as fit time.
    start_time = time.perf_counter()
    log_hook = fit_hooks.LogHook(
      num_steps, start_step, batch_size, options.log_every, write_scalars
    )

    def make_placement(records: Sequence[Record]) -> Callable[[Batch], Batch]:
      add = cache_features(detector, state, records, cache, batch_size, options.cache_bytes, mesh)
      return lambda batch: meshes.shard_batch(mesh, add(batch))

    place_train, place_validation = map(make_placement, (train_records, validation_records))
    batches = batch_streams.train_batches(
      train_records, cache, batch_size, config.seed, start_step, process_shard
    )
    stack.callback(batches.close)
    batches = log_hook.time_data(scoring.prefetch_to_device(batches, place_train))
    validation = batch_streams.eval_batches(validation_records, cache, batch_size, process_shard)
    eval_every = options.eval_every or max(1, num_tiles // batch_size)
    best_step_hook = fit_hooks.BestStepHook(
      detector.validate, [*map(place_validation, validation)], eval_every, num_steps, best
    )
    progress_bar = progress.progress_bar(num_steps, start_step, f'Fitting {config.detector.name}')
    checkpoint_hook = fit_hooks.CheckpointHook(
      managers, best_step_hook, options.checkpoint_every_s, num_steps, stop_request
    )
    hooks = [best_step_hook, log_hook, stack.enter_context(progress_bar), checkpoint_hook]
    update = jax.jit(detector.update, donate_argnums=0)
    state = run(update, state, batches, range(start_step + 1, num_steps + 1), hooks)
    best = best_step_hook.best or fit_hooks.BestStep(num_steps, math.nan, state)
    fitted = jax.block_until_ready(detector.finalize(best.state))
    fit_seconds = time.perf_counter() - start_time - checkpoint_hook.save_seconds
  return GradientFit(fitted, best, fit_seconds, max(num_steps - start_step, 0) * batch_size)


def run(
  update: UpdateFn, state: PyTree, batches: Iterable[Batch], steps: range, hooks: Sequence[Hook]
) -> PyTree:
  """Call `update` once per step and the hooks after it, and return the last state.

  Args:
    update: compiled function (state, batch) -> (state, metrics), which may consume the state.
    state: state before the first step.
    batches: one batch per step.
    steps: numbers of the steps.
    hooks: functions (step, state, metrics) -> None, called in this order after each step.
  """
  previous_metrics: Metrics = {}
  is_multiprocess = processes.is_multiprocess()
  batch_iterator = iter(batches)
  for step in steps:
    batch = next(batch_iterator, None)
    if batch is None:
      break
    state, metrics = update(state, batch)
    del batch  # It may be large, and need not stay while the next one is made.
    # Two steps in flight keep the device busy and bound the memory. Several processes wait for each
    # step: if a lost process broke it, the error must be raised before a hook starts another
    # collective operation, because Gloo aborts a process that receives the data of another one.
    jax.block_until_ready(metrics if is_multiprocess else previous_metrics)
    previous_metrics = metrics
    for hook in hooks:
      hook(step, state, metrics)
  return state


def initial_state(detector: Detector, variables: Variables, seed: int, mesh: meshes.Mesh) -> PyTree:
  """Return the state before the first step, on the mesh, in buffers that may be donated."""
  # Copy the variables only: they are shared with the caller, and the state may take gigabytes.
  state = detector.init(jax.random.key(seed), meshes.replicate(mesh, variables, copy=True))
  specs = detector.sharding_specs
  return meshes.put_on_mesh(mesh, state, specs.state if specs else P())


def resume(
  resume_from: str, num_steps: int, managers: checkpoint.Managers, state: PyTree
) -> tuple[int, PyTree, fit_hooks.BestStep | None]:
  """Restore the checkpoint to resume from, and the best step up to it.

  A later best step, from a run that was killed before its next rolling checkpoint, is ignored: the
  resumed run reaches it again, on a CPU with bitwise identical parameters.

  Args:
    resume_from: 'latest', 'best', a step of the rolling checkpoints, or '' to start at step 0.
    num_steps: number of steps of the whole run.
    managers: where the checkpoints are saved.
    state: initial state, which gives the shapes, dtypes and sharding.

  Returns:
    The step, its state, and the best step or None.

  Raises:
    ConfigError: there is no checkpoint, or it is beyond `num_steps`.
    ModelError: the step has no checkpoint, the checkpoint is corrupt, or it does not match the
      configuration.
  """
  if not resume_from:
    return 0, state, None
  manager = managers.best if resume_from == 'best' else managers.rolling
  saved_steps = manager.all_steps()
  if not saved_steps:
    message = f'{manager.directory} has no checkpoint.'
    refuse('fit.resume', resume_from, message, 'Start a new run: ', Setting('fit.resume', ''), '.')
  step = int(resume_from) if resume_from.isdigit() else max(saved_steps)
  rolling_steps = managers.rolling.all_steps()
  state, _ = checkpoint.restore(manager, step, state, rolling_steps)
  if step > num_steps:
    message = f'The checkpoint of step {step} is beyond the {num_steps} steps of this run.'
    hint = 'Raise ', Setting('fit.steps'), ' or ', Setting('fit.epochs'), '.'
    refuse('fit.steps', num_steps, message, *hint)
  logging.LOG.info('Resuming from step %d in %s.', step, manager.directory)
  best_step = max((s for s in managers.best.all_steps() if s <= step), default=None)
  if best_step is None:
    return step, state, None
  best_state, metadata = checkpoint.restore(
    managers.best, best_step, state, rolling_steps, ['loss']
  )
  return step, state, fit_hooks.BestStep(best_step, metadata['loss'], best_state)


def cache_features(
  detector: Detector,
  state: PyTree,
  records: Sequence[Record],
  cache: ImageCache,
  batch_size: int,
  max_bytes: int,
  mesh: meshes.Mesh,
) -> Callable[[Batch], Batch]:
  """Compute `detector.precompute` once for all records, if the features fit into `max_bytes`.

  The features stay in host memory and are not part of the training state. The batches always follow
  the order of the records, so that a resumed run continues with bitwise identical features.

  Returns:
    A function that adds the cached features to a batch of these records. It returns the batch
    unchanged if nothing is cached: without `precompute`, with several processes, or over the limit.
  """
  # With several processes, an image may belong to another process in every epoch.
  if detector.precompute is None or not records or processes.is_multiprocess():
    return lambda batch: batch
  precompute = jax.jit(detector.precompute)
  n = len(cache.list_tiles(record.path for record in records))
  images = np.zeros((batch_size, cache.ops.height, cache.ops.width, 3), np.uint8)
  blank_batch = Batch(images, np.zeros(batch_size, bool), np.zeros(batch_size, np.int32))
  shapes = jax.eval_shape(precompute, state, blank_batch)
  num_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes)) // batch_size * n
  if num_bytes > max_bytes:
    logging.LOG.info(
      'The frozen features of %d images take %d MB, more than %s allows; computing them at every '
      'step.', n, num_bytes >> 20, Setting('fit.cache_bytes'),
    )  # fmt: skip
    return lambda batch: batch
  features_by_row = jax.tree.map(lambda x: np.empty((n, *x.shape[1:]), x.dtype), shapes)
  batches = batch_streams.eval_batches(records, cache, batch_size)
  for batch in progress.show_progress(batches, math.ceil(n / batch_size), 'Frozen features'):
    features = precompute(state, meshes.shard_batch(mesh, batch))
    rows = batch.index[batch.valid]
    for target, x in zip(jax.tree.leaves(features_by_row), jax.tree.leaves(features), strict=True):
      target[rows] = np.asarray(x)[batch.valid]
  return lambda batch: batch._replace(
    features=jax.tree.map(lambda x: x[batch.index], features_by_row)
  )
