"""The files that a check of a data set leaves: sample pictures, a histogram, what is wrong."""

import collections
from collections.abc import Sequence
import itertools
from pathlib import Path
import textwrap
from typing import Any
import warnings

from jaxtyping import Bool, UInt8
from matplotlib import figure, ticker
from matplotlib.backends import backend_agg
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from uadjax.data import checks, image_io
from uadjax.data.layouts import scanning
from uadjax.data.problems import ERROR, Problem
from uadjax.data.records import Record
from uadjax.errors import DataError
from uadjax.system import files
from uadjax.visualization import heatmap

_SIDE = 400  # Pixels of a sample.
_CELL, _COLUMNS, _CELLS = 260, 4, 40  # Pixels of a thumbnail; how many of them on the sheet.
_LINE = 15  # Pixels.
_EMPTY = 200  # Gray of a file that cannot be shown.
_GOOD, _DEFECT = '#4878a8', '#d1605e'  # Told apart by every color-blind reader.
_INK = {ERROR: (190, 30, 30), 'warning': (150, 100, 0)}


def leave(report: checks.Report, workdir: Path, samples: int = 10) -> dict[str, Any]:
  """Write pictures into `workdir/check_dataset`; what is there already is replaced.

  Returns:
    `check_dataset_result.json` but its done_flag, with paths relative to workdir.
  """
  train, test = report.splits
  with files.replacing(workdir / 'check_dataset') as folder:
    (folder / 'demo_img').mkdir()
    names = {
      split: _samples(report, records, folder / 'demo_img', split, samples)
      for split, records in (('train', train), ('val', test))
    }
    with warnings.catch_warnings():
      warnings.filterwarnings('ignore', 'Glyph')  # A name in letters that the font has not.
      _histogram(report).savefig(folder / 'histogram.png')
    analysis = {'histogram': 'check_dataset/histogram.png'}
    if (sheet := _sheet(report)) is not None:
      sheet.save(folder / 'problems.png')
      analysis['problems'] = 'check_dataset/problems.png'
  return {
    'check_pass': report.passed,
    'attributes': {
      'train_sample_paths': names['train'],
      'train_samples': len(train),
      'val_sample_paths': names['val'],
      'val_samples': len(test),
      'num_classes': 1,  # The normal one: the only one that is learned.
      'defects': dict(collections.Counter(r.defect for r in test if r.anomalous)),
    },
    'analysis': analysis,
    'dataset_path': str(report.directory),
    'show_type': 'image',
    'dataset_type': 'SegDataset',
    'problems': [
      {**problem._asdict(), 'path': _short(str(problem.path), report)}
      for problem in report.problems
    ],
  }


def _samples(
  report: checks.Report, records: Sequence[Record], folder: Path, split: str, number: int
) -> list[str]:
  """Write pictures of readable images, in turn of every type, and spread over each."""
  bad = {problem.path for problem in report.errors}
  names = []
  for record in _spread([r for r in records if r.path not in bad], number):
    name = f'{split}_{len(names) + 1:02d}.png'  # By number: names may come twice.
    mask = record.mask if record.mask in report.shares and record.mask not in bad else None
    _sample(record, mask, report).save(folder / name)
    names.append(f'check_dataset/demo_img/{name}')
  return names


