"""Options of the commands: a class for each command, whose docstring is its help.

Each field of a class is an argument or an option, or stands for the fields of another class. An
option for a setting has its help and bounds. Dashes and underscores in option names are
interchangeable.
"""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import typer

import uadjax
from uadjax import errors
from uadjax.evaluation.settings import EvaluateSettings
from uadjax.export.settings import ExportSettings
from uadjax.inference.settings import AnomalyDetectionSettings, PredictSettings

# Copies, because completion must not wait for importing JAX; a test compares them with the source.
MODELS = ('PaDiM', 'PatchCore', 'STFPM', 'SubspaceAD')
_CONFIGS = (*MODELS, 'AnomalyDINO')  # What `fit` takes; AnomalyDINO is PatchCore.
BACKBONES = (
  'resnet18', 'resnet34', 'resnet50', 'resnet101', 'wide_resnet50_2',
  'dino_vits16', 'dino_vits8', 'dino_vitb16', 'dino_vitb8',
  'dinov2_vits14', 'dinov2_vits14_reg', 'dinov2_vitb14', 'dinov2_vitb14_reg',
  'dinov2_vitl14', 'dinov2_vitl14_reg', 'dinov2_vitg14', 'dinov2_vitg14_reg',
)  # fmt: skip
DEVICES = ('auto', 'cpu', 'gpu', 'gpu:0', 'gpu:0,1', 'tpu')

_MODEL, _THRESHOLDS, _RESULTS = 'Model', 'Thresholds', 'Results'
_PADDLEX, _TABLE, _LIMITS = 'Without a command', 'Many images', 'Limits'
_CALIBRATION = 'Calibration'


def with_dashes(word: str) -> str:
  """Replace underscores by dashes, the canonical spelling of options and commands."""
  return word.replace('_', '-')


def _argument(metavar: str, help: str, default: Any = ..., **more: Any) -> Any:
  """Declare an argument, which is required unless it has a default."""
  return typer.Argument(default, metavar=metavar, help=help, show_default=False, **more)


def _option(
  default: object, metavar: str, help: str, panel: str | None = None, name: str = '', **more: Any
) -> Any:
  """Declare an option with a value; its default is shown unless `help` mentions it."""
  return typer.Option(
    default,
    *filter(None, [name]),
    metavar=metavar,
    help=help,
    rich_help_panel=panel,
    show_default=default not in (None, '') and 'default' not in help.lower(),
    **more,
  )


def _flag(name: str, help: str, panel: str | None = None, short: str = '') -> Any:
  names = filter(None, [name, short])
  return typer.Option(False, *names, metavar='', help=help, rich_help_panel=panel)


def _setting(
  kind: type, field_name: str, metavar: str, panel: str | None = None, default: object = None
) -> Any:
  """Declare an option for a field of a settings dataclass, with its help, default and bounds."""
  field = kind.__dataclass_fields__[field_name]
  limits = field.metadata['limits']
  default_text = '' if field.default is None else errors.format_value(field.default)
  choices = [name for name in limits.choices if name not in limits.help]
  help = f'{limits.help.removesuffix(".")}: {", ".join(choices)}.' if choices else limits.help
  help += f' Default: {default_text}.' if default_text else ''
  return _option(default, metavar, help, panel, min=limits.minimum)


def _print_version(is_requested: bool) -> bool:
  if is_requested:
    print(f'uadjax {uadjax.__version__}')
    raise typer.Exit
  return is_requested


_MODEL_DIR_HELP = 'Model directory: RUN/model of a finished run.'
_MODEL_DIR = _argument('MODEL_DIR', _MODEL_DIR_HELP)
_DATASET = _argument('DATASET', 'One category, or a folder of several (--category).')
_CATEGORY = _option('', 'NAME', 'A folder in DATASET; check also takes all.')
_DEVICE_HELP = 'auto (default), cpu, gpu, gpu:0,1 or tpu.'
_DEVICE = _option(None, 'DEVICE', _DEVICE_HELP, _MODEL, autocompletion=lambda: DEVICES)
_OVERRIDE = _option(None, 'KEY=X', 'Any setting of uadjax config; repeatable.')
_AS_JSON = _flag('--json', 'Print JSON, one object per line.', _RESULTS)


