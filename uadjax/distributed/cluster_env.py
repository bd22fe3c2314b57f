"""What SLURM, Open MPI and TPU pods say of the processes that they have started as one run."""

import importlib.util
import os
from pathlib import Path
import re
from typing import NamedTuple

# Of processes that are started together: how many, which this is, which of its host, and how many
# a host has, such as 2(x3),1.
_OPEN_MPI_VARIABLES = tuple(
  f'OMPI_COMM_WORLD_{name}' for name in ('SIZE', 'RANK', 'LOCAL_RANK', 'LOCAL_SIZE')
)
_SLURM_VARIABLES = (
  'SLURM_STEP_NUM_TASKS',
  'SLURM_PROCID',
  'SLURM_LOCALID',
  'SLURM_STEP_TASKS_PER_NODE',
)
_OPEN_MPI_4_URI_VARIABLE = 'OMPI_MCA_orte_hnp_uri'
_PORT_RANGE = (
  61440,
  4096,
)  # From which JAX takes one by the number of a job: the first, and how many.


class LaunchInfo(NamedTuple):
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
  local_rank: int
  max_processes_per_host: int
  is_slurm: bool


def launch_info() -> LaunchInfo | None:
  """What SLURM or Open MPI says of the processes that it has started, if they are several."""
  # Open MPI first: SLURM may have started it, whose numbers are then of its daemons.
  variables = _OPEN_MPI_VARIABLES if _OPEN_MPI_VARIABLES[0] in os.environ else _SLURM_VARIABLES
  *numbers, processes_per_host = (os.environ.get(name, '') for name in variables)
  if not all(number.isdigit() for number in numbers):
    return None
  size, rank, local_rank = map(int, numbers)
  max_processes_per_host = max(map(int, re.findall(r'(?:^|,)(\d+)', processes_per_host)), default=1)
  return (
    LaunchInfo(size, rank, local_rank, max_processes_per_host, variables is _SLURM_VARIABLES)
    if size > 1
    else None
  )


def is_detected_by_jax(launch: LaunchInfo) -> bool:
  """Whether JAX finds the first process by itself: Open MPI 5 has not what it goes by."""
  return launch.is_slurm or _OPEN_MPI_4_URI_VARIABLE in os.environ


def is_tpu_host() -> bool:
  """Whether this is a host of TPUs, perhaps one of several."""
  has_device_file = any(
    Path(device_file).exists() for device_file in ('/dev/accel0', '/dev/vfio/0')
  )
  return has_device_file and importlib.util.find_spec('libtpu') is not None


def local_gpu_ids(launch: LaunchInfo | None) -> list[int] | None:
  """The GPUs of this process, for JAX; an empty list means all that it sees.

  One for each process that SLURM or Open MPI has started, as JAX has it, but not where a host has
  one process, of which JAX would hide all GPUs but the first, or where each process sees only its
  own, of which JAX would look for another.
  """
  if launch is None or 'JAX_LOCAL_DEVICE_IDS' in os.environ:
    return None
  visible_devices = os.environ.get('CUDA_VISIBLE_DEVICES')
  has_exclusive_gpus = (
    visible_devices is not None and len(visible_devices.split(',')) < launch.max_processes_per_host
  )
  return [] if launch.max_processes_per_host == 1 or has_exclusive_gpus else [launch.local_rank]


def set_step_port() -> None:
  """Give every step of a SLURM job a port of its own; JAX goes by the job, and steps collide."""
  job, step = (os.environ.get(name, '') for name in ('SLURM_JOB_ID', 'SLURM_STEP_ID'))
  if job.isdigit() and step.isdigit():
    first_port, num_ports = _PORT_RANGE
    # A prime, so that steps of neighboring jobs, which may share a host, differ as well.
    port = first_port + (int(job) + 1009 * int(step)) % num_ports
    os.environ.setdefault('JAX_COORDINATOR_PORT', str(port))
