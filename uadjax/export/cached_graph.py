"""Cache of exact ONNX graphs: each model directory is exported once, when first needed."""

import hashlib
import json
from pathlib import Path

import uadjax
from uadjax import config as configs
from uadjax.errors import ConfigError
from uadjax.model import model_dir
from uadjax.system import files, logging


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
  local_path = info.directory / 'model.onnx'
  if _is_usable(local_path, info.arrays_sha256):
    return local_path
  cached_path = cache_path(info)
  if not cached_path.is_file():
    # Opening a cached graph needs none of the exporters.
    from uadjax.export import exporter

    logging.LOG.info('Exporting %s to ONNX (once; the graph is cached).', info.directory)
    try:
      cached_path.parent.mkdir(parents=True, exist_ok=True)
      exporter.export(model_dir.load_arrays(info), output=cached_path)
    except OSError as error:
      reason = error.strerror or error
      message = f'The exported graph cannot be saved in {cached_path.parent} ({reason}).'
      hint = f'Set UADJAX_CACHE to a writable folder, or run `uadjax export {info.directory}`.'
      raise ConfigError(message, hint=hint) from None
  return cached_path


def cache_path(info: model_dir.ModelInfo) -> Path:
  """Return where the graph of a model is cached, whether it exists or not."""
  # Some options change the score but no array, so the hash of the arrays is not enough.
  key = [uadjax.__version__, info.arrays_sha256, configs.to_plain_dict(info.config)]
  digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
  return files.cache_dir() / 'exports' / f'{digest[:16]}.onnx'


def _is_usable(path: Path, arrays_sha256: str) -> bool:
  """Return whether a file is an exact graph of these arrays, with a free batch size and no resize.

  The JSON file next to the graph states this. It also has the hash of its graph, so that the file
  of another graph is recognized.
  """
  try:
    metadata = json.loads(path.with_name(f'{path.name}.json').read_text())
    return (
      metadata['arrays_sha256'] == arrays_sha256
      and metadata['quantize'] == ''
      and metadata['input']['shape'][0] is None
      and not metadata['preprocessing']['ops_in_graph']
      and metadata['sha256'] == files.sha256(path)
    )
  except (OSError, ValueError, KeyError, TypeError, IndexError):
    return False
