"""Multi-process runs: joining, barriers, loss of a process, and work directories.

Every process runs the same program. Batches and fitted state are sharded over the devices of all
processes, and every process receives the results, such as scores. Each could therefore write the
whole result, but only the first does. The others write into temporary folders of their own, which
are deleted, and reach the run's checkpoints, which Orbax writes jointly, through a symbolic link.

JAX detects lost processes by their heartbeats. By default it then aborts all others with a stack
dump, which no program can replace by a message. So a run sets `jax_enable_recoverability`, and one
thread of each process asks JAX which processes are alive, reports a loss and ends its process:
https://docs.jax.dev/en/latest/fault_tolerance.html
The first process has JAX's coordination service, without which JAX aborts the others. It therefore
leaves last; if it is lost itself, the others end with the stack dump.
"""

from collections.abc import Callable, Iterator
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
from uadjax.errors import ConfigError, EXIT_FAILURE, Interrupted, refuse, Setting, UserError

# JAX has no type for the errors with which it reports a lost process: its collective operations on
# CPUs (Gloo) and its coordination service name themselves in the message. Most are of the first
# type, but a compiled function may also raise its error as a ValueError.
_RUNTIME_ERRORS = (jax.errors.JaxRuntimeError, ValueError)
_LOST_PROCESS_PATTERN = re.compile(r'gloo|coordination|heartbeat', re.IGNORECASE)
# Every process passes the same barriers in the same order, so the number makes their names unique.
_BARRIER_COUNTER = itertools.count()
_EXTRA_INITIALIZATION_S = 60  # JAX's own timeout comes this much later than hosts.wait_s.
_END_TIMEOUT_S = 7 * 24 * 3600  # Processes may score shards of very different lengths.
_leaving = threading.Event()  # This process ends or reports a failure, so its watch must not.
_POLL_INTERVAL_S = 1.0
_REPORT_DELAY_S = 2.0  # The main thread, which knows more, may report a loss during this time.
_EXIT_POLL_INTERVAL_S = 0.1
# A process that has left polls JAX's coordination service for another moment, and JAX aborts it if
# the service ends meanwhile.
_SERVICE_GRACE_S = 2.0


class ProcessLost(UserError):
  """A process of this run that ended or cannot be reached."""


# (error, whether this process owns the work directory) -> None.
FailureCallback = Callable[[ProcessLost, bool], None]


