"""Pages to draw on: boxes with titles, words that cover nothing, files that come out the same.

No pyplot: figures are plain objects, so that threads do not share them.

Letters: p points of a drawing, in pixels of the page; c places for words.
"""

from collections.abc import Iterator, Sequence
import contextlib
import functools
import io
import itertools
from pathlib import Path
import textwrap
import threading
from typing import Any, NamedTuple

from jaxtyping import Float
import matplotlib
from matplotlib import axes as mpl_axes, figure as mpl_figure, font_manager
from matplotlib.backends import backend_agg
import numpy as np

from uadjax.visualization import pil_drawing

Axes = mpl_axes.Axes
Figure = mpl_figure.Figure

INK, FAINT = '#222222', '#6E6E6E'
DPI = 128  # A page of ten inches is 1280 pixels wide.

# Whatever the user's matplotlibrc says.
_GROUPS = ('axes', 'figure', 'font', 'grid', 'lines', 'patch', 'path', 'savefig', 'svg', 'text')
_STYLE: dict[Any, Any] = {
  **{k: v for k, v in matplotlib.rcParamsDefault.items() if k.startswith((*_GROUPS, 'xt', 'yt'))},
  'axes.axisbelow': True,
  'axes.edgecolor': FAINT,
  'axes.labelcolor': INK,
  'axes.spines.right': False,
  'axes.spines.top': False,
  'font.size': 9.5,
  'svg.hashsalt': 'uadjax',
  'text.color': INK,
  'text.parse_math': False,  # A dollar in the name of a defect is a dollar.
  'xtick.color': INK,
  'ytick.color': INK,
}
_KINDS: dict[str, dict[str, Any]] = {
  'png': {'metadata': {'Software': None}, 'pil_kwargs': {'compress_level': 3}},
  'svg': {'metadata': {'Date': None, 'Creator': None}},
}
_LOCK = threading.Lock()  # matplotlib's settings belong to the process.


class Box(NamedTuple):
  """A part of a page, in inches from its lower left corner."""

  left: float
  bottom: float
  width: float
  height: float


class Words(NamedTuple):
  """A line of text."""

  text: str
  color: str = INK
  weight: str = 'normal'


class Label(NamedTuple):
  """What is written beside a point.

  Attributes:
    words: lines, from the top.
    near: the point, in the units of the data.
    leader: color of a thin line from the text to the point; none where empty.
  """

  words: Sequence[Words]
  near: tuple[float, float]
  leader: str = ''


@contextlib.contextmanager
def style() -> Iterator[None]:
  """Draw and write in one style, whatever the user's own; one thread at a time."""
  families, _ = _fonts()
  with _LOCK, matplotlib.rc_context({**_STYLE, 'font.family': families}):
    yield


def blank(width: float, height: float) -> Figure:
  """Take an empty page, so many inches wide and high."""
  return Figure(figsize=(width, height), dpi=DPI, facecolor='white')


def write(path: Path, figure: Figure) -> None:
  """Write a page as PNG and SVG without date, version or random name: same page, same bytes."""
  for suffix, options in _KINDS.items():
    picture = io.BytesIO()
    figure.savefig(picture, format=suffix, **options)
    path.with_suffix(f'.{suffix}').write_bytes(picture.getvalue())


def titled(
  figure: Figure,
  box: Box,
  title: str,
  left: float,
  right: float,
  top: float = 0.55,
  bottom: float = 0.65,
) -> Axes:
  """Make room for axes in a box, margins in inches, under a title."""
  width, height = figure.get_size_inches()
  up = (box.bottom + box.height - 0.35) / height
  figure.text((box.left + 0.2) / width, up, title, weight='bold', size=11)
  inside = Box(
    (box.left + left) / width,
    (box.bottom + bottom) / height,
    (box.width - left - right) / width,
    (box.height - top - bottom) / height,
  )
  return figure.add_axes(inside)


def widest(figure: Figure, lines: Sequence[str], size: float) -> float:
  """Width in inches of the widest of lines of text."""
  renderer = backend_agg.FigureCanvasAgg(figure).get_renderer()
  texts = [figure.text(0, 0, line, size=size) for line in lines]
  pixels = max(text.get_window_extent(renderer).width for text in texts)
  for text in texts:
    text.remove()
  return float(pixels / DPI)


