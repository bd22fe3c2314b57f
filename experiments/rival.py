"""The whole job compared with another library, alternating on the same machine.

  DATA=../shared/data/mvtec_ad
  PEER="PEER_VENV/bin/python ../shared/peers/anomalib_bench.py"
  python experiments/rival.py --root=$DATA --log=runs/rival.jsonl \
    --weights=../shared/weights/resnet18_imagenet_bnfolded.pth \
    --rival="$PEER {model} {root} {category} --ratio {ratio}" \
    --cases=padim:toothbrush:3,patchcore:screw:1,patchcore@0.1:toothbrush:2

A case is config:category:rounds. After an @ the config may have a value: PatchCore's ratio, or the
training steps of STFPM, which reach the rival as {ratio} or {steps}. A round is a run of uadjax,
with its own seed, and a run of the rival, each in a separate process; the order alternates.
Finished rounds are appended to --log at once, and are not repeated.

The rival's last line is JSON: fit_s, test_s, image_AUROC. The script compares
- the whole job: the rival's fit and test; for uadjax a run of uadjax.main from its flags to its
  last file, with 16 pictures, curves and the report. Imports are excluded on both sides. The first
  run of a case compiles; later ones find its programs in the cache of compiled programs.
- its parts. The fit of uadjax contains the dataset check, which decodes all images, test images
  included, and compilation. The rival calibrates no thresholds on held-out images.
- the peak memory of the whole process with imports, summed over its subprocesses, in which shared
  pages count once (PSS).
Ratios are medians over the ratios within a round.
"""

import argparse
from collections.abc import Mapping, Sequence
import json
from pathlib import Path
import re
import shlex
import sys
import tempfile
from typing import Any, NamedTuple

import subprocess_runs

from uadjax.sweep import results, tables

RoundRecord = dict[str, Any]  # A line of the log.
Measures = dict[str, float]
_DEFAULTS = {'ratio': '0.01', 'steps': '50'}  # PatchCore's ratio is that of its config.
_COLUMNS = {
  'job_s': ('whole job s', 1),
  'peak_mb': ('peak MB', 0),
  'fit_s': ('fit s', 1),
  'calibrate_s': ('calibration s', 1),
  'evaluate_s': ('evaluation s', 1),
  'image_auroc': ('image AUROC', 3),
}
_WITHOUT_RATIO = ('image_auroc',)
# As main does, the job enables the cache of compiled programs before anything imports JAX.
_JOB = """
import sys, time
from uadjax import main
from uadjax.system import compilation_cache, tensorflow
compilation_cache.enable()
tensorflow.import_tensorflow()
import uadjax.experiment.command
start = time.perf_counter()
status = main.main(sys.argv[1:])
print(time.perf_counter() - start)
sys.exit(status)
"""


class Case(NamedTuple):
  """Case to compare.

  Attributes:
    model: name of the config, and of the rival's model.
    value: PatchCore's ratio or the steps of STFPM as text; empty for the default.
    category: folder of the dataset.
    rounds: number of rounds.
  """

  model: str
  value: str
  category: str
  rounds: int

  def __str__(self) -> str:
    model = f'{self.model}@{self.value}' if self.value else self.model
    return f'{model} {self.category}'

  def settings(self) -> dict[str, str]:
    """Return the values of the rival's template fields."""
    name = 'steps' if self.model == 'stfpm' else 'ratio'
    return {**_DEFAULTS, **({name: self.value} if self.value else {})}


def parse_cases(text: str) -> list[Case]:
  """Parse `config[@value]:category:rounds,...`."""
  cases = []
  for item in text.split(','):
    match = re.fullmatch(r'(\w+)(?:@([\d.]+))?:(\w+):(\d+)', item)
    if match is None:
      raise argparse.ArgumentTypeError(f'{item!r} is not config:category:rounds')
    model, value, category, rounds = match.groups(default='')
    cases.append(Case(model, value, category, int(rounds)))
  return cases


def run_uadjax(case: Case, root: str, weights: str, seed: int) -> Measures:
  """Run uadjax once."""
  flags = subprocess_runs.run_flags(root, case.category, weights, seed)
  if case.model == 'stfpm':
    flags.append(f'--config.fit.steps={case.settings()["steps"]}')
  elif case.model == 'patchcore':
    flags.append(f'--config.detector.ratio={case.settings()["ratio"]}')
  with tempfile.TemporaryDirectory() as folder:
    workdir = Path(folder) / 'run'
    job_flags = [f'--config=configs/{case.model}.py', f'--workdir={workdir}', *flags]
    command = [sys.executable, '-c', _JOB, *job_flags]
    completed = subprocess_runs.run_command(command, sample_memory=True)
    run = results.load_summary(workdir)
  if run is None:
    sys.exit('uadjax.main succeeded, but its work directory contains no finished run.')
  return {
    **{key: run[key] for key in ('calibrate_s', 'evaluate_s', 'image_auroc')},
    'job_s': float(completed.stdout.split()[-1]),
    'fit_s': run['check_s'] + run['fit_s'],
    **_peak(completed),
  }


