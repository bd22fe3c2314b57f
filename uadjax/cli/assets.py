"""What is needed before images are judged: something to try on, and weights to start from."""

import hashlib
from pathlib import Path
from typing import Any

from rich import text

from uadjax.backbones import weights as pretrained_weights
from uadjax.cli import console, runtime
from uadjax.data import demo
from uadjax.errors import ConfigError, UnknownName
from uadjax.system import progress


def draw(directory: Path, seed: int, size: int, overwrite: bool) -> None:
  """Draw the demo set, unless it would take the place of something."""
  places = [directory / category for category in demo.CATEGORIES]
  taken = [place for place in places if place.exists()]
  if taken and not overwrite:
    raise ConfigError(f'{taken[0]} is there already; name another folder, or pass --overwrite.')
  demo.write(directory, seed, size, track=progress.track)
  for place in places:
    console.tell(f'Drawn: {runtime.printable(str(place))}')


def weights(name: str | None, as_json: bool) -> None:
  """Tell of one backbone's weights, which are downloaded where they are not there; or of all."""
  if name is not None and name not in pretrained_weights.FILES:
    raise UnknownName(f'Unknown backbone {name!r}; choose from {sorted(pretrained_weights.FILES)}.')
  if name is not None:
    pretrained_weights.published(name)
  for arch in [name] if name else pretrained_weights.FILES:
    told = _about(arch)
    if as_json:
      console.tell_json(told)
      continue
    for line in _lines(told):
      console.tell(line)


def _about(arch: str) -> dict[str, Any]:
  """What is known of the weights of a backbone, without downloading any."""
  path = pretrained_weights.cached(arch)
  told = {'name': arch, 'cached': path.is_file(), 'path': str(path)}
  told['source'] = f'{pretrained_weights.TORCHVISION}/{path.name}'
  if not told['cached']:
    return told
  with path.open('rb') as file:
    found = hashlib.file_digest(file, 'sha256').hexdigest()
  whole = found.startswith(path.stem.rpartition('-')[2])
  return {**told, 'bytes': path.stat().st_size, 'sha256': found, 'whole': whole}


def _lines(told: dict[str, Any]) -> list[text.Text]:
  """The same for people; paths and hashes at the end of lines, where they can be copied."""
  if not told['cached']:
    way = f'not in the cache; get it: uadjax weights {told["name"]}'
    return [text.Text.assemble((f'· {told["name"]:<16}', 'dim'), way)]
  sign, style = console.SIGNS['OK' if told['whole'] else 'NG']
  size = f'{told["bytes"] / 1e6:.0f} MB'
  state = size if told['whole'] else f'{size}, damaged: get it anew: uadjax weights {told["name"]}'
  return [
    text.Text.assemble((f'{sign} {told["name"]:<16}', style), state),
    text.Text(f'  {runtime.printable(told["path"])}'),
    text.Text(f'  sha256 {told["sha256"]}', 'dim'),
  ]
