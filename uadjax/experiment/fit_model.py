"""Training from Python: `fit_model`, from a folder of good images to a predictor."""

from collections.abc import Iterator, Mapping
import contextlib
from pathlib import Path

from uadjax import config as configs, data, detectors, errors, experiment
from uadjax.distributed import mesh
from uadjax.errors import DataError, ModelError, refuse, Setting, UnknownName
from uadjax.experiment import validation
from uadjax.inference import pipelines, predictor
from uadjax.model import model_dir
from uadjax.system import memory
from uadjax.training import settings, train as training, workdir as workdirs

_DEFAULT_MODEL = 'PatchCore'
# Key of a setting -> argument of `fit_model` that sets it.
_ARGUMENTS = {**errors.OTHER_KEYS, 'device': 'device', 'fit.extend': 'extend'}
# Settings that a run takes from the model that it extends: those that must be equal, and those that
# determine the new model and its thresholds. All others belong to a single run: its images
# and whether to accept their errors, its devices and processes, its outputs, and the permission to
# overwrite.
_INHERITED = (
  'backbone.', 'calibrate.', 'data.bits', 'data.mask', 'data.ops', 'data.range', 'data.roi',
  'detector.', 'fit.augment', 'fit.batch_size', 'seed',
)  # fmt: skip


def fit_model(
  dataset: str | Path,
  model_name: str | None = None,
  workdir: str | Path = '',
  device: str | None = 'auto',
  *,
  extend: str | Path | None = None,
  overrides: Mapping[str, object] | None = None,
  tune_process: bool = False,
) -> predictor.Predictor:
  """Fit a detector to a dataset, calibrate, evaluate and save it, and return a predictor.

  With `extend`, a fitted PaDiM, PatchCore or SubspaceAD model learns from further good images. The
  result is a new model, and the earlier images are not needed. The model that is extended does not
  change, unless `workdir` is the directory of its run and {'fit.overwrite': True} is set: then it
  is replaced.

  The process keeps its JAX settings, signal handlers, log handlers and environment, unless
  `tune_process` is true.

  Args:
    dataset: folder of good images, or a dataset in any layout that `python -m uadjax.main` reads;
      the model is evaluated if the dataset has test images.
    model_name: 'STFPM', 'PaDiM', 'PatchCore', 'SubspaceAD' or another file of configs/, such as
      'AnomalyDINO', in any case, optionally with a variant of its configuration after a colon, such
      as 'PatchCore:ten'; by default 'PatchCore', or the detector of the model to extend.
    workdir: directory for the outputs, such as model/ and report.html; by default
      runs/<model>_<folder>, or runs/<run>_<folder> for a run that extends the model of <run>.
    device: 'auto', 'cpu', 'gpu', 'gpu:0,1' or 'tpu'.
    extend: model directory of the model to extend, such as runs/bolts/model. The new run takes over
      its detector, backbone, `data.ops`, `data.bits`, `data.range`, region of interest,
      `fit.augment`, `data.mask`, calibration, batch size and seed. Overrides may change the last
      four, except the seed of a model with augmented copies; the others must stay the same.
    overrides: values by dotted configuration key, such as {'fit.overwrite': True}.
    tune_process: whether to change this process, for good, so that a CPU fits faster. Every core
      becomes a JAX device, if JAX has not computed anything yet: on two cores, features then take
      two thirds of the time. On Linux, glibc keeps freed memory for the next step instead of
      returning it to the system, which saves STFPM between nothing and a few percent. `uadjax fit`
      and `python -m uadjax.main` always do so.

  Returns:
    A predictor that uses the saved model on `device`.

  Raises:
    UserError: the data, the settings or the machine do not allow the fit; the message says how
      to fix it.
  """
  if tune_process:
    memory.retain_freed_pages()
    mesh.use_cores_as_devices()
  with errors.setting_format(format_setting):
    _, run_dir = run_training(dataset, model_name, workdir, device, extend, overrides or {})
  return pipelines.create_model(model_dir=run_dir / 'model', device=device)


def format_setting(setting: Setting) -> str:
  """Format a setting as an argument of `fit_model`."""
  value = '...' if setting.value is ... else repr(setting.value)
  if name := _ARGUMENTS.get(setting.key):
    return name if setting.value is ... or '(' in name else f'{name}={value}'
  return f'overrides={{{setting.key!r}: {value}}}'


