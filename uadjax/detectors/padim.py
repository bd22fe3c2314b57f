"""PaDiM: one Gaussian of embeddings per position; the score is the Mahalanobis distance to it.

Defard et al. 2020, 'PaDiM: a Patch Distribution Modeling Framework', arXiv 2011.08785, section III.

The Gaussians may be sharded by rows of the feature map: each device then holds the Gaussians of
some rows, and receives the embeddings of all images at these rows. Zeros pad the rows where shards
would differ in size.

Letters: b batch, h w feature map of the first stage, c channels of all stages, d channels of the
embedding, H W image at network size.
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

_SIGMA = 4.0  # Standard deviation of the anomaly map's blur, in pixels (section IV-D).
# Columns of the feature map that `_whiten_on_host` whitens at a time. With a single column, XLA
# would unroll the loop over columns and round differently than for the whole map.
_COLUMNS_AT_ONCE = 4
# Sharding of the fields of `Moments`: True along the first axis, the rows; False for replicated.
_MOMENTS_SPECS = gaussian.Moments(False, True, True)  # pyright: ignore[reportArgumentType]
Stages = dict[str, Float[Array, 'b _h _w _c']]  # The backbone's feature maps by stage.


class FeatureExtractor(NamedTuple):
  """Fixed parameters of the embedding.

  Attributes:
    backbone: variables of the pretrained backbone.
    projection: matrix that maps the concatenated channels of all stages to those of the embedding.
  """

  backbone: Variables
  projection: Float[Array, 'c d']


class State(NamedTuple):
  """Training state: the feature extractor, and the moments of all embeddings so far."""

  feature_extractor: FeatureExtractor
  moments: gaussian.Moments


class Fitted(NamedTuple):
  """Parameters for scoring.

  Attributes:
    feature_extractor: backbone variables and projection.
    mean: mean embedding at each position (μ in section III-B).
    whitening: lower triangular W at each position, with WᵀW = Σ⁻¹ for the covariance Σ of
      equation 1.
  """

  feature_extractor: FeatureExtractor
  mean: Float[Array, 'h w d']
  whitening: Float[Array, 'h w d d']


class HeldOutModel(NamedTuple):
  """Parameters for scoring each training image by the Gaussians of all other training images.

  `gaussian.leave_one_out_distance` removes the image from the Gaussians by a formula, so that one
  model serves all images.

  Attributes:
    fitted: Gaussians of all n training images, for `gaussian.leave_one_out_distance` only: their
      covariances are divided by n - 2 instead of n - 1, so they must not score new images.
    num_images: number n of training images.
  """

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
  """Build the PaDiM detector.

  Args:
    backbone: network whose stages are upsampled to the size of the first and concatenated.
    context: image size, number of images and shards.
    channels: number of channels of the embedding, at most those of all stages together.
    projection: method that reduces the channels of all stages to `channels`, one of
      `projections.METHODS`; the paper samples channels ('sample').
    enlarge: upsampling of the deeper stages: 'bilinear', or 'nearest' as in the authors' code.
    ridge: constant added to the variances, ε of equation 1.

  Raises:
    ConfigError: `channels` is out of range; or, unless `context.max_images` is 0, `ridge` is
      negative or there are too few images.
    UnknownName: the projection or upsampling method does not exist.
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
      f'detector.channels={channels}, but the stages of the backbone have '
      f'{sum(channels_per_stage)} channels.',
      key='detector.channels',
      value=channels,
      allowed=(1, sum(channels_per_stage)),
      hint=(
        f'Choose 1 to {sum(channels_per_stage)}, or name more stages with ',
        Setting('detector.layers'),
        '.',
      ),
    )
  shards = context.shards
  padded_height = h + -h % shards.num_shards

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
    """Return the embeddings of images: the backbone's stages, projected (section III-A).

    The deeper stages are upsampled to the size of the first.
    """
    stages = cast(Stages, backbone.apply(feature_extractor.backbone, backbones.normalize(images)))
    feature_maps = [stages[name] for name in backbone.stages]
    return projections.project(feature_extractor.projection, feature_maps, h, w, enlarge)

  def embed(feature_extractor: FeatureExtractor, batch: Batch) -> Float[Array, 'b h w d']:
    """Return the precomputed embeddings of a batch, or compute those of its images."""
    return (
      extract_features(feature_extractor, jnp.asarray(batch.image))
      if batch.features is None
      else batch.features
    )

  def update(state: State, batch: Batch) -> tuple[State, Metrics]:
    """Add a batch's valid images to the moments; the metric is the number of images so far."""
    x = embed(state.feature_extractor, batch)
    moments = _add_batch(state.moments, x, jnp.asarray(batch.valid), shards)
    return state._replace(moments=moments), {'images': moments.n}

  def to_fitted(state: State) -> Fitted:
    """Return the Gaussians without padding rows; consumes the state."""
    n, mean, m2 = state.moments
    return Fitted(state.feature_extractor, mean[:h], _whiten(m2, n, ridge, 0, shards)[:h])

  def pad_to_shards(model: Fitted | HeldOutModel) -> Fitted | HeldOutModel:
    """Pad the Gaussians with rows of zeros to a multiple of the number of shards."""
    if isinstance(model, HeldOutModel):
      return model._replace(fitted=pad_to_shards(model.fitted))
    return Fitted(model.feature_extractor, *(_pad_rows(x, 0, padded_height) for x in model[1:]))

  def score_distances(distance: Float[Array, 'b h w']) -> Scores:
    """Upsample and blur distances to anomaly maps; the image score is the map's maximum."""
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
    """Return `score` for fixed parameters, with the whitening matrices cut into bands ahead."""
    feature_extractor, mean, whitening = fitted
    bands = gaussian.cut_into_bands(whitening)

    def score(images: UInt8[Array, 'b H W 3']) -> Scores:
      return score_distances(
        gaussian.mahalanobis_from_bands(extract_features(feature_extractor, images), mean, bands)
      )

    return score

  def score_held_out(held_out_model: HeldOutModel, batch: Batch) -> Scores:
    """Score training images, each by the Gaussians of all other training images."""
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
  """Raise an error if covariances cannot be estimated with these settings.

  Args:
    num_images: number of training images, at least 2.
    channels: number of channels of the embedding.
    ridge: constant added to the variances. With 0, covariances of at most `channels` images are
      singular.

  Raises:
    ConfigError: `ridge` is negative, or there are too few images.
  """
  if not ridge >= 0:
    raise ConfigError(
      f'detector.ridge must be 0 or more, got {ridge}; the paper uses 0.01.',
      key='detector.ridge',
      value=ridge,
      allowed=(0, None),
    )
  if num_images < 2:
    raise ConfigError(f'A covariance needs at least 2 good images, got {num_images}; add images.')
  if ridge == 0 and num_images <= channels:
    raise ConfigError(
      f'{num_images} good images are too few for a covariance of {channels} channels with '
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
  """Return PaDiM's functions for one-pass learning.

  All training images are in a single fold, since one `HeldOutModel` excludes each image by itself.

  Args:
    h: height of the feature map, without the padding rows that the state may have.
    ridge: constant added to the variances.
    shards: shards of the state's rows.
    embed: (feature extractor, batch) -> embeddings.
    score_held_out: (held-out model, batch of training images) -> scores.
  """

  def compile_finalize(state: State) -> None:
    _whiten.lower(state.moments.m2, state.moments.n, ridge, 0, shards).compile()

  def state_arrays(state: State) -> Arrays:
    """Return projection and moments by name, without padding rows."""
    n, mean, m2 = state.moments
    return {
      'projection': state.feature_extractor.projection,
      'n': n,
      'mean': mean[:h],
      'm2': m2[:h],
    }

  def leave_fold_out(variables: Variables, arrays: Arrays, fold: int) -> HeldOutModel:
    """Return the model for the only fold; overwrites `arrays['m2']` if it is writeable."""
    del fold
    n, mean, projection = (jnp.asarray(arrays[k]) for k in ('n', 'mean', 'projection'))
    whitening = jax.device_put(_whiten_on_host(arrays['m2'], n, ridge, 1))
    return HeldOutModel(Fitted(FeatureExtractor(variables, projection), mean, whitening), n)

  return OnePass(
    num_folds=1,
    feature_extractor=lambda state: state.feature_extractor,
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
  """Add the embeddings of valid images to the moments; each device adds all images to its rows.

  Args:
    moments: moments sharded by row, and padded to equal shards.
    x: embeddings sharded by image, without padding rows.
    valid: False for images that only pad the batch; sharded like `x`.
    shards: shards of the images and of the rows.
  """

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
  """Return the distance of each embedding to the Gaussian at its position.

  Each device computes the distances of all images at the rows whose Gaussians it holds. The result
  is sharded by image again, and has no padding rows.

  Args:
    distance_fn: (embeddings, means, whitening matrices) -> distances, for some rows.
    x: embeddings sharded by image, without padding rows.
    gaussians: means and whitening matrices, sharded by row and padded to equal shards.
    shards: shards of the images and of the rows.
  """

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
  """Return the whitening matrix of each position, in the memory of `m2`, which may be gigabytes.

  Args:
    m2: sums of outer products of deviations from the mean; donated.
    n: number of training images.
    ridge: constant added to the variances.
    num_held_out: 1 for matrices that `gaussian.leave_one_out_distance` takes, whose covariances
      are `m2` / (n - 2); 0 for `m2` / (n - 1).
    shards: shards of the rows.
  """

  def whiten_shard(m2: Array, n: Array, axis_name: str | None) -> Array:
    # The matrices do not depend on the mean.
    return gaussian.whitening_matrices(
      gaussian.Moments(n, jnp.zeros(m2.shape[:3]), m2), ridge, num_held_out
    )

  return shards.shard_map(whiten_shard, (True, False), True)(m2, n)


def _whiten_on_host(
  m2: Float[np.ndarray, 'h w d d'], n: Float[Array, ''], ridge: float, num_held_out: int
) -> Float[np.ndarray, 'h w d d']:
  """Return the whitening matrix of each position in host memory, from `m2` in host memory.

  The device holds only a few columns of the map at a time, and a writeable `m2` is not copied.

  Args:
    m2: sums of outer products of deviations from the mean; overwritten by the result if it is
      writeable.
    n: number of training images.
    ridge: constant added to the variances.
    num_held_out: 1 for matrices that `gaussian.leave_one_out_distance` takes, whose covariances
      are `m2` / (n - 2); 0 for `m2` / (n - 1).
  """
  out = m2 if m2.flags.writeable else m2.copy()
  for j in range(0, out.shape[1], _COLUMNS_AT_ONCE):
    columns = np.s_[:, j : j + _COLUMNS_AT_ONCE]
    out[columns] = _whiten(jnp.array(out[columns]), n, ridge, num_held_out, SINGLE_SHARD)
  return out


def _extend(state: State, arrays: Arrays) -> State:
  """Return the initial state with the projection and moments of the run that it extends.

  Args:
    state: initial state, whose backbone variables and number of rows remain.
    arrays: projection and moments of the earlier run, without padding rows.
  """
  n, mean, m2, projection = (jnp.array(arrays[k]) for k in ('n', 'mean', 'm2', 'projection'))
  padded_height = len(state.moments.mean)
  return State(
    state.feature_extractor._replace(projection=projection),
    gaussian.Moments(n, _pad_rows(mean, 0, padded_height), _pad_rows(m2, 0, padded_height)),
  )


def _pad_rows(x: Array | np.ndarray, axis: int, num_rows: int) -> Any:
  """Pad the rows of a map with zeros to `num_rows`; NumPy arrays stay in host memory.

  Args:
    x: Gaussians or embeddings.
    axis: axis of the rows: 0 for Gaussians, 1 for embeddings, which are batched.
    num_rows: number of rows after padding. If `x` has as many, it is returned as it is.
  """
  padding = [(0, num_rows - x.shape[i] if i == axis else 0) for i in range(x.ndim)]
  pad = np.pad if isinstance(x, np.ndarray) else jnp.pad
  return pad(x, padding) if x.shape[axis] < num_rows else x


def _drift(previous_arrays: Arrays, new_arrays: Arrays) -> dict[str, int | float]:
  """Return the number of images before and after a run, and the shift of the mean embeddings.

  At each position, each channel's shift is divided by its standard deviation before the run. The
  result is the root mean square of these quotients over positions and channels.

  Args:
    previous_arrays: moments before the run: 'n', 'mean' and 'm2'.
    new_arrays: moments after the run: 'n' and 'mean'.
  """
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
