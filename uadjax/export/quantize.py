"""Smaller ONNX graphs: convolutions in eight bits, or arrays stored in sixteen.

Such a graph does not say what its model says to the last digit, so it is judged by what it is for
(`quantization_check`). Thresholds stand on distances; norms, means and all that is compared stay
float32.
"""

from collections.abc import Callable
import contextlib
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uadjax.data.records import Record
from uadjax.errors import ConfigError, DataError, ExportError, UnknownName
from uadjax.export import onnx as onnx_files, quantization_check, runtimes
from uadjax.model import calibration
from uadjax.system import progress

_RANGES = 48  # Images that activations are measured on: more widen few ranges, and take longer.
_LARGE = 1 << 16  # Numbers in an array: smaller ones do not pay.
_FACTORS = ('Conv', 'MatMul', 'Gemm', 'Einsum', 'Gather')


class Quantized(NamedTuple):
  """What became of a graph.

  Attributes:
    kind: one of KINDS.
    bytes_before: of the float graph.
    bytes_after: of the quantized one.
    good: on good images that the thresholds stand on; None where none is here.
    test: on test images; None where there are none.
  """

  kind: str
  bytes_before: int
  bytes_after: int
  good: quantization_check.Kept | None
  test: quantization_check.Kept | None

  @property
  def holds(self) -> bool:
    """Whether it may be used instead of the float graph."""
    return all(kept.holds for kept in (self.good, self.test) if kept)

  def told(self) -> dict[str, Any]:
    """The same, as JSON can hold it."""
    sets = {'good': self.good, 'test': self.test}
    kept = {name: one for name, one in sets.items() if one}
    of_sets = ('images', 'label_changes', 'score_change')
    return {
      'kind': self.kind,
      'bytes_before': self.bytes_before,
      'bytes_after': self.bytes_after,
      **{key: {name: getattr(one, key) for name, one in kept.items()} for key in of_sets},
      'auroc': self.test.auroc if self.test else None,
      'auroc_quantized': self.test.auroc_quantized if self.test else None,
      'tolerance': {
        'auroc_fall': quantization_check.AUROC_FALL,
        'label_share': quantization_check.LABEL_SHARE,
      },
    }

  def __str__(self) -> str:
    sets = (('good', self.good), ('test', self.test))
    kept = [f'on {one.images} {name} images {one}' for name, one in sets if one]
    if self.test is None:
      kept.append('no test images were at hand, so that nothing is known of defects')
    return f'{self.kind}, {self.bytes_before / 1e6:.1f} MB in float32; {"; ".join(kept)}'


def check(kind: str, format: str) -> None:
  """Refuse what there is not.

  Raises:
    UnknownName: there is no such kind.
    ConfigError: the format is not quantized.
  """
  if kind not in KINDS:
    raise UnknownName(f'Unknown export.quantize {kind!r}; choose from {list(KINDS)}.')
  if format != 'onnx':
    raise ConfigError(
      f'export.quantize={kind} is for onnx alone, since only there the result is run and judged '
      f'before it is done; export to onnx, or to {format} without export.quantize.'
    )


def quantize(
  kind: str,
  path: Path,
  limits: calibration.Thresholds,
  batch: int | None,
  on: quantization_check.Pictures,
) -> Quantized:
  """Replace an ONNX file by its quantized form, and judge that.

  Args:
    kind: one of KINDS.
    path: of the file.
    limits: thresholds of its labels.
    batch: images it takes at once; None for any number.
    on: the pictures.

  Raises:
    ExportError: it cannot be made, or is not as good.
  """
  import onnx

  if path.with_name(f'{path.name}.data').exists():
    raise ExportError(
      f'{path.name} has two gigabytes or more, which are not quantized; fit with fewer '
      'detector.channels, or leave export.quantize out. Nothing was written.'
    )
  before, smaller = path.stat().st_size, path.with_name(f'smaller-{path.name}')
  try:
    with progress.show_status(f'Quantizing {path.name}'), _quietly():
      model = KINDS[kind](path, smaller, batch, on)
      _like(model, onnx.load(path))
      onnx.save(model, smaller)
      onnx.checker.check_model(smaller, full_check=True)
    runs = [onnx_files.load(one) for one in (path, smaller)]
    with progress.show_status(f'Judging {path.name}'):
      good = quantization_check.compare(runs, [Record(one) for one in on.good], on, limits, batch)
      test = quantization_check.compare(runs, on.test, on, limits, batch) if on.test else None
  except DataError:
    raise
  except Exception as error:  # Of converters and runtimes, of any class.
    told = str(error).strip().partition('\n')[0]
    raise ExportError(
      f'{path.name} cannot be quantized: {told or type(error).__name__}. Nothing was written.'
    ) from None
  done = Quantized(kind, before, smaller.stat().st_size, good, test)
  if not done.holds:
    others = ' or '.join(other for other in KINDS if other != kind)
    raise ExportError(
      f'{path.name} is not as good quantized: {done}, where image AUROC may fall by '
      f'{quantization_check.AUROC_FALL:g} and {100 * quantization_check.LABEL_SHARE:g} % of the '
      f'labels, or one, may change; '
      f'leave export.quantize out, or try {others}. Nothing was written.'
    )
  smaller.replace(path)
  return done


