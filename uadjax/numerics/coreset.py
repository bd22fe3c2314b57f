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
_MAX_NEW_CENTERS = 1024  # Centers of one pass, at most.
_CHUNK = 64  # Centers that a block of points is measured against while it is in the cache.
_BLOCK = 4096
_SUBSET_SHARES = (8, 2)  # 1/8 or 1/2 of a block is taken out where no more is in question.
_SKETCH = 64
_SAMPLE = 8192  # Points that the directions of largest variance are found from.
_CENTER_STEPS = 16  # Steps to a standard deviation that the center is rounded to.
_ROUNDING_MARGIN = 1e-5  # Of the squared norms, on the bounds: to err only towards more work.
_MAX_ID = 2**31 - 1  # No number is larger.
_EXACT = jax.lax.Precision.HIGHEST

_Carry = tuple[Int[Array, ' k'], Int[Array, ''], Float[Array, ' c']]


class PointSet(NamedTuple):
  """The points to choose from.

  Attributes:
    points: as they are.
    number: of each point, by which equals are told apart.
    center: about their mean; norms are taken from there, so that a common offset costs no digits.
    sketch: the points in few dimensions, in which distances are no larger.
  """

  points: Float[Array, 'n d']
  point_id: Int[Array, ' n']
  center: Float[Array, ' d']
  sketch: Float[Array, 'n s']


class NewCenters(NamedTuple):
  """New centers.

  Attributes:
    place: positions in all shards together; -1 where there is none.
    point: themselves, minus the cloud's center.
    sketch: in few dimensions.
  """

  position: Int[Array, ' k']
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
  num_centers: Int[Array, '']
  squared_distance: Float[Array, ' n']


def covering_radius(selection: Selection) -> Float[Array, '']:
  """The covering radius: how far the farthest point is from its nearest center."""
  return jnp.sqrt(jnp.maximum(selection.squared_distance.max(), 0.0))


def bytes_per_point(d: int) -> int:
  """Bytes that a selection needs for each point of d dimensions, the point included."""
  return 4 * (d + min(_SKETCH, d + 1) + 2)


# How the parts of each are held by shards: split (True), or the same on all (False).
POINT_SET_SPECS = PointSet(True, True, False, True)  # pyright: ignore[reportArgumentType]
SELECTION_SPECS = Selection(False, False, True)  # pyright: ignore[reportArgumentType]


def make_point_set(
  points: Float[Array, 'n d'],
  valid: Bool[Array, ' n'],
  point_id: Int[Array, ' n'],
  axis_name: str | None = None,
) -> PointSet:
  """Sketch the points; only those that are valid decide how."""
  return PointSet(points, point_id, *_center_and_sketch(points, valid, point_id, axis_name))


