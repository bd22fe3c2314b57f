"""Inference runtimes for exported ONNX graphs: ONNX Runtime and, if installed, OpenVINO.

Both compute in float32. By default OpenVINO silently uses bfloat16 on CPUs that support it, which
changes scores by up to 1 %.

This module never imports TensorFlow.
"""

from collections.abc import Callable, Mapping
import importlib
import importlib.metadata
import importlib.util
import json
from pathlib import Path
import sys
from typing import Any, NamedTuple

from jaxtyping import UInt8
import numpy as np

from uadjax.errors import ConfigError, ModelError, UnknownName
from uadjax.model.scorer import RunFunction
from uadjax.system import threads
from uadjax.types import Scores

INPUT_NAME, OUTPUT_NAMES = 'image', ('map', 'score')  # The same in every graph.
SUFFIX = '.onnx'
METADATA_KEY = 'uadjax'  # Key of uadjax's metadata, a JSON text, in an ONNX file.


class Runtime(NamedTuple):
  """Graph loaded into an inference runtime.

  Attributes:
    name: name and version of the runtime.
    run: thread-safe function from uint8 images to Scores of NumPy arrays.
    metadata: metadata inside the graph; see `export.graph.metadata`.
    batch: fixed batch size; None for any size.
  """

  name: str
  run: RunFunction
  metadata: Mapping[str, Any]
  batch: int | None


def open_graph(path: Path, backend: str = 'auto') -> Runtime:
  """Open an ONNX file written by `uadjax export`.

  Args:
    path: ONNX file.
    backend: one of BACKENDS; 'auto' is ONNX Runtime, or OpenVINO if only that is installed.

  Raises:
    UnknownName: unknown backend.
    ConfigError: the backend is not installed, or cannot be imported.
    ModelError: the file is missing, damaged, or was not written by uadjax.
  """
  backend = resolve_backend(backend)
  if not path.is_file():
    raise ModelError(f'{path} does not exist; `uadjax export MODEL_DIR` writes an ONNX file.')
  try:
    return _OPENERS[backend](path)
  except ImportError as error:  # A shared library may be missing.
    raise ConfigError(f'{backend} is installed but cannot be imported: {error}') from None
  except (RuntimeError, ValueError, KeyError) as error:  # Damaged files raise any of these.
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
    raise ConfigError(f"{backend} is not installed: pip install '{_PIP_REQUIREMENTS[backend]}'.")
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
  metadata = json.loads(model.get_rt_info(['framework', METADATA_KEY]).astype(str))
  config = {
    'INFERENCE_PRECISION_HINT': 'f32',
    'PERFORMANCE_HINT': 'LATENCY',
    'INFERENCE_NUM_THREADS': threads.num_cores(),
  }
  compiled_model = core.compile_model(model, 'CPU', config)
  batch, *image_shape = model.input(INPUT_NAME).get_partial_shape()
  # The first inference initializes OpenVINO's Python binding. Two threads that do so at the same
  # time can deadlock (seen with 2026.4.1).
  batch_size = batch.get_length() if batch.is_static else 1
  blank_images = np.zeros(
    (batch_size, *(dimension.get_length() for dimension in image_shape)), np.uint8
  )
  compiled_model.create_infer_request().infer({INPUT_NAME: blank_images})

  def run(images: UInt8[np.ndarray, 'b h w 3']) -> Scores:
    outputs = compiled_model.create_infer_request().infer({INPUT_NAME: images})
    anomaly_maps, image_scores = (outputs[name].copy() for name in OUTPUT_NAMES)
    return Scores(anomaly_maps, image_scores)

  name = f'OpenVINO {importlib.metadata.version("openvino")}'
  return Runtime(name, run, metadata, batch.get_length() if batch.is_static else None)


def _open_onnxruntime(path: Path) -> Runtime:
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.log_severity_level = 3  # Errors only.
  options.intra_op_num_threads = threads.num_cores()
  # ONNX Runtime's exceptions are not RuntimeErrors, and have no public base class.
  error_types = tuple(
    error
    for error in vars(
      importlib.import_module('onnxruntime.capi.onnxruntime_pybind11_state')
    ).values()
    if isinstance(error, type) and issubclass(error, Exception)
  )
  try:
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
  except error_types as error:
    raise ValueError(str(error)) from None
  metadata = json.loads(session.get_modelmeta().custom_metadata_map[METADATA_KEY])
  batch = session.get_inputs()[0].shape[0]

  def run(images: UInt8[np.ndarray, 'b h w 3']) -> Scores:
    anomaly_maps, image_scores = session.run(OUTPUT_NAMES, {INPUT_NAME: images})
    return Scores(np.asarray(anomaly_maps), np.asarray(image_scores))

  name = f'ONNX Runtime {onnxruntime.__version__}'
  return Runtime(name, run, metadata, batch if isinstance(batch, int) else None)


def _is_installed(backend: str) -> bool:
  return importlib.util.find_spec(backend) is not None


# The faster runtime first (experiments/README.md).
_OPENERS: dict[str, Callable[[Path], Runtime]] = {
  'onnxruntime': _open_onnxruntime,
  'openvino': _open_openvino,
}
_PIP_REQUIREMENTS = {'openvino': 'uadjax[openvino]', 'onnxruntime': 'uadjax[export]'}
BACKENDS = ('auto', *_OPENERS)
