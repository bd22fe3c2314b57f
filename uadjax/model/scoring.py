"""Scores of records for calibration: in order, on any mesh, with one compilation."""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
from jaxtyping import Float
import numpy as np

from uadjax.data import batches as batch_streams
from uadjax.data.image_cache import ImageCache
from uadjax.data.records import Record
from uadjax.detectors.base import Detector
from uadjax.distributed import mesh as meshes, processes
from uadjax.model import calibration
from uadjax.model.scorer import join_tiles, Prediction
from uadjax.types import Batch, Scores

OnDevice = TypeVar('OnDevice')


class ScoredRecord(NamedTuple):
  """Record with its raw scores; the anomaly map has the size of the scaled image."""

  record: Record
  anomaly_map: Float[np.ndarray, 'h w']
  score: float


def collect_calibration_scores(records: Iterable[ScoredRecord]) -> calibration.CalibrationScores:
  """Return the scores and peaks of all records, which calibration needs, without their maps."""
  rows = [(str(r.record.path), r.score, float(r.anomaly_map.max())) for r in records]
  paths, scores, peaks = zip(*rows, strict=True) if rows else ((), (), ())
  scores, peaks = np.array(scores, np.float64), np.array(peaks, np.float64)
  return calibration.CalibrationScores(paths, scores, peaks)


def image_scorer(detector: Detector) -> Callable[[Any, Batch], Scores]:
  """Return the detector's jitted scoring function, (fitted, batch) -> scores."""
  scorer = jax.jit(detector.score)
  return lambda fitted, batch: scorer(fitted, batch.image)


def score_records(
  scorer: Callable[[Any, Batch], Scores],
  fitted: Any,
  records: Sequence[Record],
  cache: ImageCache,
  batch_size: int,
  mesh: meshes.Mesh,
  rule: str,
  specs: Any = None,
  prepare: Callable[[Batch], Batch] = lambda batch: batch,
) -> Iterator[ScoredRecord]:
  """Score images in order, and join the maps of their tiles.

  Batches are filled across images, and the last one is padded, so that there is one compilation.
  While a batch is being used, the next one is being computed.

  Args:
    scorer: (fitted, batch) -> scores.
    fitted: fitted arrays, padded to equal shards if they are sharded.
    records: the images.
    cache: reads the images, or has them in memory.
    batch_size: number of tiles per batch; rounded up to a multiple of the devices.
    mesh: devices to compute on.
    rule: rule of the image score, for images of several tiles; see `image_score.parse`.
    specs: `PartitionSpec`s of leaves or whole subtrees of `fitted`; None if nothing is sharded.
    prepare: function that is applied to each batch before it is copied to the devices, for example
      to add features. `Batch.index` is the position of the tile in `cache.list_tiles`.
  """
  batch_size += -batch_size % mesh.size
  if specs is None:
    fitted = meshes.replicate(mesh, fitted)
  else:
    fitted = meshes.put_on_mesh(mesh, fitted, specs)
  batches = batch_streams.eval_batches(records, cache, batch_size, processes.index_and_count())
  batches = map(prepare, batches)
  pending = prefetch_to_device(batches, lambda x: scorer(fitted, meshes.shard_batch(mesh, x)))
  predictions = (
    Prediction(float(image_score), anomaly_map)
    for scores in pending
    for anomaly_map, image_score in zip(*meshes.to_host(mesh, scores), strict=True)
  )
  for record in records:
    grid, inspected = cache.tile_grid(record.path), cache.inspected_pixels(record.path)
    score, anomaly_map = join_tiles(grid, predictions, rule, inspected)
    yield ScoredRecord(record, anomaly_map, score)


def prefetch_to_device(
  batches: Iterable[Batch], to_device: Callable[[Batch], OnDevice]
) -> Iterator[OnDevice]:
  """Yield `to_device` of each batch, called while the batch before is still in use.

  JAX computes asynchronously, so the devices work on a batch while the caller uses the last one.
  """
  queue = collections.deque()
  for batch in batches:
    queue.append(to_device(batch))
    if len(queue) > 1:
      yield queue.popleft()
  yield from queue
