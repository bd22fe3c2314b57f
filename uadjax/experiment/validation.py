"""Checks of a run before it reads images, fetches weights or writes anything.

Types and bounds of single settings are checked when settings are loaded; here are those that depend
on each other, on this machine, and on the files that they name.
"""

import dataclasses
from pathlib import Path

from uadjax import backbones, config as configs, data
from uadjax.backbones import weights
from uadjax.data import convert, image_io, inputs, layouts, transforms
from uadjax.distributed import mesh as meshes, processes
from uadjax.errors import about, DataError, refuse, Setting
from uadjax.inference import parts
from uadjax.model import calibration, model_dir
from uadjax.system import files
from uadjax.training import resolve_backbone, train as training, workdir as workdirs
from uadjax.training.settings import Settings

_WEIGHTS = 'auto', 'imagenet', 'published', 'embedded', 'random'


def validate(config: Settings, workdir: Path) -> None:
  """Check that the run of `config.mode` in `workdir` can start.

  Raises:
    UserError: a setting is invalid; the error names its key and value.
  """
  _require_writable('workdir', workdir)
  with about('device', config.device):
    meshes.select_devices(config.device)
  with about('mesh.data', config.mesh.data):
    meshes.make_mesh(config.device, config.mesh.data, 0)
  for key, section in ((parts.PREDICT_KEY, config.predict), (parts.EVALUATE_KEY, config.evaluate)):
    if section.part_pattern:
      parts.compile_pattern(section.part_pattern, key)
  _CHECKS[config.mode](config, workdir)


def is_single(config: Settings, categories: list[str]) -> bool:
  """Return whether a run is for one category, not for those of a group."""
  is_demo_default = not config.data.root and not config.data.category
  return categories == [config.data.category] or is_demo_default


def _require_writable(key: str, folder: Path) -> None:
  if reason := files.unwritable_reason(folder):
    message = f'Cannot write to {folder} ({reason}).'
    refuse(key, folder, message, 'Choose another ', Setting(key), '.')


def _check_training(config: Settings, workdir: Path) -> None:
  categories = _require_dataset(config)
  if config.data.root and config.data.layout == 'auto' and is_single(config, categories):
    layouts.require_no_categories(Path(config.data.root, config.data.category))
  for name in ('convert', 'split'):
    if getattr(config.check, name).enable:
      message = f'check.{name} changes files, which only the mode check_dataset may do.'
      hint = 'Run it first: `python -m uadjax.main --config.mode=check_dataset`.'
      refuse(f'check.{name}.enable', True, message, hint)
  if not is_single(config, categories):
    # In a group, categories without checkpoints start anew, and finished ones are skipped.
    is_resuming, config = bool(config.fit.resume), configs.replace(config, {'fit.resume': ''})
    for category in () if is_resuming else categories:
      workdirs.require_no_conflict(workdir / category, config)
  config = _with_valid_backbone(config)
  for ops in () if config.fit.extend else _load_ops(config, categories):
    if ops.region:  # The detector may need a larger one.
      model_dir.build_detector(config, model_dir.scoring_context(ops))
  if config.fit.extend or (config.fit.resume and (workdir / 'config.yaml').is_file()):
    name = 'extend' if config.fit.extend else 'resume'
    with about(f'fit.{name}', getattr(config.fit, name)):
      # The backbone is that of the earlier run, so nothing is fetched.
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

    categories, names = data.expand(config.data), demo.CATEGORIES
    if {*categories} - {'', *names}:  # Empty for the default.
      message = f'The demo dataset has no category {category!r}; choose from {names}.'
      refuse('data.category', category, message, allowed=names)
    return categories
  if not Path(root).is_dir():
    with about('data.root', root):
      layouts.scan(root)  # Raises an error.
  with about('data.category', category):
    categories = data.expand(config.data)
    if not Path(root, categories[0]).is_dir():
      layouts.scan(root, categories[0])
  return categories


def _load_ops(config: Settings, categories: list[str]) -> list[transforms.Ops]:
  """Return the operations that scale the images of each category, with its region of interest."""
  return [data.load_ops(dataclasses.replace(config.data, category=name)) for name in categories]


def _with_valid_backbone(config: Settings) -> Settings:
  """Return the configuration with the architecture of its backbone, after checking both."""
  (name, source), layers = (config.backbone.name, config.backbone.weights), config.detector.layers
  with about('backbone.weights', source):
    if source not in _WEIGHTS and not Path(source).expanduser().is_file():
      hint = Setting('backbone.weights'), f' is a file or one of {", ".join(_WEIGHTS)}.'
      refuse('backbone.weights', source, f'No file {source}.', *hint, allowed=_WEIGHTS)
    config = resolve_backbone.resolve_architecture(config)
  with about('detector.layers', layers):
    backbones.build(name, layers, config.backbone.architecture, config.backbone.dtype)
  with about('backbone.weights', source):
    if source != 'auto':
      weights.choose(name, source, layers)
  model_dir.build_detector(config, model_dir.scoring_context(transforms.parse(config.data.ops)))
  return config


