"""PatchCore with the settings of AnomalyDINO computes what a slow, plain program computes."""

import dataclasses
import math

import jax
from jax import numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
import small_runs
from tiny_transformer import random_tensors, TINY, write

from uadjax import create_model, fit_model as fit_from_python
from uadjax.backbones import normalize, resnet, vit, weights
from uadjax.data.records import Record
from uadjax.detectors import base, build
from uadjax.detectors.patchcore import foreground
from uadjax.detectors.settings import PatchcoreSettings
from uadjax.distributed import mesh as meshes
from uadjax.errors import ConfigError, UnknownName, WeightsError
from uadjax.experiment import fit_model
from uadjax.export import exporter
from uadjax.model import model_dir
from uadjax.numerics import resampling
from uadjax.training import image_table, settings, train, workdir as workdirs
from uadjax.types import Batch

SIZE, GRID = (32, 48), (8, 12)
NETWORK = vit.VisionTransformer('tiny', ('tokens',), TINY)
OPTIONS = {
  'layers': ('tokens',), 'ratio': 1.0, 'distance': 'cosine', 'pool': False,
  'image_score': 'top:0.01',
}  # fmt: skip
pytestmark = pytest.mark.usefixtures('one_way_to_measure')


def images(n, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (n, *SIZE, 3), np.uint8)


def objects(n, seed=0):
  """Images of an object before a dark background."""
  pixels = np.full((n, *SIZE, 3), 20, np.uint8)
  pixels[:, 8:24, 12:36] = images(n, seed)[:, 8:24, 12:36]
  return pixels


def batch(pixels):
  return Batch(pixels, np.ones(len(pixels), bool), np.arange(len(pixels), dtype=np.int32))


def make(count=3, devices=1, network=NETWORK, **options):
  shards = meshes.shards(meshes.make_mesh('cpu', devices, 0))
  context = base.RunContext(*SIZE, max_images=count, shards=shards)
  return build(PatchcoreSettings(**{**OPTIONS, **options}), network, context)


@pytest.fixture(scope='module')
def variables():
  """Of a network whose tokens are long, as those of DINOv2 are."""
  variables = jax.jit(NETWORK.init)(jax.random.key(0), jnp.zeros((1, *SIZE, 3)))
  norm = variables['params']['norm']
  return {'params': {**variables['params'], 'norm': {**norm, 'scale': 20 * norm['scale']}}}


@pytest.fixture(scope='module')
def embed(variables):
  apply = jax.jit(NETWORK.apply)
  return lambda pixels: np.asarray(apply(variables, normalize(jnp.asarray(pixels)))['tokens'])


def learn(detector, variables, x):
  """The final State of embeddings, and all arrays of the run."""
  learned = batch(np.zeros((len(x), *SIZE, 3), np.uint8))._replace(features=jnp.asarray(x))
  state, _ = jax.jit(detector.update)(detector.init(jax.random.key(1), variables), learned)
  coresets = detector.leave_one_out.select_coresets(state, {})
  final = detector.incremental.select(state)
  return final, jax.tree.map(np.asarray, {**detector.incremental.to_arrays(final), **coresets})


def unit(x):
  x = np.asarray(x, np.float64)
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def slow_distance(tokens, rows):
  """One minus the largest cosine, patch by patch."""
  return np.array([[1 - max(rows @ token) for token in line] for line in unit(tokens)])


def slow_scores(distance, share=0.01):
  """Upsampled and blurred maps, and the mean of the largest of every second of their pixels."""
  matrices = [np.asarray(resampling.bilinear_matrix(*sizes), np.float64) for sizes in
              zip(SIZE, GRID, strict=True)]  # fmt: skip
  upsampled = matrices[0] @ distance @ matrices[1].T
  anomaly_map = ndimage.gaussian_filter(upsampled, 4, mode='reflect', truncate=4)
  pixels = np.sort(anomaly_map[::2, ::2].ravel())
  return anomaly_map, pixels[-max(1, round(share * len(pixels))) :].mean()


def assert_scores(scores, distances):
  for k, distance in enumerate(distances):
    anomaly_map, image_score = slow_scores(distance)
    np.testing.assert_allclose(scores.map[k], anomaly_map, rtol=1e-4, atol=1e-6)
    assert scores.image[k] == pytest.approx(image_score, rel=1e-3)


