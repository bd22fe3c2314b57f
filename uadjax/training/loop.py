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

Update = Callable[[Any, Batch], tuple[Any, Metrics]]


class Parts(NamedTuple):
  """The good images: to learn from, to choose the best step by, to set the threshold by."""

  learn: Sequence[Record]
  choose: Sequence[Record]
  calibrate: Sequence[Record]


class Run(NamedTuple):
  """How a fit went.

  Attributes:
    fitted: what scoring needs, of the best step.
    best: that step.
    seconds: from the first file opened to `fitted` ready, without writing checkpoints.
    images: how many were folded in by this process.
  """

  fitted: Any
  best: fit_hooks.Best
  seconds: float
  images: int


def total_steps(options: Config, images: int) -> int:
  """Steps of the whole run: `fit.steps`, or as many as `fit.epochs` passes take."""
  return options.steps or max(1, options.epochs * images // min(options.batch_size, images))


def schedule(options: Config) -> optax.Schedule:
  """Linear warm-up, then a constant rate, as in STFPM's paper."""
  start = 0.0 if options.warmup_steps else options.learning_rate
  return optax.warmup_constant_schedule(start, options.learning_rate, options.warmup_steps)


def fit(
  detector: Detector,
  variables: Variables,
  config: Config,
  parts: Parts,
  mesh: meshes.Mesh,
  workdir: Path,
  stop: threading.Event,
) -> Run:
  """Fold in the images to learn from, and keep the best step.

  Raises:
    Interrupted: `stop` was set; a checkpoint of the last step is saved.
  """
  options, directory = config.fit, workdir / 'checkpoints'
  ops = transforms.parse(config.data.ops)
  size, share = min(options.batch_size, len(parts.learn)), processes.index_and_count()
  total = total_steps(options, len(parts.learn))
  with contextlib.ExitStack() as stack:
    rolling = stack.enter_context(checkpoint.manager(directory, 'rolling'))
    keeper = stack.enter_context(checkpoint.manager(directory, 'best'))
    state = initial(detector, variables, config.seed, mesh)
    start, state, best = resume(options.resume, total, rolling, keeper, state)
    scalars = stack.enter_context(fit_hooks.tensorboard(workdir / 'tensorboard'))
    began, clock = time.perf_counter(), fit_hooks.clock()  # Nothing is imported after this.

    def kept(records: Sequence[Record]) -> Callable[[Batch], Batch]:
      return feature_cache.remember(detector, state, records, ops, size, options.cache_bytes, mesh)

    learn, choose = kept(parts.learn), kept(parts.choose)
    batches = batch_streams.train_batches(
      parts.learn, ops, size, config.seed, start, *share, cache_bytes=options.cache_bytes
    )
    stack.callback(batches.close)
    batches = clock.watch(
      scoring.ahead(batches, lambda batch: meshes.shard_batch(mesh, learn(batch)))
    )
    judge, best_yet = fit_hooks.choosing(
      detector,
      [
        meshes.shard_batch(mesh, choose(b))
        for b in batch_streams.eval_batches(parts.choose, ops, size, *share)
      ],
      options.eval_every or max(1, len(parts.learn) // size),
      total,
      best,
    )
    save, saved_s = fit_hooks.saving(
      rolling, keeper, best_yet, options.checkpoint_every_s, total, stop
    )
    hooks = [
      judge,
      fit_hooks.log_steps(total, start, size, options.log_every, clock, scalars),
      stack.enter_context(progress.progress_bar(total, start, f'Fitting {config.detector.name}')),
      save,
    ]
    state = run(detector.update, state, batches, range(start + 1, total + 1), hooks)
    best = best_yet() or fit_hooks.Best(total, math.nan, state)
    fitted = jax.block_until_ready(detector.to_fitted(best.state))
    seconds = time.perf_counter() - began - saved_s()
  return Run(fitted, best, seconds, max(total - start, 0) * size)


def run(
  update: Update,
  state: Any,
  batches: Iterable[Batch],
  steps: Iterable[int],
  hooks: Sequence[fit_hooks.Hook],
  make_room: Callable[[Any, int], Any] | None = None,
) -> Any:
  """The loop itself."""
  update = jax.jit(update, donate_argnums=0)
  before: Metrics = {}
  for step, batch in zip(steps, batches, strict=False):  # Steps first: zip must not eat a batch.
    if make_room is not None:
      state = make_room(state, len(batch.valid))
    state, metrics = update(state, batch)
    jax.block_until_ready(before)  # Two steps in flight keep the device busy and memory bounded.
    before = metrics
    for hook in hooks:
      hook(step, state, metrics)
  return state


def initial(detector: Detector, variables: Variables, seed: int, mesh: meshes.Mesh) -> Any:
  """The state before the first step, on the mesh, in buffers of its own that may be donated."""
  # The variables alone are others' too; a copy of the state may be gigabytes.
  state = detector.init(jax.random.key(seed), meshes.replicate(mesh, variables, copy=True))
  return meshes.put_on_mesh(
    mesh, state, detector.sharding_specs.state if detector.sharding_specs else False
  )


def resume(
  choice: str, total: int, rolling: checkpoint.Manager, keeper: checkpoint.Manager, state: Any
) -> tuple[int, Any, fit_hooks.Best | None]:
  """Read back the step to go on from (`latest`, `best` or a number), and the best until then.

  A best step beyond it, left by a run that was killed before its next rolling checkpoint, is
  passed over: going on reaches it again, on a CPU to the bit.
  """
  if not choice:
    return 0, state, None
  if choice not in ('latest', 'best') and not choice.isdigit():
    raise ConfigError(f"fit.resume must be 'latest', 'best' or a step, got {choice!r}.")
  source = keeper if choice == 'best' else rolling
  known = source.all_steps()
  if not known:
    raise ConfigError(
      f'fit.resume={choice}, but {source.directory} holds no checkpoint; leave fit.resume out.'
    )
  step = int(choice) if choice.isdigit() else max(known)
  start, state, _ = checkpoint.restore(source, step, state)
  if start > total:
    raise ConfigError(f'Step {start} is beyond the {total} steps of this run; raise fit.steps.')
  logging.LOG.info('Going on from step %d of %s.', start, source.directory)
  before = [step for step in keeper.all_steps() if step <= start]
  if not before:
    return start, state, None
  step, kept, notes = checkpoint.restore(keeper, max(before), state)
  return start, state, fit_hooks.Best(step, notes['loss'], kept)
