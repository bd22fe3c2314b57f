"""Configurations: defaults, files, overrides. Only files of `configs/` are ever run as Python.

`ml_collections.config_flags` answers a misspelled key with a traceback before any work directory
exists, cannot set a field whose value is None, and executes whatever file it is given, YAML too.
So keys are set here by text, onto the same ConfigDict; `experiment.flags` reads flags.
"""

from collections.abc import Iterator, Mapping, Sequence
import difflib
import importlib.util
import math
from pathlib import Path
from typing import Any

import ml_collections
from ml_collections.config_dict import config_dict
import yaml

from uadjax.errors import ConfigError, Setting
from uadjax.types import Config

_POSITIVE_KEYS = (
  'fit.epochs',
  'fit.steps',
  'fit.batch_size',
  'fit.log_every',
  'fit.eval_every',
  'evaluate.batch_size',
  'predict.batch_size',
  'calibrate.images',
  'calibrate.retain',
  'export.batch',
)
_NONNEGATIVE_KEYS = (
  'seed',
  'data.mask_threshold',
  'fit.learning_rate',
  'fit.warmup_steps',
  'fit.checkpoint_every_s',
  'fit.cache_bytes',
  'evaluate.save_pictures',
  'evaluate.report_pictures',
)
_THRESHOLD_NAMES = ('image_threshold', 'review_threshold', 'pixel_threshold')
_THRESHOLD_KEYS = tuple(
  f'{mode}.{name}' for mode in ('evaluate', 'predict') for name in _THRESHOLD_NAMES
)
_OPTIONAL_KEYS = ('fit.steps', 'fit.eval_every', 'export.batch', *_THRESHOLD_KEYS)
_TRUE, _FALSE = ('true', 'yes', '1'), ('false', 'no', '0')


def base() -> Config:
  """Everything that does not depend on the detector, which each file of `configs/` adds."""
  return ml_collections.ConfigDict(
    {
      'mode': 'train',
      'device': 'auto',
      'seed': 3,  # Every random choice comes from it.
      'data': {
        'root': '',  # Empty: a few images that uadjax draws itself.
        'category': '',
        'layout': 'auto',
        'ops': 'resize(256)',
        'mask_threshold': 0,  # Ground truth above it is a defect.
      },
      'backbone': {'name': 'resnet18', 'weights': 'auto'},  # auto: ImageNet's, or embedded ones.
      'fit': {
        'epochs': 1,
        'steps': config_dict.placeholder(int),  # Wins over epochs when set.
        'batch_size': 32,
        'learning_rate': 0.0,
        'warmup_steps': 0,
        'held_out': 0.2,  # Share of the good images that is not trained on.
        'log_every': 10,  # Steps.
        'eval_every': config_dict.placeholder(int),  # Steps; an epoch when not set.
        'checkpoint_every_s': 60.0,  # The first after as long: short runs write only their end.
        'cache_bytes': 2 << 30,  # Decoded images and the frozen part of their features, each.
        'resume': '',  # 'latest', 'best', or a step of `checkpoints/rolling`.
        'overwrite': False,  # Start a run over that is there already.
        'extend': '',  # A model directory of PaDiM or PatchCore to go on from, with further images.
      },
      'check': {
        'enforce': True,  # Train only on data that pass the check.
        'convert': {  # Before the check: labels of another tool become a `seglist`.
          'enable': False,
          'src_dataset_type': '',  # LabelMe, VOC, COCO or MVTec_AD.
          'output': '',  # A folder that is empty or not there.
        },
        'split': {  # Before the check, after conversion: the lists of a `seglist` drawn anew.
          'enable': False,
          'train_percent': 80,
          'val_percent': 20,
        },
      },
      'calibrate': {
        'method': 'normals',  # Or 'confident'; or, with labeled images, 'f1' or 'cost'.
        'budget': 0.01,  # Share of good images that may be called NG.
        'review_budget': 0.05,  # Share of good images that may be called NG or to be reviewed.
        'labeled': '',  # A data set directory with good and defective images, for f1 and cost.
        'miss_cost': 10.0,  # Of a missed defect, in false alarms.
        'images': 500,  # At most so many are left out one by one; more cost more than they tell.
        'retain': 32,  # Images whose embeddings are kept for a run that extends this one.
      },
      'evaluate': {
        'do_eval': True,
        'save_pictures': 16,
        'report_pictures': 200,  # In report.html; 0 for no report.
        'batch_size': 16,
        'model_dir': '',
        **_threshold_placeholders(),
      },
      'predict': {
        'input': '',
        'batch_size': 8,
        'model_dir': '',
        'backend': 'jax',  # Or auto, onnxruntime, openvino: the exported graph, quicker on a CPU.
        # A folder for a row per image instead of pictures, see uadjax/inference/score_table.py;
        'table': '',
        'format': 'parquet',  # or jsonl;
        'shard': 'auto',  # I/N: of N processes, this is number I and judges its share.
        **_threshold_placeholders(),
      },
      'export': {
        'format': 'onnx',  # Or stablehlo, savedmodel, tflite.
        'output': '',  # A file; model.<format> in the model directory when empty.
        'model_dir': '',
        'batch': config_dict.placeholder(int),  # Images at once; any number when not set.
        'include_resize': '',  # HEIGHTxWIDTH of a camera, whose images are then taken as they are.
        'images': '',  # A folder to compare on; the images of the thresholds when empty.
        'quantize': '',  # Or int8, fp16: a smaller ONNX file, judged by its labels and its AUROC.
      },
      'hosts': {
        # HOST:PORT of the first process; jax; none: see uadjax/distributed/processes.py.
        'coordinator': 'auto',
        'count': 0,  # Processes, where a coordinator is named,
        'index': -1,  # of which this is one, from 0.
        'wait_s': 300,  # For the others to come.
        'heartbeat_s': 100,  # Until one that is silent is taken for lost.
      },
      'mesh': {
        'data': -1,  # -1: all devices that `device` selects.
        'shard_state': 'auto',  # What is learned, over devices with memories of their own; always, never.
      },
    }
  )


