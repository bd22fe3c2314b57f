"""Scores of images labeled good or defective, from which thresholds are calibrated."""

from collections.abc import Callable, Sequence
import concurrent.futures
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Float
import numpy as np

from uadjax.data import image_io, layouts, transforms
from uadjax.data.image_cache import ImageCache
from uadjax.data.pixel_range import FULL_RANGE, PixelRange
from uadjax.data.records import Record
from uadjax.distributed import mesh
from uadjax.errors import DataError, Setting
from uadjax.evaluation import pixel_scores
from uadjax.model import calibration, scoring
from uadjax.model.settings import CalibrateSettings
from uadjax.system import logging, progress
from uadjax.types import Batch, Scores


class LabeledScores(NamedTuple):
  """Scores of labeled images, as `calibration.from_labeled` needs them.

  Attributes:
    normal_scores: scores of the good images.
    normal_peaks: largest map value of each good image.
    anomalous_scores: scores of the defective images.
    pixel_threshold: threshold of the map with the largest pixel F1; None without masks.
  """

  normal_scores: Float[np.ndarray, ' n']
  normal_peaks: Float[np.ndarray, ' n']
  anomalous_scores: Float[np.ndarray, ' m']
  pixel_threshold: float | None


def load(
  directory: str,
  mask_reading: str,
  training: Sequence[Record],
  ops: transforms.Ops,
  pixel_range: PixelRange = FULL_RANGE,
) -> tuple[Record, ...]:
  """List the images of `calibrate.labeled`: its test split, or all if that has no good images.

  Raises:
    DataError: a class is missing, an image is a training image, a file is unreadable, or `ops` or
      their region of interest do not fit to an image.
  """
  if not Path(directory).is_dir():
    raise DataError(f'No folder {directory}.', key='calibrate.labeled', value=directory)
  splits = layouts.load(directory, mask_reading=mask_reading)
  records = splits.test
  if all(record.is_anomalous for record in records):
    records = splits.train + splits.test
  num_defective = sum(record.is_anomalous for record in records)
  counts = f'{len(records) - num_defective} good and {num_defective} defective images'
  if not 0 < num_defective < len(records):
    message = f'{directory} has {counts}; a threshold between them needs both.'
    raise DataError(message, key='calibrate.labeled', value=directory)
  training_paths = {record.path.resolve() for record in training}
  if overlap := [r.path for r in records if r.path.resolve() in training_paths]:
    message = f'{len(overlap)} images of {directory} are training images, such as {overlap[0]}.'
    hint = 'Their scores are biased; name other images: ', Setting('calibrate.labeled'), '.'
    raise DataError(message, key='calibrate.labeled', value=directory, hint=hint)

  def require_usable(record: Record) -> None:
    h, w = image_io.decode(record.path, pixel_range=pixel_range).shape[:2]
    pixel_scores.read_defect_mask(record, (h, w), mask_reading)
    try:
      ops.scaled_size(h, w)
      ops.require_fit(h, w)
    except DataError as reason:
      message = f'{record.path}: {reason.message}'
      hint = reason.hint
      raise DataError(message, key='calibrate.labeled', value=directory, hint=hint) from None

  # Files that cannot be used must fail before hours of fitting, not after.
  with concurrent.futures.ThreadPoolExecutor() as pool:
    list(pool.map(require_usable, records))
  logging.LOG.info(
    'Calibrating thresholds on %s of %s; metrics on these images will be optimistic.',
    counts, directory,
  )  # fmt: skip
  return records


def score(
  scorer: Callable[[Any, Batch], Scores],
  fitted: Any,
  records: Sequence[Record],
  mask_reading: str,
  cache: ImageCache,
  batch_size: int,
  mesh: mesh.Mesh,
  rule: str,
  fitted_specs: Any = None,
) -> LabeledScores | None:
  """Score labeled images, as `scoring.score_records`; return None without any."""
  if not records:
    return None
  ops = cache.ops
  pixels = pixel_scores.empty(ops, [record.path for record in records])
  rows: list[tuple[bool, float, float]] = []
  scored = scoring.score_records(
    scorer, fitted, records, cache, batch_size, mesh, rule, fitted_specs
  )
  scored = progress.show_progress(scored, len(records), 'Scoring labeled images')
  for i, (record, anomaly_map, image_score) in enumerate(scored):
    rows.append((record.is_anomalous, image_score, float(anomaly_map.max())))
    size = image_io.image_size(record.path)
    truth = pixel_scores.read_defect_mask(record, size, mask_reading)
    if truth is not None:
      pixel_scores.add_image(pixels, i, anomaly_map, ops.restore(anomaly_map, *size), truth)
  ranking = pixel_scores.ranking(pixels)
  pixel_threshold = calibration.pixel_threshold_by_f1(ranking) if ranking else None
  is_anomalous, scores, peaks = (np.array(column) for column in zip(*rows, strict=True))
  normal_scores, normal_peaks = scores[~is_anomalous], peaks[~is_anomalous]
  return LabeledScores(normal_scores, normal_peaks, scores[is_anomalous], pixel_threshold)


def calibrate(
  options: CalibrateSettings,
  scores: calibration.CalibrationScores,
  labeled_scores: LabeledScores | None,
) -> calibration.Thresholds:
  """Return thresholds by the method of the settings; labeled scores are None without labels.

  Labels do not move the review threshold, except down to the image threshold. Without any score,
  every image is for review.
  """
  method, budgets = options.method, (options.budget, options.review_budget)
  if labeled_scores is None and not len(scores.scores):
    return calibration.uncalibrated(*budgets)
  if labeled_scores is None:
    return calibration.from_normals(scores.scores, scores.peaks, *budgets, method == 'confident')
  review_threshold = None
  if len(scores.scores):
    by_normals = calibration.from_normals(scores.scores, scores.peaks, *budgets)
    review_threshold = by_normals.review_threshold
  return calibration.from_labeled(
    *labeled_scores[:3], method, *budgets, options.miss_cost, labeled_scores.pixel_threshold,
    review_threshold,
  )  # fmt: skip
