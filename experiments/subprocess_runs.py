"""Runs of uadjax in fresh processes, and what they tell, for the scripts beside this one."""

from collections.abc import Sequence
import os
from pathlib import Path
import subprocess
import sys
import tempfile
from typing import NamedTuple

from uadjax.sweep import results, slots

FIRST_SEED = 3  # The configs' own.
_LAST_LINES = 12


class CompletedCommand(NamedTuple):
  """A command that did what it should.

  Attributes:
    stdout: what it printed.
    peak_mb: largest resident size of its process, from beginning to end.
  """

  stdout: str
  peak_mb: int


def run_command(command: Sequence[str], cwd: Path | None = None) -> CompletedCommand:
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
    last_lines = '\n  '.join(''.join(texts).splitlines()[-_LAST_LINES:])
    sys.exit(f'Exit status {process.returncode} of: {" ".join(command)}\n  {last_lines}')
  return CompletedCommand(
    texts[0], usage.ru_maxrss // (1 << 20 if sys.platform == 'darwin' else 1 << 10)
  )


def run_flags(root: str, category: str, weights: str, seed: int = FIRST_SEED) -> list[str]:
  """What every run must be told."""
  return [
    f'--config.data.root={root}',
    f'--config.data.category={category}',
    f'--config.backbone.weights={weights}',
    f'--config.seed={seed}',
  ]


def train(config: str, workdir: Path, flags: Sequence[str]) -> results.RunSummary:
  """Train and evaluate in a fresh process, over whatever is in `workdir`."""
  command = [sys.executable, '-m', 'uadjax.main', f'--config={config}', f'--workdir={workdir}']
  completed = run_command([*command, '--config.fit.overwrite=true', *flags])
  summary = results.load_summary(workdir)
  if summary is None:
    sys.exit(f'{workdir} holds no finished run, though uadjax.main had no complaint.')
  return {**summary, 'process_peak_mb': completed.peak_mb}


def describe_machine() -> str:
  """This machine, today, and the commit: what a log that was taken up again must not blur."""
  git = ['git', '-C', str(Path(__file__).parent), 'describe', '--always', '--dirty']
  commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or 'unknown'
  return f'{slots.describe_machine()}, commit {commit}'
