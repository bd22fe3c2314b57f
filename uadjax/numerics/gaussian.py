"""A Gaussian for every position of a map: gathered in one pass, then distances to it.

The statistic is a monoid (`empty`, `of_batch`, `merge`): batches, shards, epochs and resumed runs
combine by the same function. Its covariances are large (5 GB for 550 channels on a 64x64 map), so
everything here works one column of the map at a time, in place: no second array of that size is
made. Columns rather than rows, so that a mesh may split the rows and the loop needs no exchange.

Letters: b batch, h w map, d embedding (i and j are two copies of d).
"""

from collections.abc import Sequence
import functools
import itertools
from typing import NamedTuple

from jax import lax, numpy as jnp
from jaxtyping import Array, Bool, Float
import numpy as np

# Thresholds stand on these products: accelerators would round to 8 or 11 bits of mantissa.
_EXACT = lax.Precision.HIGHEST

# Covariances up to this size are factored by LAPACK, larger ones by products of blocks. On a CPU
# OpenBLAS starts its threads for each larger one, and they wait for each other: whitening 4096
# positions of 100 channels took 3.2 s with LAPACK alone and takes 0.4 s; one position of 550
# channels, 130 ms and 3 ms.
_LEAF_SIZE = 16

_NUM_BANDS = 4  # More save little of what is read, and cost a product each.


class Moments(NamedTuple):
  """What is known of the vectors seen so far.

  Attributes:
    n: their number at each position, a float as it only enters divisions.
    mean: their mean; 0 where there are none.
    m2: the sum of the outer products of their deviations from the mean.
  """

  n: Float[Array, '']
  mean: Float[Array, 'h w d']
  m2: Float[Array, 'h w d d']


def empty(h: int, w: int, d: int) -> Moments:
  """Moments of nothing: what `merge` leaves the other side unchanged by."""
  return Moments(jnp.zeros(()), jnp.zeros((h, w, d)), jnp.zeros((h, w, d, d)))


def batch_moments(x: Float[Array, 'b h w d'], valid: Bool[Array, ' b']) -> Moments:
  """Moments of the valid rows of a batch."""
  return add_batch(empty(*x.shape[1:]), x, valid)


def merge(a: Moments, b: Moments) -> Moments:
  """Moments of the union (pairwise update of Chan et al. 1979).

  Jit it with `a` donated: the sum then takes the place of a's.
  """
  n = a.n + b.n
  share = b.n / jnp.maximum(n, 1.0)  # Both may be empty.
  shift = b.mean - a.mean
  # A product of broadcasts fuses into the sum, where an einsum would write its result out first.
  outer_product = shift[..., :, None] * shift[..., None, :]
  return Moments(n, a.mean + share * shift, a.m2 + b.m2 + a.n * share * outer_product)


