"""Check of quantized graphs by labels and AUROC, since their scores cannot match to 1e-4.

The calibration images (good ones) must keep their labels, and the image AUROC on the dataset's test
images must not drop.

Letters: r graphs, n images, h w image.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import itertools
import math
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Bool, Float, UInt8
import numpy as np

from uadjax import data
from uadjax.data import inputs, layouts, transforms
from uadjax.data.pixel_range import PixelRange
from uadjax.data.records import Record, Splits
from uadjax.data.tiles import TileGrid
from uadjax.errors import ConfigError, Setting, UserError
from uadjax.export import graph as graphs, verify
from uadjax.model import calibration, model_dir, scorer as scorers
from uadjax.numerics import metrics

# On easy products, methods differ by less than one point of image AUROC.
MAX_AUROC_DROP = 0.01
# Rounding can move a score across a nearby threshold. So 2 % of the labels may change, and one
# label in a small set.
MAX_LABEL_CHANGE_SHARE = 0.02

_MAX_IMAGES = 200  # At most this many good images and test images, sampled evenly.
_BATCH_SIZE = 4


class QuantizationAgreement(NamedTuple):
  """Agreement of a quantized graph with the float graph on a set of images.

  Attributes:
    images: number of images compared.
    label_changes: number of images whose label differs.
    score_change: largest relative change of an image score.
    auroc: image AUROC of the float graph; None if a class is missing.
    auroc_quantized: image AUROC of the quantized graph; None if a class is missing.
  """

  images: int
  label_changes: int
  score_change: float
  auroc: float | None = None
  auroc_quantized: float | None = None

  @property
  def is_within_tolerance(self) -> bool:
    """Return whether labels and AUROC are within tolerance and all scores are finite."""
    has_labels = self.label_changes <= max(1, int(MAX_LABEL_CHANGE_SHARE * self.images))
    auroc_drop = (self.auroc or 0.0) - (self.auroc_quantized or 0.0)
    return has_labels and auroc_drop <= MAX_AUROC_DROP and math.isfinite(self.score_change)

  def __str__(self) -> str:
    labels = f'{self.label_changes} of {self.images} labels change'
    text = f'{labels}, scores change by at most {self.score_change:.2g}'
    if self.auroc is None:
      return text
    return f'{text}, image AUROC changes from {self.auroc:.4f} to {self.auroc_quantized:.4f}'


class _TiledImage(NamedTuple):
  """Tiles of an image, and which of its pixels are inspected; None for all."""

  grid: TileGrid
  tiles: list[scorers.Image]
  inspected: Bool[np.ndarray, 'h w'] | None


class EvaluationImages(NamedTuple):
  """Images for quantizing a graph and for comparing it with the float graph.

  Attributes:
    good: good images.
    test: test images, good and defective.
    ops: operations from an image to the input of the graph.
    pixel_range: values of black and white in images of more than 8 bits.
    rule: rule of the image score, for images of several tiles; see `image_score.parse`.
    thresholds: thresholds of the images' labels.
  """

  good: Sequence[Record]
  test: Sequence[Record]
  ops: transforms.Ops
  pixel_range: PixelRange
  rule: str
  thresholds: calibration.Thresholds

  def read_tiles(self, path: Path) -> _TiledImage:
    """Read an image file as inputs of the graph, which are its tiles."""
    source = inputs.Source(str(path), path)
    image = inputs.load(source, self.ops, pixel_range=self.pixel_range)
    pixels = image.require_pixels()
    grid = self.ops.tile_grid(pixels.shape[:2])
    return _TiledImage(grid, grid.cut(pixels), self.ops.inspected_pixels(*image.size))

  def read_batches(
    self, records: Sequence[Record], batch_size: int
  ) -> Iterator[UInt8[np.ndarray, 'b h w 3']]:
    """Yield batches with a tile of each image; the last is padded by repeating its tiles.

    The tiles are from different places of the images.
    """
    for start in range(0, len(records), batch_size):
      images = [self.read_tiles(r.path).tiles for r in records[start : start + batch_size]]
      tiles = np.stack([image[i % len(image)] for i, image in enumerate(images, start)])
      yield np.resize(tiles, (batch_size, *tiles.shape[1:]))

  def score(
    self, runs: Sequence[scorers.RunFunction], records: Sequence[Record], batch_size: int
  ) -> list[Float[np.ndarray, ' n']]:
    """Return the image scores by each graph, whose batches are filled across images.

    Each image is decoded once.
    """
    images: list[_TiledImage] = []

    def read_all_tiles() -> Iterator[scorers.Image]:
      for record in records:
        image = self.read_tiles(record.path)
        images.append(image._replace(tiles=[]))
        yield from image.tiles

    # The graphs take turns by image, so `tee` holds few tiles.
    streams = itertools.tee(read_all_tiles(), len(runs))
    predictions = [
      scorers.Scorer([run], batch_sizes=(batch_size,)).score_lazily(tiles)
      for run, tiles in zip(runs, streams, strict=True)
    ]
    scores = np.empty((len(runs), len(records)))
    for i, r in itertools.product(range(len(records)), range(len(runs))):
      first = next(predictions[r])  # Reads the image.
      image, of_image = images[i], itertools.chain([first], predictions[r])
      joined = scorers.join_tiles(image.grid, of_image, self.rule, image.inspected)
      scores[r, i] = joined.score
    return list(scores)


def select_images(
  model: model_dir.Model, camera_size: tuple[int, int] | None, folder: Path | None
) -> EvaluationImages:
  """Select images for quantization: calibration images and test images of the dataset.

  The calibration images are those named in the model's calibration.csv. The dataset is the one that
  the model was fitted on; without it there are no test images.

  Args:
    model: model to be quantized.
    camera_size: height and width of the camera's images; None for network resolution.
    folder: dataset or folder of good images to use when those of the model are missing.

  Raises:
    DataError: `folder` is not a folder of images.
    ConfigError: no good image is available.
  """
  splits = _load_splits(model, folder)
  good = [Record(path) for path in verify.calibration_images(model)]
  if folder and (not good or not splits.test):
    good = splits.train or good
  if not good:
    message = f'Quantization needs good images; those of {model.directory} are not on this machine.'
    hint = 'Name a folder of good images or a dataset: ', Setting('export.images', 'DIR'), '.'
    raise ConfigError(message, key='export.images', hint=hint)

  good, test = (verify.sample_evenly(records, _MAX_IMAGES) for records in (good, splits.test))
  ops, rule = graphs.input_ops(model.ops, camera_size), model.config.detector.image_score
  return EvaluationImages(good, test, ops, model.pixel_range, rule, model.thresholds)


def compare(
  runs: Sequence[scorers.RunFunction],
  records: Sequence[Record],
  images: EvaluationImages,
  batch: int | None,
) -> QuantizationAgreement:
  """Compare the labels and the image AUROC of two graphs.

  Args:
    runs: functions that run the float and the quantized graph, in this order.
    records: images to compare on.
    images: set that the images come from, for how to read and to label them.
    batch: batch size of the graphs; None for any size.
  """
  float_scores, quantized_scores = images.score(runs, records, batch or _BATCH_SIZE)
  is_anomalous = np.array([record.is_anomalous for record in records])
  return QuantizationAgreement(
    len(records),
    verify.count_label_changes(float_scores, quantized_scores, images.thresholds),
    float(verify.relative_excess(quantized_scores, float_scores, float_scores).max()),
    _auroc(float_scores, is_anomalous),
    _auroc(quantized_scores, is_anomalous),
  )


def _load_splits(model: model_dir.Model, folder: Path | None) -> Splits:
  """Read the dataset in a folder, or without one the model's dataset, empty if it is missing."""
  config = model.config.data
  if folder:
    config = dataclasses.replace(config, root=str(folder), category='', layout='auto')
  try:
    if not config.root:
      return data.load(config)
    listing = layouts.scan(config.root, config.category, config.layout)
    # Other layouts need no training images to be of use.
    return data.load(config) if listing.layout.labels_by_mask else listing.splits
  except UserError:
    if folder:
      raise
    return Splits((), ())


def _auroc(scores: Float[np.ndarray, ' n'], is_anomalous: Bool[np.ndarray, ' n']) -> float | None:
  if is_anomalous.all() or not is_anomalous.any():
    return None
  if np.isnan(scores).any():
    return 0.0  # A NaN score cannot be ranked.
  return metrics.auroc(metrics.rank(scores[is_anomalous], [scores[~is_anomalous]]))
