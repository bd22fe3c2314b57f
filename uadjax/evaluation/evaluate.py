"""Evaluation of a model on a test set: metrics, CSV files and pictures, at original resolution."""

from collections.abc import Mapping, Sequence
import contextlib
import functools
import itertools
import math
from pathlib import Path
import shutil
from typing import Any, NamedTuple, TypeAlias

from jaxtyping import Bool, Float, Int64
import numpy as np
from PIL import Image

from uadjax.data import inputs, selection
from uadjax.data.records import Record
from uadjax.distributed import mesh
from uadjax.evaluation import curves, pixel_scores, verdicts
from uadjax.inference import parts, predictor as predictors
from uadjax.inference.result import Result
from uadjax.model import calibration, model_dir
from uadjax.numerics import metrics
from uadjax.numerics.regions import Region
from uadjax.system import files, progress, threads
from uadjax.visualization import picture_file, sheet

# Metrics by name, as in the result file; one that lacks a class (no defects, no masks) is None.
Metrics: TypeAlias = dict[str, Any]


class ImageResult(NamedTuple):
  """Result of a test image, except for its pixels.

  Attributes:
    record: record of the image.
    score: anomaly score.
    label: verdict: OK, review or NG.
    warnings: code and message of each warning.
    peak: largest value of the anomaly map.
    at: x and y of the peak.
    regions: regions to look at; empty unless the image is for review.
    confusion: confusion counts of the visible pixels; None without ground truth.
    region_sizes: size of each visible defective region in pixels.
    region_hits: whether any pixel of each region is marked.
    num_cropped_pixels: number of pixels outside of the crop and of the region of interest.
    num_cropped_defect_pixels: number of defective pixels among them.
    num_defects: number of connected defects in the mask.
    num_unseen_defects: number of defects that have no visible pixel.
  """

  record: Record
  score: float
  label: str
  warnings: Sequence[Mapping[str, str]] = ()
  peak: float = math.nan
  at: tuple[int, int] = (0, 0)
  regions: Sequence[Region] = ()
  confusion: metrics.Confusion | None = None
  region_sizes: Int64[np.ndarray, ' r'] = np.zeros(0, np.int64)
  region_hits: Bool[np.ndarray, ' r'] = np.zeros(0, bool)
  num_cropped_pixels: int = 0
  num_cropped_defect_pixels: int = 0
  num_defects: int = 0
  num_unseen_defects: int = 0


class Evaluation(NamedTuple):
  """Metrics of a test set, and the data of its figures.

  Attributes:
    metrics: the metrics.
    curve_data: scores and rankings.
    anomaly_maps: anomaly map of each scaled image, in an anonymous file.
  """

  metrics: Metrics
  curve_data: curves.CurveData
  anomaly_maps: Sequence[Float[np.ndarray, 'height width']]


