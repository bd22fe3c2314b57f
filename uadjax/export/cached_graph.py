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

_TAIL = 1 << 16  # Bytes at the end of an ONNX file: its metadata, which come after its arrays.


def ready(directory: Path) -> Path:
  """The exact ONNX file of a model directory that takes any number of images at network size.

  It is `model.onnx` there, where that is such a file and of these arrays; else it is written into
  the user's cache, once.
  """
  about = model_dir.read_info(directory)
  # Damaged arrays must not go unnoticed for years behind a graph of them.
  model_dir.verify_arrays(directory)
  own = directory / f'model{runtimes.SUFFIX}'
  if own.is_file() and _serves(own, about.arrays_sha256):
    return own
  # Some options change the score, but no array.
  plain = configs.to_plain_dict(about.config)
  made_of = [uadjax.__version__, about.arrays_sha256, plain['data']['ops'], plain['detector']]
  digest = hashlib.sha256(json.dumps([*made_of, plain['backbone']]).encode()).hexdigest()
  kept = files.cache_dir() / 'exports' / f'{digest[:16]}{runtimes.SUFFIX}'
  if not kept.is_file():
    from uadjax.export import exporter  # Opening a graph that is there needs none of the exporters.

    logging.LOG.info('Exporting %s to ONNX, once.', directory)
    try:
      kept.parent.mkdir(parents=True, exist_ok=True)
      exporter.export(model_dir.load(directory), output=kept)
    except OSError as error:
      raise ConfigError(
        f'The exported graph cannot be kept in {kept.parent} ({error.strerror or error}); name a '
        f'folder for it in UADJAX_CACHE, or export it into the model directory: uadjax export '
        f'{directory}.'
      ) from None
  return kept


def _serves(path: Path, arrays_sha256: str) -> bool:
  beside = path.with_name(f'{path.name}.json')
  try:
    about = json.loads(beside.read_text())
    own, taken = about['arrays_sha256'], about['input']['shape'][0]
    in_graph = about['preprocessing']['ops_in_graph']
    return own == arrays_sha256 and taken is None and not in_graph and _exact(path, own)
  except (OSError, ValueError, KeyError, TypeError, IndexError):
    return False


def _exact(path: Path, arrays_sha256: str) -> bool:
  """Whether an ONNX file says so itself, for what lies beside it may be another's."""
  with path.open('rb') as file:
    file.seek(max(0, path.stat().st_size - _TAIL))
    tail = file.read()
  quantized = b'"quantize": "' in tail and b'"quantize": ""' not in tail
  return not quantized and f'"arrays_sha256": "{arrays_sha256}"'.encode() in tail
