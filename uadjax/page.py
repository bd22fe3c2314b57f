"""Pages to draw on: boxes with titles, words that cover nothing, files that come out the same.

No pyplot: figures are plain objects, so that threads do not share them.

Letters: p points of a drawing, in pixels of the page.
"""

from collections.abc import Iterator, Sequence
import contextlib
import functools
import io
from pathlib import Path
import textwrap
import threading
from typing import Any, NamedTuple

from jaxtyping import Float
import matplotlib
from matplotlib import axes as mpl_axes, figure as mpl_figure, font_manager
from matplotlib.backends import backend_agg
import numpy as np

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
_ANONYMOUS = {'png': {'Software': None}, 'svg': {'Date': None, 'Creator': None}}
_LOCK = threading.Lock()  # matplotlib's settings belong to the process.

# Chinese, Japanese and Korean, as systems bring them along.
_EASTERN = (
  'Noto Sans CJK SC',
  'Noto Sans CJK JP',
  'Noto Sans SC',
  'Source Han Sans SC',
  'WenQuanYi Zen Hei',
  'Microsoft YaHei',
  'SimHei',
  'PingFang SC',
  'Arial Unicode MS',
)


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
  for suffix, metadata in _ANONYMOUS.items():
    picture = io.BytesIO()
    figure.savefig(picture, format=suffix, metadata=metadata)
    path.with_suffix(f'.{suffix}').write_bytes(picture.getvalue())


def titled(
  figure: Figure, box: Box, title: str, left: float, right: float, top: float = 0.55
) -> Axes:
  """Make room for axes in a box, margins in inches, under a title."""
  width, height = figure.get_size_inches()
  up = (box.bottom + box.height - 0.35) / height
  figure.text((box.left + 0.2) / width, up, title, weight='bold', size=11)
  inside = Box(
    (box.left + left) / width,
    (box.bottom + 0.65) / height,
    (box.width - left - right) / width,
    (box.height - top - 0.65) / height,
  )
  return figure.add_axes(inside)


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
  axes: Axes,
  words: Sequence[Words],
  near: tuple[float, float],
  drawn: Float[np.ndarray, 'p 2'],
  leader: str = '',
) -> Float[np.ndarray, '_ 2']:
  """Write lines of text where they cover nothing drawn, close to a point of the data.

  Args:
    axes: they stay inside.
    words: lines, from the top.
    near: what they tell of.
    drawn: points that they must not cover, as `trail` and this function return them.
    leader: color of a thin line from the text to the point; none where empty.

  Returns:
    the points that are covered now.
  """
  renderer = backend_agg.FigureCanvasAgg(axes.get_figure(root=True)).get_renderer()
  texts = [axes.text(0, 0, w.text, color=w.color, weight=w.weight, size=9) for w in words]
  sizes = np.array([text.get_window_extent(renderer).size for text in texts])
  line = 1.15 * sizes[:, 1].max()
  size = np.array([sizes[:, 0].max(), line * len(texts)])
  start = axes.transData.transform(near)
  corner = _free_place(axes, size, start, drawn)
  inward = axes.transAxes.inverted()
  for number, text in enumerate(texts):
    baseline = corner + np.array([0, size[1] - line * (number + 0.78)])
    text.set(transform=axes.transAxes, position=inward.transform(baseline))
  across, up = np.meshgrid(np.arange(0, size[0], 3), np.arange(0, size[1], 3))
  covered = corner + np.stack([across.ravel(), up.ravel()], axis=1)
  end = np.clip(start, corner, corner + size)
  if not leader or np.hypot(*(end - start)) < 0.15 * DPI:
    return covered
  x, y = axes.transData.inverted().transform([start, end]).T
  axes.plot(x, y, color=leader, linewidth=0.7, zorder=1.5)
  return np.concatenate([covered, trail(axes, x, y)])


def _free_place(
  axes: Axes,
  size: Float[np.ndarray, ' 2'],
  start: Float[np.ndarray, ' 2'],
  drawn: Float[np.ndarray, 'p 2'],
) -> Float[np.ndarray, ' 2']:
  """Find the lower left corner of a box of a size that covers least, and is nearest to a point."""
  cell, gap = 4, 0.07 * DPI
  least, most = np.array(axes.bbox.min), np.array(axes.bbox.max)
  cells = ((most - least) // cell).astype(int)
  needed = np.clip(np.ceil((size + 2 * gap) / cell).astype(int), 1, cells)
  ruler = [at + cell * np.arange(n + 1) for at, n in zip(least, cells, strict=True)]
  occupied, _, _ = np.histogram2d(*drawn.T, bins=ruler)
  # Sums over all boxes of one size at once (Crow 1984).
  sums = np.pad(occupied.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
  w, h = needed
  covered = sums[w:, h:] - sums[:-w, h:] - sums[w:, :-h] + sums[:-w, :-h]
  corners = least + gap + cell * np.moveaxis(np.indices(covered.shape), 0, -1)
  away = np.clip(start, corners, corners + size) - start
  costs = 1e6 * covered + np.hypot(away[..., 0], away[..., 1])
  return corners[np.unravel_index(np.argmin(costs), costs.shape)]


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
  families = ['DejaVu Sans', *(name for name in _EASTERN if name in installed)]
  fonts = [font_manager.get_font(font_manager.findfont(name)) for name in families]
  return families, frozenset().union(*(font.get_charmap() for font in fonts))
