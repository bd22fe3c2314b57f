"""Greedy k-center: few points that no other point is far from.

Gonzalez 1985; for coresets Sener and Savarese 2018, arXiv 1708.00489, algorithm 1.

Plain greedy selection takes the farthest point, measures all points against it, and so on: one
pass over memory for every center. The same centers are found here with far less work:

- A pass measures all points against many centers at once, as a matrix product. The points farthest
  away are set aside as candidates; whatever is not among them is at most `bound` away from the
  centers, and further centers only bring it nearer. So as long as the farthest candidate, kept up
  to date with each new center, stays beyond `bound`, it is the farthest of all points.
- Most points are far from any new center. Their distances are bounded from below in few
  dimensions: those in which the points vary most, and the length of what is left as one more, since
  lengths differ by no more than vectors do. Only where the bound leaves room is the distance taken.

The points may be split over devices: each measures its own, and all take the same centers from the
candidates of all. Which point comes first of equals, and which is the very first, is decided by the
points' numbers, so that the picks are the same however the points are split.

Letters: n points (of a shard), d dimensions, s dimensions of the sketch, k fresh centers, b points
of a block, c candidates of all shards.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from uadjax.numerics import collectives
from uadjax.types import Key

_CANDIDATES = 4096
_GROUP = 16  # Neighboring points become candidates together: fewer have to be sorted.
_FRESH = 1024  # Centers of one pass, at most.
_CHUNK = 64  # Centers that a block of points is measured against while it is in the cache.
_BLOCK = 4096
_SHARES = (8, 2)  # 1/8 or 1/2 of a block is taken out where no more is in question.
_SKETCH = 64
_SAMPLE = 8192  # Points that the directions of largest variance are found from.
_CENTERED = 16  # Steps to a standard deviation that the center is rounded to.
_ROUNDING = 1e-5  # Of the squared norms, on the bounds: to err only towards more work.
_LAST = 2**31 - 1  # No number is larger.
_EXACT = jax.lax.Precision.HIGHEST

_Carry = tuple[Int[Array, ' k'], Int[Array, ''], Float[Array, ' c']]


class Cloud(NamedTuple):
  """The points to choose from.

  Attributes:
    points: as they are.
    number: of each point, by which equals are told apart.
    center: about their mean; norms are taken from there, so that a common offset costs no digits.
    sketch: the points in few dimensions, in which distances are no larger.
  """

  points: Float[Array, 'n d']
  number: Int[Array, ' n']
  center: Float[Array, ' d']
  sketch: Float[Array, 'n s']


class Fresh(NamedTuple):
  """New centers.

  Attributes:
    place: positions in all shards together; -1 where there is none.
    point: themselves, minus the cloud's center.
    sketch: in few dimensions.
  """

  place: Int[Array, ' k']
  point: Float[Array, 'k d']
  sketch: Float[Array, 'k s']


class Selection(NamedTuple):
  """A selection under way.

  Attributes:
    centers: positions, in all shards together, of the centers in the order they were taken; -1
      where none is yet.
    taken: how many there are.
    distance: squared, of every point to its nearest center; -1 of centers, and -inf of points that
      do not take part.
  """

  centers: Int[Array, ' m']
  taken: Int[Array, '']
  distance: Float[Array, ' n']


def radius(selection: Selection) -> Float[Array, '']:
  """The covering radius: how far the farthest point is from its nearest center."""
  return jnp.sqrt(jnp.maximum(selection.distance.max(), 0.0))


def bytes_per_point(d: int) -> int:
  """Bytes that a selection needs for each point of d dimensions, the point included."""
  return 4 * (d + min(_SKETCH, d + 1) + 2)


# How the parts of each are held by shards: split (True), or the same on all (False).
CLOUD = Cloud(True, True, False, True)  # pyright: ignore[reportArgumentType]
SELECTION = Selection(False, False, True)  # pyright: ignore[reportArgumentType]


def cloud(
  points: Float[Array, 'n d'],
  valid: Bool[Array, ' n'],
  number: Int[Array, ' n'],
  axis: str | None = None,
) -> Cloud:
  """Sketch the points; only those that are valid decide how."""
  return Cloud(points, number, *_sketch(points, valid, number, axis))


@functools.partial(jax.jit, static_argnames='axis')
def _sketch(
  points: Float[Array, 'n d'], valid: Bool[Array, ' n'], number: Int[Array, ' n'], axis: str | None
) -> tuple[Float[Array, ' d'], Float[Array, 'n s']]:
  """Center and sketch, from a sample that does not depend on how points are split."""
  size = min(len(points), 2 * _SAMPLE // collectives.count(axis) + _GROUP)
  share = _SAMPLE / jnp.maximum(collectives.total(valid.sum(), axis), 1).astype(jnp.float32)
  # Knuth's multiplicative hash, of which the upper bits are the good ones.
  scattered = (number.astype(jnp.uint32) * jnp.uint32(2654435761)) >> 8
  wanted = valid & (scattered.astype(jnp.float32) < share * 2.0**24)
  at = jnp.nonzero(wanted, size=size, fill_value=len(points))[0]
  known = (at < len(points)).astype(jnp.float32)[:, None]
  sample = points[jnp.minimum(at, len(points) - 1)]
  among = jnp.maximum(collectives.total(known.sum(), axis), 1.0)
  mean = collectives.total(jnp.sum(sample * known, axis=0), axis) / among
  deviations = (sample - mean[None]) * known
  spread = jnp.einsum('nd,ne->de', deviations, deviations, precision=_EXACT)
  spread = collectives.total(spread, axis)
  center = _rounded(mean, jnp.sqrt(jnp.diagonal(spread) / among))
  # Whatever the basis, bounds hold; variance only decides how tight they are.
  basis = jnp.linalg.eigh(spread)[1][:, -(_SKETCH - 1) :]

  def in_few(start: Int[Array, ''], sketch: Float[Array, 'n s']) -> Float[Array, 'n s']:
    x = jax.lax.dynamic_slice_in_dim(points, start, min(_BLOCK, len(points))) - center[None]
    leading = jnp.einsum('bd,ds->bs', x, basis, precision=_EXACT)
    # Not from the difference of squares: of a short rest it keeps no digit, and bounds would fail.
    rest = x - jnp.einsum('bs,ds->bd', leading, basis, precision=_EXACT)
    x = jnp.concatenate([leading, jnp.linalg.norm(rest, axis=1, keepdims=True)], axis=1)
    return jax.lax.dynamic_update_slice_in_dim(sketch, x, start, 0)

  sketch = jnp.zeros((len(points), basis.shape[1] + 1))
  return center, _over_blocks(in_few, sketch)


@functools.partial(jax.jit, static_argnames=('centers', 'axis'))
def begin(
  key: Key,
  valid: Bool[Array, ' n'],
  number: Int[Array, ' n'],
  centers: int,
  axis: str | None = None,
) -> Selection:
  """Draw the first center from the points that take part; make room for so many."""
  drawn = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i)) >> 1)(number)
  least = collectives.gathered(jnp.min(drawn, where=valid, initial=_LAST), axis).min()
  of_least = valid & (drawn == least)
  chosen = collectives.gathered(jnp.min(number, where=of_least, initial=_LAST), axis).min()
  first = of_least & (number == chosen)
  far = jnp.where(valid, jnp.finfo(jnp.float32).max, -jnp.inf)
  return Selection(
    jnp.full(centers, -1, jnp.int32),
    jnp.zeros((), jnp.int32),
    jnp.where(first, jnp.inf, far),  # The farthest is the first; where none takes part, none is.
  )


@functools.partial(jax.jit, donate_argnums=1, static_argnames='axis')
def advance(
  cloud: Cloud, selection: Selection, target: Int[Array, ''], axis: str | None = None
) -> Selection:
  """Take centers until there are `target`, or no point is left."""

  def farthest(distance: Float[Array, ' n']) -> Float[Array, '']:
    return collectives.gathered(distance.max(), axis).max()

  def unfinished(carry: tuple[Selection, Float[Array, '']]) -> Bool[Array, '']:
    return (carry[0].taken < target) & (carry[1] >= 0)

  def one_pass(
    carry: tuple[Selection, Float[Array, '']],
  ) -> tuple[Selection, Float[Array, '']]:
    selection, most = carry
    fresh, count = _pick(cloud, selection.distance, most, target - selection.taken, axis)
    places = jnp.where(
      fresh.place >= 0, selection.taken + jnp.arange(_FRESH), len(selection.centers)
    )
    distance = _measure(cloud, selection.distance, fresh, count, axis)
    selection = Selection(
      selection.centers.at[places].set(fresh.place, mode='drop'), selection.taken + count, distance
    )
    return selection, farthest(distance)

  return jax.lax.while_loop(unfinished, one_pass, (selection, farthest(selection.distance)))[0]


def _pick(
  cloud: Cloud,
  distance: Float[Array, ' n'],
  most: Float[Array, ''],
  wanted: Int[Array, ''],
  axis: str | None,
) -> tuple[Fresh, Int[Array, '']]:
  """Take the next centers that are sure to be those of plain selection: one, or many."""
  groups = -(-len(distance) // _GROUP)
  grouped = jnp.pad(distance, (0, groups * _GROUP - len(distance)), constant_values=-jnp.inf)
  grouped = grouped.reshape(groups, _GROUP)
  size = min(-(-_CANDIDATES // _GROUP // collectives.count(axis)), groups)
  peaks, chosen = jax.lax.top_k(jnp.append(grouped.max(axis=1), -jnp.inf), size + 1)
  bound, chosen = collectives.gathered(peaks[-1], axis).max(), chosen[:-1]
  rows = (chosen[:, None] * _GROUP + jnp.arange(_GROUP)[None]).reshape(-1)
  rows = jnp.minimum(rows, len(distance) - 1)  # Those beyond the end are infinitely near.
  # The farthest of smallest number comes first: of equals, it may not be among the candidates.
  equal = distance == most
  first = jnp.argmin(jnp.where(equal, cloud.number, _LAST))
  mine = jnp.append(first, rows).astype(jnp.int32)
  again = equal[first] & (rows == first)
  left = jnp.where(again, -1.0, grouped[chosen].reshape(-1))
  left = jnp.append(jnp.where(equal[first], most, -jnp.inf), left)
  candidates, sketches, numbers, places, left = collectives.joined(
    (
      cloud.points[mine] - cloud.center[None],
      cloud.sketch[mine],
      cloud.number[mine],
      collectives.place(axis) * len(distance) + mine,
      left,
    ),
    axis,
  )
  squares = jnp.sum(candidates**2, axis=1)

  def sure(carry: _Carry) -> Bool[Array, '']:
    _, count, left = carry
    return (count < jnp.minimum(wanted, _FRESH)) & (left.max() > jnp.maximum(bound, 0.0))

  def take(carry: _Carry) -> _Carry:
    fresh, count, left = carry
    # Of equals that of the smallest number, as in plain selection.
    equal = left == left.max()
    number = jnp.min(numbers, where=equal, initial=_LAST)
    at = jnp.argmax(equal & (numbers == number)).astype(jnp.int32)
    product = jnp.einsum('cd,d->c', candidates, candidates[at], precision=_EXACT)
    away = jnp.maximum(squares + squares[at] - 2 * product, 0.0)
    return fresh.at[count].set(at), count + 1, jnp.minimum(left, away).at[at].set(-1.0)

  none = jnp.full(_FRESH, -1, jnp.int32), jnp.zeros((), jnp.int32)
  fresh, count, _ = jax.lax.while_loop(sure, take, take((*none, left)))
  at = jnp.maximum(fresh, 0)
  place = jnp.where(fresh >= 0, places[at], -1)
  return Fresh(place, candidates[at], sketches[at]), count


def _measure(
  cloud: Cloud,
  distance: Float[Array, ' n'],
  fresh: Fresh,
  count: Int[Array, ''],
  axis: str | None,
) -> Float[Array, ' n']:
  """Bring the distances up to date with `count` fresh centers."""
  centers, sketches = fresh.point, fresh.sketch
  size, end = min(_BLOCK, len(distance)), len(distance)
  parts = [size // share for share in _SHARES if size // share]

  def block(start: Int[Array, ''], distance: Float[Array, ' n']) -> Float[Array, ' n']:
    sketch = jax.lax.dynamic_slice_in_dim(cloud.sketch, start, size)

    def chunk(i: Int[Array, ''], distance: Float[Array, ' b']) -> Float[Array, ' b']:
      few = i * _CHUNK + jnp.arange(_CHUNK)
      near = _nearest(sketch, sketches[few], few < count, _ROUNDING) < distance

      def some(part: int) -> Float[Array, ' b']:
        within = jnp.nonzero(near, size=part, fill_value=end)[0]
        x = cloud.points[jnp.minimum(start + within, end - 1)] - cloud.center[None]
        away = _nearest(x, centers[few], few < count)
        return distance.at[within].min(away, mode='drop')

      def every() -> Float[Array, ' b']:
        x = jax.lax.dynamic_slice_in_dim(cloud.points, start, size) - cloud.center[None]
        return jnp.minimum(distance, _nearest(x, centers[few], few < count))

      ways = [functools.partial(some, part) for part in parts]
      fits = jnp.sum(near.sum() > jnp.asarray(parts, jnp.int32))
      return jax.lax.switch(fits, [*ways, every])

    chunks = (count + _CHUNK - 1) // _CHUNK
    before = jax.lax.dynamic_slice_in_dim(distance, start, size)
    after = jax.lax.fori_loop(0, chunks, chunk, before)
    return jax.lax.dynamic_update_slice_in_dim(distance, after, start, 0)

  distance = _over_blocks(block, distance)
  here = fresh.place - collectives.place(axis) * end
  return distance.at[jnp.where((here >= 0) & (here < end), here, end)].set(-1.0, mode='drop')


def _nearest(
  x: Float[Array, 'b s'], centers: Float[Array, 'k s'], known: Bool[Array, ' k'], slack: float = 0.0
) -> Float[Array, ' b']:
  """Squared distance to the nearest known center, less `slack` times the squared norms."""
  squares = jnp.where(known, (1 - slack) * jnp.sum(centers**2, axis=1), jnp.inf)
  product = jnp.einsum('ks,bs->kb', centers, x, precision=_EXACT)
  nearest = jnp.min(squares[:, None] - 2 * product, axis=0)
  return jnp.maximum(nearest + (1 - slack) * jnp.sum(x**2, axis=1), 0.0)


def _over_blocks(block: Callable[[Array, Array], Array], rows: Array) -> Array:
  """Call (start, rows) -> rows for each block; the last overlaps, which must do no harm."""
  n, size = len(rows), min(_BLOCK, len(rows))
  return jax.lax.fori_loop(
    0, -(-n // size), lambda i, rows: block(jnp.minimum(i * size, n - size), rows), rows
  )


def _rounded(mean: Float[Array, ' d'], deviation: Float[Array, ' d']) -> Float[Array, ' d']:
  """A mean in steps so coarse that the order in which it was added up does not show."""
  finest = jnp.maximum(2.0**-18 * jnp.abs(mean), jnp.finfo(jnp.float32).tiny)
  _, exponent = jnp.frexp(jnp.maximum(deviation / _CENTERED, finest))
  step = jnp.ldexp(jnp.ones_like(mean), exponent)
  return jnp.round(mean / step) * step
