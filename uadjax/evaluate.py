"""A model against a test set: numbers, a CSV row and pictures, all at original resolution."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
import csv
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import Bool, Float
import numpy as np
from PIL import Image

from uadjax import metrics, predict, score, visualize
from uadjax.bundle import Model
from uadjax.data import preprocess
from uadjax.types import DataError, Record


class Judged(NamedTuple):
  """A test image with its verdict and what is known of it."""

  record: Record
  result: predict.Result
  truth: Bool[np.ndarray, 'h w'] | None


def evaluate(
  model: Model,
  records: Sequence[Record],
  mesh: jax.sharding.Mesh,
  batch_size: int,
  pictures: Path,
  number: int,
) -> dict[str, Any]:
  """Score a test set and measure; leave `number` pictures in a folder, spread over the defects.

  Returns:
    metrics as of the result file. A metric that lacks a class (no defects, no masks) is None.
  """
  mask_threshold = model.config.data.mask_threshold
  chosen = _spread(records, number)
  pictures.mkdir(parents=True, exist_ok=True)
  judged: list[Judged] = []
  for scored in score.records(model.score, model.fitted, records, model.ops, batch_size, mesh):
    one = _judge(model, scored, mask_threshold)
    if one.record in chosen:
      picture(model, one).save(pictures / f'{one.record.defect}_{one.record.path.stem}.png')
    judged.append(one)
  return measure(judged)


def measure(judged: Sequence[Judged]) -> dict[str, Any]:
  """Image metrics over all images; pixel metrics over the seen pixels of those with a mask."""
  labels = np.array([one.record.anomalous for one in judged])
  scores = np.array([one.result.score for one in judged])
  called = np.array([one.result.label == 'NG' for one in judged])
  masked = [(one.truth, one.result) for one in judged if one.truth is not None]
  pixel_auroc = None
  if masked:
    pixel_auroc = _auroc(
      np.concatenate([truth[result.seen] for truth, result in masked]),
      np.concatenate([result.anomaly_map[result.seen] for _, result in masked]),
    )
  defects = sorted({one.record.defect for one in judged if one.record.anomalous})
  of = np.array([one.record.defect for one in judged])
  return {
    'image_auroc': _auroc(labels, scores),
    'pixel_auroc': pixel_auroc,
    'at_threshold': {
      'false_alarm_rate': float(called[~labels].mean()) if (~labels).any() else None,
      'miss_rate': {defect: float(1 - called[of == defect].mean()) for defect in defects},
    },
    'counts': {
      'good': int((~labels).sum()),
      'defective': int(labels.sum()),
      'without_mask': len(judged) - len(masked),
      'unseen_pixels': int(sum((~result.seen).sum() for _, result in masked)),
      'unseen_defect_pixels': int(sum((truth & ~result.seen).sum() for truth, result in masked)),
    },
  }


def picture(model: Model, judged: Judged) -> Image.Image:
  """Show image, ground truth, heatmap and prediction side by side."""
  record, result = judged.record, judged.result
  image = preprocess.decode(record.path)
  blank = np.zeros(image.shape[:2], bool)
  tiles = [
    visualize.Tile('image', image),
    visualize.Tile(
      'ground truth' if judged.truth is not None else 'no ground truth',
      visualize.black_and_white(blank if judged.truth is None else judged.truth),
    ),
    visualize.Tile('heatmap', visualize.overlay(image, result.anomaly_map, model.limits.pixel)),
    visualize.Tile('prediction', visualize.outline(image, result.pred)),
  ]
  headline = f'{record.defect}/{record.path.name}   {predict.headline(result)}'
  return visualize.side_by_side(tiles, headline)


_COLUMNS = {'Image_AUROC': 'image_auroc', 'Pixel_AUROC': 'pixel_auroc'}


def means(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
  """The mean of each metric over the categories that have it."""
  found = {key: [row[key] for row in rows.values()] for key in _COLUMNS.values()}
  numbers = {key: [v for v in values if v is not None] for key, values in found.items()}
  return {key: float(np.mean(values)) if values else None for key, values in numbers.items()}


def write_csv(path: Path, rows: Mapping[str, Mapping[str, Any]]) -> None:
  """Write a row per category, and for several the mean of those that have a number."""
  rows = {**rows, 'mean': means(rows)} if len(rows) > 1 else rows
  with path.open('w', newline='') as file:
    writer = csv.writer(file)
    writer.writerow(['category', *_COLUMNS])
    writer.writerows([name, *(row[key] for key in _COLUMNS.values())] for name, row in rows.items())


def _judge(model: Model, scored: score.Scored, mask_threshold: int) -> Judged:
  record = scored.record
  size = preprocess.image_size(record.path)
  result = predict.judge(model, str(record.path), size, scored.map, scored.image)
  truth = None
  if not record.anomalous:
    truth = np.zeros(size, bool)
  elif record.mask is not None:
    truth = preprocess.read_mask(record.mask, mask_threshold)
    if truth.shape != size:
      raise DataError(
        f'{record.mask} is {truth.shape[1]}x{truth.shape[0]} pixels, but its image {record.path} '
        f'is {size[1]}x{size[0]}; give the mask the size of the image.'
      )
  return Judged(record, result, truth)


def _auroc(labels: Bool[np.ndarray, ' n'], scores: Float[np.ndarray, ' n']) -> float | None:
  return metrics.auroc(labels, scores) if labels.any() and not labels.all() else None


def _spread(records: Sequence[Record], number: int) -> set[Record]:
  """Choose records in turn from every defect and the good ones."""
  kinds: dict[str, list[Record]] = defaultdict(list)
  for record in records:
    kinds[record.defect].append(record)
  rank = {r: i for group in kinds.values() for i, r in enumerate(group)}
  return set(sorted(records, key=lambda record: rank[record])[:number])
