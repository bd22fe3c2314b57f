"""Laws of SubspaceAD, against eigenvectors of NumPy's covariance of all patches."""

import jax
from jax import numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from stored_arrays import stored
from tiny_network import TinyNetwork

from uadjax import backbones, detectors
from uadjax.data import region_of_interest
from uadjax.detectors import subspace
from uadjax.detectors.base import RunContext
from uadjax.detectors.settings import SubspaceSettings
from uadjax.distributed import mesh as meshes
from uadjax.numerics import resampling, subspaces
from uadjax.training import loop
from uadjax.types import Batch

SIZE, GRID, CHANNELS, N = 32, 8, 20, 12
NUM_FOLDS = 10
BACKBONE = TinyNetwork()


def images(n, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (n, SIZE, SIZE, 3), np.uint8)


def embeddings(n=N, seed=0):
  """Patches far from the origin, whose variance is mostly in a few directions."""
  rng = np.random.default_rng(seed)
  directions = np.random.default_rng(5).normal(size=(CHANNELS, CHANNELS))
  scales = 0.9 ** np.arange(CHANNELS)[:, None]
  x = rng.normal(size=(n, GRID, GRID, CHANNELS)) @ (scales * directions)
  return (x + 30).astype(np.float32)


def batch(x, first=0):
  """Embeddings, which stand for images, and padding of NaN up to one size, compiled once."""
  valid = np.arange(N) < len(x)
  ids = np.where(valid, first + np.arange(N), -1).astype(np.int32)
  padding = np.full((N - len(x), *x.shape[1:]), np.nan, np.float32)
  return Batch(images(N), valid, ids, jnp.asarray(np.concatenate([x, padding])))


def make(devices=1, num_previous=0, **options):
  shards = meshes.shards(meshes.make_mesh('cpu', devices, 0))
  context = RunContext(SIZE, SIZE, N, num_previous, shards=shards)
  return detectors.build(SubspaceSettings(**{'image_score': 'max', **options}), BACKBONE, context)


@pytest.fixture(scope='module')
def variables():
  return jax.jit(BACKBONE.init)(jax.random.key(7), jnp.zeros((1, SIZE, SIZE, 3)))


@pytest.fixture(scope='module')
def detector():
  return make()


@pytest.fixture(scope='module')
def learn(detector, variables):
  """Return a function that learns from embeddings, and returns the State."""
  update = jax.jit(detector.update)

  def learn(batches, previous=None):
    state = detector.init(jax.random.key(1), variables)
    if previous is not None:
      state = detector.incremental.restore(state, previous)
    for learned_batch in batches:
      state, _ = update(state, learned_batch)
    return state

  return learn


@pytest.fixture(scope='module')
def state(learn):
  return learn([batch(embeddings())])


@pytest.fixture(scope='module')
def held_out_maps(detector):
  """Return a function from a model and embeddings to anomaly maps."""
  score = jax.jit(detector.leave_one_out.score)
  return lambda model, x: score(model, batch(x)).map[: len(x)]


def slow_distances(train, x, share=0.95):
  """The definition: squared norms of what the principal components do not explain."""
  train = train.reshape(-1, CHANNELS).astype(np.float64)
  variances, vectors = np.linalg.eigh(np.cov(train, rowvar=False))
  variances, vectors = variances[::-1], vectors[:, ::-1]
  explained = np.cumsum(variances) / variances.sum()
  k = int(np.flatnonzero(explained >= share - 1e-12)[0]) + 1
  deviation = x.astype(np.float64) - train.mean(axis=0)
  projection = deviation @ vectors[:, :k] @ vectors[:, :k].T
  return ((deviation - projection) ** 2).sum(axis=-1), k


def slow_maps(distances):
  """Upsampled and blurred, image by image."""
  matrix = resampling.bilinear_matrix(SIZE, GRID).astype(np.float64)
  return [
    ndimage.gaussian_filter(matrix @ distance @ matrix.T, 4, mode='reflect', truncate=4)
    for distance in distances
  ]


