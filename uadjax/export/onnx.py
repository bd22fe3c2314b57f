"""ONNX export: one file for ONNX Runtime, OpenVINO and other runtimes."""

from collections.abc import Callable
from pathlib import Path
import tempfile
from typing import Any, TypeAlias

import jax
import numpy as np

from uadjax.export import graph as graphs, runtimes
from uadjax.system import files, logging

Model: TypeAlias = Any  # An onnx_ir.Model; onnx_ir is imported only to export.

# Runtimes support opset 18 since the beginning of 2023, and the graphs need nothing newer.
OPSET = 18
# The limit of a protocol buffer is 2 GB; the margin is for everything except arrays.
_MAX_PROTOBUF_BYTES = 2**31 - 2**24


def write(graph: graphs.Graph, path: Path) -> runtimes.Metadata:
  """Write a graph as an ONNX file; arrays of two gigabytes or more are saved next to it.

  Returns:
    Metadata of the file: opset and name of the external data.
  """
  import jax2onnx
  import onnx
  import onnx_ir

  input_shape = tuple('B' if size is None else size for size in graph.input_shape)
  with logging.silence('onnx_ir'):  # About shapes that are not known yet.
    model = jax2onnx.to_onnx(
      graph.call,
      [jax.ShapeDtypeStruct(input_shape, np.uint8)],  # pyright: ignore[reportArgumentType]
      model_name='uadjax',
      opset=OPSET,
      input_names=[runtimes.INPUT_NAME],
      output_names=runtimes.OUTPUT_NAMES,
      return_mode='ir',
    )
    model.producer_name, model.producer_version = 'uadjax', graph.metadata.get('uadjax', '')
    model.metadata_props[runtimes.METADATA_KEY] = files.to_json(graph.metadata, indent=None)
    for node in model.graph:
      for value in node.outputs:  # Some shapes by jax2onnx are wrong, and none is needed.
        if value not in model.graph.outputs:
          value.shape = None
    arrays = [value.const_value for value in model.graph.initializers.values()]
    num_bytes = sum(array.nbytes for array in arrays if array is not None)
    # Constant folding may duplicate some arrays, hence the factor 2.
    external_data = f'{path.name}.data' if 2 * num_bytes > _MAX_PROTOBUF_BYTES else None
    onnx_ir.save(model, path, external_data=external_data)
  if not external_data:
    # Only convolutions can be quantized.
    _simplify(path, use_winograd=not graph.metadata.get('quantize'))
  onnx.checker.check_model(path, full_check=True)
  return {'opset': OPSET, 'external_data': external_data}


def load(path: Path) -> runtimes.RunFunction:
  """Open an ONNX file in ONNX Runtime."""
  return runtimes.open_graph(path, 'onnxruntime').run


def other_loaders() -> list[Callable[[Path], runtimes.RunFunction]]:
  """Return loaders for the other installed runtimes; OpenVINO rounds and divides differently."""
  names = [name for name in runtimes.installed_backends() if name != 'onnxruntime']
  return [lambda path, name=name: runtimes.open_graph(path, name).run for name in names]


def _simplify(path: Path, use_winograd: bool) -> None:
  """Cancel transposes and fold constants in an ONNX file, in place.

  ONNX Runtime would do so each time it opens the file. Runtimes that do not are 25 % slower on the
  original file (experiments/README.md).

  Args:
    path: ONNX file.
    use_winograd: whether to compute 3x3 convolutions by Winograd's algorithm.
  """
  import onnx_ir
  import onnxruntime

  from uadjax.export import winograd

  options = onnxruntime.SessionOptions()
  options.log_severity_level = 3  # Errors only.
  options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
  with tempfile.TemporaryDirectory(dir=path.parent, prefix='.') as folder:
    simplified_path = Path(folder) / path.name
    options.optimized_model_filepath = str(simplified_path)
    onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    model = onnx_ir.load(simplified_path)
  _fuse_padding_into_pools(model)
  if use_winograd:
    winograd.replace_convolutions(model)
  remove_unused(model)
  onnx_ir.save(model, path)


def remove_unused(model: Model) -> None:
  """Remove operations, arrays and operator sets that no result of a graph depends on."""
  from onnx_ir.passes import common

  common.RemoveUnusedNodesPass()(model)
  common.RemoveUnusedOpsetsPass()(model)


def _fuse_padding_into_pools(model: Model) -> None:
  """Fuse padding into the max-pools after it, which saves a pass over the largest feature map.

  Pools pad with -inf instead of zeros. The result is the same, since their input comes from a ReLU.
  """
  import onnx_ir

  for pool in [node for node in model.graph if node.op_type == 'MaxPool']:
    pad, attributes = pool.inputs[0].producer(), pool.attributes
    if pad is None or pad.op_type != 'Pad' or pad.inputs[1].const_value is None:
      continue
    pads = pad.inputs[1].const_value.numpy().tolist()  # Of the beginnings of all axes, then ends.
    has_padding = any(attributes.get_ints('pads', ()))
    if has_padding or attributes.get_string('auto_pad', 'NOTSET') not in ('NOTSET', 'VALID'):
      continue
    if not any([*pads[:2], *pads[4:6]]):  # Only height and width are padded.
      attributes.pop('auto_pad', None)
      attributes.add(onnx_ir.AttrInt64s('pads', [*pads[2:4], *pads[6:]]))
      pool.replace_input_with(0, pad.inputs[0])
