"""Many processes as one run: joining, whose files count, and what is said when one is lost.

Every process runs the same program. Batches and what is learned are split over the devices of all;
what is computed from them, such as scores, all processes know. So each could write the whole
result, and one does: the first. The others write into scratch folders of their own, which vanish,
and see the run's checkpoints, which Orbax writes together, through a link.
"""

from collections.abc import Iterator
import contextlib
import importlib.util
import os
from pathlib import Path
import re
import shutil
import sys
import tempfile
import threading
import time
from typing import NamedTuple, NoReturn

import jax
from jax.experimental import multihost_utils
import numpy as np

from uadjax.types import Config, ConfigError, Interrupted, UserError

_SHARED = ('checkpoints', 'config.yaml')  # Of a run's folder: what going on with it needs.
# What JAX, gloo and its coordination service say of a process that is gone.
_GONE = re.compile(
  r'closed by peer|Connection reset|Broken pipe|[Cc]oordination|heartbeat|DEADLINE_EXCEEDED'
  r'|UNAVAILABLE|[Tt]imed out|Gloo'
)
# Of processes that are started together: how many, which this is, which of its host, and how many
# a host has, such as 2(x3),1.
_OPEN_MPI = tuple(
  f'OMPI_COMM_WORLD_{name}' for name in ('SIZE', 'RANK', 'LOCAL_RANK', 'LOCAL_SIZE')
)
_SLURM = 'SLURM_STEP_NUM_TASKS', 'SLURM_PROCID', 'SLURM_LOCALID', 'SLURM_STEP_TASKS_PER_NODE'
_URI = 'OMPI_MCA_orte_hnp_uri'  # By which alone JAX knows Open MPI; version 5 has it no longer.
_PORTS = 61440, 4096  # From which JAX takes one by the number of a job: the first, and how many.
_LONGER_S = 60  # That JAX waits for others than is said.
_LAST_S = 5  # That the first process leaves after others, who may still close files.
_UNKNOWN = (
  'JAX cannot find the first process of this run (of Open MPI it knows version 4 alone). Name it '
  'with --config.hosts.coordinator=HOST:PORT, and where neither srun nor mpirun started the '
  'processes with hosts.count and hosts.index; hosts.coordinator=none makes each a run of its own.'
)


class Lost(UserError):
  """Another process of this run ended, or cannot be reached."""


class Launched(NamedTuple):
  """One of several processes that something has started as one run.

  Attributes:
    size: how many processes.
    rank: which of them this is.
    local: which of those of its host.
    of_host: how many of them a host has at most.
    by_slurm: or else by Open MPI.
  """

  size: int
  rank: int
  local: int
  of_host: int
  by_slurm: bool


def join(options: Config) -> None:
  """Become one of several processes, if there are several; before JAX computes anything.

  Args:
    options: `coordinator`: HOST:PORT of the first process, with `count` and `index` where neither
      SLURM nor Open MPI tells them; 'jax' lets JAX find out, 'auto' does where one of these or a
      TPU pod has started several; 'none' never.

  Raises:
    ConfigError: only some of these are given, or JAX cannot find out.
    Lost: the others do not come within `wait_s`.
  """
  how = options.coordinator
  if jax.distributed.is_initialized():
    return
  launched = _launched()
  if how == 'none' or (how == 'auto' and not (launched or _on_tpu())):
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
  elif launched and launched.by_slurm:
    _port_of_step()
  elif launched and _URI not in os.environ:  # JAX would ask SLURM, where that is.
    raise ConfigError(_UNKNOWN)
  late = Lost(
    f'The processes of this run did not meet within hosts.wait_s={options.wait_s} s '
    f'(hosts.coordinator={how}). Start all of them, with the same coordinator.'
  )
  # JAX would abort with a dump of its stack, which cannot be caught; so it is given longer.
  alarm = threading.Timer(options.wait_s, _give_up, [late])
  alarm.daemon = True
  alarm.start()
  try:
    jax.distributed.initialize(
      **known,
      local_device_ids=_devices(launched),
      initialization_timeout=options.wait_s + _LONGER_S,
      heartbeat_timeout_seconds=options.heartbeat_s,
    )
  except RuntimeError as error:
    raise Lost(f'{late} ({str(error).splitlines()[0]})') from None
  except ValueError as error:
    raise ConfigError(f'{_UNKNOWN} ({error})') from None
  finally:
    alarm.cancel()


