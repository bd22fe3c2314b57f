"""Score histograms, one strip per group of images, with the thresholds across all strips.

Letters: n images, k edges of bins.
"""

from collections.abc import Sequence
import textwrap
from typing import Any, NamedTuple

from jaxtyping import Float
from matplotlib import collections as shapes, ticker
import numpy as np

from uadjax.visualization import figures, fonts

# Colors by `Row.is_good`, which color-blind readers can distinguish (Okabe and Ito 2008). Those of
# wrong labels are much darker, so that they differ in grayscale, too.
_CORRECT_COLORS = {True: '#56B4E9', False: '#E69F00'}
_WRONG_COLORS = {True: '#004C7A', False: '#A33B00'}
_REVIEW_COLOR = '#F7F2C4'

_FONT_SIZE = 8.5  # Names and counts are small, since the strips need the space.
_COLUMN_WIDTHS = {'OK': 0.4, 'review': 0.56, 'NG': 0.4}  # In inches.


class Row(NamedTuple):
  """Group of images that share a strip, for example those of one type of defect.

  Attributes:
    name: name of the group.
    scores: anomaly scores, which may be infinite.
    is_good: whether the images are good.
  """

  name: str
  scores: Float[np.ndarray, ' n']
  is_good: bool


def draw(
  figure: figures.Figure,
  box: figures.Box,
  rows: Sequence[Row],
  review_threshold: float,
  image_threshold: float,
) -> None:
  """Draw a histogram strip for each row, with the number of images per label next to it.

  Args:
    figure: figure to draw on.
    box: part of the figure to use.
    rows: groups of images, from the top.
    review_threshold: score above which images need review; at most `image_threshold`.
    image_threshold: score above which images are NG.
  """
  title = 'Score histograms'
  if not rows:
    figures.show_message(
      figures.add_titled_axes(figure, box, title, 0.5, 0.5), 'There are no images.'
    )
    return
  row_names = [_wrap_name(row.name, int(3.2 * box.width)) for row in rows]
  left = 0.28 + figures.max_text_width(figure, '\n'.join(row_names).split('\n'), _FONT_SIZE)
  column_names = [
    name for name in _COLUMN_WIDTHS if name != 'review' or review_threshold < image_threshold
  ]
  right = 0.12 + sum(_COLUMN_WIDTHS[name] for name in column_names)
  axes = figures.add_titled_axes(figure, box, title, left, right, top=1.03, bottom=0.82)
  all_scores = np.concatenate([row.scores for row in rows]).astype(np.float64)
  # Bins are an eighth of an inch wide, so that they can be seen and hovered over.
  edges, is_log = bin_edges(
    all_scores, review_threshold, image_threshold, int(8 * _size_in_inches(axes)[0])
  )
  axes.set(xscale='log' if is_log else 'linear', xlim=(edges[0], edges[-1]))
  axes.set(ylim=(0.88 - len(rows), 0.95))
  axes.set_yticks(0.3 - np.arange(len(rows)), row_names, size=_FONT_SIZE, linespacing=1.0)
  axes.tick_params(axis='y', length=0)
  axes.spines['left'].set_visible(False)
  for index, row in enumerate(rows):
    _draw_strip(axes, -float(index), row, edges, review_threshold, image_threshold)
  _draw_thresholds(axes, left, review_threshold, image_threshold)
  _draw_count_table(axes, rows, column_names, review_threshold, image_threshold)
  num_infinite = int(np.isinf(all_scores).sum())
  infinite_text = f'; {num_infinite} infinite' * bool(num_infinite)
  axes.set_xlabel(
    f'score (dark: defective but OK, good but NG{infinite_text})\neach row has its own scale'
  )
  num_decades = np.log10(edges[-1] / edges[0]) if is_log else 0
  max_ticks = max(2, int(_size_in_inches(axes)[0] / 0.5))  # More tick labels would overlap.
  log_locator = ticker.LogLocator(subs=(1, 2, 5) if num_decades < 2 else (1,), numticks=max_ticks)
  axes.xaxis.set_major_locator(log_locator if is_log else ticker.MaxNLocator(max_ticks + 1))
  axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f'{value:.4g}'))
  axes.xaxis.set_minor_locator(ticker.NullLocator())


