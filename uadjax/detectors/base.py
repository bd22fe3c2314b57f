"""The interface of a detector: pure functions over arrays, and the run they are built for.

Letters: b batch, H W image at network size.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, UInt8

from uadjax import types
from uadjax.numerics import collectives
from uadjax.system.progress import no_progress, Progress

Schedule = Callable[[Any], Any]  # Step -> learning rate, as in optax.


class RunContext(NamedTuple):
  """The run that a detector is built for.

  Attributes:
    height: height of the images at network size, in pixels.
    width: width of the images at network size, in pixels.
    max_images: upper bound on the number of training images of this run; 0 to build a detector that
      only scores.
    num_previous_images: number of images that earlier runs, which this one extends, learned from; 0
      for a run that extends none. They are not counted in `max_images`.
    learning_rate: schedule for detectors that are trained by gradient descent.
    progress: wrapper of iterables that shows progress.
    shards: shards over which batches are split, and the detector's state where it can be.
    max_extra_images_per_shard: number of images that one shard may receive beyond an even share of
      `max_images`.
  """

  height: int
  width: int
  max_images: int = 0
  num_previous_images: int = 0
  learning_rate: Schedule = lambda step: 0.0
  progress: Progress = no_progress
  shards: collectives.Shards = collectives.SINGLE_SHARD
  max_extra_images_per_shard: int = 0


class ShardingSpecs(NamedTuple):
  """Sharding of a detector's arrays: trees of booleans, each for one array or a whole subtree.

  True stands for arrays that are sharded along their first axis, False for replicated ones.

  Attributes:
    state: booleans for the State before `OnePass.finalize`; they do not apply to the final State.
    fitted: booleans for Fitted.
    held_out_model: booleans for the model that scores held-out images.
    pad_to_shards: (Fitted or held-out model) -> the same model, its sharded arrays padded so that
      all shards are equal in size.
  """

  state: Any
  fitted: Any
  held_out_model: Any
  pad_to_shards: Callable[[Any], Any]


class OnePass(NamedTuple):
  """Functions of a detector that sees every training image once.

  They finish the fit, score the training images of each fold by a model without that fold (for
  calibration), and extend the model by further images.

  Attributes:
    num_folds: number of folds. Image i, counted from the first image ever learned from, is in fold
      i % num_folds.
    feature_extractor: State -> the fixed parameters that `embed` takes.
    embed: (feature extractor, Batch) -> embeddings, which can replace the images of a batch as
      `Batch.features`. This lets all devices compute embeddings even where only one learns.
    compile_finalize: State whose leaves are shapes -> None. Compiles ahead of time what `finalize`
      and `Detector.to_fitted` run.
    calibration_coresets: (State after the last image, arrays of the run that is extended or {}) ->
      arrays by name that `leave_fold_out` needs in addition to those of `state_arrays`. Must be
      called before `finalize`, whose result may lack what they are made from.
    finalize: State after the last image -> final State.
    before_update: (State, number of images in the next batch) -> State with space for them; None
      where space never runs out.
    state_arrays: final State -> arrays by name, without the backbone: what `extend` needs.
    extend: (initial State, state arrays) -> State that continues from there.
    leave_fold_out: (backbone variables, one dict of state arrays and calibration coresets, fold) ->
      model without the images of this fold, to score them. May consume the arrays.
    score_held_out: (model without the image's fold, Batch) -> Scores, as if the detector had not
      learned from the image.
    summary: (state arrays, embeddings of some images) -> statistics of the fit by name.
    drift: (state arrays before, state arrays after) -> statistics by name of how much further
      images changed the model.
  """

  num_folds: int
  feature_extractor: Callable[[Any], Any]
  embed: Callable[[Any, types.Batch], Any]
  compile_finalize: Callable[[Any], None]
  calibration_coresets: Callable[[Any, types.Arrays], types.Arrays]
  finalize: Callable[[Any], Any]
  before_update: Callable[[Any, int], Any] | None
  state_arrays: Callable[[Any], types.Arrays]
  extend: Callable[[Any, types.Arrays], Any]
  leave_fold_out: Callable[[types.Variables, types.Arrays, int], Any]
  score_held_out: Callable[[Any, types.Batch], types.Scores]
  summary: Callable[[types.Arrays, Any], dict[str, int | float]]
  drift: Callable[[types.Arrays, types.Arrays], dict[str, int | float]]


class Detector(NamedTuple):
  """An anomaly detector: pure functions over a State, which learns, and a Fitted, which scores.

  Attributes:
    init: (key, backbone variables) -> initial State.
    precompute: (State, Batch) -> features: the intermediate result of `update` that no training
      step changes, to be cached for images that are seen again; None where there is no such result,
      or every image is seen once.
    update: (State, Batch of normal images) -> (State, metrics). One training step; callers
      jit it, with the State donated.
    validate: (State, Batch of held-out normal images) -> metrics, averaged over the valid rows;
      None for detectors that learn in one pass.
    to_fitted: State -> Fitted, which holds only what scoring needs. Called once, after
      `OnePass.finalize` where there is one; may consume the State.
    score: (Fitted, uint8 images [b H W 3]) -> Scores(map [b H W], image [b]). Pure. Exports
      contain this function or the one from `export_score_fn`, and nothing else.
    one_pass: further functions of a detector that sees every image once; None for detectors that
      see images repeatedly.
    export_score_fn: Fitted -> (images -> Scores). Returns a function with the same scores, made
      of operations that every runtime supports and runs fast; all that does not depend on images
      is computed ahead. None where `score` already is such a function.
    score_bounds: (Fitted, images, tolerance) -> (low, high) Scores, between which lie the scores of
      any runtime with a relative rounding error of at most `tolerance`. For detectors with an
      internal threshold at which the score jumps; None where the score is continuous.
    sharding_specs: the parts that `RunContext.shards` shard; None where every device holds
      everything.
  """

  init: Callable[[types.Key, types.Variables], Any]
  precompute: Callable[[Any, types.Batch], Any] | None
  update: Callable[[Any, types.Batch], tuple[Any, types.Metrics]]
  validate: Callable[[Any, types.Batch], types.Metrics] | None
  to_fitted: Callable[[Any], Any]
  score: Callable[[Any, UInt8[Array, 'b H W 3']], types.Scores]
  one_pass: OnePass | None = None
  export_score_fn: Callable[[Any], Callable[[UInt8[Array, 'b H W 3']], types.Scores]] | None = None
  score_bounds: (
    Callable[[Any, UInt8[Array, 'b H W 3'], float], tuple[types.Scores, types.Scores]] | None
  ) = None
  sharding_specs: ShardingSpecs | None = None
