"""Foreground of an image, from the tokens of a vision transformer, as AnomalyDINO finds it.

Damm et al. 2025, 'AnomalyDINO: Boosting Patch-based Few-shot Anomaly Detection with DINOv2', arXiv
2405.14529, and its program. The first principal component of the tokens of an image separates the
object from the background. Two things differ from the program:

- The component is computed by squaring the covariance, a fixed number of times. No runtime has to
  have a decomposition of matrices then.
- An image without any foreground is foreground as a whole. Otherwise its score would be 0, so that
  it would always be good.

Letters: b batch, h w patch grid, n patches, d channels of a token.
"""

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from uadjax.numerics import resampling

# Projections of DINOv2's tokens onto the component, above which a patch is foreground.
_THRESHOLD = 10.0
# The object is in this part of the image, from share to share of both sides, and covers more than
# this share of it. If the tokens above the threshold do not, those below its negative are taken.
_CENTER, _MIN_SHARE = (0.2, 0.8), 0.35
# The ratio of the two largest eigenvalues is raised to the power of 2 to this number, 4096. So the
# component is exact in float32 if they differ by half a percent. Otherwise, it is a mixture.
_NUM_SQUARINGS = 12
_EXACT = jax.lax.Precision.HIGHEST

# 1 for patches of a set, 0 for the others: numbers have more operations in all runtimes than bools.
Cells = Float[Array, 'b h w']


def find(x: Float[Array, 'b h w d']) -> Cells:
  """Return which patches are foreground, given their tokens, which are not unit vectors."""
  return bounds(x, 0.0)[0]


def bounds(x: Float[Array, 'b h w d'], tolerance: float) -> tuple[Cells, Cells]:
  """Return the patches that are foreground whatever rounding does, and those that may be.

  Args:
    x: tokens of the patches.
    tolerance: rounding error of projections, relative to the largest of the image; without one,
      both results are equal.
  """
  _, h, w, _ = x.shape
  projection = project(x.reshape(-1, h * w, x.shape[-1])).reshape(-1, h, w)
  error = tolerance * jnp.abs(projection).max(axis=(1, 2), keepdims=True)
  low, high = _THRESHOLD + error, _THRESHOLD - error
  is_surely_positive, is_maybe_positive = (
    _fills_center(_above(projection, t)) for t in (low, high)
  )
  signs = is_surely_positive, is_maybe_positive
  surely = _select(signs, _above(projection, low), 0.0, _above(-projection, low))
  either = _above(jnp.abs(projection), high)
  maybe = _select(signs, _above(projection, high), either, _above(-projection, high))
  surely, maybe = _close(_dilate(surely)), _close(_dilate(maybe))
  has_some, may_have_some = (cells.max(axis=(1, 2), keepdims=True) for cells in (surely, maybe))
  return jnp.maximum(surely, 1 - may_have_some), jnp.maximum(maybe, 1 - has_some)


def _above(x: Float[Array, 'b h w'], threshold: Float[Array, 'b 1 1']) -> Cells:
  return (x > threshold).astype(x.dtype)


def _select(
  signs: tuple[Float[Array, 'b 1 1'], Float[Array, 'b 1 1']],
  positive: Cells,
  unsure: Cells | float,
  negative: Cells,
) -> Cells:
  """Return the patches for the sign that is right, or `unsure` if rounding may change it."""
  is_surely_positive, is_maybe_positive = signs
  others = is_maybe_positive * unsure + (1 - is_maybe_positive) * negative
  return is_surely_positive * positive + (1 - is_surely_positive) * others


def project(tokens: Float[Array, 'b n d']) -> Float[Array, 'b n']:
  """Return the projections of the tokens of each image onto their first principal component.

  Of the two directions of the component, it is the one whose largest coordinate is positive, as in
  scikit-learn.
  """
  tokens = tokens - tokens.mean(axis=1, keepdims=True)
  power = jnp.matmul(tokens.mT, tokens, precision=_EXACT)
  eye = jnp.eye(tokens.shape[-1], dtype=tokens.dtype)[None]
  for _ in range(_NUM_SQUARINGS):
    power = _divide_by_trace(power, eye)
    power = jnp.matmul(power, power, precision=_EXACT)
  # The power is a multiple of the product of the component with itself. Each of its columns is a
  # multiple of the component; the one with the largest entry on the diagonal is the most precise.
  power = _divide_by_trace(power, eye)
  largest = jnp.argmax(jnp.sum(power * eye, axis=1), axis=1)
  is_largest = jnp.arange(tokens.shape[-1])[None] == largest[:, None]
  column = jnp.matmul(power, is_largest.astype(tokens.dtype)[..., None], precision=_EXACT)
  norm = jnp.sqrt(jnp.sum(column**2, axis=1, keepdims=True))
  component = column / jnp.maximum(norm, jnp.finfo(tokens.dtype).tiny)
  return jnp.matmul(tokens, component, precision=_EXACT)[..., 0]


def _divide_by_trace(x: Float[Array, 'b d d'], eye: Float[Array, '1 d d']) -> Float[Array, 'b d d']:
  trace = jnp.sum(x * eye, axis=(1, 2), keepdims=True)
  return x / jnp.maximum(trace, jnp.finfo(x.dtype).tiny)  # It is 0 if all tokens are equal.


def _fills_center(cells: Cells) -> Float[Array, 'b 1 1']:
  """Return 1 for images of whose center enough patches are foreground, else 0."""
  sides = []
  for size in cells.shape[1:]:
    start, stop = (int(size * share) for share in _CENTER)
    positions = np.arange(size)
    sides.append((positions >= start) & (positions < max(stop, start + 1)))
  center = np.outer(*sides).astype(np.float32)
  covered = jnp.sum(cells * center[None], axis=(1, 2), keepdims=True)
  return (covered > _MIN_SHARE * center.sum()).astype(cells.dtype)


def _dilate(cells: Cells) -> Cells:
  """Return the patches that are in the set, or next to a patch that is."""
  rows, columns = (jnp.asarray(3 * resampling.pool_matrix(size)) for size in cells.shape[1:])
  counts = resampling.apply_separable(rows, columns, cells[..., None])
  return (counts[..., 0] > 0.5).astype(cells.dtype)


def _close(cells: Cells) -> Cells:
  """Return the set with its small holes filled."""
  return 1 - _dilate(1 - _dilate(cells))
