"""From a folder of good images to a model that is ready: `fit_model`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uadjax import config as configs, data, detectors, errors, experiment
from uadjax.distributed import mesh
from uadjax.errors import ConfigError, DataError, Setting, UnknownName
from uadjax.inference import pipelines, predictor
from uadjax.system import memory
from uadjax.training import workdir as workdirs


def fit_model(
  dataset: str | Path,
  model_name: str = 'PatchCore',
  workdir: str | Path = '',
  device: str | None = 'auto',
  *,
  overrides: Mapping[str, Any] | None = None,
) -> predictor.Predictor:
  """Fit a detector to a data set, set its thresholds, evaluate and save it; open it.

  Args:
    dataset: a folder of good images, or any that `python -m uadjax.main` takes: with images to test
      on it is evaluated, too.
    model_name: 'STFPM', 'PaDiM' or 'PatchCore' in any case; a variant of its configuration after a
      colon, such as 'PatchCore:ten'.
    workdir: for all that it leaves, such as model/ and report.html; runs/<model>_<folder> where
      none is named.
    device: 'auto', 'cpu', 'gpu', 'gpu:0,1' or 'tpu'.
    overrides: value by dotted key of the configuration, such as {'fit.overwrite': True}.

  Raises:
    UserError: whatever is wrong with the data, the settings or the machine, and the way out.
  """
  with errors.setting_format(format_setting):
    _, run_dir = run_training(dataset, model_name, workdir, device, overrides or {})
  return pipelines.create_model(model_dir=run_dir / 'model', device=device)


def format_setting(setting: Setting) -> str:
  """Write a setting as an argument of `fit_model`."""
  value = '...' if setting.value is ... else repr(setting.value)
  if setting.key in errors.OTHER_KEYS or setting.key == 'device':  # An argument of its own.
    name = errors.OTHER_KEYS.get(setting.key, setting.key)
    return name if setting.value is ... or '(' in name else f'{name}={value}'
  return f'overrides={{{setting.key!r}: {value}}}'


def run_training(
  dataset: str | Path,
  model_name: str,
  workdir: str | Path | None,
  device: str | None,
  overrides: Mapping[str, Any],
) -> tuple[experiment.Result, Path]:
  """The result of that experiment, and where it lies."""
  if not str(dataset) or not Path(dataset).is_dir():  # Before weights are fetched for it.
    raise DataError(f'{str(dataset)!r} is no folder; name one that holds good images.')
  name, colon, variant = model_name.partition(':')
  titles = {title.lower(): title for title in detectors.TITLES}
  if name.lower() not in titles:
    raise UnknownName(f'Unknown model {name!r}; choose from {sorted(titles.values())}.')
  settings = {'data.root': str(dataset), 'device': device or 'auto', **overrides, 'mode': 'train'}
  config = configs.load(name.lower() + colon + variant, [*settings.items()])
  if data.expand(config.data) != [config.data.category]:
    raise ConfigError(
      f'{config.data.category!r} is a group, each of its categories with a model of its own; name '
      'one of them, or use `python -m uadjax.main`.'
    )
  memory.retain_freed_pages()
  mesh.use_cores_as_devices()
  run_dir = Path(workdir or workdirs.default_workdir(config, variant))
  return experiment.run_logged(config, run_dir), run_dir
