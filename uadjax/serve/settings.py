"""What a service is told before it begins."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from uadjax.distributed import mesh
from uadjax.errors import ConfigError, MissingDevice
from uadjax.export import runtimes
from uadjax.system import http, logging

_BACKENDS = 'jax', *runtimes.BACKENDS


class Settings(NamedTuple):
  """Of a service.

  Attributes:
    models: model directory by name; the first answers where a request names none.
    device: 'auto', 'cpu', 'gpu', 'gpu:0,1' or 'tpu'.
    backend: 'jax', or an inference runtime: 'auto', 'onnxruntime' or 'openvino'.
    batch: images that are computed at once, at most; 1 for none together, 0 for what suits.
    queue: images that are being answered, at most; a request beyond is refused (503).
    deadline_s: for each request, from its first byte on; then it is given up (504).
    max_bytes: of a request's body, and of what a URL holds.
    max_pixels: of an image; a file's header tells, before anything is decoded.
    access: which URLs may be read; by default none.
    token: that requests must bear; '' for none.
    drain_s: how long requests that were accepted may take when the service is to stop.
  """

  models: Mapping[str, Path]
  device: str = 'auto'
  backend: str = 'jax'
  batch: int = 0
  queue: int = 64
  deadline_s: float = 30.0
  max_bytes: int = 32 << 20
  max_pixels: int = 50_000_000
  access: http.Access = http.Access(urls=False)
  token: str = ''
  drain_s: float = 30.0

  def request_limits(self) -> dict[str, int | float]:
    """What clients had better know."""
    return {
      name: getattr(self, name) for name in ('max_bytes', 'max_pixels', 'queue', 'deadline_s')
    }


def with_fallbacks(settings: Settings) -> Settings:
  """Replace a missing device or runtime by 'auto', with a warning: a slow service beats none.

  Raises:
    ConfigError, UnknownName: the name of the device or runtime is unknown.
  """
  try:
    mesh.select_devices(settings.device)
  except MissingDevice as error:
    logging.LOG.warning('%s Serving with device=auto.', error.message)
    settings = settings._replace(device='auto')
  if settings.backend in runtimes.BACKENDS[1:]:
    try:
      runtimes.resolve_backend(settings.backend)
    except ConfigError as error:
      logging.LOG.warning('Serving with backend=auto: %s', error)
      settings = settings._replace(backend=runtimes.BACKENDS[0])
  return settings


def validate_settings(settings: Settings) -> None:
  """Refuse what no service can be run with.

  Raises:
    ConfigError: with the value, and what is allowed.
  """
  for name, minimum in {'queue': 1, 'max_bytes': 1, 'max_pixels': 1, 'batch': 0}.items():
    value = getattr(settings, name)
    if value < minimum:
      raise ConfigError(f'{name} must be a whole number, at least {minimum}, got {value}.')
  for name in ('deadline_s', 'drain_s'):
    value = getattr(settings, name)
    if not value > 0:
      raise ConfigError(f'{name} must be positive, got {value}.')
  mesh.select_devices(settings.device)  # Raises where there is none.
  if settings.backend not in _BACKENDS:
    raise ConfigError(f'backend must be one of {_BACKENDS}, got {settings.backend!r}.')
  if settings.token and (not settings.token.isascii() or ' ' in settings.token):
    raise ConfigError('A token is of ASCII letters without spaces.')
