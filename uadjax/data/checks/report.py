"""Files that a dataset check writes: sample pictures, a histogram, and a sheet of problems."""

import collections
from collections.abc import Sequence
import itertools
import math
from pathlib import Path
import textwrap
from typing import Any
import warnings

from jaxtyping import UInt8
from matplotlib import ticker
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from uadjax.data import checks, image_io, selection
from uadjax.data.layouts import scanning
from uadjax.data.problems import ERROR, Problem
from uadjax.data.records import GOOD, Record
from uadjax.errors import DataError
from uadjax.system import files
from uadjax.system.text import format_percent
from uadjax.visualization import figures, heatmap, sheet

_NUM_SAMPLES = 10  # Sample pictures of a split.
_SAMPLE_SIDE = 400  # Longer side of a sample in pixels.
_CELL_WIDTH, _COLUMNS, _MAX_CELLS = 260, 4, 40  # Layout of the problem sheet; width in pixels.
_LINE_HEIGHT = 15  # Pixels.
_MAX_LINES = 30  # Of the messages about a file; a file that is listed often has many.
_GOOD_COLOR, _DEFECT_COLOR = '#4878a8', '#d1605e'  # Distinct for color-blind readers.
_TEXT_COLORS = {ERROR: (190, 30, 30), 'warning': (150, 100, 0)}


def write(report: checks.Report, workdir: Path) -> dict[str, Any]:
  """Write the pictures of a check into `workdir/check_dataset`, which is replaced if it exists.

  Args:
    report: result of the check.
    workdir: work directory of the run.

  Returns:
    The content of `check_dataset_result.json` without its done_flag, with paths relative to
    `workdir`.
  """
  defects = collections.Counter(r.defect for r in report.splits.test if r.is_anomalous)
  # Training learns only the normal class.
  attributes: dict[str, object] = {'num_classes': 1, 'defects': dict(defects)}
  with files.atomic_directory(workdir / 'check_dataset') as folder:
    (folder / 'demo_img').mkdir()
    for split, records in zip(('train', 'val'), report.splits, strict=True):
      sample_paths = _write_samples(report, records, folder / 'demo_img', split)
      attributes |= {f'{split}_sample_paths': sample_paths, f'{split}_samples': len(records)}
    with figures.style(), warnings.catch_warnings():
      warnings.filterwarnings('ignore', 'Glyph')  # The fonts lack letters of some names.
      _draw_histogram(report).savefig(folder / 'histogram.png')
    analysis = {'histogram': 'check_dataset/histogram.png'}
    if problem_sheet := _problem_sheet(report):
      problem_sheet.save(folder / 'problems.png')
      analysis['problems'] = 'check_dataset/problems.png'
  return {
    'check_pass': report.passed,
    'attributes': attributes,
    'analysis': analysis,
    'dataset_path': str(report.directory),
    'show_type': 'image',
    'dataset_type': 'SegDataset',
    'problems': [
      {**p._asdict(), 'path': _strip_directory(str(p.path), report)} for p in report.problems
    ],
    'not_used': [group.to_dict() for group in report.not_used],
  }


def _write_samples(
  report: checks.Report, records: Sequence[Record], folder: Path, split: str
) -> list[str]:
  """Write sample pictures of readable images, evenly chosen per defect; return their paths.

  Each is an image next to a copy with its mask outlined.
  """
  error_paths = {problem.path for problem in report.errors}
  readable = [record for record in records if record.path not in error_paths]
  sample_paths = []
  for number, record in enumerate(_choose_evenly(readable, _NUM_SAMPLES), 1):
    image = outlined = image_io.decode(record.path, pixel_range=report.pixel_range)
    caption = f'{"no mask" if record.is_anomalous else "good"}: nothing to outline'
    if record.mask and record.mask not in error_paths:
      outlined = heatmap.draw_outline(image, image_io.read_mask(record.mask, report.mask_reading))
      caption = f'mask: {format_percent(report.defective_fractions[record.mask], 2)} defective'
    pairs = (record.defect, image), (caption, outlined)
    tiles = {title: sheet.Tile(_resize_to_fit(tile, _SAMPLE_SIDE)) for title, tile in pairs}
    sample = sheet.draw_sheet(tiles, _strip_directory(str(record.path), report))
    name = f'{split}_{number:02d}.png'  # Names of images may repeat; numbers do not.
    sample.save(folder / name)
    sample_paths.append(f'check_dataset/demo_img/{name}')
  return sample_paths


