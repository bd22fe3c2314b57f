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

_NUM_CALIBRATION_IMAGES = (
  48  # Images that activations are measured on: more widen few ranges, and take longer.
)
_MIN_ARRAY_SIZE = 1 << 16  # Numbers in an array: smaller ones do not pay.
_PRODUCT_OPS = ('Conv', 'MatMul', 'Gemm', 'Einsum', 'Gather')


class QuantizationResult(NamedTuple):
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
  good: quantization_check.QuantizationAgreement | None
  test: quantization_check.QuantizationAgreement | None

  @property
  def is_within_tolerance(self) -> bool:
    """Whether it may be used instead of the float graph."""
    return all(agreement.is_within_tolerance for agreement in (self.good, self.test) if agreement)

  def to_dict(self) -> dict[str, Any]:
    """The same, as JSON can hold it."""
    agreements = {'good': self.good, 'test': self.test}
    available_agreements = {name: agreement for name, agreement in agreements.items() if agreement}
    field_names = ('images', 'label_changes', 'score_change')
    return {
      'kind': self.kind,
      'bytes_before': self.bytes_before,
      'bytes_after': self.bytes_after,
      **{
        key: {name: getattr(agreement, key) for name, agreement in available_agreements.items()}
        for key in field_names
      },
      'auroc': self.test.auroc if self.test else None,
      'auroc_quantized': self.test.auroc_quantized if self.test else None,
      'tolerance': {
        'auroc_fall': quantization_check.MAX_AUROC_DROP,
        'label_share': quantization_check.MAX_LABEL_CHANGE_SHARE,
      },
    }

  def __str__(self) -> str:
    agreements = (('good', self.good), ('test', self.test))
    sentences = [
      f'on {agreement.images} {name} images {agreement}'
      for name, agreement in agreements
      if agreement
    ]
    if self.test is None:
      sentences.append('no test images were at hand, so that nothing is known of defects')
    return f'{self.kind}, {self.bytes_before / 1e6:.1f} MB in float32; {"; ".join(sentences)}'


def validate_options(kind: str, format: str) -> None:
  """Refuse what there is not.

  Raises:
    UnknownName: there is no such kind.
    ConfigError: the format is not quantized.
  """
  if kind not in QUANTIZERS:
    raise UnknownName(f'Unknown export.quantize {kind!r}; choose from {list(QUANTIZERS)}.')
  if format != 'onnx':
    raise ConfigError(
      f'export.quantize={kind} is for onnx alone, since only there the result is run and judged '
      f'before it is done; export to onnx, or to {format} without export.quantize.'
    )


def quantize(
  kind: str,
  path: Path,
  thresholds: calibration.Thresholds,
  batch: int | None,
  evaluation_images: quantization_check.EvaluationImages,
) -> QuantizationResult:
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
  bytes_before, quantized_path = path.stat().st_size, path.with_name(f'smaller-{path.name}')
  try:
    with progress.show_status(f'Quantizing {path.name}'), _silence_root_logger():
      model = QUANTIZERS[kind](path, quantized_path, batch, evaluation_images)
      _copy_metadata(model, onnx.load(path))
      onnx.save(model, quantized_path)
      onnx.checker.check_model(quantized_path, full_check=True)
    runs = [onnx_files.load(graph_path) for graph_path in (path, quantized_path)]
    with progress.show_status(f'Judging {path.name}'):
      good_agreement = quantization_check.compare(
        runs,
        [Record(image_path) for image_path in evaluation_images.good],
        evaluation_images,
        thresholds,
        batch,
      )
      test_agreement = (
        quantization_check.compare(
          runs, evaluation_images.test, evaluation_images, thresholds, batch
        )
        if evaluation_images.test
        else None
      )
  except DataError:
    raise
  except Exception as error:  # Of converters and runtimes, of any class.
    first_line = str(error).strip().partition('\n')[0]
    raise ExportError(
      f'{path.name} cannot be quantized: {first_line or type(error).__name__}. Nothing was written.'
    ) from None
  result = QuantizationResult(
    kind, bytes_before, quantized_path.stat().st_size, good_agreement, test_agreement
  )
  if not result.is_within_tolerance:
    other_kinds = ' or '.join(other_kind for other_kind in QUANTIZERS if other_kind != kind)
    raise ExportError(
      f'{path.name} is not as good quantized: {result}, where image AUROC may fall by '
      f'{quantization_check.MAX_AUROC_DROP:g} and {100 * quantization_check.MAX_LABEL_CHANGE_SHARE:g} % of the '
      f'labels, or one, may change; '
      f'leave export.quantize out, or try {other_kinds}. Nothing was written.'
    )
  quantized_path.replace(path)
  return result


