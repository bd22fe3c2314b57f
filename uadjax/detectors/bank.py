"""PatchCore's memory of normal patches: filled image by image, reduced when it is full.

What makes room is a k-center selection of the patches that came since the last time; when the
selected alone fill half of the bank, one of them all. Each keeps more than is needed, so that the
last selection still has a choice. The radii of selections of selections add up: what is reported is
their sum, which no patch that was ever folded in exceeds (Charikar et al. 2004, section 3).

Leaving an image out of the bank is more than passing over its rows: they kept the selection from
rows of other images nearby, and their absence leaves holes that an unseen image does not meet. So
the images are dealt to folds, of each fold's patches a selection stands in for them, and the bank
without a fold is selected anew, from the stand-ins of the others (experiments/README.md).

Letters: n rows, d embedding, b batch, h w patch grid.
"""

from collections.abc import Callable, Iterable
import functools
import math
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from uadjax.numerics import coreset
from uadjax.types import Arrays, ConfigError, Key, silently

_SPARE = 4  # So many times the ratio is kept where there will be a selection from what is kept.
_FOLDS = 10
# Of the projection that stand-ins are selected in: five times faster, and as good for what they do.
_DIM = 64
_STEP = 1024  # Centers between two signs of life, at least.


class Bank(NamedTuple):
  """Patches and where they are from.

  Attributes:
    rows: patches; until the bank is settled, those of one image at the end are scratch.
    image: number of the image that each row is from.
    chosen: how many rows at the beginning are left of a selection.
    cursor: how many rows are in use.
    seen: images folded in, those of earlier runs included.
    radius: every patch ever folded in is at most as far from some row in use; of selections in a
      projection, as far there.
  """

  rows: Float[Array, 'n d']
  image: Int[Array, ' n']
  chosen: Int[Array, '']
  cursor: Int[Array, '']
  seen: Int[Array, '']
  radius: Float[Array, '']


class StandIns(NamedTuple):
  """Of the patches of every fold, a selection: patches, and the image that each is from."""

  rows: Float[Array, 'n d']
  image: Int[Array, ' n']


class Plan(NamedTuple):
  """Sizes and settings of a bank.

  Attributes:
    patches: of an image.
    ratio: share of all patches that is kept in the end.
    capacity: rows until room must be made.
    bounded: whether that can happen.
    final: rows in the end.
    folds: that images are dealt to, to leave them out.
    dim: of the random projection that selections are made in; 0 for none.
    track: (items, number, what is done) -> items, while progress is shown.
  """

  patches: int
  ratio: float
  capacity: int
  bounded: bool
  final: int
  folds: int
  dim: int
  track: Callable[[Iterable[Any], int, str], Iterable[Any]]


