"""Which operation of a graph comes out otherwise: found by halving.

The function is cut off after one of its operations, exported and run; where that differs, the
operation is the first such one or comes after it.
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


def culprit(
  graph: graphs.Graph,
  write: Callable[[graphs.Graph, Path], Any],
  load: Callable[[Path], Any],
  images: Any,
  tolerance: float,
) -> str:
  """Tell of the first operation that differs.

  Args:
    graph: that differs as a whole.
    write: exports one.
    load: opens what was written.
    images: [n h w 3] to run on, of which as many are taken as the graph takes.
    tolerance: relative to the largest value of an operation's result.
  """
  images = images[: graph.batch or 1]
  graph = graph._replace(batch=len(images))
  closed = jax.make_jaxpr(graph.call)(images)
  unnamed = closed.jaxpr.debug_info.with_unknown_names()
  operations = _of_images(closed.jaxpr)

  def differs(operation: Any) -> bool:
    last = closed.jaxpr.eqns.index(operation)
    until = closed.jaxpr.replace(
      eqns=closed.jaxpr.eqns[: last + 1], outvars=operation.outvars[:1], debug_info=unnamed
    )

    def cut(images: Any) -> tuple[Any, Any]:
      value = _carried_out(closed.replace(jaxpr=until), images).astype(jnp.float32)
      return value, value.sum()[None]  # As a map; and something for a score.

    with tempfile.TemporaryDirectory() as folder:
      path = Path(folder) / 'cut'
      try:
        write(graph._replace(call=cut), path)
        got = np.asarray(load(path)(images).map)
      except Exception:  # What cannot be made comes out otherwise, too.
        return True
    want = np.asarray(jax.jit(cut)(images)[0])
    if got.shape != want.shape:
      return True
    scale = max(float(np.abs(want).max(initial=0)), np.finfo(np.float32).tiny)
    return not float(np.abs(got - want).max(initial=0)) <= tolerance * scale

  with progress.show_status('Looking for the operation that differs'):
    results = [one for one in operations if set(one.outvars) & set(closed.jaxpr.outvars)]
    wrong = next(filter(differs, results), None)
    if wrong is None:
      return (
        'no operation differs where each is exported as what it is made of: the exporter takes a '
        'whole function for something else'
      )
    chain = _leading_to(wrong, operations)
    good, bad = -1, len(chain) - 1
    while bad - good > 1:
      middle = (good + bad) // 2
      good, bad = (good, middle) if differs(chain[middle]) else (middle, bad)
  which = f'number {operations.index(chain[bad]) + 1} of {len(operations)}'
  return f'the first operation that differs is {_told(chain[bad])}, {which}'


def _carried_out(closed: Any, images: Any) -> Any:
  """The first result of operations, one by one; pools as the function that exporters know."""
  jaxpr = closed.jaxpr
  known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, images], strict=True))
  for equation in jaxpr.eqns:
    how, names = equation.params, [one for one in equation.invars if isinstance(one, core.Var)]
    taken = [known[name] for name in names]
    if equation.primitive.name == 'reduce_window_max' and len(how['window_dimensions']) == 4:
      keys = 'window_dimensions', 'window_strides', 'padding'
      window, strides, padding = (how[key][1:3] for key in keys)
      pooled = nn.max_pool(*taken, window_shape=window, strides=strides, padding=padding)
      known[equation.outvars[0]] = pooled
      continue
    alone = jaxpr.replace(constvars=[], invars=names, eqns=[equation], outvars=equation.outvars)
    carry_out = core.jaxpr_as_fun(closed.replace(jaxpr=alone, consts=[]))
    known.update(zip(equation.outvars, carry_out(*taken), strict=True))
  return known[jaxpr.outvars[0]]


def _leading_to(last: Any, operations: list[Any]) -> list[Any]:
  """The operations that one depends on, and itself: where one differs, those after it do."""
  needed, found = set(last.outvars), []
  for equation in reversed(operations):
    if needed & set(equation.outvars):
      needed.update(atom for atom in equation.invars if isinstance(atom, core.Var))
      found.append(equation)
  return found[::-1]


def _of_images(jaxpr: Any) -> list[Any]:
  """The operations whose result depends on the images."""
  reached, found = set(jaxpr.invars), []
  for equation in jaxpr.eqns:
    if any(atom in reached for atom in equation.invars if isinstance(atom, core.Var)):
      reached.update(equation.outvars)
      found.append(equation)
  return found


def _told(equation: Any) -> str:
  name = equation.params.get('name') or equation.primitive.name
  taken, made = (
    ', '.join(atom.aval.str_short() for atom in atoms)
    for atoms in (equation.invars, equation.outvars)
  )
  return f'{name}({taken}) -> {made}'
