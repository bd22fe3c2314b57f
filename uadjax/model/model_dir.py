"""Model directory: a fitted model as `manifest.json`, `fitted.safetensors` and `calibration.csv`.

Everything after fitting opens a model directory and nothing else. The arrays may have gigabytes:
they are written without a copy, and read into the memory in which they stay.
"""

from collections.abc import Callable, Mapping
import csv
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import uadjax
from uadjax import backbones, config as configs, detectors
from uadjax.backbones import weights as pretrained_weights
from uadjax.data import transforms
from uadjax.detectors.base import Detector, RunContext
from uadjax.distributed import mesh
from uadjax.errors import ConfigError, ModelError
from uadjax.model import array_file, calibration
from uadjax.system import files
from uadjax.types import Config, Scores

_FORMAT_VERSION = 3
_MANIFEST_FILE = 'manifest.json'
_CALIBRATION_FILE = 'calibration.csv'


class Model(NamedTuple):
  """Model loaded from a model directory.

  Attributes:
    name: name of the detector, such as STFPM.
    config: resolved configuration of the fit.
    ops: pixel operations from files to images at network size.
    fitted: fitted arrays; None if they were not loaded.
    score: jitted (fitted, uint8 images [b h w 3]) -> Scores.
    thresholds: calibrated thresholds.
    weights: origin of the backbone's weights.
    directory: path of the model directory.
    fitted_specs: `PartitionSpec`s of leaves or whole subtrees of `fitted`; None if nothing is
      sharded.
  """

  name: str
  config: Config
  ops: transforms.Ops
  fitted: Any
  score: Callable[[Any, Any], Scores]
  thresholds: calibration.Thresholds
  weights: pretrained_weights.Provenance
  directory: Path
  fitted_specs: Any = None


class ModelInfo(NamedTuple):
  """Contents of a model's manifest, with the fields of `Model` and the SHA-256 of the arrays."""

  name: str
  config: Config
  thresholds: calibration.Thresholds
  weights: pretrained_weights.Provenance
  arrays_sha256: str


def build_detector(config: Config, context: RunContext) -> tuple[backbones.Backbone, Detector]:
  """Return the backbone and the detector of a configuration, without any array."""
  backbone = backbones.build(config.backbone.name, tuple(config.detector.layers))
  return backbone, detectors.build(config.detector.to_dict(), backbone, context)


def save(
  directory: Path,
  config: Config,
  fitted: Any,
  thresholds: calibration.Thresholds,
  calibration_scores: calibration.CalibrationScores,
  weights: pretrained_weights.Provenance,
) -> None:
  """Write a model directory atomically; an existing one is replaced."""
  with files.atomic_directory(directory) as new_directory:
    arrays_sha256 = array_file.save_arrays(new_directory, fitted)
    save_manifest(new_directory, config, thresholds, calibration_scores, weights, {}, arrays_sha256)


def save_manifest(
  folder: Path,
  config: Config,
  thresholds: calibration.Thresholds,
  calibration_scores: calibration.CalibrationScores,
  weights: pretrained_weights.Provenance,
  summary: Mapping[str, int | float],
  arrays_sha256: str,
) -> None:
  """Write `manifest.json` and `calibration.csv` into the folder of a model.

  The manifest has the configuration, the thresholds, the origin of the weights, the detector's
  summary of the fit, and the hash of the arrays. The table has the scores of the good images from
  which the thresholds were calibrated.
  """
  rows = zip(
    calibration_scores.paths,
    calibration_scores.scores.tolist(),
    calibration_scores.peaks.tolist(),
    strict=True,
  )
  files.write_csv(folder / _CALIBRATION_FILE, [('path', 'score', 'peak'), *rows])
  manifest = {
    'format': _FORMAT_VERSION,
    'model_name': detectors.title(config.detector.name),
    'uadjax': uadjax.__version__,
    'jax': jax.__version__,
    'thresholds': thresholds._asdict(),
    'weights': weights._asdict(),
    'summary': dict(summary),
    'arrays_sha256': arrays_sha256,
    'config': configs.to_plain_dict(config),
  }
  files.write_json(folder / _MANIFEST_FILE, manifest)


def load_calibration_scores(directory: Path) -> calibration.CalibrationScores | None:
  """Return the scores of the good images of the calibration; None if they cannot be read."""
  try:
    with (directory / _CALIBRATION_FILE).open(newline='', encoding='utf-8') as file:
      rows = [
        (row['path'], float(row['score']), float(row['peak'])) for row in csv.DictReader(file)
      ]
  except (OSError, KeyError, ValueError):
    return None  # A model works without them.
  paths, scores, peaks = zip(*rows, strict=True) if rows else ((), (), ())
  return calibration.CalibrationScores(paths, np.array(scores), np.array(peaks))


def read_info(directory: Path | str) -> ModelInfo:
  """Read the manifest of a model directory.

  Raises:
    ModelError: the manifest is missing, incomplete, or of another format.
  """
  directory = Path(directory)
  manifest = _read_manifest(directory)
  try:
    config = configs.from_plain_dict(manifest['config'], str(directory / _MANIFEST_FILE))
    thresholds = calibration.Thresholds(**manifest['thresholds'])
    weights = pretrained_weights.Provenance(**manifest['weights'])
  except (ConfigError, TypeError, AttributeError) as error:
    raise ModelError(
      f'{directory / _MANIFEST_FILE} does not match this version of uadjax: {error}'
    ) from None
  return ModelInfo(manifest['model_name'], config, thresholds, weights, manifest['arrays_sha256'])


