"""One-pass fitting: the detector sees every normal image once, and no image is held out.

The module `leave_one_out` scores the images for calibration. A later run can extend the saved state
with further images.

A detector learns from each tile of an image and of its augmented copies, as from an image. One that
is not tiled counts as one tile.
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
from jaxtyping import Int
import numpy as np

from uadjax.data import batches as batch_streams
from uadjax.data.image_cache import ImageCache
from uadjax.data.records import Record
from uadjax.data.tiles import Tile
from uadjax.detectors.base import (
  Detector,
  HostEmbeddings,
  Incremental,
  LeaveOneOut,
)
from uadjax.distributed import mesh as meshes, processes
from uadjax.model import incremental_state, scoring
from uadjax.system import memory, progress, tensorflow
from uadjax.training import hooks as fit_hooks, loop
from uadjax.training.embedding_store import EmbeddingStore
from uadjax.training.image_table import ImageTable
from uadjax.types import Batch, PyTree, Variables

CORESET = 'coreset'  # Title of the step that selects a coreset of what was learned.
# Compiled programs take 150 MB. They are dropped after each phase of a run whose State has at least
# this size; smaller runs keep them, to be faster if another run in the same process needs them.
_LARGE_STATE_BYTES = 1 << 27


class OnePassRun(NamedTuple):
  """A run of a detector that sees every image once.

  Attributes:
    name: name of the detector.
    detector: the detector.
    leave_one_out: its functions for calibration.
    incremental: its functions for runs that extend this one.
    variables: variables of the backbone.
    records: normal images to learn from, in this order.
    image_table: table of these images and of those of earlier runs.
    previous: state of the run to extend, or `incremental_state.EMPTY`.
    cache: reads the images, or has them in memory. It also has the stored images of earlier runs,
      which have no file.
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
  image_table: ImageTable
  previous: incremental_state.IncrementalState
  cache: ImageCache
  seed: int
  mesh: meshes.Mesh
  state_dir: Path

  def tiles(self) -> list[Tile]:
    """Return the tiles to learn from, in order: those of all records and of their copies."""
    return self.cache.list_tiles((record.path for record in self.records), with_copies=True)

  @property
  def state_mesh(self) -> meshes.Mesh:
    """Devices that hold the State: all, or the first if the detector shards nothing."""
    return self.mesh if self.detector.sharding_specs else meshes.single_device_mesh(self.mesh)


class OnePassFit(NamedTuple):
  """Result of a one-pass fit.

  Attributes:
    fitted: parameters for scoring.
    extractor: parameters for embedding images, on the mesh.
    fit_seconds: wall time from the first image until `fitted` is ready, without writing the state
      arrays and without `calibration_seconds`. It excludes decoding the images that the dataset
      check has left in the cache.
    calibration_seconds: wall time of computing and writing the calibration coresets.
    state_bytes: size of the State with all images.
  """

  fitted: PyTree
  extractor: PyTree
  fit_seconds: float
  calibration_seconds: float
  state_bytes: int


def release_memory(state_bytes: int) -> None:
  """Return memory to the system after a phase of a run whose State has or had this size."""
  if state_bytes >= _LARGE_STATE_BYTES:
    jax.clear_caches()
  memory.release_free_memory()


def fit_one_pass(
  run: OnePassRun, batch_size: int, log_every: int, embeddings: EmbeddingStore
) -> OnePassFit:
  """Fit a detector to all records, and write its state arrays into `run.state_dir`.

  Args:
    run: the detector and its images.
    batch_size: maximum number of tiles per update.
    log_every: number of steps between two log lines.
    embeddings: store to which the embeddings of the records are added.
  """
  incremental, state = run.incremental, _initial_state(run)
  # Copy the parameters, because the updates donate the state.
  extractor = meshes.replicate(run.mesh, state.extractor, copy=True)
  tensorflow.import_tensorflow()  # Slow, and therefore before the fit time starts.
  start_time = time.perf_counter()
  state, finalize = _learn(run, state, extractor, batch_size, log_every, embeddings)
  state_bytes = sum(x.nbytes for x in jax.tree.leaves(state))
  release_memory(state_bytes)
  calibration_start = time.perf_counter()
  if incremental.select:
    progress.announce(CORESET)
  if run.leave_one_out.select_coresets:
    coresets = run.leave_one_out.select_coresets(state, run.previous.state_arrays)
    incremental_state.save_state_arrays(run.state_dir, coresets)
  calibration_seconds = time.perf_counter() - calibration_start
  release_memory(state_bytes)
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
  return OnePassFit(fitted, extractor, fit_seconds, calibration_seconds, state_bytes)


