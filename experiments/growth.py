"""How the time and memory of fitting grow with the number of images.

  python experiments/growth.py --root=../shared/data/mvtec_ad --category=screw \
    --weights=../shared/weights/resnet18_imagenet_bnfolded.pth --log=runs/growth.jsonl

The images: the good ones of a category in turn, reduced to 256x256 pixels, each with noise of its
own (seeded), as JPEG files in a temporary folder (TMPDIR names another disk; its size is printed).
They resemble each other more than as many real ones would, and decode faster than large PNG files.

Each fit is a fresh process, without evaluation: PaDiM, PatchCore 1 % with room for all patches up
to --unbounded-to images (1.8 MB of memory each), and from --bounded-from images on with max_bytes
of 512 MiB. Seconds are from the first file opened to the fitted model, compilation included; memory
is the largest resident size until then. The thresholds, which every image is scored once more
for, are not in it. Finished fits are appended to --log at once, and are not repeated.
"""

import argparse
from collections.abc import Sequence
import json
from pathlib import Path
import tempfile
from typing import Any, NamedTuple

import fresh
from jaxtyping import UInt8
from matplotlib import figure, ticker
import numpy as np
from PIL import Image

from uadjax.data import image_io, layouts, transforms
from uadjax.sweep import results, tables

Fit = dict[str, Any]  # A line of the log.
_BOUND = 512 << 20


class Way(NamedTuple):
  """What is fitted, and how it is drawn."""

  title: str
  config: str
  flags: tuple[str, ...]
  style: str


_PADIM = Way('PaDiM', 'configs/padim.py', (), 's-C0')
_UNBOUNDED = Way(
  'PatchCore 1 %',
  'configs/patchcore.py',
  (f'--config.detector.max_bytes={1 << 40}',),  # More than there is: the default bounds it, too.
  'o-C1',
)
_BOUNDED = Way(
  'PatchCore 1 %, max_bytes 512 MiB',
  'configs/patchcore.py',
  (f'--config.detector.max_bytes={_BOUND}',),
  '^--C2',
)


def sources(root: str, category: str) -> list[UInt8[np.ndarray, '256 256 3']]:
  """The good images at network size."""
  ops = transforms.parse('resize(256)')
  return [ops.apply(image_io.decode(one.path)) for one in layouts.load(root, category).train]


def grow(
  folder: Path, images: Sequence[UInt8[np.ndarray, '256 256 3']], n: int, noise: float
) -> int:
  """Add files until there are n; returns their size in MB."""
  for i in range(len(list(folder.iterdir())), n):
    pixels = images[i % len(images)]
    # Of the number alone: a sweep that was cut off goes on with the same files.
    noisy = pixels + np.random.default_rng(i).normal(0, noise, pixels.shape)
    picture = Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))
    picture.save(folder / f'{i:06d}.jpg', quality=95)
  return sum(path.stat().st_size for path in folder.iterdir()) >> 20


def fit(way: Way, root: Path, weights: str) -> results.RunSummary:
  """Fit in a fresh process."""
  flags = [*fresh.flags_of(str(root), 'noisy', weights), '--config.evaluate.do_eval=false']
  with tempfile.TemporaryDirectory() as workdir:
    return fresh.train(way.config, Path(workdir), [*flags, *way.flags])


def ways(n: int, flags: argparse.Namespace) -> list[Way]:
  """What is fitted to n images."""
  chosen = [_PADIM]
  if n <= flags.unbounded_to:
    chosen.append(_UNBOUNDED)
  if n >= flags.bounded_from:
    chosen.append(_BOUNDED)
  return chosen


