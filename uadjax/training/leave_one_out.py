"""Leave-one-out scores for the calibration of a detector that learns in one pass.

Each image is scored by a model that has learned neither from it nor from its near-duplicates:

- With several folds (PatchCore, SubspaceAD), the model lacks the fold of the image.
- With a single fold (PaDiM), the image is left out in closed form. For an image with
  near-duplicates, several tiles or augmented copies, all of them are removed from the model.

Augmented copies are not scored. With a single image and its near-duplicates, none is scored,
because there is nothing else to learn from.
"""

from collections.abc import Callable, Iterator, Sequence
import math
from typing import NamedTuple

import jax
from jaxtyping import Int
import numpy as np

from uadjax.data import batches as batch_streams
from uadjax.data.records import Record
from uadjax.data.tiles import Tile
from uadjax.detectors.base import HostEmbeddings
from uadjax.distributed import mesh as meshes, processes
from uadjax.model import calibration, incremental_state, scoring
from uadjax.system import memory, progress
from uadjax.training.embedding_store import EmbeddingStore
from uadjax.training.one_pass import OnePassRun
from uadjax.types import Arrays, Batch, PyTree, Scores

# Maximum number of models that score near-duplicates. Each lacks a chunk of the groups, because a
# model per group would be slow: PaDiM computes new whitening matrices for each.
_MAX_REMOVALS = 10
_MIN_TILES_OF_CLOSED_FORM = 3  # Of fewer, those that are not left out have no covariance.


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
    batch_size: maximum number of images per batch.
  """
  table = run.image_table
  if len(np.unique(table.groups)) < 2:
    return scoring.collect_calibration_scores(())
  records, is_old = table.records_at(table.scored_rows), table.scored_rows < table.num_previous
  tile_counts = [run.cache.tile_grid(record.path).num_tiles for record in records]
  num_tiles = np.bincount(table.scored_folds, tile_counts, minlength=1)
  batch_size = _even_batch_size(int(num_tiles.max()), batch_size)
  scored_rows = _score_rows(run, extractor, embeddings, records, batch_size)
  # Only the scores of a single model take the time that those of the final model will take.
  scored_rows = progress.show_progress(
    scored_rows, len(records), 'Calibrating', run.leave_one_out.num_folds == 1
  )
  rows: list[int] = []

  def scored_records() -> Iterator[scoring.ScoredRecord]:
    for row, scored in scored_rows:
      rows.append(row)
      yield scored

  _, scores, peaks = scoring.collect_calibration_scores(scored_records())
  order = np.argsort(rows)
  paths = ['' if old else str(r.path) for r, old in zip(records, is_old, strict=True)]
  return calibration.CalibrationScores(tuple(paths), scores[order], peaks[order])


def _even_batch_size(num_tiles: int, max_size: int) -> int:
  """Return the size of as few equal batches as hold the tiles of a fold, with little padding."""
  num_batches = max(1, math.ceil(num_tiles / max_size))
  return max(1, math.ceil(num_tiles / num_batches))


def _score_rows(
  run: OnePassRun,
  extractor: PyTree,
  embeddings: EmbeddingStore,
  records: Sequence[Record],
  batch_size: int,
) -> Iterator[tuple[int, scoring.ScoredRecord]]:
  """Yield the position of each record and its scores, by models that have not learned from it."""
  for rows, scorer, model, specs in _held_out_models(run, extractor, embeddings, batch_size):
    chosen = [records[i] for i in rows.tolist()]
    tiles = run.cache.list_tiles(record.path for record in chosen)

    def add_embeddings(batch: Batch, tiles: Sequence[Tile] = tiles) -> Batch:
      return embeddings.add_to_batch(batch, tiles)

    rule = run.detector.image_score
    scored = scoring.score_records(
      scorer, model, chosen, run.cache, batch_size, run.mesh, rule, specs, add_embeddings
    )
    yield from zip(rows.tolist(), scored, strict=True)
    del model, scored  # They may take gigabytes.
    memory.release_free_memory()  # What follows needs arrays of other sizes.


def _held_out_models(
  run: OnePassRun, extractor: PyTree, embeddings: EmbeddingStore, batch_size: int
) -> Iterator[HeldOutModel]:
  """Yield models that together score all images of `run.image_table.scored_rows`."""
  images, functions = run.image_table, run.leave_one_out
  groups, folds = images.groups[images.scored_rows], images.scored_folds
  # With a single fold, the closed form leaves out a single tile, but not the others of its image,
  # nor those of its augmented copies and of its near-duplicates.
  num_tiles_by_group = np.bincount(images.groups, images.num_tiles)
  is_grouped = num_tiles_by_group[groups] > 1
  is_grouped |= images.num_tiles.sum() < _MIN_TILES_OF_CLOSED_FORM
  is_grouped &= functions.num_folds == 1
  score_held_out, specs = jax.jit(functions.score), run.detector.sharding_specs
  held_out_specs, fitted_specs = (specs.held_out_model, specs.fitted) if specs else (None, None)
  for fold in np.unique(folds[~is_grouped]).tolist():
    rows = np.flatnonzero(~is_grouped & (folds == fold))
    model = functions.leave_fold_out(run.variables, _load_arrays(run), fold)
    model = _place(run, model, held_out_specs)
    memory.release_free_memory()  # To make a model takes much more memory than the model.
    yield HeldOutModel(rows, score_held_out, model, held_out_specs)
    del model
  score_image = scoring.image_scorer(run.detector)
  grouped_rows = np.flatnonzero(is_grouped)
  for rows in np.array_split(grouped_rows, min(_MAX_REMOVALS, len(grouped_rows)) or 1):
    if len(rows):
      removed = images.records_at(np.flatnonzero(np.isin(images.groups, groups[rows])))
      removed_embeddings = embed(run, extractor, embeddings, removed, batch_size)
      assert functions.remove is not None  # Every detector with a single fold has it.
      model = functions.remove(run.variables, _load_arrays(run), removed_embeddings)
      model = _place(run, model, fitted_specs)
      yield HeldOutModel(rows, score_image, model, fitted_specs)
      del model


def _load_arrays(run: OnePassRun) -> Arrays:
  # They may take gigabytes, so no caller may hold them while a model scores.
  return incremental_state.load_state_arrays(run.state_dir, memory_map=True)


def _place(run: OnePassRun, model: PyTree, specs: PyTree) -> PyTree:
  """Return a model padded and on the mesh if it is sharded, else unchanged."""
  if sharding_specs := run.detector.sharding_specs:
    return meshes.put_on_mesh(run.mesh, sharding_specs.pad_to_shards(model), specs)
  return model


def embed(
  run: OnePassRun,
  extractor: PyTree,
  embeddings: EmbeddingStore,
  records: Sequence[Record],
  batch_size: int,
) -> Iterator[HostEmbeddings]:
  """Yield the embeddings of images and of their augmented copies, tile by tile in batches.

  Those that are not stored are computed.
  """
  batch_size += -batch_size % run.mesh.size
  for chunk in _chunk_records(run, records, batch_size):
    tiles = run.cache.list_tiles((record.path for record in chunk), with_copies=True)
    stored = embeddings.get(tiles)
    if stored is not None:
      yield stored
      continue
    process = processes.index_and_count()
    start = 0
    batches = batch_streams.eval_batches(chunk, run.cache, batch_size, process, with_copies=True)
    for batch in batches:
      features = jax.jit(run.leave_one_out.embed)(extractor, meshes.shard_batch(run.mesh, batch))
      yield meshes.to_host(run.mesh, features)[: len(tiles) - start]
      start += batch_size


def _chunk_records(
  run: OnePassRun, records: Sequence[Record], max_tiles: int
) -> Iterator[list[Record]]:
  """Group images so that each group has at most so many tiles, or a single image."""
  chunk, num_tiles = [], 0
  for record in records:
    added_tiles = run.cache.num_tiles_to_learn(record.path)
    if chunk and num_tiles + added_tiles > max_tiles:
      yield chunk
      chunk, num_tiles = [], 0
    chunk.append(record)
    num_tiles += added_tiles
  if chunk:
    yield chunk
