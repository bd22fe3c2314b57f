"""Training from Python: `fit_model`, from a folder of good images to a predictor."""

from collections.abc import Mapping
from pathlib import Path

from uadjax import data, detectors, errors, experiment
from uadjax.distributed import mesh
from uadjax.errors import DataError, refuse, Setting, UnknownName
from uadjax.experiment import validation
from uadjax.inference import pipelines, predictor
from uadjax.system import memory
from uadjax.training import settings, workdir as workdirs


def fit_model(
  dataset: str | Path,
  model_name: str = 'PatchCore',
  workdir: str | Path = '',
  device: str | None = 'auto',
  *,
  overrides: Mapping[str, object] | None = None,
  tune_process: bool = False,
) -> predictor.Predictor:
  """Fit a detector to a dataset, calibrate, evaluate and save it, and return a predictor.

  The process keeps its JAX settings, signal handlers, log handlers and environment, unless
  `tune_process` is true.

  Args:
    dataset: folder of good images, or a dataset in any layout that `python -m uadjax.main` reads;
      the model is evaluated if the dataset has test images.
    model_name: 'STFPM', 'PaDiM' or 'PatchCore' (case-insensitive), optionally with a variant of its
      configuration after a colon, such as 'PatchCore:ten'.
    workdir: directory for the outputs, such as model/ and report.html; by default
      runs/<model>_<folder>.
    device: 'auto', 'cpu', 'gpu', 'gpu:0,1' or 'tpu'.
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
    _, run_dir = run_training(dataset, model_name, workdir, device, overrides or {})
  return pipelines.create_model(model_dir=run_dir / 'model', device=device)


def format_setting(setting: Setting) -> str:
  """Format a setting as an argument of `fit_model`."""
  value = '...' if setting.value is ... else repr(setting.value)
  if setting.key in errors.OTHER_KEYS or setting.key == 'device':  # These are separate arguments.
    name = errors.OTHER_KEYS.get(setting.key, setting.key)
    return name if setting.value is ... or '(' in name else f'{name}={value}'
  return f'overrides={{{setting.key!r}: {value}}}'


def run_training(
  dataset: str | Path,
  model_name: str,
  workdir: str | Path | None,
  device: str | None,
  overrides: Mapping[str, object],
) -> tuple[experiment.Result, Path]:
  """Run the training that `fit_model` describes, and return its result and work directory.

  Raises:
    UserError: the data, the settings or the machine do not allow the training.
  """
  # Check this first, so that weights are not downloaded needlessly.
  if not str(dataset) or not Path(dataset).is_dir():
    raise DataError(f'{str(dataset)!r} is not a folder; pass a folder of good images.')
  name, colon, variant = model_name.partition(':')
  titles = {title.lower(): title for title in detectors.TITLES}
  if name.lower() not in titles:
    raise UnknownName(f'Unknown model {name!r}; choose from {sorted(titles.values())}.')
  values = {'data.root': str(dataset), 'device': device or 'auto', **overrides, 'mode': 'train'}
  config = settings.load(name.lower() + colon + variant, values.items())
  if data.expand(config.data) != [config.data.category]:
    category = config.data.category
    message = f'{category!r} is a group, and every category in it needs its own model.'
    hint = 'Set ', Setting('data.category'), ' to one of them, or use `python -m uadjax.main`.'
    refuse('data.category', category, message, *hint)
  run_dir = Path(workdir or workdirs.default_workdir(config, variant))
  validation.validate(config, run_dir)
  return experiment.run(config, run_dir), run_dir
