"""Cache of the features that a training step computes with frozen parameters.

The features are indexed by `Batch.index`, stay in host memory below a size limit, and are not part
of the training state.
"""

from collections.abc import Callable, Sequence
import math
from typing import Any

import jax
import numpy as np

from uadjax.data import batches as batch_streams, transforms
from uadjax.data.records import Record
from uadjax.detectors.base import Detector
from uadjax.distributed import mesh as meshes, processes
from uadjax.system import logging, progress
from uadjax.types import Batch


def cache_features(
  detector: Detector,
  state: Any,
  records: Sequence[Record],
  ops: transforms.Ops,
  batch_size: int,
  max_bytes: int,
  mesh: meshes.Mesh,
) -> Callable[[Batch], Batch]:
  """Compute `detector.precompute` once for all records, if the features fit into `max_bytes`.

  The batches always follow the order of the records, so that a resumed run continues with bitwise
  identical features.

  Returns:
    A function that adds the cached features to a batch of these records. It returns the batch
    unchanged if nothing is cached: without `precompute`, with several processes, or over the limit.
  """
  if detector.precompute is None or not records:
    return lambda batch: batch
  if processes.is_multiprocess():  # An image may belong to another process in every epoch.
    return lambda batch: batch
  prepare = jax.jit(detector.precompute)
  blank_batch = Batch(
    np.zeros((batch_size, ops.height, ops.width, 3), np.uint8),
    np.zeros(batch_size, bool),
    np.zeros(batch_size, np.int32),
  )
  abstract_features = jax.eval_shape(prepare, state, blank_batch)
  num_bytes = (
    sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract_features))
    // batch_size
    * len(records)
  )
  if num_bytes > max_bytes:
    logging.LOG.info(
      'The frozen features of %d images take %d MB, more than fit.cache_bytes allows; computing '
      'them at every step.',
      len(records), num_bytes >> 20,
    )  # fmt: skip
    return lambda batch: batch
  cache = jax.tree.map(lambda x: np.empty((len(records), *x.shape[1:]), x.dtype), abstract_features)
  batches = batch_streams.eval_batches(records, ops, batch_size)
  for batch in progress.show_progress(
    batches, math.ceil(len(records) / batch_size), 'Frozen features'
  ):
    features = prepare(state, meshes.shard_batch(mesh, batch))
    rows = batch.index[batch.valid]
    for cache_leaf, feature_leaf in zip(
      jax.tree.leaves(cache), jax.tree.leaves(features), strict=True
    ):
      cache_leaf[rows] = np.asarray(feature_leaf)[batch.valid]
  return lambda batch: batch._replace(features=jax.tree.map(lambda x: x[batch.index], cache))
