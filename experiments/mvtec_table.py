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
import os
from pathlib import Path
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

from uadjax.data import datasets

FIRST_SEED = 3  # The configs' own.
Told = dict[str, Any]  # What a run tells of itself, without nesting.
_LAST_LINES = 12


class Finished(NamedTuple):
  """A command that did what it should.

  Attributes:
    stdout: what it printed.
    peak_mb: largest resident size of its process, from beginning to end.
  """

  stdout: str
  peak_mb: int


class Spread(NamedTuple):
  """A mean or median, and what it lies between."""

  center: float
  low: float
  high: float


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


def finish(command: Sequence[str], cwd: Path | None = None) -> Finished:
  """Run a command to its end; if it fails so does this script, with the command's last lines."""
  with tempfile.TemporaryFile('w+') as out, tempfile.TemporaryFile('w+') as err:
    with subprocess.Popen(command, cwd=cwd, stdout=out, stderr=err) as process:
      # Only this way of waiting tells the memory of one child.
      _, status, usage = os.wait4(process.pid, 0)
      process.returncode = os.waitstatus_to_exitcode(status)
    texts = []
    for stream in (out, err):
      stream.seek(0)
      texts.append(stream.read())
  if process.returncode:
    last = '\n  '.join(''.join(texts).splitlines()[-_LAST_LINES:])
    sys.exit(f'Exit status {process.returncode} of: {" ".join(command)}\n  {last}')
  return Finished(texts[0], usage.ru_maxrss // (1 << 20 if sys.platform == 'darwin' else 1 << 10))


def flags_of(root: str, category: str, weights: str, seed: int = FIRST_SEED) -> list[str]:
  """What every run must be told."""
  return [
    f'--config.data.root={root}',
    f'--config.data.category={category}',
    f'--config.backbone.weights={weights}',
    f'--config.seed={seed}',
  ]


def train(config: str, workdir: Path, flags: Sequence[str]) -> Told:
  """Train and evaluate in a fresh process, over whatever is in `workdir`."""
  command = [sys.executable, '-m', 'uadjax.main', f'--config={config}', f'--workdir={workdir}']
  finished = finish([*command, '--config.fit.overwrite=true', *flags])
  told = done(workdir)
  if told is None:
    sys.exit(f'{workdir} holds no finished run, though uadjax.main had no complaint.')
  return {**told, 'process_peak_mb': finished.peak_mb}


def done(workdir: Path) -> Told | None:
  """What the finished run in a folder tells; None where there is none."""
  path = workdir / 'train_result.json'
  result = json.loads(path.read_text()) if path.is_file() else {}
  if not result.get('done_flag'):
    return None
  metrics, timing = result.get('metrics', {}), result['timing']
  return {
    'image_auroc': metrics.get('image_auroc'),
    'pixel_auroc': metrics.get('pixel_auroc'),
    'fit_s': timing['fit_s'],
    'calibrate_s': timing['calibrate_s'],
    'evaluate_s': timing['evaluate_s'],
    'fit_peak_mb': timing['peak_memory_mb'],
    **result.get('learned', {}),
  }


def spread(
  values: Iterable[float | None], center: Callable[[Iterable[float]], float] = statistics.median
) -> Spread | None:
  """The center and range of those that are numbers; None if none is."""
  numbers = [value for value in values if value is not None]
  return Spread(center(numbers), min(numbers), max(numbers)) if numbers else None


def cell(spread: Spread | None, digits: int) -> str:
  """The center, and the range unless it is one number."""
  if spread is None:
    return '—'
  center, low, high = (f'{value:.{digits}f}' for value in spread)
  return center if low == high else f'{center} ({low}-{high})'


def markdown(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
  """A table."""
  lines = [titles, ['---'] * len(titles), *rows]
  return '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines)


def machine() -> str:
  """This machine, today, and the commit: what a log that was taken up again must not blur."""
  info = Path('/proc/cpuinfo')
  models = re.findall(r'model name\s*: (.+)', info.read_text()) if info.is_file() else []
  model = models[0] if models else platform.machine()
  git = ['git', '-C', str(Path(__file__).parent), 'describe', '--always', '--dirty']
  commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or 'unknown'
  return f'{os.cpu_count()} cores of {model}, {datetime.date.today()}, commit {commit}'


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
  missing = [run for run in runs if done(run.folder(workdir)) is None]
  print(f'{len(runs) - len(missing)} of {len(runs)} runs are there already.', flush=True)
  began = time.monotonic()
  for number, run in enumerate(missing, 1):
    flags = flags_of(root, run.category, weights, run.seed)
    told = train(run.config, run.folder(workdir), [*flags, *overrides])
    numbers = '  '.join(
      f'{column.title} {cell(spread([told[key]]), column.digits)}'
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
  if begin and machine() not in known:
    known = [*known, machine()]
    workdir.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({'overrides': overrides, 'machines': known}, indent=2) + '\n')
  return known


def averaged(categories: Sequence[Mapping[int, Told]]) -> dict[int, Told]:
  """The mean over categories, for each seed that all of them have."""
  seeds = sorted(set.intersection(*(set(of_seed) for of_seed in categories)))
  means = {}
  for seed in seeds:
    spreads = {
      key: spread([of_seed[seed][key] for of_seed in categories], statistics.mean)
      for key in _COLUMNS
    }
    means[seed] = {key: found.center if found else None for key, found in spreads.items()}
  return means


def summary(runs: Sequence[Run], workdir: Path) -> list[tuple[str, str, dict[int, Told]]]:
  """Detector, category and what each seed told; for several categories then their mean."""
  rows: list[tuple[str, str, dict[int, Told]]] = []
  for config in dict.fromkeys(run.config for run in runs):
    of_detector: dict[str, dict[int, Told]] = {}
    for run in runs:
      if run.config == config and (told := done(run.folder(workdir))) is not None:
        of_detector.setdefault(run.category, {})[run.seed] = told
    rows += [(label(config), category, of_seed) for category, of_seed in of_detector.items()]
    if len(of_detector) > 1 and (means := averaged(list(of_detector.values()))):
      rows.append((label(config), f'mean of {len(of_detector)}', means))
  return rows


def leave(rows: Sequence[tuple[str, str, dict[int, Told]]], workdir: Path, about: str) -> None:
  """Print the table, and write it as Markdown and CSV."""
  shown, written = [], []
  for detector, category, of_seed in rows:
    spreads = {
      key: spread([told[key] for told in of_seed.values()], column.center)
      for key, column in _COLUMNS.items()
    }
    cells = [cell(spreads[key], column.digits) for key, column in _COLUMNS.items()]
    numbers = [value for found in spreads.values() for value in found or ('', '', '')]
    shown.append([detector, category, len(of_seed), *cells])
    written.append([detector, category, len(of_seed), *numbers])
  first = ['detector', 'category', 'seeds']
  table = markdown([*first, *(column.title for column in _COLUMNS.values())], shown)
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
  parser.add_argument('--seeds', type=int, default=5, help=f'how many, from {FIRST_SEED} on')
  parser.add_argument('--workdir', type=Path, default=Path('runs/table'))
  parser.add_argument('--table-only', action='store_true', help='run nothing; tabulate what is')
  parser.add_argument('overrides', nargs='*', help='after --, for every run')
  flags = parser.parse_args()
  categories = [
    name for group in flags.categories.split(',') for name in datasets.expand(flags.root, group)
  ]
  runs = [  # Every seed on all categories before the next: a sweep cut off has a table, too.
    Run(config, category, seed)
    for seed in range(FIRST_SEED, FIRST_SEED + flags.seeds)
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
