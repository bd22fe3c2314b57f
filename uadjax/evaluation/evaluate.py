"""A model against a test set: numbers, a CSV row and pictures, all at original resolution."""

import collections
from collections.abc import Mapping, Sequence
import functools
from pathlib import Path
import shutil
from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int64
import numpy as np
from PIL import Image

from uadjax.data import image_io, inputs
from uadjax.data.records import Record
from uadjax.distributed import mesh
from uadjax.evaluation import curves, pixel_scores
from uadjax.inference.result import Result
from uadjax.model import model_dir, scoring
from uadjax.numerics import metrics
from uadjax.system import files
from uadjax.types import Batch, Scores
from uadjax.visualization import heatmap


class Judged(NamedTuple):
  """What is kept of a test image beside its pixels.

  Attributes:
    record: the image.
    score: of the image.
    label: the verdict: OK, review or NG.
    confusion: of its seen pixels; None where it is not known which are defective.
    sizes: of the defective regions the network saw, in pixels.
    found: whether any pixel of each is marked.
    unseen: number of pixels outside the crop.
    unseen_defects: how many of them are defective.
  """

  record: Record
  score: float
  label: str
  confusion: metrics.Confusion | None = None
  sizes: Int64[np.ndarray, ' r'] = np.zeros(0, np.int64)
  found: Bool[np.ndarray, ' r'] = np.zeros(0, bool)
  unseen: int = 0
  unseen_defects: int = 0


class Evaluation(NamedTuple):
  """Numbers, and what is drawn of them.

  Attributes:
    metrics: as of the result file.
    curves: scores and rankings.
    maps: at network size, of each image; in a file without a name.
  """

  metrics: dict[str, Any]
  curves: curves.Curves
  maps: Float[np.ndarray, 'n height width']


def evaluate(
  model: model_dir.Model,
  records: Sequence[Record],
  mesh: mesh.Mesh,
  batch_size: int,
  mask_threshold: int,
  workdir: Path,
  pictures: int,
) -> Evaluation:
  """Score a test set and measure; leave `scores.csv`, and pictures spread over the defects.

  Returns:
    metrics as of the result file. A metric that lacks a class (no defects, no masks) is None.
  """
  chosen = _spread(records, pictures)
  folder = workdir / 'pictures'
  shutil.rmtree(folder, ignore_errors=True)  # Of an earlier evaluation, maybe of other images.
  folder.mkdir(parents=True)
  judged: list[Judged] = []
  pixels = pixel_scores.nothing(model.ops, len(records))

  def scorer(fitted: Any, batch: Batch) -> Scores:
    return model.score(fitted, batch.image)

  given = model.fitted, records, model.ops, batch_size, mesh, model.fitted_specs
  for scored in scoring.score_records(scorer, *given):
    record = scored.record
    size = image_io.image_size(record.path)
    source = inputs.Source(str(record.path), record.path)
    result = Result(
      source, record.path.stem, model.ops, model.thresholds, size, scored.score, scored.anomaly_map
    )
    truth = pixel_scores.read(record, size, mask_threshold)
    if record in chosen:
      # By number: images in other folders, or of another suffix, may have the same name.
      path = folder / f'{record.defect}_{len(judged):04d}_{record.path.stem}.png'
      # Four times as fast as the default, and a fifth larger.
      picture(model, record, result, truth).save(path, compress_level=1)
    pixel_scores.add(pixels, scored.anomaly_map, result.anomaly_map, result.seen, truth)
    judged.append(judge(record, result, truth))
  rows = [[one.record.path, one.record.defect, one.score, one.label] for one in judged]
  files.write_csv(workdir / 'scores.csv', [['path', 'defect', 'score', 'label'], *rows])
  images, ranked = rank(judged), pixel_scores.ranking(pixels)
  found = measure(judged, images, ranked)
  normals = model_dir.load_calibration_scores(model.directory)
  drawn = curves.Curves(
    model.name,
    model.thresholds,
    np.array([one.score for one in judged]),
    [one.record.defect for one in judged],
    images,
    ranked,
    _merged(judged).fp,
    None if normals is None else normals.scores,
  )
  return Evaluation(found, drawn, pixels.maps)


def judge(record: Record, result: Result, truth: pixel_scores.Mask | None) -> Judged:
  """Compare one result with the truth, as far as that is known."""
  if truth is None:
    return Judged(record, result.score, result.label)
  seen = result.seen
  return Judged(
    record,
    result.score,
    result.label,
    metrics.Confusion.from_predictions(result.marked[seen], truth[seen]),
    *metrics.region_hits(result.marked, truth & seen),
    int((~seen).sum()),
    int((truth & ~seen).sum()),
  )


def rank(judged: Sequence[Judged]) -> metrics.Ranking | None:
  """Rank the images; None where there are only good or only defective ones."""
  labels = np.array([one.record.is_anomalous for one in judged], bool)
  scores = np.array([one.score for one in judged])
  return metrics.rank(scores[labels], [scores[~labels]]) if 0 < labels.sum() < len(labels) else None


