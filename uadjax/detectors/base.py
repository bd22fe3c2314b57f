"""The interface of a detector: pure functions over arrays, and the run they are built for.

Each detector has its own two trees of arrays: a State, which learns from batches of normal images,
and a Fitted, which scores images. A detector that sees every image once has a State with a field
`extractor`: the fixed parameters of its embeddings, which no update changes.

Letters: b batch, H W image at network size, h w map of embeddings, d embedding.
"""

# ruff: noqa: D102  # The docstring of a protocol is that of its function.

from collections.abc import Callable, Hashable, Iterable, Iterator
import functools
from typing import cast, NamedTuple, Protocol

import jax
from jaxtyping import Array, Bool, Float, Int, UInt8
import numpy as np
import optax

from uadjax import backbones, types
from uadjax.detectors import inspection
from uadjax.numerics import collectives
from uadjax.system.progress import no_progress, Progress
from uadjax.types import PyTree, Scores

Images = UInt8[Array, 'b H W 3']
Embeddings = Float[Array, 'b h w d']
HostEmbeddings = Float[np.ndarray, 'b h w d']
Statistics = dict[str, int | float]


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
    inspected: True for the pixels of the images that are inspected, at least one; None for all.
    has_blanks: whether pixels that are not inspected are blank instead, as images are tiles; see
      `region_of_interest.BLANK`.
    inspected_share: share of the pixels of all training images that is not blank.
  """

  height: int
  width: int
  max_images: int = 0
  num_previous_images: int = 0
  learning_rate: optax.Schedule = lambda step: 0.0
  progress: Progress = no_progress
  shards: collectives.Shards = collectives.SINGLE_SHARD
  max_extra_images_per_shard: int = 0
  inspected: Bool[np.ndarray, 'H W'] | None = None
  has_blanks: bool = False
  inspected_share: float = 1.0

  def find_pixels(self, images: UInt8[Array, 'b H W 3']) -> inspection.Inspected | None:
    """Return the inspected pixels of images; None for all."""
    return inspection.find_pixels(images, self.inspected, self.has_blanks)


def stage_shapes(
  backbone: backbones.Backbone, height: int, width: int
) -> tuple[tuple[int, int, int], ...]:
  """Return the height, width and number of channels of each stage of a backbone.

  Args:
    backbone: the network.
    height: height of its input.
    width: width of its input.
  """
  return _trace_stages(cast(Hashable, backbone), height, width)  # As all modules of Flax.


# A run asks for the same shapes several times, and each time to trace the network takes 0.2 s.
@functools.lru_cache(maxsize=8)
def _trace_stages(module: Hashable, height: int, width: int) -> tuple[tuple[int, int, int], ...]:
  backbone = cast(backbones.Backbone, module)
  image = jax.ShapeDtypeStruct((1, height, width, 3), np.float32)
  stages = jax.eval_shape(lambda x: backbone.init_with_output(jax.random.key(0), x)[0], image)
  return tuple(stages[name].shape[1:] for name in backbone.stages)


class InitFn(Protocol):
  """Return the State before the first update.

  Args:
    key: key of all random choices.
    variables: variables of the pretrained backbone, which the State holds without a copy.
  """

  def __call__(self, key: types.Key, variables: types.Variables, /) -> PyTree: ...


class UpdateFn(Protocol):
  """Return the State after one training step on normal images, and metrics of the step.

  Callers jit it, with the State donated. Rows that are not valid must change nothing, except that
  detectors with `validate` are trained on full batches only.
  """

  def __call__(self, state: PyTree, batch: types.Batch, /) -> tuple[PyTree, types.Metrics]: ...


class FinalizeFn(Protocol):
  """Return the Fitted of the last State, which may be consumed."""

  def __call__(self, state: PyTree, /) -> PyTree: ...


class ScoreFn(Protocol):
  """Return the anomaly maps [b H W] and image scores [b] of images at network size."""

  def __call__(self, fitted: PyTree, images: Images, /) -> Scores: ...


class PrecomputeFn(Protocol):
  """Compute the part of an update that no training step changes.

  Returns:
    Features, which may replace the images of the batch in later updates.
  """

  def __call__(self, state: PyTree, batch: types.Batch, /) -> PyTree: ...


class ValidateFn(Protocol):
  """Return metrics of held-out normal images, averaged over the valid rows.

  One of them is `loss`.
  """

  def __call__(self, state: PyTree, batch: types.Batch, /) -> types.Metrics: ...


class ExportScoreFn(Protocol):
  """Return a function with the scores of `score` for a fixed Fitted, fast on every runtime.

  It consists of operations that every runtime has. Everything that does not depend on images is
  computed ahead.
  """

  def __call__(self, fitted: PyTree, /) -> Callable[[Images], Scores]: ...


class ScoreBoundsFn(Protocol):
  """Bound scores where rounding can make them jump.

  Returns:
    Bounds of the scores of any runtime with a relative rounding error of `error`.
  """

  def __call__(self, fitted: PyTree, images: Images, error: float, /) -> tuple[Scores, Scores]: ...


class EmbedFn(Protocol):
  """Return the embeddings of a batch: its `features` if it has them, else those of its images."""

  def __call__(self, extractor: PyTree, batch: types.Batch, /) -> Array: ...


class SelectCoresetsFn(Protocol):
  """Select embeddings that represent the images of each fold.

  Args:
    state: State after the last image, before `Incremental.select`.
    previous_arrays: arrays of the run that is extended, or none.

  Returns:
    Arrays by name for `leave_fold_out`, in addition to those of `Incremental.to_arrays`.
  """

  def __call__(self, state: PyTree, previous_arrays: types.Arrays, /) -> types.Arrays: ...


class LeaveFoldOutFn(Protocol):
  """Return a model for `LeaveOneOut.score` that has not learned from one fold.

  Args:
    variables: variables of the backbone.
    arrays: stored arrays of `Incremental.to_arrays` and `LeaveOneOut.select_coresets`.
    fold: fold to leave out.
  """

  def __call__(self, variables: types.Variables, arrays: types.Arrays, fold: int, /) -> PyTree: ...


class ScoreHeldOutFn(Protocol):
  """Score training images as if the detector had not learned from them.

  Returns:
    The scores of images that belong to the fold without which `model` was made.
  """

  def __call__(self, model: PyTree, batch: types.Batch, /) -> Scores: ...


class RemoveFn(Protocol):
  """Return a Fitted that has not learned from some of the images.

  Args:
    variables: variables of the backbone.
    arrays: stored arrays of `Incremental.to_arrays`.
    embeddings: batches of the embeddings of all images to remove.
  """

  def __call__(
    self, variables: types.Variables, arrays: types.Arrays, embeddings: Iterable[HostEmbeddings], /
  ) -> PyTree: ...


class LearnedEmbeddingsFn(Protocol):
  """Return the embeddings of all images of this run, as the State holds them.

  Returns:
    Ids of the images (`Batch.index`), and their embeddings in this order; on a CPU without a copy.
  """

  def __call__(self, state: PyTree, /) -> tuple[Int[np.ndarray, ' n'], HostEmbeddings]: ...


class LeaveOneOut(NamedTuple):
  """Held-out scores of training images, for the calibration of detectors that learn in one pass.

  Attributes:
    num_folds: number of folds; 1 where `score` leaves out each image by itself. The image with the
      id i (`Batch.index`) is in fold i % num_folds. Near-duplicates have ids of the same fold.
    embed: embeds images, so that all devices can do so even where only one learns.
    leave_fold_out: makes the model that scores a fold.
    score: scores images of the fold that a model lacks.
    select_coresets: selects embeddings that represent the images of each fold; None where the
      arrays of `Incremental` suffice.
    remove: makes a Fitted without given images, to score near-duplicates; required with a single
      fold, else None.
    learned_embeddings: returns the embeddings that a State holds before `Incremental.select`, so
      that `score` needs no second copy of them; None where a State does not hold those of all
      images.
  """

  num_folds: int
  embed: EmbedFn
  leave_fold_out: LeaveFoldOutFn
  score: ScoreHeldOutFn
  select_coresets: SelectCoresetsFn | None = None
  remove: RemoveFn | None = None
  learned_embeddings: LearnedEmbeddingsFn | None = None


class ToArraysFn(Protocol):
  """Return the arrays of the last State that later runs need, by name.

  The backbone is not among them. Nothing is copied. Stored arrays are these, except that they have
  the packed lower triangles of `Triangles`.
  """

  def __call__(self, state: PyTree, /) -> types.Arrays: ...


class RestoreFn(Protocol):
  """Return an initial State that has learned what the arrays of an earlier run hold."""

  def __call__(self, state: PyTree, arrays: types.Arrays, /) -> PyTree: ...


class SummarizeFn(Protocol):
  """Return statistics by name of a fit.

  Args:
    arrays: arrays of `Incremental.to_arrays`.
    embeddings: iterator over batches of embeddings of the stored images; computes them on demand.
  """

  def __call__(
    self, arrays: types.Arrays, embeddings: Iterator[HostEmbeddings], /
  ) -> Statistics: ...


class DriftFn(Protocol):
  """Return statistics by name of how much further images changed a model.

  They compare the arrays of two runs.
  """

  def __call__(self, previous_arrays: types.Arrays, arrays: types.Arrays, /) -> Statistics: ...


class CompactFn(Protocol):
  """Return the State with space for a batch of so many images; called before each update."""

  def __call__(self, state: PyTree, num_images: int, /) -> PyTree: ...


class SelectFn(Protocol):
  """Return the last State, reduced to what scoring and later runs need."""

  def __call__(self, state: PyTree, /) -> PyTree: ...


class Incremental(NamedTuple):
  """Functions that let a later run learn from more images.

  Attributes:
    to_arrays: names the arrays of the last State.
    restore: continues from such arrays.
    summarize: describes a fit.
    drift: describes how much a fit changed the one that it extends.
    compact: makes space for the next batch; None where space never runs out.
    select: reduces the last State before `to_arrays` and `Detector.finalize`; None where these take
      the State as it is, with shapes that are the same from the first to the last image.
  """

  to_arrays: ToArraysFn
  restore: RestoreFn
  summarize: SummarizeFn
  drift: DriftFn
  compact: CompactFn | None = None
  select: SelectFn | None = None


class ShardingSpecs(NamedTuple):
  """Sharding of a detector's arrays: trees of `jax.sharding.PartitionSpec`.

  Each spec is for one array or a whole subtree: `P('data')` shards along the first axis, `P()`
  replicates.

  Attributes:
    state: specs of the State before `Incremental.select`.
    fitted: specs of Fitted.
    held_out_model: specs of the model that scores held-out images.
    pad_to_shards: (Fitted or held-out model) -> the same model, its sharded arrays padded so that
      all shards are equal in size.
  """

  state: PyTree
  fitted: PyTree
  held_out_model: PyTree
  pad_to_shards: Callable[[PyTree], PyTree]


class Detector(NamedTuple):
  """An anomaly detector: pure functions over a State, which learns, and a Fitted, which scores.

  Attributes:
    init: makes the State before the first update.
    update: learns from a batch of normal images.
    finalize: reduces the last State to Fitted. A State of `incremental` that has a `select` is
      first passed through that.
    score: scores images. Exports contain this function or the one from `export_score_fn`, and
      nothing else.
    precompute: computes the part of `update` that may be cached for images that are seen again;
      None where there is none, or every image is seen once.
    validate: measures a State on held-out images; None for detectors that learn in one pass.
    leave_one_out: held-out scores of training images; None for detectors with `validate`.
    incremental: what a later run extends; None for detectors with `validate`.
    sharding_specs: the arrays that `RunContext.shards` shard; None where every device holds
      everything.
    export_score_fn: makes a function with the scores of `score` for all runtimes; None where
      `score` already is such a function.
    score_bounds: bounds scores, for detectors with an internal threshold at which the score jumps;
      None where the score is continuous.
    bank_leaves: paths of the arrays of Fitted, such as 'memory_bank/rows', that have one row per
      row of a memory bank. The images determine their number, which is the same for all of them.
    image_score: rule by which `score` derives an image score from a map, for maps that are joined
      from tiles; see `image_score.parse`.
  """

  init: InitFn
  update: UpdateFn
  finalize: FinalizeFn
  score: ScoreFn
  precompute: PrecomputeFn | None = None
  validate: ValidateFn | None = None
  leave_one_out: LeaveOneOut | None = None
  incremental: Incremental | None = None
  sharding_specs: ShardingSpecs | None = None
  export_score_fn: ExportScoreFn | None = None
  score_bounds: ScoreBoundsFn | None = None
  bank_leaves: tuple[str, ...] = ()
  image_score: str = 'max'
