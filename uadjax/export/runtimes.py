"""Inference runtimes for exported ONNX graphs: ONNX Runtime and, if installed, OpenVINO.

Both compute in float32. By default OpenVINO silently uses bfloat16 on CPUs that support it, which
changes scores by up to 1 %.

This module never imports TensorFlow.
"""

from collections.abc import Callable, Mapping
import importlib.metadata
import importlib.util
from pathlib import Path
import sys
from typing import Any, NamedTuple

from jaxtyping import UInt8
import numpy as np

from uadjax.errors import ConfigError, ModelError, UnknownName
from uadjax.model.scorer import RunFunction
from uadjax.system import text, threads
from uadjax.types import Scores

INPUT_NAME, OUTPUT_NAMES = 'image', ('map', 'score')  # The same in every graph.
METADATA_KEY = 'uadjax'  # Key of uadjax's metadata, a JSON text, in an ONNX file.

Metadata = Mapping[str, Any]  # JSON-compatible, with the fields that `export.graph` writes.


class Runtime(NamedTuple):
  """Graph loaded into an inference runtime.

  Attributes:
    name: name and version of the runtime.
    run: thread-safe function from uint8 images to Scores of NumPy arrays.
  """

  name: str
  run: RunFunction


def open_graph(path: Path, backend: str = 'auto') -> Runtime:
  """Open an ONNX file written by `uadjax export`.

  Args:
    path: ONNX file.
    backend: one of BACKENDS; 'auto' is ONNX Runtime, or OpenVINO if only that is installed.

  Raises:
    UnknownName: unknown backend.
    ConfigError: the backend is not installed, or cannot be imported.
    ModelError: the file is missing or damaged.
  """
  backend = resolve_backend(backend)
  if not path.is_file():
    raise ModelError(f'{path} does not exist; `uadjax export MODEL_DIR` writes an ONNX file.')
  try:
    return _OPENERS[backend](path)
  except ImportError as error:  # A shared library may be missing.
    raise ConfigError(f'{backend} is installed but cannot be imported: {error}') from None
  except Exception as error:  # Damaged files raise many classes; ONNX Runtime's are not public.
    raise ModelError(f'{path} cannot be opened by {backend}: {error}') from None


def resolve_backend(backend: str) -> str:
  """Return the backend itself, or for 'auto' the fastest installed runtime.

  Raises:
    UnknownName: unknown backend.
    ConfigError: the backend is not installed.
  """
  if backend not in BACKENDS:
    raise UnknownName(f'Unknown backend {backend!r}; choose from {BACKENDS}.')
  if backend == 'auto':
    backend = next(iter(installed_backends()), 'onnxruntime')
  if not _is_installed(backend):
    raise ConfigError(f'{backend} is not installed: {text.install_command(_EXTRAS[backend])}.')
  return backend


def installed_backends() -> list[str]:
  """Return the names of the installed runtimes, the fastest first."""
  return [name for name in _OPENERS if _is_installed(name)]


def _open_openvino(path: Path) -> Runtime:
  # OpenVINO sends usage telemetry from a forked process, unless this package is missing.
  sys.modules.setdefault('openvino_telemetry', None)  # pyright: ignore[reportArgumentType]
  import openvino

  core = openvino.Core()
  model = core.read_model(path)
  config = {
    'INFERENCE_PRECISION_HINT': 'f32',
    'PERFORMANCE_HINT': 'LATENCY',
    'INFERENCE_NUM_THREADS': threads.num_cores(),
  }
  compiled_model = core.compile_model(model, 'CPU', config)
  # The first inference initializes OpenVINO's Python binding. Two threads that do so at the same
  # time can deadlock (seen with 2026.4.1).
  shape = model.input(INPUT_NAME).get_partial_shape()
  shape = [size.get_length() if size.is_static else 1 for size in shape]
  compiled_model.create_infer_request().infer({INPUT_NAME: np.zeros(shape, np.uint8)})

  def run(images: UInt8[np.ndarray, 'b h w 3']) -> Scores:
    outputs = compiled_model.create_infer_request().infer({INPUT_NAME: images})
    return Scores(*(outputs[name].copy() for name in OUTPUT_NAMES))

  return Runtime(f'OpenVINO {importlib.metadata.version("openvino")}', run)


def _open_onnxruntime(path: Path) -> Runtime:
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.log_severity_level = 3  # Errors only.
  options.intra_op_num_threads = threads.num_cores()
  session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
  session.get_modelmeta().custom_metadata_map[METADATA_KEY]  # A KeyError for files of others.

  def run(images: UInt8[np.ndarray, 'b h w 3']) -> Scores:
    return Scores(*map(np.asarray, session.run(OUTPUT_NAMES, {INPUT_NAME: images})))

  return Runtime(f'ONNX Runtime {onnxruntime.__version__}', run)


def _is_installed(backend: str) -> bool:
  return importlib.util.find_spec(backend) is not None


# The faster runtime first (experiments/README.md).
_OPENERS: dict[str, Callable[[Path], Runtime]] = {
  'onnxruntime': _open_onnxruntime,
  'openvino': _open_openvino,
}
_EXTRAS = {'openvino': 'openvino', 'onnxruntime': 'export'}
BACKENDS = ('auto', *_OPENERS)