def _require_model(key: str, directory: str, workdir: Path) -> model_dir.ModelInfo:
  with about(key, directory):
    return model_dir.read_info(directory or workdir / 'model')


def _require_set(key: str, value: str, what: str) -> None:
  if not value:
    refuse(key, value, f'{key} is not set.', 'Set ', Setting(key), f' to {what}.')


def _check_evaluation(config: Settings, workdir: Path) -> None:
  directory, run_dir = config.evaluate.model_dir, workdir
  if config.data.root:
    categories = _require_dataset(config)
    if not directory and not is_single(config, categories):
      # Each category has a model of its own; those that lack one fail, the others are evaluated.
      folders = [workdir / category for category in categories]
      run_dir = next((folder for folder in folders if (folder / 'model').is_dir()), folders[0])
  info = _require_model('evaluate.model_dir', directory, run_dir)
  calibration.override(info.thresholds, 'evaluate', **calibration.by_name(config.evaluate))


def _check_prediction(config: Settings, workdir: Path) -> None:
  options = config.predict
  _require_set('predict.input', options.input, 'an image or a folder')
  if processes.is_multiprocess():
    _require_set('predict.table', options.table, 'a folder that all processes share')
  with about('predict.shard', options.shard):
    processes.resolve_shard(options.shard)
  if options.shard != 'auto' and not options.table:
    message = 'A shard of the images is scored into a table.'
    hint = 'Set ', Setting('predict.table'), ' to its folder.'
    refuse('predict.shard', options.shard, message, *hint, allowed='auto')
  if options.table:
    _require_writable('predict.table', Path(options.table))
  info = _require_model('predict.model_dir', options.model_dir, workdir)
  calibration.override(info.thresholds, 'predict', **calibration.by_name(options))
  with about('predict.input', options.input):
    results_dir = Path(options.table) if options.table else workdir / 'predictions'
    sources = inputs.expand(options.input, results_dir)
  for source in sources if options.part_pattern else ():
    parts.part_of(source.name, options.part_pattern)


def _check_dataset_check(config: Settings, workdir: Path) -> None:
  conversion, split, layout = config.check.convert, config.check.split, config.data.layout
  if conversion.enable or split.enable:
    _require_set('data.root', config.data.root, 'the dataset')
  _load_ops(config, _require_dataset(config))  # The region of interest may be unreadable.
  if conversion.enable:
    _require_set('check.convert.output', conversion.output, 'a folder for the converted dataset')
    _require_set('check.convert.src_dataset_type', conversion.src_dataset_type, 'its format')
    source = Path(config.data.root, config.data.category)
    with about('check.convert.output', conversion.output):
      convert.require_convertible(source, Path(conversion.output))
    _require_writable('check.convert.output', Path(conversion.output))
    if config.data.mask != image_io.NONZERO:
      message = f'data.mask={config.data.mask} cannot be combined with a conversion of labels.'
      hint = 'Set ', Setting('data.mask', image_io.NONZERO), ': converted masks are 0 and 255.'
      refuse('data.mask', config.data.mask, message, *hint, allowed=(image_io.NONZERO,))
  rest = 100 - split.train_percent
  if split.enable and split.val_percent != rest:
    message = 'The shares of training and test images must sum to 100 %.'
    hint = 'Pass ', Setting('check.split.val_percent', rest), '.'
    refuse('check.split.val_percent', split.val_percent, message, *hint, allowed=rest)
  if split.enable and not conversion.enable and layout not in ('auto', 'seglist'):
    hint = 'Convert the dataset first: ', Setting('check.convert.enable', True), '.'
    refuse('data.layout', layout, 'Only the layout seglist can be split.', *hint, allowed='seglist')


def _check_export(config: Settings, workdir: Path) -> None:
  options = config.export
  options.validate()
  if not Path(options.images).is_dir():
    message = f'No folder {options.images}.'
    raise DataError(message, key='export.images', value=options.images)
  folder = Path(options.output).parent
  if not folder.is_dir():
    refuse('export.output', options.output, f'There is no folder {folder}.')
  if options.output:
    _require_writable('export.output', folder)
  _require_model('export.model_dir', options.model_dir, workdir)


_CHECKS = {
  'train': _check_training,
  'evaluate': _check_evaluation,
  'predict': _check_prediction,
  'check_dataset': _check_dataset_check,
  'export': _check_export,
}