def _spread(records: Sequence[Record], number: int) -> list[Record]:
  """Choose about as many of each type, and those far from each other in the list."""
  kinds: dict[str, list[Record]] = collections.defaultdict(list)
  for record in records:
    kinds[record.defect].append(record)
  turns = itertools.chain(*itertools.zip_longest(*kinds.values()))
  wanted = collections.Counter(r.defect for r in list(filter(None, turns))[:number])
  return [
    kinds[kind][position]
    for kind, count in sorted(wanted.items(), key=lambda item: (item[0] != 'good', item[0]))
    for position in (np.arange(count) * len(kinds[kind]) // count).tolist()
  ]


def _sample(record: Record, mask: Path | None, report: checks.Report) -> Image.Image:
  """Show an image beside itself with its mask outlined."""
  image = image_io.decode(record.path)
  tiles = [heatmap.Tile(record.defect, _fitted(image, _SIDE))]
  if mask is not None:
    truth = image_io.read_mask(mask, report.mask_threshold)
    outlined = heatmap.outline(image, truth)
    told = f'mask: {_percent(report.shares[mask])} defective'
    tiles.append(heatmap.Tile(told, _fitted(outlined, _SIDE)))
  else:
    nothing = 'no mask: nothing to outline' if record.anomalous else 'good: nothing to outline'
    tiles.append(heatmap.Tile(nothing, tiles[0].image))
  return heatmap.side_by_side(tiles, _short(str(record.path), report))


def _percent(share: float) -> str:
  return f'{100 * share:.2g} %'


def _fitted(image: UInt8[np.ndarray, 'h w 3'], side: int) -> UInt8[np.ndarray, 'H W 3']:
  """Bring an image to a size for looking at, its longer side as given."""
  height, width = image.shape[:2]
  scale = side / max(height, width)
  size = max(1, round(width * scale)), max(1, round(height * scale))
  # Enlarged pixels are shown as what they are.
  how = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
  return np.asarray(Image.fromarray(image).resize(size, how))


def _histogram(report: checks.Report) -> figure.Figure:
  """Draw images per split and type, and how much of the defective ones is defective."""
  train, test = report.splits
  learned = sum(not record.anomalous for record in train)
  rows = [('train: good', learned, _GOOD)]
  if learned < len(train):
    rows += [('train: defective', len(train) - learned, _DEFECT)]
  counts = collections.Counter(record.defect for record in test)
  defects = sorted(kind for kind in counts if kind != 'good')
  rows += [('test: good', counts['good'], _GOOD)]
  first = len(rows)
  rows += [(f'test: {kind}', counts[kind], _DEFECT) for kind in defects]
  drawn = figure.Figure(figsize=(10, 1.6 + 0.34 * len(rows)), layout='constrained', dpi=120)
  backend_agg.FigureCanvasAgg(drawn)
  left, right = drawn.subplots(1, 2, sharey=True)
  bars = left.barh(range(len(rows)), [n for _, n, _ in rows], color=[c for _, _, c in rows])
  left.bar_label(bars, padding=3)
  left.margins(x=0.12)
  left.set(title='Images', xlabel='number of images')
  # A name is no formula, whatever dollars it holds.
  left.set_yticks(range(len(rows)), [name for name, _, _ in rows], parse_math=False)
  left.invert_yaxis()
  _draw_shares(right, report, defects, first)
  for axes in (left, right):
    axes.spines[['top', 'right']].set_visible(False)
  return drawn


def _draw_shares(axes: Any, report: checks.Report, defects: Sequence[str], first: int) -> None:
  """Draw a dot per defective image, at the share of its pixels that is defective."""
  generator = np.random.default_rng(0)  # Moves dots apart, always alike.
  every: list[float] = []
  for row, kind in enumerate(defects, first):
    masks = [r.mask for r in report.splits.test if r.defect == kind and r.mask in report.shares]
    shares = [100 * share for mask in masks if mask and (share := report.shares[mask])]
    heights = row + generator.uniform(-0.22, 0.22, len(shares))
    axes.scatter(shares, heights, s=14, color=_DEFECT, alpha=0.6, linewidths=0)
    if shares:
      axes.plot([np.median(shares)] * 2, [row - 0.36, row + 0.36], color='black', linewidth=1.5)
    every += shares
  axes.set(title='Defective area of an image', xlabel='defective pixels, % (line: median)')
  if every:
    axes.set_xscale('log')
    axes.xaxis.set_major_locator(_ticks(max(every) / min(every)))
    axes.xaxis.set_major_formatter(lambda value, _: _plain(value))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.grid(axis='x', alpha=0.3)
  else:
    axes.text(0.5, 0.5, 'no masks', transform=axes.transAxes, ha='center', color='gray')
    axes.set_xticks([])


def _ticks(span: float) -> ticker.Locator:
  """As many per decade as find room where the largest value is so many times the smallest."""
  return ticker.LogLocator(subs=range(1, 10) if span < 4 else (1, 2, 5) if span < 100 else (1,))


def _plain(value: float) -> str:
  """A number without an exponent, however small."""
  return np.format_float_positional(float(f'{value:.6g}'), trim='-')


def _sheet(report: checks.Report) -> Image.Image | None:
  """Show offending images with what is wrong, errors first; None where there are none."""
  grouped: dict[Path, list[Problem]] = {}
  for problem in report.problems:
    grouped.setdefault(problem.path, []).append(problem)
  cells, left_out = [], 0
  for path, found in grouped.items():
    if path.suffix.lower() not in scanning.SUFFIXES:
      continue
    if len(cells) == _CELLS:
      left_out += 1
      continue
    cells.append(_cell(_thumbnail(path, report), found, report))
  if not cells:
    return None
  rows = [cells[start : start + _COLUMNS] for start in range(0, len(cells), _COLUMNS)]
  heights = [max(cell.height for cell in row) for row in rows]
  width = max(len(row) for row in rows) * _CELL
  sheet = Image.new('RGB', (width, sum(heights) + 2 * _LINE), 'white')
  rest = f'; {left_out} more in check_dataset_result.json' if left_out else ''
  title = f'{len(cells)} files with problems (red: errors){rest}'
  ImageDraw.Draw(sheet).text((6, 6), title, 'black', ImageFont.load_default(13))
  for row, top in zip(rows, np.cumsum([2 * _LINE, *heights]).tolist(), strict=False):
    for column, cell in enumerate(row):
      sheet.paste(cell, (column * _CELL, top))
  return sheet


def _thumbnail(path: Path, report: checks.Report) -> UInt8[np.ndarray, 'h w 3']:
  """The image, or the mask in black and white; plain gray where it cannot be read."""
  try:
    if path in report.shares:
      mask: Bool[np.ndarray, 'h w'] = image_io.read_mask(path, report.mask_threshold)
      return _fitted(heatmap.black_and_white(mask), _CELL - 12)
    return _fitted(image_io.decode(path), _CELL - 12)
  except DataError:
    return np.full((_CELL // 2, _CELL - 12, 3), _EMPTY, np.uint8)


def _cell(
  thumbnail: UInt8[np.ndarray, 'h w 3'], found: Sequence[Problem], report: checks.Report
) -> Image.Image:
  """A thumbnail above the sentences of its file."""
  lines = [
    (line, _INK[problem.severity])
    for problem in found
    for line in textwrap.wrap(_short(problem.message, report), 40)
  ]
  height = thumbnail.shape[0]
  cell = Image.new('RGB', (_CELL, height + _LINE * (len(lines) + 1) + 6), 'white')
  cell.paste(Image.fromarray(thumbnail), (6, 0))
  draw = ImageDraw.Draw(cell)
  for number, (line, ink) in enumerate(lines):
    draw.text((6, height + 4 + _LINE * number), line, ink, ImageFont.load_default(12))
  return cell


def _short(text: str, report: checks.Report) -> str:
  """A path or sentence without the data set's folder, which is the same in all of them."""
  return text.replace(f'{report.directory}/', '')
