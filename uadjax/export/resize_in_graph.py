"""Resizing inside a graph, from camera to network resolution and back.

Pillow resizes bytes with integers: along each axis a pixel is a sum of few pixels with 22-bit
weights, rounded to a byte after each axis. The same sums in the graph give the same bytes, and so
the same scores as preprocessing by Pillow. Maps are resized in floats, by one matrix per axis.

Letters: b batch, H W camera's image, h w network's image, k taps.
"""

from collections.abc import Sequence
import itertools
import math
from types import ModuleType
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int, UInt8
import numpy as np
import PIL
from PIL import Image

from uadjax.data import transforms
from uadjax.errors import ExportError, Setting
from uadjax.numerics import resampling

_WEIGHT_BITS = 22  # Fractional bits of Pillow's weights.
_COLUMNS_AT_ONCE = 256


class Taps(NamedTuple):
  """Weighted sums that resample an axis, one row per output pixel.

  Attributes:
    indices: input pixels of each sum; arbitrary where the weight is 0.
    weights: weights of the input pixels, in units of 2^-22, padded with 0 to k taps.
  """

  indices: Int[np.ndarray, 'output k']
  weights: Int[np.ndarray, 'output k']


def _pillow_taps(input_size: int, output_size: int, low: float, high: float) -> Taps:
  """Return the taps by which Pillow resamples an axis of bytes.

  Args:
    input_size: number of pixels along the axis.
    output_size: number of pixels after resampling.
    low: start of the interval [low, high) of the axis to resample, in pixels.
    high: end of the interval.
  """
  # Pillow rounds the sums of 32-bit pixels as it rounds the weights for bytes.
  # Some columns at a time, because the identity of a line-scan camera would take gigabytes.
  blocks = []
  for start in range(0, input_size, _COLUMNS_AT_ONCE):
    width = min(_COLUMNS_AT_ONCE, input_size - start)
    identity = np.eye(input_size, width, -start, dtype=np.int32) << _WEIGHT_BITS
    blocks.append(_resize_columns(identity, output_size, low, high))
  matrix = np.concatenate(blocks, axis=1)
  num_taps = np.count_nonzero(matrix, axis=1).max()
  indices = np.argsort(matrix == 0, axis=1, kind='stable')[:, :num_taps]
  return Taps(indices.astype(np.int32), np.take_along_axis(matrix, indices, axis=1))


def _resize_columns(basis: np.ndarray, size: int, low: float, high: float) -> np.ndarray:
  """Resize the interval [low, high) of the columns of an image by Pillow.

  Of the columns of an identity matrix this makes the matrix that resamples an axis.
  """
  width = basis.shape[1]
  box = (0, low, width, high)
  return np.asarray(Image.fromarray(basis).resize((width, size), Image.Resampling.BILINEAR, box))


def resize_images(
  images: UInt8[Array, 'b H W 3'], frame: transforms.Frame, height: int, width: int
) -> UInt8[Array, 'b {height} {width} 3']:
  """Resize images bit-identically to `transforms.Ops.apply`.

  Args:
    images: camera images.
    frame: part of the images to resize.
    height: height of the result.
    width: width of the result.

  Raises:
    ExportError: the resizing of the installed Pillow is unknown.
  """
  x = images.astype(jnp.int32)
  for axis, taps in _resize_passes(frame, images.shape[1], images.shape[2], height, width):
    weighted_sum = _weighted_sums(x, axis, taps, jnp)
    # A right shift, written as a division of non-negative integers, which every runtime has.
    # OpenVINO divides and compares integers as floats, so the quotient may be 1 too large.
    x = jax.lax.div(weighted_sum, jnp.int32(1 << _WEIGHT_BITS))
    is_too_large = weighted_sum - x * jnp.int32(1 << _WEIGHT_BITS) < 0
    x = jnp.minimum(x - is_too_large.astype(jnp.int32), 255)
  return x.astype(jnp.uint8)


