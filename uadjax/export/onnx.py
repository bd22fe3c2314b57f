"""ONNX export: one file for ONNX Runtime, OpenVINO and other runtimes."""

from collections.abc import Callable
from pathlib import Path
import tempfile
from typing import Any, TypeAlias

import jax
import numpy as np

from uadjax.errors import ExportError
from uadjax.export import graph as graphs, runtimes
from uadjax.system import files, logging

Model: TypeAlias = Any  # An onnx.ModelProto; onnx is imported only to export.

REQUIRED_PACKAGES = 'jax2onnx', 'onnx', 'onnxruntime'
# Runtimes support opset 18 since the beginning of 2023, and the graphs need nothing newer.
OPSET = 18
# The limit of a protocol buffer is 2 GB; the margin is for everything except arrays.
_MAX_PROTOBUF_BYTES = 2**31 - 2**24


def write(graph: graphs.Graph, path: Path) -> runtimes.Metadata:
  """Write a graph as an ONNX file; arrays of two gigabytes or more are saved next to it.

  Returns:
    Metadata of the file: opset and name of the external data.

  Raises:
    ExportError: the graph does not pass the ONNX checker.
  """
  import jax2onnx
  import onnx
  import onnx_ir

  input_shape = ('B' if graph.batch is None else graph.batch, *graph.input_shape[1:])
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
    _simplify(path)
  try:
    onnx.checker.check_model(path, full_check=True)
  except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
    raise ExportError(f'The ONNX graph does not pass the checker: {error}') from None
  return {'opset': OPSET, 'external_data': external_data}


def load(path: Path) -> runtimes.RunFunction:
  """Open an ONNX file in ONNX Runtime."""
  return runtimes.open_graph(path, 'onnxruntime').run


def other_loaders() -> list[Callable[[Path], runtimes.RunFunction]]:
  """Return loaders for the other installed runtimes; OpenVINO rounds and divides differently."""
  names = [name for name in runtimes.installed_backends() if name != 'onnxruntime']
  return [lambda path, name=name: runtimes.open_graph(path, name).run for name in names]


def _simplify(path: Path) -> None:
  """Cancel transposes and fold constants in an ONNX file, in place.

  ONNX Runtime would do so each time it opens the file. Runtimes that do not are 25 % slower on the
  original file (experiments/README.md).
  """
  import onnx
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.log_severity_level = 3  # Errors only.
  options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
  with tempfile.TemporaryDirectory(dir=path.parent, prefix='.') as folder:
    simplified_path = Path(folder) / path.name
    options.optimized_model_filepath = str(simplified_path)
    onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    model = onnx.load(simplified_path)
  _fuse_padding_into_pools(model)
  used_names = {name for node in model.graph.node for name in node.input}
  for array in [array for array in model.graph.initializer if array.name not in used_names]:
    model.graph.initializer.remove(array)
  drop_unused_opsets(model)
  onnx.save(model, path)


def drop_unused_opsets(model: Model) -> None:
  """Drop the operator sets that no operation of a graph belongs to."""
  used_domains = {node.domain for node in model.graph.node}
  for opset in [opset for opset in model.opset_import if opset.domain not in used_domains]:
    model.opset_import.remove(opset)


def _fuse_padding_into_pools(model: Model) -> None:
  """Fuse padding into the max-pools after it, which saves a pass over the largest feature map.

  Pools pad with -inf instead of zeros. The result is the same, since their input comes from a ReLU.
  """
  import onnx

  graph = model.graph
  initializers = {array.name: onnx.numpy_helper.to_array(array) for array in graph.initializer}
  pad_nodes = {node.output[0]: node for node in graph.node if node.op_type == 'Pad'}
  for pool in [node for node in graph.node if node.op_type == 'MaxPool']:
    pad = pad_nodes.get(pool.input[0])
    if pad is None or pad.input[1] not in initializers:
      continue
    begin_pads, end_pads = initializers[pad.input[1]].reshape(2, 4)
    attributes = [x for x in pool.attribute if x.name in ('pads', 'auto_pad')]
    has_padding = any(any(x.ints) or x.s not in (b'', b'VALID', b'NOTSET') for x in attributes)
    if has_padding or any([*begin_pads[:2], *end_pads[:2]]):
      continue  # The pool pads already, or the padding is not in height and width.
    for attribute in attributes:
      pool.attribute.remove(attribute)
    pool_pads = [*begin_pads[2:].tolist(), *end_pads[2:].tolist()]
    pool.attribute.append(onnx.helper.make_attribute('pads', pool_pads))
    pool.input[0] = pad.input[0]
    if not any(pad.output[0] in node.input for node in graph.node):
      graph.node.remove(pad)
