"""SubspaceAD: the anomaly score of a patch is its squared distance to the subspace of normal ones.

Lendering et al. 2026, 'SubspaceAD: Training-Free Few-Shot Anomaly Detection via Subspace Modeling',
arXiv 2602.23013. The subspace is that of the largest principal components of all patch embeddings.

Embeddings are the concatenated stages of a backbone instead of the mean over layers of a
transformer. The image score is that of the other detectors.

Letters: b batch, h w patch grid, p patches of an image, f folds, d embedding, H W image at network
size.
"""

from collections.abc import Callable, Iterator
import functools
from typing import NamedTuple

import jax
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from uadjax import backbones
from uadjax.detectors import base, image_score, inspection, patch_embeddings
from uadjax.detectors.base import Embeddings, HostEmbeddings, Images, Statistics
from uadjax.detectors.settings import SubspaceSettings
from uadjax.numerics import subspaces, triangles
from uadjax.numerics.triangles import Triangles
from uadjax.types import Arrays, Batch, Key, Metrics, Scores, Variables

# Each image is scored by a subspace of the images of all other folds. To leave out a single image
# would take a decomposition for each; ten models learn from nearly as many images. Ten is the same
# in every run, because near-duplicates share a fold.
_NUM_FOLDS = 10


class Config(NamedTuple):
  """Options and sizes.

  Attributes:
    backbone: network whose stages, upsampled to the size of the first, give the patch embeddings.
    context: size of the images, their shards, and which of their pixels are inspected.
    options: settings.
    num_channels: number of channels of an embedding.
    cells: True for the patches that are learned from, if they are the same for all images; None for
      all, and for blank images.
  """

  backbone: backbones.Backbone
  context: base.RunContext
  options: SubspaceSettings
  num_channels: int
  cells: Bool[np.ndarray, 'h w'] | None


class State(NamedTuple):
  """Training state: the backbone, the number of images, and the moments of each fold's patches."""

  extractor: Variables
  num_images: Int[Array, '']
  moments: subspaces.Moments


class Fitted(NamedTuple):
  """Parameters for scoring: the backbone, and the subspace of normal patches."""

  backbone: Variables
  subspace: subspaces.Subspace


def make(
  backbone: backbones.Backbone, context: base.RunContext, options: SubspaceSettings
) -> base.Detector:
  """Build the SubspaceAD detector.

  Raises:
    ConfigError: the region of interest is too small.
  """
  shapes = base.stage_shapes(backbone, context.height, context.width)
  cells = None
  if context.inspected is not None:
    cells = np.asarray(inspection.find_cells(context.inspected, *shapes[0][:2]))
  config = Config(backbone, context, options, sum(shape[2] for shape in shapes), cells)

  def bind(function: Callable) -> Callable:
    return functools.partial(function, config)

  # Arrays are small: each device holds all of them, and learns from its share of the images.
  specs = base.ShardingSpecs(P(), P(), P(), lambda model: model)
  return base.Detector(
    bind(init),
    bind(update),
    bind(finalize),
    bind(score),
    leave_one_out=base.LeaveOneOut(
      _NUM_FOLDS, bind(embed), bind(leave_fold_out), bind(score_held_out)
    ),
    incremental=base.Incremental(to_arrays, restore, bind(summarize), drift),
    sharding_specs=specs if context.shards.num_shards > 1 else None,
    export_score_fn=bind(export_score_fn),
    image_score=options.image_score,
  )


def init(config: Config, key: Key, variables: Variables) -> State:
  """Return the moments of no images; nothing is random."""
  del key
  moments = subspaces.empty(_NUM_FOLDS, config.num_channels)
  return State(variables, jnp.zeros((), jnp.int32), moments)


def extract_features(config: Config, variables: Variables, images: Images) -> Embeddings:
  """Return the patch embeddings of images."""
  return patch_embeddings.extract(config.backbone, variables, images, average_neighbors=False)


def embed(config: Config, variables: Variables, batch: Batch) -> Embeddings:
  """Return the precomputed patch embeddings of a batch, or compute those of its images.

  Those of patches that are blank are NaN.
  """
  extract = functools.partial(extract_features, config, variables)
  return patch_embeddings.embed(config.context, extract, batch)


def update(config: Config, state: State, batch: Batch) -> tuple[State, Metrics]:
  """Add a batch's valid images to the moments; the metric is the number of images so far."""
  x, valid = embed(config, state.extractor, batch), jnp.asarray(batch.valid)
  is_learned = valid[:, None, None] & ~jnp.isnan(x[..., 0])
  if config.cells is not None:
    is_learned &= jnp.asarray(config.cells)[None]
  in_specs = P(), P('data'), P('data'), P('data')
  add = config.context.shards.shard_map(subspaces.add_batch, in_specs, P())
  b, h, w, d = x.shape
  fold = jnp.asarray(batch.index) % _NUM_FOLDS
  moments = add(state.moments, x.reshape(b, h * w, d), is_learned.reshape(b, h * w), fold)
  num_images = state.num_images + valid.sum(dtype=jnp.int32)
  return State(state.extractor, num_images, moments), {'images': num_images}


