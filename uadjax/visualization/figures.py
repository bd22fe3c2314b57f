"""Matplotlib figures: titled axes, labels that do not cover lines, reproducible files.

pyplot is not used, so that threads share no figures.

Letters: p points of a drawing, in pixels of the figure; c candidate positions of a label.
"""

from collections.abc import Iterator, Sequence
import contextlib
import io
import itertools
from pathlib import Path
import textwrap
import threading
from typing import Any, NamedTuple

from jaxtyping import Float
import matplotlib
from matplotlib import axes as mpl_axes, figure as mpl_figure
from matplotlib.backends import backend_agg
import numpy as np

from uadjax.visualization import fonts

Axes = mpl_axes.Axes
Figure = mpl_figure.Figure

TEXT_COLOR, MUTED_COLOR = '#222222', '#6E6E6E'
DPI = 128  # A figure of ten inches is 1280 pixels wide.

# All settings that matter start from matplotlib's defaults, not from the user's matplotlibrc.
_RC_GROUPS = ('axes', 'figure', 'font', 'grid', 'lines', 'patch', 'path', 'savefig', 'svg', 'text')
_RC_PARAMS: dict[Any, Any] = {
  **{
    k: v for k, v in matplotlib.rcParamsDefault.items() if k.startswith((*_RC_GROUPS, 'xt', 'yt'))
  },
  'axes.axisbelow': True,
  'axes.edgecolor': MUTED_COLOR,
  'axes.labelcolor': TEXT_COLOR,
  'axes.spines.right': False,
  'axes.spines.top': False,
  'font.size': 9.5,
  'svg.hashsalt': 'uadjax',
  'text.color': TEXT_COLOR,
  'text.parse_math': False,  # Names of defects may contain dollar signs.
  'xtick.color': TEXT_COLOR,
  'ytick.color': TEXT_COLOR,
}
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
  'png': {'metadata': {'Software': None}, 'pil_kwargs': {'compress_level': 3}},
  'svg': {'metadata': {'Date': None, 'Creator': None}},
}
_LOCK = threading.Lock()  # matplotlib's settings are global to the process.


class Box(NamedTuple):
  """Rectangle on a figure, in inches from its lower left corner."""

  left: float
  bottom: float
  width: float
  height: float


class TextLine(NamedTuple):
  """Line of text with its style."""

  text: str
  color: str = TEXT_COLOR
  weight: str = 'normal'


class Label(NamedTuple):
  """Text label of a point.

  Attributes:
    lines: lines of text, from the top.
    point: labeled point, in data coordinates.
    leader_color: color of a thin line from the text to the point; '' for no line.
  """

  lines: Sequence[TextLine]
  point: tuple[float, float]
  leader_color: str = ''


@contextlib.contextmanager
def style() -> Iterator[None]:
  """Apply uadjax's style instead of the user's, in one thread at a time."""
  with _LOCK, matplotlib.rc_context({**_RC_PARAMS, 'font.family': list(fonts.font_files())}):
    yield


def new_figure(width: float, height: float) -> Figure:
  """Return an empty figure of the given width and height, in inches."""
  return Figure(figsize=(width, height), dpi=DPI, facecolor='white')


def write(path: Path, figure: Figure) -> None:
  """Write a figure as PNG and SVG; equal figures give equal bytes.

  Dates, versions and random identifiers are omitted.
  """
  for suffix, options in _SAVE_OPTIONS.items():
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix, **options)
    path.with_suffix(f'.{suffix}').write_bytes(buffer.getvalue())


def add_titled_axes(
  figure: Figure,
  box: Box,
  title: str,
  left: float,
  right: float,
  top: float = 0.55,
  bottom: float = 0.65,
) -> Axes:
  """Add axes to a box of a figure, under a title; margins are in inches."""
  width, height = figure.get_size_inches()
  title_y = (box.bottom + box.height - 0.35) / height
  figure.text((box.left + 0.2) / width, title_y, title, weight='bold', size=11)
  axes_box = Box(
    (box.left + left) / width,
    (box.bottom + bottom) / height,
    (box.width - left - right) / width,
    (box.height - top - bottom) / height,
  )
  return figure.add_axes(axes_box)


def max_text_width(figure: Figure, lines: Sequence[str], size: float) -> float:
  """Return the width in inches of the widest line of text."""
  renderer = backend_agg.FigureCanvasAgg(figure).get_renderer()
  texts = [figure.text(0, 0, line, size=size) for line in lines]
  width_in_pixels = max(text.get_window_extent(renderer).width for text in texts)
  for text in texts:
    text.remove()
  return float(width_in_pixels / DPI)


