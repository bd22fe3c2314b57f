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
import csv
import json
import os
from pathlib import Path
import sys
import time
from typing import Any

import numpy as np
import subprocess_runs

from uadjax.sweep import results, tables

_CONFIGS = ('padim', 'patchcore', 'stfpm')
_CATEGORIES = ('toothbrush', 'bottle')
_FLAGS = {'stfpm': ['--config.fit.steps=10', '--config.fit.batch_size=8']}
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


def measure(checkout: Path, workdir: Path, name: str, category: str, args: Any) -> dict[str, Any]:
  """Train, evaluate and predict once with a checkout; return durations, memory and scores."""
  os.environ['PYTHONPATH'] = str(checkout)
  command = [sys.executable, '-m', 'uadjax.main', f'--config=configs/{name}.py']
  flags = subprocess_runs.run_flags(str(args.root), category, str(args.weights))
  flags += [f'--workdir={workdir}', '--config.fit.overwrite=true', *_FLAGS.get(name, [])]
  completed = subprocess_runs.run_command([*command, *flags], cwd=checkout)
  summary = results.load_summary(workdir)
  assert summary is not None
  with (workdir / 'scores.csv').open(newline='') as file:
    scores = [float(row['score']) for row in csv.DictReader(file)]
  values = {name: summary[name] for name in ('fit_s', 'calibrate_s', 'evaluate_s')}
  values |= {'train_peak_mb': completed.peak_mb, 'scores': scores}
  if category != _PREDICTED_CATEGORY:
    return values
  test_dir = args.root / category / 'test'
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
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for name in ('before', 'after', 'root', 'weights', 'log'):
    parser.add_argument(f'--{name}', type=Path, required=True)
  parser.add_argument('--rounds', type=int, default=5)
  args = parser.parse_args()
  args.root, args.weights = args.root.resolve(), args.weights.resolve()
  args.log.parent.mkdir(parents=True, exist_ok=True)
  args.log.touch()
  runs = [json.loads(line) for line in args.log.read_text().splitlines()]
  finished = {(run['case'], run['version'], run['round']) for run in runs}
  cases = [(name, category) for name in _CONFIGS for category in _CATEGORIES]
  for number in range(args.rounds):
    for name, category in cases:
      for version in ('before', 'after') if number % 2 == 0 else ('after', 'before'):
        key = f'{name} {category}', version, number
        if key not in finished:
          workdir = args.log.parent.resolve() / version / f'{name}_{category}'
          values = measure(getattr(args, version).resolve(), workdir, name, category, args)
          runs.append(dict(zip(('case', 'version', 'round'), key, strict=True)) | values)
          with args.log.open('a') as file:
            print(json.dumps(runs[-1]), file=file)
          print(key, {k: v for k, v in values.items() if k != 'scores'}, flush=True)
  print_table(runs)


def print_table(runs: list[dict[str, Any]]) -> None:
  """Print a row per case and quantity, and the largest difference of the scores."""
  rows = []
  for case in dict.fromkeys(run['case'] for run in runs):
    before, after = (
      {run['round']: run for run in runs if run['case'] == case and run['version'] == version}
      for version in ('before', 'after')
    )
    rounds = sorted(before.keys() & after.keys())
    for name in before[rounds[-1]]:
      if name in ('case', 'version', 'round', 'scores'):
        continue
      pairs = [(before[i][name], after[i][name]) for i in rounds]
      columns = [*zip(*pairs, strict=True), [b / a for a, b in pairs]]
      cells = [tables.format_cell(tables.center_and_range(c), 2) for c in columns]
      rows.append([case, name, *cells])
    first = rounds[0]
    a, b = np.array(before[first]['scores']), np.array(after[first]['scores'])
    difference = float(np.max(np.abs(a - b) / np.abs(a)))
    rows.append([case, 'scores', '', '', f'differ by {difference:.1e}'])
  print(tables.markdown_table(['case', 'quantity', 'before', 'after', 'after / before'], rows))
  print(subprocess_runs.describe_machine())


if __name__ == '__main__':
  main()
