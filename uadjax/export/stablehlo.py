"""StableHLO: what XLA compiles, for CPU, CUDA and TPU, callable by JAX without uadjax."""

from pathlib import Path
from typing import Any

import jax
from jax import export
import numpy as np

from uadjax.export import graph as graphs, runtimes
from uadjax.types import Scores

PLATFORMS = ('cpu', 'cuda', 'tpu')


def write(graph: graphs.Graph, path: Path) -> Any:
  """Write what `jax.export.deserialize` reads, and its text with large arrays left out.

  Returns:
    Facts of the file.
  """
  batch = export.symbolic_shape('b')[0] if graph.batch is None else graph.batch
  input_spec = jax.ShapeDtypeStruct((batch, *graph.input_shape[1:]), np.uint8)
  jitted = jax.jit(graph.call)
  exported = export.export(jitted, platforms=PLATFORMS)(input_spec)
  path.write_bytes(exported.serialize())
  lowered = jitted.trace(input_spec).lower(lowering_platforms=PLATFORMS)
  module: Any = lowered.compiler_ir('stablehlo')
  text = module.operation.get_asm(large_elements_limit=16)
  path.with_name(f'{path.name}.mlir').write_text(text)
  return {
    'jax': jax.__version__,
    'platforms': list(PLATFORMS),
    'calling_convention_version': exported.calling_convention_version,
  }


def load(path: Path) -> runtimes.RunFunction:
  """Run it as its users do."""
  exported = export.deserialize(bytearray(path.read_bytes()))
  return lambda images: Scores(*jax.device_get(jax.jit(exported.call)(images)))
