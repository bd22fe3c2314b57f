"""Files that a dataset check writes: sample pictures, a histogram, and a sheet of problems."""

import collections
from collections.abc import Sequence
from pathlib import Path
import textwrap
from typing import Any
import warnings

from jaxtyping import Bool, UInt8
from matplotlib import figure, ticker
from matplotlib.backends import backend_agg
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from uadjax.data import checks, image_io, selection
from uadjax.data.layouts import scanning
from uadjax.data.problems import ERROR, Problem
from uadjax.data.records import Record
from uadjax.errors import DataError
from uadjax.system import files
from uadjax.system.text import format_percent
from uadjax.visualization import heatmap, sheet

_SAMPLE_SIDE = 400  # Longer side of a sample in pixels.
_CELL_WIDTH, _COLUMNS, _MAX_CELLS = 260, 4, 40  # Layout of the problem sheet; width in pixels.
_LINE_HEIGHT = 15  # Pixels.
_UNREADABLE_GRAY = 200  # Gray level of unreadable files.
_GOOD_COLOR, _DEFECT_COLOR = '#4878a8', '#d1605e'  # Distinct for color-blind readers.
_TEXT_COLORS = {ERROR: (190, 30, 30), 'warning': (150, 100, 0)}


def write(report: checks.Report, workdir: Path, num_samples: int = 10) -> dict[str, Any]:
  """Write the pictures of a check into `workdir/check_dataset`, which is replaced if it exists.

  Args:
    report: result of the check.
    workdir: work directory of the run.
    num_samples: number of sample pictures per split.

  Returns:
    The content of `check_dataset_result.json` without its done_flag, with paths relative to
    `workdir`.
  """
  train, test = report.splits
  with files.atomic_directory(workdir / 'check_dataset') as folder:
    (folder / 'demo_img').mkdir()
    sample_paths = {
      split: _write_samples(report, records, folder / 'demo_img', split, num_samples)
      for split, records in (('train', train), ('val', test))
    }
    with warnings.catch_warnings():
      warnings.filterwarnings('ignore', 'Glyph')  # The font lacks letters of some names.
      _draw_histogram(report).savefig(folder / 'histogram.png')
    analysis = {'histogram': 'check_dataset/histogram.png'}
    if (sheet := _problem_sheet(report)) is not None:
      sheet.save(folder / 'problems.png')
      analysis['problems'] = 'check_dataset/problems.png'
  return {
    'check_pass': report.passed,
    'attributes': {
      'train_sample_paths': sample_paths['train'],
      'train_samples': len(train),
      'val_sample_paths': sample_paths['val'],
      'val_samples': len(test),
      'num_classes': 1,  # Training learns only the normal class.
      'defects': dict(collections.Counter(r.defect for r in test if r.is_anomalous)),
    },
    'analysis': analysis,
    'dataset_path': str(report.directory),
    'show_type': 'image',
    'dataset_type': 'SegDataset',
    'problems': [
      {**problem._asdict(), 'path': _strip_directory(str(problem.path), report)}
      for problem in report.problems
    ],
  }


def _write_samples(
  report: checks.Report, records: Sequence[Record], folder: Path, split: str, num_samples: int
) -> list[str]:
  """Write sample pictures of readable images, evenly chosen per defect; return their paths."""
  error_paths = {problem.path for problem in report.errors}
  sample_paths = []
  for record in _choose_evenly([r for r in records if r.path not in error_paths], num_samples):
    name = f'{split}_{len(sample_paths) + 1:02d}.png'  # Names of images may repeat; numbers do not.
    mask = (
      record.mask
      if record.mask in report.defective_fractions and record.mask not in error_paths
      else None
    )
    _sample_image(record, mask, report).save(folder / name)
    sample_paths.append(f'check_dataset/demo_img/{name}')
  return sample_paths


def _choose_evenly(records: Sequence[Record], num_samples: int) -> list[Record]:
  """Choose about equally many records of each defect, good ones first."""
  chosen = set(selection.spread_over_defects(records, num_samples))
  key = {record: (record.is_anomalous, record.defect, i) for i, record in enumerate(records)}
  return sorted(chosen, key=key.__getitem__)


