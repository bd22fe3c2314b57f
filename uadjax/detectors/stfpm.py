"""STFPM: a student learns to match a teacher's features of normal images.

On anomalies, which the student has not seen, the features differ; the score is their distance.

Wang et al. 2021, 'Student-Teacher Feature Pyramid Matching for Anomaly Detection',
arXiv 2103.04257, sections 3.2 (training) and 3.3 (scoring).

Letters: b batch, h w feature map, c channels, H W image at network size.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, UInt8
import optax

from uadjax import backbones
from uadjax.detectors import image_score, inspection
from uadjax.detectors.base import Detector, Images, RunContext
from uadjax.detectors.settings import StfpmSettings
from uadjax.errors import refuse, Setting
from uadjax.numerics import collectives, resampling
from uadjax.types import Batch, Key, Metrics, PyTree, Scores, Variables

Features = Mapping[str, Float[Array, 'b _h _w _c']]  # Feature maps by stage.


class Config(NamedTuple):
  """Options, and the optimizer.

  Attributes:
    backbone: architecture of both teacher and student, which are compared stage by stage.
    context: size, inspected pixels and shards of the images, and the schedule of the learning rate.
    options: settings. Of these, `floor` must suit `half` (PaddleX: 0.01, with `half` False), and
      `opening` removes peaks smaller than its disk after `floor` (PaddleX: 4); 0 is for none.
    optimizer: SGD with a momentum of `momentum`. `weight_decay` times the parameters is added to
      the gradient of the loss before momentum: an L2 penalty, as in the paper's SGD.
  """

  backbone: backbones.Backbone
  context: RunContext
  options: StfpmSettings
  optimizer: optax.GradientTransformation

  @property
  def weight(self) -> float:
    """Factor of the squared distance, ½ of equation 1 with `half`; 1 without, as in PaddleX.

    The anomaly map multiplies the distances of all stages, so it has this factor once per stage.
    """
    return 0.5 if self.options.half else 1.0


class State(NamedTuple):
  """Training state.

  Attributes:
    teacher: variables of the pretrained network, which are not trained.
    student: variables of the trained network: its parameters and BatchNorm statistics.
    opt_state: state of the optimizer.
    step: number of training steps so far.
  """

  teacher: Variables
  student: Variables
  opt_state: optax.OptState
  step: jax.Array


class Fitted(NamedTuple):
  """Parameters for scoring: the variables of both networks."""

  teacher: Variables
  student: Variables


def make(backbone: backbones.Backbone, context: RunContext, options: StfpmSettings) -> Detector:
  """Build the STFPM detector.

  Raises:
    ConfigError: the backbone cannot be a student.
  """
  if not backbone.can_train:
    message = (
      f'STFPM trains a student of the same architecture as the backbone from good images alone; '
      f'a vision transformer such as {backbone.arch} needs far more images.'
    )
    hint = 'Choose another ', Setting('backbone.name'), ', or the detector PatchCore or PaDiM.'
    refuse('backbone.name', backbone.arch, message, *hint)
  sgd = optax.sgd(context.learning_rate, options.momentum)
  optimizer = optax.chain(optax.add_decayed_weights(options.weight_decay), sgd)
  config = Config(backbone, context, options, optimizer)

  def bind(function: Callable) -> Callable:
    return functools.partial(function, config)

  return Detector(
    bind(init),
    bind(update),
    finalize,
    bind(score),
    bind(precompute),
    bind(validate),
    score_bounds=bind(score_bounds) if options.floor else None,
    image_score=options.image_score,
  )


def init(config: Config, key: Key, variables: Variables) -> State:
  """Draw a student with random weights, as in the paper, whose blocks start as their shortcuts.

  Such a student learns faster and more accurately (experiments/README.md, "How accurate is
  STFPM?").
  """
  images = jnp.zeros((1, config.context.height, config.context.width, 3))
  network = config.backbone.clone(zero_init_residual=True)
  student = jax.jit(network.init)(key, images)
  opt_state = config.optimizer.init(student['params'])
  return State(variables, student, opt_state, jnp.zeros((), jnp.int32))


def extract_features(config: Config, variables: Variables, images: Images) -> Features:
  """Return the feature maps of teacher or student, each position's vector of unit length."""
  return _unit_vectors(config.backbone.apply(variables, backbones.normalize(images)))


def precompute(config: Config, state: State, batch: Batch) -> Features:
  """Return the teacher's features of a batch, which no training step changes."""
  return extract_features(config, state.teacher, jnp.asarray(batch.image))


def _teacher_features(config: Config, state: State, batch: Batch) -> Features:
  """Return the precomputed teacher's features of a batch, or compute those of its images."""
  return precompute(config, state, batch) if batch.features is None else batch.features


def update(config: Config, state: State, batch: Batch) -> tuple[State, Metrics]:
  """Train the student one step.

  The gradient is that of the loss summed over the images of the batch, so that one learning rate
  suits all batch sizes. BatchNorm statistics are those of the whole batch.
  """
  update_shard = functools.partial(_update_shard, config)
  return config.context.shards.shard_map(update_shard, (P(), P('data')), P())(state, batch)


def _update_shard(
  config: Config, state: State, batch: Batch, axis_name: str | None
) -> tuple[State, Metrics]:
  """Train the student one step on this shard's images, all of which count: `valid` is not read."""
  targets = _teacher_features(config, state, batch)
  network = config.backbone.clone(axis_name=axis_name)  # BatchNorm averages over this axis.
  images = backbones.normalize(jnp.asarray(batch.image))

  def loss_fn(params: PyTree) -> tuple[Array, tuple[Array, Variables]]:
    variables = {**state.student, 'params': params}
    features, batch_stats = network.apply(variables, images, train=True, mutable=['batch_stats'])
    losses = _loss(config, batch.image, targets, _unit_vectors(features))
    return losses.sum(), (losses.mean(), batch_stats)

  params = state.student['params']
  gradient, (loss, batch_stats) = jax.grad(loss_fn, has_aux=True)(params)
  loss = collectives.pmean(loss, axis_name)
  gradient = collectives.psum(gradient, axis_name)
  updates, opt_state = config.optimizer.update(gradient, state.opt_state, params)
  student = {'params': optax.apply_updates(params, updates), **batch_stats}
  learning_rate = jnp.asarray(config.context.learning_rate(state.step), jnp.float32)
  state = State(state.teacher, student, opt_state, state.step + 1)
  return state, {'loss': loss, 'learning_rate': learning_rate}


def validate(config: Config, state: State, batch: Batch) -> Metrics:
  """Return the mean loss of the valid images."""
  student = extract_features(config, state.student, jnp.asarray(batch.image))
  losses = _loss(config, batch.image, _teacher_features(config, state, batch), student)
  num_valid = jnp.asarray(batch.valid).sum(dtype=jnp.float32)
  return {'loss': jnp.sum(losses, where=batch.valid) / jnp.maximum(num_valid, 1.0)}


def finalize(state: State) -> Fitted:
  """Return both networks."""
  return Fitted(state.teacher, state.student)


def score(config: Config, fitted: Fitted, images: Images) -> Scores:
  """Score images by the distances between the features of teacher and student.

  The anomaly map is the product of all stages' upsampled distances, and the image score is its
  maximum (section 3.3). Floor, opening and other image scores are not in the paper.
  """
  teacher = extract_features(config, fitted.teacher, images)
  student = extract_features(config, fitted.student, images)
  anomaly_map, options = jnp.ones(images.shape[:3]), config.options
  image_size, inspected = (images.shape[1], images.shape[2]), config.context.find_pixels(images)
  for stage in config.backbone.stages:
    distance = config.weight * _squared_distance(teacher[stage], student[stage])
    anomaly_map *= inspection.upsample(distance, image_size, inspected)
  if options.floor:
    anomaly_map = jnp.where(anomaly_map < options.floor, 0.0, anomaly_map)
  if options.opening:
    anomaly_map = resampling.grey_opening(anomaly_map, options.opening)
  return image_score.from_map(anomaly_map, options.image_score, inspected)


def score_bounds(
  config: Config, fitted: Fitted, images: Images, tolerance: float
) -> tuple[Scores, Scores]:
  """Return lower and upper bounds of the scores, for rounding errors of up to `tolerance`.

  They are the scores for a floor that is raised, and lowered, by the relative tolerance. Raising
  the floor raises no value, and a gray opening keeps the order of two maps.
  """
  bounds = []
  for error in (tolerance, -tolerance):
    options = dataclasses.replace(config.options, floor=config.options.floor * (1 + error))
    bounds.append(score(config._replace(options=options), fitted, images))
  return bounds[0], bounds[1]


def _unit_vectors(features: PyTree) -> Features:
  """Scale each position's vector to unit length; zero vectors stay zero, with finite gradient.

  Vectors shorter than 1e-12 are divided by 1e-12.
  """
  return {
    stage: x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x**2, axis=-1, keepdims=True), 1e-24))
    for stage, x in features.items()
  }


def _squared_distance(
  teacher: Float[Array, 'b h w c'], student: Float[Array, 'b h w c']
) -> Float[Array, 'b h w']:
  return jnp.sum((teacher - student) ** 2, axis=-1)


def _loss(
  config: Config, images: UInt8[Any, 'b H W 3'], teacher: Features, student: Features
) -> Float[Array, ' b']:
  """Return the loss of each image (equations 1 to 3, with a factor of 1 for each stage).

  Args:
    config: weight of the squared distance, and which pixels are inspected.
    images: the images.
    teacher: the teacher's feature maps by stage, of unit vectors.
    student: the student's feature maps by stage, of unit vectors.

  Returns:
    The weighted squared distance, averaged over inspected positions and summed over stages.
  """
  inspected, terms = config.context.find_pixels(jnp.asarray(images)), []
  for stage in teacher:
    distance = _squared_distance(teacher[stage], student[stage])
    terms.append(config.weight * inspection.mean(distance, inspected))
  return jnp.sum(jnp.stack(terms), axis=0)
