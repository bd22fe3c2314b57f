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


class ImageResult(NamedTuple):
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
  region_sizes: Int64[np.ndarray, ' r'] = np.zeros(0, np.int64)
  region_hits: Bool[np.ndarray, ' r'] = np.zeros(0, bool)
  num_cropped_pixels: int = 0
  num_cropped_defect_pixels: int = 0


class Evaluation(NamedTuple):
  """Numbers, and what is drawn of them.

  Attributes:
    metrics: as of the result file.
    curves: scores and rankings.
    maps: at network size, of each image; in a file without a name.
  """

  metrics: dict[str, Any]
  curve_data: curves.CurveData
  anomaly_maps: Float[np.ndarray, 'n height width']


def evaluate(
  model: model_dir.Model,
  records: Sequence[Record],
  mesh: mesh.Mesh,
  batch_size: int,
  mask_threshold: int,
  workdir: Path,
  num_pictures: int,
) -> Evaluation:
  """Score a test set and measure; leave `scores.csv`, and pictures spread over the defects.

  Returns:
    metrics as of the result file. A metric that lacks a class (no defects, no masks) is None.
  """
  pictured_records = _choose_across_defects(records, num_pictures)
  folder = workdir / 'pictures'
  shutil.rmtree(folder, ignore_errors=True)  # Of an earlier evaluation, maybe of other images.
  folder.mkdir(parents=True)
  image_results: list[ImageResult] = []
  pixels = pixel_scores.empty(model.ops, len(records))

  def scorer(fitted: Any, batch: Batch) -> Scores:
    return model.score(fitted, batch.image)

  scoring_args = model.fitted, records, model.ops, batch_size, mesh, model.fitted_specs
  for scored_image in scoring.score_records(scorer, *scoring_args):
    record = scored_image.record
    size = image_io.image_size(record.path)
    source = inputs.Source(str(record.path), record.path)
    result = Result(
      source,
      record.path.stem,
      model.ops,
      model.thresholds,
      size,
      scored_image.score,
      scored_image.anomaly_map,
    )
    truth = pixel_scores.read_defect_mask(record, size, mask_threshold)
    if record in pictured_records:
      # By number: images in other folders, or of another suffix, may have the same name.
      path = folder / f'{record.defect}_{len(image_results):04d}_{record.path.stem}.png'
      # Four times as fast as the default, and a fifth larger.
      picture(model, record, result, truth).save(path, compress_level=1)
    pixel_scores.add_image(
      pixels, scored_image.anomaly_map, result.anomaly_map, result.visible, truth
    )
    image_results.append(compare_with_mask(record, result, truth))
  rows = [
    [image_result.record.path, image_result.record.defect, image_result.score, image_result.label]
    for image_result in image_results
  ]
  files.write_csv(workdir / 'scores.csv', [['path', 'defect', 'score', 'label'], *rows])
  image_ranking, pixel_ranking = rank_images(image_results), pixel_scores.ranking(pixels)
  metric_values = compute_metrics(image_results, image_ranking, pixel_ranking)
  calibration_scores = model_dir.load_calibration_scores(model.directory)
  curve_data = curves.CurveData(
    model.name,
    model.thresholds,
    np.array([image_result.score for image_result in image_results]),
    [image_result.record.defect for image_result in image_results],
    image_ranking,
    pixel_ranking,
    _merge_confusions(image_results).fp,
    None if calibration_scores is None else calibration_scores.scores,
  )
  return Evaluation(metric_values, curve_data, pixels.anomaly_maps)


def compare_with_mask(
  record: Record, result: Result, truth: pixel_scores.Mask | None
) -> ImageResult:
  """Compare one result with the truth, as far as that is known."""
  if truth is None:
    return ImageResult(record, result.score, result.label)
  visible = result.visible
  return ImageResult(
    record,
    result.score,
    result.label,
    metrics.Confusion.from_predictions(result.predicted_mask[visible], truth[visible]),
    *metrics.region_hits(result.predicted_mask, truth & visible),
    int((~visible).sum()),
    int((truth & ~visible).sum()),
  )


def rank_images(image_results: Sequence[ImageResult]) -> metrics.Ranking | None:
  """Rank the images; None where there are only good or only defective ones."""
  is_anomalous = np.array(
    [image_result.record.is_anomalous for image_result in image_results], bool
  )
  scores = np.array([image_result.score for image_result in image_results])
  return (
    metrics.rank(scores[is_anomalous], [scores[~is_anomalous]])
    if 0 < is_anomalous.sum() < len(is_anomalous)
    else None
  )


def compute_metrics(
  image_results: Sequence[ImageResult],
  image_ranking: metrics.Ranking | None,
  pixel_ranking: metrics.Ranking | None,
) -> dict[str, Any]:
  """Image metrics over all images; pixel metrics over the seen pixels of those with a mask."""
  return {
    **_ranking_metrics(image_ranking, 'image'),
    **_ranking_metrics(pixel_ranking, 'pixel'),
    'au_pro': metrics.au_pro(pixel_ranking) if pixel_ranking else None,
    'oracles': ['image_f1_max', 'pixel_f1_max'],  # At thresholds that nobody knows beforehand.
    'at_threshold': _metrics_at_threshold(image_results),
    'counts': {
      'good': sum(not image_result.record.is_anomalous for image_result in image_results),
      'defective': sum(image_result.record.is_anomalous for image_result in image_results),
      'without_mask': sum(image_result.confusion is None for image_result in image_results),
      'unseen_pixels': sum(image_result.num_cropped_pixels for image_result in image_results),
      'unseen_defect_pixels': sum(
        image_result.num_cropped_defect_pixels for image_result in image_results
      ),
    },
  }


