"""The command `uadjax serve`: checks its packages, the token and the model directories."""

from collections.abc import Sequence
import importlib.util
import os
from pathlib import Path

from uadjax.cli import console
from uadjax.cli.options import ServeOptions
from uadjax.errors import ConfigError
from uadjax.inference import demo_model
from uadjax.model import model_dir
from uadjax.system import http, text


def run(options: ServeOptions) -> None:
  """Serve the models until a signal stops the service.

  Raises:
    ConfigError: a package of the service is missing, or an option is invalid.
  """
  for package in ('fastapi', 'orjson', 'prometheus_client', 'python_multipart', 'uvicorn'):
    if importlib.util.find_spec(package) is None:
      raise ConfigError(f'The service needs {package}: {text.install_command("serve")}.')
  from uadjax import serve

  settings = serve.Settings(
    _parse_model_dirs(options.models or ()),
    options.device or 'auto',
    options.backend,
    options.batch,
    options.queue,
    options.deadline,
    options.max_bytes,
    options.max_pixels,
    options.max_answer_bytes,
    http.Access(urls=options.allow_urls, max_bytes=options.max_bytes),
    resolve_token(options.token),
    options.drain,
  )
  serve.serve(settings, options.host, options.port, _print_address)


def _print_address(address: str) -> None:
  console.print_line(f'Serving at {address} (Ctrl-C stops it)')


def resolve_token(option: str | None) -> str:
  """Return the token of the service; '' without one.

  Raises:
    ConfigError: the token is empty; a forgotten secret must not disable authentication.
  """
  if option == '' or (option is None and os.environ.get('UADJAX_TOKEN') == ''):
    raise ConfigError(
      '--token or UADJAX_TOKEN is empty: set it to a secret, or set neither to serve without '
      'authentication.'
    )
  return option or ''


def _parse_model_dirs(arguments: Sequence[str]) -> dict[str, Path]:
  """Parse NAME=DIR arguments into model directories by name; a bare DIR is named after its run.

  Without arguments, the demo model is served.

  Raises:
    ConfigError: two models have the same name, or a name cannot be part of a URL.
    ModelError: a directory holds no model.
  """
  if not arguments:
    return {'demo': demo_model.ensure_model_dir(demo_model.DEFAULT_DETECTOR)}
  directories: dict[str, Path] = {}
  for argument in arguments:
    name, equals, path = argument.partition('=')
    directory = Path(path if equals else argument)
    if not equals:
      absolute_dir = directory.resolve()
      name = absolute_dir.parent.name if absolute_dir.name == 'model' else absolute_dir.name
    if not name or not name.replace('-', '').replace('_', '').replace('.', '').isalnum():
      raise ConfigError(
        f'{name!r} is not a valid model name; use letters, digits, dots, dashes and underscores: '
        f'NAME={directory}.'
      )
    if name in directories:
      raise ConfigError(f'Two models have the name {name!r}; pass NAME={directory} for one.')
    model_dir.read_info(directory)  # Raises ModelError if this is not a model directory.
    directories[name] = directory
  return directories
