"""The commands of `uadjax`; without a command it takes PaddleX's options.

Help, version and completion must be fast, so modules that import JAX are imported inside commands.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
import sys
from typing import Annotated

import typer

import uadjax
from uadjax.cli import options, runtime


def _examples_epilog(*lines: str) -> str:
  """Format command lines as the examples that end a help text."""
  return '\n'.join(['Examples', *(f'  [cyan]{line}[/]' for line in lines)])


def _command(*examples: str) -> Callable[[Callable[..., None]], object]:
  """Make a function a command whose help ends with examples."""
  return lambda function: app.command(epilog=_examples_epilog(*examples))(
    runtime.report_errors(function)
  )


app = typer.Typer(
  context_settings={
    'help_option_names': ['-h', '--help'],
    'token_normalize_func': options.with_dashes,
    'max_content_width': 100,
  },
  pretty_exceptions_enable=False,
  rich_markup_mode='rich',
)


def main(argv: Sequence[str] | None = None) -> int:
  """Run a command and return its exit status.

  The status is 0 for success, regardless of the labels; 1 for a failure, such as an unreadable
  file; 2 for an invalid option, value or key; 3 if an image has a label that --fail-on rejects; 130
  and 143 if Ctrl-C and SIGTERM ended the command.
  """
  arguments = sys.argv[1:] if argv is None else list(argv)
  for stream in (sys.stdout, sys.stderr):
    if stream is not None:  # A character that the locale lacks must not make the command fail.
      stream.reconfigure(errors='backslashreplace')  # pyright: ignore[reportAttributeAccessIssue]
  try:
    return app(arguments, prog_name='uadjax', standalone_mode=False) or 0
  except typer.TyperException as error:
    context = getattr(error, 'ctx', None)
    as_json = '--json' in arguments  # After a parse error there are no parsed options.
    if context and not as_json:
      print(context.get_usage(), file=sys.stderr)
    runtime.print_error(error, error.format_message(), as_json)
    if context and not as_json:
      print(f"Try '{context.command_path} --help'.", file=sys.stderr)
    return error.exit_code


def _print_version(is_requested: bool) -> bool:
  if is_requested:
    print(f'uadjax {uadjax.__version__}')
    raise typer.Exit
  return is_requested


@app.callback(
  invoke_without_command=True,
  epilog=_examples_epilog(
    'uadjax --input photos/ --model_dir runs/bolts/model',
    'uadjax predict runs/bolts/model photos/ --json | jq .score',
    'uadjax predict --help',
  ),
)
@runtime.report_errors
def root(
  context: options.Context,
  pipeline: options.Pipeline = 'anomaly_detection',
  inputs: options.InputOption = None,
  model: options.ModelName = None,
  model_dir: options.ModelDirOption = None,
  use_hpip: options.UseHpip = False,
  get_pipeline_config: options.GetPipelineConfig = None,
  config_save_path: options.ConfigSavePath = None,
  device: options.Device = None,
  batch_size: options.BatchSize = None,
  override: options.PipelineOverrides = None,
  allow_private_urls: options.AllowPrivateUrls = False,
  image_threshold: options.ImageThreshold = None,
  review_threshold: options.ReviewThreshold = None,
  pixel_threshold: options.PixelThreshold = None,
  save_path: options.SavePath = None,
  no_pictures: options.NoPictures = False,
  no_save: options.NoSave = False,
  as_json: options.AsJson = False,
  masks: options.MaskFormat = None,
  strict: options.Strict = False,
  fail_on: options.FailOn = None,
  version: Annotated[
    bool,
    typer.Option(
      '--version', metavar='', is_eager=True, callback=_print_version, help='Show the version.'
    ),
  ] = False,
):
  """Detect anomalies in images with models trained on normal images only.

  Without a command, the options are those of PaddleX.
  Dashes and underscores in options are interchangeable.
  """
  explicit_names = [name for name in context.params if _is_explicit(context, name)]
  if context.invoked_subcommand:
    if explicit_names:
      name = next(p.opts[0] for p in context.command.params if p.name == explicit_names[0])
      message = f'pass this option after {context.invoked_subcommand!r}.'
      raise typer.BadParameter(message, param_hint=name)
  elif get_pipeline_config is not None:
    _write_pipeline_config(get_pipeline_config, config_save_path or save_path or Path())
  elif inputs:
    from uadjax.cli import predict as predict_module

    model_settings = {'model_name': model, 'model_dir': model_dir}
    model_settings = {key: str(value) for key, value in model_settings.items() if value is not None}
    predict_module.predict_images(
      inputs, pipeline, use_hpip, model_settings, predict_module.select_options(context.params)
    )
  elif explicit_names:
    raise typer.BadParameter('missing; name an image, a URL or a folder.', param_hint='--input')
  else:
    print(context.get_help())


def _is_explicit(context: options.Context, name: str) -> bool:
  source = context.get_parameter_source(name)
  return source is not None and source.name == 'COMMANDLINE'


def _write_pipeline_config(name: str, folder: Path) -> None:
  from uadjax.errors import UnknownName
  from uadjax.inference import pipelines

  if name not in pipelines.NAMES:
    raise UnknownName(f'Unknown pipeline {name!r}; choose from {pipelines.NAMES}.')
  print(f'Settings: {pipelines.write_settings(folder)}')


@_command(
  'uadjax predict runs/bolts/model photos/',
  'uadjax predict runs/bolts/model a.png b.png --json --no-save',
  'uadjax predict runs/bolts/model photos/ --fail-on ng || echo defects',
  'uadjax predict runs/bolts/model photos/ --image-threshold 0.8 --device gpu:0,1',
  'uadjax predict runs/bolts/model archive.txt --table scores/ --shard 0/4',
)
def predict(
  context: options.Context,
  model_dir: options.ModelDirArgument,
  inputs: options.InputArgument,
  device: options.Device = None,
  backend: options.Backend = None,
  batch_size: options.BatchSize = None,
  override: options.PipelineOverrides = None,
  allow_private_urls: options.AllowPrivateUrls = False,
  image_threshold: options.ImageThreshold = None,
  review_threshold: options.ReviewThreshold = None,
  pixel_threshold: options.PixelThreshold = None,
  save_path: options.SavePath = None,
  no_pictures: options.NoPictures = False,
  no_save: options.NoSave = False,
  as_json: options.AsJson = False,
  masks: options.MaskFormat = None,
  strict: options.Strict = False,
  fail_on: options.FailOn = None,
  table: options.TableDir = None,
  format: options.TableFormat = 'parquet',
  shard: options.TableShard = 'auto',
):
  """Score images and label each one OK, review or NG.

  Exit status:
    0  success, regardless of the labels
    1  an image or the model could not be read
    2  an invalid option, value or setting
    3  an image has a label that --fail-on rejects
  """
  from uadjax.cli import predict as predict_module

  model_settings = {'model_dir': str(model_dir)} | ({'backend': backend} if backend else {})
  predict_options = predict_module.select_options(context.params)
  if table:
    predict_module.tabulate_scores(inputs, model_settings, predict_options, table, format, shard)
    return
  for name in ('format', 'shard'):
    if _is_explicit(context, name):
      raise typer.BadParameter('only valid with --table.', param_hint=f'--{name}')
  predict_module.predict_images(inputs, 'anomaly_detection', False, model_settings, predict_options)


@_command(
  'uadjax fit bolts/',
  'uadjax fit mvtec_ad/ --category screw --model padim',
  'uadjax fit bolts/ --override fit.batch_size=8',
)
def fit(
  dataset: options.Dataset,
  model: options.Detector = 'PatchCore',
  category: options.Category = '',
  workdir: options.Workdir = None,
  device: options.Device = None,
  override: options.ConfigOverrides = None,
  as_json: options.AsJson = False,
):
  """Fit a detector to normal images, calibrate its thresholds, and evaluate it.

  DATASET is a folder of normal images.
  If it has test images, the model is evaluated on them.
  """
  from uadjax.cli import fit as fit_module, predict as predict_module

  overrides = predict_module.parse_overrides(override or ())
  if category:
    overrides['data.category'] = category
  fit_module.fit(dataset, model, workdir, device, overrides, as_json)


@_command('uadjax config', 'uadjax config fit', 'uadjax config fit.batch_size')
def config(key: options.ConfigKey = '', as_json: options.AsJson = False):
  """List the settings of an experiment: type, default, bounds and one sentence for each.

  Set them with --override of fit and sweep, or in an experiment with --config.KEY=VALUE.
  """
  from uadjax.cli import settings

  settings.show_settings(key, as_json)


@_command(
  'uadjax sweep mvtec_ad/ --models padim,patchcore --seeds 3-7',
  'uadjax sweep mvtec_ad/ --models patchcore --categories screw,bottle --device gpu:0,1',
  'srun uadjax sweep mvtec_ad/ --models stfpm,patchcore:ten',
)
def sweep(
  dataset: options.DatasetRoot,
  models: options.SweepModels = 'padim,patchcore',
  categories: options.Categories = 'all',
  seeds: options.Seeds = '3',
  workdir: options.SweepDir = Path('runs/sweep'),
  device: options.SweepDevice = 'auto',
  jobs: options.Jobs = 0,
  shard: options.SweepShard = 'auto',
  override: options.ConfigOverrides = None,
  table_only: options.TableOnly = False,
  as_json: options.AsJson = False,
):
  """Fit and evaluate every model on every category with every seed.

  Each run has its own process and device.
  Finished runs are skipped, so an interrupted sweep can be resumed.
  """
  from uadjax.cli import sweep as sweep_module

  sweep_options = sweep_module.SweepOptions(dataset, models, categories, seeds, workdir, override)
  sweep_module.run_sweep(sweep_options, device, jobs, shard, table_only, as_json)


@_command(
  'uadjax check bolts/',
  'uadjax check mvtec_ad/ --category all --output checked/',
)
def check(
  dataset: options.Dataset,
  category: options.Category = '',
  layout: options.Layout = 'auto',
  output: options.CheckOutput = None,
  as_json: options.AsJson = False,
):
  """Check a dataset and list all its problems.

  The exit status is 1 if training would reject the dataset.
  """
  from uadjax.cli import check as check_module

  check_module.check_dataset(dataset, category, layout, output, as_json)


@_command(
  'uadjax export runs/bolts/model',
  'uadjax export runs/bolts/model --include-resize 1024x1280 --output bolts.onnx',
  'uadjax export runs/bolts/model --format tflite',
  'uadjax export runs/bolts/model --quantize int8',
)
def export(
  model_dir: options.ModelDirArgument,
  format: options.ExportFormat = 'onnx',
  output: options.GraphFile = None,
  batch: options.ExportBatch = None,
  include_resize: options.IncludeResize = '',
  images: options.ComparisonImages = None,
  quantize: options.Quantize = None,
  as_json: options.AsJson = False,
):
  """Export a model for another runtime: pixels in, anomaly map and score out.

  The exported graph is run and compared with the model.
  If a score or a label differs, nothing is written.
  A quantized graph is checked by label agreement and AUROC instead.
  """
  from uadjax.cli import console
  from uadjax.export import exporter, settings
  from uadjax.model import model_dir as model_dirs

  camera_size = settings.parse_size(include_resize)
  model = model_dirs.load(model_dir)
  exported = exporter.export(model, format, output, batch, camera_size, images, quantize or '')
  if as_json:
    console.print_json(exported.to_dict())
  else:
    console.print_line(runtime.to_printable(str(exported)))


@_command('uadjax report runs/bolts/model bolts/ --output bolts.html')
def report(
  model_dir: options.ModelDirArgument,
  dataset: options.Dataset,
  category: options.Category = '',
  output: options.ReportOutput = Path('report.html'),
  device: options.Device = None,
  as_json: options.AsJson = False,
):
  """Evaluate a model on a dataset and write the results as an HTML report."""
  from uadjax.cli import console
  from uadjax.distributed import mesh
  from uadjax.experiment import evaluate_run

  mesh.use_cores_as_devices()
  metrics = evaluate_run.write_report(model_dir, dataset, category, output, device or 'auto')
  if as_json:
    console.print_json(metrics)
  else:
    console.print_line(f'Report: {runtime.to_printable(str(output))}')


@_command('uadjax demo drawn/', 'uadjax check drawn/ --category all')
def demo(
  directory: options.DemoDir,
  seed: options.DemoSeed = 0,
  size: options.DemoImageSize = 256,
  overwrite: options.Overwrite = False,
):
  """Write a synthetic dataset of five products, with and without defects."""
  from uadjax.cli import assets

  assets.draw_demo(directory, seed, size, overwrite)


@_command('uadjax weights', 'uadjax weights resnet18')
def weights(name: options.Backbone = None, as_json: options.AsJson = False):
  """List the cached backbone weights, or download those of one backbone.

  The cache is ~/.cache/uadjax, or the folder that UADJAX_CACHE names.
  To fit models on a machine without a network, copy the cache to it.
  """
  from uadjax.cli import assets

  assets.show_weights(name, as_json)


@_command(
  'uadjax serve runs/bolts/model',
  'uadjax serve bolts=runs/bolts/model nuts=runs/nuts/model --port 80 --host 0.0.0.0',
  'curl -F image=@photo.png localhost:8000/image-anomaly-detection',
)
def serve(
  models: options.ModelDirs = None,
  host: options.Host = '127.0.0.1',
  port: options.Port = 8000,
  device: options.Device = None,
  backend: options.ServiceBackend = 'auto',
  batch: options.ServiceBatch = 0,
  queue: options.Queue = 64,
  deadline: options.Deadline = 30.0,
  max_bytes: options.MaxBytes = 32 << 20,
  max_pixels: options.MaxPixels = 50_000_000,
  allow_urls: options.AllowUrls = False,
  token: options.Token = None,
  drain: options.Drain = 30.0,
):
  """Serve models over HTTP, with a web page to try them in the browser.

  Concurrent requests are batched.
  On SIGTERM the service finishes the accepted requests.
  """
  from uadjax.cli import serve as serve_module

  serve_module.require_packages()
  from uadjax import serve as service_module
  from uadjax.system import http

  settings = service_module.Settings(
    serve_module.parse_model_dirs(models or ()),
    device or 'auto',
    backend,
    batch,
    queue,
    deadline,
    max_bytes,
    max_pixels,
    http.Access(urls=allow_urls, max_bytes=max_bytes),
    serve_module.resolve_token(token),
    drain,
  )
  service_module.serve(settings, host, port)