@pytest.fixture(scope='module')
def fit(variables, embed):
  """A detector that keeps all tokens of three images, its State and its arrays."""
  detector = make()
  return detector, *learn(detector, variables, embed(images(3)))


def test_the_score_is_one_minus_the_largest_cosine(fit, embed):
  detector, state, _ = fit
  fitted, pixels = detector.finalize(state), images(2, seed=9)
  rows = unit(embed(images(3))).reshape(-1, TINY.width)
  distances = [slow_distance(tokens, rows) for tokens in embed(pixels)]
  assert_scores(jax.jit(detector.score)(fitted, pixels), distances)
  assert_scores(jax.jit(detector.export_score_fn(fitted))(pixels), distances)


def test_learned_images_have_score_zero(fit):
  detector, state, _ = fit
  scores = jax.jit(detector.score)(detector.finalize(state), images(3))
  np.testing.assert_allclose(scores.map, 0, atol=1e-6)


def test_all_tokens_are_kept_in_order_on_any_number_of_devices(fit, variables, embed):
  x = embed(images(3))
  for arrays in (fit[2], learn(make(4, devices=2), variables, np.resize(x, (4, *x.shape[1:])))[1]):
    n = len(arrays['embeddings'])
    np.testing.assert_array_equal(arrays['patch_id'], np.arange(n))
    assert arrays['covering_radius'] == 0
    want = unit(np.resize(x, (4, *x.shape[1:]))).reshape(-1, TINY.width)[:n]
    np.testing.assert_allclose(arrays['embeddings'], want, atol=1e-6)
  assert len(fit[2]['embeddings']) == 3 * math.prod(GRID)


def test_a_coreset_is_a_part_of_the_unit_vectors(variables, embed):
  x, pixels = embed(images(3)), images(1, seed=9)
  detector = make(ratio=0.1)
  state, arrays = learn(detector, variables, x)
  rows = arrays['embeddings']
  assert len(rows) == round(0.1 * 3 * math.prod(GRID))
  cosines = unit(x).reshape(-1, TINY.width) @ unit(rows).T
  np.testing.assert_allclose(cosines.max(axis=0), 1, atol=1e-6)
  # Every token is within the covering radius, a distance of unit vectors.
  assert np.sqrt(2 - 2 * cosines.max(axis=1)).max() <= arrays['covering_radius'] * (1 + 1e-4)
  scores = jax.jit(detector.score)(detector.finalize(state), pixels)
  assert_scores(scores, [slow_distance(embed(pixels)[0], unit(rows))])


@pytest.mark.parametrize('cosine', [True, False])
def test_an_image_is_held_out_of_the_bank(cosine, variables, embed):
  """With all tokens, the bank without a fold has those of the other images, and no others."""
  x = embed(images(3))
  detector = make(distance='cosine' if cosine else 'euclidean')
  _, arrays = learn(detector, variables, x)
  model = detector.leave_one_out.leave_fold_out(variables, arrays, 1)
  held_out = batch(images(3)[1:2])._replace(features=jnp.asarray(x[1:2]))
  scores = jax.jit(detector.leave_one_out.score)(model, held_out)
  rows = x[[0, 2]].reshape(-1, TINY.width)
  distance = (
    slow_distance(x[1], unit(rows))
    if cosine
    else np.linalg.norm(x[1][:, :, None] - rows[None, None], axis=-1).min(axis=-1)
  )
  assert_scores(scores, [distance])


def test_layers_apart_have_unit_vectors_each(variables, embed):
  """The map is the mean of their cosine distances."""
  network = dataclasses.replace(NETWORK, stages=('block1', 'block2'))
  c = TINY.width
  x, pixels = np.random.default_rng(5).normal(size=(2, *GRID, 2 * c)).astype(np.float32), images(1)
  detector = make(2, network=network, layers=network.stages, layers_apart=True)
  state, _ = learn(detector, variables, x)
  scored = batch(pixels)._replace(features=jnp.asarray(x[:1] + 1))
  model = detector.finalize(state)
  scores = jax.jit(detector.leave_one_out.score)(model, scored)
  distances = [
    slow_distance(x[0, ..., part] + 1, unit(x[..., part]).reshape(-1, c))
    for part in (slice(c), slice(c, None))
  ]
  assert_scores(scores, [np.mean(distances, axis=0)])


