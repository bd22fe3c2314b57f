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

_SHARED_FILES = ('checkpoints', 'config.yaml')  # Of a run's folder: what going on with it needs.
# What JAX, gloo and its coordination service say of a process that is gone.
_LOST_PROCESS_PATTERN = re.compile(
  r'closed by peer|Connection reset|Broken pipe|[Cc]oordination|heartbeat|DEADLINE_EXCEEDED'
  r'|UNAVAILABLE|[Tt]imed out|Gloo'
)
_LOST_KEY, _HEARTBEAT_KEY = 'uadjax/lost', 'uadjax/alive'  # What processes tell each other under.
_HEARTBEAT_TIMEOUT_FACTOR = 0.6  # Of JAX's.
_LOST_PROCESS_MESSAGE = (
  'A process of this run is gone, or cannot be reached; its own log has why.{}'
)
_RESTART_HINT = (
  'Start all again, on as many hosts as there are; ',
  Setting('fit.resume', 'latest'),
  ' goes on with STFPM where it was saved.',
)
_EXITING = threading.Event()
_BARRIER_COUNTER = (
  itertools.count()
)  # All processes meet equally often, each time under another name.
_EXTRA_INITIALIZATION_S = 60  # That JAX waits for others than is said.
_FIRST_PROCESS_EXIT_DELAY_S = (
  5.0  # That the first process leaves after others, who may still close files,
)
_LOST_EXIT_DELAY_S, _FIRST_PROCESS_LOST_EXIT_DELAY_S = (
  1.0,
  3.0,
)  # and of a lost one: before JAX hears of it, and aborts all.
_NO_COORDINATOR_MESSAGE = (
  'JAX cannot find the first process of this run (of Open MPI it knows version 4 alone{}).'
)
_COORDINATOR_HINT = (
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


class ProcessLost(UserError):
  """Another process of this run ended, or cannot be reached."""


FailureCallback = Callable[[ProcessLost, bool], None]


def join(options: Config, on_failure: FailureCallback | None = None) -> None:
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
  coordinator = options.coordinator
  if jax.distributed.is_initialized():
    return
  launch = cluster_env.launch_info()
  if coordinator == 'none' or (coordinator == 'auto' and not (launch or cluster_env.is_tpu_host())):
    return
  initialize_arguments = {}
  if coordinator not in ('auto', 'jax'):
    num_processes, process_index = options.count, options.index
    if launch and (num_processes, process_index) == (0, -1):
      num_processes, process_index = launch.size, launch.rank
    if not re.fullmatch(r'.+:\d+', coordinator) or not 0 <= process_index < num_processes:
      raise ConfigError(
        f'hosts.coordinator={coordinator!r} must be HOST:PORT of the first process, auto, jax or none, '
        f'with hosts.count (got {num_processes}) processes, of which this is hosts.index (got {process_index}), '
        'from 0.'
      )
    initialize_arguments = {
      'coordinator_address': coordinator,
      'num_processes': num_processes,
      'process_id': process_index,
    }
  elif launch and not cluster_env.is_detected_by_jax(launch):  # It would ask SLURM, where that is.
    raise ConfigError(
      _NO_COORDINATOR_MESSAGE.format(''), key='hosts.coordinator', hint=_COORDINATOR_HINT
    )
  elif launch and launch.is_slurm:
    cluster_env.set_step_port()
  timeout_error = ProcessLost(
    f'The processes of this run did not meet within hosts.wait_s={options.wait_s} s '
    f'(hosts.coordinator={coordinator}). Start all of them, with the same coordinator.'
  )
  # JAX would abort with a dump of its stack, which cannot be caught; so it is given longer.
  timer = threading.Timer(options.wait_s, _abort, [on_failure, timeout_error, True])
  timer.daemon = True
  timer.start()
  try:
    jax.distributed.initialize(
      **initialize_arguments,
      local_device_ids=cluster_env.local_gpu_ids(launch),
      initialization_timeout=options.wait_s + _EXTRA_INITIALIZATION_S,
      heartbeat_timeout_seconds=options.heartbeat_s,
    )
  except RuntimeError as error:
    raise ProcessLost(f'{timeout_error} ({str(error).splitlines()[0]})') from None
  except ValueError as error:
    message = _NO_COORDINATOR_MESSAGE.format(f'; it says: {error}')
    raise ConfigError(message, key='hosts.coordinator', hint=_COORDINATOR_HINT) from None
  finally:
    timer.cancel()
  if jax.distributed.is_initialized():
    _monitor_heartbeats(on_failure, options.heartbeat_s)


def is_multiprocess() -> bool:
  """Whether there are others."""
  # Asking JAX alone would start its devices, even to say that a flag is misspelled.
  return jax.distributed.is_initialized() and jax.process_count() > 1


def index_and_count() -> tuple[int, int]:
  """Which share of every batch this process reads, and of how many; meshes have as many of each."""
  return jax.process_index(), jax.process_count()


def resolve_shard(shard: str, may_ask_jax: bool = True) -> tuple[int, int]:
  """Which part of work that can be cut is this process's, and of how many: I/N, from 0, or auto.

  Args:
    told: auto is what SLURM, Open MPI or a TPU pod says, whether or not the processes are one run.
    asking: whether JAX may be asked on a host of TPUs; it then has them, and no other process.

  Raises:
    ConfigError: it is neither.
  """
  if shard == 'auto':
    launch = cluster_env.launch_info()
    if launch:
      return launch.rank, launch.size
    # Else there is nobody to ask, and asking would take the memory of all GPUs.
    use_jax = jax.distributed.is_initialized() or (may_ask_jax and cluster_env.is_tpu_host())
    return index_and_count() if use_jax else (0, 1)
  match = re.fullmatch(r'(\d+)/(\d+)', shard)
  shard_index, num_shards = map(int, match.groups()) if match else (0, 0)
  if not shard_index < num_shards:
    raise ConfigError(
      f'A share must be auto, or I/N with I from 0 to N - 1, such as 0/4; got {shard!r}.'
    )
  return shard_index, num_shards


def barrier(name: str, wait_s: int) -> None:
  """Wait until all processes have come here, which takes some longer than others, but not for ever.

  What computes together waits for all as it is, and without a limit: of a process that only hangs,
  as with a file system that does not answer, the others would never know.

  Raises:
    Lost: some have not come within `wait_s`.
  """
  if not is_multiprocess():
    return
  from orbax.checkpoint import multihost  # JAX's own barrier knows no limit.

  key = f'uadjax {next(_BARRIER_COUNTER)} {name}'
  try:
    multihost.sync_global_processes(key, timeout=wait_s, processes={*range(jax.process_count())})
  except jax.errors.JaxRuntimeError as error:
    raise ProcessLost(
      f'Not all processes of this run have come to {name} within hosts.wait_s={wait_s} s of each '
      f'other; see their logs, and start all again. ({str(error).splitlines()[0][:120]})'
    ) from None


def describe_process() -> str:
  """Of several processes, which this is, for the log."""
  if not is_multiprocess():
    return ''
  return f'; this is process {jax.process_index()}, and there are {jax.process_count()}'


def any_process(flag: bool) -> bool:
  """Whether it is so for any process; all must ask. Clocks and signals are each one's own."""
  return (
    bool(multihost_utils.process_allgather(np.asarray(flag)).any()) if is_multiprocess() else flag
  )


@contextlib.contextmanager
def process_workdir(workdir: Path) -> Iterator[Path]:
  """The run's folder; for all processes but the first one of their own, that vanishes."""
  if not is_multiprocess() or jax.process_index() == 0:
    yield workdir
    return
  with tempfile.TemporaryDirectory(prefix='uadjax-process-') as name:
    workdir.mkdir(parents=True, exist_ok=True)
    (Path(name) / _SHARED_FILES[0]).symlink_to((workdir / _SHARED_FILES[0]).resolve())
    if (workdir / _SHARED_FILES[1]).is_file():
      shutil.copy(workdir / _SHARED_FILES[1], name)
    yield Path(name)


def explain(error: Exception | Interrupted) -> Exception | Interrupted:
  """The error; of one that only says that another process is gone, what to do about it."""
  if (
    not is_multiprocess()
    or isinstance(error, UserError)
    or not _LOST_PROCESS_PATTERN.search(str(error))
  ):
    return error
  return ProcessLost(
    _LOST_PROCESS_MESSAGE.format(f' ({str(error).splitlines()[0][:120]})'), hint=_RESTART_HINT
  )


def exit_process(error: BaseException) -> NoReturn:
  """End at once: who waits for others to end properly may wait for those that wait for it.

  Of a process that is lost all are told by who first sees it: the others may wait for one that is
  still there, and would wait on. The first process leaves last, for once it is gone JAX aborts the
  others, who could not say why.
  """
  _EXITING.set()
  if is_process_lost := isinstance(error, ProcessLost):
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      _coordination_client().key_value_set(_LOST_KEY, error.message, allow_overwrite=True)
  if jax.process_index() == 0:
    time.sleep(_FIRST_PROCESS_LOST_EXIT_DELAY_S if is_process_lost else _FIRST_PROCESS_EXIT_DELAY_S)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(1)


def _monitor_heartbeats(on_failure: FailureCallback | None, heartbeat_s: float) -> None:
  """End when a process is lost, in a thread: what computes may not hear of it.

  Who sees that another is lost tells all. And all hear each other's hearts beat, a little less
  patiently than JAX, which then aborts everyone with a dump of its stack.
  """
  client, index = _coordination_client(), jax.process_index()
  last_heartbeats: dict[str, tuple[str, float]] = {}

  def monitor() -> None:
    while not _EXITING.is_set():
      with contextlib.suppress(jax.errors.JaxRuntimeError):  # Nothing yet.
        message = client.blocking_key_value_get(_LOST_KEY, 1000)
        # Who sees it, too, says so himself; and the first is the last here as well.
        if not _EXITING.wait(_LOST_EXIT_DELAY_S if index else _FIRST_PROCESS_LOST_EXIT_DELAY_S):
          _abort(on_failure, ProcessLost(message, hint=_RESTART_HINT), index == 0)
        return
      with contextlib.suppress(jax.errors.JaxRuntimeError):
        client.key_value_set(
          f'{_HEARTBEAT_KEY}/{index}', str(time.monotonic()), allow_overwrite=True
        )
        heartbeats = client.key_value_dir_get(_HEARTBEAT_KEY)
        if stale_index := _stale_process(
          dict(heartbeats),
          last_heartbeats,
          time.monotonic(),
          _HEARTBEAT_TIMEOUT_FACTOR * heartbeat_s,
        ):
          client.key_value_set(
            _LOST_KEY,
            _LOST_PROCESS_MESSAGE.format(f' (Of process {stale_index} nothing is heard.)'),
            allow_overwrite=True,
          )

  def stop_monitor() -> None:
    _EXITING.set()
    thread.join()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      client.key_value_delete(f'{_HEARTBEAT_KEY}/{index}')  # Its silence means nothing now.

  thread = threading.Thread(target=monitor, name='uadjax-listen', daemon=True)
  thread.start()
  atexit.register(stop_monitor)  # Before JAX takes its client away.


def _stale_process(
  heartbeats: Mapping[str, str],
  last_heartbeats: dict[str, tuple[str, float]],
  now: float,
  timeout_s: float,
) -> str:
  """Whose heart has not beaten for so many seconds, '' for nobody's; notes in `heard` whose has."""
  stale_index = ''
  for name, heartbeat in heartbeats.items():
    if name not in last_heartbeats or last_heartbeats[name][0] != heartbeat:
      last_heartbeats[name] = heartbeat, now
    elif now - last_heartbeats[name][1] > timeout_s:
      stale_index = name.rpartition('/')[2]
  return stale_index


def _coordination_client() -> Any:
  """What processes tell each other by, beside what they compute."""
  from orbax.checkpoint import multihost

  return multihost.get_jax_distributed_client()


def _abort(on_failure: FailureCallback | None, error: ProcessLost, owns_workdir: bool) -> NoReturn:
  """Say so and end; of JAX nothing may be asked while it waits."""
  if on_failure:
    on_failure(error, owns_workdir)
  else:
    print(f'{type(error).__name__}: {error}', file=sys.stderr)
  sys.stderr.flush()
  os._exit(1)
