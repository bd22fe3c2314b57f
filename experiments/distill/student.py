"""The student, how it is taught, and one step of it."""

from collections.abc import Callable
import functools
import math
from typing import Any, cast, NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, UInt8
import optax

from distill import losses, pictures, views
from uadjax import backbones
from uadjax.backbones import compact
from uadjax.types import Variables

Key = jax.Array
Teacher = Callable[[Variables, UInt8[Array, 'b v v 3']], losses.Stages]


class Recipe(NamedTuple):
  """All that decides what is learned; a run that is taken up again keeps it.

  Attributes:
    seed: every random number comes from it and the step.
    steps: of the whole run.
    batch, side: views of a step, and their pixels across; fours, and eights.
    late_batch, late_side: in the last part, when views are as large as a detector's images.
    pictures: painted at once. `looks`: steps until the next ones are.
    rate: the highest learning rate.
    led: share of the steps until which a stage is, ever less often, given the teacher's features
      of the stage before instead of its own: it learns on sound input, and then on real one.
    steady: share of the steps after which BatchNorm keeps its statistics.
    late: share of the steps after which views are large.
  """

  seed: int = 0
  steps: int = 10000
  batch: int = 24
  side: int = 160
  late_batch: int = 8
  late_side: int = 256
  pictures: int = 32
  looks: int = 10
  rate: float = 3e-3
  led: float = 0.2
  steady: float = 0.7
  late: float = 0.85


class State(NamedTuple):
  """What a run carries; `average` is the moving one of variables that is shipped."""

  params: Any
  stats: Any
  average: Any
  optimizer: Any
  step: Array


def teacher() -> backbones.Backbone:
  """Describe the teacher."""
  return backbones.build('resnet18', compact.STAGES)


