"""Model directory: a fitted model as `manifest.json`, `fitted.safetensors` and `calibration.csv`.

If the model inspects a region of interest only, that is `region.png`.

Everything after fitting opens a model directory and nothing else. The arrays may have gigabytes:
they are written without a copy, and read into the memory in which they stay.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import datetime
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import uadjax
from uadjax import backbones, config as configs, detectors
from uadjax.backbones import weights as pretrained_weights
from uadjax.data import region_of_interest, transforms
from uadjax.data.image_statistics import StatisticsRange
from uadjax.data.pixel_range import PixelRange
from uadjax.data.region_of_interest import RegionOfInterest
from uadjax.detectors.base import Detector, RunContext
from uadjax.distributed import mesh
from uadjax.errors import DataError, describe, ModelError, refuse, UserError
from uadjax.model import array_file, calibration, manifest as manifests
from uadjax.model.settings import CalibrateSettings, HasDetector, ModelSettings
from uadjax.system import files, locks
from uadjax.types import Scores

_MANIFEST_FILE = 'manifest.json'
_CALIBRATION_FILE = 'calibration.csv'
_REGION_FILE = 'region.png'
_MAX_CALIBRATION_BYTES = 64 << 20  # Rows of half a million images.
_MAX_REGION_BYTES = 64 << 20


class ModelInfo(NamedTuple):
  """Contents of a model's manifest, which is read once when a model is opened.

  Attributes:
    name: name of the detector, such as STFPM.
    config: settings that scoring needs.
    ops: pixel operations from files to images at network size, and the region of interest.
    pixel_range: values of black and white in images of more than 8 bits.
    thresholds: calibrated thresholds.
    image_statistics: range of the statistics of the training images.
    weights: origin of the backbone's weights.
    directory: path of the model directory.
    arrays_sha256: SHA-256 of the file of the fitted arrays.
  """

  name: str
  config: ModelSettings
  ops: transforms.Ops
  pixel_range: PixelRange
  thresholds: calibration.Thresholds
  image_statistics: StatisticsRange
  weights: pretrained_weights.Provenance
  directory: Path
  arrays_sha256: str


class Manifest(NamedTuple):
  """Manifest of a model directory.

  Attributes:
    directory: path of the model directory.
    values: JSON-compatible content of the file.
  """

  directory: Path
  values: Mapping[str, Any]

  @property
  def settings(self) -> dict[str, Any]:
    """All settings of the run that fitted the model."""
    return self.values['config']

  @property
  def threshold_changes(self) -> list[dict[str, Any]]:
    """Changes of the thresholds since the model was fitted, the last one at the end.

    Each has the time in UTC, the reason, and the three thresholds that it set.
    """
    return self.values.get('threshold_changes', [])

  def calibrate_settings(self) -> CalibrateSettings:
    """Return the calibration settings of the run that fitted the model."""
    values = self.settings.get('calibrate', {})
    return configs.from_values(CalibrateSettings, values, str(self.directory / _MANIFEST_FILE))

  def with_thresholds(self, thresholds: calibration.Thresholds, reason: str) -> 'Manifest':
    """Return the manifest with new thresholds and a record of the change.

    Raises:
      ConfigError: a threshold is out of range.
    """
    for name, value in calibration.by_name(thresholds).items():
      if not manifests.THRESHOLD.allow(value):
        requirement = 'a number that a score can have, at least 0'
        refuse(name, value, f'{name} must be {requirement}, got {value!r}.', allowed=requirement)
    time = datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%dT%H:%M:%SZ')
    change = {'time': time, 'reason': reason, **calibration.by_name(thresholds)}
    changes = [*self.threshold_changes, change]
    values = {'thresholds': thresholds._asdict(), 'threshold_changes': changes}
    return self._replace(values={**self.values, **values})

  def stage(self, stage_file: files.Stage) -> None:
    """Stage the file with this content."""
    stage_file(self.directory / _MANIFEST_FILE, files.to_json_bytes(self.values))

  def info(self) -> ModelInfo:
    """Return what scoring needs of the manifest.

    Raises:
      ModelError: the manifest is incomplete, its thresholds are in the wrong order, or settings on
        which scores depend, or the region of interest, are not those of the fit.
    """
    directory, manifest = self.directory, self.values
    try:
      values = {name: manifest['config'][name] for name in ('data', 'backbone', 'detector')}
      config = configs.from_values(ModelSettings, values)
      ops = transforms.parse(config.data.ops)
      thresholds = calibration.from_json(manifest['thresholds'])
      image_statistics = StatisticsRange.from_dict(manifest['image_statistics'])
      weights = pretrained_weights.Provenance(**manifest['weights'])
    except UserError as error:
      raise _invalid_config(directory, error) from None
    if problem := calibration.describe_wrong_order(thresholds):
      hint = f'Correct the thresholds in {directory / _MANIFEST_FILE}.'
      raise ModelError(
        problem, key='review_threshold', value=thresholds.review_threshold,
        allowed=f'at most {thresholds.image_threshold}', hint=hint,
      )  # fmt: skip
    name, arrays_sha256 = manifest['model_name'], manifest['arrays_sha256']
    if name != (title := detectors.title(config.detector.name)):
      path, key = directory / _MANIFEST_FILE, 'model_name'
      message = f'{key} in {path} must be {title!r}, the name of config.detector, got {name!r}.'
      raise ModelError(message, key=key, value=name, allowed=title, hint=manifests.HINT)
    # Of the settings as they are stored: a later version may have further ones.
    region_sha256 = manifest.get('region_sha256', '')
    if hash_settings(manifest['config'], region_sha256) != manifest['config_sha256']:
      sections = 'config.data, config.backbone or config.detector'
      problem = f'{sections} in {directory / _MANIFEST_FILE} differs from the settings of the fit'
      message = f'{problem}: config_sha256 is of other values.'
      raise ModelError(message, key='config_sha256', hint=manifests.HINT)
    ops = _with_region(ops, directory, region_sha256)
    return ModelInfo(
      name, config, ops, config.data.pixel_range, thresholds, image_statistics, weights, directory,
      arrays_sha256,
    )  # fmt: skip


class Model(NamedTuple):
  """Model loaded with its arrays: the fields of `ModelInfo`, and what computes scores.

  Attributes:
    fitted: fitted arrays.
    score: jitted (fitted, uint8 images [b h w 3]) -> Scores.
    fitted_specs: `PartitionSpec`s of leaves or whole subtrees of `fitted`; None if nothing is
      sharded.
  """

  name: str
  config: ModelSettings
  ops: transforms.Ops
  pixel_range: PixelRange
  thresholds: calibration.Thresholds
  image_statistics: StatisticsRange
  weights: pretrained_weights.Provenance
  directory: Path
  arrays_sha256: str
  fitted: Any
  score: Callable[[Any, Any], Scores]
  fitted_specs: Any = None

  @property
  def info(self) -> ModelInfo:
    """The model without its arrays."""
    return ModelInfo._make(self[: len(ModelInfo._fields)])  # Its fields come first.


def scoring_context(ops: transforms.Ops) -> RunContext:
  """Return the context of a detector that only scores, for images that are scaled by `ops`."""
  region = ops.network_region()
  return RunContext(ops.height, ops.width, inspected=region, has_blanks=ops.has_blanks)


def build_detector(config: HasDetector, context: RunContext) -> tuple[backbones.Backbone, Detector]:
  """Return the backbone and the detector of a configuration, without any array."""
  settings, stages = config.backbone, tuple(config.detector.layers)
  backbone = backbones.build(settings.name, stages, settings.architecture, settings.dtype)
  return backbone, detectors.build(config.detector, backbone, context)


def save(
  directory: Path,
  config: HasDetector,
  fitted: Any,
  thresholds: calibration.Thresholds,
  calibration_scores: calibration.CalibrationScores,
  image_statistics: StatisticsRange,
  weights: pretrained_weights.Provenance,
  region: RegionOfInterest | None = None,
) -> None:
  """Write a model directory atomically; an existing one is replaced."""
  with files.atomic_directory(directory) as new_directory:
    arrays_sha256 = array_file.save_arrays(new_directory, fitted)
    save_manifest(
      new_directory, config, thresholds, calibration_scores, image_statistics, weights, {},
      arrays_sha256, region,
    )  # fmt: skip


def save_manifest(
  folder: Path,
  config: HasDetector,
  thresholds: calibration.Thresholds,
  calibration_scores: calibration.CalibrationScores,
  image_statistics: StatisticsRange,
  weights: pretrained_weights.Provenance,
  summary: Mapping[str, int | float],
  arrays_sha256: str,
  region: RegionOfInterest | None = None,
) -> None:
  """Write `manifest.json`, `calibration.csv` and `region.png` into the folder of a model.

  The manifest has the configuration, the thresholds, the range of the statistics of the training
  images, the origin of the weights, the detector's summary of the fit, and hashes of the arrays
  and of the settings on which scores depend.
  The table has the scores of the good images from which the thresholds were calibrated.
  Without a region of interest, there is no `region.png`.
  """
  paths, scores, peaks = calibration_scores
  rows = zip(paths, scores.tolist(), peaks.tolist(), strict=True)
  files.write_csv(folder / _CALIBRATION_FILE, [('path', 'score', 'peak'), *rows])
  plain_config, region_hash = configs.to_plain_dict(config), {}
  if region is not None:
    (folder / _REGION_FILE).write_bytes(region.to_png())
    region_hash = {'region_sha256': region.sha256}
  manifest = {
    'format': manifests.FORMAT_VERSION,
    'model_name': detectors.title(config.detector.name),
    'uadjax': uadjax.__version__,
    'jax': jax.__version__,
    'thresholds': thresholds._asdict(),
    'image_statistics': image_statistics.to_dict(),
    'weights': weights._asdict(),
    'summary': dict(summary),
    'arrays_sha256': arrays_sha256,
    **region_hash,
    'config_sha256': hash_settings(plain_config, **region_hash),
    'config': plain_config,
  }
  files.write_json(folder / _MANIFEST_FILE, manifest)


def hash_settings(config: Mapping[str, Any], region_sha256: str = '') -> str:
  """Return the SHA-256 of the settings and the region on which the scores of a model depend."""
  pixels = [config['data'].get(name) for name in ('ops', 'bits', 'range')]
  values = [pixels, config['backbone'], config['detector'], *filter(None, [region_sha256])]
  return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def load_calibration_scores(directory: Path) -> calibration.CalibrationScores | None:
  """Return the scores of the good images of the calibration; None if they cannot be read."""
  path = directory / _CALIBRATION_FILE
  try:
    if path.stat().st_size > _MAX_CALIBRATION_BYTES:
      return None
    rows = [(x['path'], float(x['score']), float(x['peak'])) for x in files.read_csv(path)]
  except (OSError, KeyError, ValueError):
    return None  # A model works without them.
  paths, scores, peaks = zip(*rows, strict=True) if rows else ((), (), ())
  return calibration.CalibrationScores(paths, np.array(scores), np.array(peaks))


def _with_region(ops: transforms.Ops, directory: Path, sha256: str) -> transforms.Ops:
  """Return ops with the region of interest of a model; without one, its hash is empty."""
  if not sha256:
    return ops
  path = directory / _REGION_FILE
  try:
    with files.open_regular(path, _MAX_REGION_BYTES) as file:
      region = region_of_interest.read(file.read())
    if region is None or region.sha256 != sha256:
      raise DataError('its pixels are not those of the fit.')
    return ops.with_region(region)
  except (OSError, ValueError, UserError) as error:
    reason = describe(error).rstrip('.')
    raise ModelError(f'{path} cannot be used: {reason}.', hint=manifests.HINT) from None


def read_info(directory: Path | str) -> ModelInfo:
  """Read the manifest of a model directory.

  Raises:
    ModelError: the manifest is missing, incomplete, or of another format.
  """
  return read_manifest(Path(directory)).info()


def read_settings(directory: Path) -> dict[str, Any]:
  """Return all settings of the run that fitted a model, as its manifest has them."""
  return read_manifest(directory).settings


@contextlib.contextmanager
def lock_manifest(directory: Path) -> Iterator[Manifest]:
  """Yield the manifest of a model, which no other process changes inside the block.

  Raises:
    OSError: the directory cannot be written.
    ModelError: the manifest is missing, incomplete, or of another format.
  """
  with contextlib.ExitStack() as stack:
    if (directory / _MANIFEST_FILE).is_file():
      stack.enter_context(locks.lock_folder(directory))
    yield read_manifest(directory)


def verify_arrays(info: ModelInfo) -> None:
  """Verify that the arrays of a model directory have the SHA-256 that its manifest names.

  Raises:
    ModelError: the arrays are unreadable or damaged.
  """
  path = info.directory / array_file.ARRAYS_FILE
  try:
    digest = files.sha256(path)
  except OSError as error:
    raise ModelError(f'{path} cannot be read: {error.strerror}.') from None
  _require_same_digest(info, digest)


def _require_same_digest(info: ModelInfo, digest: str) -> None:
  if digest != info.arrays_sha256:
    raise ModelError(
      f'{info.directory / array_file.ARRAYS_FILE} is damaged: its SHA-256 is {digest[:12]}…, but '
      f'the manifest says {info.arrays_sha256[:12]}…. Fit the model again, or restore the file.'
    )


def load(directory: Path | str, state_mesh: mesh.Mesh | None = None) -> Model:
  """Load the model of a model directory; see `load_arrays`."""
  return load_arrays(read_info(directory), state_mesh)


def load_arrays(info: ModelInfo, state_mesh: mesh.Mesh | None = None) -> Model:
  """Load the model of a manifest that was read.

  Args:
    info: contents of the manifest.
    state_mesh: devices over which to shard the fitted arrays, which may be too large for one;
      batches are then sharded over them as well. None or a single device to shard nothing.

  Raises:
    ModelError: the arrays are missing or damaged.
  """
  ops, path = info.ops, info.directory / array_file.ARRAYS_FILE
  detector, abstract_fitted = _fitted_template(info)
  template = array_file.leaves_by_path(abstract_fitted)
  arrays, digest = array_file.read_arrays(path, template, detector.bank_leaves)
  _require_same_digest(info, digest)
  array_file.require_finite(arrays, path)
  leaves = [arrays[name] for name in template]
  fitted = jax.tree.unflatten(jax.tree.structure(abstract_fitted), leaves)
  specs = None
  if state_mesh is not None and state_mesh.size > 1:
    context = scoring_context(ops)._replace(shards=mesh.shards(state_mesh))
    _, detector = build_detector(info.config, context)
    specs = detector.sharding_specs
  if specs and state_mesh is not None:
    fitted = mesh.put_on_mesh(state_mesh, specs.pad_to_shards(fitted), specs.fitted)
  else:
    fitted = jax.device_put(fitted)  # Unlike this, jax.numpy.asarray always copies.
  return Model(*info, fitted, jax.jit(detector.score), specs and specs.fitted)


def _fitted_template(info: ModelInfo) -> tuple[Detector, Any]:
  """Return the detector of a model, and its fitted arrays without values."""
  ops = info.ops

  def finalize_initial_state() -> Any:
    images, key = jax.numpy.zeros((1, ops.height, ops.width, 3)), jax.random.key(0)
    return detector.finalize(detector.init(key, backbone.init(key, images)))

  try:
    backbone, detector = build_detector(info.config, scoring_context(ops))
    return detector, jax.eval_shape(finalize_initial_state)
  except Exception as error:  # Valid settings may contradict each other in many ways.
    raise _invalid_config(info.directory, error) from None


def _invalid_config(directory: Path, error: Exception) -> ModelError:
  key, value, allowed = (getattr(error, name, None) for name in ('key', 'value', 'allowed'))
  message = f'The configuration in {directory / _MANIFEST_FILE} describes no model: {error}'
  key = f'config.{key}' if key else 'config'
  return ModelError(message, key=key, value=value, allowed=allowed, hint=manifests.HINT)


def read_manifest(directory: Path) -> Manifest:
  """Read the manifest of a model directory.

  Raises:
    ModelError: the manifest is missing, incomplete, or of another format.
  """
  path = directory / _MANIFEST_FILE
  try:
    manifest = files.read_json(path)
  except FileNotFoundError:
    if (directory / 'model' / _MANIFEST_FILE).is_file():
      hint = f'The model of this run is {directory / "model"}; name that.'
    else:
      hint = 'A run writes its model to <workdir>/model or <workdir>/<category>/model; name that.'
    problem = f'it has no {_MANIFEST_FILE}' if directory.is_dir() else 'there is no such folder'
    raise ModelError(f'{directory} is not a model directory: {problem}. {hint}') from None
  except (OSError, ValueError) as error:
    reason = describe(error).rstrip('.')
    raise ModelError(f'{path} cannot be read: {reason}.', hint=manifests.HINT) from None
  if not isinstance(manifest, dict):
    message = f'{path} cannot be read: a manifest is a JSON object.'
    raise ModelError(message, hint=manifests.HINT)
  if manifest.get('format') != manifests.FORMAT_VERSION:
    raise ModelError(
      f'{path} has format {manifest.get("format")!r:.80}, but this version of uadjax reads format '
      f'{manifests.FORMAT_VERSION} only. Fit the model again with `uadjax fit DATASET`; '
      'CHANGELOG.md lists the settings that were renamed.'
    )
  manifests.require_valid(manifest, path)
  return Manifest(directory, manifest)
