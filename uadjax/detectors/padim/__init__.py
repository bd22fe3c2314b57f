"""PaDiM: one Gaussian of embeddings per position; the score is the Mahalanobis distance to it.

Defard et al. 2020, 'PaDiM: a Patch Distribution Modeling Framework', arXiv 2011.08785, section III.

Letters: b batch, h w feature map of the first stage, c channels of all stages, d channels of the
embedding, H W image at network size.
"""

from collections.abc import Callable, Iterable, Iterator
import functools
from typing import cast, NamedTuple

import jax
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int
import numpy as np

from uadjax import backbones
from uadjax.detectors import base, image_score, inspection
from uadjax.detectors.base import Embeddings, HostEmbeddings, Images, Statistics
from uadjax.detectors.padim import gaussians
from uadjax.detectors.settings import PadimSettings
from uadjax.errors import refuse, Setting
from uadjax.numerics import gaussian, projections, triangles
from uadjax.numerics.triangles import Triangles
from uadjax.types import Arrays, Batch, Key, Metrics, Scores, Variables

Stages = dict[str, Float[Array, 'b _h _w _c']]  # The backbone's feature maps by stage.


class Config(NamedTuple):
  """Options and sizes.

  Attributes:
    backbone: network whose stages are upsampled to the size of the first and concatenated.
    context: size of the images, and shards of the images and of the rows of the feature map.
    options: settings. Of these, `channels` is at most the number of channels of all stages
      together, and `ridge` is ε of equation 1.
    map_size: height and width of the feature map of the first stage.
    positions: positions of the feature map that are learned from. For a region of interest, one of
      them is repeated in place of each of the others, so that these have the Gaussian of an
      inspected position, which nothing uses. None for all.
    stage_channels: number of channels of each stage.
  """

  backbone: backbones.Backbone
  context: base.RunContext
  options: PadimSettings
  map_size: tuple[int, int]
  positions: Int[np.ndarray, ' p'] | None
  stage_channels: tuple[int, ...]

  @property
  def padded_height(self) -> int:
    """Number of rows of the feature map, padded so that all shards are equal in size."""
    return self.map_size[0] + -self.map_size[0] % self.context.shards.num_shards


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

  extractor: FeatureExtractor
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
  whitening: Triangles


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


_STATE_SPECS = State._make((P(), gaussians.MOMENTS_SPECS))
_FITTED_SPECS = Fitted._make((P(), P('data'), P('data')))
_HELD_OUT_SPECS = HeldOutModel._make((_FITTED_SPECS, P()))


def make(
  backbone: backbones.Backbone, context: base.RunContext, options: PadimSettings
) -> base.Detector:
  """Build the PaDiM detector.

  Raises:
    ConfigError: the backbone has too few channels; or, unless `context.max_images` is 0, there are
      too few images.
  """
  if context.max_images:
    num_images = context.num_previous_images + context.max_images
    validate_settings(num_images, options.channels, options.ridge)
  shapes = base.stage_shapes(backbone, context.height, context.width)
  map_size, stage_channels = shapes[0][:2], tuple(shape[2] for shape in shapes)
  max_channels = sum(stage_channels)
  if options.channels > max_channels:
    message = f'detector.channels={options.channels}, but the stages together have {max_channels}.'
    hint = f'Choose 1 to {max_channels}, or name more stages with ', Setting('detector.layers'), '.'
    refuse('detector.channels', options.channels, message, *hint, allowed=(1, max_channels))
  positions = None
  if context.has_blanks:
    whole_images = Setting('data.ops', 'resize(512)')
    hint = 'Use another detector, or scale whole images: ', whole_images, '.'
    message = 'PaDiM cannot combine tiles with a region of interest.'
    refuse('data.roi', None, message, *hint)
  if context.inspected is not None:
    is_inspected = inspection.find_cells(context.inspected, *map_size).ravel()
    first = int(np.argmax(is_inspected))
    positions = np.where(is_inspected, np.arange(len(is_inspected)), first)
  config = Config(backbone, context, options, map_size, positions, stage_channels)

  def bind(function: Callable) -> Callable:
    return functools.partial(function, config)

  specs = base.ShardingSpecs(_STATE_SPECS, _FITTED_SPECS, _HELD_OUT_SPECS, bind(pad_to_shards))
  return base.Detector(
    bind(init),
    bind(update),
    bind(finalize),
    bind(score),
    leave_one_out=base.LeaveOneOut(
      1, bind(embed), bind(leave_fold_out), bind(score_held_out), remove=bind(remove)
    ),
    incremental=base.Incremental(bind(to_arrays), bind(restore), summarize, bind(drift)),
    sharding_specs=specs if context.shards.num_shards > 1 else None,
    export_score_fn=bind(export_score_fn),
    image_score=options.image_score,
  )


