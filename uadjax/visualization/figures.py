"""Matplotlib figures: one style, legends under the axes, reproducible files.

pyplot is not used, so that threads share no figures.
"""

from collections.abc import Iterator
import contextlib
import io
from pathlib import Path
import re
import textwrap
import threading
from typing import Any

import matplotlib
from matplotlib import axes as mpl_axes, figure as mpl_figure, layout_engine

from uadjax.visualization import fonts

Axes = mpl_axes.Axes
Figure = mpl_figure.Figure

TEXT_COLOR, MUTED_COLOR = '#222222', '#6E6E6E'
_DPI = 128  # A figure of ten inches is 1280 pixels wide.
_MAX_HEIGHT = 390.0  # Inches: 64 megapixels at a width of ten; matplotlib ends at 65,535 pixels.

# All settings that matter start from matplotlib's defaults, not from the user's matplotlibrc.
_RC_GROUPS = 'axes|figure|font|grid|legend|lines|patch|path|savefig|svg|text|xt|yt'
_RC_PARAMS: dict[Any, Any] = {
  **{k: v for k, v in matplotlib.rcParamsDefault.items() if re.match(_RC_GROUPS, k)},
  **dict.fromkeys(['axes.labelcolor', 'text.color', 'xtick.color', 'ytick.color'], TEXT_COLOR),
  **dict.fromkeys(['axes.spines.right', 'axes.spines.top', 'legend.frameon'], False),
  'axes.axisbelow': True,
  'axes.edgecolor': MUTED_COLOR,
  'axes.titlelocation': 'left',
  'axes.titlesize': 11,
  'axes.titleweight': 'bold',
  'font.size': 9.5,
  'legend.fontsize': 8.5,
  'svg.hashsalt': 'uadjax',
  'text.parse_math': False,  # Names of defects may contain dollar signs.
}
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
  'png': {'metadata': {'Software': None}, 'pil_kwargs': {'compress_level': 3}},
  'svg': {'metadata': {'Date': None, 'Creator': None}},
}
_LOCK = threading.Lock()  # matplotlib's settings are global to the process.


@contextlib.contextmanager
def style() -> Iterator[None]:
  """Apply uadjax's style instead of the user's, in one thread at a time."""
  with _LOCK, matplotlib.rc_context({**_RC_PARAMS, 'font.family': list(fonts.font_files())}):
    yield


def new_figure(width: float, height: float, header: float = 0.0) -> Figure:
  """Return an empty figure of a size in inches; axes stay below a header of the given height.

  The height is limited, because that of some figures grows with the number of their rows.
  """
  height = min(height, _MAX_HEIGHT)
  rect = (0.01, 0.01, 0.98, 0.98 - header / height)
  layout = layout_engine.ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1, rect=rect)
  return Figure(figsize=(width, height), dpi=_DPI, facecolor='white', layout=layout)


def write(path: Path, figure: Figure) -> None:
  """Write a figure as PNG and SVG; equal figures give equal bytes.

  Dates, versions and random identifiers are omitted.
  """
  if layout := figure.get_layout_engine():
    layout.execute(figure)
    figure.set_layout_engine('none')  # Otherwise each format would compute it again.
  for suffix, options in _SAVE_OPTIONS.items():
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix, **options)
    path.with_suffix(f'.{suffix}').write_bytes(buffer.getvalue())


def add_legend(axes: Axes, offset: float) -> None:
  """Add a legend under axes; `offset` is the height of their labels, in lines of the legend."""
  axes.legend(loc='upper center', bbox_to_anchor=(0.5, 0), borderaxespad=offset)


def show_message(axes: Axes, text: str) -> None:
  """Replace axes by a message, for example why there is nothing to plot."""
  axes.set_axis_off()
  position = {'ha': 'center', 'va': 'center', 'transform': axes.transAxes}
  axes.text(0.5, 0.5, textwrap.fill(text, 40), size=11, color=MUTED_COLOR, **position)
