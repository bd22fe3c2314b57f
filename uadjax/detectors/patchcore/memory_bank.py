"""PatchCore's memory of normal patches: filled image by image, reduced when it is full.

What makes room is a k-center selection of the patches that came since the last time; when the
selected alone fill half of the bank, one of them all. Each keeps more than is needed, so that the
last selection still has a choice. The radii of selections of selections add up: what is reported is
their sum, which no patch that was ever folded in exceeds (Charikar et al. 2004, section 3).

The rows may be split over devices: each keeps the patches of the images that it was given, and
makes room for itself.

Letters: n rows, d embedding, b batch, h w patch grid, s shards, m centers.
"""

import functools
import math
from typing import NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from uadjax.detectors.patchcore import selection as selections
from uadjax.detectors.patchcore.capacity import Plan, SPARE
from uadjax.detectors.patchcore.selection import Patches
from uadjax.errors import ConfigError
from uadjax.numerics import collectives, coreset
from uadjax.numerics.collectives import Shards
from uadjax.types import Arrays, Key


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
  seen = bank.seen + collectives.total(jnp.sum(valid, dtype=jnp.int32), axis)
  return bank._replace(patches=known, cursor=cursor[None], seen=seen)


def make_room(key: Key, bank: Bank, plan: Plan, images: int) -> Bank:
  """Reduce every shard by itself if so many images would not fit in any more."""
  more = math.ceil(images / plan.shards.number) * plan.patches
  starts, stops = (selections.whole(x, plan.shards) for x in (bank.chosen, bank.cursor))
  if stops.max() + more <= plan.capacity:
    return bank
  half = plan.capacity // 2
  if more > half:
    raise ConfigError(
      f'detector.max_bytes hold the patches of {plan.capacity // plan.patches} images, too few for '
      f'batches of {images}; lower fit.batch_size or raise detector.max_bytes.'
    )
  start, count = starts.max(), math.ceil(SPARE * plan.ratio * (stops - starts).max())
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
    rows, number = selections.projected(key, bank.patches.rows, dim), bank.patches.number
    valid = selections.between(len(rows), start, bank.cursor[0])
    cloud = coreset.cloud(rows, valid, number)
    selection = coreset.begin(key, valid, number, count)
    selection = coreset.advance(cloud, selection, jnp.int32(count))
    # What was kept before stands for patches as far away as it did.
    fresh = collectives.gathered(coreset.radius(selection), axis).max()
    radius = bank.radius + fresh if everything else jnp.maximum(bank.radius, fresh)
    return _compacted(bank, selection.centers, start, selection.taken)._replace(radius=radius)

  return over.over(reduced, (SPLIT,), SPLIT)(bank)


def settle(key: Key, bank: Bank, plan: Plan) -> Settled:
  """Select the rows that stay, and drop the others with the scratch."""
  known = bank.patches
  valid = selections.in_use(known, bank.cursor, plan.shards)
  selection = selections.k_center(key, known, valid, plan, plan.final, 'Selecting the coreset')
  stay = selections.fetched(known, selection, plan.shards)
  return Settled(stay, bank.seen, bank.radius + coreset.radius(selection))


def kept(settled: Settled) -> dict[str, Array]:
  """By name, as files hold it."""
  return settled.patches._asdict() | {'seen': settled.seen, 'radius': settled.radius}


def restore(bank: Bank, kept: Arrays, plan: Plan) -> Bank:
  """Begin an empty bank with what was kept of a settled one."""
  dealt, cursor = selections.dealt(selections.named(kept), plan.shards)

  def begun(bank: Bank, dealt: Patches, cursor: Int[Array, ' s'], axis: str | None) -> Bank:
    known = jax.tree.map(
      lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, 0, 0), bank.patches, dealt
    )
    return bank._replace(patches=known, chosen=cursor, cursor=jnp.copy(cursor))

  over = plan.shards.over(begun, (SPLIT, True, True), SPLIT)
  seen, radius = jnp.asarray(kept['seen']), jnp.asarray(kept['radius'])
  return jax.jit(over)(bank, dealt, jnp.asarray(cursor))._replace(seen=seen, radius=radius)


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
