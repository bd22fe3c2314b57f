"""Verification of exported graphs: their scores, maps and labels must match the model's."""

from collections.abc import Callable, Sequence
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import Float, UInt8
import numpy as np

from uadjax.data import demo, image_io, inputs
from uadjax.detectors.base import RunContext
from uadjax.errors import DataError
from uadjax.export import graph as graphs, quantization_check, runtimes
from uadjax.model import calibration, model_dir
from uadjax.types import Scores

TOLERANCE = 1e-4  # Relative to an image's score, and to the largest value of its map.
_MAX_IMAGES = 24
_BATCH_SIZE = 4


class ComparisonImages(NamedTuple):
  """Images for comparing a graph with its model.

  Attributes:
    graph_inputs: images as input of the graph.
    network_inputs: the same images at network resolution.
    source: where the images come from, for messages.
  """

  graph_inputs: UInt8[np.ndarray, 'n H W 3']
  network_inputs: UInt8[np.ndarray, 'n h w 3']
  source: str


class Agreement(NamedTuple):
  """Differences between the results of a graph and of its model.

  Attributes:
    images: number of images compared.
    source: where the images come from.
    score: largest relative difference of an image score.
    map: largest difference of a map value, relative to the largest value of its map.
    flips: number of images whose label differs.
    worst_index: index of the image that differs most.
  """

  images: int
  source: str
  score: float
  map: float
  flips: int
  worst_index: int = 0

  @property
  def is_within_tolerance(self) -> bool:
    """Return whether scores and maps agree within TOLERANCE, without NaN, and labels are equal."""
    return self.score <= TOLERANCE and self.map <= TOLERANCE and not self.flips

  def to_dict(self) -> dict[str, Any]:
    """Return the differences and the tolerance as JSON-compatible values."""
    fields = {**self._asdict(), 'tolerance': TOLERANCE}
    del fields['worst_index']
    return fields

  def __str__(self) -> str:
    return (
      f'on {self.images} {self.source} scores differ by at most {self.score:.1g}, maps by '
      f'{self.map:.1g}, and {self.flips or "no"} labels differ'
    )


def select_images(
  model: model_dir.Model, camera_size: tuple[int, int] | None, folder: Path | None
) -> ComparisonImages:
  """Select images to compare on: those of a folder, or else the model's calibration images.

  If the calibration images are missing, for example on another machine, images of the synthetic
  demo dataset are used.

  Args:
    model: model to compare with.
    camera_size: height and width of the camera's images; None for network resolution.
    folder: folder of images; None for the calibration images.

  Raises:
    DataError: the folder contains no images.
  """
  if folder:
    sources = itertools.islice(inputs.expand(folder), _MAX_IMAGES)
    originals, source = [inputs.read(image_input) for image_input in sources], f'images of {folder}'
    if not originals:
      raise DataError(f'{folder} contains no images to compare the graph and the model on.')
  elif paths := _paths_near_thresholds(model):
    originals, source = [image_io.decode(path) for path in paths], 'good images'
  else:
    demo_paths = sorted(
      (demo.cached_dataset() / demo.DEFAULT_CATEGORY / 'train' / 'good').iterdir()
    )
    originals = [image_io.decode(path) for path in demo_paths[:_MAX_IMAGES]]
    source = 'synthetic images (no image of calibration.csv exists here)'
  pairs = [graphs.prepare_inputs(model.ops, image, camera_size) for image in originals]
  graph_inputs, network_inputs = (np.stack(images) for images in zip(*pairs, strict=True))
  return ComparisonImages(graph_inputs, network_inputs, source)


