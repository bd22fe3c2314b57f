"""Quantization of ONNX graphs: convolutions in 8 bits, or arrays stored in 16 bits.

A quantized graph cannot match its model to 1e-4, so `quantization_check` compares labels and AUROC.
Thresholds apply to distances, so norms, means and everything compared with them stay float32.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uadjax.errors import DataError, ExportError, Setting
from uadjax.export import graph as graphs, onnx as onnx_files, quantization_check, runtimes, verify
from uadjax.export.quantization_check import EvaluationImages, QuantizationAgreement
from uadjax.system import logging, progress

# Images for measuring activation ranges. More images widen few ranges, and take longer.
_NUM_CALIBRATION_IMAGES = 48
_MIN_ARRAY_SIZE = 1 << 16  # Arrays with fewer elements are not worth converting.
_PRODUCT_OPS = ('Conv', 'MatMul', 'Gemm', 'Einsum', 'Gather')
_QUANTIZE = Setting('export.quantize')


class QuantizationResult(NamedTuple):
  """Quantized graph compared with its float graph.

  Attributes:
    kind: one of QUANTIZERS.
    bytes_before: size of the float graph's file.
    bytes_after: size of the quantized graph's file.
    agreements: agreement on good images ('good'), and on test images ('test') if there are any.
  """

  kind: str
  bytes_before: int
  bytes_after: int
  agreements: Mapping[str, QuantizationAgreement]

  @property
  def is_within_tolerance(self) -> bool:
    """Return whether the quantized graph may replace the float graph."""
    return all(agreement.is_within_tolerance for agreement in self.agreements.values())

  def to_dict(self) -> dict[str, object]:
    """Return sizes, agreements and tolerances as JSON-compatible values."""
    agreements = {name: agreement._asdict() for name, agreement in self.agreements.items()}
    tolerance = {
      'auroc_fall': quantization_check.MAX_AUROC_DROP,
      'label_share': quantization_check.MAX_LABEL_CHANGE_SHARE,
    }
    return {**self._asdict(), 'agreements': agreements, 'tolerance': tolerance}

  def __str__(self) -> str:
    sentences = [f'on {x.images} {name} images {x}' for name, x in self.agreements.items()]
    if 'test' not in self.agreements:
      sentences.append('no test images available, so defects were not checked')
    return f'{self.kind}, {self.bytes_before / 1e6:.1f} MB in float32; {"; ".join(sentences)}'


def quantize(
  kind: str, path: Path, batch: int | None, images: EvaluationImages
) -> QuantizationResult:
  """Quantize an ONNX file in place, and compare the result with the float graph.

  Args:
    kind: one of QUANTIZERS.
    path: ONNX file, which is replaced.
    batch: batch size of the graph; None for any size.
    images: images to measure activations on and to compare on.

  Raises:
    ExportError: the graph cannot be quantized, or labels or AUROC change too much.
  """
  if path.with_name(f'{path.name}.data').exists():
    message = f'{path.name} is 2 GB or larger and cannot be quantized. Nothing was written.'
    hint = 'Fit with a smaller ', Setting('detector.channels'), ', or omit ', _QUANTIZE, '.'
    raise ExportError(message, hint=hint)
  quantized_path = path.with_name(f'smaller-{path.name}')
  try:
    with progress.show_status(f'Quantizing {path.name}'), logging.silence():
      _write_quantized(kind, path, quantized_path, batch, images)
    runs = [onnx_files.load(graph_path) for graph_path in (path, quantized_path)]
    with progress.show_status(f'Comparing {path.name} with the float graph'):
      agreements = {
        name: quantization_check.compare(runs, records, images, batch)
        for name, records in (('good', images.good), ('test', images.test))
        if records
      }
  except DataError:
    raise
  except Exception as error:  # Converters and runtimes raise errors of any class.
    reason = graphs.first_line(error)
    raise ExportError(f'{path.name} cannot be quantized: {reason}. Nothing was written.') from None
  bytes_before, bytes_after = path.stat().st_size, quantized_path.stat().st_size
  result = QuantizationResult(kind, bytes_before, bytes_after, agreements)
  _require_accuracy(result, path.name)
  quantized_path.replace(path)
  return result


def _require_accuracy(result: QuantizationResult, name: str) -> None:
  if not result.is_within_tolerance:
    other_kinds = ' or '.join(QUANTIZERS.keys() - {result.kind})
    raise ExportError(
      f'{name} loses accuracy when quantized: {result} (allowed: an image AUROC drop of '
      f'{quantization_check.MAX_AUROC_DROP:g}, and changes of one label or '
      f'{100 * quantization_check.MAX_LABEL_CHANGE_SHARE:g} % of them). Nothing was written.',
      hint=('Omit ', _QUANTIZE, f', or try {other_kinds}.'),
    )


def _write_quantized(
  kind: str, path: Path, quantized_path: Path, batch: int | None, images: EvaluationImages
) -> None:
  import onnx
  import onnx_ir

  original, model = onnx_ir.load(path), QUANTIZERS[kind](path, quantized_path, batch, images)
  onnx_files.remove_unused(model)
  model.metadata_props.clear()
  model.metadata_props.update(original.metadata_props)
  model.producer_name, model.producer_version = original.producer_name, original.producer_version
  onnx_ir.save(model, quantized_path)
  onnx.checker.check_model(quantized_path, full_check=True)


def _to_int8(
  path: Path, quantized_path: Path, batch: int | None, images: EvaluationImages
) -> onnx_files.Model:
  """Quantize convolutions to 8 bits: weights per channel, activation ranges from good images."""
  import onnx_ir
  from onnxruntime import quantization

  records = verify.sample_evenly(images.good, _NUM_CALIBRATION_IMAGES)
  batches = images.read_batches(records, batch or 1)
  feeds = ({runtimes.INPUT_NAME: graph_inputs} for graph_inputs in batches)

  class CalibrationReader(quantization.CalibrationDataReader):
    def get_next(self) -> Any:
      return next(feeds, None)

  quantization.quantize_static(
    path,
    quantized_path,
    CalibrationReader(),
    quant_format=quantization.QuantFormat.QDQ,
    op_types_to_quantize=['Conv'],
    nodes_to_exclude=_input_convolutions(onnx_ir.load(path)),
    per_channel=True,
    # After a ReLU a sign bit would be wasted, and ONNX Runtime 1.31 does not open signed
    # activations of this opset. 7-bit weights, which do not saturate on CPUs without VNNI, changed
    # 7 of 160 labels of screw instead of 3 (PatchCore, ResNet-18), and as many of toothbrush.
    activation_type=quantization.QuantType.QUInt8,
    weight_type=quantization.QuantType.QInt8,
    extra_options={'QDQKeepRemovableActivations': True},  # `_restore_float_inputs` looks for them.
  )
  return _restore_float_inputs(onnx_ir.load(quantized_path))


def _restore_float_inputs(model: onnx_files.Model) -> onnx_files.Model:
  """Connect all nodes but convolutions to the float tensors again, the features among them.

  The quantizer connects every reader of a quantized tensor to the rounded one.
  """
  for dequantize in [node for node in model.graph if node.op_type == 'DequantizeLinear']:
    quantize = dequantize.inputs[0].producer()
    if quantize is None:
      continue  # An array is dequantized.
    source = quantize.inputs[0]
    # The output of a convolution stays rounded, or ONNX Runtime would not compute it in 8 bits.
    if source.producer() is None or source.producer().op_type != 'Conv':
      for node, index in dequantize.outputs[0].uses():
        if node.op_type != 'Conv':
          node.replace_input_with(index, source)
  return model


def _input_convolutions(model: onnx_files.Model) -> list[str]:
  """Return the names of convolutions of the image itself, which stay float32.

  They have few weights, and all later layers see their rounding errors. In 8 bits they changed 6 of
  160 labels of screw instead of 3, and 2 of 42 of toothbrush instead of 1 (PatchCore, ResNet-18).
  """
  weights = {n.name: n.inputs[1].const_value for n in model.graph if n.op_type == 'Conv'}
  return [name for name, array in weights.items() if array is None or array.shape[1] == 3]


def _to_fp16(path: Path, *_: object) -> onnx_files.Model:
  """Store large factors in half precision, cast to float32 when the file is opened.

  Activations stay float32: ONNX Runtime's CPU provider has no convolution in half precision on x86,
  and casts around each. With the backbone in half precision an image took 134 ms instead of 117
  (PatchCore, ResNet-18, batch size 1, two threads), and scores changed as much.
  """
  import onnx_ir

  model = onnx_ir.load(path)
  for value in [*model.graph.initializers.values()]:
    # Summands, such as means and the norms of a memory bank, are compared and stay float32.
    is_factor = all(node.op_type in _PRODUCT_OPS and i <= 1 for node, i in value.uses())
    array = value.const_value
    half_array = _to_half_precision(array.numpy()) if array is not None else None
    if is_factor and half_array is not None:
      name = f'{value.name}_half'
      half = onnx_ir.val(name, const_value=onnx_ir.tensor(half_array, name=name))
      cast = onnx_ir.node('Cast', [half], {'to': onnx_ir.DataType.FLOAT}, name=f'{value.name}_cast')
      model.graph.register_initializer(half)
      model.graph.insert_before(model.graph[0], cast)
      value.replace_all_uses_with(cast.outputs[0])
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
