"""Provenance of a report: model, weights, data, versions and times."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent import futures
import hashlib
import itertools
import os
from pathlib import Path
import platform
from typing import Any

import jax
import numpy as np
import PIL

import uadjax
from uadjax.data import image_io
from uadjax.data.records import Record
from uadjax.model import model_dir
from uadjax.system import files

_NUM_THREADS = 2  # Hashing releases the GIL.


def collect(
  model: model_dir.Model, records: Sequence[Record], timing: Mapping[str, float]
) -> dict[str, Any]:
  """Collect the provenance of a report, ready for JSON.

  Args:
    model: evaluated model.
    records: records of the test images.
    timing: known durations in seconds: `check_s`, `fit_s`, `calibrate_s`,
      `evaluate_s`.
  """
  masks = [record.mask for record in records if record.mask is not None]
  mask_files = itertools.chain.from_iterable(map(image_io.mask_files, masks))
  return {
    'model': {
      'name': model.name,
      'directory': str(model.directory),
      'arrays_sha256': model.arrays_sha256,
      'pixels': str(model.ops),
    },
    'weights': model.weights._asdict(),
    'thresholds': {'description': str(model.thresholds), **model.thresholds._asdict()},
    'data': {
      'test_images': len(records),
      'masks': len(masks),
      'sha256': fingerprint([*(record.path for record in records), *mask_files]),
    },
    'versions': {
      'uadjax': uadjax.__version__,
      'jax': jax.__version__,
      'numpy': np.__version__,
      'pillow': PIL.__version__,
      'python': platform.python_version(),
    },
    'timing': dict(timing),
    'config': model_dir.read_settings(model.directory),
  }


def fingerprint(paths: Iterable[Path]) -> str:
  """Return a SHA-256 of files that depends on contents and relative paths, but not on the order."""
  unique_paths = sorted(set(paths))
  with futures.ThreadPoolExecutor(_NUM_THREADS) as pool:
    hashes = list(pool.map(files.sha256, unique_paths))
  digest = hashlib.sha256()
  for name, content in sorted(zip(relative_paths(unique_paths), hashes, strict=True)):
    # Names contain no null byte, so different lists of files give different input.
    digest.update(os.fsencode(name) + b'\0' + bytes.fromhex(content))
  return digest.hexdigest()


def relative_paths(paths: Sequence[Path]) -> list[str]:
  """Return paths relative to their common folder, or unchanged if they have none."""
  try:
    root = os.path.commonpath([path.absolute().parent for path in paths])
  except ValueError:  # The paths are on different drives, or the list is empty.
    return [path.as_posix() for path in paths]
  return [path.absolute().relative_to(root).as_posix() for path in paths]
