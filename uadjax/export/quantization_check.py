"""Whether a graph that rounds is as good as its original: judged by what it is for.

Good images that the thresholds stand on must keep their labels, and on the test images of the data
set defects must be told from good ones as before.

Letters: r graphs, n images, h w image.
"""

from collections.abc import Callable, Iterator, Sequence
import math
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Bool, Float, UInt8
import numpy as np

from uadjax import data
from uadjax.data import image_io, layouts, records
from uadjax.data.records import Record
from uadjax.errors import ConfigError, DataError, Setting
from uadjax.export import graph as graphs, runtimes
from uadjax.model import calibration, model_dir
from uadjax.numerics import metrics

# An image AUROC that falls by a point has lost more than methods differ by on easy products.
AUROC_FALL = 0.01
# A score as near to its threshold as rounding moves it is on neither side: of a hundred images two
# may lie there. Of few images one always may.
LABEL_SHARE = 0.02

_JUDGED = 200  # Images of each kind at most, spread over all.
_AT_ONCE = 4


class Kept(NamedTuple):
  """What a quantized graph kept on some images.

  Attributes:
    images: compared.
    label_changes: images that are labelled otherwise.
    score_change: the largest change of an image's score, relative to it.
    auroc: of the float graph; None where a class is missing.
    auroc_quantized: of the quantized one.
  """

  images: int
  label_changes: int
  score_change: float
  auroc: float | None = None
  auroc_quantized: float | None = None

  @property
  def holds(self) -> bool:
    """Whether it is as good, within the tolerance; no NaN is."""
    allowed = max(1, int(LABEL_SHARE * self.images))
    fall = (self.auroc or 0.0) - (self.auroc_quantized or 0.0)
    return self.label_changes <= allowed and fall <= AUROC_FALL and math.isfinite(self.score_change)

  def __str__(self) -> str:
    told = (
      f'{self.label_changes} of {self.images} labels change, scores by {self.score_change:.2g} at '
      'most'
    )
    if self.auroc is None:
      return told
    return f'{told}, image AUROC {self.auroc:.4f} becomes {self.auroc_quantized:.4f}'


class Pictures(NamedTuple):
  """What is measured and judged on.

  Attributes:
    good: good images.
    test: test images, of both classes where there are such.
    taken: reads a file as the graph takes it.
  """

  good: Sequence[Path]
  test: Sequence[Record]
  taken: Callable[[Path], UInt8[np.ndarray, 'h w 3']]


def pictures(
  model: model_dir.Model, camera: tuple[int, int] | None, folder: Path | None
) -> Pictures:
  """Choose what to judge on.

  Good images are those that the thresholds stand on. Test images are those of the data set that the
  model was fitted on, where it is still there.

  Args:
    model: of which.
    camera: height and width of the camera's images; None for network size.
    folder: a data set, or a folder of good images, instead.

  Raises:
    DataError: the folder is none.
    ConfigError: no image is here.
  """
  splits = _splits(model, folder)
  normals = model_dir.load_calibration_scores(model.directory)
  named = [Path(path) for path in normals.paths if path] if normals else []
  good = [path for path in named if path.is_file()]
  if folder and (not good or not splits.test):
    good = [record.path for record in splits.train if not record.is_anomalous] or good
  if not good:
    raise ConfigError(
      'export.quantize needs good images to measure and judge on, and none that calibration.csv of '
      f'{model.directory} names is here.',
      key='export.images',
      hint=('Name a folder of some, or the data set, with ', Setting('export.images', 'DIR'), '.'),
    )

  def taken(path: Path) -> UInt8[np.ndarray, 'h w 3']:
    return graphs.pixels(model.ops, image_io.decode(path), camera)[0]

  return Pictures(spread(good, _JUDGED), spread(splits.test, _JUDGED), taken)


def compare(
  runs: Sequence[runtimes.Run],
  records: Sequence[Record],
  on: Pictures,
  limits: calibration.Thresholds,
  batch: int | None,
) -> Kept:
  """Compare the labels and the ranking of two graphs."""
  paths = [record.path for record in records]
  found = []
  for images, count in chunks(paths, on.taken, batch or _AT_ONCE, batch):
    found.append([np.asarray(run(images).image)[:count] for run in runs])
  before, after = np.concatenate(found, axis=1).astype(np.float64)
  labels = ([calibration.label(float(x), limits) for x in scores] for scores in (before, after))
  scale = np.maximum(np.abs(before), np.finfo(np.float32).tiny)
  anomalous = np.array([record.is_anomalous for record in records])
  return Kept(
    len(records),
    sum(a != b for a, b in zip(*labels, strict=True)),
    float((np.abs(after - before) / scale).max()),
    _auroc(before, anomalous),
    _auroc(after, anomalous),
  )


def chunks(
  paths: Sequence[Path],
  taken: Callable[[Path], UInt8[np.ndarray, 'h w 3']],
  rows: int,
  batch: int | None,
) -> Iterator[tuple[UInt8[np.ndarray, 'r h w 3'], int]]:
  """Images as a graph takes them, and how many; a fixed batch is filled up with the same again."""
  for start in range(0, len(paths), rows):
    images = np.stack([taken(path) for path in paths[start : start + rows]])
    count = len(images)
    yield (np.resize(images, (batch, *images.shape[1:])) if batch else images), count


def spread(items: Sequence[Any], count: int) -> list[Any]:
  """At most so many, evenly spread over all."""
  places = np.linspace(0, len(items) - 1, min(count, len(items)))
  return [items[place] for place in places.astype(int)]


def _splits(model: model_dir.Model, folder: Path | None) -> records.Splits:
  """The data set of a folder; else that of the model, empty where it is not there any more."""
  own = model.config.data
  if folder:
    return _listed(folder, '', 'auto', own.mask_threshold)
  try:
    if not own.root:
      return data.load(own)
    return _listed(own.root, own.category, own.layout, own.mask_threshold)
  except DataError:
    return records.Splits((), ())


def _listed(root: str | Path, category: str, layout: str, threshold: int) -> records.Splits:
  """The images of a data set; that there is nothing to learn from does not matter."""
  listing = layouts.scan(root, category, layout)
  return (
    layouts.load(root, category, layout, threshold) if listing.labels_by_mask else listing.splits
  )


def _auroc(scores: Float[np.ndarray, ' n'], anomalous: Bool[np.ndarray, ' n']) -> float | None:
  if anomalous.all() or not anomalous.any():
    return None
  if np.isnan(scores).any():
    return 0.0  # Nothing is told from anything.
  return metrics.auroc(metrics.rank(scores[anomalous], [scores[~anomalous]]))
