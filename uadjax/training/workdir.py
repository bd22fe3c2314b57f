"""The folder of a run: who may write into it, and the result file that each mode leaves there."""

from collections.abc import Mapping, Sequence
import json
from pathlib import Path
import shutil
from typing import Any

import yaml

from uadjax import config as configs
from uadjax.data.layouts import scanning
from uadjax.errors import ConfigError, Setting
from uadjax.system import files
from uadjax.training import checkpoint
from uadjax.types import Config

# Changing one of these halfway would make a run that no configuration describes.
_FIXED_ON_RESUME = (
  'seed', 'data.', 'backbone.', 'detector.',
  'fit.batch_size', 'fit.held_out', 'fit.learning_rate', 'fit.warmup_steps', 'fit.eval_every',
  'fit.cache_bytes',
)  # fmt: skip
_RUN_FOLDERS = (
  'checkpoints', 'tensorboard', 'pictures', 'curves', 'predictions', 'model', 'state',
)  # fmt: skip
_START_OVER_HINT = (Setting('fit.overwrite', True), ', or name another ', Setting('workdir'), '.')


def default_workdir(config: Config, variant: str = '') -> Path:
  """Where a run goes that was not told: named after the detector, its variant and the data."""
  data = config.data
  folder_names = reversed(Path(data.root).resolve().parts if data.root else ())
  informative_names = (
    folder_name
    for folder_name in folder_names
    if folder_name.lower() not in (*scanning.NORMAL_FOLDER_NAMES, 'train')
  )
  name = data.category or next(informative_names, '')
  return Path('runs') / '_'.join(filter(None, (config.detector.name, variant, name)))


def category_name(config: Config) -> str:
  """The category's name; of a root that is the category itself, the folder's."""
  return Path(config.data.root, config.data.category).resolve().name


def create(workdir: Path) -> None:
  """Make the folder, if it is not there."""
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ConfigError(
      f'The work directory {workdir} cannot be made ({error.strerror}).',
      key='workdir',
      value=workdir,
      hint=('Name another ', Setting('workdir'), '.'),
    ) from None


def saved_steps(workdir: Path) -> list[int]:
  """The steps that are saved."""
  return checkpoint.saved_steps(workdir / 'checkpoints', 'rolling')


def require_no_conflict(workdir: Path, config: Config) -> None:
  """Refuse to write over a run unasked, or to go on with another."""
  resume_from, steps = config.fit.resume, saved_steps(workdir)
  if resume_from:
    _require_same_run(workdir / 'config.yaml', config)
    if resume_from not in ('latest', 'best', *map(str, steps)):
      raise ConfigError(
        f"fit.resume must be 'latest', 'best' or one of {steps}, got {resume_from!r}."
      )
  elif steps and not config.fit.overwrite:
    raise ConfigError(
      f'{workdir} holds a run, saved at step {steps[-1]}.',
      key='workdir',
      value=workdir,
      hint=(
        'Go on with ',
        Setting('fit.resume', 'latest'),
        ', start over with ',
        *_START_OVER_HINT,
      ),
    )
  elif (workdir / 'model').exists() and not config.fit.overwrite:
    raise ConfigError(
      f'{workdir} holds a finished run.',
      key='workdir',
      value=workdir,
      hint=('Start over with ', *_START_OVER_HINT),
    )


def finished_result(workdir: Path, config: Config) -> dict[str, Any] | None:
  """The result of a run of this configuration that is there and went well."""
  path = workdir / 'train_result.json'
  if not path.is_file():
    return None
  result = json.loads(path.read_text())
  if not result.pop('done_flag'):
    return None
  _require_same_run(workdir / 'config.yaml', config)
  return result


def prepare(workdir: Path, config: Config, keep: Sequence[str] = ()) -> None:
  """Begin a run, or go on with the one that is there; `check` comes before.

  Of a run that is started over, the folders to `spare` stay until new ones take their place.
  """
  if config.fit.overwrite and not config.fit.resume:
    for name in set(_RUN_FOLDERS) - set(keep):
      shutil.rmtree(workdir / name, ignore_errors=True)
  for result_path in workdir.glob('*_result.json'):
    result_path.unlink()
  files.write_text(workdir / 'config.yaml', configs.to_yaml(without_run_options(config)))


def without_run_options(config: Config) -> Config:
  """The configuration without what concerns one folder, to be passed back elsewhere."""
  portable_config = config.copy_and_resolve_references().unlock()
  portable_config.fit.update({'resume': '', 'overwrite': False, 'extend': ''})
  portable_config.hosts.update({'coordinator': 'auto', 'count': 0, 'index': -1})
  return portable_config


def write_result(workdir: Path, mode: str, result: Mapping[str, Any]) -> None:
  """Write the result file of a mode that did what it should."""
  files.write_json(workdir / f'{mode}_result.json', {'done_flag': True, **result})


def write_failure(workdir: Path, mode: str, error: BaseException) -> None:
  """Write why a mode did not; the result of a run that was only not written over stays."""
  path = workdir / f'{mode}_result.json'
  if mode == 'train' and path.is_file() and '"done_flag": true' in path.read_text():
    return
  failure = {'done_flag': False, 'err_type': type(error).__name__, 'err_msg': str(error)}
  files.write_json(path, failure)


def _require_same_run(config_path: Path, config: Config) -> None:
  if not config_path.is_file():
    raise ConfigError(
      f'fit.resume is set, but there is no run to go on with in {config_path.parent}.'
    )
  try:
    previous_settings = configs.flatten(yaml.safe_load(config_path.read_text()))
  except (yaml.YAMLError, AttributeError):
    raise ConfigError(
      f'{config_path} is damaged.', hint=('Pass ', Setting('fit.overwrite', True), ' instead.')
    ) from None
  for key, value in configs.flatten(configs.to_plain_dict(config)).items():
    if key.startswith(_FIXED_ON_RESUME) and previous_settings.get(key) != value:
      raise ConfigError(
        f'{key} is {value!r}, but the run to go on with has {previous_settings.get(key)!r}.',
        key=key,
        value=value,
        allowed=previous_settings.get(key),
        hint=('Leave it, or begin a new run in another ', Setting('workdir'), '.'),
      )