def _to_int8(path: Path, smaller: Path, batch: int | None, on: quantization_check.Pictures) -> Any:
  """Convolutions in eight bits: weights by channel, activations by what good images excite."""
  import onnx
  from onnxruntime import quantization

  class Images(quantization.CalibrationDataReader):
    def __init__(self) -> None:
      chunks = quantization_check.chunks(
        quantization_check.spread(on.good, _RANGES), on.taken, batch or 1, batch
      )
      self._images = ({runtimes.INPUT: images} for images, _ in chunks)

    def get_next(self) -> Any:
      return next(self._images, None)

  quantization.quantize_static(
    path,
    smaller,
    Images(),
    quant_format=quantization.QuantFormat.QDQ,
    op_types_to_quantize=['Conv'],
    nodes_to_exclude=_of_pixels(onnx.load(path)),
    per_channel=True,
    # Behind a ReLU a sign would be a wasted bit; nor does ONNX Runtime 1.31 open a signed one of
    # this opset. Seven bits for the weights, which CPUs without VNNI do not saturate, changed 7 of
    # 160 labels of screw instead of 3 (PatchCore, ResNet-18), and as many of toothbrush.
    activation_type=quantization.QuantType.QUInt8,
    weight_type=quantization.QuantType.QInt8,
    extra_options={'QDQKeepRemovableActivations': True},  # For `_unround` to find them.
  )
  return _unround(onnx.load(smaller))


def _unround(model: Any) -> Any:
  """Give what convolutions take in eight bits to all others as it was: features among them.

  The quantizer gives every reader of a tensor the rounded one.
  """
  made = {name: node for node in model.graph.node for name in node.output}

  def exact(name: str) -> str:
    dequantize = made.get(name)
    if dequantize is None or dequantize.op_type != 'DequantizeLinear':
      return name
    source = made[dequantize.input[0]].input[0] if dequantize.input[0] in made else name
    # Convolutions give eight bits as well, or ONNX Runtime would not compute them so.
    return name if source in made and made[source].op_type == 'Conv' else source

  for node in model.graph.node:
    if node.op_type != 'Conv':
      node.input[:] = [exact(name) for name in node.input]
  return model


def _of_pixels(model: Any) -> list[str]:
  """Convolutions of the image itself: few weights, and whatever they round all others see.

  In eight bits, too, they changed 6 of 160 labels of screw instead of 3, and 2 of 42 of toothbrush
  instead of 1 (PatchCore, ResNet-18).
  """
  weights = {array.name: array.dims for array in model.graph.initializer}
  convolutions = [node for node in model.graph.node if node.op_type == 'Conv']
  return [node.name for node in convolutions if weights.get(node.input[1], (0, 3))[1] == 3]


def _to_fp16(path: Path, smaller: Path, batch: int | None, on: quantization_check.Pictures) -> Any:
  """Large factors stored in sixteen bits, and cast to float32 when the file is opened.

  Activations stay float32: ONNX Runtime's CPU provider has no convolution in half precision on x86,
  and casts around each. A backbone in half precision took 134 ms where it took 117 (PatchCore,
  ResNet-18, one image, two threads), and its scores moved as far.
  """
  import onnx

  model = onnx.load(path)
  uses: dict[str, list[bool]] = {}
  for node in model.graph.node:
    for place, name in enumerate(node.input):
      # What is added, such as means and the norms of a bank, is compared with its like: float32.
      uses.setdefault(name, []).append(node.op_type in _FACTORS and place < 2)
  casts = []
  for array in model.graph.initializer:
    half = _half(onnx.numpy_helper.to_array(array)) if all(uses.get(array.name, [False])) else None
    if half is not None:
      name, stored = array.name, f'{array.name}_half'
      array.CopyFrom(onnx.numpy_helper.from_array(half, stored))
      to = onnx.TensorProto.FLOAT
      casts.append(onnx.helper.make_node('Cast', [stored], [name], f'{name}_cast', to=to))
  nodes = [*casts, *model.graph.node]
  del model.graph.node[:]
  model.graph.node.extend(nodes)
  return model


def _half(array: np.ndarray) -> np.ndarray | None:
  """The same in half precision; None where that does not pay, or loses more than rounding does."""
  if array.dtype != np.float32 or array.ndim < 2 or array.size < _LARGE:
    return None
  with np.errstate(over='ignore'):
    half = array.astype(np.float16)
  furthest = np.abs(half.astype(np.float32) - array).max()
  return half if furthest <= 2.0**-11 * np.abs(array).max() else None


KINDS: dict[str, Callable[[Path, Path, int | None, quantization_check.Pictures], Any]] = {
  'int8': _to_int8,
  'fp16': _to_fp16,
}


def _like(model: Any, original: Any) -> None:
  """Say of a graph what its original says: origin, metadata, and the operations it needs alone."""
  used = {node.domain for node in model.graph.node}
  opsets = [opset for opset in model.opset_import if opset.domain in used]
  del model.opset_import[:], model.metadata_props[:]
  model.opset_import.extend(opsets)
  model.metadata_props.extend(original.metadata_props)
  model.producer_name, model.producer_version = original.producer_name, original.producer_version


@contextlib.contextmanager
def _quietly():
  """Without the quantizer's advice, which would set up logging for the whole process."""
  log, nobody = logging.getLogger(), logging.NullHandler()
  before = log.level
  log.addHandler(nobody)
  log.setLevel(logging.ERROR)
  try:
    yield
  finally:
    log.setLevel(before)
    log.removeHandler(nobody)
