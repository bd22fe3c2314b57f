"""Detectors x categories x seeds: each a run in a process of its own, on a device of its own.

Hosts share a sweep by turns, without knowing of each other. What is finished is not repeated, so
that a sweep which was cut off goes on, on fewer or more devices and hosts, too; a run that saved
checkpoints goes on at the last.
"""

from collections.abc import Generator, Mapping, Sequence
from concurrent import futures
import json
import os
from pathlib import Path
import queue
import subprocess
import sys
import tempfile
import threading
from types import MappingProxyType
from typing import Any, NamedTuple

from uadjax import config as configs
from uadjax.errors import ConfigError, Setting
from uadjax.sweep import results, slots
from uadjax.system import files, logging
from uadjax.training import workdir as workdirs

_SWEEP_FILE, _LOCK_FILE = 'sweep.json', '.lock'
_NUM_ERROR_LINES = 3  # Of what a process says that leaves no result.
_LOG_INTERVAL_S = 20.0  # Without a sign of life, at most.
_STOP_TIMEOUT_S = 30.0  # For runs that are asked to stop, to save where they are.


def config_label(config: str) -> str:
  """A config's name in tables: 'patchcore:ten' for configs/patchcore.py:ten."""
  path, colon, variant = config.partition(':')
  return Path(path).stem + colon + variant


class Run(NamedTuple):
  """One of a sweep.

  Attributes:
    config: a name of configs/, a file, or either with a variant after a colon.
    category: of the data set.
    seed: of the run.
  """

  config: str
  category: str
  seed: int

  @property
  def config_label(self) -> str:
    """The config's name in tables."""
    return config_label(self.config)

  def run_dir(self, workdir: Path) -> Path:
    """Where it goes."""
    return workdir / self.config_label.replace(':', '_') / self.category / f'seed_{self.seed}'

  def __str__(self) -> str:
    return f'{self.config_label} {self.category} seed {self.seed}'


class Outcome(NamedTuple):
  """What came of a run: what it tells of itself, or why it failed."""

  run: Run
  summary: results.RunSummary | None
  error: str


def plan_runs(
  config_names: Sequence[str],
  categories: Sequence[str],
  seeds: Sequence[int],
  settings: Mapping[str, Any] = MappingProxyType({}),
) -> list[Run]:
  """All of them; every seed of all categories before the next: cut off, there is a table, too.

  Raises:
    UserError: a model is no config, or one of the settings by dotted key is none of its.
  """
  for config_name in config_names:
    configs.load(config_name, [*settings.items()])
  return [
    Run(config_name, category, seed)
    for seed in seeds
    for category in categories
    for config_name in config_names
  ]


def unfinished_runs(
  runs: Sequence[Run], workdir: Path, shard: tuple[int, int] = (0, 1)
) -> list[Run]:
  """Those of this host's part, which is one of so many, that are not finished."""
  shard_index, num_shards = shard
  return [
    run
    for run in runs[shard_index::num_shards]
    if results.load_summary(run.run_dir(workdir)) is None
  ]


def run_sweep(
  runs: Sequence[Run],
  workdir: Path,
  overrides: Sequence[str],
  available_slots: Sequence[slots.Slot],
) -> Generator[Outcome, None, None]:
  """Carry out runs; yield them as they end.

  One that fails keeps no other from going on. When the iterator is closed, those that are under way
  are asked to stop.

  Args:
    runs: that are `missing`.
    workdir: for all runs of the sweep, a folder each.
    overrides: `--config.KEY=VALUE` for every run.
    places: where they go.

  Raises:
    ConfigError: the folder holds a sweep with other overrides, which a table could not tell apart.
  """
  record_sweep(workdir, overrides, bool(runs))
  free_slots: queue.SimpleQueue[slots.Slot] = queue.SimpleQueue()
  for slot in available_slots:
    free_slots.put(slot)
  running_processes, lock, stop_event = (
    set[subprocess.Popen[bytes]](),
    threading.Lock(),
    threading.Event(),
  )

  def run_in_free_slot(run: Run) -> Outcome:
    slot = free_slots.get()
    try:
      return _execute_run(run, workdir, overrides, slot, running_processes, lock, stop_event)
    finally:
      free_slots.put(slot)

  pool = futures.ThreadPoolExecutor(len(available_slots))
  pending_futures = {pool.submit(run_in_free_slot, run) for run in runs}
  try:
    while pending_futures:
      finished_futures, pending_futures = futures.wait(
        pending_futures, _LOG_INTERVAL_S, futures.FIRST_COMPLETED
      )
      yield from (future.result() for future in finished_futures)
      if not finished_futures:
        num_running, num_queued = (
          len(running_processes),
          len(pending_futures) - len(running_processes),
        )
        logging.LOG.info('%d runs under way, %d to come.', num_running, num_queued)
  finally:
    pool.shutdown(wait=False, cancel_futures=True)
    with lock:
      stop_event.set()
      processes_to_stop = list(running_processes)
    if processes_to_stop:
      logging.LOG.info('Stopping %d runs.', len(processes_to_stop))
    for process in processes_to_stop:
      process.terminate()
    for process in processes_to_stop:
      try:
        process.wait(_STOP_TIMEOUT_S)
      except subprocess.TimeoutExpired:
        process.kill()
    pool.shutdown()


