"""Speed, memory and accuracy compared with another library, alternating on the same machine.

  DATA=../shared/data/mvtec_ad
  PEER="PEER_VENV/bin/python ../shared/peers/anomalib_bench.py"
  python experiments/rival.py --root=$DATA --log=runs/rival.jsonl \
    --weights=../shared/weights/resnet18_imagenet_bnfolded.pth \
    --rival="$PEER {model} {root} {category} --ratio {ratio}" \
    --cases=padim:toothbrush:3,patchcore:screw:1,patchcore@0.1:toothbrush:2

A case is config:category:rounds, with PatchCore's ratio after an @ (default 0.01). A round is a run
of uadjax, with its own seed, and a run of the rival, each in a separate process; the order
alternates. Finished rounds are appended to --log at once, and are not repeated. `--ours-only N`
adds N runs of uadjax with further seeds. They count for the AUROCs only, as they do not alternate.

The rival's last line is JSON: fit_s, test_s, peak_mb, image_AUROC, pixel_AUROC. The script compares
- fit: for uadjax the dataset check, which decodes all images, test images included, and the fit,
  compilation included. Threshold calibration with held-out images has its own column.
- test: for uadjax from the model's files to the metrics, with 16 result images.
- peak: largest resident size of the whole process, tests included; for uadjax as the operating
  system reports it, for the rival as it reports itself.
Ratios are medians over the ratios within a round.
Defects found, to review and missed are the shares of the defective images that are NG, review and
OK at uadjax's default thresholds. The rival has none, because its thresholds are not calibrated.
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
_FIRST_EXTRA_SEED = 101  # Seeds from here on are of runs of uadjax without the rival.
_DEFAULT_RATIO = '0.01'  # The ratio of configs/patchcore.py.
# Key of uadjax, key of the rival, title, digits.
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
# Key in the summary of a uadjax run -> title.
_VERDICTS = {
  'defects_found': 'defects found',
  'defects_to_review': 'to review',
  'defects_missed': 'missed',
}


class Case(NamedTuple):
  """Case to compare.

  Attributes:
    model: name of the config, and of the rival's model.
    ratio: PatchCore's ratio as text; empty for the config's default.
    category: folder of the dataset.
    rounds: number of rounds.
  """

  model: str
  ratio: str
  category: str
  rounds: int

  def __str__(self) -> str:
    model = f'{self.model}@{self.ratio}' if self.ratio else self.model
    return f'{model} {self.category}'


def parse_cases(text: str) -> list[Case]:
  """Parse `config[@ratio]:category:rounds,...`."""
  cases = []
  for item in text.split(','):
    match = re.fullmatch(r'(\w+)(?:@([\d.]+))?:(\w+):(\d+)', item)
    if match is None:
      raise argparse.ArgumentTypeError(f'{item!r} is not config:category:rounds')
    model, ratio, category, rounds = match.groups(default='')
    cases.append(Case(model, ratio, category, int(rounds)))
  return cases


def run_uadjax(case: Case, root: str, weights: str, seed: int) -> results.RunSummary:
  """Run uadjax once."""
  flags = subprocess_runs.run_flags(root, case.category, weights, seed)
  if case.ratio:
    flags.append(f'--config.detector.ratio={case.ratio}')
  with tempfile.TemporaryDirectory() as workdir:
    run = subprocess_runs.train(f'configs/{case.model}.py', Path(workdir), flags)
    return {**run, 'fit_s': run['check_s'] + run['fit_s']}


def run_rival(case: Case, root: str, template: str) -> results.RunSummary:
  """Run the rival once, in a temporary folder for its files."""
  command_line = template.format(
    model=case.model,
    root=shlex.quote(str(Path(root).absolute())),
    category=case.category,
    ratio=case.ratio or _DEFAULT_RATIO,
  )
  # Links are not resolved: the Python of a virtual environment must stay a link.
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
    sys.exit(
      f'The last line of {shlex.join(command)} must be JSON with the keys '
      f'{[name for _, name, *_ in _MEASURES]}, not {lines[-1:]}'
    )


def measure_round(case: Case, seed: int, flags: argparse.Namespace) -> RoundRecord:
  """Run one round: both systems, or uadjax alone."""
  runners = {
    'uadjax': lambda: run_uadjax(case, flags.root, flags.weights, seed),
    'rival': lambda: (
      None if seed >= _FIRST_EXTRA_SEED else run_rival(case, flags.root, flags.rival)
    ),
  }
  order = list(runners) if seed % 2 else list(reversed(runners))
  summaries = {system: runners[system]() for system in order}
  return {
    'case': str(case),
    'seed': seed,
    'machine': subprocess_runs.describe_machine(),
    **summaries,
  }


def describe_round(record: RoundRecord) -> str:
  """Describe a round in a line."""
  descriptions = []
  for system, key_index in (('uadjax', 0), ('rival', 1)):
    if record[system]:
      values = (
        f'{title} {record[system][names[key_index]]:.{digits}f}'
        for *names, title, digits in _MEASURES
      )
      descriptions.append(f'{system}: {"  ".join(values)}')
  return f'{record["case"]}, seed {record["seed"]}  ' + '\n  '.join(descriptions)


def table_rows(rounds: Sequence[RoundRecord]) -> list[list[str]]:
  """Return the table rows of a case: uadjax, rival, ratios."""
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
  # Rounds of earlier versions lack the verdicts.
  verdicts = [
    tables.format_cell(tables.center_and_range(run.get(key) for run in uadjax_summaries), 3)
    for key in _VERDICTS
  ]
  name, run_counts = rounds[0]['case'], f'{len(pairs)} + {len(uadjax_summaries) - len(pairs)}'
  return [
    [name, 'uadjax', run_counts, *uadjax_cells, *verdicts, thresholds],
    [name, 'rival', str(len(pairs)), *rival_cells, *['—'] * (len(_VERDICTS) + 1)],
    [name, 'uadjax / rival', '', *ratio_cells, *[''] * (len(_SCORES) + len(_VERDICTS) + 1)],
  ]


def main() -> None:
  """Run the missing rounds, then print the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for flag in ('--root', '--weights', '--rival'):
    parser.add_argument(flag, required=True)
  parser.add_argument('--cases', type=parse_cases, required=True)
  parser.add_argument('--log', type=Path, default=Path('runs/rival.jsonl'))
  parser.add_argument('--ours-only', type=int, default=0, help='further runs of uadjax per case')
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
  titles = [*(title for *_, title, _ in _MEASURES), *_VERDICTS.values()]
  print(f'\n{tables.markdown_table(["case", "system", "runs", *titles, "thresholds s"], rows)}\n')
  print(
    'Medians (range). Runs of uadjax: alternating with the rival + alone, for the AUROCs. '
    f'Machine: {"; ".join(sorted(machines))}.'
  )


if __name__ == '__main__':
  main()
