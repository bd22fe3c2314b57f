"""PaDiM's Gaussians, one per position of the feature map, sharded by rows of the map.

Each device holds the Gaussians of some rows, and receives the embeddings of all images at these
rows. Rows of zeros pad the map where shards would differ in size.

Letters: b batch, h w feature map, d channels of the embedding.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float
import numpy as np

from uadjax.numerics import collectives, gaussian, triangles
from uadjax.numerics.collectives import Shards, SINGLE_SHARD
from uadjax.system import memory

# Columns of the map that `whiten_on_host` whitens at a time. With a single column, XLA would unroll
# the loop over columns and round differently than for the whole map.
_COLUMNS_AT_ONCE = 4

MOMENTS_SPECS = gaussian.Moments._make((P(), P('data'), P('data')))


def empty(num_rows: int, w: int, d: int, shards: Shards) -> gaussian.Moments:
  """Return the moments of no embeddings, already sharded."""

  def empty_shard(axis_name: str | None) -> gaussian.Moments:
    return gaussian.empty(num_rows // collectives.axis_size(axis_name), w, d)

  return jax.jit(shards.shard_map(empty_shard, (), MOMENTS_SPECS))()


def add_batch(
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
    rows = collectives.images_to_rows(x, axis_name)
    return gaussian.add_batch(moments, rows, collectives.all_gather_tiled(valid, axis_name))

  in_specs = MOMENTS_SPECS, P('data'), P('data')
  x = pad_rows(x, 1, len(moments.mean))
  return shards.shard_map(add_shard, in_specs, MOMENTS_SPECS)(moments, x, valid)


def map_over_rows(
  distance_fn: Callable[[Array, Array, Array], Array],
  x: Float[Array, 'b h w d'],
  mean: Float[Array, '_h w d'],
  whitening: Float[Array, '_h w d d'],
  shards: Shards,
) -> Float[Array, 'b h w']:
  """Return the distances of embeddings to the Gaussians; each device computes those of its rows.

  Args:
    distance_fn: (embeddings, means, whitening matrices) -> distances, for some rows.
    x: embeddings sharded by image, without padding rows.
    mean: means, sharded by row and padded to equal shards.
    whitening: whitening matrices, sharded like the means.
    shards: shards of the images and of the rows.
  """

  def shard_distance(x: Array, mean: Array, whitening: Array, axis_name: str | None) -> Array:
    rows = distance_fn(collectives.images_to_rows(x, axis_name), mean, whitening)
    return collectives.rows_to_images(rows, axis_name)

  distance = shards.shard_map(shard_distance, (P('data'), P('data'), P('data')), P('data'))
  return distance(pad_rows(x, 1, len(mean)), mean, whitening)[:, : x.shape[1]]


@functools.partial(jax.jit, donate_argnums=0, static_argnums=(2, 3, 4))
def whiten(
  m2: Float[Array, 'h w d d'],
  n: Float[Array, ''],
  ridge: float,
  num_held_out: int,
  shards: Shards = SINGLE_SHARD,
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
    moments = gaussian.Moments(n, jnp.zeros(m2.shape[:3]), m2)
    return gaussian.whitening_matrices(moments, ridge, num_held_out)

  return shards.shard_map(whiten_shard, (P('data'), P()), P('data'))(m2, n)


def whiten_on_host(
  m2: Float[np.ndarray, 'h w t'], n: Float[Array, ''], ridge: float, num_held_out: int
) -> Float[np.ndarray, 'h w d d']:
  """Return the matrices of `whiten` in host memory, from the packed triangles of `m2`.

  The device holds only a few columns of the map at a time.
  """
  h, w, t = m2.shape
  d = triangles.num_rows(t)
  out = np.ndarray((h, w, d, d), m2.dtype, memory.allocate_pages(4 * h * w * d * d))
  triangles.unpack(m2, out)  # Of the sums, only the triangles are read.
  for j in range(0, w, _COLUMNS_AT_ONCE):
    columns = out[:, j : j + _COLUMNS_AT_ONCE]
    columns[:] = whiten(jnp.array(columns), n, ridge, num_held_out)
  return out


def pad_rows(x: Array | np.ndarray, axis: int, num_rows: int) -> Any:
  """Pad the rows of a map with zeros to `num_rows`; NumPy arrays stay in host memory.

  Args:
    x: Gaussians or embeddings.
    axis: axis of the rows: 0 for Gaussians, 1 for embeddings, which are batched.
    num_rows: number of rows after padding. If `x` has as many, it is returned as it is.
  """
  padding = [(0, num_rows - x.shape[i] if i == axis else 0) for i in range(x.ndim)]
  pad = np.pad if isinstance(x, np.ndarray) else jnp.pad
  return pad(x, padding) if x.shape[axis] < num_rows else x
