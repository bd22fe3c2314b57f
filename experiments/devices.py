"""One run on one device and on several: what devices cost, and whether answers agree over seeds.

  DATA=../shared/data/mvtec_ad
  WEIGHTS=../shared/weights/resnet18_imagenet_bnfolded.pth
  python experiments/devices.py --root=$DATA --category=toothbrush --weights=$WEIGHTS \
    --configs=configs/padim.py,configs/patchcore.py --devices=1,2,8 --seeds=3
  python experiments/devices.py --root=$DATA --category=toothbrush --weights=$WEIGHTS \
    --configs=configs/stfpm.py --devices=1,8 --seeds=5 --workdir=runs/devices_stfpm \
    -- --config.fit.steps=100 --config.fit.batch_size=8 '--config.data.ops=resize(128)'

Devices of a CPU are simulated: they share its cores and its memory, so that more of them than cores
only cost. What is learned is split over them all the same (mesh.split=always), batches are as large
for any number. Each run is a fresh process; numbers of devices take turns within a seed. Finished
runs are not repeated. The table is printed and left in --workdir: seconds and MB are medians
(range), AUROCs means (range); `differs` is the largest difference to one device of a seed's test
scores, relatively (of detectors that descend a gradient it tells how far rounding was amplified).
"""

import argparse
from collections.abc import Sequence
import csv
import os
from pathlib import Path
import statistics

import fresh
import numpy as np

from uadjax import sweep
from uadjax.sweep import results, tables

_SHOWN = {
  'fit_s': ('fit s', statistics.median, 1),
  'calibrate_s': ('thresholds s', statistics.median, 1),
  'evaluate_s': ('evaluate s', statistics.median, 1),
  'fit_peak_mb': ('peak MB', statistics.median, 0),
  'image_auroc': ('image AUROC', statistics.mean, 3),
  'pixel_auroc': ('pixel AUROC', statistics.mean, 3),
}


def folder(workdir: Path, config: str, devices: int, seed: int) -> Path:
  """Where a run goes."""
  return (
    workdir / sweep.config_label(config).replace(':', '_') / f'devices_{devices}' / f'seed_{seed}'
  )


def scores(run: Path) -> np.ndarray:
  """Of the test images."""
  with (run / 'scores.csv').open(newline='') as file:
    return np.array([float(row['score']) for row in csv.DictReader(file)])


def differs(runs: Sequence[Path], single: Sequence[Path]) -> str:
  """By how much scores differ from those of one device."""
  pairs = [(scores(a), scores(b)) for a, b in zip(runs, single, strict=True)]
  return f'{max(np.max(np.abs(a - b) / np.abs(b)) for a, b in pairs):.1g}'


def main() -> None:
  """Run what is missing, then tabulate."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for flag in ('--root', '--category', '--weights', '--configs'):
    parser.add_argument(flag, required=True)
  parser.add_argument('--devices', default='1,2,8', help='numbers of them; the first must be 1')
  parser.add_argument('--seeds', type=int, default=3, help=f'how many, from {fresh.FIRST_SEED} on')
  parser.add_argument('--workdir', type=Path, default=Path('runs/devices'))
  parser.add_argument('overrides', nargs='*', help='after --, for every run')
  flags = parser.parse_args()
  configs, numbers = flags.configs.split(','), [int(n) for n in flags.devices.split(',')]
  seeds = range(fresh.FIRST_SEED, fresh.FIRST_SEED + flags.seeds)
  for config in configs:
    for seed in seeds:
      for n in numbers:
        own = folder(flags.workdir, config, n, seed)
        if results.load_summary(own) is None:
          os.environ['JAX_NUM_CPU_DEVICES'] = str(n)
          common = fresh.flags_of(flags.root, flags.category, flags.weights, seed)
          fresh.train(config, own, [*common, '--config.mesh.split=always', *flags.overrides])
          print(own, *results.format_cells([results.load_summary(own) or {}]), flush=True)
  rows = []
  for config in configs:
    single = [folder(flags.workdir, config, 1, seed) for seed in seeds]
    for n in numbers:
      runs = [folder(flags.workdir, config, n, seed) for seed in seeds]
      told = [one for run in runs if (one := results.load_summary(run))]
      cells = [
        tables.format_cell(tables.center_and_range([one[key] for one in told], center), digits)
        for key, (_, center, digits) in _SHOWN.items()
      ]
      rows.append([sweep.config_label(config), n, *cells, differs(runs, single) if n > 1 else ''])
  titles = ['detector', 'devices', *(title for title, _, _ in _SHOWN.values()), 'differs']
  text = f'{tables.markdown_table(titles, rows)}\n\n{flags.seeds} seeds; {fresh.machine()}.\n'
  (flags.workdir / 'table.md').write_text(text)
  print(text)


if __name__ == '__main__':
  main()
