import jax
from jax import numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from uadjax import backbones, config as configs
from uadjax.detectors import image_score as image_scores, patchcore
from uadjax.detectors.base import RunContext
from uadjax.detectors.patchcore import capacity
from uadjax.detectors.settings import PatchcoreSettings
from uadjax.distributed import mesh as meshes
from uadjax.errors import ConfigError
from uadjax.numerics import coreset, neighbors as knn
from uadjax.types import Batch

STAGES = ('layer1', 'layer2')
SIZE = 32
GRID = 8  # Patches along a side: those of layer1.
NUM_FOLDS = capacity._NUM_FOLDS
BACKBONE = backbones.build('resnet18', STAGES)
pytestmark = pytest.mark.usefixtures('one_way_to_measure')


def images(n, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (n, SIZE, SIZE, 3), np.uint8)


def batch(n, seed=0, first=0):
  numbers = np.arange(first, first + n, dtype=np.int32)
  return Batch(images(n, seed), np.ones(n, bool), numbers)


def make(count=6, num_previous=0, **options):
  options = PatchcoreSettings(**{'ratio': 0.1, **options})
  return patchcore.make(BACKBONE, RunContext(SIZE, SIZE, count, num_previous), options)


def embedded(x, first=0):
  """A batch of embeddings, which stand for images."""
  return batch(len(x), 0, first)._replace(features=jnp.asarray(x))


@pytest.fixture(scope='module')
def variables():
  return jax.jit(BACKBONE.init)(jax.random.key(7), jnp.zeros((1, SIZE, SIZE, 3)))


@pytest.fixture(scope='module')
def detector():
  return make()


@pytest.fixture(scope='module')
def embeddings(detector, variables):
  """Of six images."""
  return np.asarray(jax.jit(detector.leave_one_out.embed)(variables, batch(6)))


def stood(detector, variables, training_batch, before=None):
  """Calibration coresets of the images of a batch, as `one_pass` selects them."""
  state = detector.init(jax.random.key(1), variables)
  if before is not None:
    state = detector.incremental.restore(state, before)
  state, _ = jax.jit(detector.update)(state, training_batch)
  return jax.tree.map(np.asarray, detector.leave_one_out.select_coresets(state, before or {}))


def learn(detector, variables, batches, state_arrays=None):
  """Fold batches in and settle, as `onepass` does."""
  once, update = detector.incremental, jax.jit(detector.update)
  state = detector.init(jax.random.key(1), variables)
  if state_arrays is not None:
    state = once.restore(state, state_arrays)
  for training_batch in batches:
    if once.compact:
      state = once.compact(state, len(training_batch.valid))
    state, _ = update(state, training_batch)
  return once.select(state)


@pytest.fixture(scope='module')
def state(detector, variables, embeddings):
  return learn(detector, variables, [embedded(embeddings)])


@pytest.fixture(scope='module')
def fitted(detector, state):
  return detector.finalize(state)


@pytest.fixture(scope='module')
def state_arrays(detector, state):
  return jax.tree.map(np.asarray, detector.incremental.to_arrays(state))


@pytest.fixture(scope='module')
def calibration_coresets(detector, variables, embeddings):
  return stood(detector, variables, embedded(embeddings))


@pytest.fixture(scope='module')
def score(detector):
  return jax.jit(detector.score)


@pytest.fixture(scope='module')
def left_out(detector):
  return jax.jit(detector.leave_one_out.score)


# The paper, slowly and in float64.


def slow_resize(x, height, width):
  """Bilinear, pixel centers at half integers, ends held."""
  h, w, _ = x.shape
  out = np.zeros((height, width, x.shape[2]))
  for i, j in np.ndindex(height, width):
    y = min(max((i + 0.5) * h / height - 0.5, 0), h - 1)
    z = min(max((j + 0.5) * w / width - 0.5, 0), w - 1)
    for a, b in np.ndindex(2, 2):
      row, column = min(int(y) + a, h - 1), min(int(z) + b, w - 1)
      weight = (y - int(y) if a else 1 - y + int(y)) * (z - int(z) if b else 1 - z + int(z))
      out[i, j] += weight * x[row, column]
  return out