def finalize(config: Config, state: State) -> Fitted:
  """Return the subspace of the patches of all images."""
  return Fitted(state.extractor, _find_subspace(state.moments, config.options.share))


@functools.partial(jax.jit, static_argnames='share')
def _find_subspace(
  moments: subspaces.Moments, share: float, left_out: int | Int[Array, ''] = -1
) -> subspaces.Subspace:
  """Return the subspace of all folds but `left_out`; -1 for none."""
  moments = subspaces.leave_group_out(moments, jnp.asarray(left_out))
  return subspaces.principal_subspace(moments, share)


def score(config: Config, fitted: Fitted, images: Images) -> Scores:
  """Score images by the squared distances of their patches to the subspace."""
  x = extract_features(config, fitted.backbone, images)
  return _score_distances(config, subspaces.squared_distance(x, fitted.subspace), images)


def _score_distances(config: Config, distance: Float[Array, 'b h w'], images: Images) -> Scores:
  image_size = config.context.height, config.context.width
  inspected = config.context.find_pixels(images)
  return image_score.from_distances(distance, image_size, config.options.image_score, inspected)


def export_score_fn(config: Config, fitted: Fitted) -> Callable[[Images], Scores]:
  """Return `score` for a fixed subspace, whose complement has no rows of zeros."""
  mean, complement = fitted.subspace
  num_zeros = min(_num_components(np.asarray(complement)), len(complement) - 1)
  subspace = subspaces.Subspace(mean, complement[num_zeros:])
  return functools.partial(score, config, Fitted(fitted.backbone, subspace))


def _num_components(complement: Float[np.ndarray, 'd d']) -> int:
  """Return the number of dimensions of a subspace."""
  return int((complement == 0).all(axis=1).sum())


def leave_fold_out(config: Config, variables: Variables, arrays: Arrays, fold: int) -> Fitted:
  """Return the subspace of the patches of all other folds."""
  return Fitted(variables, _find_subspace(_stored_moments(arrays), config.options.share, fold))


def score_held_out(config: Config, model: Fitted, batch: Batch) -> Scores:
  """Score training images, all of one fold, by a subspace that was fitted without that fold."""
  x = embed(config, model.backbone, batch)
  x = patch_embeddings.clear_blanks(config.context, x)
  distance = subspaces.squared_distance(x, model.subspace)
  return _score_distances(config, distance, jnp.asarray(batch.image))


def to_arrays(state: State) -> Arrays:
  """Return the number of images and the moments of each fold, by name."""
  n, mean, m2 = state.moments
  return {'num_images': state.num_images, 'n': n, 'mean': mean, 'm2': Triangles(m2)}


def restore(state: State, arrays: Arrays) -> State:
  """Return the initial state with the moments of the run that it extends."""
  return State(state.extractor, jnp.array(arrays['num_images']), _stored_moments(arrays))


def _stored_moments(arrays: Arrays) -> subspaces.Moments:
  """Return a copy of the moments of `to_arrays`, as they are stored."""
  mean = jnp.array(arrays['mean'])
  m2 = np.empty((*mean.shape, mean.shape[-1]), np.float32)
  triangles.unpack(arrays['m2'], m2, symmetric=True)
  return subspaces.Moments(jnp.array(arrays['n']), mean, jnp.array(m2))


def summarize(config: Config, arrays: Arrays, embeddings: Iterator[HostEmbeddings]) -> Statistics:
  """Return the number of images, and the number of dimensions of the subspace."""
  del embeddings
  subspace = _find_subspace(_stored_moments(arrays), config.options.share)
  num_components = _num_components(np.asarray(subspace.complement))
  return {'images': int(arrays['num_images']), 'components': num_components, 'folds': _NUM_FOLDS}


def drift(previous_arrays: Arrays, arrays: Arrays) -> Statistics:
  """Return the number of images before and after a run, and the shift of the mean embedding.

  Each channel's shift is divided by its standard deviation before the run. The result is the root
  mean square of these quotients over channels.
  """
  before, after = (
    subspaces.join_groups(_stored_moments(stored)) for stored in (previous_arrays, arrays)
  )
  variance = np.diagonal(before.m2[0]) / max(float(before.n[0]), 1.0)
  squared_shift = np.asarray(after.mean - before.mean)[0] ** 2 / np.maximum(variance, 1e-12)
  return {
    'images_before': int(previous_arrays['num_images']),
    'images_after': int(arrays['num_images']),
    'mean_shift': float(np.sqrt(squared_shift.mean())),
  }
