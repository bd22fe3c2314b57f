"""Options of the `uadjax` command, each defined once.

Dashes and underscores in option names are interchangeable.
"""

from pathlib import Path
from typing import Annotated, Literal, TYPE_CHECKING

import typer

if TYPE_CHECKING:
  Context = typer.Context
else:
  Context = typer.Context.__base__  # Typer passes this class, despite its own annotation.

# Copies, because completion must not wait for importing JAX; a test compares them with the source.
MODELS = ('PaDiM', 'PatchCore', 'STFPM')
BACKBONES = ('resnet18', 'resnet34', 'resnet50', 'resnet101', 'wide_resnet50_2')
DEVICES = ('auto', 'cpu', 'gpu', 'gpu:0', 'gpu:0,1', 'tpu')

_MODEL_PANEL, _THRESHOLDS_PANEL, _RESULTS_PANEL = 'Model', 'Thresholds', 'Results'
_PADDLEX_PANEL = 'Without a command'


def with_dashes(word: str) -> str:
  """Replace underscores by dashes, the canonical spelling of options and commands."""
  return word.replace('_', '-')


def _complete_device(incomplete: str) -> list[str]:
  return [device for device in DEVICES if device.startswith(incomplete)]


def _complete_model(incomplete: str) -> list[str]:
  return [name for name in MODELS if name.lower().startswith(incomplete.lower())]


def _complete_backbone(incomplete: str) -> list[str]:
  return [name for name in BACKBONES if name.startswith(incomplete)]


InputArgument = Annotated[
  list[str],
  typer.Argument(metavar='INPUT', help='Images, URLs, folders, or .txt files that list them.'),
]
ModelDirArgument = Annotated[
  Path, typer.Argument(metavar='MODEL_DIR', help='Model directory: RUN/model of a finished run.')
]
Dataset = Annotated[
  Path,
  typer.Argument(metavar='DATASET', help='One category, or a folder of several (--category).'),
]
DatasetRoot = Annotated[Path, typer.Argument(metavar='DATASET', help='Folder of the categories.')]

# These options have the names that PaddleX gives them.
Pipeline = Annotated[
  str,
  typer.Option(
    metavar='NAME',
    rich_help_panel=_PADDLEX_PANEL,
    show_default=False,
    help='anomaly_detection (default), or a YAML file.',
  ),
]
InputOption = Annotated[
  list[str] | None,
  typer.Option(
    '--input', metavar='INPUT', help='Image, URL or folder; repeatable.',
    rich_help_panel=_PADDLEX_PANEL, show_default=False,
  ),
]  # fmt: skip
ModelName = Annotated[
  str | None,
  typer.Option(
    '--model', metavar='NAME', autocompletion=_complete_model, rich_help_panel=_PADDLEX_PANEL,
    help=f'{", ".join(MODELS)}: must match --model-dir; without it, selects a demo.',
  ),
]  # fmt: skip
ModelDirOption = Annotated[
  Path | None,
  typer.Option(
    '--model-dir', metavar='DIR', rich_help_panel=_PADDLEX_PANEL,
    help='Model directory: RUN/model of a finished run.',
  ),
]  # fmt: skip
UseHpip = Annotated[
  bool,
  typer.Option(
    '--use-hpip',
    metavar='',
    help='Run the exported graph on an inference runtime: faster on a CPU.',
    rich_help_panel=_PADDLEX_PANEL,
  ),
]
Backend = Annotated[
  str | None,
  typer.Option(
    metavar='NAME', rich_help_panel=_MODEL_PANEL, show_default=False,
    help='jax (default), or for the exported graph: auto, onnxruntime, openvino.',
  ),
]  # fmt: skip
GetPipelineConfig = Annotated[
  str | None,
  typer.Option(
    '--get-pipeline-config', metavar='NAME', rich_help_panel=_PADDLEX_PANEL,
    help='Write the settings as a YAML file into --save-path.',
  ),
]  # fmt: skip
ConfigSavePath = Annotated[
  Path | None,
  # PaddleX's name for the output folder of --get-pipeline-config.
  typer.Option('--config-save-path', metavar='DIR', hidden=True),
]

Device = Annotated[
  str | None,
  typer.Option(
    metavar='DEVICE', autocompletion=_complete_device,
    rich_help_panel=_MODEL_PANEL, show_default=False,
    help='auto (default), cpu, gpu, gpu:0,1 or tpu.',
  ),
]  # fmt: skip
BatchSize = Annotated[
  int | None,
  typer.Option(metavar='N', rich_help_panel=_MODEL_PANEL, help='Images per batch; default 1.'),
]
PipelineOverrides = Annotated[
  list[str] | None,
  typer.Option(
    '--override', metavar='KEY=X', rich_help_panel=_MODEL_PANEL, show_default=False,
    help='Any setting of the pipeline; repeatable.',
  ),
]  # fmt: skip
AllowPrivateUrls = Annotated[
  bool,
  typer.Option(
    '--allow-private-urls', metavar='', rich_help_panel=_MODEL_PANEL,
    help='Also fetch URLs of this machine and the local network.',
  ),
]  # fmt: skip

