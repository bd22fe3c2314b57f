"""Multi-process runs: joining, barriers, heartbeats, work directories, and loss of a process.

Every process runs the same program. Batches and fitted state are sharded over the devices of all
processes, and every process receives the results, such as scores. Each could therefore write the
whole result, but only the first does. The others write into temporary folders of their own, which
are deleted, and reach the run's checkpoints, which Orbax writes jointly, through a symbolic link.
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
from uadjax.distributed.settings import HostSettings
from uadjax.errors import ConfigError, Interrupted, Setting, UserError

# Resuming a run needs these entries of its work directory.
_SHARED_FILES = ('checkpoints', 'config.yaml')
# Matches errors with which JAX, Gloo and the coordination service report a lost process.
_LOST_PROCESS_PATTERN = re.compile(
  r'closed by peer|Connection reset|Broken pipe|[Cc]oordination|heartbeat|DEADLINE_EXCEEDED'
  r'|UNAVAILABLE|[Tt]imed out|Gloo'
)
_LOST_KEY, _HEARTBEAT_KEY = 'uadjax/lost', 'uadjax/alive'  # Keys in JAX's coordination service.
_HEARTBEAT_TIMEOUT_FACTOR = 0.6  # A fraction of JAX's timeout, so that this check comes first.
_LOST_PROCESS_MESSAGE = (
  'A process of this run ended or cannot be reached; its own log gives the reason.{}'
)
_RESTART_HINT = (
  'Restart all processes, on as many hosts as are available; ',
  Setting('fit.resume', 'latest'),
  ' resumes STFPM from its last checkpoint.',
)
_EXITING = threading.Event()
# Every process passes the same barriers in the same order, so the number makes their names unique.
_BARRIER_COUNTER = itertools.count()
_EXTRA_INITIALIZATION_S = 60  # JAX's own timeout comes this much later than hosts.wait_s.
# The first process exits after the others, which may still be closing files.
_FIRST_PROCESS_EXIT_DELAY_S = 5.0
# After a loss, every process has to exit before JAX notices the loss and aborts it.
_LOST_EXIT_DELAY_S, _FIRST_PROCESS_LOST_EXIT_DELAY_S = 1.0, 3.0
_NO_COORDINATOR_MESSAGE = (
  'JAX cannot detect the first process of this run (it supports Open MPI in version 4 only{}).'
)
_COORDINATOR_HINT = (
  'Pass ',
  Setting('hosts.coordinator', 'HOST:PORT'),
  ', and also ',
  Setting('hosts.count'),
  ' and ',
  Setting('hosts.index'),
  ' if neither srun nor mpirun started the processes; ',
  Setting('hosts.coordinator', 'none'),
  ' makes each process a separate run.',
)


class ProcessLost(UserError):
  """A process of this run that ended or cannot be reached."""


# (error, whether this process owns the work directory) -> None.
FailureCallback = Callable[[ProcessLost, bool], None]


def join(options: HostSettings, on_failure: FailureCallback | None = None) -> None:
  """Join this process to a multi-process run, if there is one, and monitor its heartbeats.

  Must be called before JAX computes anything.

  Args:
    options: settings `hosts` of the config. `coordinator` is HOST:PORT of the first process, with
      `count` and `index` where neither SLURM nor Open MPI sets them; 'jax' lets JAX detect the run,
      'auto' does so where SLURM, Open MPI or a TPU pod started several processes, 'none' never
      joins. `wait_s` limits the wait for the others, `heartbeat_s` is JAX's heartbeat timeout.
    on_failure: callback that reports an error that ends the process without being raised; receives
      the error and whether this process owns the work directory.

  Raises:
    ConfigError: `coordinator`, `count` and `index` are inconsistent, or JAX cannot detect the run.
    ProcessLost: the other processes do not connect within `wait_s`.
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
        f'The coordinator {coordinator!r} must be auto, jax, none, or HOST:PORT of the first '
        f'process, which needs a number of processes (got {num_processes}) and an index from 0 '
        f'(got {process_index}).',
        key='hosts.coordinator',
        value=coordinator,
        hint=('Set ', Setting('hosts.count'), ' and ', Setting('hosts.index'), '.'),
      )
    initialize_arguments = {
      'coordinator_address': coordinator,
      'num_processes': num_processes,
      'process_id': process_index,
    }
  elif launch and not cluster_env.is_detected_by_jax(launch):
    # Under SLURM, JAX would read SLURM's variables, which describe Open MPI's daemons.
    raise ConfigError(
      _NO_COORDINATOR_MESSAGE.format(''), key='hosts.coordinator', hint=_COORDINATOR_HINT
    )
  elif launch and launch.is_slurm:
    cluster_env.set_step_port()
  timeout_error = ProcessLost(
    f'The processes of this run did not connect within hosts.wait_s={options.wait_s} s '
    f'(hosts.coordinator={coordinator}). Start all of them, with the same coordinator.'
  )
  # JAX's own timeout is longer, because JAX then aborts with a stack dump that cannot be caught.
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
    message = _NO_COORDINATOR_MESSAGE.format(f'; JAX reports: {error}')
    raise ConfigError(message, key='hosts.coordinator', hint=_COORDINATOR_HINT) from None
  finally:
    timer.cancel()
  if jax.distributed.is_initialized():
    _monitor_heartbeats(on_failure, options.heartbeat_s)