def _threshold_placeholders() -> dict[str, Any]:
  """Of images, of review, of pixels: instead of those that the model was calibrated to."""
  return {name: config_dict.placeholder(float) for name in _THRESHOLD_NAMES}


# Where configs/ lies: in an installed package, and in a checkout.
_CONFIG_DIRS = (Path(__file__).parent / 'configs', Path(__file__).parent.parent / 'configs')


def load(source: str, overrides: Sequence[tuple[str, Any]] = ()) -> Config:
  """Read a configuration, then set each dotted key to its value, which may be text, in turn.

  Args:
    source: `FILE.py[:argument]`, `FILE.yaml`, or `NAME[:argument]` of one of configs/.
    overrides: keys and values.

  Raises:
    ConfigError: for a missing or wrong file, an unknown key (with the nearest valid one), or a
      text that is not of the key's type.
  """
  name, _, argument = source.partition(':')
  path = _builtin_configs().get(name, Path(name))
  if not path.is_file():
    raise ConfigError(
      f'No config file {name!r}.',
      key='config',
      value=name,
      allowed=sorted(_builtin_configs()),
      hint=(
        'Name one, such as ',
        Setting('config', 'configs/stfpm.py'),
        f', or one of {sorted(_builtin_configs())}.',
      ),
    )
  is_yaml = path.suffix in ('.yaml', '.yml')
  config = _from_yaml(path) if is_yaml else _from_python(path, argument)
  for key, value in overrides:
    assign(config, key, value)
  _validate(config)
  return config.lock()


def _builtin_configs() -> dict[str, Path]:
  folder = next((folder for folder in _CONFIG_DIRS if folder.is_dir()), _CONFIG_DIRS[0])
  return {path.stem: path for path in folder.glob('*.py')}


def assign(config: Config, key: str, value: Any) -> None:
  """Set one dotted key from text, or from a value as YAML gives it."""
  *section_names, name = key.split('.')
  parent = node = config
  for segment in [*section_names, name]:
    if not isinstance(node, ml_collections.ConfigDict) or segment not in node:
      valid_keys = sorted(keys(config))
      close_matches = difflib.get_close_matches(key, valid_keys, 1, cutoff=0.5)
      hint = (
        f'did you mean {close_matches[0]!r}?' if close_matches else f'choose from {valid_keys}.'
      )
      raise ConfigError(f'Unknown config key {key!r}; {hint}')
    parent, node = node, node[segment]
  if isinstance(node, ml_collections.ConfigDict):
    raise ConfigError(f'{key!r} is a section; set one of {sorted(f"{key}.{k}" for k in node)}.')
  value_type = parent.get_type(name)
  if value is None or (value == 'None' and value_type is not str):
    if key in _OPTIONAL_KEYS:
      parent[name] = None
      return
    raise ConfigError(f'{key} must be {_describe_type(value_type)}, and cannot be None.')
  try:
    parent[name] = _cast(value_type, value)
  except (ValueError, TypeError, yaml.YAMLError):
    raise ConfigError(
      f'{key} must be {_describe_type(value_type)}, got {value!r}; its value was {node!r}.'
    ) from None


