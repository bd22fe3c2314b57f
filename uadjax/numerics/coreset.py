"""Greedy k-center selection: choose few centers such that no point is far from its nearest one.

The algorithm is that of Gonzalez 1985; Sener and Savarese 2018 (arXiv 1708.00489, algorithm 1) use
it for coresets.

Plain greedy selection takes the point farthest from all centers as the next center, measures all
points against it, and repeats: one pass over memory per center. This module selects the same
centers with far less work:

- Many centers per pass. The points farthest from the centers become candidates. Let `bound` be the
  largest distance of any other point to its nearest center; more centers only reduce it. The
  distances of the candidates are updated after each new center. As long as that of the farthest
  candidate exceeds `bound`, this candidate is the farthest of all points and hence the next center.
  Then one pass measures all points against all new centers, as a matrix product.
- Lower bounds of distances. Most points are far from every new center. The sketch of a point has
  its coordinates along the directions of largest variance and the norm of the residual. Norms
  differ by no more than the vectors do, so sketches are no farther apart than their points. The
  exact distance of a point to a new center is computed only if the distance of their sketches is
  below the distance of the point to its nearest center so far.

Few points, which all would be candidates, need no passes, and no sketches. For them, compiling
plain greedy selection takes a fraction of the time.

The points may be sharded over devices: each shard measures its own points, and all shards select
the same centers from the candidates of all. The ids of points decide which one is the first center
and which one of equally far points comes first, so the selection does not depend on the sharding.

Letters: n points (of a shard), d dimensions, s dimensions of a sketch, m centers at most, k new
centers of a pass, b points of a block, c candidates of all shards.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from uadjax.numerics import collectives
from uadjax.types import Key

_CANDIDATES = 4096  # Candidates of all shards together, approximately.
_MAX_PLAIN = 4096  # From up to so many points, not sharded, plain greedy steps select.
_GROUP = 16  # Adjacent points become candidates together, so that fewer values are sorted.
_MAX_NEW_CENTERS = 1024  # A pass selects no more centers than this.
_CHUNK = 64  # A block of points is measured against 64 centers at a time, while it is in the cache.
_BLOCK = 4096  # Points are processed in blocks of this size.
# Points that need exact distances are gathered from their block if they are at most 1/8 or 1/2 of
# it; otherwise the whole block is measured.
_SUBSET_SHARES = (8, 2)
_SKETCH = 64  # A sketch has at most this many dimensions.
_SAMPLE = 8192  # Directions of largest variance are estimated from about as many points as this.
_CENTER_STEPS = 16  # The center is rounded to steps of at least 1/16 of a standard deviation.
# Lower bounds are reduced by this fraction of the squared norms: rounding errors then only cause
# more work.
_ROUNDING_MARGIN = 1e-5
_MAX_ID = 2**31 - 1  # No id of a point and no random number of `init` is larger.
_EXACT = jax.lax.Precision.HIGHEST

_Carry = tuple[Int[Array, ' k'], Int[Array, ''], Float[Array, ' c']]


class PointSet(NamedTuple):
  """Points to select centers from, with their sketches.

  Attributes:
    points: coordinates, from which `center` is not subtracted.
    point_id: unique id of each point; of equally far points the one with the smallest id is taken.
    center: rounded mean of a sample of the points. It is subtracted before norms and products are
      computed, so that a common offset costs no precision.
    sketch: low-dimensional representation of each point: sketches are no farther apart than points;
      of few points it has no dimensions.
  """

  points: Float[Array, 'n d']
  point_id: Int[Array, ' n']
  center: Float[Array, ' d']
  sketch: Float[Array, 'n s']


class NewCenters(NamedTuple):
  """Centers selected in one pass.

  Attributes:
    position: position of each center among the points of all shards (shard index · n + row); -1 in
      unused entries, whose `point` and `sketch` are arbitrary.
    point: coordinates of each center, minus `PointSet.center`.
    sketch: sketch of each center.
  """

  position: Int[Array, ' k']
  point: Float[Array, 'k d']
  sketch: Float[Array, 'k s']


class Selection(NamedTuple):
  """State of a selection.

  Attributes:
    centers: positions of the centers among the points of all shards (shard index · n + row), in the
      order of selection; -1 in unused entries.
    num_centers: number of centers selected so far.
    squared_distance: squared distance of each point to its nearest center; -1 for centers, and -inf
      for excluded points. Before the first center: inf for the point drawn to become the first one,
      and the largest finite number for all other points that are not excluded.
  """

  centers: Int[Array, ' m']
  num_centers: Int[Array, '']
  squared_distance: Float[Array, ' n']


def covering_radius(selection: Selection) -> Float[Array, '']:
  """Return the covering radius: the largest distance of a point to its nearest center.

  Excluded points do not count. The radius is inf before the first center, and 0 if all points are
  centers. On one shard of a sharded selection it is the radius of that shard's points; the overall
  radius is the maximum over all shards.
  """
  return jnp.sqrt(jnp.maximum(selection.squared_distance.max(), 0.0))


def bytes_per_point(d: int) -> int:
  """Return the bytes per point of `d` dimensions of a `PointSet` and `Selection` in float32."""
  return 4 * (d + min(_SKETCH, d + 1) + 2)


POINT_SET_SPECS = PointSet._make((P('data'), P('data'), P(), P('data')))
CENTER_AND_SKETCH_SPECS = P(), P('data')
SELECTION_SPECS = Selection._make((P(), P(), P('data')))


@functools.partial(jax.jit, static_argnames='axis_name')
def center_and_sketch(
  points: Float[Array, 'n d'],
  valid: Bool[Array, ' n'],
  point_id: Int[Array, ' n'],
  axis_name: str | None = None,
) -> tuple[Float[Array, ' d'], Float[Array, 'n s']]:
  """Return `PointSet.center` and `PointSet.sketch` of points.

  A sketch has the coordinates of the point minus the center along the `_SKETCH` - 1 directions of
  largest variance (principal components) and the norm of the residual. Center and directions are
  estimated from valid points, sampled by a hash of their ids so that the sample does not depend on
  the sharding. The caller builds the PointSet: returned from here, jit would copy its points.

  Args:
    points: coordinates of this shard's points.
    valid: False for points that must not affect the center and the directions of the sketches. They
      are sketched nevertheless; only `valid` of `init` excludes points from the selection.
    point_id: unique id of each point.
    axis_name: mesh axis over which the points are sharded, or None if there is a single shard.
  """
  size = min(len(points), 2 * _SAMPLE // collectives.axis_size(axis_name) + _GROUP)
  num_valid = jnp.maximum(collectives.psum(valid.sum(), axis_name), 1)
  sampling_rate = _SAMPLE / num_valid.astype(jnp.float32)
  # In Knuth's multiplicative hash the upper bits are the well-mixed ones.
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
  if _is_plain(len(points), axis_name):
    return center, jnp.zeros((len(points), 0))
  # The bounds hold for every orthonormal basis; the variance only decides how tight they are.
  basis = jnp.linalg.eigh(scatter)[1][:, -(_SKETCH - 1) :]

  def sketch_block(start: Int[Array, ''], sketch: Float[Array, 'n s']) -> Float[Array, 'n s']:
    x = jax.lax.dynamic_slice_in_dim(points, start, min(_BLOCK, len(points))) - center[None]
    leading = jnp.einsum('bd,ds->bs', x, basis, precision=_EXACT)
    # A difference of squared norms would lose all digits of a short residual: bounds would fail.
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
  """Draw the first center uniformly at random, and return a selection still without centers.

  Each valid point gets random bits that depend on its id, and the smallest bits win, so that the
  draw does not depend on the sharding. The drawn point is only marked as the farthest one;
  `select_until` then selects it first. Without valid points it selects none.

  Args:
    key: the same key draws the same point.
    valid: False for points that are excluded from the selection.
    point_id: unique id of each point.
    max_centers: number of centers that the selection can hold.
    axis_name: mesh axis over which the points are sharded, or None if there is a single shard.
  """
  random_bits = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i)) >> 1)(point_id)
  min_bits = jnp.min(random_bits, where=valid, initial=_MAX_ID)
  has_min_bits = valid & (random_bits == collectives.all_min(min_bits, axis_name))
  first_id = jnp.min(point_id, where=has_min_bits, initial=_MAX_ID)
  first_id = collectives.all_min(first_id, axis_name)
  is_first = has_min_bits & (point_id == first_id)
  squared_distance = jnp.where(valid, jnp.finfo(jnp.float32).max, -jnp.inf)
  # The drawn point has the largest distance, so it is selected first.
  squared_distance = jnp.where(is_first, jnp.inf, squared_distance)
  centers = jnp.full(max_centers, -1, jnp.int32)
  return Selection(centers, jnp.zeros((), jnp.int32), squared_distance)


@functools.partial(jax.jit, donate_argnums=1, static_argnames='axis_name')
def select_until(
  point_set: PointSet, selection: Selection, target: Int[Array, ''], axis_name: str | None = None
) -> Selection:
  """Select centers until there are `target` of them, or all valid points are centers.

  Each center is the point farthest from all previous ones, and of several the one with the smallest
  id: the result is that of plain greedy selection.

  Args:
    point_set: points to select from.
    selection: state from `init` or an earlier call; its buffers are donated.
    target: total number of centers, earlier ones included; at most `max_centers` of `init`.
    axis_name: mesh axis over which the points are sharded, or None if there is a single shard.
  """
  if _is_plain(len(selection.squared_distance), axis_name):
    return _select_plainly(point_set, selection, target)

  def with_farthest(selection: Selection) -> tuple[Selection, Float[Array, '']]:
    return selection, collectives.all_max(selection.squared_distance.max(), axis_name)

  def needs_more(carry: tuple[Selection, Float[Array, '']]) -> Bool[Array, '']:
    return (carry[0].num_centers < target) & (carry[1] >= 0)

  def select_batch(carry: tuple[Selection, Float[Array, '']]) -> tuple[Selection, Float[Array, '']]:
    (centers, num_centers, distance), farthest = carry
    max_new = target - num_centers
    new_centers, num_new = _pick_centers(point_set, distance, farthest, max_new, axis_name)
    slots = num_centers + jnp.arange(_MAX_NEW_CENTERS)
    slots = jnp.where(new_centers.position >= 0, slots, len(centers))
    centers = centers.at[slots].set(new_centers.position, mode='drop')
    distance = _update_distances(point_set, distance, new_centers, num_new, axis_name)
    return with_farthest(Selection(centers, num_centers + num_new, distance))

  return jax.lax.while_loop(needs_more, select_batch, with_farthest(selection))[0]


def _is_plain(n: int, axis_name: str | None) -> bool:
  return axis_name is None and n <= _MAX_PLAIN


def _select_plainly(point_set: PointSet, selection: Selection, target: Int[Array, '']) -> Selection:
  """Do the same as `select_until` by measuring all points against each center; not sharded."""
  points = point_set.points - point_set.center[None]
  squared_norms = jnp.sum(points**2, axis=1)

  def needs_more(selection: Selection) -> Bool[Array, '']:
    return (selection.num_centers < target) & (selection.squared_distance.max() >= 0)

  def select_next(selection: Selection) -> Selection:
    centers, num_centers, distance = selection
    pick = _farthest(distance, point_set.point_id)
    distance = jnp.minimum(distance, _squared_distance_to(points, squared_norms, pick))
    centers = centers.at[num_centers].set(pick)
    return Selection(centers, num_centers + 1, distance.at[pick].set(-1.0))

  return jax.lax.while_loop(needs_more, select_next, selection)


def _farthest(distance: Float[Array, ' c'], point_id: Int[Array, ' c']) -> Int[Array, '']:
  """Return the position of the largest distance, of equal ones that with the smallest id."""
  is_max = distance == distance.max()
  min_id = jnp.min(point_id, where=is_max, initial=_MAX_ID)
  return jnp.argmax(is_max & (point_id == min_id)).astype(jnp.int32)


def _squared_distance_to(
  points: Float[Array, 'c d'], squared_norms: Float[Array, ' c'], pick: Int[Array, '']
) -> Float[Array, ' c']:
  product = jnp.einsum('cd,d->c', points, points[pick], precision=_EXACT)
  return jnp.maximum(squared_norms + squared_norms[pick] - 2 * product, 0.0)


class _Candidates(NamedTuple):
  """Candidates of all shards for the next centers.

  Attributes:
    point: coordinates, minus `PointSet.center`.
    sketch: sketches.
    point_id: ids, which break ties.
    position: positions among the points of all shards.
    squared_distance: squared distances to the nearest center; -1 for a duplicate.
  """

  point: Float[Array, 'c d']
  sketch: Float[Array, 'c s']
  point_id: Int[Array, ' c']
  position: Int[Array, ' c']
  squared_distance: Float[Array, ' c']


def _gather_candidates(
  point_set: PointSet,
  squared_distance: Float[Array, ' n'],
  farthest: Float[Array, ''],
  axis_name: str | None,
) -> tuple[_Candidates, Float[Array, '']]:
  """Return candidates, and a bound on the squared distance of all other points.

  The candidates are the points of the groups of adjacent points with the largest maximum distances,
  and the farthest point itself.
  """
  n = len(squared_distance)
  num_groups = -(-n // _GROUP)
  grouped = jnp.pad(squared_distance, (0, num_groups * _GROUP - n), constant_values=-jnp.inf)
  grouped = grouped.reshape(num_groups, _GROUP)
  num_chosen = min(-(-_CANDIDATES // _GROUP // collectives.axis_size(axis_name)), num_groups)
  maxima = jnp.append(grouped.max(axis=1), -jnp.inf)
  group_maxima, group_ids = jax.lax.top_k(maxima, num_chosen + 1)
  bound, group_ids = collectives.all_max(group_maxima[-1], axis_name), group_ids[:-1]
  rows = (group_ids[:, None] * _GROUP + jnp.arange(_GROUP)[None]).reshape(-1)
  rows = jnp.minimum(rows, n - 1)  # Rows beyond the end are padding, whose distance is -inf.
  # The farthest point with the smallest id becomes the first candidate: where many points are
  # equally far, the groups may not contain it.
  is_farthest = squared_distance == farthest
  first = jnp.argmin(jnp.where(is_farthest, point_set.point_id, _MAX_ID))
  is_duplicate = is_farthest[first] & (rows == first)
  distance = jnp.where(is_duplicate, -1.0, grouped[group_ids].reshape(-1))
  distance = jnp.append(jnp.where(is_farthest[first], farthest, -jnp.inf), distance)
  rows = jnp.append(first, rows).astype(jnp.int32)
  point = point_set.points[rows] - point_set.center[None]
  position = collectives.axis_index(axis_name) * n + rows
  candidates = _Candidates(
    point, point_set.sketch[rows], point_set.point_id[rows], position, distance
  )
  return collectives.all_gather_tiled(candidates, axis_name), bound


def _pick_centers(
  point_set: PointSet,
  squared_distance: Float[Array, ' n'],
  farthest: Float[Array, ''],
  max_new: Int[Array, ''],
  axis_name: str | None,
) -> tuple[NewCenters, Int[Array, '']]:
  """Return the next centers, one or many, and their number.

  The farthest candidate is picked, the distances of the others are updated, and this repeats while
  the squared distance of the farthest candidate exceeds that of all points that are no candidates,
  that is, while it is certain to be the farthest of all points. The first pick is certain without
  this check.

  Args:
    point_set: points to select from.
    squared_distance: squared distance of each point of this shard to its nearest center.
    farthest: maximum of `squared_distance` over all shards.
    max_new: number of centers that are still needed; a pass picks at most `_MAX_NEW_CENTERS`.
    axis_name: mesh axis over which the points are sharded, or None if there is a single shard.
  """
  candidates, bound = _gather_candidates(point_set, squared_distance, farthest, axis_name)
  points, squared_norms = candidates.point, jnp.sum(candidates.point**2, axis=1)

  def certain(carry: _Carry) -> Bool[Array, '']:
    _, num_picked, remaining = carry
    # The limit is at least 0, because picked candidates have -1.
    is_farthest = remaining.max() > jnp.maximum(bound, 0.0)
    return (num_picked < jnp.minimum(max_new, _MAX_NEW_CENTERS)) & is_farthest

  def take_next(carry: _Carry) -> _Carry:
    picks, num_picked, remaining = carry
    pick = _farthest(remaining, candidates.point_id)
    to_pick = _squared_distance_to(points, squared_norms, pick)
    remaining = jnp.minimum(remaining, to_pick).at[pick].set(-1.0)
    return picks.at[num_picked].set(pick), num_picked + 1, remaining

  initial = jnp.full(_MAX_NEW_CENTERS, -1, jnp.int32), jnp.zeros((), jnp.int32)
  first = take_next((*initial, candidates.squared_distance))
  picks, num_picked, _ = jax.lax.while_loop(certain, take_next, first)
  rows = jnp.maximum(picks, 0)
  position = jnp.where(picks >= 0, candidates.position[rows], -1)
  return NewCenters(position, points[rows], candidates.sketch[rows]), num_picked


def _update_distances(
  point_set: PointSet,
  squared_distance: Float[Array, ' n'],
  new_centers: NewCenters,
  num_new: Int[Array, ''],
  axis_name: str | None,
) -> Float[Array, ' n']:
  """Return each point's squared distance to its nearest center, new centers included.

  Args:
    point_set: points of this shard.
    squared_distance: squared distance of each point to its nearest center so far.
    new_centers: the new centers of all shards, which get -1.
    num_new: number of new centers; further entries of `new_centers` are unused.
    axis_name: mesh axis over which the points are sharded, or None if there is a single shard.
  """
  n = len(squared_distance)

  def update_block(start: Array, squared_distance: Float[Array, ' n']) -> Float[Array, ' n']:
    distance = jax.lax.dynamic_slice_in_dim(squared_distance, start, min(_BLOCK, n))
    distance = _update_block(point_set, distance, new_centers, num_new, start)
    return jax.lax.dynamic_update_slice_in_dim(squared_distance, distance, start, 0)

  squared_distance = _for_each_block(update_block, squared_distance)
  rows = new_centers.position - collectives.axis_index(axis_name) * n
  rows = jnp.where((rows >= 0) & (rows < n), rows, n)
  return squared_distance.at[rows].set(-1.0, mode='drop')


def _update_block(
  point_set: PointSet,
  distance: Float[Array, ' b'],
  new_centers: NewCenters,
  num_new: Int[Array, ''],
  start: Int[Array, ''],
) -> Float[Array, ' b']:
  """Return the squared distances of the block of points from `start` on to their nearest centers.

  For every chunk of centers, the sketches bound the distances from below. Exact distances are
  computed only for points whose bound is below the current distance: for a gathered subset of the
  block if they are few, else for the whole block.
  """
  n, size = len(point_set.points), len(distance)
  sketch = jax.lax.dynamic_slice_in_dim(point_set.sketch, start, size)
  subset_sizes = [size // share for share in _SUBSET_SHARES if size // share]

  def update_chunk(i: Int[Array, ''], distance: Float[Array, ' b']) -> Float[Array, ' b']:
    chunk = i * _CHUNK + jnp.arange(_CHUNK)
    is_used, centers = chunk < num_new, new_centers.point[chunk]
    sketches = new_centers.sketch[chunk]
    is_near = _nearest_squared_distance(sketch, sketches, is_used, _ROUNDING_MARGIN) < distance

    def update_subset(subset_size: int) -> Float[Array, ' b']:
      rows = jnp.nonzero(is_near, size=subset_size, fill_value=n)[0]
      x = point_set.points[jnp.minimum(start + rows, n - 1)] - point_set.center[None]
      new_distance = _nearest_squared_distance(x, centers, is_used)
      return distance.at[rows].min(new_distance, mode='drop')

    def update_all() -> Float[Array, ' b']:
      x = jax.lax.dynamic_slice_in_dim(point_set.points, start, size) - point_set.center[None]
      return jnp.minimum(distance, _nearest_squared_distance(x, centers, is_used))

    branches = [functools.partial(update_subset, x) for x in subset_sizes]
    branch_index = jnp.sum(is_near.sum() > jnp.asarray(subset_sizes, jnp.int32))
    return jax.lax.switch(branch_index, [*branches, update_all])

  return jax.lax.fori_loop(0, (num_new + _CHUNK - 1) // _CHUNK, update_chunk, distance)


def _nearest_squared_distance(
  x: Float[Array, 'b s'], centers: Float[Array, 'k s'], valid: Bool[Array, ' k'], slack: float = 0.0
) -> Float[Array, ' b']:
  """Return the squared distance of each row of `x` to the nearest valid center; inf without any.

  The vectors are points or sketches. The squared distance is reduced by `slack` times the squared
  norms of the row and of the center, which makes it a lower bound despite rounding.
  """
  squared_norms = jnp.where(valid, (1 - slack) * jnp.sum(centers**2, axis=1), jnp.inf)
  product = jnp.einsum('ks,bs->kb', centers, x, precision=_EXACT)
  nearest = jnp.min(squared_norms[:, None] - 2 * product, axis=0)
  return jnp.maximum(nearest + (1 - slack) * jnp.sum(x**2, axis=1), 0.0)


def _for_each_block(update_block: Callable[[Array, Array], Array], rows: Array) -> Array:
  """Update `rows` block by block, by `update_block(start, rows) -> rows`.

  The function gets and returns all rows, and updates the `min(_BLOCK, len(rows))` rows from `start`
  on. All blocks have the same size, so the last one may overlap the one before it: updating a row
  twice must give the same result as once.
  """
  n, size = len(rows), min(_BLOCK, len(rows))
  return jax.lax.fori_loop(
    0, -(-n // size), lambda i, rows: update_block(jnp.minimum(i * size, n - size), rows), rows
  )


def _round_to_coarse_steps(
  mean: Float[Array, ' d'], deviation: Float[Array, ' d']
) -> Float[Array, ' d']:
  """Round a mean to multiples of a step, so coarse that the order of summation does not matter.

  The result thus does not depend on the sharding. The step of a dimension is a power of two between
  1 and 2 times the standard deviation / `_CENTER_STEPS`, or larger if the deviation is close to 0.
  """
  min_step = jnp.maximum(2.0**-18 * jnp.abs(mean), jnp.finfo(jnp.float32).tiny)
  _, exponent = jnp.frexp(jnp.maximum(deviation / _CENTER_STEPS, min_step))
  step = jnp.ldexp(jnp.ones_like(mean), exponent)
  return jnp.round(mean / step) * step
