"""PatchCore's memory of normal patches: filled image by image, reduced when it is full.

What makes room is a k-center selection of the patches that came since the last time; when the
selected alone fill half of the bank, one of them all. Each keeps more than is needed, so that the
last selection still has a choice. The radii of selections of selections add up: what is reported is
their sum, which no patch that was ever folded in exceeds (Charikar et al. 2004, section 3).

Leaving an image out of the bank is more than passing over its rows: they kept the selection from
rows of other images nearby, and their absence leaves holes that an unseen image does not meet. So
the images are dealt to folds, of each fold's patches a selection stands in for them, and the bank
without a fold is selected anew, from the stand-ins of the others (experiments/README.md).

The rows may be split over devices: each keeps the patches of the images that it was given, and all
select together. A patch's number tells where it stands among all patches ever folded in, so that
what is selected does not depend on who holds it.

Letters: n rows, d embedding, b batch, h w patch grid, s shards, m rows that are kept.
"""

from collections.abc import Sequence
import functools
import math
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from uadjax.numerics import coreset, shards
from uadjax.types import Arrays, ConfigError, Key, Shards, silently, Spec, Track

_SPARE = 4  # So many times the ratio is kept where there will be a selection from what is kept.
_FOLDS = 10
# Of the projection that stand-ins are selected in: five times faster, and as good for what they do.
_DIM = 64
_STEP = 1024  # Centers between two signs of life, at least.


class Patches(NamedTuple):
  """Patches, the image that each is from, and their numbers."""

  rows: Float[Array, 'n d']
  image: Int[Array, ' n']
  number: Int[Array, ' n']


class Bank(NamedTuple):
  """Patches, and what is known of them.

  Attributes:
    patches: those of one image at the end of every shard are scratch.
    chosen: how many rows at the beginning of each shard are left of a selection.
    cursor: how many rows of each shard are in use.
    seen: images folded in, those of earlier runs included.
    radius: every patch ever folded in is at most as far from some row in use; of selections in a
      projection, as far there.
  """

  patches: Patches
  chosen: Int[Array, ' s']
  cursor: Int[Array, ' s']
  seen: Int[Array, '']
  radius: Float[Array, '']


class Settled(NamedTuple):
  """What remains of a bank in the end: rows as they were selected, whole on all devices."""

  patches: Patches
  seen: Int[Array, '']
  radius: Float[Array, '']


# How the parts are held by shards: split (True), or the same on all (False).
SPLIT = Bank(True, True, True, False, False)  # pyright: ignore[reportArgumentType]


class Plan(NamedTuple):
  """Sizes and settings of a bank.

  Attributes:
    patches: of an image.
    ratio: share of all patches that is kept in the end.
    capacity: rows of a shard until room must be made.
    bounded: whether that can happen.
    final: rows in the end.
    folds: that images are dealt to, to leave them out.
    dim: of the random projection that selections are made in; 0 for none.
    track: (items, number, what is done) -> items, while progress is shown.
    shards: over which devices the rows are split.
  """

  patches: int
  ratio: float
  capacity: int
  bounded: bool
  final: int
  folds: int
  dim: int
  track: Track
  shards: Shards