@pytest.mark.parametrize('distance', ['cosine', 'euclidean'])
def test_a_token_of_zeros_has_a_finite_distance(distance, variables, embed):
  x = embed(images(3)).copy()
  x[0, 0, 0] = 0
  detector = make(distance=distance)
  state, _ = learn(detector, variables, x)
  held_out = batch(images(3))._replace(features=jnp.asarray(x))
  scores = jax.jit(detector.leave_one_out.score)(detector.finalize(state), held_out)
  np.testing.assert_allclose(scores.map, 0, atol=1e-3)


def test_features_are_averaged_unless_the_setting_forbids_it(variables, embed):
  pixels = images(2)
  for pool, want in ((False, embed(pixels)), (True, ndimage.uniform_filter(
    embed(pixels), (0, 3, 3, 0), mode='constant'
  ))):  # fmt: skip
    extract = jax.jit(make(pool=pool).leave_one_out.embed)
    np.testing.assert_allclose(extract(variables, batch(pixels)), want, rtol=1e-3, atol=1e-4)


# The foreground.


def slow_foreground(tokens):
  """The authors' program, with an exact decomposition."""
  h, w, d = tokens.shape
  flat = tokens.reshape(-1, d).astype(np.float64)
  centered = flat - flat.mean(axis=0)
  component = np.linalg.svd(centered, full_matrices=False)[2][0]
  component *= np.sign(component[np.abs(component).argmax()])
  projection = (centered @ component).reshape(h, w)
  mask = projection > 10
  center = mask[int(0.2 * h) : int(0.8 * h), int(0.2 * w) : int(0.8 * w)]
  if center.sum() <= 0.35 * center.size:
    mask = -projection > 10
  square = np.ones((3, 3), bool)
  mask = ndimage.binary_dilation(mask, square)
  mask = ndimage.binary_erosion(ndimage.binary_dilation(mask, square), square, border_value=1)
  return mask if mask.any() else np.ones_like(mask)


def scenes():
  """Tokens of images with an object in the middle, in the corner, of two parts, or nowhere."""
  random = np.random.default_rng(0)
  for kind, size in (('middle', 6), ('corner', 5), ('parts', 7), ('nowhere', 0)):
    for length in (30, 30, 14, 13):
      x = random.normal(size=(16, 14, 6))
      direction = random.normal(size=6)
      direction *= length / np.linalg.norm(direction)
      top, left = (0, 0) if kind == 'corner' else (5, 4)
      x[top : top + size, left : left + size] += direction
      if kind == 'parts':
        x[7:9, 6:8] -= 2 * direction
      yield x.astype(np.float32)


@pytest.fixture(scope='module')
def tokens():
  return np.stack([*scenes()])


def test_the_foreground_is_that_of_the_authors_program(tokens):
  masks = np.asarray(jax.jit(foreground.find)(tokens))
  shares = masks.mean(axis=(1, 2))
  assert (shares[-4:] == 1).all()  # Without an object, nothing is masked.
  assert ((shares > 0.1) & (shares < 0.9)).sum() >= 6
  np.testing.assert_array_equal(masks, [slow_foreground(x) for x in tokens])


def test_equal_tokens_are_foreground():
  assert np.asarray(foreground.find(jnp.ones((1, 3, 4, 5)))).all()


def test_bounds_hold_for_rounded_tokens(tokens):
  low, high = (np.asarray(x) for x in jax.jit(lambda x: foreground.bounds(x, 0.1))(tokens))
  assert (low <= high).all()
  assert (low < high).any()
  random = np.random.default_rng(1)
  for _ in range(5):
    rounded = tokens + random.normal(scale=0.2, size=tokens.shape).astype(np.float32)
    mask = np.asarray(jax.jit(foreground.find)(rounded))
    assert (low <= mask).all()
    assert (mask <= high).all()


def test_patches_of_the_background_have_score_zero(fit, variables, embed):
  _, state, _ = fit
  detector, pixels = make(foreground=True), objects(2, seed=9)
  fitted = detector.finalize(state)
  rows = unit(embed(images(3))).reshape(-1, TINY.width)
  masks = [slow_foreground(tokens) for tokens in embed(pixels)]
  assert all(0 < mask.mean() < 1 for mask in masks)
  distances = [slow_distance(x, rows) * mask for x, mask in zip(embed(pixels), masks, strict=True)]
  scores = jax.jit(detector.score)(fitted, pixels)
  assert_scores(scores, distances)
  assert_scores(jax.jit(detector.export_score_fn(fitted))(pixels), distances)
  bounds = jax.jit(lambda x: detector.score_bounds(fitted, x, 1e-3))(pixels)
  assert (bounds[0].image <= scores.image * (1 + 1e-6)).all()
  assert (scores.map <= bounds[1].map * (1 + 1e-5) + 1e-9).all()


