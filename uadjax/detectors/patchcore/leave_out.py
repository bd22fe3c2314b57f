"""Banks without some of the images, to score these by as if they had never been seen.

Leaving an image out of the bank is more than passing over its rows: they kept the selection from
rows of other images nearby, and their absence leaves holes that an unseen image does not meet. So
the images are dealt to folds, of each fold's patches a selection stands in for them, and the bank
without a fold is selected anew, from the stand-ins of the others (experiments/README.md).

Letters: n rows, d embedding, f folds, s shards, m rows of a fold or of a bank.
"""

from collections.abc import Sequence
import math
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from uadjax.detectors.patchcore import selection as selections
from uadjax.detectors.patchcore.capacity import Plan, SPARE
from uadjax.detectors.patchcore.memory_bank import Bank
from uadjax.detectors.patchcore.selection import Patches
from uadjax.types import Key

# Of the projection that stand-ins are selected in: five times faster, and as good for what they do.
_DIM = 64


def stand_ins(key: Key, bank: Bank, plan: Plan, before: Patches | None) -> Patches:
  """Select from the patches of every fold: those in the bank, and those that stood in `before`."""
  sources = [(bank.patches, selections.whole(bank.cursor, plan.shards))]
  if before is not None:
    sources.append(selections.dealt(before, plan.shards))
  dealt = [_folds(source.image, cursor, plan) for source, cursor in sources]
  share = math.ceil(SPARE * plan.final / plan.folds)
  quick = plan._replace(dim=min(plan.dim or _DIM, _DIM))
  chosen = []
  for fold in plan.track(range(plan.folds), plan.folds, 'Selecting for calibration'):
    # One fold's patches at a time: there may be gigabytes of all.
    places = [at[fold] for at, _ in dealt]
    some, valid = _taken(
      [source for source, _ in sources], places, [v[fold] for _, v in dealt], plan
    )
    count = min(share, sum(int(v[fold].sum()) for _, v in dealt))
    selection = selections.k_center(key, some, valid, quick, count)
    chosen.append(selections.fetched(some, selection, plan.shards))
  return jax.tree.map(lambda *some: jnp.concatenate(some), *chosen)


def without(stand_ins: Patches, plan: Plan, fold: int, count: int) -> Float[Array, 'm d']:
  """Select a bank of so many rows, or all there are, from what stands in for the other folds."""
  dealt, cursor = selections.dealt(stand_ins, plan.shards)
  valid = selections.in_use(dealt, jnp.asarray(cursor), plan.shards)
  valid &= dealt.image % plan.folds != fold
  selection = selections.k_center(jax.random.key(fold), dealt, valid, plan, count)
  return selections.fetched(dealt, selection, plan.shards).rows


def _folds(
  image: Int[Array, ' n'], cursor: Int[np.ndarray, ' s'], plan: Plan
) -> tuple[Int[np.ndarray, 'f s m'], Bool[np.ndarray, 'f s m']]:
  """For every fold and shard the places of its rows, as many for each, and which are valid."""
  whose = selections.whole(image, plan.shards).reshape(len(cursor), -1) % plan.folds
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
