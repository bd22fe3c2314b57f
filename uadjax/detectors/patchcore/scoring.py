"""PatchCore's scores, given the nearest row of the memory bank for each patch (section 3.3).

Letters: b batch, h w patch grid, d embedding, k neighbors.
"""

from collections.abc import Callable

import jax
from jax import numpy as jnp
from jax.scipy import special
from jaxtyping import Array, Float, Int

from uadjax.numerics import neighbors as knn, resampling
from uadjax.types import Scores

_SIGMA = 4.0  # Standard deviation of the anomaly map's blur, in pixels (section 3.3).
SupportSamplesFn = Callable[[Int[Array, ' b']], Float[Array, 'b k d']]


def score_patches(
  x: Float[Array, 'b h w d'],
  nearest: knn.Neighbors,
  center: Float[Array, ' d'],
  support_samples: SupportSamplesFn | None,
  image_size: tuple[int, int],
) -> Scores:
  """Return the anomaly maps, and the image scores (equations 6 and 7).

  An anomaly map is the distance of each patch to the bank, upsampled to the size of the images and
  blurred. The image score is the distance of the image's farthest patch, reweighted by the
  neighborhood of the nearest row of this patch.

  Args:
    x: patch embeddings, from which the center is not subtracted.
    nearest: position of the nearest row of each patch of the batch, and the distance to it.
    center: center that was subtracted from the rows of the bank.
    support_samples: positions of rows, one per image -> the rows nearest to each, itself first, as
      embeddings minus the center; None for no reweighting.
    image_size: height and width of the images.
  """
  _, h, w, d = x.shape
  distance = nearest.distance.reshape(-1, h * w)
  max_index = jnp.argmax(distance, axis=1)
  score = distance.max(axis=1)
  if support_samples is not None:
    patch = jnp.take_along_axis(x.reshape(-1, h * w, d), max_index[:, None, None], axis=1)[:, 0]
    rows = nearest.row.reshape(-1, h * w)
    nearest_row = jnp.take_along_axis(rows, max_index[:, None], axis=1)[:, 0]
    score *= _weight(patch - center[None], support_samples(nearest_row), score)
  anomaly_map = resampling.upsample(distance.reshape(-1, h, w), *image_size, _SIGMA)
  return Scores(anomaly_map, score)


def _weight(
  patch: Float[Array, 'b d'], support_samples: Float[Array, 'b k d'], distance: Float[Array, ' b']
) -> Float[Array, ' b']:
  """Return the weight of the image score in equation 7.

  It is 1 minus the share of the nearest row m* in a softmax over the patch's distances to the
  support samples.

  Args:
    patch: farthest patch of each image, minus the bank's center.
    support_samples: rows N_b(m*) nearest to the row m*, itself included, minus the bank's center.
    distance: distance between the patch and m*, which is the patch's nearest row.
  """
  support_distance = jnp.sqrt(jnp.sum((patch[:, None] - support_samples) ** 2, axis=-1))
  return 1 - jnp.exp(distance - special.logsumexp(support_distance, axis=1))


def support_samples_search(
  index: knn.Index, num_neighbors: int, axis_name: str | None
) -> SupportSamplesFn:
  """Return a function that searches the support samples N_b(m*) of rows m* in a sharded bank."""

  def support_samples(rows: Int[Array, ' b']) -> Float[Array, 'b k d']:
    nearest_rows = knn.take_rows(index, rows[:, None], axis_name)[:, 0] + index.center[None]
    support = knn.nearest_sharded(nearest_rows, index, num_neighbors, False, axis_name)
    return knn.take_rows(index, support.row, axis_name)

  return support_samples


def support_samples_table(index: knn.Index, num_neighbors: int) -> SupportSamplesFn:
  """Return a function that looks up the support samples of rows in a table computed ahead."""
  search = jax.jit(knn.nearest, static_argnums=2)
  support_rows = search(index.rows + index.center[None], index, num_neighbors).row

  def support_samples(rows: Int[Array, ' b']) -> Float[Array, 'b k d']:
    positions = jnp.take(support_rows, rows, axis=0, mode='clip')
    return knn.take_rows(index, positions, None)

  return support_samples
