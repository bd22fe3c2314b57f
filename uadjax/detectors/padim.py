"""PaDiM: a Gaussian at every position, and the distance to it in standard deviations.

Defard et al. 2020, 'PaDiM: a Patch Distribution Modeling Framework', arXiv 2011.08785, section III.

The Gaussians may be split over devices by rows of the map: each sees all images at its own rows.

Letters: b batch, h w map of the first stage, c channels of all stages, d embedding, H W image at
network size.
"""

from collections.abc import Callable
import functools
from typing import Any, cast, NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8
import numpy as np

from uadjax import backbones
from uadjax.detectors.base import Detector, OnePass, RunContext, ShardingSpecs
from uadjax.errors import ConfigError, Setting, UnknownName
from uadjax.numerics import collectives, gaussian, projections, resampling
from uadjax.numerics.collectives import Shards, SINGLE_SHARD
from uadjax.types import Arrays, Batch, Key, Metrics, Scores, Variables

_SIGMA = 4.0  # Of the blur, in pixels at network size (section IV-D).
# Of the map, whitened at a time. A loop over one alone XLA would unroll, and round differently.
_COLUMNS_AT_ONCE = 4
# How the parts are held by shards: split (True), or the same on all (False).
_MOMENTS_SPECS = gaussian.Moments(False, True, True)  # pyright: ignore[reportArgumentType]
Stages = dict[str, Float[Array, 'b _h _w _c']]


class FeatureExtractor(NamedTuple):
  """The backbone, and the projection of its channels."""

  backbone: Variables
  projection: Float[Array, 'c d']


class State(NamedTuple):
  """What is carried."""

  feature_extractor: FeatureExtractor
  moments: gaussian.Moments


class Fitted(NamedTuple):
  """What scoring needs."""

  feature_extractor: FeatureExtractor
  mean: Float[Array, 'h w d']
  whitening: Float[Array, 'h w d d']


class HeldOutModel(NamedTuple):
  """What scoring an image that was folded in needs: how many there were."""

  fitted: Fitted
  num_images: Float[Array, '']