def run_training(
  dataset: str | Path,
  model_name: str | None,
  workdir: str | Path | None,
  device: str | None,
  extend: str | Path | None,
  overrides: Mapping[str, object],
) -> tuple[experiment.Result, Path]:
  """Run the training that `fit_model` describes, and return its result and work directory.

  Raises:
    UserError: the data, the settings or the machine do not allow the training.
  """
  # Check this first, so that weights are not downloaded needlessly.
  if not str(dataset) or not Path(str(dataset)).is_dir():
    raise DataError(f'{str(dataset)!r} is not a folder; pass a folder of good images.')
  arguments = {'data.root': str(dataset), 'device': device or 'auto', 'fit.extend': extend or ''}
  values = {**arguments, **overrides, 'mode': 'train'}
  if values['fit.extend']:
    config = _load_extension(model_name, values)
    default_workdir = workdirs.default_extension_workdir(config)
  else:
    config_name = _config_name(model_name or _DEFAULT_MODEL)
    config = settings.load(config_name, values.items())
    default_workdir = workdirs.default_workdir(config, config_name)
  if data.expand(config.data) != [config.data.category]:
    category = config.data.category
    message = f'{category!r} is a group, and every category in it needs its own model.'
    hint = 'Set ', Setting('data.category'), ' to one of them, or use `python -m uadjax.main`.'
    refuse('data.category', category, message, *hint)
  run_dir = Path(str(workdir)) if workdir else default_workdir
  with workdirs.lock(run_dir, config):
    validation.validate(config, run_dir)
    with _nothing_left_if_refused(run_dir):
      return experiment.run(config, run_dir), run_dir


@contextlib.contextmanager
def _nothing_left_if_refused(run_dir: Path) -> Iterator[None]:
  """Delete the files of a run that fails before it begins to fit, such as at its images."""
  previous_names = {path.name for path in run_dir.iterdir()}
  try:
    yield
  except BaseException:
    if not (run_dir / 'config.yaml').exists():  # It is written when the fit begins.
      for name in {'train.log', 'train_result.json'} - previous_names:
        (run_dir / name).unlink(missing_ok=True)
    raise


def _config_name(model_name: str) -> str:
  """Return the name of a model's configuration: 'patchcore:ten' for 'PatchCore:ten'."""
  name, colon, variant = str(model_name).partition(':')
  config, files = detectors.find(name) or name.lower(), configs.builtin_files().keys()
  if config not in files:
    allowed = sorted((*detectors.TITLES, *files - detectors.settings_types().keys()))
    raise UnknownName(f'Unknown model {name!r}; choose from {allowed}.')
  return config + colon + variant


def _load_extension(model_name: str | None, values: Mapping[str, object]) -> settings.Settings:
  """Return the settings of a run that extends the model `fit.extend`.

  In order of precedence: `values`, the variant that `model_name` selects, the model, the defaults.

  Raises:
    UserError: the model is missing or damaged, cannot be extended, or is of another detector than
      `model_name`; or settings differ from it that must be equal.
  """
  directory = str(values['fit.extend'])
  try:
    info = model_dir.read_info(directory)
  except ModelError as error:
    error.key, error.value = 'fit.extend', directory
    error.message = f'{Setting("fit.extend")}: {error.message}'
    raise
  detector = info.config.detector.name
  if not detectors.learns_in_one_pass(detector):
    message = f'{info.name} cannot be extended: it trains in steps, on images that are not kept.'
    hint = 'Fit a new model to all images, the earlier ones included, without '
    refuse('fit.extend', directory, message, hint, Setting('fit.extend'), '.')
  config_name = _config_name(model_name or detector)
  if configs.read(config_name)['detector.name'] != detector:
    message = f'The model to extend, {directory}, is {info.name}, not {model_name}.'
    hint = 'Omit ', Setting('config'), ', or extend another model.'
    refuse('config', model_name, message, *hint, allowed=(info.name,))
  # Only the settings in which a variant differs from the plain configuration override the model.
  defaults = configs.read(detector)
  variant = {k: v for k, v in configs.read(config_name).items() if v != defaults.get(k)}
  model_settings = configs.flatten(model_dir.read_settings(Path(directory)))
  inherited = {k: v for k, v in model_settings.items() if k.startswith(_INHERITED)}
  config = settings.load(detector, {**inherited, **variant, **values}.items())
  # Validate before the weights are checked: if the backbone differs, their errors would mislead.
  training.validate(config)
  return config
