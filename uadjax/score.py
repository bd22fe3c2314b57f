"""Records in, scores out: in order, on any mesh, one compilation."""

from collections.abc import Callable, Iterator, Sequence
import math
from typing import Any, NamedTuple

import jax
from jaxtyping import Float
import numpy as np

from uadjax import sharding, telemetry
from uadjax.data import pipeline, preprocess
from uadjax.types import Record, Scores


class Scored(NamedTuple):
  """One record with its raw scores, the map at network size."""

  record: Record
  map: Float[np.ndarray, 'h w']
  image: float


def score(
  scorer: Callable[[Any, Any], Scores],
  fitted: Any,
  records: Sequence[Record],
  ops: preprocess.Ops,
  batch_size: int,
  mesh: sharding.Mesh,
) -> Iterator[Scored]:
  """Score images from their files; the last batch is padded, so that there is one compilation."""
  share = mesh.size * math.ceil(batch_size / mesh.size)
  fitted = sharding.replicate(mesh, fitted)
  batches = pipeline.eval_batches(records, ops, share)
  for batch in telemetry.track(batches, math.ceil(len(records) / share), 'Scoring'):
    scores = jax.device_get(scorer(fitted, sharding.split(mesh, batch.image)))
    for row in np.flatnonzero(batch.valid).tolist():
      yield Scored(records[int(batch.index[row])], scores.map[row], float(scores.image[row]))
