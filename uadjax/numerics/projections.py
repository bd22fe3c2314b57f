"""Random linear projections of the channels of all stages to an embedding of fewer channels.

Every method is a matrix, even channel selection (its columns are one-hot, and the product is
exact): there is one code path and one leaf in the model, and only its shape is static.

Letters: b batch, h w map of a stage, H W map of the embedding, c channels of all stages, d
embedding.
"""

from collections.abc import Sequence

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from uadjax.numerics import resampling
from uadjax.types import Key


def draw(key: Key, method: str, channels: tuple[int, ...], d: int) -> Float[Array, 'c d']:
  """Draw a random projection.

  Args:
    key: the same key draws the same projection.
    method: one of METHODS. 'sample' selects random channels, as in the PaDiM paper. 'h_sample'
      selects equally many of each stage. 'ortho' has orthonormal columns (Kim et al. 2021,
      'Semi-orthogonal Embedding for Efficient Unsupervised Anomaly Segmentation', arXiv
      2105.14737). 'svd_ortho' also has orthonormal columns: it is the orthogonal factor UVᵀ of a
      Gaussian matrix. 'gaussian' has independent entries of variance 1/d, which preserves squared
      lengths on average.
    channels: number of channels of each stage.
    d: number of channels of the embedding.

  Raises:
    ValueError: the method is unknown, or `d` is not between 1 and the number of channels.
  """
  if method not in _METHODS:
    raise ValueError(f'Unknown projection {method!r}; choose from {list(METHODS)}.')
  if not 1 <= d <= sum(channels):
    raise ValueError(f'Cannot keep {d} channels of {sum(channels)}; keep between 1 and all.')
  return _METHODS[method](key, channels, d)


def project(
  projection: Float[Array, 'c d'],
  stages: Sequence[Float[Array, 'b _h _w _c']],
  height: int,
  width: int,
  upsampling: str = 'bilinear',
) -> Float[Array, 'b {height} {width} d']:
  """Resize the stages to one grid, concatenate their channels, and project them.

  Projecting a pixel and interpolating between pixels commute, so each stage is projected at its own
  size, and the maps of all c channels are never computed.

  Args:
    projection: matrix from `draw`.
    stages: feature maps, in the order of `channels` of `draw`.
    height: height of the grid in pixels.
    width: width of the grid in pixels.
    upsampling: 'bilinear', or 'nearest' as in the published PaDiM code, which repeats pixels.

  Raises:
    ValueError: the upsampling method is unknown.
  """
  if upsampling not in _UPSAMPLING_MATRICES:
    raise ValueError(f'Unknown upsampling {upsampling!r}; choose from {list(UPSAMPLING_METHODS)}.')
  matrix_fn = _UPSAMPLING_MATRICES[upsampling]
  ends = np.cumsum([x.shape[-1] for x in stages])
  out = jnp.zeros((stages[0].shape[0], height, width, projection.shape[1]))
  for x, stage_projection in zip(stages, jnp.split(projection, ends[:-1]), strict=True):
    x = jnp.einsum('bhwc,cd->bhwd', x, stage_projection, precision=jax.lax.Precision.HIGHEST)
    if x.shape[1:3] != (height, width):
      row_matrix = jnp.asarray(matrix_fn(height, x.shape[1]))
      column_matrix = jnp.asarray(matrix_fn(width, x.shape[2]))
      x = resampling.apply_separable(row_matrix, column_matrix, x)
    out += x
  return out


def _sample(key: Key, channels: tuple[int, ...], d: int) -> Float[Array, 'c d']:
  indices = jax.random.choice(key, sum(channels), (d,), replace=False)
  return jax.nn.one_hot(jnp.sort(indices), sum(channels), axis=0)


def _sample_per_stage(key: Key, channels: tuple[int, ...], d: int) -> Float[Array, 'c d']:
  keys = jax.random.split(key, len(channels))
  starts = np.cumsum((0, *channels))
  counts = _channels_per_stage(channels, d)
  indices = [
    start + jnp.sort(jax.random.choice(k, c, (count,), replace=False))
    for k, start, c, count in zip(keys, starts, channels, counts, strict=False)
  ]
  return jax.nn.one_hot(jnp.concatenate(indices), sum(channels), axis=0)


def _channels_per_stage(channels: tuple[int, ...], d: int) -> tuple[int, ...]:
  """Return the number of channels to select from each stage: equally many, but at most all."""
  counts, remaining = dict[int, int](), d
  # Small stages come first, so that larger ones make up for what they lack.
  for i, stage in enumerate(sorted(range(len(channels)), key=lambda s: channels[s])):
    counts[stage] = min(channels[stage], remaining // (len(channels) - i))
    remaining -= counts[stage]
  return tuple(counts[stage] for stage in range(len(channels)))


def _orthonormal(key: Key, channels: tuple[int, ...], d: int) -> Float[Array, 'c d']:
  q, r = jnp.linalg.qr(jax.random.normal(key, (sum(channels), d)))
  # Signs of a QR decomposition depend on the implementation; a positive diagonal of r makes it
  # unique and q uniformly distributed.
  return q * jnp.sign(jnp.diagonal(r))[None]


def _polar(key: Key, channels: tuple[int, ...], d: int) -> Float[Array, 'c d']:
  u, _, v = jnp.linalg.svd(jax.random.normal(key, (sum(channels), d)), full_matrices=False)
  return jnp.matmul(u, v, precision=jax.lax.Precision.HIGHEST)


def _gaussian(key: Key, channels: tuple[int, ...], d: int) -> Float[Array, 'c d']:
  return jax.random.normal(key, (sum(channels), d)) / d**0.5


def _nearest_matrix(new_size: int, old_size: int) -> Float[np.ndarray, 'new_size old_size']:
  # The nearest pixel contains the center (i + ½)·old_size/new_size; integers avoid rounding errors.
  nearest = (2 * np.arange(new_size) + 1) * old_size // (2 * new_size)
  return np.eye(old_size, dtype=np.float32)[nearest]


_METHODS = {
  'sample': _sample,
  'h_sample': _sample_per_stage,
  'ortho': _orthonormal,
  'svd_ortho': _polar,
  'gaussian': _gaussian,
}
METHODS = tuple(_METHODS)

_UPSAMPLING_MATRICES = {'bilinear': resampling.bilinear_matrix, 'nearest': _nearest_matrix}
UPSAMPLING_METHODS = tuple(_UPSAMPLING_MATRICES)
