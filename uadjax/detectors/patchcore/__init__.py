"""PatchCore: the anomaly score of a patch is the distance to the nearest normal patch.

Roth et al. 2021, 'Towards Total Recall in Industrial Anomaly Detection', arXiv 2106.08265, sections
3.1 (patch embeddings), 3.2 (coreset of the memory bank) and 3.3 (scoring).

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
from uadjax.errors import ConfigError, Setting
from uadjax.numerics import neighbors as knn, resampling
from uadjax.types import Arrays, Batch, Key, Metrics, Scores, Variables

_SIGMA = 4.0  # Standard deviation of the anomaly map's blur, in pixels (section 3.3).
_CORESET_PREFIX = 'calibration_'  # Prefix of the names of the calibration coresets' arrays.
_NUM_RECALL_QUERIES = 4096  # Patches that the recall of the approximate search is measured on.

Stages = dict[str, Float[Array, 'b _h _w _c']]  # Feature maps of the backbone by stage name.


class State(NamedTuple):
  """Training state: the backbone, the key of all coreset selections, and the memory bank."""

  backbone: Variables
  key: Key
  memory_bank: memory_banks.MemoryBank


class FinalState(NamedTuple):
  """State after `OnePass.finalize`, which selects the coreset of the memory bank."""

  backbone: Variables
  memory_bank: memory_banks.Coreset


class Fitted(NamedTuple):
  """Parameters for scoring: the backbone, and the coreset with its search index."""

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
  """Build the PatchCore detector.

  Args:
    backbone: network whose stages, upsampled to the size of the first, give the patch embeddings.
    context: image size, number of images, progress and shards.
    ratio: share of all patches that the coreset keeps.
    coreset_dim: number of dimensions of the random projection in which the coreset is selected, as
      in the paper; 0 selects in all dimensions, which is affordable here and more accurate
      (experiments/README.md). Coresets for calibration are projected in either case (`leave_out`).
    neighbors: number of support samples, b of equation 7, of which the nearest row m* is the first;
      at least 2 with `reweight`.
    reweight: True to reweight the image score by equation 7; False to use the largest patch
      distance.
    channels: number of channels that embeddings are averaged down to (the paper: 1024); 0, or no
      fewer than the embeddings have, for no averaging.
    max_bytes: bytes that each device may use for the memory bank and for selecting from it. The
      coreset takes at most half.
    approx: True to let accelerators miss the nearest row of a few patches
      (`jax.lax.approx_min_k`). Support samples are always searched exactly.

  Raises:
    ConfigError: `ratio` or `neighbors` is out of range, or `max_bytes` is too small.
  """
  _validate_settings(ratio, neighbors, reweight)

  def extract_features(
    variables: Variables, images: UInt8[Array, 'b H W 3']
  ) -> Float[Array, 'b h w d']:
    """Return the patch embeddings of images (section 3.1)."""
    stages = cast(Stages, backbone.apply(variables, backbones.normalize(images)))
    return _patch_embeddings([stages[name] for name in backbone.stages], channels)

  image_struct = jax.ShapeDtypeStruct((1, context.height, context.width, 3), jnp.float32)
  variable_shapes = jax.eval_shape(lambda x: backbone.init(jax.random.key(0), x), image_struct)
  pixel_struct = jax.ShapeDtypeStruct(image_struct.shape, jnp.uint8)
  _, h, w, d = jax.eval_shape(extract_features, variable_shapes, pixel_struct).shape
  bank_config = capacity.configure_bank(d, h * w, context, ratio, max_bytes, coreset_dim)
  shards = context.shards

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
    """Score patch embeddings sharded by image against a memory bank sharded by row."""

    def score_shard(
      memory_bank: knn.Index, x: Float[Array, 'b h w d'], axis_name: str | None
    ) -> Scores:
      def support_samples(rows: Int[Array, ' b']) -> Float[Array, 'b k d']:
        """Return the rows N_b(m*) nearest to each row m*, minus the bank's center."""
        nearest_embedding = (
          knn.take_rows(memory_bank, rows[:, None], axis_name)[:, 0] + memory_bank.center[None]
        )
        support = knn.nearest_sharded(nearest_embedding, memory_bank, neighbors, False, axis_name)
        return knn.take_rows(memory_bank, support.row, axis_name)

      nearest = knn.nearest_sharded(x.reshape(-1, x.shape[-1]), memory_bank, 1, approx, axis_name)
      return scores_from_nearest(memory_bank, x, nearest, support_samples)

    return shards.shard_map(score_shard, (knn.INDEX_SPECS, True), True)(fitted.memory_bank, x)

  def scores_from_nearest(
    memory_bank: knn.Index,
    x: Float[Array, 'b h w d'],
    nearest: knn.Neighbors,
    support_samples: Callable[[Int[Array, ' b']], Float[Array, 'b k d']],
  ) -> Scores:
    """Return anomaly maps and image scores, given the nearest row of each patch.

    Args:
      memory_bank: this shard of the bank; only its size and center are used.
      x: patch embeddings.
      nearest: position of the nearest row of each patch, and the distance to it.
      support_samples: positions of rows -> their nearest rows, as embeddings minus the center.
    """
    # A single row has no neighbors: the weight would be 0, and so would every image score.
    bank_too_small = len(memory_bank.rows) * shards.num_shards < 2
    distance, image_score = _patch_and_image_scores(
      memory_bank, x, nearest, None if bank_too_small or not reweight else support_samples
    )
    return Scores(resampling.upsample(distance, context.height, context.width, _SIGMA), image_score)

  def score(fitted: Fitted, images: UInt8[Array, 'b H W 3']) -> Scores:
    return score_embeddings(fitted, extract_features(fitted.backbone, images))

  def export_score_fn(fitted: Fitted) -> Callable[[UInt8[Array, 'b H W 3']], Scores]:
    """Return `score` for a fixed memory bank, with the neighbors of its rows computed ahead."""
    memory_bank = fitted.memory_bank
    bank_neighbors = jax.jit(knn.nearest, static_argnums=2)(
      memory_bank.rows + memory_bank.center[None], memory_bank, neighbors
    )

    def support_samples(rows: Int[Array, ' b']) -> Float[Array, 'b k d']:
      """Return the rows N_b(m*) nearest to each row m*, minus the bank's center."""
      return knn.take_rows(
        memory_bank, jnp.take(bank_neighbors.row, rows, axis=0, mode='clip'), None
      )

    def score(images: UInt8[Array, 'b H W 3']) -> Scores:
      x = extract_features(fitted.backbone, images)
      return scores_from_nearest(
        memory_bank,
        x,
        knn.nearest_for_export(x.reshape(-1, x.shape[-1]), memory_bank),
        support_samples,
      )

    return score

  def pad_to_shards(fitted: Fitted) -> Fitted:
    """Pad the memory bank to equal shards, with rows that are never the nearest."""
    return fitted._replace(memory_bank=knn.pad_index(fitted.memory_bank, shards.num_shards))

  def score_held_out(held_out_model: Fitted, batch: Batch) -> Scores:
    """Score training images, all of one fold, against a memory bank without that fold."""
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
  if not 0 < ratio <= 1:
    raise ConfigError(
      f'detector.ratio must lie in (0, 1], got {ratio}; the paper uses 0.01 to 0.25.',
      key='detector.ratio',
      value=ratio,
      allowed=(0, 1),
    )
  if reweight and neighbors < 2:
    raise ConfigError(
      f'detector.neighbors must be 2 or more, got {neighbors}: the nearest row counts as its own '
      'first neighbor.',
      key='detector.neighbors',
      value=neighbors,
      allowed=(2, None),
      hint=('Choose 2 or more, or set ', Setting('detector.reweight', False), '.'),
    )