def show_message(axes: Axes, text: str) -> None:
  """Replace axes by a message, for example why there is nothing to plot."""
  axes.set_axis_off()
  wrapped_text = textwrap.fill(text, 40)
  transform = axes.transAxes
  axes.text(
    0.5,
    0.5,
    wrapped_text,
    ha='center',
    va='center',
    size=11,
    color=MUTED_COLOR,
    transform=transform,
  )


def sample_line(
  axes: Axes, x: Float[np.ndarray, ' _'], y: Float[np.ndarray, ' _']
) -> Float[np.ndarray, 'p 2']:
  """Return points two pixels apart on a line as it will be drawn."""
  vertices = axes.transData.transform(np.stack([x, y], axis=1))
  cumulative_length = np.cumsum(np.hypot(*np.diff(vertices, axis=0, prepend=vertices[:1]).T))
  positions = np.arange(0, cumulative_length[-1], 2)
  return np.stack([np.interp(positions, cumulative_length, vertices[:, i]) for i in (0, 1)], axis=1)


def place_labels(
  axes: Axes, labels: Sequence[Label], occupied_points: Float[np.ndarray, 'p 2']
) -> Float[np.ndarray, '_ 2']:
  """Draw labels close to their points, where they cover nothing drawn.

  Args:
    axes: axes that the labels stay inside.
    labels: a few labels. All orders are tried, since the first label may take the only good
      position of the next.
    occupied_points: points that labels must not cover, as returned by `sample_line` and by this
      function.

  Returns:
    The occupied points, those of the labels and their leaders included.
  """
  texts = [_create_texts(axes, label) for label in labels]
  renderer = backend_agg.FigureCanvasAgg(axes.get_figure(root=True)).get_renderer()
  extents = [
    np.array([text.get_window_extent(renderer).size for text in label_texts])
    for label_texts in texts
  ]
  heights = [1.15 * extent[:, 1].max() for extent in extents]
  offsets = np.linspace(-0.4 * DPI, 0.4 * DPI, 9)
  neighborhood = np.stack([np.repeat(offsets, 9), np.tile(offsets, 9)], axis=1)
  candidates = []
  for order in itertools.permutations(range(len(labels))):
    total_cost, covered_points, corners = 0.0, occupied_points, {}
    for i in order:
      size = np.array([extents[i][:, 0].max(), heights[i] * len(texts[i])])
      start = axes.transData.transform(labels[i].point)
      # Space around the other points stays free for their leaders.
      other_points = [
        axes.transData.transform(other_label.point) + neighborhood
        for other_label in labels
        if other_label != labels[i]
      ]
      blocked_points = np.concatenate([covered_points, *other_points])
      corners[i], cost = _find_free_corner(
        axes, size, start, blocked_points, bool(labels[i].leader_color)
      )
      x_offsets, y_offsets = np.meshgrid(np.arange(0, size[0], 3), np.arange(0, size[1], 3))
      text_points = corners[i] + np.stack([x_offsets.ravel(), y_offsets.ravel()], axis=1)
      leader_points = _leader_points(start, np.clip(start, corners[i], corners[i] + size))
      covered_points = np.concatenate(
        [covered_points, text_points, *([leader_points] if labels[i].leader_color else [])]
      )
      total_cost += cost
    candidates.append((total_cost, covered_points, corners))
  _, covered_points, corners = min(candidates, key=lambda candidate: candidate[0])
  for i, corner in corners.items():
    _position_label(axes, texts[i], corner, heights[i], extents[i][:, 0].max(), labels[i])
  return covered_points


def _create_texts(axes: Axes, label: Label) -> list[Any]:
  """Create the text objects of a label, to be positioned later."""
  background: Any = None
  if label.leader_color:  # The label may cover other leaders, or lines that fill the axes.
    background = {'facecolor': 'white', 'edgecolor': 'none', 'alpha': 0.8, 'pad': 1}
  return [
    axes.text(0, 0, line.text, color=line.color, weight=line.weight, size=9, bbox=background)
    for line in label.lines
  ]


def _position_label(
  axes: Axes,
  texts: Sequence[Any],
  corner: Float[np.ndarray, ' 2'],
  line_height: float,
  width: float,
  label: Label,
) -> None:
  """Position the lines of a label above its lower left corner, and draw its leader."""
  to_axes_coordinates = axes.transAxes.inverted()
  size = np.array([width, line_height * len(texts)])
  for index, text in enumerate(texts):
    baseline = corner + np.array([0, size[1] - line_height * (index + 0.78)])
    text.set(transform=axes.transAxes, position=to_axes_coordinates.transform(baseline))
  start = axes.transData.transform(label.point)
  leader_points = _leader_points(start, np.clip(start, corner, corner + size))
  if label.leader_color and len(leader_points):
    x, y = axes.transData.inverted().transform(leader_points[[0, -1]]).T
    axes.plot(x, y, color=label.leader_color, linewidth=0.7, zorder=1.5)


