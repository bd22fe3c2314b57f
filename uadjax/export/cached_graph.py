"""Cache of exact ONNX graphs: each model directory is exported once, when first needed."""

import hashlib
import json
from pathlib import Path

import uadjax
from uadjax import config as configs
from uadjax.errors import ConfigError, ModelError
from uadjax.export import graph_hash
from uadjax.model import model_dir
from uadjax.system import files, logging


def get_or_export(info: model_dir.ModelInfo) -> Path:
  """Return the exact ONNX file of a model, for batches of any size at network resolution.

  `model.onnx` in the model directory is used if it is such a graph of the model's current arrays,
  which the JSON file next to it states; a warning says if that file is missing. Otherwise the model
  is exported into the user's cache, once, and again if that graph is damaged.

  Raises:
    ModelError: the graph in the model directory is damaged.
    ConfigError: the cache folder cannot be written.
    ExportError: the model cannot be exported.
  """
  # Detect damaged arrays although only their graph is used.
  model_dir.verify_arrays(info)
  local_path = info.directory / 'model.onnx'
  if _is_exact(local_path, info):
    if problem := graph_hash.describe_damage(local_path):
      hint = f'Write it again with `uadjax export {info.directory}`, or delete it.'
      raise ModelError(problem, hint=hint)
    return local_path
  if local_path in graph_hash.find_undescribed(info.directory):
    logging.LOG.warning(
      '%s is not used: %s, which describes it, is missing. `uadjax export %s` writes both.',
      local_path, graph_hash.metadata_path(local_path).name, info.directory,
    )  # fmt: skip
  cached_path = cache_path(info)
  if cached_path.exists():
    if _is_exact(cached_path, info) and not graph_hash.describe_damage(cached_path):
      return cached_path
    logging.LOG.warning('%s is damaged and will be written again.', cached_path)
  _export(info, cached_path)
  return cached_path


def _export(info: model_dir.ModelInfo, cached_path: Path) -> None:
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


def cache_path(info: model_dir.ModelInfo) -> Path:
  """Return where the graph of a model is cached, whether it exists or not."""
  # Some options change the score but no array, so the hash of the arrays is not enough.
  settings, region_hash = configs.to_plain_dict(info.config), _region_hash(info)
  key = [uadjax.__version__, info.arrays_sha256, settings, region_hash]
  digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
  return files.cache_dir() / 'exports' / f'{digest[:16]}.onnx'


def _region_hash(info: model_dir.ModelInfo) -> str | None:
  return None if info.ops.region is None else info.ops.region.sha256


def _is_exact(path: Path, info: model_dir.ModelInfo) -> bool:
  """Return whether a file is an exact graph of a model, with a free batch size and no resize.

  The JSON file next to the graph states this. That of an earlier version lacks the graph's hash.
  """
  metadata = graph_hash.read_metadata(path)
  try:
    return (
      path.exists()
      and metadata['arrays_sha256'] == info.arrays_sha256
      and metadata.get('region_sha256') == _region_hash(info)
      and metadata['quantize'] == ''
      and metadata['input']['shape'][0] is None
      and not metadata['preprocessing']['ops_in_graph']
      and bool(metadata['sha256'])
    )
  except (KeyError, TypeError, IndexError):
    return False
