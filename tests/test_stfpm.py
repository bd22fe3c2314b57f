import jax
from jax import numpy as jnp
import numpy as np
import pytest
from tiny_network import TinyNetwork

from uadjax import backbones
from uadjax.detectors import stfpm
from uadjax.detectors.base import RunContext
from uadjax.detectors.settings import StfpmSettings
from uadjax.distributed import mesh as meshes
from uadjax.numerics import resampling
from uadjax.numerics.collectives import SINGLE_SHARD
from uadjax.types import Batch

STAGES = ('layer1', 'layer2')  # Two, so that a product is one; few, for compiling takes long.
SIZE = 32
BACKBONE = TinyNetwork()


def images(n, seed=0):
  return jnp.asarray(np.random.default_rng(seed).integers(0, 256, (n, SIZE, SIZE, 3), np.uint8))


def batch(n, seed=0, valid=None):
  valid = np.ones(n, bool) if valid is None else valid
  return Batch(images(n, seed), valid, np.where(valid, np.arange(n), -1).astype(np.int32))


@pytest.fixture(scope='module')
def variables():
  return jax.jit(BACKBONE.init)(jax.random.key(7), jnp.zeros((1, SIZE, SIZE, 3)))


def make(shards=SINGLE_SHARD, backbone=BACKBONE, **options):
  spec = RunContext(SIZE, SIZE, 8, learning_rate=lambda step: 0.1, shards=shards)
  return stfpm.make(backbone, spec, StfpmSettings(**options))


@pytest.fixture(scope='module')
def detector():
  return make()


@pytest.fixture(scope='module')
def state(detector, variables):
  return detector.init(jax.random.key(0), variables)


@pytest.fixture(scope='module')
def update(detector):
  return jax.jit(detector.update)


def features(variables, pixels):
  return BACKBONE.apply(variables, backbones.normalize(jnp.asarray(pixels)))


def slow_distance(t, s):
  """Equation 1 of the paper for one pair of maps, position by position; zero vectors stay zero."""
  out = np.zeros(t.shape[:2])
  for i in range(t.shape[0]):
    for j in range(t.shape[1]):
      a, b = t[i, j].astype(float), s[i, j].astype(float)
      a, b = (x / max(np.linalg.norm(x), 1e-12) for x in (a, b))
      out[i, j] = 0.5 * np.sum((a - b) ** 2)
  return out


