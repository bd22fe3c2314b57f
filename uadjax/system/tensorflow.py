"""Import of TensorFlow on demand, without its log output and without accelerators."""

import contextlib
import os
from typing import Any


def import_tensorflow() -> Any:
  """Return TensorFlow with little log output and without GPUs, which JAX uses."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')  # oneDNN logs at any level.
  import tensorflow as tf

  with contextlib.suppress(RuntimeError):  # TensorFlow is initialized already.
    tf.config.set_visible_devices([], 'GPU')
  return tf
