"""Resampling of anomaly maps by matrices, and gray-scale morphology.

A linear map of an axis is a matrix, computed once in NumPy: exact, differentiable, and with a
symbolic batch in every exporter.

Letters: b batch, h w map before, H W map after, c channels.
"""

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float
import numpy as np

# By default accelerators would round to 8 or 11 bits of mantissa; thresholds need more.
_EXACT = jax.lax.Precision.HIGHEST


def bilinear_matrix(new_size: int, old_size: int) -> Float[np.ndarray, 'new_size old_size']:
  """Return the matrix that resamples an axis linearly, with pixel centers at half integers.

  As PyTorch's `align_corners=False`: values beyond the ends repeat, without anti-aliasing, which
  upsampling does not need.
  """
  centers = np.clip((np.arange(new_size) + 0.5) * old_size / new_size - 0.5, 0, old_size - 1)
  # Each row is a tent of half-width one around its center; at integers its values sum to one.
  return np.maximum(0, 1 - np.abs(centers[:, None] - np.arange(old_size))).astype(np.float32)


def bicubic_matrix(
  new_size: int, old_size: int, step: float, antialias: bool
) -> Float[np.ndarray, 'new_size old_size']:
  """Return the matrix that resamples an axis by cubic convolution (Keys 1981), as PyTorch does.

  Args:
    new_size: number of values after.
    old_size: number of values before.
    step: distance of neighboring new values, in old ones; about `old_size / new_size`.
    antialias: whether the kernel widens to a `step` above 1. If so, its slope at 1 is -1/2, and
      values beyond the ends do not count; otherwise it is -3/4, and those at the ends repeat.
  """
  centers = (np.arange(new_size)[:, None] + 0.5) * step - 0.5
  if antialias:
    weights = _cubic((np.arange(old_size) - centers) / max(step, 1), -0.5)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
  taps = np.floor(centers).astype(int) + np.arange(-1, 3)
  matrix = np.zeros((new_size, old_size))
  rows = np.broadcast_to(np.arange(new_size)[:, None], taps.shape)
  np.add.at(matrix, (rows, np.clip(taps, 0, old_size - 1)), _cubic(taps - centers, -0.75))
  return matrix.astype(np.float32)


def _cubic(x: Float[np.ndarray, 'm n'], a: float) -> Float[np.ndarray, 'm n']:
  """Return the kernel of cubic convolution with slope `a` at 1; it ends at 2."""
  x = np.abs(x)
  inner = ((a + 2) * x - (a + 3)) * x**2 + 1
  outer = (((x - 5) * x + 8) * x - 4) * a
  return np.where(x < 1, inner, np.where(x < 2, outer, 0))


def blur_matrix(size: int, sigma: float) -> Float[np.ndarray, 'size size']:
  """Return the matrix that blurs an axis with a Gaussian of `sigma` pixels, cut off at four sigma.

  Borders are mirrored, including the edge pixel, as in `scipy.ndimage.gaussian_filter`.
  """
  radius = int(4 * sigma + 0.5)
  weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
  padded_identity = np.pad(np.eye(size), ((radius, radius), (0, 0)), mode='symmetric')
  shifts = np.stack([padded_identity[k : k + size] for k in range(2 * radius + 1)])
  return np.tensordot(weights / weights.sum(), shifts, 1).astype(np.float32)


def upsampling_matrix(
  new_size: int, old_size: int, sigma: float
) -> Float[np.ndarray, 'new_size old_size']:
  """Return the matrix that resamples an axis linearly, then blurs it by `sigma` pixels if not 0."""
  matrix = bilinear_matrix(new_size, old_size)
  return blur_matrix(new_size, sigma) @ matrix if sigma else matrix


def area_matrix(new_size: int, old_size: int) -> Float[np.ndarray, 'new_size old_size']:
  """Return the matrix that averages an axis over the parts of equal length that it is cut into."""
  edges, cells = np.arange(new_size + 1) * old_size / new_size, np.arange(old_size)
  ends = np.minimum(edges[1:, None], cells + 1)
  overlaps = np.maximum(0, ends - np.maximum(edges[:-1, None], cells))
  return overlaps * new_size / old_size


def pool_matrix(size: int) -> Float[np.ndarray, 'size size']:
  """Return the matrix that averages windows of three along an axis, padded with zeros."""
  return sum((np.eye(size, k=k) for k in (-1, 0, 1)), np.zeros((size, size))).astype(np.float32) / 3


def adaptive_pool_matrix(new_size: int, old_size: int) -> Float[np.ndarray, 'new_size old_size']:
  """Return the matrix of PyTorch's `adaptive_avg_pool1d`: averages of `new_size` runs of an axis.

  Runs overlap if `old_size` is not a multiple of `new_size`.
  """
  starts = np.arange(new_size) * old_size // new_size
  ends = -(-(np.arange(new_size) + 1) * old_size // new_size)
  positions = np.arange(old_size)
  in_run = (positions >= starts[:, None]) & (positions < ends[:, None])
  return (in_run / (ends - starts)[:, None]).astype(np.float32)


def apply_separable(
  row_matrix: Float[Array, 'H h'], column_matrix: Float[Array, 'W w'], x: Float[Array, 'b h w c']
) -> Float[Array, 'b H W c']:
  """Apply one matrix to the rows and one to the columns of images."""
  # Plain matrix products exist in every runtime, and in this order no axis is transposed.
  _, h, w, c = x.shape
  x = jnp.matmul(row_matrix, x.reshape(-1, h, w * c), precision=_EXACT)
  return jnp.matmul(column_matrix, x.reshape(-1, len(row_matrix), w, c), precision=_EXACT)


def upsample(
  x: Float[Array, 'b h w'], height: int, width: int, sigma: float = 0.0
) -> Float[Array, 'b H W']:
  """Resample maps bilinearly to `height` x `width`, then blur them by `sigma` pixels if not 0."""
  row_matrix = upsampling_matrix(height, x.shape[1], sigma)
  column_matrix = upsampling_matrix(width, x.shape[2], sigma)
  x = jnp.matmul(x, jnp.asarray(column_matrix).T, precision=_EXACT)
  return jnp.matmul(jnp.asarray(row_matrix), x, precision=_EXACT)


def grey_opening(x: Float[Array, 'b h w'], radius: int) -> Float[Array, 'b h w']:
  """Erase bright spots that do not contain a disk of `radius` pixels: erosion, then dilation.

  Borders are mirrored, as in `scipy.ndimage.grey_opening`.
  """
  return _reduce_over_disk(jnp.maximum, _reduce_over_disk(jnp.minimum, x, radius), radius)


def _reduce_over_disk(reduce_fn, x: Float[Array, 'b h w'], radius: int) -> Float[Array, 'b h w']:
  _, height, width = x.shape
  padded = jnp.pad(x, ((0, 0), (radius, radius), (radius, radius)), mode='symmetric')
  out = x
  # Not reduce_window: a disk is not a window, and ONNX Runtime refuses 4-D MaxPool.
  for dy in range(-radius, radius + 1):
    half_width = int((radius**2 - dy**2) ** 0.5)
    for dx in range(-half_width, half_width + 1):
      top, left = radius + dy, radius + dx
      window = jax.lax.slice_in_dim(padded, top, top + height, axis=1)
      out = reduce_fn(out, jax.lax.slice_in_dim(window, left, left + width, axis=2))
  return out