def run_rival(case: Case, root: str, template: str) -> Measures:
  """Run the rival once, in a temporary folder for its files."""
  command_line = template.format(
    model=case.model,
    root=shlex.quote(str(Path(root).absolute())),
    category=case.category,
    **case.settings(),
  )
  command = subprocess_runs.absolute_command(command_line)
  with tempfile.TemporaryDirectory() as folder:
    completed = subprocess_runs.run_command(command, Path(folder), sample_memory=True)
  lines = completed.stdout.strip().splitlines()
  try:
    report = json.loads(lines[-1])
    fit_s, evaluate_s, auroc = report['fit_s'], report['test_s'], report['image_AUROC']
  except (IndexError, KeyError, ValueError):
    sys.exit(
      f'The last line of {shlex.join(command)} must be JSON with fit_s, test_s and image_AUROC, '
      f'not {lines[-1:]}'
    )
  times = {'job_s': fit_s + evaluate_s, 'fit_s': fit_s, 'evaluate_s': evaluate_s}
  return {**times, **_peak(completed), 'image_auroc': auroc}


def _peak(completed: subprocess_runs.CompletedCommand) -> Measures:
  """Return the peak memory by its key; nothing outside Linux."""
  return {'peak_mb': completed.memory.pss_mb} if completed.memory else {}


def measure_round(case: Case, seed: int, flags: argparse.Namespace) -> RoundRecord:
  """Run one round of both systems."""
  runners = {
    'uadjax': lambda: run_uadjax(case, flags.root, flags.weights, seed),
    'rival': lambda: run_rival(case, flags.root, flags.rival),
  }
  order = list(runners) if seed % 2 else list(reversed(runners))
  measures = {system: runners[system]() for system in order}
  machine = subprocess_runs.describe_machine()
  return {'case': str(case), 'seed': seed, 'machine': machine, **measures}


def format_measures(measures: Mapping[str, float]) -> str:
  """Return the measures of a run as a line."""
  return '  '.join(
    f'{title} {measures[key]:.{digits}f}'
    for key, (title, digits) in _COLUMNS.items()
    if key in measures
  )


def table_rows(rounds: Sequence[RoundRecord]) -> list[list[str]]:
  """Return the table rows of a case: uadjax, rival, ratios."""
  name, num_rounds = rounds[0]['case'], str(len(rounds))
  rows = [[name, system, num_rounds] for system in ('uadjax', 'rival', 'uadjax / rival')]
  for key, (_, digits) in _COLUMNS.items():
    pairs = [(record['uadjax'].get(key), record['rival'].get(key)) for record in rounds]
    ratios = [a / b for a, b in pairs if a and b and key not in _WITHOUT_RATIO]
    columns = [[a for a, _ in pairs], [b for _, b in pairs], ratios]
    for row, values, column_digits in zip(rows, columns, (digits, digits, 2), strict=True):
      row.append(tables.format_cell(tables.center_and_range(values), column_digits))
  return rows


def main() -> None:
  """Run the missing rounds, then print the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for flag in ('--root', '--weights', '--rival'):
    parser.add_argument(flag, required=True)
  parser.add_argument('--cases', type=parse_cases, required=True)
  parser.add_argument('--log', type=Path, default=Path('runs/rival.jsonl'))
  flags = parser.parse_args()
  flags.log.parent.mkdir(parents=True, exist_ok=True)
  log_records = [json.loads(line) for line in flags.log.open()] if flags.log.is_file() else []
  rows, machines = [], set()
  for case in flags.cases:
    by_seed = {record['seed']: record for record in log_records if record['case'] == str(case)}
    seeds = range(subprocess_runs.FIRST_SEED, subprocess_runs.FIRST_SEED + case.rounds)
    for seed in seeds:
      if seed not in by_seed:
        by_seed[seed] = measure_round(case, seed, flags)
        with flags.log.open('a') as file:
          file.write(json.dumps(by_seed[seed]) + '\n')
      for system in ('uadjax', 'rival'):
        measures = format_measures(by_seed[seed][system])
        print(f'{case}, seed {seed}, {system}: {measures}', flush=True)
    rows += table_rows([by_seed[seed] for seed in seeds])
    machines.update(by_seed[seed]['machine'] for seed in seeds)
  titles = ['case', 'system', 'rounds', *(title for title, _ in _COLUMNS.values())]
  print(f'\n{tables.markdown_table(titles, rows)}\n')
  print(f'Medians (range). Machine: {"; ".join(sorted(machines))}.')


if __name__ == '__main__':
  main()
