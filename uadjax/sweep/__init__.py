"""Sweeps over detectors, categories and seeds: every run has its own process and device.

Host i of n takes every n-th run, without communication. Finished runs are not repeated, so that an
interrupted sweep can continue, even on fewer or more devices and hosts; a run with checkpoints
resumes from the latest.
"""

from collections.abc import Generator, Mapping, Sequence
from concurrent import futures
import itertools
import json
import os
from pathlib import Path
import queue
import subprocess
import sys
import tempfile
import threading
from typing import NamedTuple

from uadjax.errors import refuse, Setting
from uadjax.sweep import results, slots
from uadjax.system import files, locks, logging
from uadjax.training import settings as run_settings, workdir as workdirs

_SWEEP_FILE, _LOCK_FILE = 'sweep.json', '.lock'
_NUM_ERROR_LINES = 3  # Number of last output lines that explain a failed process.
_LOG_INTERVAL_S = 20.0  # Longest time without a log line.
_STOP_TIMEOUT_S = 30.0  # Time for stopped runs to save a checkpoint.


def config_label(config: str) -> str:
  """Return the name of a config in tables: 'patchcore:ten' for configs/patchcore.py:ten."""
  path, colon, variant = config.partition(':')
  return Path(path).stem + colon + variant


class Run(NamedTuple):
  """Run of a sweep.

  Attributes:
    config: config file or name in configs/, optionally with a variant after a colon.
    category: category of the dataset.
    seed: random seed.
  """

  config: str
  category: str
  seed: int

  def run_dir(self, workdir: Path) -> Path:
    """Return the work directory of the run below that of the sweep."""
    config_name = config_label(self.config).replace(':', '_')
    return workdir / config_name / self.category / f'seed_{self.seed}'

  def __str__(self) -> str:
    return f'{config_label(self.config)} {self.category} seed {self.seed}'


class Outcome(NamedTuple):
  """Outcome of a run: its summary, or None and an error message."""

  run: Run
  summary: results.RunSummary | None
  error: str


def plan_runs(
  config_names: Sequence[str],
  categories: Sequence[str],
  seeds: Sequence[int],
  settings: Mapping[str, object] | None = None,
) -> list[Run]:
  """Return the runs of a sweep, ordered by seed, category and config.

  All runs of a seed precede those of the next, so that an interrupted sweep still gives a table of
  all configs and categories.

  Args:
    config_names: config files or names in configs/.
    categories: categories of the dataset.
    seeds: random seeds.
    settings: overrides by dotted key to validate; they do not become part of a run.

  Raises:
    UserError: a config does not exist, or a setting is invalid for it.
  """
  for config_name in config_names:
    run_settings.load(config_name, (settings or {}).items())
  combinations = itertools.product(seeds, categories, config_names)
  return [Run(config_name, category, seed) for seed, category, config_name in combinations]


def unfinished_runs(
  runs: Sequence[Run], workdir: Path, shard: tuple[int, int] = (0, 1)
) -> list[Run]:
  """Return the unfinished runs of this host; `shard` is its index and the number of hosts."""
  shard_index, num_shards = shard
  shard_runs = runs[shard_index::num_shards]
  return [run for run in shard_runs if results.load_summary(run.run_dir(workdir)) is None]


def run_sweep(
  runs: Sequence[Run],
  workdir: Path,
  overrides: Sequence[str],
  available_slots: Sequence[slots.Slot],
) -> Generator[Outcome, None, None]:
  """Execute runs in parallel, and yield their outcomes as they end.

  A failed run does not affect the others. Closing the iterator stops the running processes.

  Args:
    runs: runs to execute, such as those of `unfinished_runs`.
    workdir: directory of the sweep, with a subdirectory for every run.
    overrides: flags `--config.KEY=VALUE` for every run.
    available_slots: slots, each of which executes one run at a time.

  Raises:
    ConfigError: `workdir` holds a sweep with other overrides, whose runs would look alike in a
      table.
  """
  record_sweep(workdir, overrides, bool(runs))
  free_slots: queue.SimpleQueue[slots.Slot] = queue.SimpleQueue()
  for slot in available_slots:
    free_slots.put(slot)
  processes: list[subprocess.Popen[bytes]] = []
  lock, stop_event = threading.Lock(), threading.Event()

  def run_in_free_slot(run: Run) -> Outcome:
    slot = free_slots.get()
    try:
      return _execute_run(run, workdir, overrides, slot, processes, lock, stop_event)
    finally:
      free_slots.put(slot)

  pool = futures.ThreadPoolExecutor(len(available_slots))
  pending = {pool.submit(run_in_free_slot, run) for run in runs}
  try:
    while pending:
      finished, pending = futures.wait(pending, _LOG_INTERVAL_S, futures.FIRST_COMPLETED)
      yield from (outcome.result() for outcome in finished)
      if not finished:
        running = sum(process.returncode is None for process in processes)
        logging.LOG.info('%d runs in progress, %d queued.', running, len(pending) - running)
  finally:
    pool.shutdown(wait=False, cancel_futures=True)
    with lock:
      stop_event.set()
      processes_to_stop = [process for process in processes if process.poll() is None]
    _stop_processes(processes_to_stop)
    pool.shutdown()


