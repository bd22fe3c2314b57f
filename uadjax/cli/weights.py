"""The command `uadjax weights`: the cached weights of pretrained backbones."""

from collections.abc import Iterator
from typing import Any

from rich import text

from uadjax.backbones import weights
from uadjax.cli import console, runtime
from uadjax.cli.options import WeightsOptions
from uadjax.errors import UnknownName
from uadjax.system import files


def run(options: WeightsOptions) -> None:
  """Print the state of one backbone's weights, after downloading missing ones, or of all."""
  name = options.name
  names = weights.published_files()
  if name is not None and name not in names:
    raise UnknownName(f'Unknown backbone {name!r}; choose from {sorted(names)}.')
  if name is not None:
    if not weights.cache_path(name).is_file():
      files.require_writable_cache()
    weights.fetch_published(name)
  for arch in [name] if name else names:
    info = _weights_info(arch)
    if options.as_json:
      console.print_json(info)
      continue
    for line in _format_info(info):
      console.print_line(line)


def _weights_info(arch: str) -> dict[str, Any]:
  """Return name, path, source and hash of a backbone's weights, without downloading any."""
  path = weights.cache_path(arch)
  is_cached, source = path.is_file(), weights.published_files()[arch]
  info = {'name': arch, 'cached': is_cached, 'path': str(path), 'source': source}
  if not is_cached:
    return info
  sha256 = files.sha256(path)
  is_intact = sha256.startswith(weights.expected_digest(arch))
  return {**info, 'bytes': path.stat().st_size, 'sha256': sha256, 'intact': is_intact}


def _format_info(info: dict[str, Any]) -> Iterator[text.Text]:
  """Format the state of weights as lines that end in paths or hashes, for easy copying."""
  download_command = f'uadjax weights {info["name"]}'
  if not info['cached']:
    hint = f'not in the cache; to download: {download_command}'
    yield text.Text.assemble((f'· {info["name"]:<17} ', 'dim'), hint)
    return
  sign, style = console.SIGNS['OK' if info['intact'] else 'NG']
  damage = '' if info['intact'] else f', damaged; to download again: {download_command}'
  size = f'{info["bytes"] / 1e6:.0f} MB'
  yield text.Text.assemble((f'{sign} {info["name"]:<17} ', style), size + damage)
  yield text.Text(f'  {runtime.to_printable(info["path"])}')
  yield text.Text(f'  sha256 {info["sha256"]}', 'dim')