def _to_int8(
  path: Path,
  quantized_path: Path,
  batch: int | None,
  evaluation_images: quantization_check.EvaluationImages,
) -> Any:
  """Convolutions in eight bits: weights by channel, activations by what good images excite."""
  import onnx
  from onnxruntime import quantization

  class CalibrationReader(quantization.CalibrationDataReader):
    def __init__(self) -> None:
      batches = quantization_check.read_batches(
        quantization_check.sample_evenly(evaluation_images.good, _NUM_CALIBRATION_IMAGES),
        evaluation_images.read_input,
        batch or 1,
        batch,
      )
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
    # Behind a ReLU a sign would be a wasted bit; nor does ONNX Runtime 1.31 open a signed one of
    # this opset. Seven bits for the weights, which CPUs without VNNI do not saturate, changed 7 of
    # 160 labels of screw instead of 3 (PatchCore, ResNet-18), and as many of toothbrush.
    activation_type=quantization.QuantType.QUInt8,
    weight_type=quantization.QuantType.QInt8,
    extra_options={'QDQKeepRemovableActivations': True},  # For `_unround` to find them.
  )
  return _restore_float_inputs(onnx.load(quantized_path))


def _restore_float_inputs(model: Any) -> Any:
  """Give what convolutions take in eight bits to all others as it was: features among them.

  The quantizer gives every reader of a tensor the rounded one.
  """
  producers = {name: node for node in model.graph.node for name in node.output}

  def float_source(name: str) -> str:
    dequantize = producers.get(name)
    if dequantize is None or dequantize.op_type != 'DequantizeLinear':
      return name
    source = producers[dequantize.input[0]].input[0] if dequantize.input[0] in producers else name
    # Convolutions give eight bits as well, or ONNX Runtime would not compute them so.
    return name if source in producers and producers[source].op_type == 'Conv' else source

  for node in model.graph.node:
    if node.op_type != 'Conv':
      node.input[:] = [float_source(name) for name in node.input]
  return model


def _input_convolutions(model: Any) -> list[str]:
  """Convolutions of the image itself: few weights, and whatever they round all others see.

  In eight bits, too, they changed 6 of 160 labels of screw instead of 3, and 2 of 42 of toothbrush
  instead of 1 (PatchCore, ResNet-18).
  """
  weight_shapes = {array.name: array.dims for array in model.graph.initializer}
  convolutions = [node for node in model.graph.node if node.op_type == 'Conv']
  return [node.name for node in convolutions if weight_shapes.get(node.input[1], (0, 3))[1] == 3]


def _to_fp16(
  path: Path,
  quantized_path: Path,
  batch: int | None,
  evaluation_images: quantization_check.EvaluationImages,
) -> Any:
  """Large factors stored in sixteen bits, and cast to float32 when the file is opened.

  Activations stay float32: ONNX Runtime's CPU provider has no convolution in half precision on x86,
  and casts around each. A backbone in half precision took 134 ms where it took 117 (PatchCore,
  ResNet-18, one image, two threads), and its scores moved as far.
  """
  import onnx

  model = onnx.load(path)
  factor_uses: dict[str, list[bool]] = {}
  for node in model.graph.node:
    for input_index, name in enumerate(node.input):
      # What is added, such as means and the norms of a bank, is compared with its like: float32.
      factor_uses.setdefault(name, []).append(node.op_type in _PRODUCT_OPS and input_index < 2)
  cast_nodes = []
  for array in model.graph.initializer:
    half_array = (
      _to_half_precision(onnx.numpy_helper.to_array(array))
      if all(factor_uses.get(array.name, [False]))
      else None
    )
    if half_array is not None:
      name, half_name = array.name, f'{array.name}_half'
      array.CopyFrom(onnx.numpy_helper.from_array(half_array, half_name))
      float_type = onnx.TensorProto.FLOAT
      cast_nodes.append(
        onnx.helper.make_node('Cast', [half_name], [name], f'{name}_cast', to=float_type)
      )
  nodes = [*cast_nodes, *model.graph.node]
  del model.graph.node[:]
  model.graph.node.extend(nodes)
  return model


def _to_half_precision(array: np.ndarray) -> np.ndarray | None:
  """The same in half precision; None where that does not pay, or loses more than rounding does."""
  if array.dtype != np.float32 or array.ndim < 2 or array.size < _MIN_ARRAY_SIZE:
    return None
  with np.errstate(over='ignore'):
    half = array.astype(np.float16)
  max_error = np.abs(half.astype(np.float32) - array).max()
  return half if max_error <= 2.0**-11 * np.abs(array).max() else None


QUANTIZERS: dict[
  str, Callable[[Path, Path, int | None, quantization_check.EvaluationImages], Any]
] = {
  'int8': _to_int8,
  'fp16': _to_fp16,
}


def _copy_metadata(model: Any, original: Any) -> None:
  """Say of a graph what its original says: origin, metadata, and the operations it needs alone."""
  used_domains = {node.domain for node in model.graph.node}
  opsets = [opset for opset in model.opset_import if opset.domain in used_domains]
  del model.opset_import[:], model.metadata_props[:]
  model.opset_import.extend(opsets)
  model.metadata_props.extend(original.metadata_props)
  model.producer_name, model.producer_version = original.producer_name, original.producer_version


@contextlib.contextmanager
def _silence_root_logger():
  """Without the quantizer's advice, which would set up logging for the whole process."""
  root_logger, null_handler = logging.getLogger(), logging.NullHandler()
  previous_level = root_logger.level
  root_logger.addHandler(null_handler)
  root_logger.setLevel(logging.ERROR)
  try:
    yield
  finally:
    root_logger.setLevel(previous_level)
    root_logger.removeHandler(null_handler)