def validate_settings(num_images: int, channels: int, ridge: float) -> None:
  """Raise an error if covariances, also those without one image, cannot be estimated.

  Args:
    num_images: number of training images, those of earlier runs included.
    channels: number of channels of the embedding.
    ridge: constant added to the variances. With 0, covariances of few images are singular.

  Raises:
    ConfigError: there are too few images.
  """
  min_images = gaussian.min_vectors(channels, ridge)
  if num_images < min_images:
    message = (
      f'{num_images} good images are too few for covariances of {channels} channels with '
      f'detector.ridge={ridge:g}: without the image that is left out, {min_images - 1} must remain.'
    )
    few_channels = (Setting('detector.channels', num_images - 2), ' or fewer, ')
    few_channels = few_channels if num_images > 2 else ()
    ridge_setting = Setting('detector.ridge', 0.01)
    hint = f'Use at least {min_images} images, ', *few_channels, 'or ', ridge_setting, '.'
    refuse('detector.ridge', ridge, message, *hint)


def init(config: Config, key: Key, variables: Variables) -> State:
  """Draw the projection, and return the moments of no images."""
  channels, method = config.options.channels, config.options.projection
  projection = projections.draw(key, method, config.stage_channels, channels)
  size = config.padded_height, config.map_size[1], channels
  moments = gaussians.empty(*size, config.context.shards)
  return State(FeatureExtractor(variables, projection), moments)


def extract_features(config: Config, extractor: FeatureExtractor, images: Images) -> Embeddings:
  """Return the embeddings of images: the backbone's stages, projected (section III-A).

  The deeper stages are upsampled to the size of the first.
  """
  network, upsampling = config.backbone, config.options.enlarge
  stages = cast(Stages, network.apply(extractor.backbone, backbones.normalize(images)))
  feature_maps = [stages[name] for name in network.stages]
  return projections.project(extractor.projection, feature_maps, *config.map_size, upsampling)


def embed(config: Config, extractor: FeatureExtractor, batch: Batch) -> Embeddings:
  """Return the precomputed embeddings of a batch, or compute those of its images.

  They are those to learn from: see `Config.positions`.
  """
  if batch.features is not None:
    return batch.features
  x = extract_features(config, extractor, jnp.asarray(batch.image))
  if config.positions is None:
    return x
  return x.reshape(len(x), -1, x.shape[-1])[:, config.positions].reshape(x.shape)


def update(config: Config, state: State, batch: Batch) -> tuple[State, Metrics]:
  """Add a batch's valid images to the moments; the metric is the number of images so far."""
  x = embed(config, state.extractor, batch)
  moments = gaussians.add_batch(state.moments, x, jnp.asarray(batch.valid), config.context.shards)
  return state._replace(moments=moments), {'images': moments.n}


def finalize(config: Config, state: State) -> Fitted:
  """Return the Gaussians without padding rows; consumes the state."""
  (n, mean, m2), h = state.moments, config.map_size[0]
  whitening = gaussians.whiten(m2, n, config.options.ridge, 0, config.context.shards)
  return Fitted(state.extractor, mean[:h], Triangles(whitening[:h]))


def pad_to_shards(config: Config, model: Fitted | HeldOutModel) -> Fitted | HeldOutModel:
  """Pad the Gaussians with rows of zeros to a multiple of the number of shards."""
  if isinstance(model, HeldOutModel):
    return model._replace(fitted=pad_to_shards(config, model.fitted))
  padded = jax.tree.map(lambda x: gaussians.pad_rows(x, 0, config.padded_height), model[1:])
  return Fitted._make((model.feature_extractor, *padded))


def score(config: Config, fitted: Fitted, images: Images) -> Scores:
  """Score images by the Mahalanobis distances of their embeddings (section III-C)."""
  extractor, mean, whitening = fitted
  x = extract_features(config, extractor, images)
  shards = config.context.shards
  distance = gaussians.map_over_rows(gaussian.mahalanobis, x, mean, whitening.matrices, shards)
  return _score_distances(config, distance)


def _score_distances(config: Config, distance: Float[Array, 'b h w']) -> Scores:
  """Score images by distances, which are upsampled and blurred (section IV-D)."""
  image_size = config.context.height, config.context.width
  inspected = config.context.inspected
  inspected = None if inspected is None else inspected[None]
  return image_score.from_distances(distance, image_size, config.options.image_score, inspected)