def plan(d: int, patches: int, spec: Spec, ratio: float, max_bytes: int, dim: int) -> Plan:
  """Size a bank for the images of the spec, after those that an earlier run folded in.

  Raises:
    ConfigError: max_bytes, which every device may use, hold too few images to select from.
  """
  images, seen, parts = spec.images, spec.seen, spec.shards.number
  each = coreset.bytes_per_point(d) + 4 * dim
  most = max_bytes // each
  if most < 4 * patches:
    raise ConfigError(
      f'detector.max_bytes={max_bytes} hold the patches of {most / patches:.1f} images; at least '
      f'{4 * patches * each} are needed, for 4.'
    )
  half = parts * (most // 2)
  before, final = (min(round(ratio * n * patches), half) for n in (seen, seen + images))
  share = math.ceil(max(images, 1) / parts) + spec.spare
  wanted = math.ceil(before / parts) + share * patches
  folds = min(_FOLDS, max(1, seen + images))
  capacity, final = min(wanted, most), max(1, final)
  return Plan(patches, ratio, capacity, wanted > most, final, folds, dim, spec.track, spec.shards)


def empty(plan: Plan, d: int) -> Bank:
  """A bank of nothing, made where it belongs."""
  size = plan.capacity + plan.patches

  def one(axis: str | None) -> Bank:
    image, number = (jnp.full(size, -1, jnp.int32) for _ in range(2))
    chosen, cursor = (jnp.zeros(1, jnp.int32) for _ in range(2))
    # Buffers of their own each, for all of them are donated.
    patches = Patches(jnp.zeros((size, d)), image, number)
    return Bank(patches, chosen, cursor, jnp.zeros((), jnp.int32), jnp.zeros(()))

  return jax.jit(plan.shards.over(one, (), SPLIT))()


def put(
  bank: Bank,
  x: Float[Array, 'b h w d'],
  valid: Bool[Array, ' b'],
  index: Int[Array, ' b'],
  over: Shards,
) -> Bank:
  """Append the patches of the valid images, in place where the bank is donated."""
  return over.over(_put, (SPLIT, True, True, True), SPLIT)(bank, x, valid, index)


def _put(
  bank: Bank,
  x: Float[Array, 'b h w d'],
  valid: Bool[Array, ' b'],
  index: Int[Array, ' b'],
  axis: str | None,
) -> Bank:
  patches, d = x.shape[1] * x.shape[2], x.shape[3]
  scratch = len(bank.patches.rows) - patches
  among = jnp.arange(patches, dtype=jnp.int32)

  def one(i: Array, carry: tuple[Patches, Array]) -> tuple[Patches, Array]:
    known, cursor = carry
    at = jnp.where(valid[i], cursor, scratch)
    # Beyond 2^31 patches numbers come again, and of equals another may come first.
    image = jnp.full(patches, index[i], jnp.int32)
    fresh = Patches(x[i].reshape(patches, d), image, index[i] * patches + among)
    known = jax.tree.map(
      lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, at, 0), known, fresh
    )
    return known, cursor + jnp.where(valid[i], patches, 0)

  known, cursor = jax.lax.fori_loop(0, len(x), one, (bank.patches, bank.cursor[0]))
  seen = bank.seen + shards.total(jnp.sum(valid, dtype=jnp.int32), axis)
  return bank._replace(patches=known, cursor=cursor[None], seen=seen)


def make_room(key: Key, bank: Bank, plan: Plan, images: int) -> Bank:
  """Reduce every shard by itself if so many images would not fit in any more."""
  more = math.ceil(images / plan.shards.number) * plan.patches
  starts, stops = (_whole(x, plan) for x in (bank.chosen, bank.cursor))
  if stops.max() + more <= plan.capacity:
    return bank
  half = plan.capacity // 2
  if more > half:
    raise ConfigError(
      f'detector.max_bytes hold the patches of {plan.capacity // plan.patches} images, too few for '
      f'batches of {images}; lower fit.batch_size or raise detector.max_bytes.'
    )
  start, count = starts.max(), math.ceil(_SPARE * plan.ratio * (stops - starts).max())
  everything = start + count > half
  count = half if everything else count
  for _ in plan.track(range(1), 1, 'Making room'):
    bank = jax.block_until_ready(
      _reduced(key, bank, plan.dim, count, bool(everything), plan.shards)
    )
  return bank


@functools.partial(
  jax.jit, donate_argnums=1, static_argnames=('dim', 'count', 'everything', 'over')
)
def _reduced(key: Key, bank: Bank, dim: int, count: int, everything: bool, over: Shards) -> Bank:
  def reduced(bank: Bank, axis: str | None) -> Bank:
    start = jnp.zeros((), jnp.int32) if everything else bank.chosen[0]
    rows, number = _projected(key, bank.patches.rows, dim), bank.patches.number
    valid = _between(len(rows), start, bank.cursor[0])
    cloud = coreset.cloud(rows, valid, number)
    selection = coreset.begin(key, valid, number, count)
    selection = coreset.advance(cloud, selection, jnp.int32(count))
    # What was kept before stands for patches as far away as it did.
    fresh = shards.gathered(coreset.radius(selection), axis).max()
    radius = bank.radius + fresh if everything else jnp.maximum(bank.radius, fresh)
    return _compacted(bank, selection.centers, start, selection.taken)._replace(radius=radius)

  return over.over(reduced, (SPLIT,), SPLIT)(bank)


def settle(key: Key, bank: Bank, plan: Plan) -> Settled:
  """Select the rows that stay, and drop the others with the scratch."""
  valid = _in_use(bank.patches.rows, bank.cursor, plan.shards)
  selection = _select(key, bank.patches, valid, plan, plan.final, 'Selecting the coreset')
  stay = _fetched(bank.patches, selection, plan)
  return Settled(stay, bank.seen, bank.radius + coreset.radius(selection))


def kept(settled: Settled) -> dict[str, Array]:
  """By name, as files hold it."""
  return settled.patches._asdict() | {'seen': settled.seen, 'radius': settled.radius}


