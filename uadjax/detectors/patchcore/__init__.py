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
from uadjax.detectors.base import Detector, OnePass, RunContext, ShardingSpecs
from uadjax.detectors.patchcore import capacity, leave_out, memory_bank as memory_banks, selection
from uadjax.errors import ConfigError
from uadjax.numerics import neighbors as knn, resampling
from uadjax.types import Arrays, Batch, Key, Metrics, Scores, Variables

_SIGMA = 4.0  # Of the blur, in pixels at network size (section 3.3).
_CORESET_PREFIX = 'calibration_'  # Before the names of the arrays that references are made from.
_NUM_RECALL_QUERIES = 4096  # Queries that the recall of the approximate search is measured on.

Stages = dict[str, Float[Array, 'b _h _w _c']]


class State(NamedTuple):
  """What is carried: the backbone, a key for selections, and the bank."""

  backbone: Variables
  key: Key
  memory_bank: memory_banks.MemoryBank


class FinalState(NamedTuple):
  """What is left of it in the end."""

  backbone: Variables
  memory_bank: memory_banks.Coreset


class Fitted(NamedTuple):
  """What scoring needs."""

  backbone: Variables
  memory_bank: knn.Index


def make(
  backbone: backbones.Backbone,
  context: RunContext,
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
  _validate_settings(ratio, neighbors, reweight)

  def extract_features(
    variables: Variables, images: UInt8[Array, 'b H W 3']
  ) -> Float[Array, 'b h w d']:
    stages = cast(Stages, backbone.apply(variables, backbones.normalize(images)))
    return _patch_embeddings([stages[name] for name in backbone.stages], channels)

  image_struct = jax.ShapeDtypeStruct((1, context.height, context.width, 3), jnp.float32)
  variable_shapes = jax.eval_shape(lambda x: backbone.init(jax.random.key(0), x), image_struct)
  pixel_struct = jax.ShapeDtypeStruct(image_struct.shape, jnp.uint8)
  _, h, w, d = jax.eval_shape(extract_features, variable_shapes, pixel_struct).shape
  bank_config, shards = (
    capacity.configure_bank(d, h * w, context, ratio, max_bytes, coreset_dim),
    context.shards,
  )

  def init(key: Key, variables: Variables) -> State:
    return State(variables, key, memory_banks.empty(bank_config, d))

  def embed(variables: Variables, batch: Batch) -> Float[Array, 'b h w d']:
    return (
      extract_features(variables, jnp.asarray(batch.image))
      if batch.features is None
      else batch.features
    )

  def update(state: State, batch: Batch) -> tuple[State, Metrics]:
    x = embed(state.backbone, batch)
    memory_bank = memory_banks.append(
      state.memory_bank, x, jnp.asarray(batch.valid), jnp.asarray(batch.index), shards
    )
    return state._replace(memory_bank=memory_bank), {'images': memory_bank.num_images}

  def to_fitted(state: State | FinalState) -> Fitted:
    return Fitted(state.backbone, knn.build_index(state.memory_bank.patches.embeddings))

  def score_embeddings(fitted: Fitted, x: Float[Array, 'b h w d']) -> Scores:
    def score_shard(
      memory_bank: knn.Index, x: Float[Array, 'b h w d'], axis_name: str | None
    ) -> Scores:
      def support_samples(rows: Int[Array, ' b']) -> Float[Array, 'b k d']:
        nearest_embedding = (
          knn.take_rows(memory_bank, rows[:, None], axis_name)[:, 0] + memory_bank.center[None]
        )
        return knn.take_rows(
          memory_bank,
          knn.nearest_sharded(nearest_embedding, memory_bank, neighbors, False, axis_name).row,
          axis_name,
        )

      nearest = knn.nearest_sharded(x.reshape(-1, x.shape[-1]), memory_bank, 1, approx, axis_name)
      return reweighted_scores(memory_bank, x, nearest, support_samples)

    return shards.shard_map(score_shard, (knn.INDEX_SPECS, True), True)(fitted.memory_bank, x)

  def reweighted_scores(
    memory_bank: knn.Index,
    x: Float[Array, 'b h w d'],
    nearest: knn.Neighbors,
    support_samples: Callable[[Int[Array, ' b']], Float[Array, 'b k d']],
  ) -> Scores:
    # A row without neighbors tells nothing.
    bank_too_small = len(memory_bank.rows) * shards.num_shards < 2
    distance_and_score = _patch_and_image_scores(
      memory_bank, x, nearest, None if bank_too_small or not reweight else support_samples
    )
    return Scores(
      resampling.upsample(distance_and_score[0], context.height, context.width, _SIGMA),
      distance_and_score[1],
    )

  def score(fitted: Fitted, images: UInt8[Array, 'b H W 3']) -> Scores:
    return score_embeddings(fitted, extract_features(fitted.backbone, images))

  def export_score_fn(fitted: Fitted) -> Callable[[UInt8[Array, 'b H W 3']], Scores]:
    memory_bank = fitted.memory_bank
    bank_neighbors = jax.jit(knn.nearest, static_argnums=2)(
      memory_bank.rows + memory_bank.center[None], memory_bank, neighbors
    )

    def support_samples(rows: Int[Array, ' b']) -> Float[Array, 'b k d']:
      return knn.take_rows(
        memory_bank, jnp.take(bank_neighbors.row, rows, axis=0, mode='clip'), None
      )

    def score(images: UInt8[Array, 'b H W 3']) -> Scores:
      x = extract_features(fitted.backbone, images)
      return reweighted_scores(
        memory_bank,
        x,
        knn.nearest_for_export(x.reshape(-1, x.shape[-1]), memory_bank),
        support_samples,
      )

    return score

  def pad_to_shards(fitted: Fitted) -> Fitted:
    return fitted._replace(memory_bank=knn.pad_index(fitted.memory_bank, shards.num_shards))

  def score_held_out(held_out_model: Fitted, batch: Batch) -> Scores:
    return score_embeddings(held_out_model, embed(held_out_model.backbone, batch))

  one_pass = _make_one_pass(bank_config, embed, score_held_out, approx)
  fitted_specs = Fitted(False, knn.INDEX_SPECS)  # pyright: ignore[reportArgumentType]
  state_specs = State(False, False, memory_banks.BANK_SPECS)  # pyright: ignore[reportArgumentType]
  sharding_specs = (
    ShardingSpecs(state_specs, fitted_specs, fitted_specs, pad_to_shards)
    if shards.num_shards > 1
    else None
  )
  return Detector(
    init,
    None,
    update,
    None,
    to_fitted,
    score,
    one_pass,
    export_score_fn,
    sharding_specs=sharding_specs,
  )


def _validate_settings(ratio: float, neighbors: int, reweight: bool) -> None:
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


def _make_one_pass(
  bank_config: capacity.BankConfig,
  embed: Callable[[Variables, Batch], Float[Array, 'b h w d']],
  score_held_out: Callable[[Fitted, Batch], Scores],
  approx: bool,
) -> OnePass:
  """What there is besides; references are banks without a fold, see `leave_out`."""

  def before_update(state: State, num_images: int) -> State:
    return state._replace(
      memory_bank=memory_banks.compact(state.key, state.memory_bank, bank_config, num_images)
    )

  def calibration_coresets(state: State, previous_arrays: Arrays) -> Arrays:
    previous_coresets = (
      selection.from_arrays(previous_arrays, _CORESET_PREFIX) if previous_arrays else None
    )
    coresets = leave_out.select_calibration_coresets(
      state.key, state.memory_bank, bank_config, previous_coresets
    )
    return {_CORESET_PREFIX + name: value for name, value in coresets._asdict().items()}

  def leave_fold_out(variables: Variables, arrays: Arrays, fold: int) -> Fitted:
    coreset = leave_out.coreset_without_fold(
      selection.from_arrays(arrays, _CORESET_PREFIX), bank_config, fold, len(arrays['embeddings'])
    )
    if not len(coreset):
      raise ConfigError(
        f'All {len(arrays["embeddings"])} rows of the bank are of images that are left out together; '
        f'raise detector.ratio, which is {bank_config.ratio}, or detector.max_bytes.'
      )
    return Fitted(variables, knn.build_index(coreset))

  def summary(arrays: Arrays, embeddings: Float[np.ndarray, 'b h w d']) -> dict[str, int | float]:
    statistics = {
      'images': int(arrays['num_images']),
      'bank_rows': len(arrays['embeddings']),
      'covering_radius': float(arrays['covering_radius']),
      'folds': bank_config.num_folds,
    }
    if approx:
      queries = jnp.asarray(embeddings).reshape(-1, embeddings.shape[-1])[:_NUM_RECALL_QUERIES]
      statistics['approx_recall'] = knn.measure_recall(
        queries, knn.build_index(jnp.asarray(arrays['embeddings']))
      )
    return statistics

  return OnePass(
    num_folds=bank_config.num_folds,
    feature_extractor=lambda state: state.backbone,
    embed=embed,
    compile_finalize=lambda state: None,  # The selection depends on how many images there were.
    calibration_coresets=calibration_coresets,
    finalize=lambda state: FinalState(
      state.backbone, memory_banks.select_coreset(state.key, state.memory_bank, bank_config)
    ),
    before_update=before_update if bank_config.needs_compaction else None,
    state_arrays=lambda state: memory_banks.state_arrays(state.memory_bank),
    extend=lambda state, arrays: state._replace(
      memory_bank=memory_banks.from_arrays(state.memory_bank, arrays, bank_config)
    ),
    leave_fold_out=leave_fold_out,
    score_held_out=score_held_out,
    summary=summary,
    drift=_drift,
  )


def _patch_embeddings(
  stages: list[Float[Array, 'b _h _w _c']], channels: int
) -> Float[Array, 'b h w d']:
  """Average 3x3 neighborhoods, bring all stages to the grid of the first, and concatenate."""
  _, h, w, _ = stages[0].shape
  resampled = []
  for x in stages:
    row_matrix, column_matrix = (
      resampling.bilinear_matrix(new_size, old_size) @ resampling.pool_matrix(old_size)
      for new_size, old_size in zip((h, w), x.shape[1:3], strict=True)
    )
    resampled.append(
      resampling.apply_separable(jnp.asarray(row_matrix), jnp.asarray(column_matrix), x)
    )
  x = jnp.concatenate(resampled, axis=-1)
  if not 0 < channels < x.shape[-1]:
    return x
  averaging_matrix = jnp.asarray(resampling.adaptive_pool_matrix(channels, x.shape[-1]))
  return jnp.einsum('bhwc,dc->bhwd', x, averaging_matrix, precision=jax.lax.Precision.HIGHEST)


def _patch_and_image_scores(
  memory_bank: knn.Index,
  x: Float[Array, 'b h w d'],
  nearest: knn.Neighbors,
  support_samples: Callable[[Int[Array, ' b']], Float[Array, 'b k d']] | None,
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
  distance = nearest.distance.reshape(-1, h * w)
  max_index = jnp.argmax(distance, axis=1)
  score = distance.max(axis=1)
  if support_samples is not None:
    patch = jnp.take_along_axis(x.reshape(-1, h * w, d), max_index[:, None, None], axis=1)[:, 0]
    nearest_row = jnp.take_along_axis(nearest.row.reshape(-1, h * w), max_index[:, None], axis=1)[
      :, 0
    ]
    score *= _weight(patch - memory_bank.center[None], support_samples(nearest_row), score)
  return distance.reshape(-1, h, w), score


def _weight(
  patch: Float[Array, 'b d'], support_samples: Float[Array, 'b k d'], distance: Float[Array, ' b']
) -> Float[Array, ' b']:
  """1 − the share of the matched row in a softmax over the distances to its neighbors (eq. 7)."""
  support_distance = jnp.sqrt(jnp.sum((patch[:, None] - support_samples) ** 2, axis=-1))
  return 1 - jnp.exp(distance - special.logsumexp(support_distance, axis=1))


def _drift(previous_arrays: Arrays, new_arrays: Arrays) -> dict[str, int | float]:
  """How many rows there were and are, and the share of the old ones that stayed."""
  num_retained = int((new_arrays['image_id'] < previous_arrays['num_images']).sum())
  num_old_rows, num_new_rows = len(previous_arrays['embeddings']), len(new_arrays['embeddings'])
  return {
    'bank_rows_before': num_old_rows,
    'bank_rows_after': num_new_rows,
    'share_retained': num_retained / num_old_rows,
  }