def projector(fitted):
  """Projection to the complement, which has no sign."""
  complement = np.asarray(fitted.subspace.complement)
  return complement.T @ complement


def assert_same_model(a, b, rtol=1e-4):
  np.testing.assert_allclose(a.subspace.mean, b.subspace.mean, rtol=rtol)
  np.testing.assert_allclose(projector(a), projector(b), atol=rtol)


@pytest.mark.accelerator
@pytest.mark.parametrize('share', [0.5, 0.95])
def test_distances_are_those_to_the_principal_components(state, share):
  fitted = make(share=share).finalize(state)
  x = embeddings(3, seed=1)
  expected, k = slow_distances(embeddings(), x, share)
  actual = subspaces.squared_distance(jnp.asarray(x), fitted.subspace)
  np.testing.assert_allclose(actual, expected, rtol=1e-3)
  assert 1 < k < CHANNELS
  assert (np.asarray(fitted.subspace.complement) != 0).any(axis=1).sum() == CHANNELS - k


def test_scores_of_images_are_those_of_the_definition(detector, variables):
  """Plain features of both stages, the second upsampled to the grid of the first."""
  matrix = resampling.bilinear_matrix(GRID, GRID // 2).astype(np.float64)

  def embed(pixels):
    stages = jax.jit(BACKBONE.apply)(variables, backbones.normalize(jnp.asarray(pixels)))
    first, second = (np.asarray(x, np.float64) for x in stages.values())
    second = np.einsum('Hh,Ww,bhwc->bHWc', matrix, matrix, second)
    return np.concatenate([first, second], axis=-1)

  pixels, test_pixels = images(N), images(2, seed=1)
  training_batch = batch(embeddings())._replace(image=pixels, features=None)
  state = detector.init(jax.random.key(1), variables)
  state, metrics = jax.jit(detector.update)(state, training_batch)
  assert metrics['images'] == N
  scores = jax.jit(detector.score)(detector.finalize(state), test_pixels)
  distances, _ = slow_distances(embed(pixels), embed(test_pixels))
  expected = slow_maps(distances)
  np.testing.assert_allclose(scores.map, expected, rtol=2e-3)
  np.testing.assert_allclose(scores.image, np.max(expected, axis=(1, 2)), rtol=2e-3)


def test_batches_order_and_padding_do_not_matter(detector, learn, state):
  x = embeddings()
  parts = [(7, 12), (0, 1), (3, 7), (1, 3)]
  other = learn([batch(x[start:stop], start) for start, stop in parts])
  assert other.num_images == N
  for a, b in zip(other.moments, state.moments, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())
  assert_same_model(detector.finalize(other), detector.finalize(state))


def test_moments_merge_in_any_grouping():
  x = np.split(embeddings(), 3)
  empty = subspaces.empty(NUM_FOLDS, CHANNELS)
  add, merge = jax.jit(subspaces.add_batch), jax.jit(subspaces.merge)

  def moments(part, group):
    part = jnp.asarray(part.reshape(len(part), -1, CHANNELS))
    return add(empty, part, jnp.ones(part.shape[:2], bool), jnp.asarray(group))

  a, b, c = (moments(part, np.arange(4) % (i + 1)) for i, part in enumerate(x))
  left = merge(merge(a, b), c)
  right = merge(a, merge(b, merge(empty, c)))
  for value, other in zip(left, right, strict=True):
    np.testing.assert_allclose(value, other, rtol=1e-4, atol=1e-3)
  n, mean, m2 = jax.jit(subspaces.join_groups)(left)
  patches = embeddings().reshape(-1, CHANNELS).astype(np.float64)
  assert n[0] == len(patches)
  np.testing.assert_allclose(mean[0], patches.mean(axis=0), rtol=1e-5)
  covariance = np.cov(patches, rowvar=False, bias=True)
  np.testing.assert_allclose(m2[0] / n[0], covariance, rtol=1e-4, atol=1e-5 * covariance.max())


@pytest.mark.parametrize('fold', [0, 3])
def test_leaving_a_fold_out_equals_fitting_the_others(
  detector, state, variables, held_out_maps, fold
):
  x = embeddings()
  arrays = stored(detector.incremental.to_arrays(state))
  model = detector.leave_one_out.leave_fold_out(variables, arrays, fold)
  is_held_out = np.arange(N) % NUM_FOLDS == fold
  distances, _ = slow_distances(x[~is_held_out], x[is_held_out])
  maps = held_out_maps(model, x[is_held_out])
  np.testing.assert_allclose(maps, slow_maps(distances), rtol=2e-3)


def test_an_image_scores_more_by_a_model_without_it(detector, learn, variables, held_out_maps):
  x = embeddings()
  x[4] += np.random.default_rng(2).normal(size=CHANNELS).astype(np.float32)
  state = learn([batch(x)])
  arrays = stored(detector.incremental.to_arrays(state))
  models = detector.leave_one_out.leave_fold_out(variables, arrays, 4), detector.finalize(state)
  held_out, included = (held_out_maps(model, x[4:5]).max() for model in models)
  assert held_out > 1.05 * included


def test_extended_by_the_other_half_equals_fitted_at_once(detector, learn, state):
  x = embeddings()
  before = stored(detector.incremental.to_arrays(learn([batch(x[:5])])))
  extended = learn([batch(x[5:], 5)], before)
  assert_same_model(detector.finalize(extended), detector.finalize(state))
  after = stored(detector.incremental.to_arrays(extended))
  summary = detector.incremental.summarize(after, iter(()))
  _, k = slow_distances(x, x)
  assert summary == {'images': N, 'components': k, 'folds': NUM_FOLDS}
  drift = detector.incremental.drift(before, after)
  assert (drift['images_before'], drift['images_after']) == (5, N)
  old, new = (part.reshape(-1, CHANNELS) for part in (x[:5], x))
  shift = (new.mean(axis=0) - old.mean(axis=0)) / old.std(axis=0)
  assert drift['mean_shift'] == pytest.approx(np.sqrt((shift**2).mean()), rel=1e-3)


@pytest.mark.parametrize('devices', [3, pytest.param(8, marks=pytest.mark.slow)])
def test_sharded_equals_single(detector, state, variables, devices):
  """Images that no number of devices divides, so that the last rows are padding."""
  mesh = meshes.make_mesh('cpu', devices, 0)
  sharded, num_rows = make(devices), -(-N // devices) * devices + devices
  x = np.concatenate([embeddings(), np.ones((num_rows - N, GRID, GRID, CHANNELS), np.float32)])
  ids = np.where(np.arange(num_rows) < N, np.arange(num_rows), -1).astype(np.int32)
  padded = Batch(images(num_rows), ids >= 0, ids, x)
  initial_state = loop.initial_state(sharded, variables, 1, mesh)
  learned, _ = jax.jit(sharded.update)(initial_state, meshes.shard_batch(mesh, padded))
  assert learned.num_images == N
  assert len(learned.moments.m2.sharding.device_set) == devices
  for a, b in zip(learned.moments, state.moments, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())
  fitted = sharded.finalize(learned)
  assert_same_model(fitted, detector.finalize(state))
  specs, pixels = sharded.sharding_specs, images(2 * devices, seed=1)
  placed = meshes.put_on_mesh(mesh, specs.pad_to_shards(jax.device_get(fitted)), specs.fitted)
  scores = jax.jit(sharded.score)(placed, meshes.shard_batch(mesh, pixels))
  expected = jax.jit(detector.score)(jax.device_get(fitted), pixels)
  np.testing.assert_allclose(scores.map, expected.map, rtol=1e-4)
  assert detector.sharding_specs is None


def test_a_detector_is_found_by_its_name_and_its_title():
  for name, entry in detectors._DETECTORS.items():
    assert detectors.find(name) == detectors.find(entry.title) == name
  assert detectors.find('SUBSPACEad') == 'subspace'
  assert not detectors.find('EfficientAD')


def test_the_whole_variance_leaves_no_distance(state):
  fitted = make(share=1.0).finalize(state)
  x = embeddings(3, seed=1)
  assert subspaces.squared_distance(jnp.asarray(x), fitted.subspace).max() < 1e-4 * x.var()


def test_constant_features_have_a_subspace_of_no_dimension(detector, learn):
  """Distances are then those to the mean."""
  fitted = detector.finalize(learn([batch(np.full((N, GRID, GRID, CHANNELS), 3, np.float32))]))
  other = np.full((2, GRID, GRID, CHANNELS), 5.0, np.float32)
  distance = subspaces.squared_distance(jnp.asarray(other), fitted.subspace)
  np.testing.assert_allclose(distance, 4.0 * CHANNELS, rtol=1e-5)
  at_mean = subspaces.squared_distance(jnp.full((2, CHANNELS), 3.0), fitted.subspace)
  np.testing.assert_array_equal(at_mean, 0)


@pytest.mark.parametrize('share', [0.95, pytest.param(1.0, marks=pytest.mark.slow)])
def test_an_exported_score_is_the_score(state, share):
  """Rows of zeros are left out, unless there are no others."""
  detector = make(share=share)
  fitted = detector.finalize(state)
  pixels = jnp.asarray(images(2, seed=1))
  expected = jax.jit(detector.score)(fitted, pixels)
  actual = jax.jit(detector.export_score_fn(fitted))(pixels)
  np.testing.assert_allclose(actual.map, expected.map, rtol=1e-5)
  np.testing.assert_allclose(actual.image, expected.image, rtol=1e-5)


@pytest.mark.parametrize('has_blanks', [False, True])
def test_only_a_region_of_interest_is_learned_and_scored(variables, has_blanks):
  """The left half of each image, or of each tile, whose other half is blank."""
  inspected = np.broadcast_to(np.arange(SIZE) < SIZE // 2, (SIZE, SIZE))
  context = RunContext(
    SIZE, SIZE, N, inspected=None if has_blanks else inspected, has_blanks=has_blanks
  )
  detector = subspace.make(BACKBONE, context, SubspaceSettings(image_score='max'))
  pixels = images(N)
  pixels[:, :, SIZE // 2 :] = region_of_interest.BLANK
  images_batch = batch(embeddings())._replace(image=pixels, features=None)
  x = np.asarray(jax.jit(detector.leave_one_out.embed)(variables, images_batch))
  assert np.isnan(x[:, :, GRID // 2 :]).all() == has_blanks
  embedded = images_batch._replace(features=jnp.asarray(x))
  state, _ = jax.jit(detector.update)(detector.init(jax.random.key(1), variables), embedded)
  learned = x[:, :, : GRID // 2]
  assert state.moments.n.sum() == learned[..., 0].size
  fitted = detector.finalize(state)
  np.testing.assert_allclose(
    fitted.subspace.mean, learned.reshape(-1, CHANNELS).mean(axis=0), rtol=1e-4, atol=1e-5
  )
  arrays = stored(detector.incremental.to_arrays(state))
  model = detector.leave_one_out.leave_fold_out(variables, arrays, 0)
  held_out = jax.jit(detector.leave_one_out.score)(model, embedded)
  scores = jax.jit(detector.score)(fitted, pixels)
  for maps in (held_out.map, scores.map):
    assert (np.asarray(maps)[:, :, SIZE // 2 :] == 0).all()
    assert (np.asarray(maps)[:, :, : SIZE // 2].max(axis=(1, 2)) > 0).all()
