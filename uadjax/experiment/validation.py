"""Checks of a run before it reads images, fetches weights or writes anything.

Types and bounds of single settings are checked when settings are loaded; here are those that depend
on each other, on this machine, and on the files that they name.
"""

from collections.abc import Callable
from pathlib import Path

from uadjax import backbones, config as configs, data
from uadjax.backbones import weights
from uadjax.data import convert, inputs, layouts, transforms
from uadjax.detectors.base import RunContext
from uadjax.distributed import mesh as meshes, processes
from uadjax.errors import about, ConfigError, Setting, UnknownName, WeightsError
from uadjax.export import quantize
from uadjax.model import model_dir
from uadjax.training import resolve_backbone, train as training, workdir as workdirs
from uadjax.training.settings import Settings


def validate(config: Settings, workdir: Path) -> None:
  """Check that the run of `config.mode` in `workdir` can start.

  Raises:
    UserError: a setting is invalid; the error names its key and value.
  """
  with about('device', config.device):
    meshes.select_devices(config.device)
  with about('mesh.data', config.mesh.data):
    meshes.make_mesh(config.device, config.mesh.data, 0)
  _CHECKS[config.mode](config, workdir)


def is_single(config: Settings, categories: list[str]) -> bool:
  """Return whether a run is for one category, not for those of a group."""
  is_demo_default = not config.data.root and not config.data.category
  return categories == [config.data.category] or is_demo_default


def _validate_training(config: Settings, workdir: Path) -> None:
  categories = _require_dataset(config)
  for name in ('convert', 'split'):
    if getattr(config.check, name).enable:
      raise ConfigError(
        f'check.{name} changes files, which only the mode check_dataset may do.',
        key=f'check.{name}.enable',
        value=True,
        hint=('Run it first: ', Setting('mode', 'check_dataset'), '.'),
      )
  if not is_single(config, categories):
    # Of a group, categories without checkpoints start anew, and finished ones are skipped.
    is_resuming, config = bool(config.fit.resume), configs.replace(config, {'fit.resume': ''})
    for category in () if is_resuming else categories:
      workdirs.require_no_conflict(workdir / category, config)
  _require_backbone(config)
  if config.fit.extend or (config.fit.resume and (workdir / 'config.yaml').is_file()):
    with about('fit.extend', config.fit.extend):
      # The backbone is that of the earlier run, so that nothing is fetched.
      config = resolve_backbone.resolve_backbone(config, workdir)
  training.validate(config)
  if is_single(config, categories):
    workdirs.require_no_conflict(workdir, config)


def _require_dataset(config: Settings) -> list[str]:
  """Return the categories of the dataset, after checking that their folders exist."""
  root, category = config.data.root, config.data.category
  if not root:
    # Imported here because users with their own images do not need the renderer.
    from uadjax.data import demo

    categories = data.expand(config.data)
    if unknown := set(categories) - set(demo.CATEGORIES):
      raise UnknownName(
        f'The demo dataset has no category {unknown.pop()!r}; choose from {demo.CATEGORIES}.',
        key='data.category',
        value=category,
        allowed=demo.CATEGORIES,
      )
    return categories
  if not Path(root).is_dir():
    with about('data.root', root):
      layouts.scan(root)
  with about('data.category', category):
    categories = data.expand(config.data)
    if not Path(root, categories[0]).is_dir():
      layouts.scan(root, categories[0])
  return categories


def _require_backbone(config: Settings) -> None:
  name, source = config.backbone.name, config.backbone.weights
  with about('detector.layers', config.detector.layers):
    backbones.build(name, config.detector.layers)
  if source in ('imagenet', 'embedded', 'random'):
    weights.choose(name, source, config.detector.layers)
  elif source != 'auto' and not Path(source).expanduser().is_file():
    raise WeightsError(
      f'There is no file of weights {source}.',
      key='backbone.weights',
      value=source,
      allowed=('auto', 'imagenet', 'embedded', 'random'),
      hint=(Setting('backbone.weights'), ' is auto, imagenet, embedded, random or a file.'),
    )
  ops = transforms.parse(config.data.ops)
  model_dir.build_detector(config, RunContext(ops.height, ops.width))


def _validate_evaluation(config: Settings, workdir: Path) -> None:
  _require_model('evaluate.model_dir', config.evaluate.model_dir, workdir)
  if config.data.root:
    _require_dataset(config)


def _require_model(key: str, directory: str, workdir: Path) -> None:
  with about(key, directory):
    model_dir.read_info(directory or workdir / 'model')


def _validate_prediction(config: Settings, workdir: Path) -> None:
  options = config.predict
  _require_set('predict.input', options.input, 'an image or a folder')
  if processes.is_multiprocess():
    _require_set('predict.table', options.table, 'a folder that all processes share')
  with about('predict.shard', options.shard):
    processes.resolve_shard(options.shard)
  if options.shard != 'auto' and not options.table:
    raise ConfigError(
      'A shard of the images is scored into a table.',
      key='predict.shard',
      value=options.shard,
      hint=('Set ', Setting('predict.table'), ' to its folder, or ',
            Setting('predict.shard', 'auto'), '.'),
    )  # fmt: skip
  _require_model('predict.model_dir', options.model_dir, workdir)
  with about('predict.input', options.input):
    inputs.expand(options.input)


def _validate_check(config: Settings, workdir: Path) -> None:
  conversion, split = config.check.convert, config.check.split
  if (conversion.enable or split.enable) and not config.data.root:
    raise ConfigError(
      'There is no dataset to convert or split.',
      key='data.root',
      value='',
      hint=('Set ', Setting('data.root'), '.'),
    )
  _require_dataset(config)
  if conversion.enable:
    _require_set('check.convert.output', conversion.output, 'a folder for the converted dataset')
    _require_set('check.convert.src_dataset_type', conversion.src_dataset_type, 'their format')
    with about('check.convert.output', conversion.output):
      convert.require_convertible(
        Path(config.data.root, config.data.category), Path(conversion.output)
      )
  if split.enable and split.train_percent + split.val_percent != 100:
    raise ConfigError(
      'The shares of training and test images must sum to 100 %.',
      key='check.split.val_percent',
      value=split.val_percent,
      allowed=(100 - split.train_percent,),
      hint=('Pass ', Setting('check.split.val_percent', 100 - split.train_percent), '.'),
    )
  if split.enable and not conversion.enable and config.data.layout not in ('auto', 'seglist'):
    raise ConfigError(
      f'Only the layout seglist can be split, not {config.data.layout}.',
      key='data.layout',
      value=config.data.layout,
      allowed=('auto', 'seglist'),
      hint=('Convert the dataset first: ', Setting('check.convert.enable', True), '.'),
    )


def _require_set(key: str, value: str, what: str) -> None:
  if not value:
    raise ConfigError(
      f'{key} is not set.', key=key, value=value, hint=('Set ', Setting(key), f' to {what}.')
    )


def _validate_export(config: Settings, workdir: Path) -> None:
  options = config.export
  if options.quantize:
    with about('export.quantize', options.quantize):
      quantize.validate_options(options.quantize, options.format)
  for key, folder in (
    ('export.images', options.images),
    ('export.output', str(Path(options.output).parent)),
  ):
    if folder and not Path(folder).is_dir():
      raise ConfigError(f'There is no folder {folder}.', key=key, value=folder)
  _require_model('export.model_dir', config.export.model_dir, workdir)


_CHECKS: dict[str, Callable[[Settings, Path], None]] = {
  'train': _validate_training,
  'evaluate': _validate_evaluation,
  'predict': _validate_prediction,
  'check_dataset': _validate_check,
  'export': _validate_export,
}
