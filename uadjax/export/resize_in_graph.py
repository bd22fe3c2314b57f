"""From a camera's pixels to the network's and back, as part of a graph.

Pillow resizes bytes in integers: each axis is a sum of few pixels with weights of 22 bits, rounded
to a byte in between. The same sums in the graph give the same bytes, so that the score is that of
the one pixel path. Maps go back in floats, by a matrix for each axis.

Letters: b batch, H W camera's image, h w network's image, k taps.
"""

from collections.abc import Sequence
import math
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int, UInt8
import numpy as np
import PIL
from PIL import Image

from uadjax.data import geometry, transforms
from uadjax.errors import ExportError
from uadjax.numerics import resampling

_WEIGHT_BITS = 22  # Of a weight, as Pillow has it.


class Taps(NamedTuple):
  """What each pixel of a resampled axis is the sum of.

  Attributes:
    place: pixels before; where there are fewer than k, any.
    weight: theirs; 0 there.
  """

  indices: Int[np.ndarray, 'after k']
  weights: Float[np.ndarray, 'after k']


def bilinear_taps(input_size: int, output_size: int, low: float, high: float) -> Taps:
  """Weights that resample [low, high) of an axis linearly, widened where it shrinks (Pillow)."""
  # In Pillow's very types and order of operations: bytes are rounded from their results.
  scale, low = float(np.float32(high) - np.float32(low)) / output_size, float(np.float32(low))
  support = max(scale, 1.0)
  indices = np.zeros((output_size, 2 * math.ceil(support) + 1), np.int32)
  weights = np.zeros(indices.shape)
  for i in range(output_size):
    center = low + (i + 0.5) * scale
    first_index = max(int(center - support + 0.5), 0)
    tap_indices = np.arange(first_index, min(int(center + support + 0.5), input_size))
    tap_weights = np.maximum(0.0, 1.0 - np.abs((tap_indices - center + 0.5) * (1.0 / support)))
    indices[i, : len(tap_indices)] = tap_indices
    weights[i, : len(tap_indices)] = tap_weights / sum(tap_weights.tolist())
  return Taps(indices, weights)


class _ResizePass(NamedTuple):
  """One axis resampled."""

  axis: int
  taps: Taps


def resize_images(
  images: UInt8[Array, 'b H W 3'], frame: geometry.Frame, height: int, width: int
) -> UInt8[Array, 'b {height} {width} 3']:
  """What `transforms.Ops.apply` makes of images, to the bit."""
  x = images.astype(jnp.int32)
  for resize_pass in _resize_passes(frame, images.shape[1], images.shape[2], height, width):
    weighted_sum = _weighted_sums(x, resize_pass, jnp)
    # Of non-negative numbers a division, which every runtime has, is the shift. OpenVINO divides
    # integers as floats, and compares them so, too: it may come out at the next one.
    x = jax.lax.div(weighted_sum, jnp.int32(1 << _WEIGHT_BITS))
    is_too_large = weighted_sum - x * jnp.int32(1 << _WEIGHT_BITS) < 0
    x = jnp.minimum(x - is_too_large.astype(jnp.int32), 255)
  return x.astype(jnp.uint8)


def _resize_passes(
  frame: geometry.Frame, input_height: int, input_width: int, height: int, width: int
) -> Sequence[_ResizePass]:
  """The axes to resample, in Pillow's order, which rounds in between: it depends on its version."""
  horizontal = _ResizePass(2, bilinear_taps(input_width, width, frame.left, frame.right))
  vertical = _ResizePass(1, bilinear_taps(input_height, height, frame.top, frame.bottom))
  if (frame.left, frame.right, width) == (0, input_width, input_width):
    return (
      [vertical] if (frame.top, frame.bottom, height) != (0, input_height, input_height) else []
    )
  if (frame.top, frame.bottom, height) == (0, input_height, input_height):
    return [horizontal]
  noise = np.random.default_rng(0).integers(0, 256, (1, input_height, input_width, 3), np.uint8)
  box = (frame.left, frame.top, frame.right, frame.bottom)
  expected = Image.fromarray(noise[0]).resize((width, height), Image.Resampling.BILINEAR, box)
  for passes in ((horizontal, vertical), (vertical, horizontal)):
    x = noise.astype(np.int32)
    for resize_pass in passes:
      x = np.minimum(_weighted_sums(x, resize_pass, np) >> _WEIGHT_BITS, 255)
    if np.array_equal(x[0], np.asarray(expected)):
      return passes
  raise ExportError(
    f'Pillow {PIL.__version__} resizes otherwise than is known here; leave include_resize out.'
  )


def _weighted_sums(x: Any, resize_pass: _ResizePass, xp: Any) -> Any:
  weights = (resize_pass.taps.weights * (1 << _WEIGHT_BITS) + 0.5).astype(np.int32)
  shape = [1] * x.ndim
  shape[resize_pass.axis] = len(weights)
  sums = xp.full(shape, 1 << (_WEIGHT_BITS - 1), np.int32)
  for tap_indices, tap_weights in zip(resize_pass.taps.indices.T, weights.T, strict=True):
    tap_pixels = xp.take(x, xp.asarray(tap_indices), axis=resize_pass.axis)
    sums = sums + tap_pixels * xp.asarray(tap_weights).reshape(shape)
  return sums


def restore_maps(
  anomaly_maps: Float[Array, 'b h w'], ops: transforms.Ops, height: int, width: int
) -> Array:
  """What `transforms.Ops.restore` makes of maps: [b height width], their minimum where unseen."""
  frame = ops.frame(height, width)
  vertical = geometry.pixel_range(frame.top, frame.bottom, height, ops.height)
  horizontal = geometry.pixel_range(frame.left, frame.right, width, ops.width)
  overhangs = (-vertical[2], -horizontal[2], vertical[3] - ops.height, horizontal[3] - ops.width)
  margin = math.ceil(max(*overhangs, 0))
  row_matrix, column_matrix = (
    _upsampling_matrix(*vertical, ops.height, margin),
    _upsampling_matrix(*horizontal, ops.width, margin),
  )
  visible_maps = resampling.apply_separable(
    jnp.asarray(row_matrix), jnp.asarray(column_matrix), anomaly_maps[..., None]
  )[..., 0]
  padding = ((vertical[0], height - vertical[1]), (horizontal[0], width - horizontal[1]))
  if not np.any(padding):
    return visible_maps
  is_visible = np.pad(np.ones(visible_maps.shape[1:], bool), padding)
  padded_maps = jnp.pad(visible_maps, ((0, 0), *padding))
  return jnp.where(is_visible[None], padded_maps, anomaly_maps.min(axis=(1, 2), keepdims=True))


def _upsampling_matrix(
  first: int, end: int, start: float, stop: float, size: int, margin: int
) -> Float[np.ndarray, '{end-first} {size}']:
  """The matrix from a map's axis to the pixels that the network saw."""
  axis_taps = bilinear_taps(size + 2 * margin, end - first, start + margin, stop + margin)
  matrix = np.zeros((end - first, size))
  # Beyond its ends a map goes on as it ends.
  indices = np.clip(axis_taps.indices - margin, 0, size - 1)
  np.add.at(matrix, (np.arange(end - first)[:, None], indices), axis_taps.weights)
  return matrix.astype(np.float32)