def _execute_run(
  run: Run,
  workdir: Path,
  overrides: Sequence[str],
  slot: slots.Slot,
  running_processes: set['subprocess.Popen[bytes]'],
  lock: threading.Lock,
  stop_event: threading.Event,
) -> Outcome:
  run_dir = run.run_dir(workdir)
  start_override = 'fit.resume=latest' if workdirs.saved_steps(run_dir) else 'fit.overwrite=true'
  command = [
    *(sys.executable, '-m', 'uadjax.main', f'--config={run.config}', f'--workdir={run_dir}'),
    *(f'--config.data.category={run.category}', f'--config.seed={run.seed}'),
    *(*overrides, *slot.flags, f'--config.{start_override}'),
    '--config.hosts.coordinator=none',  # A run of its own, whoever has started us.
  ]
  if slot.cores:
    os.sched_setaffinity(0, slot.cores)  # Of this thread; its processes inherit it.
  run_dir.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryFile() as output, (run_dir / _LOCK_FILE).open('wb') as lock_file:
    if not files.try_lock(lock_file):
      return Outcome(run, None, 'another sweep is at it, or what that one left; see its log.')
    with lock:
      if stop_event.is_set():
        return Outcome(run, None, 'not begun.')
      process = subprocess.Popen(
        command,
        env={**os.environ, **slot.environment},
        stdout=output,
        stderr=subprocess.STDOUT,
        pass_fds=(lock_file.fileno(),),  # Locked as long as it runs, whatever becomes of us.
      )
      running_processes.add(process)
    logging.LOG.info('%s: begins on %s; log: %s', run, slot.name, run_dir / 'train.log')
    with process:
      process.wait()
      with lock:
        running_processes.remove(process)
    summary = None if process.returncode else results.load_summary(run_dir)
    output.seek(0)
    last_lines = output.read().decode(errors='replace').strip().splitlines()[-_NUM_ERROR_LINES:]
  error = '' if summary else ' / '.join(last_lines) or f'exit status {process.returncode}'
  return Outcome(run, summary, error)


def record_sweep(workdir: Path, overrides: Sequence[str], add_machine: bool) -> list[str]:
  """Note what a sweep is of; the machines that it ran on, this one added if it is to run here.

  Raises:
    ConfigError: see `sweep`.
  """
  path = workdir / _SWEEP_FILE
  previous_sweep: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
  finished_summaries = (
    results.load_summary(path.parent) for path in workdir.glob('*/*/*/train_result.json')
  )
  if previous_sweep and previous_sweep['overrides'] != list(overrides) and any(finished_summaries):
    raise ConfigError(
      f'{workdir} holds a sweep with the overrides {previous_sweep["overrides"]}, not {list(overrides)}.',
      key='workdir',
      value=workdir,
      hint=('Name another ', Setting('workdir'), '.'),
    )
  machines: list[str] = previous_sweep.get('machines', [])
  if add_machine:
    machines = list(dict.fromkeys([*machines, slots.describe_machine()]))
    workdir.mkdir(parents=True, exist_ok=True)
    files.write_json(path, {'overrides': list(overrides), 'machines': machines})
  return machines
