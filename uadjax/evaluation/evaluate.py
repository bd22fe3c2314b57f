"""Evaluation of a model on a test set: metrics, CSV files and pictures, at original resolution."""

import collections
from collections.abc import Mapping, Sequence
import contextlib
import functools
import itertools
from pathlib import Path
import shutil
from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int64
import numpy as np
from PIL import Image

from uadjax.data import inputs
from uadjax.data.records import Record
from uadjax.distributed import mesh
from uadjax.evaluation import curves, pixel_scores
from uadjax.inference import predictor as predictors
from uadjax.inference.result import Result
from uadjax.model import model_dir
from uadjax.numerics import metrics
from uadjax.system import files, progress, threads
from uadjax.visualization import heatmap


class ImageResult(NamedTuple):
  """Result of a test image, except for its pixels.

  Attributes:
    record: record of the image.
    score: anomaly score.
    label: verdict: OK, review or NG.
    confusion: confusion counts of the visible pixels; None without ground truth.
    region_sizes: size of each visible defective region in pixels.
    region_hits: whether any pixel of each region is marked.
    num_cropped_pixels: number of pixels outside the crop.
    num_cropped_defect_pixels: number of defective pixels outside the crop.
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
  """Metrics of a test set, and the data of its figures.

  Attributes:
    metrics: metrics, as in the result file; one that lacks a class (no defects, no masks) is None.
    curve_data: scores and rankings.
    anomaly_maps: anomaly map of each image at network size, in an anonymous file.
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
  loaded_images: Mapping[Path, inputs.LoadedImage] | None = None,
) -> Evaluation:
  """Score a test set and compute its metrics; write `scores.csv` and pictures.

  Args:
    model: model to evaluate.
    records: test images.
    mesh: devices that score each batch together.
    batch_size: number of images per batch.
    mask_threshold: mask value above which pixels are defective.
    workdir: directory for the outputs.
    num_pictures: number of pictures, which are spread evenly over the defect types.
    loaded_images: images at network size by their file, which need not be read again.
  """
  pictured_records = _choose_across_defects(records, num_pictures)
  folder = workdir / 'pictures'
  shutil.rmtree(folder, ignore_errors=True)  # An earlier evaluation may have had other images.
  folder.mkdir(parents=True)
  picture_paths = {record.path for record in pictured_records}
  pixels = pixel_scores.empty(model.ops, len(records))

  def load(source: inputs.Source) -> inputs.LoadedImage:
    path = Path(source.name)
    if loaded_images and path in loaded_images:
      return loaded_images[path]
    return inputs.load(source, model.ops, keep_original=path in picture_paths)

  def compare(item: tuple[int, Record, Result]) -> ImageResult:
    i, record, result = item
    truth = pixel_scores.read_defect_mask(record, result.size, mask_threshold)
    if record in pictured_records:
      # Numbers keep names unique: images in different folders may have the same stem.
      path = folder / f'{record.defect}_{i:04d}_{record.path.stem}.png'
      # Level 1 is four times as fast as the default, and makes files a fifth larger.
      picture(model, record, result, truth).save(path, compress_level=1)
    pixel_scores.add_image(pixels, i, result.network_map, result.restored, truth)
    return compare_with_mask(record, result, truth)

  predictor = predictors.open_on_mesh(model, mesh)
  sources = (inputs.Source(str(record.path), record.path) for record in records)
  results = predictor.predict_sources(sources, batch_size, strict=True, load=load)
  num_cores = threads.num_cores()
  with contextlib.closing(results), threads.thread_pool(num_cores, 'uadjax-compare') as pool:
    shown_results = progress.show_progress(results, len(records), 'Scoring')
    items = zip(itertools.count(), records, shown_results)
    image_results = list(threads.map_ahead(pool, compare, items, 2 * num_cores))
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
  """Compare a result with the ground truth, if there is one."""
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
  """Rank the images by score; return None unless both classes are present."""
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
  """Compute image metrics over all images, pixel metrics over visible pixels with ground truth."""
  return {
    **_ranking_metrics(image_ranking, 'image'),
    **_ranking_metrics(pixel_ranking, 'pixel'),
    'au_pro': metrics.au_pro(pixel_ranking) if pixel_ranking else None,
    # These metrics are at the best threshold in hindsight.
    'oracles': ['image_f1_max', 'pixel_f1_max'],
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
  """Compute metrics at the calibrated thresholds; positive are NG images and marked pixels."""
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
    'miss_rate': {defect: _mean(~is_ng[defects == defect])
                  for defect in sorted(set(defects[is_anomalous].tolist()))},
    'miss_rate_by_region_size': metrics.miss_rate_by_size(region_sizes, region_hits),
    **{name: getattr(pixel_confusion, key) if has_masks else None
       for name, key in _PIXEL_METRICS.items()},
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
  """Draw image, ground truth, heatmap and prediction side by side."""
  image = result.read_image()
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


# Image_recall and False_alarm_rate are at the calibrated threshold.
_CSV_COLUMNS = {
  'Image_AUROC': 'image_auroc',
  'Pixel_AUROC': 'pixel_auroc',
  'PRO_score': 'au_pro',
  'Image_AP': 'image_ap',
  'Pixel_AP': 'pixel_ap',
  'Image_recall': 'image_recall',
  'False_alarm_rate': 'false_alarm_rate',
  'Image_F1_max_oracle': 'image_f1_max',
  'Pixel_F1_max_oracle': 'pixel_f1_max',
}


def mean_metrics(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
  """Return the mean of each metric over the categories that have it."""
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
  """Write a row of metrics per category, and for several categories a row of means."""
  rows = {**rows, 'mean': mean_metrics(rows)} if len(rows) > 1 else rows
  table = [
    [name, *(_flatten(row)[key] for key in _CSV_COLUMNS.values())] for name, row in rows.items()
  ]
  files.write_csv(path, [['category', *_CSV_COLUMNS], *table])


def _choose_across_defects(records: Sequence[Record], num_records: int) -> set[Record]:
  """Choose records, alternating between the defect types and the good images."""
  records_by_defect: dict[str, list[Record]] = collections.defaultdict(list)
  for record in records:
    records_by_defect[record.defect].append(record)
  rank_in_group = {r: i for group in records_by_defect.values() for i, r in enumerate(group)}
  return set(sorted(records, key=lambda record: rank_in_group[record])[:num_records])
