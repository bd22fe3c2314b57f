"""Figures of an evaluation: score histogram, ROC, precision-recall and PRO curves.

Letters: n images, m calibration images, k vertices of a curve.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
import textwrap
from typing import Any, NamedTuple

from jaxtyping import Bool, Float
from matplotlib import ticker
import numpy as np

from uadjax.model import calibration
from uadjax.numerics import metrics
from uadjax.system import files
from uadjax.visualization import figures, fonts, score_histogram

PRO_LIMIT = 0.3  # False alarm rate up to which the area under the PRO curve is integrated.

_OPTIMISM_NOTE = (
  ' The threshold was set on labeled images; if they include these, the numbers are optimistic.'
)

Vertices = tuple[Float[np.ndarray, ' _k'], Float[np.ndarray, ' _k']]


class CurveData(NamedTuple):
  """Data that the figures of an evaluation show.

  Attributes:
    title: name of the model and the test set.
    thresholds: calibrated thresholds; scores above them are detections.
    scores: scores of the test images; may be infinite.
    defects: defect type of each image, or 'good'.
    image_ranking: ranking of the images; None if a class is missing.
    pixel_ranking: ranking of the pixels, weighted by region; None if there are no masks.
    num_pixel_alarms: number of normal pixels that exceed the pixel threshold. It is not in the
      ranking, which counts normal pixels only at the scores of anomalous ones.
    calibration_scores: scores of the good images that the thresholds were calibrated on, or None.
  """

  title: str
  thresholds: calibration.Thresholds
  scores: Float[np.ndarray, ' n']
  defects: Sequence[str]
  image_ranking: metrics.Ranking | None = None
  pixel_ranking: metrics.Ranking | None = None
  num_pixel_alarms: int = 0
  calibration_scores: Float[np.ndarray, ' m'] | None = None


class LineStyle(NamedTuple):
  """Style that distinguishes curves of images from those of pixels, also without color."""

  name: str
  color: str
  dashes: Any
  marker: str
  marker_size: float


class Line(NamedTuple):
  """Curve with its operating point and labels.

  Attributes:
    style: style of images or of pixels.
    x: horizontal coordinates of the vertices.
    y: vertical coordinates of the vertices.
    operating_point: point of the curve at the calibrated threshold; None if nothing exceeds it.
    area_text: area under the curve, as text.
    point_text: description of the operating point, in two lines.
  """

  style: LineStyle
  x: Float[np.ndarray, ' k']
  y: Float[np.ndarray, ' k']
  operating_point: tuple[float, float] | None
  area_text: str
  point_text: tuple[str, str]


# Colors of Okabe and Ito (2008), which color-blind readers can distinguish. The markers differ in
# size, so that a disk remains visible behind a square.
IMAGE_STYLE = LineStyle('Images', '#0072B2', '-', 'o', 10)
PIXEL_STYLE = LineStyle('Pixels', '#D55E00', (0, (5, 1.5)), 's', 6.5)


def draw(folder: Path, data: CurveData) -> None:
  """Write the figures as PNG and SVG; equal data give equal bytes.

  `curves` is the overview, of which `histogram`, `roc`, `pr` and `pro` are the panels. A sentence
  replaces a curve that cannot be drawn. The folder is replaced atomically.
  """
  with figures.style(), files.atomic_directory(folder) as new_folder:
    figures.write(new_folder / 'curves', _overview_figure(data))
    for name, draw_panel in _PANELS.items():
      figure = figures.new_figure(7.5, 5.6)
      draw_panel(figure, figures.Box(0, 0, 7.5, 5.6), data)
      title = fonts.printable(fonts.shorten_middle(data.title, 90))
      figure.text(0.98, 0.015, title, ha='right', size=8, color=figures.MUTED_COLOR)
      figures.write(new_folder / name, figure)


def summary(data: CurveData) -> str:
  """Summarize in a sentence or two how the thresholds classify the test images."""
  is_good, is_ng = _good_mask(data), data.scores > data.thresholds.image_threshold
  is_review = (data.scores > data.thresholds.review_threshold) & ~is_ng
  clauses = []
  if (~is_good).any():
    clauses.append(f'{_count_phrase(is_ng[~is_good], "defective")} detected')
  if is_good.any():
    clauses.append(f'{_count_phrase(is_ng[is_good], "good")} called defective')
  if not clauses:
    return 'There are no test images.'
  clauses[0] += ' at the threshold'
  review_counts = int((is_review & ~is_good).sum()), int((is_review & is_good).sum())
  review_texts = [
    f'{n} {kind}' for n, kind in zip(review_counts, ('defective', 'good'), strict=True) if n
  ]
  verb = 'needs' if sum(review_counts) == 1 else 'need'
  review_clause = f'; {" and ".join(review_texts)} more {verb} review' * bool(review_texts)
  return (
    f'{", ".join(clauses)}{review_clause}.{_OPTIMISM_NOTE * bool(data.thresholds.num_anomalous)}'
  )


def roc(data: CurveData) -> list[Line]:
  """Return the ROC curves of images and of pixels: recall against false alarm rate."""
  lines = []
  for style, ranking, threshold, num_false_alarms in _complete_rankings(data):
    false_alarm_rate = num_false_alarms / ranking.total_normals
    recall = _share_above(ranking, ranking.num_anomalous, threshold)
    point_text = (
      f'{format_percent(recall)} recall,',
      f'{format_percent(false_alarm_rate)} false alarms',
    )
    area_text = f'AUROC {metrics.auroc(ranking):.3f}'
    lines.append(
      Line(
        style, *thin(*metrics.roc_curve(ranking)), (false_alarm_rate, recall), area_text, point_text
      )
    )
  return lines


def pr(data: CurveData) -> list[Line]:
  """Return the precision-recall curves of images and of pixels.

  They are step functions, so that the area below is the average precision.
  """
  lines = []
  for style, ranking, threshold, num_false_alarms in _complete_rankings(data):
    recall, precision = metrics.pr_curve(ranking)
    num_defects = int(ranking.num_anomalous[-1])
    chance = num_defects / (num_defects + ranking.total_normals)
    # Precision is defined from the first detected defect on; at full recall it falls to chance.
    x = np.append(np.repeat(recall, 2)[1:-1], 1.0)
    y = np.append(np.repeat(precision, 2)[2:], chance)
    recall_at_threshold = _share_above(ranking, ranking.num_anomalous, threshold)
    num_hits = round(recall_at_threshold * num_defects)
    operating_point, point_text = None, ('no alarms', '')
    if num_hits + num_false_alarms:
      operating_point = (recall_at_threshold, num_hits / (num_hits + num_false_alarms))
      # Precision falls after a defect and jumps at the next; the threshold lies on that jump.
      index = int(np.searchsorted(x, recall_at_threshold, 'right')) - 1
      x, y = np.insert(x, index, operating_point[0]), np.insert(y, index, operating_point[1])
      point_text = (
        f'{format_percent(operating_point[1])} precision,',
        f'{format_percent(recall_at_threshold)} recall',
      )
    area_text = f'AP {metrics.average_precision(ranking):.3f} (chance {chance:.3f})'
    lines.append(Line(style, *thin(x, y), operating_point, area_text, point_text))
  return lines


def pro(data: CurveData) -> list[Line]:
  """Return the PRO curve of the pixels: mean overlap with a region against false alarm rate.

  Bergmann et al. 2020, "Uninformed Students".
  """
  lines = []
  for style, ranking, threshold, num_false_alarms in _complete_rankings(data):
    if style is PIXEL_STYLE:
      false_alarm_rate = num_false_alarms / ranking.total_normals
      mean_overlap = _share_above(ranking, ranking.overlap, threshold)
      point_text = (
        f'{format_percent(mean_overlap)} mean overlap,',
        f'{format_percent(false_alarm_rate)} false alarms',
      )
      area_text = (
        f'AU-PRO {metrics.au_pro(ranking, PRO_LIMIT):.3f} up to {format_percent(PRO_LIMIT)}'
      )
      lines.append(
        Line(
          style,
          *thin(*metrics.pro_curve(ranking)),
          (false_alarm_rate, mean_overlap),
          area_text,
          point_text,
        )
      )
  return lines


def thin(
  x: Float[np.ndarray, ' k'], y: Float[np.ndarray, ' k'], num_segments: int = 500
) -> Vertices:
  """Thin a curve: cut it into segments of equal length and keep the end vertices of each.

  The curve moves by at most the length of a segment, and its ends and steps remain.
  """
  if len(x) <= 2 * num_segments:
    return x, y
  arc_length = np.cumsum(np.abs(np.diff(x, prepend=x[:1])) + np.abs(np.diff(y, prepend=y[:1])))
  segment_ends = np.flatnonzero(np.diff(np.floor(arc_length * (num_segments / arc_length[-1]))))
  indices = np.unique(np.concatenate([[0], segment_ends, segment_ends + 1, [len(x) - 1]]))
  return x[indices], y[indices]


def format_percent(share: float) -> str:
  """Format a share as a percentage, with enough digits to distinguish it from 0 % and 100 %."""
  distance = 100 * min(share, 1 - share)
  digits = max(0, int(np.ceil(-np.log10(distance) - 1e-9))) if distance > 0 else 0
  return f'{100 * share:.{digits}f} %'


def _count_phrase(mask: Bool[np.ndarray, ' _'], class_name: str) -> str:
  """Return the beginning of a sentence, such as '3 of 5 good images are'."""
  count, total = int(mask.sum()), len(mask)
  verb = 'is' if 1 in (count, total) else 'are'
  return f'{count} of {total} {class_name} image{"s" * (total > 1)} {verb}'


def _good_mask(data: CurveData) -> Bool[np.ndarray, ' n']:
  return np.array([defect == 'good' for defect in data.defects], bool)


def _complete_rankings(data: CurveData) -> Iterator[tuple[LineStyle, metrics.Ranking, float, int]]:
  """Yield each ranking with both classes, its style, threshold and number of false alarms."""
  thresholds = data.thresholds
  num_image_alarms = int((data.scores[_good_mask(data)] > thresholds.image_threshold).sum())
  for style, ranking, threshold, num_false_alarms in (
    (IMAGE_STYLE, data.image_ranking, thresholds.image_threshold, num_image_alarms),
    (PIXEL_STYLE, data.pixel_ranking, thresholds.pixel_threshold, data.num_pixel_alarms),
  ):
    if ranking is not None and len(ranking.scores) and ranking.total_normals:
      yield style, ranking, threshold, num_false_alarms


def _share_above(ranking: metrics.Ranking, cumulative: np.ndarray, threshold: float) -> float:
  """Return the share of a cumulative count over the anomalous scores above a threshold."""
  num_above = int(np.searchsorted(-ranking.scores, -threshold, 'left'))
  return float(cumulative[num_above - 1] / cumulative[-1]) if num_above else 0.0


def _missing_curve_text(data: CurveData, style: LineStyle) -> list[figures.TextLine]:
  """Return the lines that explain why a curve is missing."""
  missing_class = 'defective' if 'good' in data.defects else 'good'
  sentences = {
    IMAGE_STYLE: ('Images: no curve', f'without {missing_class} images'),
    PIXEL_STYLE: ('Pixels: no curve', 'without masks of defects'),
  }
  return [figures.TextLine(line, figures.MUTED_COLOR) for line in sentences[style]]


def _roc_panel(figure: figures.Figure, box: figures.Box, data: CurveData) -> None:
  axes = _curve_axes(figure, box, 'ROC: recall and false alarms')
  axes.set(xlabel='false alarm rate', ylabel='recall')
  _draw_lines(axes, roc(data), data, (IMAGE_STYLE, PIXEL_STYLE), diagonal=1.0)


def _pr_panel(figure: figures.Figure, box: figures.Box, data: CurveData) -> None:
  axes = _curve_axes(figure, box, 'Precision and recall')
  axes.set(xlabel='recall', ylabel='precision (correct share of alarms)')
  _draw_lines(axes, pr(data), data, (IMAGE_STYLE, PIXEL_STYLE))


def _pro_panel(figure: figures.Figure, box: figures.Box, data: CurveData) -> None:
  axes = _curve_axes(figure, box, 'PRO: per-region overlap')
  axes.set(xlabel='false alarm rate of pixels', ylabel='overlap, mean over regions')
  lines = pro(data)
  for line in lines:
    x_max = max(1.15 * PRO_LIMIT, 1.1 * line.operating_point[0] if line.operating_point else 0)
    axes.set_xlim(-0.02 * x_max, x_max)
    is_counted = line.x <= PRO_LIMIT
    x = np.append(line.x[is_counted], PRO_LIMIT)
    y = np.append(line.y[is_counted], np.interp(PRO_LIMIT, line.x, line.y))
    axes.fill_between(x, y, color=line.style.color, alpha=0.12, linewidth=0)
  _draw_lines(axes, lines, data, (PIXEL_STYLE,), diagonal=axes.get_xlim()[1])


def _histogram_panel(figure: figures.Figure, box: figures.Box, data: CurveData) -> None:
  thresholds = data.thresholds
  score_histogram.draw(
    figure,
    box,
    _histogram_rows(data),
    min(thresholds.review_threshold, thresholds.image_threshold),
    thresholds.image_threshold,
  )


_PANELS: Mapping[str, Callable[[figures.Figure, figures.Box, CurveData], None]] = {
  'histogram': _histogram_panel,
  'roc': _roc_panel,
  'pr': _pr_panel,
  'pro': _pro_panel,
}


def _overview_figure(data: CurveData) -> figures.Figure:
  """Draw all panels on one page, below the title and the summary."""
  has_curves = any(True for _ in _complete_rankings(data))
  lines = textwrap.wrap(summary(data), 125)
  if data.defects and not has_curves:
    lines.append(f'There are no curves {_missing_curve_text(data, IMAGE_STYLE)[1].text}.')
  panels_height = 9.0 if has_curves else 5.0
  height = panels_height + 0.68 + 0.22 * len(lines)
  figure = figures.new_figure(10.0, height)
  figure.text(0.02, 1 - 0.42 / height, fonts.printable(data.title), weight='bold', size=15)
  for index, line in enumerate(lines):
    figure.text(0.02, 1 - (0.73 + 0.22 * index) / height, line, size=10.5)
  if not has_curves:
    _histogram_panel(figure, figures.Box(0, 0, 10, panels_height), data)
    return figure
  for index, draw_panel in enumerate(_PANELS.values()):
    draw_panel(figure, figures.Box(5 * (index % 2), 4.5 * (1 - index // 2), 5, 4.5), data)
  return figure


def _histogram_rows(data: CurveData, max_types: int = 10) -> list[score_histogram.Row]:
  """Return histogram rows: good images, then defect types, the hardest first.

  Beyond `max_types`, the easiest types are merged into one row.
  """
  defects = np.array(data.defects, str)
  scores_by_defect = {name: data.scores[defects == name] for name in set(data.defects)}
  rows = []
  if data.calibration_scores is not None and len(data.calibration_scores):
    # With labeled images, these scores did not set the thresholds.
    name = 'good, held out' + ' (thresholds)' * (not data.thresholds.num_anomalous)
    rows.append(score_histogram.Row(name, data.calibration_scores, True))
  if 'good' in scores_by_defect:
    rows.append(score_histogram.Row('good', scores_by_defect.pop('good'), True))

  def detection_ease(name: str) -> tuple[float, float, str]:
    scores = np.sort(scores_by_defect[name])
    return (
      float((scores > data.thresholds.image_threshold).mean()),
      float(scores[len(scores) // 2]),
      name,
    )

  hardest_first = sorted(scores_by_defect, key=detection_ease)
  separate_types = (
    hardest_first if len(hardest_first) <= max_types else hardest_first[: max_types - 1]
  )
  rows += [score_histogram.Row(name, scores_by_defect[name], False) for name in separate_types]
  remaining_scores = [scores_by_defect[name] for name in hardest_first[len(separate_types) :]]
  if remaining_scores:
    rows.append(
      score_histogram.Row(
        f'{len(remaining_scores)} other types', np.concatenate(remaining_scores), False
      )
    )
  return rows


def _curve_axes(figure: figures.Figure, box: figures.Box, title: str) -> figures.Axes:
  axes = figures.add_titled_axes(figure, box, title, left=0.85, right=0.3)
  axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.03))
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_formatter(ticker.FuncFormatter(lambda share, _: f'{100 * share:.4g} %'))
  axes.grid(color='#EAEAEA', linewidth=0.7)
  return axes


def _draw_lines(
  axes: figures.Axes,
  lines: Sequence[Line],
  data: CurveData,
  styles: Sequence[LineStyle],
  diagonal: float = 0.0,
) -> None:
  """Draw curves with operating points and labels, and explain missing ones.

  Args:
    axes: axes to draw in.
    lines: curves to draw.
    data: data of the evaluation, which explain missing curves.
    styles: styles of the curves that are expected.
    diagonal: end of the chance line on both axes; 0 for no such line.
  """
  if not lines:
    sentences = [
      ' '.join(text_line.text for text_line in _missing_curve_text(data, style)) for style in styles
    ]
    figures.show_message(axes, '. '.join(sentences) + '.')
    return
  trails = []
  if diagonal:
    ends = np.array([0, diagonal])
    axes.plot(ends, ends, color=figures.MUTED_COLOR, linewidth=1, linestyle=(0, (1, 2)))
    trails.append(figures.sample_line(axes, ends, ends))
  for style, x, y, operating_point, *_ in lines:
    axes.plot(x, y, color=style.color, linewidth=1.8, linestyle=style.dashes)
    trails.append(figures.sample_line(axes, x, y))
    if operating_point:
      marker_options = {
        'color': style.color,
        'markersize': style.marker_size,
        'markeredgecolor': 'white',
      }
      axes.plot(*operating_point, style.marker, zorder=3, **marker_options)
  labels = []
  for line in lines:
    point_texts = (f'at the threshold {line.point_text[0]}', line.point_text[1])
    text_lines = [
      figures.TextLine(f'{line.style.name}  {line.area_text}', line.style.color, 'bold')
    ]
    text_lines += [figures.TextLine(text) for text in point_texts if text]
    middle = len(line.x) // 2
    anchor = line.operating_point or (float(line.x[middle]), float(line.y[middle]))
    labels.append(figures.Label(text_lines, anchor, line.style.color))
  occupied_points = figures.place_labels(axes, labels, np.concatenate(trails))
  for style in set(styles) - {line.style for line in lines}:
    occupied_points = figures.place_labels(
      axes, [figures.Label(_missing_curve_text(data, style), (1.0, 0.0))], occupied_points
    )
  if diagonal:
    label_position = (0.62 * diagonal, 0.62 * diagonal)
    figures.place_labels(
      axes,
      [figures.Label([figures.TextLine('chance', figures.MUTED_COLOR)], label_position)],
      occupied_points,
    )
