"""Cost of `detector.max_bytes` for PatchCore: several selections instead of one from all patches.

  python experiments/merge_reduce.py --root=../shared/data/mvtec_ad --category=bottle --seeds=3 \
    --weights=../shared/weights/resnet18_imagenet_bnfolded.pth

PatchCore 1 % runs with memory for all patches, and with a --share of that memory. Then the memory
bank is compacted every time it is full (with a quarter: four times or more). Both variants
alternate with the same batches, each in a separate process; finished runs in --workdir are not
repeated. The covering radius is the reported one, which no patch exceeds: exact for one selection,
the sum of the radii for several. Differences are capped - one-shot.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
import statistics

import subprocess_runs

from uadjax.data import layouts
from uadjax.numerics import coreset
from uadjax.sweep import results, tables

_CONFIG = 'configs/patchcore.py'
# Patches per image and dimensions of ResNet-18's layer2 and layer3 at 256x256 pixels.
_PATCHES, _DIMENSIONS = 32 * 32, 128 + 256
_COLUMNS = {
  'bank_rows': ('bank rows', 0),
  'covering_radius': ('covering radius', 3),
  'image_auroc': ('image AUROC', 3),
  'defects_found': ('defects found', 3),
  'defects_to_review': ('to review', 3),
  'defects_missed': ('missed', 3),
  'pixel_auroc': ('pixel AUROC', 3),
  'fit_s': ('fit s', 1),
  'fit_peak_mb': ('peak MB', 0),
}


def choose_byte_limits(images: int, share: float) -> tuple[dict[str, int], int]:
  """Return max_bytes of both variants, and a batch size that fits the smaller limit."""
  unlimited_bytes = images * _PATCHES * coreset.bytes_per_point(_DIMENSIONS)
  batch = max(1, min(16, int(share * images) // 2))  # Compaction never frees more than half.
  return {'one-shot': unlimited_bytes, f'capped to {share:g}': int(share * unlimited_bytes)}, batch


def measure(
  flags: argparse.Namespace, seed: int, byte_limits: dict[str, int], batch: int
) -> list[results.RunSummary]:
  """Return the runs of both variants with one seed; make those that are missing."""
  summaries = []
  for variant, max_bytes in byte_limits.items():
    workdir = flags.workdir / flags.category / f'{max_bytes}_bytes' / f'seed_{seed}'
    variant_flags = [f'--config.detector.max_bytes={max_bytes}', f'--config.fit.batch_size={batch}']
    common_flags = subprocess_runs.run_flags(flags.root, flags.category, flags.weights, seed)
    summaries.append(
      results.load_summary(workdir)
      or subprocess_runs.train(_CONFIG, workdir, [*common_flags, *variant_flags])
    )
    print(f'seed {seed}, {variant}: {"  ".join(format_columns(summaries[-1]))}', flush=True)
  return summaries


def format_columns(summary: results.RunSummary) -> list[str]:
  """Return the table cells of one run."""
  return [
    tables.format_cell(tables.center_and_range([summary[key]]), digits)
    for key, (_, digits) in _COLUMNS.items()
  ]


def differences(pairs: Sequence[Sequence[results.RunSummary]]) -> list[str]:
  """Return the differences of the variants by column: median and range over seeds."""
  columns = []
  for key, (_, digits) in _COLUMNS.items():
    values = [capped[key] - one_shot[key] for one_shot, capped in pairs]
    numbers = (statistics.median(values), min(values), max(values))
    median, low, high = (f'{value:+.{digits}f}' for value in numbers)
    columns.append(f'{median} ({low} to {high})')
  return columns


def main() -> None:
  """Make the missing runs, then print the table."""
  parser = subprocess_runs.run_parser(__doc__)
  subprocess_runs.add_seeds(parser)
  parser.add_argument('--share', type=float, default=0.25)
  parser.add_argument('--workdir', type=Path, default=Path('runs/merge_reduce'))
  flags = parser.parse_args()
  images = len(layouts.load(flags.root, flags.category).train)
  byte_limits, batch = choose_byte_limits(images, flags.share)
  pairs = [measure(flags, seed, byte_limits, batch) for seed in flags.seeds]
  rows = [
    [seed, variant, *format_columns(summary)]
    for seed, pair in zip(flags.seeds, pairs, strict=True)
    for variant, summary in zip(byte_limits, pair, strict=True)
  ]
  rows.append(['median (range)', 'difference', *differences(pairs)])
  titles = [title for title, _ in _COLUMNS.values()]
  sizes = ', '.join(
    f'{variant}: max_bytes={max_bytes}' for variant, max_bytes in byte_limits.items()
  )
  print(f'\n{tables.markdown_table(["seed", "variant", *titles], rows)}\n')
  print(
    f'{flags.category}, {images} images, batches of {batch}; {sizes}. '
    f'{subprocess_runs.describe_machine()}.'
  )


if __name__ == '__main__':
  main()
