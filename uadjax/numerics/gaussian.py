"""One Gaussian distribution of vectors per position of a map: moments and distances.

`Moments` form a monoid (`empty`, `add_batch`, `merge`): batches, shards, epochs and resumed
runs combine by the same function. The covariances are large (5 GB for 550 channels on a 64x64 map),
so `add_batch` and `whitening_matrices` process one column of the map at a time, in place, without a
second array of that size. They loop over columns rather than rows so that a mesh may shard the rows
and the loop needs no communication.

Letters: b batch, h w map, p positions (h times w), d length of a vector (i and j are two copies of
d). Each element of a batch has one vector per position.
"""

from collections.abc import Iterable, Sequence
import functools
import itertools
from typing import NamedTuple

import jax
from jax import lax, numpy as jnp
from jaxtyping import Array, Bool, Float
import numpy as np

# Thresholds depend on these products. By default, accelerators would round their factors to 8 or 11
# bits of mantissa.
_EXACT = lax.Precision.HIGHEST

# LAPACK factors covariances up to this size; larger ones are factored by products of blocks. On a
# CPU, OpenBLAS would start its threads for each larger matrix, and they wait for each other. With
# blocks, whitening 4096 positions of 100 channels takes 0.4 s instead of 3.2 s; one position of 550
# channels takes 3 ms instead of 130 ms.
_LEAF_SIZE = 16

# Bands per whitening matrix. More would read little less memory, and each costs a matrix product.
_NUM_BANDS = 4


class Moments(NamedTuple):
  """Moments of the vectors at each position.

  Attributes:
    n: number of vectors per position, a float because it only enters divisions.
    mean: mean of the vectors; 0 if n is 0.
    m2: sum of the outer products of the vectors' deviations from the mean.
  """

  n: Float[Array, '']
  mean: Float[Array, 'h w d']
  m2: Float[Array, 'h w d d']


def empty(h: int, w: int, d: int) -> Moments:
  """Return the moments of no vectors: the identity element of `merge`."""
  return Moments(jnp.zeros(()), jnp.zeros((h, w, d)), jnp.zeros((h, w, d, d)))


def merge(a: Moments, b: Moments) -> Moments:
  """Return the moments of the union of two sets of vectors (Chan et al. 1979, pairwise update).

  When jitted with `a` donated, the result takes the memory of `a`.
  """
  n = a.n + b.n
  share = b.n / jnp.maximum(n, 1.0)  # Both sets may be empty.
  shift = b.mean - a.mean
  # A broadcast product fuses into the sum, whereas an einsum would first write its result out.
  outer_product = shift[..., :, None] * shift[..., None, :]
  return Moments(n, a.mean + share * shift, a.m2 + b.m2 + a.n * share * outer_product)


def subtract(moments: Moments, removed: Moments) -> Moments:
  """Return the moments without some of the vectors: the inverse of `merge`.

  The result takes the memory of `moments` if it is donated.

  Args:
    moments: moments of all vectors.
    removed: moments of the vectors to remove, fewer than all.
  """
  n = moments.n - removed.n
  shift = moments.mean - removed.mean
  # With the mean a of the remaining vectors and b of the removed, shift is n / moments.n · (a − b).
  outer_product = shift[..., :, None] * shift[..., None, :]
  factor = removed.n * moments.n / n
  mean = moments.mean + removed.n / n * shift
  return Moments(n, mean, moments.m2 - removed.m2 - factor * outer_product)


def remove_batches(moments: Moments, batches: Iterable[Float[np.ndarray, '_b h w d']]) -> Moments:
  """Return the moments without the vectors of some batches; consumes `moments`."""
  removed, add = empty(*moments.mean.shape), jax.jit(add_batch, donate_argnums=0)
  for x in batches:
    removed = add(removed, jnp.asarray(x), jnp.ones(len(x), bool))
  return jax.jit(subtract, donate_argnums=0)(moments, removed)


