"""Runs of uadjax in fresh processes, and what they tell, for the scripts beside this one."""

from collections.abc import Callable, Iterable, Sequence
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
from typing import Any, NamedTuple

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
