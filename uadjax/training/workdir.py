"""Work directory of a run: protection of existing runs, and the result file of each mode."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import json
from pathlib import Path
import shutil
from typing import Any, NoReturn

import yaml

from uadjax import config as configs
from uadjax.data.layouts import scanning
from uadjax.data.settings import DataSettings
from uadjax.errors import ConfigError, describe, refuse, Setting
from uadjax.system import files, locks
from uadjax.training import checkpoint
from uadjax.training.settings import Settings

# If one of these changed on resuming, no single configuration would describe the run.
_FIXED_ON_RESUME = (
  'seed', 'data.', 'backbone.', 'detector.',
  'fit.batch_size', 'fit.held_out', 'fit.learning_rate', 'fit.warmup_steps', 'fit.eval_every',
  'fit.cache_bytes',
)  # fmt: skip
_RUN_FOLDERS = (
  'checkpoints', 'tensorboard', 'pictures', 'curves', 'predictions', 'model', 'state',
)  # fmt: skip
# A sweep holds a lock of another name in the work directories of its runs.
_LOCK_FILE = '.run.lock'
_START_OVER_HINT = (Setting('fit.overwrite', True), ', or use another ', Setting('workdir'), '.')


class WorkdirLocked(ConfigError):
  """Work directory that another run is using; nothing may be written into it."""


@contextlib.contextmanager
def lock(workdir: Path, config: Settings) -> Iterator[None]:
  """Create a work directory, hold its lock, and remove what killed runs left unfinished.

  A directory that the block leaves empty is removed again, and so are its new parents. Predictions
  into a table take no lock: several of them share a work directory.

  Raises:
    ConfigError: the directory cannot be created or written.
    WorkdirLocked: another run is using it.
  """
  if config.mode == 'predict' and config.predict.table:
    yield
    return
  with contextlib.ExitStack() as stack:
    try:
      new_folders = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
      stack.callback(_remove_empty, new_folders)
      workdir.mkdir(parents=True, exist_ok=True)
      stack.enter_context(locks.lock_folder(workdir, _LOCK_FILE, wait=False))
    except locks.FolderLocked as error:
      hint = 'Wait until it ends, or use another ', Setting('workdir'), '.'
      message = f'{workdir} is in use by another run: {error}.'
      raise WorkdirLocked(message, key='workdir', value=workdir, hint=hint) from None
    except OSError as error:
      _refuse_unwritable(workdir, error)
    files.remove_leftovers(workdir)
    yield


def _remove_empty(folders: Sequence[Path]) -> None:
  """Remove folders, the innermost first, up to one that is not empty."""
  with contextlib.suppress(OSError):
    for folder in folders:
      folder.rmdir()


def _refuse_unwritable(workdir: Path, error: OSError) -> NoReturn:
  message = f'Cannot write to {workdir} ({error.strerror}).'
  refuse('workdir', workdir, message, 'Choose another ', Setting('workdir'), '.')


def default_workdir(config: Settings, source: str) -> Path:
  """Return `runs/<config>_<variant>_<category>`, the default work directory.

  A config that is not one of configs/ counts as that of its detector. Without a category, the name
  is that of the data folder, or of a parent if the folder is called 'good' or similar.

  Args:
    config: settings of the run.
    source: config that they were read from, such as 'patchcore:ten', see `settings.load`.
  """
  path, _, variant = source.partition(':')
  name = Path(path).stem
  if name not in configs.builtin_files():
    name = config.detector.name
  names = name, variant, _dataset_name(config.data)
  return Path('runs') / '_'.join(filter(None, names))


def default_extension_workdir(config: Settings) -> Path:
  """Return `runs/<run>_<category>`, the default for a run that extends the model of `<run>`.

  The name is longer than that of the earlier run, so that by default this run is never replaced.
  """
  run_name = Path(config.fit.extend).resolve().parent.name
  return Path('runs') / f'{run_name}_{_dataset_name(config.data)}'


def _dataset_name(data: DataSettings) -> str:
  folders = reversed(Path(data.root).resolve().parts if data.root else ())
  names = (name for name in folders if name.lower() != 'train' and not scanning.is_normal(name))
  return data.category or next(names, '')


def category_name(config: Settings) -> str:
  """Return the name of the category, or of the folder if `data.root` is a single category."""
  return Path(config.data.root, config.data.category).resolve().name


def create(workdir: Path) -> None:
  """Create the work directory, if it does not exist.

  Raises:
    ConfigError: it cannot be created.
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    _refuse_unwritable(workdir, error)


def saved_steps(workdir: Path) -> list[int]:
  """Return the steps of the rolling checkpoints in a work directory, in ascending order."""
  return checkpoint.saved_steps(workdir / 'checkpoints', 'rolling')


