"""PatchCore with a memory bank for each layer, that is, for each stage of the backbone.

Coreset and search of a bank see the features of one stage only. The anomaly map is the mean of the
maps of all stages, as in RAD (Zhang et al. 2026, arXiv 2601.22763) and SuperADD (arXiv 2605.14808).

All maps have the size of the first stage: PatchCore upsamples the others to it, and the
transformers of these papers have one size for all layers. So the embeddings are those of PatchCore,
and each bank gets the channels of its stage. For the rest it is a PatchCore detector of its own,
whose backbone has no variables.

Letters: b batch, h w patch grid, H W image at network size.
"""

from collections.abc import Callable, Iterator
import functools
import itertools
from typing import Any, NamedTuple, TypeVar

import jax
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float
import numpy as np

from uadjax import backbones
from uadjax.detectors import base, patchcore
from uadjax.detectors.base import Embeddings, HostEmbeddings, Images, Statistics
from uadjax.detectors.settings import PatchcoreSettings
from uadjax.errors import refuse, Setting
from uadjax.types import Arrays, Batch, Key, Metrics, PyTree, Scores, Variables

X = TypeVar('X', jax.Array, np.ndarray)


class Layer(NamedTuple):
  """Memory bank of one stage.

  Attributes:
    name: name of the stage.
    channels: its channels among those of the embeddings.
    config: sizes of its PatchCore detector.
    detector: that detector, which gets embeddings and no images.
    leave_one_out: held-out scores of the detector.
    incremental: functions of the detector that let a later run learn more.
  """

  name: str
  channels: slice
  config: patchcore.Config
  detector: base.Detector
  leave_one_out: base.LeaveOneOut
  incremental: base.Incremental

  def split(self, x: X) -> X:
    """Return the channels of the stage."""
    return x[..., self.channels]

  def pick(self, arrays: Arrays) -> Arrays:
    """Return the arrays of the stage, by their names in the detector."""
    prefix = f'{self.name}_'
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

  def rename(self, arrays: Arrays) -> dict[str, Any]:
    """Return arrays of the detector by names that tell the stages apart."""
    return {f'{self.name}_{name}': value for name, value in arrays.items()}


Layers = tuple[Layer, ...]


class State(NamedTuple):
  """Training state: the backbone, and the State or FinalState of each layer's detector."""

  extractor: Variables
  layers: tuple[patchcore.State | patchcore.FinalState, ...]


class Fitted(NamedTuple):
  """Parameters for scoring: the backbone, and the Fitted of each layer's detector."""

  backbone: Variables
  layers: tuple[patchcore.Fitted, ...]


def make(
  backbone: backbones.Backbone, context: base.RunContext, options: PatchcoreSettings
) -> base.Detector:
  """Build the PatchCore detector with one memory bank, or with one per layer if so set.

  Raises:
    ConfigError: `max_bytes` is too small, or settings exclude each other.
  """
  if not options.layers_apart or len(backbone.stages) == 1:
    return patchcore.make(backbone, context, options)
  if options.channels:
    message = 'detector.channels averages channels over all layers, which detector.layers_apart'
    hint = 'Omit one of ', Setting('detector.channels'), ' and ', Setting('detector.layers_apart')
    refuse('detector.channels', options.channels, f'{message} separates.', *hint, '.', allowed=0)
  layers = _make_layers(backbone, context, options)

  def bind(function: Callable) -> Callable:
    return functools.partial(function, layers)

  bank = layers[0].config.bank
  leave_one_out = base.LeaveOneOut(
    bank.num_folds, bind(embed), bind(leave_fold_out), bind(score_held_out), bind(select_coresets)
  )
  compact_fn = bind(compact) if bank.needs_compaction else None
  incremental = base.Incremental(
    bind(to_arrays), bind(restore), bind(summarize), bind(drift), compact_fn, bind(select)
  )
  bank_leaves = (
    f'layers/{i}/{leaf}' for i, layer in enumerate(layers) for leaf in layer.detector.bank_leaves
  )
  return base.Detector(
    bind(init),
    bind(update),
    bind(finalize),
    bind(score),
    leave_one_out=leave_one_out,
    incremental=incremental,
    sharding_specs=_sharding_specs(layers) if bank.shards.num_shards > 1 else None,
    export_score_fn=bind(export_score_fn),
    bank_leaves=tuple(bank_leaves),
    image_score=options.image_score,
  )


