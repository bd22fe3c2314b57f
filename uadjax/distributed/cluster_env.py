"""Process counts, ranks and GPUs as reported by SLURM, Open MPI and TPU pods.

`jax.distributed.initialize` detects these systems itself. This module has what it gets wrong:

- It does not detect Open MPI 5: https://github.com/jax-ml/jax/issues/14576
- It hides all GPUs but the first if there is one process per host:
  https://github.com/jax-ml/jax/issues/16788
- It looks for a GPU that is not visible if each process sees only its own:
  https://github.com/jax-ml/jax/issues/23452
- It derives the coordinator's port from the ID of the SLURM job alone, so that steps collide:
  https://github.com/jax-ml/jax/blob/main/jax/_src/clusters/slurm_cluster.py

Besides, JAX cannot tell whether there are several processes without joining them.
"""

import importlib.util
import os
from pathlib import Path
import re
from typing import NamedTuple

# Each launcher's variables for the number of processes, the rank, the rank on the host, and the
# number of processes per host, such as 2(x3),1.
_OPEN_MPI_VARIABLES = tuple(
  f'OMPI_COMM_WORLD_{name}' for name in ('SIZE', 'RANK', 'LOCAL_RANK', 'LOCAL_SIZE')
)
_SLURM_VARIABLES = (
  'SLURM_STEP_NUM_TASKS', 'SLURM_PROCID', 'SLURM_LOCALID', 'SLURM_STEP_TASKS_PER_NODE',
)  # fmt: skip
_OPEN_MPI_4_URI_VARIABLE = 'OMPI_MCA_orte_hnp_uri'
_FIRST_PORT, _NUM_PORTS = 61440, 4096  # As JAX has them.


class LaunchInfo(NamedTuple):
  """Place of this process among the processes that SLURM or Open MPI started as one run.

  Attributes:
    size: number of processes.
    rank: index of this process.
    local_rank: index of this process among those on its host.
    max_processes_per_host: largest number of processes on any host.
    is_slurm: whether SLURM started them; otherwise Open MPI did.
  """

  size: int
  rank: int
  local_rank: int
  max_processes_per_host: int
  is_slurm: bool


def launch_info() -> LaunchInfo | None:
  """Return what SLURM or Open MPI reports, or None if it did not start several processes."""
  # Open MPI comes first: if SLURM started Open MPI, SLURM's variables describe Open MPI's daemons.
  variables = _OPEN_MPI_VARIABLES if _OPEN_MPI_VARIABLES[0] in os.environ else _SLURM_VARIABLES
  *numbers, per_host = (os.environ.get(name, '') for name in variables)
  if not all(number.isdigit() for number in numbers) or int(numbers[0]) < 2:
    return None
  size, rank, local_rank = map(int, numbers)
  max_per_host = max(map(int, re.findall(r'(?:^|,)(\d+)', per_host)), default=1)
  return LaunchInfo(size, rank, local_rank, max_per_host, variables is _SLURM_VARIABLES)


def is_detected_by_jax(launch: LaunchInfo) -> bool:
  """Return whether JAX detects the coordinator itself; it cannot under Open MPI 5."""
  return launch.is_slurm or _OPEN_MPI_4_URI_VARIABLE in os.environ


def is_tpu_host() -> bool:
  """Return whether this host has TPUs, alone or as part of a pod."""
  has_device_file = any(Path(name).exists() for name in ('/dev/accel0', '/dev/vfio/0'))
  return has_device_file and importlib.util.find_spec('libtpu') is not None


def local_gpu_ids(launch: LaunchInfo | None) -> list[int] | None:
  """Return the GPUs of this process, as `local_device_ids` of `jax.distributed.initialize`.

  As in JAX, each process that SLURM or Open MPI started gets the GPU of its local rank, unless it
  is the only one on its host or sees only its own GPUs.

  Returns:
    None for JAX's default, an empty list for all visible GPUs, otherwise the local rank.
  """
  if launch is None or 'JAX_LOCAL_DEVICE_IDS' in os.environ:
    return None
  visible_gpus = os.environ.get('CUDA_VISIBLE_DEVICES')
  max_per_host = launch.max_processes_per_host
  sees_own_only = visible_gpus is not None and len(visible_gpus.split(',')) < max_per_host
  return [] if max_per_host == 1 or sees_own_only else [launch.local_rank]


def set_step_port() -> None:
  """Set a separate coordinator port for each step of a SLURM job, unless one is set."""
  job, step = (os.environ.get(name, '') for name in ('SLURM_JOB_ID', 'SLURM_STEP_ID'))
  if job.isdigit() and step.isdigit():
    # 1009 is a prime, so that steps of neighboring jobs, which may share a host, differ as well.
    port = _FIRST_PORT + (int(job) + 1009 * int(step)) % _NUM_PORTS
    os.environ.setdefault('JAX_COORDINATOR_PORT', str(port))
