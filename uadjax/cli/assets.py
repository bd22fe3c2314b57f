"""The commands `uadjax demo` (a synthetic dataset) and `uadjax weights` (pretrained backbones)."""

from pathlib import Path
from typing import Any

from rich import text

from uadjax.backbones import weights as pretrained_weights
from uadjax.cli import console, runtime
from uadjax.data import demo
from uadjax.errors import ConfigError, UnknownName
from uadjax.system import files, progress


def draw_demo(directory: Path, seed: int, size: int, overwrite: bool) -> None:
  """Write the demo dataset; refuse to replace existing folders unless `overwrite` is set."""
  folders = [directory / category for category in demo.CATEGORIES]
  existing_folders = [folder for folder in folders if folder.exists()]
  if existing_folders and not overwrite:
    raise ConfigError(f'{existing_folders[0]} exists; name another folder, or pass --overwrite.')
  demo.write_dataset(directory, seed, size=size, progress=progress.show_progress)
  for folder in folders:
    console.print_line(f'Written: {runtime.to_printable(str(folder))}')


def show_weights(name: str | None, as_json: bool) -> None:
  """Print the state of one backbone's weights, after downloading missing ones, or of all."""
  if name is not None and name not in pretrained_weights.FILES:
    raise UnknownName(f'Unknown backbone {name!r}; choose from {sorted(pretrained_weights.FILES)}.')
  if name is not None:
    pretrained_weights.fetch_published(name)
  for arch in [name] if name else pretrained_weights.FILES:
    info = _weights_info(arch)
    if as_json:
      console.print_json(info)
      continue
    for line in _format_info(info):
      console.print_line(line)


def _weights_info(arch: str) -> dict[str, Any]:
  """Return name, path, source and hash of a backbone's weights, without downloading any."""
  path = pretrained_weights.cache_path(arch)
  info = {'name': arch, 'cached': path.is_file(), 'path': str(path)}
  info['source'] = f'{pretrained_weights.TORCHVISION}/{path.name}'
  if not info['cached']:
    return info
  sha256 = files.sha256(path)
  is_intact = sha256.startswith(path.stem.rpartition('-')[2])
  return {**info, 'bytes': path.stat().st_size, 'sha256': sha256, 'intact': is_intact}


def _format_info(info: dict[str, Any]) -> list[text.Text]:
  """Format the state of weights as lines that end in paths or hashes, for easy copying."""
  if not info['cached']:
    hint = f'not in the cache; to download: uadjax weights {info["name"]}'
    return [text.Text.assemble((f'· {info["name"]:<16}', 'dim'), hint)]
  sign, style = console.SIGNS['OK' if info['intact'] else 'NG']
  size = f'{info["bytes"] / 1e6:.0f} MB'
  description = (
    size if info['intact'] else f'{size}, damaged; to download again: uadjax weights {info["name"]}'
  )
  return [
    text.Text.assemble((f'{sign} {info["name"]:<16}', style), description),
    text.Text(f'  {runtime.to_printable(info["path"])}'),
    text.Text(f'  sha256 {info["sha256"]}', 'dim'),
  ]
