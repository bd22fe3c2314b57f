"""Scores of images labeled good or defective, from which thresholds are calibrated."""

from collections.abc import Callable, Sequence
import concurrent.futures
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Float
import numpy as np

from uadjax.data import image_io, layouts, transforms
from uadjax.data.records import Record
from uadjax.distributed import mesh
from uadjax.errors import DataError
from uadjax.evaluation import pixel_scores
from uadjax.model import calibration, scoring
from uadjax.system import logging
from uadjax.types import Batch, Config, Scores


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


def load(config: Config, training_records: Sequence[Record]) -> tuple[Record, ...]:
  """List the images of `calibrate.labeled`: its test split, or all if that has no good images.

  Raises:
    DataError: a class is missing, an image is a training image, or a file is unreadable.
  """
  directory = config.calibrate.labeled
  if not Path(directory).is_dir():
    raise DataError(f'calibrate.labeled={directory} is not a folder; name the folder of a dataset.')
  splits = layouts.load(directory, mask_threshold=config.data.mask_threshold)
  records = splits.test
  if all(record.is_anomalous for record in records):
    records = splits.train + splits.test
  num_defective = sum(record.is_anomalous for record in records)
  if not 0 < num_defective < len(records):
    raise DataError(
      f'calibrate.labeled={directory} has {len(records) - num_defective} good and {num_defective} '
      'defective images; a threshold between them needs both.'
    )
  training_paths = {record.path.resolve() for record in training_records}
  if overlapping_paths := [
    record.path for record in records if record.path.resolve() in training_paths
  ]:
    raise DataError(
      f'{len(overlapping_paths)} images of calibrate.labeled={directory} are training images, such '
      f'as {overlapping_paths[0]}; their scores are biased. Name other images.'
    )
  # Unreadable files must fail before hours of fitting, not after.
  with concurrent.futures.ThreadPoolExecutor() as pool:
    for _ in pool.map(
      lambda record: _require_readable_mask(record, config.data.mask_threshold), records
    ):
      pass
  logging.LOG.info(
    'Calibrating thresholds on %d good and %d defective images of %s; metrics on these images will '
    'be optimistic.',
    len(records) - num_defective, num_defective, directory,
  )  # fmt: skip
  return records


def score(
  scorer: Callable[[Any, Batch], Scores],
  fitted: Any,
  records: Sequence[Record],
  config: Config,
  mesh: mesh.Mesh,
  fitted_specs: Any = None,
) -> LabeledScores | None:
  """Score labeled images; return None without any."""
  if not records:
    return None
  ops = transforms.parse(config.data.ops)
  pixels = pixel_scores.empty(ops, len(records))
  scores_by_class: dict[bool, list[float]] = {False: [], True: []}
  normal_peaks: list[float] = []
  batch_size = config.evaluate.batch_size
  scored_images = scoring.score_records(
    scorer, fitted, records, ops, batch_size, mesh, fitted_specs
  )
  for i, scored_image in enumerate(scored_images):
    scores_by_class[scored_image.record.is_anomalous].append(scored_image.score)
    if not scored_image.record.is_anomalous:
      normal_peaks.append(float(scored_image.anomaly_map.max()))
    size = image_io.image_size(scored_image.record.path)
    truth = pixel_scores.read_defect_mask(scored_image.record, size, config.data.mask_threshold)
    if truth is not None:
      restored = ops.restore(scored_image.anomaly_map, *size)
      pixel_scores.add_image(pixels, i, scored_image.anomaly_map, restored, truth)
  pixel_ranking = pixel_scores.ranking(pixels)
  pixel_threshold = None
  if pixel_ranking is not None:
    pixel_threshold = calibration.pixel_threshold_by_f1(
      pixel_ranking.scores, pixel_ranking.num_anomalous, pixel_ranking.num_normal
    )
  return LabeledScores(
    np.array(scores_by_class[False]),
    np.array(normal_peaks),
    np.array(scores_by_class[True]),
    pixel_threshold,
  )


def _require_readable_mask(record: Record, mask_threshold: int) -> None:
  pixel_scores.read_defect_mask(record, image_io.decode(record.path).shape[:2], mask_threshold)
