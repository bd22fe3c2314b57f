"""PatchCore: a patch is as anomalous as it is far from the nearest of all normal patches.

Roth et al. 2021, 'Towards Total Recall in Industrial Anomaly Detection', arXiv 2106.08265, sections
3.1 (patches), 3.2 (coreset) and 3.3 (scoring).

Letters: b batch, h w patch grid, d embedding, n bank rows, k neighbors, H W image at network size.
"""

from collections.abc import Callable
from typing import cast, NamedTuple

import jax
from jax import numpy as jnp
from jax.scipy import special
from jaxtyping import Array, Float, Int, UInt8
import numpy as np

from uadjax import backbones
from uadjax.detectors.base import Detector, OnePass, Spec, Split
from uadjax.detectors.patchcore import capacity, leave_out, memory_bank, selection
from uadjax.errors import ConfigError
from uadjax.numerics import neighbors as knn, resampling
from uadjax.types import Arrays, Batch, Key, Metrics, Scores, Variables

_SIGMA = 4.0  # Of the blur, in pixels at network size (section 3.3).
_STAND_IN = 'stand_in_'  # Before the names of the arrays that references are made from.
_RECALL = 4096  # Queries that the recall of the approximate search is measured on.

Stages = dict[str, Float[Array, 'b _h _w _c']]


class State(NamedTuple):
  """What is carried: the backbone, a key for selections, and the bank."""

  backbone: Variables
  key: Key
  bank: memory_bank.Bank


class Done(NamedTuple):
  """What is left of it in the end."""

  backbone: Variables
  bank: memory_bank.Settled


class Fitted(NamedTuple):
  """What scoring needs."""

  backbone: Variables
  bank: knn.Index