def test_the_foreground_of_a_held_out_image_is_that_of_its_tokens(variables, embed):
  """It is not learned, and unit vectors do not have it."""
  pixels = objects(3)
  detector, x = make(foreground=True), embed(pixels)
  assert detector.leave_one_out.learned_embeddings is None
  _, arrays = learn(detector, variables, x)
  model = detector.leave_one_out.leave_fold_out(variables, arrays, 2)
  held_out = batch(pixels[2:])._replace(features=jnp.asarray(x[2:]))
  scores = jax.jit(detector.leave_one_out.score)(model, held_out)
  distance = slow_distance(x[2], unit(x[:2]).reshape(-1, TINY.width)) * slow_foreground(x[2])
  assert_scores(scores, [distance])


def test_the_foreground_needs_tokens_of_whole_images():
  network = resnet.ResNet('resnet18', ('layer2',), (2, 2, 2, 2))
  with pytest.raises(ConfigError, match=r'needs the tokens of a vision transformer') as caught:
    make(network=network, layers=('layer2',), foreground=True)
  assert caught.value.key == 'detector.foreground'
  tiled = {'detector.foreground': True, 'data.ops': 'tile(448, 28)'}
  with pytest.raises(ConfigError, match=r'finds the object in an image, .* into tiles') as caught:
    train.validate(settings.load('anomalydino', tiled.items()))
  assert (caught.value.key, caught.value.allowed) == ('detector.foreground', False)


# Settings.


def test_the_config_has_the_settings_of_the_paper():
  config = settings.load('anomalydino')
  assert {key: getattr(config.detector, key) for key in OPTIONS} == OPTIONS
  assert (config.detector.name, config.backbone.name) == ('patchcore', 'dinov2_vits14')
  assert config.data.ops == 'resize(448)'
  assert not config.detector.foreground
  assert settings.load('anomalydino:rotated').fit.augment == 'rotate(8)'
  with pytest.raises(UnknownName, match='Unknown variant'):
    settings.load('anomalydino:ten')


def test_a_model_is_fitted_by_the_name_of_its_config():
  assert fit_model._config_name('AnomalyDINO:rotated') == 'anomalydino:rotated'
  with pytest.raises(UnknownName, match=r"'PatchCore'.*'anomalydino'"):
    fit_model._config_name('dino')
  config = settings.load('anomalydino', {'data.root': '/data/bolts'}.items())
  for source, name in {
    'anomalydino:rotated': 'anomalydino_rotated_bolts',
    'configs/anomalydino.py': 'anomalydino_bolts',
    'somewhere/config.yaml': 'patchcore_bolts',
  }.items():
    assert workdirs.default_workdir(config, source).name == name


def test_without_weights_no_other_features_replace_them(drawn, tmp_path, monkeypatch):
  monkeypatch.setattr(weights, 'META', 'http://127.0.0.1:9')
  monkeypatch.setenv('UADJAX_CACHE', str(tmp_path))
  with pytest.raises(WeightsError, match=r'dinov2_vits14_pretrain\.pth'):
    fit_from_python(drawn / 'disc', 'anomalydino', tmp_path / 'run')
  assert not (tmp_path / 'run' / 'model').exists()


# Few images.


@pytest.mark.parametrize('num_folds', [1, 5])
@pytest.mark.parametrize('num_images', [1, 2, 3])
def test_copies_of_an_image_are_in_the_fold_of_the_image(num_folds, num_images):
  """So that no turned copy is evidence for the score of its image, nor the other way round."""
  groups, num_tiles = np.arange(num_images), np.full(num_images, 8)
  tile_ids = image_table.assign_tile_ids(groups, num_tiles, num_folds, np.zeros(0, np.int32))
  folds = (tile_ids % num_folds).reshape(num_images, 8)
  assert (folds == folds[:, :1]).all()
  assert len(set(folds[:, 0].tolist())) == min(num_images, num_folds)
  records = [Record(f'{i}.png') for i in range(num_images)]
  scored = image_table.choose_scored(records, folds[:, 0], groups, num_folds, 500)
  assert scored.tolist() == [*range(num_images)]


FAST = ('--config.mesh.data=1', small_runs.NO_EVALUATION)


