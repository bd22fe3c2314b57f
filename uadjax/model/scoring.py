"""Records in, scores out: in order, on any mesh, one compilation."""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
import itertools
import math
from typing import Any, NamedTuple, TypeVar

import jax
from jaxtyping import Float
import numpy as np

from uadjax.data import batches as batch_streams, transforms
from uadjax.data.records import Record
from uadjax.detectors.base import Detector
from uadjax.distributed import mesh as meshes, processes
from uadjax.model import calibration
from uadjax.system import progress
from uadjax.types import Batch, Scores

Placed = TypeVar('Placed')


class Scored(NamedTuple):
  """One record with its raw scores, the map at network size."""

  record: Record
  map: Float[np.ndarray, 'h w']
  image: float


def peaks(scored: Iterable[Scored]) -> calibration.Peaks:
  """Score images to the end, and keep what thresholds are set by."""
  kept = [(str(one.record.path), one.image, float(one.map.max())) for one in scored]
  paths, images, maps = zip(*kept, strict=True) if kept else ((), (), ())
  return calibration.Peaks(paths, np.array(images, np.float64), np.array(maps, np.float64))


def of_images(detector: Detector) -> Callable[[Any, Batch], Scores]:
  """The detector's score of a batch from files, jitted."""
  scorer = jax.jit(detector.score)
  return lambda fitted, batch: scorer(fitted, batch.image)


def score(
  scorer: Callable[[Any, Batch], Scores],
  fitted: Any,
  records: Sequence[Record],
  ops: transforms.Ops,
  batch_size: int,
  mesh: meshes.Mesh,
  split: Any = None,
) -> Iterator[Scored]:
  """Score images from their files; the last batch is padded, so that there is one compilation.

  While a batch is being used, the next one is being computed.

  Args:
    scorer: (fitted, batch) -> scores.
    fitted: what it needs; filled up, where it is split.
    records: the images.
    ops: from files to images.
    batch_size: images at once.
    mesh: the devices.
    split: what of `fitted` is split over them, see `mesh.place`; None where each has all of it.
  """
  if split is None:
    mesh, split = meshes.mesh_that_fits(mesh, fitted), False
  share = mesh.size * math.ceil(batch_size / mesh.size)
  fitted = meshes.put_on_mesh(mesh, fitted, split)  # Where it is not there yet.
  batches = batch_streams.eval_batches(records, ops, share, *processes.index_and_count())
  waiting = ahead(batches, lambda batch: scorer(fitted, meshes.shard_batch(mesh, batch)))
  rest = iter(records)
  for scores in progress.show_progress(waiting, math.ceil(len(records) / share), 'Scoring'):
    scores = meshes.to_host(mesh, scores)
    for row, record in enumerate(itertools.islice(rest, share)):
      yield Scored(record, scores.map[row], float(scores.image[row]))


def ahead(batches: Iterable[Batch], place: Callable[[Batch], Placed]) -> Iterator[Placed]:
  """Place each batch on the devices while the one before it is being computed."""
  placed = collections.deque()
  for batch in batches:
    placed.append(place(batch))
    if len(placed) > 1:
      yield placed.popleft()
  yield from placed
