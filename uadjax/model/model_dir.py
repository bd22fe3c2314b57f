"""The model directory: what scoring needs, as `manifest.json` and `fitted.safetensors`.

Everything downstream of fitting opens one of these and nothing else. The arrays may take gigabytes:
they are written from where they lie, and read into the memory that they then stay in.
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
from uadjax.model import array_file, calibration as calibrating
from uadjax.system import files
from uadjax.types import Config, Scores

_VERSION = 2
_MANIFEST = 'manifest.json'
_CALIBRATION = 'calibration.csv'


class Model(NamedTuple):
  """An opened model directory.

  Attributes:
    name: the detector's, such as STFPM.
    config: the resolved configuration that it was fitted with.
    ops: the pixel path from files to network size.
    fitted: the arrays.
    score: jitted (fitted, uint8 images [b h w 3]) -> Scores.
    limits: the calibrated thresholds.
    weights: where the backbone's weights came from.
    directory: where it lies.
    split: what of `fitted` lies split over devices, see `mesh.place`; None where it is whole.
  """

  name: str
  config: Config
  ops: transforms.Ops
  fitted: Any
  score: Callable[[Any, Any], Scores]
  limits: calibrating.Limits
  weights: pretrained_weights.Provenance
  directory: Path
  split: Any = None


class About(NamedTuple):
  """What a model directory says of itself; see `Model`."""

  name: str
  config: Config
  limits: calibrating.Limits
  weights: pretrained_weights.Provenance
  arrays_sha256: str


def assemble(config: Config, spec: RunContext) -> tuple[backbones.Backbone, Detector]:
  """Make the backbone and the detector of a configuration, without any array."""
  backbone = backbones.build(config.backbone.name, tuple(config.detector.layers))
  return backbone, detectors.build(config.detector.to_dict(), backbone, spec)


def save(
  directory: Path,
  config: Config,
  fitted: Any,
  limits: calibrating.Limits,
  normals: calibrating.Peaks,
  weights: pretrained_weights.Provenance,
) -> None:
  """Write a model directory, whole or not at all; one that is there is replaced."""
  with files.atomic_directory(directory) as fresh:
    sha256 = array_file.save_arrays(fresh, fitted)
    save_manifest(fresh, config, limits, normals, weights, {}, sha256)


def save_manifest(
  folder: Path,
  config: Config,
  limits: calibrating.Limits,
  normals: calibrating.Peaks,
  weights: pretrained_weights.Provenance,
  facts: Mapping[str, int | float],
  arrays_sha256: str,
) -> None:
  """Write what the arrays are: configuration, thresholds, origin and hash.

  The scores of good images that the thresholds stand on go into a table beside it.
  """
  rows = zip(normals.path, normals.image.tolist(), normals.map.tolist(), strict=True)
  files.write_csv(folder / _CALIBRATION, [('path', 'score', 'peak'), *rows])
  manifest = {
    'format': _VERSION,
    'model_name': detectors.title(config.detector.name),
    'uadjax': uadjax.__version__,
    'jax': jax.__version__,
    'thresholds': limits._asdict(),
    'weights': weights._asdict(),
    'facts': dict(facts),
    'arrays_sha256': arrays_sha256,
    'config': configs.to_plain_dict(config),
  }
  files.write_json(folder / _MANIFEST, manifest)


def calibration(directory: Path) -> calibrating.Peaks | None:
  """The good images that a model's thresholds stand on; None where that is not there."""
  try:
    with (directory / _CALIBRATION).open(newline='', encoding='utf-8') as file:
      rows = [
        (row['path'], float(row['score']), float(row['peak'])) for row in csv.DictReader(file)
      ]
  except (OSError, KeyError, ValueError):
    return None  # A model can do without.
  paths, images, maps = zip(*rows, strict=True) if rows else ((), (), ())
  return calibrating.Peaks(paths, np.array(images), np.array(maps))


def about(directory: Path | str) -> About:
  """Read what a model directory is, without its arrays.

  Raises:
    ModelError: it is not there, not whole, or of another format.
  """
  directory = Path(directory)
  manifest = _manifest(directory)
  try:
    config = configs.from_plain_dict(manifest['config'], str(directory / _MANIFEST))
    limits = calibrating.Limits(**manifest['thresholds'])
    weights = pretrained_weights.Provenance(**manifest['weights'])
  except (ConfigError, TypeError, AttributeError) as error:
    raise ModelError(f'{directory / _MANIFEST} is not of this version of uadjax: {error}') from None
  return About(manifest['model_name'], config, limits, weights, manifest['arrays_sha256'])