def join(options: HostSettings, on_failure: FailureCallback | None = None) -> None:
  """Join this process to a multi-process run, if there is one, and watch the other processes.

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
  launch = cluster_env.launch_info()
  is_single = options.coordinator == 'auto' and not (launch or cluster_env.is_tpu_host())
  if jax.distributed.is_initialized() or options.coordinator == 'none' or is_single:
    return
  address, count, index = _coordinator(options, launch)
  timeout_error = ProcessLost(
    f'The processes of this run did not connect within hosts.wait_s={options.wait_s} s '
    f'(hosts.coordinator={options.coordinator}). Start all of them, with the same coordinator.'
  )
  # JAX's own timeout is longer, because JAX then aborts with a stack dump that cannot be caught.
  timer = threading.Timer(options.wait_s, _abort, [on_failure, timeout_error])
  timer.daemon = True
  timer.start()
  try:
    jax.config.update('jax_enable_recoverability', True)
    jax.distributed.initialize(
      coordinator_address=address,
      num_processes=count,
      process_id=index,
      local_device_ids=cluster_env.local_gpu_ids(launch),
      initialization_timeout=options.wait_s + _EXTRA_INITIALIZATION_S,
      heartbeat_timeout_seconds=options.heartbeat_s,
    )
  except RuntimeError as error:
    raise ProcessLost(f'{timeout_error} ({str(error).splitlines()[0]})') from None
  except ValueError as error:
    raise _undetected(f'; JAX reports: {error}') from None
  finally:
    timer.cancel()
  if is_multiprocess():  # Initializes the devices, in this thread.
    arguments = {*range(jax.process_count())}, on_failure, options.heartbeat_s
    threading.Thread(target=_watch, args=arguments, name='uadjax-watch', daemon=True).start()


def _coordinator(
  options: HostSettings, launch: cluster_env.LaunchInfo | None
) -> tuple[str | None, int | None, int | None]:
  """Return the coordinator, the number of processes and the index; each None if JAX detects it."""
  if options.coordinator not in ('auto', 'jax'):
    count, index = options.count, options.index
    if launch and (count, index) == (0, -1):
      count, index = launch.size, launch.rank
    if not re.fullmatch(r'.+:\d+', options.coordinator) or not 0 <= index < count:
      allowed = 'auto, jax, none, or HOST:PORT of the first process'
      numbers = f'a number of processes (got {count}) and an index from 0 (got {index})'
      message = f'The coordinator {options.coordinator!r} must be {allowed}, which needs {numbers}.'
      hint = 'Set ', Setting('hosts.count'), ' and ', Setting('hosts.index'), '.'
      refuse('hosts.coordinator', options.coordinator, message, *hint)
    return options.coordinator, count, index
  if launch and not cluster_env.is_detected_by_jax(launch):
    # Under SLURM, JAX would read SLURM's variables, which describe Open MPI's daemons.
    raise _undetected()
  if launch and launch.is_slurm:
    cluster_env.set_step_port()
  return None, None, None


def _undetected(reason: str = '') -> ConfigError:
  problem = 'JAX cannot detect the first process of this run'
  message = f'{problem} (it supports Open MPI in version 4 only{reason}).'
  numbers = Setting('hosts.count'), ' and ', Setting('hosts.index')
  condition = ' if neither srun nor mpirun started the processes; '
  alone = Setting('hosts.coordinator', 'none'), ' makes each process a separate run.'
  address = Setting('hosts.coordinator', 'HOST:PORT')
  hint = 'Pass ', address, ', and also ', *numbers, condition, *alone
  return ConfigError(message, key='hosts.coordinator', hint=hint)


def leave() -> None:
  """Leave the run in an orderly way, when every process has finished.

  Raises:
    ProcessLost: a process was lost before it finished.
  """
  if not is_multiprocess():
    return
  barrier('the end', _END_TIMEOUT_S)
  _leaving.set()
  _outlast_others()
  jax.distributed.shutdown()


def expect_exit() -> None:
  """Stop watching the other processes, after all have agreed to end.

  Otherwise a slow process could report that a faster one, which has ended, is lost.
  """
  _leaving.set()


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
    if launch := cluster_env.launch_info():
      return launch.rank, launch.size
    # Elsewhere JAX knows of no other process, and a query would reserve the memory of all GPUs.
    use_jax = jax.distributed.is_initialized() or (may_ask_jax and cluster_env.is_tpu_host())
    return index_and_count() if use_jax else (0, 1)
  match = re.fullmatch(r'(\d+)/(\d+)', shard)
  index, count = map(int, match.groups()) if match else (0, 0)
  if not index < count:
    allowed = 'auto, or I/N with I from 0 to N - 1, such as 0/4'
    raise ConfigError(f'The shard must be {allowed}; got {shard!r}.')
  return index, count


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
  return bool(largest(int(flag)))


def largest(value: int) -> int:
  """Return the largest value of all processes; every process must call this."""
  if not is_multiprocess():
    return value
  return int(multihost_utils.process_allgather(np.int32(value)).max())


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
    (Path(name) / 'checkpoints').symlink_to((workdir / 'checkpoints').resolve())
    if (config_path := workdir / 'config.yaml').is_file():
      shutil.copy(config_path, name)
    yield Path(name)


def explain(error: Exception | Interrupted) -> Exception | Interrupted:
  """Return the error of a run, or a ProcessLost with a hint if it is how JAX reports a loss.

  The caller reports the error and then calls `exit_process`.
  """
  if not is_multiprocess():
    return error
  _leaving.set()
  is_lost = isinstance(error, _RUNTIME_ERRORS) and _LOST_PROCESS_PATTERN.search(str(error))
  return _lost(str(error).splitlines()[0][:120]) if is_lost else error


def exit_process(status: int = EXIT_FAILURE) -> NoReturn:
  """End this process at once with an exit status, after its failure was reported.

  An orderly exit could deadlock, because processes would wait for each other. The other processes
  notice that this one has left JAX's coordination service. The first waits until they have left,
  which takes `heartbeat_s` if one was killed.
  """
  _leaving.set()
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    _coordination_client().shutdown()
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    _outlast_others()
  _exit(status)


def _outlast_others() -> None:
  """Wait in the first process until the others have left, as they need its service until then."""
  if jax.process_index() != 0:
    return
  try:
    while _live_processes({*range(jax.process_count())}) - {0}:
      time.sleep(_EXIT_POLL_INTERVAL_S)
  finally:
    time.sleep(_SERVICE_GRACE_S)


def _watch(watched: set[int], on_failure: FailureCallback | None, heartbeat_s: float) -> None:
  """End this process when another one is lost, which may block the main thread forever."""
  # An error means that the coordination service is lost; JAX then aborts this process.
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    while not _leaving.wait(_POLL_INTERVAL_S):
      lost = watched - _live_processes(watched)
      if lost and not _leaving.wait(_REPORT_DELAY_S):
        names = ', '.join(map(str, sorted(lost)))
        error = _lost(f'process {names} left or sent no heartbeat for {heartbeat_s:g} s')
        try:
          _report(on_failure, error, jax.process_index() == 0)
        finally:
          exit_process()  # Also if the report fails: the main thread may be blocked.


def _live_processes(watched: set[int]) -> set[int]:
  """Return which of the processes are alive; waits until each of these has called this."""
  return {*_coordination_client().get_live_nodes([*watched])}


def _coordination_client() -> Any:
  """Return the client of JAX's coordination service, for which JAX has no public name."""
  from orbax.checkpoint import multihost

  return multihost.get_jax_distributed_client()


def _lost(reason: str) -> ProcessLost:
  message = 'A process of this run ended or cannot be reached; its own log gives the reason.'
  restart = 'Restart all processes, on as many hosts as are available; '
  hint = restart, Setting('fit.resume', 'latest'), ' resumes STFPM from its last checkpoint.'
  return ProcessLost(f'{message} ({reason})', hint=hint)


def _abort(on_failure: FailureCallback | None, error: ProcessLost) -> NoReturn:
  """Report the error and end the process, without calling JAX, which is blocked."""
  _report(on_failure, error, True)
  _exit()


def _report(on_failure: FailureCallback | None, error: ProcessLost, owns_workdir: bool) -> None:
  if on_failure:
    on_failure(error, owns_workdir)
  else:
    print(f'{type(error).__name__}: {error}', file=sys.stderr)


def _exit(status: int = EXIT_FAILURE) -> NoReturn:
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)
