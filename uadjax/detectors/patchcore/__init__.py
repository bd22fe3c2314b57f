"""PatchCore: the anomaly score of a patch is the distance to the nearest normal patch.

Roth et al. 2021, 'Towards Total Recall in Industrial Anomaly Detection', arXiv 2106.08265, sections
3.1 (patch embeddings), 3.2 (coreset of the memory bank) and 3.3 (scoring).

With `distance='cosine'`, embeddings are unit vectors. Their cosine distance is half of the squared
distance, so the nearest row is the same, and so is the search. With `pool=False` and the tokens of
DINOv2, this is AnomalyDINO (Damm et al. 2025, 'AnomalyDINO: Boosting Patch-based Few-shot Anomaly
Detection with DINOv2', arXiv 2405.14529), whose mask of the object is `foreground`.

With `window`, a patch is compared only with patches of nearby positions (Zhang et al. 2026, 'Is
Training Necessary for Anomaly Detection?', arXiv 2601.22763); see `windowed_neighbors`.

The image score is not that of equation 7. The mean of the largest values of the anomaly map finds
more defects at equal false alarms (experiments/README.md, "Which image score finds the most
defects?").

Letters: b batch, h w patch grid, d embedding, n bank rows, H W image at network size.
"""

from collections.abc import Callable, Iterator
import functools
import math
from typing import NamedTuple

import jax
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int
import numpy as np

from uadjax import backbones
from uadjax.backbones import vit
from uadjax.detectors import base, image_score, inspection, patch_embeddings
from uadjax.detectors.base import Embeddings, HostEmbeddings, Images, Statistics
from uadjax.detectors.patchcore import (
  capacity,
  foreground,
  leave_out,
  memory_bank as banks,
  selection,
)
from uadjax.detectors.settings import PatchcoreSettings
from uadjax.errors import refuse, Setting
from uadjax.numerics import neighbors as knn, resampling, windowed_neighbors
from uadjax.types import Arrays, Batch, Key, Metrics, Scores, Variables

Distances = Float[Array, 'b h w']  # Of patches to the memory bank.

_CORESET_PREFIX = 'calibration_'  # Prefix of the names of the calibration coresets' arrays.
# A bank without a fold has this share of the final bank's rows. With all of them it would be
# denser, for it represents fewer patches (experiments/README.md, "Does PatchCore score training
# images as if unseen?").
_HELD_OUT_SHARE = 0.95
_NUM_RECALL_QUERIES = 4096  # Patches that the recall of the approximate search is measured on.


class Config(NamedTuple):
  """Options and sizes.

  Attributes:
    backbone: network whose stages, upsampled to the size of the first, give the patch embeddings.
    context: size of the images, and which of their pixels are inspected.
    grid: height and width of the patch grid.
    patches: positions in the grid of the patches that are learned from, if they are the same for
      all images; None for all, and for blank images.
    options: settings. Of these, `approx` uses `jax.lax.approx_min_k`.
    bank: sizes and settings of the memory bank.
  """

  backbone: backbones.Backbone
  context: base.RunContext
  grid: tuple[int, int]
  patches: Int[np.ndarray, ' p'] | None
  options: PatchcoreSettings
  bank: capacity.BankConfig


class State(NamedTuple):
  """Training state: the backbone, the key of all coreset selections, and the memory bank."""

  extractor: Variables
  key: Key
  memory_bank: banks.MemoryBank


class FinalState(NamedTuple):
  """State after the selection of the coreset of the memory bank."""

  extractor: Variables
  memory_bank: banks.Coreset


class Fitted(NamedTuple):
  """Parameters for scoring: the backbone, and the coreset with its search index."""

  backbone: Variables
  memory_bank: knn.Index | windowed_neighbors.Index


_STATE_SPECS = State._make((P(), P(), banks.BANK_SPECS))
_BANK_LEAVES = ('memory_bank/rows', 'memory_bank/squared_norms')
_WINDOW_BANK_LEAVES = (*_BANK_LEAVES, 'memory_bank/position')


