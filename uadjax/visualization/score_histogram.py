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
_RIGHT = {True: '#56B4E9', False: '#E69F00'}  # Good and defective, as they should be called,
_WRONG = {True: '#004C7A', False: '#A33B00'}  # and otherwise: far darker, on grey paper too.
_REVIEW = '#F7F2C4'

_SMALL = 8.5  # Names and counts: the strips need the room.
_COLUMNS = {'OK': 0.4, 'review': 0.56, 'NG': 0.4}  # Inches from one right edge to the next.


class Row(NamedTuple):
  """Images that are counted together."""

  name: str
  scores: Float[np.ndarray, ' n']
  good: bool


def panel(
  figure: figures.Figure, box: figures.Box, rows: Sequence[Row], review: float, ng: float
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
    figures.sentence(figures.titled(figure, box, title, 0.5, 0.5), 'There are no images.')
    return
  names = [_folded(row.name, int(3.2 * box.width)) for row in rows]
  left = 0.28 + figures.widest(figure, '\n'.join(names).split('\n'), _SMALL)
  columns = [name for name in _COLUMNS if name != 'review' or review < ng]
  right = 0.12 + sum(_COLUMNS[name] for name in columns)
  axes = figures.titled(figure, box, title, left, right, top=1.03, bottom=0.82)
  every = np.concatenate([row.scores for row in rows]).astype(np.float64)
  # A bin is as wide as can be seen and hovered over: an eighth of an inch.
  edges, log = bins(every, review, ng, int(8 * _inches(axes)[0]))
  axes.set(xscale='log' if log else 'linear', xlim=(edges[0], edges[-1]))
  axes.set(ylim=(0.88 - len(rows), 0.95))
  axes.set_yticks(0.3 - np.arange(len(rows)), names, size=_SMALL, linespacing=1.0)
  axes.tick_params(axis='y', length=0)
  axes.spines['left'].set_visible(False)
  for number, row in enumerate(rows):
    _strip(axes, -float(number), row, edges, review, ng)
  _mark_thresholds(axes, left, review, ng)
  _table(axes, rows, columns, review, ng)
  infinite = int(np.isinf(every).sum())
  odd = f'; {infinite} infinite' * bool(infinite)
  axes.set_xlabel(f'score (dark: defective but OK, good but NG{odd})\nrows: each to its own scale')
  decades = np.log10(edges[-1] / edges[0]) if log else 0
  most = max(2, int(_inches(axes)[0] / 0.5))  # Ticks that have room for their numbers.
  even = ticker.LogLocator(subs=(1, 2, 5) if decades < 2 else (1,), numticks=most)
  axes.xaxis.set_major_locator(even if log else ticker.MaxNLocator(most + 1))
  axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f'{value:.4g}'))
  axes.xaxis.set_minor_locator(ticker.NullLocator())


def bins(
  scores: Float[np.ndarray, ' n'], review: float, ng: float, about: int = 40
) -> tuple[Float[np.ndarray, ' k'], bool]:
  """Edges of so many bins, thresholds that are finite among them: a bin is called one thing.

  Returns:
    edges, and whether they are even in the logarithm, as where scores span more than a decade.
  """
  values = np.concatenate([scores, [review, ng]])
  values = values[np.isfinite(values)] if np.isfinite(values).any() else np.zeros(1)
  log = bool(values.min() > 0 and values.max() > 20 * values.min())
  forward, back = (np.log, np.exp) if log else (np.positive, np.positive)
  low, high = forward(values.min()), forward(values.max())
  smallest = max(1e-6 * max(abs(low), abs(high)), float(np.finfo(np.float32).tiny))
  step = max((high - low) / about, smallest)
  both = np.isfinite([review, ng]).all()
  between = round((forward(ng) - forward(review)) / step) if both else 0
  step = (forward(ng) - forward(review)) / between if between else step
  pivot = forward(ng) if np.isfinite(ng) else low
  first, last = int(np.floor((low - pivot) / step)) - 1, int(np.ceil((high - pivot) / step)) + 1
  edges = back(pivot + step * np.arange(first, last + 1))
  if np.isfinite(ng):
    edges[-first] = ng  # Not an ulp beside it.
  if between:
    edges[-first - between] = review
  return edges, log


def counted(
  scores: Float[np.ndarray, ' n'], edges: Float[np.ndarray, ' k']
) -> Float[np.ndarray, ' _']:
  """Number of scores in each bin, open below and closed above as scores are called.

  What lies beyond the edges is in the outermost bins.
  """
  places = np.searchsorted(edges, scores.astype(np.float64), 'left') - 1
  inside = np.clip(places, 0, len(edges) - 2)
  return np.bincount(inside, minlength=len(edges) - 1).astype(np.float64)


