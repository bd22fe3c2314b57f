"""Settings of the service, and their validation."""

from collections.abc import Mapping
import dataclasses
from pathlib import Path

from uadjax import config as configs
from uadjax.config import field
from uadjax.distributed import mesh
from uadjax.errors import ConfigError, MissingDevice
from uadjax.export import runtimes
from uadjax.system import http, logging

# Every size up to the largest is tried at the start, with random images of this number.
_MAX_BATCH = 256


def _check_token(token: str) -> None:
  if token and (not token.isascii() or ' ' in token):
    raise ConfigError('The token must consist of ASCII characters without spaces.')


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of the service.

  Attributes:
    models: model directories by name; the first is the default of requests.
    access: URLs that may be fetched; by default none.
  """

  models: Mapping[str, Path]
  device: str = field(
    'auto', 'auto, cpu, gpu, tpu, or some of several devices: gpu:0,1.', check=mesh.select_devices
  )
  backend: str = field('jax', 'jax, or an inference runtime.', choices=('jax', *runtimes.BACKENDS))
  batch: int = field(
    0, 'Largest batch; 1 for none, 0 for what suits the device.', minimum=0, maximum=_MAX_BATCH
  )
  queue: int = field(64, 'Images in progress; requests beyond it are rejected (503).', minimum=1)
  deadline_s: float = field(
    30.0, 'Time from the first byte of a request until it fails (504).', unit='s', above=0
  )
  max_bytes: int = field(
    32 << 20, 'Largest request body, and largest file at a URL.', unit='bytes', minimum=1
  )
  max_pixels: int = field(
    50_000_000, 'Largest image, as its header says before it is decoded.', unit='pixels', minimum=1
  )
  max_answer_bytes: int = field(
    64 << 20,
    'Largest response, as estimated from the sizes of the images.',
    unit='bytes',
    minimum=1,
  )
  access: http.Access = dataclasses.field(default_factory=lambda: http.Access(urls=False))
  token: str = field('', 'Secret that requests must send; empty for none.', check=_check_token)
  drain_s: float = field(
    30.0, 'Time that accepted requests may take after a stop signal.', unit='s', above=0
  )

  def request_limits(self) -> dict[str, int | float]:
    """Return the limits that clients need to know, by name."""
    names = 'max_bytes', 'max_pixels', 'max_answer_bytes', 'queue', 'deadline_s'
    return {name: getattr(self, name) for name in names}


def with_fallbacks(settings: Settings) -> Settings:
  """Replace a missing device or runtime by 'auto', with a warning, so that the service starts.

  Raises:
    ConfigError, UnknownName: the name of the device or runtime is unknown.
  """
  try:
    mesh.select_devices(settings.device)
  except MissingDevice as error:
    logging.LOG.warning('%s Serving with device=auto.', error.message)
    settings = dataclasses.replace(settings, device='auto')
  if settings.backend in runtimes.BACKENDS[1:]:
    try:
      runtimes.resolve_backend(settings.backend)
    except ConfigError as error:
      logging.LOG.warning('Serving with backend=auto: %s', error)
      settings = dataclasses.replace(settings, backend=runtimes.BACKENDS[0])
  return settings


def validate_settings(settings: Settings) -> None:
  """Check that a service can run with these settings.

  Raises:
    ConfigError: a setting is invalid; the message has its value and the allowed ones.
  """
  configs.replace(settings, {key: info.value for key, info in configs.describe(settings).items()})
