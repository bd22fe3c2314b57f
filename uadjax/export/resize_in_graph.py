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

_BITS = 22  # Of a weight, as Pillow has it.


class Taps(NamedTuple):
  """What each pixel of a resampled axis is the sum of.

  Attributes:
    place: pixels before; where there are fewer than k, any.
    weight: theirs; 0 there.
  """

  place: Int[np.ndarray, 'after k']
  weight: Float[np.ndarray, 'after k']


def taps(before: int, after: int, low: float, high: float) -> Taps:
  """Weights that resample [low, high) of an axis linearly, widened where it shrinks (Pillow)."""
  # In Pillow's very types and order of operations: bytes are rounded from their results.
  scale, low = float(np.float32(high) - np.float32(low)) / after, float(np.float32(low))
  reach = max(scale, 1.0)
  place = np.zeros((after, 2 * math.ceil(reach) + 1), np.int32)
  weight = np.zeros(place.shape)
  for i in range(after):
    center = low + (i + 0.5) * scale
    first = max(int(center - reach + 0.5), 0)
    places = np.arange(first, min(int(center + reach + 0.5), before))
    tent = np.maximum(0.0, 1.0 - np.abs((places - center + 0.5) * (1.0 / reach)))
    place[i, : len(places)] = places
    weight[i, : len(places)] = tent / sum(tent.tolist())
  return Taps(place, weight)


class _Pass(NamedTuple):
  """One axis resampled."""

  axis: int
  taps: Taps


def shrink(
  images: UInt8[Array, 'b H W 3'], frame: geometry.Frame, height: int, width: int
) -> UInt8[Array, 'b {height} {width} 3']:
  """What `transforms.Ops.apply` makes of images, to the bit."""
  x = images.astype(jnp.int32)
  for one in _passes(frame, images.shape[1], images.shape[2], height, width):
    total = _sums(x, one, jnp)
    # Of non-negative numbers a division, which every runtime has, is the shift. OpenVINO divides
    # integers as floats, and compares them so, too: it may come out at the next one.
    x = jax.lax.div(total, jnp.int32(1 << _BITS))
    over = total - x * jnp.int32(1 << _BITS) < 0
    x = jnp.minimum(x - over.astype(jnp.int32), 255)
  return x.astype(jnp.uint8)


def _passes(
  frame: geometry.Frame, before_h: int, before_w: int, height: int, width: int
) -> Sequence[_Pass]:
  """The axes to resample, in Pillow's order, which rounds in between: it depends on its version."""
  across = _Pass(2, taps(before_w, width, frame.left, frame.right))
  down = _Pass(1, taps(before_h, height, frame.top, frame.bottom))
  if (frame.left, frame.right, width) == (0, before_w, before_w):
    return [down] if (frame.top, frame.bottom, height) != (0, before_h, before_h) else []
  if (frame.top, frame.bottom, height) == (0, before_h, before_h):
    return [across]
  noise = np.random.default_rng(0).integers(0, 256, (1, before_h, before_w, 3), np.uint8)
  box = (frame.left, frame.top, frame.right, frame.bottom)
  want = Image.fromarray(noise[0]).resize((width, height), Image.Resampling.BILINEAR, box)
  for passes in ((across, down), (down, across)):
    x = noise.astype(np.int32)
    for one in passes:
      x = np.minimum(_sums(x, one, np) >> _BITS, 255)
    if np.array_equal(x[0], np.asarray(want)):
      return passes
  raise ExportError(
    f'Pillow {PIL.__version__} resizes otherwise than is known here; leave include_resize out.'
  )


def _sums(x: Any, one: _Pass, numpy: Any) -> Any:
  weights = (one.taps.weight * (1 << _BITS) + 0.5).astype(np.int32)
  shape = [1] * x.ndim
  shape[one.axis] = len(weights)
  total = numpy.full(shape, 1 << (_BITS - 1), np.int32)
  for place, weight in zip(one.taps.place.T, weights.T, strict=True):
    taken = numpy.take(x, numpy.asarray(place), axis=one.axis)
    total = total + taken * numpy.asarray(weight).reshape(shape)
  return total


def enlarge(map: Float[Array, 'b h w'], ops: transforms.Ops, height: int, width: int) -> Array:
  """What `transforms.Ops.restore` makes of maps: [b height width], their minimum where unseen."""
  frame = ops.frame(height, width)
  down = geometry.pixel_range(frame.top, frame.bottom, height, ops.height)
  across = geometry.pixel_range(frame.left, frame.right, width, ops.width)
  beyond = (-down[2], -across[2], down[3] - ops.height, across[3] - ops.width)
  margin = math.ceil(max(*beyond, 0))
  rows, columns = _back(*down, ops.height, margin), _back(*across, ops.width, margin)
  inside = resampling.apply_separable(jnp.asarray(rows), jnp.asarray(columns), map[..., None])[
    ..., 0
  ]
  around = ((down[0], height - down[1]), (across[0], width - across[1]))
  if not np.any(around):
    return inside
  seen = np.pad(np.ones(inside.shape[1:], bool), around)
  padded = jnp.pad(inside, ((0, 0), *around))
  return jnp.where(seen[None], padded, map.min(axis=(1, 2), keepdims=True))


def _back(
  first: int, end: int, start: float, stop: float, size: int, margin: int
) -> Float[np.ndarray, '{end-first} {size}']:
  """The matrix from a map's axis to the pixels that the network saw."""
  found = taps(size + 2 * margin, end - first, start + margin, stop + margin)
  matrix = np.zeros((end - first, size))
  # Beyond its ends a map goes on as it ends.
  place = np.clip(found.place - margin, 0, size - 1)
  np.add.at(matrix, (np.arange(end - first)[:, None], place), found.weight)
  return matrix.astype(np.float32)
