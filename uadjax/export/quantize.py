"""Quantization of ONNX graphs: convolutions in 8 bits, or arrays stored in 16 bits.

A quantized graph cannot match its model to 1e-4, so `quantization_check` compares labels and AUROC.
Thresholds apply to distances, so norms, means and everything compared with them stay float32.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uadjax.data.records import Record
from uadjax.errors import DataError, ExportError, refuse, Setting, UnknownName
from uadjax.export import graph as graphs, onnx as onnx_files, quantization_check, runtimes
from uadjax.export.quantization_check import EvaluationImages, QuantizationAgreement
from uadjax.model import calibration
from uadjax.system import logging, progress

# Images for measuring activation ranges. More images widen few ranges, and take longer.
_NUM_CALIBRATION_IMAGES = 48
_MIN_ARRAY_SIZE = 1 << 16  # Arrays with fewer elements are not worth converting.
_PRODUCT_OPS = ('Conv', 'MatMul', 'Gemm', 'Einsum', 'Gather')


class QuantizationResult(NamedTuple):
  """Quantized graph compared with its float graph.

  Attributes:
    kind: one of QUANTIZERS.
    bytes_before: size of the float graph's file.
    bytes_after: size of the quantized graph's file.
    good: agreement on good images; None without any.
    test: agreement on test images; None without any.
  """

  kind: str
  bytes_before: int
  bytes_after: int
  good: QuantizationAgreement | None
  test: QuantizationAgreement | None

  @property
  def is_within_tolerance(self) -> bool:
    """Return whether the quantized graph may replace the float graph."""
    return all(agreement.is_within_tolerance for agreement in self._agreements().values())

  def to_dict(self) -> dict[str, object]:
    """Return sizes, agreements and tolerances as JSON-compatible values."""
    agreements = self._agreements()
    return {
      'kind': self.kind,
      'bytes_before': self.bytes_before,
      'bytes_after': self.bytes_after,
      'images': {name: x.images for name, x in agreements.items()},
      'label_changes': {name: x.label_changes for name, x in agreements.items()},
      'score_change': {name: x.score_change for name, x in agreements.items()},
      'auroc': self.test.auroc if self.test else None,
      'auroc_quantized': self.test.auroc_quantized if self.test else None,
      'tolerance': {
        'auroc_fall': quantization_check.MAX_AUROC_DROP,
        'label_share': quantization_check.MAX_LABEL_CHANGE_SHARE,
      },
    }

  def _agreements(self) -> dict[str, QuantizationAgreement]:
    return {name: x for name, x in (('good', self.good), ('test', self.test)) if x}

  def __str__(self) -> str:
    sentences = [f'on {x.images} {name} images {x}' for name, x in self._agreements().items()]
    if self.test is None:
      sentences.append('no test images available, so defects were not checked')
    return f'{self.kind}, {self.bytes_before / 1e6:.1f} MB in float32; {"; ".join(sentences)}'


def validate_options(kind: str, format: str) -> None:
  """Raise an error unless graphs of `format` can be quantized as `kind`.

  Raises:
    UnknownName: `kind` is not one of QUANTIZERS.
    ConfigError: `format` is not 'onnx'.
  """
  if kind not in QUANTIZERS:
    message = f'Unknown quantization {kind!r}; choose from {list(QUANTIZERS)}.'
    raise UnknownName(message, key='export.quantize', value=kind, allowed=tuple(QUANTIZERS))
  if format != 'onnx':
    message = f'{kind} requires onnx, the only format with verification of quantized graphs.'
    hint = 'Use ', Setting('export.format', 'onnx'), ', or omit ', Setting('export.quantize'), '.'
    refuse('export.quantize', kind, message, *hint)


def quantize(
  kind: str,
  path: Path,
  thresholds: calibration.Thresholds,
  batch: int | None,
  evaluation_images: EvaluationImages,
) -> QuantizationResult:
  """Quantize an ONNX file in place, and compare the result with the float graph.

  Args:
    kind: one of QUANTIZERS.
    path: ONNX file, which is replaced.
    thresholds: thresholds of the labels.
    batch: batch size of the graph; None for any size.
    evaluation_images: images to measure activations on and to compare on.

  Raises:
    ExportError: the graph cannot be quantized, or labels or AUROC change too much.
  """
  if path.with_name(f'{path.name}.data').exists():
    raise ExportError(
      f'{path.name} is 2 GB or larger and cannot be quantized. Nothing was written.',
      hint=(
        'Fit with a smaller ',
        Setting('detector.channels'),
        ', or omit ',
        Setting('export.quantize'),
        '.',
      ),
    )
  quantized_path = path.with_name(f'smaller-{path.name}')
  try:
    with progress.show_status(f'Quantizing {path.name}'), logging.silence():
      _write_quantized(kind, path, quantized_path, batch, evaluation_images)
    runs = [onnx_files.load(graph_path) for graph_path in (path, quantized_path)]
    with progress.show_status(f'Comparing {path.name} with the float graph'):
      good, test = (
        quantization_check.compare(runs, records, evaluation_images, thresholds, batch)
        if records
        else None
        for records in (list(map(Record, evaluation_images.good)), evaluation_images.test)
      )
  except DataError:
    raise
  except Exception as error:  # Converters and runtimes raise errors of any class.
    reason = graphs.first_line(error)
    raise ExportError(f'{path.name} cannot be quantized: {reason}. Nothing was written.') from None
  result = QuantizationResult(kind, path.stat().st_size, quantized_path.stat().st_size, good, test)
  _require_accuracy(result, path.name)
  quantized_path.replace(path)
  return result


def _require_accuracy(result: QuantizationResult, name: str) -> None:
  if not result.is_within_tolerance:
    other_kinds = ' or '.join(QUANTIZERS.keys() - {result.kind})
    raise ExportError(
      f'{name} loses accuracy when quantized: {result} (allowed: an image AUROC drop of '
      f'{quantization_check.MAX_AUROC_DROP:g}, and changes of one label or '
      f'{100 * quantization_check.MAX_LABEL_CHANGE_SHARE:g} % of them). Nothing was '
      'written.',
      hint=('Omit ', Setting('export.quantize'), f', or try {other_kinds}.'),
    )


def _write_quantized(
  kind: str, path: Path, quantized_path: Path, batch: int | None, images: EvaluationImages
) -> None:
  import onnx

  model = QUANTIZERS[kind](path, quantized_path, batch, images)
  original = onnx.load(path)
  onnx_files.drop_unused_opsets(model)
  del model.metadata_props[:]
  model.metadata_props.extend(original.metadata_props)
  model.producer_name, model.producer_version = original.producer_name, original.producer_version
  onnx.save(model, quantized_path)
  onnx.checker.check_model(quantized_path, full_check=True)


def _to_int8(
  path: Path, quantized_path: Path, batch: int | None, evaluation_images: EvaluationImages
) -> onnx_files.Model:
  """Quantize convolutions to 8 bits: weights per channel, activation ranges from good images."""
  import onnx
  from onnxruntime import quantization

  class CalibrationReader(quantization.CalibrationDataReader):
    def __init__(self) -> None:
      paths = quantization_check.sample_evenly(evaluation_images.good, _NUM_CALIBRATION_IMAGES)
      read_input = evaluation_images.read_input
      batches = quantization_check.read_batches(paths, read_input, batch or 1, batch)
      self._feeds = ({runtimes.INPUT_NAME: images} for images, _ in batches)

    def get_next(self) -> Any:
      return next(self._feeds, None)

  quantization.quantize_static(
    path,
    quantized_path,
    CalibrationReader(),
    quant_format=quantization.QuantFormat.QDQ,
    op_types_to_quantize=['Conv'],
    nodes_to_exclude=_input_convolutions(onnx.load(path)),
    per_channel=True,
    # After a ReLU a sign bit would be wasted, and ONNX Runtime 1.31 does not open signed
    # activations of this opset. 7-bit weights, which do not saturate on CPUs without VNNI, changed
    # 7 of 160 labels of screw instead of 3 (PatchCore, ResNet-18), and as many of toothbrush.
    activation_type=quantization.QuantType.QUInt8,
    weight_type=quantization.QuantType.QInt8,
    extra_options={'QDQKeepRemovableActivations': True},  # `_restore_float_inputs` looks for them.
  )
  return _restore_float_inputs(onnx.load(quantized_path))


def _restore_float_inputs(model: onnx_files.Model) -> onnx_files.Model:
  """Connect all nodes but convolutions to the float tensors again, the features among them.

  The quantizer connects every reader of a quantized tensor to the rounded one.
  """
  producers = {name: node for node in model.graph.node for name in node.output}

  def float_source(name: str) -> str:
    dequantize = producers.get(name)
    if dequantize is None or dequantize.op_type != 'DequantizeLinear':
      return name
    source = producers[dequantize.input[0]].input[0] if dequantize.input[0] in producers else name
    # The output of a convolution stays rounded, or ONNX Runtime would not compute it in 8 bits.
    return name if source in producers and producers[source].op_type == 'Conv' else source

  for node in model.graph.node:
    if node.op_type != 'Conv':
      node.input[:] = [float_source(name) for name in node.input]
  return model


def _input_convolutions(model: onnx_files.Model) -> list[str]:
  """Return the names of convolutions of the image itself, which stay float32.

  They have few weights, and all later layers see their rounding errors. In 8 bits they changed 6 of
  160 labels of screw instead of 3, and 2 of 42 of toothbrush instead of 1 (PatchCore, ResNet-18).
  """
  weight_shapes = {array.name: array.dims for array in model.graph.initializer}
  convolutions = [node for node in model.graph.node if node.op_type == 'Conv']
  return [node.name for node in convolutions if weight_shapes.get(node.input[1], (0, 3))[1] == 3]


def _to_fp16(path: Path, *_: object) -> onnx_files.Model:
  """Store large factors in half precision, cast to float32 when the file is opened.

  Activations stay float32: ONNX Runtime's CPU provider has no convolution in half precision on x86,
  and casts around each. With the backbone in half precision an image took 134 ms instead of 117
  (PatchCore, ResNet-18, batch size 1, two threads), and scores changed as much.
  """
  import onnx

  model = onnx.load(path)
  # Summands, such as means and the norms of a memory bank, are compared and stay float32.
  summands = {
    name
    for node in model.graph.node
    for i, name in enumerate(node.input)
    if i > 1 or node.op_type not in _PRODUCT_OPS
  }
  factors = {name for node in model.graph.node for name in node.input} - summands
  cast_nodes, float32 = [], onnx.TensorProto.FLOAT
  for array in model.graph.initializer:
    name, half_name = array.name, f'{array.name}_half'
    half_array = _to_half_precision(onnx.numpy_helper.to_array(array))
    if name in factors and half_array is not None:
      array.CopyFrom(onnx.numpy_helper.from_array(half_array, half_name))
      cast = onnx.helper.make_node('Cast', [half_name], [name], f'{name}_cast', to=float32)
      cast_nodes.append(cast)
  nodes = [*cast_nodes, *model.graph.node]
  del model.graph.node[:]
  model.graph.node.extend(nodes)
  return model


def _to_half_precision(array: np.ndarray) -> np.ndarray | None:
  """Convert an array to half precision; return None if it is too small or loses too much.

  The largest error may be half a unit in the last place of the largest value (2^-11).
  """
  if array.dtype != np.float32 or array.ndim < 2 or array.size < _MIN_ARRAY_SIZE:
    return None
  with np.errstate(over='ignore'):
    half = array.astype(np.float16)
  max_error = np.abs(half.astype(np.float32) - array).max()
  return half if max_error <= 2.0**-11 * np.abs(array).max() else None


QUANTIZERS: dict[str, Callable[[Path, Path, int | None, EvaluationImages], onnx_files.Model]] = {
  'int8': _to_int8,
  'fp16': _to_fp16,
}
