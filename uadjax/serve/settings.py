"""Settings of the service, and their validation."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from uadjax.distributed import mesh
from uadjax.errors import ConfigError, MissingDevice
from uadjax.export import runtimes
from uadjax.system import http, logging

_BACKENDS = 'jax', *runtimes.BACKENDS


class Settings(NamedTuple):
  """Settings of the service.

  Attributes:
    models: model directories by name; the first is the default of requests.
    device: 'auto', 'cpu', 'gpu', 'gpu:0,1' or 'tpu'.
    backend: 'jax', or an inference runtime: 'auto', 'onnxruntime' or 'openvino'.
    batch: maximum batch size; 1 disables batching, 0 selects a size that suits the device.
    queue: maximum number of images in progress; requests beyond it are rejected (503).
    deadline_s: seconds from the first byte of a request after which it fails (504).
    max_bytes: maximum size of a request body, and of a file at a URL.
    max_pixels: maximum number of pixels of an image, compared with the header of the file before
      decoding.
    access: URLs that may be fetched; by default none.
    token: secret that requests must send; '' to serve without authentication.
    drain_s: seconds that accepted requests may take after a stop signal.
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
    """Return the limits that clients need to know, by name."""
    return {
      name: getattr(self, name) for name in ('max_bytes', 'max_pixels', 'queue', 'deadline_s')
    }


def with_fallbacks(settings: Settings) -> Settings:
  """Replace a missing device or runtime by 'auto', with a warning, so that the service starts.

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
  """Check that a service can run with these settings.

  Raises:
    ConfigError: a setting is invalid; the message has its value and the allowed ones.
  """
  for name, minimum in {'queue': 1, 'max_bytes': 1, 'max_pixels': 1, 'batch': 0}.items():
    value = getattr(settings, name)
    if value < minimum:
      raise ConfigError(f'{name} must be a whole number, at least {minimum}, got {value}.')
  for name in ('deadline_s', 'drain_s'):
    value = getattr(settings, name)
    if not value > 0:
      raise ConfigError(f'{name} must be positive, got {value}.')
  mesh.select_devices(settings.device)  # Raises ConfigError if there is no such device.
  if settings.backend not in _BACKENDS:
    raise ConfigError(f'backend must be one of {_BACKENDS}, got {settings.backend!r}.')
  if settings.token and (not settings.token.isascii() or ' ' in settings.token):
    raise ConfigError('The token must consist of ASCII characters without spaces.')
