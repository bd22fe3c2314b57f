"""Principal subspaces of vectors: moments of groups of vectors, and distances to the subspace.

The moments of groups are kept apart, so that those of one group can be left out exactly. `Moments`
form a monoid (`empty`, `add_batch`, `merge`): batches, shards and runs combine by the same
function.

Letters: g groups, b batch, p vectors of an element of the batch, d length of a vector (i and j are
two copies of d), k rows.
"""

from typing import NamedTuple

import jax
from jax import lax, numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from uadjax.numerics import collectives

# Thresholds depend on these products. By default, accelerators would round their factors to 8 or 11
# bits of mantissa.
_EXACT = lax.Precision.HIGHEST


class Moments(NamedTuple):
  """Moments of the vectors of each group.

  Attributes:
    n: number of vectors, a float because it only enters divisions.
    mean: mean of the vectors; 0 if n is 0.
    m2: sum of the outer products of the vectors' deviations from the mean.
  """

  n: Float[Array, ' g']
  mean: Float[Array, 'g d']
  m2: Float[Array, 'g d d']


class Subspace(NamedTuple):
  """Affine subspace, given by its orthogonal complement.

  Attributes:
    mean: a point of the subspace: the mean of the vectors.
    complement: orthonormal rows that span the complement. The first rows are 0, as many as the
      subspace has dimensions.
  """

  mean: Float[Array, ' d']
  complement: Float[Array, 'k d']


def empty(num_groups: int, d: int) -> Moments:
  """Return the moments of no vectors: the identity element of `merge`."""
  zeros = jnp.zeros((num_groups,)), jnp.zeros((num_groups, d)), jnp.zeros((num_groups, d, d))
  return Moments(*zeros)


def merge(a: Moments, b: Moments) -> Moments:
  """Return the moments of the union of two sets of vectors, group by group (Chan et al. 1979)."""
  n = a.n + b.n
  share = b.n / jnp.maximum(n, 1.0)  # Both sets may be empty.
  shift = b.mean - a.mean
  outer_products = shift[:, :, None] * shift[:, None, :]
  m2 = a.m2 + b.m2 + (a.n * share)[:, None, None] * outer_products
  return Moments(n, a.mean + share[:, None] * shift, m2)


def add_batch(
  moments: Moments,
  x: Float[Array, 'b p d'],
  valid: Bool[Array, 'b p'],
  group: Int[Array, ' b'],
  axis_name: str | None = None,
) -> Moments:
  """Return the moments with the vectors x[valid] of all shards added.

  Args:
    moments: moments so far, replicated.
    x: vectors of this shard.
    valid: False for vectors that are not added, which may be NaN.
    group: group of the vectors of each element of the batch.
    axis_name: mesh axis over which the batch is sharded, or None if there is a single shard.
  """
  x = jnp.where(valid[..., None], x, 0.0)
  is_member = (group[None] == jnp.arange(len(moments.n))[:, None]).astype(x.dtype)
  counts = jnp.matmul(is_member, valid.sum(axis=1, dtype=x.dtype), precision=_EXACT)
  sums = jnp.matmul(is_member, x.sum(axis=1), precision=_EXACT)
  n, sums = collectives.psum((counts, sums), axis_name)
  mean = sums / jnp.maximum(n, 1.0)[:, None]
  # Deviations from the mean are small numbers even if the vectors are far from the origin.
  y = jnp.where(valid[..., None], x - mean[group][:, None], 0.0)

  def add_outer_products(i: Array, m2: Array) -> Array:
    return m2.at[group[i]].add(jnp.matmul(y[i].T, y[i], precision=_EXACT))

  # One element at a time, because a matrix for each would take much memory.
  m2 = lax.fori_loop(0, len(x), add_outer_products, jnp.zeros_like(moments.m2))
  return merge(moments, Moments(n, mean, collectives.psum(m2, axis_name)))


def leave_group_out(moments: Moments, group: Int[Array, '']) -> Moments:
  """Return the moments with those of one group replaced by the moments of no vectors."""
  is_kept = jnp.arange(len(moments.n)) != group

  def clear(x: Array) -> Array:
    return jnp.where(is_kept.reshape(-1, *(1,) * (x.ndim - 1)), x, 0.0)

  return jax.tree.map(clear, moments)


def join_groups(moments: Moments) -> Moments:
  """Return the moments of the vectors of all groups, as those of a single group."""
  n, mean, m2 = moments
  total = n.sum()
  joint_mean = jnp.matmul(n / jnp.maximum(total, 1.0), mean, precision=_EXACT)
  shift = mean - joint_mean[None]
  between_groups = jnp.matmul((n[:, None] * shift).T, shift, precision=_EXACT)
  return Moments(total[None], joint_mean[None], (m2.sum(axis=0) + between_groups)[None])


def principal_subspace(moments: Moments, share: float) -> Subspace:
  """Return the smallest principal subspace of all vectors with a share of their variance.

  Args:
    moments: moments of the vectors of all groups.
    share: share of the variance, above 0 and at most 1. Without any variance, the subspace is the
      mean alone.
  """
  _, mean, m2 = join_groups(moments)
  eigenvalues, eigenvectors = jnp.linalg.eigh(m2[0])
  # From the largest to the smallest. Only rounding can make one negative.
  variances = jnp.maximum(eigenvalues[::-1], 0.0)
  sums = jnp.cumsum(variances)
  is_in_subspace = sums - variances < share * sums[-1]
  complement = jnp.where(is_in_subspace[:, None], 0.0, eigenvectors.T[::-1])
  return Subspace(mean[0], complement)


def squared_distance(x: Float[Array, '*shape d'], subspace: Subspace) -> Float[Array, '*shape']:
  """Return the squared distance of each vector to a subspace."""
  deviation = x - subspace.mean.reshape((1,) * (x.ndim - 1) + (-1,))
  residual = jnp.matmul(deviation, subspace.complement.T, precision=_EXACT)
  return jnp.sum(residual**2, axis=-1)
