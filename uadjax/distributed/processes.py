"""Many processes as one run: joining, whose files count, and what is said when one is lost.

Every process runs the same program. Batches and what is learned are split over the devices of all;
what is computed from them, such as scores, all processes know. So each could write the whole
result, and one does: the first. The others write into scratch folders of their own, which vanish,
and see the run's checkpoints, which Orbax writes together, through a link.
"""

import atexit
from collections.abc import Callable, Iterator, Mapping
import contextlib
import itertools
import os
from pathlib import Path
import re
import shutil
import sys
import tempfile
import threading
import time
from typing import Any, NoReturn

import jax
from jax.experimental import multihost_utils
import numpy as np

from uadjax.distributed import cluster_env
from uadjax.errors import ConfigError, Interrupted, Setting, UserError
from uadjax.types import Config

_SHARED = ('checkpoints', 'config.yaml')  # Of a run's folder: what going on with it needs.
# What JAX, gloo and its coordination service say of a process that is gone.
_SIGNS = re.compile(
  r'closed by peer|Connection reset|Broken pipe|[Cc]oordination|heartbeat|DEADLINE_EXCEEDED'
  r'|UNAVAILABLE|[Tt]imed out|Gloo'
)
_LOST, _ALIVE = 'uadjax/lost', 'uadjax/alive'  # What processes tell each other under.
_PATIENCE = 0.6  # Of JAX's.
_GONE = 'A process of this run is gone, or cannot be reached; its own log has why.{}'
_START_AGAIN = (
  'Start all again, on as many hosts as there are; ',
  Setting('fit.resume', 'latest'),
  ' goes on with STFPM where it was saved.',
)
_LEAVING = threading.Event()
_MEETINGS = itertools.count()  # All processes meet equally often, each time under another name.
_LONGER_S = 60  # That JAX waits for others than is said.
_LAST_S = 5.0  # That the first process leaves after others, who may still close files,
_HEARD_S, _LATER_S = 1.0, 3.0  # and of a lost one: before JAX hears of it, and aborts all.
_UNKNOWN = 'JAX cannot find the first process of this run (of Open MPI it knows version 4 alone{}).'
_NAME_IT = (
  'Name it with ',
  Setting('hosts.coordinator', 'HOST:PORT'),
  ', and where neither srun nor mpirun started the processes with ',
  Setting('hosts.count'),
  ' and ',
  Setting('hosts.index'),
  '; ',
  Setting('hosts.coordinator', 'none'),
  ' makes each a run of its own.',
)


class Lost(UserError):
  """Another process of this run ended, or cannot be reached."""


Failed = Callable[[Lost, bool], None]


def join(options: Config, failed: Failed | None = None) -> None:
  """Become one of several processes, if there are several; before JAX computes anything.

  Args:
    options: `coordinator`: HOST:PORT of the first process, with `count` and `index` where neither
      SLURM nor Open MPI tells them; 'jax' lets JAX find out, 'auto' does where one of these or a
      TPU pod has started several; 'none' never.
    failed: (error, whether the run's folder is this process's to write) -> None: tells of an error
      that ends the process without being raised.

  Raises:
    ConfigError: only some of these are given, or JAX cannot find out.
    Lost: the others do not come within `wait_s`.
  """
  how = options.coordinator
  if jax.distributed.is_initialized():
    return
  launched = cluster_env.launched()
  if how == 'none' or (how == 'auto' and not (launched or cluster_env.on_tpu())):
    return
  known = {}
  if how not in ('auto', 'jax'):
    count, index = options.count, options.index
    if launched and (count, index) == (0, -1):
      count, index = launched.size, launched.rank
    if not re.fullmatch(r'.+:\d+', how) or not 0 <= index < count:
      raise ConfigError(
        f'hosts.coordinator={how!r} must be HOST:PORT of the first process, auto, jax or none, '
        f'with hosts.count (got {count}) processes, of which this is hosts.index (got {index}), '
        'from 0.'
      )
    known = {'coordinator_address': how, 'num_processes': count, 'process_id': index}
  elif launched and not cluster_env.known_to_jax(launched):  # It would ask SLURM, where that is.
    raise ConfigError(_UNKNOWN.format(''), key='hosts.coordinator', hint=_NAME_IT)
  elif launched and launched.by_slurm:
    cluster_env.port_of_step()
  late = Lost(
    f'The processes of this run did not meet within hosts.wait_s={options.wait_s} s '
    f'(hosts.coordinator={how}). Start all of them, with the same coordinator.'
  )
  # JAX would abort with a dump of its stack, which cannot be caught; so it is given longer.
  alarm = threading.Timer(options.wait_s, _give_up, [failed, late, True])
  alarm.daemon = True
  alarm.start()
  try:
    jax.distributed.initialize(
      **known,
      local_device_ids=cluster_env.gpus(launched),
      initialization_timeout=options.wait_s + _LONGER_S,
      heartbeat_timeout_seconds=options.heartbeat_s,
    )
  except RuntimeError as error:
    raise Lost(f'{late} ({str(error).splitlines()[0]})') from None
  except ValueError as error:
    problem = _UNKNOWN.format(f'; it says: {error}')
    raise ConfigError(problem, key='hosts.coordinator', hint=_NAME_IT) from None
  finally:
    alarm.cancel()
  if jax.distributed.is_initialized():
    _listen(failed, options.heartbeat_s)


