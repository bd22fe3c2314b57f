"""Configurations: defaults, files and overrides. YAML files are never executed.

This module replaces `ml_collections.config_flags`, which answers a misspelled key with a traceback
before any work directory exists, cannot set a field whose value is None, and executes every file,
even YAML. Here text values are assigned to the same ConfigDict; `experiment.flags` parses flags.
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
  """Return the default configuration without `detector`, which the files in `configs/` add."""
  return ml_collections.ConfigDict(
    {
      'mode': 'train',
      'device': 'auto',
      'seed': 3,  # Seed of every random choice.
      'data': {
        'root': '',  # Empty for the synthetic images of the demo.
        'category': '',
        'layout': 'auto',
        'ops': 'resize(256)',
        'mask_threshold': 0,  # Pixels of a mask above it are defects.
      },
      # With 'auto': ImageNet weights, or the built-in backbone if these are unavailable.
      'backbone': {'name': 'resnet18', 'weights': 'auto'},
      'fit': {
        'epochs': 1,
        'steps': config_dict.placeholder(int),  # Takes precedence over epochs.
        'batch_size': 32,
        'learning_rate': 0.0,
        'warmup_steps': 0,
        'held_out': 0.2,  # Fraction of the good images for validation and calibration.
        'log_every': 10,  # Interval in steps.
        'eval_every': config_dict.placeholder(int),  # Interval in steps; one epoch when not set.
        'checkpoint_every_s': 60.0,  # Interval in seconds; shorter runs save the last step only.
        'cache_bytes': 2 << 30,  # Limit for decoded images, and again for their frozen features.
        'resume': '',  # 'latest', 'best', or a step in `checkpoints/rolling`.
        'overwrite': False,  # Whether to replace an existing run.
        'extend': '',  # Model directory of PaDiM or PatchCore to extend with further images.
      },
      'check': {
        'enforce': True,  # Whether to reject datasets with problems, instead of excluding images.
        'convert': {  # Converts labels of another tool to a `seglist`, before the check.
          'enable': False,
          'src_dataset_type': '',  # LabelMe, VOC, COCO or MVTec_AD.
          'output': '',  # Empty or new folder.
        },
        'split': {  # Draws the lists of a `seglist` at random, after conversion, before the check.
          'enable': False,
          'train_percent': 80,
          'val_percent': 20,
        },
      },
      'calibrate': {
        'method': 'normals',  # Or 'confident'; with labeled images 'f1' or 'cost'.
        'budget': 0.01,  # Fraction of good images that may be labeled NG.
        'review_budget': 0.05,  # Fraction of good images that may be labeled NG or review.
        'labeled': '',  # Dataset directory with good and defective images, for f1 and cost.
        'miss_cost': 10.0,  # Cost of a missed defect relative to a false alarm.
        'images': 500,  # Maximum number of leave-one-out scores; more take time for little gain.
        'retain': 32,  # Number of images whose embeddings are saved for a run that extends this.
      },
      'evaluate': {
        'do_eval': True,
        'save_pictures': 16,
        'report_pictures': 200,  # Number of pictures in report.html; 0 for no report.
        'batch_size': 16,
        'model_dir': '',
        **_threshold_placeholders(),
      },
      'predict': {
        'input': '',
        'batch_size': 8,
        'model_dir': '',
        # The others, auto, onnxruntime and openvino, run the exported graph, faster on a CPU.
        'backend': 'jax',
        # Folder of a table with a row per image, instead of pictures; see inference.score_table.
        'table': '',
        'format': 'parquet',  # Or jsonl; format of the table.
        'shard': 'auto',  # I/N for process I of N, which scores its share of the images.
        **_threshold_placeholders(),
      },
      'export': {
        'format': 'onnx',  # Or stablehlo, savedmodel, tflite.
        'output': '',  # Output file; model.<format> in the model directory when empty.
        'model_dir': '',
        'batch': config_dict.placeholder(int),  # Fixed batch size; any size when not set.
        'include_resize': '',  # HEIGHTxWIDTH of a camera, whose images the graph resizes itself.
        'images': '',  # Folder of images for verification; the calibration images when empty.
        'quantize': '',  # Or int8, fp16: a smaller ONNX file, verified by labels and AUROC.
      },
      'hosts': {
        # Or HOST:PORT of the first process, jax or none; see uadjax/distributed/processes.py.
        'coordinator': 'auto',
        'count': 0,  # Number of processes, if the coordinator is HOST:PORT.
        'index': -1,  # Index of this process from 0, if the coordinator is HOST:PORT.
        'wait_s': 300,  # Timeout of the start and of barriers, in seconds.
        'heartbeat_s': 100,  # A process without a heartbeat for this long counts as lost.
      },
      'mesh': {
        'data': -1,  # Number of devices that share a batch; -1 for all that `device` selects.
        # Or always, never; 'auto' shards the fitted state over devices with separate memory.
        'shard_state': 'auto',
      },
    }
  )


def _threshold_placeholders() -> dict[str, Any]:
  """Return unset image, review and pixel thresholds, which replace calibrated ones when set."""
  return {name: config_dict.placeholder(float) for name in _THRESHOLD_NAMES}


# Directory of the built-in configs in an installed package, and in a checkout.
_CONFIG_DIRS = (Path(__file__).parent / 'configs', Path(__file__).parent.parent / 'configs')


def load(source: str, overrides: Sequence[tuple[str, Any]] = ()) -> Config:
  """Read a configuration, apply overrides, validate it, and return it locked.

  Args:
    source: `FILE.py[:argument]`, `FILE.yaml`, or `NAME[:argument]` of a config in configs/.
    overrides: dotted keys with values, which may be text, in the order of their assignment.

  Raises:
    ConfigError: a file is missing or invalid, a key is unknown (the message suggests the closest
      match), or a value has the wrong type or range.
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
        'Pass an existing file, such as ',
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


