"""Seconds from the start of a command to its end, or until a service is ready, first and later.

  python experiments/startup.py --dataset=$DATA --weights=$WEIGHTS --categories=toothbrush,bottle

Each command begins with an empty cache ($UADJAX_CACHE). Its first run fills the cache: compiled
programs, and graphs for an inference runtime. Later runs, each a new process, read it; the table
has their median and range. Seconds of the processor, of the process and its children, depend less
on what else runs on the machine than seconds on the wall.
"""

import argparse
from collections.abc import Sequence
import os
from pathlib import Path
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import subprocess_runs

from uadjax.data.layouts import scanning
from uadjax.sweep import tables

_MODELS = 'padim', 'patchcore'
_BACKENDS = 'jax', 'auto'
_COLUMNS = 'command', 'first run, s', 'processor', 'later runs, s', 'processor'
_READY = 'Serving at'  # What `uadjax serve` prints once it is ready.


class Case(NamedTuple):
  """Command to measure.

  Attributes:
    title: how the table names it.
    words: arguments of `uadjax`.
    later_runs: number of runs after the first.
  """

  title: str
  words: Sequence[str]
  later_runs: int


class Seconds(NamedTuple):
  """Duration of a command: wall time, and processor time of all its processes."""

  wall: float
  cpu: float


def run(words: Sequence[str], cache: Path) -> Seconds:
  """Run a command in a new process; a service is stopped when it is ready."""
  environment = {**os.environ, 'UADJAX_CACHE': str(cache), 'PYTHONUNBUFFERED': '1'}
  start = time.perf_counter()
  process = subprocess.Popen(
    [sys.executable, '-m', 'uadjax', *words],
    env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
  )  # fmt: skip
  end = None
  for line in process.stdout or ():
    if line.startswith(_READY):
      end = time.perf_counter()
      process.send_signal(signal.SIGTERM)
  _, status, usage = os.wait4(process.pid, 0)
  process.returncode = os.waitstatus_to_exitcode(status)
  if process.returncode:
    sys.exit(f'uadjax {" ".join(words)} failed with exit status {process.returncode}.')
  return Seconds((end or time.perf_counter()) - start, usage.ru_utime + usage.ru_stime)


def measure(case: Case) -> tuple[str, ...]:
  """Run a command with an empty cache and then with what it left there; return the table row."""
  with tempfile.TemporaryDirectory() as folder:
    first = run(case.words, Path(folder))
    later = [run(case.words, Path(folder)) for _ in range(case.later_runs)]
  columns = zip(*later, strict=True)
  wall, cpu = (tables.format_cell(tables.center_and_range(column), 2) for column in columns)
  return case.title, f'{first.wall:.2f}', f'{first.cpu:.2f}', wall, cpu


def cases(options: argparse.Namespace, workdir: Path) -> list[Case]:
  """Return all commands; fits come first, because the others need their models."""
  overrides = ['--override', f'backbone.weights={options.weights}']
  overrides += ['--override', 'fit.overwrite=true']
  fits, others = [], [Case('uadjax --help', ['--help'], options.rounds)]
  for category in options.categories.split(','):
    image = scanning.find_files(options.dataset / category / 'test')[0]
    for model in _MODELS:
      run_dir = workdir / f'{model}_{category}'
      words = ['fit', str(options.dataset / category), '--model', model, '--workdir', str(run_dir)]
      title = f'{model}, {category}'
      fits.append(Case(f'fit: {title}', [*words, *overrides], options.fits))
      for backend in _BACKENDS:
        chosen = [str(run_dir / 'model'), '--backend', backend]
        words = ['predict', *chosen, str(image), '--no-save']
        others.append(Case(f'predict --backend {backend}: {title}', words, options.rounds))
        words = ['serve', *chosen, '--port', '0']
        others.append(Case(f'serve --backend {backend}: {title}', words, options.rounds))
  return fits + others


def main() -> None:
  """Print the table of all commands."""
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  parser.add_argument('--dataset', type=Path, required=True, help='folder of the categories')
  parser.add_argument('--weights', required=True, help='file with the weights of the backbone')
  parser.add_argument('--categories', default='toothbrush,bottle')
  parser.add_argument('--rounds', type=int, default=5, help='later runs of a command')
  parser.add_argument('--fits', type=int, default=2, help='later runs of a fit')
  options = parser.parse_args()
  print(subprocess_runs.describe_machine(), flush=True)
  with tempfile.TemporaryDirectory() as folder:
    rows = []
    for case in cases(options, Path(folder)):
      rows.append(measure(case))
      print(*rows[-1], sep=' | ', flush=True)
  print(tables.markdown_table(_COLUMNS, rows))


if __name__ == '__main__':
  main()
