"""The options of the `uadjax` command, each spelled and explained once.

An underscore in an option is the same as a dash.
"""

from pathlib import Path
from typing import Annotated, Literal, TYPE_CHECKING

import typer

if TYPE_CHECKING:
  Context = typer.Context
else:
  Context = typer.Context.__base__  # What Typer really passes, whatever its annotation says.

# Told here once more, for completion must not wait for jax; a test holds them to the originals.
MODELS = ('PaDiM', 'PatchCore', 'STFPM')
BACKBONES = ('resnet18', 'resnet34', 'resnet50', 'resnet101', 'wide_resnet50_2')
DEVICES = ('auto', 'cpu', 'gpu', 'gpu:0', 'gpu:0,1', 'tpu')

_MODEL_PANEL, _THRESHOLDS_PANEL, _RESULTS_PANEL = 'Model', 'Thresholds', 'Results'
_PADDLEX_PANEL = 'Without a command'


def with_dashes(word: str) -> str:
  """The one spelling that options and commands are looked up by."""
  return word.replace('_', '-')


def _complete_device(incomplete: str) -> list[str]:
  return [device for device in DEVICES if device.startswith(incomplete)]


def _complete_model(incomplete: str) -> list[str]:
  return [name for name in MODELS if name.lower().startswith(incomplete.lower())]


def _complete_backbone(incomplete: str) -> list[str]:
  return [name for name in BACKBONES if name.startswith(incomplete)]


InputArgument = Annotated[
  list[str],
  typer.Argument(metavar='INPUT', help='Images, URLs, folders, or .txt files that list some.'),
]
ModelDirArgument = Annotated[
  Path, typer.Argument(metavar='MODEL_DIR', help='RUN/model of the run that fitted it.')
]
Dataset = Annotated[
  Path,
  typer.Argument(metavar='DATASET', help='A category, or a folder of them (then --category).'),
]
DatasetRoot = Annotated[
  Path, typer.Argument(metavar='DATASET', help='The folder that holds the categories.')
]

# As users of PaddleX know them.
Pipeline = Annotated[
  str,
  typer.Option(
    metavar='NAME',
    rich_help_panel=_PADDLEX_PANEL,
    show_default=False,
    help='anomaly_detection, which is the default, or a YAML file.',
  ),
]
InputOption = Annotated[
  list[str] | None,
  typer.Option(
    '--input', metavar='WHAT', help='Image, URL or folder; may come again.',
    rich_help_panel=_PADDLEX_PANEL, show_default=False,
  ),
]  # fmt: skip
ModelName = Annotated[
  str | None,
  typer.Option(
    '--model', metavar='NAME', autocompletion=_complete_model, rich_help_panel=_PADDLEX_PANEL,
    help=f'{", ".join(MODELS)}: what --model-dir must hold; else a demo of it.',
  ),
]  # fmt: skip
ModelDirOption = Annotated[
  Path | None,
  typer.Option(
    '--model-dir', metavar='DIR', rich_help_panel=_PADDLEX_PANEL,
    help='RUN/model of the run that fitted it.',
  ),
]  # fmt: skip
UseHpip = Annotated[
  bool,
  typer.Option(
    '--use-hpip',
    metavar='',
    help='Run the exported graph on an inference runtime, which is quicker on a CPU.',
    rich_help_panel=_PADDLEX_PANEL,
  ),
]
Backend = Annotated[
  str | None,
  typer.Option(
    metavar='NAME', rich_help_panel=_MODEL_PANEL, show_default=False,
    help='jax (default), auto, onnxruntime or openvino: runs the exported graph.',
  ),
]  # fmt: skip
GetPipelineConfig = Annotated[
  str | None,
  typer.Option(
    '--get-pipeline-config', metavar='NAME', rich_help_panel=_PADDLEX_PANEL,
    help='Write a YAML file of settings into --save-path.',
  ),
]  # fmt: skip
ConfigSavePath = Annotated[
  Path | None,
  typer.Option('--config-save-path', metavar='DIR', hidden=True),  # Of PaddleX, for the above.
]

Device = Annotated[
  str | None,
  typer.Option(
    metavar='DEVICE', autocompletion=_complete_device, rich_help_panel=_MODEL_PANEL, show_default=False,
    help='auto (default), cpu, gpu, gpu:0,1 or tpu.',
  ),
]  # fmt: skip
BatchSize = Annotated[
  int | None,
  typer.Option(
    metavar='N', rich_help_panel=_MODEL_PANEL, help='Images computed at once; default 1.'
  ),
]
PipelineOverrides = Annotated[
  list[str] | None,
  typer.Option(
    '--override', metavar='KEY=X', rich_help_panel=_MODEL_PANEL, show_default=False,
    help='Any setting of the pipeline; may come again.',
  ),
]  # fmt: skip
AllowPrivateUrls = Annotated[
  bool,
  typer.Option(
    '--allow-private-urls', metavar='', rich_help_panel=_MODEL_PANEL,
    help='Fetch from this machine and the local network, too.',
  ),
]  # fmt: skip

