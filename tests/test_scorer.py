"""Every image gets its own score, in batches of allowed sizes only."""

import itertools
from pathlib import Path

import jax
import numpy as np
import pytest

from uadjax.data import transforms
from uadjax.data.pixel_range import FULL_RANGE
from uadjax.detectors.base import Detector
from uadjax.distributed import mesh as meshes
from uadjax.experiment import score_program
from uadjax.model import calibration, model_dir, scorer as scorers
from uadjax.model.scorer import Scorer
from uadjax.training import settings
from uadjax.types import Scores


def image(value):
  return np.full((2, 3, 3), value, np.uint8)


def mean(images):
  """A score that tells images apart."""
  values = images.astype('float32')
  return Scores(values.mean(3), values.mean((1, 2, 3)))


@pytest.mark.parametrize('sizes', [(1,), (4,), (1, 4), (2, 3, 7)])
def test_batches_have_allowed_sizes_and_change_no_score(sizes):
  batch_sizes = []

  def run(images):
    batch_sizes.append(len(images))
    return mean(images)

  scorer = Scorer([run], batch_sizes=sizes)
  for n in range(sizes[-1] + 1):
    predictions = scorer.score([image(i) for i in range(n)])
    assert [p.score for p in predictions] == list(range(n))
    assert all((p.anomaly_map == p.score).all() for p in predictions)
  assert batch_sizes == [min(s for s in sizes if s >= n) for n in range(1, sizes[-1] + 1)]
  batch_sizes.clear()
  scores = scorer.score_all(np.stack([image(i) for i in range(23)]))
  assert scores.image.tolist() == scores.map[:, 0, 0].tolist() == list(range(23))
  assert batch_sizes[0] == sizes[0]  # More than one size is tested.
  assert set(batch_sizes) <= set(sizes)


def test_successive_batches_go_to_different_devices():
  scorer = Scorer([lambda x: mean(x), lambda x: mean(255 - x)])
  scores = [scorer.score([image(1)], index)[0].score for index in range(4)]
  assert scores == [1, 254, 1, 254]


def test_devices_score_alone_and_together_alike():
  """A mesh rounds a batch size up to a multiple of its devices."""
  limits = calibration.Thresholds(9.0, 9.0, 9.0, 'normals', 0.01, 0.05, 9, 0.1, 0.1, 299)
  info = model_dir.ModelInfo(
    'Stub', None, transforms.parse('resize(4)'), FULL_RANGE, limits, None, None, Path(), ''
  )
  model = model_dir.Model(*info, (), jax.jit(lambda _, images: mean(images)))
  images = [image(i) for i in range(5)]
  for devices, size in itertools.product((1, 3, 8), (5, 6)):
    alone = scorers.on_devices(model, jax.devices()[:devices])
    together = scorers.on_mesh(model, meshes.mesh_of(jax.devices()[:devices]))
    assert together.with_batch_size(size).batch_sizes[0] % devices == 0
    for scorer in (alone, together):
      predictions = scorer.with_batch_size(size).score(images, 1)
      assert [p.score for p in predictions] == [0, 1, 2, 3, 4]


def test_a_program_compiled_ahead_is_that_of_the_scorer():
  """Scoring then traces nothing; a model with arrays of other shapes does not take the program."""
  num_traced = 0

  def score(fitted, pixels):
    nonlocal num_traced
    num_traced += 1
    maps = pixels.astype('float32').mean(axis=3) + fitted.sum()
    return Scores(maps, maps.max(axis=(1, 2)))

  info = model_dir.ModelInfo('Stub', None, None, FULL_RANGE, None, None, None, Path(), '')
  detector, fitted = Detector(None, None, None, score), np.float32([3, 5])
  model = model_dir.Model(*info, fitted, jax.jit(score))
  for num_devices in (1, 3):
    overrides = {'data.ops': 'resize(2, 3)', 'mesh.data': num_devices, 'evaluate.batch_size': 5}
    config = settings.load('padim', overrides.items())
    program = score_program.ScoreProgram(config)
    assert program.give_to(model) is model
    program.compile(detector, fitted)
    ready, mesh = program.give_to(model), meshes.make_mesh('auto', num_devices, 0)
    before = num_traced
    scorer = scorers.on_mesh(ready, mesh).with_batch_size(5)
    predictions = scorer.score([image(i) for i in range(5)])
    assert [p.score for p in predictions] == [8, 9, 10, 11, 12]
    assert num_traced == before
    other = model._replace(fitted=np.float32([3, 5, 0]))
    assert program.give_to(other) is other