ImageThreshold = Annotated[
  float | None,
  typer.Option(metavar='X', rich_help_panel=_THRESHOLDS_PANEL, help='NG if the score exceeds it.'),
]
ReviewThreshold = Annotated[
  float | None,
  typer.Option(
    metavar='X', rich_help_panel=_THRESHOLDS_PANEL, help='Review if the score exceeds it.'
  ),
]
PixelThreshold = Annotated[
  float | None,
  typer.Option(metavar='X', rich_help_panel=_THRESHOLDS_PANEL, help='Mark pixels that exceed it.'),
]

SavePath = Annotated[
  Path | None,
  typer.Option(
    metavar='DIR', rich_help_panel=_RESULTS_PANEL, show_default=False,
    help='Folder for pictures and JSON files; default output.',
  ),
]  # fmt: skip
NoPictures = Annotated[
  bool,
  typer.Option(
    '--no-pictures', help='Save JSON files only.', metavar='', rich_help_panel=_RESULTS_PANEL
  ),
]
NoSave = Annotated[
  bool,
  typer.Option(
    '--no-save', metavar='', rich_help_panel=_RESULTS_PANEL, help='Save nothing; only print.'
  ),
]
AsJson = Annotated[
  bool,
  typer.Option(
    '--json', metavar='', rich_help_panel=_RESULTS_PANEL, help='Print JSON, one object per line.'
  ),
]
MaskFormat = Annotated[
  Literal['rle', 'nested', 'none'] | None,
  typer.Option(
    rich_help_panel=_RESULTS_PANEL, show_default=False, metavar='FORMAT',
    help='Format of masks in --json: rle, nested or none (default).',
  ),
]  # fmt: skip
Strict = Annotated[
  bool,
  typer.Option(
    '--strict',
    metavar='',
    rich_help_panel=_RESULTS_PANEL,
    help='Stop at the first unreadable image.',
  ),
]
FailOn = Annotated[
  Literal['ng', 'review'] | None,
  typer.Option(
    rich_help_panel=_RESULTS_PANEL, show_default=False, metavar='LABEL', case_sensitive=False,
    help='Exit with status 3 if an image is NG (ng), or NG or review (review).',
  ),
]  # fmt: skip

_TABLE_PANEL = 'Many images'
SweepModels = Annotated[
  str,
  typer.Option(metavar='A,B', help='Config names; a variant follows a colon: patchcore:ten.'),
]
Categories = Annotated[
  str, typer.Option(metavar='A,B', help='Categories; or all, textures, objects.')
]
Seeds = Annotated[str, typer.Option(metavar='A,B', help='Seeds, or ranges: 3-7.')]
SweepDir = Annotated[Path, typer.Option(metavar='DIR', help='Folder for all runs and the table.')]
SweepDevice = Annotated[
  str,
  typer.Option(
    metavar='DEVICE', autocompletion=_complete_device,
    help='auto, cpu, gpu, gpu:0,1 or tpu; one run at a time per device.',
  ),
]  # fmt: skip
Jobs = Annotated[
  int,
  typer.Option(
    metavar='N', min=0, show_default=False,
    help='Concurrent runs on a CPU, which share its cores; default 1.',
  ),
]  # fmt: skip
SweepShard = Annotated[
  str,
  typer.Option(
    metavar='I/N',
    help='Run shard I (from 0) of N hosts; auto: from SLURM or Open MPI.',
  ),
]  # fmt: skip
TableOnly = Annotated[
  bool, typer.Option('--table-only', metavar='', help='Run nothing; tabulate finished runs.')
]
TableDir = Annotated[
  Path | None,
  typer.Option(
    metavar='DIR', rich_help_panel=_TABLE_PANEL, show_default=False,
    help='Write only a table, with a row per image, to this folder. Resumable.',
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
    help='Score shard I (from 0) of N processes; auto: from SLURM, Open MPI or a TPU pod.',
  ),
]  # fmt: skip