def export_score_fn(config: Config, fitted: Fitted) -> Callable[[Images], Scores]:
  """Return `score` for fixed parameters, with the whitening matrices cut into bands ahead."""
  extractor, mean, whitening = fitted
  bands = gaussian.cut_into_bands(whitening.matrices)

  def score(images: Images) -> Scores:
    x = extract_features(config, extractor, images)
    return _score_distances(config, gaussian.mahalanobis_from_bands(x, mean, bands))

  return score


def leave_fold_out(config: Config, variables: Variables, arrays: Arrays, fold: int) -> HeldOutModel:
  """Return the model for the only fold."""
  del fold
  n, mean, projection = (jnp.asarray(arrays[k]) for k in ('n', 'mean', 'projection'))
  whitening = jax.device_put(gaussians.whiten_on_host(arrays['m2'], n, config.options.ridge, 1))
  extractor = FeatureExtractor(variables, projection)
  return HeldOutModel(Fitted(extractor, mean, Triangles(whitening)), n)


def score_held_out(config: Config, model: HeldOutModel, batch: Batch) -> Scores:
  """Score training images, each by the Gaussians of all other training images."""
  (extractor, mean, whitening), num_images = model

  def distance_fn(x: Array, mean: Array, whitening: Array) -> Array:
    return gaussian.leave_one_out_distance(x, num_images, mean, whitening)

  x = embed(config, extractor, batch)
  shards = config.context.shards
  distance = gaussians.map_over_rows(distance_fn, x, mean, whitening.matrices, shards)
  return _score_distances(config, distance)


def remove(
  config: Config, variables: Variables, arrays: Arrays, embeddings: Iterable[HostEmbeddings]
) -> Fitted:
  """Return the Gaussians of all images but those with the given embeddings."""
  n, mean, m2 = gaussian.remove_batches(_stored_moments(arrays), embeddings)
  whitening = gaussians.whiten(m2, n, config.options.ridge, 0)
  extractor = FeatureExtractor(variables, jnp.asarray(arrays['projection']))
  return Fitted(extractor, mean, Triangles(whitening))


def to_arrays(config: Config, state: State) -> Arrays:
  """Return projection and moments by name, without padding rows."""
  (n, mean, m2), h = state.moments, config.map_size[0]
  m2 = Triangles(m2[:h])
  return {'projection': state.extractor.projection, 'n': n, 'mean': mean[:h], 'm2': m2}


def restore(config: Config, state: State, arrays: Arrays) -> State:
  """Return the initial state with the projection and moments of the run that it extends."""
  n, mean, m2 = _stored_moments(arrays)
  padded = (gaussians.pad_rows(x, 0, config.padded_height) for x in (mean, m2))
  extractor = state.extractor._replace(projection=jnp.array(arrays['projection']))
  return State(extractor, gaussian.Moments._make((n, *padded)))


def _stored_moments(arrays: Arrays) -> gaussian.Moments:
  """Return a copy of the moments of `to_arrays`, as they are stored."""
  packed, mean = arrays['m2'], jnp.array(arrays['mean'])
  d = mean.shape[-1]
  m2 = np.empty((*packed.shape[:-1], d, d), packed.dtype)
  triangles.unpack(packed, m2, symmetric=True)
  return gaussian.Moments(jnp.array(arrays['n']), mean, jnp.array(m2))


def summarize(arrays: Arrays, embeddings: Iterator[HostEmbeddings]) -> Statistics:
  """Return the number of images."""
  del embeddings
  return {'images': int(arrays['n'])}


def drift(config: Config, previous_arrays: Arrays, arrays: Arrays) -> Statistics:
  """Return the number of images before and after a run, and the shift of the mean embeddings.

  At each position, each channel's shift is divided by its standard deviation before the run. The
  result is the root mean square of these quotients over inspected positions and channels.
  """
  n, mean, m2 = (previous_arrays[name] for name in ('n', 'mean', 'm2'))
  variance = m2[..., triangles.diagonal_positions(mean.shape[-1])] / max(n - 1, 1)
  squared_shift = (np.asarray(arrays['mean']) - mean) ** 2 / np.maximum(variance, 1e-12)
  if config.positions is not None:
    squared_shift = squared_shift.reshape(-1, mean.shape[-1])[np.unique(config.positions)]
  return {
    'images_before': int(n),
    'images_after': int(arrays['n']),
    'mean_shift': float(np.sqrt(squared_shift.mean())),
  }