def _sample_image(record: Record, mask: Path | None, report: checks.Report) -> Image.Image:
  """Render an image next to a copy with its mask outlined."""
  image = image_io.decode(record.path)
  tiles = [sheet.TitledImage(record.defect, _resize_to_fit(image, _SAMPLE_SIDE))]
  if mask is not None:
    truth = image_io.read_mask(mask, report.mask_threshold)
    outlined = heatmap.draw_outline(image, truth)
    caption = f'mask: {format_percent(report.defective_fractions[mask], 2)} defective'
    tiles.append(sheet.TitledImage(caption, _resize_to_fit(outlined, _SAMPLE_SIDE)))
  else:
    caption = 'no mask: nothing to outline' if record.is_anomalous else 'good: nothing to outline'
    tiles.append(sheet.TitledImage(caption, tiles[0].image))
  return sheet.draw_sheet(tiles, _strip_directory(str(record.path), report))


def _resize_to_fit(image: UInt8[np.ndarray, 'h w 3'], side: int) -> UInt8[np.ndarray, 'H W 3']:
  """Resize an image for display so that its longer side has `side` pixels."""
  height, width = image.shape[:2]
  scale = side / max(height, width)
  size = max(1, round(width * scale)), max(1, round(height * scale))
  # Enlarged images show their pixels as squares.
  resampling = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
  return np.asarray(Image.fromarray(image).resize(size, resampling))


def _draw_histogram(report: checks.Report) -> figure.Figure:
  """Draw the number of images per split and defect, and the defective area of each defect."""
  train, test = report.splits
  num_normal = sum(not record.is_anomalous for record in train)
  rows = [('train: good', num_normal, _GOOD_COLOR)]
  if num_normal < len(train):
    rows += [('train: defective', len(train) - num_normal, _DEFECT_COLOR)]
  counts = collections.Counter(record.defect for record in test)
  defect_names = sorted(defect for defect in counts if defect != 'good')
  rows += [('test: good', counts['good'], _GOOD_COLOR)]
  first_defect_row = len(rows)
  rows += [(f'test: {defect}', counts[defect], _DEFECT_COLOR) for defect in defect_names]
  fig = figure.Figure(figsize=(10, 1.6 + 0.34 * len(rows)), layout='constrained', dpi=120)
  backend_agg.FigureCanvasAgg(fig)
  count_axes, area_axes = fig.subplots(1, 2, sharey=True)
  bars = count_axes.barh(range(len(rows)), [n for _, n, _ in rows], color=[c for _, _, c in rows])
  count_axes.bar_label(bars, padding=3)
  count_axes.margins(x=0.12)
  count_axes.set(title='Images', xlabel='number of images')
  # Names may contain dollar signs, which must not start a formula.
  count_axes.set_yticks(range(len(rows)), [name for name, _, _ in rows], parse_math=False)
  count_axes.invert_yaxis()
  _draw_defective_area(area_axes, report, defect_names, first_defect_row)
  for axes in (count_axes, area_axes):
    axes.spines[['top', 'right']].set_visible(False)
  return fig


def _draw_defective_area(
  axes: Any, report: checks.Report, defect_names: Sequence[str], first_row: int
) -> None:
  """Draw a dot per defective image at its percentage of defective pixels."""
  rng = np.random.default_rng(0)  # Jitter with a fixed seed, so that plots are reproducible.
  all_percentages: list[float] = []
  for row, defect in enumerate(defect_names, first_row):
    masks = [
      r.mask
      for r in report.splits.test
      if r.defect == defect and r.mask in report.defective_fractions
    ]
    percentages = [
      100 * fraction for mask in masks if mask and (fraction := report.defective_fractions[mask])
    ]
    jittered_rows = row + rng.uniform(-0.22, 0.22, len(percentages))
    axes.scatter(percentages, jittered_rows, s=14, color=_DEFECT_COLOR, alpha=0.6, linewidths=0)
    if percentages:
      axes.plot(
        [np.median(percentages)] * 2, [row - 0.36, row + 0.36], color='black', linewidth=1.5
      )
    all_percentages += percentages
  axes.set(title='Defective area of an image', xlabel='defective pixels, % (line: median)')
  if all_percentages:
    axes.set_xscale('log')
    axes.xaxis.set_major_locator(_log_ticks(max(all_percentages) / min(all_percentages)))
    axes.xaxis.set_major_formatter(lambda value, _: _format_plain(value))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.grid(axis='x', alpha=0.3)
  else:
    axes.text(0.5, 0.5, 'no masks', transform=axes.transAxes, ha='center', color='gray')
    axes.set_xticks([])