def _resize_passes(
  frame: transforms.Frame, input_height: int, input_width: int, height: int, width: int
) -> Sequence[tuple[int, Taps]]:
  """Return the axes to resample, with their taps, in the order of the installed Pillow version.

  Pillow rounds between the axes, so the order matters. It is found by resizing noise.
  """
  passes = []
  if (frame.left, frame.right, width) != (0, input_width, input_width):
    passes.append((2, _pillow_taps(input_width, width, frame.left, frame.right)))
  if (frame.top, frame.bottom, height) != (0, input_height, input_height):
    passes.append((1, _pillow_taps(input_height, height, frame.top, frame.bottom)))
  noise = np.random.default_rng(0).integers(0, 256, (1, input_height, input_width, 3), np.uint8)
  box = (frame.left, frame.top, frame.right, frame.bottom)
  expected = Image.fromarray(noise[0]).resize((width, height), Image.Resampling.BILINEAR, box)
  for ordered_passes in itertools.permutations(passes):
    x = noise.astype(np.int32)
    for axis, taps in ordered_passes:
      x = np.minimum(_weighted_sums(x, axis, taps, np) >> _WEIGHT_BITS, 255)
    if np.array_equal(x[0], np.asarray(expected)):
      return ordered_passes
  message = f'Pillow {PIL.__version__} resizes in an unknown way, which a graph cannot reproduce.'
  hint = 'Install another version of Pillow, or omit ', Setting('export.include_resize'), '.'
  raise ExportError(message, hint=hint)


def _weighted_sums(x: Any, axis: int, taps: Taps, xp: ModuleType) -> Any:
  """Return the sums along an axis, computed by NumPy or JAX (`xp`)."""
  shape = [1] * x.ndim
  shape[axis] = len(taps.weights)
  sums = xp.full(shape, 1 << (_WEIGHT_BITS - 1), np.int32)
  for tap_indices, tap_weights in zip(taps.indices.T, taps.weights.T, strict=True):
    tap_pixels = xp.take(x, xp.asarray(tap_indices), axis=axis)
    sums = sums + tap_pixels * xp.asarray(tap_weights).reshape(shape)
  return sums


def restore_maps(
  anomaly_maps: Float[Array, 'b h w'], ops: transforms.Ops, height: int, width: int
) -> Array:
  """Resize maps to camera resolution [b height width] as `transforms.Ops.restore` does.

  Pixels outside of the crop that the network saw, and of the region of interest, get the minimum of
  their map.
  """
  frame = ops.frame(height, width)
  vertical = transforms.covered_pixels(frame.top, frame.bottom, height, ops.height)
  horizontal = transforms.covered_pixels(frame.left, frame.right, width, ops.width)
  overhangs = (-vertical[2], -horizontal[2], vertical[3] - ops.height, horizontal[3] - ops.width)
  margin = math.ceil(max(*overhangs, 0))
  rows = jnp.asarray(_upsampling_matrix(*vertical, ops.height, margin))
  columns = jnp.asarray(_upsampling_matrix(*horizontal, ops.width, margin))
  visible_maps = resampling.apply_separable(rows, columns, anomaly_maps[..., None])[..., 0]
  padding = ((vertical[0], height - vertical[1]), (horizontal[0], width - horizontal[1]))
  is_visible = np.pad(np.ones(visible_maps.shape[1:], bool), padding)
  if ops.region is not None:
    is_visible &= ops.region.resized(height, width)
  if is_visible.all():
    return visible_maps
  if np.any(padding):
    visible_maps = jnp.pad(visible_maps, ((0, 0), *padding))
  return jnp.where(is_visible[None], visible_maps, anomaly_maps.min(axis=(1, 2), keepdims=True))


def _upsampling_matrix(
  first: int, end: int, start: float, stop: float, size: int, margin: int
) -> Float[np.ndarray, '{end-first} {size}']:
  """Return the matrix that resamples an axis of a map to camera pixels.

  Args:
    first: first camera pixel that the network saw.
    end: camera pixel after the last one that it saw.
    start: position of `first` on the map's axis.
    stop: position of `end` on the map's axis.
    size: size of the map's axis.
    margin: pixels by which the map is extended at both ends.
  """
  # Beyond its ends a map is continued by its outermost values.
  basis = np.pad(np.eye(size, dtype=np.float32), ((margin, margin), (0, 0)), mode='edge')
  return _resize_columns(basis, end - first, start + margin, stop + margin)
