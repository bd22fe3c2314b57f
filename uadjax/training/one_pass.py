"""Learning in one pass: every good image is folded in once, and none is held out.

What is learned is calibrated by leaving each image out of it, in closed form or with those of its
fold, and can be taken up again later with further images.
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
from uadjax.types import Batch, Config, Scores, Variables


class Folded(NamedTuple):
  """How a fold went.

  Attributes:
    fitted: what scoring needs.
    embedder: what embedding needs, on the mesh.
    seconds: from the first file opened to `fitted` ready, without writing the kept arrays.
    apart: seconds more, for what only calibration needs: the stand-ins.
  """

  fitted: Any
  embedder: Any
  seconds: float
  apart: float


def fold(
  detector: Detector,
  once: OnePass,
  variables: Variables,
  config: Config,
  records: Sequence[Record],
  before: incremental_state.Learned | None,
  mesh: meshes.Mesh,
  folder: Path,
) -> Folded:
  """Fold the images in, after those that `before` stands for; leave the kept arrays in `folder`."""
  ops = transforms.parse(config.data.ops)
  total = math.ceil(len(records) / config.fit.batch_size)
  rows = meshes.micro_batch_size(mesh, config.fit.batch_size)
  pieces = math.ceil(len(records) / total / rows)  # As even as can be.
  first, split = before.images if before else 0, detector.sharding_specs
  home = mesh if split else meshes.single_device_mesh(mesh)
  state = loop.initial(detector, variables, config.seed, home)
  if before:
    extended = once.extend(state, before.kept)
    state = meshes.put_on_mesh(home, extended, split.state if split else False)
  # Its own: the updates will donate the state.
  embedder = meshes.replicate(mesh, once.feature_extractor(state), copy=True)
  embed = jax.jit(once.embed)

  def embedded(piece: Batch) -> Batch:
    features = embed(embedder, meshes.shard_batch(mesh, piece))
    # Pixels are no longer needed, but an image keeps one of them: XLA crashes (JAX 0.11) where a
    # sharded program takes an empty array and returns it beside others.
    piece = numbered(piece, first)._replace(image=piece.image[:, :1, :1], features=features)
    return meshes.shard_batch(home, piece)

  tensorflow.import_tensorflow()  # Nothing is imported after this.
  began, clock = time.perf_counter(), fit_hooks.clock()
  with contextlib.ExitStack() as stack:
    images = batch_streams.eval_batches(records, ops, rows, *processes.index_and_count())
    stack.callback(images.close)
    # Programs of several devices are compiled one after the other, when they are first called.
    compiled = None
    if home.size == 1:
      compiler = stack.enter_context(concurrent.futures.ThreadPoolExecutor(1))
      device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
      like, rows_sharding = (_like(state), _like(embedder)), meshes.batch_sharding(home)
      compiled = compiler.submit(
        _compile, detector, once, *like, rows * pieces, ops, device, rows_sharding
      )
    hooks = [
      fit_hooks.log_steps(total, 0, rows * pieces, config.fit.log_every, clock),
      stack.enter_context(progress.progress_bar(total, 0, f'Fitting {config.detector.name}')),
    ]
    join = jax.jit(meshes.shards(home).shard_map(_concatenated, (True,), True))
    batches = _joined(scoring.ahead(clock.watch(images), embedded), pieces, join)
    steps = range(1, total + 1)
    state = loop.run(detector.update, state, batches, steps, hooks, once.before_update)
    if compiled:
      compiled.result()  # Raises what it raised.
    parting = time.perf_counter()
    stand_ins = once.calibration_coresets(state, before.kept if before else {})
    incremental_state.save_kept(folder, stand_ins)
    apart_s = time.perf_counter() - parting
    state = jax.block_until_ready(once.finalize(state))
  saving = time.perf_counter()
  incremental_state.save_kept(folder, meshes.to_host(home, once.state_arrays(state)))
  saved_s = time.perf_counter() - saving
  fitted = jax.block_until_ready(detector.to_fitted(state))
  if processes.is_multiprocess():
    fitted = meshes.to_host(home, fitted)
  return Folded(fitted, embedder, time.perf_counter() - began - saved_s - apart_s, apart_s)


def _joined(
  pieces: Iterable[Batch], number: int, join: Callable[[list[Batch]], Batch]
) -> Iterator[Batch]:
  """Join so many batches into one; the last is filled up with rows that are not valid."""
  pieces = iter(pieces)
  while some := list(itertools.islice(pieces, number)):
    missing = number - len(some)
    yield join([*some, *([_blank(some[0])] * missing if missing else [])])


def _blank(batch: Batch) -> Batch:
  blank = jax.tree.map(jnp.zeros_like, batch)
  return blank._replace(index=blank.index - 1)


def _concatenated(pieces: list[Batch], axis: str | None) -> Batch:
  """On every device its own rows: whose they are the batch itself tells."""
  del axis
  return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *pieces)


def _compile(
  detector: Detector,
  once: OnePass,
  state: Any,
  embedder: Any,
  rows: int,
  ops: transforms.Ops,
  device: Any,
  rows_sharding: Any,
) -> None:
  """Compile what follows the embedding, while that is compiled and the first files are read.

  For states on one device only. Takes shapes: JAX finds the executables again when the same
  functions are called with arrays on the same default device, which is a setting of each thread.

  Args:
    detector: whose `update` is compiled.
    once: whose functions for the end of the fit are compiled.
    state: shapes and sharding of the detector's state.
    embedder: shapes and sharding of what `once.embed` takes.
    rows: images of a batch.
    ops: give height and width of the images.
    device: JAX's default device in the calling thread.
    rows_sharding: of a batch's rows.
  """

  def of(dtype: Any, *shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=rows_sharding)

  images = of(jnp.uint8, rows, ops.height, ops.width, 3)
  batch = Batch(images, of(jnp.bool, rows), of(jnp.int32, rows))
  features = jax.eval_shape(once.embed, embedder, batch)
  features = jax.tree.map(lambda x: of(x.dtype, *x.shape), features)
  batch = batch._replace(image=of(jnp.uint8, rows, 1, 1, 3), features=features)
  with jax.default_device(device):
    jax.jit(detector.update, donate_argnums=0).lower(state, batch).compile()
    once.compile_finalize(state)


def _like(tree: Any) -> Any:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def score_left_out(
  once: OnePass,
  variables: Variables,
  folder: Path,
  records: Sequence[Record],
  before: incremental_state.Learned | None,
  ops: transforms.Ops,
  batch_size: int,
  mesh: meshes.Mesh,
  most: int,
  split: ShardingSpecs | None = None,
) -> calibration.Peaks:
  """Score images that were folded in, each as if it had not been; after them, those retained.

  Args:
    once: of the detector.
    variables: of the backbone.
    folder: holds what was kept.
    records: folded in after those that `before` stands for.
    before: its retained embeddings are scored as well.
    ops: from files to images.
    batch_size: images at once.
    mesh: to score the records on.
    most: of the records. Where there are more, whole folds are passed over, for each takes
      PatchCore a selection; a few hundred scores are enough to set thresholds.
    split: of the detector.
  """
  scorer = jax.jit(once.score_held_out)
  first = before.images if before else 0
  most = max(most, once.num_folds)  # One of each fold at least.
  folds = math.ceil(once.num_folds * min(1.0, most / len(records)))

  def heard(number: Int[np.ndarray, ' n']) -> Int[np.ndarray, ' _']:
    return np.flatnonzero(number % once.num_folds < folds)

  files = heard(np.arange(first, first + len(records)))
  # Evenly: neighbors in a folder may be alike.
  even = np.linspace(0, len(files) - 1, min(most, len(files))).round().astype(np.int64)
  files = files[even]
  kept = heard(before.retained.image) if before else np.zeros(0, int)
  n, number = len(files), files + first
  if before:
    number = np.append(number, before.retained.image[kept])
  rows = min(batch_size, math.ceil(n / folds))
  image, largest = np.zeros((2, len(number)))
  for fold in range(folds):
    mine = np.flatnonzero(number % once.num_folds == fold)
    if not len(mine):
      continue
    reference = once.leave_fold_out(
      variables, incremental_state.load_kept(folder, mapped=True), fold
    )
    if split:
      reference = meshes.put_on_mesh(mesh, split.pad_to_shards(reference), split.held_out_model)
    new, old = mine[mine < n], mine[mine >= n]
    if len(new):  # There are no batches of none.
      some = [records[i] for i in files[new].tolist()]
      parts = split.held_out_model if split else None
      scored = scoring.peaks(scoring.score(scorer, reference, some, ops, rows, mesh, parts))
      image[new], largest[new] = scored.image, scored.map
    for i in old:
      assert before is not None  # Whose images they are.
      embedding = before.retained.embedding[kept[i - n]]
      one = _score_retained(scorer, reference, embedding, ops, mesh if split else None)
      image[i], largest[i] = one.image[0], one.map.max()
  paths = tuple(str(records[i].path) for i in files.tolist())
  return calibration.Peaks(paths + ('',) * (len(number) - n), image, largest)


def _score_retained(
  scorer: Callable[[Any, Batch], Scores],
  reference: Any,
  embedding: Float[np.ndarray, 'h w d'],
  ops: transforms.Ops,
  mesh: meshes.Mesh | None,
) -> Scores:
  rows = mesh.size // processes.index_and_count()[1] if mesh else 1  # As many of the same.
  blank = np.zeros((rows, ops.height, ops.width, 3), np.uint8)
  same = np.broadcast_to(embedding, (rows, *embedding.shape))
  batch = Batch(blank, np.ones(rows, bool), np.zeros(rows, np.int32), same)
  if mesh is None:
    return jax.device_get(scorer(reference, batch))
  return meshes.to_host(mesh, scorer(reference, meshes.shard_batch(mesh, batch)))


def retain(
  once: OnePass,
  embedder: Any,
  records: Sequence[Record],
  before: incremental_state.Learned | None,
  count: int,
  ops: transforms.Ops,
  seed: int,
  mesh: meshes.Mesh,
) -> incremental_state.Retained:
  """Choose `count` of all images ever folded in at random, and keep their embeddings.

  Old ones are chosen from those retained, in the proportion that all old images have.
  """
  random = np.random.default_rng(seed)
  first = before.images if before else 0
  share = round(count * first / (first + len(records)))
  # At least one is new: there are no batches of none.
  from_old = min(share, count - 1, len(before.retained.image)) if before else 0
  from_new = min(count - from_old, len(records))
  rows = np.sort(random.choice(len(records), from_new, replace=False))
  embed = jax.jit(once.embed)
  chosen = [records[row] for row in rows]
  batches = batch_streams.eval_batches(chosen, ops, mesh.size, *processes.index_and_count())
  found = [
    meshes.to_host(mesh, embed(embedder, meshes.shard_batch(mesh, batch))) for batch in batches
  ]
  new = [np.concatenate(found)[: len(chosen)]]
  if not before:
    return incremental_state.Retained(np.concatenate(new), rows.astype(np.int32))
  old = np.sort(random.choice(len(before.retained.image), from_old, replace=False))
  return incremental_state.Retained(
    np.concatenate([before.retained.embedding[old], *new]),
    np.concatenate([before.retained.image[old], rows.astype(np.int32) + first]),
  )


def numbered(batch: Batch, first: int) -> Batch:
  """Count the images of a batch from the very first image learned from."""
  index = np.where(np.asarray(batch.valid), np.asarray(batch.index) + first, -1)
  return batch._replace(index=index.astype(np.int32))