def _make_layers(
  backbone: backbones.Backbone, context: base.RunContext, options: PatchcoreSettings
) -> Layers:
  """Return the layers, whose banks have the same number of rows within `max_bytes`."""
  dims = [shape[2] for shape in base.stage_shapes(backbone, context.height, context.width)]
  first = patchcore.configure(backbone, context, options, tuple(dims))
  layers = []
  for name, d, stop in zip(backbone.stages, dims, np.cumsum(dims).tolist(), strict=True):
    config = first._replace(bank=first.bank._replace(d=d))
    detector = patchcore.from_config(config)
    assert detector.leave_one_out is not None  # PatchCore has both.
    assert detector.incremental is not None
    channels = slice(stop - d, stop)
    functions = detector.leave_one_out, detector.incremental
    layers.append(Layer(name, channels, config, detector, *functions))
  return tuple(layers)


def _sharding_specs(layers: Layers) -> base.ShardingSpecs:
  specs = [layer.detector.sharding_specs for layer in layers]
  state_specs = State._make((P(), tuple(s.state for s in specs if s)))
  fitted_specs = Fitted._make((P(), tuple(s.fitted for s in specs if s)))
  pad_fns = [s.pad_to_shards for s in specs if s]

  def pad_to_shards(fitted: Fitted) -> Fitted:
    padded = (pad_fn(x) for pad_fn, x in zip(pad_fns, fitted.layers, strict=True))
    return fitted._replace(layers=tuple(padded))

  return base.ShardingSpecs(state_specs, fitted_specs, fitted_specs, pad_to_shards)


def init(layers: Layers, key: Key, variables: Variables) -> State:
  """Return empty memory banks; each has a key of its own."""
  states = (layer.detector.init(jax.random.fold_in(key, i), {}) for i, layer in enumerate(layers))
  return State(variables, tuple(states))


def embed(layers: Layers, variables: Variables, batch: Batch) -> Embeddings:
  """Return the precomputed patch embeddings of a batch, or compute those of its images."""
  return patchcore.embed(layers[0].config, variables, batch)  # The bank does not matter.


def update(layers: Layers, state: State, batch: Batch) -> tuple[State, Metrics]:
  """Append a batch's valid images to all banks; the metric is the number of images so far."""
  x = embed(layers, state.extractor, batch)
  states, metrics = [], {}
  for layer, layer_state in zip(layers, state.layers, strict=True):
    layer_batch = batch._replace(features=layer.split(x))
    layer_state, metrics = layer.detector.update(layer_state, layer_batch)
    states.append(layer_state)
  return state._replace(layers=tuple(states)), metrics


def compact(layers: Layers, state: State, num_images: int) -> State:
  """Compact the memory banks if the next images would not fit."""

  def compact_layer(layer: Layer, layer_state: PyTree) -> PyTree:
    assert layer.incremental.compact is not None  # All banks have the same sizes.
    return layer.incremental.compact(layer_state, num_images)

  compacted = itertools.starmap(compact_layer, zip(layers, state.layers, strict=True))
  return state._replace(layers=tuple(compacted))


def select(layers: Layers, state: State) -> State:
  """Select the coreset of each memory bank."""

  def select_layer(layer: Layer, layer_state: PyTree) -> PyTree:
    assert layer.incremental.select is not None  # PatchCore has it.
    return layer.incremental.select(layer_state)

  selected = itertools.starmap(select_layer, zip(layers, state.layers, strict=True))
  return state._replace(layers=tuple(selected))


def finalize(layers: Layers, state: State) -> Fitted:
  """Return the search indices of the banks' rows."""
  pairs = zip(layers, state.layers, strict=True)
  return Fitted(state.extractor, tuple(layer.detector.finalize(x) for layer, x in pairs))


def score(layers: Layers, fitted: Fitted, images: Images) -> Scores:
  """Score images by the mean distance of their patches to the memory banks."""
  x = patchcore.extract_features(layers[0].config, fitted.backbone, images)
  return _score_embeddings(layers, fitted, x, images)