class CommonOptions(NamedTuple):
  """Options of every command."""

  verbose: bool = _flag('--verbose', 'Show details, and tracebacks of errors.', short='-v')
  quiet: bool = _flag('--quiet', 'Show only results, warnings and errors.')


class ScoringOptions(NamedTuple):
  """Options that `uadjax predict` and `uadjax` without a command share."""

  device: str | None = _DEVICE
  batch_size: int | None = _setting(AnomalyDetectionSettings, 'batch_size', 'N', _MODEL)
  override: list[str] | None = _option(
    None, 'KEY=X', 'Any setting of the pipeline; repeatable.', _MODEL
  )
  allow_private_urls: bool = _flag(
    '--allow-private-urls', 'Also fetch URLs of this machine and the local network.', _MODEL
  )
  image_threshold: float | None = _setting(PredictSettings, 'image_threshold', 'X', _THRESHOLDS)
  review_threshold: float | None = _setting(PredictSettings, 'review_threshold', 'X', _THRESHOLDS)
  pixel_threshold: float | None = _setting(PredictSettings, 'pixel_threshold', 'X', _THRESHOLDS)
  part_pattern: str | None = _setting(PredictSettings, 'part_pattern', 'REGEX', _RESULTS)
  save_path: Path | None = _option(
    None, 'DIR', 'Folder for pictures and JSON files; default output.', _RESULTS
  )
  no_pictures: bool = _flag('--no-pictures', 'Save JSON files only.', _RESULTS)
  no_save: bool = _flag('--no-save', 'Save nothing; only print.', _RESULTS)
  as_json: bool = _AS_JSON
  masks: Literal['rle', 'nested', 'none'] | None = _option(
    None, 'FORMAT', 'Format of masks in --json: rle, nested or none (default).', _RESULTS
  )
  strict: bool = _flag('--strict', 'Stop at the first unreadable image.', _RESULTS)
  fail_on: Literal['ng', 'review'] | None = _option(
    None, 'LABEL', 'Exit with status 3 if an image is NG (ng), or NG or review (review).', _RESULTS,
    case_sensitive=False,
  )  # fmt: skip


class PaddlexOptions(NamedTuple):
  """Options without a command that are not those of `ScoringOptions`; PaddleX names them so.

  The hidden `config_save_path` is its name for the output folder of --get-pipeline-config.
  """

  pipeline: str = _option(
    'anomaly_detection', 'NAME', 'anomaly_detection (default), or a YAML file.', _PADDLEX
  )
  inputs: list[str] | None = _option(
    None, 'INPUT', 'Image, URL or folder; repeatable.', _PADDLEX, '--input'
  )
  model: str | None = _option(
    None, 'NAME', f'{", ".join(MODELS)}: must match --model-dir; without it, selects a demo.',
    _PADDLEX, autocompletion=lambda: MODELS,
  )  # fmt: skip
  model_dir: Path | None = _option(None, 'DIR', _MODEL_DIR_HELP, _PADDLEX)
  use_hpip: bool = _flag(
    '--use-hpip', 'Run the exported graph on an inference runtime: faster on a CPU.', _PADDLEX
  )
  get_pipeline_config: str | None = _option(
    None, 'NAME', 'Write the settings as a YAML file into --save-path.', _PADDLEX
  )
  config_save_path: Path | None = _option(None, 'DIR', '', hidden=True)
  version: bool = typer.Option(
    False, '--version', metavar='', is_eager=True, callback=_print_version, help='Show the version.'
  )


class RootOptions(NamedTuple):
  """Detect anomalies in images with models trained on normal images only.

  Without a command, the options are those of PaddleX.
  Dashes and underscores in options are interchangeable.

  Examples:
    uadjax --input photos/ --model_dir runs/bolts/model
    uadjax predict runs/bolts/model photos/ --json | jq .score
    uadjax predict --help
  """

  context: typer.Context
  paddlex: PaddlexOptions
  scoring: ScoringOptions


