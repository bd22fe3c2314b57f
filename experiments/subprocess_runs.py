"""Runs of uadjax in separate processes, and their results, for the other scripts."""

from collections.abc import Sequence
import os
from pathlib import Path
import subprocess
import sys
import tempfile
from typing import NamedTuple

from uadjax.sweep import results, slots

FIRST_SEED = 3  # The seed in configs/.
_LAST_LINES = 12


class CompletedCommand(NamedTuple):
  """Output of a command that succeeded.

  Attributes:
    stdout: standard output of the command.
    peak_mb: largest resident size of its process in MB.
  """

  stdout: str
  peak_mb: int


def run_command(command: Sequence[str], cwd: Path | None = None) -> CompletedCommand:
  """Run a command; if it fails, exit with its last lines of output."""
  with tempfile.TemporaryFile('w+') as out, tempfile.TemporaryFile('w+') as err:
    with subprocess.Popen(command, cwd=cwd, stdout=out, stderr=err) as process:
      # Other ways to wait do not report the memory of a single child process.
      _, status, usage = os.wait4(process.pid, 0)
      process.returncode = os.waitstatus_to_exitcode(status)
    texts = []
    for stream in (out, err):
      stream.seek(0)
      texts.append(stream.read())
  if process.returncode:
    last_lines = '\n  '.join(''.join(texts).splitlines()[-_LAST_LINES:])
    sys.exit(f'{" ".join(command)} failed with exit status {process.returncode}:\n  {last_lines}')
  return CompletedCommand(
    texts[0], usage.ru_maxrss // (1 << 20 if sys.platform == 'darwin' else 1 << 10)
  )


def run_flags(root: str, category: str, weights: str, seed: int = FIRST_SEED) -> list[str]:
  """Return the config flags that every run needs."""
  return [
    f'--config.data.root={root}',
    f'--config.data.category={category}',
    f'--config.backbone.weights={weights}',
    f'--config.seed={seed}',
  ]


def train(config: str, workdir: Path, flags: Sequence[str]) -> results.RunSummary:
  """Train and evaluate in a separate process, and overwrite any run in `workdir`."""
  command = [sys.executable, '-m', 'uadjax.main', f'--config={config}', f'--workdir={workdir}']
  completed = run_command([*command, '--config.fit.overwrite=true', *flags])
  summary = results.load_summary(workdir)
  if summary is None:
    sys.exit(f'uadjax.main succeeded, but {workdir} contains no finished run.')
  return {**summary, 'process_peak_mb': completed.peak_mb}


def describe_machine() -> str:
  """Return machine, date and commit, so that resumed logs stay unambiguous."""
  git = ['git', '-C', str(Path(__file__).parent), 'describe', '--always', '--dirty']
  commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or 'unknown'
  return f'{slots.describe_machine()}, commit {commit}'
