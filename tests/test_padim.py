import jax
from jax import numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from stored_arrays import stored

from uadjax import backbones, config as configs
from uadjax.detectors import image_score, padim
from uadjax.detectors.base import RunContext
from uadjax.detectors.settings import PadimSettings
from uadjax.distributed import mesh as meshes
from uadjax.errors import ConfigError, UnknownName
from uadjax.numerics import gaussian, projections
from uadjax.types import Batch

STAGES = ('layer1', 'layer2')  # Two, so that one is enlarged; few, for compiling takes long.
SIZE, CHANNELS, RIDGE = 32, 8, 0.01
BACKBONE = backbones.build('resnet18', STAGES)


def images(n, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (n, SIZE, SIZE, 3), np.uint8)


def batch(pixels, first=0):
  n = len(pixels)
  return Batch(pixels, np.ones(n, bool), np.arange(first, first + n, dtype=np.int32))


@pytest.fixture(scope='module')
def variables():
  return jax.jit(BACKBONE.init)(jax.random.key(7), jnp.zeros((1, SIZE, SIZE, 3)))


def make(spec=None, **options):
  spec = RunContext(SIZE, SIZE, 12) if spec is None else spec
  options = {'channels': CHANNELS, 'ridge': RIDGE, **options}
  return padim.make(BACKBONE, spec, PadimSettings(**options))


@pytest.fixture(scope='module')
def detector():
  return make()


@pytest.fixture(scope='module')
def update(detector):
  return jax.jit(detector.update)


@pytest.fixture(scope='module')
def score(detector):
  return jax.jit(detector.score)


@pytest.fixture(scope='module')
def start(detector, variables):
  return detector.init(jax.random.key(0), variables)


@pytest.fixture(scope='module')
def whole(update, start):
  """All twelve images, in one batch."""
  return update(start, batch(images(12)))[0]


@pytest.fixture(scope='module')
def fitted(detector, whole):
  return jax.jit(detector.finalize)(whole)  # Inside a jit it does not consume the state.


def slow_bilinear(x, size):
  """The definition, pixel by pixel: centers at half integers, ends held."""
  before = len(x)
  out = np.zeros((size, size, *x.shape[2:]))
  for i, j in np.ndindex(size, size):
    y, z = (min(max((k + 0.5) * before / size - 0.5, 0), before - 1) for k in (i, j))
    a, b = int(y), int(z)
    c, d = min(a + 1, before - 1), min(b + 1, before - 1)
    top = x[a, b] * (1 - (z - b)) + x[a, d] * (z - b)
    bottom = x[c, b] * (1 - (z - b)) + x[c, d] * (z - b)
    out[i, j] = top * (1 - (y - a)) + bottom * (y - a)
  return out


def slow_nearest(x, size):
  return x.repeat(size // len(x), axis=0).repeat(size // len(x), axis=1)


def slow_embed(variables, pixels, projection, enlarge=slow_bilinear):
  """All stages on the first one's grid, all channels side by side, then the projection."""
  stages = jax.jit(BACKBONE.apply)(variables, backbones.normalize(jnp.asarray(pixels)))
  first, second = (np.asarray(stages[name], np.float64) for name in STAGES)
  second = np.stack([enlarge(x, first.shape[1]) for x in second])
  return np.concatenate([first, second], axis=-1) @ np.asarray(projection, np.float64)


def slow_map(train, x):
  """Sections III-A to III-C of the paper, position by position."""
  _, h, w, d = train.shape
  distance = np.zeros((h, w))
  for i, j in np.ndindex(h, w):
    covariance = np.cov(train[:, i, j], rowvar=False) + RIDGE * np.eye(d)
    delta = x[i, j] - train[:, i, j].mean(0)
    distance[i, j] = np.sqrt(delta @ np.linalg.inv(covariance) @ delta)
  return ndimage.gaussian_filter(slow_bilinear(distance, SIZE), 4, mode='reflect', truncate=4)


def assert_same(a, b, rtol=1e-4):
  """Equal to rounding, which is relative to an array's largest value."""
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * float(np.abs(y).max()))


@pytest.mark.accelerator
@pytest.mark.parametrize(
  ('projection', 'enlarge', 'slow'),
  [
    ('sample', 'bilinear', slow_bilinear),
    pytest.param('ortho', 'bilinear', slow_bilinear, marks=pytest.mark.slow),
    pytest.param('sample', 'nearest', slow_nearest, marks=pytest.mark.slow),
  ],
)
def test_score_is_the_definition(variables, projection, enlarge, slow):
  detector = make(projection=projection, enlarge=enlarge)
  state = detector.init(jax.random.key(0), variables)
  drawn = state.extractor.projection
  state, _ = jax.jit(detector.update)(state, batch(images(12)))
  scores = jax.jit(detector.score)(detector.finalize(state), jnp.asarray(images(2, seed=1)))
  train = slow_embed(variables, images(12), drawn, slow)
  want = [slow_map(train, x) for x in slow_embed(variables, images(2, seed=1), drawn, slow)]
  np.testing.assert_allclose(scores.map, want, rtol=1e-3)
  image = image_score.from_map(jnp.asarray(want), PadimSettings().image_score).image
  np.testing.assert_allclose(scores.image, image, rtol=1e-3)