def _make_one_pass(
  bank_config: capacity.BankConfig,
  embed: Callable[[Variables, Batch], Float[Array, 'b h w d']],
  score_held_out: Callable[[Fitted, Batch], Scores],
  approx: bool,
) -> OnePass:
  """Return PatchCore's functions for one-pass learning.

  The memory bank that scores a held-out fold is selected from the calibration coresets of all other
  folds, see `leave_out`.

  Args:
    bank_config: sizes and settings of the memory bank.
    embed: (backbone variables, Batch) -> patch embeddings.
    score_held_out: (model without one fold, Batch of images of this fold) -> Scores.
    approx: True to measure the recall of the approximate search for the summary.
  """

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
        f'All {len(arrays["embeddings"])} rows of the memory bank come from images of fold '
        f'{fold}, so none is left to score this fold by.',
        key='detector.ratio',
        value=bank_config.ratio,
        hint=(
          'Raise ',
          Setting('detector.ratio'),
          f', which is {bank_config.ratio}, or ',
          Setting('detector.max_bytes'),
          '.',
        ),
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
    # Nothing is compiled ahead, because shapes depend on the final number of images.
    compile_finalize=lambda state: None,
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
  """Return locally aware patch embeddings (section 3.1).

  Averages 3x3 neighborhoods of each stage, upsamples all stages bilinearly to the size of the
  first, and concatenates their channels.

  Args:
    stages: feature maps of the backbone.
    channels: number of channels to average the embeddings down to; 0 for no averaging.
  """
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
  """Return the distance of each patch to the bank, and the image scores (equations 6 and 7).

  The image score is the distance of the image's farthest patch, reweighted by the neighborhood of
  the nearest row of this patch.

  Args:
    memory_bank: bank that was searched; only the center that was subtracted from its rows is used.
    x: patch embeddings, from which the center is not subtracted.
    nearest: position of the nearest row of each patch of the batch, and the distance to it.
    support_samples: positions of rows, one per image -> the rows nearest to each, itself first, as
      embeddings minus the center; None for no reweighting.
  """
  _, h, w, d = x.shape
  distance = nearest.distance.reshape(-1, h * w)
  max_index = jnp.argmax(distance, axis=1)
  score = distance.max(axis=1)
  if support_samples is not None:
    patch = jnp.take_along_axis(x.reshape(-1, h * w, d), max_index[:, None, None], axis=1)[:, 0]
    rows = nearest.row.reshape(-1, h * w)
    nearest_row = jnp.take_along_axis(rows, max_index[:, None], axis=1)[:, 0]
    score *= _weight(patch - memory_bank.center[None], support_samples(nearest_row), score)
  return distance.reshape(-1, h, w), score


