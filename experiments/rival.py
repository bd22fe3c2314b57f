"""Speed, memory and accuracy beside a rival: both on this machine, in turn, in fresh processes.

  DATA=../shared/data/mvtec_ad
  PEER="PEER_VENV/bin/python ../shared/peers/anomalib_bench.py"
  python experiments/rival.py --root=$DATA --log=runs/rival.jsonl \
    --weights=../shared/weights/resnet18_imagenet_bnfolded.pth \
    --rival="$PEER {model} {root} {category} --ratio {ratio}" \
    --cases=padim:toothbrush:3,patchcore:screw:1,patchcore@0.1:toothbrush:2

A case is config:category:rounds, with PatchCore's ratio after an @ (0.01 where there is none). A
round is a run of ours, with a seed of its own, and one of the rival's; who goes first alternates.
Finished rounds are appended to --log at once, and are not repeated. `--ours-only N` adds N runs of
ours with further seeds: they count for the AUROCs alone, since nothing ran in turn with them.

The rival's last line is JSON: fit_s, test_s, peak_mb, image_AUROC, pixel_AUROC. What is compared:
- fit: of ours from the first file opened to the fitted model, compilation included. The thresholds
  that we then find by leaving images out have a column of their own.
- test: of ours from the model's files to the numbers, with 16 pictures.
- peak: largest resident size of the whole process, tests included: of ours as the operating system
  counts it, of theirs as they say.
Ratios are medians of those within a round.
"""

import argparse
from collections.abc import Sequence
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
_FIRST_EXTRA_SEED = (
  101  # Seeds from here on are of runs of ours alone, whatever the number of rounds.
)
_DEFAULT_RATIO = '0.01'  # That of configs/patchcore.py.
# Ours, theirs, title, digits.
_COSTS = (
  ('fit_s', 'fit_s', 'fit s', 1),
  ('evaluate_s', 'test_s', 'test s', 1),
  ('process_peak_mb', 'peak_mb', 'peak MB', 0),
)
_SCORES = (
  ('image_auroc', 'image_AUROC', 'image AUROC', 3),
  ('pixel_auroc', 'pixel_AUROC', 'pixel AUROC', 3),
)
_MEASURES = (*_COSTS, *_SCORES)


class Case(NamedTuple):
  """What is compared.

  Attributes:
    model: a config's name, and the rival's.
    ratio: of PatchCore, as text; empty for the config's own.
    category: a folder of the data.
    rounds: how often.
  """

  model: str
  ratio: str
  category: str
  rounds: int

  def __str__(self) -> str:
    model = f'{self.model}@{self.ratio}' if self.ratio else self.model
    return f'{model} {self.category}'


def parse_cases(text: str) -> list[Case]:
  """Read `config[@ratio]:category:rounds,...`."""
  cases = []
  for item in text.split(','):
    match = re.fullmatch(r'(\w+)(?:@([\d.]+))?:(\w+):(\d+)', item)
    if match is None:
      raise argparse.ArgumentTypeError(f'{item!r} is not config:category:rounds')
    model, ratio, category, rounds = match.groups(default='')
    cases.append(Case(model, ratio, category, int(rounds)))
  return cases


def run_uadjax(case: Case, root: str, weights: str, seed: int) -> results.RunSummary:
  """One run of ours."""
  flags = subprocess_runs.run_flags(root, case.category, weights, seed)
  if case.ratio:
    flags.append(f'--config.detector.ratio={case.ratio}')
  with tempfile.TemporaryDirectory() as workdir:
    return subprocess_runs.train(f'configs/{case.model}.py', Path(workdir), flags)


def run_rival(case: Case, root: str, template: str) -> results.RunSummary:
  """One run of the rival's, in a folder that takes what it leaves behind."""
  command_line = template.format(
    model=case.model,
    root=shlex.quote(str(Path(root).absolute())),
    category=case.category,
    ratio=case.ratio or _DEFAULT_RATIO,
  )
  # Not resolved: a virtual environment's Python is a link, and must stay one.
  command = [
    str(Path(word).absolute()) if '/' in word and Path(word).exists() else word
    for word in shlex.split(command_line)
  ]
  with tempfile.TemporaryDirectory() as folder:
    lines = subprocess_runs.run_command(command, Path(folder)).stdout.strip().splitlines()
  try:
    report = json.loads(lines[-1])
    return {name: report[name] for _, name, *_ in _MEASURES}
  except (IndexError, KeyError, ValueError):
    sys.exit(f'The last line of {shlex.join(command)} is not the JSON expected: {lines[-1:]}')