def slow_embed(variables, pixels):
  """Section 3.1 of the paper, of one image: neighborhoods averaged, on the grid of the first."""
  stages = BACKBONE.apply(variables, backbones.normalize(jnp.asarray(pixels[None])))
  on_grid = []
  for name in STAGES:
    x = np.asarray(stages[name][0], np.float64)
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    mean = np.zeros_like(x)
    for i, j in np.ndindex(x.shape[:2]):
      mean[i, j] = padded[i : i + 3, j : j + 3].sum((0, 1)) / 9
    on_grid.append(slow_resize(mean, GRID, GRID))
  return np.concatenate(on_grid, axis=-1)


def slow_score(x, rows, image_score='top:0.003'):
  """Section 3.3, of the embedding of one image: the map, and the mean of its largest values."""
  x, rows = x.astype(np.float64), rows.astype(np.float64)
  patches = x.reshape(-1, x.shape[-1])
  away = np.linalg.norm(patches[:, None] - rows[None], axis=-1)
  distance = away.min(axis=1)
  anomaly = slow_resize(distance.reshape(*x.shape[:2], 1), SIZE, SIZE)[..., 0]
  anomaly = ndimage.gaussian_filter(anomaly, 4, mode='reflect', truncate=4)
  return anomaly, float(image_scores.from_map(jnp.asarray(anomaly[None]), image_score).image[0])


def assert_scores(got, xs, rows, **options):
  for k, x in enumerate(xs):
    anomaly, image = slow_score(x, rows, **options)
    np.testing.assert_allclose(got.map[k], anomaly, rtol=1e-4)
    assert got.image[k] == pytest.approx(image, rel=1e-3)


def test_embedding_is_that_of_the_paper(embeddings, variables):
  assert embeddings.shape == (6, GRID, GRID, 64 + 128)
  for k in (0, 5):
    np.testing.assert_allclose(
      embeddings[k], slow_embed(variables, images(6)[k]), rtol=1e-3, atol=1e-4
    )