Detector = Annotated[
  str,
  typer.Option(
    '--model', metavar='NAME', autocompletion=_complete_model,
    help=f'{", ".join(MODELS)}; a variant follows a colon: PatchCore:ten.',
  ),
]  # fmt: skip
Workdir = Annotated[
  Path | None,
  typer.Option(
    metavar='DIR', show_default=False,
    help='Folder for all outputs; default runs/NAME_DATASET.',
  ),
]  # fmt: skip
ConfigOverrides = Annotated[
  list[str] | None,
  typer.Option(
    '--override', metavar='KEY=X', show_default=False,
    help='Any setting of uadjax config; repeatable.',
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
    help='Default: model.onnx (or another suffix) in MODEL_DIR.',
  ),
]  # fmt: skip
ExportBatch = Annotated[
  int | None,
  typer.Option(metavar='N', show_default=False, help='Fixed batch size; default any.'),
]
IncludeResize = Annotated[
  str,
  typer.Option(
    metavar='HxW', show_default=False,
    help='Take camera images of this height and width; return anomaly maps of that size.',
  ),
]  # fmt: skip
ComparisonImages = Annotated[
  Path | None,
  typer.Option(
    metavar='DIR', show_default=False,
    help='Images to verify on, or with --quantize a dataset; default: the calibration images.',
  ),
]  # fmt: skip
Quantize = Annotated[
  Literal['int8', 'fp16'] | None,
  typer.Option(
    metavar='KIND', show_default=False,
    help='int8: smaller and faster; fp16: smaller. ONNX only; not written if inaccurate.',
  ),
]  # fmt: skip

ConfigKey = Annotated[
  str, typer.Argument(metavar='KEY', help='A setting or a section.', show_default=False)
]
Category = Annotated[
  str,
  typer.Option(
    metavar='NAME', show_default=False, help='A folder in DATASET; check also takes all.'
  ),
]
Layout = Annotated[str, typer.Option(metavar='NAME', help='auto, mvtec, folder or seglist.')]
CheckOutput = Annotated[
  Path | None,
  typer.Option(metavar='DIR', help='Folder for sample pictures, a histogram and the result.'),
]
ReportOutput = Annotated[
  Path,
  typer.Option(metavar='FILE', help='HTML file to write; its data is saved next to it as .json.'),
]
Backbone = Annotated[
  str | None,
  typer.Argument(
    metavar='NAME', autocompletion=_complete_backbone, show_default=False,
    help=f'Backbone to download: {", ".join(BACKBONES)}.',
  ),
]  # fmt: skip
DemoSeed = Annotated[int, typer.Option(metavar='N', help='Random seed of the images.')]
DemoImageSize = Annotated[int, typer.Option(metavar='N', help='Side of the images in pixels.')]
Overwrite = Annotated[
  bool, typer.Option('--overwrite', metavar='', help='Replace existing categories.')
]

# Options of the service.
_LIMITS_PANEL = 'Limits'
ModelDirs = Annotated[
  list[str] | None,
  typer.Argument(
    metavar='[NAME=]MODEL_DIR', show_default=False,
    help='Model directories; the first is the default model. Without one, a demo model.',
  ),
]  # fmt: skip
Host = Annotated[
  str, typer.Option(metavar='ADDRESS', help='Address to listen on; 0.0.0.0 for all.')
]
Port = Annotated[int, typer.Option(metavar='N', min=0, max=65535, help='0 for any free port.')]
ServiceBackend = Annotated[
  str,
  typer.Option(
    metavar='NAME', rich_help_panel=_MODEL_PANEL,
    help='jax, onnxruntime, openvino, or auto: on a CPU an installed inference runtime, else jax.',
  ),
]  # fmt: skip
ServiceBatch = Annotated[
  int,
  typer.Option(
    '--batch', metavar='N', min=0, rich_help_panel=_LIMITS_PANEL, show_default=False,
    help='Maximum batch size; 1 disables batching. The default depends on the device.',
  ),
]  # fmt: skip
Queue = Annotated[
  int,
  typer.Option(
    metavar='N', min=1, rich_help_panel=_LIMITS_PANEL,
    help='Maximum number of images in progress; beyond it requests fail (503).',
  ),
]  # fmt: skip
Deadline = Annotated[
  float,
  typer.Option(
    metavar='SECONDS',
    rich_help_panel=_LIMITS_PANEL,
    help='Time limit of a request, which then fails (504).',
  ),
]
MaxBytes = Annotated[
  int,
  typer.Option(metavar='N', min=1, rich_help_panel=_LIMITS_PANEL, help='Limit of a body or a URL.'),
]
MaxPixels = Annotated[
  int, typer.Option(metavar='N', min=1, rich_help_panel=_LIMITS_PANEL, help='Limit of an image.')
]
AllowUrls = Annotated[
  bool,
  typer.Option(
    '--allow-urls', rich_help_panel=_LIMITS_PANEL, help='Fetch images from public URLs.'
  ),
]
Token = Annotated[
  str | None,
  typer.Option(
    metavar='TOKEN', envvar='UADJAX_TOKEN', rich_help_panel=_LIMITS_PANEL, show_default=False,
    help='Requests must send it: Authorization: Bearer TOKEN.',
  ),
]  # fmt: skip
Drain = Annotated[
  float,
  typer.Option(
    metavar='SECONDS', rich_help_panel=_LIMITS_PANEL,
    help='Time limit of accepted requests after SIGTERM.',
  ),
]  # fmt: skip