def add_batch(moments: Moments, x: Float[Array, 'b h w d'], valid: Bool[Array, ' b']) -> Moments:
  """Return the moments with the vectors x[valid] added, in place if `moments` is donated.

  The result equals that of `merge` with the moments of the batch up to rounding, but needs no
  second array of covariances.
  """
  count = jnp.sum(valid, dtype=jnp.float32)
  n = moments.n + count
  share = count / jnp.maximum(n, 1.0)
  mask = valid[:, None, None]
  # With y = x − mean and s the mean of y over the batch, `merge` would add to m2 the sum
  # Σ(y−s)(y−s)ᵀ + moments.n·share·s·sᵀ. That is Σ(y−αs)(y−αs)ᵀ for α = 1 − √(1−share): one product,
  # which cannot lose positive definiteness.
  alpha = 1.0 - jnp.sqrt(1.0 - share)

  def add_column(j: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
    mean, m2 = carry
    center = _take_column(mean, j, 1)
    # Deviations from the old mean are small numbers even if the vectors are far from the origin.
    y = jnp.where(mask, _take_column(x, j, 2) - center[None], 0.0)
    shift = y.sum(axis=0) / jnp.maximum(count, 1.0)
    y = jnp.where(mask, y - alpha * shift[None], 0.0)
    outer_products = jnp.einsum('bhi,bhj->hij', y, y, precision=_EXACT)
    mean = _replace_column(mean, center + share * shift, j)
    return mean, _replace_column(m2, _take_column(m2, j, 1) + outer_products, j)

  return Moments(n, *lax.fori_loop(0, x.shape[2], add_column, (moments.mean, moments.m2)))


def whitening_matrices(
  moments: Moments, ridge: float, num_held_out: int = 0
) -> Float[Array, 'h w d d']:
  """Return each position's lower triangular W with WᵀW = (m2/(n − 1 − num_held_out) + ridge·I)⁻¹.

  ‖W(x − mean)‖ is then the Mahalanobis distance of x. A single vector has the covariance 0. The
  result takes the memory of `m2` if `moments` is donated.

  Args:
    moments: moments of at least 1 + `num_held_out` vectors.
    ridge: value added to the variances. With 0, a singular covariance gives NaN.
    num_held_out: number of vectors that will be removed from the Gaussian later: 0 for
      `mahalanobis`, 1 for `leave_one_out_distance`.
  """
  ridge_matrix = ridge * jnp.eye(moments.m2.shape[-1])[None]
  degrees_of_freedom = jnp.maximum(moments.n - 1.0 - num_held_out, 1.0)

  def whiten_column(j: Array, out: Array) -> Array:
    covariance = _take_column(out, j, 1) / degrees_of_freedom + ridge_matrix
    return _replace_column(out, _inverse_cholesky(covariance), j)

  return lax.fori_loop(0, moments.m2.shape[1], whiten_column, moments.m2)


def min_vectors(d: int, ridge: float) -> int:
  """Return the smallest number of vectors for which Gaussians are defined.

  With a ridge, it is 1. Without one, the covariance of vectors of length d must not be singular
  when one vector is left out: at least d + 1 others are needed.

  Raises:
    ValueError: the ridge is negative.
  """
  if not ridge >= 0:
    raise ValueError(f'A ridge must be 0 or more, got {ridge}.')
  return 1 if ridge else d + 2


def mahalanobis(
  x: Float[Array, 'b h w d'], mean: Float[Array, 'h w d'], whitening: Float[Array, 'h w d d']
) -> Float[Array, 'b h w']:
  """Return the Mahalanobis distance of each vector to the Gaussian of its position.

  Args:
    x: vectors.
    mean: mean of each Gaussian.
    whitening: matrices from `whitening_matrices`.
  """
  return jnp.sqrt(_squared_mahalanobis(x, mean, whitening))


def cut_into_bands(whitening: Float[Array, 'h w d d']) -> list[Float[np.ndarray, 'p _c _r']]:
  """Cut whitening matrices into bands of rows for `mahalanobis_from_bands`.

  Each band lacks the columns that are zero in all its rows. A triangle has half as many numbers as
  a square, and reading them takes most of the time of scoring a single image.

  Returns:
    Bands from top to bottom, of all positions, transposed: r rows of W with their first c columns.
  """
  d = whitening.shape[-1]
  ends = [d * i // _NUM_BANDS for i in range(_NUM_BANDS + 1)]
  matrices = np.asarray(whitening).reshape(-1, d, d)
  return [
    np.ascontiguousarray(matrices[:, low:high, :high].mT)
    for low, high in itertools.pairwise(ends)
    if low < high
  ]


def mahalanobis_from_bands(
  x: Float[Array, 'b h w d'],
  mean: Float[Array, 'h w d'],
  bands: Sequence[Float[np.ndarray, 'p _c _r']],
) -> Float[Array, 'b h w']:
  """Return the Mahalanobis distance of each vector to the Gaussian of its position.

  The result equals that of `mahalanobis` up to rounding. It is computed as row vectors times
  matrices, which inference runtimes do fastest.

  Args:
    x: vectors.
    mean: mean of each Gaussian.
    bands: whitening matrices, cut by `cut_into_bands`.
  """
  _, h, w, d = x.shape
  y = jnp.transpose((x - mean[None]).reshape(-1, h * w, d), (1, 0, 2))
  products = (jnp.matmul(y[:, :, : x.shape[1]], x, precision=_EXACT) for x in bands)
  squared_norms = [jnp.sum(z**2, axis=2) for z in products]
  return jnp.sqrt(functools.reduce(jnp.add, squared_norms).T).reshape(-1, h, w)


def leave_one_out_distance(
  x: Float[Array, 'b h w d'],
  n: Float[Array, ''],
  mean: Float[Array, 'h w d'],
  whitening: Float[Array, 'h w d d'],
) -> Float[Array, 'b h w']:
  """Return each vector's Mahalanobis distance to the Gaussian of all other vectors at its position.

  The Gaussian's covariance is that of the n − 1 other fitted vectors, plus the ridge.

  Args:
    x: some of the n fitted vectors of each position.
    n: number of fitted vectors per position, at least 3.
    mean: mean of all n fitted vectors.
    whitening: `whitening_matrices(moments, ridge, num_held_out=1)` for the moments of all n.
  """
  # Without x, the mean is x − n/(n−1)·δ, where δ = x − mean, and the covariance is A − c·δδᵀ, where
  # A⁻¹ = WᵀW. The Sherman-Morrison formula gives the inverse of this rank-one downdate.
  q = _squared_mahalanobis(x, mean, whitening)
  c = n / ((n - 1.0) * (n - 2.0))
  # Only rounding can make 1 − cq negative.
  denominator = jnp.maximum(1.0 - c * q, jnp.finfo(q.dtype).eps)
  return n / (n - 1.0) * jnp.sqrt(q / denominator)


def _squared_mahalanobis(
  x: Float[Array, 'b h w d'], mean: Float[Array, 'h w d'], whitening: Float[Array, 'h w d d']
) -> Float[Array, 'b h w']:
  # With the batch as last axis, each position is a plain matrix product in the order of memory. For
  # eight images on a CPU, this is five times as fast as 'hwij,bhwj->bhwi'.
  y = jnp.transpose(x - mean[None], (1, 2, 3, 0))
  z = jnp.einsum('hwij,hwjb->hwib', whitening, y, precision=_EXACT)
  return jnp.transpose(jnp.sum(z**2, axis=2), (2, 0, 1))


def _inverse_cholesky(a: Float[Array, 'h d d']) -> Float[Array, 'h d d']:
  """Return lower triangular W with WᵀW = a⁻¹: the inverse of the Cholesky factor of `a`.

  It is computed recursively by blocks: if the factor of a = [[A, Bᵀ], [B, C]] is [[L, 0], [M, N]],
  its inverse is [[L⁻¹, 0], [−N⁻¹ML⁻¹, N⁻¹]], with M = BL⁻ᵀ and N the factor of C − MMᵀ.
  """
  size = a.shape[-1]
  if size <= _LEAF_SIZE:
    eye = jnp.broadcast_to(jnp.eye(size), a.shape)
    factor = lax.linalg.cholesky(a, symmetrize_input=False)
    return lax.linalg.triangular_solve(factor, eye, left_side=True, lower=True)
  half = size // 2
  l_inverse = _inverse_cholesky(a[:, :half, :half])
  m = _matmul(a[:, half:, :half], l_inverse.mT)
  n_inverse = _inverse_cholesky(a[:, half:, half:] - _matmul(m, m.mT))
  lower_left = -_matmul(n_inverse, _matmul(m, l_inverse))
  return jnp.block([[l_inverse, jnp.zeros_like(lower_left.mT)], [lower_left, n_inverse]])


def _matmul(a: Float[Array, 'h i k'], b: Float[Array, 'h k j']) -> Float[Array, 'h i j']:
  return jnp.matmul(a, b, precision=_EXACT)


def _take_column(x: Array, j: Array, axis: int) -> Array:
  return lax.dynamic_index_in_dim(x, j, axis, keepdims=False)


def _replace_column(x: Array, column: Array, j: Array) -> Array:
  return lax.dynamic_update_index_in_dim(x, column, j, 1)
