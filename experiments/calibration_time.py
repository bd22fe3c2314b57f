"""Calibration time of this checkout, compared with the fit time of an earlier commit.

  git clone . ../earlier && git -C ../earlier checkout b411253
  python experiments/calibration_time.py --earlier=../earlier --root=$DATA --weights=$WEIGHTS \
    --log=runs/calibration_time.jsonl

Each round trains every case with both checkouts, one after the other. The order alternates from
round to round. Repeat the command to continue the log. The table shows medians with their range,
and the median of the ratios calibration / earlier fit.
"""

import argparse
import json
import os
from pathlib import Path
import sys
from typing import Any

import subprocess_runs

from uadjax.sweep import tables

_CONFIGS = ('padim', 'patchcore', 'patchcore:ten')
_CATEGORIES = ('toothbrush', 'bottle', 'screw')


def measure(checkout: Path, workdir: Path, config: str, category: str, args: Any) -> dict[str, Any]:
  """Train once with a checkout, and return its durations in seconds and its peak memory in MB."""
  os.environ['PYTHONPATH'] = str(checkout)
  name, _, variant = config.partition(':')
  command = [sys.executable, '-m', 'uadjax.main', f'--config=configs/{name}.py:{variant}']
  flags = subprocess_runs.run_flags(str(args.root), category, str(args.weights))
  flags += [f'--workdir={workdir}', '--config.fit.overwrite=true']
  flags.append('--config.evaluate.do_eval=false')
  completed = subprocess_runs.run_command([*command, *flags], cwd=checkout)
  timing = json.loads((workdir / 'train_result.json').read_text())['timing']
  seconds = {key: timing[key] for key in ('fit_s', 'calibrate_s')}
  return {**seconds, 'peak_mb': completed.peak_mb}


def main() -> None:
  """Run what the log lacks, and print the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for name in ('earlier', 'root', 'weights', 'log'):
    parser.add_argument(f'--{name}', type=Path, required=True)
  parser.add_argument('--rounds', type=int, default=3)
  args = parser.parse_args()
  args.root, args.weights = args.root.resolve(), args.weights.resolve()
  args.log.parent.mkdir(parents=True, exist_ok=True)
  args.log.touch()
  runs = [json.loads(line) for line in args.log.read_text().splitlines()]
  finished = {(run['config'], run['category'], run['version'], run['round']) for run in runs}
  checkouts = {'earlier': args.earlier.resolve(), 'now': Path(__file__).resolve().parent.parent}
  for number in range(args.rounds):
    for config in _CONFIGS:
      for category in _CATEGORIES:
        for version in sorted(checkouts, reverse=bool(number % 2)):
          key = config, category, version, number
          if key not in finished:
            workdir = args.log.parent.resolve() / version
            values = measure(checkouts[version], workdir, config, category, args)
            keys = ('config', 'category', 'version', 'round')
            runs.append(dict(zip(keys, key, strict=True)) | values)
            with args.log.open('a') as file:
              print(json.dumps(runs[-1]), file=file)
            print(key, values, flush=True)
  print_table(runs)


def print_table(runs: list[dict[str, Any]]) -> None:
  """Print a row per case: seconds and peak memory of both checkouts, and the ratio."""
  rows = []
  for config, category in dict.fromkeys((run['config'], run['category']) for run in runs):
    earlier, now = (
      {
        run['round']: run
        for run in runs
        if (run['config'], run['category'], run['version']) == (config, category, version)
      }
      for version in ('earlier', 'now')
    )
    rounds = sorted(earlier.keys() & now.keys())
    columns = [
      [run[i][key] for i in rounds]
      for run in (earlier, now)
      for key in earlier[rounds[0]]
      if key in ('fit_s', 'calibrate_s', 'peak_mb')
    ]
    columns.append([now[i]['calibrate_s'] / earlier[i]['fit_s'] for i in rounds])
    cells = [tables.format_cell(tables.center_and_range(column), 2) for column in columns]
    rows.append([config, category, *cells])
  versions = [f'{name}, {v}' for v in ('earlier', 'now') for name in ('fit', 'calibration', 'MB')]
  print(tables.markdown_table(['config', 'category', *versions, 'calibration / earlier fit'], rows))
  print(subprocess_runs.describe_machine())


if __name__ == '__main__':
  main()