def measure(flags: argparse.Namespace) -> list[Fit]:
  """Fit what is not in the log yet; returns what was asked for."""
  log = [json.loads(line) for line in flags.log.open()] if flags.log.is_file() else []
  known = {(one['category'], one['way'], one['images']): one for one in log}
  wanted = [(n, way) for n in sorted(set(flags.images)) for way in ways(n, flags)]
  images = None
  with tempfile.TemporaryDirectory() as root:
    folder = Path(root) / 'noisy' / 'train' / 'good'
    folder.mkdir(parents=True)
    for n, way in wanted:
      key = flags.category, way.title, n
      if key not in known:
        images = images or sources(flags.root, flags.category)
        print(f'{n} images: {grow(folder, images, n, flags.noise)} MB of files', flush=True)
        told = fit(way, Path(root), flags.weights)
        known[key] = {
          'category': flags.category, 'way': way.title, 'images': n, 'machine': fresh.machine(),
          **told,
        }  # fmt: skip
        with flags.log.open('a') as file:
          file.write(json.dumps(known[key]) + '\n')
      one = known[key]
      print(f'{n} images, {way.title}: {one["fit_s"]:.1f} s, {one["fit_peak_mb"]} MB', flush=True)
  return [known[flags.category, way.title, n] for n, way in wanted]


def exponent(fits: Sequence[Fit], start: int) -> str:
  """Slope of log seconds over log images by least squares, from `start` images on."""
  some = [one for one in fits if one['images'] >= start]
  if len(some) < 2:
    return '—'
  images, seconds = np.log([[one['images'], one['fit_s']] for one in some]).T
  slope = np.polyfit(images, seconds, 1)[0]
  return f'{slope:.2f} ({some[0]["images"]}-{some[-1]["images"]})'


def draw(fits: Sequence[Fit], path: Path) -> None:
  """Time and memory over the number of images, on logarithmic axes."""
  canvas = figure.Figure(figsize=(9, 4), layout='constrained')
  panels = canvas.subplots(1, 2)
  numbers = sorted({one['images'] for one in fits})
  for panel, key, title in zip(
    panels, ('fit_s', 'fit_peak_mb'), ('seconds to fit', 'peak memory in MB'), strict=True
  ):
    for way in (_PADIM, _UNBOUNDED, _BOUNDED):
      points = [(one['images'], one[key]) for one in fits if one['way'] == way.title]
      if points:
        panel.plot(*zip(*points, strict=True), way.style, label=way.title)
    panel.set(xscale='log', yscale='log', xlabel='images', title=title)
    panel.set_xticks(numbers, [str(n) for n in numbers])
    # Plain numbers, also where there is no power of ten in sight.
    panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    panel.yaxis.set_major_formatter(ticker.FormatStrFormatter('%g'))
    panel.minorticks_off()
    panel.grid(alpha=0.3)
  panels[0].legend()
  canvas.savefig(path, dpi=110)


def main() -> None:
  """Fit what is missing, then print the tables and draw the plot."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for flag in ('--root', '--category', '--weights'):
    parser.add_argument(flag, required=True)
  parser.add_argument(
    '--images',
    type=lambda text: [int(n) for n in text.split(',')],
    default='50,100,200,500,1000,2000,5000',
  )
  parser.add_argument('--bounded-from', type=int, default=1000)
  parser.add_argument('--unbounded-to', type=int, default=5000)
  parser.add_argument('--slope-from', type=int, default=200, help='fewer: start-up counts most')
  parser.add_argument('--noise', type=float, default=4.0, help='standard deviation, of 255')
  parser.add_argument('--log', type=Path, default=Path('runs/growth.jsonl'))
  parser.add_argument('--plot', type=Path, default=Path(__file__).with_suffix('.png'))
  flags = parser.parse_args()
  flags.log.parent.mkdir(parents=True, exist_ok=True)
  fits = measure(flags)
  rows = [
    [one['way'], one['images'], f'{one["fit_s"]:.1f}', one['fit_peak_mb']]
    for one in sorted(fits, key=lambda one: (one['way'], one['images']))
  ]
  print('\n' + tables.markdown_table(['detector', 'images', 'fit s', 'peak MB'], rows) + '\n')
  slopes = [
    [way.title, exponent([one for one in fits if one['way'] == way.title], flags.slope_from)]
    for way in (_PADIM, _UNBOUNDED, _BOUNDED)
  ]
  print(
    tables.markdown_table(['detector', 'seconds grow as images to the power of (range)'], slopes)
  )
  print(f'\nMachine: {"; ".join(sorted({one["machine"] for one in fits}))}.')
  draw(fits, flags.plot)
  print(f'Plot: {flags.plot}, {flags.plot.stat().st_size >> 10} kB.')


if __name__ == '__main__':
  main()