def is_multiprocess() -> bool:
  """Return whether this process is one of several that form a run."""
  # `jax.process_count` alone would initialize the devices, even to report a misspelled flag.
  return jax.distributed.is_initialized() and jax.process_count() > 1


def index_and_count() -> tuple[int, int]:
  """Return the index of this process and the number of processes.

  Each process reads this share of every batch; the shares are equal, because a mesh has the same
  number of devices from each process.
  """
  return jax.process_index(), jax.process_count()


def resolve_shard(shard: str, may_ask_jax: bool = True) -> tuple[int, int]:
  """Return the index and the number of shards of independent work, such as files to score.

  Args:
    shard: I/N with I from 0 to N - 1; or 'auto' for what SLURM, Open MPI or a TPU pod reports,
      whether or not the processes form one run.
    may_ask_jax: whether to query JAX on a TPU host, which reserves the TPUs for this process.

  Raises:
    ConfigError: `shard` is malformed.
  """
  if shard == 'auto':
    launch = cluster_env.launch_info()
    if launch:
      return launch.rank, launch.size
    # Elsewhere JAX knows of no other process, and a query would reserve the memory of all GPUs.
    use_jax = jax.distributed.is_initialized() or (may_ask_jax and cluster_env.is_tpu_host())
    return index_and_count() if use_jax else (0, 1)
  match = re.fullmatch(r'(\d+)/(\d+)', shard)
  shard_index, num_shards = map(int, match.groups()) if match else (0, 0)
  if not shard_index < num_shards:
    raise ConfigError(
      f'The shard must be auto, or I/N with I from 0 to N - 1, such as 0/4; got {shard!r}.'
    )
  return shard_index, num_shards


def barrier(name: str, wait_s: int) -> None:
  """Wait until every process has reached this barrier, for at most `wait_s` seconds.

  Collective operations wait for all processes without a limit. Without barriers, a hung
  process would go unnoticed, for example one that waits for an unresponsive file system.

  Raises:
    ProcessLost: a process did not reach the barrier within `wait_s`.
  """
  if not is_multiprocess():
    return
  from orbax.checkpoint import multihost  # JAX's own barrier has no timeout.

  key = f'uadjax {next(_BARRIER_COUNTER)} {name}'
  try:
    multihost.sync_global_processes(key, timeout=wait_s, processes={*range(jax.process_count())})
  except jax.errors.JaxRuntimeError as error:
    raise ProcessLost(
      f'Not all processes of this run reached the barrier {name!r} within hosts.wait_s={wait_s} s '
      f'of each other; see their logs, and restart all. ({str(error).splitlines()[0][:120]})'
    ) from None


def describe_process() -> str:
  """Return a suffix for log messages with the index of this process, or '' if it is alone."""
  if not is_multiprocess():
    return ''
  return f'; process {jax.process_index()} (of {jax.process_count()}, counted from 0)'


def any_process(flag: bool) -> bool:
  """Return whether `flag` is true on any process; every process must call this.

  Use it for decisions that depend on clocks or signals, which differ between processes.
  """
  return (
    bool(multihost_utils.process_allgather(np.asarray(flag)).any()) if is_multiprocess() else flag
  )


