"""Scoring of tiles in batches padded to sizes that are compiled already, and joining their maps.

`predict`, evaluation, the service and the checks of exported graphs all score with a `Scorer`. An
image that is not tiled counts as one tile.

Letters: b batch, h w network image, n images.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import itertools
import threading
from typing import NamedTuple

import jax
from jax.sharding import PartitionSpec as P
from jaxtyping import Bool, Float, UInt8
import numpy as np

from uadjax.data.tiles import TileGrid
from uadjax.detectors import image_score
from uadjax.distributed import mesh as meshes
from uadjax.model.model_dir import Model
from uadjax.system import threads
from uadjax.types import PyTree, Scores

RunFunction = Callable[[UInt8[np.ndarray, 'b h w 3']], Scores]
ScoreFunction = Callable[[PyTree, UInt8[jax.Array, 'b h w 3']], Scores]
Image = UInt8[np.ndarray, 'h w 3']


class Prediction(NamedTuple):
  """Anomaly score and anomaly map of one image."""

  score: float
  anomaly_map: Float[np.ndarray, 'h w']


def join_tiles(
  grid: TileGrid,
  predictions: Iterable[Prediction],
  rule: str,
  inspected: Bool[np.ndarray, 'h w'] | None = None,
) -> Prediction:
  """Join the predictions of the tiles of an image.

  Args:
    grid: the tiles.
    predictions: prediction of each tile; as many are taken as the image has.
    rule: rule of the image score, see `image_score.parse`. It is applied to the joined map; the
      score of a single tile is the image's.
    inspected: True for the pixels of the image that are inspected; None for all.
  """
  predictions = itertools.islice(predictions, grid.num_tiles)
  if grid.num_tiles == 1:
    (prediction,) = predictions
    return prediction
  anomaly_map = grid.join(prediction.anomaly_map for prediction in predictions)
  return Prediction(image_score.of_map(anomaly_map, rule, inspected), anomaly_map)


class Scorer(NamedTuple):
  """Functions that score batches of tiles.

  A score depends on the size of the batch by rounding, but not on the other images in it.

  Attributes:
    runs: functions that score a batch, one per device or group of devices; any thread may call
      them.
    concurrency: number of batches to score at the same time.
    batch_sizes: allowed batch sizes, ascending; a batch is padded to the next one.
    multiple: number that every batch size must be a multiple of.
  """

  runs: Sequence[RunFunction]
  concurrency: int = 1
  batch_sizes: tuple[int, ...] = (1,)
  multiple: int = 1

  def with_batch_size(self, batch_size: int) -> 'Scorer':
    """Return the scorer for batches of one size, rounded up to what the devices can share."""
    return self._replace(batch_sizes=(batch_size + -batch_size % self.multiple,))

  def score(self, images: Sequence[Image], batch_index: int = 0) -> list[Prediction]:
    """Score images in one batch of the smallest size that holds them.

    Args:
      images: images at network size, at most as many as the largest batch size.
      batch_index: number of the batch; batches with successive numbers are scored by different
        devices.
    """
    if not images:
      return []
    batch_size = next(size for size in self.batch_sizes if size >= len(images))
    batch = np.zeros((batch_size, *images[0].shape), np.uint8)
    batch[: len(images)] = images
    scores = self.runs[batch_index % len(self.runs)](batch)
    maps, image_scores = np.asarray(scores.map), np.asarray(scores.image)
    # Without the copy, a single prediction would keep the maps of its whole batch in memory.
    return [Prediction(float(image_scores[i]), maps[i].copy()) for i in range(len(images))]

  def score_lazily(self, tiles: Iterable[Image]) -> Iterator[Prediction]:
    """Score any number of tiles in order, in batches of the largest size."""
    remaining = iter(tiles)
    while batch := list(itertools.islice(remaining, self.batch_sizes[-1])):
      yield from self.score(batch)

  def score_all(self, images: UInt8[np.ndarray, 'n h w 3']) -> Scores:
    """Score any number of images in order; the first batch has the smallest size."""
    bounds = [0, *range(self.batch_sizes[0], len(images), self.batch_sizes[-1]), len(images)]
    predictions = [p for i, j in itertools.pairwise(bounds) for p in self.score(list(images[i:j]))]
    return Scores(
      np.stack([p.anomaly_map for p in predictions]),
      np.array([p.score for p in predictions], np.float32),
    )


def on_devices(model: Model, devices: Sequence[meshes.Device]) -> Scorer:
  """Return a scorer that puts a model on devices, each of which scores batches of its own."""

  def run_on(device: meshes.Device) -> RunFunction:
    fitted = meshes.replicate(meshes.mesh_of([device]), model.fitted)
    return lambda images: jax.device_get(model.score(fitted, jax.device_put(images, device)))

  # On a CPU it is one batch per core, since XLA leaves most of a second core idle for one batch
  # (experiments/README.md). Otherwise it is two per device, so that one batch is transferred while
  # the other is computed.
  is_cpu = devices[0].platform == 'cpu'
  concurrency = max(len(devices), threads.num_cores()) if is_cpu else 2 * len(devices)
  return Scorer([run_on(device) for device in devices], concurrency)


def on_mesh(model: Model, mesh: meshes.Mesh) -> Scorer:
  """Return a scorer whose batches all devices of a mesh share.

  A model that is not sharded is replicated on each device.
  """
  if model.fitted_specs is None:
    fitted = meshes.replicate(mesh, model.fitted)
  else:
    fitted = meshes.put_on_mesh(mesh, model.fitted, model.fitted_specs)
  processes = sorted({device.process_index for device in mesh.devices.flat})

  # Devices that communicate must all start the batches in the same order.
  start_lock = threading.Lock() if mesh.size > 1 else contextlib.nullcontext()

  def run(images: UInt8[np.ndarray, 'b h w 3']) -> Scores:
    own_rows = np.split(images, len(processes))[processes.index(jax.process_index())]
    with start_lock:
      scores = model.score(fitted, meshes.shard_batch(mesh, own_rows))
    return meshes.to_host(mesh, scores)

  is_cpu = mesh.devices.flat[0].platform == 'cpu'
  concurrency = max(2, threads.num_cores() // mesh.size) if is_cpu else 2
  return Scorer([run], 1 if len(processes) > 1 else concurrency, multiple=mesh.size)


def compile_for_mesh(
  score: ScoreFunction,
  fitted: PyTree,
  mesh: meshes.Mesh,
  batch_size: int,
  image_size: tuple[int, int],
) -> ScoreFunction:
  """Compile the program that `on_mesh` runs for batches of one size, without running it.

  Args:
    score: (fitted, images) -> scores.
    fitted: fitted arrays that are not sharded, of which only the shapes matter.
    mesh: devices that share the batches, all of this process.
    batch_size: number of images per batch; rounded up as by `Scorer.with_batch_size`.
    image_size: height and width of the images.
  """
  shape = batch_size + -batch_size % mesh.size, *image_size, 3
  images = meshes.abstract(mesh, jax.ShapeDtypeStruct(shape, np.uint8), P('data'))
  return jax.jit(score).lower(meshes.abstract(mesh, fitted, P()), images).compile()
