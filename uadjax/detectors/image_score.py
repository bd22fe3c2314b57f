"""Anomaly maps from distances of positions, and image scores from anomaly maps.

Letters: b batch, h w grid of positions, H W image at network size.
"""

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float
import numpy as np

from uadjax.detectors import inspection
from uadjax.errors import ConfigError
from uadjax.types import Scores

_SIGMA = 4.0  # Standard deviation of the blur, in pixels; PaDiM and PatchCore use the same.

# The maps are so smooth that a quarter of their pixels suffices for a mean.
_STEP = 2
_NUM_BISECTIONS = 16  # Leaves 1/65536 of the range of the map.


def parse(rule: str) -> float:
  """Return the share of an anomaly map whose mean is the image score; 0 for its maximum.

  Args:
    rule: 'max', or 'top:S' for the mean of the largest share S, above 0 and at most 1.

  Raises:
    ConfigError: the rule is neither.
  """
  name, _, text = rule.partition(':')
  if rule == 'max':
    return 0.0
  try:
    share = float(text) if name == 'top' else 0.0
  except ValueError:
    share = 0.0
  if not 0 < share <= 1:
    message = (
      f'{rule!r} is no image score; choose max, or top:S for the mean of the largest share S'
    )
    raise ConfigError(f'{message} of the anomaly map, above 0 and at most 1, such as top:0.01.')
  return share


def from_distances(
  distance: Float[Array, 'b h w'],
  image_size: tuple[int, int],
  rule: str,
  inspected: inspection.Inspected | None = None,
) -> Scores:
  """Upsample distances to images of a height and width, blur them, and score the images.

  Only inspected cells and pixels count; None for all.
  """
  anomaly_map = inspection.upsample(distance, image_size, inspected, _SIGMA)
  return from_map(anomaly_map, rule, inspected)


def from_map(
  anomaly_map: Float[Array, 'b H W'],
  rule: str,
  inspected: inspection.Inspected | None = None,
) -> Scores:
  """Return anomaly maps with their image scores by a rule that `parse` accepts.

  The mean of the largest share needs every second row and column only. Pixels that are not
  inspected become 0, the minimum of a score, and are not part of the share.
  """
  share = parse(rule)
  if inspected is not None:
    anomaly_map = anomaly_map * jnp.asarray(inspected, anomaly_map.dtype)
  if not share:
    return Scores(anomaly_map, anomaly_map.max(axis=(1, 2)))
  pixels = _every_second(anomaly_map)
  if inspected is None:
    num_largest = max(1, round(share * pixels.shape[1]))
  elif isinstance(inspected, np.ndarray):
    num_largest = max(1, round(share * int(inspected[..., ::_STEP, ::_STEP].sum())))
  else:
    num_inspected = _sum_rows(_every_second(inspected.astype(anomaly_map.dtype)))
    num_largest = jnp.maximum(jnp.floor(share * num_inspected + 0.5), 1.0)
  return Scores(anomaly_map, _mean_of_largest(pixels, num_largest))


def _every_second(x: Float[Array, 'b H W']) -> Float[Array, 'b _n']:
  """Return the pixels of every second row and column."""
  # A strided index would become a gather in the exported graphs.
  rows = jax.lax.slice_in_dim(x, 0, None, _STEP, axis=1)
  pixels = jax.lax.slice_in_dim(rows, 0, None, _STEP, axis=2)
  return pixels.reshape(-1, pixels.shape[1] * pixels.shape[2])


def of_map(
  anomaly_map: Float[np.ndarray, 'H W'],
  rule: str,
  inspected: Bool[np.ndarray, 'H W'] | None = None,
) -> float:
  """Return the image score of one map on the host, by the rule of `from_map`.

  Pixels that are not inspected are 0 in the map. The score differs from that of `from_map` by
  rounding, and by the error of its bisection.
  """
  share = parse(rule)
  if not share:
    return float(anomaly_map.max())
  pixels = anomaly_map[::_STEP, ::_STEP].ravel()
  num_inspected = pixels.size if inspected is None else int(inspected[::_STEP, ::_STEP].sum())
  num_largest = max(1, round(share * num_inspected))
  return float(np.partition(pixels, -num_largest)[-num_largest:].mean(dtype=np.float64))


def _mean_of_largest(
  x: Float[Array, 'b n'], num_largest: int | Float[Array, 'b 1']
) -> Float[Array, ' b']:
  """Return the mean of the largest values of each row, without a sort.

  For any t, it is at most t + sum(max(x - t, 0)) / num_largest, and equal if t is the smallest of
  these values. That value is bracketed by bisection. The result is too large by at most the width
  of the bracket, and mostly by much less, because nearly all of the largest values are above it.
  Sums and comparisons exist in every runtime; TensorFlow Lite has no top-k of JAX.
  """
  low, high = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
  for _ in range(_NUM_BISECTIONS):
    middle = 0.5 * (low + high)
    is_too_low = _sum_rows((x > middle).astype(x.dtype)) > num_largest
    low, high = jnp.where(is_too_low, middle, low), jnp.where(is_too_low, high, middle)
  return (high + _sum_rows(jnp.maximum(x - high, 0)) / num_largest)[:, 0]


def _sum_rows(x: Float[Array, 'b n']) -> Float[Array, 'b 1']:
  """Return the sum of each row.

  The product with a column of ones keeps the axis, in one operation of any graph.
  """
  return jnp.matmul(x, jnp.ones((x.shape[1], 1), x.dtype), precision=jax.lax.Precision.HIGHEST)
