"""Models behind a port: what `uadjax serve` is told, understood."""

from collections.abc import Sequence
import importlib.util
import os
from pathlib import Path

from uadjax.errors import ConfigError
from uadjax.inference import demo_model
from uadjax.model import model_dir


def require_packages() -> None:
  """Refuse where the packages of the service are missing."""
  for package in ('fastapi', 'orjson', 'prometheus_client', 'python_multipart', 'uvicorn'):
    if importlib.util.find_spec(package) is None:
      raise ConfigError(f"The service needs {package}: pip install 'uadjax[serve]'.")


def resolve_token(option: str | None) -> str:
  """The token; '' where none was given.

  Raises:
    ConfigError: an empty one was given: a secret that was forgotten must not open the service.
  """
  if option == '' or (option is None and os.environ.get('UADJAX_TOKEN') == ''):
    raise ConfigError(
      '--token or UADJAX_TOKEN is empty: give a secret, or neither for a service open to all.'
    )
  return option or ''


def parse_model_dirs(arguments: Sequence[str]) -> dict[str, Path]:
  """Model directories by name, from NAME=DIR or DIR, which is named after its run.

  Without any the demo model is served.

  Raises:
    ConfigError: two have one name, or a name could not be part of a URL.
    ModelError: a directory holds no model.
  """
  if not arguments:
    title = demo_model.DEFAULT_TITLE
    return {'demo': demo_model.ensure_model_dir(title, 'uadjax fit DIR')}
  directories: dict[str, Path] = {}
  for argument in arguments:
    name, equals, path = argument.partition('=')
    directory = Path(path if equals else argument)
    if not equals:
      resolved = directory.resolve()
      name = resolved.parent.name if resolved.name == 'model' else resolved.name
    if not name or not name.replace('-', '').replace('_', '').replace('.', '').isalnum():
      raise ConfigError(
        f'{name!r} is no name for a model: letters, digits, dots, dashes and underscores; pass '
        f'NAME={directory}.'
      )
    if name in directories:
      raise ConfigError(f'Two models would be called {name!r}; pass NAME={directory} for one.')
    model_dir.read_info(directory)  # Raises for what is no model directory.
    directories[name] = directory
  return directories
