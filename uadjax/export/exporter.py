"""Export of models to other runtimes, with verification before the file is put in place."""

from collections.abc import Callable, Mapping, Sequence
import importlib.util
from pathlib import Path
import shutil
import tempfile
from typing import NamedTuple

import jax
import numpy as np

from uadjax import config as configs
from uadjax.errors import ConfigError, ExportError, refuse, Setting, UserError
from uadjax.export import (
  bisect,
  graph as graphs,
  graph_hash,
  onnx,
  quantization_check,
  quantize as quantization,
  runtimes,
  stablehlo,
  tensorflow,
  verify,
)
from uadjax.export.settings import ExportSettings
from uadjax.model import model_dir
from uadjax.system import files, progress, text

# The limit of a whole file is 2 GB; the margin is for everything except arrays.
_MAX_ARRAY_BYTES = 2**31 - 2**24


_REQUIRED_PACKAGES = 'jax2onnx', 'onnx', 'onnxruntime'  # Of exports to ONNX.


class _Format(NamedTuple):
  """File format of exported graphs.

  Attributes:
    write: function (graph, path) that writes a file and returns its JSON-compatible metadata.
    load: function (path) that opens the file in the format's main runtime.
    other_loaders: function that returns loaders for the other installed runtimes.
    default_batch: batch size of graphs for which none is chosen; None for any size.
    max_array_bytes: largest total size of the arrays, in bytes; None for no limit.
  """

  write: bisect.Write
  load: bisect.Load
  other_loaders: Callable[[], Sequence[bisect.Load]] = lambda: ()
  default_batch: int | None = None
  max_array_bytes: int | None = _MAX_ARRAY_BYTES


# By the suffix of the files.
_FORMATS = {
  'onnx': _Format(onnx.write, onnx.load, onnx.other_loaders, max_array_bytes=None),
  'stablehlo': _Format(stablehlo.write, stablehlo.load),
  'savedmodel': _Format(tensorflow.write_savedmodel, tensorflow.load_savedmodel),
  'tflite': _Format(tensorflow.write_tflite, tensorflow.load_tflite, default_batch=1),
}


class ExportResult(NamedTuple):
  """Exported graph and its verification.

  Attributes:
    path: file of the graph.
    num_bytes: total size of the graph and its accompanying files.
    metadata: content of the JSON file next to the graph.
    agreement: differences between the float graph and the model.
    quantized: comparison of the quantized graph with the float graph; None if not quantized.
  """

  path: Path
  num_bytes: int
  metadata: runtimes.Metadata
  agreement: verify.Agreement
  quantized: quantization.QuantizationResult | None = None

  def to_dict(self) -> dict[str, object]:
    """Return path, size and metadata of the export as JSON-compatible values."""
    return {'output': str(self.path), 'bytes': self.num_bytes, **self.metadata}

  def __str__(self) -> str:
    return f'{self.path}: {self.num_bytes / 1e6:.1f} MB; {self.quantized or self.agreement}.'


def export(
  model: model_dir.Model,
  format: str = 'onnx',
  output: Path | None = None,
  batch: int | None = None,
  camera_size: tuple[int, int] | None = None,
  image_folder: Path | None = None,
  quantize: str = '',
) -> ExportResult:
  """Export a model to a file for another runtime, and verify the file against the model.

  Args:
    model: opened model directory.
    format: 'onnx', 'stablehlo', 'savedmodel' or 'tflite'.
    output: file to write; by default `model.<format>`, or `model.<quantize>.<format>`, in the
      model's directory.
    batch: batch size of the graph; None for any size (in TFLite, for 1).
    camera_size: height and width of the camera's images, which are then resized inside the graph;
      None for a graph that takes images at network resolution.
    image_folder: folder of images to verify on, instead of the calibration images; for a quantized
      graph it may also be a dataset.
    quantize: 'int8' or 'fp16', for a smaller graph; '' for an exact graph.

  Raises:
    UnknownName: unknown `format` or `quantize`.
    ConfigError: the batch size is below 1, a folder is missing or read-only, or images are missing.
    DataError: `image_folder` has no images.
    ExportError: the format cannot hold the model, or results differ. Then no file is written.
  """
  options = _make_settings({'format': format, 'batch': batch, 'quantize': quantize})
  name = '.'.join(filter(None, ('model', options.quantize, options.format)))
  output = output or model.directory / name
  _require_exportable(model, options.format, output)
  evaluation_images = None
  if options.quantize:
    evaluation_images = quantization_check.select_images(model, camera_size, image_folder)
  images = verify.select_images(model, camera_size, image_folder)
  spec = _FORMATS[options.format]
  batch = options.batch or spec.default_batch
  graph = graphs.from_model(model, batch, camera_size, options.quantize)
  with tempfile.TemporaryDirectory(prefix='.', dir=output.parent) as folder:
    path = Path(folder) / output.name
    file_info, agreement = _write_and_verify(spec, graph, path, model, images)
    quantized, check = None, {'agreement': agreement.to_dict()}
    if evaluation_images:
      quantized = quantization.quantize(options.quantize, path, batch, evaluation_images)
      check = {'quantized': quantized.to_dict()}
    hashes = graph_hash.compute(path, file_info.get('external_data'))
    description = {'format': options.format, **file_info, **hashes, **_describe_signature(graph)}
    metadata = {**description, **graph.metadata, **check}
    files.write_json(path.with_name(f'{output.name}.json'), metadata)
    num_bytes = _move_into_place(path.parent, output)
  return ExportResult(output, num_bytes, metadata, agreement, quantized)


