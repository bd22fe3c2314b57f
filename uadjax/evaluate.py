"""A model against a test set: numbers, a CSV row and pictures, all at original resolution."""

import collections
from collections.abc import Mapping, Sequence
import csv
import io
from pathlib import Path
import shutil
from typing import Any, NamedTuple

from jaxtyping import Bool, Float
import numpy as np
from PIL import Image

from uadjax import bundle, files, metrics, predict, score, sharding, visualize
from uadjax.data import preprocess
from uadjax.types import Batch, DataError, Record, Scores

Mask = Bool[np.ndarray, 'h w']


class Judged(NamedTuple):
  """What is kept of a test image: no maps, for a test set of them does not fit into memory.

  Attributes:
    record: the image.
    score: of the image.
    label: the verdict.
    masked: whether it is known which pixels are defective.
    normal: map values of the seen pixels that are normal.
    anomalous: likewise of those that are defective.
    unseen: number of pixels outside the crop.
    unseen_defects: how many of them are defective.
  """

  record: Record
  score: float
  label: str
  masked: bool
  normal: Float[np.ndarray, ' n']
  anomalous: Float[np.ndarray, ' m']
  unseen: int = 0
  unseen_defects: int = 0


def evaluate(
  model: bundle.Model,
  records: Sequence[Record],
  mesh: sharding.Mesh,
  batch_size: int,
  mask_threshold: int,
  workdir: Path,
  pictures: int,
) -> dict[str, Any]:
  """Score a test set and measure; leave `scores.csv`, and pictures spread over the defects.

  Returns:
    metrics as of the result file. A metric that lacks a class (no defects, no masks) is None.
  """
  chosen = _spread(records, pictures)
  folder = workdir / 'pictures'
  shutil.rmtree(folder, ignore_errors=True)  # Of an earlier evaluation, maybe of other images.
  folder.mkdir(parents=True)
  judged: list[Judged] = []

  def scorer(fitted: Any, batch: Batch) -> Scores:
    return model.score(fitted, batch.image)

  for scored in score.score(scorer, model.fitted, records, model.ops, batch_size, mesh):
    record = scored.record
    size = preprocess.image_size(record.path)
    result = predict.judge(model, str(record.path), size, scored.map, scored.image)
    truth = _truth(record, size, mask_threshold)
    if record in chosen:
      path = folder / f'{record.defect}_{record.path.stem}.png'
      # Four times as fast as the default, and a fifth larger.
      picture(model, record, result, truth).save(path, compress_level=1)
    judged.append(_kept(record, result, truth))
  rows = [[one.record.path, one.record.defect, one.score, one.label] for one in judged]
  _write_rows(workdir / 'scores.csv', [['path', 'defect', 'score', 'label'], *rows])
  return measure(judged)


def measure(judged: Sequence[Judged]) -> dict[str, Any]:
  """Image metrics over all images; pixel metrics over the seen pixels of those with a mask."""
  labels = np.array([one.record.anomalous for one in judged])
  scores = np.array([one.score for one in judged])
  called = np.array([one.label == 'NG' for one in judged])
  of = np.array([one.record.defect for one in judged])
  masked = [one for one in judged if one.masked]
  return {
    'image_auroc': _auroc(scores[~labels], scores[labels]),
    'pixel_auroc': _auroc(
      np.concatenate([np.zeros(0, np.float32), *(one.normal for one in masked)]),
      np.concatenate([np.zeros(0, np.float32), *(one.anomalous for one in masked)]),
    ),
    'at_threshold': {
      'false_alarm_rate': float(called[~labels].mean()) if (~labels).any() else None,
      'miss_rate': {
        defect: float(1 - called[of == defect].mean()) for defect in sorted(set(of[labels]))
      },
    },
    'counts': {
      'good': int((~labels).sum()),
      'defective': int(labels.sum()),
      'without_mask': len(judged) - len(masked),
      'unseen_pixels': sum(one.unseen for one in masked),
      'unseen_defect_pixels': sum(one.unseen_defects for one in masked),
    },
  }


def picture(
  model: bundle.Model, record: Record, result: predict.Result, truth: Mask | None
) -> Image.Image:
  """Show image, ground truth, heatmap and prediction side by side."""
  image = preprocess.decode(record.path)
  known = np.zeros(image.shape[:2], bool) if truth is None else truth
  tiles = [
    visualize.Tile('image', image),
    visualize.Tile(
      'no ground truth' if truth is None else 'ground truth', visualize.black_and_white(known)
    ),
    visualize.Tile('heatmap', visualize.overlay(image, result.anomaly_map, model.limits.pixel)),
    visualize.Tile('prediction', visualize.outline(image, result.pred)),
  ]
  headline = f'{record.defect}/{predict.headline(result)}'
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
  table = [[name, *(row[key] for key in _COLUMNS.values())] for name, row in rows.items()]
  _write_rows(path, [['category', *_COLUMNS], *table])


def _write_rows(path: Path, rows: Sequence[Sequence[Any]]) -> None:
  text = io.StringIO()
  csv.writer(text, lineterminator='\n').writerows(rows)
  files.write_text(path, text.getvalue())


def _truth(record: Record, size: tuple[int, int], threshold: int) -> Mask | None:
  if not record.anomalous:
    return np.zeros(size, bool)
  if record.mask is None:
    return None
  truth = preprocess.read_mask(record.mask, threshold)
  if truth.shape != size:
    raise DataError(
      f'{record.mask} is {truth.shape[1]}x{truth.shape[0]} pixels, but its image {record.path} '
      f'is {size[1]}x{size[0]}; give the mask the size of the image.'
    )
  return truth


def _kept(record: Record, result: predict.Result, truth: Mask | None) -> Judged:
  if truth is None:
    nothing = np.zeros(0, np.float32)
    return Judged(record, result.score, result.label, False, nothing, nothing)
  seen, values = result.seen, result.anomaly_map
  return Judged(
    record,
    result.score,
    result.label,
    True,
    values[seen & ~truth],
    values[seen & truth],
    int((~seen).sum()),
    int((truth & ~seen).sum()),
  )


def _auroc(normal: Float[np.ndarray, ' n'], anomalous: Float[np.ndarray, ' m']) -> float | None:
  return metrics.auroc_of(normal, anomalous) if len(normal) and len(anomalous) else None


def _spread(records: Sequence[Record], number: int) -> set[Record]:
  """Choose records in turn from every defect and the good ones."""
  kinds: dict[str, list[Record]] = collections.defaultdict(list)
  for record in records:
    kinds[record.defect].append(record)
  rank = {r: i for group in kinds.values() for i, r in enumerate(group)}
  return set(sorted(records, key=lambda record: rank[record])[:number])
