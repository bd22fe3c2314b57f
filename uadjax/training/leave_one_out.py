"""Leave-one-out scores for the calibration of a detector that learns in one pass.

Each image is scored by a model that has learned neither from it nor from its near-duplicates:

- With several folds (PatchCore), the model lacks the fold of the image.
- With a single fold (PaDiM), the image is left out in closed form. For an image with
  near-duplicates, its whole group is removed from the model.
"""

from collections.abc import Callable, Iterator, Sequence
import math
from typing import NamedTuple

import jax
from jaxtyping import Int
import numpy as np

from uadjax.data import batches as batch_streams
from uadjax.data.records import Record
from uadjax.detectors.base import HostEmbeddings
from uadjax.distributed import mesh as meshes, processes
from uadjax.model import calibration, incremental_state, scoring
from uadjax.training.embedding_store import EmbeddingStore
from uadjax.training.one_pass import OnePassRun
from uadjax.types import Batch, PyTree, Scores

# Maximum number of models that score near-duplicates. Each lacks a chunk of the groups, because a
# model per group would be slow: PaDiM computes new whitening matrices for each.
_MAX_REMOVALS = 10


class HeldOutModel(NamedTuple):
  """Model that has not learned from some of the images.

  Attributes:
    rows: positions in `ImageTable.scored_rows` of the images that the model scores.
    score: (model, batch) -> scores.
    model: arrays that `score` takes, on the mesh if they are sharded.
    specs: `PartitionSpec`s of the arrays; None if nothing is sharded.
  """

  rows: Int[np.ndarray, ' _n']
  score: Callable[[PyTree, Batch], Scores]
  model: PyTree
  specs: PyTree


def score(
  run: OnePassRun, extractor: PyTree, embeddings: EmbeddingStore, batch_size: int
) -> calibration.CalibrationScores:
  """Score the images `run.image_table.scored_rows`, each by a model that has not learned from it.

  Args:
    run: the run, whose `state_dir` has the arrays of the fit.
    extractor: parameters that `LeaveOneOut.embed` takes, on the mesh.
    embeddings: stored embeddings, which are not computed again.
    batch_size: number of images per batch.
  """
  records, num_previous = (
    run.image_table.records_at(run.image_table.scored_rows),
    run.image_table.num_previous,
  )
  is_old = run.image_table.scored_rows < num_previous
  folds = run.image_table.image_ids[run.image_table.scored_rows] % run.leave_one_out.num_folds
  batch_size = min(batch_size, math.ceil(len(records) / max(1, len(np.unique(folds)))))
  scores, peaks = np.zeros((2, len(records)))
  for rows, scorer, model, specs in _held_out_models(run, extractor, embeddings, batch_size):
    chosen = [records[i] for i in rows.tolist()]

    def add_embeddings(batch: Batch, records: Sequence[Record] = chosen) -> Batch:
      return embeddings.add_to_batch(batch, records)

    scored = scoring.score_records(
      scorer, model, chosen, run.cache, batch_size, run.mesh, specs, add_embeddings
    )
    _, scores[rows], peaks[rows] = scoring.collect_calibration_scores(scored)
    del model, scored  # They may take gigabytes.
  paths = ['' if old else str(r.path) for r, old in zip(records, is_old, strict=True)]
  return calibration.CalibrationScores(tuple(paths), scores, peaks)


def _held_out_models(
  run: OnePassRun, extractor: PyTree, embeddings: EmbeddingStore, batch_size: int
) -> Iterator[HeldOutModel]:
  """Yield models that together score all images of `run.image_table.scored_rows`."""
  images, functions = run.image_table, run.leave_one_out
  groups = images.groups[images.scored_rows]
  folds = images.image_ids[images.scored_rows] % functions.num_folds
  # With a single fold, the closed form leaves out each image, but not its near-duplicates.
  is_grouped = (np.bincount(images.groups)[groups] > 1) & (functions.num_folds == 1)
  score_held_out, specs = jax.jit(functions.score), run.detector.sharding_specs
  for fold in np.unique(folds[~is_grouped]).tolist():
    model, rows = _leave_fold_out(run, fold), np.flatnonzero(~is_grouped & (folds == fold))
    yield HeldOutModel(rows, score_held_out, model, specs and specs.held_out_model)
    del model
  score_image = scoring.image_scorer(run.detector)
  grouped_rows = np.flatnonzero(is_grouped)
  for rows in np.array_split(grouped_rows, min(_MAX_REMOVALS, len(grouped_rows)) or 1):
    if len(rows):
      removed = images.records_at(np.flatnonzero(np.isin(images.groups, groups[rows])))
      model = _remove(run, embed(run, extractor, embeddings, removed, batch_size))
      yield HeldOutModel(rows, score_image, model, specs and specs.fitted)
      del model


def _leave_fold_out(run: OnePassRun, fold: int) -> PyTree:
  # The arrays, which may take gigabytes, must not outlive this function.
  arrays = incremental_state.load_state_arrays(run.state_dir, memory_map=True)
  model = run.leave_one_out.leave_fold_out(run.variables, arrays, fold)
  if specs := run.detector.sharding_specs:
    model = meshes.put_on_mesh(run.mesh, specs.pad_to_shards(model), specs.held_out_model)
  return model


def _remove(run: OnePassRun, embeddings: Iterator[HostEmbeddings]) -> PyTree:
  """Return a Fitted that has not learned from the images with these embeddings, on the mesh.

  It is put on the mesh only if it is sharded.
  """
  assert run.leave_one_out.remove is not None  # Every detector with a single fold has it.
  arrays = incremental_state.load_state_arrays(run.state_dir, memory_map=True)
  model = run.leave_one_out.remove(run.variables, arrays, embeddings)
  if specs := run.detector.sharding_specs:
    model = meshes.put_on_mesh(run.mesh, specs.pad_to_shards(model), specs.fitted)
  return model


def embed(
  run: OnePassRun,
  extractor: PyTree,
  embeddings: EmbeddingStore,
  records: Sequence[Record],
  batch_size: int,
) -> Iterator[HostEmbeddings]:
  """Yield the embeddings of images in order, in batches; compute those that are not stored."""
  batch_size += -batch_size % run.mesh.size
  for start in range(0, len(records), batch_size):
    chunk = records[start : start + batch_size]
    stored = embeddings.get(chunk)
    yield _compute(run, extractor, chunk, batch_size) if stored is None else stored


def _compute(
  run: OnePassRun, extractor: PyTree, records: Sequence[Record], batch_size: int
) -> HostEmbeddings:
  """Compute the embeddings of at most `batch_size` images.

  `batch_size` is a multiple of the number of devices.
  """
  process = processes.index_and_count()
  (batch,) = batch_streams.eval_batches(records, run.cache, batch_size, process)
  features = jax.jit(run.leave_one_out.embed)(extractor, meshes.shard_batch(run.mesh, batch))
  return meshes.to_host(run.mesh, features)[: len(records)]