def make(
  backbone: backbones.Backbone,
  spec: Spec,
  *,
  ratio: float = 0.01,
  coreset_dim: int = 0,
  neighbors: int = 9,
  reweight: bool = True,
  channels: int = 0,
  max_bytes: int = 2 << 30,
  approx: bool = False,
) -> Detector:
  """Describe PatchCore.

  Args:
    backbone: its stages describe the patches, on the first one's grid.
    spec: image size and number of images.
    ratio: share of all patches that the bank keeps.
    coreset_dim: dimensions of the random projection in which the bank is selected (the paper's); 0
      selects in all of them, which here is affordable and better (experiments/README.md).
    neighbors: b of equation 7; the matched row is its own first neighbor.
    reweight: whether the image score is weighted as there; else it is the largest patch distance.
    channels: to average the embedding down to (the paper: 1024); 0 leaves it as it is.
    max_bytes: for the bank while it fills, see `memory_bank`; what remains is at most half.
    approx: let accelerators miss a few nearest neighbors (`jax.lax.approx_min_k`).
  """
  _check(ratio, neighbors, reweight)

  def see(variables: Variables, images: UInt8[Array, 'b H W 3']) -> Float[Array, 'b h w d']:
    stages = cast(Stages, backbone.apply(variables, backbones.normalize(images)))
    return _embed([stages[name] for name in backbone.stages], channels)

  blank = jax.ShapeDtypeStruct((1, spec.height, spec.width, 3), jnp.float32)
  shapes = jax.eval_shape(lambda x: backbone.init(jax.random.key(0), x), blank)
  pixels = jax.ShapeDtypeStruct(blank.shape, jnp.uint8)
  _, h, w, d = jax.eval_shape(see, shapes, pixels).shape
  plan, over = capacity.plan(d, h * w, spec, ratio, max_bytes, coreset_dim), spec.shards

  def init(key: Key, variables: Variables) -> State:
    return State(variables, key, memory_bank.empty(plan, d))

  def embed(variables: Variables, batch: Batch) -> Float[Array, 'b h w d']:
    return see(variables, jnp.asarray(batch.image)) if batch.features is None else batch.features

  def update(state: State, batch: Batch) -> tuple[State, Metrics]:
    x = embed(state.backbone, batch)
    bank = memory_bank.put(state.bank, x, jnp.asarray(batch.valid), jnp.asarray(batch.index), over)
    return state._replace(bank=bank), {'images': bank.seen}

  def finish(state: State | Done) -> Fitted:
    return Fitted(state.backbone, knn.index(state.bank.patches.rows))

  def judge(fitted: Fitted, x: Float[Array, 'b h w d']) -> Scores:
    def one(bank: knn.Index, x: Float[Array, 'b h w d'], axis: str | None) -> Scores:
      def around(row: Int[Array, ' b']) -> Float[Array, 'b k d']:
        matched = knn.rows_of(bank, row[:, None], axis)[:, 0] + bank.center[None]
        return knn.rows_of(
          bank, knn.nearest_of_all(matched, bank, neighbors, False, axis).row, axis
        )

      found = knn.nearest_of_all(x.reshape(-1, x.shape[-1]), bank, 1, approx, axis)
      return weighed(bank, x, found, around)

    return over.over(one, (knn.SPLIT, True), True)(fitted.bank, x)

  def weighed(
    bank: knn.Index,
    x: Float[Array, 'b h w d'],
    found: knn.Neighbors,
    around: Callable[[Int[Array, ' b']], Float[Array, 'b k d']],
  ) -> Scores:
    # A row without neighbors tells nothing.
    alone = len(bank.rows) * over.number < 2
    told = _judge(bank, x, found, None if alone or not reweight else around)
    return Scores(resampling.enlarge(told[0], spec.height, spec.width, _SIGMA), told[1])

  def score(fitted: Fitted, images: UInt8[Array, 'b H W 3']) -> Scores:
    return judge(fitted, see(fitted.backbone, images))

  def portable(fitted: Fitted) -> Callable[[UInt8[Array, 'b H W 3']], Scores]:
    bank = fitted.bank
    near = jax.jit(knn.nearest, static_argnums=2)(bank.rows + bank.center[None], bank, neighbors)

    def around(row: Int[Array, ' b']) -> Float[Array, 'b k d']:
      return knn.rows_of(bank, jnp.take(near.row, row, axis=0, mode='clip'), None)

    def score(images: UInt8[Array, 'b H W 3']) -> Scores:
      x = see(fitted.backbone, images)
      return weighed(bank, x, knn.nearest_row(x.reshape(-1, x.shape[-1]), bank), around)

    return score

  def fill(fitted: Fitted) -> Fitted:
    return fitted._replace(bank=knn.filled(fitted.bank, over.number))

  def score_left_out(reference: Fitted, batch: Batch) -> Scores:
    return judge(reference, embed(reference.backbone, batch))

  one_pass = _one_pass(plan, embed, score_left_out, approx)
  fitted = Fitted(False, knn.SPLIT)  # pyright: ignore[reportArgumentType]
  state = State(False, False, memory_bank.SPLIT)  # pyright: ignore[reportArgumentType]
  split = Split(state, fitted, fitted, fill) if over.number > 1 else None
  return Detector(init, None, update, None, finish, score, one_pass, portable, split=split)


def _check(ratio: float, neighbors: int, reweight: bool) -> None:
  """Refuse what cannot be."""
  if not 0 < ratio <= 1:
    raise ConfigError(
      f'detector.ratio must lie in (0, 1], got {ratio}; the paper has 0.01 to 0.25.'
    )
  if reweight and neighbors < 2:
    raise ConfigError(
      f'detector.neighbors must be 2 or more, got {neighbors}: the matched row itself is one. Or '
      'set detector.reweight=false.'
    )


