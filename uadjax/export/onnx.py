"""ONNX: one file that ONNX Runtime, OpenVINO and many others run."""

from collections.abc import Callable
import contextlib
import logging
from pathlib import Path
import tempfile
from typing import Any
import warnings

import jax
import numpy as np

from uadjax.errors import ExportError
from uadjax.export import graph as graphs, runtimes
from uadjax.system import files

NEEDS = 'jax2onnx', 'onnx', 'onnxruntime'
OPSET = 18  # Runtimes know it since the beginning of 2023, and nothing later is needed.
_LIMIT = 2**31 - 2**24  # Bytes that a protocol buffer may have, and what is not arrays.


def write(graph: graphs.Graph, path: Path) -> Any:
  """Write a graph; arrays of two gigabytes or more go into a file beside it.

  Returns:
    Facts of the file.
  """
  import jax2onnx
  import onnx
  import onnx_ir

  shape = ('B' if graph.batch is None else graph.batch, *graph.shape[1:])
  with _quietly():
    made = jax2onnx.to_onnx(
      graph.call,
      [jax.ShapeDtypeStruct(shape, np.uint8)],  # pyright: ignore[reportArgumentType]
      model_name='uadjax',
      opset=OPSET,
      input_names=[runtimes.INPUT],
      output_names=runtimes.OUTPUTS,
      return_mode='ir',
    )
    made.producer_name, made.producer_version = 'uadjax', graph.about.get('uadjax', '')
    made.metadata_props[runtimes.ABOUT] = files.to_json(graph.about, indent=None)
    for node in made.graph:
      for value in node.outputs:  # Some of jax2onnx's shapes are wrong, and none is needed.
        if value not in made.graph.outputs:
          value.shape = None
    arrays = [value.const_value for value in made.graph.initializers.values()]
    size = sum(array.nbytes for array in arrays if array is not None)
    # Folding constants may make a second copy of some.
    beside = f'{path.name}.data' if 2 * size > _LIMIT else None
    onnx_ir.save(made, path, external_data=beside)
  if not beside:
    _tidy(path)
  try:
    onnx.checker.check_model(path, full_check=True)
  except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
    raise ExportError(f'The ONNX graph does not pass the checker: {error}') from None
  return {'opset': OPSET, 'external_data': beside}


def load(path: Path) -> runtimes.Run:
  """Run it on ONNX Runtime."""
  return runtimes.open(path, 'onnxruntime').run


def others() -> list[Callable[[Path], runtimes.Run]]:
  """Run it on what else is installed: OpenVINO rounds, and divides, in ways of its own."""
  names = [name for name in runtimes.installed() if name != 'onnxruntime']
  return [lambda path, name=name: runtimes.open(path, name).run for name in names]


def _tidy(path: Path) -> None:
  """Cancel transposes and fold constants, as ONNX Runtime would whenever it opens the file.

  Others, which do not, are a quarter slower without (experiments/README.md).
  """
  import onnx
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.log_severity_level = 3  # Errors alone.
  options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
  with tempfile.TemporaryDirectory(dir=path.parent, prefix='.') as folder:
    tidied = Path(folder) / path.name
    options.optimized_model_filepath = str(tidied)
    onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    model = onnx.load(tidied)
  _pad_in_pools(model.graph)
  taken = {name for node in model.graph.node for name in node.input}
  for array in [array for array in model.graph.initializer if array.name not in taken]:
    model.graph.initializer.remove(array)
  used = {node.domain for node in model.graph.node}
  opsets = [opset for opset in model.opset_import if opset.domain in used]
  del model.opset_import[:]
  model.opset_import.extend(opsets)
  onnx.save(model, path)


def _pad_in_pools(graph: Any) -> None:
  """Let max-pools pad by themselves: a pass over the largest map of the network less.

  They pad with -inf where zeros were, which is the same after a ReLU, and pools come after one.
  """
  import onnx

  arrays = {array.name: onnx.numpy_helper.to_array(array) for array in graph.initializer}
  pads = {node.output[0]: node for node in graph.node if node.op_type == 'Pad'}
  for pool in [node for node in graph.node if node.op_type == 'MaxPool']:
    pad = pads.get(pool.input[0])
    if pad is None or pad.input[1] not in arrays:
      continue
    before, after = arrays[pad.input[1]].reshape(2, 4)
    own = [one for one in pool.attribute if one.name in ('pads', 'auto_pad')]
    padded = any(any(one.ints) or one.s not in (b'', b'VALID', b'NOTSET') for one in own)
    if padded or any([*before[:2], *after[:2]]):
      continue  # Padded already, or not in height and width.
    for one in own:
      pool.attribute.remove(one)
    edges = [*before[2:].tolist(), *after[2:].tolist()]
    pool.attribute.append(onnx.helper.make_attribute('pads', edges))
    pool.input[0] = pad.input[0]
    if not any(pad.output[0] in node.input for node in graph.node):
      graph.node.remove(pad)


@contextlib.contextmanager
def _quietly():
  """Without what converters say of shapes that are not known yet."""
  log = logging.getLogger('onnx_ir')
  before, log.level = log.level, logging.ERROR
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      yield
  finally:
    log.level = before
