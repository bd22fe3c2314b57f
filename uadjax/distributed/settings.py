"""Settings of devices and processes: the sections `mesh` and `hosts` of a run."""

import dataclasses
import re

from uadjax.config import field
from uadjax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class MeshSettings:
  """Section `mesh`: the devices that share the work."""

  data: int = field(-1, 'Number of devices that share a batch; -1 for all.', minimum=-1)
  shard_state: str = field(
    'auto',
    'Whether to shard the fitted state; auto: over devices with separate memory.',
    choices=('auto', 'always', 'never'),
  )


def _check_coordinator(text: str) -> None:
  if text not in ('auto', 'jax', 'none') and not re.fullmatch(r'.+:\d+', text):
    allowed = 'auto, jax, none, or HOST:PORT of the first process'
    raise ConfigError(f'hosts.coordinator must be {allowed}; got {text!r}.')


@dataclasses.dataclass(frozen=True)
class HostSettings:
  """Section `hosts`: the processes of a run."""

  coordinator: str = field(
    'auto', 'auto, jax, none, or HOST:PORT of the first process.', check=_check_coordinator
  )
  count: int = field(0, 'Number of processes, for HOST:PORT.', minimum=0)
  index: int = field(-1, 'Index of this process, for HOST:PORT.', minimum=-1)
  wait_s: int = field(300, 'Timeout of the start and of barriers.', unit='s', above=0)
  heartbeat_s: int = field(
    100, 'A process without a heartbeat for this long counts as lost.', unit='s', above=0
  )
