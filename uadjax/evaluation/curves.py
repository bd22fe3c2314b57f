"""Pictures that tell at a glance what a model finds: scores, ROC, precision and recall, PRO.

Letters: n images, m good images of calibration, k vertices of a curve.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
import textwrap
from typing import Any, NamedTuple

from jaxtyping import Bool, Float
from matplotlib import ticker
import numpy as np

from uadjax.model import calibration as calibration
from uadjax.numerics import metrics
from uadjax.system import files
from uadjax.visualization import figures, score_histogram

PRO_LIMIT = 0.3  # False alarms up to which the area under PRO counts.

_OPTIMISTIC = (
  ' The threshold was set by labelled images: if these are among them, that is optimistic.'
)

Vertices = tuple[Float[np.ndarray, ' _k'], Float[np.ndarray, ' _k']]


class Curves(NamedTuple):
  """What is drawn.

  Attributes:
    title: of the model and the test set.
    limits: thresholds; called is what exceeds them.
    scores: of the test images; may be infinite.
    defects: of each image 'good', or the type of its defect.
    image: ranking of the images; None where a class is missing.
    pixel: ranking of the pixels, weighted by region; None where there are no masks.
    pixel_alarms: number of normal pixels that exceed `limits.pixel`: a ranking counts normal ones
      at the scores of anomalous ones alone.
    calibration: scores of good images that the thresholds were set on, if they are at hand.
  """

  title: str
  limits: calibration.Thresholds
  scores: Float[np.ndarray, ' n']
  defects: Sequence[str]
  image: metrics.Ranking | None = None
  pixel: metrics.Ranking | None = None
  pixel_alarms: int = 0
  calibration: Float[np.ndarray, ' m'] | None = None


class Look(NamedTuple):
  """How images and pixels are told apart, also without color."""

  name: str
  color: str
  dashes: Any
  marker: str
  size: float


class Line(NamedTuple):
  """A curve, and what is said of it.

  Attributes:
    look: of images or pixels.
    x: of its vertices.
    y: likewise.
    point: where the calibrated threshold puts the model; None where it calls nothing.
    area: what the curve amounts to.
    told: what `point` means.
  """

  look: Look
  x: Float[np.ndarray, ' k']
  y: Float[np.ndarray, ' k']
  point: tuple[float, float] | None
  area: str
  told: tuple[str, str]


# Okabe and Ito 2008: told apart by every color-blind reader. The disk shows around the square.
IMAGES = Look('Images', '#0072B2', '-', 'o', 10)
PIXELS = Look('Pixels', '#D55E00', (0, (5, 1.5)), 's', 6.5)


def draw(folder: Path, data: Curves) -> None:
  """Replace `folder` by pictures, each as PNG and SVG: all or nothing; same data, same bytes.

  `curves` is all on a page; `histogram`, `roc`, `pr` and `pro` are its parts. A sentence takes the
  place of what cannot be drawn.
  """
  with figures.style(), files.atomic_directory(folder) as fresh:
    figures.write(fresh / 'curves', _overview(data))
    for name, panel in _PANELS.items():
      figure = figures.blank(7.5, 5.6)
      panel(figure, figures.Box(0, 0, 7.5, 5.6), data)
      title = figures.printable(figures.shortened(data.title, 90))
      figure.text(0.98, 0.015, title, ha='right', size=8, color=figures.FAINT)
      figures.write(fresh / name, figure)


def summary(data: Curves) -> str:
  """Tell in a sentence or two what the thresholds do to the test images."""
  good, called = _good(data), data.scores > data.limits.image_threshold
  review = (data.scores > data.limits.review_threshold) & ~called
  parts = []
  if (~good).any():
    parts.append(f'{_some(called[~good], "defective")} found')
  if good.any():
    parts.append(f'{_some(called[good], "good")} called defective')
  if not parts:
    return 'There are no test images.'
  parts[0] += ' at the threshold'
  both = int((review & ~good).sum()), int((review & good).sum())
  kinds = [f'{n} {kind}' for n, kind in zip(both, ('defective', 'good'), strict=True) if n]
  more = f'; {" and ".join(kinds)} more {"is" if sum(both) == 1 else "are"} to be reviewed'
  more *= bool(kinds)
  return f'{", ".join(parts)}{more}.{_OPTIMISTIC * bool(data.limits.num_anomalous)}'


def roc(data: Curves) -> list[Line]:
  """Found against false alarms, of images and of pixels."""
  lines = []
  for look, ranking, threshold, alarms in _known(data):
    false, found = (
      alarms / ranking.total_normals,
      _reached(ranking, ranking.num_anomalous, threshold),
    )
    told = f'{percent(found)} found,', f'{percent(false)} false alarms'
    area = f'AUROC {metrics.auroc(ranking):.3f}'
    lines.append(Line(look, *thin(*metrics.roc_curve(ranking)), (false, found), area, told))
  return lines


def pr(data: Curves) -> list[Line]:
  """Right alarms against found, of images and of pixels: steps, with average precision as area."""
  lines = []
  for look, ranking, threshold, alarms in _known(data):
    recall, precision = metrics.pr_curve(ranking)
    defects = int(ranking.num_anomalous[-1])
    chance = defects / (defects + ranking.total_normals)
    # From the first defect on, where precision is known, to where everything is called.
    x = np.append(np.repeat(recall, 2)[1:-1], 1.0)
    y = np.append(np.repeat(precision, 2)[2:], chance)
    found = _reached(ranking, ranking.num_anomalous, threshold)
    hits = round(found * defects)
    point, told = None, ('nothing exceeds it', '')
    if hits + alarms:
      point = (found, hits / (hits + alarms))
      # After a defect precision falls, and jumps at the next: there the threshold stands.
      place = int(np.searchsorted(x, found, 'right')) - 1
      x, y = np.insert(x, place, point[0]), np.insert(y, place, point[1])
      told = f'{percent(point[1])} of alarms right,', f'{percent(found)} found'
    area = f'AP {metrics.average_precision(ranking):.3f} (chance {chance:.3f})'
    lines.append(Line(look, *thin(x, y), point, area, told))
  return lines


def pro(data: Curves) -> list[Line]:
  """Mean share of a region that is found against false alarms, of pixels."""
  lines = []
  for look, ranking, threshold, alarms in _known(data):
    if look is PIXELS:
      false, found = alarms / ranking.total_normals, _reached(ranking, ranking.overlap, threshold)
      told = f'{percent(found)} of a region found,', f'{percent(false)} false alarms'
      area = f'AU-PRO {metrics.au_pro(ranking, PRO_LIMIT):.3f} up to {percent(PRO_LIMIT)}'
      lines.append(Line(look, *thin(*metrics.pro_curve(ranking)), (false, found), area, told))
  return lines


def thin(x: Float[np.ndarray, ' k'], y: Float[np.ndarray, ' k'], stretches: int = 500) -> Vertices:
  """Cut a curve into so many stretches of one length; keep the first and last vertex of each.

  So a curve never moves by more than the length of a stretch, and its ends and steps stay.
  """
  if len(x) <= 2 * stretches:
    return x, y
  travelled = np.cumsum(np.abs(np.diff(x, prepend=x[:1])) + np.abs(np.diff(y, prepend=y[:1])))
  lasts = np.flatnonzero(np.diff(np.floor(travelled * (stretches / travelled[-1]))))
  kept = np.unique(np.concatenate([[0], lasts, lasts + 1, [len(x) - 1]]))
  return x[kept], y[kept]


def percent(share: float) -> str:
  """Write a share with as many digits as tell it from none and from all."""
  distance = 100 * min(share, 1 - share)
  digits = max(0, int(np.ceil(-np.log10(distance) - 1e-9))) if distance > 0 else 0
  return f'{100 * share:.{digits}f} %'


def _some(which: Bool[np.ndarray, ' _'], kind: str) -> str:
  """Begin a sentence on some of all images of a kind."""
  some, every = int(which.sum()), len(which)
  verb = 'is' if 1 in (some, every) else 'are'
  return f'{some} of {every} {kind} image{"s" * (every > 1)} {verb}'


def _good(data: Curves) -> Bool[np.ndarray, ' n']:
  return np.array([defect == 'good' for defect in data.defects], bool)


def _known(data: Curves) -> Iterator[tuple[Look, metrics.Ranking, float, int]]:
  """Rankings that have both classes, each with its threshold and the normal ones above it."""
  limits = data.limits
  alarms = int((data.scores[_good(data)] > limits.image_threshold).sum())
  for look, ranking, threshold, false in (
    (IMAGES, data.image, limits.image_threshold, alarms),
    (PIXELS, data.pixel, limits.pixel_threshold, data.pixel_alarms),
  ):
    if ranking is not None and len(ranking.scores) and ranking.total_normals:
      yield look, ranking, threshold, false


def _reached(ranking: metrics.Ranking, counted: np.ndarray, threshold: float) -> float:
  """Share of what is counted among the anomalous that exceeds a threshold."""
  above = int(np.searchsorted(-ranking.scores, -threshold, 'left'))
  return float(counted[above - 1] / counted[-1]) if above else 0.0


def _why_not(data: Curves, look: Look) -> list[figures.Words]:
  """Say why there is no curve."""
  missing = 'defective' if 'good' in data.defects else 'good'
  lines = {
    IMAGES: ('Images: no curve', f'without {missing} images'),
    PIXELS: ('Pixels: no curve', 'without masks of defects'),
  }
  return [figures.Words(line, figures.FAINT) for line in lines[look]]


def _roc_panel(figure: figures.Figure, box: figures.Box, data: Curves) -> None:
  axes = _curve_axes(figure, box, 'ROC: what is found, for how many false alarms')
  axes.set(xlabel='false alarms, of all good', ylabel='found, of all defective')
  _draw_lines(axes, roc(data), data, (IMAGES, PIXELS), diagonal=1.0)


def _pr_panel(figure: figures.Figure, box: figures.Box, data: Curves) -> None:
  axes = _curve_axes(figure, box, 'Precision and recall: is an alarm right?')
  axes.set(xlabel='found, of all defective (recall)', ylabel='right, of all alarms (precision)')
  _draw_lines(axes, pr(data), data, (IMAGES, PIXELS))


def _pro_panel(figure: figures.Figure, box: figures.Box, data: Curves) -> None:
  axes = _curve_axes(figure, box, 'PRO: how much of each region is found')
  axes.set(xlabel='false alarms, of all good pixels', ylabel='found, mean over regions')
  lines = pro(data)
  for line in lines:
    end = max(1.15 * PRO_LIMIT, 1.1 * line.point[0] if line.point else 0)
    axes.set_xlim(-0.02 * end, end)
    inside = line.x <= PRO_LIMIT
    x = np.append(line.x[inside], PRO_LIMIT)
    y = np.append(line.y[inside], np.interp(PRO_LIMIT, line.x, line.y))
    axes.fill_between(x, y, color=line.look.color, alpha=0.12, linewidth=0)
  _draw_lines(axes, lines, data, (PIXELS,), diagonal=axes.get_xlim()[1])


def _histogram_panel(figure: figures.Figure, box: figures.Box, data: Curves) -> None:
  limits = data.limits
  score_histogram.panel(
    figure,
    box,
    _rows(data),
    min(limits.review_threshold, limits.image_threshold),
    limits.image_threshold,
  )


_PANELS: Mapping[str, Callable[[figures.Figure, figures.Box, Curves], None]] = {
  'histogram': _histogram_panel,  # First: it needs no explanation.
  'roc': _roc_panel,
  'pr': _pr_panel,
  'pro': _pro_panel,
}


def _overview(data: Curves) -> figures.Figure:
  """Put everything on one page under a sentence that says it."""
  known = any(True for _ in _known(data))
  lines = textwrap.wrap(summary(data), 125)
  if data.defects and not known:
    lines.append(f'There are no curves {_why_not(data, IMAGES)[1].text}.')
  below = 9.0 if known else 5.0
  height = below + 0.68 + 0.22 * len(lines)
  figure = figures.blank(10.0, height)
  figure.text(0.02, 1 - 0.42 / height, figures.printable(data.title), weight='bold', size=15)
  for number, line in enumerate(lines):
    figure.text(0.02, 1 - (0.73 + 0.22 * number) / height, line, size=10.5)
  if not known:  # No room is given to what cannot be drawn.
    _histogram_panel(figure, figures.Box(0, 0, 10, below), data)
    return figure
  for number, panel in enumerate(_PANELS.values()):
    panel(figure, figures.Box(5 * (number % 2), 4.5 * (1 - number // 2), 5, 4.5), data)
  return figure


def _rows(data: Curves, most: int = 10) -> list[score_histogram.Row]:
  """Good images, then the types of defects, the hardest first; the easiest beyond `most` as one."""
  of = np.array(data.defects, str)
  kinds = {name: data.scores[of == name] for name in set(data.defects)}
  rows = []
  if data.calibration is not None and len(data.calibration):
    # Labels, where they are given, set the thresholds instead.
    name = 'good, held out' + ' (thresholds)' * (not data.limits.num_anomalous)
    rows.append(score_histogram.Row(name, data.calibration, True))
  if 'good' in kinds:
    rows.append(score_histogram.Row('good', kinds.pop('good'), True))

  def ease(name: str) -> tuple[float, float, str]:
    scores = np.sort(kinds[name])
    return (
      float((scores > data.limits.image_threshold).mean()),
      float(scores[len(scores) // 2]),
      name,
    )

  ordered = sorted(kinds, key=ease)
  shown = ordered if len(ordered) <= most else ordered[: most - 1]
  rows += [score_histogram.Row(name, kinds[name], False) for name in shown]
  rest = [kinds[name] for name in ordered[len(shown) :]]
  if rest:
    rows.append(score_histogram.Row(f'{len(rest)} other types', np.concatenate(rest), False))
  return rows


def _curve_axes(figure: figures.Figure, box: figures.Box, title: str) -> figures.Axes:
  axes = figures.titled(figure, box, title, left=0.85, right=0.3)
  axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.03))
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_formatter(ticker.FuncFormatter(lambda share, _: f'{100 * share:.4g} %'))
  axes.grid(color='#EAEAEA', linewidth=0.7)
  return axes


def _draw_lines(
  axes: figures.Axes,
  lines: Sequence[Line],
  data: Curves,
  looks: Sequence[Look],
  diagonal: float = 0.0,
) -> None:
  """Draw curves and operating points, then write beside each what it says.

  Args:
    axes: to draw in.
    lines: what there is.
    data: that they are of.
    looks: what there should be.
    diagonal: where the line of chance ends; 0 for none.
  """
  if not lines:
    sentences = [' '.join(words.text for words in _why_not(data, look)) for look in looks]
    figures.sentence(axes, '. '.join(sentences) + '.')
    return
  drawn = []
  if diagonal:
    ends = np.array([0, diagonal])
    axes.plot(ends, ends, color=figures.FAINT, linewidth=1, linestyle=(0, (1, 2)))
    drawn.append(figures.trail(axes, ends, ends))
  for look, x, y, point, *_ in lines:
    axes.plot(x, y, color=look.color, linewidth=1.8, linestyle=look.dashes)
    drawn.append(figures.trail(axes, x, y))
    if point:
      mark = {'color': look.color, 'markersize': look.size, 'markeredgecolor': 'white'}
      axes.plot(*point, look.marker, zorder=3, **mark)
  labels = []
  for line in lines:
    told = (f'at the threshold {line.told[0]}', line.told[1])
    words = [figures.Words(f'{line.look.name}  {line.area}', line.look.color, 'bold')]
    words += [figures.Words(text) for text in told if text]
    middle = len(line.x) // 2
    near = line.point or (float(line.x[middle]), float(line.y[middle]))
    labels.append(figures.Label(words, near, line.look.color))
  covered = figures.label(axes, labels, np.concatenate(drawn))
  for look in set(looks) - {line.look for line in lines}:
    covered = figures.label(axes, [figures.Label(_why_not(data, look), (1.0, 0.0))], covered)
  if diagonal:
    place = (0.62 * diagonal, 0.62 * diagonal)
    figures.label(axes, [figures.Label([figures.Words('chance', figures.FAINT)], place)], covered)