def make(
  backbone: backbones.Backbone, context: base.RunContext, options: PatchcoreSettings
) -> base.Detector:
  """Build the PatchCore detector, with a single memory bank for all stages.

  Raises:
    ConfigError: see `configure`.
  """
  return from_config(configure(backbone, context, options))


def configure(
  backbone: backbones.Backbone,
  context: base.RunContext,
  options: PatchcoreSettings,
  dims: tuple[int, ...] = (),
) -> Config:
  """Return the sizes of a PatchCore detector.

  Args:
    backbone: network whose stages are the features.
    context: image size, number of images and shards of the run.
    options: settings.
    dims: numbers of channels of several banks that share the memory, for the sizes of the first;
      none for a single bank of all channels.

  Raises:
    ConfigError: `max_bytes` is too small, so is the region of interest, or settings exclude each
      other.
  """
  if options.foreground and backbone.stages != (vit.TOKENS,):
    message = 'detector.foreground needs the tokens of a vision transformer, and no other layers.'
    hint = 'Set ', Setting('detector.layers', (vit.TOKENS,)), ', or omit it.'
    refuse('detector.foreground', True, message, *hint, allowed=False)
  if options.window and options.approx:
    message = 'detector.approx does not apply to a search within detector.window, which is exact.'
    hint = 'Omit ', Setting('detector.approx'), '.'
    refuse('detector.approx', True, message, *hint, allowed=False)
  shapes = base.stage_shapes(backbone, context.height, context.width)
  (h, w, _), num_channels = shapes[0], sum(shape[2] for shape in shapes)
  d, *other_dims = dims or (min(num_channels, options.channels or num_channels),)
  patches, num_patches = None, h * w
  if context.inspected is not None:
    patches = np.flatnonzero(inspection.find_cells(context.inspected, h, w))
    num_patches = len(patches)
  bank = capacity.configure_bank(d, num_patches, context, options, tuple(other_dims))
  return Config(backbone, context, (h, w), patches, options, bank)


def from_config(config: Config) -> base.Detector:
  """Build the PatchCore detector of these sizes."""

  def bind(function: Callable) -> Callable:
    return functools.partial(function, config)

  fitted_specs = Fitted._make((P(), _index_specs(config)))
  specs = base.ShardingSpecs(_STATE_SPECS, fitted_specs, fitted_specs, bind(pad_to_shards))
  bank, options = config.bank, config.options
  is_sharded = bank.shards.num_shards > 1
  # A bank that is compacted has lost patches, that of a region lacks the others; of a sharded one,
  # devices hold parts. Unit vectors have lost the lengths, which the foreground needs.
  is_complete = config.patches is None and not config.context.has_blanks
  is_complete &= not options.foreground
  holds_all = is_complete and not bank.needs_compaction and not is_sharded
  leave_one_out = base.LeaveOneOut(
    bank.num_folds, bind(embed), bind(leave_fold_out), bind(score_held_out), bind(select_coresets),
    learned_embeddings=bind(learned_embeddings) if holds_all else None,
  )  # fmt: skip
  compact_fn = bind(compact) if bank.needs_compaction else None
  incremental = base.Incremental(
    to_arrays, bind(restore), bind(summarize), drift, compact_fn, bind(select)
  )
  return base.Detector(
    bind(init),
    bind(update),
    bind(finalize),
    bind(score),
    leave_one_out=leave_one_out,
    incremental=incremental,
    sharding_specs=specs if is_sharded else None,
    export_score_fn=bind(export_score_fn),
    score_bounds=bind(score_bounds) if options.foreground else None,
    bank_leaves=_WINDOW_BANK_LEAVES if options.window else _BANK_LEAVES,
    image_score=options.image_score,
  )


def init(config: Config, key: Key, variables: Variables) -> State:
  """Return an empty memory bank."""
  return State(variables, key, banks.empty(config.bank))