def stand_ins(key: Key, bank: Bank, plan: Plan, before: Patches | None) -> Patches:
  """Select from the patches of every fold: those in the bank, and those that stood in `before`."""
  sources = [(bank.patches, _whole(bank.cursor, plan))]
  if before is not None:
    sources.append(_dealt(before, plan))
  dealt = [_folds(source.image, cursor, plan) for source, cursor in sources]
  share = math.ceil(_SPARE * plan.final / plan.folds)
  quick = plan._replace(dim=min(plan.dim or _DIM, _DIM), track=silently)
  chosen = []
  for fold in plan.track(range(plan.folds), plan.folds, 'Selecting for calibration'):
    # One fold's patches at a time: there may be gigabytes of all.
    places = [at[fold] for at, _ in dealt]
    some, valid = _taken(
      [source for source, _ in sources], places, [v[fold] for _, v in dealt], plan
    )
    count = min(share, sum(int(v[fold].sum()) for _, v in dealt))
    chosen.append(_fetched(some, _select(key, some, valid, quick, count, ''), plan))
  return jax.tree.map(lambda *some: jnp.concatenate(some), *chosen)


def without(stand_ins: Patches, plan: Plan, fold: int, count: int) -> Float[Array, 'm d']:
  """Select a bank of so many rows, or all there are, from what stands in for the other folds."""
  dealt, cursor = _dealt(stand_ins, plan)
  valid = _in_use(dealt.rows, jnp.asarray(cursor), plan.shards) & (dealt.image % plan.folds != fold)
  quiet = plan._replace(track=silently)
  return _fetched(dealt, _select(jax.random.key(fold), dealt, valid, quiet, count, ''), plan).rows


def restore(bank: Bank, kept: Arrays, plan: Plan) -> Bank:
  """Begin an empty bank with what was kept of a settled one."""
  dealt, cursor = _dealt(named(kept), plan)

  def begun(bank: Bank, dealt: Patches, cursor: Int[Array, ' s'], axis: str | None) -> Bank:
    known = jax.tree.map(
      lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, 0, 0), bank.patches, dealt
    )
    return bank._replace(patches=known, chosen=cursor, cursor=jnp.copy(cursor))

  over = plan.shards.over(begun, (SPLIT, True, True), SPLIT)
  seen, radius = jnp.asarray(kept['seen']), jnp.asarray(kept['radius'])
  return jax.jit(over)(bank, dealt, jnp.asarray(cursor))._replace(seen=seen, radius=radius)


def named(arrays: Arrays, prefix: str = '') -> Patches:
  """The patches among arrays by name."""
  return Patches(*(jnp.asarray(arrays[prefix + name]) for name in Patches._fields))