@contextlib.contextmanager
def process_workdir(workdir: Path) -> Iterator[Path]:
  """Yield the work directory on the first process, and a temporary one on the others.

  The temporary directory links to the run's checkpoints, has a copy of its config, and is deleted.
  """
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
  """Return the error, or a ProcessLost with a hint if it is a symptom of a lost process."""
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
  """End this process at once, without waiting for the other processes.

  An orderly exit could deadlock, because processes would wait for each other. The process that
  notices a loss first publishes it, because others may be waiting for a process that still runs.
  The first process exits last: once it is gone, JAX aborts the others, which could not report why.
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
  """Start a thread that ends this process when another one is lost.

  The main thread may be blocked in a computation that never returns. The process that notices a
  loss publishes it to all. Every process checks the heartbeats of the others, with a shorter
  timeout than JAX, which would abort every process with a stack dump.
  """
  client, index = _coordination_client(), jax.process_index()
  timeout_s = _HEARTBEAT_TIMEOUT_FACTOR * heartbeat_s
  last_heartbeats: dict[str, tuple[str, float]] = {}

  def monitor() -> None:
    while not _EXITING.is_set():
      with contextlib.suppress(jax.errors.JaxRuntimeError):  # Raised while no loss is published.
        message = client.blocking_key_value_get(_LOST_KEY, 1000)
        # A process that notices the loss itself reports it during the delay. The first exits last.
        if not _EXITING.wait(_LOST_EXIT_DELAY_S if index else _FIRST_PROCESS_LOST_EXIT_DELAY_S):
          _abort(on_failure, ProcessLost(message, hint=_RESTART_HINT), index == 0)
        return
      with contextlib.suppress(jax.errors.JaxRuntimeError):
        client.key_value_set(
          f'{_HEARTBEAT_KEY}/{index}', str(time.monotonic()), allow_overwrite=True
        )
        heartbeats = client.key_value_dir_get(_HEARTBEAT_KEY)
        if stale_index := _stale_process(
          dict(heartbeats), last_heartbeats, time.monotonic(), timeout_s
        ):
          reason = f' (No heartbeat from process {stale_index} for {timeout_s:g} s.)'
          client.key_value_set(
            _LOST_KEY, _LOST_PROCESS_MESSAGE.format(reason), allow_overwrite=True
          )

  def stop_monitor() -> None:
    _EXITING.set()
    thread.join()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      client.key_value_delete(f'{_HEARTBEAT_KEY}/{index}')  # Without a key it cannot look lost.

  thread = threading.Thread(target=monitor, name='uadjax-listen', daemon=True)
  thread.start()
  atexit.register(stop_monitor)  # Runs before JAX's own exit handler shuts the client down.


def _stale_process(
  heartbeats: Mapping[str, str],
  last_heartbeats: dict[str, tuple[str, float]],
  now: float,
  timeout_s: float,
) -> str:
  """Return the index of a process without a new heartbeat for `timeout_s`, or '' if all have one.

  Args:
    heartbeats: current heartbeat of each process, by key.
    last_heartbeats: last new heartbeat of each key and when it was seen; updated in place.
    now: current time in seconds.
    timeout_s: longest time without a new heartbeat, in seconds.
  """
  stale_index = ''
  for name, heartbeat in heartbeats.items():
    if name not in last_heartbeats or last_heartbeats[name][0] != heartbeat:
      last_heartbeats[name] = heartbeat, now
    elif now - last_heartbeats[name][1] > timeout_s:
      stale_index = name.rpartition('/')[2]
  return stale_index


def _coordination_client() -> Any:
  """Return the client of JAX's key-value store, by which the processes of a run communicate."""
  from orbax.checkpoint import multihost

  return multihost.get_jax_distributed_client()


def _abort(on_failure: FailureCallback | None, error: ProcessLost, owns_workdir: bool) -> NoReturn:
  """Report the error and end the process, without calling JAX, which may be blocked."""
  if on_failure:
    on_failure(error, owns_workdir)
  else:
    print(f'{type(error).__name__}: {error}', file=sys.stderr)
  sys.stderr.flush()
  os._exit(1)