def _initial_state(run: OnePassRun) -> PyTree:
  state = loop.initial_state(run.detector, run.variables, run.seed, run.state_mesh)
  if not run.previous.num_images:
    return state
  specs = run.detector.sharding_specs
  extended_state = run.incremental.restore(state, run.previous.state_arrays)
  return meshes.put_on_mesh(run.state_mesh, extended_state, specs.state if specs else P())


def _learn(
  run: OnePassRun,
  state: PyTree,
  extractor: PyTree,
  batch_size: int,
  log_every: int,
  embeddings: EmbeddingStore,
) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
  """Return the State after all images, and `Detector.finalize`, compiled where possible.

  Micro-batches are embedded on all devices of the run, and joined to batches on `state_mesh`.
  """
  tiles, state_mesh = run.tiles(), run.state_mesh
  num_steps = math.ceil(len(tiles) / batch_size)
  micro_size = meshes.micro_batch_size(run.mesh, batch_size)
  # The smallest number that covers all tiles in `num_steps`, so that batches are evenly filled.
  num_micro_batches = math.ceil(len(tiles) / num_steps / micro_size)
  batch_size = micro_size * num_micro_batches
  embed, learned_embeddings = jax.jit(run.leave_one_out.embed), _learned_embeddings_fn(run)
  log_hook = fit_hooks.LogHook(num_steps, 0, batch_size, log_every)

  def embed_micro_batch(micro_batch: Batch) -> Batch:
    features = embed(extractor, meshes.shard_batch(run.mesh, micro_batch))
    # Pixels are no longer needed, but one per image stays: XLA (JAX 0.11) crashes when a sharded
    # program takes an empty array and returns it with others.
    return micro_batch._replace(image=micro_batch.image[:, :1, :1], features=features)

  def move_to_state(micro_batch: Batch) -> Batch:
    if learned_embeddings is None:
      embeddings.add([tiles[i] for i in micro_batch.index if i >= 0], micro_batch.features)
    micro_batch = use_tile_ids(micro_batch, run.image_table.new_tile_ids)
    return meshes.shard_batch(state_mesh, micro_batch)

  with contextlib.ExitStack() as stack:
    process = processes.index_and_count()
    image_batches = batch_streams.eval_batches(
      run.records, run.cache, micro_size, process, with_copies=True
    )
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
    # To move embeddings waits for them, and the devices embed the next micro-batch meanwhile.
    micro_batches = map(move_to_state, scoring.prefetch_to_device(timed, embed_micro_batch))
    batches = _join_groups(micro_batches, num_micro_batches, jax.jit(join))
    state = loop.run(update_with_space, state, batches, range(1, num_steps + 1), hooks)
  if learned_embeddings is not None:
    tile_by_id = dict(zip(run.image_table.new_tile_ids.tolist(), tiles, strict=True))
    tile_ids, learned = learned_embeddings(state)
    embeddings.add_views([tile_by_id[i] for i in tile_ids.tolist()], learned)
  return state, finalize


def _learned_embeddings_fn(
  run: OnePassRun,
) -> Callable[[PyTree], tuple[Int[np.ndarray, ' n'], HostEmbeddings]] | None:
  """Return the function that takes embeddings from a State, where it need not copy them.

  Other devices have separate memory, from which those of few images must be copied in any case. Of
  several processes, only one may hold the State.
  """
  is_cpu = run.state_mesh.devices.ravel()[0].platform == 'cpu'
  shares_memory = is_cpu and not processes.is_multiprocess()
  return run.leave_one_out.learned_embeddings if shares_memory else None


def _compile_ahead(
  run: OnePassRun, state: PyTree, extractor: PyTree, batch_size: int, executor: futures.Executor
) -> tuple[loop.UpdateFn, Callable[[PyTree], PyTree]]:
  """Return `update` and `finalize`; compile them while the first images are read and embedded.

  The shapes of the State, which suffice, must be the same at the end for `finalize` to be compiled
  ahead. Programs for several devices are compiled when they are first called.
  """
  detector, ops = run.detector, run.cache.ops
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
    batch = [concatenate(group)]
    # While a batch is used and the next group is read, neither group nor batch may stay here: those
    # of PaDiM have 50 MB.
    group.clear()
    yield batch.pop()


def _concatenate_shards(micro_batches: list[Batch], axis_name: str | None) -> Batch:
  """Concatenate the rows of one shard; their order is free, as `Batch.index` identifies images."""
  del axis_name
  return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *micro_batches)


def use_tile_ids(batch: Batch, tile_ids: Int[np.ndarray, ' t']) -> Batch:
  """Replace the index of each valid row by the id of that tile; it stays -1 for padding."""
  index = np.where(np.asarray(batch.valid), tile_ids[np.asarray(batch.index)], -1)
  return batch._replace(index=index.astype(np.int32))
