"""Bisection of a graph that differs from its model, for the first operation that differs.

The function is truncated after one of its operations, exported and run. If that result differs, the
first operation that differs is this one or an earlier one.
"""

from collections.abc import Callable
from pathlib import Path
import tempfile
from typing import Any

from flax import linen as nn
import jax
from jax import numpy as jnp
from jax.extend import core
import numpy as np

from uadjax.export import graph as graphs
from uadjax.system import progress


def first_mismatch(
  graph: graphs.Graph,
  write: Callable[[graphs.Graph, Path], Any],
  load: Callable[[Path], Any],
  images: Any,
  tolerance: float,
) -> str:
  """Describe the first operation whose result differs once the graph is exported.

  Args:
    graph: graph whose output, as a whole, differs from the model's.
    write: function (graph, path) that exports a graph.
    load: function (path) that opens an exported graph for running.
    images: images [n h w 3] to run on; only the first batch of the graph is used.
    tolerance: allowed difference, relative to the largest value of an operation's result.
  """
  images = images[: graph.batch or 1]
  graph = graph._replace(batch=len(images))
  closed_jaxpr = jax.make_jaxpr(graph.call)(images)
  debug_info = closed_jaxpr.jaxpr.debug_info.with_unknown_names()
  operations = _image_dependent_operations(closed_jaxpr.jaxpr)

  def has_mismatch(operation: Any) -> bool:
    index = closed_jaxpr.jaxpr.eqns.index(operation)
    truncated_jaxpr = closed_jaxpr.jaxpr.replace(
      eqns=closed_jaxpr.jaxpr.eqns[: index + 1],
      outvars=operation.outvars[:1],
      debug_info=debug_info,
    )

    def truncated_call(images: Any) -> tuple[Any, Any]:
      value = _evaluate_jaxpr(closed_jaxpr.replace(jaxpr=truncated_jaxpr), images).astype(
        jnp.float32
      )
      return value, value.sum()[None]  # Any value serves as a score.

    with tempfile.TemporaryDirectory() as folder:
      path = Path(folder) / 'truncated'
      try:
        write(graph._replace(call=truncated_call), path)
        actual = np.asarray(load(path)(images).map)
      except Exception:  # An operation that cannot be exported or run counts as a mismatch.
        return True
    expected = np.asarray(jax.jit(truncated_call)(images)[0])
    if actual.shape != expected.shape:
      return True
    scale = max(float(np.abs(expected).max(initial=0)), np.finfo(np.float32).tiny)
    return not float(np.abs(actual - expected).max(initial=0)) <= tolerance * scale

  with progress.show_status('Looking for the operation that differs'):
    output_operations = [
      operation
      for operation in operations
      if set(operation.outvars) & set(closed_jaxpr.jaxpr.outvars)
    ]
    mismatched_output = next(filter(has_mismatch, output_operations), None)
    if mismatched_output is None:
      return (
        'no single operation differs; the exporter replaces a whole function instead of its '
        'operations'
      )
    dependency_chain = _dependency_chain(mismatched_output, operations)
    last_good, first_bad = -1, len(dependency_chain) - 1
    while first_bad - last_good > 1:
      middle = (last_good + first_bad) // 2
      last_good, first_bad = (
        (last_good, middle) if has_mismatch(dependency_chain[middle]) else (middle, first_bad)
      )
  position = f'number {operations.index(dependency_chain[first_bad]) + 1} of {len(operations)}'
  description = _describe_operation(dependency_chain[first_bad])
  return f'the first operation that differs is {description}, {position}'


def _evaluate_jaxpr(closed_jaxpr: Any, images: Any) -> Any:
  """Evaluate a jaxpr operation by operation and return its first output.

  Max pooling is called as `nn.max_pool`, which exporters map to a built-in operation.
  """
  jaxpr = closed_jaxpr.jaxpr
  env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed_jaxpr.consts, images], strict=True))
  for equation in jaxpr.eqns:
    params, input_vars = (
      equation.params,
      [atom for atom in equation.invars if isinstance(atom, core.Var)],
    )
    input_values = [env[var] for var in input_vars]
    if equation.primitive.name == 'reduce_window_max' and len(params['window_dimensions']) == 4:
      keys = 'window_dimensions', 'window_strides', 'padding'
      window, strides, padding = (params[key][1:3] for key in keys)
      pooled = nn.max_pool(*input_values, window_shape=window, strides=strides, padding=padding)
      env[equation.outvars[0]] = pooled
      continue
    single_jaxpr = jaxpr.replace(
      constvars=[], invars=input_vars, eqns=[equation], outvars=equation.outvars
    )
    evaluate = core.jaxpr_as_fun(closed_jaxpr.replace(jaxpr=single_jaxpr, consts=[]))
    env.update(zip(equation.outvars, evaluate(*input_values), strict=True))
  return env[jaxpr.outvars[0]]


def _dependency_chain(operation: Any, operations: list[Any]) -> list[Any]:
  """Return the operations that an operation depends on, in order, and the operation itself.

  If one of them differs, those after it are expected to differ too, which bisection needs.
  """
  needed_vars, dependencies = set(operation.outvars), []
  for equation in reversed(operations):
    if needed_vars & set(equation.outvars):
      needed_vars.update(atom for atom in equation.invars if isinstance(atom, core.Var))
      dependencies.append(equation)
  return dependencies[::-1]


def _image_dependent_operations(jaxpr: Any) -> list[Any]:
  """Return the operations whose result depends on the images."""
  dependent_vars, dependent_operations = set(jaxpr.invars), []
  for equation in jaxpr.eqns:
    if any(atom in dependent_vars for atom in equation.invars if isinstance(atom, core.Var)):
      dependent_vars.update(equation.outvars)
      dependent_operations.append(equation)
  return dependent_operations


def _describe_operation(equation: Any) -> str:
  name = equation.params.get('name') or equation.primitive.name
  inputs, outputs = (
    ', '.join(atom.aval.str_short() for atom in atoms)
    for atoms in (equation.invars, equation.outvars)
  )
  return f'{name}({inputs}) -> {outputs}'
