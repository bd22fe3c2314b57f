"""SavedModel and TFLite, by jax2tf."""

import contextlib
from pathlib import Path
from typing import Any
import warnings

import numpy as np

from uadjax import runtimes
from uadjax.export import graph as graphs
from uadjax.types import ExportError, Scores


def write_savedmodel(graph: graphs.Graph, path: Path) -> Any:
  """Write a folder that TensorFlow Serving takes: its signature has named outputs."""
  with _quietly() as tf:
    module: Any = tf.Module()
    module.score = _function(tf, graph)
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, str(path), module.score, options)
  return {'tensorflow': tf.__version__}


def load_savedmodel(path: Path) -> runtimes.Run:
  """Run it by TensorFlow."""
  with _quietly() as tf:
    run = tf.saved_model.load(str(path)).signatures['serving_default']

  def scores(images: Any) -> Scores:
    found = run(**{runtimes.INPUT: tf.constant(images)})
    return Scores(*(found[name].numpy() for name in runtimes.OUTPUTS))

  return scores


def write_tflite(graph: graphs.Graph, path: Path) -> Any:
  """Write what phones and boards run, of TFLite's own operations alone."""
  with _quietly() as tf:
    function = _function(tf, graph)
    module: Any = tf.Module()
    module.score = function
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
      [function.get_concrete_function()], module
    )
    try:
      path.write_bytes(converter.convert())
    except Exception as error:  # Of many classes, none of them public.
      told = str(error).strip().partition('\n')[0]
      raise ExportError(f'TensorFlow cannot turn this model into TFLite: {told}') from None
  return {'tensorflow': tf.__version__}


def load_tflite(path: Path) -> runtimes.Run:
  """Run it by the interpreter."""
  with _quietly() as tf:
    interpreter = tf.lite.Interpreter(str(path))
    interpreter.allocate_tensors()
    run = interpreter.get_signature_runner()

  def scores(images: Any) -> Scores:
    found = run(**{runtimes.INPUT: images})
    return Scores(*(found[name] for name in runtimes.OUTPUTS))

  return scores


def _function(tf: Any, graph: graphs.Graph) -> Any:
  from jax.experimental import jax2tf

  size = f'{graph.height}, {graph.width}, 3'
  shape = f'({"b" if graph.batch is None else graph.batch}, {size})'
  call = jax2tf.convert(graph.call, polymorphic_shapes=[shape], with_gradient=False)
  spec = tf.TensorSpec(graph.shape, np.uint8, name=runtimes.INPUT)
  # Named as Keras and its tools name them.
  return tf.function(
    lambda image: dict(zip(runtimes.OUTPUTS, call(image), strict=True)),
    input_signature=[spec],
    autograph=False,
  )


@contextlib.contextmanager
def _quietly():
  """TensorFlow, which warns of what is none of the user's business."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    import tensorflow as tf

    level = tf.get_logger().level
    tf.get_logger().setLevel('ERROR')
    try:
      yield tf
    finally:
      tf.get_logger().setLevel(level)