def several() -> bool:
  """Whether there are others."""
  # Asking JAX alone would start its devices, even to say that a flag is misspelled.
  return jax.distributed.is_initialized() and jax.process_count() > 1


def share() -> tuple[int, int]:
  """Which share of every batch this process reads, and of how many; meshes have as many of each."""
  return jax.process_index(), jax.process_count()


def part(told: str, asking: bool = True) -> tuple[int, int]:
  """Which part of work that can be cut is this process's, and of how many: I/N, from 0, or auto.

  Args:
    told: auto is what SLURM, Open MPI or a TPU pod says, whether or not the processes are one run.
    asking: whether JAX may be asked on a host of TPUs; it then has them, and no other process.

  Raises:
    ConfigError: it is neither.
  """
  if told == 'auto':
    launched = cluster_env.launched()
    if launched:
      return launched.rank, launched.size
    # Else there is nobody to ask, and asking would take the memory of all GPUs.
    ask = jax.distributed.is_initialized() or (asking and cluster_env.on_tpu())
    return share() if ask else (0, 1)
  found = re.fullmatch(r'(\d+)/(\d+)', told)
  index, count = map(int, found.groups()) if found else (0, 0)
  if not index < count:
    raise ConfigError(
      f'A share must be auto, or I/N with I from 0 to N - 1, such as 0/4; got {told!r}.'
    )
  return index, count


def meet(where: str, wait_s: int) -> None:
  """Wait until all processes have come here, which takes some longer than others, but not for ever.

  What computes together waits for all as it is, and without a limit: of a process that only hangs,
  as with a file system that does not answer, the others would never know.

  Raises:
    Lost: some have not come within `wait_s`.
  """
  if not several():
    return
  from orbax.checkpoint import multihost  # JAX's own barrier knows no limit.

  key = f'uadjax {next(_MEETINGS)} {where}'
  try:
    multihost.sync_global_processes(key, timeout=wait_s, processes={*range(jax.process_count())})
  except jax.errors.JaxRuntimeError as error:
    raise Lost(
      f'Not all processes of this run have come to {where} within hosts.wait_s={wait_s} s of each '
      f'other; see their logs, and start all again. ({str(error).splitlines()[0][:120]})'
    ) from None


def among() -> str:
  """Of several processes, which this is, for the log."""
  if not several():
    return ''
  return f'; this is process {jax.process_index()}, and there are {jax.process_count()}'


def any_of(flag: bool) -> bool:
  """Whether it is so for any process; all must ask. Clocks and signals are each one's own."""
  return bool(multihost_utils.process_allgather(np.asarray(flag)).any()) if several() else flag


