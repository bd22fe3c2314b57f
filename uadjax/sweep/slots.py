"""Slots for the runs of a sweep: one run at a time per device, the only device its process sees.

The other devices must be hidden, because JAX reserves most of the memory of every accelerator that
it sees, even if it computes on one only.
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

# Runs in a child process, because a process that asks JAX for devices keeps them until it ends.
_DEVICE_QUERY = """
import sys
from uadjax.distributed import mesh
devices = mesh.select_devices(sys.argv[1])
print(devices[0].platform, *(device.local_hardware_id for device in devices))
"""


class Slot(NamedTuple):
  """Slot that executes one run at a time.

  Attributes:
    name: name of the device, for logs.
    flags: command line flags that select the device.
    environment: environment variables that hide other devices.
    cores: CPU cores that the run may use; empty for all.
  """

  name: str
  flags: tuple[str, ...]
  environment: Mapping[str, str]
  cores: tuple[int, ...] = ()


def device_slots(device: str, jobs: int = 0) -> list[Slot]:
  """Return a slot for each selected device of this host, or `jobs` slots on a CPU.

  Args:
    device: 'auto', 'cpu', 'gpu', 'gpu:0,1' or 'tpu'.
    jobs: number of slots on a CPU, which share its cores; 0 for one slot with all cores.
      Accelerators always have one slot each.

  Raises:
    ConfigError: the device does not exist, or `jobs` does not match the cores or devices.
  """
  query = subprocess.run(
    [sys.executable, '-c', _DEVICE_QUERY, device], capture_output=True, text=True, check=False
  )
  if query.returncode:
    last_line = query.stderr.strip().rpartition('\n')[2]  # Of a traceback: type and message.
    message = re.sub(r'^[\w.]+: ', '', last_line)
    raise ConfigError(message or f'device={device!r} cannot be used.')
  platform_name, *device_ids = query.stdout.split()
  if platform_name == 'cpu':
    return _cpu_slots(jobs or 1)
  if jobs not in (0, len(device_ids)):
    raise ConfigError(
      f'jobs is {jobs}, but {device!r} selects {len(device_ids)} device(s), with one job each; do '
      'not set jobs.'
    )
  return [_accelerator_slot(platform_name, device_id) for device_id in device_ids]


def _cpu_slots(jobs: int) -> list[Slot]:
  core_ids = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else []
  if not 0 < jobs <= threads.num_cores():
    raise ConfigError(f'jobs must be between 0 and {threads.num_cores()} (CPU cores), got {jobs}.')
  flags = ('--config.device=cpu',)
  return [Slot(f'cpu job {job}', flags, {}, tuple(core_ids[job::jobs])) for job in range(jobs)]


def _accelerator_slot(platform_name: str, device_id: str) -> Slot:
  if platform_name == 'tpu':
    # libtpu needs the topology of the visible chips, which is a single chip.
    single_chip_variables = {'TPU_CHIPS_PER_PROCESS_BOUNDS': '1,1,1', 'TPU_PROCESS_BOUNDS': '1,1,1'}
    environment = {'TPU_VISIBLE_CHIPS': device_id, **single_chip_variables}
    return Slot(f'tpu:{device_id}', ('--config.device=tpu',), environment)
  visible = [name for name in os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',') if name]
  environment = {'CUDA_VISIBLE_DEVICES': visible[int(device_id)] if visible else device_id}
  return Slot(f'gpu:{device_id}', ('--config.device=gpu',), environment)


def describe_machine() -> str:
  """Return CPU, date and uadjax version, which tables list for every machine of a sweep."""
  cpu_info = Path('/proc/cpuinfo')
  text = cpu_info.read_text() if cpu_info.is_file() else ''
  match, version = re.search(r'model name\s*: (.+)', text), uadjax.__version__
  model = match[1] if match else platform.machine()
  return f'{os.cpu_count()} cores of {model}, {datetime.date.today()}, uadjax {version}'
