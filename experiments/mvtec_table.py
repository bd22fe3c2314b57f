"""Every detector on every category with several seeds: accuracy, time and memory as one table.

  DATA=../shared/data/mvtec_ad
  WEIGHTS=../shared/weights/resnet18_imagenet_bnfolded.pth
  python experiments/mvtec_table.py --root=$DATA --weights=$WEIGHTS --categories=all --seeds=5

Each run is a fresh process with a folder of its own. Finished runs are not repeated, so that a
sweep that was cut off goes on; one that was cut off within a run begins that run anew. What follows
`--` is passed on to every run (`-- --config.evaluate.save_pictures=0`). The table is printed, and
left in --workdir as table.md and table.csv.

Seconds and memory are those of train_result.json. fit: from the first file opened to the fitted
model, compilation included. evaluate: from the model's files to the numbers, pictures included.
peak: the process's largest resident size until it was fitted.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
import csv
import datetime
import json
from pathlib import Path
import statistics
import sys
import time
from typing import NamedTuple

import fresh

from uadjax.data import datasets

Rows = list[tuple[str, str, dict[int, fresh.Told]]]  # Detector, category, what each seed told.


class _Column(NamedTuple):
  title: str
  center: Callable[[Iterable[float]], float]
  digits: int


_COLUMNS = {
  'image_auroc': _Column('image AUROC', statistics.mean, 3),
  'pixel_auroc': _Column('pixel AUROC', statistics.mean, 3),
  'fit_s': _Column('fit s', statistics.median, 1),
  'evaluate_s': _Column('evaluate s', statistics.median, 1),
  'fit_peak_mb': _Column('peak MB', statistics.median, 0),
}


def label(config: str) -> str:
  """A config's name in the table: 'patchcore:ten' for configs/patchcore.py:ten."""
  path, colon, variant = config.partition(':')
  return Path(path).stem + colon + variant


class Run(NamedTuple):
  """One of the sweep."""

  config: str
  category: str
  seed: int

  def folder(self, workdir: Path) -> Path:
    """Where it goes."""
    return workdir / label(self.config).replace(':', '_') / self.category / f'seed_{self.seed}'


def sweep(
  runs: Sequence[Run], workdir: Path, root: str, weights: str, overrides: list[str]
) -> None:
  """Carry out the runs that are not finished, a line for each."""
  missing = [run for run in runs if fresh.done(run.folder(workdir)) is None]
  print(f'{len(runs) - len(missing)} of {len(runs)} runs are there already.', flush=True)
  began = time.monotonic()
  for number, run in enumerate(missing, 1):
    flags = fresh.flags_of(root, run.category, weights, run.seed)
    told = fresh.train(run.config, run.folder(workdir), [*flags, *overrides])
    numbers = '  '.join(
      f'{column.title} {fresh.cell(fresh.spread([told[key]]), column.digits)}'
      for key, column in _COLUMNS.items()
    )
    left = (time.monotonic() - began) / number * (len(missing) - number)
    print(
      f'[{number}/{len(missing)}] {label(run.config)} {run.category} seed {run.seed}: {numbers}  '
      f'ETA {datetime.timedelta(seconds=round(left))}',
      flush=True,
    )


def machines(workdir: Path, overrides: list[str], begin: bool) -> list[str]:
  """The machines that the sweep ran on, this one added if it is to run here.

  Runs of other overrides are refused: the table could not tell them apart.
  """
  path = workdir / 'sweep.json'
  before = json.loads(path.read_text()) if path.is_file() else None
  if before and before['overrides'] != overrides:
    sys.exit(
      f'{workdir} holds runs with the overrides {before["overrides"]}, not {overrides}; name '
      'another --workdir.'
    )
  known = before['machines'] if before else []
  if begin and fresh.machine() not in known:
    known = [*known, fresh.machine()]
    workdir.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({'overrides': overrides, 'machines': known}, indent=2) + '\n')
  return known