def _choose_evenly(records: Sequence[Record], num_samples: int) -> list[Record]:
  """Choose about equally many records of each defect, good ones first."""
  chosen = dict.fromkeys(selection.spread_over_defects(records, num_samples))
  return sorted(chosen, key=lambda r: (r.is_anomalous, r.defect, records.index(r)))


def _resize_to_fit(image: UInt8[np.ndarray, 'h w 3'], side: int) -> UInt8[np.ndarray, 'H W 3']:
  """Resize an image for display so that its longer side has `side` pixels."""
  height, width = image.shape[:2]
  scale = side / max(height, width)
  size = max(1, round(width * scale)), max(1, round(height * scale))
  # Enlarged images show their pixels as squares.
  resampling = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
  return np.asarray(Image.fromarray(image).resize(size, resampling))


def _draw_histogram(report: checks.Report) -> figures.Figure:
  """Draw the number of images per split and defect, and the defective area of each defect."""
  counts = collections.Counter({'train: good': 0, 'test: good': 0})
  for split, records in zip(('train', 'test'), report.splits, strict=True):
    counts.update(f'{split}: {record.defect}' for record in records)
  # Training images come before test images, and good ones before defects.
  rows = sorted(counts, key=lambda r: (r.startswith('test: '), not r.endswith(': good'), r))
  colors = [_GOOD_COLOR if row.endswith(': good') else _DEFECT_COLOR for row in rows]
  figure = figures.new_figure(10.0, 1.6 + 0.34 * len(rows))
  count_axes, area_axes = figure.subplots(1, 2, sharey=True)
  bars = count_axes.barh(range(len(rows)), [counts[row] for row in rows], color=colors)
  count_axes.bar_label(bars, padding=3)
  count_axes.margins(x=0.12)
  count_axes.set(title='Images', xlabel='number of images')
  count_axes.set_yticks(range(len(rows)), rows)
  count_axes.invert_yaxis()
  _draw_defective_area(area_axes, report, rows)
  return figure


def _draw_defective_area(ax: figures.Axes, report: checks.Report, rows: Sequence[str]) -> None:
  """Draw a dot per defective image at its percentage of defective pixels."""
  rng = np.random.default_rng(0)  # Jitter with a fixed seed, so that plots are reproducible.
  percentages: dict[str, list[float]] = collections.defaultdict(list)
  for _, defect, mask, *_ in report.splits.test:
    if defect != GOOD and mask and (fraction := report.defective_fractions.get(mask)):
      percentages[defect].append(100 * fraction)
  for defect, values in sorted(percentages.items()):
    row = rows.index(f'test: {defect}')
    jittered_rows = row + rng.uniform(-0.22, 0.22, len(values))
    ax.scatter(values, jittered_rows, s=14, color=_DEFECT_COLOR, alpha=0.6, linewidths=0)
    ax.plot([np.median(values)] * 2, [row - 0.36, row + 0.36], color='black', linewidth=1.5)
  ax.set(title='Defective area of an image', xlabel='defective pixels, % (line: median)')
  if all_values := [value for values in percentages.values() for value in values]:
    ax.set_xscale('log')
    ax.xaxis.set_major_locator(_log_ticks(max(all_values) / min(all_values)))
    ax.xaxis.set_major_formatter(lambda value, _: _format_plain(value))
    ax.xaxis.set_minor_formatter(ticker.NullFormatter())
    ax.grid(axis='x', alpha=0.3)
  else:
    figures.show_message(ax, 'no masks')


