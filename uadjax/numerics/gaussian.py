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
_LEAF = 16

_BANDS = 4  # More save little of what is read, and cost a product each.


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


def of_batch(x: Float[Array, 'b h w d'], valid: Bool[Array, ' b']) -> Moments:
  """Moments of the valid rows of a batch."""
  return add(empty(*x.shape[1:]), x, valid)


def merge(a: Moments, b: Moments) -> Moments:
  """Moments of the union (pairwise update of Chan et al. 1979).

  Jit it with `a` donated: the sum then takes the place of a's.
  """
  n = a.n + b.n
  share = b.n / jnp.maximum(n, 1.0)  # Both may be empty.
  shift = b.mean - a.mean
  # A product of broadcasts fuses into the sum, where an einsum would write its result out first.
  spread = shift[..., :, None] * shift[..., None, :]
  return Moments(n, a.mean + share * shift, a.m2 + b.m2 + a.n * share * spread)


def add(moments: Moments, x: Float[Array, 'b h w d'], valid: Bool[Array, ' b']) -> Moments:
  """Fold a batch in: `merge(moments, of_batch(x, valid))`, in place where `moments` is donated."""
  count = jnp.sum(valid, dtype=jnp.float32)
  n = moments.n + count
  share = count / jnp.maximum(n, 1.0)
  keep = valid[:, None, None]
  # With y = x − mean and s the mean of y, merging needs Σ(y−s)(y−s)ᵀ + n_a·share·s·sᵀ. That is
  # Σ(y−αs)(y−αs)ᵀ for α = 1 − √(1−share): one product, which cannot lose positive definiteness.
  alpha = 1.0 - jnp.sqrt(1.0 - share)

  def step(j: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
    mean, m2 = carry
    center = _column(mean, j, 1)
    # Deviations before sums: small numbers, even far from the origin.
    y = jnp.where(keep, _column(x, j, 2) - center[None], 0.0)
    shift = y.sum(axis=0) / jnp.maximum(count, 1.0)
    rows = jnp.where(keep, y - alpha * shift[None], 0.0)
    gain = jnp.einsum('bhi,bhj->hij', rows, rows, precision=_EXACT)
    return _replaced(mean, center + share * shift, j), _replaced(m2, _column(m2, j, 1) + gain, j)

  return Moments(n, *lax.fori_loop(0, x.shape[2], step, (moments.mean, moments.m2)))


def whiten(moments: Moments, ridge: float, left_out: int = 0) -> Float[Array, 'h w d d']:
  """Lower triangles W with WᵀW = (m2 / (n − 1 − left_out) + ridge·I)⁻¹, in place of m2 if donated.

  Args:
    moments: of at least 2 + `left_out` vectors.
    ridge: added to the variances; `check` says when 0 will do. A singular covariance gives NaN.
    left_out: 1 for what `left_out_distance` takes, 0 for what `mahalanobis` takes.
  """
  ridges = ridge * jnp.eye(moments.m2.shape[-1])[None]
  freedom = moments.n - 1.0 - left_out

  def step(j: Array, out: Array) -> Array:
    covariance = _column(out, j, 1) / freedom + ridges
    return _replaced(out, _root(covariance), j)

  return lax.fori_loop(0, moments.m2.shape[1], step, moments.m2)


def mahalanobis(
  x: Float[Array, 'b h w d'], mean: Float[Array, 'h w d'], whiten: Float[Array, 'h w d d']
) -> Float[Array, 'b h w']:
  """Distance of each vector to the Gaussian of its position, in standard deviations."""
  return jnp.sqrt(_squared(x, mean, whiten))


def bands(whiten: Float[Array, 'h w d d']) -> list[Float[np.ndarray, 'n _c _r']]:
  """Cut whitening matrices into bands of rows, each as wide as it is not zero, and transpose them.

  A triangle has half of the numbers of a square, and reading them takes most of the time of
  scoring a single image.
  """
  d = whiten.shape[-1]
  ends = [d * i // _BANDS for i in range(_BANDS + 1)]
  square = np.asarray(whiten).reshape(-1, d, d)
  return [
    np.ascontiguousarray(square[:, low:high, :high].mT)
    for low, high in itertools.pairwise(ends)
    if low < high
  ]


def mahalanobis_of_bands(
  x: Float[Array, 'b h w d'],
  mean: Float[Array, 'h w d'],
  bands: Sequence[Float[np.ndarray, 'n _c _r']],
) -> Float[Array, 'b h w']:
  """The same as `mahalanobis`, by rows times matrices: what inference runtimes are quick at."""
  _, h, w, d = x.shape
  y = jnp.transpose((x - mean[None]).reshape(-1, h * w, d), (1, 0, 2))
  squares = [
    jnp.sum(jnp.matmul(y[:, :, : band.shape[1]], band, precision=_EXACT) ** 2, axis=2)
    for band in bands
  ]
  return jnp.sqrt(functools.reduce(jnp.add, squares).T).reshape(-1, h, w)


def left_out_distance(
  x: Float[Array, 'b h w d'],
  n: Float[Array, ''],
  mean: Float[Array, 'h w d'],
  whiten: Float[Array, 'h w d d'],
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
  q = _squared(x, mean, whiten)
  c = n / ((n - 1.0) * (n - 2.0))
  rest = jnp.maximum(1.0 - c * q, jnp.finfo(q.dtype).eps)  # Positive, but for rounding.
  return n / (n - 1.0) * jnp.sqrt(q / rest)


def _squared(
  x: Float[Array, 'b h w d'], mean: Float[Array, 'h w d'], whiten: Float[Array, 'h w d d']
) -> Float[Array, 'b h w']:
  # Each position a plain product of matrices, in the order they lie in memory: for eight images on
  # a CPU five times as fast as 'hwij,bhwj->bhwi'.
  y = jnp.transpose(x - mean[None], (1, 2, 3, 0))
  z = jnp.einsum('hwij,hwjb->hwib', whiten, y, precision=_EXACT)
  return jnp.transpose(jnp.sum(z**2, axis=2), (2, 0, 1))


def _root(a: Float[Array, 'h d d']) -> Float[Array, 'h d d']:
  """Lower triangles W with WᵀW = a⁻¹, by blocks: Cholesky's factor and its inverse at once.

  Where the factor of [[A, Bᵀ], [B, C]] is [[L, 0], [M, N]], its inverse is
  [[L⁻¹, 0], [−N⁻¹ML⁻¹, N⁻¹]], with M = BL⁻ᵀ and N the factor of C − MMᵀ.
  """
  size = a.shape[-1]
  if size <= _LEAF:
    eye = jnp.broadcast_to(jnp.eye(size), a.shape)
    factor = lax.linalg.cholesky(a, symmetrize_input=False)
    return lax.linalg.triangular_solve(factor, eye, left_side=True, lower=True)
  half = size // 2
  first = _root(a[:, :half, :half])
  m = _product(a[:, half:, :half], first.mT)
  second = _root(a[:, half:, half:] - _product(m, m.mT))
  below = -_product(second, _product(m, first))
  return jnp.block([[first, jnp.zeros_like(below.mT)], [below, second]])


def _product(a: Float[Array, 'h i k'], b: Float[Array, 'h k j']) -> Float[Array, 'h i j']:
  return jnp.matmul(a, b, precision=_EXACT)


def _column(x: Array, j: Array, axis: int) -> Array:
  return lax.dynamic_index_in_dim(x, j, axis, keepdims=False)


def _replaced(x: Array, column: Array, j: Array) -> Array:
  return lax.dynamic_update_index_in_dim(x, column, j, 1)
