"""Laws of PatchCore with a memory bank for each layer, against the bank of each layer by itself."""

import jax
from jax import numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from tiny_network import TinyNetwork

from uadjax import backbones, detectors
from uadjax.detectors import patchcore, patchcore_by_layer
from uadjax.detectors.base import RunContext
from uadjax.detectors.settings import PatchcoreSettings
from uadjax.distributed import mesh as meshes
from uadjax.errors import ConfigError
from uadjax.numerics import coreset, resampling
from uadjax.types import Batch

STAGES = ('layer1', 'layer2')
CHANNELS = {'layer1': slice(8), 'layer2': slice(8, 20)}
SIZE, GRID, N = 32, 8, 6
BACKBONE = TinyNetwork()
pytestmark = pytest.mark.usefixtures('one_way_to_measure')


def images(n, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (n, SIZE, SIZE, 3), np.uint8)


def make(count=N, num_previous=0, devices=1, backbone=BACKBONE, **options):
  settings = PatchcoreSettings(
    **{'ratio': 0.1, 'layers_apart': True, 'image_score': 'max', **options}
  )
  shards = meshes.shards(meshes.make_mesh('cpu', devices, 0))
  context = RunContext(SIZE, SIZE, count, num_previous, shards=shards)
  return detectors.build(settings, backbone, context)


def embedded(x, first=0):
  """A batch of embeddings, which stand for images."""
  ids = np.arange(first, first + len(x), dtype=np.int32)
  return Batch(images(len(x)), np.ones(len(x), bool), ids, jnp.asarray(x))


def learn(detector, variables, x, first=0, previous=None):
  """The final State, and all arrays of the run."""
  state, functions = detector.init(jax.random.key(1), variables), detector.incremental
  if previous is not None:
    state = functions.restore(state, previous)
  update = jax.jit(detector.update)
  for i in range(0, len(x), 2):
    if functions.compact:
      state = functions.compact(state, 2)
    state, _ = update(state, embedded(x[i : i + 2], first + i))
  coresets = detector.leave_one_out.select_coresets(state, previous or {})
  final_state = functions.select(state)
  arrays = {**functions.to_arrays(final_state), **coresets}
  return final_state, jax.tree.map(np.asarray, arrays)


@pytest.fixture(scope='module')
def variables():
  return jax.jit(BACKBONE.init)(jax.random.key(7), jnp.zeros((1, SIZE, SIZE, 3)))


@pytest.fixture(scope='module')
def detector():
  return make()


@pytest.fixture(scope='module')
def embed(detector, variables):
  compiled = jax.jit(lambda x: detector.leave_one_out.embed(variables, Batch(x, None, None)))
  return lambda pixels: np.asarray(compiled(pixels))


@pytest.fixture(scope='module')
def x(embed):
  return embed(images(N))


@pytest.fixture(scope='module')
def run(detector, variables, x):
  return learn(detector, variables, x)


def rows_of(fitted):
  """The rows of each layer's bank."""
  indices = [layer.memory_bank for layer in fitted.layers]
  return [np.asarray(index.rows + index.center[None]) for index in indices]


def assert_rows_are_patches(fitted, x):
  for rows, channels in zip(rows_of(fitted), CHANNELS.values(), strict=True):
    patches = {patch.tobytes() for patch in x[..., channels].reshape(-1, rows.shape[1])}
    assert all(row.tobytes() in patches for row in rows)
    assert len(np.unique(rows, axis=0)) == len(rows)


def assert_scores(scores, x, fitted):
  """The map is the mean of the maps of all layers, each with its distances to its own rows."""
  matrices = (np.asarray(resampling.bilinear_matrix(SIZE, GRID), np.float64),) * 2
  for k, embedding in enumerate(x.astype(np.float64)):
    maps = []
    for rows, channels in zip(rows_of(fitted), CHANNELS.values(), strict=True):
      patches = embedding[..., channels].reshape(GRID**2, -1)
      away = np.linalg.norm(patches[:, None] - rows[None], axis=-1).min(axis=1)
      upsampled = matrices[0] @ away.reshape(GRID, GRID) @ matrices[1].T
      maps.append(ndimage.gaussian_filter(upsampled, 4, mode='reflect', truncate=4))
    np.testing.assert_allclose(scores.map[k], np.mean(maps, axis=0), rtol=1e-4)
    assert scores.image[k] == pytest.approx(np.mean(maps, axis=0).max(), rel=1e-4)


def test_scores_are_means_over_the_banks_of_all_layers(detector, run, x, embed):
  fitted, pixels = detector.finalize(run[0]), images(3, seed=9)
  assert [rows.shape for rows in rows_of(fitted)] == [(38, 8), (38, 12)]
  assert_rows_are_patches(fitted, x)
  scores = jax.jit(detector.score)(fitted, pixels)
  assert_scores(scores, embed(pixels), fitted)
  exported = jax.jit(detector.export_score_fn(fitted))(pixels)
  np.testing.assert_allclose(exported.map, scores.map, rtol=1e-4)
  np.testing.assert_allclose(exported.image, scores.image, rtol=1e-4)


def test_each_bank_covers_the_patches_of_its_layer(detector, run, x):
  """Each is selected from the features of its layer, so it differs from a share of joint rows."""
  for rows, (name, channels) in zip(
    rows_of(detector.finalize(run[0])), CHANNELS.items(), strict=True
  ):
    patches = x[..., channels].reshape(-1, 1, rows.shape[1])
    away = np.linalg.norm(patches - rows[None], axis=-1).min(axis=1)
    radius = run[1][f'{name}_covering_radius']
    assert away.max() == pytest.approx(float(radius), rel=1e-4)
  ids = [run[1][f'{name}_patch_id'] for name in STAGES]
  assert set(ids[0].tolist()) != set(ids[1].tolist())