def averaged(categories: Sequence[Mapping[int, fresh.Told]]) -> dict[int, fresh.Told]:
  """The mean over categories, for each seed that all of them have."""
  seeds = sorted(set.intersection(*(set(of_seed) for of_seed in categories)))
  means = {}
  for seed in seeds:
    spreads = {
      key: fresh.spread([of_seed[seed][key] for of_seed in categories], statistics.mean)
      for key in _COLUMNS
    }
    means[seed] = {key: found.center if found else None for key, found in spreads.items()}
  return means


def summary(runs: Sequence[Run], workdir: Path) -> Rows:
  """Detector, category and what each seed told; for several categories then their mean."""
  rows: Rows = []
  for config in dict.fromkeys(run.config for run in runs):
    of_detector: dict[str, dict[int, fresh.Told]] = {}
    for run in runs:
      if run.config == config and (told := fresh.done(run.folder(workdir))) is not None:
        of_detector.setdefault(run.category, {})[run.seed] = told
    rows += [(label(config), category, of_seed) for category, of_seed in of_detector.items()]
    if len(of_detector) > 1 and (means := averaged(list(of_detector.values()))):
      rows.append((label(config), f'mean of {len(of_detector)}', means))
  return rows


def leave(rows: Rows, workdir: Path, about: str) -> None:
  """Print the table, and write it as Markdown and CSV."""
  shown, written = [], []
  for detector, category, of_seed in rows:
    spreads = {
      key: fresh.spread([told[key] for told in of_seed.values()], column.center)
      for key, column in _COLUMNS.items()
    }
    cells = [fresh.cell(spreads[key], column.digits) for key, column in _COLUMNS.items()]
    numbers = [value for found in spreads.values() for value in found or ('', '', '')]
    shown.append([detector, category, len(of_seed), *cells])
    written.append([detector, category, len(of_seed), *numbers])
  first = ['detector', 'category', 'seeds']
  table = fresh.markdown([*first, *(column.title for column in _COLUMNS.values())], shown)
  text = (
    f'{table}\n\nOver seeds: AUROC mean (range), others median (range); in the rows of means '
    f'categories are averaged first, seed by seed.\n{about}\n'
  )
  (workdir / 'table.md').write_text(text)
  with (workdir / 'table.csv').open('w', newline='') as file:
    names = [key + end for key in _COLUMNS for end in ('', '_low', '_high')]
    csv.writer(file, lineterminator='\n').writerows([[*first, *names], *written])
  print(text)


def main() -> None:
  """Sweep, then tabulate."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--root', required=True)
  parser.add_argument('--weights', required=True)
  parser.add_argument(
    '--configs', default='configs/padim.py,configs/patchcore.py,configs/patchcore.py:ten'
  )
  parser.add_argument('--categories', default='all', help='names; or all, textures, objects')
  parser.add_argument('--seeds', type=int, default=5, help=f'how many, from {fresh.FIRST_SEED} on')
  parser.add_argument('--workdir', type=Path, default=Path('runs/table'))
  parser.add_argument('--table-only', action='store_true', help='run nothing; tabulate what is')
  parser.add_argument('overrides', nargs='*', help='after --, for every run')
  flags = parser.parse_args()
  categories = [
    name for group in flags.categories.split(',') for name in datasets.expand(flags.root, group)
  ]
  runs = [  # Every seed on all categories before the next: a sweep cut off has a table, too.
    Run(config, category, seed)
    for seed in range(fresh.FIRST_SEED, fresh.FIRST_SEED + flags.seeds)
    for category in categories
    for config in flags.configs.split(',')
  ]
  known = machines(flags.workdir, flags.overrides, begin=not flags.table_only)
  if not flags.table_only:
    sweep(runs, flags.workdir, flags.root, flags.weights, flags.overrides)
  if not (rows := summary(runs, flags.workdir)):
    sys.exit(f'There is no finished run of these in {flags.workdir}.')
  about = [f'Machine: {"; ".join(known) or "unknown"}.']
  if flags.overrides:
    about.append(f'Overrides: {" ".join(flags.overrides)}.')
  leave(rows, flags.workdir, ' '.join(about))


if __name__ == '__main__':
  main()
