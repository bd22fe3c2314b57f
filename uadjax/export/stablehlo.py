"""StableHLO export: XLA programs for CPU, CUDA and TPU that JAX runs without uadjax."""

from pathlib import Path

import jax
from jax import export
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo as dialect
import numpy as np

from uadjax.export import graph as graphs, runtimes
from uadjax.types import Scores

PLATFORMS = ('cpu', 'cuda', 'tpu')


def export_graph(graph: graphs.Graph) -> export.Exported:
  """Export a graph for `PLATFORMS`, with a symbolic batch size unless it is fixed."""
  batch, *image_shape = graph.input_shape
  batch = export.symbolic_shape('b')[0] if batch is None else batch
  input_spec = jax.ShapeDtypeStruct((batch, *image_shape), np.uint8)
  return export.export(jax.jit(graph.call), platforms=PLATFORMS)(input_spec)


def write(graph: graphs.Graph, path: Path) -> runtimes.Metadata:
  """Write a file for `jax.export.deserialize`, and a text form without large arrays next to it.

  Returns:
    Metadata of the file: the version of JAX, the platforms, and the version of the calls.
  """
  exported = export_graph(graph)
  path.write_bytes(exported.serialize())
  with ir.Context() as context:
    dialect.register_dialect(context)
    module = dialect.deserialize_portable_artifact(context, exported.mlir_module_serialized)
    text = str(module.operation.get_asm(large_elements_limit=16))
  path.with_name(f'{path.name}.mlir').write_text(text)
  return {
    'jax': jax.__version__,
    'platforms': list(exported.platforms),
    'calling_convention_version': exported.calling_convention_version,
  }


def load(path: Path) -> runtimes.RunFunction:
  """Open a StableHLO file with JAX only, as its users do."""
  exported = export.deserialize(bytearray(path.read_bytes()))
  return lambda images: Scores(*jax.device_get(jax.jit(exported.call)(images)))