def measure(
  judged: Sequence[Judged], images: metrics.Ranking | None, pixels: metrics.Ranking | None
) -> dict[str, Any]:
  """Image metrics over all images; pixel metrics over the seen pixels of those with a mask."""
  return {
    **_of_ranking(images, 'image'),
    **_of_ranking(pixels, 'pixel'),
    'au_pro': metrics.au_pro(pixels) if pixels else None,
    'oracles': ['image_f1_max', 'pixel_f1_max'],  # At thresholds that nobody knows beforehand.
    'at_threshold': _at_threshold(judged),
    'counts': {
      'good': sum(not one.record.is_anomalous for one in judged),
      'defective': sum(one.record.is_anomalous for one in judged),
      'without_mask': sum(one.confusion is None for one in judged),
      'unseen_pixels': sum(one.unseen for one in judged),
      'unseen_defect_pixels': sum(one.unseen_defects for one in judged),
    },
  }


def _of_ranking(ranking: metrics.Ranking | None, kind: str) -> dict[str, float | None]:
  return {
    f'{kind}_{name}': metric(ranking) if ranking else None
    for name, metric in {
      'auroc': metrics.auroc, 'ap': metrics.average_precision, 'f1_max': metrics.f1_max,
    }.items()
  }  # fmt: skip


def _at_threshold(judged: Sequence[Judged]) -> dict[str, Any]:
  """What the calibrated thresholds do: images are called where NG, pixels where marked."""
  labels = np.array([one.record.is_anomalous for one in judged], bool)
  verdicts = np.array([one.label for one in judged])
  of = np.array([one.record.defect for one in judged])
  called = verdicts == 'NG'
  images, pixels = metrics.Confusion.from_predictions(called, labels), _merged(judged)
  known = any(one.confusion for one in judged)
  sizes, found = (
    np.concatenate([getattr(one, name) for one in judged]) for name in ('sizes', 'found')
  )
  return {
    'image_precision': images.precision,
    'image_recall': images.recall,
    'image_f1': images.f1,
    'false_alarm_rate': _mean(called[~labels]),
    'review_rate': {'good': _mean((verdicts == 'review')[~labels]),
                    'defective': _mean((verdicts == 'review')[labels])},
    'miss_rate': {d: _mean(~called[of == d]) for d in sorted(set(of[labels].tolist()))},
    'miss_rate_by_region_size': metrics.miss_rate_by_size(sizes, found),
    **{name: getattr(pixels, key) if known else None for name, key in _PIXEL_METRICS.items()},
  }  # fmt: skip


_PIXEL_METRICS = {
  'pixel_precision': 'precision',
  'pixel_recall': 'recall',
  'pixel_f1': 'f1',
  'iou': 'iou',
  'dice': 'dice',
  'accuracy': 'accuracy',
  'kappa': 'kappa',
}


def _merged(judged: Sequence[Judged]) -> metrics.Confusion:
  known = [one.confusion for one in judged if one.confusion]
  return functools.reduce(metrics.Confusion.merge, known, metrics.Confusion())


def _mean(values: Bool[np.ndarray, ' n']) -> float | None:
  return float(values.mean()) if len(values) else None


def picture(
  model: model_dir.Model, record: Record, result: Result, truth: pixel_scores.Mask | None
) -> Image.Image:
  """Show image, ground truth, heatmap and prediction side by side."""
  image = image_io.decode(record.path)
  known = [] if truth is None else [heatmap.Tile('ground truth', heatmap.black_and_white(truth))]
  tiles = [
    heatmap.Tile('image', image),
    *known,
    heatmap.Tile(
      'heatmap', heatmap.overlay(image, result.anomaly_map, model.thresholds.pixel_threshold)
    ),
    heatmap.Tile('prediction', heatmap.outline(image, result.marked)),
  ]
  headline = f'{record.defect}/{result.headline}'
  return heatmap.side_by_side(tiles, headline)


_COLUMNS = {
  'Image_AUROC': 'image_auroc',
  'Pixel_AUROC': 'pixel_auroc',
  'PRO_score': 'au_pro',
  'Image_AP': 'image_ap',
  'Pixel_AP': 'pixel_ap',
  'Image_recall': 'image_recall',  # This one and the next at the calibrated threshold.
  'False_alarm_rate': 'false_alarm_rate',
  'Image_F1_max_oracle': 'image_f1_max',
  'Pixel_F1_max_oracle': 'pixel_f1_max',
}


def means(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
  """The mean of each metric over the categories that have it."""
  flat = [_flat(row) for row in rows.values()]
  found = {key: [row[key] for row in flat] for key in _COLUMNS.values()}
  numbers = {key: [v for v in values if v is not None] for key, values in found.items()}
  return {key: float(np.mean(values)) if values else None for key, values in numbers.items()}


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
  return {**row, **row.get('at_threshold', {})}


def write_csv(path: Path, rows: Mapping[str, Mapping[str, Any]]) -> None:
  """Write a row per category, and for several the mean of those that have a number."""
  rows = {**rows, 'mean': means(rows)} if len(rows) > 1 else rows
  table = [[name, *(_flat(row)[key] for key in _COLUMNS.values())] for name, row in rows.items()]
  files.write_csv(path, [['category', *_COLUMNS], *table])


def _spread(records: Sequence[Record], number: int) -> set[Record]:
  """Choose records in turn from every defect and the good ones."""
  kinds: dict[str, list[Record]] = collections.defaultdict(list)
  for record in records:
    kinds[record.defect].append(record)
  rank = {r: i for group in kinds.values() for i, r in enumerate(group)}
  return set(sorted(records, key=lambda record: rank[record])[:number])