@functools.partial(jax.jit, static_argnames='axis_name')
def _center_and_sketch(
  points: Float[Array, 'n d'],
  valid: Bool[Array, ' n'],
  point_id: Int[Array, ' n'],
  axis_name: str | None,
) -> tuple[Float[Array, ' d'], Float[Array, 'n s']]:
  """Center and sketch, from a sample that does not depend on how points are split."""
  size = min(len(points), 2 * _SAMPLE // collectives.axis_size(axis_name) + _GROUP)
  sampling_rate = _SAMPLE / jnp.maximum(collectives.psum(valid.sum(), axis_name), 1).astype(
    jnp.float32
  )
  # Knuth's multiplicative hash, of which the upper bits are the good ones.
  hashes = (point_id.astype(jnp.uint32) * jnp.uint32(2654435761)) >> 8
  is_sampled = valid & (hashes.astype(jnp.float32) < sampling_rate * 2.0**24)
  rows = jnp.nonzero(is_sampled, size=size, fill_value=len(points))[0]
  weights = (rows < len(points)).astype(jnp.float32)[:, None]
  sample = points[jnp.minimum(rows, len(points) - 1)]
  num_sampled = jnp.maximum(collectives.psum(weights.sum(), axis_name), 1.0)
  mean = collectives.psum(jnp.sum(sample * weights, axis=0), axis_name) / num_sampled
  deviations = (sample - mean[None]) * weights
  scatter = jnp.einsum('nd,ne->de', deviations, deviations, precision=_EXACT)
  scatter = collectives.psum(scatter, axis_name)
  center = _round_to_coarse_steps(mean, jnp.sqrt(jnp.diagonal(scatter) / num_sampled))
  # Whatever the basis, bounds hold; variance only decides how tight they are.
  basis = jnp.linalg.eigh(scatter)[1][:, -(_SKETCH - 1) :]

  def sketch_block(start: Int[Array, ''], sketch: Float[Array, 'n s']) -> Float[Array, 'n s']:
    x = jax.lax.dynamic_slice_in_dim(points, start, min(_BLOCK, len(points))) - center[None]
    leading = jnp.einsum('bd,ds->bs', x, basis, precision=_EXACT)
    # Not from the difference of squares: of a short rest it keeps no digit, and bounds would fail.
    residual = x - jnp.einsum('bs,ds->bd', leading, basis, precision=_EXACT)
    x = jnp.concatenate([leading, jnp.linalg.norm(residual, axis=1, keepdims=True)], axis=1)
    return jax.lax.dynamic_update_slice_in_dim(sketch, x, start, 0)

  sketch = jnp.zeros((len(points), basis.shape[1] + 1))
  return center, _for_each_block(sketch_block, sketch)


@functools.partial(jax.jit, static_argnames=('max_centers', 'axis_name'))
def init(
  key: Key,
  valid: Bool[Array, ' n'],
  point_id: Int[Array, ' n'],
  max_centers: int,
  axis_name: str | None = None,
) -> Selection:
  """Draw the first center from the points that take part; make room for so many."""
  random_bits = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i)) >> 1)(point_id)
  min_bits = collectives.all_gather(
    jnp.min(random_bits, where=valid, initial=_MAX_ID), axis_name
  ).min()
  has_min_bits = valid & (random_bits == min_bits)
  first_id = collectives.all_gather(
    jnp.min(point_id, where=has_min_bits, initial=_MAX_ID), axis_name
  ).min()
  is_first = has_min_bits & (point_id == first_id)
  initial_distance = jnp.where(valid, jnp.finfo(jnp.float32).max, -jnp.inf)
  return Selection(
    jnp.full(max_centers, -1, jnp.int32),
    jnp.zeros((), jnp.int32),
    jnp.where(
      is_first, jnp.inf, initial_distance
    ),  # The farthest is the first; where none takes part, none is.
  )


@functools.partial(jax.jit, donate_argnums=1, static_argnames='axis_name')
def select_until(
  point_set: PointSet, selection: Selection, target: Int[Array, ''], axis_name: str | None = None
) -> Selection:
  """Take centers until there are `target`, or no point is left."""

  def global_max(distance: Float[Array, ' n']) -> Float[Array, '']:
    return collectives.all_gather(distance.max(), axis_name).max()

  def needs_more(carry: tuple[Selection, Float[Array, '']]) -> Bool[Array, '']:
    return (carry[0].num_centers < target) & (carry[1] >= 0)

  def select_batch(
    carry: tuple[Selection, Float[Array, '']],
  ) -> tuple[Selection, Float[Array, '']]:
    selection, farthest = carry
    new_centers, num_new = _pick_centers(
      point_set, selection.squared_distance, farthest, target - selection.num_centers, axis_name
    )
    slots = jnp.where(
      new_centers.position >= 0,
      selection.num_centers + jnp.arange(_MAX_NEW_CENTERS),
      len(selection.centers),
    )
    distance = _update_distances(
      point_set, selection.squared_distance, new_centers, num_new, axis_name
    )
    selection = Selection(
      selection.centers.at[slots].set(new_centers.position, mode='drop'),
      selection.num_centers + num_new,
      distance,
    )
    return selection, global_max(distance)

  return jax.lax.while_loop(
    needs_more, select_batch, (selection, global_max(selection.squared_distance))
  )[0]