def _weight(
  patch: Float[Array, 'b d'], support_samples: Float[Array, 'b k d'], distance: Float[Array, ' b']
) -> Float[Array, ' b']:
  """Return the weight of the image score in equation 7.

  It is 1 minus the share of the nearest row m* in a softmax over the patch's distances to the
  support samples.

  Args:
    patch: farthest patch of each image, minus the bank's center.
    support_samples: rows N_b(m*) nearest to the row m*, itself included, minus the bank's center.
    distance: distance between the patch and m*, which is the patch's nearest row.
  """
  support_distance = jnp.sqrt(jnp.sum((patch[:, None] - support_samples) ** 2, axis=-1))
  return 1 - jnp.exp(distance - special.logsumexp(support_distance, axis=1))


def _drift(previous_arrays: Arrays, new_arrays: Arrays) -> dict[str, int | float]:
  """Return the number of bank rows before and after, and the share of old rows still there."""
  num_retained = int((new_arrays['image_id'] < previous_arrays['num_images']).sum())
  num_old_rows, num_new_rows = len(previous_arrays['embeddings']), len(new_arrays['embeddings'])
  return {
    'bank_rows_before': num_old_rows,
    'bank_rows_after': num_new_rows,
    'share_retained': num_retained / num_old_rows,
  }
