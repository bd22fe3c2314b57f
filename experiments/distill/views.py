"""What a camera makes of pictures: a crop from somewhere, a lens, a sensor, a file.

Every fourth view is the one before it with something wrong in one place: a spot, a scratch, a dent,
a piece of elsewhere. What a detector must see is how features change then.

Letters: b views, v their side, n pictures, s theirs.
"""

from collections.abc import Iterator
import functools
import math
from typing import NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, UInt8
import numpy as np

TWINS = 4  # Row 3 of every four is row 2, damaged.

Key = jax.Array
Draw = Iterator[Array]  # Of independent numbers of [0, 1).
Plane = Float[Array, 'v v']
Planes = Float[Array, '3 v v']


def twins(count: int) -> tuple[np.ndarray, np.ndarray]:
  """Rows of intact views that have a damaged twin, and the rows of those."""
  damaged = np.arange(TWINS - 1, count, TWINS)
  return damaged - 1, damaged


@functools.partial(jax.jit, static_argnames=('count', 'side'))
def views(
  key: Key, pictures: Float[Array, 'n s s 3'], count: int, side: int
) -> UInt8[Array, 'b v v 3']:
  """Look at pictures, drawn with replacement."""
  rows = jnp.arange(count)
  damaged = rows % TWINS == TWINS - 1
  source = jnp.where(damaged, rows - 1, rows)
  keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(source)
  return jax.vmap(functools.partial(_view, pictures, side=side))(keys, damaged)


class Damage(NamedTuple):
  """A blemish: how far it covers each pixel, how it moves and how it colors what is there."""

  cover: Plane
  move: Float[Array, '2']
  color: Float[Array, '3']
  opacity: Array


def _view(pictures: Array, key: Key, damaged: Array, side: int) -> UInt8[Array, 'v v 3']:
  # All chances of a view at once: each draw of its own would take long to compile.
  draw = iter(jax.random.uniform(key, (64,)))
  number = jnp.minimum((next(draw) * len(pictures)).astype(jnp.int32), len(pictures) - 1)
  damage = _damage(draw, side)
  damage = damage._replace(cover=damage.cover * damaged.astype(jnp.float32))
  x, y = _gaze(draw, side, pictures.shape[1])
  x, y = x + damage.cover * damage.move[0], y + damage.cover * damage.move[1]
  image = _sample(pictures, number, x, y)
  mix = (damage.cover * damage.opacity)[..., None]
  image = image * (1 - mix) + damage.color[None, None] * mix
  image = jnp.moveaxis(_develop(draw, image), -1, 0)
  image = _jpeg(draw, _sensor(draw, jax.random.fold_in(key, 1), _blur(draw, image)))
  return jnp.round(jnp.clip(jnp.moveaxis(image, 0, -1), 0, 1) * 255).astype(jnp.uint8)


def _uniform(draw: Draw, low: float, high: float) -> Array:
  return low + (high - low) * next(draw)


def _normal(draw: Draw) -> Array:
  """Nearly normal, and never further than three standard deviations."""
  return 2 * (next(draw) + next(draw) + next(draw)) - 3


def _line(side: int) -> Float[Array, ' v']:
  return (jnp.arange(side, dtype=jnp.float32) + 0.5) * (2 / side) - 1


def _damage(draw: Draw, side: int) -> Damage:
  size, slim = jnp.exp(_uniform(draw, -3.3, -0.9)), jnp.exp(_uniform(draw, 0.0, 2.3))
  x = _line(side)[None, :] - _uniform(draw, -0.8, 0.8)
  y = _line(side)[:, None] - _uniform(draw, -0.8, 0.8)
  angle = next(draw) * math.pi
  cosine, sine = jnp.cos(angle), jnp.sin(angle)
  along, beside = cosine * x + sine * y, cosine * y - sine * x
  along += 0.5 * beside**2 / size
  r = jnp.sqrt((along / size) ** 2 + (beside * slim / size) ** 2 + 1e-6)
  cover = jnp.clip((1.0 - r) / _uniform(draw, 0.05, 1.0), 0, 1)
  # Bent or exchanged, or colored over; some are both.
  kind = next(draw)
  far = jnp.where(kind < 0.35, 0.15, jnp.where(kind < 0.6, 0.8, 0.0))
  move = far * jnp.stack([_normal(draw), _normal(draw)])
  color = jnp.stack([next(draw), next(draw), next(draw)]) * next(draw)
  return Damage(cover, move, color, jnp.where(kind < 0.45, 0.0, _uniform(draw, 0.1, 1.0)))


def _gaze(draw: Draw, side: int, whole: int) -> tuple[Plane, Plane]:
  """Where in the picture, from 0 to 1, each pixel looks."""
  # Magnified nearly twofold at most; from the smallest views, all of it is made half as large.
  closest = min(0.6 * side / whole, 0.9)
  zoom = jnp.exp(_uniform(draw, math.log(closest), math.log(1.05)))
  free = _uniform(draw, 0.0, 2 * math.pi)
  angle = jnp.where(next(draw) < 0.5, free, jnp.round(free / (math.pi / 2)) * (math.pi / 2))
  aspect, skew = jnp.exp(0.15 * _normal(draw)), 0.15 * _normal(draw)
  slanted = next(draw) < 0.3
  slant = [jnp.where(slanted, _uniform(draw, -0.35, 0.35), 0.0) for _ in range(2)]
  x, y = _line(side)[None, :], _line(side)[:, None]
  depth = 1 / (1 + slant[0] * x + slant[1] * y)
  across, down = zoom / 2 * aspect * (x + skew * y) * depth, zoom / 2 / aspect * y * depth
  cosine, sine = jnp.cos(angle), jnp.sin(angle)
  # A small crop may be anywhere; a large one stays near the middle.
  room = jnp.maximum(1.1 - zoom, 0.1)
  left, top = (0.5 + (next(draw) - 0.5) * room for _ in range(2))
  return left + cosine * across - sine * down, top + sine * across + cosine * down