class PredictOptions(NamedTuple):
  r"""Score images and label each one OK, review or NG.

  Exit status:
    0  success, regardless of the labels
    1  an image or the model could not be read
    2  an invalid option, value or setting
    3  an image has a label that --fail-on rejects

  Examples:
    uadjax predict runs/bolts/model photos/
    uadjax predict runs/bolts/model a.png b.png --json --no-save
    uadjax predict runs/bolts/model photos/ --fail-on ng || echo defects
    uadjax predict runs/bolts/model photos/ --image-threshold 0.8 --device gpu:0,1
    uadjax predict runs/bolts/model archive.txt --table scores/ --shard 0/4
    uadjax predict runs/bolts/model photos/ --table scores/ --format csv
    uadjax predict runs/bolts/model photos/ --part-pattern '(?P<part>.+)_cam\d+'
  """

  scoring: ScoringOptions
  model_dir: Path = _MODEL_DIR
  inputs: list[str] = _argument('INPUT', 'Images, URLs, folders, or .txt files that list them.')
  backend: str | None = _setting(PredictSettings, 'backend', 'NAME', _MODEL)
  table: Path | None = _option(
    None, 'DIR', 'Write only a table, with a row per image, to this folder. Resumable.', _TABLE
  )
  format: Literal['parquet', 'jsonl', 'csv'] | None = _setting(
    PredictSettings, 'format', 'NAME', _TABLE
  )
  shard: str | None = _setting(PredictSettings, 'shard', 'I/N', _TABLE)


class FitOptions(NamedTuple):
  """Fit a detector to normal images, calibrate its thresholds, and evaluate it.

  DATASET is a folder of normal images.
  If it has test images, the model is evaluated on them.
  With --extend, a fitted PaDiM, PatchCore or SubspaceAD model learns from further normal images.
  `uadjax train` is the same command.

  Examples:
    uadjax fit bolts/
    uadjax fit mvtec_ad/ --category screw --model padim
    uadjax fit new_bolts/ --extend runs/patchcore_bolts/model
    uadjax fit bolts/ --override fit.batch_size=8
  """

  dataset: Path = _DATASET
  model: str | None = _option(
    None, 'NAME', f'{", ".join(_CONFIGS)}; a variant follows a colon: PatchCore:ten. '
    'Default: PatchCore, or the detector of --extend.', autocompletion=lambda: _CONFIGS,
  )  # fmt: skip
  extend: Path | None = _option(
    None, 'DIR', 'Model directory to extend with further images; of any detector but STFPM.'
  )
  category: str = _CATEGORY
  workdir: Path | None = _option(
    None, 'DIR', 'Folder for all outputs. Default: runs/NAME_DATASET; to extend, runs/RUN_DATASET.'
  )
  device: str | None = _DEVICE
  override: list[str] | None = _OVERRIDE
  as_json: bool = _AS_JSON


class ConfigOptions(NamedTuple):
  """List the settings of an experiment: type, default, bounds and one sentence for each.

  Set them with --override of fit and sweep, or in an experiment with --config.KEY=VALUE.

  Examples:
    uadjax config
    uadjax config fit
    uadjax config fit.batch_size
  """

  key: str = _argument('KEY', 'A setting or a section.', '')
  as_json: bool = _AS_JSON


class SweepOptions(NamedTuple):
  """Fit and evaluate every model on every category with every seed.

  Each run has its own process and device.
  Finished runs are skipped, so an interrupted sweep can be resumed.

  Examples:
    uadjax sweep mvtec_ad/ --models padim,patchcore --seeds 3-7
    uadjax sweep mvtec_ad/ --models patchcore --categories screw,bottle --device gpu:0,1
    srun uadjax sweep mvtec_ad/ --models stfpm,patchcore:ten
  """

  dataset: Path = _argument('DATASET', 'Folder of the categories.')
  models: str = _option(
    'padim,patchcore', 'A,B', 'Config names; a variant follows a colon: patchcore:ten.'
  )
  categories: str = _option('all', 'A,B', 'Categories; or all, textures, objects.')
  seeds: str = _option('3', 'A,B', 'Seeds, or ranges: 3-7.')
  workdir: Path = _option(Path('runs/sweep'), 'DIR', 'Folder for all runs and the table.')
  device: str = _option(
    'auto', 'DEVICE', 'auto, cpu, gpu, gpu:0,1 or tpu; one run at a time per device.',
    autocompletion=lambda: DEVICES,
  )  # fmt: skip
  jobs: int = _option(0, 'N', 'Concurrent runs on a CPU, which share its cores; default 1.', min=0)
  shard: str = _option(
    'auto', 'I/N', 'Run shard I (from 0) of N hosts; auto (default): from SLURM or Open MPI.'
  )
  override: list[str] | None = _OVERRIDE
  table_only: bool = _flag('--table-only', 'Run nothing; tabulate finished runs.')
  as_json: bool = _AS_JSON


