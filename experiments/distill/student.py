"""Student network: its training settings, its state and its training step."""

from collections.abc import Callable
import functools
import math
from typing import Any, cast, NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, UInt8
import optax

from distill import losses, synthetic_images, views
from uadjax import backbones
from uadjax.backbones import compact
from uadjax.types import Variables

Key = jax.Array
Teacher = Callable[[Variables, UInt8[Array, 'b v v 3']], losses.StageFeatures]


class Recipe(NamedTuple):
  """Settings that determine the result of training; a resumed run keeps them.

  Attributes:
    seed: seed of all random numbers, together with the step.
    steps: training steps of the whole run.
    batch_size: views per step, a multiple of four.
    view_size: width of views in pixels, a multiple of eight.
    late_batch_size: views per step in the last part of the run.
    late_view_size: width of views in the last part, as large as a detector's images.
    num_images: synthetic images that are generated at a time.
    steps_per_image_set: training steps until the next images are generated.
    learning_rate: highest learning rate.
    teacher_forcing_share: share of the steps during which a stage is fed, with falling probability,
      the teacher's features of the previous stage instead of the student's. It learns first on
      correct input, and then on real input.
    frozen_stats_from: share of the steps after which BatchNorm freezes its statistics.
    large_views_from: share of the steps after which views are large.
  """

  seed: int = 0
  steps: int = 10000
  batch_size: int = 24
  view_size: int = 160
  late_batch_size: int = 8
  late_view_size: int = 256
  num_images: int = 32
  steps_per_image_set: int = 10
  learning_rate: float = 3e-3
  teacher_forcing_share: float = 0.2
  frozen_stats_from: float = 0.7
  large_views_from: float = 0.85


class State(NamedTuple):
  """Training state; `average_variables`, a moving average, is shipped."""

  params: Any
  batch_stats: Any
  average_variables: Any
  opt_state: Any
  step: Array


def build_teacher() -> backbones.Backbone:
  """Return the teacher network."""
  return backbones.build('resnet18', compact.STAGES)