def extract_features(config: Config, variables: Variables, images: Images) -> Embeddings:
  """Return the locally aware patch embeddings of images (section 3.1).

  Averages 3x3 neighborhoods of each stage, unless `pool` is False, upsamples all stages bilinearly
  to the size of the first, and concatenates their channels.
  """
  options = config.options
  x = patch_embeddings.extract(config.backbone, variables, images, options.pool)
  channels = options.channels
  if not 0 < channels < x.shape[-1]:
    return x
  averaging_matrix = jnp.asarray(resampling.adaptive_pool_matrix(channels, x.shape[-1]))
  return jnp.einsum('bhwc,dc->bhwd', x, averaging_matrix, precision=jax.lax.Precision.HIGHEST)


def _to_bank_rows(config: Config, x: Float[Array, '... d']) -> Float[Array, '... d']:
  """Return embeddings as the bank has them: for the cosine distance, unit vectors.

  Vectors of zeros stay zero.
  """
  if config.options.distance == 'euclidean':
    return x
  squared_norms = jnp.sum(x**2, axis=-1, keepdims=True)
  return x / jnp.sqrt(jnp.maximum(squared_norms, jnp.finfo(x.dtype).tiny))


def _from_euclidean(config: Config, distance: Distances) -> Distances:
  """Return the distances of the setting, given the Euclidean ones of rows of the bank."""
  return distance if config.options.distance == 'euclidean' else 0.5 * distance**2


def embed(config: Config, variables: Variables, batch: Batch) -> Embeddings:
  """Return the precomputed patch embeddings of a batch, or compute those of its images.

  Those of patches that are blank are NaN.
  """
  extract = functools.partial(extract_features, config, variables)
  return patch_embeddings.embed(config.context, extract, batch)


def embed_for_search(config: Config, variables: Variables, batch: Batch) -> Embeddings:
  """Return what `embed` returns, but zeros for blank patches, whose distances do not count."""
  return patch_embeddings.clear_blanks(config.context, embed(config, variables, batch))


def learned_embeddings(
  config: Config, state: State
) -> tuple[Int[np.ndarray, ' n'], HostEmbeddings]:
  """Return ids and patch embeddings of the images of this run, from a bank that holds them all."""
  (embeddings, image_id, _), start, stop, *_ = state.memory_bank
  rows = slice(int(start[0]), int(stop[0]))  # Those before are the coreset of an earlier run.
  x = np.asarray(embeddings)[rows].reshape(-1, *config.grid, config.bank.d)
  return np.asarray(image_id)[rows][:: config.bank.patches_per_image], x


def update(config: Config, state: State, batch: Batch) -> tuple[State, Metrics]:
  """Append a batch's valid images to the bank; the metric is the number of images so far."""
  x = _to_bank_rows(config, _select_patches(config, embed(config, state.extractor, batch)))
  valid = jnp.asarray(batch.valid)
  in_specs = banks.BANK_SPECS, P('data'), P('data'), P('data')
  append_fn = functools.partial(banks.append, has_blanks=config.context.has_blanks)
  append = config.bank.shards.shard_map(append_fn, in_specs, banks.BANK_SPECS)
  memory_bank = append(state.memory_bank, x, valid, jnp.asarray(batch.index))
  return state._replace(memory_bank=memory_bank), {'images': memory_bank.num_images}


def _select_patches(config: Config, x: Embeddings) -> Float[Array, 'b _h _w d']:
  """Return the patches that are learned from, those of a region of interest in one row."""
  if config.patches is None:
    return x
  return x.reshape(len(x), 1, -1, x.shape[-1])[:, :, config.patches]


def finalize(config: Config, state: State | FinalState) -> Fitted:
  """Return the search index of the bank's rows."""
  return _make_fitted(config, state.extractor, state.memory_bank.patches)


def _make_fitted(config: Config, variables: Variables, patches: selection.Patches) -> Fitted:
  if not config.options.window:
    return Fitted(variables, knn.build_index(patches.embeddings))
  # Both ids wrap around alike beyond 2^31 patches, so the difference is exact.
  position = patches.patch_id - patches.image_id * config.bank.patches_per_image
  if config.patches is not None:  # Ids count the cells of the region of interest only.
    position = jnp.asarray(config.patches)[position]
  return Fitted(variables, windowed_neighbors.build_index(patches.embeddings, position))