def described(directory: Path, score: Callable[[Any, Any], Scores]) -> Model:
  """A model directory without its arrays, for what scores by other means."""
  name, config, limits, weights, _ = about(directory)
  ops = transforms.parse(config.data.ops)
  return Model(name, config, ops, None, score, limits, weights, directory)


def check(directory: Path) -> None:
  """Raise ModelError where the arrays are not those that were saved."""
  path = directory / array_file.ARRAYS
  try:
    with path.open('rb') as file:
      digest = hashlib.file_digest(file, 'sha256').hexdigest()
  except OSError as error:
    raise ModelError(f'{path} cannot be read: {error.strerror}.') from None
  _same(directory, digest, about(directory).arrays_sha256)


def _same(directory: Path, digest: str, wanted: str) -> None:
  if digest != wanted:
    raise ModelError(
      f'{directory / array_file.ARRAYS} is damaged: its SHA-256 is {digest[:12]}…, the manifest '
      f'says '
      f'{wanted[:12]}…. Fit the model again, or restore the file.'
    )


def load(directory: Path | str, apart: mesh.Mesh | None = None) -> Model:
  """Open a model directory.

  Args:
    directory: where it lies.
    apart: devices to split what is learned over, which may be too large for one; then batches are
      split over them as well. None, or one device: not split.

  Raises:
    ModelError: it is not there, not whole, or of another format.
  """
  directory = Path(directory)
  name, config, limits, weights, sha256 = about(directory)
  ops = transforms.parse(config.data.ops)
  backbone, detector = assemble(config, RunContext(ops.height, ops.width))
  memory, digest = array_file.read(directory / array_file.ARRAYS)
  _same(directory, digest, sha256)
  # Structure alone: no array is made but the file's own.
  template = jax.eval_shape(lambda: detector.to_fitted(_initial(backbone, detector, ops)))
  stored = array_file.arrays(memory)
  named = array_file.named(template)
  if named.keys() != stored.keys():
    odd = sorted(named.keys() ^ stored.keys())
    raise ModelError(f'{directory / array_file.ARRAYS} does not fit its manifest: see {odd[:3]}.')
  fitted = jax.tree.unflatten(jax.tree.structure(template), [stored[name] for name in named])
  if apart is not None and apart.size > 1:
    _, detector = assemble(config, RunContext(ops.height, ops.width, shards=mesh.shards(apart)))
  split = detector.sharding_specs
  if split and apart is not None:
    fitted, split = mesh.put_on_mesh(apart, split.pad_to_shards(fitted), split.fitted), split.fitted
  else:
    fitted = jax.device_put(fitted)  # Not jax.numpy.asarray, which copies always.
  score = jax.jit(detector.score)
  return Model(name, config, ops, fitted, score, limits, weights, directory, split)


def _initial(backbone: Any, detector: Detector, ops: transforms.Ops) -> Any:
  images = jax.numpy.zeros((1, ops.height, ops.width, 3))
  return detector.init(jax.random.key(0), backbone.init(jax.random.key(0), images))


def _manifest(directory: Path) -> dict[str, Any]:
  path = directory / _MANIFEST
  try:
    manifest = json.loads(path.read_text())
  except FileNotFoundError:
    if (directory / 'model' / _MANIFEST).is_file():
      way = f'The model of this run is {directory / "model"}.'
    else:
      way = 'A run leaves one in <workdir>/model, or <workdir>/<category>/model; name that.'
    what = f'it has no {_MANIFEST}' if directory.is_dir() else 'there is no such folder'
    raise ModelError(f'{directory} is no model directory: {what}. {way}') from None
  except (OSError, ValueError) as error:
    raise ModelError(f'{path} cannot be read: {error}') from None
  if not isinstance(manifest, dict):
    raise ModelError(f'{path} cannot be read: expected an object.')
  if manifest.get('format') != _VERSION:
    raise ModelError(
      f'{path} is of format {manifest.get("format")!r}; this uadjax reads {_VERSION}.'
    )
  for key in ('model_name', 'thresholds', 'weights', 'arrays_sha256', 'config'):
    if key not in manifest:
      raise ModelError(f'{path} lacks {key!r}; fit the model again, or restore the file.')
  return manifest