def learning_rate_schedule(recipe: Recipe) -> optax.Schedule:
  """Return a schedule with a short warm-up and a cosine decay."""
  warmup_steps = min(300, recipe.steps // 10)
  return optax.warmup_cosine_decay_schedule(
    0.0, recipe.learning_rate, warmup_steps, recipe.steps, recipe.learning_rate / 100
  )


def make_optimizer(recipe: Recipe) -> optax.GradientTransformation:
  """Return Muon for kernels, as matrices from all inputs to outputs, and Adam for the rest."""

  def kernel_dimensions(params: Any) -> Any:
    dimension_numbers = optax.contrib.MuonDimensionNumbers((0, 1, 2), 3)
    return jax.tree.map(lambda x: dimension_numbers if x.ndim == 4 else None, params)

  return optax.contrib.muon(
    learning_rate_schedule(recipe),
    weight_decay=0.01,
    consistent_rms=0.2,  # Steps are as large as Adam's, so one rate suits both.
    muon_weight_dimension_numbers=kernel_dimensions,
  )


def init_state(recipe: Recipe, scales: losses.Scales) -> State:
  """Return a new student, which knows only the teacher's channel scales, none of its weights."""
  key = jax.random.fold_in(jax.random.key(recipe.seed), 0)
  module = compact.Compact()
  variables = jax.jit(module.init)(key, jnp.zeros((1, 64, 64, 3)))
  params, batch_stats = variables['params'], variables['batch_stats']
  for stage, (mean, std) in scales.items():
    params[stage]['leave']['bn'] = {'scale': jnp.copy(std), 'bias': jnp.copy(mean)}
  average = {
    'params': jax.tree.map(jnp.copy, params),
    'batch_stats': jax.tree.map(jnp.copy, batch_stats),
  }
  opt_state = make_optimizer(recipe).init(params)
  return State(params, batch_stats, average, opt_state, jnp.zeros((), jnp.int32))


def apply_student(
  params: Any,
  batch_stats: Any,
  images: Array,
  teacher_features: losses.StageFeatures,
  is_teacher_forced: Array,
  use_running_stats: bool,
) -> tuple[losses.StageFeatures, Any]:
  """Return the student's features in training, and BatchNorm's new statistics.

  Args:
    params: parameters of `compact.Compact`.
    batch_stats: BatchNorm statistics of `compact.Compact`.
    images: normalized images.
    teacher_features: the teacher's features of the images.
    is_teacher_forced: for each image, whether a stage is fed the teacher's features of the previous
      stage instead of the student's.
    use_running_stats: normalize with the running statistics and keep them.
  """
  x, student_features, new_batch_stats = images, {}, {}
  for name, plan in compact.STAGE_CONFIGS.items():
    variables = {'params': params[name], 'batch_stats': batch_stats[name]}
    stage = compact.Stage(plan)
    y, updates = stage.apply(variables, x, not use_running_stats, mutable=['batch_stats'])
    student_features[name], new_batch_stats[name] = y, updates['batch_stats']
    x = jnp.where(is_teacher_forced[:, None, None, None], teacher_features[name], y)
  return student_features, new_batch_stats


@functools.partial(
  jax.jit, static_argnames=('recipe', 'use_running_stats', 'large_views'), donate_argnames='state'
)
def train_step(
  state: State,
  teacher_variables: Variables,
  scales: losses.Scales,
  source_images: Array,
  recipe: Recipe,
  use_running_stats: bool,
  large_views: bool,
) -> tuple[State, dict[str, Array]]:
  """Run a training step on new views of the images; return the state and the loss terms."""
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(recipe.seed), 1), state.step)
  keys = jax.random.split(key, 3)
  num_views, view_size = view_count_and_size(recipe, large_views)
  images = backbones.normalize(views.render_views(keys[0], source_images, num_views, view_size))
  teacher_features = cast(losses.StageFeatures, build_teacher().apply(teacher_variables, images))
  progress = state.step / recipe.steps
  # Both views of a pair are forced or neither: they must differ by their damage alone.
  is_teacher_forced = jax.random.uniform(keys[1], (-(-num_views // views.TWINS),)) > progress / max(
    recipe.teacher_forcing_share, 1e-6
  )
  is_teacher_forced = jnp.repeat(is_teacher_forced, views.TWINS)[:num_views]
  # The moving average covers more than the last few batches.
  batch_stats = state.average_variables['batch_stats'] if use_running_stats else state.batch_stats

  def loss_fn(params: Any) -> tuple[Array, Any]:
    student_features, new_batch_stats = apply_student(
      params, batch_stats, images, teacher_features, is_teacher_forced, use_running_stats
    )
    total, loss_terms = losses.distillation_loss(
      teacher_features, student_features, scales, keys[2]
    )
    return total, (loss_terms, new_batch_stats)

  (value, (loss_terms, new_batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
    state.params
  )
  updates, opt_state = make_optimizer(recipe).update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  decay = jnp.minimum(0.999, (1 + state.step) / (10 + state.step))
  variables = {
    'params': params,
    'batch_stats': batch_stats if use_running_stats else new_batch_stats,
  }
  average = jax.tree.map(
    lambda a, b: decay * a + (1 - decay) * b, state.average_variables, variables
  )
  new_state = State(params, variables['batch_stats'], average, opt_state, state.step + 1)
  return new_state, {'loss': value, **loss_terms}


def view_count_and_size(recipe: Recipe, large_views: bool) -> tuple[int, int]:
  """Return the number of views of a step and their width in pixels."""
  return (
    (recipe.late_batch_size, recipe.late_view_size)
    if large_views
    else (recipe.batch_size, recipe.view_size)
  )


def training_phase(recipe: Recipe, step: int) -> tuple[bool, bool]:
  """Return whether statistics are frozen at a step, and whether views are large."""
  return (
    step >= recipe.frozen_stats_from * recipe.steps,
    step >= recipe.large_views_from * recipe.steps,
  )


def generate_images(recipe: Recipe, step: int, batch_size: int = 1) -> Array:
  """Return the synthetic images of a step."""
  key = jax.random.fold_in(jax.random.key(recipe.seed), 2)
  key = jax.random.fold_in(key, step // recipe.steps_per_image_set)
  return synthetic_images.generate(key, recipe.num_images, batch_size=batch_size)


def measure_scales(recipe: Recipe, variables: Variables, num_batches: int = 16) -> losses.Scales:
  """Measure the scales of the teacher's channels, on images that are not used for training."""
  key = jax.random.fold_in(jax.random.key(recipe.seed), 3)
  num_views, view_size = view_count_and_size(recipe, large_views=False)
  extract_features = jax.jit(
    lambda images: build_teacher().apply(variables, backbones.normalize(images))
  )
  batches_per_set = math.ceil(num_batches / 2)
  features = []
  for i in range(2):
    source_images = synthetic_images.generate(jax.random.fold_in(key, i), recipe.num_images)
    keys = jax.random.split(jax.random.fold_in(key, 2 + i), batches_per_set)
    features += [
      extract_features(views.render_views(k, source_images, num_views, view_size)) for k in keys
    ]
  stage_features = {s: jnp.concatenate([x[s] for x in features]) for s in compact.STAGES}
  return {stage: losses.measure_scale(x) for stage, x in stage_features.items()}