def bin_edges(
  scores: Float[np.ndarray, ' n'],
  review_threshold: float,
  image_threshold: float,
  num_bins: int = 40,
) -> tuple[Float[np.ndarray, ' k'], bool]:
  """Return edges of bins that cover all scores; finite thresholds are edges.

  So all images in a bin have the same label, unless the review band is narrower than a bin.

  Args:
    scores: anomaly scores; infinite ones are ignored.
    review_threshold: score above which images need review.
    image_threshold: score above which images are NG.
    num_bins: approximate number of bins.

  Returns:
    The edges, and whether the bins are equally wide on a logarithmic scale, which is the case if
    the scores are positive and the largest is more than 20 times the smallest.
  """
  values = np.concatenate([scores, [review_threshold, image_threshold]])
  values = values[np.isfinite(values)] if np.isfinite(values).any() else np.zeros(1)
  is_log = bool(values.min() > 0 and values.max() > 20 * values.min())
  transform, inverse = (np.log, np.exp) if is_log else (np.positive, np.positive)
  low, high = transform(values.min()), transform(values.max())
  min_step = max(1e-6 * max(abs(low), abs(high)), float(np.finfo(np.float32).tiny))
  step = max((high - low) / num_bins, min_step)
  has_finite_thresholds = np.isfinite([review_threshold, image_threshold]).all()
  num_review_bins = (
    round((transform(image_threshold) - transform(review_threshold)) / step)
    if has_finite_thresholds
    else 0
  )
  step = (
    (transform(image_threshold) - transform(review_threshold)) / num_review_bins
    if num_review_bins
    else step
  )
  pivot = transform(image_threshold) if np.isfinite(image_threshold) else low
  first_index, last_index = (
    int(np.floor((low - pivot) / step)) - 1,
    int(np.ceil((high - pivot) / step)) + 1,
  )
  edges = inverse(pivot + step * np.arange(first_index, last_index + 1))
  if np.isfinite(image_threshold):
    edges[-first_index] = image_threshold  # Rounding may have moved this edge.
  if num_review_bins:
    edges[-first_index - num_review_bins] = review_threshold
  return edges, is_log


def count_per_bin(
  scores: Float[np.ndarray, ' n'], edges: Float[np.ndarray, ' k']
) -> Float[np.ndarray, ' _']:
  """Count the scores in each bin; bins include their upper edge, as labels do.

  Scores beyond the edges are counted in the outermost bins.
  """
  bin_indices = np.searchsorted(edges, scores.astype(np.float64), 'left') - 1
  clipped_indices = np.clip(bin_indices, 0, len(edges) - 2)
  return np.bincount(clipped_indices, minlength=len(edges) - 1).astype(np.float64)


def _draw_strip(
  axes: figures.Axes,
  base: float,
  row: Row,
  edges: Float[np.ndarray, ' k'],
  review_threshold: float,
  image_threshold: float,
) -> None:
  counts = count_per_bin(row.scores, edges)
  is_nonempty = counts > 0
  # A single image among thousands stays visible.
  heights = np.maximum(0.8 * counts / counts.max(), 0.09)[is_nonempty]
  # A review band narrower than a bin has no edges, so a bin with any wrong label is dark.
  is_wrong = row.scores > image_threshold if row.is_good else row.scores <= review_threshold
  has_wrong = count_per_bin(row.scores[is_wrong], edges) > 0
  colors = np.where(has_wrong, _WRONG_COLORS[row.is_good], _CORRECT_COLORS[row.is_good])[
    is_nonempty
  ].tolist()
  x = np.stack([edges[:-1], edges[:-1], edges[1:], edges[1:]], axis=1)[is_nonempty]
  y = base + heights[:, None] * np.array([[0.0, 1.0, 1.0, 0.0]])
  edge_style = {'edgecolors': 'white', 'linewidths': 0.3}
  bars = shapes.PolyCollection(list(np.stack([x, y], axis=-1)), facecolors=colors, **edge_style)
  axes.add_collection(bars, autolim=False)
  axes.axhline(base, color='#D0D0D0', linewidth=0.7, zorder=0)


