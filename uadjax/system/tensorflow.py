"""TensorFlow, imported only when it is needed, quiet and without accelerators."""

import contextlib
import os
from typing import Any


def import_tensorflow() -> Any:
  """TensorFlow, kept quiet and away from the accelerators, which are JAX's."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')  # Announces itself at any log level.
  import tensorflow as tf

  with contextlib.suppress(RuntimeError):  # Too late where someone already computed with it.
    tf.config.set_visible_devices([], 'GPU')
  return tf
