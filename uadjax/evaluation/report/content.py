"""What a report says, as plain numbers and text: the page is drawn from it, and its twin is it."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

import numpy as np

from uadjax.data.records import Record
from uadjax.evaluation import curves
from uadjax.evaluation.report import gallery, provenance
from uadjax.model import calibration
from uadjax.visualization import score_histogram

_BINS = 72
_ODD = {'inf': 'Infinity', '-inf': '-Infinity', 'nan': 'NaN'}  # As JavaScript reads them.
_DIGITS = 6  # Of shares: far below what is seen.


def of(
  drawn: curves.Curves,
  metrics: Mapping[str, Any],
  records: Sequence[Record],
  shots: Sequence[gallery.Shot],
  about: Mapping[str, Any],
) -> dict[str, Any]:
  """Gather it; see `report.write`. What is no finite number is text: Infinity, -Infinity, NaN."""
  limits = drawn.limits
  names = provenance.relative([record.path for record in records])
  rows = zip(names, drawn.defects, drawn.scores.tolist(), strict=True)
  held_out = [] if drawn.calibration is None else drawn.calibration.tolist()
  return _plain({
    'format': 1,
    'title': drawn.title,
    'summary': curves.summary(drawn),
    'metrics': metrics,
    'thresholds': {
      'review': min(limits.review_threshold, limits.image_threshold),
      'ng': limits.image_threshold,
      'pixel': limits.pixel_threshold,
      'how': 'As given' if limits.is_manual else 'As calibrated',
      'stand_on': str(limits),
    },
    'kinds': _kinds(drawn),
    'images': [
      {'path': name, 'defect': defect, 'score': score, 'label': calibration.label(score, limits)}
      for name, defect, score in rows
    ],
    'held_out': held_out,
    'axis': _axis(drawn),
    'curves': _curves(drawn),
    'pictures': {'images': [shot.place for shot in shots], 'coarse': _coarse(shots)},
    'about': about,
  })  # fmt: skip


def _kinds(drawn: curves.Curves) -> list[dict[str, Any]]:
  """Good images, then the types of defects, the hardest first."""
  of = np.array(drawn.defects, str)

  def ease(name: str) -> tuple[float, float, str]:
    scores = drawn.scores[of == name]
    return (
      float((scores > drawn.limits.image_threshold).mean()),
      float(np.sort(scores)[len(scores) // 2]),
      name,
    )

  good = [name for name in set(drawn.defects) if name == 'good']
  names = good + sorted(set(drawn.defects) - {'good'}, key=ease)
  return [{'name': name, 'good': name == 'good'} for name in names]


def _axis(drawn: curves.Curves) -> dict[str, Any]:
  """Bins of the scores; even in the logarithm where those span more than a decade."""
  limits, held_out = drawn.limits, drawn.calibration
  every = drawn.scores if held_out is None else np.concatenate([drawn.scores, held_out])
  review = min(limits.review_threshold, limits.image_threshold)
  edges, log = score_histogram.bins(every.astype(np.float64), review, limits.image_threshold, _BINS)
  return {'edges': edges.tolist(), 'log': log}


def _curves(drawn: curves.Curves) -> dict[str, Any]:
  """Lines by panel; where there are none, why."""
  kinds = set(drawn.defects)
  lacking = 'good' if 'good' not in kinds else 'defective'
  why = {
    'Images': f'No curve of images: the test set has no {lacking} images.',
    'Pixels': 'No curve of pixels: no mask tells which are defective, or no others are seen.',
  }
  panels = {'roc': curves.roc(drawn), 'pr': curves.pr(drawn), 'pro': curves.pro(drawn)}
  told = {}
  for panel, lines in panels.items():
    wanted = ('Pixels',) if panel == 'pro' else ('Images', 'Pixels')
    missing = set(wanted) - {line.look.name for line in lines}
    told[panel] = {
      'lines': [_line(line) for line in lines],
      'missing': [why[name] for name in sorted(missing)],
    }
  return told | {'pro_limit': curves.PRO_LIMIT}


def _line(line: curves.Line) -> dict[str, Any]:
  return {
    'name': line.look.name,
    'x': np.round(line.x, _DIGITS).tolist(),
    'y': np.round(line.y, _DIGITS).tolist(),
    'point': line.point,
    'area': line.area,
  }


def _coarse(shots: Sequence[gallery.Shot]) -> int:
  """How many pictures were encoded more coarsely, to fit."""
  return sum(shot.coarse for shot in shots)


def _plain(value: Any) -> Any:
  """As JSON can hold it, and UTF-8: names of files may be neither."""
  if isinstance(value, Mapping):
    return {_plain(str(key)): _plain(one) for key, one in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(one) for one in value]
  if isinstance(value, float) and not math.isfinite(value):
    return _ODD[str(value)]
  if isinstance(value, str):
    return value.encode('utf-8', 'backslashreplace').decode()
  return value
