"""Images that somebody has labelled good or defective, for thresholds that are set by them."""

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


class Examples(NamedTuple):
  """What `calibration.from_labelled` takes.

  Attributes:
    normal: scores of the good images.
    peaks: the largest map value of each of them.
    anomalous: scores of the defective images.
    pixel: the map's threshold of the largest pixel F1; None where there are no masks.
  """

  normal: Float[np.ndarray, ' n']
  peaks: Float[np.ndarray, ' n']
  anomalous: Float[np.ndarray, ' m']
  pixel: float | None


def load(config: Config, training: Sequence[Record]) -> tuple[Record, ...]:
  """List the images of `calibrate.labelled`: those to test on, or all where these lack good ones.

  Raises:
    DataError: a kind is missing, an image is one to be learned from, or a file is unreadable.
  """
  directory = config.calibrate.labelled
  if not Path(directory).is_dir():
    raise DataError(f'calibrate.labelled={directory} is not there; name a data set directory.')
  splits = layouts.load(directory, mask_threshold=config.data.mask_threshold)
  records = splits.test
  if all(record.is_anomalous for record in records):
    records = splits.train + splits.test
  defective = sum(record.is_anomalous for record in records)
  if not 0 < defective < len(records):
    raise DataError(
      f'calibrate.labelled={directory} has {len(records) - defective} good and {defective} '
      'defective images; a threshold between them needs both.'
    )
  learned = {record.path.resolve() for record in training}
  if both := [record.path for record in records if record.path.resolve() in learned]:
    raise DataError(
      f'{len(both)} images of calibrate.labelled={directory} are to be learned from, such as '
      f'{both[0]}; their scores tell nothing. Name other images.'
    )
  with concurrent.futures.ThreadPoolExecutor() as pool:  # Before hours of fitting, not after.
    for _ in pool.map(lambda record: _readable(record, config.data.mask_threshold), records):
      pass
  logging.LOG.info(
    'Thresholds by %d good and %d defective images of %s: what is measured on the same images '
    'afterwards is optimistic.',
    len(records) - defective, defective, directory,
  )  # fmt: skip
  return records


def score(
  scorer: Callable[[Any, Batch], Scores],
  fitted: Any,
  records: Sequence[Record],
  config: Config,
  mesh: mesh.Mesh,
  split: Any = None,
) -> Examples | None:
  """Score labelled images; None where there are none."""
  if not records:
    return None
  ops = transforms.parse(config.data.ops)
  pixels = pixel_scores.nothing(ops, len(records))
  images: dict[bool, list[float]] = {False: [], True: []}
  peaks: list[float] = []
  rows = config.evaluate.batch_size
  for one in scoring.score_records(scorer, fitted, records, ops, rows, mesh, split):
    images[one.record.is_anomalous].append(one.score)
    if not one.record.is_anomalous:
      peaks.append(float(one.anomaly_map.max()))
    size = image_io.image_size(one.record.path)
    truth = pixel_scores.read(one.record, size, config.data.mask_threshold)
    if truth is not None:
      restored = ops.restore(one.anomaly_map, *size)
      pixel_scores.add(pixels, one.anomaly_map, restored.anomaly_map, restored.visible, truth)
  ranking = pixel_scores.ranking(pixels)
  pixel = None
  if ranking is not None:
    pixel = calibration.pixel_threshold_by_f1(
      ranking.scores, ranking.num_anomalous, ranking.num_normal
    )
  return Examples(np.array(images[False]), np.array(peaks), np.array(images[True]), pixel)


def _readable(record: Record, threshold: int) -> None:
  pixel_scores.read(record, image_io.decode(record.path).shape[:2], threshold)