def keys(config: Config, prefix: str = '') -> Iterator[str]:
  """All dotted keys."""
  for name in config:
    if isinstance(config[name], ml_collections.ConfigDict):
      yield from keys(config[name], f'{prefix}{name}.')
    else:
      yield prefix + name


def to_plain_dict(config: Config) -> dict[str, Any]:
  """The configuration as JSON and YAML can hold it."""
  return {
    k: to_plain_dict(v)
    if isinstance(v, ml_collections.ConfigDict)
    else list(v)
    if isinstance(v, tuple)
    else v
    for k, v in config.items()
  }


def to_yaml(config: Config) -> str:
  """The resolved configuration, to be read back by `load`."""
  return yaml.safe_dump(to_plain_dict(config), sort_keys=False)


def from_plain_dict(values: Mapping[str, Any], source: str) -> Config:
  """The inverse of `plain`; what is missing has its default, and `where` names the file in errors.

  A model directory thus stays readable when a later version knows more keys.
  """
  config = base()
  detector = values.get('detector')
  if not isinstance(detector, Mapping) or not {'name', 'layers'} <= detector.keys():
    raise ConfigError(
      f'{source} lacks detector.name or detector.layers; start from a config.yaml that a run has '
      'saved, or from configs/*.py.'
    )
  config.detector = {k: tuple(v) if isinstance(v, list) else v for k, v in detector.items()}
  for key, value in flatten(values).items():
    assign(config, key, value)
  return config


def _validate(config: Config) -> None:
  values = flatten(to_plain_dict(config))
  for key in _THRESHOLD_KEYS:
    if (threshold := values[key]) is not None and not math.isfinite(threshold):
      raise ConfigError(f'{key} must be finite, got {threshold}.')
  for key in (*_POSITIVE_KEYS, *_NONNEGATIVE_KEYS):
    value = values.get(key)
    if value is None:
      continue
    if not 0 <= value < math.inf or (key in _POSITIVE_KEYS and not value):
      requirement = 'positive' if key in _POSITIVE_KEYS else 'zero or more'
      raise ConfigError(f'{key} must be {requirement} and finite, got {value}.')


def _from_yaml(path: Path) -> Config:
  try:
    values = yaml.safe_load(path.read_text())
  except (yaml.YAMLError, UnicodeDecodeError) as error:
    raise ConfigError(f'{path} is no YAML: {error}') from None
  if not isinstance(values, dict):
    raise ConfigError(f'{path} holds no configuration: expected sections such as data and fit.')
  return from_plain_dict(values, str(path))


def _from_python(path: Path, argument: str) -> Config:
  module_spec = importlib.util.spec_from_file_location(f'uadjax_config_{path.stem}', path)
  if module_spec is None or module_spec.loader is None:
    raise ConfigError(f'{path} is neither Python nor YAML; name a config such as configs/stfpm.py.')
  module = importlib.util.module_from_spec(module_spec)
  try:
    module_spec.loader.exec_module(module)
  except SyntaxError as error:
    raise ConfigError(f'{path} is no Python: {error}') from None
  if not hasattr(module, 'get_config'):
    raise ConfigError(f'{path} has no get_config(arg); see configs/stfpm.py.')
  return module.get_config(argument)


def flatten(values: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Values by dotted key."""
  leaves = {}
  for key, value in values.items():
    if isinstance(value, Mapping):
      leaves |= flatten(value, f'{prefix}{key}.')
    else:
      leaves[f'{prefix}{key}'] = value
  return leaves


def _cast(value_type: type, value: Any) -> Any:
  if value_type is tuple:
    if isinstance(value, str):
      value = [item.strip(' \'"') for item in value.strip('()[] ').split(',') if item.strip()]
    return tuple(value)
  text = str(value)
  if value_type is bool:
    if text.lower() not in _TRUE + _FALSE:
      raise ValueError(text)
    return text.lower() in _TRUE
  if value_type is int:
    number = float(text) if 'e' in text.lower() else int(text)
    if number != int(number):
      raise ValueError(text)
    return int(number)
  return value_type(text)


def _describe_type(value_type: type) -> str:
  return {
    int: 'a whole number',
    float: 'a number',
    bool: 'true or false',
    tuple: 'a list such as layer1,layer2',
  }.get(value_type, f'a {value_type.__name__}')
