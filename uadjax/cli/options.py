"""Options of the `uadjax` command, each defined once; those of a setting have its help and bounds.

Dashes and underscores in option names are interchangeable.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, TYPE_CHECKING

import typer

from uadjax import errors
from uadjax.export.settings import ExportSettings
from uadjax.inference.settings import AnomalyDetectionSettings, PredictSettings

if TYPE_CHECKING:
  Context = typer.Context
else:
  Context = typer.Context.__base__  # Typer passes this class, despite its own annotation.

# Copies, because completion must not wait for importing JAX; a test compares them with the source.
MODELS = ('PaDiM', 'PatchCore', 'STFPM')
BACKBONES = ('resnet18', 'resnet34', 'resnet50', 'resnet101', 'wide_resnet50_2')
DEVICES = ('auto', 'cpu', 'gpu', 'gpu:0', 'gpu:0,1', 'tpu')

_MODEL_PANEL, _THRESHOLDS_PANEL, _RESULTS_PANEL = 'Model', 'Thresholds', 'Results'
_PADDLEX_PANEL, _TABLE_PANEL, _LIMITS_PANEL = 'Without a command', 'Many images', 'Limits'
_DIR_HELP = 'Model directory: RUN/model of a finished run.'


def with_dashes(word: str) -> str:
  """Replace underscores by dashes, the canonical spelling of options and commands."""
  return word.replace('_', '-')


def _complete_device(incomplete: str) -> list[str]:
  return [device for device in DEVICES if device.startswith(incomplete)]


def _complete_model(incomplete: str) -> list[str]:
  return [name for name in MODELS if name.lower().startswith(incomplete.lower())]


def _complete_backbone(incomplete: str) -> list[str]:
  return [name for name in BACKBONES if name.startswith(incomplete)]


def _argument(metavar: str, help: str, **more: Any) -> object:
  return typer.Argument(metavar=metavar, help=help, show_default=False, **more)


def _option(
  metavar: str, help: str, panel: str | None = None, name: str = '', **more: Any
) -> object:
  """Return an option with a value; its default is part of `help` if it needs explanation."""
  names = (name,) if name else ()
  more = {'show_default': False, **more}
  return typer.Option(*names, metavar=metavar, help=help, rich_help_panel=panel, **more)


def _flag(name: str, help: str, panel: str | None = None) -> object:
  return typer.Option(name, metavar='', help=help, rich_help_panel=panel)


def _setting(kind: type, field_name: str, metavar: str, panel: str | None = None) -> object:
  """Return an option for a field of a settings dataclass, with its help, default and bounds."""
  field = kind.__dataclass_fields__[field_name]
  limits = field.metadata['limits']
  default = '' if field.default is None else errors.format_value(field.default)
  choices = [name for name in limits.choices if name not in limits.help]
  help = f'{limits.help.removesuffix(".")}: {", ".join(choices)}.' if choices else limits.help
  help += f' Default: {default}.' if default else ''
  bounds = {} if limits.minimum is None else {'min': limits.minimum}
  return _option(metavar, help, panel, **bounds)


InputArgument = Annotated[
  list[str], _argument('INPUT', 'Images, URLs, folders, or .txt files that list them.')
]
ModelDirArgument = Annotated[Path, _argument('MODEL_DIR', _DIR_HELP)]
Dataset = Annotated[
  Path, _argument('DATASET', 'One category, or a folder of several (--category).')
]
DatasetRoot = Annotated[Path, _argument('DATASET', 'Folder of the categories.')]

# These options have the names that PaddleX gives them.
Pipeline = Annotated[
  str, _option('NAME', 'anomaly_detection (default), or a YAML file.', _PADDLEX_PANEL)
]
InputOption = Annotated[
  list[str] | None,
  _option('INPUT', 'Image, URL or folder; repeatable.', _PADDLEX_PANEL, '--input'),
]
ModelName = Annotated[
  str | None,
  _option(
    'NAME', f'{", ".join(MODELS)}: must match --model-dir; without it, selects a demo.',
    _PADDLEX_PANEL, '--model', autocompletion=_complete_model,
  ),
]  # fmt: skip
ModelDirOption = Annotated[Path | None, _option('DIR', _DIR_HELP, _PADDLEX_PANEL, '--model-dir')]
UseHpip = Annotated[
  bool,
  _flag(
    '--use-hpip', 'Run the exported graph on an inference runtime: faster on a CPU.', _PADDLEX_PANEL
  ),
]
Backend = Annotated[str | None, _setting(PredictSettings, 'backend', 'NAME', _MODEL_PANEL)]
GetPipelineConfig = Annotated[
  str | None,
  _option('NAME', 'Write the settings as a YAML file into --save-path.', _PADDLEX_PANEL),
]
ConfigSavePath = Annotated[
  Path | None,
  # PaddleX's name for the output folder of --get-pipeline-config.
  typer.Option('--config-save-path', metavar='DIR', hidden=True),
]

Device = Annotated[
  str | None,
  _option(
    'DEVICE', 'auto (default), cpu, gpu, gpu:0,1 or tpu.', _MODEL_PANEL,
    autocompletion=_complete_device,
  ),
]  # fmt: skip
BatchSize = Annotated[
  int | None, _setting(AnomalyDetectionSettings, 'batch_size', 'N', _MODEL_PANEL)
]
PipelineOverrides = Annotated[
  list[str] | None,
  _option('KEY=X', 'Any setting of the pipeline; repeatable.', _MODEL_PANEL, '--override'),
]
AllowPrivateUrls = Annotated[
  bool,
  _flag(
    '--allow-private-urls', 'Also fetch URLs of this machine and the local network.', _MODEL_PANEL
  ),
]
ImageThreshold = Annotated[
  float | None, _setting(PredictSettings, 'image_threshold', 'X', _THRESHOLDS_PANEL)
]
ReviewThreshold = Annotated[
  float | None, _setting(PredictSettings, 'review_threshold', 'X', _THRESHOLDS_PANEL)
]
PixelThreshold = Annotated[
  float | None, _setting(PredictSettings, 'pixel_threshold', 'X', _THRESHOLDS_PANEL)
]

SavePath = Annotated[
  Path | None,
  _option('DIR', 'Folder for pictures and JSON files; default output.', _RESULTS_PANEL),
]
NoPictures = Annotated[bool, _flag('--no-pictures', 'Save JSON files only.', _RESULTS_PANEL)]
NoSave = Annotated[bool, _flag('--no-save', 'Save nothing; only print.', _RESULTS_PANEL)]
AsJson = Annotated[bool, _flag('--json', 'Print JSON, one object per line.', _RESULTS_PANEL)]
MaskFormat = Annotated[
  Literal['rle', 'nested', 'none'] | None,
  _option('FORMAT', 'Format of masks in --json: rle, nested or none (default).', _RESULTS_PANEL),
]
Strict = Annotated[bool, _flag('--strict', 'Stop at the first unreadable image.', _RESULTS_PANEL)]
FailOn = Annotated[
  Literal['ng', 'review'] | None,
  _option(
    'LABEL', 'Exit with status 3 if an image is NG (ng), or NG or review (review).', _RESULTS_PANEL,
    case_sensitive=False,
  ),
]  # fmt: skip
TableDir = Annotated[
  Path | None,
  _option(
    'DIR', 'Write only a table, with a row per image, to this folder. Resumable.', _TABLE_PANEL
  ),
]
TableFormat = Annotated[
  Literal['parquet', 'jsonl'], _setting(PredictSettings, 'format', 'NAME', _TABLE_PANEL)
]
TableShard = Annotated[str, _setting(PredictSettings, 'shard', 'I/N', _TABLE_PANEL)]

SweepModels = Annotated[
  str,
  _option('A,B', 'Config names; a variant follows a colon: patchcore:ten.', show_default=True),
]
Categories = Annotated[
  str, _option('A,B', 'Categories; or all, textures, objects.', show_default=True)
]
Seeds = Annotated[str, _option('A,B', 'Seeds, or ranges: 3-7.', show_default=True)]
SweepDir = Annotated[Path, _option('DIR', 'Folder for all runs and the table.', show_default=True)]
SweepDevice = Annotated[
  str,
  _option(
    'DEVICE', 'auto, cpu, gpu, gpu:0,1 or tpu; one run at a time per device.', show_default=True,
    autocompletion=_complete_device,
  ),
]  # fmt: skip
Jobs = Annotated[
  int, _option('N', 'Concurrent runs on a CPU, which share its cores; default 1.', min=0)
]
SweepShard = Annotated[
  str, _option('I/N', 'Run shard I (from 0) of N hosts; auto (default): from SLURM or Open MPI.')
]
TableOnly = Annotated[bool, _flag('--table-only', 'Run nothing; tabulate finished runs.')]

Detector = Annotated[
  str,
  _option(
    'NAME', f'{", ".join(MODELS)}; a variant follows a colon: PatchCore:ten.', name='--model',
    autocompletion=_complete_model, show_default=True,
  ),
]  # fmt: skip
Workdir = Annotated[
  Path | None, _option('DIR', 'Folder for all outputs; default runs/NAME_DATASET.')
]
ConfigOverrides = Annotated[
  list[str] | None,
  _option('KEY=X', 'Any setting of uadjax config; repeatable.', name='--override'),
]
ConfigKey = Annotated[str, _argument('KEY', 'A setting or a section.')]

ExportFormat = Annotated[
  Literal['onnx', 'stablehlo', 'savedmodel', 'tflite'], _setting(ExportSettings, 'format', 'NAME')
]
GraphFile = Annotated[Path | None, _setting(ExportSettings, 'output', 'FILE')]
ExportBatch = Annotated[int | None, _setting(ExportSettings, 'batch', 'N')]
IncludeResize = Annotated[str, _setting(ExportSettings, 'include_resize', 'HxW')]
ComparisonImages = Annotated[Path | None, _setting(ExportSettings, 'images', 'DIR')]
Quantize = Annotated[Literal['int8', 'fp16'] | None, _setting(ExportSettings, 'quantize', 'KIND')]

Category = Annotated[str, _option('NAME', 'A folder in DATASET; check also takes all.')]
Layout = Annotated[str, _option('NAME', 'auto, mvtec, folder or seglist.', show_default=True)]
CheckOutput = Annotated[
  Path | None, _option('DIR', 'Folder for sample pictures, a histogram and the result.')
]
ReportOutput = Annotated[
  Path,
  _option('FILE', 'HTML file to write; its data is saved next to it as .json.', show_default=True),
]
Backbone = Annotated[
  str | None,
  _argument(
    'NAME', f'Backbone to download: {", ".join(BACKBONES)}.', autocompletion=_complete_backbone
  ),
]
DemoDir = Annotated[Path, _argument('DIR', 'Folder to write to.')]
DemoSeed = Annotated[int, _option('N', 'Random seed of the images.', show_default=True)]
DemoImageSize = Annotated[int, _option('N', 'Side of the images in pixels.', show_default=True)]
Overwrite = Annotated[bool, _flag('--overwrite', 'Replace existing categories.')]

# Options of the service.
ModelDirs = Annotated[
  list[str] | None,
  _argument(
    '[NAME=]MODEL_DIR',
    'Model directories; the first is the default model. Without one, a demo model.',
  ),
]
Host = Annotated[
  str, _option('ADDRESS', 'Address to listen on; 0.0.0.0 for all.', show_default=True)
]
Port = Annotated[int, _option('N', '0 for any free port.', show_default=True, min=0, max=65535)]
ServiceBackend = Annotated[
  str,
  _option(
    'NAME',
    'jax, onnxruntime, openvino, or auto: on a CPU an installed inference runtime, else jax.',
    _MODEL_PANEL,
    show_default=True,
  ),
]
ServiceBatch = Annotated[
  int,
  _option(
    'N', 'Maximum batch size; 1 disables batching. The default depends on the device.',
    _LIMITS_PANEL, '--batch', min=0,
  ),
]  # fmt: skip
Queue = Annotated[
  int,
  _option(
    'N', 'Maximum number of images in progress; beyond it requests fail (503).', _LIMITS_PANEL,
    show_default=True, min=1,
  ),
]  # fmt: skip
Deadline = Annotated[
  float,
  _option(
    'SECONDS', 'Time limit of a request, which then fails (504).', _LIMITS_PANEL, show_default=True
  ),
]
MaxBytes = Annotated[
  int, _option('N', 'Limit of a body or a URL.', _LIMITS_PANEL, show_default=True, min=1)
]
MaxPixels = Annotated[
  int, _option('N', 'Limit of an image.', _LIMITS_PANEL, show_default=True, min=1)
]
AllowUrls = Annotated[bool, _flag('--allow-urls', 'Fetch images from public URLs.', _LIMITS_PANEL)]
Token = Annotated[
  str | None,
  _option(
    'TOKEN', 'Requests must send it: Authorization: Bearer TOKEN.', _LIMITS_PANEL,
    envvar='UADJAX_TOKEN',
  ),
]  # fmt: skip
Drain = Annotated[
  float,
  _option(
    'SECONDS', 'Time limit of accepted requests after SIGTERM.', _LIMITS_PANEL, show_default=True
  ),
]
