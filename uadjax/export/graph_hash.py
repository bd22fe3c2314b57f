"""SHA-256 of exported graphs, which the JSON file next to a graph has, and the check against it."""

import hashlib
from pathlib import Path
from typing import Any

from uadjax.errors import describe
from uadjax.export import runtimes
from uadjax.system import files

_PREVIOUS = 'previous_'


def metadata_path(graph: Path) -> Path:
  """Return the path of the JSON file next to a graph."""
  return graph.with_name(f'{graph.name}.json')


def find_undescribed(folder: Path) -> list[Path]:
  """Return the ONNX graphs that are directly in a folder and have no JSON file next to them."""
  return sorted(path for path in folder.glob('*.onnx') if not metadata_path(path).exists())


def read_metadata(graph: Path) -> dict[str, Any]:
  """Return the content of the JSON file next to a graph; empty if it is not a JSON object."""
  try:
    metadata = files.read_json(metadata_path(graph))
  except (OSError, ValueError):
    return {}
  return metadata if isinstance(metadata, dict) else {}


def compute(graph: Path, external_data: str | None) -> runtimes.Metadata:
  """Return the hashes of a verified graph for its metadata.

  Args:
    graph: file of the graph. A SavedModel is a folder, which has no hash.
    external_data: name of the file with its arrays, in the same folder; None if it has none.

  Returns:
    `sha256` and, with external data, `external_data_sha256`.
  """
  hashes = {'sha256': files.sha256(graph) if graph.is_file() else ''}
  if external_data:
    hashes['external_data_sha256'] = files.sha256(graph.with_name(external_data))
  return hashes


def after_change(graph: Path, content: bytes) -> runtimes.Metadata:
  """Return the hashes of a graph that will be replaced by one with other metadata."""
  hashes = {'sha256': hashlib.sha256(content).hexdigest()}
  return {**hashes, f'{_PREVIOUS}sha256': files.sha256(graph)}


def describe_damage(graph: Path) -> str:
  """Return why a file is not the graph that was verified when it was exported; '' if it is.

  A change of the thresholds gives an ONNX graph another hash. It first replaces the JSON file by
  one with both hashes, so that an interrupted change leaves a graph that is recognized.
  """
  metadata = read_metadata(graph)
  paths = {'sha256': graph}
  if external_data := metadata.get('external_data'):
    paths['external_data_sha256'] = graph.with_name(Path(str(external_data)).name)
  for key, path in paths.items():
    expected = metadata.get(key)
    previous = metadata.get(f'{_PREVIOUS}{key}')
    try:
      actual = files.sha256(path)
    except OSError as error:
      return f'{path} cannot be read: {describe(error)}.'
    if actual not in (expected, previous):
      name = metadata_path(graph).name
      return f'{path} is damaged: its SHA-256 is {actual[:12]}…, but {name} says {expected!s:.12}….'
  return ''
