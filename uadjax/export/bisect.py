"""Bisection of a graph that differs from its model, for the first operation that differs.

The function is truncated after one of its operations, exported and run. If that result differs, the
first operation that differs is this one or an earlier one.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
import tempfile
from typing import Any

from flax import linen as nn
import jax
from jax import numpy as jnp
from jax.extend import core
import numpy as np

from uadjax.export import graph as graphs, runtimes
from uadjax.system import progress

Write = Callable[[graphs.Graph, Path], runtimes.Metadata]
Load = Callable[[Path], runtimes.RunFunction]


def first_mismatch(
  graph: graphs.Graph, write: Write, load: Load, images: np.ndarray, tolerance: float
) -> str:
  """Describe the first operation whose result differs once the graph is exported.

  Args:
    graph: graph whose output, as a whole, differs from the model's.
    write: function (graph, path) that exports a graph.
    load: function (path) that opens an exported graph for running.
    images: images [n h w 3] to run on; only the first batch of the graph is used.
    tolerance: allowed difference, relative to the largest value of an operation's result.
  """
  images = images[: graph.input_shape[0] or 1]
  graph = graph._replace(input_shape=images.shape)
  closed_jaxpr = jax.make_jaxpr(graph.call)(images)
  jaxpr = closed_jaxpr.jaxpr
  operations = _dependent_operations(jaxpr.eqns, jaxpr.invars)

  def differs(operation: core.JaxprEqn) -> bool:
    call = _truncated_call(closed_jaxpr, operation)
    with tempfile.TemporaryDirectory() as folder:
      path = Path(folder) / 'truncated'
      try:
        write(graph._replace(call=call), path)
        actual = np.asarray(load(path)(images).map)
      except Exception:  # An operation that cannot be exported or run counts as a mismatch.
        return True
    expected = np.asarray(jax.jit(call)(images)[0])
    atol = tolerance * np.abs(expected).max(initial=np.finfo(np.float32).tiny)
    return actual.shape != expected.shape or not np.allclose(actual, expected, 0, atol)

  with progress.show_status('Looking for the operation that differs'):
    outputs = [x for x in operations if set(x.outvars) & set(jaxpr.outvars)]
    mismatched_output = next(filter(differs, outputs), None)
    if mismatched_output is None:
      return 'no single operation differs; the exporter replaces a function as a whole'
    needed = _dependent_operations(operations[::-1], mismatched_output.outvars, is_backward=True)
    # The last operation differs. If an earlier one does, so should those after it.
    chain = needed[::-1]
    operation = chain[bisect_left(chain[:-1], True, key=differs)]
  position = f'number {operations.index(operation) + 1} of {len(operations)}'
  return f'the first operation that differs is {_describe_operation(operation)}, {position}'


def _truncated_call(
  closed_jaxpr: core.ClosedJaxpr, operation: core.JaxprEqn
) -> Callable[[jax.Array], graphs.Outputs]:
  """Return the function that ends after an operation; its result takes the place of the map."""
  jaxpr = closed_jaxpr.jaxpr
  equations = jaxpr.eqns[: jaxpr.eqns.index(operation) + 1]

  def call(images: jax.Array) -> graphs.Outputs:
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed_jaxpr.consts, images], strict=True))
    for equation in equations:
      inputs = [env[var] for var in _variables(equation.invars)]
      env.update(zip(equation.outvars, _evaluate(closed_jaxpr, equation, inputs), strict=True))
    value = env[operation.outvars[0]].astype(jnp.float32)
    return value, value.sum()[None]  # Any value serves as a score.

  return call


def _evaluate(
  closed_jaxpr: core.ClosedJaxpr, equation: core.JaxprEqn, inputs: Sequence[Any]
) -> Sequence[Any]:
  """Return the results of one operation.

  Max pooling is called as `nn.max_pool`, which exporters map to a built-in operation.
  """
  jaxpr, params = closed_jaxpr.jaxpr, equation.params
  if equation.primitive.name == 'reduce_window_max' and len(params['window_dimensions']) == 4:
    keys = 'window_dimensions', 'window_strides', 'padding'
    window, strides, padding = (params[key][1:3] for key in keys)
    return [nn.max_pool(*inputs, window_shape=window, strides=strides, padding=padding)]
  variables, debug_info = _variables(equation.invars), jaxpr.debug_info.with_unknown_names()
  single_jaxpr = jaxpr.replace(
    constvars=[], invars=variables, eqns=[equation], outvars=equation.outvars, debug_info=debug_info
  )
  return core.jaxpr_as_fun(closed_jaxpr.replace(jaxpr=single_jaxpr, consts=[]))(*inputs)


def _dependent_operations(
  operations: Iterable[core.JaxprEqn], variables: Iterable[core.Var], is_backward: bool = False
) -> list[core.JaxprEqn]:
  """Return the operations that depend on some variables, in order.

  Backward, they are those that the variables depend on, and `operations` is in reverse order.
  """
  reached_vars, dependent_operations = set(variables), []
  for operation in operations:
    sources, targets = _variables(operation.invars), operation.outvars
    if is_backward:
      sources, targets = targets, sources
    if reached_vars & set(sources):
      reached_vars.update(targets)
      dependent_operations.append(operation)
  return dependent_operations


def _variables(atoms: Iterable[object]) -> list[core.Var]:
  """Return the variables among the inputs of an operation, which may also be literals."""
  return [atom for atom in atoms if isinstance(atom, core.Var)]


def _describe_operation(equation: core.JaxprEqn) -> str:
  name = equation.params.get('name') or equation.primitive.name
  inputs = ', '.join(atom.aval.str_short() for atom in equation.invars)
  outputs = ', '.join(atom.aval.str_short() for atom in equation.outvars)
  return f'{name}({inputs}) -> {outputs}'
