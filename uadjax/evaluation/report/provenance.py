"""Where a report comes from: model, weights, data, versions, times."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent import futures
import hashlib
import os
from pathlib import Path
import platform
from typing import Any

import jax
import numpy as np
import PIL

import uadjax
from uadjax import config as configs
from uadjax.data.records import Record
from uadjax.model import model_dir

_NUM_THREADS = 2  # Hashing lets go of the GIL.


def collect(
  model: model_dir.Model, records: Sequence[Record], timing: Mapping[str, float]
) -> dict[str, Any]:
  """Tell what a report stands on.

  Args:
    model: what was evaluated.
    records: what on.
    timing: seconds, by what they were spent on: `fit_s`, `calibrate_s`, `evaluate_s`, if known.
  """
  masks = [record.mask for record in records if record.mask is not None]
  return {
    'model': {
      'name': model.name,
      'directory': str(model.directory),
      'arrays_sha256': model_dir.read_info(model.directory).arrays_sha256,
      'pixels': str(model.ops),
    },
    'weights': model.weights._asdict(),
    'thresholds': {'stand on': str(model.thresholds), **model.thresholds._asdict()},
    'data': {
      'test_images': len(records),
      'masks': len(masks),
      'sha256': fingerprint([*(record.path for record in records), *masks]),
    },
    'versions': {
      'uadjax': uadjax.__version__,
      'jax': jax.__version__,
      'numpy': np.__version__,
      'pillow': PIL.__version__,
      'python': platform.python_version(),
    },
    'timing': dict(timing),
    'config': configs.to_plain_dict(model.config),
  }


def fingerprint(paths: Iterable[Path]) -> str:
  """SHA-256 of files, by content and by path from their common folder on, in whatever order."""
  unique_paths = sorted(set(paths))
  with futures.ThreadPoolExecutor(_NUM_THREADS) as pool:
    hashes = list(pool.map(_sha256, unique_paths))
  digest = hashlib.sha256()
  for name, content in sorted(zip(relative_paths(unique_paths), hashes, strict=True)):
    # A name has no null in it: no other list of files reads the same.
    digest.update(os.fsencode(name) + b'\0' + content)
  return digest.hexdigest()


def relative_paths(paths: Sequence[Path]) -> list[str]:
  """Paths from their common folder on; as they are, where they have none."""
  try:
    root = os.path.commonpath([path.absolute().parent for path in paths])
  except ValueError:  # Of several drives, or there are no paths.
    return [path.as_posix() for path in paths]
  return [path.absolute().relative_to(root).as_posix() for path in paths]


def _sha256(path: Path) -> bytes:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').digest()
