"""Cost of several devices, and agreement of scores with those of one device, over seeds.

  DATA=../shared/data/mvtec_ad
  WEIGHTS=../shared/weights/resnet18_imagenet_bnfolded.pth
  python experiments/devices.py --root=$DATA --category=toothbrush --weights=$WEIGHTS \
    --configs=configs/padim.py,configs/patchcore.py --devices=1,2,8 --seeds=3
  python experiments/devices.py --root=$DATA --category=toothbrush --weights=$WEIGHTS \
    --configs=configs/stfpm.py --devices=1,8 --seeds=5 --workdir=runs/devices_stfpm \
    -- --config.fit.steps=100 --config.fit.batch_size=8 '--config.data.ops=resize(128)'

Devices of a CPU are simulated: they share its cores and its memory, so more devices than cores only
add cost. The fitted state is sharded nevertheless (mesh.shard_state=always), and batches have the
same size for any number of devices. Each run is a separate process; numbers of devices alternate
within a seed. Finished runs are not repeated. The table is printed and written to --workdir.
Seconds and MB are medians (range), AUROCs means (range). `max difference` is the largest relative
difference of a test score from the score on one device with the same seed. For detectors that train
by gradient descent it shows how far rounding was amplified.
"""

from collections.abc import Sequence
import csv
import os
from pathlib import Path
import statistics

import numpy as np
import subprocess_runs

from uadjax import sweep
from uadjax.sweep import results, tables

_METRIC_COLUMNS = {
  'fit_s': ('fit s', statistics.median, 1),
  'calibrate_s': ('thresholds s', statistics.median, 1),
  'evaluate_s': ('evaluate s', statistics.median, 1),
  'fit_peak_mb': ('peak MB', statistics.median, 0),
  'image_auroc': ('image AUROC', statistics.mean, 3),
  'defects_found': ('defects found', statistics.mean, 3),
  'defects_to_review': ('to review', statistics.mean, 3),
  'defects_missed': ('missed', statistics.mean, 3),
  'pixel_auroc': ('pixel AUROC', statistics.mean, 3),
}


def run_folder(workdir: Path, config: str, devices: int, seed: int) -> Path:
  """Return the folder of a run."""
  return (
    workdir / sweep.config_label(config).replace(':', '_') / f'devices_{devices}' / f'seed_{seed}'
  )


def read_test_scores(folder: Path) -> np.ndarray:
  """Read the scores of the test images."""
  with (folder / 'scores.csv').open(newline='') as file:
    return np.array([float(row['score']) for row in csv.DictReader(file)])


def max_relative_difference(
  run_folders: Sequence[Path], single_device_folders: Sequence[Path]
) -> str:
  """Return the largest relative difference of scores from those of one device."""
  pairs = [
    (read_test_scores(a), read_test_scores(b))
    for a, b in zip(run_folders, single_device_folders, strict=True)
  ]
  return f'{max(np.max(np.abs(a - b) / np.abs(b)) for a, b in pairs):.1g}'


def main() -> None:
  """Make the missing runs, then print the table."""
  parser = subprocess_runs.run_parser(__doc__)
  parser.add_argument('--configs', required=True)
  parser.add_argument('--devices', default='1,2,8', help='numbers of devices; the first must be 1')
  subprocess_runs.add_seeds(parser)
  parser.add_argument('--workdir', type=Path, default=Path('runs/devices'))
  parser.add_argument('overrides', nargs='*', help='after --: flags for every run')
  flags = parser.parse_args()
  configs, device_counts = flags.configs.split(','), [int(n) for n in flags.devices.split(',')]
  for config in configs:
    for seed in flags.seeds:
      for num_devices in device_counts:
        workdir = run_folder(flags.workdir, config, num_devices, seed)
        if results.load_summary(workdir) is None:
          os.environ['JAX_NUM_CPU_DEVICES'] = str(num_devices)
          common_flags = subprocess_runs.run_flags(flags.root, flags.category, flags.weights, seed)
          subprocess_runs.train(
            config, workdir, [*common_flags, '--config.mesh.shard_state=always', *flags.overrides]
          )
          print(workdir, *results.format_cells([results.load_summary(workdir) or {}]), flush=True)
  rows = []
  for config in configs:
    single_device_folders = [run_folder(flags.workdir, config, 1, seed) for seed in flags.seeds]
    for num_devices in device_counts:
      run_folders = [run_folder(flags.workdir, config, num_devices, seed) for seed in flags.seeds]
      summaries = [summary for folder in run_folders if (summary := results.load_summary(folder))]
      cells = [
        tables.format_cell(
          tables.center_and_range([summary[key] for summary in summaries], center), digits
        )
        for key, (_, center, digits) in _METRIC_COLUMNS.items()
      ]
      rows.append(
        [
          sweep.config_label(config),
          num_devices,
          *cells,
          max_relative_difference(run_folders, single_device_folders) if num_devices > 1 else '',
        ]
      )
  titles = [
    'detector',
    'devices',
    *(title for title, _, _ in _METRIC_COLUMNS.values()),
    'max difference',
  ]
  notes = f'{len(flags.seeds)} seeds; {subprocess_runs.describe_machine()}.'
  text = f'{tables.markdown_table(titles, rows)}\n\n{notes}\n'
  (flags.workdir / 'table.md').write_text(text)
  print(text)


if __name__ == '__main__':
  main()
