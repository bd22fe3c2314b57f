"""Anomaly maps from distances of positions, and image scores from anomaly maps.

Letters: b batch, h w grid of positions, H W image at network size.
"""

import jax
from jaxtyping import Array, Float

from uadjax.errors import ConfigError
from uadjax.numerics import resampling
from uadjax.types import Scores

_SIGMA = 4.0  # Standard deviation of the blur, in pixels; PaDiM and PatchCore use the same.

# The maps are so smooth that a quarter of their pixels suffices for a mean.
_STEP = 2


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
  distance: Float[Array, 'b h w'], image_size: tuple[int, int], rule: str
) -> Scores:
  """Upsample distances to images of a height and width, blur them, and score the images."""
  return from_map(resampling.upsample(distance, *image_size, _SIGMA), rule)


def from_map(anomaly_map: Float[Array, 'b H W'], rule: str) -> Scores:
  """Return anomaly maps with their image scores by a rule that `parse` accepts.

  The mean of the largest share needs every second row and column only. It changes by at most the
  rounding error of the map, so that all runtimes agree on it.
  """
  share = parse(rule)
  if not share:
    return Scores(anomaly_map, anomaly_map.max(axis=(1, 2)))
  # A strided index would become a gather in the exported graphs.
  rows = jax.lax.slice_in_dim(anomaly_map, 0, None, _STEP, axis=1)
  pixels = jax.lax.slice_in_dim(rows, 0, None, _STEP, axis=2)
  num_pixels = pixels.shape[1] * pixels.shape[2]
  largest, _ = jax.lax.top_k(pixels.reshape(-1, num_pixels), max(1, round(share * num_pixels)))
  return Scores(anomaly_map, largest.mean(axis=1))