class CheckOptions(NamedTuple):
  """Check a dataset and list all its problems.

  The exit status is 1 if training would reject the dataset.

  Examples:
    uadjax check bolts/
    uadjax check mvtec_ad/ --category all --output checked/
  """

  dataset: Path = _DATASET
  category: str = _CATEGORY
  layout: str = _option('auto', 'NAME', 'auto, or a layout, such as mvtec, visa, folder, seglist.')
  mask: str = _option(
    'nonzero', 'HOW', 'How masks mark defects: nonzero, above:N, equals:N, inverted or alpha.'
  )
  bits: Literal['auto', '8', '10', '12', '14', '16'] = _option(
    'auto', 'N', 'Bit depth of 16-bit images: 8, 10, 12, 14, 16 or auto.'
  )
  range: str = _option('', 'LOW,HIGH', 'Black and white of float, signed and 32-bit images.')
  output: Path | None = _option(
    None, 'DIR', 'Folder for sample pictures, a histogram and the result.'
  )
  as_json: bool = _AS_JSON


class ExportOptions(NamedTuple):
  """Export a model for another runtime: pixels in, anomaly map and score out.

  The exported graph is run and compared with the model.
  If a score or a label differs, nothing is written.
  A quantized graph is checked by label agreement and AUROC instead.

  Examples:
    uadjax export runs/bolts/model
    uadjax export runs/bolts/model --include-resize 1024x1280 --output bolts.onnx
    uadjax export runs/bolts/model --format tflite
    uadjax export runs/bolts/model --quantize int8
  """

  model_dir: Path = _MODEL_DIR
  format: Literal['onnx', 'stablehlo', 'savedmodel', 'tflite'] = _setting(
    ExportSettings, 'format', 'NAME', default='onnx'
  )
  output: Path | None = _setting(ExportSettings, 'output', 'FILE')
  batch: int | None = _setting(ExportSettings, 'batch', 'N')
  include_resize: str | None = _setting(ExportSettings, 'include_resize', 'HxW')
  images: Path | None = _setting(ExportSettings, 'images', 'DIR')
  quantize: Literal['int8', 'fp16'] | None = _setting(ExportSettings, 'quantize', 'KIND')
  as_json: bool = _AS_JSON


class ReportOptions(NamedTuple):
  r"""Evaluate a model on a dataset and write the results as an HTML report.

  `uadjax evaluate` is the same command.

  Examples:
    uadjax report runs/bolts/model bolts/ --output bolts.html
    uadjax report runs/bolts/model bolts/ --part-pattern '(?P<part>.+)_cam\d+'
  """

  model_dir: Path = _MODEL_DIR
  dataset: Path = _DATASET
  category: str = _CATEGORY
  output: Path = _option(
    Path('report.html'), 'FILE', 'HTML file to write; its data is saved next to it as .json.'
  )
  part_pattern: str = _setting(EvaluateSettings, 'part_pattern', 'REGEX', default='')
  device: str | None = _DEVICE
  as_json: bool = _AS_JSON


class ThresholdOptions(NamedTuple):
  """Show the thresholds of a model and the false alarms of others, or write new ones into it.

  Without an option, thresholds do not change.
  Only --labeled needs images: all other options use the stored calibration scores.
  Exported graphs in MODEL_DIR get the new thresholds, too.
  Metrics on the images of --labeled are optimistic, because thresholds are chosen on them.

  Examples:
    uadjax threshold runs/bolts/model
    uadjax threshold runs/bolts/model --budget 0.02
    uadjax threshold runs/bolts/model --image-threshold 0.93 --review-threshold 0.9
    uadjax threshold runs/bolts/model --labeled bolts/ --method f1
  """

  model_dir: Path = _MODEL_DIR
  budget: float | None = _option(None, 'X', 'Share of good images that may be NG.', _CALIBRATION)
  review_budget: float | None = _option(
    None, 'X', 'Share that may be NG or review. Default: that of the fit, at least --budget.',
    _CALIBRATION,
  )  # fmt: skip
  labeled: str | None = _option(
    None, 'DIR', 'Dataset with good and defective images, for f1 and cost.', _CALIBRATION
  )
  method: Literal['normals', 'confident', 'f1', 'cost'] | None = _option(
    None, 'NAME', 'normals, confident, f1 or cost. Default: confident as in the fit, or normals.',
    _CALIBRATION,
  )  # fmt: skip
  miss_cost: float | None = _option(
    None, 'X', 'For cost: cost of a defect that is not NG, in false alarms.', _CALIBRATION
  )
  image_threshold: float | None = _setting(PredictSettings, 'image_threshold', 'X', _THRESHOLDS)
  review_threshold: float | None = _setting(PredictSettings, 'review_threshold', 'X', _THRESHOLDS)
  pixel_threshold: float | None = _setting(PredictSettings, 'pixel_threshold', 'X', _THRESHOLDS)
  device: str | None = _DEVICE
  as_json: bool = _AS_JSON