@pytest.mark.accelerator
def test_score_is_the_product_of_stage_distances(detector, state):
  pixels = images(2)
  teacher, student = features(state.teacher, pixels), features(state.student, pixels)
  want = np.ones((2, SIZE, SIZE))
  for stage in STAGES:
    for k in range(2):
      distance = slow_distance(np.asarray(teacher[stage][k]), np.asarray(student[stage][k]))
      want[k] *= resampling.upsample(jnp.asarray(distance[None], jnp.float32), SIZE, SIZE)[0]
  scores = jax.jit(detector.score)(detector.finalize(state), pixels)
  np.testing.assert_allclose(scores.map, want, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(scores.image, want.max((1, 2)), rtol=1e-4)


@pytest.mark.accelerator
def test_loss_is_the_mean_distance_summed_over_stages(detector, state):
  held_out = batch(3)
  teacher = features(state.teacher, held_out.image)
  student = features(state.student, held_out.image)
  want = np.mean([
    sum(slow_distance(np.asarray(teacher[s][k]), np.asarray(student[s][k])).mean() for s in STAGES)
    for k in range(3)
  ])  # fmt: skip
  assert jax.jit(detector.validate)(state, held_out)['loss'] == pytest.approx(want, rel=1e-5)


def test_without_half_the_loss_doubles_and_the_map_quadruples_with_two_stages(variables, state):
  halved, whole = make(), make(half=False)
  assert whole.validate(state, batch(2))['loss'] == pytest.approx(
    2 * float(halved.validate(state, batch(2))['loss']), rel=1e-6
  )
  fitted = halved.finalize(state)
  np.testing.assert_allclose(
    whole.score(fitted, images(1)).map, 4 * halved.score(fitted, images(1)).map, rtol=1e-5
  )


def test_a_student_that_is_the_teacher_scores_nothing(detector, variables):
  scores = detector.score(stfpm.Fitted(variables, variables), images(2))
  np.testing.assert_allclose(scores.map, 0, atol=1e-9)


def test_rows_that_are_not_valid_change_nothing(detector, state):
  padded = batch(4, valid=np.array([True, True, False, False]))
  full = Batch(*(x[:2] for x in padded[:3]))
  assert detector.validate(state, padded)['loss'] == pytest.approx(
    float(detector.validate(state, full)['loss']), rel=1e-6
  )


def test_cached_features_equal_computed_ones(detector, update, state):
  learn = batch(4)
  cached_batch = learn._replace(features=detector.precompute(state, learn))
  with_, without = (update(state, b) for b in (cached_batch, learn))
  np.testing.assert_allclose(with_[1]['loss'], without[1]['loss'], rtol=1e-5)
  for a, b in zip(jax.tree.leaves(with_[0]), jax.tree.leaves(without[0]), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_the_student_learns_and_the_teacher_stays(update, state):
  learned, losses = state, []
  for _ in range(8):
    learned, metrics = update(learned, batch(4))
    losses.append(float(metrics['loss']))
  assert losses[-1] < 0.8 * losses[0]
  assert learned.step == 8
  jax.tree.map(np.testing.assert_array_equal, learned.teacher, state.teacher)


def test_weight_decay_is_added_to_the_gradient_as_in_torch(variables):
  """SGD with L2: v ← m·v + g + λ·w, w ← w − η·v; without momentum the decayed part is −η·λ·w."""
  plain, decayed = (make(momentum=0.0, weight_decay=w) for w in (0.0, 0.5))
  start = plain.init(jax.random.key(0), variables)
  updated = [
    jax.jit(d.update)(d.init(jax.random.key(0), variables), batch(2))[0] for d in (plain, decayed)
  ]
  a, b, w = (jax.tree.leaves(s.student['params']) for s in (*updated, start))
  for x, y, z in zip(a, b, w, strict=True):
    np.testing.assert_allclose(x - y, 0.1 * 0.5 * z, rtol=1e-2, atol=1e-5)


def test_a_batch_with_every_image_twice_moves_the_student_twice_as_far(variables):
  """The loss is summed over images, and copies do not change the statistics of BatchNorm."""
  plain = make(momentum=0.0, weight_decay=0.0)
  start = plain.init(jax.random.key(0), variables)
  once = batch(2)
  twice = Batch(*(np.concatenate([np.asarray(x)] * 2) for x in once[:3]))
  update = jax.jit(plain.update)
  (single, losses), (double, same_losses) = (update(start, b) for b in (once, twice))
  assert same_losses['loss'] == pytest.approx(float(losses['loss']), rel=1e-5)
  for x, y, z in zip(
    *(jax.tree.leaves(s.student['params']) for s in (start, single, double)), strict=True
  ):
    scale = np.abs(y - x).max()
    np.testing.assert_allclose(z - x, 2 * (y - x), rtol=1e-2, atol=1e-2 * scale)


@pytest.mark.parametrize('name', ['resnet18', 'compact'])
def test_the_blocks_of_a_new_student_start_as_their_shortcuts(name):
  """Of each block, the last BatchNorm alone has scales of 0; the teacher's have not."""
  backbone = backbones.build(name, STAGES[:1])
  pixels = jnp.zeros((1, SIZE, SIZE, 3))
  teacher = jax.eval_shape(backbone.init, jax.random.key(0), pixels)
  student = make(backbone=backbone).init(jax.random.key(0), teacher).student
  scales = {
    '/'.join(str(key.key) for key in path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(student['params'])
    if path[-1].key == 'scale'
  }
  zero = sorted(path for path, leaf in scales.items() if not leaf.any())
  assert all((scales[path] == 1).all() for path in set(scales) - set(zero))
  assert (
    zero
    == {
      'resnet18': ['layer1_0/bn2/scale', 'layer1_1/bn2/scale'],
      'compact': ['layer1/0_conv2/bn/scale', 'layer1/1_conv2/bn/scale'],
    }[name]
  )
  new = jax.jit(backbone.init)(jax.random.key(0), pixels)['params']
  assert all(
    leaf.all() for path, leaf in jax.tree_util.tree_leaves_with_path(new) if path[-1].key == 'scale'
  )


def test_black_images_have_finite_gradients(update, state):
  black = batch(4)._replace(image=jnp.zeros((4, SIZE, SIZE, 3), np.uint8))
  state, metrics = update(state, black)
  assert np.isfinite(metrics['loss'])
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


def test_batched_equals_one_by_one(detector, state):
  fitted, pixels = detector.finalize(state), images(3)
  together = detector.score(fitted, pixels)
  for k in range(3):
    alone = detector.score(fitted, pixels[k : k + 1])
    np.testing.assert_allclose(alone.map[0], together.map[k], rtol=1e-4, atol=1e-7)


def test_floor_and_opening_of_paddlex(state):
  pixels = images(1)
  raw = make().score(make().finalize(state), pixels).map
  middle = float(np.median(raw))
  floored = make(floor=middle).score(make().finalize(state), pixels).map
  np.testing.assert_array_equal(floored, np.where(raw < middle, 0, raw))
  opened = make(opening=4).score(make().finalize(state), pixels)
  assert (np.asarray(opened.map) <= np.asarray(raw)).all()
  assert opened.image[0] == opened.map.max()


def test_a_rounded_map_is_within_the_bounds_of_the_floor(state):
  pixels, fitted = images(1), make().finalize(state)
  floor = float(np.median(make().score(fitted, pixels).map))
  low, high = make(floor=floor).score_bounds(fitted, pixels, 0.01)
  for shift in (0.995, 1.005):
    near = make(floor=shift * floor).score(fitted, pixels).map
    assert (low.map <= near).all()
    assert (near <= high.map).all()
  assert (make(floor=2 * floor).score(fitted, pixels).map < low.map).any()


@pytest.mark.parametrize(
  ('is_cached', 'numbers'),
  [
    (True, (2,)),
    pytest.param(False, (2,), marks=pytest.mark.slow),
    pytest.param(True, (8,), marks=pytest.mark.slow),
    pytest.param(False, (8,), marks=pytest.mark.slow),
  ],
)
def test_one_update_is_the_same_on_any_number_of_devices(state, is_cached, numbers):
  """Batch norm sees all of a batch, and so does the gradient."""
  results = []
  for devices in (1, *numbers):
    mesh = meshes.make_mesh('cpu', devices, 8)
    assert mesh.size == devices
    detector = make(meshes.shards(mesh))
    copy = meshes.replicate(mesh, jax.tree.map(jnp.copy, state))
    rows = meshes.shard_batch(mesh, batch(8))
    if is_cached:
      rows = rows._replace(features=jax.jit(detector.precompute)(copy, rows))
    results.append(jax.jit(detector.update)(copy, rows))
  (single, metrics), *others = results
  for sharded, many in others:
    assert many['loss'] == pytest.approx(float(metrics['loss']), rel=1e-5)
    for a, b in zip(jax.tree.leaves(single), jax.tree.leaves(sharded), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(np.abs(b).max(), 1e-30))
