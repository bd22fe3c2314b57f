"""One-pass fitting: the detector sees every normal image once, and no image is held out.

Thresholds come from leave-one-out scores: each image is scored by a model without it, in closed
form or without its fold. A later run can extend the saved state with further images.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import concurrent.futures
import contextlib
import itertools
import math
from pathlib import Path
import time
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Float, Int
import numpy as np

from uadjax.data import batches as batch_streams, transforms
from uadjax.data.records import Record
from uadjax.detectors.base import Detector, OnePass, ShardingSpecs
from uadjax.distributed import mesh as meshes, processes
from uadjax.model import calibration, incremental_state, scoring
from uadjax.system import progress, tensorflow
from uadjax.training import hooks as fit_hooks, loop
from uadjax.training.settings import Settings
from uadjax.types import Batch, Scores, Variables


class OnePassFit(NamedTuple):
  """Result of a one-pass fit.

  Attributes:
    fitted: parameters for scoring.
    feature_extractor: parameters for embedding images, on the mesh.
    fit_seconds: wall time from opening the first file until `fitted` is ready, without writing the
      state arrays and without `calibration_seconds`.
    calibration_seconds: wall time of computing and writing the calibration coresets.
  """

  fitted: Any
  feature_extractor: Any
  fit_seconds: float
  calibration_seconds: float


def fit_one_pass(
  detector: Detector,
  one_pass: OnePass,
  variables: Variables,
  config: Settings,
  records: Sequence[Record],
  previous_state: incremental_state.IncrementalState | None,
  mesh: meshes.Mesh,
  state_dir: Path,
) -> OnePassFit:
  """Fit a one-pass detector to all records, and write its state arrays into `state_dir`.

  Args:
    detector: detector to fit.
    one_pass: one-pass functions of the detector.
    variables: variables of the backbone.
    config: configuration of the run.
    records: normal images to learn from.
    previous_state: state of the run to extend, or None for a new model.
    mesh: devices that embed the images.
    state_dir: existing directory for the state arrays and the calibration coresets.
  """
  ops = transforms.parse(config.data.ops)
  num_steps = math.ceil(len(records) / config.fit.batch_size)
  micro_batch_size = meshes.micro_batch_size(mesh, config.fit.batch_size)
  # The smallest number that covers all images in `num_steps`, so that batches are evenly filled.
  num_micro_batches = math.ceil(len(records) / num_steps / micro_batch_size)
  num_previous = previous_state.num_images if previous_state else 0
  sharding_specs = detector.sharding_specs
  state_mesh = mesh if sharding_specs else meshes.single_device_mesh(mesh)
  state = loop.initial_state(detector, variables, config.seed, state_mesh)
  if previous_state:
    extended_state = one_pass.extend(state, previous_state.state_arrays)
    state = meshes.put_on_mesh(
      state_mesh, extended_state, sharding_specs.state if sharding_specs else False
    )
  # Copy the parameters, because the updates donate the state.
  feature_extractor = meshes.replicate(mesh, one_pass.feature_extractor(state), copy=True)
  embed = jax.jit(one_pass.embed)

  def embed_micro_batch(micro_batch: Batch) -> Batch:
    features = embed(feature_extractor, meshes.shard_batch(mesh, micro_batch))
    # Pixels are no longer needed, but one per image stays: XLA (JAX 0.11) crashes when a sharded
    # program takes an empty array and returns it with others.
    micro_batch = offset_indices(micro_batch, num_previous)._replace(
      image=micro_batch.image[:, :1, :1], features=features
    )
    return meshes.shard_batch(state_mesh, micro_batch)

  tensorflow.import_tensorflow()  # Slow, and therefore before the fit time starts.
  start_time, timer = time.perf_counter(), fit_hooks.StepTimer()
  with contextlib.ExitStack() as stack:
    image_batches = batch_streams.eval_batches(
      records, ops, micro_batch_size, *processes.index_and_count()
    )
    stack.callback(image_batches.close)
    # Programs for several devices are not compiled ahead, but when they are first called.
    compilation = None
    if state_mesh.size == 1:
      executor = stack.enter_context(concurrent.futures.ThreadPoolExecutor(1))
      device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
      compilation = executor.submit(
        _compile_ahead,
        detector,
        one_pass,
        _abstract(state),
        _abstract(feature_extractor),
        micro_batch_size * num_micro_batches,
        ops,
        device,
        meshes.batch_sharding(state_mesh),
      )
    hooks = [
      fit_hooks.LogHook(
        num_steps, 0, micro_batch_size * num_micro_batches, config.fit.log_every, timer
      ),
      stack.enter_context(progress.progress_bar(num_steps, 0, f'Fitting {config.detector.name}')),
    ]
    concatenate = jax.jit(meshes.shards(state_mesh).shard_map(_concatenate_shards, (True,), True))
    batches = _join_micro_batches(
      scoring.prefetch_to_device(timer.time_iterator(image_batches), embed_micro_batch),
      num_micro_batches,
      concatenate,
    )
    steps = range(1, num_steps + 1)
    state = loop.run(detector.update, state, batches, steps, hooks, one_pass.before_update)
    if compilation:
      compilation.result()  # Re-raises an exception of the compilation.
    calibration_start = time.perf_counter()
    calibration_coresets = one_pass.calibration_coresets(
      state, previous_state.state_arrays if previous_state else {}
    )
    incremental_state.save_state_arrays(state_dir, calibration_coresets)
    calibration_seconds = time.perf_counter() - calibration_start
    state = jax.block_until_ready(one_pass.finalize(state))
  save_start = time.perf_counter()
  incremental_state.save_state_arrays(
    state_dir, meshes.to_host(state_mesh, one_pass.state_arrays(state))
  )
  save_seconds = time.perf_counter() - save_start
  fitted = jax.block_until_ready(detector.to_fitted(state))
  if processes.is_multiprocess():
    fitted = meshes.to_host(state_mesh, fitted)
  return OnePassFit(
    fitted,
    feature_extractor,
    time.perf_counter() - start_time - save_seconds - calibration_seconds,
    calibration_seconds,
  )


def _join_micro_batches(
  micro_batches: Iterable[Batch],
  num_micro_batches: int,
  concatenate: Callable[[list[Batch]], Batch],
) -> Iterator[Batch]:
  """Concatenate every `num_micro_batches` micro-batches; pad the last batch with invalid rows."""
  micro_batches = iter(micro_batches)
  while group := list(itertools.islice(micro_batches, num_micro_batches)):
    num_missing = num_micro_batches - len(group)
    yield concatenate([*group, *([_padding_like(group[0])] * num_missing if num_missing else [])])


def _padding_like(batch: Batch) -> Batch:
  zeros = jax.tree.map(jnp.zeros_like, batch)
  return zeros._replace(index=zeros.index - 1)


def _concatenate_shards(micro_batches: list[Batch], axis_name: str | None) -> Batch:
  """Concatenate the rows of one shard; their order is free, as `Batch.index` identifies images."""
  del axis_name
  return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *micro_batches)


def _compile_ahead(
  detector: Detector,
  one_pass: OnePass,
  state: Any,
  feature_extractor: Any,
  batch_size: int,
  ops: transforms.Ops,
  device: Any,
  batch_sharding: Any,
) -> None:
  """Compile `update` and the end of the fit, while the first images are read and embedded.

  Works for states on a single device only. Shapes suffice: JAX reuses the executables when the same
  functions are called with arrays on the same default device, which is a setting of each thread.

  Args:
    detector: detector whose `update` is compiled.
    one_pass: one-pass functions of the detector; their `compile_finalize` is called.
    state: shapes and sharding of the detector's state.
    feature_extractor: shapes and sharding of the parameters that `one_pass.embed` takes.
    batch_size: number of images per batch.
    ops: transforms that give the height and width of the images.
    device: JAX's default device in the calling thread.
    batch_sharding: sharding of the rows of a batch.
  """

  def abstract_array(dtype: Any, *shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding)

  images = abstract_array(jnp.uint8, batch_size, ops.height, ops.width, 3)
  batch = Batch(images, abstract_array(jnp.bool, batch_size), abstract_array(jnp.int32, batch_size))
  features = jax.eval_shape(one_pass.embed, feature_extractor, batch)
  features = jax.tree.map(lambda x: abstract_array(x.dtype, *x.shape), features)
  batch = batch._replace(image=abstract_array(jnp.uint8, batch_size, 1, 1, 3), features=features)
  with jax.default_device(device):
    jax.jit(detector.update, donate_argnums=0).lower(state, batch).compile()
    one_pass.compile_finalize(state)


def _abstract(tree: Any) -> Any:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def score_leave_one_out(
  one_pass: OnePass,
  variables: Variables,
  state_dir: Path,
  records: Sequence[Record],
  previous_state: incremental_state.IncrementalState | None,
  ops: transforms.Ops,
  batch_size: int,
  mesh: meshes.Mesh,
  max_images: int,
  sharding_specs: ShardingSpecs | None = None,
) -> calibration.CalibrationScores:
  """Score training images and then retained images, each by a model without the image's fold.

  Args:
    one_pass: one-pass functions of the detector.
    variables: variables of the backbone.
    state_dir: directory with the state arrays and calibration coresets of the fit.
    records: images of this run, in the order in which the detector learned from them.
    previous_state: state of the run that was extended, whose retained embeddings are scored too.
    ops: transforms from files to images.
    batch_size: number of images per batch.
    mesh: devices that score the records.
    max_images: maximum number of records to score. Beyond it, whole folds are skipped, because each
      costs PatchCore a selection; a few hundred scores are enough to set thresholds.
    sharding_specs: sharding of the detector, or None if it is replicated.
  """
  scorer = jax.jit(one_pass.score_held_out)
  num_previous = previous_state.num_images if previous_state else 0
  max_images = max(max_images, one_pass.num_folds)  # At least one image per fold.
  num_scored_folds = math.ceil(one_pass.num_folds * min(1.0, max_images / len(records)))

  def in_scored_fold(image_ids: Int[np.ndarray, ' num_files']) -> Int[np.ndarray, ' _']:
    return np.flatnonzero(image_ids % one_pass.num_folds < num_scored_folds)

  file_indices = in_scored_fold(np.arange(num_previous, num_previous + len(records)))
  # Evenly spaced, because neighbors in a folder may be similar.
  positions = (
    np.linspace(0, len(file_indices) - 1, min(max_images, len(file_indices)))
    .round()
    .astype(np.int64)
  )
  file_indices = file_indices[positions]
  retained_indices = (
    in_scored_fold(previous_state.retained.image_ids) if previous_state else np.zeros(0, int)
  )
  num_files, image_ids = len(file_indices), file_indices + num_previous
  if previous_state:
    image_ids = np.append(image_ids, previous_state.retained.image_ids[retained_indices])
  fold_batch_size = min(batch_size, math.ceil(num_files / num_scored_folds))
  scores, peaks = np.zeros((2, len(image_ids)))
  for fold in range(num_scored_folds):
    fold_indices = np.flatnonzero(image_ids % one_pass.num_folds == fold)
    if not len(fold_indices):
      continue
    held_out_model = one_pass.leave_fold_out(
      variables, incremental_state.load_state_arrays(state_dir, memory_map=True), fold
    )
    if sharding_specs:
      held_out_model = meshes.put_on_mesh(
        mesh, sharding_specs.pad_to_shards(held_out_model), sharding_specs.held_out_model
      )
    new_indices = fold_indices[fold_indices < num_files]
    old_indices = fold_indices[fold_indices >= num_files]
    if len(new_indices):  # `score_records` needs at least one record.
      fold_records = [records[i] for i in file_indices[new_indices].tolist()]
      model_specs = sharding_specs.held_out_model if sharding_specs else None
      fold_scores = scoring.collect_calibration_scores(
        scoring.score_records(
          scorer, held_out_model, fold_records, ops, fold_batch_size, mesh, model_specs
        )
      )
      scores[new_indices], peaks[new_indices] = fold_scores.scores, fold_scores.peaks
    for i in old_indices:
      assert previous_state is not None  # All old images are retained images of that state.
      embedding = previous_state.retained.embeddings[retained_indices[i - num_files]]
      retained_scores = _score_retained(
        scorer, held_out_model, embedding, ops, mesh if sharding_specs else None
      )
      scores[i], peaks[i] = retained_scores.image[0], retained_scores.map.max()
  paths = tuple(str(records[i].path) for i in file_indices.tolist())
  return calibration.CalibrationScores(paths + ('',) * (len(image_ids) - num_files), scores, peaks)


def _score_retained(
  scorer: Callable[[Any, Batch], Scores],
  held_out_model: Any,
  embedding: Float[np.ndarray, 'h w d'],
  ops: transforms.Ops,
  mesh: meshes.Mesh | None,
) -> Scores:
  # The single image is repeated, because a sharded scorer needs a row for every device.
  num_rows = mesh.size // processes.index_and_count()[1] if mesh else 1
  blank_images = np.zeros((num_rows, ops.height, ops.width, 3), np.uint8)
  repeated_embedding = np.broadcast_to(embedding, (num_rows, *embedding.shape))
  batch = Batch(
    blank_images, np.ones(num_rows, bool), np.zeros(num_rows, np.int32), repeated_embedding
  )
  if mesh is None:
    return jax.device_get(scorer(held_out_model, batch))
  return meshes.to_host(mesh, scorer(held_out_model, meshes.shard_batch(mesh, batch)))


def retain_embeddings(
  one_pass: OnePass,
  feature_extractor: Any,
  records: Sequence[Record],
  previous_state: incremental_state.IncrementalState | None,
  num_embeddings: int,
  ops: transforms.Ops,
  seed: int,
  mesh: meshes.Mesh,
) -> incremental_state.RetainedEmbeddings:
  """Draw a random sample of all images learned so far, and return their embeddings.

  Images of earlier runs are drawn from those retained, in proportion to their share of all images.

  Args:
    one_pass: one-pass functions of the detector.
    feature_extractor: parameters that `one_pass.embed` takes.
    records: images of this run, in the order in which the detector learned from them.
    previous_state: state of the run that was extended, or None.
    num_embeddings: size of the sample; smaller if there are fewer images.
    ops: transforms from files to images.
    seed: seed of the random choice.
    mesh: devices that embed the images.
  """
  rng = np.random.default_rng(seed)
  num_previous = previous_state.num_images if previous_state else 0
  num_old_target = round(num_embeddings * num_previous / (num_previous + len(records)))
  # At least one image is new, because `eval_batches` needs at least one record.
  num_old = (
    min(num_old_target, num_embeddings - 1, len(previous_state.retained.image_ids))
    if previous_state
    else 0
  )
  num_new = min(num_embeddings - num_old, len(records))
  new_rows = np.sort(rng.choice(len(records), num_new, replace=False))
  embed = jax.jit(one_pass.embed)
  new_records = [records[row] for row in new_rows]
  batches = batch_streams.eval_batches(new_records, ops, mesh.size, *processes.index_and_count())
  embedding_batches = [
    meshes.to_host(mesh, embed(feature_extractor, meshes.shard_batch(mesh, batch)))
    for batch in batches
  ]
  new_embeddings = [np.concatenate(embedding_batches)[: len(new_records)]]
  if not previous_state:
    return incremental_state.RetainedEmbeddings(
      np.concatenate(new_embeddings), new_rows.astype(np.int32)
    )
  old_rows = np.sort(rng.choice(len(previous_state.retained.image_ids), num_old, replace=False))
  return incremental_state.RetainedEmbeddings(
    np.concatenate([previous_state.retained.embeddings[old_rows], *new_embeddings]),
    np.concatenate(
      [previous_state.retained.image_ids[old_rows], new_rows.astype(np.int32) + num_previous]
    ),
  )


def offset_indices(batch: Batch, offset: int) -> Batch:
  """Add `offset`, the number of images of earlier runs, to the indices of the valid rows."""
  index = np.where(np.asarray(batch.valid), np.asarray(batch.index) + offset, -1)
  return batch._replace(index=index.astype(np.int32))
