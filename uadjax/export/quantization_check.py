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
MAX_AUROC_DROP = 0.01
# A score as near to its threshold as rounding moves it is on neither side: of a hundred images two
# may lie there. Of few images one always may.
MAX_LABEL_CHANGE_SHARE = 0.02

_MAX_IMAGES = 200  # Images of each kind at most, spread over all.
_BATCH_SIZE = 4


class QuantizationAgreement(NamedTuple):
  """What a quantized graph kept on some images.

  Attributes:
    images: compared.
    label_changes: images that are labeled otherwise.
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
  def is_within_tolerance(self) -> bool:
    """Whether it is as good, within the tolerance; no NaN is."""
    max_label_changes = max(1, int(MAX_LABEL_CHANGE_SHARE * self.images))
    auroc_drop = (self.auroc or 0.0) - (self.auroc_quantized or 0.0)
    return (
      self.label_changes <= max_label_changes
      and auroc_drop <= MAX_AUROC_DROP
      and math.isfinite(self.score_change)
    )

  def __str__(self) -> str:
    text = (
      f'{self.label_changes} of {self.images} labels change, scores by {self.score_change:.2g} at '
      'most'
    )
    if self.auroc is None:
      return text
    return f'{text}, image AUROC {self.auroc:.4f} becomes {self.auroc_quantized:.4f}'


class EvaluationImages(NamedTuple):
  """What is measured and judged on.

  Attributes:
    good: good images.
    test: test images, of both classes where there are such.
    taken: reads a file as the graph takes it.
  """

  good: Sequence[Path]
  test: Sequence[Record]
  read_input: Callable[[Path], UInt8[np.ndarray, 'h w 3']]


def select_images(
  model: model_dir.Model, camera_size: tuple[int, int] | None, folder: Path | None
) -> EvaluationImages:
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
  splits = _load_splits(model, folder)
  calibration_scores = model_dir.load_calibration_scores(model.directory)
  calibration_paths = (
    [Path(path) for path in calibration_scores.paths if path] if calibration_scores else []
  )
  good_paths = [path for path in calibration_paths if path.is_file()]
  if folder and (not good_paths or not splits.test):
    good_paths = [record.path for record in splits.train if not record.is_anomalous] or good_paths
  if not good_paths:
    raise ConfigError(
      'export.quantize needs good images to measure and judge on, and none that calibration.csv of '
      f'{model.directory} names is here.',
      key='export.images',
      hint=('Name a folder of some, or the data set, with ', Setting('export.images', 'DIR'), '.'),
    )

  def read_input(path: Path) -> UInt8[np.ndarray, 'h w 3']:
    return graphs.prepare_inputs(model.ops, image_io.decode(path), camera_size)[0]

  return EvaluationImages(
    sample_evenly(good_paths, _MAX_IMAGES), sample_evenly(splits.test, _MAX_IMAGES), read_input
  )


def compare(
  runs: Sequence[runtimes.RunFunction],
  records: Sequence[Record],
  evaluation_images: EvaluationImages,
  thresholds: calibration.Thresholds,
  batch: int | None,
) -> QuantizationAgreement:
  """Compare the labels and the ranking of two graphs."""
  paths = [record.path for record in records]
  batch_scores = []
  for images, num_images in read_batches(
    paths, evaluation_images.read_input, batch or _BATCH_SIZE, batch
  ):
    batch_scores.append([np.asarray(run(images).image)[:num_images] for run in runs])
  float_scores, quantized_scores = np.concatenate(batch_scores, axis=1).astype(np.float64)
  labels = (
    [calibration.label(float(x), thresholds) for x in scores]
    for scores in (float_scores, quantized_scores)
  )
  scale = np.maximum(np.abs(float_scores), np.finfo(np.float32).tiny)
  is_anomalous = np.array([record.is_anomalous for record in records])
  return QuantizationAgreement(
    len(records),
    sum(a != b for a, b in zip(*labels, strict=True)),
    float((np.abs(quantized_scores - float_scores) / scale).max()),
    _auroc(float_scores, is_anomalous),
    _auroc(quantized_scores, is_anomalous),
  )


def read_batches(
  paths: Sequence[Path],
  read_input: Callable[[Path], UInt8[np.ndarray, 'h w 3']],
  chunk_size: int,
  batch: int | None,
) -> Iterator[tuple[UInt8[np.ndarray, 'r h w 3'], int]]:
  """Images as a graph takes them, and how many; a fixed batch is filled up with the same again."""
  for start in range(0, len(paths), chunk_size):
    images = np.stack([read_input(path) for path in paths[start : start + chunk_size]])
    num_images = len(images)
    yield (np.resize(images, (batch, *images.shape[1:])) if batch else images), num_images


def sample_evenly(items: Sequence[Any], count: int) -> list[Any]:
  """At most so many, evenly spread over all."""
  indices = np.linspace(0, len(items) - 1, min(count, len(items)))
  return [items[index] for index in indices.astype(int)]


def _load_splits(model: model_dir.Model, folder: Path | None) -> records.Splits:
  """The data set of a folder; else that of the model, empty where it is not there any more."""
  data_config = model.config.data
  if folder:
    return _read_dataset(folder, '', 'auto', data_config.mask_threshold)
  try:
    if not data_config.root:
      return data.load(data_config)
    return _read_dataset(
      data_config.root, data_config.category, data_config.layout, data_config.mask_threshold
    )
  except DataError:
    return records.Splits((), ())


def _read_dataset(
  root: str | Path, category: str, layout: str, mask_threshold: int
) -> records.Splits:
  """The images of a data set; that there is nothing to learn from does not matter."""
  listing = layouts.scan(root, category, layout)
  return (
    layouts.load(root, category, layout, mask_threshold)
    if listing.labels_by_mask
    else listing.splits
  )


def _auroc(scores: Float[np.ndarray, ' n'], is_anomalous: Bool[np.ndarray, ' n']) -> float | None:
  if is_anomalous.all() or not is_anomalous.any():
    return None
  if np.isnan(scores).any():
    return 0.0  # Nothing is told from anything.
  return metrics.auroc(metrics.rank(scores[is_anomalous], [scores[~is_anomalous]]))
