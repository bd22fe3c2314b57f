"""Export of models to other runtimes, with verification before the file is put in place."""

from collections.abc import Callable, Sequence
import importlib.util
import os
from pathlib import Path
import shutil
import tempfile
from typing import Any, NamedTuple

from uadjax.errors import ConfigError, ExportError, Setting, UnknownName
from uadjax.export import (
  bisect,
  graph as graphs,
  onnx,
  quantization_check,
  quantize as quantization,
  runtimes,
  stablehlo,
  tensorflow,
  verify,
)
from uadjax.model import model_dir
from uadjax.system import files, progress

# The limit of a whole file is 2 GB; the margin is for everything except arrays.
_MAX_ARRAY_BYTES = 2**31 - 2**24


class _Format(NamedTuple):
  """File format of exported graphs.

  Attributes:
    suffix: file suffix.
    write: function (graph, path) that writes a file and returns its JSON-compatible metadata.
    load: function (path) that opens the file in the format's main runtime.
    other_loaders: function that returns loaders for the other installed runtimes.
    supports_any_batch: whether the batch size may stay free.
    required_packages: optional packages that writing needs.
    max_array_bytes: largest total size of the arrays, in bytes; None for no limit.
  """

  suffix: str
  write: Callable[[graphs.Graph, Path], dict[str, Any]]
  load: Callable[[Path], runtimes.RunFunction]
  other_loaders: Callable[[], Sequence[Callable[[Path], runtimes.RunFunction]]] = lambda: ()
  supports_any_batch: bool = True
  required_packages: tuple[str, ...] = ()
  max_array_bytes: int | None = _MAX_ARRAY_BYTES


