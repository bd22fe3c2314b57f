"""Figures of an evaluation: score histogram, ROC, precision-recall and PRO curves.

Letters: n images, m calibration images, k vertices of a curve.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
import textwrap
from typing import Any, NamedTuple

from jaxtyping import Float
from matplotlib import ticker
import numpy as np

from uadjax.evaluation import verdicts
from uadjax.model import calibration
from uadjax.numerics import metrics
from uadjax.system import files
from uadjax.system.text import format_percent
from uadjax.visualization import figures, fonts, score_histogram

PRO_LIMIT = 0.3  # False alarm rate up to which the area under the PRO curve is integrated.

_OPTIMISM_NOTE = (
  ' The threshold was set on labeled images; if they include these, the numbers are optimistic.'
)


class CurveData(NamedTuple):
  """Data that the figures of an evaluation show.

  Attributes:
    title: name of the model and the test set.
    thresholds: calibrated thresholds; scores above them are detections.
    scores: scores of the test images; may be infinite.
    defects: defect type of each image, or 'good'.
    warnings: code and message of each warning about an image.
    image_ranking: ranking of the images; None if a class is missing.
    pixel_ranking: ranking of the pixels, weighted by region; None if there are no masks.
    num_pixel_alarms: number of normal pixels that exceed the pixel threshold. It is not in the
      ranking, which counts normal pixels only at the scores of anomalous ones.
    calibration_scores: scores of the good images that the thresholds were calibrated on, or None.
    locations: `peak`, `at` and, for images to review, `regions` of each image; empty if unknown.
    parts: name of the part that each image shows; empty if images are not grouped.
    region_warning: warning of defects outside of the region of interest; '' if there is none.
  """

  title: str
  thresholds: calibration.Thresholds
  scores: Float[np.ndarray, ' n']
  defects: Sequence[str]
  warnings: Sequence[Sequence[Mapping[str, str]]]
  image_ranking: metrics.Ranking | None = None
  pixel_ranking: metrics.Ranking | None = None
  num_pixel_alarms: int = 0
  calibration_scores: Float[np.ndarray, ' m'] | None = None
  locations: Sequence[Mapping[str, object]] = ()
  parts: Sequence[str] = ()
  region_warning: str = ''


class Line(NamedTuple):
  """Curve with its operating point and texts.

  Attributes:
    name: what is ranked: 'Images' or 'Pixels'.
    x: horizontal coordinates of the vertices.
    y: vertical coordinates of the vertices.
    operating_point: point of the curve at the calibrated threshold; None if nothing exceeds it.
    area_text: area under the curve, as text.
    point_text: description of the operating point.
  """

  name: str
  x: Float[np.ndarray, ' k']
  y: Float[np.ndarray, ' k']
  operating_point: tuple[float, float] | None
  area_text: str
  point_text: str


class _Ranked(NamedTuple):
  """Ranking with both classes, and its counts above the calibrated threshold.

  Attributes:
    name: 'Images' or 'Pixels'.
    ranking: ranking of the scores.
    num_false_alarms: number of normal images or pixels above the threshold.
    false_alarm_rate: share of them.
    recall: share of anomalous ones above the threshold.
    mean_overlap: mean share of a region above the threshold.
  """

  name: str
  ranking: metrics.Ranking
  num_false_alarms: int
  false_alarm_rate: float
  recall: float
  mean_overlap: float


# Styles that distinguish the curves also without color. The colors are those of Okabe and Ito
# (2008), which color-blind readers can distinguish. The markers differ in size, so that a disk
# remains visible behind a square.
_LINE_STYLES: dict[str, dict[str, Any]] = {
  'Images': {'color': '#0072B2', 'linestyle': '-', 'linewidth': 1.8},
  'Pixels': {'color': '#D55E00', 'linestyle': (0, (5, 1.5)), 'linewidth': 1.8},
}
_MARKERS: dict[str, dict[str, Any]] = {
  'Images': {'marker': 'o', 'markersize': 10, 'markeredgecolor': 'white'},
  'Pixels': {'marker': 's', 'markersize': 6.5, 'markeredgecolor': 'white'},
}


def draw(folder: Path, data: CurveData) -> None:
  """Write the figures as PNG and SVG; equal data give equal bytes.

  `curves` is the overview, of which `histogram`, `roc`, `pr` and `pro` are the panels. A sentence
  replaces a curve that cannot be drawn. The folder is replaced atomically.
  """
  with figures.style(), files.atomic_directory(folder) as new_folder:
    figures.write(new_folder / 'curves', _overview_figure(data))
    for name, draw_panel in _PANELS.items():
      figure = figures.new_figure(7.5, 5.6)
      draw_panel(figure.subplots(), data)
      title = fonts.printable(fonts.shorten_middle(data.title, 90))
      figure.supxlabel(title, x=0.98, ha='right', size=8, color=figures.MUTED_COLOR)
      figures.write(new_folder / name, figure)


def summary(data: CurveData) -> str:
  """Summarize in a sentence per class how the thresholds classify the test images."""
  is_optimistic = bool(data.defects and data.thresholds.num_anomalous)
  return verdicts.summarize(_verdict_counts(data)) + _OPTIMISM_NOTE * is_optimistic


def model_warnings(data: CurveData) -> list[dict[str, str]]:
  """Return code and message of each warning that the model does not fit the test images."""
  warnings = verdicts.model_warnings(_verdict_counts(data), data.thresholds)
  if data.region_warning:
    warnings.append({'code': 'defects_outside_region', 'message': data.region_warning})
  return warnings


def _verdict_counts(data: CurveData) -> verdicts.Counts:
  return verdicts.count(image_labels(data), [defect != 'good' for defect in data.defects])


def image_labels(data: CurveData) -> list[str]:
  """Return the label of each test image: OK, review or NG; warnings are considered."""
  scores = zip(data.scores.tolist(), data.warnings, strict=True)
  return [calibration.label(score, data.thresholds, bool(w)) for score, w in scores]


def panel_lines(data: CurveData, panel: str) -> list[Line]:
  """Return the curves of a panel, which is one of CURVES."""
  make_line, names = CURVES[panel]
  return [make_line(r) for r in _complete_rankings(data) if r.name in names]


def explain_missing(data: CurveData, panel: str) -> list[str]:
  """Return a sentence for each curve that a panel lacks."""
  required = {'Images': _missing_images(data), 'Pixels': 'masks and normal pixels'}
  missing_names = set(CURVES[panel][1]) - {r.name for r in _complete_rankings(data)}
  return [f'{name}: no curve without {required[name]}.' for name in sorted(missing_names)]


def _missing_images(data: CurveData) -> str:
  return f'{"defective" if "good" in data.defects else "good"} images'


def _roc_line(r: _Ranked) -> Line:
  """Return the ROC curve: recall against false alarm rate."""
  curve, point = thin(*metrics.roc_curve(r.ranking)), (r.false_alarm_rate, r.recall)
  text = f'{format_percent(r.recall)} recall, {format_percent(r.false_alarm_rate)} false alarms'
  return Line(r.name, *curve, point, f'AUROC {metrics.auroc(r.ranking):.3f}', text)


def _pr_line(r: _Ranked) -> Line:
  """Return the precision-recall curve.

  It is a step function, so that the area below is the average precision.
  """
  recalls, precisions = metrics.pr_curve(r.ranking)
  num_defects = int(r.ranking.num_anomalous[-1])
  chance = num_defects / (num_defects + r.ranking.total_normals)
  # Precision is defined from the first detected defect on; at full recall it falls to chance.
  x = np.append(np.repeat(recalls, 2)[1:-1], 1.0)
  y = np.append(np.repeat(precisions, 2)[2:], chance)
  num_hits = round(r.recall * num_defects)
  point, text = None, 'no alarms'
  if num_alarms := num_hits + r.num_false_alarms:
    point = (r.recall, num_hits / num_alarms)
    # Precision falls after a defect and jumps at the next; the threshold lies on that jump.
    index = int(np.searchsorted(x, r.recall, 'right')) - 1
    x, y = np.insert(x, index, point[0]), np.insert(y, index, point[1])
    text = f'{format_percent(point[1])} precision, {format_percent(r.recall)} recall'
  area_text = f'AP {metrics.average_precision(r.ranking):.3f} (chance {chance:.3f})'
  return Line(r.name, *thin(x, y), point, area_text, text)


def _pro_line(r: _Ranked) -> Line:
  """Return the PRO curve: mean overlap with a region against false alarm rate.

  Bergmann et al. 2020, "Uninformed Students".
  """
  curve, point = thin(*metrics.pro_curve(r.ranking)), (r.false_alarm_rate, r.mean_overlap)
  overlap, rate = format_percent(r.mean_overlap), format_percent(r.false_alarm_rate)
  area = f'AU-PRO {metrics.au_pro(r.ranking, PRO_LIMIT):.3f} up to {format_percent(PRO_LIMIT)}'
  return Line(r.name, *curve, point, area, f'{overlap} mean overlap, {rate} false alarms')


# Curves by panel, with the rankings that they are drawn of.
CURVES: Mapping[str, tuple[Callable[[_Ranked], Line], tuple[str, ...]]] = {
  'roc': (_roc_line, ('Images', 'Pixels')),
  'pr': (_pr_line, ('Images', 'Pixels')),
  'pro': (_pro_line, ('Pixels',)),
}


def thin(
  x: Float[np.ndarray, ' k'], y: Float[np.ndarray, ' k'], num_segments: int = 500
) -> tuple[Float[np.ndarray, ' _k'], Float[np.ndarray, ' _k']]:
  """Thin a curve: cut it into segments of equal length and keep the end vertices of each.

  The curve moves by at most the length of a segment, and its ends and steps remain.
  """
  if len(x) <= 2 * num_segments:
    return x, y
  arc_length = np.cumsum(np.abs(np.diff(x, prepend=x[:1])) + np.abs(np.diff(y, prepend=y[:1])))
  segment_ends = np.flatnonzero(np.diff(np.floor(arc_length * (num_segments / arc_length[-1]))))
  indices = np.unique(np.concatenate([[0], segment_ends, segment_ends + 1, [len(x) - 1]]))
  return x[indices], y[indices]


def _complete_rankings(data: CurveData) -> Iterator[_Ranked]:
  """Yield the rankings with both classes."""
  t = data.thresholds
  good_scores = data.scores[np.array(data.defects, str) == 'good']
  num_image_alarms = int((good_scores > t.image_threshold).sum())
  for name, ranking, threshold, num_false_alarms in (
    ('Images', data.image_ranking, t.image_threshold, num_image_alarms),
    ('Pixels', data.pixel_ranking, t.pixel_threshold, data.num_pixel_alarms),
  ):
    if ranking is not None and len(ranking.scores) and ranking.total_normals:
      num_above = int(np.searchsorted(-ranking.scores, -threshold, 'left'))
      recall, overlap = (
        float(counts[num_above - 1] / counts[-1]) if num_above else 0.0
        for counts in (ranking.num_anomalous, ranking.overlap)
      )
      rate = num_false_alarms / ranking.total_normals
      yield _Ranked(name, ranking, num_false_alarms, rate, recall, overlap)


def hardest_first(data: CurveData) -> list[str]:
  """Return the types of defects, those with the smallest share of detected images first."""
  defects, threshold = np.array(data.defects, str), data.thresholds.image_threshold

  def detection_ease(name: str) -> tuple[float, float, str]:
    scores = np.sort(data.scores[defects == name])
    return float((scores > threshold).mean()), float(scores[len(scores) // 2]), name

  return sorted(set(data.defects) - {'good'}, key=detection_ease)


def _roc_panel(axes: figures.Axes, data: CurveData) -> None:
  axes.set(title='ROC: recall and false alarms', xlabel='false alarm rate', ylabel='recall')
  _draw_lines(axes, data, 'roc', diagonal=1.0)


def _pr_panel(axes: figures.Axes, data: CurveData) -> None:
  axes.set(title='Precision and recall')
  axes.set(xlabel='recall', ylabel='precision (correct share of alarms)')
  _draw_lines(axes, data, 'pr')


def _pro_panel(axes: figures.Axes, data: CurveData) -> None:
  axes.set(title='PRO: per-region overlap')
  axes.set(xlabel='false alarm rate of pixels', ylabel='overlap, mean over regions')
  x_max = 1.15 * PRO_LIMIT
  for line in panel_lines(data, 'pro'):
    x_max = max(x_max, 1.1 * line.operating_point[0] if line.operating_point else 0)
    is_counted = line.x <= PRO_LIMIT
    x = np.append(line.x[is_counted], PRO_LIMIT)
    y = np.append(line.y[is_counted], np.interp(PRO_LIMIT, line.x, line.y))
    axes.fill_between(x, y, color=_LINE_STYLES[line.name]['color'], alpha=0.12, linewidth=0)
  _draw_lines(axes, data, 'pro', diagonal=x_max, x_max=x_max)


def _histogram_panel(axes: figures.Axes, data: CurveData) -> None:
  limits = data.thresholds.for_charts()
  review_threshold, image_threshold = limits['review_threshold'], limits['image_threshold']
  score_histogram.draw(axes, _histogram_rows(data), review_threshold, image_threshold)


_PANELS = {'histogram': _histogram_panel, 'roc': _roc_panel, 'pr': _pr_panel, 'pro': _pro_panel}


def _overview_figure(data: CurveData) -> figures.Figure:
  """Draw all panels on one page, below the title and the summary."""
  has_curves = any(True for _ in _complete_rankings(data))
  lines = textwrap.wrap(summary(data), 125)
  if data.defects and not has_curves:
    lines.append(f'There are no curves without {_missing_images(data)}.')
  header = 0.6 + 0.22 * len(lines)
  height = header + (10.0 if has_curves else 5.0)
  figure = figures.new_figure(10.0, height, header)
  title = fonts.printable(fonts.shorten_middle(data.title, 75))
  figure.text(0.02, 1 - 0.42 / height, title, weight='bold', size=15)
  for index, line in enumerate(lines):
    figure.text(0.02, 1 - (0.73 + 0.22 * index) / height, line, size=10.5)
  if has_curves:
    for axes, draw_panel in zip(figure.subplots(2, 2).flat, _PANELS.values(), strict=True):
      draw_panel(axes, data)
  else:
    _histogram_panel(figure.subplots(), data)
  return figure


def _histogram_rows(data: CurveData, max_types: int = 10) -> list[score_histogram.Row]:
  """Return histogram rows: good images, then defect types, the hardest first.

  Beyond `max_types`, the easiest types are merged into one row.
  """
  defects, rows = np.array(data.defects, str), []
  if data.calibration_scores is not None and len(data.calibration_scores):
    # With labeled images, these scores did not set the thresholds.
    name = 'good, held out' + '\n(thresholds)' * (not data.thresholds.num_anomalous)
    rows.append(score_histogram.Row(name, data.calibration_scores, True))
  if 'good' in data.defects:
    rows.append(score_histogram.Row('good', data.scores[defects == 'good'], True))
  names = hardest_first(data)
  num_separate = len(names) if len(names) <= max_types else max_types - 1
  for name in names[:num_separate]:
    short_name = fonts.printable(fonts.shorten_middle(name, 20))
    rows.append(score_histogram.Row(short_name, data.scores[defects == name], False))
  if others := names[num_separate:]:
    scores = data.scores[np.isin(defects, others)]
    rows.append(score_histogram.Row(f'{len(others)} other types', scores, False))
  return rows


def _draw_lines(
  axes: figures.Axes, data: CurveData, panel: str, diagonal: float = 0.0, x_max: float = 1.02
) -> None:
  """Draw the curves of a panel with operating points and a legend, which explains missing ones.

  Args:
    axes: axes to draw in.
    data: data of the evaluation.
    panel: one of CURVES.
    diagonal: end of the chance line on both axes; 0 for no such line.
    x_max: end of the horizontal axis.
  """
  lines, missing = panel_lines(data, panel), explain_missing(data, panel)
  if not lines:
    figures.show_message(axes, ' '.join(missing))
    return
  axes.set(xlim=(-0.02 * x_max, x_max), ylim=(-0.02, 1.03))
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_formatter(ticker.FuncFormatter(lambda share, _: f'{100 * share:.4g} %'))
  axes.grid(color='#EAEAEA', linewidth=0.7)
  for name, x, y, point, area_text, point_text in lines:
    text, line_style = f'{name}  {area_text}\nat the threshold {point_text}', _LINE_STYLES[name]
    axes.plot(x, y, **line_style)
    # The marker of the legend's entry stands at the operating point alone.
    position = ([point[0]], [point[1]]) if point else ([], [])
    axes.plot(*position, label=text, zorder=3, **line_style, **_MARKERS[name])
  if diagonal:
    chance_style = {'color': figures.MUTED_COLOR, 'linewidth': 1, 'linestyle': (0, (1, 2))}
    axes.plot([0, diagonal], [0, diagonal], label='chance', **chance_style)
  for text in missing:
    axes.plot([], [], ' ', label=text)
  figures.add_legend(axes, offset=4.2)
