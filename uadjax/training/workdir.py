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
_FIXED = (
  'seed', 'data.', 'backbone.', 'detector.',
  'fit.batch_size', 'fit.held_out', 'fit.learning_rate', 'fit.warmup_steps', 'fit.eval_every',
  'fit.cache_bytes',
)  # fmt: skip
_OF_A_RUN = (
  'checkpoints', 'tensorboard', 'pictures', 'curves', 'predictions', 'model', 'state',
)  # fmt: skip
_BEGIN_ANEW = (Setting('fit.overwrite', True), ', or name another ', Setting('workdir'), '.')


def default(config: Config, variant: str = '') -> Path:
  """Where a run goes that was not told: named after the detector, its variant and the data."""
  data = config.data
  places = reversed(Path(data.root).resolve().parts if data.root else ())
  telling = (
    place for place in places if place.lower() not in (*scanning.NORMAL_FOLDER_NAMES, 'train')
  )
  name = data.category or next(telling, '')
  return Path('runs') / '_'.join(filter(None, (config.detector.name, variant, name)))


def label(config: Config) -> str:
  """The category's name; of a root that is the category itself, the folder's."""
  return Path(config.data.root, config.data.category).resolve().name


def make(workdir: Path) -> None:
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


def steps(workdir: Path) -> list[int]:
  """The steps that are saved."""
  return checkpoint.steps(workdir / 'checkpoints', 'rolling')


def check(workdir: Path, config: Config) -> None:
  """Refuse to write over a run unasked, or to go on with another."""
  choice, there = config.fit.resume, steps(workdir)
  if choice:
    _same_run(workdir / 'config.yaml', config)
    if choice not in ('latest', 'best', *map(str, there)):
      raise ConfigError(f"fit.resume must be 'latest', 'best' or one of {there}, got {choice!r}.")
  elif there and not config.fit.overwrite:
    raise ConfigError(
      f'{workdir} holds a run, saved at step {there[-1]}.',
      key='workdir',
      value=workdir,
      hint=('Go on with ', Setting('fit.resume', 'latest'), ', start over with ', *_BEGIN_ANEW),
    )
  elif (workdir / 'model').exists() and not config.fit.overwrite:
    raise ConfigError(
      f'{workdir} holds a finished run.',
      key='workdir',
      value=workdir,
      hint=('Start over with ', *_BEGIN_ANEW),
    )


def finished(workdir: Path, config: Config) -> dict[str, Any] | None:
  """The result of a run of this configuration that is there and went well."""
  path = workdir / 'train_result.json'
  if not path.is_file():
    return None
  result = json.loads(path.read_text())
  if not result.pop('done_flag'):
    return None
  _same_run(workdir / 'config.yaml', config)
  return result


def claim(workdir: Path, config: Config, spare: Sequence[str] = ()) -> None:
  """Begin a run, or go on with the one that is there; `check` comes before.

  Of a run that is started over, the folders to `spare` stay until new ones take their place.
  """
  if config.fit.overwrite and not config.fit.resume:
    for name in set(_OF_A_RUN) - set(spare):
      shutil.rmtree(workdir / name, ignore_errors=True)
  for old in workdir.glob('*_result.json'):
    old.unlink()
  files.write_text(workdir / 'config.yaml', configs.to_yaml(portable(config)))


def portable(config: Config) -> Config:
  """The configuration without what concerns one folder, to be passed back elsewhere."""
  own = config.copy_and_resolve_references().unlock()
  own.fit.update({'resume': '', 'overwrite': False, 'extend': ''})
  own.hosts.update({'coordinator': 'auto', 'count': 0, 'index': -1})
  return own


def succeed(workdir: Path, mode: str, result: Mapping[str, Any]) -> None:
  """Write the result file of a mode that did what it should."""
  files.write_json(workdir / f'{mode}_result.json', {'done_flag': True, **result})


def fail(workdir: Path, mode: str, error: BaseException) -> None:
  """Write why a mode did not; the result of a run that was only not written over stays."""
  path = workdir / f'{mode}_result.json'
  if mode == 'train' and path.is_file() and '"done_flag": true' in path.read_text():
    return
  told = {'done_flag': False, 'err_type': type(error).__name__, 'err_msg': str(error)}
  files.write_json(path, told)


def _same_run(saved: Path, config: Config) -> None:
  if not saved.is_file():
    raise ConfigError(f'fit.resume is set, but there is no run to go on with in {saved.parent}.')
  try:
    before = configs.flatten(yaml.safe_load(saved.read_text()))
  except (yaml.YAMLError, AttributeError):
    raise ConfigError(
      f'{saved} is damaged.', hint=('Pass ', Setting('fit.overwrite', True), ' instead.')
    ) from None
  for key, value in configs.flatten(configs.to_plain_dict(config)).items():
    if key.startswith(_FIXED) and before.get(key) != value:
      raise ConfigError(
        f'{key} is {value!r}, but the run to go on with has {before.get(key)!r}.',
        key=key,
        value=value,
        allowed=before.get(key),
        hint=('Leave it, or begin a new run in another ', Setting('workdir'), '.'),
      )