ImageThreshold = Annotated[
  float | None,
  typer.Option(metavar='X', rich_help_panel=_THRESHOLDS_PANEL, help='An image above it is NG.'),
]
ReviewThreshold = Annotated[
  float | None,
  typer.Option(metavar='X', rich_help_panel=_THRESHOLDS_PANEL, help='Above it, to be reviewed.'),
]
PixelThreshold = Annotated[
  float | None,
  typer.Option(metavar='X', rich_help_panel=_THRESHOLDS_PANEL, help='A pixel above it is marked.'),
]

SavePath = Annotated[
  Path | None,
  typer.Option(
    metavar='DIR', rich_help_panel=_RESULTS_PANEL, show_default=False,
    help='For pictures and JSON files; default output.',
  ),
]  # fmt: skip
NoPictures = Annotated[
  bool,
  typer.Option(
    '--no-pictures', help='Save JSON alone.', metavar='', rich_help_panel=_RESULTS_PANEL
  ),
]
NoSave = Annotated[
  bool,
  typer.Option(
    '--no-save', metavar='', rich_help_panel=_RESULTS_PANEL, help='Save nothing, only tell.'
  ),
]
AsJson = Annotated[
  bool,
  typer.Option(
    '--json', metavar='', rich_help_panel=_RESULTS_PANEL, help='Tell in JSON, an object per line.'
  ),
]
MaskFormat = Annotated[
  Literal['rle', 'nested', 'none'] | None,
  typer.Option(
    rich_help_panel=_RESULTS_PANEL, show_default=False, metavar='HOW',
    help='How --json holds masks: rle, nested or none (default).',
  ),
]  # fmt: skip
Strict = Annotated[
  bool,
  typer.Option(
    '--strict',
    metavar='',
    rich_help_panel=_RESULTS_PANEL,
    help='Stop at the first image that cannot be read.',
  ),
]
FailOn = Annotated[
  Literal['ng', 'review'] | None,
  typer.Option(
    rich_help_panel=_RESULTS_PANEL, show_default=False, metavar='LABEL', case_sensitive=False,
    help='ng: exit with status 3 if an image is NG; review: or is to be reviewed.',
  ),
]  # fmt: skip

_TABLE_PANEL = 'Many images'
SweepModels = Annotated[
  str,
  typer.Option(metavar='A,B', help='Names of configs, variants after a colon: patchcore:ten.'),
]
Categories = Annotated[str, typer.Option(metavar='A,B', help='Names; or all, textures, objects.')]
Seeds = Annotated[str, typer.Option(metavar='A,B', help='Seeds, or ranges of them: 3-7.')]
SweepDir = Annotated[
  Path, typer.Option(metavar='DIR', help='A folder for each run, and the table.')
]
SweepDevice = Annotated[
  str,
  typer.Option(
    metavar='DEVICE', autocompletion=_complete_device,
    help='auto, cpu, gpu, gpu:0,1 or tpu; each device has one run at a time.',
  ),
]  # fmt: skip
Jobs = Annotated[
  int,
  typer.Option(
    metavar='N', min=0, show_default=False,
    help='On a CPU: so many runs at a time, which share its cores; default one.',
  ),
]  # fmt: skip
SweepShard = Annotated[
  str,
  typer.Option(
    metavar='I/N',
    help='Of N hosts, this is number I (from 0); auto: as SLURM or Open MPI says.',
  ),
]  # fmt: skip
TableOnly = Annotated[
  bool, typer.Option('--table-only', metavar='', help='Run nothing: tabulate what is finished.')
]
TableDir = Annotated[
  Path | None,
  typer.Option(
    metavar='DIR', rich_help_panel=_TABLE_PANEL, show_default=False,
    help='Leave a row per image there, and nothing else. Goes on where it was cut off.',
  ),
]  # fmt: skip
TableFormat = Annotated[
  Literal['parquet', 'jsonl'],
  typer.Option(metavar='NAME', rich_help_panel=_TABLE_PANEL, help='parquet or jsonl.'),
]
TableShard = Annotated[
  str,
  typer.Option(
    metavar='I/N', rich_help_panel=_TABLE_PANEL,
    help='Of N processes, this is number I (from 0); auto: as SLURM, Open MPI or a TPU pod says.',
  ),
]  # fmt: skip

Detector = Annotated[
  str,
  typer.Option(
    '--model', metavar='NAME', autocompletion=_complete_model,
    help=f'{", ".join(MODELS)}; a variant after a colon: PatchCore:ten.',
  ),
]  # fmt: skip
Workdir = Annotated[
  Path | None,
  typer.Option(
    metavar='DIR', show_default=False,
    help='For the model, the report and all else; default runs/NAME_DATASET.',
  ),
]  # fmt: skip
ConfigOverrides = Annotated[
  list[str] | None,
  typer.Option(
    '--override', metavar='KEY=X', show_default=False,
    help='Any setting of the experiment; may come again.',
  ),
]  # fmt: skip