def test_an_image_is_held_out_of_all_banks(detector, run, variables, x):
  model = detector.leave_one_out.leave_fold_out(variables, run[1], 2)
  assert_rows_are_patches(model, np.delete(x, 2, axis=0))
  scores = jax.jit(detector.leave_one_out.score)(model, embedded(x[2][None]))
  assert_scores(scores, x[2][None], model)


def test_a_model_is_extended_layer_by_layer(run, variables, x):
  """As many rows as of all images at once; old rows stay candidates; ids go on."""
  new, later = np.flip(x, axis=2) + np.float32(0.5), make(num_previous=N)
  state, arrays = learn(later, variables, new, first=N, previous=run[1])
  fitted = later.finalize(state)
  assert_rows_are_patches(fitted, np.concatenate([x, new]))
  for name in STAGES:
    is_old = arrays[f'{name}_image_id'] < N
    assert len(is_old) == 77
    assert 0 < is_old.sum() < 77
    assert set(arrays[f'{name}_calibration_image_id'].tolist()) == set(range(2 * N))
  drift = later.incremental.drift(run[1], arrays)
  assert (drift['bank_rows_before'], drift['bank_rows_after']) == (2 * 38, 2 * 77)
  num_old = sum((arrays[f'{name}_image_id'] < N).sum() for name in STAGES)
  assert drift['share_retained'] == pytest.approx(num_old / (2 * 38))
  model = later.leave_one_out.leave_fold_out(variables, arrays, 3)
  assert_rows_are_patches(model, np.concatenate([np.delete(x, 3, axis=0), new[[0, 1, 3, 4, 5]]]))


@pytest.mark.parametrize('window', [pytest.param(0, marks=pytest.mark.slow), 1])
def test_sharded_equals_single(window, variables, x):
  pixels, results = images(8, seed=3), []
  for devices in (1, 4):
    detector, mesh = make(devices=devices, window=window), meshes.make_mesh('cpu', devices, 0)
    state = detector.init(jax.random.key(1), variables)
    specs = detector.sharding_specs
    if specs:
      state = meshes.put_on_mesh(mesh, state, specs.state)
    padded = np.concatenate([x, np.zeros((2, *x.shape[1:]), np.float32)])
    batch = embedded(padded)._replace(valid=np.arange(8) < N)
    state, _ = jax.jit(detector.update)(state, meshes.shard_batch(mesh, batch))
    coresets = detector.leave_one_out.select_coresets(state, {})
    fitted = detector.finalize(detector.incremental.select(state))
    results.append((jax.device_get(fitted), jax.device_get(coresets)))
    if specs:
      fitted = meshes.put_on_mesh(mesh, specs.pad_to_shards(fitted), specs.fitted)
    results[-1] += (jax.jit(detector.score)(fitted, meshes.shard_batch(mesh, pixels)),)
  (fitted, coresets, scores), (other_fitted, other_coresets, other_scores) = results
  for name, array in coresets.items():
    np.testing.assert_array_equal(other_coresets[name], array, name)
  jax.tree.map(np.testing.assert_array_equal, other_fitted.layers, fitted.layers)
  np.testing.assert_allclose(other_scores.map, scores.map, rtol=1e-5)
  np.testing.assert_allclose(other_scores.image, scores.image, rtol=1e-5)


def test_all_banks_together_stay_within_the_memory_limit(variables, x):
  bytes_per_patch = sum(coreset.bytes_per_point(d) for d in (8, 12))
  with pytest.raises(ConfigError, match=r'detector\.max_bytes=1000 holds') as caught:
    make(max_bytes=1000)
  assert caught.value.allowed == (4 * GRID**2 * bytes_per_patch, None)
  small = make(count=8, ratio=0.9, max_bytes=6 * GRID**2 * bytes_per_patch)
  x = np.concatenate([x, x[:2, ::-1]])
  state, arrays = learn(small, variables, x)
  for name, channels in CHANNELS.items():
    rows = arrays[f'{name}_embeddings']
    assert len(rows) == 6 * GRID**2 // 2
    patches = x[..., channels].reshape(-1, 1, rows.shape[1])
    away = np.linalg.norm(patches - rows[None], axis=-1).min(axis=1)
    assert 0 < away.max() <= arrays[f'{name}_covering_radius'] * (1 + 1e-5)
  assert small.leave_one_out.learned_embeddings is None
  assert len(small.finalize(state).layers) == 2


def test_the_summary_is_of_all_banks(run, x):
  detector = make(approx=True)
  summary = detector.incremental.summarize(run[1], iter([x]))
  radii = [float(run[1][f'{name}_covering_radius']) for name in STAGES]
  want = {'images': N, 'bank_rows': 76, 'covering_radius': max(radii), 'folds': 5}
  assert summary == want | {'approx_recall': 1.0}


def test_a_single_layer_has_the_usual_bank():
  backbone = backbones.build('resnet18', ('layer1',))
  detector = make(backbone=backbone)
  assert (
    detector.bank_leaves
    == patchcore.make(backbone, RunContext(SIZE, SIZE, N), PatchcoreSettings()).bank_leaves
  )
  assert 'layers/1/memory_bank/rows' in make().bank_leaves
  assert len(make(window=1).bank_leaves) == 6


def test_averaged_channels_are_refused():
  with pytest.raises(ConfigError, match=r'Omit one of detector\.channels and') as caught:
    patchcore_by_layer.make(
      BACKBONE, RunContext(SIZE, SIZE), PatchcoreSettings(layers_apart=True, channels=9)
    )
  assert (caught.value.key, caught.value.value) == ('detector.channels', 9)
