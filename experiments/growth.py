"""Growth of the time and memory of fitting with the number of images.

  python experiments/growth.py --root=../shared/data/mvtec_ad --category=screw \
    --weights=../shared/weights/resnet18_imagenet_bnfolded.pth --log=runs/growth.jsonl

The images are the good ones of a category, repeated in order and reduced to 256x256 pixels. Each
gets its own seeded noise. They are JPEG files in a temporary folder (TMPDIR selects another disk;
the script prints its size). They resemble each other more than as many real images would, and
decode faster than large PNG files.

Each fit is a separate process, without evaluation. The variants are PaDiM, PatchCore 1 % with
memory for all patches up to --unbounded-to images (1.8 MB each), and from --bounded-from images on
PatchCore with max_bytes of 512 MiB. Seconds last from the first file opened to the fitted model,
compilation included; memory is the largest resident size until then. Threshold calibration, which
scores every image once more, is excluded. Finished fits are appended to --log at once, and are not
repeated.
"""

import argparse
from collections.abc import Sequence
import json
from pathlib import Path
import tempfile
from typing import Any, NamedTuple

from jaxtyping import UInt8
from matplotlib import figure, ticker
import numpy as np
from PIL import Image
import subprocess_runs

from uadjax.data import image_io, layouts, transforms
from uadjax.sweep import results, tables

FitRecord = dict[str, Any]  # A line of the log.
_MAX_BYTES = 512 << 20


class FitVariant(NamedTuple):
  """Variant of a detector, and its style in the plot."""

  title: str
  config: str
  flags: tuple[str, ...]
  style: str


_PADIM = FitVariant('PaDiM', 'configs/padim.py', (), 's-C0')
_UNBOUNDED = FitVariant(
  'PatchCore 1 %',
  'configs/patchcore.py',
  (
    f'--config.detector.max_bytes={1 << 40}',
  ),  # No machine has as much; the default is a bound, too.
  'o-C1',
)
_BOUNDED = FitVariant(
  'PatchCore 1 %, max_bytes 512 MiB',
  'configs/patchcore.py',
  (f'--config.detector.max_bytes={_MAX_BYTES}',),
  '^--C2',
)


def load_source_images(root: str, category: str) -> list[UInt8[np.ndarray, '256 256 3']]:
  """Load the good images at network size."""
  ops = transforms.parse('resize(256)')
  return [ops.apply(image_io.decode(record.path)) for record in layouts.load(root, category).train]


def add_noisy_images(
  folder: Path, images: Sequence[UInt8[np.ndarray, '256 256 3']], n: int, noise: float
) -> int:
  """Add files up to a number of n, and return the size of all in MB."""
  for i in range(len(list(folder.iterdir())), n):
    pixels = images[i % len(images)]
    # The seed is the index alone, so a resumed sweep uses the same files.
    noisy_pixels = pixels + np.random.default_rng(i).normal(0, noise, pixels.shape)
    noisy_image = Image.fromarray(noisy_pixels.round().clip(0, 255).astype(np.uint8))
    noisy_image.save(folder / f'{i:06d}.jpg', quality=95)
  return sum(path.stat().st_size for path in folder.iterdir()) >> 20


def fit(variant: FitVariant, root: Path, weights: str) -> results.RunSummary:
  """Fit in a separate process."""
  flags = [
    *subprocess_runs.run_flags(str(root), 'noisy', weights),
    '--config.evaluate.do_eval=false',
  ]
  with tempfile.TemporaryDirectory() as workdir:
    return subprocess_runs.train(variant.config, Path(workdir), [*flags, *variant.flags])


def variants_for(n: int, flags: argparse.Namespace) -> list[FitVariant]:
  """Return the variants that are fitted to n images."""
  variants = [_PADIM]
  if n <= flags.unbounded_to:
    variants.append(_UNBOUNDED)
  if n >= flags.bounded_from:
    variants.append(_BOUNDED)
  return variants