@pytest.mark.parametrize(
  ('rows', 'padding'),
  [(1, 0), (5, 3), *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((4, 0), (12, 4)))],
)
def test_any_batch_size_and_padding_give_the_same_model(update, start, whole, rows, padding):
  state = start
  for first in range(0, 12, rows):
    part = batch(images(12)[first : first + rows], first)
    filling = images(padding, seed=9)
    state, _ = update(
      state,
      Batch(
        np.concatenate([filling, part.image]),
        np.concatenate([np.zeros(padding, bool), part.valid]),
        np.concatenate([np.full(padding, -1, np.int32), part.index]),
      ),
    )
  assert state.moments.n == 12
  assert_same(state.moments, whole.moments)


def test_stored_embeddings_equal_their_images(detector, update, start, whole):
  part = batch(images(12))
  features = jax.jit(detector.leave_one_out.embed)(start.extractor, part)
  state, _ = update(start, part._replace(image=part.image[:, :0, :0], features=features))
  assert_same(state.moments, whole.moments, rtol=1e-5)


@pytest.mark.parametrize('left_out', [0, 7])
def test_leaving_an_image_out_equals_refitting_without_it(
  detector, update, score, start, whole, variables, left_out
):
  pixels, once = images(12), detector.leave_one_out
  state_arrays = stored(detector.incremental.to_arrays(whole))
  reference = once.leave_fold_out(variables, state_arrays, 0)
  its_own = batch(pixels[left_out : left_out + 1], left_out)
  got = jax.jit(once.score)(reference, its_own)
  refitted, _ = update(start, batch(np.delete(pixels, left_out, axis=0)))
  want = score(jax.jit(detector.finalize)(refitted), its_own.image)
  np.testing.assert_allclose(got.map, want.map, rtol=2e-3)
  np.testing.assert_allclose(got.image, want.image, rtol=2e-3)
  included = score(jax.jit(detector.finalize)(whole), its_own.image)
  assert got.image[0] > 1.05 * included.image[0]  # An image is nearer to what it was part of.


def test_removing_images_equals_refitting_without_them(
  detector, update, score, start, whole, variables
):
  pixels, once = images(12), detector.leave_one_out
  arrays = stored(detector.incremental.to_arrays(whole))
  embed = jax.jit(once.embed)
  removed = [np.asarray(embed(start.extractor, batch(pixels[i : i + 2], i))) for i in (0, 5)]
  got = score(once.remove(variables, arrays, removed), pixels)
  refitted, _ = update(start, batch(np.delete(pixels, [0, 1, 5, 6], axis=0)))
  want = score(jax.jit(detector.finalize)(refitted), pixels)
  np.testing.assert_allclose(got.map, want.map, rtol=2e-3)
  np.testing.assert_allclose(got.image, want.image, rtol=2e-3)


def test_a_held_out_model_is_made_from_triangles_by_columns(detector, whole, variables):
  """To the bit that of all whole matrices at once; JAX takes it without a copy."""
  arrays = stored(detector.incremental.to_arrays(whole))
  before = arrays['m2'].copy()
  model = detector.leave_one_out.leave_fold_out(variables, arrays, 0)
  np.testing.assert_array_equal(arrays['m2'], before)
  n, _, m2 = whole.moments
  at_once = padim.gaussians.whiten(jnp.array(m2), n, RIDGE, 1)
  np.testing.assert_array_equal(model.fitted.whitening.matrices, at_once)


def test_extended_by_the_other_half_equals_fitted_at_once(detector, update, start, whole):
  pixels, once = images(12), detector.incremental
  half, _ = update(start, batch(pixels[:5]))
  state_arrays = stored(once.to_arrays(half))
  extended, _ = update(once.restore(start, state_arrays), batch(pixels[5:], 5))
  assert_same(extended.moments, whole.moments)
  assert_same(detector.finalize(extended), jax.jit(detector.finalize)(whole), rtol=1e-3)


def test_an_extended_run_keeps_the_projection_whatever_its_seed(detector, start, whole, variables):
  other = detector.init(jax.random.key(1), variables)
  assert (other.extractor.projection != start.extractor.projection).any()
  state_arrays = stored(detector.incremental.to_arrays(whole))
  extended = detector.incremental.restore(other, state_arrays)
  np.testing.assert_array_equal(extended.extractor.projection, start.extractor.projection)
  fitted = detector.finalize(extended)  # The projection is part of the model.
  np.testing.assert_array_equal(fitted.feature_extractor.projection, start.extractor.projection)
  reference = detector.leave_one_out.leave_fold_out(variables, state_arrays, 0)
  np.testing.assert_array_equal(
    reference.fitted.feature_extractor.projection, start.extractor.projection
  )


