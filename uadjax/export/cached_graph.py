"""Cache of exact ONNX graphs: each model directory is exported once, when first needed."""

import hashlib
import json
from pathlib import Path

import uadjax
from uadjax import config as configs
from uadjax.errors import ConfigError
from uadjax.export import runtimes
from uadjax.model import model_dir
from uadjax.system import files, logging

# Bytes at the end of an ONNX file that hold its metadata, which follow its arrays.
_METADATA_BYTES = 1 << 16


def get_or_export(info: model_dir.ModelInfo) -> Path:
  """Return the exact ONNX file of a model, for batches of any size at network resolution.

  `model.onnx` in the model directory is used if it is such a graph of the model's current arrays.
  Otherwise the model is exported into the user's cache, once.

  Raises:
    ConfigError: the cache folder cannot be written.
    ExportError: the model cannot be exported.
  """
  # Detect damaged arrays although only their graph is used.
  model_dir.verify_arrays(info)
  local_path = info.directory / f'model{runtimes.SUFFIX}'
  if local_path.is_file() and _is_usable(local_path, info.arrays_sha256):
    return local_path
  # Some options change the score but no array, so the hash of the arrays is not enough.
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
    # Opening a cached graph needs none of the exporters.
    from uadjax.export import exporter

    logging.LOG.info('Exporting %s to ONNX (once; the graph is cached).', info.directory)
    try:
      cached_path.parent.mkdir(parents=True, exist_ok=True)
      exporter.export(model_dir.load_arrays(info), output=cached_path)
    except OSError as error:
      raise ConfigError(
        f'The exported graph cannot be saved in {cached_path.parent} '
        f'({error.strerror or error}). Set UADJAX_CACHE to a writable folder, or export into the '
        f'model directory: uadjax export {info.directory}.'
      ) from None
  return cached_path


def _is_usable(path: Path, arrays_sha256: str) -> bool:
  """Return whether a file is an exact graph of these arrays, with a free batch size, no resize."""
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
  """Return whether an ONNX file's own metadata name these arrays and no quantization.

  The JSON file next to it is no proof, since it may belong to another graph.
  """
  with path.open('rb') as file:
    file.seek(max(0, path.stat().st_size - _METADATA_BYTES))
    tail = file.read()
  is_quantized = b'"quantize": "' in tail and b'"quantize": ""' not in tail
  return not is_quantized and f'"arrays_sha256": "{arrays_sha256}"'.encode() in tail