def compare(
  model: model_dir.Model,
  run: runtimes.RunFunction,
  batch: int | None,
  comparison_images: ComparisonImages,
) -> Agreement:
  """Compare the scores, maps and labels of a graph with those of its model.

  If the detector provides bounds of rounding errors (`score_bounds`), only the excess over these
  bounds counts as difference.

  Args:
    model: reference.
    run: function that runs the graph.
    batch: batch size of the graph; None for any size, in which case two sizes are tried.
    comparison_images: images to run both on.
  """

  def reference_scores(score_fn: Callable[[Any], Scores]) -> Scores:
    scores = _score_in_batches(
      lambda x: jax.device_get(score_fn(x)), comparison_images.network_inputs, _BATCH_SIZE
    )
    if comparison_images.graph_inputs.shape == comparison_images.network_inputs.shape:
      return scores
    maps = [
      model.ops.restore(anomaly_map, *comparison_images.graph_inputs.shape[1:3]).anomaly_map
      for anomaly_map in scores.map
    ]
    return scores._replace(map=np.stack(maps))

  expected = reference_scores(lambda x: model.score(model.fitted, x))
  _, detector = model_dir.build_detector(
    model.config, RunContext(model.ops.height, model.ops.width)
  )
  low = high = expected
  score_bounds = detector.score_bounds
  if score_bounds is not None:
    bounds_fn = jax.jit(lambda fitted, x: score_bounds(fitted, x, TOLERANCE))
    low, high = (
      reference_scores(lambda x, bound_index=bound_index: bounds_fn(model.fitted, x)[bound_index])
      for bound_index in (0, 1)
    )
  actual = _score_in_batches(run, comparison_images.graph_inputs, batch)
  labels = (
    [calibration.label(float(x), model.thresholds) for x in result.image]
    for result in (expected, actual)
  )
  score_differences = _relative_excess(actual.image, low.image, high.image)
  map_differences = _relative_excess(actual.map, low.map, high.map)
  return Agreement(
    len(comparison_images.graph_inputs),
    comparison_images.source,
    float(score_differences.max()),
    float(map_differences.max()),
    sum(a != b for a, b in zip(*labels, strict=True)),
    int(np.maximum(score_differences, map_differences).argmax()),
  )


def _paths_near_thresholds(model: model_dir.Model) -> Sequence[str]:
  """Select calibration images: half have scores next to a threshold, half are evenly spaced.

  Scores near a threshold are the most likely to change their label.
  """
  calibration_scores = model_dir.load_calibration_scores(model.directory)
  if calibration_scores is None:
    return []
  available_indices = [
    i for i, path in enumerate(calibration_scores.paths) if path and Path(path).is_file()
  ]
  thresholds = np.array([model.thresholds.image_threshold, model.thresholds.review_threshold])
  distances = np.abs(calibration_scores.scores[:, None] - thresholds).min(axis=1)
  nearest_indices = sorted(available_indices, key=lambda i: distances[i])
  selected_indices = dict.fromkeys(
    [
      *nearest_indices[: _MAX_IMAGES // 2],
      *quantization_check.sample_evenly(available_indices, _MAX_IMAGES),
    ]
  )
  return [calibration_scores.paths[i] for i in [*selected_indices][:_MAX_IMAGES]]


def _score_in_batches(run: runtimes.RunFunction, images: np.ndarray, batch: int | None) -> Scores:
  """Score all images; a graph without fixed batch size gets one image first, then batches."""
  starts = (
    [0, *range(1, len(images), _BATCH_SIZE)] if batch is None else range(0, len(images), batch)
  )
  batch_scores = []
  for start, end in zip(starts, [*starts[1:], len(images)], strict=True):
    chunk = images[start:end]
    batch_size = batch or len(chunk)
    padded_chunk = np.concatenate(
      [chunk, np.zeros((batch_size - len(chunk), *chunk.shape[1:]), np.uint8)]
    )
    batch_scores.append(Scores(*(np.asarray(x)[: len(chunk)] for x in run(padded_chunk))))
  return Scores(*(np.concatenate(arrays) for arrays in zip(*batch_scores, strict=True)))


def _relative_excess(actual: Any, low: Any, high: Any) -> Float[np.ndarray, ' n']:
  """Return the largest excess per image of values [n ...] outside [low, high].

  The excess is relative to the largest absolute value of `high` for the image, and NaN if any value
  is NaN.
  """
  actual, low, high = (np.asarray(x).reshape(len(x), -1) for x in (actual, low, high))
  scale = np.maximum(np.abs(high).max(axis=1), np.finfo(np.float32).tiny)
  return np.maximum(np.maximum(low - actual, actual - high), 0).max(axis=1) / scale
