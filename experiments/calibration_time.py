"""Calibration time of this checkout, compared with the fit time of an earlier commit.

  git clone . ../earlier && git -C ../earlier checkout b411253
  python experiments/calibration_time.py --earlier=../earlier --root=$DATA --weights=$WEIGHTS \
    --log=runs/calibration_time.jsonl

Each round trains every case with both checkouts, one after the other. The order alternates from
round to round. Repeat the command to continue the log. The table shows medians with their range,
and the median of the ratios calibration / earlier fit.
"""

import argparse
from collections.abc import Sequence
import functools
import json
from pathlib import Path
import sys

import checkout_runs
from checkout_runs import Values
import subprocess_runs

from uadjax.sweep import tables

_CONFIGS = ('padim', 'patchcore', 'patchcore:ten')
_CATEGORIES = ('toothbrush', 'bottle', 'screw')
_VERSIONS = 'earlier', 'now'
_QUANTITIES = {'fit_s': 'fit', 'calibrate_s': 'calibration', 'peak_mb': 'MB'}


def measure(flags: argparse.Namespace, checkout: Path, workdir: Path, case: str) -> Values:
  """Train once with a checkout, and return its durations in seconds and its peak memory in MB."""
  config, category = case.split()
  name, _, variant = config.partition(':')
  command = [sys.executable, '-m', 'uadjax.main', f'--config=configs/{name}.py:{variant}']
  command += subprocess_runs.run_flags(str(flags.root), category, str(flags.weights))
  command += [f'--workdir={workdir}', '--config.fit.overwrite=true']
  command.append('--config.evaluate.do_eval=false')
  completed = subprocess_runs.run_command(command, cwd=checkout)
  timing = json.loads((workdir / 'train_result.json').read_text())['timing']
  seconds = {key: timing[key] for key in ('fit_s', 'calibrate_s')}
  return {**seconds, 'peak_mb': completed.peak_mb}


def main() -> None:
  """Run what the log lacks, and print the table."""
  flags = checkout_runs.parse_flags(__doc__, ('earlier',), rounds=3)
  cases = [f'{config} {category}' for config in _CONFIGS for category in _CATEGORIES]
  checkouts = {'earlier': flags.earlier, 'now': Path(__file__).resolve().parent.parent}
  measure_case = functools.partial(measure, flags)
  print_table(checkout_runs.alternate(flags.log, flags.rounds, cases, checkouts, measure_case))


def print_table(runs: Sequence[Values]) -> None:
  """Print a row per case: seconds and peak memory of both checkouts, and the ratio."""
  rows = []
  for case in dict.fromkeys(run['case'] for run in runs):
    pairs = checkout_runs.pairs(runs, case, _VERSIONS)
    columns = [[pair[i][key] for pair in pairs] for i in range(2) for key in _QUANTITIES]
    columns.append([now['calibrate_s'] / earlier['fit_s'] for earlier, now in pairs])
    cells = [tables.format_cell(tables.center_and_range(column), 2) for column in columns]
    rows.append([case, *cells])
  titles = [f'{version}, {name}' for version in _VERSIONS for name in _QUANTITIES.values()]
  print(tables.markdown_table(['case', *titles, 'calibration / earlier fit'], rows))
  print(subprocess_runs.describe_machine())


if __name__ == '__main__':
  main()