def closest_keys(key: str, valid_keys: Sequence[str]) -> str:
  """Return the valid keys that a wrong key may stand for, quoted, or '' if there is none.

  If valid keys end with the last part of the wrong one, such as `image_threshold` with `threshold`,
  these are all returned; else the one that is spelled most like it.
  """
  section, _, name = key.rpartition('.')
  longer = [k for k in valid_keys if k.endswith(f'_{name}') and k.rpartition('.')[0] == section]
  matches = longer or difflib.get_close_matches(key, valid_keys, 1, cutoff=0.5)
  return ' or '.join(map(repr, matches))


def assign(config: Config, key: str, value: Any) -> None:
  """Assign a value, as text or as a YAML value, to a dotted key.

  Raises:
    ConfigError: the key is unknown or a section, or the value has the wrong type.
  """
  *section_names, name = key.split('.')
  parent = node = config
  for segment in [*section_names, name]:
    if not isinstance(node, ml_collections.ConfigDict) or segment not in node:
      valid_keys = sorted(keys(config))
      matches = closest_keys(key, valid_keys)
      hint = f'did you mean {matches}?' if matches else f'choose from {valid_keys}.'
      raise ConfigError(f'Unknown config key {key!r}; {hint}')
    parent, node = node, node[segment]
  if isinstance(node, ml_collections.ConfigDict):
    raise ConfigError(
      f'Config key {key!r} is a section; set one of {sorted(f"{key}.{k}" for k in node)}.'
    )
  value_type = parent.get_type(name)
  if value is None or (value == 'None' and value_type is not str):
    if key in _OPTIONAL_KEYS:
      parent[name] = None
      return
    raise ConfigError(f'{key} must be {_describe_type(value_type)}, not None.')
  try:
    parent[name] = _cast(value_type, value)
  except (ValueError, TypeError, yaml.YAMLError):
    raise ConfigError(
      f'{key} must be {_describe_type(value_type)}, got {value!r}; its current value is {node!r}.'
    ) from None


def keys(config: Config, prefix: str = '') -> Iterator[str]:
  """Yield the dotted keys of all values in a configuration."""
  for name in config:
    if isinstance(config[name], ml_collections.ConfigDict):
      yield from keys(config[name], f'{prefix}{name}.')
    else:
      yield prefix + name


def to_plain_dict(config: Config) -> dict[str, Any]:
  """Return a configuration as nested dictionaries, with lists for tuples, for JSON and YAML."""
  return {
    k: to_plain_dict(v)
    if isinstance(v, ml_collections.ConfigDict)
    else list(v)
    if isinstance(v, tuple)
    else v
    for k, v in config.items()
  }


def to_yaml(config: Config) -> str:
  """Return a configuration as YAML, which `load` reads."""
  return yaml.safe_dump(to_plain_dict(config), sort_keys=False)


def from_plain_dict(values: Mapping[str, Any], source: str) -> Config:
  """Return the configuration for nested dictionaries, the inverse of `to_plain_dict`.

  Missing keys get their defaults, so that model directories remain readable when a later version
  adds keys.

  Args:
    values: nested dictionaries with at least detector.name and detector.layers.
    source: name of the file that the values come from, for error messages.

  Raises:
    ConfigError: the detector is missing, a key is unknown, or a value has the wrong type.
  """
  config = base()
  detector = values.get('detector')
  if not isinstance(detector, Mapping) or not {'name', 'layers'} <= detector.keys():
    raise ConfigError(
      f'{source} lacks detector.name or detector.layers; start from the config.yaml of a run, or '
      'from configs/*.py.'
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
    raise ConfigError(f'{path} is not valid YAML: {error}') from None
  if not isinstance(values, dict):
    raise ConfigError(
      f'{path} is not a configuration; it must be a mapping with sections such as data and fit.'
    )
  return from_plain_dict(values, str(path))


def _from_python(path: Path, argument: str) -> Config:
  module_spec = importlib.util.spec_from_file_location(f'uadjax_config_{path.stem}', path)
  if module_spec is None or module_spec.loader is None:
    raise ConfigError(f'{path} is neither .py nor .yaml; pass a file such as configs/stfpm.py.')
  module = importlib.util.module_from_spec(module_spec)
  try:
    module_spec.loader.exec_module(module)
  except SyntaxError as error:
    raise ConfigError(f'{path} is not valid Python: {error}') from None
  if not hasattr(module, 'get_config'):
    raise ConfigError(f'{path} does not define get_config(arg); see configs/stfpm.py.')
  return module.get_config(argument)


def flatten(values: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Return the values of nested dictionaries by dotted key."""
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