def _select(
  key: Key, known: Patches, valid: Bool[Array, ' n'], plan: Plan, count: int, what: str
) -> coreset.Selection:
  """k-center of the rows that are valid."""
  # Always room for as many, so that all selections of a run are one compilation.
  room = max(count, plan.final)
  rows = _projected(key, known.rows, plan.dim)
  center, sketch, selection = _begun(key, rows, known.number, valid, room, plan.shards)
  cloud = coreset.Cloud(rows, known.number, center, sketch)
  # Not too often: a pass that ends early for being told of measures fewer centers at once.
  targets = [*range(step := max(_STEP, count // 50), count, step), count]
  for target in plan.track(targets, len(targets), what):
    selection = _advanced(cloud, selection, jnp.int32(target), plan.shards)
    jax.block_until_ready(selection)
  return selection


@functools.partial(jax.jit, static_argnames=('room', 'over'))
def _begun(
  key: Key,
  rows: Float[Array, 'n d'],
  number: Int[Array, ' n'],
  valid: Bool[Array, ' n'],
  room: int,
  over: Shards,
) -> tuple[Float[Array, ' d'], Float[Array, 'n s'], coreset.Selection]:
  """Center and sketch, without the rows, of which there would be a copy; the first center."""
  cloud = over.over(coreset.cloud, (True, True, True), coreset.CLOUD)(rows, valid, number)
  begin = over.over(
    functools.partial(coreset.begin, centers=room), (False, True, True), coreset.SELECTION
  )
  return cloud.center, cloud.sketch, begin(key, valid, number)


@functools.partial(jax.jit, donate_argnums=1, static_argnames='over')
def _advanced(
  cloud: coreset.Cloud, selection: coreset.Selection, target: Int[Array, ''], over: Shards
) -> coreset.Selection:
  given = coreset.CLOUD, coreset.SELECTION, False
  return over.over(coreset.advance, given, coreset.SELECTION)(cloud, selection, target)


def _projected(key: Key, rows: Float[Array, 'n d'], dim: int) -> Float[Array, 'n _e']:
  if not 0 < dim < rows.shape[1]:
    return rows
  projection = jax.random.normal(jax.random.fold_in(key, 1), (rows.shape[1], dim))
  return jnp.matmul(rows, projection / dim**0.5, precision=jax.lax.Precision.HIGHEST)


def _fetched(known: Patches, selection: coreset.Selection, plan: Plan) -> Patches:
  """The rows that were selected, in that order, on every device."""
  at = selection.centers[: int(selection.taken)]
  return _rows_at(known, at, plan.shards)


@functools.partial(jax.jit, static_argnames='over')
def _rows_at(known: Patches, at: Int[Array, ' m'], over: Shards) -> Patches:
  def one(known: Patches, at: Int[Array, ' m'], axis: str | None) -> Patches:
    return jax.tree.map(lambda x: shards.fetched(x, at, axis), known)

  return over.over(one, (True, False), False)(known, at)


def _whole(x: Array, plan: Plan) -> np.ndarray:
  """What is split over devices, on the host."""
  return np.asarray(jax.jit(plan.shards.over(shards.joined, (True,), False))(x))


def _between(n: int, start: Int[Array, ''], stop: Int[Array, '']) -> Bool[Array, ' n']:
  places = jnp.arange(n)
  return (places >= start) & (places < stop)


@functools.partial(jax.jit, static_argnames='over')
def _in_use(rows: Float[Array, 'n d'], cursor: Int[Array, ' s'], over: Shards) -> Bool[Array, ' n']:
  def one(rows: Array, cursor: Array, axis: str | None) -> Bool[Array, ' n']:
    return _between(len(rows), jnp.int32(0), cursor[0])

  return over.over(one, (True, True), True)(rows, cursor)


def _dealt(known: Patches, plan: Plan) -> tuple[Patches, Int[np.ndarray, ' s']]:
  """Split rows that all devices have, as evenly as can be, and tell how many each got."""
  parts, n = plan.shards.number, len(known.rows)
  share = math.ceil(n / parts)
  cursor = np.clip(n - share * np.arange(parts), 0, share).astype(np.int32)

  def one(known: Patches, axis: str | None) -> Patches:
    return shards.dealt(known, axis)

  filled = jax.tree.map(
    lambda x: jnp.pad(x, [(0, share * parts - n), *[(0, 0)] * (x.ndim - 1)]), known
  )
  return jax.jit(plan.shards.over(one, (False,), True))(filled), cursor


def _folds(
  image: Int[Array, ' n'], cursor: Int[np.ndarray, ' s'], plan: Plan
) -> tuple[Int[np.ndarray, 'f s m'], Bool[np.ndarray, 'f s m']]:
  """For every fold and shard the places of its rows, as many for each, and which are valid."""
  whose = _whole(image, plan).reshape(len(cursor), -1) % plan.folds
  members = [
    [np.flatnonzero(mine[:used] == fold) for mine, used in zip(whose, cursor, strict=True)]
    for fold in range(plan.folds)
  ]
  size = max(len(mine) for of_fold in members for mine in of_fold)
  places = [[np.pad(mine, (0, size - len(mine))) for mine in fold] for fold in members]
  valid = [[np.arange(size) < len(mine) for mine in fold] for fold in members]
  return np.array(places, np.int32), np.array(valid)


def _taken(
  sources: Sequence[Patches],
  places: Sequence[Int[np.ndarray, 's _m']],
  valid: Sequence[Bool[np.ndarray, 's _m']],
  plan: Plan,
) -> tuple[Patches, Bool[Array, ' n']]:
  """The rows at places of every shard, those of one source after those of another."""

  def one(sources: Any, places: Any, valid: Any, axis: str | None) -> tuple[Patches, Array]:
    found = [
      jax.tree.map(lambda x, at=at: x[at[0]], source)
      for source, at in zip(sources, places, strict=True)
    ]
    whole = jax.tree.map(lambda *some: jnp.concatenate(some), *found)
    return whole, jnp.concatenate([some[0] for some in valid])

  over = plan.shards.over(one, (True, True, True), True)
  return jax.jit(over)(list(sources), list(places), list(valid))


def _compacted(
  bank: Bank, centers: Int[Array, ' m'], start: Int[Array, ''], count: Int[Array, '']
) -> Bank:
  """Move the first `count` centers to `start`, in place: ascending, none is overwritten unread."""
  order = jnp.sort(jnp.where(centers < 0, len(bank.patches.rows), centers))

  def one(i: Array, known: Patches) -> Patches:
    def moved(x: Array) -> Array:
      row = jax.lax.dynamic_slice_in_dim(x, order[i], 1)
      return jax.lax.dynamic_update_slice_in_dim(x, row, start + i, 0)

    return jax.tree.map(moved, known)

  known = jax.lax.fori_loop(0, count, one, bank.patches)
  stop = (start + count)[None]
  return bank._replace(patches=known, chosen=stop, cursor=jnp.copy(stop))