def _make_settings(values: Mapping[str, object]) -> ExportSettings:
  """Return valid settings for whose format all packages are installed."""
  try:
    options = configs.replace(ExportSettings(), values)
  except UserError as error:
    error.key = f'export.{error.key}'
    raise
  options.validate()
  missing = [name for name in _REQUIRED_PACKAGES if importlib.util.find_spec(name) is None]
  if options.format == 'onnx' and missing:
    raise ConfigError(f'Exporting to onnx needs {missing[0]}: {text.install_command("export")}.')
  return options


def _describe_signature(graph: graphs.Graph) -> runtimes.Metadata:
  shape = list(graph.input_shape)
  return {
    'input': {'name': runtimes.INPUT_NAME, 'type': 'uint8', 'shape': shape},
    'outputs': list(runtimes.OUTPUT_NAMES),
  }


def _require_exportable(model: model_dir.Model, format: str, output: Path) -> None:
  """Raise an error unless the model fits into the format, and the output can be written."""
  max_array_bytes = _FORMATS[format].max_array_bytes
  array_bytes = sum(array.nbytes for array in jax.tree.leaves(model.fitted))
  if max_array_bytes is not None and array_bytes > max_array_bytes:
    size = f'{array_bytes / 1e9:.1f} GB'
    message = f'The arrays of {model.directory} take {size}, but {format} is limited to 2 GB.'
    to_onnx, channels = Setting('export.format', 'onnx'), Setting('detector.channels')
    raise ExportError(message, hint=('Use ', to_onnx, ', or fit with a smaller ', channels, '.'))
  folder = output.parent
  reason = files.unwritable_reason(folder) if folder.is_dir() else 'there is no such folder'
  if reason:
    message = f'Cannot write to {folder} ({reason}).'
    refuse('export.output', output, message, 'Choose another ', Setting('export.output'), '.')
  if output.is_dir() and not (format == 'savedmodel' and (output / 'saved_model.pb').is_file()):
    example = output / f'model.{format}'
    raise ConfigError(f'{output} is a folder; name the file to write, such as {example}.')
  files.announce_size('the graph', folder, array_bytes)


def _write_and_verify(
  spec: _Format,
  graph: graphs.Graph,
  path: Path,
  model: model_dir.Model,
  images: verify.ComparisonImages,
) -> tuple[runtimes.Metadata, verify.Agreement]:
  """Write a graph and compare it with its model in every installed runtime.

  Returns:
    The metadata of the file, and the agreement of the runtime that differs most.

  Raises:
    ExportError: the graph cannot be written or run, or it differs. The message names the first
      operation that differs.
  """
  load, agreements = spec.load, []
  try:
    with progress.show_status(f'Writing {path.name}'):
      file_info = spec.write(graph, path)
    with progress.show_status(f'Comparing {path.name} with the model'):
      for load in (spec.load, *spec.other_loaders()):
        agreements.append(verify.compare(model, load(path), graph.input_shape[0], images))
        if not agreements[-1].is_within_tolerance:
          break
  except (ConfigError, OSError):  # The disk may be full, for example.
    raise
  except Exception as error:  # Converters and runtimes raise errors of any class.
    problem = f'{path.name} cannot be exported: {graphs.first_line(error)}'
    raise _mismatch_error(problem, graph, spec, load, images.graph_inputs) from None
  agreement = agreements[-1]
  if agreement.is_within_tolerance:
    return file_info, max(agreements, key=lambda x: (x.score, x.map))
  allowed = f'{verify.TOLERANCE:g} and no changed label'
  problem = f'{path.name} differs from the model: {agreement} (allowed: {allowed})'
  if max(agreement.score, agreement.map) <= verify.TOLERANCE:
    reason = 'a score is so close to a threshold that rounding changes the label of its image'
    raise ExportError(f'{problem}; {reason}. Nothing was written.')
  raise _mismatch_error(problem, graph, spec, load, images.graph_inputs[agreement.worst_index :])


def _mismatch_error(
  problem: str, graph: graphs.Graph, spec: _Format, load: bisect.Load, images: np.ndarray
) -> ExportError:
  """Return an error that names the first operation which differs on some images."""
  try:
    reason = bisect.first_mismatch(graph, spec.write, load, images, verify.TOLERANCE)
  except Exception as error:  # The search uses internals of JAX, which may change.
    reason = f'the operation that differs cannot be found: {graphs.first_line(error)}'
  return ExportError(f'{problem}; {reason}. Nothing was written.')


def _move_into_place(folder: Path, output: Path) -> int:
  """Move the files next to `output`, the graph last, and delete arrays of a previous graph.

  Returns:
    The total size of the files, in bytes.
  """
  num_bytes = sum(path.stat().st_size for path in folder.rglob('*') if path.is_file())
  if output.is_dir():
    shutil.rmtree(output)
  arrays_name = f'{output.name}.data'
  if not (folder / arrays_name).exists():
    output.with_name(arrays_name).unlink(missing_ok=True)
  for path in sorted(folder.iterdir(), key=lambda path: path.name == output.name):
    path.replace(output.parent / path.name)
  return num_bytes
