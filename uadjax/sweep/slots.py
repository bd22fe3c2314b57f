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
_ASKED = """
import sys
from uadjax.distributed import mesh
from uadjax import errors
try:
  found = mesh.devices(sys.argv[1])
except errors.UserError as error:
  sys.exit(str(error))
print(found[0].platform, *(device.local_hardware_id for device in found))
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


def slots(device: str, jobs: int = 0) -> list[Slot]:
  """One for each device that `auto`, `cpu`, `gpu`, `gpu:0,1` or `tpu` names, here.

  Args:
    device: as of a configuration.
    jobs: on a CPU so many, its cores dealt to them; 0 for one with all of them. Elsewhere each
      device has one.

  Raises:
    ConfigError: there is no such device, or there are too few cores.
  """
  asked = subprocess.run(
    [sys.executable, '-c', _ASKED, device], capture_output=True, text=True, check=False
  )
  if asked.returncode:
    lines = asked.stderr.strip().splitlines()
    raise ConfigError(lines[-1] if lines else f'device={device!r} cannot be used.')
  kind, *numbers = asked.stdout.split()
  if kind == 'cpu':
    return _of_cores(jobs or 1)
  if jobs not in (0, len(numbers)):
    raise ConfigError(
      f'jobs={jobs}, but each of {len(numbers)} devices of {device!r} has one; leave it out.'
    )
  return [_of_device(kind, number) for number in numbers]


def _of_cores(jobs: int) -> list[Slot]:
  has = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else []
  if not 0 < jobs <= threads.cores():
    raise ConfigError(f'jobs={jobs}, but there are {threads.cores()} cores; each needs one.')
  flags = ('--config.device=cpu',)
  return [Slot(f'cpu job {job}', flags, {}, tuple(has[job::jobs])) for job in range(jobs)]


def _of_device(kind: str, number: str) -> Slot:
  if kind == 'tpu':
    # What libtpu wants to be told of a chip that is all there is.
    whole = {'TPU_CHIPS_PER_PROCESS_BOUNDS': '1,1,1', 'TPU_PROCESS_BOUNDS': '1,1,1'}
    return Slot(f'tpu:{number}', ('--config.device=tpu',), {'TPU_VISIBLE_CHIPS': number, **whole})
  seen = [name for name in os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',') if name]
  hidden = {'CUDA_VISIBLE_DEVICES': seen[int(number)] if seen else number}
  return Slot(f'gpu:{number}', ('--config.device=gpu',), hidden)


def machine() -> str:
  """This machine, today: what a table that was taken up again elsewhere must not blur."""
  info = Path('/proc/cpuinfo')
  models = re.findall(r'model name\s*: (.+)', info.read_text()) if info.is_file() else []
  model = models[0] if models else platform.machine()
  version = uadjax.__version__
  return f'{os.cpu_count()} cores of {model}, {datetime.date.today()}, uadjax {version}'