class DemoOptions(NamedTuple):
  """Write a synthetic dataset of five products, with and without defects.

  The category cover, a sixth product, has 46 large images with tiny defects.

  Examples:
    uadjax demo drawn/
    uadjax check drawn/ --category all
    uadjax demo drawn/ --category cover
  """

  directory: Path = _argument('DIR', 'Folder to write to.')
  category: str = _option(
    'all', 'NAME', 'A product, textures, objects, or all (default): all products but cover.'
  )
  seed: int = _option(0, 'N', 'Random seed of the images.')
  size: int | None = _option(
    None, 'N', 'Side of the images in pixels; default 256. Images of cover have 2048 x 1536.'
  )
  overwrite: bool = _flag('--overwrite', 'Replace existing categories.')


class WeightsOptions(NamedTuple):
  """List the cached backbone weights, or download those of one backbone.

  The cache is ~/.cache/uadjax, or the folder that UADJAX_CACHE names.
  To fit models on a machine without a network, copy the cache to it.

  Examples:
    uadjax weights
    uadjax weights resnet18
  """

  name: str | None = _argument(
    'NAME', f'Backbone to download: {", ".join(BACKBONES)}.', None,
    autocompletion=lambda: BACKBONES,
  )  # fmt: skip
  as_json: bool = _AS_JSON


class ServeOptions(NamedTuple):
  """Serve models over HTTP, with a web page to try them in the browser.

  Concurrent requests are batched.
  On SIGTERM the service finishes the accepted requests.

  Examples:
    uadjax serve runs/bolts/model
    uadjax serve bolts=runs/bolts/model nuts=runs/nuts/model --port 80 --host 0.0.0.0
    curl -F image=@photo.png localhost:8000/image-anomaly-detection
  """

  models: list[str] | None = _argument(
    '[NAME=]MODEL_DIR',
    'Model directories; the first is the default model. Without one, a demo model.',
    None,
  )
  host: str = _option('127.0.0.1', 'ADDRESS', 'Address to listen on; 0.0.0.0 for all.')
  port: int = _option(8000, 'N', '0 for any free port.', min=0, max=65535)
  device: str | None = _DEVICE
  backend: str = _option(
    'auto', 'NAME',
    'jax, onnxruntime, openvino, or auto: on a CPU an installed inference runtime, else jax.',
    _MODEL,
  )  # fmt: skip
  batch: int = _option(
    0, 'N', 'Maximum batch size; 1 disables batching. The default depends on the device.', _LIMITS,
    min=0,
  )  # fmt: skip
  queue: int = _option(
    64, 'N', 'Maximum number of images in progress; beyond it requests fail (503).', _LIMITS, min=1
  )
  deadline: float = _option(
    30.0, 'SECONDS', 'Time limit of a request, which then fails (504).', _LIMITS
  )
  max_bytes: int = _option(32 << 20, 'N', 'Limit of a body or a URL.', _LIMITS, min=1)
  max_pixels: int = _option(50_000_000, 'N', 'Limit of an image.', _LIMITS, min=1)
  max_answer_bytes: int = _option(
    64 << 20, 'N', 'Limit of a response, which grows with the pixels of the images.', _LIMITS, min=1
  )
  allow_urls: bool = _flag('--allow-urls', 'Fetch images from public URLs.', _LIMITS)
  token: str | None = _option(
    None, 'TOKEN', 'Requests must send it: Authorization: Bearer TOKEN.', _LIMITS,
    envvar='UADJAX_TOKEN',
  )  # fmt: skip
  drain: float = _option(30.0, 'SECONDS', 'Time limit of accepted requests after SIGTERM.', _LIMITS)
