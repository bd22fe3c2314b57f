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
  quantize as quantizing,
  runtimes,
  stablehlo,
  tensorflow,
  verify,
)
from uadjax.model import model_dir
from uadjax.system import files, progress

_LIMIT = 2**31 - 2**24  # Bytes that such a file may have, and what is not arrays.


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
  load: Callable[[Path], runtimes.Run]
  others: Callable[[], Sequence[Callable[[Path], runtimes.Run]]] = lambda: ()
  any_batch: bool = True
  needs: tuple[str, ...] = ()
  limit: int | None = _LIMIT


_FORMATS = {
  'onnx': _Format(
    runtimes.SUFFIX, onnx.write, onnx.load, onnx.others, needs=onnx.NEEDS, limit=None
  ),
  'stablehlo': _Format('.stablehlo', stablehlo.write, stablehlo.load),
  'savedmodel': _Format('.savedmodel', tensorflow.write_savedmodel, tensorflow.load_savedmodel),
  'tflite': _Format('.tflite', tensorflow.write_tflite, tensorflow.load_tflite, any_batch=False),
}
FORMATS = tuple(_FORMATS)
KINDS = tuple(quantizing.KINDS)


class Exported(NamedTuple):
  """What was written.

  Attributes:
    path: the graph.
    bytes: of it and what lies beside it.
    about: what the .json beside it says.
    agreement: how far it is from the model; of a quantized graph, how far the float one was.
    quantized: what a quantized graph kept; None where it is none.
  """

  path: Path
  bytes: int
  about: dict[str, Any]
  agreement: verify.Agreement
  quantized: quantizing.Quantized | None = None

  def told(self) -> dict[str, Any]:
    """The same, as JSON can hold it."""
    return {'output': str(self.path), 'bytes': self.bytes, **self.about}

  def __str__(self) -> str:
    return f'{self.path}: {self.bytes / 1e6:.1f} MB; {self.quantized or self.agreement}.'


def export(
  model: model_dir.Model,
  format: str = 'onnx',
  output: Path | None = None,
  batch: int | None = None,
  camera: tuple[int, int] | None = None,
  images: Path | None = None,
  quantize: str = '',
) -> Exported:
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
  kind = _FORMATS[format]
  if quantize:
    quantizing.check(quantize, format)
  if missing := [name for name in kind.needs if importlib.util.find_spec(name) is None]:
    raise ConfigError(f"Exporting to {format} needs {missing[0]}: pip install 'uadjax[export]'.")
  if batch is not None and batch < 1:
    raise ConfigError(f'export.batch must be 1 or more, or left out for any number; got {batch}.')
  needed = graphs.size(model)
  if kind.limit is not None and needed > kind.limit:
    raise ExportError(
      f'The arrays of {model.directory} have {needed / 1e9:.1f} GB, and {format} holds 2 GB at '
      'most; export to onnx, or fit with fewer detector.channels.'
    )
  output = output or model.directory / f'model{"." * bool(quantize)}{quantize}{kind.suffix}'
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
    raise ConfigError(f'{output} is a folder; name the file to write, as model{kind.suffix} in it.')
  judged_on = quantization_check.pictures(model, camera, images) if quantize else None
  graph = graphs.of(model, batch if kind.any_batch else batch or 1, camera)
  graph = graph._replace(about={**graph.about, 'quantize': quantize})
  on = verify.pictures(model, camera, images)
  with tempfile.TemporaryDirectory(prefix='.', dir=output.parent) as folder:
    path = Path(folder) / output.name
    facts, agreement = _tried(kind, graph, path, model, on)
    told: dict[str, Any] = {'agreement': agreement.told()}
    quantized = None
    if judged_on:
      quantized = quantizing.quantize(quantize, path, model.thresholds, graph.batch, judged_on)
      told = {'quantized': quantized.told()}
    about = {
      'format': format,
      **facts,
      'input': {'name': runtimes.INPUT, 'type': 'uint8', 'shape': list(graph.shape)},
      'outputs': list(runtimes.OUTPUTS),
      **graph.about,
      **told,
    }
    files.write_json(path.with_name(f'{output.name}.json'), about)
    total = sum(file.stat().st_size for file in Path(folder).rglob('*') if file.is_file())
    _move(Path(folder), output)
  return Exported(output, total, about, agreement, quantized)


def _tried(
  kind: _Format, graph: graphs.Graph, path: Path, model: model_dir.Model, on: verify.Pictures
) -> tuple[dict[str, Any], verify.Agreement]:
  """Write a graph and compare it with its model; of one that differs, look for where."""
  load, found = kind.load, []
  try:
    with progress.show_status(f'Writing {path.name}'):
      facts = kind.write(graph, path)
    with progress.show_status(f'Comparing {path.name} with the model'):
      for load in (kind.load, *kind.others()):
        found.append(verify.compare(model, load(path), graph.batch, on))
        if not found[-1].holds:
          break
    agreement = found[-1]
    if agreement.holds:
      return facts, max(found, key=lambda one: (one.score, one.map))
    wrong = (
      f'{path.name} does not say what the model says: {agreement}, where {verify.TOLERANCE:g} is '
      'allowed and no label may be another'
    )
  except Exception as error:  # Of converters and runtimes, of any class.
    if isinstance(error, ConfigError | OSError):  # Of a disk that is full, say.
      raise
    told = str(error).strip().partition('\n')[0]
    wrong, agreement = f'{path.name} cannot be made: {told or type(error).__name__}', None
  if agreement and max(agreement.score, agreement.map) <= verify.TOLERANCE:
    why = 'a good image lies as near to a threshold as rounding moves it'
  else:
    images = on.taken[agreement.worst :] if agreement else on.taken
    why = bisect.culprit(graph, kind.write, load, images, verify.TOLERANCE)
  raise ExportError(f'{wrong}; {why}. Nothing was written.')


def size(text: str) -> tuple[int, int] | None:
  """Read a size such as '1024x1280', height and width; nothing is None."""
  if not text:
    return None
  found = re.fullmatch(r'([1-9]\d*)[xX]([1-9]\d*)', text.strip())
  if not found:
    raise ConfigError(
      f"export.include_resize={text!r} is no size; write the camera's height and width, such as "
      '1024x1280.'
    )
  return int(found[1]), int(found[2])


def _move(folder: Path, output: Path) -> None:
  """Put all files where they belong, the graph itself last; arrays of an earlier one go."""
  if output.is_dir():
    shutil.rmtree(output)
  arrays = f'{output.name}.data'
  if not (folder / arrays).exists():
    output.with_name(arrays).unlink(missing_ok=True)
  for path in sorted(folder.iterdir(), key=lambda path: path.name == output.name):
    path.replace(output.parent / path.name)
