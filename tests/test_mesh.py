"""Fitted models and their scores are the same on any number of devices.

Maps have 8x8 positions, which three devices do not divide.
"""

import jax
from jax import numpy as jnp
import numpy as np
import pytest
import small_runs
from stored_arrays import stored
from tiny_network import TinyNetwork

from uadjax import config as configs, create_model
from uadjax.data.image_cache import ImageCache
from uadjax.data.records import Record
from uadjax.detectors import padim, patchcore
from uadjax.detectors.base import RunContext
from uadjax.detectors.settings import PadimSettings, PatchcoreSettings
from uadjax.distributed import mesh as meshes
from uadjax.distributed.settings import MeshSettings
from uadjax.errors import ConfigError, Setting, UnknownName
from uadjax.inference import predictor
from uadjax.model import model_dir, scoring
from uadjax.training import loop
from uadjax.types import Batch

SIZE = 32
BACKBONE = TinyNetwork(('layer1',))
ROWS = 24  # Of a batch; each number of devices divides it.


def images(n, seed=0):
  random = np.random.default_rng(seed)
  tones = random.integers(0, 128, (n, 1, 1, 3)) + random.integers(0, 128, (n, SIZE, SIZE, 3))
  return tones.astype(np.uint8)


@pytest.fixture(scope='module')
def variables():
  return jax.jit(BACKBONE.init)(jax.random.key(7), jnp.zeros((1, SIZE, SIZE, 3)))


@pytest.fixture(scope='module')
def embed(variables):
  """The embeddings of n images, computed once: they are given to any number of devices."""
  embedders = {
    name: jax.jit(make(RunContext(SIZE, SIZE, 3)).leave_one_out.embed)
    for name, make in MAKERS.items()
  }

  def embed(name, n):
    pixels = images(n)
    batch = Batch(pixels, np.ones(n, bool), np.arange(n, dtype=np.int32))
    state = MAKERS[name](RunContext(SIZE, SIZE, 3)).init(jax.random.key(0), variables)
    return np.asarray(embedders[name](state.extractor, batch))

  return embed


def batches(features):
  """Full ones; rows that are not valid may hold anything."""
  for start in range(0, len(features), ROWS):
    part = features[start : start + ROWS]
    valid = np.arange(ROWS) < len(part)
    index = np.where(valid, np.arange(start, start + ROWS), -1).astype(np.int32)
    part = np.concatenate([part, np.full_like(part[:1], 99).repeat(ROWS - len(part), 0)])
    yield Batch(np.zeros((ROWS, 0, 0, 3), np.uint8), valid, index, part)


MAKERS = {
  'padim': lambda spec: padim.make(BACKBONE, spec, PadimSettings(channels=8)),
  'patchcore': lambda spec: patchcore.make(BACKBONE, spec, PatchcoreSettings(ratio=0.05)),
}


def test_cpu_devices_share_the_memory_of_replicas():
  tree = {'a': jnp.arange(600.0).reshape(20, 30), 'b': jnp.arange(4)}
  mesh = meshes.make_mesh('cpu', 3, 0)
  replicas = meshes.replicate(mesh, tree)
  copies = meshes.replicate(mesh, tree, copy=True)
  for name, leaf in tree.items():
    pointers = {s.data.unsafe_buffer_pointer() for s in replicas[name].addressable_shards}
    assert pointers == {leaf.unsafe_buffer_pointer()}
    assert len(replicas[name].sharding.device_set) == 3
    assert leaf.unsafe_buffer_pointer() not in {
      s.data.unsafe_buffer_pointer() for s in copies[name].addressable_shards
    }
    np.testing.assert_array_equal(replicas[name], leaf)


def learned(name, variables, features, devices):
  """All that a run makes of images: what is kept, what is fitted, and scores."""
  n = len(features)
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ('data',))
  spec = RunContext(
    SIZE, SIZE, n, shards=meshes.shards(mesh), max_extra_images_per_shard=ROWS // devices
  )
  detector = MAKERS[name](spec)
  once, left, split = detector.leave_one_out, detector.incremental, detector.sharding_specs
  assert (split is None) == (devices == 1)
  state = loop.initial_state(detector, variables, 0, mesh)
  update = jax.jit(detector.update, donate_argnums=0)
  for batch in batches(features):
    state, _ = update(state, meshes.shard_batch(mesh, batch))
  largest = state.moments.m2 if name == 'padim' else state.memory_bank.patches.embeddings
  assert largest.addressable_shards[-1].data.shape[0] == len(largest) // devices
  coresets = once.select_coresets(state, {}) if once.select_coresets else {}
  state_arrays = {k: np.asarray(v) for k, v in coresets.items()}
  state = left.select(state) if left.select else state
  state_arrays |= stored(left.to_arrays(state))
  fitted = jax.device_get(detector.finalize(state))
  reference = once.leave_fold_out(variables, {k: np.array(v) for k, v in state_arrays.items()}, 1)
  test = meshes.shard_batch(mesh, images(ROWS, 1))
  first = meshes.shard_batch(mesh, next(batches(features)))
  placed = fitted
  if split:
    placed = meshes.put_on_mesh(mesh, split.pad_to_shards(fitted), split.fitted)
    reference = meshes.put_on_mesh(mesh, split.pad_to_shards(reference), split.held_out_model)
  scores = jax.device_get(jax.jit(detector.score)(placed, test))
  left_out = jax.device_get(jax.jit(once.score)(reference, first))
  return state_arrays, fitted, scores, jax.tree.map(lambda x: x[: min(n, ROWS)], left_out)


