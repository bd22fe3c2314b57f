"""Models for other runtimes: written, run, and compared with the original before they are done."""

from collections.abc import Callable, Sequence
import importlib.util
import os
from pathlib import Path
import re
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

_MAX_ARRAY_BYTES = 2**31 - 2**24  # Bytes that such a file may have, and what is not arrays.


class _Format(NamedTuple):
  """A way to write a graph.

  Attributes:
    suffix: of the file.
    write: (Graph, path) -> facts of the file, as JSON can hold them.
    load: opens the file as its users do.
    others: what opens it by the other runtimes that are installed.
    any_batch: whether the number of images may be left open.
    needs: packages that are not always there.
    limit: bytes of arrays that fit.
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
  """What was written.

  Attributes:
    path: the graph.
    bytes: of it and what lies beside it.
    about: what the .json beside it says.
    agreement: how far it is from the model; of a quantized graph, how far the float one was.
    quantized: what a quantized graph kept; None where it is none.
  """

  path: Path
  num_bytes: int
  metadata: dict[str, Any]
  agreement: verify.Agreement
  quantized: quantization.QuantizationResult | None = None

  def to_dict(self) -> dict[str, Any]:
    """The same, as JSON can hold it."""
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
  """Write a model for another runtime, unless it would say something else there.

  Args:
    model: opened.
    format: one of FORMATS.
    output: the file; `model.<format>`, or `model.<quantize>.<format>`, in the model's directory
      where none is named.
    batch: how many images the graph takes at once; None for any number, or one in TFLite.
    camera: height and width of a camera's images; resizing is part of the graph then.
    images: a folder of images to compare on, instead of those that the thresholds stand on; a data
      set, too, where the graph is quantized.
    quantize: one of KINDS, to make the graph smaller; '' to leave it exact.

  Raises:
    UnknownName: there is no such format, or no such kind.
    ConfigError: a batch below 1, a folder that is not there, or no image to quantize by.
    ExportError: the model is too large for the format, cannot be written in it, or does not say
      there what it should; nothing is left of it then.
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
    raise ConfigError(f'export.batch must be 1 or more, or left out for any number; got {batch}.')
  array_bytes = graphs.array_bytes(model)
  if output_format.max_array_bytes is not None and array_bytes > output_format.max_array_bytes:
    raise ExportError(
      f'The arrays of {model.directory} have {array_bytes / 1e9:.1f} GB, and {format} holds 2 GB at '
      'most; export to onnx, or fit with fewer detector.channels.'
    )
  output = (
    output or model.directory / f'model{"." * bool(quantize)}{quantize}{output_format.suffix}'
  )
  if not output.parent.is_dir():
    raise ConfigError(f'There is no folder {output.parent} to export to.')
  if not os.access(output.parent, os.W_OK):
    raise ConfigError(
      f'{output.parent} cannot be written to.',
      key='export.output',
      value=output,
      hint=('Name another ', Setting('export.output'), '.'),
    )
  if output.is_dir() and not (format == 'savedmodel' and (output / 'saved_model.pb').is_file()):
    raise ConfigError(
      f'{output} is a folder; name the file to write, as model{output_format.suffix} in it.'
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
  """Write a graph and compare it with its model; of one that differs, look for where."""
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
      f'{path.name} does not say what the model says: {agreement}, where {verify.TOLERANCE:g} is '
      'allowed and no label may be another'
    )
  except Exception as error:  # Of converters and runtimes, of any class.
    if isinstance(error, ConfigError | OSError):  # Of a disk that is full, say.
      raise
    first_line = str(error).strip().partition('\n')[0]
    failure, agreement = f'{path.name} cannot be made: {first_line or type(error).__name__}', None
  if agreement and max(agreement.score, agreement.map) <= verify.TOLERANCE:
    reason = 'a good image lies as near to a threshold as rounding moves it'
  else:
    images = (
      comparison_images.graph_inputs[agreement.worst_index :]
      if agreement
      else comparison_images.graph_inputs
    )
    reason = bisect.first_mismatch(graph, output_format.write, load, images, verify.TOLERANCE)
  raise ExportError(f'{failure}; {reason}. Nothing was written.')


def parse_size(text: str) -> tuple[int, int] | None:
  """Read a size such as '1024x1280', height and width; nothing is None."""
  if not text:
    return None
  match = re.fullmatch(r'([1-9]\d*)[xX]([1-9]\d*)', text.strip())
  if not match:
    raise ConfigError(
      f"export.include_resize={text!r} is no size; write the camera's height and width, such as "
      '1024x1280.'
    )
  return int(match[1]), int(match[2])


def _move_into_place(folder: Path, output: Path) -> None:
  """Put all files where they belong, the graph itself last; arrays of an earlier one go."""
  if output.is_dir():
    shutil.rmtree(output)
  arrays_name = f'{output.name}.data'
  if not (folder / arrays_name).exists():
    output.with_name(arrays_name).unlink(missing_ok=True)
  for path in sorted(folder.iterdir(), key=lambda path: path.name == output.name):
    path.replace(output.parent / path.name)
