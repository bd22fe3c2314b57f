"""Import of TensorFlow on demand, without its log output and without accelerators."""

import contextlib
import functools
import os
import sys
import types

# Read by TensorFlow when it is imported. oneDNN logs at any level.
_QUIET_ENVIRONMENT = {'TF_CPP_MIN_LOG_LEVEL': '2', 'TF_ENABLE_ONEDNN_OPTS': '0'}


@functools.cache
def import_tensorflow() -> types.ModuleType:
  """Return TensorFlow with little log output and without GPUs, which JAX uses.

  TensorFlow imports Keras last, and works without it. Nothing here needs its 70 MB; TensorFlow
  imports it later if anything asks for `tf.keras`.
  """
  added = {key: value for key, value in _QUIET_ENVIRONMENT.items() if key not in os.environ}
  os.environ.update(added)
  modules: dict[str, types.ModuleType | None] = sys.modules  # pyright: ignore[reportAssignmentType]
  is_hidden = modules.setdefault('keras', None) is None
  try:
    import tensorflow as tf
  finally:
    if is_hidden:
      del modules['keras']
    for key in added:
      os.environ.pop(key, None)
  with contextlib.suppress(RuntimeError):  # TensorFlow is initialized already.
    tf.config.set_visible_devices([], 'GPU')
  return tf
