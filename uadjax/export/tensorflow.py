"""SavedModel and TFLite export: StableHLO wrapped in a TensorFlow function."""

from collections.abc import Iterator, Mapping
import contextlib
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.export
import numpy as np

from uadjax.errors import ExportError
from uadjax.export import graph as graphs, runtimes, stablehlo
from uadjax.system import logging, tensorflow
from uadjax.types import Scores

# StableHLO 1.8.0 is from November 2024. Every supported TensorFlow (2.20 and newer) reads it; none
# reports which versions it reads. It has all operations that the detectors use.
STABLEHLO_VERSION = '1.8.0'


def write_savedmodel(graph: graphs.Graph, path: Path) -> runtimes.Metadata:
  """Write a SavedModel folder for TensorFlow Serving, its inputs and outputs named."""
  with _quiet_tensorflow() as tf:
    module = _tf_module(tf, graph)
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, str(path), module.score, options)
  return {'tensorflow': tf.__version__}


def load_savedmodel(path: Path) -> runtimes.RunFunction:
  """Open a SavedModel in TensorFlow."""
  with _quiet_tensorflow() as tf:
    signature = tf.saved_model.load(str(path)).signatures['serving_default']
  return lambda images: _to_scores(signature(**{runtimes.INPUT_NAME: tf.constant(images)}))


def write_tflite(graph: graphs.Graph, path: Path) -> runtimes.Metadata:
  """Write a TFLite file for phones and embedded boards, of TFLite's built-in ops only."""
  with _quiet_tensorflow() as tf:
    module = _tf_module(tf, graph)
    function = module.score.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], module)
    path.write_bytes(converter.convert())
  return {'tensorflow': tf.__version__}


def load_tflite(path: Path) -> runtimes.RunFunction:
  """Open a TFLite file in TensorFlow's interpreter."""
  with _quiet_tensorflow() as tf:
    interpreter = tf.lite.Interpreter(str(path))
    interpreter.allocate_tensors()
    signature_runner = interpreter.get_signature_runner()
  return lambda images: _to_scores(signature_runner(**{runtimes.INPUT_NAME: images}))


def _to_scores(outputs: Mapping[str, Any]) -> Scores:
  return Scores(*(np.asarray(outputs[name]) for name in runtimes.OUTPUT_NAMES))


def _tf_module(tf: ModuleType, graph: graphs.Graph):
  """Return a TensorFlow module whose `score` is a graph, with named inputs and outputs.

  JAX's own converter, `jax2tf`, targets the StableHLO of four weeks before the JAX release, which a
  released TensorFlow may not read yet. Therefore the artifact is written in `STABLEHLO_VERSION`.

  Raises:
    ExportError: the graph uses operations that this version of StableHLO lacks.
  """
  from tensorflow.compiler.tf2xla.python import xla

  exported = stablehlo.export_graph(graph)
  shapes = [[n if isinstance(n, int) else None for n in out.shape] for out in exported.out_avals]
  artifact = _serialize(exported, tf.__version__)

  def call(image):
    outputs: Any = xla.call_module(
      [image],
      version=exported.calling_convention_version,
      module=artifact,
      Tout=[tf.float32] * len(shapes),
      Sout=shapes,
      platforms=[platform.upper() for platform in exported.platforms],
    )
    return dict(zip(runtimes.OUTPUT_NAMES, outputs, strict=True))

  module = tf.Module()
  tensor_spec = tf.TensorSpec(graph.input_shape, np.uint8, name=runtimes.INPUT_NAME)
  module.score = tf.function(call, input_signature=[tensor_spec], autograph=False)
  return module


def _serialize(exported: jax.export.Exported, tensorflow_version: str) -> bytes:
  """Serialize an exported function in the StableHLO version that TensorFlow reads."""
  from jax.extend.mlir.dialects import stablehlo as dialect

  try:
    module = dialect.deserialize_portable_artifact_str(exported.mlir_module_serialized)
    return dialect.serialize_portable_artifact_str(module, STABLEHLO_VERSION)
  except Exception as error:  # JAX documents no exception class for this.
    reason = graphs.first_line(error)
    raise ExportError(
      f'JAX {jax.__version__} cannot write this model as StableHLO {STABLEHLO_VERSION}, which '
      f'TensorFlow {tensorflow_version} reads: {reason}. Install an older JAX, or export to '
      'onnx or stablehlo.'
    ) from None


@contextlib.contextmanager
def _quiet_tensorflow() -> Iterator[ModuleType]:
  """Import TensorFlow without warnings and logs that are irrelevant to users."""
  with logging.silence('tensorflow'):
    tf = tensorflow.import_tensorflow()
    tf.get_logger().setLevel('ERROR')  # The import may have changed it.
    yield tf
