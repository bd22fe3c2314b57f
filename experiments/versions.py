"""Two checkouts of uadjax in alternating runs: durations, memory and scores.

  python experiments/versions.py --before=../before --after=. --root=$DATA --weights=$WEIGHTS \
    --log=runs/versions.jsonl

Each round trains and evaluates every case with both checkouts. With the models of one category it
scores 160 images, and asks a new process for its first verdict. The order of the checkouts
alternates from round to round. The log is continued when the command is repeated. The table shows
medians with their range, the median of the ratios after / before, and the largest relative
difference of two scores of one image.
"""

import argparse
from collections.abc import Sequence
import csv
import functools
from pathlib import Path
import sys
import time

import checkout_runs
from checkout_runs import Values
import numpy as np
import subprocess_runs

from uadjax.sweep import results, tables

_CONFIGS = ('padim', 'patchcore', 'stfpm')
_CATEGORIES = ('toothbrush', 'bottle')
_FLAGS = {'stfpm': ['--config.fit.steps=10', '--config.fit.batch_size=8']}
_KEYS = ('case', 'version', 'round', 'scores')  # Values of a run that are no quantities.
_PREDICTED_CATEGORY, _NUM_IMAGES = 'bottle', 160

_PREDICT = f"""
import itertools, pathlib, sys, time
from uadjax import create_model
model = create_model(model_dir=sys.argv[1])
images = sorted(pathlib.Path(sys.argv[2]).rglob('*.png'))
images = list(itertools.islice(itertools.cycle(images), {_NUM_IMAGES}))
list(model.predict(images[:16], 8))  # Compiles.
start = time.perf_counter()
list(model.predict(images, 8))
print(time.perf_counter() - start)
"""
_FIRST_VERDICT = """
import sys
from uadjax import create_model
print(next(iter(create_model(model_dir=sys.argv[1]).predict(sys.argv[2]))).label)
"""


def measure(flags: argparse.Namespace, checkout: Path, folder: Path, case: str) -> Values:
  """Train, evaluate and predict once with a checkout; return durations, memory and scores."""
  name, category = case.split()
  workdir = folder / f'{name}_{category}'
  command = [sys.executable, '-m', 'uadjax.main', f'--config=configs/{name}.py']
  command += subprocess_runs.run_flags(str(flags.root), category, str(flags.weights))
  command += [f'--workdir={workdir}', '--config.fit.overwrite=true', *_FLAGS.get(name, [])]
  completed = subprocess_runs.run_command(command, cwd=checkout)
  summary = results.load_summary(workdir)
  assert summary is not None
  with (workdir / 'scores.csv').open(newline='') as file:
    scores = [float(row['score']) for row in csv.DictReader(file)]
  values = {name: summary[name] for name in ('fit_s', 'calibrate_s', 'evaluate_s')}
  values |= {'train_peak_mb': completed.peak_mb, 'scores': scores}
  if category != _PREDICTED_CATEGORY:
    return values
  test_dir = flags.root / category / 'test'
  predict = [sys.executable, '-c', _PREDICT, str(workdir / 'model'), str(test_dir)]
  predicted = subprocess_runs.run_command(predict, cwd=checkout)
  image = min((test_dir / 'good').iterdir())
  first = [sys.executable, '-c', _FIRST_VERDICT, str(workdir / 'model'), str(image)]
  start = time.perf_counter()
  subprocess_runs.run_command(first, cwd=checkout)
  return values | {
    'predict_s': float(predicted.stdout.split()[-1]),
    'first_verdict_s': time.perf_counter() - start,
    'predict_peak_mb': predicted.peak_mb,
  }


def main() -> None:
  """Run what the log lacks, and print the table."""
  flags = checkout_runs.parse_flags(__doc__, ('before', 'after'), rounds=5)
  cases = [f'{name} {category}' for name in _CONFIGS for category in _CATEGORIES]
  checkouts = {'before': flags.before, 'after': flags.after}
  measure_case = functools.partial(measure, flags)
  print_table(checkout_runs.alternate(flags.log, flags.rounds, cases, checkouts, measure_case))


def print_table(runs: Sequence[Values]) -> None:
  """Print a row per case and quantity, and the largest difference of the scores."""
  rows = []
  for case in dict.fromkeys(run['case'] for run in runs):
    pairs = checkout_runs.pairs(runs, case, ('before', 'after'))
    for name in (key for key in pairs[0][0] if key not in _KEYS):
      before, after = ([run[name] for run in column] for column in zip(*pairs, strict=True))
      ratios = [b / a for a, b in zip(before, after, strict=True)]
      cells = [
        tables.format_cell(tables.center_and_range(column), 2) for column in (before, after, ratios)
      ]
      rows.append([case, name, *cells])
    a, b = (np.array(run['scores']) for run in pairs[0])
    difference = float(np.max(np.abs(a - b) / np.abs(a)))
    rows.append([case, 'scores', '', '', f'differ by {difference:.1e}'])
  print(tables.markdown_table(['case', 'quantity', 'before', 'after', 'after / before'], rows))
  print(subprocess_runs.describe_machine())


if __name__ == '__main__':
  main()
