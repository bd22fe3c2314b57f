"""TensorFlow is imported without Keras, which is still there for those who ask for it."""

import subprocess
import sys

import pytest

_SCRIPT = """
import sys
from uadjax.system import tensorflow
tf = tensorflow.import_tensorflow()
assert 'keras' not in sys.modules
assert list(tf.data.Dataset.range(3).as_numpy_iterator()) == [0, 1, 2]
assert 'keras' not in sys.modules
assert tf.keras.layers.Dense(2)
"""


@pytest.mark.slow
def test_keras_is_imported_on_demand_only():
  subprocess.run([sys.executable, '-c', _SCRIPT], check=True)
