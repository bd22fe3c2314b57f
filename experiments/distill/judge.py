"""What features are worth: PatchCore with 1 % of the patches, and milliseconds per image."""

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
from uadjax.numerics import metrics
from uadjax.types import Batch, Variables

_ROWS = 8


def image_auroc(module: Any, variables: Variables, folder: Path, seed: int = 3) -> float:
  """Fit PatchCore on a category's good images, and tell its defects from its good test images.

  Args:
    module: the backbone, with stages layer2 and layer3.
    variables: its own.
    folder: of a category, as MVTec has it.
    seed: of the selection.
  """
  splits = layouts.load(folder)
  detector = patchcore.make(module, RunContext(256, 256, len(splits.train)), ratio=0.01)
  assert detector.one_pass is not None
  # A copy of the variables: updates consume what they are given.
  state = detector.init(jax.random.key(seed), jax.tree.map(jnp.array, variables))
  update, score = jax.jit(detector.update, donate_argnums=0), jax.jit(detector.score)
  for batch in _batches(splits.train):
    state, _ = update(state, batch)
  fitted = detector.to_fitted(detector.one_pass.finalize(state))
  scores = [np.asarray(score(fitted, b.image).image)[b.valid] for b in _batches(splits.test)]
  scores, bad = np.concatenate(scores), np.array([r.is_anomalous for r in splits.test])
  return metrics.auroc(metrics.rank(scores[bad], [scores[~bad]]))


def _batches(records: Sequence[Record]) -> Iterator[Batch]:
  ops = transforms.parse('resize(256)')
  for start in range(0, len(records), _ROWS):
    part = records[start : start + _ROWS]
    images = np.zeros((_ROWS, 256, 256, 3), np.uint8)
    images[: len(part)] = [ops.apply(image_io.decode(r.path)) for r in part]
    index = np.full(_ROWS, -1, np.int32)
    index[: len(part)] = np.arange(start, start + len(part))
    yield Batch(images, index >= 0, index)


def milliseconds(
  modules: Sequence[tuple[Any, Variables]], rows: int = 1, rounds: int = 30
) -> list[float]:
  """The quickest of some calls of each network in turn, by image of 256x256 pixels."""
  images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (rows, 256, 256, 3), np.uint8))
  calls = [jax.jit(lambda v, x, m=m: m.apply(v, backbones.normalize(x))) for m, _ in modules]
  best = [float('inf')] * len(modules)
  for turn in range(rounds + 1):
    for i, (call, (_, variables)) in enumerate(zip(calls, modules, strict=True)):
      began = time.perf_counter()
      jax.block_until_ready(call(variables, images))
      if turn:  # The first one compiles.
        best[i] = min(best[i], 1e3 * (time.perf_counter() - began) / rows)
  return best
