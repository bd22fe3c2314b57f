"""Score histograms, one strip per group of images, with the thresholds across all strips.

Letters: n images, k edges of bins.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Bool, Float
from matplotlib import ticker
import numpy as np

from uadjax.visualization import figures

# Colors by `Row.is_good`, which color-blind readers can distinguish (Okabe and Ito 2008). Those of
# wrong labels are much darker, so that they differ in grayscale, too.
_CORRECT_COLORS = {True: '#56B4E9', False: '#E69F00'}
_WRONG_COLORS = {True: '#004C7A', False: '#A33B00'}
_REVIEW_COLOR = '#F7F2C4'
_NUM_BINS = 28  # Bars are wide enough to be seen.


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
  axes: figures.Axes, rows: Sequence[Row], review_threshold: float, image_threshold: float
) -> None:
  """Draw a histogram strip for each row, with the number of images per label next to it.

  Args:
    axes: axes to draw in.
    rows: groups of images, from the top.
    review_threshold: score above which images need review; at most `image_threshold`.
    image_threshold: score above which images are NG.
  """
  if not rows:
    figures.show_message(axes, 'There are no images.')
    return
  scores = np.concatenate([row.scores for row in rows]).astype(np.float64)
  edges, is_log = bin_edges(scores, review_threshold, image_threshold, _NUM_BINS)
  axes.set(title='Score histograms', xscale='log' if is_log else 'linear')
  axes.set(xlim=(edges[0], edges[-1]), ylim=(0.88 - len(rows), 1.6))
  count_texts = []
  for index, row in enumerate(rows):
    is_ok, is_ng = row.scores <= review_threshold, ~(row.scores <= image_threshold)  # NaN is NG.
    _draw_strip(axes, -float(index), row, edges, is_ng if row.is_good else is_ok)
    num_ok, num_ng = int(is_ok.sum()), int(is_ng.sum())
    count_texts.append(f'{num_ok} / {len(row.scores) - num_ok - num_ng} / {num_ng}')
  positions = 0.3 - np.arange(len(rows))
  axes.set_yticks(positions, [row.name for row in rows], size=8.5, linespacing=1.0)
  count_axis = axes.secondary_yaxis('right')
  count_axis.set_yticks([1.3, *positions], ['OK / review / NG', *count_texts], size=8.5)
  for axis in (axes, count_axis):
    axis.tick_params(axis='y', length=0)
    axis.spines[:].set_visible(axis is axes)
  axes.spines[['left', 'right', 'top']].set_visible(False)
  _draw_thresholds(axes, review_threshold, image_threshold)
  num_infinite = int(np.isinf(scores).sum())
  infinite_text = f'; {num_infinite} infinite' * bool(num_infinite)
  axes.set_xlabel(
    f'score (dark: defective but OK, good but NG{infinite_text})\neach row has its own scale'
  )
  subs = (1, 2, 5) if is_log and edges[-1] < 100 * edges[0] else (1,)
  locator = ticker.LogLocator(subs=subs, numticks=6) if is_log else ticker.MaxNLocator(5)
  axes.xaxis.set_major_locator(locator)
  axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f'{value:.4g}'))
  axes.xaxis.set_minor_locator(ticker.NullLocator())


def bin_edges(
  scores: Float[np.ndarray, ' n'], review_threshold: float, image_threshold: float, num_bins: int
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
  values = np.append(scores, [review_threshold, image_threshold])
  values = values[np.isfinite(values)] if np.isfinite(values).any() else np.zeros(1)
  is_log = bool(values.min() > 0 and values.max() > 20 * values.min())
  transform, inverse = (np.log, np.exp) if is_log else (np.positive, np.positive)
  low, high = transform(values.min()), transform(values.max())
  min_step = max(1e-6 * max(abs(low), abs(high)), float(np.finfo(np.float32).tiny))
  step, pivot, num_review_bins = max((high - low) / num_bins, min_step), low, 0
  if np.isfinite(image_threshold):
    pivot = transform(image_threshold)
    if np.isfinite(review_threshold):
      band = pivot - transform(review_threshold)
      num_review_bins = round(band / step)
      step = band / num_review_bins if num_review_bins else step
  first, last = int(np.floor((low - pivot) / step)) - 1, int(np.ceil((high - pivot) / step)) + 1
  edges = inverse(pivot + step * np.arange(first, last + 1))
  if np.isfinite(image_threshold):
    edges[-first] = image_threshold  # Rounding may have moved this edge.
  if num_review_bins:
    edges[-first - num_review_bins] = review_threshold
  return edges, is_log


def count_per_bin(
  scores: Float[np.ndarray, ' n'], edges: Float[np.ndarray, ' k']
) -> Float[np.ndarray, ' _']:
  """Count the scores in each bin; bins include their upper edge, as labels do.

  Scores beyond the edges are counted in the outermost bins.
  """
  indices = np.searchsorted(edges, scores.astype(np.float64), 'left') - 1
  indices = np.clip(indices, 0, len(edges) - 2)
  return np.bincount(indices, minlength=len(edges) - 1).astype(np.float64)


def _draw_strip(
  axes: figures.Axes,
  base: float,
  row: Row,
  edges: Float[np.ndarray, ' k'],
  is_wrong: Bool[np.ndarray, ' n'],
) -> None:
  counts = count_per_bin(row.scores, edges)
  # A review band narrower than a bin has no edges, so a bin with any wrong label is dark.
  has_wrong = count_per_bin(row.scores[is_wrong], edges) > 0
  colors = np.where(has_wrong, _WRONG_COLORS[row.is_good], _CORRECT_COLORS[row.is_good])
  heights = np.maximum(0.8 * counts / counts.max(), 0.09)  # One image of thousands stays visible.
  bins = np.flatnonzero(counts)
  lefts, widths = edges[bins], np.diff(edges)[bins]
  bar_style = {'color': colors[bins].tolist(), 'edgecolor': 'white', 'linewidth': 0.3}
  axes.bar(lefts, heights[bins], widths, base, align='edge', **bar_style)
  axes.axhline(base, color='#D0D0D0', linewidth=0.7, zorder=0)


def _draw_thresholds(axes: figures.Axes, review_threshold: float, image_threshold: float) -> None:
  """Draw the thresholds, and name them in a legend."""
  has_review = review_threshold < image_threshold
  lines = [('NG (not good)', image_threshold, '-'), ('to review', review_threshold, (0, (3, 2)))]
  for name, threshold, dashes in lines if has_review else lines[:1]:
    if np.isfinite(threshold):
      text = f'{name} above {f"{threshold:#.3g}".rstrip(".")}'
      line_style = {'color': figures.TEXT_COLOR, 'linewidth': 1.1, 'linestyle': dashes}
      axes.axvline(threshold, label=text, **line_style)
  if has_review and np.isfinite([review_threshold, image_threshold]).all():
    axes.axvspan(review_threshold, image_threshold, color=_REVIEW_COLOR, zorder=0, linewidth=0)
  if axes.get_legend_handles_labels()[0]:
    figures.add_legend(axes, offset=5.5)
