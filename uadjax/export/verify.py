"""Whether an exported graph says what the model says."""

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

TOLERANCE = 1e-4  # Of an image's score, and of its map's largest value.
_IMAGES = 24
_AT_ONCE = 4


class Pictures(NamedTuple):
  """What is compared on.

  Attributes:
    taken: as the graph takes them.
    seen: the same at network size.
    source: what they are.
  """

  taken: UInt8[np.ndarray, 'n H W 3']
  seen: UInt8[np.ndarray, 'n h w 3']
  source: str


class Agreement(NamedTuple):
  """How far a graph's results are from the model's.

  Attributes:
    images: compared.
    source: what they are.
    score: the largest difference of an image's score, relative to it.
    map: the largest difference of a map's value, relative to the largest of its map.
    flips: images that are labelled otherwise.
    worst: number of the image that differs most.
  """

  images: int
  source: str
  score: float
  map: float
  flips: int
  worst: int = 0

  @property
  def holds(self) -> bool:
    """Whether they are the same, within the tolerance; no NaN is."""
    return self.score <= TOLERANCE and self.map <= TOLERANCE and not self.flips

  def told(self) -> dict[str, Any]:
    """The same, as JSON can hold it."""
    told = {**self._asdict(), 'tolerance': TOLERANCE}
    del told['worst']
    return told

  def __str__(self) -> str:
    labels = f'{self.flips} labels are others' if self.flips else 'no label is another'
    return (
      f'on {self.images} {self.source} scores differ by {self.score:.1g} at most, maps by '
      f'{self.map:.1g}, and {labels}'
    )


def pictures(
  model: model_dir.Model, camera: tuple[int, int] | None, folder: Path | None
) -> Pictures:
  """Choose what to compare on: images of a folder; else those that the thresholds stand on.

  Where these are gone, as on another machine, pictures are drawn.

  Args:
    model: of which.
    camera: height and width of the camera's images; None for network size.
    folder: with images.

  Raises:
    DataError: there is no image in the folder.
  """
  if folder:
    sources = itertools.islice(inputs.expand(folder), _IMAGES)
    originals, source = [inputs.read(one) for one in sources], f'images of {folder}'
    if not originals:
      raise DataError(f'There is no image in {folder} to compare on.')
  elif paths := _near_thresholds(model):
    originals, source = [image_io.decode(path) for path in paths], 'good images'
  else:
    drawn = sorted((demo.cached_dataset() / demo.DEFAULT_CATEGORY / 'train' / 'good').iterdir())
    originals = [image_io.decode(path) for path in drawn[:_IMAGES]]
    source = 'drawn pictures (calibration.csv names no image that is here)'
  pairs = [graphs.pixels(model.ops, image, camera) for image in originals]
  taken, seen = (np.stack(images) for images in zip(*pairs, strict=True))
  return Pictures(taken, seen, source)


def compare(
  model: model_dir.Model, run: runtimes.Run, batch: int | None, on: Pictures
) -> Agreement:
  """Run the graph and the model on the same pictures.

  Args:
    model: what is right.
    run: the graph.
    batch: images it takes at once; None for any number, of which several are then tried.
    on: the pictures.
  """

  def known(score: Callable[[Any], Scores]) -> Scores:
    scores = _in_batches(lambda x: jax.device_get(score(x)), on.seen, _AT_ONCE)
    if on.taken.shape == on.seen.shape:
      return scores
    maps = [model.ops.restore(map, *on.taken.shape[1:3]).anomaly_map for map in scores.map]
    return scores._replace(map=np.stack(maps))

  want = known(lambda x: model.score(model.fitted, x))
  _, detector = model_dir.build_detector(
    model.config, RunContext(model.ops.height, model.ops.width)
  )
  low = high = want
  around = detector.score_bounds
  if around is not None:
    both = jax.jit(lambda fitted, x: around(fitted, x, TOLERANCE))
    low, high = (known(lambda x, side=side: both(model.fitted, x)[side]) for side in (0, 1))
  got = _in_batches(run, on.taken, batch)
  labels = (
    [calibration.label(float(x), model.thresholds) for x in one.image] for one in (want, got)
  )
  scores = _outside(got.image, low.image, high.image)
  maps = _outside(got.map, low.map, high.map)
  return Agreement(
    len(on.taken),
    on.source,
    float(scores.max()),
    float(maps.max()),
    sum(a != b for a, b in zip(*labels, strict=True)),
    int(np.maximum(scores, maps).argmax()),
  )


def _near_thresholds(model: model_dir.Model) -> Sequence[str]:
  """Half of them those whose labels flip first, the others spread over all."""
  normals = model_dir.load_calibration_scores(model.directory)
  if normals is None:
    return []
  there = [i for i, path in enumerate(normals.paths) if path and Path(path).is_file()]
  limits = np.array([model.thresholds.image_threshold, model.thresholds.review_threshold])
  distance = np.abs(normals.scores[:, None] - limits).min(axis=1)
  nearest = sorted(there, key=lambda i: distance[i])
  chosen = dict.fromkeys([*nearest[: _IMAGES // 2], *quantization_check.spread(there, _IMAGES)])
  return [normals.paths[i] for i in [*chosen][:_IMAGES]]


def _in_batches(run: runtimes.Run, images: np.ndarray, batch: int | None) -> Scores:
  """Score all; where any number will do, one alone first, then several at once."""
  starts = [0, *range(1, len(images), _AT_ONCE)] if batch is None else range(0, len(images), batch)
  found = []
  for start, end in zip(starts, [*starts[1:], len(images)], strict=True):
    part = images[start:end]
    rows = batch or len(part)
    padded = np.concatenate([part, np.zeros((rows - len(part), *part.shape[1:]), np.uint8)])
    found.append(Scores(*(np.asarray(x)[: len(part)] for x in run(padded))))
  return Scores(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def _outside(got: Any, low: Any, high: Any) -> Float[np.ndarray, ' n']:
  """How far each image's [n ...] values are outside, relative to its largest; NaN if one is."""
  got, low, high = (np.asarray(x).reshape(len(x), -1) for x in (got, low, high))
  scale = np.maximum(np.abs(high).max(axis=1), np.finfo(np.float32).tiny)
  return np.maximum(np.maximum(low - got, got - high), 0).max(axis=1) / scale