def require_no_conflict(workdir: Path, config: Settings) -> None:
  """Check that a run may start in `workdir`.

  Raises:
    ConfigError: `workdir` holds a run and neither `fit.resume` nor `fit.overwrite` is set, or the
      run to resume does not exist or has other settings.
  """
  resume_from, steps = config.fit.resume, saved_steps(workdir)
  if resume_from:
    _require_same_run(workdir / 'config.yaml', config)
    if resume_from not in ('latest', 'best', *map(str, steps)):
      message = f"fit.resume must be 'latest', 'best' or one of the steps {steps}."
      refuse('fit.resume', resume_from, message, allowed=('latest', 'best', *steps))
  elif (steps or (workdir / 'model').exists()) and not config.fit.overwrite:
    run, hint = 'a finished run', ('Start over with ', *_START_OVER_HINT)
    if steps:
      run = f'a run with a checkpoint of step {steps[-1]}'
      resume_setting = Setting('fit.resume', 'latest')
      hint = 'Resume with ', resume_setting, ', start over with ', *_START_OVER_HINT
    elif not is_finished(workdir):
      run = 'a run that did not finish'
      hint = *hint, f' To evaluate its model: `uadjax report {workdir / "model"} DATASET`.'
    refuse('workdir', workdir, f'{workdir} holds {run}.', *hint)


def is_finished(workdir: Path) -> bool:
  """Return whether the training run in `workdir` succeeded, including its evaluation."""
  return bool(_read_result(workdir / 'train_result.json').get('done_flag'))


def finished_result(workdir: Path, config: Settings) -> dict[str, Any] | None:
  """Return the result of the successful training run in `workdir`, or None if there is none.

  Raises:
    ConfigError: that run has other settings than `config`.
  """
  result = _read_result(workdir / 'train_result.json')
  if not result.pop('done_flag', False):
    return None
  _require_same_run(workdir / 'config.yaml', config)
  return result


def prepare(workdir: Path, config: Settings, keep: Sequence[str] = ()) -> None:
  """Write the configuration, and delete result files and, when overwriting, the folders of a run.

  Call `require_no_conflict` first.

  Args:
    workdir: work directory of the run.
    config: configuration of the run.
    keep: names of folders that an overwriting run must not delete, because it replaces them later.
  """
  if config.fit.overwrite and not config.fit.resume:
    for name in set(_RUN_FOLDERS) - set(keep):
      shutil.rmtree(workdir / name, ignore_errors=True)
  for result_path in workdir.glob('*_result.json'):
    result_path.unlink()
  files.write_text(workdir / 'config.yaml', configs.to_yaml(without_run_options(config)))


def without_run_options(config: Settings) -> Settings:
  """Return a copy with the default resume, overwrite, extend and host settings, for reuse."""
  fit = dataclasses.replace(config.fit, resume='', overwrite=False, extend='')
  hosts = dataclasses.replace(config.hosts, coordinator='auto', count=0, index=-1)
  return dataclasses.replace(config, fit=fit, hosts=hosts)


def write_result(workdir: Path, mode: str, result: Mapping[str, Any]) -> None:
  """Write `<mode>_result.json` of a run that succeeded."""
  files.write_json(workdir / f'{mode}_result.json', {'done_flag': True, **result})


def write_failure(workdir: Path, mode: str, error: BaseException) -> None:
  """Write `<mode>_result.json` of a run that failed; keep the result of a finished training run.

  Such a result remains when a further training run refused to overwrite it.
  """
  path = workdir / f'{mode}_result.json'
  if mode == 'train' and _read_result(path).get('done_flag'):
    return
  failure = {'done_flag': False, 'err_type': type(error).__name__, 'err_msg': describe(error)}
  files.write_json(path, failure)


def _read_result(path: Path) -> dict[str, Any]:
  """Return the result in a file; an empty one if the file is missing or damaged."""
  try:
    result = json.loads(path.read_text()) if path.is_file() else {}
  except ValueError:
    return {}
  return result if isinstance(result, dict) else {}


def _require_same_run(config_path: Path, config: Settings) -> None:
  if not config_path.is_file():
    message = f'{config_path.parent} holds no run to resume.'
    hint = 'Start a new run: ', Setting('fit.resume', ''), '.'
    refuse('fit.resume', config.fit.resume, message, *hint)
  try:
    previous_settings = configs.flatten(yaml.safe_load(config_path.read_text()))
  except (yaml.YAMLError, AttributeError):
    hint = ('Start over with ', Setting('fit.overwrite', True), ' instead of resuming.')
    raise ConfigError(f'{config_path} is damaged.', hint=hint) from None
  for key, value in configs.flatten(configs.to_plain_dict(config)).items():
    previous = previous_settings.get(key)
    if key.startswith(_FIXED_ON_RESUME) and previous != value:
      message = f'{key} is {value!r}, but the run to resume has {previous!r}.'
      hint = 'Do not change it, or start a new run in another ', Setting('workdir'), '.'
      refuse(key, value, message, *hint, allowed=previous)
