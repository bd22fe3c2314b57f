"""The model directory: what scoring needs, as `manifest.json` and `fitted.safetensors`.

Everything downstream of fitting opens one of these and nothing else.
"""

from collections.abc import Callable, Mapping
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import safetensors.numpy

import uadjax
from uadjax import backbones, calibrate, config as configs, detectors, files
from uadjax.backbones import pretrained, resnet
from uadjax.data import preprocess
from uadjax.types import Config, ConfigError, Detector, ModelError, Scores, Spec

_VERSION = 1
_ARRAYS, _MANIFEST = 'fitted.safetensors', 'manifest.json'


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
  """

  name: str
  config: Config
  ops: preprocess.Ops
  fitted: Any
  score: Callable[[Any, Any], Scores]
  limits: calibrate.Limits
  weights: pretrained.Provenance
  directory: Path


class About(NamedTuple):
  """What a model directory says of itself; see `Model`."""

  name: str
  config: Config
  limits: calibrate.Limits
  weights: pretrained.Provenance
  arrays_sha256: str


def assemble(config: Config, spec: Spec) -> tuple[resnet.ResNet, Detector]:
  """Make the backbone and the detector of a configuration, without any array."""
  backbone = backbones.build(config.backbone.name, tuple(config.detector.layers))
  return backbone, detectors.build(config.detector.to_dict(), backbone, spec)


def save(
  directory: Path,
  config: Config,
  fitted: Any,
  limits: calibrate.Limits,
  weights: pretrained.Provenance,
) -> None:
  """Write a model directory, whole or not at all; one that is there is replaced."""
  with files.replacing(directory) as fresh:
    save_arrays(fresh, fitted)
    save_manifest(fresh, config, limits, weights, {})


def save_arrays(folder: Path, fitted: Any) -> None:
  """Write the fitted arrays into the folder of a model; the manifest comes after them."""
  arrays = {k: jax.device_get(v) for k, v in _named(fitted).items()}
  safetensors.numpy.save_file(arrays, folder / _ARRAYS)


def save_manifest(
  folder: Path,
  config: Config,
  limits: calibrate.Limits,
  weights: pretrained.Provenance,
  facts: Mapping[str, int | float],
) -> None:
  """Write what the arrays are: configuration, thresholds, origin and hash."""
  manifest = {
    'format': _VERSION,
    'model_name': detectors.title(config.detector.name),
    'uadjax': uadjax.__version__,
    'jax': jax.__version__,
    'thresholds': limits._asdict(),
    'weights': weights._asdict(),
    'facts': dict(facts),
    'arrays_sha256': _sha256(folder / _ARRAYS),
    'config': configs.plain(config),
  }
  files.write_json(folder / _MANIFEST, manifest)


def about(directory: Path | str) -> About:
  """Read what a model directory is, without its arrays.

  Raises:
    ModelError: it is not there, not whole, or of another format.
  """
  directory = Path(directory)
  manifest = _manifest(directory)
  try:
    config = configs.from_plain(manifest['config'], str(directory / _MANIFEST))
    limits = calibrate.Limits(**manifest['thresholds'])
    weights = pretrained.Provenance(**manifest['weights'])
  except (ConfigError, TypeError, AttributeError) as error:
    raise ModelError(f'{directory / _MANIFEST} is not of this version of uadjax: {error}') from None
  return About(manifest['model_name'], config, limits, weights, manifest['arrays_sha256'])


def load(directory: Path | str) -> Model:
  """Open a model directory.

  Raises:
    ModelError: it is not there, not whole, or of another format.
  """
  directory = Path(directory)
  name, config, limits, weights, sha256 = about(directory)
  ops = preprocess.parse(config.data.ops)
  backbone, detector = assemble(config, Spec(ops.height, ops.width))
  if (digest := _sha256(directory / _ARRAYS)) != sha256:
    raise ModelError(
      f'{directory / _ARRAYS} is damaged: its SHA-256 is {digest[:12]}…, the manifest says '
      f'{sha256[:12]}…. Fit the model again, or restore the file.'
    )
  # Structure alone: no array is made before the file's own are read.
  template = jax.eval_shape(lambda: detector.finish(_initial(backbone, detector, ops)))
  stored = safetensors.numpy.load_file(directory / _ARRAYS)
  named = _named(template)
  if named.keys() != stored.keys():
    odd = sorted(named.keys() ^ stored.keys())
    raise ModelError(f'{directory / _ARRAYS} does not fit its manifest: see {odd[:3]}.')
  leaves = [jax.numpy.asarray(stored.pop(name)) for name in named]
  fitted = jax.tree.unflatten(jax.tree.structure(template), leaves)
  return Model(name, config, ops, fitted, jax.jit(detector.score), limits, weights, directory)


def _initial(backbone: Any, detector: Detector, ops: preprocess.Ops) -> Any:
  images = jax.numpy.zeros((1, ops.height, ops.width, 3))
  return detector.init(jax.random.key(0), backbone.init(jax.random.key(0), images))


def _manifest(directory: Path) -> dict[str, Any]:
  path = directory / _MANIFEST
  try:
    manifest = json.loads(path.read_text())
  except FileNotFoundError:
    raise ModelError(
      f'{directory} is no model directory: it has no {_MANIFEST}. A run leaves one in '
      '<workdir>/model, or <workdir>/<category>/model; name it in predict.model_dir or '
      'evaluate.model_dir.'
    ) from None
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


def _named(tree: Any) -> dict[str, Any]:
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def _sha256(path: Path) -> str:
  try:
    with path.open('rb') as file:
      return hashlib.file_digest(file, 'sha256').hexdigest()
  except OSError as error:
    raise ModelError(f'{path} cannot be read: {error.strerror}.') from None