def few(folder, drawn, start, stop):
  paths = sorted((drawn / 'disc' / 'train' / 'good').iterdir())
  return small_runs.write_part(folder / f'{start}-{stop}', paths[start:stop])


def flags(name, root, tmp_path):
  if name != 'anomalydino':
    return *small_runs.flags(name, root), *FAST
  path = tmp_path / 'weights.safetensors'
  if not path.exists():
    write(tmp_path, random_tensors(TINY))
  return (
    f'--config={small_runs.CONFIGS / "anomalydino.py"}:rotated', *FAST,
    f'--config.data.root={root}', '--config.data.category=disc',
    '--config.data.ops=resize(32, 48)', '--config.backbone.name=vit',
    f'--config.backbone.weights={path}', '--config.backbone.architecture=heads=2',
  )  # fmt: skip


def run(name, root, tmp_path, workdir, *more):
  assert small_runs.run(*flags(name, root, tmp_path), f'--workdir={workdir}', *more) == 0
  return small_runs.manifest(workdir)['thresholds']


@pytest.mark.slow
@pytest.mark.parametrize('name', ['anomalydino', 'padim', 'patchcore'])
def test_a_model_of_a_single_image_sends_every_image_to_review(name, drawn, tmp_path):
  workdir = tmp_path / 'run'
  thresholds = run(name, few(tmp_path, drawn, 0, 1), tmp_path, workdir)
  assert (thresholds['method'], thresholds['num_normals']) == ('uncalibrated', 0)
  assert thresholds['expected_false_alarm_rate'] is None
  log = (workdir / 'train.log').read_text()
  assert 'every image is for review' in log
  assert 'at least 2 distinct good images' in log
  assert '1 good training image; STFPM needs 3' in log
  model = create_model(model_dir=workdir / 'model', device='cpu:0')
  paths = [str(path) for path in sorted((drawn / 'disc').rglob('*.png'))[:6]]
  for result in model.predict(paths):
    assert (result.label, result['regions'] != []) == ('review', True)
    assert 'no_thresholds' in result.warning_codes
    assert math.isfinite(result.score)
  # A second image, later, gives both their thresholds, and the model its verdicts.
  more = few(tmp_path, drawn, 1, 2), tmp_path, tmp_path / 'extended'
  thresholds = run(name, *more, f'--config.fit.extend={workdir / "model"}')
  assert (thresholds['method'], thresholds['num_normals']) == ('normals', 2)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['anomalydino', 'padim', 'patchcore'])
@pytest.mark.parametrize('count', [2, 4, 8])
def test_each_of_few_images_is_scored_by_the_model_of_the_others(name, count, drawn, tmp_path):
  workdir = tmp_path / 'run'
  whole = '--config.detector.ratio=1' if name == 'patchcore' else '--config.seed=3'
  root = few(tmp_path, drawn, 0, count)
  thresholds = run(name, root, tmp_path, workdir, whole)
  assert (thresholds['method'], thresholds['num_normals']) == ('normals', count)
  text = (workdir / 'train.log').read_text()
  assert (f'No rate can be promised from {count} images: review all above' in text) == (count < 5)
  assert 'at least 99 images' in text
  scores = model_dir.load_calibration_scores(workdir / 'model')
  assert len(scores.scores) == count
  if count > 5:
    return  # PatchCore holds out folds of two images.
  rest = few(tmp_path, drawn, 1, count)
  run(name, rest, tmp_path, tmp_path / 'rest', whole)
  model = create_model(model_dir=tmp_path / 'rest' / 'model', device='cpu:0')
  (result,) = model.predict(scores.paths[0])
  assert result.score == pytest.approx(scores.scores[0], rel=0.01)


@pytest.mark.slow
def test_a_model_with_a_foreground_is_exported(drawn, tmp_path):
  workdir = tmp_path / 'run'
  tensors = random_tensors(TINY)
  tensors['norm.weight'] *= 20
  write(tmp_path, tensors)
  more = '--config.detector.foreground=true', '--config.fit.augment='
  run('anomalydino', drawn, tmp_path, workdir, *more)
  model = model_dir.load(workdir / 'model')
  # It compares scores, maps and labels, on images that were not learned: the scores of those are 0
  # up to rounding, as the bank has all of their tokens.
  folder = drawn / 'disc' / 'test' / 'spot'
  exporter.export(model, output=tmp_path / 'model.onnx', image_folder=folder)
  assert (tmp_path / 'model.onnx').is_file()