def _index_specs(config: Config) -> knn.Index | windowed_neighbors.Index:
  return windowed_neighbors.INDEX_SPECS if config.options.window else knn.INDEX_SPECS


def pad_to_shards(config: Config, fitted: Fitted) -> Fitted:
  """Pad the memory bank to equal shards, with rows that are never the nearest."""
  index, num_shards = fitted.memory_bank, config.bank.shards.num_shards
  if isinstance(index, windowed_neighbors.Index):
    return fitted._replace(memory_bank=windowed_neighbors.pad_index(index, num_shards))
  return fitted._replace(memory_bank=knn.pad_index(index, num_shards))


def score(config: Config, fitted: Fitted, images: Images) -> Scores:
  """Score images by the distances of their patches to the memory bank."""
  x = extract_features(config, fitted.backbone, images)
  return _score_embeddings(config, fitted, x, images)


def score_held_out(config: Config, model: Fitted, batch: Batch) -> Scores:
  """Score training images, all of one fold, against a memory bank without that fold."""
  x = embed_for_search(config, model.backbone, batch)
  return _score_embeddings(config, model, x, jnp.asarray(batch.image))


def export_score_fn(config: Config, fitted: Fitted) -> Callable[[Images], Scores]:
  """Return `score` for a fixed memory bank, with a search that other runtimes execute fast."""
  search = make_export_search(config, fitted)

  def score(images: Images) -> Scores:
    x = extract_features(config, fitted.backbone, images)
    return score_distances(config, _mask_background(config, search(x), x), images)

  return score


def make_export_search(config: Config, fitted: Fitted) -> Callable[[Embeddings], Distances]:
  """Return a function from patch embeddings to their distances to a fixed memory bank."""
  index, options = fitted.memory_bank, config.options
  if isinstance(index, windowed_neighbors.Index):
    windowed_search = windowed_neighbors.make_export_search(index, config.grid, options.window)
    return lambda x: _from_euclidean(config, windowed_search(_to_bank_rows(config, x)))

  def search(x: Embeddings) -> Distances:
    queries = _to_bank_rows(config, x.reshape(-1, x.shape[-1]))
    nearest = knn.nearest_for_export(queries, index)
    return _from_euclidean(config, nearest.distance.reshape(x.shape[:-1]))

  return search


def _score_embeddings(config: Config, fitted: Fitted, x: Embeddings, images: Images) -> Scores:
  distance = _mask_background(config, find_distances(config, fitted, x), x)
  return score_distances(config, distance, images)


def find_distances(config: Config, fitted: Fitted, x: Embeddings) -> Distances:
  """Return the distances of patch embeddings, sharded by image, to a bank sharded by row."""

  def search_shard(
    index: knn.Index | windowed_neighbors.Index, x: Array, axis_name: str | None
  ) -> Array:
    options = config.options
    if isinstance(index, windowed_neighbors.Index):
      return windowed_neighbors.nearest_sharded(x, index, options.window, axis_name)
    queries = x.reshape(-1, x.shape[-1])
    nearest = knn.nearest_sharded(queries, index, 1, options.approx, axis_name)
    return nearest.distance.reshape(x.shape[:-1])

  in_specs = _index_specs(config), P('data')
  search = config.bank.shards.shard_map(search_shard, in_specs, P('data'))
  return _from_euclidean(config, search(fitted.memory_bank, _to_bank_rows(config, x)))


def _mask_background(config: Config, distance: Distances, x: Embeddings) -> Distances:
  """Return the distances of patches; with `foreground`, those of the background become 0."""
  if not config.options.foreground:
    return distance
  return distance * foreground.find(x)


def score_distances(config: Config, distance: Distances, images: Images) -> Scores:
  """Score images, given the distance of each patch to the memory bank."""
  image_size = config.context.height, config.context.width
  inspected = config.context.find_pixels(images)
  return image_score.from_distances(distance, image_size, config.options.image_score, inspected)