def measure_round(case: Case, seed: int, flags: argparse.Namespace) -> RoundRecord:
  """One round: both in turn, or ours alone."""
  runners = {
    'uadjax': lambda: run_uadjax(case, flags.root, flags.weights, seed),
    'rival': lambda: (
      None if seed >= _FIRST_EXTRA_SEED else run_rival(case, flags.root, flags.rival)
    ),
  }
  order = list(runners) if seed % 2 else list(reversed(runners))
  summaries = {side: runners[side]() for side in order}
  return {
    'case': str(case),
    'seed': seed,
    'machine': subprocess_runs.describe_machine(),
    **summaries,
  }


def describe_round(record: RoundRecord) -> str:
  """A line of progress."""
  descriptions = []
  for side, key_index in (('uadjax', 0), ('rival', 1)):
    if record[side]:
      values = (
        f'{title} {record[side][names[key_index]]:.{digits}f}'
        for *names, title, digits in _MEASURES
      )
      descriptions.append(f'{side}: {"  ".join(values)}')
  return f'{record["case"]}, seed {record["seed"]}  ' + '\n  '.join(descriptions)


def table_rows(rounds: Sequence[RoundRecord]) -> list[list[str]]:
  """Three rows of a case: ours, theirs, ratios."""
  uadjax_summaries = [record['uadjax'] for record in rounds]
  pairs = [(record['uadjax'], record['rival']) for record in rounds if record['rival']]
  uadjax_cells, rival_cells, ratio_cells = [], [], []
  for uadjax_key, rival_key, _, digits in _COSTS:
    uadjax_cells.append(
      tables.format_cell(
        tables.center_and_range(uadjax_run[uadjax_key] for uadjax_run, _ in pairs), digits
      )
    )
    rival_cells.append(
      tables.format_cell(
        tables.center_and_range(rival_run[rival_key] for _, rival_run in pairs), digits
      )
    )
    ratio_cells.append(
      tables.format_cell(
        tables.center_and_range(
          uadjax_run[uadjax_key] / rival_run[rival_key] for uadjax_run, rival_run in pairs
        ),
        2,
      )
    )
  for uadjax_key, rival_key, _, digits in _SCORES:
    uadjax_cells.append(
      tables.format_cell(
        tables.center_and_range(uadjax_run[uadjax_key] for uadjax_run in uadjax_summaries), digits
      )
    )
    rival_cells.append(
      tables.format_cell(
        tables.center_and_range(rival_run[rival_key] for _, rival_run in pairs), digits
      )
    )
  thresholds = tables.format_cell(
    tables.center_and_range(uadjax_run['calibrate_s'] for uadjax_run, _ in pairs), 1
  )
  name, run_counts = rounds[0]['case'], f'{len(pairs)} + {len(uadjax_summaries) - len(pairs)}'
  return [
    [name, 'uadjax', run_counts, *uadjax_cells, thresholds],
    [name, 'rival', str(len(pairs)), *rival_cells, '—'],
    [name, 'ours / rival', '', *ratio_cells, '', '', ''],
  ]


def main() -> None:
  """Carry out what is missing, then print the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for flag in ('--root', '--weights', '--rival'):
    parser.add_argument(flag, required=True)
  parser.add_argument('--cases', type=parse_cases, required=True)
  parser.add_argument('--log', type=Path, default=Path('runs/rival.jsonl'))
  parser.add_argument('--ours-only', type=int, default=0, help='further runs of ours, per case')
  flags = parser.parse_args()
  flags.log.parent.mkdir(parents=True, exist_ok=True)
  log_records = [json.loads(line) for line in flags.log.open()] if flags.log.is_file() else []
  rows, machines = [], set()
  for case in flags.cases:
    seeds = [*range(subprocess_runs.FIRST_SEED, subprocess_runs.FIRST_SEED + case.rounds)]
    seeds += range(_FIRST_EXTRA_SEED, _FIRST_EXTRA_SEED + flags.ours_only)
    records_by_seed = {
      record['seed']: record for record in log_records if record['case'] == str(case)
    }
    for seed in seeds:
      if seed not in records_by_seed:
        records_by_seed[seed] = measure_round(case, seed, flags)
        with flags.log.open('a') as file:
          file.write(json.dumps(records_by_seed[seed]) + '\n')
      print(describe_round(records_by_seed[seed]), flush=True)
    rows += table_rows([records_by_seed[seed] for seed in seeds])
    machines.update(records_by_seed[seed]['machine'] for seed in seeds)
  titles = [title for *_, title, _ in _MEASURES]
  print(f'\n{tables.markdown_table(["case", "side", "runs", *titles, "thresholds s"], rows)}\n')
  print(
    'Medians (range). Runs of ours: in turn with the rival + alone, for the AUROCs. '
    f'Machine: {"; ".join(sorted(machines))}.'
  )


if __name__ == '__main__':
  main()