def _leader_points(
  start: Float[np.ndarray, ' 2'], end: Float[np.ndarray, ' 2']
) -> Float[np.ndarray, '_ 2']:
  """Return points of a leader, which ends before the text; none if it is too short to draw."""
  distance = float(np.hypot(*(end - start)))
  if distance < 0.15 * DPI:
    return np.zeros((0, 2))
  fractions = np.linspace(0, 1 - 4 / distance, int(distance / 2) + 2)
  return start + fractions[:, None] * (end - start)


def _find_free_corner(
  axes: Axes,
  size: Float[np.ndarray, ' 2'],
  start: Float[np.ndarray, ' 2'],
  occupied_points: Float[np.ndarray, 'p 2'],
  has_leader: bool,
) -> tuple[Float[np.ndarray, ' 2'], float]:
  """Find the best lower left corner for a label.

  The label must cover as few occupied points as possible. Among such corners, a near one whose
  leader crosses little is chosen.

  Args:
    axes: axes that the label stays inside.
    size: width and height of the label, in pixels.
    start: labeled point, in pixels.
    occupied_points: points to avoid.
    has_leader: whether a leader is drawn.

  Returns:
    The corner and its cost.
  """
  cell_size, gap = 4, 0.1 * DPI
  lower_left, upper_right = np.array(axes.bbox.min), np.array(axes.bbox.max)
  num_cells = ((upper_right - lower_left) // cell_size).astype(int)
  box_cells = np.clip(np.ceil((size + 2 * gap) / cell_size).astype(int), 1, num_cells)
  bin_edges = [
    origin + cell_size * np.arange(n + 1) for origin, n in zip(lower_left, num_cells, strict=True)
  ]
  occupancy, _, _ = np.histogram2d(*occupied_points.T, bins=bin_edges)
  coverage = _box_sums(occupancy, *box_cells.tolist())
  corners = lower_left + gap + cell_size * np.moveaxis(np.indices(coverage.shape), 0, -1)
  is_least_covered = coverage == coverage.min()
  corners = corners[is_least_covered]
  costs = np.hypot(*(np.clip(start, corners, corners + size) - start).T)
  if has_leader:
    nearest = np.argsort(costs, kind='stable')[::4]  # Every fourth candidate suffices.
    corners = corners[nearest]
    ends = np.clip(start, corners, corners + size)
    # The number of occupied cells around a cell distinguishes text, which fills blocks, from lines.
    neighbor_counts = _box_sums(np.pad((occupancy > 0).astype(np.float64), 1), 3, 3)
    weights = 5.0 * (neighbor_counts > 0) + 200.0 * (neighbor_counts >= 6)
    costs = costs[nearest] + _crossing_costs(start, ends, weights, lower_left, cell_size)
  best_index = int(np.argmin(costs))
  return corners[best_index], float(1e6 * coverage.min() + costs[best_index])


def _box_sums(occupancy: Float[np.ndarray, '_ _'], w: int, h: int) -> Float[np.ndarray, '_ _']:
  """Return the sums over all boxes of w x h cells, by an integral image (Crow 1984)."""
  integral_image = np.pad(occupancy.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
  return (
    integral_image[w:, h:]
    - integral_image[:-w, h:]
    - integral_image[w:, :-h]
    + integral_image[:-w, :-h]
  )


def _crossing_costs(
  start: Float[np.ndarray, ' 2'],
  ends: Float[np.ndarray, 'c 2'],
  weights: Float[np.ndarray, '_ _'],
  lower_left: Float[np.ndarray, ' 2'],
  cell_size: int,
) -> Float[np.ndarray, ' c']:
  """Return the weight of the cells that each line from `start` crosses, away from its start."""
  fractions = np.linspace(0, 1, 48)
  points = start + fractions[:, None] * (ends - start)[:, None]
  i, j = np.moveaxis(((points - lower_left) // cell_size).astype(int), -1, 0)
  point_weights = weights[np.clip(i, 0, weights.shape[0] - 1), np.clip(j, 0, weights.shape[1] - 1)]
  lengths = np.hypot(*(ends - start).T)
  return lengths * (point_weights * (lengths[:, None] * fractions > 0.15 * DPI)).mean(axis=1)
