"""Runs of uadjax in separate processes, and their results, for the other scripts."""

import argparse
from collections.abc import Sequence
import os
from pathlib import Path
import shlex
import subprocess
import sys
import tempfile
import time
from typing import IO, NamedTuple

import process_memory

from uadjax.sweep import results, slots

FIRST_SEED = 3  # The seed in configs/.
_LAST_LINES = 12
_SAMPLE_SECONDS = 0.05


class CompletedCommand(NamedTuple):
  """Output of a command that succeeded, and what it took.

  Attributes:
    stdout: standard output of the command.
    peak_mb: largest resident size of its process in MB; at least that of the process that ran it.
    cpu_seconds: CPU time of its process and of the descendants that it waited for.
    memory: largest sum of PSS over its process and all descendants; None outside Linux, and
      without sampling.
  """

  stdout: str
  peak_mb: int
  cpu_seconds: float
  memory: process_memory.MemoryPeak | None


def absolute_command(command_line: str) -> list[str]:
  """Split a command line, and make its relative paths absolute, to run it in another folder."""
  # Links are not resolved: the Python of a virtual environment must stay a link.
  return [
    str(Path(word).absolute()) if '/' in word and Path(word).exists() else word
    for word in shlex.split(command_line)
  ]


def run_command(
  command: Sequence[str], cwd: Path | None = None, sample_memory: bool = False
) -> CompletedCommand:
  """Run a command; if it fails, exit with its last lines of output.

  Args:
    command: program and arguments.
    cwd: folder in which it runs.
    sample_memory: whether to sample the memory of the process tree every 50 ms.
  """
  with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
    streams = [out, err]
    with subprocess.Popen(command, cwd=cwd, stdout=out, stderr=err) as process:
      memory = _sample_memory(process.pid, streams) if sample_memory else None
      # Other ways to wait do not report the memory of a single child process.
      _, status, usage = os.wait4(process.pid, 0)
      process.returncode = os.waitstatus_to_exitcode(status)
    texts = [_read_text(stream) for stream in streams]
  if process.returncode:
    last_lines = '\n  '.join(''.join(texts).splitlines()[-_LAST_LINES:])
    sys.exit(f'{" ".join(command)} failed with exit status {process.returncode}:\n  {last_lines}')
  peak_mb = usage.ru_maxrss // (1 << 20 if sys.platform == 'darwin' else 1 << 10)
  return CompletedCommand(texts[0], peak_mb, usage.ru_utime + usage.ru_stime, memory)


def _sample_memory(pid: int, streams: Sequence[IO[bytes]]) -> process_memory.MemoryPeak | None:
  """Sample the memory of a child process and its descendants until it ends, without reaping it.

  Args:
    pid: the child process.
    streams: its output files; the last line of the last one with any names the phase.
  """
  if sys.platform != 'linux':
    return None
  sampler, offsets = process_memory.PeakSampler(pid), [0] * len(streams)
  while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
    if sampler.sample():
      offsets = [os.fstat(stream.fileno()).st_size for stream in streams]
    time.sleep(_SAMPLE_SECONDS)
  outputs = [
    _read_text(stream, size).split('\n') for stream, size in zip(streams, offsets, strict=True)
  ]
  phases = [line for lines in outputs for line in lines if line.strip()]
  megabytes = sampler.pss_kb / 1024, sampler.rss_kb / 1024
  return process_memory.MemoryPeak(*megabytes, sampler.seconds, phases[-1] if phases else '')


def _read_text(stream: IO[bytes], size: int = -1) -> str:
  stream.seek(0)
  return stream.read(size).decode(errors='replace')


def run_parser(description: str | None) -> argparse.ArgumentParser:
  """Return a parser with the flags that name the dataset and the weights of every run."""
  parser = argparse.ArgumentParser(
    description=description, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for flag in ('--root', '--category', '--weights'):
    parser.add_argument(flag, required=True)
  return parser


def add_seeds(parser: argparse.ArgumentParser) -> None:
  """Add --seeds, a number, whose parsed value is the range of the seeds."""
  parser.add_argument(
    '--seeds',
    type=lambda text: range(FIRST_SEED, FIRST_SEED + int(text)),
    default='3',
    metavar='N',
    help=f'number of seeds, from {FIRST_SEED} on; default 3',
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