def _stop_processes(processes: Sequence['subprocess.Popen[bytes]']) -> None:
  """Terminate processes, and kill those that do not end in time."""
  if processes:
    logging.LOG.info('Stopping %d runs.', len(processes))
  for process in processes:
    process.terminate()
  for process in processes:
    try:
      process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
      process.kill()


def _execute_run(
  run: Run,
  workdir: Path,
  overrides: Sequence[str],
  slot: slots.Slot,
  processes: list['subprocess.Popen[bytes]'],
  lock: threading.Lock,
  stop_event: threading.Event,
) -> Outcome:
  run_dir = run.run_dir(workdir)
  start_override = 'fit.resume=latest' if workdirs.saved_steps(run_dir) else 'fit.overwrite=true'
  command = [
    *(sys.executable, '-m', 'uadjax.main', f'--config={run.config}', f'--workdir={run_dir}'),
    *(f'--config.data.category={run.category}', f'--config.seed={run.seed}'),
    *(*overrides, *slot.flags, f'--config.{start_override}'),
    '--config.hosts.coordinator=none',  # A single-process run, even if a cluster started the sweep.
  ]
  if slot.cores:
    os.sched_setaffinity(0, slot.cores)  # Affects this thread only; its child processes inherit it.
  run_dir.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryFile() as output, (run_dir / _LOCK_FILE).open('wb') as lock_file:
    if not locks.try_lock(lock_file):
      return Outcome(run, None, 'locked by another sweep or by a process of it; see its log.')
    with lock:
      if stop_event.is_set():
        return Outcome(run, None, 'not started.')
      process = subprocess.Popen(
        command,
        env={**os.environ, **slot.environment},
        stdout=output,
        stderr=subprocess.STDOUT,
        # The run holds the lock, even after the sweep has ended; Windows cannot pass descriptors.
        pass_fds=(lock_file.fileno(),) if os.name == 'posix' else (),
      )
      processes.append(process)
    logging.LOG.info('%s: started on %s; log: %s', run, slot.name, run_dir / 'train.log')
    process.wait()
    summary = None if process.returncode else results.load_summary(run_dir)
    output.seek(0)
    last_lines = output.read().decode(errors='replace').strip().splitlines()[-_NUM_ERROR_LINES:]
  error = '' if summary else ' / '.join(last_lines) or f'exit status {process.returncode}'
  return Outcome(run, summary, error)


def record_sweep(workdir: Path, overrides: Sequence[str], add_machine: bool) -> list[str]:
  """Record the overrides and machines of a sweep in `workdir`, and return its machines.

  Args:
    workdir: directory of the sweep.
    overrides: flags `--config.KEY=VALUE` for every run.
    add_machine: whether runs will execute on this machine; if not, nothing is written.

  Raises:
    ConfigError: `workdir` holds finished runs of a sweep with other overrides.
  """
  path = workdir / _SWEEP_FILE
  record: dict[str, list[str]] = {'overrides': [*overrides], 'machines': []}
  previous = json.loads(path.read_text()) if path.is_file() else record
  summaries = (results.load_summary(p.parent) for p in workdir.glob('*/*/*/train_result.json'))
  if previous['overrides'] != record['overrides'] and any(summaries):
    sweep = f'a sweep with the overrides {previous["overrides"]}, not {record["overrides"]}'
    refuse('workdir', workdir, f'{workdir} holds {sweep}.', 'Use another ', Setting('workdir'), '.')
  record['machines'] = previous['machines']
  if add_machine:
    record['machines'] = list(dict.fromkeys([*previous['machines'], slots.describe_machine()]))
    workdir.mkdir(parents=True, exist_ok=True)
    files.write_json(path, record)
  return record['machines']
