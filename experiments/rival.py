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

import fresh

from uadjax.sweep import results, tables

Round = dict[str, Any]  # A line of the log.
_FURTHER = 101  # Seeds from here on are of runs of ours alone, whatever the number of rounds.
_RATIO = '0.01'  # That of configs/patchcore.py.
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
_ALL = (*_COSTS, *_SCORES)


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


def cases(text: str) -> list[Case]:
  """Read `config[@ratio]:category:rounds,...`."""
  found = []
  for part in text.split(','):
    match = re.fullmatch(r'(\w+)(?:@([\d.]+))?:(\w+):(\d+)', part)
    if match is None:
      raise argparse.ArgumentTypeError(f'{part!r} is not config:category:rounds')
    model, ratio, category, rounds = match.groups(default='')
    found.append(Case(model, ratio, category, int(rounds)))
  return found


def ours(case: Case, root: str, weights: str, seed: int) -> results.RunSummary:
  """One run of ours."""
  flags = fresh.flags_of(root, case.category, weights, seed)
  if case.ratio:
    flags.append(f'--config.detector.ratio={case.ratio}')
  with tempfile.TemporaryDirectory() as workdir:
    return fresh.train(f'configs/{case.model}.py', Path(workdir), flags)


def theirs(case: Case, root: str, template: str) -> results.RunSummary:
  """One run of the rival's, in a folder that takes what it leaves behind."""
  text = template.format(
    model=case.model,
    root=shlex.quote(str(Path(root).absolute())),
    category=case.category,
    ratio=case.ratio or _RATIO,
  )
  # Not resolved: a virtual environment's Python is a link, and must stay one.
  command = [
    str(Path(word).absolute()) if '/' in word and Path(word).exists() else word
    for word in shlex.split(text)
  ]
  with tempfile.TemporaryDirectory() as folder:
    lines = fresh.finish(command, Path(folder)).stdout.strip().splitlines()
  try:
    told = json.loads(lines[-1])
    return {name: told[name] for _, name, *_ in _ALL}
  except (IndexError, KeyError, ValueError):
    sys.exit(f'The last line of {shlex.join(command)} is not the JSON expected: {lines[-1:]}')


def measure(case: Case, seed: int, flags: argparse.Namespace) -> Round:
  """One round: both in turn, or ours alone."""
  sides = {
    'ours': lambda: ours(case, flags.root, flags.weights, seed),
    'theirs': lambda: None if seed >= _FURTHER else theirs(case, flags.root, flags.rival),
  }
  order = list(sides) if seed % 2 else list(reversed(sides))
  found = {side: sides[side]() for side in order}
  return {'case': str(case), 'seed': seed, 'machine': fresh.machine(), **found}


def told(one: Round) -> str:
  """A line of progress."""
  sides = []
  for side, column in (('ours', 0), ('theirs', 1)):
    if one[side]:
      numbers = (f'{title} {one[side][names[column]]:.{digits}f}' for *names, title, digits in _ALL)
      sides.append(f'{side}: {"  ".join(numbers)}')
  return f'{one["case"]}, seed {one["seed"]}  ' + '\n  '.join(sides)


def rows_of(rounds: Sequence[Round]) -> list[list[str]]:
  """Three rows of a case: ours, theirs, ratios."""
  own = [one['ours'] for one in rounds]
  pairs = [(one['ours'], one['theirs']) for one in rounds if one['theirs']]
  left, right, ratios = [], [], []
  for mine, rivals, _, digits in _COSTS:
    left.append(tables.format_cell(tables.center_and_range(us[mine] for us, _ in pairs), digits))
    right.append(
      tables.format_cell(tables.center_and_range(them[rivals] for _, them in pairs), digits)
    )
    ratios.append(
      tables.format_cell(tables.center_and_range(us[mine] / them[rivals] for us, them in pairs), 2)
    )
  for mine, rivals, _, digits in _SCORES:
    left.append(tables.format_cell(tables.center_and_range(us[mine] for us in own), digits))
    right.append(
      tables.format_cell(tables.center_and_range(them[rivals] for _, them in pairs), digits)
    )
  thresholds = tables.format_cell(tables.center_and_range(us['calibrate_s'] for us, _ in pairs), 1)
  name, runs = rounds[0]['case'], f'{len(pairs)} + {len(own) - len(pairs)}'
  return [
    [name, 'ours', runs, *left, thresholds],
    [name, 'rival', str(len(pairs)), *right, '—'],
    [name, 'ours / rival', '', *ratios, '', '', ''],
  ]


def main() -> None:
  """Carry out what is missing, then print the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for flag in ('--root', '--weights', '--rival'):
    parser.add_argument(flag, required=True)
  parser.add_argument('--cases', type=cases, required=True)
  parser.add_argument('--log', type=Path, default=Path('runs/rival.jsonl'))
  parser.add_argument('--ours-only', type=int, default=0, help='further runs of ours, per case')
  flags = parser.parse_args()
  flags.log.parent.mkdir(parents=True, exist_ok=True)
  log = [json.loads(line) for line in flags.log.open()] if flags.log.is_file() else []
  rows, machines = [], set()
  for case in flags.cases:
    seeds = [*range(fresh.FIRST_SEED, fresh.FIRST_SEED + case.rounds)]
    seeds += range(_FURTHER, _FURTHER + flags.ours_only)
    known = {one['seed']: one for one in log if one['case'] == str(case)}
    for seed in seeds:
      if seed not in known:
        known[seed] = measure(case, seed, flags)
        with flags.log.open('a') as file:
          file.write(json.dumps(known[seed]) + '\n')
      print(told(known[seed]), flush=True)
    rows += rows_of([known[seed] for seed in seeds])
    machines.update(known[seed]['machine'] for seed in seeds)
  titles = [title for *_, title, _ in _ALL]
  print(f'\n{tables.markdown_table(["case", "side", "runs", *titles, "thresholds s"], rows)}\n')
  print(
    'Medians (range). Runs of ours: in turn with the rival + alone, for the AUROCs. '
    f'Machine: {"; ".join(sorted(machines))}.'
  )


if __name__ == '__main__':
  main()
