"""Data of a report as plain numbers and text, the input of the HTML page and the JSON file."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

import numpy as np

from uadjax.data.records import Record
from uadjax.evaluation import curves
from uadjax.evaluation.report import gallery, provenance
from uadjax.visualization import score_histogram

_NUM_BINS = 72
# JavaScript's Number() parses these texts.
_NON_FINITE_TEXT = {'inf': 'Infinity', '-inf': '-Infinity', 'nan': 'NaN'}
_DIGITS = 6  # Curves are rounded far below what is visible.


def build(
  curve_data: curves.CurveData,
  metrics: Mapping[str, object],
  records: Sequence[Record],
  pictures: Sequence[gallery.Picture],
  provenance_info: Mapping[str, object],
) -> dict[str, Any]:
  """Collect the data of a report; see `report.write` for the arguments.

  Numbers that are not finite become the texts Infinity, -Infinity and NaN.
  """
  thresholds = curve_data.thresholds
  held_out = curve_data.calibration_scores
  held_out = np.zeros(0) if held_out is None else held_out
  scores = np.concatenate([curve_data.scores, held_out]).astype(np.float64)
  limits = thresholds.for_charts()
  edges, is_log = score_histogram.bin_edges(
    scores, limits['review_threshold'], limits['image_threshold'], _NUM_BINS
  )
  defect_types = ['good'] * ('good' in curve_data.defects) + curves.hardest_first(curve_data)
  report_data = {
    'format': 2,
    'title': curve_data.title,
    'summary': curves.summary(curve_data),
    'warnings': curves.model_warnings(curve_data),
    'metrics': metrics,
    'thresholds': {
      **limits,
      'method': 'Manual thresholds' if thresholds.is_manual else 'Calibrated thresholds',
      'description': str(thresholds),
    },
    'defect_types': [{'name': name, 'good': name == 'good'} for name in defect_types],
    'images': _describe_images(curve_data, records),
    'held_out': held_out.tolist(),
    'axis': {'edges': edges.tolist(), 'log': is_log},
    'curves': _curve_panels(curve_data),
    'pictures': {
      'images': [picture.image_index for picture in pictures],
      'coarse': sum(picture.is_coarse for picture in pictures),
    },
    'provenance': provenance_info,
  }
  return {key: _to_plain(value) for key, value in report_data.items()}


def _describe_images(
  curve_data: curves.CurveData, records: Sequence[Record]
) -> list[dict[str, object]]:
  """Return path, defect, score, label, warnings, part and location of each test image."""
  columns = {
    'path': provenance.relative_paths([record.path for record in records]),
    'defect': curve_data.defects,
    'score': curve_data.scores.tolist(),
    'label': curves.image_labels(curve_data),
    'warnings': curve_data.warnings,
  }
  if curve_data.parts:
    columns['part'] = curve_data.parts
  locations = curve_data.locations or [{}] * len(records)
  return [
    {**dict(zip(columns, row, strict=True)), **location}
    for *row, location in zip(*columns.values(), locations, strict=True)
  ]


def _curve_panels(curve_data: curves.CurveData) -> dict[str, object]:
  """Return the curves by panel, and the reasons for missing ones."""
  panels: dict[str, object] = {'pro_limit': curves.PRO_LIMIT}
  for panel in curves.CURVES:
    lines = [
      {
        'name': line.name,
        'x': np.round(line.x, _DIGITS).tolist(),
        'y': np.round(line.y, _DIGITS).tolist(),
        'point': line.operating_point,
        'area': line.area_text,
      }
      for line in curves.panel_lines(curve_data, panel)
    ]
    panels[panel] = {'lines': lines, 'missing': curves.explain_missing(curve_data, panel)}
  return panels


def _to_plain(value: object) -> object:
  """Convert a value to JSON types; escape text that is not valid UTF-8, such as file names."""
  if isinstance(value, Mapping):
    return {_escape(str(key)): _to_plain(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_to_plain(item) for item in value]
  if isinstance(value, float) and not math.isfinite(value):
    return _NON_FINITE_TEXT[str(value)]
  if isinstance(value, str):
    return _escape(value)
  return value


def _escape(text: str) -> str:
  return text.encode('utf-8', 'backslashreplace').decode()