def several() -> bool:
  """Whether there are others."""
  # Asking JAX alone would start its devices, even to say that a flag is misspelled.
  return jax.distributed.is_initialized() and jax.process_count() > 1


def share() -> tuple[int, int]:
  """Which share of every batch this process reads, and of how many; meshes have as many of each."""
  return jax.process_index(), jax.process_count()


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
  if not several() or isinstance(error, UserError) or not _GONE.search(str(error)):
    return error
  return Lost(
    'A process of this run is gone, or cannot be reached; its own log has why. Start all again, on '
    'as many hosts as there are; --config.fit.resume=latest goes on with STFPM where it was saved. '
    f'({str(error).splitlines()[0][:120]})'
  )


def leave(error: BaseException) -> NoReturn:
  """End at once: who waits for others to end properly may wait for those that wait for it.

  The first a little later, for once it is gone JAX aborts the others, which then cannot say why;
  but not where they still wait for it, to find that another is lost.
  """
  if jax.process_index() == 0 and not isinstance(error, Lost):
    time.sleep(_LAST_S)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(1)


def _give_up(error: Exception) -> NoReturn:
  """Say so and end; of JAX nothing may be asked while it waits."""
  print(f'{type(error).__name__}: {error}', file=sys.stderr, flush=True)
  os._exit(1)


def _launched() -> Launched | None:
  """What SLURM or Open MPI says of the processes that it has started, if they are several."""
  # Open MPI first: SLURM may have started it, whose numbers are then of its daemons.
  names = _OPEN_MPI if _OPEN_MPI[0] in os.environ else _SLURM
  *numbers, of_hosts = (os.environ.get(name, '') for name in names)
  if not all(number.isdigit() for number in numbers):
    return None
  size, rank, local = map(int, numbers)
  of_host = max(map(int, re.findall(r'(?:^|,)(\d+)', of_hosts)), default=1)
  return Launched(size, rank, local, of_host, names is _SLURM) if size > 1 else None


def _on_tpu() -> bool:
  """Whether this is a host of TPUs, perhaps one of several."""
  there = any(Path(place).exists() for place in ('/dev/accel0', '/dev/vfio/0'))
  return there and importlib.util.find_spec('libtpu') is not None


def _devices(launched: Launched | None) -> list[int] | None:
  """The GPUs of this process, for JAX; an empty list means all that it sees.

  One for each process that SLURM or Open MPI has started, as JAX has it, but not where a host has
  one process, of which JAX would hide all GPUs but the first, or where each process sees only its
  own, of which JAX would look for another.
  """
  if launched is None or 'JAX_LOCAL_DEVICE_IDS' in os.environ:
    return None
  seen = os.environ.get('CUDA_VISIBLE_DEVICES')
  own = seen is not None and len(seen.split(',')) < launched.of_host
  return [] if launched.of_host == 1 or own else [launched.local]


def _port_of_step() -> None:
  """Give every step of a SLURM job a port of its own; JAX goes by the job, and steps collide."""
  job, step = (os.environ.get(name, '') for name in ('SLURM_JOB_ID', 'SLURM_STEP_ID'))
  if job.isdigit() and step.isdigit():
    first, count = _PORTS
    # A prime, so that steps of neighboring jobs, which may share a host, differ as well.
    port = first + (int(job) + 1009 * int(step)) % count
    os.environ.setdefault('JAX_COORDINATOR_PORT', str(port))