def sentence(axes: Axes, text: str) -> None:
  """Say why there is nothing to see."""
  axes.set_axis_off()
  words = textwrap.fill(text, 40)
  place = axes.transAxes
  axes.text(0.5, 0.5, words, ha='center', va='center', size=11, color=FAINT, transform=place)


def trail(
  axes: Axes, x: Float[np.ndarray, ' _'], y: Float[np.ndarray, ' _']
) -> Float[np.ndarray, 'p 2']:
  """Points of a line as it will be drawn, two pixels apart."""
  corners = axes.transData.transform(np.stack([x, y], axis=1))
  travelled = np.cumsum(np.hypot(*np.diff(corners, axis=0, prepend=corners[:1]).T))
  at = np.arange(0, travelled[-1], 2)
  return np.stack([np.interp(at, travelled, corners[:, i]) for i in (0, 1)], axis=1)


def label(
  axes: Axes, wanted: Sequence[Label], drawn: Float[np.ndarray, 'p 2']
) -> Float[np.ndarray, '_ 2']:
  """Write labels where they cover nothing drawn, close to what they tell of.

  Args:
    axes: they stay inside.
    wanted: a few: all orders are tried, since the first may take the only good place of the next.
    drawn: points that they must not cover, as `trail` and this function return them.

  Returns:
    the points that are covered now, those of `drawn` among them.
  """
  texts = [_lines(axes, one) for one in wanted]
  renderer = backend_agg.FigureCanvasAgg(axes.get_figure(root=True)).get_renderer()
  extents = [np.array([text.get_window_extent(renderer).size for text in of]) for of in texts]
  heights = [1.15 * extent[:, 1].max() for extent in extents]
  side = np.linspace(-0.4 * DPI, 0.4 * DPI, 9)
  around = np.stack([np.repeat(side, 9), np.tile(side, 9)], axis=1)
  trials = []
  for order in itertools.permutations(range(len(wanted))):
    total, covered, corners = 0.0, drawn, {}
    for i in order:
      size = np.array([extents[i][:, 0].max(), heights[i] * len(texts[i])])
      start = axes.transData.transform(wanted[i].near)
      # Room around the other points, so that their leaders have a way out.
      others = [axes.transData.transform(one.near) + around for one in wanted if one != wanted[i]]
      taken = np.concatenate([covered, *others])
      corners[i], cost = _free_place(axes, size, start, taken, bool(wanted[i].leader))
      across, up = np.meshgrid(np.arange(0, size[0], 3), np.arange(0, size[1], 3))
      words = corners[i] + np.stack([across.ravel(), up.ravel()], axis=1)
      leader = _leader(start, np.clip(start, corners[i], corners[i] + size))
      covered = np.concatenate([covered, words, *([leader] if wanted[i].leader else [])])
      total += cost
    trials.append((total, covered, corners))
  _, covered, corners = min(trials, key=lambda trial: trial[0])
  for i, corner in corners.items():
    _put(axes, texts[i], corner, heights[i], extents[i][:, 0].max(), wanted[i])
  return covered


def _lines(axes: Axes, wanted: Label) -> list[Any]:
  """Make the lines of a label, to be put somewhere."""
  paper: Any = None
  if wanted.leader:  # Over other leaders, and whatever else there was no way around.
    paper = {'facecolor': 'white', 'edgecolor': 'none', 'alpha': 0.8, 'pad': 1}
  return [
    axes.text(0, 0, line.text, color=line.color, weight=line.weight, size=9, bbox=paper)
    for line in wanted.words
  ]


def _put(
  axes: Axes,
  texts: Sequence[Any],
  corner: Float[np.ndarray, ' 2'],
  height: float,
  width: float,
  wanted: Label,
) -> None:
  """Put lines of a height above a corner, and draw their leader."""
  inward = axes.transAxes.inverted()
  size = np.array([width, height * len(texts)])
  for number, text in enumerate(texts):
    baseline = corner + np.array([0, size[1] - height * (number + 0.78)])
    text.set(transform=axes.transAxes, position=inward.transform(baseline))
  start = axes.transData.transform(wanted.near)
  points = _leader(start, np.clip(start, corner, corner + size))
  if wanted.leader and len(points):
    x, y = axes.transData.inverted().transform(points[[0, -1]]).T
    axes.plot(x, y, color=wanted.leader, linewidth=0.7, zorder=1.5)