def open_without_arrays(directory: Path, score: Callable[[Any, Any], Scores]) -> Model:
  """Load a model without its arrays, for a `score` that does not use them, such as a runtime's."""
  name, config, thresholds, weights, _ = read_info(directory)
  ops = transforms.parse(config.data.ops)
  return Model(name, config, ops, None, score, thresholds, weights, directory)


def verify_arrays(directory: Path) -> None:
  """Verify that the arrays of a model directory have the SHA-256 that its manifest names.

  Raises:
    ModelError: the arrays are unreadable or damaged.
  """
  path = directory / array_file.ARRAYS_FILE
  try:
    with path.open('rb') as file:
      digest = hashlib.file_digest(file, 'sha256').hexdigest()
  except OSError as error:
    raise ModelError(f'{path} cannot be read: {error.strerror}.') from None
  _require_same_digest(directory, digest, read_info(directory).arrays_sha256)


def _require_same_digest(directory: Path, digest: str, expected_digest: str) -> None:
  if digest != expected_digest:
    raise ModelError(
      f'{directory / array_file.ARRAYS_FILE} is damaged: its SHA-256 is {digest[:12]}…, but the '
      f'manifest says {expected_digest[:12]}…. Fit the model again, or restore the file.'
    )


def load(directory: Path | str, state_mesh: mesh.Mesh | None = None) -> Model:
  """Load the model of a model directory.

  Args:
    directory: path of the model directory.
    state_mesh: devices over which to shard the fitted arrays, which may be too large for one;
      batches are then sharded over them as well. None or a single device to shard nothing.

  Raises:
    ModelError: the model is missing, incomplete, damaged, or of another format.
  """
  directory = Path(directory)
  name, config, thresholds, weights, arrays_sha256 = read_info(directory)
  ops = transforms.parse(config.data.ops)
  backbone, detector = build_detector(config, RunContext(ops.height, ops.width))
  buffer, digest = array_file.read_file(directory / array_file.ARRAYS_FILE)
  _require_same_digest(directory, digest, arrays_sha256)
  # Only the structure is computed; the only arrays are those of the file.
  abstract_fitted = jax.eval_shape(
    lambda: detector.finalize(_initial_state(backbone, detector, ops))
  )
  stored_arrays = array_file.parse_arrays(buffer)
  expected_leaves = array_file.leaves_by_path(abstract_fitted)
  if expected_leaves.keys() != stored_arrays.keys():
    mismatched_names = sorted(expected_leaves.keys() ^ stored_arrays.keys())
    raise ModelError(
      f'{directory / array_file.ARRAYS_FILE} does not match its manifest: '
      f'{mismatched_names[:3]} are missing or unexpected. Fit the model again, or restore the file.'
    )
  fitted = jax.tree.unflatten(
    jax.tree.structure(abstract_fitted), [stored_arrays[name] for name in expected_leaves]
  )
  if state_mesh is not None and state_mesh.size > 1:
    _, detector = build_detector(
      config, RunContext(ops.height, ops.width, shards=mesh.shards(state_mesh))
    )
  specs = detector.sharding_specs
  fitted_specs = None
  if specs and state_mesh is not None:
    fitted_specs = specs.fitted
    fitted = mesh.put_on_mesh(state_mesh, specs.pad_to_shards(fitted), fitted_specs)
  else:
    fitted = jax.device_put(fitted)  # Unlike this, jax.numpy.asarray always copies.
  jitted_score = jax.jit(detector.score)
  return Model(
    name, config, ops, fitted, jitted_score, thresholds, weights, directory, fitted_specs
  )


def _initial_state(backbone: Any, detector: Detector, ops: transforms.Ops) -> Any:
  images = jax.numpy.zeros((1, ops.height, ops.width, 3))
  return detector.init(jax.random.key(0), backbone.init(jax.random.key(0), images))


def _read_manifest(directory: Path) -> dict[str, Any]:
  path = directory / _MANIFEST_FILE
  try:
    manifest = json.loads(path.read_text())
  except FileNotFoundError:
    if (directory / 'model' / _MANIFEST_FILE).is_file():
      hint = f'The model of this run is {directory / "model"}; name that.'
    else:
      hint = 'A run writes its model to <workdir>/model or <workdir>/<category>/model; name that.'
    problem = f'it has no {_MANIFEST_FILE}' if directory.is_dir() else 'there is no such folder'
    raise ModelError(f'{directory} is not a model directory: {problem}. {hint}') from None
  except (OSError, ValueError) as error:
    raise ModelError(f'{path} cannot be read: {error}') from None
  if not isinstance(manifest, dict):
    raise ModelError(f'{path} cannot be read: a manifest is a JSON object. Fit the model again.')
  if manifest.get('format') != _FORMAT_VERSION:
    raise ModelError(
      f'{path} has format {manifest.get("format")!r}, but this version of uadjax reads format '
      f'{_FORMAT_VERSION} only. Fit the model again with `uadjax fit DATASET`; '
      'CHANGELOG.md lists the settings that were renamed.'
    )
  for key in ('model_name', 'thresholds', 'weights', 'arrays_sha256', 'config'):
    if key not in manifest:
      raise ModelError(f'{path} lacks {key!r}. Fit the model again, or restore the file.')
  return manifest
