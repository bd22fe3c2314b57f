"""The vocabulary that every room speaks: batches, scores, detectors, and the errors users can get.

Letters used in shapes throughout: b batch, h w image or map, c channels, n images.
"""

from collections.abc import Callable, Iterable, Mapping
import functools
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
from jaxtyping import Array, Bool, Float, Int, UInt8
import numpy as np

Key: TypeAlias = jax.Array  # A typed key of jax.random.key.
Variables = Mapping[str, Any]  # A linen module's variable collections.
Metrics = dict[str, jax.Array]
Arrays = Mapping[str, Any]  # Arrays by name, as files hold them.
Config = Any  # An ml_collections.ConfigDict, whose fields no type checker can know.
Schedule = Callable[[Any], Any]  # Step -> learning rate, as optax has it.


class Record(NamedTuple):
  """One image of a dataset, as files.

  Attributes:
    path: the image.
    defect: 'good', or the type of defect, which is the folder's name.
    mask: ground truth, nonzero where defective; None where there is none.
  """

  path: Path
  defect: str = 'good'
  mask: Path | None = None

  @property
  def anomalous(self) -> bool:
    """Whether the image shows a defect."""
    return self.defect != 'good'


class Batch(NamedTuple):
  """Images at network size, as they enter a detector.

  Attributes:
    image: RGB pixels.
    valid: False for rows that only fill the batch up; they must change nothing.
    index: each row's position in its list of records, -1 where not valid.
    features: what `Detector.prepare` made of these images, where it was kept; else None.
  """

  image: UInt8[Array, 'b h w 3'] | UInt8[np.ndarray, 'b h w 3']
  valid: Bool[Array, ' b'] | Bool[np.ndarray, ' b']
  index: Int[Array, ' b'] | Int[np.ndarray, ' b']  # pyright: ignore[reportIncompatibleMethodOverride]
  features: Any = None


class Scores(NamedTuple):
  """How anomalous images are: the larger, the more. Raw, neither normalized nor clamped."""

  map: Float[Array, 'b h w'] | Float[np.ndarray, 'b h w']
  image: Float[Array, ' b'] | Float[np.ndarray, ' b']


# (items, their number, what is done) -> the items, while progress is shown.
Track = Callable[[Iterable[Any], int, str], Iterable[Any]]


def silently(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
  """Show no progress."""
  return items


class Shards(NamedTuple):
  """Over how many devices batches are split, and what is learned where it can be.

  Attributes:
    number: of parts, all of the same size.
    over: (function, given, gives) -> the function of whole arrays that runs `function(..., axis)`
      on each part. `given`, a tuple, tells of the arguments and `gives` of the result whether they
      are split along the first axis (True) or the same on all (False), for leaves or whole trees.
  """

  number: int
  over: Callable[[Callable[..., Any], Any, Any], Callable[..., Any]]


def _on_one(function: Callable[..., Any], given: Any, gives: Any) -> Callable[..., Any]:
  return functools.partial(function, axis=None)


ALONE = Shards(1, _on_one)


class Spec(NamedTuple):
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
  images: int = 0
  seen: int = 0
  learning_rate: Schedule = lambda step: 0.0
  track: Track = silently
  shards: Shards = ALONE
  spare: int = 0


class Split(NamedTuple):
  """What of a detector is split over devices: True, or the same on all: False, for whole subtrees.

  Attributes:
    state: of the State, until it is settled.
    fitted: of Fitted.
    reference: of what images that are left out are scored by.
    fill: Fitted, or such a reference -> the same with its parts equal.
  """

  state: Any
  fitted: Any
  reference: Any
  fill: Callable[[Any], Any]


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

  folds: int
  embedder: Callable[[Any], Any]
  embed: Callable[[Any, Batch], Any]
  compile: Callable[[Any], None]
  stand_ins: Callable[[Any, Arrays], Arrays]
  settle: Callable[[Any], Any]
  make_room: Callable[[Any, int], Any] | None
  kept: Callable[[Any], Arrays]
  extend: Callable[[Any, Arrays], Any]
  reference: Callable[[Variables, Arrays, int], Any]
  score_left_out: Callable[[Any, Batch], Scores]
  facts: Callable[[Arrays, Any], dict[str, int | float]]
  moved: Callable[[Arrays, Arrays], dict[str, int | float]]


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

  init: Callable[[Key, Variables], Any]
  prepare: Callable[[Any, Batch], Any] | None
  update: Callable[[Any, Batch], tuple[Any, Metrics]]
  validate: Callable[[Any, Batch], Metrics] | None
  finish: Callable[[Any], Any]
  score: Callable[[Any, UInt8[Array, 'b h w 3']], Scores]
  one_pass: OnePass | None = None
  portable: Callable[[Any], Callable[[UInt8[Array, 'b H W 3']], Scores]] | None = None
  around: Callable[[Any, UInt8[Array, 'b H W 3'], float], tuple[Scores, Scores]] | None = None
  split: Split | None = None


class UserError(Exception):
  """Something that a user can cause and mend: shown as one message, never as a traceback."""


class UnknownName(UserError):
  """A name or key that is in no table."""


class ConfigError(UserError):
  """A configuration that cannot be carried out."""


class MissingDevice(ConfigError):
  """A kind of device that JAX does not find on this machine."""


class DataError(UserError):
  """Images, masks or folders that are missing or unreadable."""


class WeightsError(UserError):
  """Backbone weights that are missing, damaged, hostile or of the wrong shape."""


class ModelError(UserError):
  """A model directory or checkpoint that cannot be opened."""


class ExportError(UserError):
  """A graph that cannot be written, or does not say what its model says."""


class Interrupted(BaseException):
  """The run was asked to stop. Like KeyboardInterrupt no Exception: nobody may take it for one."""
