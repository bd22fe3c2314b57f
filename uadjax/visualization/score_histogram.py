"""Where the scores of images lie: a strip for each kind of image, thresholds across all of them.

Letters: n images, k edges of bins.
"""

from collections.abc import Sequence
import textwrap
from typing import Any, NamedTuple

from jaxtyping import Float
from matplotlib import collections as shapes, ticker
import numpy as np

from uadjax.visualization import figures

# Okabe and Ito 2008: told apart by every color-blind reader.
_CORRECT_COLORS = {
  True: '#56B4E9',
  False: '#E69F00',
}  # Good and defective, as they should be called,
_WRONG_COLORS = {True: '#004C7A', False: '#A33B00'}  # and otherwise: far darker, on grey paper too.
_REVIEW_COLOR = '#F7F2C4'

_FONT_SIZE = 8.5  # Names and counts: the strips need the room.
_COLUMN_WIDTHS = {'OK': 0.4, 'review': 0.56, 'NG': 0.4}  # Inches from one right edge to the next.


class Row(NamedTuple):
  """Images that are counted together."""

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
  """Draw a strip for each row; beside it how many of its images are called what.

  Args:
    figure: to draw on.
    box: where.
    rows: from the top; scores may be infinite.
    review: images above it are looked at; at most `ng`.
    ng: images above it are called defective.
  """
  title = 'Scores: where images lie'
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
  # A bin is as wide as can be seen and hovered over: an eighth of an inch.
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
    f'score (dark: defective but OK, good but NG{infinite_text})\nrows: each to its own scale'
  )
  num_decades = np.log10(edges[-1] / edges[0]) if is_log else 0
  max_ticks = max(2, int(_size_in_inches(axes)[0] / 0.5))  # Ticks that have room for their numbers.
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
  """Edges of so many bins, thresholds that are finite among them: a bin is called one thing.

  Returns:
    edges, and whether they are even in the logarithm, as where scores span more than a decade.
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
    edges[-first_index] = image_threshold  # Not an ulp beside it.
  if num_review_bins:
    edges[-first_index - num_review_bins] = review_threshold
  return edges, is_log


def count_per_bin(
  scores: Float[np.ndarray, ' n'], edges: Float[np.ndarray, ' k']
) -> Float[np.ndarray, ' _']:
  """Number of scores in each bin, open below and closed above as scores are called.

  What lies beyond the edges is in the outermost bins.
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
  # One image among thousands is still seen.
  heights = np.maximum(0.8 * counts / counts.max(), 0.09)[is_nonempty]
  # A review band narrower than a bin has no edge of its own: dark is what holds a wrong one.
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
  """Draw the thresholds; name them above the rows, each at a height of its own."""
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
      # The words stand to the left, over the names, where there is room for them.
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
  """Write beside each row how many of its images are called what; what is wrong, dark."""
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
  """Write a name in one or two lines of at most so many letters."""
  lines = textwrap.wrap(
    figures.replace_missing_glyphs(name),
    max_letters,
    break_long_words=False,
    break_on_hyphens=False,
  )
  if len(lines) > 2:
    lines = [figures.shorten_middle(figures.replace_missing_glyphs(name), max_letters)]
  return '\n'.join(figures.shorten_middle(line, max_letters) for line in lines)


def _size_in_inches(axes: figures.Axes) -> tuple[float, float]:
  """Width and height of axes."""
  return axes.bbox.width / figures.DPI, axes.bbox.height / figures.DPI