def score_bounds(
  config: Config, fitted: Fitted, images: Images, tolerance: float
) -> tuple[Scores, Scores]:
  """Return lower and upper bounds of the scores, for rounding errors that change the foreground.

  They are the scores of the patches that are foreground in spite of such errors, and of those that
  may be. More patches never lower a score.
  """
  x = extract_features(config, fitted.backbone, images)
  distance = find_distances(config, fitted, x)
  low, high = (
    score_distances(config, distance * cells, images) for cells in foreground.bounds(x, tolerance)
  )
  return low, high


def select_coresets(config: Config, state: State, previous_arrays: Arrays) -> Arrays:
  """Return the calibration coresets of all folds, from which banks without a fold are selected."""
  previous = selection.from_arrays(previous_arrays, _CORESET_PREFIX) if previous_arrays else None
  key, memory_bank = state.key, state.memory_bank
  coresets = leave_out.select_calibration_coresets(key, memory_bank, config.bank, previous)
  return {_CORESET_PREFIX + name: value for name, value in coresets._asdict().items()}


def leave_fold_out(config: Config, variables: Variables, arrays: Arrays, fold: int) -> Fitted:
  """Return the model whose memory bank is selected from the coresets of all other folds.

  Raises:
    ConfigError: there are no other folds.
  """
  coresets, num_rows = selection.from_arrays(arrays, _CORESET_PREFIX), len(arrays['embeddings'])
  max_rows = math.ceil(_HELD_OUT_SHARE * num_rows)
  patches = leave_out.coreset_without_fold(coresets, config.bank, fold, max_rows)
  if not len(patches.embeddings):
    ratio, max_bytes = config.options.ratio, Setting('detector.max_bytes')
    message = f'All {num_rows} rows of the memory bank are of fold {fold}, so none can score it.'
    hint = 'Raise ', Setting('detector.ratio'), f', which is {ratio}, or ', max_bytes, '.'
    refuse('detector.ratio', ratio, message, *hint)
  return _make_fitted(config, variables, patches)


def compact(config: Config, state: State, num_images: int) -> State:
  """Compact the memory bank if the next images would not fit."""
  memory_bank = banks.compact(state.key, state.memory_bank, config.bank, num_images)
  return state._replace(memory_bank=memory_bank)


def select(config: Config, state: State) -> FinalState:
  """Select the coreset of the memory bank (section 3.2)."""
  coreset = banks.select_coreset(state.key, state.memory_bank, config.bank)
  return FinalState(state.extractor, coreset)


def to_arrays(state: FinalState) -> Arrays:
  """Return the coreset's arrays by name."""
  return banks.to_arrays(state.memory_bank)


def restore(config: Config, state: State, arrays: Arrays) -> State:
  """Return the initial state with the coreset of the run that it extends."""
  memory_bank = banks.from_arrays(state.memory_bank, arrays, config.bank)
  return state._replace(memory_bank=memory_bank)


def summarize(config: Config, arrays: Arrays, embeddings: Iterator[HostEmbeddings]) -> Statistics:
  """Return sizes, the covering radius, and with `approx` the recall of the approximate search."""
  statistics: Statistics = {
    'images': int(arrays['num_images']),
    'bank_rows': len(arrays['embeddings']),
    'covering_radius': float(arrays['covering_radius']),
    'folds': config.bank.num_folds,
  }
  if config.options.approx:
    queries = _select_patches(config, jnp.asarray(next(embeddings))).reshape(-1, config.bank.d)
    queries = queries[~jnp.isnan(queries[:, 0])][:_NUM_RECALL_QUERIES]
    queries = _to_bank_rows(config, queries)
    index = knn.build_index(jnp.asarray(arrays['embeddings']))
    statistics['approx_recall'] = knn.measure_recall(queries, index)
  return statistics


def drift(previous_arrays: Arrays, arrays: Arrays) -> Statistics:
  """Return the number of bank rows before and after, and the share of old rows still there."""
  num_retained = int((arrays['image_id'] <= previous_arrays['image_id'].max()).sum())
  num_old_rows = len(previous_arrays['embeddings'])
  return {
    'bank_rows_before': num_old_rows,
    'bank_rows_after': len(arrays['embeddings']),
    'share_retained': num_retained / num_old_rows,
  }
