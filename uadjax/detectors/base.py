"""The interface of a detector: pure functions over arrays, and what their maker is given.

Letters: b batch, h w image or map.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, UInt8

from uadjax import types
from uadjax.numerics import collectives
from uadjax.system.progress import no_progress, Progress

Schedule = Callable[[Any], Any]  # Step -> learning rate, as optax has it.


class RunContext(NamedTuple):
  """What the maker of a detector is told about the run.

  Attributes:
    height: of the images at network size, in pixels.
    width: likewise.
    images: an upper bound on the number of images that will be folded in.
    seen: number of images that were folded in before, by a run that this one extends.
    learning_rate: schedule for detectors that descend a gradient.
    track: shows progress.
    shards: over which devices batches are split, and what is learned where it can be.
    spare: images more than its even share that one of them may be given.
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
  """What of a detector is split over devices: True, or the same on all: False, for whole subtrees.

  Attributes:
    state: of the State, until it is settled.
    fitted: of Fitted.
    reference: of what images that are left out are scored by.
    fill: Fitted, or such a reference -> the same with its parts equal.
  """

  state: Any
  fitted: Any
  held_out_model: Any
  pad_to_shards: Callable[[Any], Any]


class OnePass(NamedTuple):
  """What detectors can do that see every image once: leave one out, and go on learning.

  Attributes:
    folds: number of references: image i, counted from the very first one learned from, is of fold
      i % folds.
    embedder: State -> what `embed` needs: all that images meet before what is being learned.
    embed: (embedder, Batch) -> embeddings, which may stand in a batch for its images. So they can
      be computed on all devices, and be folded in on one.
    compile: the shapes of a State -> None: compiles ahead what `settle` and `finish` will run.
    stand_ins: (State after the last image, what this gave and `kept` in an earlier run or {}) ->
      arrays by name: what references need besides `kept`. Must come before `settle`.
    settle: State -> State, after the last image: ends the learning.
    make_room: (State, number of images) -> State that has room for so many more; None where there
      always is.
    kept: settled State -> arrays by name: what learning more needs, without the backbone.
    extend: (initial State, kept arrays) -> State that goes on from there.
    reference: (backbone variables, kept arrays and stand-ins, fold) -> Reference: what scoring
      images of that fold needs. May consume the arrays.
    score_left_out: (Reference of its fold, Batch) -> Scores, as if the image had not been folded
      in.
    facts: (kept arrays, embeddings of some images) -> numbers that tell how the fold went.
    moved: (kept before, kept after) -> numbers that tell by how much further images changed it.
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
  """Pure functions that together are an anomaly detector.

  Attributes:
    init: (key, backbone variables) -> State.
    prepare: (State, Batch) -> features: the part of `update`'s work that does not depend on what
      is being learned, so that `fit` may keep it for images that come again; None where there is
      no such part, or images do not come again.
    update: (State, Batch) -> (State, metrics). Folds one batch of normal images in; jitted, State
      donated.
    validate: (State, Batch) -> metrics, weighted means over the valid rows of held-out normal
      images; None for detectors that learn in one pass.
    finish: State -> Fitted. Runs once, on a settled state where there is such; keeps what scoring
      needs and nothing more, and may consume the state.
    score: (Fitted, uint8 images [b h w 3]) -> Scores(map [b h w], image [b]). Pure; the only thing
      exported, in this form or the next.
    one_pass: what there is besides where every image is seen once; None where images come again.
    portable: Fitted -> (images -> Scores): the same scores from operations that every runtime has
      and is quick at, with whatever does not depend on images computed ahead; None where `score`
      is that already.
    around: (Fitted, images, tolerance) -> (low, high) Scores, between which the score of a runtime
      lies that rounds by no more than that, where a threshold within makes it jump; None where
      nothing jumps.
    split: what of it `Spec.shards` split; None where all devices have all of it.
  """

  init: Callable[[types.Key, types.Variables], Any]
  precompute: Callable[[Any, types.Batch], Any] | None
  update: Callable[[Any, types.Batch], tuple[Any, types.Metrics]]
  validate: Callable[[Any, types.Batch], types.Metrics] | None
  to_fitted: Callable[[Any], Any]
  score: Callable[[Any, UInt8[Array, 'b h w 3']], types.Scores]
  one_pass: OnePass | None = None
  export_score_fn: Callable[[Any], Callable[[UInt8[Array, 'b H W 3']], types.Scores]] | None = None
  score_bounds: (
    Callable[[Any, UInt8[Array, 'b H W 3'], float], tuple[types.Scores, types.Scores]] | None
  ) = None
  sharding_specs: ShardingSpecs | None = None
