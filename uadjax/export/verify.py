"""Verification of exported graphs: their scores, maps and labels must match the model's."""

from collections.abc import Callable, Sequence
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import Float, UInt8
import numpy as np

from uadjax.data import demo, inputs
from uadjax.export import graph as graphs
from uadjax.model import calibration, model_dir
from uadjax.model.scorer import RunFunction, Scorer
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
    scores = f'scores differ by at most {self.score:.1g}, maps by {self.map:.1g}'
    return f'on {self.images} {self.source} {scores}, and {self.flips or "no"} labels differ'


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
  demo_folder = None
  if folder:
    origin, description = folder, f'images of {folder}'
  elif origin := _paths_near_thresholds(model):
    description = 'good images'
  else:
    origin = demo_folder = demo.cached_dataset() / demo.DEFAULT_CATEGORY / 'train' / 'good'
    description = 'synthetic images (no image of calibration.csv exists here)'
  sources = itertools.islice(inputs.expand(origin), _MAX_IMAGES)
  ops = graphs.input_ops(model.ops, camera_size)
  if origin == demo_folder:  # Its images may have another aspect ratio than the region of interest.
    ops = ops._replace(region=None)
  loaded = (inputs.load(source, ops, pixel_range=model.pixel_range) for source in sources)
  images = [image.require_pixels() for image in loaded]
  grids = [ops.tile_grid(image.shape[:2]) for image in images]
  # One tile of each image, from different places.
  windows = [grid.window(i % grid.num_tiles) for i, grid in enumerate(grids)]
  graph_inputs = np.stack([image[window] for image, window in zip(images, windows, strict=True)])
  network_inputs = (
    np.stack([model.ops.apply(image) for image in graph_inputs]) if camera_size else graph_inputs
  )
  return ComparisonImages(graph_inputs, network_inputs, description)


def compare(
  model: model_dir.Model, run: RunFunction, batch: int | None, images: ComparisonImages
) -> Agreement:
  """Compare the scores, maps and labels of a graph with those of its model.

  If the detector provides bounds of rounding errors (`score_bounds`), only the excess over these
  bounds counts as difference.

  Args:
    model: reference.
    run: function that runs the graph.
    batch: batch size of the graph; None for any size, in which case two sizes are tried.
    images: images to run both on.
  """
  graph_inputs, network_inputs, source = images
  ops = model.ops

  def reference_scores(score_fn: Callable[[Any], Scores]) -> Scores:
    scorer = Scorer([lambda x: jax.device_get(score_fn(x))], batch_sizes=(_BATCH_SIZE,))
    scores = scorer.score_all(network_inputs)
    if graph_inputs.shape == network_inputs.shape:
      return scores
    maps = [ops.restore(x, *graph_inputs.shape[1:3]).anomaly_map for x in scores.map]
    return scores._replace(map=np.stack(maps))

  expected = reference_scores(lambda x: model.score(model.fitted, x))
  _, detector = model_dir.build_detector(model.config, model_dir.scoring_context(ops))
  low = high = expected
  score_bounds = detector.score_bounds
  if score_bounds is not None:
    bounds_fn = jax.jit(lambda fitted, x: score_bounds(fitted, x, TOLERANCE))
    low, high = (reference_scores(lambda x, i=i: bounds_fn(model.fitted, x)[i]) for i in (0, 1))
  # Where the batch size is free, a single image and a batch are tried.
  batch_sizes = (1, _BATCH_SIZE) if batch is None else (batch,)
  actual = Scorer([run], batch_sizes=batch_sizes).score_all(graph_inputs)
  score_differences = relative_excess(actual.image, low.image, high.image)
  map_differences = relative_excess(actual.map, low.map, high.map)
  return Agreement(
    len(graph_inputs),
    source,
    float(score_differences.max()),
    float(map_differences.max()),
    count_label_changes(expected.image, actual.image, model.thresholds),
    int(np.maximum(score_differences, map_differences).argmax()),
  )


def _paths_near_thresholds(model: model_dir.Model) -> list[Path]:
  """Select calibration images: half have scores next to a threshold, half are evenly spaced.

  Scores near a threshold are the most likely to change their label.
  """
  scores = calibration_images(model)
  thresholds = np.array([model.thresholds.image_threshold, model.thresholds.review_threshold])
  nearest = sorted(scores, key=lambda path: np.abs(scores[path] - thresholds).min())
  evenly_spaced = sample_evenly([*scores], _MAX_IMAGES)
  return [*dict.fromkeys([*nearest[: _MAX_IMAGES // 2], *evenly_spaced])][:_MAX_IMAGES]


def calibration_images(model: model_dir.Model) -> dict[Path, float]:
  """Return the calibration images of a model that exist on this machine, with their scores."""
  scored = model_dir.load_calibration_scores(model.directory)
  if scored is None:
    return {}
  scores = zip(scored.paths, scored.scores.tolist(), strict=True)
  return {Path(path): score for path, score in scores if path and Path(path).is_file()}


def sample_evenly(items: Sequence[Any], count: int) -> list[Any]:
  """Return at most `count` items, evenly spaced from the first to the last."""
  indices = np.linspace(0, len(items) - 1, min(count, len(items)))
  return [items[index] for index in indices.astype(int)]


def count_label_changes(
  a: jax.Array | np.ndarray, b: jax.Array | np.ndarray, thresholds: calibration.Thresholds
) -> int:
  """Return the number of images for which the scores of two graphs have different labels."""
  labels = ([calibration.label(float(x), thresholds) for x in scores] for scores in (a, b))
  return sum(x != y for x, y in zip(*labels, strict=True))


def relative_excess(actual: Any, low: Any, high: Any) -> Float[np.ndarray, ' n']:
  """Return the largest excess per image of values [n ...] outside [low, high].

  The excess is relative to the largest absolute value of `high` for the image, and NaN if any value
  is NaN.
  """
  actual, low, high = (np.asarray(x).reshape(len(x), -1) for x in (actual, low, high))
  scale = np.maximum(np.abs(high).max(axis=1), np.finfo(np.float32).tiny)
  return np.maximum(np.maximum(low - actual, actual - high), 0).max(axis=1) / scale
