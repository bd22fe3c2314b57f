"""Data of a report as plain numbers and text, the input of the HTML page and the JSON file."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

import numpy as np

from uadjax.data.records import Record
from uadjax.evaluation import curves
from uadjax.evaluation.report import gallery, provenance
from uadjax.model import calibration
from uadjax.visualization import score_histogram

_NUM_BINS = 72
# JavaScript's Number() parses these texts.
_NON_FINITE_TEXT = {'inf': 'Infinity', '-inf': '-Infinity', 'nan': 'NaN'}
_DIGITS = 6  # Curves are rounded far below what is visible.


def build(
  curve_data: curves.CurveData,
  metrics: Mapping[str, Any],
  records: Sequence[Record],
  pictures: Sequence[gallery.Picture],
  provenance_info: Mapping[str, Any],
) -> dict[str, Any]:
  """Collect the data of a report; see `report.write` for the arguments.

  Numbers that are not finite become the texts Infinity, -Infinity and NaN.
  """
  thresholds = curve_data.thresholds
  names = provenance.relative_paths([record.path for record in records])
  rows = zip(names, curve_data.defects, curve_data.scores.tolist(), strict=True)
  held_out_scores = (
    [] if curve_data.calibration_scores is None else curve_data.calibration_scores.tolist()
  )
  return _to_plain({
    'format': 2,
    'title': curve_data.title,
    'summary': curves.summary(curve_data),
    'metrics': metrics,
    'thresholds': {
      'review_threshold': min(thresholds.review_threshold, thresholds.image_threshold),
      'image_threshold': thresholds.image_threshold,
      'pixel_threshold': thresholds.pixel_threshold,
      'method': 'Manual thresholds' if thresholds.is_manual else 'Calibrated thresholds',
      'description': str(thresholds),
    },
    'defect_types': _defect_types(curve_data),
    'images': [
      {
        'path': name,
        'defect': defect,
        'score': score,
        'label': calibration.label(score, thresholds),
      }
      for name, defect, score in rows
    ],
    'held_out': held_out_scores,
    'axis': _score_axis(curve_data),
    'curves': _curve_panels(curve_data),
    'pictures': {
      'images': [picture.image_index for picture in pictures],
      'coarse': _count_coarse(pictures),
    },
    'provenance': provenance_info,
  })  # fmt: skip


def _defect_types(curve_data: curves.CurveData) -> list[dict[str, Any]]:
  """List 'good', if present, then the types of defects, the hardest first."""
  names = ['good'] * ('good' in curve_data.defects) + curves.hardest_first(curve_data)
  return [{'name': name, 'good': name == 'good'} for name in names]


def _score_axis(curve_data: curves.CurveData) -> dict[str, Any]:
  """Return the bin edges of the score axis, logarithmic if scores span more than a decade."""
  thresholds, held_out_scores = curve_data.thresholds, curve_data.calibration_scores
  all_scores = (
    curve_data.scores
    if held_out_scores is None
    else np.concatenate([curve_data.scores, held_out_scores])
  )
  review_threshold = min(thresholds.review_threshold, thresholds.image_threshold)
  edges, is_log = score_histogram.bin_edges(
    all_scores.astype(np.float64), review_threshold, thresholds.image_threshold, _NUM_BINS
  )
  return {'edges': edges.tolist(), 'log': is_log}


def _curve_panels(curve_data: curves.CurveData) -> dict[str, Any]:
  """Return the curves by panel, and the reasons for missing ones."""
  defects = set(curve_data.defects)
  missing_class = 'good' if 'good' not in defects else 'defective'
  reasons = {
    'Images': f'No image curve: the test set has no {missing_class} images.',
    'Pixels': 'No pixel curve: the test set has no masks, or no normal pixels.',
  }
  lines_by_panel = {
    'roc': curves.roc(curve_data),
    'pr': curves.pr(curve_data),
    'pro': curves.pro(curve_data),
  }
  panels = {}
  for panel, lines in lines_by_panel.items():
    expected_names = ('Pixels',) if panel == 'pro' else ('Images', 'Pixels')
    missing_names = set(expected_names) - {line.style.name for line in lines}
    panels[panel] = {
      'lines': [_line_dict(line) for line in lines],
      'missing': [reasons[name] for name in sorted(missing_names)],
    }
  return panels | {'pro_limit': curves.PRO_LIMIT}


def _line_dict(line: curves.Line) -> dict[str, Any]:
  return {
    'name': line.style.name,
    'x': np.round(line.x, _DIGITS).tolist(),
    'y': np.round(line.y, _DIGITS).tolist(),
    'point': line.operating_point,
    'area': line.area_text,
  }


def _count_coarse(pictures: Sequence[gallery.Picture]) -> int:
  """Return the number of pictures that were encoded more coarsely to fit."""
  return sum(picture.is_coarse for picture in pictures)


def _to_plain(value: Any) -> Any:
  """Convert a value to JSON types; escape text that is not valid UTF-8, such as file names."""
  if isinstance(value, Mapping):
    return {_to_plain(str(key)): _to_plain(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_to_plain(item) for item in value]
  if isinstance(value, float) and not math.isfinite(value):
    return _NON_FINITE_TEXT[str(value)]
  if isinstance(value, str):
    return value.encode('utf-8', 'backslashreplace').decode()
  return value