def evaluate(
  model: model_dir.Model,
  records: Sequence[Record],
  mesh: mesh.Mesh,
  batch_size: int,
  mask_reading: str,
  workdir: Path,
  num_pictures: int,
  loaded_images: Mapping[Path, inputs.LoadedImage] | None = None,
  part_pattern: str = '',
) -> Evaluation:
  """Score a test set and compute its metrics; write `scores.csv` and pictures.

  With `part_pattern`, also count the verdicts on parts, and list them in `parts.csv`.

  Args:
    model: model to evaluate.
    records: test images.
    mesh: devices that score each batch together.
    batch_size: number of images per batch.
    mask_reading: how masks mark defects, see `image_io.parse_mask_reading`.
    workdir: directory for the outputs.
    num_pictures: number of pictures, which are spread evenly over the defect types.
    loaded_images: images at network size by their file, which need not be read again.
    part_pattern: pattern of `parts.part_of`, or '' if images are not grouped.
  """
  picture_paths = {r.path for r in selection.spread_over_defects(records, num_pictures)}
  folder = workdir / 'pictures'
  shutil.rmtree(folder, ignore_errors=True)  # An earlier evaluation may have had other images.
  folder.mkdir(parents=True)
  pixels = pixel_scores.empty(model.ops, [record.path for record in records])

  def load(source: inputs.Source) -> inputs.LoadedImage:
    path = Path(source.name)
    if loaded_images and path in loaded_images:
      return loaded_images[path]
    keep_original = path in picture_paths
    return inputs.load(
      source, model.ops, keep_original=keep_original, pixel_range=model.pixel_range
    )

  def compare(item: tuple[Result, Record, int]) -> ImageResult:
    result, record, i = item
    truth = pixel_scores.read_defect_mask(record, result.size, mask_reading)
    if record.path in picture_paths:
      # Numbers keep names unique: images in different folders may have the same stem.
      path = folder / f'{record.defect}_{i:04d}_{record.path.stem}.png'
      picture_file.save(picture(record, result, truth), path)
    pixel_scores.add_image(pixels, i, result.network_map, result.restored, truth)
    return compare_with_mask(record, result, truth)

  predictor = predictors.open_on_mesh(model, mesh)
  sources = (inputs.Source(str(record.path), record.path) for record in records)
  results = predictor.predict_sources(sources, batch_size, strict=True, load=load)
  num_cores = threads.num_cores()
  with contextlib.closing(results), threads.thread_pool(num_cores, 'uadjax-compare') as pool:
    shown_results = progress.show_progress(results, len(records), 'Scoring')
    items = zip(shown_results, records, itertools.count(), strict=False)
    image_results = list(threads.map_ahead(pool, compare, items, 2 * num_cores))
  names = [_part_of(r.record, part_pattern) for r in image_results]
  _write_scores(workdir / 'scores.csv', image_results, names, model.thresholds)
  evaluation = _summarize(model, image_results, pixels)
  if part_pattern:
    evaluation = evaluation._replace(curve_data=evaluation.curve_data._replace(parts=names))
    evaluation.metrics['parts'] = _judge_parts(workdir / 'parts.csv', image_results, names)
  return evaluation


def _part_of(record: Record, pattern: str) -> str:
  return parts.part_of(str(record.path), pattern, parts.EVALUATE_KEY) if pattern else ''


def _judge_parts(
  path: Path, results: Sequence[ImageResult], part_names: Sequence[str]
) -> verdicts.Counts:
  """Write a row per part as CSV, and count the labels of good and of defective parts.

  A part is defective if any of its images is.
  """
  part_verdicts = parts.PartVerdicts()
  for result, name in zip(results, part_names, strict=True):
    part_verdicts.add(name, result.label)
  is_anomalous = [r.record.is_anomalous for r in results]
  defective_parts = set(itertools.compress(part_names, is_anomalous))
  header, *rows = part_verdicts.table()
  rows = [[*row, row[0] in defective_parts] for row in rows]
  files.write_csv(path, [[*header, 'defective'], *rows])
  labels = part_verdicts.labels
  return verdicts.count([*labels.values()], [name in defective_parts for name in labels])


def _write_scores(
  path: Path,
  results: Sequence[ImageResult],
  part_names: Sequence[str],
  thresholds: calibration.Thresholds,
) -> None:
  """Write a row per test image, with its part and the thresholds that gave its label, as CSV."""
  values = calibration.by_name(thresholds)
  header = ['path', 'defect', 'score', 'label', 'warnings', 'peak', 'x', 'y', *values, 'part']
  rows = [
    [
      r.record.path, r.record.defect, r.score, r.label, ' '.join(w['code'] for w in r.warnings),
      r.peak, *r.at, *values.values(), part,
    ]
    for r, part in zip(results, part_names, strict=True)
  ]  # fmt: skip
  files.write_csv(path, [header, *rows])


def _summarize(
  model: model_dir.Model, results: Sequence[ImageResult], pixels: pixel_scores.PixelScores
) -> Evaluation:
  image_ranking, pixel_ranking = rank_images(results), pixel_scores.ranking(pixels)
  metric_values = compute_metrics(results, image_ranking, pixel_ranking)
  calibration_scores = model_dir.load_calibration_scores(model.directory)
  curve_data = curves.CurveData(
    model.name,
    model.thresholds,
    np.array([r.score for r in results]),
    [r.record.defect for r in results],
    [r.warnings for r in results],
    image_ranking,
    pixel_ranking,
    _merge_confusions(results).fp,
    None if calibration_scores is None else calibration_scores.scores,
    [{'peak': r.peak, 'at': r.at, 'regions': [x._asdict() for x in r.regions]} for r in results],
    region_warning=_region_warning(results) if model.ops.region else '',
  )
  return Evaluation(metric_values, curve_data, pixels.anomaly_maps)


