"""STFPM: a student learns to match a teacher's features of normal images.

On anomalies, which the student has not seen, the features differ; the score is their distance.

Wang et al. 2021, 'Student-Teacher Feature Pyramid Matching for Anomaly Detection',
arXiv 2103.04257, sections 3.2 (training) and 3.3 (scoring).

Letters: b batch, h w feature map, c channels, H W image at network size.
"""

from collections.abc import Mapping
from typing import Any, cast, NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, UInt8
import optax

from uadjax import backbones
from uadjax.detectors.base import Detector, RunContext
from uadjax.numerics import collectives, resampling
from uadjax.types import Batch, Key, Metrics, Scores, Variables

Features = Mapping[str, Float[Array, 'b _h _w _c']]  # Feature maps by stage.


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
  opt_state: Any
  step: jax.Array


class Fitted(NamedTuple):
  """Parameters for scoring: the variables of both networks."""

  teacher: Variables
  student: Variables


def make(
  backbone: backbones.Backbone,
  context: RunContext,
  *,
  momentum: float = 0.9,
  weight_decay: float = 1e-4,
  half: bool = True,
  floor: float = 0.0,
  opening: int = 0,
) -> Detector:
  """Build the STFPM detector.

  Args:
    backbone: architecture of both teacher and student, which are compared stage by stage.
    context: image size, learning-rate schedule and shards.
    momentum: momentum of SGD.
    weight_decay: factor of the L2 penalty, whose gradient is added to the loss gradient before
      momentum, as in the paper's SGD.
    half: True for the distance ½‖t̂−ŝ‖² of equation 1; False for no factor ½, as in PaddleX. The
      anomaly map multiplies the distances of all stages, so it has this factor once per stage.
    floor: threshold below which values of the anomaly map become 0; 0 for none. It must suit
      `half` (PaddleX: 0.01, with `half` False).
    opening: radius in pixels of the disk for a grey opening of the anomaly map after `floor`, which
      removes smaller peaks (PaddleX: 4); 0 for no opening.
  """
  optimizer = optax.chain(
    optax.add_decayed_weights(weight_decay), optax.sgd(context.learning_rate, momentum)
  )
  weight = 0.5 if half else 1.0
  shards = context.shards

  def init(key: Key, variables: Variables) -> State:
    images = jnp.zeros((1, context.height, context.width, 3))
    student = jax.jit(backbone.init)(key, images)  # Random weights, as in the paper.
    return State(variables, student, optimizer.init(student['params']), jnp.zeros((), jnp.int32))

  def extract_features(variables: Variables, images: UInt8[Array, 'b H W 3']) -> Features:
    """Return the feature maps of teacher or student, each position's vector of unit length."""
    stages = backbone.apply(variables, backbones.normalize(images))
    return _unit_vectors(cast(Features, stages))

  def precompute(state: State, batch: Batch) -> Features:
    """Return the teacher's features of a batch, which no training step changes."""
    return extract_features(state.teacher, jnp.asarray(batch.image))

  def teacher_features(state: State, batch: Batch) -> Features:
    """Return the precomputed teacher's features of a batch, or compute those of its images."""
    return precompute(state, batch) if batch.features is None else batch.features

  def update(state: State, batch: Batch) -> tuple[State, Metrics]:
    return shards.shard_map(update_shard, (False, True), False)(state, batch)

  def update_shard(state: State, batch: Batch, axis_name: str | None) -> tuple[State, Metrics]:
    """Train the student one step; BatchNorm statistics and gradient are averaged over shards.

    Args:
      state: replicated training state.
      batch: this shard's images, all of which count: `batch.valid` is not read.
      axis_name: mesh axis over which the batch is sharded, or None when not sharded.
    """
    targets = teacher_features(state, batch)
    network = backbone.clone(axis_name=axis_name)  # BatchNorm averages over this axis.
    images = backbones.normalize(jnp.asarray(batch.image))

    def loss_fn(params: Any) -> tuple[Array, Variables]:
      variables = {**state.student, 'params': params}
      features, batch_stats = network.apply(variables, images, train=True, mutable=['batch_stats'])
      return _loss(targets, _unit_vectors(cast(Features, features)), weight).mean(), batch_stats

    params = state.student['params']
    (loss, batch_stats), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
    loss, gradient = collectives.pmean((loss, gradient), axis_name)
    updates, opt_state = optimizer.update(gradient, state.opt_state, params)
    student = {'params': optax.apply_updates(params, updates), **batch_stats}
    learning_rate = jnp.asarray(context.learning_rate(state.step), jnp.float32)
    return (
      State(state.teacher, student, opt_state, state.step + 1),
      {'loss': loss, 'learning_rate': learning_rate},
    )

  def validate(state: State, batch: Batch) -> Metrics:
    student = extract_features(state.student, jnp.asarray(batch.image))
    losses = _loss(teacher_features(state, batch), student, weight)
    num_valid = jnp.asarray(batch.valid).sum(dtype=jnp.float32)
    return {'loss': jnp.sum(losses, where=batch.valid) / jnp.maximum(num_valid, 1.0)}

  def to_fitted(state: State) -> Fitted:
    return Fitted(state.teacher, state.student)

  def score_with_floor(fitted: Fitted, images: UInt8[Array, 'b H W 3'], floor: float) -> Scores:
    """Return the scores of images, with values of the anomaly map below `floor` set to 0.

    The anomaly map is the product of all stages' upsampled distances, the image score its maximum
    (section 3.3). Floor and opening are not in the paper.
    """
    teacher = extract_features(fitted.teacher, images)
    student = extract_features(fitted.student, images)
    anomaly_map = jnp.ones(images.shape[:3])
    for stage in backbone.stages:
      distance = weight * _squared_distance(teacher[stage], student[stage])
      anomaly_map *= resampling.upsample(distance, *images.shape[1:3])
    if floor:
      anomaly_map = jnp.where(anomaly_map < floor, 0.0, anomaly_map)
    if opening:
      anomaly_map = resampling.grey_opening(anomaly_map, opening)
    return Scores(anomaly_map, anomaly_map.max(axis=(1, 2)))

  def score(fitted: Fitted, images: UInt8[Array, 'b H W 3']) -> Scores:
    return score_with_floor(fitted, images, floor)

  def score_bounds(
    fitted: Fitted, images: UInt8[Array, 'b H W 3'], tolerance: float
  ) -> tuple[Scores, Scores]:
    """Return lower and upper bounds of the scores, for rounding errors of up to `tolerance`.

    They are the scores for a floor that is raised, and lowered, by the relative tolerance. Raising
    the floor raises no value, and a grey opening keeps the order of two maps.
    """
    low, high = (
      score_with_floor(fitted, images, floor * (1 + sign * tolerance)) for sign in (1, -1)
    )
    return low, high

  return Detector(
    init,
    precompute,
    update,
    validate,
    to_fitted,
    score,
    score_bounds=score_bounds if floor else None,
  )


def _unit_vectors(features: Features) -> Features:
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


def _loss(teacher: Features, student: Features, weight: float) -> Float[Array, ' b']:
  """Return the loss of each image (equations 1 to 3, with a factor of 1 for each stage).

  Args:
    teacher: the teacher's feature maps by stage, of unit vectors.
    student: the student's feature maps by stage, of unit vectors.
    weight: factor of the squared distance, ½ in the paper.

  Returns:
    The weighted squared distance, averaged over positions and summed over stages.
  """
  terms = [
    weight * _squared_distance(teacher[stage], student[stage]).mean(axis=(1, 2))
    for stage in teacher
  ]
  return jnp.sum(jnp.stack(terms), axis=0)
