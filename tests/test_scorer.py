"""Every image gets its own score, in batches of allowed sizes only."""

import itertools
from pathlib import Path

import jax
import numpy as np
import pytest

from uadjax.data import transforms
from uadjax.distributed import mesh as meshes
from uadjax.model import calibration, model_dir, scorer as scorers
from uadjax.model.scorer import Scorer
from uadjax.types import Scores


def image(value):
  return np.full((2, 3, 3), value, np.uint8)


def mean(images):
  """A score that tells images apart."""
  values = images.astype('float32')
  return Scores(values.mean(3), values.mean((1, 2, 3)))


@pytest.mark.parametrize('sizes', [(1,), (4,), (1, 4), (2, 3, 7)])
def test_batches_have_allowed_sizes_and_change_no_score(sizes):
  seen = []

  def run(images):
    seen.append(len(images))
    return mean(images)

  scorer = Scorer([run], batch_sizes=sizes)
  for n in range(sizes[-1] + 1):
    predictions = scorer.score([image(i) for i in range(n)])
    assert [p.score for p in predictions] == list(range(n))
    assert all((p.anomaly_map == p.score).all() for p in predictions)
  assert seen == [min(s for s in sizes if s >= n) for n in range(1, sizes[-1] + 1)]
  seen.clear()
  scores = scorer.score_all(np.stack([image(i) for i in range(23)]))
  assert scores.image.tolist() == scores.map[:, 0, 0].tolist() == list(range(23))
  assert seen[0] == sizes[0]  # More than one size is tested.
  assert set(seen) <= set(sizes)


def test_successive_batches_go_to_different_devices():
  scorer = Scorer([lambda x: mean(x), lambda x: mean(255 - x)])
  found = [scorer.score([image(1)], index)[0].score for index in range(4)]
  assert found == [1, 254, 1, 254]


def test_devices_score_alone_and_together_alike():
  """A mesh rounds a batch size up to a multiple of its devices."""
  limits = calibration.Thresholds(9.0, 9.0, 9.0, 'normals', 0.01, 0.05, 9, 0.1, 0.1, 299)
  info = model_dir.ModelInfo(
    'Stub', None, transforms.parse('resize(4)'), limits, None, None, Path(), ''
  )
  model = model_dir.Model(*info, (), jax.jit(lambda _, images: mean(images)))
  images = [image(i) for i in range(5)]
  for devices, size in itertools.product((1, 3, 8), (5, 6)):
    alone = scorers.on_devices(model, jax.devices()[:devices])
    together = scorers.on_mesh(model, meshes.mesh_of(jax.devices()[:devices]))
    assert together.with_batch_size(size).batch_sizes[0] % devices == 0
    for scorer in (alone, together):
      found = scorer.with_batch_size(size).score(images, 1)
      assert [p.score for p in found] == [0, 1, 2, 3, 4]