def test_means_move_by_standard_deviations():
  """One position and two channels of variance 4 and 16; the means move by 3 and 4."""
  m2 = 4 * np.array([[[4.0, 0.0, 16.0]]])  # Packed triangles.
  before = {'n': 5.0, 'mean': np.array([[[1.0, 2.0]]]), 'm2': m2}
  after = {'n': 9.0, 'mean': np.array([[[4.0, 6.0]]]), 'm2': 2 * m2}
  drift = make().incremental.drift(before, after)
  assert drift['images_before'] == 5
  assert drift['images_after'] == 9
  assert drift['mean_shift'] == pytest.approx(np.sqrt(((3 / 2) ** 2 + (4 / 4) ** 2) / 2))


def test_batched_equals_one_by_one(score, fitted):
  pixels = images(3, seed=1)
  together = score(fitted, pixels)
  for k in range(3):
    alone = score(fitted, pixels[k : k + 1])
    np.testing.assert_allclose(alone.map[0], together.map[k], rtol=1e-4)


def test_sharded_equals_single(score, fitted):
  results = []
  for devices in (1, 8):
    mesh = meshes.make_mesh('cpu', devices, 8)
    assert mesh.size == devices
    copy = meshes.replicate(mesh, fitted)
    results.append(score(copy, meshes.shard_batch(mesh, images(8, seed=1))))
    assert len(results[-1].map.sharding.device_set) == devices
  assert_same(results[1], results[0])


def test_too_few_images_for_no_ridge_are_refused():
  with pytest.raises(ConfigError, match=r'9 good images are too few .* 8 channels'):
    make(RunContext(SIZE, SIZE, 9), ridge=0.0)
  make(RunContext(SIZE, SIZE, 10), ridge=0.0)
  # Images of the run that is extended count, too.
  make(RunContext(SIZE, SIZE, 4, num_previous_images=6), ridge=0.0)
  make(RunContext(SIZE, SIZE), ridge=0.0)  # A model that is only opened fits nothing.


@pytest.mark.parametrize('ridge', [0.0, RIDGE])
def test_the_fewest_images_that_are_accepted_can_be_left_out(variables, ridge):
  fewest = gaussian.min_vectors(CHANNELS, ridge)
  if ridge:
    fewest = 3  # Those of fewer are removed from the model instead of by the closed form.
  else:
    with pytest.raises(ConfigError, match=f'{fewest - 1}'):
      make(RunContext(SIZE, SIZE, fewest - 1), ridge=ridge)
  detector = make(RunContext(SIZE, SIZE, fewest), ridge=ridge)
  x = np.random.default_rng(3).normal(size=(fewest, 8, 8, CHANNELS)).astype(np.float32)
  embedded = batch(images(fewest))._replace(features=jnp.asarray(x))
  state, _ = jax.jit(detector.update)(detector.init(jax.random.key(0), variables), embedded)
  arrays = stored(detector.incremental.to_arrays(state))
  model = detector.leave_one_out.leave_fold_out(variables, arrays, 0)
  scores = jax.jit(detector.leave_one_out.score)(model, embedded)
  assert np.isfinite(scores.map).all()


def test_the_gaussian_of_a_single_image_has_the_variance_of_the_ridge(variables):
  """Fitted to one image, or to two of which one is removed."""
  x = np.random.default_rng(3).normal(size=(2, 8, 8, CHANNELS)).astype(np.float32)
  detector = make(RunContext(SIZE, SIZE, 2), ridge=RIDGE)
  fitted = []
  for valid in ([True, False], [True, True]):
    learned = batch(images(2))._replace(features=jnp.asarray(x), valid=np.array(valid))
    state, _ = jax.jit(detector.update)(detector.init(jax.random.key(0), variables), learned)
    arrays = stored(detector.incremental.to_arrays(state))
    remove = detector.leave_one_out.remove
    fitted.append(remove(variables, arrays, [x[1:]]) if all(valid) else detector.finalize(state))
  for model in fitted:
    np.testing.assert_allclose(model.mean, x[0], rtol=1e-5, atol=1e-6)
    want = np.broadcast_to(np.eye(CHANNELS) / RIDGE**0.5, model.whitening.matrices.shape)
    np.testing.assert_allclose(model.whitening.matrices, want, rtol=1e-2, atol=1e-2 / RIDGE**0.5)


@pytest.mark.parametrize(
  ('options', 'words'),
  [
    ({'projection': 'sampel'}, projections.METHODS),
    ({'enlarge': 'cubic'}, ('bilinear', 'nearest')),
  ],
)
def test_an_error_for_an_unknown_name_lists_the_choices(options, words):
  with pytest.raises(UnknownName) as caught:
    configs.replace(PadimSettings(), options)
  assert all(repr(word) in str(caught.value) for word in (*options.values(), *words))


@pytest.mark.parametrize('ridge', [-0.1, float('nan')])
def test_a_ridge_below_zero_is_refused(ridge):
  with pytest.raises(ConfigError, match=f'ridge must be at least 0.*, got {ridge}'):
    configs.replace(PadimSettings(), {'ridge': ridge})


def test_more_channels_than_there_are_is_refused(variables):
  with pytest.raises(ConfigError, match=r'detector\.channels=193, .* have 192'):
    make(channels=193).init(jax.random.key(0), variables)
