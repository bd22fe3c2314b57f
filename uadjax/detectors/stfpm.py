"""STFPM: a student learns the teacher's features of normal images, and fails on anything else.

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

Features = Mapping[str, Float[Array, 'b _h _w _c']]  # By stage; unit vectors over channels.


class State(NamedTuple):
  """What training carries: the frozen teacher, the student, and the optimizer."""

  teacher: Variables
  student: Variables
  opt_state: Any
  step: jax.Array


class Fitted(NamedTuple):
  """What scoring needs."""

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
  """Describe STFPM.

  Args:
    backbone: teacher and student alike; its stages are the ones compared.
    spec: image size and learning rate.
    momentum: of SGD.
    weight_decay: L2, added to the gradient as in the paper's SGD.
    half: whether the distance is ½‖t̂−ŝ‖² as in the paper's equation 1, or without ½ as in PaddleX.
    floor: map values below it become 0 (PaddleX: 0.01).
    opening: radius in pixels of the disk that opens the map (PaddleX: 4); 0 for none.
  """
  optimizer = optax.chain(
    optax.add_decayed_weights(weight_decay), optax.sgd(context.learning_rate, momentum)
  )
  weight, shards = 0.5 if half else 1.0, context.shards

  def init(key: Key, variables: Variables) -> State:
    images = jnp.zeros((1, context.height, context.width, 3))
    student = jax.jit(backbone.init)(key, images)
    return State(variables, student, optimizer.init(student['params']), jnp.zeros((), jnp.int32))

  def extract_features(variables: Variables, images: UInt8[Array, 'b H W 3']) -> Features:
    stages = backbone.apply(variables, backbones.normalize(images))
    return _unit_vectors(cast(Features, stages))

  def precompute(state: State, batch: Batch) -> Features:
    return extract_features(state.teacher, jnp.asarray(batch.image))

  def teacher_features(state: State, batch: Batch) -> Features:
    return precompute(state, batch) if batch.features is None else batch.features

  def update(state: State, batch: Batch) -> tuple[State, Metrics]:
    return shards.shard_map(update_shard, (False, True), False)(state, batch)

  def update_shard(state: State, batch: Batch, axis_name: str | None) -> tuple[State, Metrics]:
    """One step, by this device's rows of the batch; BatchNorm and the gradient are of all."""
    targets, network = teacher_features(state, batch), backbone.clone(axis_name=axis_name)
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
    teacher, student = (
      extract_features(fitted.teacher, images),
      extract_features(fitted.student, images),
    )
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
    # A higher floor makes no value larger, nor does opening what is smaller.
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
  """Unit vectors over channels; a vector of zeros stays one, with a finite gradient."""
  return {
    stage: x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x**2, axis=-1, keepdims=True), 1e-24))
    for stage, x in features.items()
  }


def _squared_distance(
  teacher: Float[Array, 'b h w c'], student: Float[Array, 'b h w c']
) -> Float[Array, 'b h w']:
  return jnp.sum((teacher - student) ** 2, axis=-1)


def _loss(teacher: Features, student: Features, weight: float) -> Float[Array, ' b']:
  """Mean distance over positions, summed over stages, per image (equations 1 to 3)."""
  terms = [
    weight * _squared_distance(teacher[stage], student[stage]).mean(axis=(1, 2))
    for stage in teacher
  ]
  return jnp.sum(jnp.stack(terms), axis=0)