def _region_warning(results: Sequence[ImageResult]) -> str:
  """Return a warning if defects lie outside of the region of interest; '' if none does."""
  num_unseen = sum(r.num_unseen_defects for r in results)
  if not num_unseen:
    return ''
  total = sum(r.num_defects for r in results)
  text = f'{num_unseen} of {total} labeled defects lie outside of the region of interest.'
  num_images = sum(0 < r.num_defects == r.num_unseen_defects for r in results)
  if num_images:
    text += f' Defective images without any other, which still count as defective: {num_images}.'
  return text


def compare_with_mask(
  record: Record, result: Result, truth: pixel_scores.Mask | None
) -> ImageResult:
  """Compare a result with the ground truth, if there is one."""
  regions = result.regions if result.label == 'review' else ()
  image_result = ImageResult(
    record, result.score, result.label, result.warnings, result.peak, result.at, regions
  )
  if truth is None:
    return image_result
  pred, visible = result.predicted_mask, result.visible  # No invisible pixel is predicted.
  visible_truth = truth & visible
  num_cropped = visible.size - int(np.count_nonzero(visible))
  confusion = metrics.Confusion.from_predictions(pred, visible_truth)
  sizes, hits = metrics.region_hits(pred, visible_truth)
  _, is_seen = metrics.region_hits(visible, truth)
  return image_result._replace(
    confusion=confusion._replace(tn=confusion.tn - num_cropped),
    region_sizes=sizes,
    region_hits=hits,
    num_cropped_pixels=num_cropped,
    num_cropped_defect_pixels=int(np.count_nonzero(truth) - np.count_nonzero(visible_truth)),
    num_defects=len(is_seen),
    num_unseen_defects=int(np.count_nonzero(~is_seen)),
  )


def rank_images(results: Sequence[ImageResult]) -> metrics.Ranking | None:
  """Rank the images by score; return None unless both classes are present."""
  is_anomalous = np.array([r.record.is_anomalous for r in results], bool)
  scores = np.array([r.score for r in results])
  if is_anomalous.all() or not is_anomalous.any():
    return None
  return metrics.rank(scores[is_anomalous], [scores[~is_anomalous]])


def compute_metrics(
  results: Sequence[ImageResult],
  image_ranking: metrics.Ranking | None,
  pixel_ranking: metrics.Ranking | None,
) -> Metrics:
  """Compute image metrics over all images, pixel metrics over visible pixels with ground truth."""
  num_defective = sum(r.record.is_anomalous for r in results)
  return {
    'at_threshold': _metrics_at_threshold(results),
    **{
      f'{prefix}_{name}': metric(ranking) if ranking else None
      for prefix, ranking in (('image', image_ranking), ('pixel', pixel_ranking))
      for name, metric in _RANK_METRICS.items()
    },
    **{
      name: metrics.au_pro(pixel_ranking, limit) if pixel_ranking else None
      for name, limit in _AU_PRO_LIMITS.items()
    },
    # These metrics are at the best threshold in hindsight.
    'oracles': ['image_f1_max', 'pixel_f1_max'],
    'counts': {
      'good': len(results) - num_defective,
      'defective': num_defective,
      'without_mask': sum(r.confusion is None for r in results),
      'unseen_pixels': sum(r.num_cropped_pixels for r in results),
      'unseen_defect_pixels': sum(r.num_cropped_defect_pixels for r in results),
      'defects': sum(r.num_defects for r in results),
      'unseen_defects': sum(r.num_unseen_defects for r in results),
    },
  }


_RANK_METRICS = {'auroc': metrics.auroc, 'ap': metrics.average_precision, 'f1_max': metrics.f1_max}
# False-positive rates up to which MVTec AD and MVTec AD 2 integrate the PRO curve.
_AU_PRO_LIMITS = {'au_pro': curves.PRO_LIMIT, 'au_pro_05': 0.05}


