"""Entry points of inference: `create_model` and `create_pipeline`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import yaml

from uadjax import config as configs, detectors
from uadjax.distributed import mesh as meshes
from uadjax.errors import ConfigError, describe, ExportError, UnknownName
from uadjax.export import runtimes
from uadjax.inference import predictor
from uadjax.inference.result import Result
from uadjax.inference.settings import BACKENDS, PIPELINES as NAMES, PipelineSettings
from uadjax.model import calibration, model_dir as model_dirs
from uadjax.system import files, http, logging

_JAX = 'jax'


def create_model(
  model_name: str | Path = '',
  model_dir: str | Path | None = None,
  device: str | None = 'auto',
  *,
  image_threshold: float | None = None,
  review_threshold: float | None = None,
  pixel_threshold: float | None = None,
  backend: str = 'jax',
  shard_model: bool = False,
  access: http.Access = http.PUBLIC_ONLY,
) -> predictor.Predictor:
  """Open a model directory for `predict`.

  Args:
    model_name: 'STFPM', 'PaDiM', 'PatchCore' or 'SubspaceAD' (case-insensitive), or a model
      directory.
    model_dir: model directory, which is `<workdir>/model` of the run that fitted it. Without one a
      demo model is used, with a warning; it is fitted on synthetic images when first needed.
    device: 'auto', 'cpu', 'gpu', 'gpu:0,1' or 'tpu'. Several devices share the batches.
    image_threshold: score above which images are NG; None for the calibrated threshold.
    review_threshold: score above which images that are not NG need review; None for the calibrated
      threshold.
    pixel_threshold: map value above which pixels are marked; None for the calibrated threshold.
    backend: 'jax', or an inference runtime, which is faster on a CPU: 'onnxruntime', 'openvino', or
      'auto' for the one installed. With 'auto', JAX is used, with a warning, if no runtime is
      installed or the model cannot be exported. Runtimes compute the model's ONNX graph, which is
      exported once, in float32.
    shard_model: whether to shard the fitted arrays over the devices, such as a memory bank by its
      rows, when they are too large for one device. All devices then compute every batch together.
    access: policy on the URLs that may be read.

  Raises:
    UnknownName: the name is neither a detector nor a directory.
    ModelError: the model directory is missing or damaged.
    ConfigError: the model is of another detector, the device does not exist, a threshold is not a
      number, or the review threshold is above the image threshold.
  """
  device = 'auto' if device is None else device
  _require_supported(backend, device, shard_model)
  devices = meshes.local_devices(meshes.select_devices(device))
  name, directory = _resolve_model(str(model_name), model_dir and str(model_dir))
  info = model_dirs.read_info(directory)
  if name and info.name != name:
    message = f'{directory} is {info.name}, not {name}; omit the name, or choose another.'
    raise ConfigError(message, key='model_name', value=name, allowed=(info.name,))
  thresholds = calibration.override(
    info.thresholds,
    image_threshold=image_threshold,
    review_threshold=review_threshold,
    pixel_threshold=pixel_threshold,
  )
  if backend == _JAX:
    opened = _open_in_jax(info, devices, shard_model)
  else:
    opened = _open_graph(info, backend, devices)
  return opened._replace(model=info._replace(thresholds=thresholds), access=access)


def _require_supported(backend: str, device: str, shard_model: bool) -> None:
  """Raise an error if there is no such backend, or if it does not support the options."""
  if backend not in BACKENDS:
    raise UnknownName(f'Unknown backend {backend!r}; choose from {BACKENDS}.')
  if backend != _JAX and str(device).partition(':')[0] not in ('auto', 'cpu'):
    raise ConfigError(f"{backend} computes on the CPU; omit device={device!r}, or use 'jax'.")
  if backend != _JAX and shard_model:
    raise ConfigError(f"{backend} cannot shard a model; use 'jax' with shard_model.")


def _open_in_jax(
  info: model_dirs.ModelInfo, devices: Sequence[meshes.Device], shard_model: bool
) -> predictor.Predictor:
  """Open a model for JAX on devices, its arrays copied to each or sharded."""
  with jax.default_device(devices[0]):
    mesh = meshes.mesh_of(devices if shard_model else devices[:1])
    model = model_dirs.load_arrays(info, mesh)
    if model.fitted_specs is None:  # Not every model has arrays to shard.
      return predictor.open_on_devices(model, devices)
    return predictor.open_on_mesh(model, mesh)


def _open_graph(
  info: model_dirs.ModelInfo, backend: str, devices: Sequence[meshes.Device]
) -> predictor.Predictor:
  """Open the exported graph of a model; 'auto' falls back to JAX if that fails.

  Raises:
    ConfigError: the backend is not installed, unless it is 'auto'.
    ExportError: the model cannot be exported, unless the backend is 'auto'.
  """
  try:
    return predictor.open_graph(info, backend)
  except (ConfigError, ExportError) as error:
    if backend != runtimes.BACKENDS[0]:
      raise
    logging.LOG.warning(
      'Using JAX for %s, which is slower than an inference runtime: %s', info.directory, error
    )
    return _open_in_jax(info, devices, False)


class Pipeline(NamedTuple):
  """Predictor with the settings of a YAML file.

  Attributes:
    config: settings, with the keys of the YAML file.
    model: predictor that the settings were applied to.
  """

  config: PipelineSettings
  model: predictor.Predictor

  def __repr__(self) -> str:
    return f'{self.config.pipeline_name}: {self.model}'

  def predict(
    self,
    input: object,
    batch_size: int | None = None,
    strict: bool = False,
    skip: Path | None = None,
  ) -> Iterator[Result]:
    """Yield a result for each image, in order.

    Args:
      input: images in any form that `Predictor.predict` takes.
      batch_size: images per call of the detector; None for the batch size in the settings.
      strict: whether to raise an error at the first unreadable image.
      skip: folder to skip, such as that of the results.
    """
    if batch_size is None:
      batch_size = self.config.SubModules.AnomalyDetection.batch_size
    return self.model.predict(input, batch_size, strict, skip)


def create_pipeline(
  pipeline: str | Path = NAMES[0],
  device: str | None = None,
  use_hpip: bool | None = None,
  *,
  config: Mapping[str, object] | None = None,
  enable_hpi: bool | None = None,
  overrides: Mapping[str, object] | None = None,
  access: http.Access = http.PUBLIC_ONLY,
) -> Pipeline:
  """Create a pipeline from its name, a YAML file, or the content of one.

  Args:
    pipeline: 'anomaly_detection', or a YAML file in either format of PaddleX.
    device: 'auto', 'cpu', 'gpu', 'gpu:0,1' or 'tpu'; None for the device in the settings.
    use_hpip: whether to run the exported graph on an inference runtime, as
      `create_model(backend='auto')` does; None for the value in the settings.
    config: content of a YAML file, to use instead of `pipeline`.
    enable_hpi: PaddleX's newer name of `use_hpip`.
    overrides: values by dotted key, such as 'SubModules.AnomalyDetection.model_dir', or by the last
      part of a key.
    access: policy on the URLs that may be read.

  Raises:
    ConfigError: a key is unknown (the error names the closest valid key), a value has the wrong
      type, or the model is of another detector.
    UnknownName: the pipeline, model or backend is unknown.
    ModelError: the model directory is missing or damaged.
  """
  settings = read_settings(pipeline) if config is None else _with_defaults(config, 'config')
  values = {_full_key(key): value for key, value in (overrides or {}).items()}
  arguments = {'use_hpip': use_hpip if enable_hpi is None else enable_hpi, 'device': device or None}
  values |= {key: value for key, value in arguments.items() if value is not None}
  settings = configs.replace(settings, values)
  model_settings, backend = settings.SubModules.AnomalyDetection, settings.backend
  if settings.use_hpip and backend == _JAX:
    backend = runtimes.BACKENDS[0]
  model = create_model(
    model_settings.model_name,
    model_settings.model_dir,
    settings.device,
    **calibration.by_name(model_settings),
    backend=backend,
    shard_model=settings.shard_model,
    access=access,
  )
  return Pipeline(settings, model)


def read_settings(pipeline: str | Path) -> PipelineSettings:
  """Read the settings of a pipeline name or YAML file, with defaults for missing keys.

  Raises:
    UnknownName: `pipeline` is neither a known name nor a YAML file.
    ConfigError: the file cannot be read, or has an unknown key or a value of the wrong type.
  """
  if str(pipeline) in NAMES:
    return PipelineSettings()
  path = Path(pipeline)
  if path.suffix not in ('.yaml', '.yml'):
    message = f'Unknown pipeline {str(pipeline)!r}; choose from {NAMES}, or pass a YAML file.'
    raise UnknownName(message, key='pipeline', value=str(pipeline), allowed=NAMES)
  try:
    values = yaml.safe_load(path.read_text(encoding='utf-8'))
  except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
    raise ConfigError(f'{path} cannot be read as a pipeline: {describe(error)}') from None
  return _with_defaults(values, str(path))


def write_settings(folder: str | Path) -> Path:
  """Write the default settings to a folder, as a YAML file to start from.

  Raises:
    ConfigError: the file exists already.
    UserError: it cannot be written.
  """
  path = Path(folder) / f'{NAMES[0]}.yaml'
  with files.new_output(path):
    if path.exists():
      raise ConfigError(f'{path} exists already; move it, or choose another folder.')
    files.write_text(path, configs.to_yaml(PipelineSettings()))
  return path


_KEY_ALIASES = {
  'enable_hpi': 'use_hpip',
  # Keys of PaddleX 3.0-beta, whose YAML files are still in use.
  'Global.pipeline_name': 'pipeline_name',
  'Pipeline.model': 'SubModules.AnomalyDetection.model_name',
  'Pipeline.batch_size': 'SubModules.AnomalyDetection.batch_size',
  'Pipeline.device': 'device',
  'Pipeline.use_hpip': 'use_hpip',
  'Pipeline.enable_hpi': 'use_hpip',
}
_IGNORED_KEYS = ('Global.input', 'Pipeline.pp_option', 'Pipeline.hpi_params')


def _with_defaults(values: object, source: str) -> PipelineSettings:
  """Return the default settings updated by the content of a YAML file, PaddleX beta included."""
  if not isinstance(values, Mapping):
    raise ConfigError(f'{source} is not a pipeline; expected sections such as SubModules.')
  settings = {
    _KEY_ALIASES.get(key, key): value
    for key, value in configs.flatten(values).items()
    if value is not None and key not in _IGNORED_KEYS
  }
  return configs.from_values(PipelineSettings, settings, source)


def _full_key(key: str) -> str:
  """Return the dotted key whose last part is `key`; unknown keys are returned unchanged.

  Raises:
    ConfigError: `key` is close to a known last part, so probably misspelled.
  """
  full_keys = {k.rpartition('.')[2]: k for k in configs.describe(PipelineSettings())}
  if '.' not in key and key not in full_keys and configs.closest_keys(key, tuple(full_keys)):
    raise configs.unknown_key(key, tuple(full_keys))
  return full_keys.get(key, key)


def _resolve_model(name: str, directory: str | None) -> tuple[str, Path]:
  """Return the title of the detector ('' for any) and the model directory.

  Raises:
    UnknownName: `name` is neither a detector nor a directory.
    ModelError: the demo model, used if no directory is given, could not be fitted.
  """
  if name and not directory and Path(name).is_dir():
    return '', Path(name)
  detector = detectors.find(name)
  if name and not detector:
    titles = sorted(detectors.TITLES)
    raise UnknownName(f'Unknown model {name!r}; choose from {titles}, or pass a model directory.')
  title = detectors.title(detector) if detector else ''
  if directory:
    return title, Path(directory)
  # Opening a model directory does not need the code that draws images and fits.
  from uadjax.inference import demo_model

  detector = detector or demo_model.DEFAULT_DETECTOR
  return detectors.title(detector), demo_model.ensure_model_dir(detector)