def score_held_out(layers: Layers, model: Fitted, batch: Batch) -> Scores:
  """Score training images, all of one fold, against memory banks without that fold."""
  x = patchcore.embed_for_search(layers[0].config, model.backbone, batch)
  return _score_embeddings(layers, model, x, jnp.asarray(batch.image))


def _score_embeddings(layers: Layers, fitted: Fitted, x: Embeddings, images: Images) -> Scores:
  distances = [
    patchcore.find_distances(layer.config, layer_fitted, layer.split(x))
    for layer, layer_fitted in zip(layers, fitted.layers, strict=True)
  ]
  return _score_distances(layers, distances, images)


def _score_distances(
  layers: Layers, distances: list[Float[Array, 'b h w']], images: Images
) -> Scores:
  """Score images by the map of the mean distance, which is the mean of the maps of all layers."""
  mean_distance = sum(distances[1:], distances[0]) / len(distances)
  return patchcore.score_distances(layers[0].config, mean_distance, images)


def export_score_fn(layers: Layers, fitted: Fitted) -> Callable[[Images], Scores]:
  """Return `score` for fixed memory banks, with searches that other runtimes execute fast."""
  searches = [
    patchcore.make_export_search(layer.config, layer_fitted)
    for layer, layer_fitted in zip(layers, fitted.layers, strict=True)
  ]

  def score(images: Images) -> Scores:
    x = patchcore.extract_features(layers[0].config, fitted.backbone, images)
    distances = [find(layer.split(x)) for layer, find in zip(layers, searches, strict=True)]
    return _score_distances(layers, distances, images)

  return score


def select_coresets(layers: Layers, state: State, previous_arrays: Arrays) -> Arrays:
  """Return the calibration coresets of all folds of each layer."""
  arrays: dict[str, Any] = {}
  for layer, layer_state in zip(layers, state.layers, strict=True):
    assert layer.leave_one_out.select_coresets is not None  # PatchCore has it.
    coresets = layer.leave_one_out.select_coresets(layer_state, layer.pick(previous_arrays))
    arrays |= layer.rename(coresets)
  return arrays


def leave_fold_out(layers: Layers, variables: Variables, arrays: Arrays, fold: int) -> Fitted:
  """Return the model whose memory banks are selected from the coresets of all other folds.

  Raises:
    ConfigError: there are no other folds.
  """
  models = [layer.leave_one_out.leave_fold_out({}, layer.pick(arrays), fold) for layer in layers]
  return Fitted(variables, tuple(models))


def to_arrays(layers: Layers, state: State) -> Arrays:
  """Return the arrays of all coresets by names that begin with those of the stages."""
  arrays: dict[str, Any] = {}
  for layer, layer_state in zip(layers, state.layers, strict=True):
    arrays |= layer.rename(layer.incremental.to_arrays(layer_state))
  return arrays


def restore(layers: Layers, state: State, arrays: Arrays) -> State:
  """Return the initial state with the coresets of the run that it extends."""
  pairs = zip(layers, state.layers, strict=True)
  restored = (layer.incremental.restore(x, layer.pick(arrays)) for layer, x in pairs)
  return state._replace(layers=tuple(restored))


def summarize(layers: Layers, arrays: Arrays, embeddings: Iterator[HostEmbeddings]) -> Statistics:
  """Return the rows of all banks, and the largest radius and the least recall of any of them."""
  copies = itertools.tee(embeddings, len(layers))
  summaries = [
    layer.incremental.summarize(layer.pick(arrays), map(layer.split, copy))
    for layer, copy in zip(layers, copies, strict=True)
  ]

  def reduce(name: str) -> int | float:
    values = [summary[name] for summary in summaries]
    if name == 'bank_rows':
      return sum(values)
    return min(values) if name == 'approx_recall' else max(values)  # Images and folds are equal.

  return {name: reduce(name) for name in summaries[0]}


def drift(layers: Layers, previous_arrays: Arrays, arrays: Arrays) -> Statistics:
  """Return the rows of all banks before and after, and the share of old rows still there."""
  drifts = [
    layer.incremental.drift(layer.pick(previous_arrays), layer.pick(arrays)) for layer in layers
  ]
  totals = {name: sum(x[name] for x in drifts) for name in drifts[0]}
  # All banks had the same number of rows.
  return {**totals, 'share_retained': totals['share_retained'] / len(drifts)}