def _log_ticks(ratio: float) -> ticker.Locator:
  """Return log-scale ticks, fewer per decade the larger the ratio of largest to smallest value."""
  return ticker.LogLocator(subs=range(1, 10) if ratio < 4 else (1, 2, 5) if ratio < 100 else (1,))


def _format_plain(value: float) -> str:
  """Format a number without an exponent."""
  return np.format_float_positional(float(f'{value:.6g}'), trim='-')


def _problem_sheet(report: checks.Report) -> Image.Image | None:
  """Draw thumbnails of images with their problems, errors first; None without problems."""
  problems_by_path: dict[Path, list[Problem]] = {}
  for problem in report.problems:
    problems_by_path.setdefault(problem.path, []).append(problem)
  cells, num_omitted = [], 0
  for path, path_problems in problems_by_path.items():
    if path.suffix.lower() not in scanning.SUFFIXES:
      continue
    if len(cells) == _MAX_CELLS:
      num_omitted += 1
      continue
    cells.append(_problem_cell(_thumbnail(path, report), path_problems, report))
  if not cells:
    return None
  rows = [cells[start : start + _COLUMNS] for start in range(0, len(cells), _COLUMNS)]
  heights = [max(cell.height for cell in row) for row in rows]
  width = max(len(row) for row in rows) * _CELL_WIDTH
  sheet = Image.new('RGB', (width, sum(heights) + 2 * _LINE_HEIGHT), 'white')
  omitted_note = f'; {num_omitted} more in check_dataset_result.json' if num_omitted else ''
  title = f'{len(cells)} files with problems (red: errors){omitted_note}'
  ImageDraw.Draw(sheet).text((6, 6), title, 'black', ImageFont.load_default(13))
  for row, top in zip(rows, np.cumsum([2 * _LINE_HEIGHT, *heights]).tolist(), strict=False):
    for column, cell in enumerate(row):
      sheet.paste(cell, (column * _CELL_WIDTH, top))
  return sheet


def _thumbnail(path: Path, report: checks.Report) -> UInt8[np.ndarray, 'h w 3']:
  """Return a thumbnail of an image or, in black and white, of a mask; gray if unreadable."""
  try:
    if path in report.defective_fractions:
      mask: Bool[np.ndarray, 'h w'] = image_io.read_mask(path, report.mask_threshold)
      return _resize_to_fit(heatmap.render_mask(mask), _CELL_WIDTH - 12)
    return _resize_to_fit(image_io.decode(path), _CELL_WIDTH - 12)
  except DataError:
    return np.full((_CELL_WIDTH // 2, _CELL_WIDTH - 12, 3), _UNREADABLE_GRAY, np.uint8)


def _problem_cell(
  thumbnail: UInt8[np.ndarray, 'h w 3'], problems: Sequence[Problem], report: checks.Report
) -> Image.Image:
  """Draw a thumbnail above the messages of its problems."""
  lines = [
    (line, _TEXT_COLORS[problem.severity])
    for problem in problems
    for line in textwrap.wrap(_strip_directory(problem.message, report), 40)
  ]
  height = thumbnail.shape[0]
  cell = Image.new('RGB', (_CELL_WIDTH, height + _LINE_HEIGHT * (len(lines) + 1) + 6), 'white')
  cell.paste(Image.fromarray(thumbnail), (6, 0))
  draw = ImageDraw.Draw(cell)
  for line_index, (line, color) in enumerate(lines):
    draw.text((6, height + 4 + _LINE_HEIGHT * line_index), line, color, ImageFont.load_default(12))
  return cell


def _strip_directory(text: str, report: checks.Report) -> str:
  """Remove the dataset's folder, which all paths share, from a path or message."""
  return text.replace(f'{report.directory}/', '')
