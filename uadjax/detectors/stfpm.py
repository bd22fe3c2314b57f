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
from uadjax.detectors.base import Detector, Spec
from uadjax.numerics import collectives, resampling
from uadjax.types import Batch, Key, Metrics, Scores, Variables

Features = Mapping[str, Float[Array, 'b _h _w _c']]  # By stage; unit vectors over channels.


class State(NamedTuple):
  """What training carries: the frozen teacher, the student, and the optimizer."""

  teacher: Variables
  student: Variables
  optimizer: Any
  step: jax.Array


class Fitted(NamedTuple):
  """What scoring needs."""

  teacher: Variables
  student: Variables


def make(
  backbone: backbones.Backbone,
  spec: Spec,
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
    optax.add_decayed_weights(weight_decay), optax.sgd(spec.learning_rate, momentum)
  )
  weight, over = 0.5 if half else 1.0, spec.shards

  def init(key: Key, variables: Variables) -> State:
    images = jnp.zeros((1, spec.height, spec.width, 3))
    student = jax.jit(backbone.init)(key, images)
    return State(variables, student, optimizer.init(student['params']), jnp.zeros((), jnp.int32))

  def see(variables: Variables, images: UInt8[Array, 'b H W 3']) -> Features:
    stages = backbone.apply(variables, backbones.normalize(images))
    return _directions(cast(Features, stages))

  def prepare(state: State, batch: Batch) -> Features:
    return see(state.teacher, jnp.asarray(batch.image))

  def known(state: State, batch: Batch) -> Features:
    return prepare(state, batch) if batch.features is None else batch.features

  def update(state: State, batch: Batch) -> tuple[State, Metrics]:
    return over.over(update_on, (False, True), False)(state, batch)

  def update_on(state: State, batch: Batch, axis: str | None) -> tuple[State, Metrics]:
    """One step, by this device's rows of the batch; BatchNorm and the gradient are of all."""
    teacher, network = known(state, batch), backbone.clone(axis=axis)
    images = backbones.normalize(jnp.asarray(batch.image))

    def loss(params: Any) -> tuple[Array, Variables]:
      variables = {**state.student, 'params': params}
      features, moved = network.apply(variables, images, train=True, mutable=['batch_stats'])
      return _loss(teacher, _directions(cast(Features, features)), weight).mean(), moved

    params = state.student['params']
    (value, moved), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    value, gradient = collectives.mean((value, gradient), axis)
    change, memory = optimizer.update(gradient, state.optimizer, params)
    student = {'params': optax.apply_updates(params, change), **moved}
    rate = jnp.asarray(spec.learning_rate(state.step), jnp.float32)
    return (
      State(state.teacher, student, memory, state.step + 1),
      {'loss': value, 'learning_rate': rate},
    )

  def validate(state: State, batch: Batch) -> Metrics:
    student = see(state.student, jnp.asarray(batch.image))
    losses = _loss(known(state, batch), student, weight)
    count = jnp.asarray(batch.valid).sum(dtype=jnp.float32)
    return {'loss': jnp.sum(losses, where=batch.valid) / jnp.maximum(count, 1.0)}

  def finish(state: State) -> Fitted:
    return Fitted(state.teacher, state.student)

  def judged(fitted: Fitted, images: UInt8[Array, 'b H W 3'], floor: float) -> Scores:
    teacher, student = see(fitted.teacher, images), see(fitted.student, images)
    anomaly = jnp.ones(images.shape[:3])
    for stage in backbone.stages:
      distance = weight * _squared_distance(teacher[stage], student[stage])
      anomaly *= resampling.enlarge(distance, *images.shape[1:3])
    if floor:
      anomaly = jnp.where(anomaly < floor, 0.0, anomaly)
    if opening:
      anomaly = resampling.grey_opening(anomaly, opening)
    return Scores(anomaly, anomaly.max(axis=(1, 2)))

  def score(fitted: Fitted, images: UInt8[Array, 'b H W 3']) -> Scores:
    return judged(fitted, images, floor)

  def around(
    fitted: Fitted, images: UInt8[Array, 'b H W 3'], tolerance: float
  ) -> tuple[Scores, Scores]:
    # A higher floor makes no value larger, nor does opening what is smaller.
    low, high = (judged(fitted, images, floor * (1 + sign * tolerance)) for sign in (1, -1))
    return low, high

  return Detector(init, prepare, update, validate, finish, score, around=around if floor else None)


def _directions(features: Features) -> Features:
  """Unit vectors over channels; a vector of zeros stays one, with a finite gradient."""
  return {
    stage: x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x**2, axis=-1, keepdims=True), 1e-24))
    for stage, x in features.items()
  }


def _squared_distance(
  t: Float[Array, 'b h w c'], s: Float[Array, 'b h w c']
) -> Float[Array, 'b h w']:
  return jnp.sum((t - s) ** 2, axis=-1)


def _loss(teacher: Features, student: Features, weight: float) -> Float[Array, ' b']:
  """Mean distance over positions, summed over stages, per image (equations 1 to 3)."""
  terms = [weight * _squared_distance(teacher[k], student[k]).mean(axis=(1, 2)) for k in teacher]
  return jnp.sum(jnp.stack(terms), axis=0)
