"""One-pass fitting: the detector sees every normal image once, and no image is held out.

Thresholds come from leave-one-out scores: each image is scored by a model without it, in closed
form or without its fold. A later run can extend the saved state with further images.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
import contextlib
import itertools
import math
from pathlib import Path
import time
from typing import NamedTuple

import jax
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Int
import numpy as np

from uadjax.data import batches as batch_streams, records as record_types, transforms
from uadjax.data.records import Record
from uadjax.detectors.base import Detector, HostEmbeddings, Incremental, LeaveOneOut
from uadjax.distributed import mesh as meshes, processes
from uadjax.model import calibration, incremental_state, scoring
from uadjax.system import progress, tensorflow
from uadjax.training import hooks as fit_hooks, loop
from uadjax.types import Batch, PyTree, Scores, Variables

Scorer = Callable[[PyTree, Batch], Scores]

# Maximum number of models that score near-duplicates. Each lacks a chunk of the groups, because a
# model per group would be slow: PaDiM computes new whitening matrices for each.
_MAX_REMOVALS = 10


class OnePassRun(NamedTuple):
  """A run of a detector that sees every image once.

  Attributes:
    name: name of the detector.
    detector: the detector.
    leave_one_out: its functions for calibration.
    incremental: its functions for runs that extend this one.
    variables: variables of the backbone.
    records: normal images to learn from, in this order.
    image_ids: ids of the records, from `assign_image_ids`.
    previous: state of the run to extend, or `incremental_state.EMPTY`.
    ops: transforms from files to images.
    seed: seed of all random choices.
    mesh: devices that embed and score the images.
    state_dir: existing directory for the state arrays and the calibration coresets.
  """

  name: str
  detector: Detector
  leave_one_out: LeaveOneOut
  incremental: Incremental
  variables: Variables
  records: Sequence[Record]
  image_ids: Int[np.ndarray, ' n']
  previous: incremental_state.IncrementalState
  ops: transforms.Ops
  seed: int
  mesh: meshes.Mesh
  state_dir: Path

  @property
  def state_mesh(self) -> meshes.Mesh:
    """Devices that hold the State: all, or the first if the detector shards nothing."""
    return self.mesh if self.detector.sharding_specs else meshes.single_device_mesh(self.mesh)


class OnePassFit(NamedTuple):
  """Result of a one-pass fit.

  Attributes:
    fitted: parameters for scoring.
    extractor: parameters for embedding images, on the mesh.
    fit_seconds: wall time from opening the first file until `fitted` is ready, without writing the
      state arrays and without `calibration_seconds`.
    calibration_seconds: wall time of computing and writing the calibration coresets.
  """

  fitted: PyTree
  extractor: PyTree
  fit_seconds: float
  calibration_seconds: float


def assign_image_ids(
  records: Sequence[Record], num_folds: int, first_id: int
) -> Int[np.ndarray, ' n']:
  """Return a unique id for each image, at least `first_id`; its fold is id % num_folds.

  Near-duplicates are in the same fold, so that no image is scored by a model that has learned from
  one of them. Without near-duplicates, the ids are consecutive.
  """
  groups = record_types.group_duplicates(records)
  folds = (first_id + np.searchsorted(np.unique(groups), groups)) % num_folds
  # The ids of each fold are first_id + (fold - first_id) % num_folds, and so on by num_folds.
  next_ids = first_id + (np.arange(num_folds) - first_id) % num_folds
  image_ids = np.zeros(len(records), np.int32)
  for i, fold in enumerate(folds):
    image_ids[i], next_ids[fold] = next_ids[fold], next_ids[fold] + num_folds
  return image_ids


def fit_one_pass(run: OnePassRun, batch_size: int, log_every: int) -> OnePassFit:
  """Fit a detector to all records, and write its state arrays into `run.state_dir`.

  Args:
    run: the detector and its images.
    batch_size: maximum number of images per update.
    log_every: number of steps between two log lines.
  """
  incremental, state = run.incremental, _initial_state(run)
  # Copy the parameters, because the updates donate the state.
  extractor = meshes.replicate(run.mesh, state.extractor, copy=True)
  tensorflow.import_tensorflow()  # Slow, and therefore before the fit time starts.
  start_time = time.perf_counter()
  state, finalize = _learn(run, state, extractor, batch_size, log_every)
  calibration_start = time.perf_counter()
  if run.leave_one_out.select_coresets:
    coresets = run.leave_one_out.select_coresets(state, run.previous.state_arrays)
    incremental_state.save_state_arrays(run.state_dir, coresets)
  calibration_seconds = time.perf_counter() - calibration_start
  state = jax.block_until_ready(incremental.select(state) if incremental.select else state)
  save_start = time.perf_counter()
  incremental_state.save_state_arrays(
    run.state_dir, meshes.to_host(run.state_mesh, incremental.to_arrays(state))
  )
  save_seconds = time.perf_counter() - save_start
  fitted = jax.block_until_ready(finalize(state))
  if processes.is_multiprocess():
    fitted = meshes.to_host(run.state_mesh, fitted)
  fit_seconds = time.perf_counter() - start_time - save_seconds - calibration_seconds
  return OnePassFit(fitted, extractor, fit_seconds, calibration_seconds)


def _initial_state(run: OnePassRun) -> PyTree:
  state = loop.initial_state(run.detector, run.variables, run.seed, run.state_mesh)
  if not run.previous.num_images:
    return state
  specs = run.detector.sharding_specs
  extended_state = run.incremental.restore(state, run.previous.state_arrays)
  return meshes.put_on_mesh(run.state_mesh, extended_state, specs.state if specs else P())


def _learn(
  run: OnePassRun, state: PyTree, extractor: PyTree, batch_size: int, log_every: int
) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
  """Return the State after all images, and `Detector.finalize`, compiled where possible.

  Micro-batches are embedded on all devices of the run, and joined to batches on `state_mesh`.
  """
  num_images, state_mesh = len(run.records), run.state_mesh
  num_steps = math.ceil(num_images / batch_size)
  micro_size = meshes.micro_batch_size(run.mesh, batch_size)
  # The smallest number that covers all images in `num_steps`, so that batches are evenly filled.
  num_micro_batches = math.ceil(num_images / num_steps / micro_size)
  batch_size = micro_size * num_micro_batches
  embed = jax.jit(run.leave_one_out.embed)
  log_hook = fit_hooks.LogHook(num_steps, 0, batch_size, log_every)

  def embed_micro_batch(micro_batch: Batch) -> Batch:
    features = embed(extractor, meshes.shard_batch(run.mesh, micro_batch))
    # Pixels are no longer needed, but one per image stays: XLA (JAX 0.11) crashes when a sharded
    # program takes an empty array and returns it with others.
    micro_batch = micro_batch._replace(image=micro_batch.image[:, :1, :1], features=features)
    micro_batch = use_image_ids(micro_batch, run.image_ids)
    return meshes.shard_batch(state_mesh, micro_batch)

  with contextlib.ExitStack() as stack:
    process = processes.index_and_count()
    image_batches = batch_streams.eval_batches(run.records, run.ops, micro_size, process)
    stack.callback(image_batches.close)
    executor = stack.enter_context(futures.ThreadPoolExecutor(1))
    update, finalize = _compile_ahead(run, state, extractor, batch_size, executor)

    def update_with_space(state: PyTree, batch: Batch) -> tuple[PyTree, dict[str, jax.Array]]:
      if run.incremental.compact:
        state = run.incremental.compact(state, len(batch.valid))
      return update(state, batch)

    progress_bar = progress.progress_bar(num_steps, 0, f'Fitting {run.name}')
    hooks = [log_hook, stack.enter_context(progress_bar)]
    join = meshes.shards(state_mesh).shard_map(_concatenate_shards, (P('data'),), P('data'))
    timed = log_hook.time_data(image_batches)
    micro_batches = scoring.prefetch_to_device(timed, embed_micro_batch)
    batches = _join_groups(micro_batches, num_micro_batches, jax.jit(join))
    state = loop.run(update_with_space, state, batches, range(1, num_steps + 1), hooks)
  return state, finalize


def _compile_ahead(
  run: OnePassRun, state: PyTree, extractor: PyTree, batch_size: int, executor: futures.Executor
) -> tuple[loop.UpdateFn, Callable[[PyTree], PyTree]]:
  """Return `update` and `finalize`; compile them while the first images are read and embedded.

  The shapes of the State, which suffice, must be the same at the end for `finalize` to be compiled
  ahead. Programs for several devices are compiled when they are first called.
  """
  detector, ops = run.detector, run.ops
  if run.state_mesh.size > 1:
    return jax.jit(detector.update, donate_argnums=0), detector.finalize
  sharding = meshes.batch_sharding(run.state_mesh)

  def struct(shape: Sequence[int], dtype: jnp.dtype | type) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=sharding)

  def compile_program(function: Callable, *structs: PyTree) -> jax.stages.Compiled:
    return jax.jit(function, donate_argnums=0).lower(*structs).compile()

  def finalize_donated(state: PyTree) -> tuple[PyTree, list[jax.Array]]:
    fitted = detector.finalize(state)
    reused = {(x.shape, x.dtype) for x in jax.tree.leaves(fitted)}
    # JAX warns about donated arrays whose memory no result can reuse; so these are returned, too.
    return fitted, [x for x in jax.tree.leaves(state) if (x.shape, x.dtype) not in reused]

  images = struct((batch_size, ops.height, ops.width, 3), jnp.uint8)
  valid, index = struct((batch_size,), jnp.bool), struct((batch_size,), jnp.int32)
  batch = Batch._make((images, valid, index, None))
  features = jax.eval_shape(run.leave_one_out.embed, extractor, batch)
  features = jax.tree.map(lambda x: struct(x.shape, x.dtype), features)
  batch = batch._replace(image=struct((batch_size, 1, 1, 3), jnp.uint8), features=features)
  state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
  update = executor.submit(compile_program, detector.update, state, batch)
  if run.incremental.select:
    return lambda state, batch: update.result()(state, batch), detector.finalize
  finalize = executor.submit(compile_program, finalize_donated, state)
  return lambda state, batch: update.result()(state, batch), lambda s: finalize.result()(s)[0]


def _join_groups(
  micro_batches: Iterator[Batch], size: int, concatenate: Callable[[list[Batch]], Batch]
) -> Iterator[Batch]:
  """Concatenate every `size` micro-batches; pad the last batch with invalid rows."""
  while group := list(itertools.islice(micro_batches, size)):
    if len(group) < size:
      zeros = jax.tree.map(jnp.zeros_like, group[0])
      group += [zeros._replace(index=zeros.index - 1)] * (size - len(group))
    yield concatenate(group)


def _concatenate_shards(micro_batches: list[Batch], axis_name: str | None) -> Batch:
  """Concatenate the rows of one shard; their order is free, as `Batch.index` identifies images."""
  del axis_name
  return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *micro_batches)


def score_leave_one_out(
  run: OnePassRun, extractor: PyTree, batch_size: int, max_images: int
) -> calibration.CalibrationScores:
  """Score training images, then retained images, each by a model that has not learned from it.

  The model has not learned from the image's near-duplicates either. Of near-duplicates, only the
  first is scored, because they are one observation.

  Args:
    run: the run, whose `state_dir` has the arrays of the fit.
    extractor: parameters that `LeaveOneOut.embed` takes, on the mesh.
    batch_size: number of images per batch.
    max_images: maximum number of distinct records to score. Beyond it, whole folds are skipped,
      because each costs PatchCore a selection; a few hundred scores are enough to set thresholds.
  """
  num_folds, retained = run.leave_one_out.num_folds, run.previous.retained
  groups = record_types.group_duplicates(run.records)
  record_rows = np.unique(groups)
  max_images = max(max_images, num_folds)  # At least one image per fold.
  num_scored_folds = math.ceil(num_folds * min(1.0, max_images / len(record_rows)))

  def in_scored_folds(image_ids: Int[np.ndarray, ' _n']) -> Int[np.ndarray, ' _m']:
    return np.flatnonzero((image_ids >= 0) & (image_ids % num_folds < num_scored_folds))

  selected = in_scored_folds(run.image_ids[record_rows])
  num_files = min(max_images, len(selected))
  # Evenly spaced, because neighbors in a folder may be similar.
  selected = selected[np.linspace(0, len(selected) - 1, num_files).round().astype(np.int64)]
  record_rows = record_rows[selected]
  retained_rows = in_scored_folds(retained.image_ids)
  image_ids = np.append(run.image_ids[record_rows], retained.image_ids[retained_rows])
  # With a single fold, the model leaves out each image, but not its near-duplicates. Images that
  # have some get the id -1, and are scored at the end.
  if num_folds == 1:
    image_ids[:num_files][np.bincount(groups)[record_rows] > 1] = -1
  batch_size = min(batch_size, math.ceil(num_files / num_scored_folds))
  scorer, specs = jax.jit(run.leave_one_out.score), run.detector.sharding_specs
  scores, peaks = np.zeros((2, len(image_ids)))
  for fold in range(num_scored_folds):
    rows = np.flatnonzero((image_ids >= 0) & (image_ids % num_folds == fold))
    if not len(rows):
      continue
    model = _leave_fold_out(run, fold)
    new_rows, old_rows = rows[rows < num_files], rows[rows >= num_files]
    records = [run.records[i] for i in record_rows[new_rows].tolist()]
    if records:  # `score_records` needs at least one record.
      scored = scoring.score_records(
        scorer, model, records, run.ops, batch_size, run.mesh, specs and specs.held_out_model
      )
      _, scores[new_rows], peaks[new_rows] = scoring.collect_calibration_scores(scored)
    for i in old_rows:
      embedding = retained.embeddings[retained_rows[i - num_files]]
      scores[i], peaks[i] = _score_retained(run, scorer, model, embedding)
  if len(rows := np.flatnonzero(image_ids < 0)):
    model = None  # It may take gigabytes.
    scores[rows], peaks[rows] = _score_without_groups(
      run, extractor, groups, record_rows[rows], batch_size
    )
  paths = [str(run.records[i].path) for i in record_rows.tolist()]
  paths += [''] * len(retained_rows)
  return calibration.CalibrationScores(tuple(paths), scores, peaks)


def _leave_fold_out(run: OnePassRun, fold: int) -> PyTree:
  # The arrays, which may take gigabytes, must not outlive this function.
  arrays = incremental_state.load_state_arrays(run.state_dir, memory_map=True)
  model = run.leave_one_out.leave_fold_out(run.variables, arrays, fold)
  if specs := run.detector.sharding_specs:
    model = meshes.put_on_mesh(run.mesh, specs.pad_to_shards(model), specs.held_out_model)
  return model


def _score_without_groups(
  run: OnePassRun,
  extractor: PyTree,
  groups: Int[np.ndarray, ' _n'],
  rows: Int[np.ndarray, ' m'],
  batch_size: int,
) -> tuple[Float[np.ndarray, ' m'], Float[np.ndarray, ' m']]:
  """Return scores and peaks of images, each by a Fitted without the image's group.

  Groups are removed in at most `_MAX_REMOVALS` chunks, so a Fitted lacks all groups of a chunk.

  Args:
    run: the run.
    extractor: parameters that `LeaveOneOut.embed` takes, on the mesh.
    groups: group of each record, the position of its first.
    rows: positions of the images, each the first of its group.
    batch_size: number of images per batch.
  """
  scorer, specs, chunk_scores = scoring.image_scorer(run.detector), run.detector.sharding_specs, []
  for chunk in np.array_split(rows, min(_MAX_REMOVALS, len(rows))):
    removed = [run.records[i] for i in np.flatnonzero(np.isin(groups, chunk)).tolist()]
    model = _remove(run, extractor, removed, batch_size)
    records = [run.records[i] for i in chunk.tolist()]
    scored = scoring.score_records(
      scorer, model, records, run.ops, batch_size, run.mesh, specs and specs.fitted
    )
    chunk_scores.append(scoring.collect_calibration_scores(scored)[1:])
    del model, scored  # They may take gigabytes.
  scores, peaks = (np.concatenate(x) for x in zip(*chunk_scores, strict=True))
  return scores, peaks


def _remove(
  run: OnePassRun, extractor: PyTree, records: Sequence[Record], batch_size: int
) -> PyTree:
  """Return a Fitted that has not learned from some of the records, placed for scoring."""
  assert run.leave_one_out.remove is not None  # Every detector with a single fold has it.
  arrays = incremental_state.load_state_arrays(run.state_dir, memory_map=True)
  embeddings = _embed(run, extractor, records, batch_size + -batch_size % run.mesh.size)
  model = run.leave_one_out.remove(run.variables, arrays, embeddings)
  if specs := run.detector.sharding_specs:
    model = meshes.put_on_mesh(run.mesh, specs.pad_to_shards(model), specs.fitted)
  return model


def _embed(
  run: OnePassRun, extractor: PyTree, records: Sequence[Record], batch_size: int
) -> Iterator[HostEmbeddings]:
  """Yield the embeddings of records in order; `batch_size` is a multiple of the devices."""
  embed, process = jax.jit(run.leave_one_out.embed), processes.index_and_count()
  batches = batch_streams.eval_batches(records, run.ops, batch_size, process)
  for start, batch in zip(range(0, len(records), batch_size), batches, strict=True):
    embeddings = meshes.to_host(run.mesh, embed(extractor, meshes.shard_batch(run.mesh, batch)))
    yield embeddings[: len(records) - start]


def _score_retained(
  run: OnePassRun, scorer: Scorer, model: PyTree, embedding: Float[np.ndarray, 'h w d']
) -> tuple[float, float]:
  """Return the score and peak of an image whose embedding was retained."""
  mesh = run.mesh if run.detector.sharding_specs else None
  # The single image is repeated, because a sharded scorer needs a row for every device.
  n = mesh.size // processes.index_and_count()[1] if mesh else 1
  images = np.zeros((n, run.ops.height, run.ops.width, 3), np.uint8)
  features = np.broadcast_to(embedding, (n, *embedding.shape))
  batch = Batch(images, np.ones(n, bool), np.zeros(n, np.int32), features)
  if mesh:
    scores = meshes.to_host(mesh, scorer(model, meshes.shard_batch(mesh, batch)))
  else:
    scores = jax.device_get(scorer(model, batch))
  return float(scores.image[0]), float(scores.map.max())


def retain_embeddings(
  run: OnePassRun, extractor: PyTree, num_embeddings: int
) -> incremental_state.RetainedEmbeddings:
  """Draw a random sample of all images learned so far, and return their embeddings.

  Images of earlier runs are drawn from those retained, in proportion to their share of all images.
  New images are drawn from those without near-duplicates, because a later run cannot remove images
  whose embeddings are not retained. If every new image has near-duplicates, the first of each group
  is drawn; with a single fold it gets the id -1, and later runs do not score it.

  Args:
    run: the run.
    extractor: parameters that `LeaveOneOut.embed` takes, on the mesh.
    num_embeddings: size of the sample; smaller if there are fewer images.
  """
  rng = np.random.default_rng(run.seed)
  firsts, group_sizes = np.unique(record_types.group_duplicates(run.records), return_counts=True)
  unique_rows = firsts[group_sizes == 1]
  candidates = unique_rows if len(unique_rows) else firsts
  num_previous, retained = run.previous.num_images, run.previous.retained
  num_old = round(num_embeddings * num_previous / (num_previous + len(run.records)))
  # At least one image is new, because `eval_batches` needs at least one record.
  num_old = min(num_old, num_embeddings - 1, len(retained.image_ids))
  num_new = min(num_embeddings - num_old, len(candidates))
  new_rows = np.sort(candidates[rng.choice(len(candidates), num_new, replace=False)])
  new_records = [run.records[i] for i in new_rows]
  embeddings = np.concatenate([*_embed(run, extractor, new_records, run.mesh.size)])
  image_ids = run.image_ids[new_rows]
  if run.leave_one_out.num_folds == 1:
    image_ids = np.where(np.isin(new_rows, unique_rows), image_ids, -1).astype(np.int32)
  if num_old:
    old_rows = np.sort(rng.choice(len(retained.image_ids), num_old, replace=False))
    embeddings = np.concatenate([retained.embeddings[old_rows], embeddings])
    image_ids = np.concatenate([retained.image_ids[old_rows], image_ids])
  return incremental_state.RetainedEmbeddings(embeddings, image_ids)


def use_image_ids(batch: Batch, image_ids: Int[np.ndarray, ' n']) -> Batch:
  """Replace the index of each valid row by the id of that record; it stays -1 for padding."""
  index = np.where(np.asarray(batch.valid), image_ids[np.asarray(batch.index)], -1)
  return batch._replace(index=index.astype(np.int32))