def add_batch(moments: Moments, x: Float[Array, 'b h w d'], valid: Bool[Array, ' b']) -> Moments:
  """Fold a batch in: `merge(moments, of_batch(x, valid))`, in place where `moments` is donated."""
  count = jnp.sum(valid, dtype=jnp.float32)
  n = moments.n + count
  share = count / jnp.maximum(n, 1.0)
  mask = valid[:, None, None]
  # With y = x − mean and s the mean of y, merging needs Σ(y−s)(y−s)ᵀ + n_a·share·s·sᵀ. That is
  # Σ(y−αs)(y−αs)ᵀ for α = 1 − √(1−share): one product, which cannot lose positive definiteness.
  alpha = 1.0 - jnp.sqrt(1.0 - share)

  def add_column(j: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
    mean, m2 = carry
    center = _take_column(mean, j, 1)
    # Deviations before sums: small numbers, even far from the origin.
    y = jnp.where(mask, _take_column(x, j, 2) - center[None], 0.0)
    shift = y.sum(axis=0) / jnp.maximum(count, 1.0)
    scaled_deviations = jnp.where(mask, y - alpha * shift[None], 0.0)
    outer_products = jnp.einsum(
      'bhi,bhj->hij', scaled_deviations, scaled_deviations, precision=_EXACT
    )
    return _replace_column(mean, center + share * shift, j), _replace_column(
      m2, _take_column(m2, j, 1) + outer_products, j
    )

  return Moments(n, *lax.fori_loop(0, x.shape[2], add_column, (moments.mean, moments.m2)))


def whitening_matrices(
  moments: Moments, ridge: float, num_held_out: int = 0
) -> Float[Array, 'h w d d']:
  """Lower triangles W with WᵀW = (m2 / (n − 1 − left_out) + ridge·I)⁻¹, in place of m2 if donated.

  Args:
    moments: of at least 2 + `left_out` vectors.
    ridge: added to the variances; `check` says when 0 will do. A singular covariance gives NaN.
    left_out: 1 for what `left_out_distance` takes, 0 for what `mahalanobis` takes.
  """
  ridge_matrix = ridge * jnp.eye(moments.m2.shape[-1])[None]
  degrees_of_freedom = moments.n - 1.0 - num_held_out

  def whiten_column(j: Array, out: Array) -> Array:
    covariance = _take_column(out, j, 1) / degrees_of_freedom + ridge_matrix
    return _replace_column(out, _inverse_cholesky(covariance), j)

  return lax.fori_loop(0, moments.m2.shape[1], whiten_column, moments.m2)


def mahalanobis(
  x: Float[Array, 'b h w d'], mean: Float[Array, 'h w d'], whitening: Float[Array, 'h w d d']
) -> Float[Array, 'b h w']:
  """Distance of each vector to the Gaussian of its position, in standard deviations."""
  return jnp.sqrt(_squared_mahalanobis(x, mean, whitening))


def cut_into_bands(whitening: Float[Array, 'h w d d']) -> list[Float[np.ndarray, 'n _c _r']]:
  """Cut whitening matrices into bands of rows, each as wide as it is not zero, and transpose them.

  A triangle has half of the numbers of a square, and reading them takes most of the time of
  scoring a single image.
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
  bands: Sequence[Float[np.ndarray, 'n _c _r']],
) -> Float[Array, 'b h w']:
  """The same as `mahalanobis`, by rows times matrices: what inference runtimes are quick at."""
  _, h, w, d = x.shape
  y = jnp.transpose((x - mean[None]).reshape(-1, h * w, d), (1, 0, 2))
  squared_norms = [
    jnp.sum(jnp.matmul(y[:, :, : band.shape[1]], band, precision=_EXACT) ** 2, axis=2)
    for band in bands
  ]
  return jnp.sqrt(functools.reduce(jnp.add, squared_norms).T).reshape(-1, h, w)


def leave_one_out_distance(
  x: Float[Array, 'b h w d'],
  n: Float[Array, ''],
  mean: Float[Array, 'h w d'],
  whitening: Float[Array, 'h w d d'],
) -> Float[Array, 'b h w']:
  """Distance of each vector to the Gaussian fitted to all of the `n` vectors but itself.

  Args:
    x: some of the vectors that were fitted.
    n: number of vectors that were fitted, at least 3.
    mean: of all of them.
    whiten: of all of them, from `whiten(moments, ridge, left_out=1)`.
  """
  # Without x the mean lies at x − n/(n−1)·δ, where δ = x − mean, and the covariance is A − c·δδᵀ,
  # where A⁻¹ = WᵀW: a downdate by one row, which Sherman and Morrison invert.
  q = _squared_mahalanobis(x, mean, whitening)
  c = n / ((n - 1.0) * (n - 2.0))
  denominator = jnp.maximum(1.0 - c * q, jnp.finfo(q.dtype).eps)  # Positive, but for rounding.
  return n / (n - 1.0) * jnp.sqrt(q / denominator)


def _squared_mahalanobis(
  x: Float[Array, 'b h w d'], mean: Float[Array, 'h w d'], whitening: Float[Array, 'h w d d']
) -> Float[Array, 'b h w']:
  # Each position a plain product of matrices, in the order they lie in memory: for eight images on
  # a CPU five times as fast as 'hwij,bhwj->bhwi'.
  y = jnp.transpose(x - mean[None], (1, 2, 3, 0))
  z = jnp.einsum('hwij,hwjb->hwib', whitening, y, precision=_EXACT)
  return jnp.transpose(jnp.sum(z**2, axis=2), (2, 0, 1))


def _inverse_cholesky(a: Float[Array, 'h d d']) -> Float[Array, 'h d d']:
  """Lower triangles W with WᵀW = a⁻¹, by blocks: Cholesky's factor and its inverse at once.

  Where the factor of [[A, Bᵀ], [B, C]] is [[L, 0], [M, N]], its inverse is
  [[L⁻¹, 0], [−N⁻¹ML⁻¹, N⁻¹]], with M = BL⁻ᵀ and N the factor of C − MMᵀ.
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