def _metrics_at_threshold(results: Sequence[ImageResult]) -> Metrics:
  """Compute counts and metrics at the calibrated thresholds.

  Positive are NG images and marked pixels. Missed are defective images that are OK.
  """
  is_anomalous = np.array([r.record.is_anomalous for r in results], bool)
  labels, defects = np.array([[r.label, r.record.defect] for r in results]).reshape(-1, 2).T
  is_ng, is_review, is_ok = (labels == label for label in ('NG', 'review', 'OK'))
  image, pixel = metrics.Confusion.from_predictions(is_ng, is_anomalous), _merge_confusions(results)
  has_masks = any(r.confusion for r in results)
  sizes = np.concatenate([r.region_sizes for r in results])
  hits = np.concatenate([r.region_hits for r in results])
  return {
    'counts': verdicts.count([r.label for r in results], is_anomalous.tolist()),
    'image_precision': image.precision,
    'image_recall': image.recall,
    'image_f1': image.f1,
    'false_alarm_rate': _mean(is_ng[~is_anomalous]),
    'review_rate': {
      'good': _mean(is_review[~is_anomalous]),
      'defective': _mean(is_review[is_anomalous]),
    },
    'miss_rate': {d: _mean(is_ok[defects == d]) for d in sorted({*defects[is_anomalous].tolist()})},
    'miss_rate_by_region_size': metrics.miss_rate_by_size(sizes, hits),
    **{
      name: getattr(pixel, name.removeprefix('pixel_')) if has_masks else None
      for name in _PIXEL_METRICS
    },
  }


# Names without their prefix are properties of `metrics.Confusion`.
_PIXEL_METRICS = 'pixel_precision', 'pixel_recall', 'pixel_f1', 'iou', 'dice', 'accuracy', 'kappa'


def _merge_confusions(results: Sequence[ImageResult]) -> metrics.Confusion:
  confusions = [r.confusion for r in results if r.confusion]
  return functools.reduce(metrics.Confusion.merge, confusions, metrics.Confusion())


def _mean(values: Bool[np.ndarray, ' n']) -> float | None:
  return float(values.mean()) if len(values) else None


def picture(record: Record, result: Result, truth: pixel_scores.Mask | None) -> Image.Image:
  """Draw image, ground truth, anomaly map and prediction side by side."""
  image = result.read_image()
  tiles = {
    'image': sheet.Tile(image),
    **({} if truth is None else {'ground truth': sheet.Tile(truth)}),
    'anomaly map': sheet.Tile(
      image, result.anomaly_map, result.visible, region=result.region_of_interest
    ),
    'prediction': sheet.Tile(image, outline=result.region_mask),
  }
  name = f'{record.defect}/{record.path.name}'
  return sheet.draw_sheet(tiles, name, result.caption, result.label, result.color_scale)


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


def mean_metrics(rows: Mapping[str, Metrics]) -> dict[str, float | None]:
  """Return the mean of each metric over the categories that have it."""
  means = {}
  for key in _CSV_COLUMNS.values():
    values = [row[key] for row in map(_flatten, rows.values()) if row[key] is not None]
    means[key] = float(np.mean(values)) if values else None
  return means


def _flatten(row: Metrics) -> Metrics:
  return {**row, **row.get('at_threshold', {})}


def write_csv(path: Path, rows: Mapping[str, Metrics]) -> None:
  """Write a row of metrics and counts per category, and for several categories a row of means."""
  counts = {name: verdicts.by_outcome(row['at_threshold']['counts']) for name, row in rows.items()}
  columns = next(iter(counts.values()))
  if len(rows) > 1:
    means = {column: float(np.mean([c[column] for c in counts.values()])) for column in columns}
    rows, counts = {**rows, 'mean': mean_metrics(rows)}, {**counts, 'mean': means}
  table = [
    [name, *map(_flatten(row).get, _CSV_COLUMNS.values()), *counts[name].values()]
    for name, row in rows.items()
  ]
  files.write_csv(path, [['category', *_CSV_COLUMNS, *columns], *table])
