"""The exact ONNX graph of a model directory, exported once where it is not there."""

import hashlib
import json
from pathlib import Path

import uadjax
from uadjax import config as configs
from uadjax.errors import ConfigError
from uadjax.export import runtimes
from uadjax.model import model_dir
from uadjax.system import files, logging

_METADATA_BYTES = (
  1 << 16
)  # Bytes at the end of an ONNX file: its metadata, which come after its arrays.


def get_or_export(directory: Path) -> Path:
  """The exact ONNX file of a model directory that takes any number of images at network size.

  It is `model.onnx` there, where that is such a file and of these arrays; else it is written into
  the user's cache, once.
  """
  info = model_dir.read_info(directory)
  # Damaged arrays must not go unnoticed for years behind a graph of them.
  model_dir.verify_arrays(directory)
  local_path = directory / f'model{runtimes.SUFFIX}'
  if local_path.is_file() and _is_usable(local_path, info.arrays_sha256):
    return local_path
  # Some options change the score, but no array.
  settings = configs.to_plain_dict(info.config)
  key_fields = [
    uadjax.__version__,
    info.arrays_sha256,
    settings['data']['ops'],
    settings['detector'],
  ]
  digest = hashlib.sha256(json.dumps([*key_fields, settings['backbone']]).encode()).hexdigest()
  cached_path = files.cache_dir() / 'exports' / f'{digest[:16]}{runtimes.SUFFIX}'
  if not cached_path.is_file():
    from uadjax.export import exporter  # Opening a graph that is there needs none of the exporters.

    logging.LOG.info('Exporting %s to ONNX, once.', directory)
    try:
      cached_path.parent.mkdir(parents=True, exist_ok=True)
      exporter.export(model_dir.load(directory), output=cached_path)
    except OSError as error:
      raise ConfigError(
        f'The exported graph cannot be kept in {cached_path.parent} ({error.strerror or error}); name a '
        f'folder for it in UADJAX_CACHE, or export it into the model directory: uadjax export '
        f'{directory}.'
      ) from None
  return cached_path


def _is_usable(path: Path, arrays_sha256: str) -> bool:
  sidecar = path.with_name(f'{path.name}.json')
  try:
    info = json.loads(sidecar.read_text())
    graph_sha256, batch = info['arrays_sha256'], info['input']['shape'][0]
    ops_in_graph = info['preprocessing']['ops_in_graph']
    return (
      graph_sha256 == arrays_sha256
      and batch is None
      and not ops_in_graph
      and _is_exact(path, graph_sha256)
    )
  except (OSError, ValueError, KeyError, TypeError, IndexError):
    return False


def _is_exact(path: Path, arrays_sha256: str) -> bool:
  """Whether an ONNX file says so itself, for what lies beside it may be another's."""
  with path.open('rb') as file:
    file.seek(max(0, path.stat().st_size - _METADATA_BYTES))
    tail = file.read()
  is_quantized = b'"quantize": "' in tail and b'"quantize": ""' not in tail
  return not is_quantized and f'"arrays_sha256": "{arrays_sha256}"'.encode() in tail