def measure(flags: argparse.Namespace) -> list[FitRecord]:
  """Make the fits that the log lacks, and return the requested ones."""
  log_records = [json.loads(line) for line in flags.log.open()] if flags.log.is_file() else []
  records_by_key = {
    (record['category'], record['variant'], record['images']): record for record in log_records
  }
  requested_fits = [
    (n, variant) for n in sorted(set(flags.images)) for variant in variants_for(n, flags)
  ]
  images = None
  with tempfile.TemporaryDirectory() as root:
    folder = Path(root) / 'noisy' / 'train' / 'good'
    folder.mkdir(parents=True)
    for n, variant in requested_fits:
      key = flags.category, variant.title, n
      if key not in records_by_key:
        images = images or load_source_images(flags.root, flags.category)
        print(
          f'{n} images: {add_noisy_images(folder, images, n, flags.noise)} MB of files', flush=True
        )
        summary = fit(variant, Path(root), flags.weights)
        records_by_key[key] = {
          'category': flags.category, 'variant': variant.title, 'images': n,
          'machine': subprocess_runs.describe_machine(), **summary,
        }  # fmt: skip
        with flags.log.open('a') as file:
          file.write(json.dumps(records_by_key[key]) + '\n')
      record = records_by_key[key]
      print(
        f'{n} images, {variant.title}: {record["fit_s"]:.1f} s, {record["fit_peak_mb"]} MB',
        flush=True,
      )
  return [records_by_key[flags.category, variant.title, n] for n, variant in requested_fits]


def growth_exponent(fits: Sequence[FitRecord], start: int) -> str:
  """Return the slope of log seconds over log images by least squares, from `start` images on."""
  selected = [record for record in fits if record['images'] >= start]
  if len(selected) < 2:
    return '—'
  images, seconds = np.log([[record['images'], record['fit_s']] for record in selected]).T
  slope = np.polyfit(images, seconds, 1)[0]
  return f'{slope:.2f} ({selected[0]["images"]}-{selected[-1]["images"]})'


def draw(fits: Sequence[FitRecord], path: Path) -> None:
  """Draw time and memory over the number of images, on logarithmic axes."""
  fig = figure.Figure(figsize=(9, 4), layout='constrained')
  panels = fig.subplots(1, 2)
  image_counts = sorted({record['images'] for record in fits})
  for panel, key, title in zip(
    panels, ('fit_s', 'fit_peak_mb'), ('seconds to fit', 'peak memory in MB'), strict=True
  ):
    for variant in (_PADIM, _UNBOUNDED, _BOUNDED):
      points = [
        (record['images'], record[key]) for record in fits if record['variant'] == variant.title
      ]
      if points:
        panel.plot(*zip(*points, strict=True), variant.style, label=variant.title)
    panel.set(xscale='log', yscale='log', xlabel='images', title=title)
    panel.set_xticks(image_counts, [str(n) for n in image_counts])
    # Plain numbers, even if the axis contains no power of ten.
    panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    panel.yaxis.set_major_formatter(ticker.FormatStrFormatter('%g'))
    panel.minorticks_off()
    panel.grid(alpha=0.3)
  panels[0].legend()
  fig.savefig(path, dpi=110)


def main() -> None:
  """Make the missing fits, then print the tables and draw the plot."""
  parser = subprocess_runs.run_parser(__doc__)
  parser.add_argument(
    '--images',
    type=lambda text: [int(n) for n in text.split(',')],
    default='50,100,200,500,1000,2000,5000',
  )
  parser.add_argument('--bounded-from', type=int, default=1000)
  parser.add_argument('--unbounded-to', type=int, default=5000)
  parser.add_argument(
    '--slope-from',
    type=int,
    default=200,
    help='smallest number of images; with fewer, start-up dominates',
  )
  parser.add_argument('--noise', type=float, default=4.0, help='standard deviation, of 255')
  parser.add_argument('--log', type=Path, default=Path('runs/growth.jsonl'))
  parser.add_argument('--plot', type=Path, default=Path(__file__).with_suffix('.png'))
  flags = parser.parse_args()
  flags.log.parent.mkdir(parents=True, exist_ok=True)
  fits = measure(flags)
  rows = [
    [record['variant'], record['images'], f'{record["fit_s"]:.1f}', record['fit_peak_mb']]
    for record in sorted(fits, key=lambda record: (record['variant'], record['images']))
  ]
  print('\n' + tables.markdown_table(['detector', 'images', 'fit s', 'peak MB'], rows) + '\n')
  slopes = [
    [
      variant.title,
      growth_exponent(
        [record for record in fits if record['variant'] == variant.title], flags.slope_from
      ),
    ]
    for variant in (_PADIM, _UNBOUNDED, _BOUNDED)
  ]
  print(
    tables.markdown_table(['detector', 'seconds grow as images to the power of (range)'], slopes)
  )
  print(f'\nMachine: {"; ".join(sorted({record["machine"] for record in fits}))}.')
  draw(fits, flags.plot)
  print(f'Plot: {flags.plot}, {flags.plot.stat().st_size >> 10} kB.')


if __name__ == '__main__':
  main()