def _one_pass(
  plan: capacity.Plan,
  embed: Callable[[Variables, Batch], Float[Array, 'b h w d']],
  score_left_out: Callable[[Fitted, Batch], Scores],
  approx: bool,
) -> OnePass:
  """What there is besides; references are banks without a fold, see `leave_out`."""

  def make_room(state: State, images: int) -> State:
    return state._replace(bank=memory_bank.make_room(state.key, state.bank, plan, images))

  def stand_ins(state: State, before: Arrays) -> Arrays:
    old = selection.named(before, _STAND_IN) if before else None
    made = leave_out.stand_ins(state.key, state.bank, plan, old)
    return {_STAND_IN + name: value for name, value in made._asdict().items()}

  def reference(variables: Variables, kept: Arrays, fold: int) -> Fitted:
    rows = leave_out.without(selection.named(kept, _STAND_IN), plan, fold, len(kept['rows']))
    if not len(rows):
      raise ConfigError(
        f'All {len(kept["rows"])} rows of the bank are of images that are left out together; '
        f'raise detector.ratio, which is {plan.ratio}, or detector.max_bytes.'
      )
    return Fitted(variables, knn.index(rows))

  def facts(kept: Arrays, embeddings: Float[np.ndarray, 'b h w d']) -> dict[str, int | float]:
    told = {
      'images': int(kept['seen']),
      'bank_rows': len(kept['rows']),
      'covering_radius': float(kept['radius']),
      'folds': plan.folds,
    }
    if approx:
      queries = jnp.asarray(embeddings).reshape(-1, embeddings.shape[-1])[:_RECALL]
      told['approx_recall'] = knn.recall(queries, knn.index(jnp.asarray(kept['rows'])))
    return told

  return OnePass(
    folds=plan.folds,
    embedder=lambda state: state.backbone,
    embed=embed,
    compile=lambda state: None,  # The selection depends on how many images there were.
    stand_ins=stand_ins,
    settle=lambda state: Done(state.backbone, memory_bank.settle(state.key, state.bank, plan)),
    make_room=make_room if plan.bounded else None,
    kept=lambda state: memory_bank.kept(state.bank),
    extend=lambda state, kept: state._replace(bank=memory_bank.restore(state.bank, kept, plan)),
    reference=reference,
    score_left_out=score_left_out,
    facts=facts,
    moved=_moved,
  )


def _embed(stages: list[Float[Array, 'b _h _w _c']], channels: int) -> Float[Array, 'b h w d']:
  """Average 3x3 neighborhoods, bring all stages to the grid of the first, and concatenate."""
  _, h, w, _ = stages[0].shape
  on_grid = []
  for x in stages:
    rows, columns = (
      resampling.bilinear_matrix(after, before) @ resampling.pool_matrix(before)
      for after, before in zip((h, w), x.shape[1:3], strict=True)
    )
    on_grid.append(resampling.apply(jnp.asarray(rows), jnp.asarray(columns), x))
  x = jnp.concatenate(on_grid, axis=-1)
  if not 0 < channels < x.shape[-1]:
    return x
  averages = jnp.asarray(resampling.averaging_matrix(channels, x.shape[-1]))
  return jnp.einsum('bhwc,dc->bhwd', x, averages, precision=jax.lax.Precision.HIGHEST)


def _judge(
  bank: knn.Index,
  x: Float[Array, 'b h w d'],
  found: knn.Neighbors,
  around: Callable[[Int[Array, ' b']], Float[Array, 'b k d']] | None,
) -> tuple[Float[Array, 'b h w'], Float[Array, ' b']]:
  """Distance of each patch, and the score of the image: the largest, weighted by neighbors if any.

  Section 3.3, equations 6 and 7.

  Args:
    bank: rows.
    x: patches.
    found: the nearest row of each.
    around: positions of rows -> the rows nearest to each, itself first; None not to weight.
  """
  _, h, w, d = x.shape
  distance = found.distance.reshape(-1, h * w)
  worst = jnp.argmax(distance, axis=1)
  score = distance.max(axis=1)
  if around is not None:
    patch = jnp.take_along_axis(x.reshape(-1, h * w, d), worst[:, None, None], axis=1)[:, 0]
    matched = jnp.take_along_axis(found.row.reshape(-1, h * w), worst[:, None], axis=1)[:, 0]
    score *= _weight(patch - bank.center[None], around(matched), score)
  return distance.reshape(-1, h, w), score


def _weight(
  patch: Float[Array, 'b d'], around: Float[Array, 'b k d'], distance: Float[Array, ' b']
) -> Float[Array, ' b']:
  """1 − the share of the matched row in a softmax over the distances to its neighbors (eq. 7)."""
  away = jnp.sqrt(jnp.sum((patch[:, None] - around) ** 2, axis=-1))
  return 1 - jnp.exp(distance - special.logsumexp(away, axis=1))


def _moved(before: Arrays, after: Arrays) -> dict[str, int | float]:
  """How many rows there were and are, and the share of the old ones that stayed."""
  stayed = int((after['image'] < before['seen']).sum())
  old, new = len(before['rows']), len(after['rows'])
  return {'bank_rows_before': old, 'bank_rows_after': new, 'share_kept': stayed / old}