@pytest.mark.parametrize(
  ('name', 'n', 'numbers'),
  [
    ('padim', 29, (3,)),
    # What is selected on 2, 3 and 4 devices: tests/test_coreset.py.
    pytest.param('patchcore', 29, (3,), marks=pytest.mark.slow),
    pytest.param('padim', 5, (8,), marks=pytest.mark.slow),
    pytest.param('padim', 29, (2, 4, 8), marks=pytest.mark.slow),
    pytest.param('patchcore', 5, (8,), marks=pytest.mark.slow),
    pytest.param('patchcore', 29, (2, 4, 8), marks=pytest.mark.slow),
  ],
)
def test_any_number_of_devices_learns_and_says_the_same(name, n, numbers, variables, embed):
  """Images that no number of devices divides, and fewer of them than devices."""
  features = embed(name, n)
  (state_arrays, *want), *others = (
    learned(name, variables, features, devices) for devices in (1, *numbers)
  )
  for also, *got in others:
    for key, value in state_arrays.items():
      if name == 'patchcore' and key != 'covering_radius':  # Picks, in their order.
        np.testing.assert_array_equal(also[key], value, err_msg=key)
      else:
        scale = np.abs(value).max()
        np.testing.assert_allclose(also[key], value, 1e-5, 1e-5 * scale, err_msg=key)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


def test_on_one_cpu_what_is_learned_stays_in_one_piece_unless_told():
  mesh = meshes.make_mesh('cpu', 4, 0)
  assert meshes.state_mesh(mesh, 'auto').size == meshes.state_mesh(mesh, 'never').size == 1
  assert meshes.state_mesh(mesh, 'always').size == 4
  with pytest.raises(UnknownName, match=r"one of .*'always'.*, got 'sometimes'"):
    configs.replace(MeshSettings(), {'shard_state': 'sometimes'})


def test_a_mesh_larger_than_the_machine_is_refused():
  for axis_size in (0, -2, 1000):
    with pytest.raises(ConfigError) as caught:
      meshes.make_mesh('cpu', axis_size, 0)
    assert (caught.value.key, caught.value.value) == ('mesh.data', axis_size)
    assert Setting('mesh.data', -1) in caught.value.hint


@pytest.mark.parametrize(
  ('axis_size', 'batch_size', 'key', 'value'),
  [(1, 4, 'mesh.data', 1), (-1, 3, 'fit.batch_size', 3)],
)
def test_processes_that_cannot_share_a_batch_are_refused(
  axis_size, batch_size, key, value, monkeypatch
):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  with pytest.raises(ConfigError) as caught:
    meshes.make_mesh('cpu', axis_size, batch_size)
  assert (caught.value.key, caught.value.value) == (key, value)


@pytest.mark.parametrize('name', ['padim', pytest.param('patchcore', marks=pytest.mark.slow)])
def test_a_run_that_is_split_leaves_the_same_model(name, fitted):
  split = '--config.mesh.data=3', '--config.mesh.shard_state=always'
  single, many = (model_dir.load_calibration_scores(fitted(name, *flags)) for flags in ((), split))
  assert many.paths == single.paths
  np.testing.assert_allclose(many.scores, single.scores, rtol=1e-5)
  np.testing.assert_allclose(many.peaks, single.peaks, rtol=1e-5)


@pytest.mark.parametrize('name', small_runs.ANY_NAME)
def test_a_model_that_is_split_judges_the_same(name, trained, drawn):
  """Where it is predicted with and where it is evaluated; images that no device count divides."""
  directory, files = trained(name) / 'model', sorted((drawn / 'disc').rglob('*.png'))[:5]
  single, many = (
    list(create_model(model_dir=directory, device=device, shard_model=split).predict(files, 3))
    for device, split in (('cpu:0', False), ('cpu', True))
  )
  for a, b in zip(many, single, strict=True):
    assert a.score == pytest.approx(b.score, rel=1e-5)
    assert a.label == b.label
    np.testing.assert_allclose(a.anomaly_map, b.anomaly_map, 1e-5, 1e-5 * b.score)
  mesh = meshes.make_mesh('cpu', 8, 0)
  model = model_dir.load(directory, mesh)
  if name != 'stfpm':  # Of which nothing is split.
    learned = model.fitted.whitening.matrices if name == 'padim' else model.fitted.memory_bank.rows
    assert learned.addressable_shards[0].data.shape[0] == len(learned) // 8
  records = [Record(path) for path in files]

  def scorer(fitted, batch):
    return model.score(fitted, batch.image)

  scored = scoring.score_records(
    scorer, model.fitted, records, ImageCache(model.ops, 0), 3, mesh, 'max', model.fitted_specs
  )
  evaluated = predictor.open_on_mesh(model, mesh).predict(files, 3)
  for a, b, c in zip(scored, evaluated, single, strict=True):
    assert a.score == b.score == pytest.approx(c.score, rel=1e-5)