def make(
  backbone: backbones.Backbone,
  context: RunContext,
  *,
  channels: int = 100,
  projection: str = 'ortho',
  enlarge: str = 'bilinear',
  ridge: float = 0.01,
) -> Detector:
  """Describe PaDiM.

  Args:
    backbone: its stages are brought to the grid of the first.
    spec: image size and number of images.
    channels: of the embedding.
    projection: how they are made from those of all stages: one of `projections.METHODS`; the paper
      draws single channels ('sample').
    enlarge: how deeper stages are brought to the grid: bilinear, or nearest as authors do.
    ridge: added to the variances (equation 1's ε).
  """
  if context.max_images:
    validate_settings(context.num_previous_images + context.max_images, channels, ridge)
  image_struct = jax.ShapeDtypeStruct((1, context.height, context.width, 3), jnp.float32)
  stage_shapes = jax.eval_shape(
    lambda x: backbone.init_with_output(jax.random.key(0), x)[0], image_struct
  )
  stages = cast(Stages, stage_shapes)
  _, h, w, _ = stages[backbone.stages[0]].shape
  channels_per_stage = tuple(stages[name].shape[-1] for name in backbone.stages)
  if enlarge not in projections.UPSAMPLING_METHODS:
    raise UnknownName(
      f'Unknown detector.enlarge {enlarge!r}; choose from {list(projections.UPSAMPLING_METHODS)}.',
      key='detector.enlarge',
      value=enlarge,
      allowed=projections.UPSAMPLING_METHODS,
    )
  if projection not in projections.METHODS:
    raise UnknownName(
      f'Unknown detector.projection {projection!r}; choose from {list(projections.METHODS)}.',
      key='detector.projection',
      value=projection,
      allowed=projections.METHODS,
    )
  if not 1 <= channels <= sum(channels_per_stage):
    raise ConfigError(
      f'detector.channels={channels}, but the stages have {sum(channels_per_stage)} channels.',
      key='detector.channels',
      value=channels,
      allowed=(1, sum(channels_per_stage)),
      hint=(
        f'Choose 1 to {sum(channels_per_stage)}, or name more stages with ',
        Setting('detector.layers'),
        '.',
      ),
    )
  shards, padded_height = context.shards, h + -h % context.shards.num_shards

  def init(key: Key, variables: Variables) -> State:
    projection_matrix = projections.draw(key, projection, channels_per_stage, channels)

    def empty_shard(axis_name: str | None) -> gaussian.Moments:
      return gaussian.empty(padded_height // collectives.axis_size(axis_name), w, channels)

    return State(
      FeatureExtractor(variables, projection_matrix),
      jax.jit(shards.shard_map(empty_shard, (), _MOMENTS_SPECS))(),
    )

  def extract_features(
    feature_extractor: FeatureExtractor, images: UInt8[Array, 'b H W 3']
  ) -> Float[Array, 'b h w d']:
    stages = cast(Stages, backbone.apply(feature_extractor.backbone, backbones.normalize(images)))
    feature_maps = [stages[name] for name in backbone.stages]
    return projections.project(feature_extractor.projection, feature_maps, h, w, enlarge)

  def embed(feature_extractor: FeatureExtractor, batch: Batch) -> Float[Array, 'b h w d']:
    return (
      extract_features(feature_extractor, jnp.asarray(batch.image))
      if batch.features is None
      else batch.features
    )

  def update(state: State, batch: Batch) -> tuple[State, Metrics]:
    x = embed(state.feature_extractor, batch)
    moments = _add_batch(state.moments, x, jnp.asarray(batch.valid), shards)
    return state._replace(moments=moments), {'images': moments.n}

  def to_fitted(state: State) -> Fitted:
    n, mean, m2 = state.moments
    return Fitted(state.feature_extractor, mean[:h], _whiten(m2, n, ridge, 0, shards)[:h])

  def pad_to_shards(model: Fitted | HeldOutModel) -> Fitted | HeldOutModel:
    if isinstance(model, HeldOutModel):
      return model._replace(fitted=pad_to_shards(model.fitted))
    return Fitted(model.feature_extractor, *(_pad_rows(x, 0, padded_height) for x in model[1:]))

  def score_distances(distance: Float[Array, 'b h w']) -> Scores:
    anomaly_map = resampling.upsample(distance, context.height, context.width, _SIGMA)
    return Scores(anomaly_map, anomaly_map.max(axis=(1, 2)))

  def score(fitted: Fitted, images: UInt8[Array, 'b H W 3']) -> Scores:
    feature_extractor, mean, whitening = fitted
    return score_distances(
      _map_over_rows(
        gaussian.mahalanobis, extract_features(feature_extractor, images), (mean, whitening), shards
      )
    )

  def export_score_fn(fitted: Fitted) -> Callable[[UInt8[Array, 'b H W 3']], Scores]:
    feature_extractor, mean, whitening = fitted
    bands = gaussian.cut_into_bands(whitening)

    def score(images: UInt8[Array, 'b H W 3']) -> Scores:
      return score_distances(
        gaussian.mahalanobis_from_bands(extract_features(feature_extractor, images), mean, bands)
      )

    return score

  def score_held_out(held_out_model: HeldOutModel, batch: Batch) -> Scores:
    (feature_extractor, mean, whitening), num_images = held_out_model

    def distance_fn(x: Array, mean: Array, whitening: Array) -> Array:
      return gaussian.leave_one_out_distance(x, num_images, mean, whitening)

    return score_distances(
      _map_over_rows(distance_fn, embed(feature_extractor, batch), (mean, whitening), shards)
    )

  one_pass = _make_one_pass(h, ridge, shards, embed, score_held_out)
  fitted_specs = Fitted(False, True, True)  # pyright: ignore[reportArgumentType]
  state_specs = State(False, _MOMENTS_SPECS)  # pyright: ignore[reportArgumentType]
  specs = ShardingSpecs(state_specs, fitted_specs, HeldOutModel(fitted_specs, False), pad_to_shards)  # pyright: ignore[reportArgumentType]
  sharding_specs = specs if shards.num_shards > 1 else None
  return Detector(
    init,
    None,
    update,
    None,
    to_fitted,
    score,
    one_pass,
    export_score_fn,
    sharding_specs=sharding_specs,
  )


def validate_settings(num_images: int, channels: int, ridge: float) -> None:
  """Refuse Gaussians that cannot be fitted.

  Raises:
    ConfigError: `ridge` is negative, or covariances of so few images would be singular.
  """
  if not ridge >= 0:
    raise ConfigError(
      f'detector.ridge must be 0 or more, got {ridge}; the paper has 0.01.',
      key='detector.ridge',
      value=ridge,
      allowed=(0, None),
    )
  if num_images < 2:
    raise ConfigError(f'A covariance needs 2 good images or more, got {num_images}; add images.')
  if ridge == 0 and num_images <= channels:
    raise ConfigError(
      f'{num_images} good images cannot fill a covariance of {channels} channels with '
      'detector.ridge=0.',
      key='detector.ridge',
      value=ridge,
      hint=(
        f'Use more than {channels} images, ',
        Setting('detector.channels', num_images - 1),
        ' or fewer, or ',
        Setting('detector.ridge', 0.01),
        '.',
      ),
    )


def _make_one_pass(
  h: int,
  ridge: float,
  shards: Shards,
  embed: Callable[[FeatureExtractor, Batch], Float[Array, 'b h w d']],
  score_held_out: Callable[[HeldOutModel, Batch], Scores],
) -> OnePass:
  """What there is besides; one reference serves all images: each is left out in closed form."""

  def compile_finalize(state: State) -> None:
    _whiten.lower(state.moments.m2, state.moments.n, ridge, 0, shards).compile()

  def state_arrays(state: State) -> Arrays:
    n, mean, m2 = state.moments
    return {
      'projection': state.feature_extractor.projection,
      'n': n,
      'mean': mean[:h],
      'm2': m2[:h],
    }

  def leave_fold_out(variables: Variables, arrays: Arrays, fold: int) -> HeldOutModel:
    del fold
    n, mean, projection = (jnp.asarray(arrays[k]) for k in ('n', 'mean', 'projection'))
    whitening = jax.device_put(_whiten_on_host(arrays['m2'], n, ridge, 1))
    return HeldOutModel(Fitted(FeatureExtractor(variables, projection), mean, whitening), n)

  return OnePass(
    num_folds=1,
    feature_extractor=lambda state: state.embedder,
    embed=embed,
    compile_finalize=compile_finalize,
    calibration_coresets=lambda state, previous_arrays: {},
    finalize=lambda state: state,
    before_update=None,
    state_arrays=state_arrays,
    extend=_extend,
    leave_fold_out=leave_fold_out,
    score_held_out=score_held_out,
    summary=lambda arrays, embeddings: {'images': int(arrays['n'])},
    drift=_drift,
  )


def _add_batch(
  moments: gaussian.Moments, x: Float[Array, 'b h w d'], valid: Bool[Array, ' b'], shards: Shards
) -> gaussian.Moments:
  """Fold images in: every device its rows of all of them."""

  def add_shard(
    moments: gaussian.Moments, x: Array, valid: Array, axis_name: str | None
  ) -> gaussian.Moments:
    return gaussian.add_batch(
      moments,
      collectives.images_to_rows(x, axis_name),
      collectives.all_gather_tiled(valid, axis_name),
    )

  add_sharded = shards.shard_map(add_shard, (_MOMENTS_SPECS, True, True), _MOMENTS_SPECS)
  return add_sharded(moments, _pad_rows(x, 1, len(moments.mean)), valid)


def _map_over_rows(
  distance_fn: Callable[..., Float[Array, 'b h w']],
  x: Float[Array, 'b h w d'],
  gaussians: tuple[Float[Array, '_h w d'], Float[Array, '_h w d d']],
  shards: Shards,
) -> Float[Array, 'b h w']:
  """Measure where each device has the Gaussians of its rows; back by image."""

  def shard_distance(x: Array, gaussians: tuple[Array, Array], axis_name: str | None) -> Array:
    return collectives.rows_to_images(
      distance_fn(collectives.images_to_rows(x, axis_name), *gaussians), axis_name
    )

  distance = shards.shard_map(shard_distance, (True, True), True)(
    _pad_rows(x, 1, len(gaussians[0])), gaussians
  )
  return distance[:, : x.shape[1]]


@functools.partial(jax.jit, donate_argnums=0, static_argnums=(2, 3, 4))
def _whiten(
  m2: Float[Array, 'h w d d'], n: Float[Array, ''], ridge: float, num_held_out: int, shards: Shards
) -> Float[Array, 'h w d d']:
  """Turn the products into whitening matrices where they lie: there may be gigabytes of them."""

  def whiten_shard(m2: Array, n: Array, axis_name: str | None) -> Array:
    return gaussian.whitening_matrices(
      gaussian.Moments(n, jnp.zeros(m2.shape[:3]), m2), ridge, num_held_out
    )

  return shards.shard_map(whiten_shard, (True, False), True)(m2, n)


def _whiten_on_host(
  m2: Float[np.ndarray, 'h w d d'], n: Float[Array, ''], ridge: float, num_held_out: int
) -> Float[np.ndarray, 'h w d d']:
  """Do the same to what lies in the host's memory: in place, if it may be written to."""
  out = m2 if m2.flags.writeable else m2.copy()
  for j in range(0, out.shape[1], _COLUMNS_AT_ONCE):
    columns = np.s_[:, j : j + _COLUMNS_AT_ONCE]
    out[columns] = _whiten(jnp.array(out[columns]), n, ridge, num_held_out, SINGLE_SHARD)
  return out


def _extend(state: State, arrays: Arrays) -> State:
  n, mean, m2, projection = (jnp.array(arrays[k]) for k in ('n', 'mean', 'm2', 'projection'))
  feature_extractor, padded_height = (
    state.feature_extractor._replace(projection=projection),
    len(state.moments.mean),
  )
  return State(
    feature_extractor,
    gaussian.Moments(n, _pad_rows(mean, 0, padded_height), _pad_rows(m2, 0, padded_height)),
  )


def _pad_rows(x: Array | np.ndarray, axis: int, num_rows: int) -> Any:
  """With rows of zeros up to so many, where it lies."""
  padding = [(0, num_rows - x.shape[i] if i == axis else 0) for i in range(x.ndim)]
  pad = np.pad if isinstance(x, np.ndarray) else jnp.pad
  return pad(x, padding) if x.shape[axis] < num_rows else x


def _drift(previous_arrays: Arrays, new_arrays: Arrays) -> dict[str, int | float]:
  """How far the means moved, in standard deviations of single channels (root mean square)."""
  variance = np.diagonal(previous_arrays['m2'], axis1=-2, axis2=-1) / max(
    previous_arrays['n'] - 1, 1
  )
  squared_shift = (np.asarray(new_arrays['mean']) - previous_arrays['mean']) ** 2 / np.maximum(
    variance, 1e-12
  )
  return {
    'images_before': int(previous_arrays['n']),
    'images_after': int(new_arrays['n']),
    'mean_shift': float(np.sqrt(squared_shift.mean())),
  }
