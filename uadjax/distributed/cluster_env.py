"""What SLURM, Open MPI and TPU pods say of the processes that they have started as one run."""

import importlib.util
import os
from pathlib import Path
import re
from typing import NamedTuple

# Of processes that are started together: how many, which this is, which of its host, and how many
# a host has, such as 2(x3),1.
_OPEN_MPI = tuple(
  f'OMPI_COMM_WORLD_{name}' for name in ('SIZE', 'RANK', 'LOCAL_RANK', 'LOCAL_SIZE')
)
_SLURM = 'SLURM_STEP_NUM_TASKS', 'SLURM_PROCID', 'SLURM_LOCALID', 'SLURM_STEP_TASKS_PER_NODE'
_URI = 'OMPI_MCA_orte_hnp_uri'
_PORTS = 61440, 4096  # From which JAX takes one by the number of a job: the first, and how many.


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


def launched() -> Launched | None:
  """What SLURM or Open MPI says of the processes that it has started, if they are several."""
  # Open MPI first: SLURM may have started it, whose numbers are then of its daemons.
  names = _OPEN_MPI if _OPEN_MPI[0] in os.environ else _SLURM
  *numbers, of_hosts = (os.environ.get(name, '') for name in names)
  if not all(number.isdigit() for number in numbers):
    return None
  size, rank, local = map(int, numbers)
  of_host = max(map(int, re.findall(r'(?:^|,)(\d+)', of_hosts)), default=1)
  return Launched(size, rank, local, of_host, names is _SLURM) if size > 1 else None


def known_to_jax(of: Launched) -> bool:
  """Whether JAX finds the first process by itself: Open MPI 5 has not what it goes by."""
  return of.by_slurm or _URI in os.environ


def on_tpu() -> bool:
  """Whether this is a host of TPUs, perhaps one of several."""
  there = any(Path(place).exists() for place in ('/dev/accel0', '/dev/vfio/0'))
  return there and importlib.util.find_spec('libtpu') is not None


def gpus(of: Launched | None) -> list[int] | None:
  """The GPUs of this process, for JAX; an empty list means all that it sees.

  One for each process that SLURM or Open MPI has started, as JAX has it, but not where a host has
  one process, of which JAX would hide all GPUs but the first, or where each process sees only its
  own, of which JAX would look for another.
  """
  if of is None or 'JAX_LOCAL_DEVICE_IDS' in os.environ:
    return None
  seen = os.environ.get('CUDA_VISIBLE_DEVICES')
  own = seen is not None and len(seen.split(',')) < of.of_host
  return [] if of.of_host == 1 or own else [of.local]


def port_of_step() -> None:
  """Give every step of a SLURM job a port of its own; JAX goes by the job, and steps collide."""
  job, step = (os.environ.get(name, '') for name in ('SLURM_JOB_ID', 'SLURM_STEP_ID'))
  if job.isdigit() and step.isdigit():
    first, count = _PORTS
    # A prime, so that steps of neighboring jobs, which may share a host, differ as well.
    port = first + (int(job) + 1009 * int(step)) % count
    os.environ.setdefault('JAX_COORDINATOR_PORT', str(port))
