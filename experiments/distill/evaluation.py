"""Evaluation of backbones: PatchCore with 1 % of the patches, and milliseconds per image."""

from collections.abc import Iterator, Sequence
from pathlib import Path
import time
from typing import Any

import jax
from jax import numpy as jnp
import numpy as np

from uadjax import backbones
from uadjax.data import image_io, layouts, transforms
from uadjax.data.records import Record
from uadjax.detectors import patchcore
from uadjax.detectors.base import RunContext
from uadjax.detectors.settings import PatchcoreSettings
from uadjax.numerics import metrics
from uadjax.types import Batch, Variables

_BATCH_SIZE = 8


def image_auroc(backbone: Any, variables: Variables, folder: Path, seed: int = 3) -> float:
  """Fit PatchCore to a category's good images and return the image AUROC on its test images.

  Args:
    backbone: network with stages layer2 and layer3.
    variables: variables of the backbone.
    folder: folder of a category in the MVTec layout.
    seed: seed of the coreset selection.
  """
  splits = layouts.load(folder)
  context = RunContext(256, 256, len(splits.train))
  detector = patchcore.make(backbone, context, PatchcoreSettings(ratio=0.01))
  assert detector.incremental is not None
  assert detector.incremental.select is not None
  # The variables are copied because updates donate their buffers.
  state = detector.init(jax.random.key(seed), jax.tree.map(jnp.array, variables))
  update, score = jax.jit(detector.update, donate_argnums=0), jax.jit(detector.score)
  for batch in _read_batches(splits.train):
    state, _ = update(state, batch)
  fitted = detector.finalize(detector.incremental.select(state))
  scores = [np.asarray(score(fitted, b.image).image)[b.valid] for b in _read_batches(splits.test)]
  scores, is_anomalous = np.concatenate(scores), np.array([r.is_anomalous for r in splits.test])
  return metrics.auroc(metrics.rank(scores[is_anomalous], [scores[~is_anomalous]]))


def _read_batches(records: Sequence[Record]) -> Iterator[Batch]:
  ops = transforms.parse('resize(256)')
  for start in range(0, len(records), _BATCH_SIZE):
    chunk = records[start : start + _BATCH_SIZE]
    images = np.zeros((_BATCH_SIZE, 256, 256, 3), np.uint8)
    images[: len(chunk)] = [ops.apply(image_io.decode(r.path)) for r in chunk]
    index = np.full(_BATCH_SIZE, -1, np.int32)
    index[: len(chunk)] = np.arange(start, start + len(chunk))
    yield Batch(images, index >= 0, index)


def milliseconds_per_image(
  networks: Sequence[tuple[Any, Variables]], batch_size: int = 1, rounds: int = 30
) -> list[float]:
  """Return milliseconds per image of 256x256 pixels for the fastest call of each network.

  Networks alternate within each round.
  """
  images = jnp.asarray(
    np.random.default_rng(0).integers(0, 256, (batch_size, 256, 256, 3), np.uint8)
  )
  apply_fns = [jax.jit(lambda v, x, m=m: m.apply(v, backbones.normalize(x))) for m, _ in networks]
  min_times = [float('inf')] * len(networks)
  for round_index in range(rounds + 1):
    for i, (apply_fn, (_, variables)) in enumerate(zip(apply_fns, networks, strict=True)):
      start_time = time.perf_counter()
      jax.block_until_ready(apply_fn(variables, images))
      if round_index:  # The first round compiles.
        min_times[i] = min(min_times[i], 1e3 * (time.perf_counter() - start_time) / batch_size)
  return min_times
