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
from typing import NoReturn

import jax
from jax.experimental import multihost_utils
import numpy as np

from uadjax.types import Config, ConfigError, Interrupted, UserError

_RANKS = (  # Variables that tell which of how many processes this is.
  ('SLURM_PROCID', 'SLURM_STEP_NUM_TASKS'),
  ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE'),
)
_SHARED = ('checkpoints', 'config.yaml')  # Of a run's folder: what going on with it needs.
# What JAX, gloo and its coordination service say of a process that is gone.
_GONE = re.compile(
  r'closed by peer|Connection reset|Broken pipe|[Cc]oordination|heartbeat|DEADLINE_EXCEEDED'
  r'|UNAVAILABLE|[Tt]imed out|Gloo'
)


class Lost(UserError):
  """Another process of this run ended, or cannot be reached."""


def join(options: Config) -> None:
  """Become one of several processes, if there are several; before JAX computes anything.

  Args:
    options: `coordinator`: HOST:PORT of the first process, with `count` and `index`; 'jax' lets JAX
      find out, 'auto' does where SLURM, Open MPI or a TPU pod has started several; 'none' never.

  Raises:
    ConfigError: only some of these are given.
    Lost: the others do not come within `wait_s`.
  """
  how = options.coordinator
  if jax.distributed.is_initialized():
    return
  if how == 'none' or (how == 'auto' and not _started_together()):
    return
  known = {}
  if how not in ('auto', 'jax'):
    count, index = options.count, options.index
    if ':' not in how or not 0 <= index < count:
      raise ConfigError(
        f'hosts.coordinator={how!r} must be HOST:PORT of the first process, auto, jax or none, '
        f'with hosts.count (got {count}) processes, of which this is hosts.index (got {index}), '
        'from 0.'
      )
    known = {'coordinator_address': how, 'num_processes': count, 'process_id': index}
  try:
    jax.distributed.initialize(
      **known,
      initialization_timeout=options.wait_s,
      heartbeat_timeout_seconds=options.heartbeat_s,
    )
  except RuntimeError as error:
    raise Lost(
      f'The processes of this run did not meet within hosts.wait_s={options.wait_s} s at {how}: '
      f'{str(error).splitlines()[0]}. Start all of them, with the same coordinator.'
    ) from None


def several() -> bool:
  """Whether there are others."""
  # Asking JAX alone would start its devices, even to say that a flag is misspelled.
  return jax.distributed.is_initialized() and jax.process_count() > 1


def share() -> tuple[int, int]:
  """Which share of every batch this process reads, and of how many; meshes have as many of each."""
  return jax.process_index(), jax.process_count()


def part(told: str) -> tuple[int, int]:
  """Which part of work that can be cut is this process's, and of how many: I/N, from 0, or auto.

  auto is what SLURM, Open MPI or a TPU pod says, whether or not the processes are one run.

  Raises:
    ConfigError: it is neither.
  """
  if told == 'auto':
    for index, count in _RANKS:
      if os.environ.get(index, '').isdigit() and os.environ.get(count, '').isdigit():
        return int(os.environ[index]), int(os.environ[count])
    return share()
  found = re.fullmatch(r'(\d+)/(\d+)', told)
  index, count = map(int, found.groups()) if found else (0, 0)
  if not index < count:
    raise ConfigError(
      f'A share must be auto, or I/N with I from 0 to N - 1, such as 0/4; got {told!r}.'
    )
  return index, count


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


def leave(status: int) -> NoReturn:
  """End at once: who waits for others to end properly may wait for those that wait for it."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def _started_together() -> bool:
  """Whether something has started several processes as one run."""
  counts = (os.environ.get(name, '') for _, name in _RANKS)
  if any(count.isdigit() and int(count) > 1 for count in counts):
    return True
  on_tpu = any(Path(place).exists() for place in ('/dev/accel0', '/dev/vfio/0'))
  return on_tpu and importlib.util.find_spec('libtpu') is not None