@contextlib.contextmanager
def folder(workdir: Path) -> Iterator[Path]:
  """The run's folder; for all processes but the first one of their own, that vanishes."""
  if not several() or jax.process_index() == 0:
    yield workdir
    return
  with tempfile.TemporaryDirectory(prefix='uadjax-process-') as name:
    workdir.mkdir(parents=True, exist_ok=True)
    (Path(name) / _SHARED[0]).symlink_to((workdir / _SHARED[0]).resolve())
    if (workdir / _SHARED[1]).is_file():
      shutil.copy(workdir / _SHARED[1], name)
    yield Path(name)


def told(error: Exception | Interrupted) -> Exception | Interrupted:
  """The error; of one that only says that another process is gone, what to do about it."""
  if not several() or isinstance(error, UserError) or not _SIGNS.search(str(error)):
    return error
  return Lost(_GONE.format(f' ({str(error).splitlines()[0][:120]})'), hint=_START_AGAIN)


def leave(error: BaseException) -> NoReturn:
  """End at once: who waits for others to end properly may wait for those that wait for it.

  Of a process that is lost all are told by who first sees it: the others may wait for one that is
  still there, and would wait on. The first process leaves last, for once it is gone JAX aborts the
  others, who could not say why.
  """
  _LEAVING.set()
  if lost := isinstance(error, Lost):
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      _client().key_value_set(_LOST, error.message, allow_overwrite=True)
  if jax.process_index() == 0:
    time.sleep(_LATER_S if lost else _LAST_S)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(1)


def _listen(failed: Failed | None, heartbeat_s: float) -> None:
  """End when a process is lost, in a thread: what computes may not hear of it.

  Who sees that another is lost tells all. And all hear each other's hearts beat, a little less
  patiently than JAX, which then aborts everyone with a dump of its stack.
  """
  client, index = _client(), jax.process_index()
  heard: dict[str, tuple[str, float]] = {}

  def wait() -> None:
    while not _LEAVING.is_set():
      with contextlib.suppress(jax.errors.JaxRuntimeError):  # Nothing yet.
        told = client.blocking_key_value_get(_LOST, 1000)
        # Who sees it, too, says so himself; and the first is the last here as well.
        if not _LEAVING.wait(_HEARD_S if index else _LATER_S):
          _give_up(failed, Lost(told, hint=_START_AGAIN), index == 0)
        return
      with contextlib.suppress(jax.errors.JaxRuntimeError):
        client.key_value_set(f'{_ALIVE}/{index}', str(time.monotonic()), allow_overwrite=True)
        beats = client.key_value_dir_get(_ALIVE)
        if silent := _silent(dict(beats), heard, time.monotonic(), _PATIENCE * heartbeat_s):
          client.key_value_set(
            _LOST, _GONE.format(f' (Of process {silent} nothing is heard.)'), allow_overwrite=True
          )

  def end() -> None:
    _LEAVING.set()
    thread.join()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      client.key_value_delete(f'{_ALIVE}/{index}')  # Its silence means nothing now.

  thread = threading.Thread(target=wait, name='uadjax-listen', daemon=True)
  thread.start()
  atexit.register(end)  # Before JAX takes its client away.


def _silent(
  beats: Mapping[str, str], heard: dict[str, tuple[str, float]], now: float, limit: float
) -> str:
  """Whose heart has not beaten for so many seconds, '' for nobody's; notes in `heard` whose has."""
  silent = ''
  for who, beat in beats.items():
    if who not in heard or heard[who][0] != beat:
      heard[who] = beat, now
    elif now - heard[who][1] > limit:
      silent = who.rpartition('/')[2]
  return silent


def _client() -> Any:
  """What processes tell each other by, beside what they compute."""
  from orbax.checkpoint import multihost

  return multihost.get_jax_distributed_client()


def _give_up(failed: Failed | None, error: Lost, ours: bool) -> NoReturn:
  """Say so and end; of JAX nothing may be asked while it waits."""
  if failed:
    failed(error, ours)
  else:
    print(f'{type(error).__name__}: {error}', file=sys.stderr)
  sys.stderr.flush()
  os._exit(1)