def test_channels_are_averaged_down(embeddings, variables):
  """So many are left, each the mean of its run (192 do not divide by 10: runs overlap)."""
  got = jax.jit(make(channels=10).leave_one_out.embed)(variables, batch(6))
  assert got.shape == (6, GRID, GRID, 10)
  for i in range(10):
    run = embeddings[..., i * 192 // 10 : -(-(i + 1) * 192 // 10)]
    np.testing.assert_allclose(got[..., i], run.mean(axis=-1), rtol=1e-3, atol=1e-4)


def test_more_channels_than_there_are_change_nothing(embeddings, variables):
  embed = make(channels=1000).leave_one_out.embed
  assert jax.eval_shape(embed, variables, batch(1)).shape == (1, GRID, GRID, 192)


@pytest.mark.accelerator
def test_score_is_that_of_the_paper(score, fitted, state_arrays, variables):
  pixels = images(3, seed=9)
  assert len(state_arrays['embeddings']) == round(0.1 * 6 * GRID**2)
  xs = [slow_embed(variables, image) for image in pixels]
  got = score(fitted, pixels)
  assert_scores(got, xs, state_arrays['embeddings'])


@pytest.mark.parametrize(('image_score', 'rows'), [('max', 38), ('top:0.1', 38), ('top:0.003', 1)])
def test_score_with_other_image_scores_and_a_bank_of_one_row(
  image_score, rows, state_arrays, variables, embeddings
):
  xs = embeddings[:2] + np.float32(0.1) * embeddings[2:4, ::-1]
  got = jax.jit(make(image_score=image_score).leave_one_out.score)(
    fitted_to(variables, state_arrays['embeddings'][:rows]), embedded(xs)
  )
  assert_scores(got, xs, state_arrays['embeddings'][:rows], image_score=image_score)


def fitted_to(variables, rows):
  return patchcore.Fitted(variables, knn.build_index(jnp.asarray(rows)))


def test_embeddings_far_from_the_origin_are_scored_alike(
  left_out, state_arrays, variables, embeddings
):
  rows, xs = state_arrays['embeddings'] + np.float32(100), embeddings[:2, ::-1] + np.float32(100)
  far = fitted_to(variables, rows)
  assert (far.memory_bank.center > 50).any()  # Which is what could be forgotten.
  assert_scores(left_out(far, embedded(xs)), xs, rows)


def test_huge_distances_do_not_overflow(left_out, state_arrays, variables, embeddings):
  got = left_out(
    fitted_to(variables, 1e3 * state_arrays['embeddings']), embedded(1e4 * embeddings[:2])
  )
  assert np.isfinite(got.map).all()
  assert (got.image > 0).all()
  assert np.isfinite(got.image).all()


def test_patches_of_the_bank_have_no_distance(left_out, state_arrays, variables):
  x = np.resize(state_arrays['embeddings'], (2, GRID, GRID, 192))
  got = left_out(fitted_to(variables, state_arrays['embeddings']), embedded(x))
  np.testing.assert_array_equal(got.map, 0)
  np.testing.assert_array_equal(got.image, 0)


def test_batched_equals_one_by_one(score, fitted):
  pixels = images(3, seed=4)
  together = score(fitted, pixels)
  for k in range(3):
    alone = score(fitted, pixels[k : k + 1])
    np.testing.assert_allclose(alone.map[0], together.map[k], rtol=1e-4)
    assert alone.image[0] == pytest.approx(float(together.image[k]), rel=1e-3)


def test_sharded_equals_single(detector, fitted):
  results = []
  for devices in (1, 8):
    mesh = meshes.make_mesh('cpu', devices, 8)
    assert mesh.size == devices
    copy = meshes.replicate(mesh, fitted)
    results.append(jax.jit(detector.score)(copy, meshes.shard_batch(mesh, images(8, seed=3))))
  single, sharded = results
  assert len(sharded.map.sharding.device_set) == 8
  np.testing.assert_allclose(sharded.map, single.map, rtol=1e-5)
  np.testing.assert_allclose(sharded.image, single.image, rtol=1e-5)


@pytest.mark.parametrize('size', [1, 4])
def test_batches_of_any_size_and_rows_that_are_not_valid_give_the_same_bank(
  size, detector, variables, state, state_arrays
):
  """The last batch of four is filled up with images that must not matter."""
  update, other_state = jax.jit(detector.update), detector.init(jax.random.key(1), variables)
  metrics = {}
  for start in range(0, 6, size):
    part = [x[start : start + size] for x in batch(6)[:3]]
    fill = size - len(part[0])
    if fill:
      extra = images(fill, 5), np.zeros(fill, bool), np.full(fill, -1, np.int32)
      part = [np.concatenate(pair) for pair in zip(part, extra, strict=True)]
    other_state, metrics = update(other_state, Batch(*part))
  assert metrics['images'] == 6
  got = detector.incremental.select(other_state)
  np.testing.assert_allclose(
    got.memory_bank.patches.embeddings, state_arrays['embeddings'], rtol=1e-3, atol=1e-4
  )
  np.testing.assert_array_equal(got.memory_bank.patches.image_id, state_arrays['image_id'])
  assert (got.memory_bank.num_images, len(got.memory_bank.patches.embeddings)) == (6, 38)
  assert got.memory_bank.covering_radius == pytest.approx(
    float(state.memory_bank.covering_radius), rel=1e-4
  )


def test_stored_embeddings_equal_their_images(detector, variables, embeddings):
  state = detector.init(jax.random.key(1), variables)
  update = jax.jit(detector.update)
  from_images, _ = update(state, batch(6))
  from_embeddings, _ = update(state, embedded(embeddings)._replace(image=images(6, 5)))
  got, want = (state.memory_bank.patches.embeddings for state in (from_embeddings, from_images))
  np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


def test_learned_embeddings_are_views_of_those_of_this_run(
  detector, variables, embeddings, state_arrays
):
  """Images in any order, padding between them, and an earlier run's coreset before them."""
  order, is_image = np.array([2, 0, 5]), np.array([True, False, True, True])
  x = np.insert(embeddings[order], 1, 9.0, axis=0)
  ids = np.insert(order + 6, 1, -1).astype(np.int32)
  part = Batch(images(4), is_image, ids, jnp.asarray(x))
  for detector_of_run, before in ((detector, None), (make(3, num_previous=6), state_arrays)):
    state = detector_of_run.init(jax.random.key(1), variables)
    if before:
      state = detector_of_run.incremental.restore(state, before)
    state, _ = jax.jit(detector_of_run.update)(state, part)
    image_ids, learned = detector_of_run.leave_one_out.learned_embeddings(state)
    np.testing.assert_array_equal(image_ids, order + 6)
    np.testing.assert_array_equal(learned, embeddings[order])
    bank = np.asarray(state.memory_bank.patches.embeddings)
    assert np.shares_memory(learned, bank)


def test_a_bank_without_the_patches_of_all_images_has_no_learned_embeddings():
  few_bytes = 5 * GRID**2 * (coreset.bytes_per_point(192) + 4 * PatchcoreSettings().coreset_dim)
  assert make(6, max_bytes=few_bytes).leave_one_out.learned_embeddings is None
  mesh = meshes.make_mesh('cpu', 2, 0)
  sharded = patchcore.make(
    BACKBONE, RunContext(SIZE, SIZE, 6, shards=meshes.shards(mesh)), PatchcoreSettings()
  )
  assert sharded.leave_one_out.learned_embeddings is None


def rows_of(fitted):
  return np.asarray(fitted.memory_bank.rows + fitted.memory_bank.center[None])


def are_patches_of(rows, x):
  """Which of the rows are among these patches."""
  patches = {patch.tobytes() for patch in x.reshape(-1, 192)}
  return np.array([row.tobytes() in patches for row in rows])


@pytest.mark.parametrize('fold', [1, 4])
def test_a_held_out_image_is_scored_by_a_bank_of_the_others(
  fold, detector, left_out, state_arrays, calibration_coresets, variables, embeddings
):
  """It has 5 % fewer rows than the bank, which has rows of the image."""
  reference = detector.leave_one_out.leave_fold_out(
    variables, state_arrays | calibration_coresets, fold
  )
  rows = rows_of(reference)
  assert rows.shape == (37, 192)
  assert are_patches_of(rows, np.delete(embeddings, fold, axis=0)).all()
  assert not are_patches_of(rows, embeddings[fold]).any()
  assert (state_arrays['image_id'] == fold).any()
  got = left_out(reference, embedded(embeddings[fold][None]))
  assert_scores(got, embeddings[fold][None], rows)


def test_the_bank_that_scores_a_held_out_image_does_not_depend_on_it(
  detector, state_arrays, calibration_coresets, variables, embeddings
):
  changed = embeddings.copy()
  changed[2] += 3
  other = stood(detector, variables, embedded(changed))

  def rows(coresets, fold):
    return rows_of(detector.leave_one_out.leave_fold_out(variables, state_arrays | coresets, fold))

  np.testing.assert_array_equal(rows(other, 2), rows(calibration_coresets, 2))
  assert not np.array_equal(rows(other, 3), rows(calibration_coresets, 3))


def held_out_ranks(detector, variables, seed):
  """Return how often held-out images are scored higher than unseen ones, by two kinds of banks.

  The first kind is selected without a fold. In the second kind, the rows of a fold are passed over.
  """
  random = np.random.default_rng(seed)
  centers = 4 * random.normal(size=(300, 192)) / 192**0.5
  x = centers[random.integers(0, 300, (80, GRID, GRID))]
  x = (x + random.normal(size=x.shape) * 2 / 192**0.5).astype(np.float32)
  once, training_batch, new_batch = detector.leave_one_out, embedded(x[:40]), embedded(x[40:])
  state = learn(detector, variables, [training_batch])
  arrays = jax.tree.map(np.asarray, detector.incremental.to_arrays(state))
  arrays |= stood(detector, variables, training_batch)
  score = jax.jit(once.score)
  new = np.asarray(score(detector.finalize(state), new_batch).image)

  def rank(models):
    scores = [np.asarray(score(model, training_batch).image) for model in models]
    old = np.array([scores[i % NUM_FOLDS][i] for i in range(40)])
    return np.mean(old[:, None] > new[None])

  rows, image = arrays['embeddings'], arrays['image_id']
  # Rows again and again, so that all are one compilation: the nearest is as near.
  masked = [np.resize(rows[image % NUM_FOLDS != fold], rows.shape) for fold in range(NUM_FOLDS)]
  return (
    rank([once.leave_fold_out(variables, arrays, fold) for fold in range(NUM_FOLDS)]),
    rank([fitted_to(variables, bank_rows) for bank_rows in masked]),
  )


@pytest.mark.slow
def test_held_out_and_unseen_images_are_scored_alike(variables):
  """Which they are not where the rows of a fold are merely passed over."""
  detector = make(count=40, ratio=0.05)
  ranks = [held_out_ranks(detector, variables, seed) for seed in range(4)]
  selected, passed_over = np.mean(ranks, axis=0)
  # Standard error of the mean of four Mann-Whitney statistics of 40 and 40 images.
  error = (81 / (12 * 40 * 40) / 4) ** 0.5
  assert abs(selected - 0.5) < 2 * error, ranks
  assert passed_over > 0.5 + 3 * error, ranks


def test_a_fold_that_contains_all_patches_is_refused(
  detector, state_arrays, calibration_coresets, variables
):
  alone = calibration_coresets | {
    'calibration_image_id': np.full_like(calibration_coresets['calibration_image_id'], 3)
  }
  with pytest.raises(ConfigError, match=r'All 38 rows .* fold 3, .* Raise detector.ratio'):
    detector.leave_one_out.leave_fold_out(variables, state_arrays | alone, 3)
  assert (
    len(rows_of(detector.leave_one_out.leave_fold_out(variables, state_arrays | alone, 2))) == 37
  )


def test_calibration_coresets_are_extended_by_those_of_new_images(
  variables, embeddings, state_arrays, calibration_coresets
):
  """Old images are left out of the old patches as well as of the new; numbers go on."""
  further = make(count=6, num_previous=6)
  new = np.flip(embeddings, axis=2) + np.float32(0.5)
  got = stood(further, variables, embedded(new, first=6), state_arrays | calibration_coresets)
  assert set(got['calibration_image_id'].tolist()) == set(range(12))
  old = got['calibration_image_id'] < 6
  assert are_patches_of(got['calibration_embeddings'][~old], new).all()
  left = np.concatenate(
    [calibration_coresets['calibration_embeddings'], state_arrays['embeddings']]
  )
  assert are_patches_of(got['calibration_embeddings'][old], left).all()
  assert not are_patches_of(got['calibration_embeddings'][old], state_arrays['embeddings']).all()


def test_a_bank_is_extended_by_further_images(variables, embeddings, state_arrays):
  """Old rows stay candidates, new images compete, and numbers go on."""
  further = make(count=6, num_previous=6)
  new = np.flip(embeddings, axis=2) + np.float32(0.5)
  learned_state = learn(further, variables, [embedded(new, first=6)], state_arrays)
  extended = learned_state.memory_bank.patches
  assert learned_state.memory_bank.num_images == 12
  assert len(extended.embeddings) == round(0.1 * 12 * GRID**2)
  old = np.asarray(extended.image_id) < 6
  assert 0 < old.sum() < len(old)
  whole = np.concatenate([state_arrays['embeddings'], new.reshape(-1, 192)])
  assert {row.tobytes() for row in np.asarray(extended.embeddings)} <= {
    row.tobytes() for row in whole
  }
  assert {r.tobytes() for r in np.asarray(extended.embeddings)[old]} <= {
    r.tobytes() for r in state_arrays['embeddings']
  }
  drift = further.incremental.drift(
    state_arrays, jax.tree.map(np.asarray, further.incremental.to_arrays(learned_state))
  )
  assert drift == {'bank_rows_before': 38, 'bank_rows_after': 77, 'share_retained': old.sum() / 38}


def test_a_bank_within_few_bytes_is_compacted(detector, variables, embeddings):
  """Eight images pass through a bank of six; what remains is half of what fits."""
  bytes_per_patch = 4 * (192 + 64 + 2)
  small = make(count=8, ratio=0.9, max_bytes=6 * GRID**2 * bytes_per_patch)
  assert detector.incremental.compact is None
  x = np.concatenate([embeddings, embeddings[:2, ::-1]])
  bank = learn(small, variables, [embedded(x[i : i + 1], i) for i in range(8)]).memory_bank
  assert len(bank.patches.embeddings) == 6 * GRID**2 // 2
  away = np.linalg.norm(x.reshape(-1, 1, 192) - np.asarray(bank.patches.embeddings)[None], axis=-1)
  assert 0 < away.min(axis=1).max() <= bank.covering_radius * (1 + 1e-5)


def test_the_summary_states_images_rows_radius_and_folds(detector, state_arrays, embeddings):
  facts = detector.incremental.summarize(state_arrays, iter([embeddings]))
  away = np.linalg.norm(embeddings.reshape(-1, 1, 192) - state_arrays['embeddings'][None], axis=-1)
  radius = pytest.approx(away.min(axis=1).max(), rel=1e-4)
  assert facts == {'images': 6, 'bank_rows': 38, 'covering_radius': radius, 'folds': NUM_FOLDS}


def test_the_approximate_search_is_exact_on_a_cpu_and_its_recall_is_stated(
  left_out, state_arrays, variables, embeddings
):
  approximate, two = make(approx=True), embedded(embeddings[:2])
  assert approximate.incremental.summarize(state_arrays, iter([embeddings]))['approx_recall'] == 1.0
  fitted = fitted_to(variables, state_arrays['embeddings'])
  got, want = jax.jit(approximate.leave_one_out.score)(fitted, two), left_out(fitted, two)
  np.testing.assert_allclose(got.map, want.map, rtol=1e-5)
  np.testing.assert_allclose(got.image, want.image, rtol=1e-5)


# Windows of positions.


@pytest.fixture(scope='module')
def windowed():
  return make(window=1, image_score='max')


def positions_of(fitted):
  return np.asarray(fitted.memory_bank.position)


def assert_rows_are_at_their_positions(fitted, x):
  """Each row is the patch of some image at the position that it names; positions ascend."""
  position = positions_of(fitted)
  assert (np.diff(position) >= 0).all()
  patches = x.reshape(len(x), -1, x.shape[-1])
  for row, place in zip(rows_of(fitted), position, strict=True):
    assert (patches[:, place] == row).all(axis=1).any()


def slow_windowed_map(x, fitted, radius):
  rows, (i, j) = rows_of(fitted).astype(np.float64), np.divmod(positions_of(fitted), GRID)
  distance = np.zeros(x.shape[:2])
  for y, z in np.ndindex(distance.shape):
    away = np.maximum(np.abs(i - y), np.abs(j - z))
    is_near = away <= max(radius, away.min())
    distance[y, z] = np.linalg.norm(rows[is_near] - x[y, z].astype(np.float64), axis=1).min()
  anomaly = slow_resize(distance[..., None], SIZE, SIZE)[..., 0]
  return ndimage.gaussian_filter(anomaly, 4, mode='reflect', truncate=4)


def assert_windowed_scores(got, xs, fitted, radius=1):
  for k, x in enumerate(xs):
    anomaly = slow_windowed_map(x, fitted, radius)
    np.testing.assert_allclose(got.map[k], anomaly, rtol=1e-4)
    assert got.image[k] == pytest.approx(anomaly.max(), rel=1e-4)


def test_patches_are_compared_with_rows_from_their_window(windowed, state, embeddings, variables):
  fitted = windowed.finalize(state)
  assert_rows_are_at_their_positions(fitted, embeddings)
  pixels = images(3, seed=9)
  xs = np.asarray(jax.jit(windowed.leave_one_out.embed)(variables, batch(3, seed=9)))
  got = jax.jit(windowed.score)(fitted, pixels)
  assert_windowed_scores(got, xs, fitted)
  exported = jax.jit(windowed.export_score_fn(fitted))(pixels)
  np.testing.assert_allclose(exported.map, got.map, rtol=1e-4)
  np.testing.assert_allclose(exported.image, got.image, rtol=1e-4)
  everywhere = jax.jit(make(image_score='max').score)(fitted_to(variables, rows_of(fitted)), pixels)
  assert (got.map > everywhere.map * 1.01).any()


def test_a_held_out_image_is_compared_with_its_window_of_the_others(
  windowed, state_arrays, calibration_coresets, variables, embeddings
):
  model = windowed.leave_one_out.leave_fold_out(variables, state_arrays | calibration_coresets, 2)
  assert_rows_are_at_their_positions(model, np.delete(embeddings, 2, axis=0))
  got = jax.jit(windowed.leave_one_out.score)(model, embedded(embeddings[2][None]))
  assert_windowed_scores(got, embeddings[2][None], model)


def test_positions_are_those_of_all_images_after_an_extension(embeddings, variables, state_arrays):
  """And with ids of images beyond 2^31 patches, which wrap around."""
  further = make(count=6, num_previous=6, window=1)
  new = np.flip(embeddings, axis=2) + np.float32(0.5)
  first = 3 * 2**31 // GRID**2 + 5
  learned = learn(further, variables, [embedded(new, first=first)], state_arrays)
  fitted = further.finalize(learned)
  assert (np.asarray(learned.memory_bank.patches.image_id) >= first).any()
  assert_rows_are_at_their_positions(fitted, np.concatenate([embeddings, new]))


def test_a_windowed_bank_on_several_devices_scores_the_same(windowed, state):
  fitted, pixels = windowed.finalize(state), images(8, seed=3)
  single = jax.jit(windowed.score)(fitted, pixels)
  mesh = meshes.make_mesh('cpu', 4, 0)
  options = PatchcoreSettings(ratio=0.1, window=1, image_score='max')
  context = RunContext(SIZE, SIZE, 6, shards=meshes.shards(mesh))
  sharded = patchcore.make(BACKBONE, context, options)
  specs = sharded.sharding_specs
  on_mesh = meshes.put_on_mesh(mesh, specs.pad_to_shards(fitted), specs.fitted)
  got = jax.jit(sharded.score)(on_mesh, meshes.shard_batch(mesh, pixels))
  np.testing.assert_allclose(got.map, single.map, rtol=1e-5)
  np.testing.assert_allclose(got.image, single.image, rtol=1e-5)


def test_an_approximate_search_within_a_window_is_refused():
  with pytest.raises(ConfigError, match=r'Omit detector\.approx') as caught:
    make(window=1, approx=True)
  assert caught.value.key == 'detector.approx'


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'ratio': 0.0}, 'ratio must be above 0 and at most 1, got 0.0'),
    ({'ratio': 1.5}, 'got 1.5'),
    ({'ratio': float('nan')}, 'got nan'),
    ({'max_bytes': 1000}, 'detector.max_bytes=1000 .* at least'),
  ],
)
def test_settings_out_of_range_are_refused(options, message):
  with pytest.raises(ConfigError, match=message):
    make(**vars(configs.replace(PatchcoreSettings(), options)))
