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

_ABOUT, _LOCK = 'sweep.json', '.lock'
_LAST_LINES = 3  # Of what a process says that leaves no result.
_SILENCE_S = 20.0  # Without a sign of life, at most.
_GRACE_S = 30.0  # For runs that are asked to stop, to save where they are.


def label(config: str) -> str:
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
  def model(self) -> str:
    """The config's name in tables."""
    return label(self.config)

  def folder(self, workdir: Path) -> Path:
    """Where it goes."""
    return workdir / self.model.replace(':', '_') / self.category / f'seed_{self.seed}'

  def __str__(self) -> str:
    return f'{self.model} {self.category} seed {self.seed}'


class Outcome(NamedTuple):
  """What came of a run: what it tells of itself, or why it failed."""

  run: Run
  told: results.Told | None
  error: str


def plan(
  models: Sequence[str],
  categories: Sequence[str],
  seeds: Sequence[int],
  settings: Mapping[str, Any] = MappingProxyType({}),
) -> list[Run]:
  """All of them; every seed of all categories before the next: cut off, there is a table, too.

  Raises:
    UserError: a model is no config, or one of the settings by dotted key is none of its.
  """
  for model in models:
    configs.load(model, [*settings.items()])
  return [
    Run(model, category, seed) for seed in seeds for category in categories for model in models
  ]


def missing(runs: Sequence[Run], workdir: Path, part: tuple[int, int] = (0, 1)) -> list[Run]:
  """Those of this host's part, which is one of so many, that are not finished."""
  index, count = part
  return [run for run in runs[index::count] if results.done(run.folder(workdir)) is None]


def sweep(
  runs: Sequence[Run], workdir: Path, overrides: Sequence[str], places: Sequence[slots.Slot]
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
  begin(workdir, overrides, bool(runs))
  free: queue.SimpleQueue[slots.Slot] = queue.SimpleQueue()
  for place in places:
    free.put(place)
  under_way, lock, over = set[subprocess.Popen[bytes]](), threading.Lock(), threading.Event()

  def one(run: Run) -> Outcome:
    place = free.get()
    try:
      return _carried_out(run, workdir, overrides, place, under_way, lock, over)
    finally:
      free.put(place)

  pool = futures.ThreadPoolExecutor(len(places))
  left = {pool.submit(one, run) for run in runs}
  try:
    while left:
      ended, left = futures.wait(left, _SILENCE_S, futures.FIRST_COMPLETED)
      yield from (one.result() for one in ended)
      if not ended:
        under, more = len(under_way), len(left) - len(under_way)
        logging.LOG.info('%d runs under way, %d to come.', under, more)
  finally:
    pool.shutdown(wait=False, cancel_futures=True)
    with lock:
      over.set()
      stopping = list(under_way)
    if stopping:
      logging.LOG.info('Stopping %d runs.', len(stopping))
    for process in stopping:
      process.terminate()
    for process in stopping:
      try:
        process.wait(_GRACE_S)
      except subprocess.TimeoutExpired:
        process.kill()
    pool.shutdown()


def _carried_out(
  run: Run,
  workdir: Path,
  overrides: Sequence[str],
  place: slots.Slot,
  under_way: set['subprocess.Popen[bytes]'],
  lock: threading.Lock,
  over: threading.Event,
) -> Outcome:
  folder = run.folder(workdir)
  again = 'fit.resume=latest' if workdirs.steps(folder) else 'fit.overwrite=true'
  command = [
    *(sys.executable, '-m', 'uadjax.main', f'--config={run.config}', f'--workdir={folder}'),
    *(f'--config.data.category={run.category}', f'--config.seed={run.seed}'),
    *(*overrides, *place.flags, f'--config.{again}'),
    '--config.hosts.coordinator=none',  # A run of its own, whoever has started us.
  ]
  if place.cores:
    os.sched_setaffinity(0, place.cores)  # Of this thread; its processes inherit it.
  folder.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryFile() as said, (folder / _LOCK).open('wb') as lock_file:
    if not files.locked(lock_file):
      return Outcome(run, None, 'another sweep is at it, or what that one left; see its log.')
    with lock:
      if over.is_set():
        return Outcome(run, None, 'not begun.')
      process = subprocess.Popen(
        command,
        env={**os.environ, **place.environment},
        stdout=said,
        stderr=subprocess.STDOUT,
        pass_fds=(lock_file.fileno(),),  # Locked as long as it runs, whatever becomes of us.
      )
      under_way.add(process)
    logging.LOG.info('%s: begins on %s; log: %s', run, place.name, folder / 'train.log')
    with process:
      process.wait()
      with lock:
        under_way.remove(process)
    told = None if process.returncode else results.done(folder)
    said.seek(0)
    last = said.read().decode(errors='replace').strip().splitlines()[-_LAST_LINES:]
  error = '' if told else ' / '.join(last) or f'exit status {process.returncode}'
  return Outcome(run, told, error)


def begin(workdir: Path, overrides: Sequence[str], here: bool) -> list[str]:
  """Note what a sweep is of; the machines that it ran on, this one added if it is to run here.

  Raises:
    ConfigError: see `sweep`.
  """
  path = workdir / _ABOUT
  before: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
  finished = (results.done(path.parent) for path in workdir.glob('*/*/*/train_result.json'))
  if before and before['overrides'] != list(overrides) and any(finished):
    raise ConfigError(
      f'{workdir} holds a sweep with the overrides {before["overrides"]}, not {list(overrides)}.',
      key='workdir',
      value=workdir,
      hint=('Name another ', Setting('workdir'), '.'),
    )
  known: list[str] = before.get('machines', [])
  if here:
    known = list(dict.fromkeys([*known, slots.machine()]))
    workdir.mkdir(parents=True, exist_ok=True)
    files.write_json(path, {'overrides': list(overrides), 'machines': known})
  return known