def _ranking_metrics(ranking: metrics.Ranking | None, prefix: str) -> dict[str, float | None]:
  return {
    f'{prefix}_{name}': metric(ranking) if ranking else None
    for name, metric in {
      'auroc': metrics.auroc, 'ap': metrics.average_precision, 'f1_max': metrics.f1_max,
    }.items()
  }  # fmt: skip


def _metrics_at_threshold(image_results: Sequence[ImageResult]) -> dict[str, Any]:
  """What the calibrated thresholds do: images are called where NG, pixels where marked."""
  is_anomalous = np.array(
    [image_result.record.is_anomalous for image_result in image_results], bool
  )
  verdicts = np.array([image_result.label for image_result in image_results])
  defects = np.array([image_result.record.defect for image_result in image_results])
  is_ng = verdicts == 'NG'
  image_confusion, pixel_confusion = (
    metrics.Confusion.from_predictions(is_ng, is_anomalous),
    _merge_confusions(image_results),
  )
  has_masks = any(image_result.confusion for image_result in image_results)
  region_sizes, region_hits = (
    np.concatenate([getattr(image_result, name) for image_result in image_results])
    for name in ('region_sizes', 'region_hits')
  )
  return {
    'image_precision': image_confusion.precision,
    'image_recall': image_confusion.recall,
    'image_f1': image_confusion.f1,
    'false_alarm_rate': _mean(is_ng[~is_anomalous]),
    'review_rate': {'good': _mean((verdicts == 'review')[~is_anomalous]),
                    'defective': _mean((verdicts == 'review')[is_anomalous])},
    'miss_rate': {d: _mean(~is_ng[defects == d]) for d in sorted(set(defects[is_anomalous].tolist()))},
    'miss_rate_by_region_size': metrics.miss_rate_by_size(region_sizes, region_hits),
    **{name: getattr(pixel_confusion, key) if has_masks else None for name, key in _PIXEL_METRICS.items()},
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


def _merge_confusions(image_results: Sequence[ImageResult]) -> metrics.Confusion:
  confusions = [image_result.confusion for image_result in image_results if image_result.confusion]
  return functools.reduce(metrics.Confusion.merge, confusions, metrics.Confusion())


def _mean(values: Bool[np.ndarray, ' n']) -> float | None:
  return float(values.mean()) if len(values) else None


def picture(
  model: model_dir.Model, record: Record, result: Result, truth: pixel_scores.Mask | None
) -> Image.Image:
  """Show image, ground truth, heatmap and prediction side by side."""
  image = image_io.decode(record.path)
  truth_tiles = (
    [] if truth is None else [heatmap.TitledImage('ground truth', heatmap.render_mask(truth))]
  )
  tiles = [
    heatmap.TitledImage('image', image),
    *truth_tiles,
    heatmap.TitledImage(
      'heatmap', heatmap.overlay(image, result.anomaly_map, model.thresholds.pixel_threshold)
    ),
    heatmap.TitledImage('prediction', heatmap.draw_outline(image, result.predicted_mask)),
  ]
  headline = f'{record.defect}/{result.headline}'
  return heatmap.join_side_by_side(tiles, headline)


_CSV_COLUMNS = {
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


def mean_metrics(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
  """The mean of each metric over the categories that have it."""
  flat_rows = [_flatten(row) for row in rows.values()]
  values_by_metric = {key: [row[key] for row in flat_rows] for key in _CSV_COLUMNS.values()}
  numbers_by_metric = {
    key: [v for v in values if v is not None] for key, values in values_by_metric.items()
  }
  return {
    key: float(np.mean(values)) if values else None for key, values in numbers_by_metric.items()
  }


def _flatten(row: Mapping[str, Any]) -> dict[str, Any]:
  return {**row, **row.get('at_threshold', {})}


def write_csv(path: Path, rows: Mapping[str, Mapping[str, Any]]) -> None:
  """Write a row per category, and for several the mean of those that have a number."""
  rows = {**rows, 'mean': mean_metrics(rows)} if len(rows) > 1 else rows
  table = [
    [name, *(_flatten(row)[key] for key in _CSV_COLUMNS.values())] for name, row in rows.items()
  ]
  files.write_csv(path, [['category', *_CSV_COLUMNS], *table])


def _choose_across_defects(records: Sequence[Record], num_records: int) -> set[Record]:
  """Choose records in turn from every defect and the good ones."""
  records_by_defect: dict[str, list[Record]] = collections.defaultdict(list)
  for record in records:
    records_by_defect[record.defect].append(record)
  rank_in_group = {r: i for group in records_by_defect.values() for i, r in enumerate(group)}
  return set(sorted(records, key=lambda record: rank_in_group[record])[:num_records])