_FORMATS = {
  'onnx': _Format(
    runtimes.SUFFIX,
    onnx.write,
    onnx.load,
    onnx.other_loaders,
    required_packages=onnx.REQUIRED_PACKAGES,
    max_array_bytes=None,
  ),
  'stablehlo': _Format('.stablehlo', stablehlo.write, stablehlo.load),
  'savedmodel': _Format('.savedmodel', tensorflow.write_savedmodel, tensorflow.load_savedmodel),
  'tflite': _Format(
    '.tflite', tensorflow.write_tflite, tensorflow.load_tflite, supports_any_batch=False
  ),
}
FORMATS = tuple(_FORMATS)
QUANTIZATIONS = tuple(quantization.QUANTIZERS)


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
  metadata: dict[str, Any]
  agreement: verify.Agreement
  quantized: quantization.QuantizationResult | None = None

  def to_dict(self) -> dict[str, Any]:
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
    format: one of FORMATS.
    output: file to write; by default `model.<format>`, or `model.<quantize>.<format>`, in the
      model's directory.
    batch: batch size of the graph; None for any size (in TFLite, for 1).
    camera_size: height and width of the camera's images, which are then resized inside the graph;
      None for a graph that takes images at network resolution.
    image_folder: folder of images to verify on, instead of the calibration images; for a quantized
      graph it may also be a dataset.
    quantize: one of QUANTIZATIONS, for a smaller graph; '' for an exact graph.

  Raises:
    UnknownName: unknown `format` or `quantize`.
    ConfigError: the batch size is below 1, a folder is missing or read-only, or no image is
      available for quantization.
    DataError: `image_folder` has no images.
    ExportError: the model is too large for the format or cannot be written in it, or the results
      differ. In these cases no file is written.
  """
  if format not in _FORMATS:
    raise UnknownName(f'Unknown export.format {format!r}; choose from {list(FORMATS)}.')
  output_format = _FORMATS[format]
  if quantize:
    quantization.validate_options(quantize, format)
  if missing_packages := [
    name for name in output_format.required_packages if importlib.util.find_spec(name) is None
  ]:
    raise ConfigError(
      f"Exporting to {format} needs {missing_packages[0]}: pip install 'uadjax[export]'."
    )
  if batch is not None and batch < 1:
    raise ConfigError(f'export.batch must be 1 or more, or unset for any size; got {batch}.')
  array_bytes = graphs.array_bytes(model)
  if output_format.max_array_bytes is not None and array_bytes > output_format.max_array_bytes:
    raise ExportError(
      f'The arrays of {model.directory} take {array_bytes / 1e9:.1f} GB, but {format} is limited '
      'to 2 GB. Export to onnx, or fit with fewer detector.channels.'
    )
  output = (
    output or model.directory / f'model{"." * bool(quantize)}{quantize}{output_format.suffix}'
  )
  if not output.parent.is_dir():
    raise ConfigError(f'Cannot export: the folder {output.parent} does not exist.')
  if not os.access(output.parent, os.W_OK):
    raise ConfigError(
      f'The folder {output.parent} is not writable.',
      key='export.output',
      value=output,
      hint=('Choose another ', Setting('export.output'), '.'),
    )
  if output.is_dir() and not (format == 'savedmodel' and (output / 'saved_model.pb').is_file()):
    raise ConfigError(
      f'{output} is a folder; name the file to write, such as '
      f'{output / f"model{output_format.suffix}"}.'
    )
  evaluation_images = (
    quantization_check.select_images(model, camera_size, image_folder) if quantize else None
  )
  graph = graphs.from_model(
    model, batch if output_format.supports_any_batch else batch or 1, camera_size
  )
  graph = graph._replace(metadata={**graph.metadata, 'quantize': quantize})
  comparison_images = verify.select_images(model, camera_size, image_folder)
  with tempfile.TemporaryDirectory(prefix='.', dir=output.parent) as temporary_folder:
    path = Path(temporary_folder) / output.name
    file_info, agreement = _write_and_verify(output_format, graph, path, model, comparison_images)
    comparison: dict[str, Any] = {'agreement': agreement.to_dict()}
    quantized = None
    if evaluation_images:
      quantized = quantization.quantize(
        quantize, path, model.thresholds, graph.batch, evaluation_images
      )
      comparison = {'quantized': quantized.to_dict()}
    metadata = {
      'format': format,
      **file_info,
      'input': {'name': runtimes.INPUT_NAME, 'type': 'uint8', 'shape': list(graph.input_shape)},
      'outputs': list(runtimes.OUTPUT_NAMES),
      **graph.metadata,
      **comparison,
    }
    files.write_json(path.with_name(f'{output.name}.json'), metadata)
    num_bytes = sum(
      file.stat().st_size for file in Path(temporary_folder).rglob('*') if file.is_file()
    )
    _move_into_place(Path(temporary_folder), output)
  return ExportResult(output, num_bytes, metadata, agreement, quantized)


def _write_and_verify(
  output_format: _Format,
  graph: graphs.Graph,
  path: Path,
  model: model_dir.Model,
  comparison_images: verify.ComparisonImages,
) -> tuple[dict[str, Any], verify.Agreement]:
  """Write a graph and compare it with its model in every installed runtime.

  Returns:
    The metadata of the file, and the agreement of the runtime that differs most.

  Raises:
    ExportError: the graph cannot be written or run, or it differs. The message names the first
      operation that differs.
  """
  load, agreements = output_format.load, []
  try:
    with progress.show_status(f'Writing {path.name}'):
      file_info = output_format.write(graph, path)
    with progress.show_status(f'Comparing {path.name} with the model'):
      for load in (output_format.load, *output_format.other_loaders()):
        agreements.append(verify.compare(model, load(path), graph.batch, comparison_images))
        if not agreements[-1].is_within_tolerance:
          break
    agreement = agreements[-1]
    if agreement.is_within_tolerance:
      return file_info, max(agreements, key=lambda result: (result.score, result.map))
    failure = (
      f'{path.name} differs from the model: {agreement} (allowed: {verify.TOLERANCE:g} and no '
      'changed label)'
    )
  except Exception as error:  # Converters and runtimes raise errors of any class.
    if isinstance(error, ConfigError | OSError):  # The disk may be full, for example.
      raise
    first_line = str(error).strip().partition('\n')[0]
    failure, agreement = (
      f'{path.name} cannot be exported: {first_line or type(error).__name__}',
      None,
    )
  if agreement and max(agreement.score, agreement.map) <= verify.TOLERANCE:
    reason = 'the score of an image is so close to a threshold that rounding changes its label'
  else:
    images = (
      comparison_images.graph_inputs[agreement.worst_index :]
      if agreement
      else comparison_images.graph_inputs
    )
    reason = bisect.first_mismatch(graph, output_format.write, load, images, verify.TOLERANCE)
  raise ExportError(f'{failure}; {reason}. Nothing was written.')


def _move_into_place(folder: Path, output: Path) -> None:
  """Move the files next to `output`, the graph last, and delete arrays of a previous graph."""
  if output.is_dir():
    shutil.rmtree(output)
  arrays_name = f'{output.name}.data'
  if not (folder / arrays_name).exists():
    output.with_name(arrays_name).unlink(missing_ok=True)
  for path in sorted(folder.iterdir(), key=lambda path: path.name == output.name):
    path.replace(output.parent / path.name)
