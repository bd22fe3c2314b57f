"""The recipe of the embedded backbone, small. It guards a recipe: what draws or learns is slow."""

from distill import losses, shapes, store, student, synthetic_images, views
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from uadjax.backbones import compact, weights


@pytest.fixture(scope='module')
def painted():
  return synthetic_images.generate(jax.random.key(0), 6, 64)


@pytest.mark.slow
def test_pictures_depend_on_the_key_alone(painted):
  # Side by side or one by one; they are never the same twice.
  beside = synthetic_images.generate(jax.random.key(0), 6, 64, 3)
  np.testing.assert_allclose(painted, beside, rtol=1e-3, atol=1e-3)
  assert np.isfinite(painted).all()
  assert min(np.abs(painted[i] - painted[j]).mean() for i in range(6) for j in range(i)) > 0.01


@pytest.mark.slow
def test_noise_has_unit_variance_and_more_power_in_low_frequencies():
  noise = np.asarray(synthetic_images.noise_fields(jax.random.key(1), 64))
  power = np.abs(np.fft.fft2(noise - noise.mean(axis=(1, 2), keepdims=True))) ** 2
  assert (power[:, :4, :4].mean(axis=(1, 2)) > power[:, 24:32, 24:32].mean(axis=(1, 2))).all()


@pytest.mark.slow
def test_views_are_drawn_anew_from_every_key(painted):
  images = views.render_views(jax.random.key(0), painted, 8, 32)
  assert images.dtype == jnp.uint8
  assert images.shape == (8, 32, 32, 3)
  np.testing.assert_array_equal(images, views.render_views(jax.random.key(0), painted, 8, 32))
  assert (images != views.render_views(jax.random.key(1), painted, 8, 32)).any()
  intact, damaged = views.twin_rows(8)
  assert list(intact) == [2, 6]
  assert list(damaged) == [3, 7]


@pytest.mark.slow
def test_twins_differ_in_one_place(painted):
  images = views.render_views(jax.random.key(2), painted, 64, 64).astype(jnp.float32)
  intact, damaged = views.twin_rows(64)
  differ = np.abs(images[damaged] - images[intact]).max(axis=-1) > 0
  shares = differ.mean(axis=(1, 2))
  assert (shares < 0.75).all()  # Blocks of JPEG spread a little of it.
  assert (shares > 0).mean() > 0.5  # Elsewhere may look the same.


def test_the_cosines_of_blocks_are_orthonormal():
  np.testing.assert_allclose(views.DCT @ views.DCT.T, np.eye(8), atol=1e-6)


@pytest.mark.slow
def test_a_layer_without_shapes_changes_nothing():
  layers = jax.jit(synthetic_images._random_layers)(jax.random.key(0))
  layer = jax.tree.map(lambda x: x[5], layers)._replace(
    density=jnp.float32(0), shadow_strength=jnp.float32(0.5)
  )
  canvas = shapes.Canvas(jnp.full((32, 32, 3), 0.3), jnp.ones((32, 32)), jnp.ones((32, 32)))
  drawn = jax.jit(shapes.draw_layer)(
    canvas, layer._replace(confines_later_layers=jnp.float32(0)), jnp.zeros((5, 32, 32))
  )
  for actual, expected in zip(drawn, canvas, strict=True):
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


compare = jax.jit(losses.distillation_loss)


def some_stages(key, batch=4):
  sizes = {'layer1': (16, 8), 'layer2': (8, 16), 'layer3': (4, 32)}
  return {
    name: jax.random.uniform(jax.random.fold_in(key, c), (batch, s, s, c))
    for name, (s, c) in sizes.items()
  }


@pytest.mark.slow
def test_a_perfect_student_has_no_loss_and_the_mean_has_one():
  taught = some_stages(jax.random.key(0))
  scales = {name: losses.measure_scale(x) for name, x in taught.items()}
  total, parts = compare(taught, taught, scales, jax.random.key(1))
  assert abs(float(total)) < 1e-4
  means = {name: jnp.broadcast_to(scales[name].mean, x.shape) for name, x in taught.items()}
  _, parts = compare(taught, means, scales, jax.random.key(1))
  for name, value in parts.items():
    if name.startswith(('match', 'turn', 'change')):
      assert 0.9 < float(value) < 1.1, name
    else:
      assert float(value) > 0.1


def test_distances_are_those_of_the_definition():
  x = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
  actual = losses._pairwise_distances(jnp.asarray(x))
  expected = np.array([[((a - b) ** 2).sum() for b in x] for a in x]) + 1e6 * np.eye(7)
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope='module')
def scales():
  return {
    name: losses.Scale(jnp.full(plan.channels, 0.5), jnp.ones(plan.channels))
    for name, plan in compact.STAGE_CONFIGS.items()
  }


@pytest.fixture(scope='module')
def fresh(scales):
  return student.init_state(student.Recipe(), scales)


@pytest.fixture(scope='module')
def state(fresh):
  """As after some steps: what begins as zeros and ones has moved."""
  leaves, tree = jax.tree.flatten(fresh)
  rng = np.random.default_rng(0)
  changed_leaves = [
    x + jnp.asarray(rng.uniform(0.1, 0.5, x.shape), x.dtype) if x.ndim == 1 else x for x in leaves
  ]
  return jax.tree.unflatten(tree, changed_leaves)._replace(step=jnp.int32(7))


@pytest.mark.slow
def test_a_loaded_state_equals_the_saved_one(tmp_path, state, scales):
  recipe = student.Recipe(seed=5, learning_rate=0.1)
  for _ in range(2):  # The second takes the place of the first.
    store.save(tmp_path, state, scales, {'recipe': recipe._asdict()})
  loaded = store.load(tmp_path)
  assert jax.tree.structure(loaded) == jax.tree.structure((recipe, state, scales))
  for actual, expected in zip(
    *map(jax.tree.leaves, (loaded, (recipe, state, scales))), strict=True
  ):
    np.testing.assert_array_equal(actual, expected)


def test_without_a_checkpoint_there_is_no_going_on(tmp_path):
  with pytest.raises(SystemExit, match='no checkpoint'):
    store.load(tmp_path)


def test_statistics_become_steady_before_views_become_large():
  recipe = student.Recipe(steps=100, frozen_stats_from=0.7, large_views_from=0.9)
  phases = [student.training_phase(recipe, step) for step in (0, 69, 70, 89, 90, 99)]
  assert phases == [(False, False)] * 2 + [(True, False)] * 2 + [(True, True)] * 2


@pytest.mark.slow
def test_exported_weights_compute_the_features_of_the_average(tmp_path, state):
  summary = store.export(tmp_path / 'compact.safetensors', state, {'seed': 0})
  assert summary['bytes'] == (tmp_path / 'compact.safetensors').stat().st_size
  assert summary['parameters'] < 3_000_000
  x = jax.random.normal(jax.random.key(3), (2, 64, 64, 3))
  apply = jax.jit(compact.Compact().apply)
  shipped, _ = weights.load(str(tmp_path / 'compact.safetensors'), compact.Compact())
  before, after = apply(state.average_variables, x), apply(shipped, x)
  for stage, y in before.items():
    np.testing.assert_allclose(after[stage], y, rtol=0.01, atol=0.01 * float(y.std()))


@pytest.mark.slow
def test_the_student_begins_with_the_scales_of_the_teacher_alone(fresh, scales):
  for stage, (mean, std) in scales.items():
    norm = fresh.params[stage]['leave']['bn']
    np.testing.assert_array_equal(norm['bias'], mean)
    np.testing.assert_array_equal(norm['scale'], std)