def _draw_thresholds(
  axes: figures.Axes, left: float, review_threshold: float, image_threshold: float
) -> None:
  """Draw the thresholds, their names above the rows at different heights."""
  threshold_lines: list[tuple[str, float, float, Any]] = [('NG', image_threshold, 0.42, '-')]
  if review_threshold < image_threshold:
    threshold_lines.append(('review', review_threshold, 0.16, (0, (3, 2))))
    if np.isfinite([review_threshold, image_threshold]).all():
      axes.axvspan(review_threshold, image_threshold, color=_REVIEW_COLOR, zorder=0, linewidth=0)
  width, height = _size_in_inches(axes)
  for name, threshold, offset, line_style in threshold_lines:
    if np.isfinite(threshold):
      top = 1 + (offset + 0.14) / height
      line_options = {
        'transform': axes.get_xaxis_transform(),
        'clip_on': False,
        'linestyle': line_style,
      }
      axes.plot(
        [threshold, threshold], [0, top], color=figures.TEXT_COLOR, linewidth=1.1, **line_options
      )
      axes_x = axes.transAxes.inverted().transform(axes.transData.transform((threshold, 0)))[0]
      # The text is to the left of its line, above the row names, if there is enough space.
      alignment, shift = ('right', -0.05) if left + axes_x * width > 1.75 else ('left', 0.05)
      text = f'{name} above {f"{threshold:#.3g}".rstrip(".")}'
      background = {'facecolor': 'white', 'edgecolor': 'none', 'pad': 1}
      position = (axes_x + shift / width, 1 + offset / height)
      axes.text(*position, text, ha=alignment, transform=axes.transAxes, bbox=background)


def _draw_count_table(
  axes: figures.Axes,
  rows: Sequence[Row],
  column_names: Sequence[str],
  review_threshold: float,
  image_threshold: float,
) -> None:
  """Write the number of images per label next to each row, wrong labels dark."""
  width, height = _size_in_inches(axes)
  right_edges = 1 + np.cumsum([_COLUMN_WIDTHS[name] for name in column_names]) / width
  column_positions = dict(zip(column_names, right_edges, strict=True))
  header_style = {'ha': 'right', 'size': _FONT_SIZE, 'weight': 'bold', 'transform': axes.transAxes}
  for name, x in column_positions.items():
    axes.text(x, 1 + 0.16 / height, name, **header_style)
  for index, row in enumerate(rows):
    num_ok, num_ng = (
      int((row.scores <= review_threshold).sum()),
      int((row.scores > image_threshold).sum()),
    )
    counts = {'OK': num_ok, 'review': len(row.scores) - num_ok - num_ng, 'NG': num_ng}
    for name, x in column_positions.items():
      is_wrong = counts[name] > 0 and name == ('NG' if row.is_good else 'OK')
      axes.text(
        x,
        0.3 - index,
        f'{counts[name]}',
        ha='right',
        va='center_baseline',
        size=_FONT_SIZE,
        weight='bold' if is_wrong else 'normal',
        color=_WRONG_COLORS[row.is_good] if is_wrong else figures.TEXT_COLOR,
        transform=axes.get_yaxis_transform(),
      )


def _wrap_name(name: str, max_letters: int) -> str:
  """Wrap a name into one or two lines of at most `max_letters` letters."""
  lines = textwrap.wrap(
    fonts.printable(name),
    max_letters,
    break_long_words=False,
    break_on_hyphens=False,
  )
  if len(lines) > 2:
    lines = [fonts.shorten_middle(fonts.printable(name), max_letters)]
  return '\n'.join(fonts.shorten_middle(line, max_letters) for line in lines)


def _size_in_inches(axes: figures.Axes) -> tuple[float, float]:
  """Return width and height of axes in inches."""
  return axes.bbox.width / figures.DPI, axes.bbox.height / figures.DPI