def _strip(
  axes: figures.Axes,
  base: float,
  row: Row,
  edges: Float[np.ndarray, ' k'],
  review: float,
  ng: float,
) -> None:
  counts = counted(row.scores, edges)
  some = counts > 0
  # One image among thousands is still seen.
  heights = np.maximum(0.8 * counts / counts.max(), 0.09)[some]
  # A review band narrower than a bin has no edge of its own: dark is what holds a wrong one.
  missed = row.scores > ng if row.good else row.scores <= review
  wrong = counted(row.scores[missed], edges) > 0
  colors = np.where(wrong, _WRONG[row.good], _RIGHT[row.good])[some].tolist()
  x = np.stack([edges[:-1], edges[:-1], edges[1:], edges[1:]], axis=1)[some]
  y = base + heights[:, None] * np.array([[0.0, 1.0, 1.0, 0.0]])
  rim = {'edgecolors': 'white', 'linewidths': 0.3}
  bars = shapes.PolyCollection(list(np.stack([x, y], axis=-1)), facecolors=colors, **rim)
  axes.add_collection(bars, autolim=False)
  axes.axhline(base, color='#D0D0D0', linewidth=0.7, zorder=0)


def _mark_thresholds(axes: figures.Axes, left: float, review: float, ng: float) -> None:
  """Draw the thresholds; name them above the rows, each at a height of its own."""
  marks: list[tuple[str, float, float, Any]] = [('NG', ng, 0.42, '-')]
  if review < ng:
    marks.append(('review', review, 0.16, (0, (3, 2))))
    if np.isfinite([review, ng]).all():
      axes.axvspan(review, ng, color=_REVIEW, zorder=0, linewidth=0)
  width, height = _inches(axes)
  for name, threshold, up, dashes in marks:
    if np.isfinite(threshold):
      top = 1 + (up + 0.14) / height
      ends = {'transform': axes.get_xaxis_transform(), 'clip_on': False, 'linestyle': dashes}
      axes.plot([threshold, threshold], [0, top], color=figures.INK, linewidth=1.1, **ends)
      across = axes.transAxes.inverted().transform(axes.transData.transform((threshold, 0)))[0]
      # The words stand to the left, over the names, where there is room for them.
      side, shift = ('right', -0.05) if left + across * width > 1.75 else ('left', 0.05)
      words = f'{name} above {f"{threshold:#.3g}".rstrip(".")}'
      paper = {'facecolor': 'white', 'edgecolor': 'none', 'pad': 1}
      place = (across + shift / width, 1 + up / height)
      axes.text(*place, words, ha=side, transform=axes.transAxes, bbox=paper)


def _table(
  axes: figures.Axes, rows: Sequence[Row], columns: Sequence[str], review: float, ng: float
) -> None:
  """Write beside each row how many of its images are called what; what is wrong, dark."""
  width, height = _inches(axes)
  edges = 1 + np.cumsum([_COLUMNS[name] for name in columns]) / width
  places = dict(zip(columns, edges, strict=True))
  bold = {'ha': 'right', 'size': _SMALL, 'weight': 'bold', 'transform': axes.transAxes}
  for name, x in places.items():
    axes.text(x, 1 + 0.16 / height, name, **bold)
  for number, row in enumerate(rows):
    ok, called = int((row.scores <= review).sum()), int((row.scores > ng).sum())
    counts = {'OK': ok, 'review': len(row.scores) - ok - called, 'NG': called}
    for name, x in places.items():
      wrong = counts[name] > 0 and name == ('NG' if row.good else 'OK')
      axes.text(
        x,
        0.3 - number,
        f'{counts[name]}',
        ha='right',
        va='center_baseline',
        size=_SMALL,
        weight='bold' if wrong else 'normal',
        color=_WRONG[row.good] if wrong else figures.INK,
        transform=axes.get_yaxis_transform(),
      )


def _folded(name: str, letters: int) -> str:
  """Write a name in one or two lines of at most so many letters."""
  lines = textwrap.wrap(
    figures.printable(name), letters, break_long_words=False, break_on_hyphens=False
  )
  if len(lines) > 2:
    lines = [figures.shortened(figures.printable(name), letters)]
  return '\n'.join(figures.shortened(line, letters) for line in lines)


def _inches(axes: figures.Axes) -> tuple[float, float]:
  """Width and height of axes."""
  return axes.bbox.width / figures.DPI, axes.bbox.height / figures.DPI