def plan(
  d: int,
  patches: int,
  images: int,
  seen: int,
  ratio: float,
  max_bytes: int,
  dim: int,
  track: Callable[[Iterable[Any], int, str], Iterable[Any]],
) -> Plan:
  """Size a bank for `images` more than the `seen` that an earlier run folded in.

  Raises:
    ConfigError: max_bytes hold too few images to select from.
  """
  each = coreset.bytes_per_point(d) + 4 * dim
  most = max_bytes // each
  if most < 4 * patches:
    raise ConfigError(
      f'detector.max_bytes={max_bytes} hold the patches of {most / patches:.1f} images; at least '
      f'{4 * patches * each} are needed, for 4.'
    )
  before, final = (min(round(ratio * n * patches), most // 2) for n in (seen, seen + images))
  wanted = before + max(images, 1) * patches
  folds = min(_FOLDS, max(1, seen + images))
  return Plan(patches, ratio, min(wanted, most), wanted > most, max(1, final), folds, dim, track)


def empty(plan: Plan, d: int) -> Bank:
  """A bank of nothing."""
  size = plan.capacity + plan.patches
  # Buffers of their own each, for all of them are donated.
  chosen, cursor, seen = (jnp.zeros((), jnp.int32) for _ in range(3))
  rows, image = jnp.zeros((size, d)), jnp.full(size, -1, jnp.int32)
  return Bank(rows, image, chosen, cursor, seen, jnp.zeros(()))


def put(
  bank: Bank, x: Float[Array, 'b h w d'], valid: Bool[Array, ' b'], index: Int[Array, ' b']
) -> Bank:
  """Append the patches of the valid images, in place where the bank is donated."""
  patches, d = x.shape[1] * x.shape[2], x.shape[3]
  scratch = len(bank.rows) - patches

  def one(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    rows, image, cursor = carry
    at = jnp.where(valid[i], cursor, scratch)
    rows = jax.lax.dynamic_update_slice(rows, x[i].reshape(patches, d), (at, jnp.int32(0)))
    image = jax.lax.dynamic_update_slice(image, jnp.full(patches, index[i], jnp.int32), (at,))
    return rows, image, cursor + jnp.where(valid[i], patches, 0)

  rows, image, cursor = jax.lax.fori_loop(0, len(x), one, (bank.rows, bank.image, bank.cursor))
  seen = bank.seen + jnp.sum(valid, dtype=jnp.int32)
  return bank._replace(rows=rows, image=image, cursor=cursor, seen=seen)


def make_room(key: Key, bank: Bank, plan: Plan, images: int) -> Bank:
  """Reduce the bank if so many images would not fit in any more."""
  more, start, stop = images * plan.patches, int(bank.chosen), int(bank.cursor)
  if stop + more <= plan.capacity:
    return bank
  half = plan.capacity // 2
  if more > half:
    raise ConfigError(
      f'detector.max_bytes hold the patches of {plan.capacity // plan.patches} images, too few for '
      f'batches of {images}; lower fit.batch_size or raise detector.max_bytes.'
    )
  count = math.ceil(_SPARE * plan.ratio * (stop - start))
  everything = start + count > half
  if everything:
    start, count = 0, half
  selection = _select(key, bank.rows, plan, _between(bank, start, stop), count, 'Making room')
  # What was kept before stands for patches as far away as it did.
  fresh, older = coreset.radius(selection), bank.radius
  radius = older + fresh if everything else jnp.maximum(older, fresh)
  return _compact(bank, selection.centers, jnp.int32(start), selection.taken)._replace(
    radius=radius
  )


def settle(key: Key, bank: Bank, plan: Plan) -> Bank:
  """Select the rows that stay, and drop the others with the scratch."""
  stop = int(bank.cursor)
  within = _between(bank, 0, stop)
  selection = _select(key, bank.rows, plan, within, plan.final, 'Selecting the coreset')
  stay = selection.centers[: min(plan.final, stop)]
  count = jnp.asarray(len(stay), jnp.int32)
  radius = bank.radius + coreset.radius(selection)
  return Bank(bank.rows[stay], bank.image[stay], count, jnp.copy(count), bank.seen, radius)


def stand_ins(key: Key, bank: Bank, plan: Plan, before: StandIns | None) -> StandIns:
  """Select from the patches of every fold: those in the bank, and those that stood in `before`."""
  sources = [StandIns(bank.rows, bank.image[: int(bank.cursor)]), *([before] if before else [])]
  places, valid = zip(*(_dealt(source.image, plan.folds) for source in sources), strict=True)
  share = math.ceil(_SPARE * plan.final / plan.folds)
  quick = plan._replace(dim=min(plan.dim or _DIM, _DIM), track=silently)
  chosen = []
  for fold in plan.track(range(plan.folds), plan.folds, 'Selecting for calibration'):
    pairs = list(zip(sources, (at[fold] for at in places), strict=True))
    # One fold's patches at a time: there may be gigabytes of all.
    rows, image = (jnp.concatenate([source[i][at] for source, at in pairs]) for i in range(2))
    mine = np.concatenate([some[fold] for some in valid])
    centers = _centers(
      _select(key, rows, quick, jnp.asarray(mine), min(share, int(mine.sum())), '')
    )
    chosen.append(StandIns(rows[centers], image[centers]))
  return jax.tree.map(lambda *some: jnp.concatenate(some), *chosen)


def without(stand_ins: StandIns, plan: Plan, fold: int, count: int) -> Float[Array, 'm d']:
  """Select a bank of so many rows, or all there are, from what stands in for the other folds."""
  others = stand_ins.image % plan.folds != fold
  quiet = plan._replace(track=silently)
  selection = _select(jax.random.key(fold), stand_ins.rows, quiet, others, count, '')
  return stand_ins.rows[_centers(selection)]


def restore(bank: Bank, kept: Arrays) -> Bank:
  """Begin an empty bank with what was kept of a settled one."""
  settled = Bank(**{name: jnp.asarray(kept[name]) for name in Bank._fields})
  return settled._replace(
    rows=jax.lax.dynamic_update_slice(bank.rows, settled.rows, (0, 0)),
    image=jax.lax.dynamic_update_slice(bank.image, settled.image, (0,)),
  )


def _select(
  key: Key, rows: Float[Array, 'n d'], plan: Plan, valid: Bool[Array, ' n'], count: int, what: str
) -> coreset.Selection:
  """k-center of the rows that are valid."""
  if 0 < plan.dim < rows.shape[1]:
    projection = jax.random.normal(jax.random.fold_in(key, 1), (rows.shape[1], plan.dim))
    rows = jnp.matmul(rows, projection / plan.dim**0.5, precision=jax.lax.Precision.HIGHEST)
  cloud = coreset.cloud(rows, valid)
  # Always room for as many, so that all selections of a run are one compilation.
  selection = coreset.begin(key, valid, max(count, plan.final, plan.capacity // 2))
  # Not too often: a pass that ends early for being told of measures fewer centers at once.
  targets = [*range(step := max(_STEP, count // 50), count, step), count]
  for target in plan.track(targets, len(targets), what):
    selection = jax.block_until_ready(coreset.advance(cloud, selection, jnp.int32(target)))
  return selection


def _between(bank: Bank, start: int, stop: int) -> Bool[Array, ' n']:
  places = jnp.arange(len(bank.rows))
  return (places >= start) & (places < stop)


def _dealt(image: Int[Array, ' n'], folds: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
  """For every fold the places of its rows, filled up to as many for each, and which are valid."""
  whose = np.asarray(image) % folds
  members = [np.flatnonzero(whose == fold) for fold in range(folds)]
  size = max(map(len, members))
  places = [np.pad(mine, (0, size - len(mine))) for mine in members]
  return places, [np.arange(size) < len(mine) for mine in members]


def _centers(selection: coreset.Selection) -> Int[np.ndarray, ' m']:
  return np.asarray(selection.centers)[: int(selection.taken)]


@functools.partial(jax.jit, donate_argnums=0)
def _compact(
  bank: Bank, centers: Int[Array, ' m'], start: Int[Array, ''], count: Int[Array, '']
) -> Bank:
  """Move the first `count` centers to `start`, in place: ascending, none is overwritten unread."""
  order = jnp.sort(jnp.where(centers < 0, len(bank.rows), centers))

  def one(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
    rows, image = carry
    row = jax.lax.dynamic_slice_in_dim(rows, order[i], 1)
    whose = jax.lax.dynamic_slice_in_dim(image, order[i], 1)
    return (
      jax.lax.dynamic_update_slice_in_dim(rows, row, start + i, 0),
      jax.lax.dynamic_update_slice_in_dim(image, whose, start + i, 0),
    )

  rows, image = jax.lax.fori_loop(0, count, one, (bank.rows, bank.image))
  return bank._replace(rows=rows, image=image, chosen=start + count, cursor=start + count)