def _pick_centers(
  point_set: PointSet,
  distance: Float[Array, ' n'],
  farthest: Float[Array, ''],
  max_new: Int[Array, ''],
  axis_name: str | None,
) -> tuple[NewCenters, Int[Array, '']]:
  """Take the next centers that are sure to be those of plain selection: one, or many."""
  num_groups = -(-len(distance) // _GROUP)
  grouped = jnp.pad(distance, (0, num_groups * _GROUP - len(distance)), constant_values=-jnp.inf)
  grouped = grouped.reshape(num_groups, _GROUP)
  num_candidate_groups = min(
    -(-_CANDIDATES // _GROUP // collectives.axis_size(axis_name)), num_groups
  )
  group_maxima, group_ids = jax.lax.top_k(
    jnp.append(grouped.max(axis=1), -jnp.inf), num_candidate_groups + 1
  )
  bound, group_ids = collectives.all_gather(group_maxima[-1], axis_name).max(), group_ids[:-1]
  rows = (group_ids[:, None] * _GROUP + jnp.arange(_GROUP)[None]).reshape(-1)
  rows = jnp.minimum(rows, len(distance) - 1)  # Those beyond the end are infinitely near.
  # The farthest of smallest number comes first: of equals, it may not be among the candidates.
  is_farthest = distance == farthest
  first = jnp.argmin(jnp.where(is_farthest, point_set.point_id, _MAX_ID))
  candidate_rows = jnp.append(first, rows).astype(jnp.int32)
  is_duplicate = is_farthest[first] & (rows == first)
  remaining = jnp.where(is_duplicate, -1.0, grouped[group_ids].reshape(-1))
  remaining = jnp.append(jnp.where(is_farthest[first], farthest, -jnp.inf), remaining)
  candidates, sketches, ids, positions, remaining = collectives.all_gather_tiled(
    (
      point_set.points[candidate_rows] - point_set.center[None],
      point_set.sketch[candidate_rows],
      point_set.point_id[candidate_rows],
      collectives.axis_index(axis_name) * len(distance) + candidate_rows,
      remaining,
    ),
    axis_name,
  )
  squared_norms = jnp.sum(candidates**2, axis=1)

  def certain(carry: _Carry) -> Bool[Array, '']:
    _, num_picked, remaining = carry
    return (num_picked < jnp.minimum(max_new, _MAX_NEW_CENTERS)) & (
      remaining.max() > jnp.maximum(bound, 0.0)
    )

  def take_next(carry: _Carry) -> _Carry:
    picks, num_picked, remaining = carry
    # Of equals that of the smallest number, as in plain selection.
    is_max = remaining == remaining.max()
    min_id = jnp.min(ids, where=is_max, initial=_MAX_ID)
    pick = jnp.argmax(is_max & (ids == min_id)).astype(jnp.int32)
    product = jnp.einsum('cd,d->c', candidates, candidates[pick], precision=_EXACT)
    squared_distance = jnp.maximum(squared_norms + squared_norms[pick] - 2 * product, 0.0)
    return (
      picks.at[num_picked].set(pick),
      num_picked + 1,
      jnp.minimum(remaining, squared_distance).at[pick].set(-1.0),
    )

  initial = jnp.full(_MAX_NEW_CENTERS, -1, jnp.int32), jnp.zeros((), jnp.int32)
  picks, num_picked, _ = jax.lax.while_loop(certain, take_next, take_next((*initial, remaining)))
  candidate_index = jnp.maximum(picks, 0)
  position = jnp.where(picks >= 0, positions[candidate_index], -1)
  return NewCenters(position, candidates[candidate_index], sketches[candidate_index]), num_picked


def _update_distances(
  point_set: PointSet,
  distance: Float[Array, ' n'],
  new_centers: NewCenters,
  num_new: Int[Array, ''],
  axis_name: str | None,
) -> Float[Array, ' n']:
  """Bring the distances up to date with `count` fresh centers."""
  centers, sketches = new_centers.point, new_centers.sketch
  block_size, num_points = min(_BLOCK, len(distance)), len(distance)
  subset_sizes = [block_size // share for share in _SUBSET_SHARES if block_size // share]

  def update_block(start: Int[Array, ''], distance: Float[Array, ' n']) -> Float[Array, ' n']:
    sketch = jax.lax.dynamic_slice_in_dim(point_set.sketch, start, block_size)

    def update_chunk(i: Int[Array, ''], distance: Float[Array, ' b']) -> Float[Array, ' b']:
      chunk_index = i * _CHUNK + jnp.arange(_CHUNK)
      is_near = (
        _nearest_squared_distance(
          sketch, sketches[chunk_index], chunk_index < num_new, _ROUNDING_MARGIN
        )
        < distance
      )

      def update_subset(subset_size: int) -> Float[Array, ' b']:
        rows = jnp.nonzero(is_near, size=subset_size, fill_value=num_points)[0]
        x = point_set.points[jnp.minimum(start + rows, num_points - 1)] - point_set.center[None]
        new_distance = _nearest_squared_distance(x, centers[chunk_index], chunk_index < num_new)
        return distance.at[rows].min(new_distance, mode='drop')

      def update_all() -> Float[Array, ' b']:
        x = (
          jax.lax.dynamic_slice_in_dim(point_set.points, start, block_size) - point_set.center[None]
        )
        return jnp.minimum(
          distance, _nearest_squared_distance(x, centers[chunk_index], chunk_index < num_new)
        )

      branches = [functools.partial(update_subset, subset_size) for subset_size in subset_sizes]
      branch_index = jnp.sum(is_near.sum() > jnp.asarray(subset_sizes, jnp.int32))
      return jax.lax.switch(branch_index, [*branches, update_all])

    num_chunks = (num_new + _CHUNK - 1) // _CHUNK
    block_distance = jax.lax.dynamic_slice_in_dim(distance, start, block_size)
    updated_distance = jax.lax.fori_loop(0, num_chunks, update_chunk, block_distance)
    return jax.lax.dynamic_update_slice_in_dim(distance, updated_distance, start, 0)

  distance = _for_each_block(update_block, distance)
  local_position = new_centers.position - collectives.axis_index(axis_name) * num_points
  return distance.at[
    jnp.where((local_position >= 0) & (local_position < num_points), local_position, num_points)
  ].set(-1.0, mode='drop')


def _nearest_squared_distance(
  x: Float[Array, 'b s'], centers: Float[Array, 'k s'], valid: Bool[Array, ' k'], slack: float = 0.0
) -> Float[Array, ' b']:
  """Squared distance to the nearest known center, less `slack` times the squared norms."""
  squared_norms = jnp.where(valid, (1 - slack) * jnp.sum(centers**2, axis=1), jnp.inf)
  product = jnp.einsum('ks,bs->kb', centers, x, precision=_EXACT)
  nearest = jnp.min(squared_norms[:, None] - 2 * product, axis=0)
  return jnp.maximum(nearest + (1 - slack) * jnp.sum(x**2, axis=1), 0.0)


def _for_each_block(update_block: Callable[[Array, Array], Array], rows: Array) -> Array:
  """Call (start, rows) -> rows for each block; the last overlaps, which must do no harm."""
  n, size = len(rows), min(_BLOCK, len(rows))
  return jax.lax.fori_loop(
    0, -(-n // size), lambda i, rows: update_block(jnp.minimum(i * size, n - size), rows), rows
  )


def _round_to_coarse_steps(
  mean: Float[Array, ' d'], deviation: Float[Array, ' d']
) -> Float[Array, ' d']:
  """A mean in steps so coarse that the order in which it was added up does not show."""
  min_step = jnp.maximum(2.0**-18 * jnp.abs(mean), jnp.finfo(jnp.float32).tiny)
  _, exponent = jnp.frexp(jnp.maximum(deviation / _CENTER_STEPS, min_step))
  step = jnp.ldexp(jnp.ones_like(mean), exponent)
  return jnp.round(mean / step) * step