def _log_ticks(ratio: float) -> ticker.Locator:
  """Return log-scale ticks, fewer per decade the larger the ratio of largest to smallest value."""
  return ticker.LogLocator(subs=range(1, 10) if ratio < 4 else (1, 2, 5) if ratio < 100 else (1,))


def _format_plain(value: float) -> str:
  """Format a number without an exponent."""
  return np.format_float_positional(float(f'{value:.6g}'), trim='-')


def _problem_sheet(report: checks.Report) -> Image.Image | None:
  """Draw thumbnails of images with their problems, errors first; None without problems."""
  problems_by_path: dict[Path, list[Problem]] = collections.defaultdict(list)
  for problem in report.problems:
    if problem.path.suffix.lower() in scanning.SUFFIXES:
      problems_by_path[problem.path].append(problem)
  if not problems_by_path:
    return None
  files_to_show = itertools.islice(problems_by_path.items(), _MAX_CELLS)
  cells = [_problem_cell(path, problems, report) for path, problems in files_to_show]
  top, row_height = 2 * _LINE_HEIGHT, max(cell.height for cell in cells)
  width = min(len(cells), _COLUMNS) * _CELL_WIDTH
  num_rows = math.ceil(len(cells) / _COLUMNS)
  canvas = Image.new('RGB', (width, top + num_rows * row_height), 'white')
  num_omitted = len(problems_by_path) - len(cells)
  omitted = f'; {num_omitted} more in check_dataset_result.json' if num_omitted else ''
  title = f'{len(cells)} files with problems (red: errors){omitted}'
  ImageDraw.Draw(canvas).text((6, 6), title, 'black', ImageFont.load_default(13))
  for i, cell in enumerate(cells):
    row, column = divmod(i, _COLUMNS)
    canvas.paste(cell, (column * _CELL_WIDTH, top + row * row_height))
  return canvas


def _problem_cell(path: Path, problems: Sequence[Problem], report: checks.Report) -> Image.Image:
  """Draw a thumbnail above the messages of its problems."""
  thumbnail = Image.fromarray(_thumbnail(path, report))
  lines = [
    (line, _TEXT_COLORS[problem.severity])
    for problem in problems
    for line in textwrap.wrap(_strip_directory(problem.message, report), 40)
  ]
  if num_omitted := len(lines[_MAX_LINES:]):
    lines[_MAX_LINES:] = [(f'and {num_omitted} more lines', _TEXT_COLORS['warning'])]
  height = thumbnail.height + _LINE_HEIGHT * (len(lines) + 1) + 6
  cell = Image.new('RGB', (_CELL_WIDTH, height), 'white')
  cell.paste(thumbnail, (6, 0))
  draw, font = ImageDraw.Draw(cell), ImageFont.load_default(12)
  for i, (line, color) in enumerate(lines):
    draw.text((6, thumbnail.height + 4 + _LINE_HEIGHT * i), line, color, font)
  return cell


def _thumbnail(path: Path, report: checks.Report) -> UInt8[np.ndarray, 'h w 3']:
  """Return a thumbnail of an image or, in black and white, of a mask; gray if unreadable."""
  width = _CELL_WIDTH - 12
  try:
    if path in report.defective_fractions:
      mask = image_io.read_mask(path, report.mask_reading)
      return _resize_to_fit(heatmap.render_mask(mask), width)
    return _resize_to_fit(image_io.decode(path, pixel_range=report.pixel_range), width)
  except DataError:
    return np.full((_CELL_WIDTH // 2, width, 3), 200, np.uint8)  # Gray.


def _strip_directory(text: str, report: checks.Report) -> str:
  """Remove the dataset's folder, which all paths share, from a path or message."""
  return text.replace(f'{report.directory}/', '')