def schedule(recipe: Recipe) -> optax.Schedule:
  """A short warm-up, then half a cosine."""
  warm = min(300, recipe.steps // 10)
  return optax.warmup_cosine_decay_schedule(0.0, recipe.rate, warm, recipe.steps, recipe.rate / 100)


def optimizer(recipe: Recipe) -> optax.GradientTransformation:
  """Muon for kernels, as matrices from all inputs to outputs; Adam for the rest."""

  def matrices(params: Any) -> Any:
    kernel = optax.contrib.MuonDimensionNumbers((0, 1, 2), 3)
    return jax.tree.map(lambda x: kernel if x.ndim == 4 else None, params)

  return optax.contrib.muon(
    schedule(recipe),
    weight_decay=0.01,
    consistent_rms=0.2,  # Steps as large as Adam's, so that one rate serves both.
    muon_weight_dimension_numbers=matrices,
  )


def initial(recipe: Recipe, scales: losses.Scales) -> State:
  """A student that knows nothing but its channels' scales: no weight of the teacher goes in."""
  key = jax.random.fold_in(jax.random.key(recipe.seed), 0)
  module = compact.Compact()
  variables = jax.jit(module.init)(key, jnp.zeros((1, 64, 64, 3)))
  params, stats = variables['params'], variables['batch_stats']
  for stage, (mean, std) in scales.items():
    params[stage]['leave']['bn'] = {'scale': jnp.copy(std), 'bias': jnp.copy(mean)}
  average = {'params': jax.tree.map(jnp.copy, params), 'batch_stats': jax.tree.map(jnp.copy, stats)}
  memory = optimizer(recipe).init(params)
  return State(params, stats, average, memory, jnp.zeros((), jnp.int32))


def look(
  params: Any, stats: Any, images: Array, taught: losses.Stages, led: Array, steady: bool
) -> tuple[losses.Stages, Any]:
  """The student's stages in training, and BatchNorm's statistics after it.

  Args:
    params: of `compact.Compact`.
    stats: likewise.
    images: normalized.
    taught: the teacher's features of them.
    led: for each image, whether stages are given the teacher's features instead of their own.
    steady: leave the statistics as they are.
  """
  x, seen, moved = images, {}, {}
  for name, plan in compact.STAGE_CONFIGS.items():
    variables = {'params': params[name], 'batch_stats': stats[name]}
    y, after = compact.Stage(plan).apply(variables, x, True, steady, mutable=['batch_stats'])
    seen[name], moved[name] = y, after['batch_stats']
    x = jnp.where(led[:, None, None, None], taught[name], y)
  return seen, moved


@functools.partial(jax.jit, static_argnames=('recipe', 'steady', 'late'), donate_argnames='state')
def step(
  state: State,
  teacher_variables: Variables,
  scales: losses.Scales,
  painted: Array,
  recipe: Recipe,
  steady: bool,
  late: bool,
) -> tuple[State, dict[str, Array]]:
  """Look at some views as the teacher does, and learn from the difference."""
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(recipe.seed), 1), state.step)
  keys = jax.random.split(key, 3)
  count, side = size(recipe, late)
  images = backbones.normalize(views.views(keys[0], painted, count, side))
  taught = cast(losses.Stages, teacher().apply(teacher_variables, images))
  done = state.step / recipe.steps
  # Twins alike: they must differ by their damage alone.
  led = jax.random.uniform(keys[1], (-(-count // views.TWINS),)) > done / max(recipe.led, 1e-6)
  led = jnp.repeat(led, views.TWINS)[:count]
  # What the moving average has seen is more than the last few batches.
  stats = state.average['batch_stats'] if steady else state.stats

  def loss(params: Any) -> tuple[Array, Any]:
    seen, moved = look(params, stats, images, taught, led, steady)
    total, parts = losses.compare(taught, seen, scales, keys[2])
    return total, (parts, moved)

  (value, (parts, moved)), slope = jax.value_and_grad(loss, has_aux=True)(state.params)
  change, memory = optimizer(recipe).update(slope, state.optimizer, state.params)
  params = optax.apply_updates(state.params, change)
  keep = jnp.minimum(0.999, (1 + state.step) / (10 + state.step))
  now = {'params': params, 'batch_stats': stats if steady else moved}
  average = jax.tree.map(lambda a, b: keep * a + (1 - keep) * b, state.average, now)
  after = State(params, now['batch_stats'], average, memory, state.step + 1)
  return after, {'loss': value, **parts}


def size(recipe: Recipe, late: bool) -> tuple[int, int]:
  """Views of a step, and their pixels across."""
  return (recipe.late_batch, recipe.late_side) if late else (recipe.batch, recipe.side)


def phase(recipe: Recipe, step: int) -> tuple[bool, bool]:
  """Whether the statistics are steady at a step, and whether views are large."""
  return step >= recipe.steady * recipe.steps, step >= recipe.late * recipe.steps


def paint(recipe: Recipe, step: int, at_once: int = 1) -> Array:
  """The pictures that are looked at in a step."""
  key = jax.random.fold_in(jax.random.key(recipe.seed), 2)
  key = jax.random.fold_in(key, step // recipe.looks)
  return pictures.paint(key, recipe.pictures, at_once=at_once)


def measure(recipe: Recipe, variables: Variables, batches: int = 16) -> losses.Scales:
  """The scales of the teacher's channels, on pictures that are not learned from."""
  key = jax.random.fold_in(jax.random.key(recipe.seed), 3)
  count, side = size(recipe, late=False)
  see = jax.jit(lambda images: teacher().apply(variables, backbones.normalize(images)))
  every = math.ceil(batches / 2)
  found = []
  for i in range(2):
    painted = pictures.paint(jax.random.fold_in(key, i), recipe.pictures)
    keys = jax.random.split(jax.random.fold_in(key, 2 + i), every)
    found += [see(views.views(k, painted, count, side)) for k in keys]
  joined = {s: jnp.concatenate([x[s] for x in found]) for s in compact.STAGES}
  return {stage: losses.scale(x) for stage, x in joined.items()}