def _sample(pictures: Array, number: Array, x: Plane, y: Plane) -> Float[Array, 'v v 3']:
  """Interpolate a picture linearly; beyond its edges it is mirrored."""
  side = pictures.shape[1]
  x, y = (1 - jnp.abs(1 - jnp.mod(z, 2.0)) for z in (x, y))
  x, y = (jnp.clip(z * side - 0.5, 0, side - 1.001) for z in (x, y))
  left, top = x.astype(jnp.int32), y.astype(jnp.int32)
  u, v = (x - left.astype(jnp.float32))[..., None], (y - top.astype(jnp.float32))[..., None]
  flat = pictures.reshape(-1, 3)
  first = (number * side + top) * side + left
  upper = flat[first] * (1 - u) + flat[first + 1] * u
  lower = flat[first + side] * (1 - u) + flat[first + side + 1] * u
  return upper * (1 - v) + lower * v


def _develop(draw: Draw, image: Float[Array, 'v v 3']) -> Float[Array, 'v v 3']:
  """Expose, tint, take away color, put on a curve, negate, fade the corners."""
  exposure, gamma = jnp.exp(0.05 + 0.35 * _normal(draw)), jnp.exp(0.3 * _normal(draw) - 0.3)
  tint = jnp.exp(0.12 * jnp.stack([_normal(draw) for _ in range(3)]))
  image = image * (exposure * tint)[None, None]
  vivid = jnp.maximum(_uniform(draw, -0.6, 1.4), 0.0)
  gray = (image @ jnp.array((0.3, 0.59, 0.11)))[..., None]
  image = jnp.clip(gray + vivid * (image - gray), 1e-4, 1.0) ** gamma
  image = jnp.where(next(draw) < 0.15, 1 - image, image)
  low, high = 0.35 * next(draw) ** 3, 0.35 * next(draw) ** 3
  image = low + image * (1 - low - high)
  squares = _line(image.shape[0]) ** 2
  corner = squares[:, None, None] + squares[None, :, None]
  return image * (1 - jnp.maximum(_uniform(draw, -0.3, 0.3), 0.0) * corner)


def _blur(draw: Draw, image: Planes) -> Planes:
  """Defocus by a Gaussian, as a matrix; sharpen now and then."""
  sigma = jnp.exp(_uniform(draw, -1.5, 0.6))
  place = jnp.arange(image.shape[1], dtype=jnp.float32)
  matrix = jnp.exp(-0.5 * ((place[:, None] - place[None, :]) / sigma) ** 2)
  blurred = _both_ways(matrix / matrix.sum(axis=1, keepdims=True), image)
  kind, amount = next(draw), next(draw)
  image = jnp.where(kind < 0.55, blurred, image)
  return jnp.where(kind > 0.85, image + amount * (image - blurred), image)


def _sensor(draw: Draw, key: Key, image: Planes) -> Planes:
  """Add noise, common to the channels and not."""
  dice = jax.random.bits(key, image.shape, jnp.uint32)
  bytes_ = [((dice >> jnp.uint32(k)) & jnp.uint32(255)).astype(jnp.float32) for k in (0, 8, 16, 24)]
  noise = (bytes_[0] + bytes_[1] + bytes_[2] + bytes_[3] - 510) / 148  # Nearly normal.
  amount, colored = jnp.exp(_uniform(draw, -7.0, -3.2)), next(draw)
  return image + amount * (colored * noise + (1 - colored) * noise[:1])


def _jpeg(draw: Draw, image: Planes) -> Planes:
  """Round the cosines of blocks of 8x8, as half of all files: coarser for high ones and for hue."""
  side, step = image.shape[1], jnp.exp(_uniform(draw, -5.0, -2.6))
  matrix = jnp.asarray(np.kron(np.eye(side // 8, dtype=np.float32), DCT))
  frequency = jnp.arange(side) % 8
  table = step * (1 + frequency[:, None] + frequency[None, :]).astype(jnp.float32)
  steps = table[None] * jnp.array((1.0, 2.0, 2.0))[:, None, None]
  cosines = _both_ways(matrix, jnp.einsum('dc,chw->dhw', jnp.asarray(_YCC), image))
  back = _both_ways(matrix.T, jnp.round(cosines / steps) * steps)
  squeezed = jnp.einsum('dc,chw->dhw', jnp.asarray(np.linalg.inv(_YCC)), back)
  return jnp.where(next(draw) < 0.5, squeezed, image)


def _both_ways(matrix: Float[Array, 'v v'], image: Planes) -> Planes:
  """Map both axes."""
  return jnp.einsum('Hh,chw,Ww->cHW', matrix, image, matrix)


_k = np.arange(8)
DCT = (np.cos((2 * _k[None] + 1) * _k[:, None] * math.pi / 16) / 2).astype(np.float32)
DCT[0] /= math.sqrt(2)
_YCC = np.array(((0.299, 0.587, 0.114), (-0.169, -0.331, 0.5), (0.5, -0.419, -0.081)), np.float32)