ExportFormat = Annotated[
  Literal['onnx', 'stablehlo', 'savedmodel', 'tflite'],
  typer.Option(metavar='NAME', help='onnx, stablehlo, savedmodel or tflite.'),
]
GraphFile = Annotated[
  Path | None,
  typer.Option(
    '--output', metavar='FILE', show_default=False,
    help='Default: model.onnx and so on, in MODEL_DIR.',
  ),
]  # fmt: skip
ExportBatch = Annotated[
  int | None,
  typer.Option(metavar='N', show_default=False, help='Images at once; default any number.'),
]
IncludeResize = Annotated[
  str,
  typer.Option(
    metavar='HxW', show_default=False,
    help="Take a camera's images of this height and width, and give maps of that size.",
  ),
]  # fmt: skip
ComparisonImages = Annotated[
  Path | None,
  typer.Option(
    metavar='DIR', show_default=False,
    help='Images to compare on, or with --quantize a data set; default those of the thresholds.',
  ),
]  # fmt: skip
Quantize = Annotated[
  Literal['int8', 'fp16'] | None,
  typer.Option(
    metavar='KIND', show_default=False,
    help='int8: smaller and quicker; fp16: smaller. For onnx; nothing is left of a bad one.',
  ),
]  # fmt: skip

Category = Annotated[
  str,
  typer.Option(metavar='NAME', show_default=False, help='A folder in DATASET; for check also all.'),
]
Layout = Annotated[str, typer.Option(metavar='NAME', help='auto, mvtec, folder or seglist.')]
CheckOutput = Annotated[
  Path | None,
  typer.Option(metavar='DIR', help='Leave sample pictures, a histogram and the result here.'),
]
ReportOutput = Annotated[
  Path, typer.Option(metavar='FILE', help='The page (.html); its data go into a .json beside it.')
]
Backbone = Annotated[
  str | None,
  typer.Argument(
    metavar='NAME', autocompletion=_complete_backbone, show_default=False,
    help=f'To download: {", ".join(BACKBONES)}.',
  ),
]  # fmt: skip
DemoSeed = Annotated[int, typer.Option(metavar='N', help='Decides every picture.')]
DemoImageSize = Annotated[int, typer.Option(metavar='N', help='Side of the pictures in pixels.')]
Overwrite = Annotated[
  bool, typer.Option('--overwrite', metavar='', help='Replace categories that are there.')
]

# A service.
_LIMITS_PANEL = 'Limits'
ModelDirs = Annotated[
  list[str] | None,
  typer.Argument(
    metavar='[NAME=]MODEL_DIR', show_default=False,
    help='Model directories, the first answers where no name is given; a demo without any.',
  ),
]  # fmt: skip
Host = Annotated[
  str, typer.Option(metavar='ADDRESS', help='Where to listen; 0.0.0.0 for all addresses.')
]
Port = Annotated[int, typer.Option(metavar='N', min=0, max=65535, help='0 for any that is free.')]
ServiceBackend = Annotated[
  str,
  typer.Option(
    metavar='NAME', rich_help_panel=_MODEL_PANEL,
    help='auto: an inference runtime on a CPU where one is installed, else jax; or jax, '
    'onnxruntime, openvino.',
  ),
]  # fmt: skip
ServiceBatch = Annotated[
  int,
  typer.Option(
    '--batch', metavar='N', min=0, rich_help_panel=_LIMITS_PANEL, show_default=False,
    help='Images computed together, at most; 1 for none. By default what suits the device.',
  ),
]  # fmt: skip
Queue = Annotated[
  int,
  typer.Option(
    metavar='N', min=1, rich_help_panel=_LIMITS_PANEL,
    help='Images being answered, at most; beyond, requests are refused (503).',
  ),
]  # fmt: skip
Deadline = Annotated[
  float,
  typer.Option(
    metavar='SECONDS',
    rich_help_panel=_LIMITS_PANEL,
    help='For a request; then it is given up (504).',
  ),
]
MaxBytes = Annotated[
  int,
  typer.Option(metavar='N', min=1, rich_help_panel=_LIMITS_PANEL, help='Of a body, and of a URL.'),
]
MaxPixels = Annotated[
  int, typer.Option(metavar='N', min=1, rich_help_panel=_LIMITS_PANEL, help='Of an image.')
]
AllowUrls = Annotated[
  bool,
  typer.Option(
    '--allow-urls', rich_help_panel=_LIMITS_PANEL, help='Fetch images from public addresses.'
  ),
]
Token = Annotated[
  str | None,
  typer.Option(
    metavar='TOKEN', envvar='UADJAX_TOKEN', rich_help_panel=_LIMITS_PANEL, show_default=False,
    help='Requests must bear it: Authorization: Bearer TOKEN.',
  ),
]  # fmt: skip
Drain = Annotated[
  float,
  typer.Option(
    metavar='SECONDS', rich_help_panel=_LIMITS_PANEL,
    help='After SIGTERM, for requests that were accepted.',
  ),
]  # fmt: skip
