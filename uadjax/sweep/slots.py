"""Where runs go: one at a time on each device, which is all that its process sees.

JAX takes most of the memory of every accelerator that it sees, so that a process which was only
told to compute on one would keep all others from theirs.
"""

from collections.abc import Mapping
import datetime
import os
from pathlib import Path
import platform
import re
import subprocess
import sys
from typing import NamedTuple

import uadjax
from uadjax.errors import ConfigError
from uadjax.system import threads

# In a process of its own: what asks JAX for its devices keeps them until it ends.
_DEVICE_QUERY = """
import sys
from uadjax.distributed import mesh
from uadjax import errors
try:
  devices = mesh.select_devices(sys.argv[1])
except errors.UserError as error:
  sys.exit(str(error))
print(devices[0].platform, *(device.local_hardware_id for device in devices))
"""


class Slot(NamedTuple):
  """A place for one run at a time.

  Attributes:
    name: of the device.
    flags: of a run there.
    environment: variables that hide other devices.
    cores: of the CPU, which it may use; none for all.
  """

  name: str
  flags: tuple[str, ...]
  environment: Mapping[str, str]
  cores: tuple[int, ...] = ()


def device_slots(device: str, jobs: int = 0) -> list[Slot]:
  """One for each device that `auto`, `cpu`, `gpu`, `gpu:0,1` or `tpu` names, here.

  Args:
    device: as of a configuration.
    jobs: on a CPU so many, its cores dealt to them; 0 for one with all of them. Elsewhere each
      device has one.

  Raises:
    ConfigError: there is no such device, or there are too few cores.
  """
  query = subprocess.run(
    [sys.executable, '-c', _DEVICE_QUERY, device], capture_output=True, text=True, check=False
  )
  if query.returncode:
    lines = query.stderr.strip().splitlines()
    raise ConfigError(lines[-1] if lines else f'device={device!r} cannot be used.')
  platform_name, *device_ids = query.stdout.split()
  if platform_name == 'cpu':
    return _cpu_slots(jobs or 1)
  if jobs not in (0, len(device_ids)):
    raise ConfigError(
      f'jobs={jobs}, but each of {len(device_ids)} devices of {device!r} has one; leave it out.'
    )
  return [_accelerator_slot(platform_name, device_id) for device_id in device_ids]


def _cpu_slots(jobs: int) -> list[Slot]:
  core_ids = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else []
  if not 0 < jobs <= threads.num_cores():
    raise ConfigError(f'jobs={jobs}, but there are {threads.num_cores()} cores; each needs one.')
  flags = ('--config.device=cpu',)
  return [Slot(f'cpu job {job}', flags, {}, tuple(core_ids[job::jobs])) for job in range(jobs)]


def _accelerator_slot(platform_name: str, device_id: str) -> Slot:
  if platform_name == 'tpu':
    # What libtpu wants to be told of a chip that is all there is.
    single_chip_variables = {'TPU_CHIPS_PER_PROCESS_BOUNDS': '1,1,1', 'TPU_PROCESS_BOUNDS': '1,1,1'}
    return Slot(
      f'tpu:{device_id}',
      ('--config.device=tpu',),
      {'TPU_VISIBLE_CHIPS': device_id, **single_chip_variables},
    )
  visible_devices = [name for name in os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',') if name]
  environment = {
    'CUDA_VISIBLE_DEVICES': visible_devices[int(device_id)] if visible_devices else device_id
  }
  return Slot(f'gpu:{device_id}', ('--config.device=gpu',), environment)


def describe_machine() -> str:
  """This machine, today: what a table that was taken up again elsewhere must not blur."""
  cpu_info = Path('/proc/cpuinfo')
  cpu_models = (
    re.findall(r'model name\s*: (.+)', cpu_info.read_text()) if cpu_info.is_file() else []
  )
  cpu_model = cpu_models[0] if cpu_models else platform.machine()
  version = uadjax.__version__
  return f'{os.cpu_count()} cores of {cpu_model}, {datetime.date.today()}, uadjax {version}'