def _leader(
  start: Float[np.ndarray, ' 2'], end: Float[np.ndarray, ' 2']
) -> Float[np.ndarray, '_ 2']:
  """Points of a line that ends before the first letter; none if it is too short to be drawn."""
  away = float(np.hypot(*(end - start)))
  if away < 0.15 * DPI:
    return np.zeros((0, 2))
  shares = np.linspace(0, 1 - 4 / away, int(away / 2) + 2)
  return start + shares[:, None] * (end - start)


def _free_place(
  axes: Axes,
  size: Float[np.ndarray, ' 2'],
  start: Float[np.ndarray, ' 2'],
  drawn: Float[np.ndarray, 'p 2'],
  led: bool,
) -> tuple[Float[np.ndarray, ' 2'], float]:
  """Find the lower left corner of a box of a size: it covers least, is near, its leader is free.

  Returns:
    the corner, and what is bad about it.
  """
  cell, gap = 4, 0.1 * DPI
  least, most = np.array(axes.bbox.min), np.array(axes.bbox.max)
  cells = ((most - least) // cell).astype(int)
  needed = np.clip(np.ceil((size + 2 * gap) / cell).astype(int), 1, cells)
  ruler = [at + cell * np.arange(n + 1) for at, n in zip(least, cells, strict=True)]
  occupied, _, _ = np.histogram2d(*drawn.T, bins=ruler)
  covered = _sums(occupied, *needed.tolist())
  corners = least + gap + cell * np.moveaxis(np.indices(covered.shape), 0, -1)
  free = covered == covered.min()
  corners = corners[free]
  costs = np.hypot(*(np.clip(start, corners, corners + size) - start).T)
  if led:
    near = np.argsort(costs, kind='stable')[::4]  # Every fourth will do, and is faster.
    corners = corners[near]
    ends = np.clip(start, corners, corners + size)
    # Cells around a cell that are taken: words take whole blocks, a line but a row.
    taken = _sums(np.pad((occupied > 0).astype(np.float64), 1), 3, 3)
    weights = 5.0 * (taken > 0) + 200.0 * (taken >= 6)
    costs = costs[near] + _crossed(start, ends, weights, least, cell)
  best = int(np.argmin(costs))
  return corners[best], float(1e6 * covered.min() + costs[best])


def _sums(occupied: Float[np.ndarray, '_ _'], w: int, h: int) -> Float[np.ndarray, '_ _']:
  """Sums over all boxes of one size at once (Crow 1984)."""
  sums = np.pad(occupied.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
  return sums[w:, h:] - sums[:-w, h:] - sums[w:, :-h] + sums[:-w, :-h]


def _crossed(
  start: Float[np.ndarray, ' 2'],
  ends: Float[np.ndarray, 'c 2'],
  weights: Float[np.ndarray, '_ _'],
  least: Float[np.ndarray, ' 2'],
  cell: int,
) -> Float[np.ndarray, ' c']:
  """Weight of the pixels that each line from one start crosses; none where it starts."""
  shares = np.linspace(0, 1, 48)
  points = start + shares[:, None] * (ends - start)[:, None]
  i, j = np.moveaxis(((points - least) // cell).astype(int), -1, 0)
  hit = weights[np.clip(i, 0, weights.shape[0] - 1), np.clip(j, 0, weights.shape[1] - 1)]
  lengths = np.hypot(*(ends - start).T)
  return lengths * (hit * (lengths[:, None] * shares > 0.15 * DPI)).mean(axis=1)


def shortened(name: str, letters: int) -> str:
  """Leave out the middle of a long name: types often differ at the end."""
  half = (letters - 1) // 2
  return name if len(name) <= letters else f'{name[:half]}…{name[-half:]}'


def printable(text: str) -> str:
  """Put a box for what no font has; matplotlib would warn of each."""
  _, known = _fonts()
  return ''.join(letter if ord(letter) in known else '□' for letter in text)


@functools.cache
def _fonts() -> tuple[list[str], frozenset[int]]:
  """Families to write with, and the characters that they have."""
  installed = set(font_manager.get_font_names())
  families = ['DejaVu Sans', *(name for name in pil_drawing.EASTERN if name in installed)]
  fonts = [font_manager.get_font(font_manager.findfont(name)) for name in families]
  return families, frozenset().union(*(font.get_charmap() for font in fonts))
