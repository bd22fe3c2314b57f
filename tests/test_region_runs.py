"""A model contains its region of interest: its folder, its scores, its metrics, its graphs."""

import json
from pathlib import Path
import shutil

import jax
import numpy as np
from PIL import Image
import pytest
import small_runs

import uadjax
from uadjax.data import image_io
from uadjax.detectors import image_score
from uadjax.errors import ConfigError, DataError, ModelError
from uadjax.export import cached_graph, exporter, runtimes
from uadjax.inference import pipelines
from uadjax.model import model_dir
from uadjax.numerics import regions

SIDE = small_runs.SIDE
MASK = np.zeros((SIDE, SIDE), bool)
MASK[5:38, 8:50] = True  # Without one of the defects.
ANY_NAME = pytest.mark.parametrize('name', small_runs.ANY_NAME)


@pytest.fixture(scope='session')
def masks(once):
  """Regions in files, one of which is white and one for each category."""

  def write(place: Path) -> None:
    Image.fromarray(MASK).save(place / 'disc.png')
    Image.fromarray(np.ones_like(MASK)).save(place / 'white.png')
    Image.fromarray(np.zeros_like(MASK)).save(place / 'black.png')
    Image.fromarray(MASK[:, :-20]).save(place / 'narrow.png')

  return once('masks', write)


@pytest.fixture(scope='session')
def inspecting(trained, masks):
  """Work directory of a small run that inspects the region of its category."""
  return lambda name: trained(name, f'--config.data.roi={masks}/{{category}}.png')


@pytest.fixture
def copied(inspecting, tmp_path):
  """A copy of a model with a region, to be damaged."""
  return shutil.copytree(inspecting('padim') / 'model', tmp_path / 'model')


def opened(workdir):
  return pipelines.create_model(model_dir=workdir / 'model', device='cpu:0', backend='jax')


@ANY_NAME
def test_nothing_outside_of_the_region_is_scored_or_marked(inspecting, drawn, name):
  model = opened(inspecting(name))
  np.testing.assert_array_equal(model.model.ops.region.mask, MASK)
  results = list(model.predict(drawn / 'disc' / 'test'))
  assert results
  for result in results:
    np.testing.assert_array_equal(result.visible, MASK)
    assert (result.anomaly_map[~MASK] == 0).all()
    assert result.anomaly_map[MASK].max() > 0
    assert not result.predicted_mask[~MASK].any()
    assert not result.region_mask[~MASK].any()
    assert MASK[result.at[::-1]]


@ANY_NAME
def test_metrics_count_visible_pixels_and_outside_defects_are_reported(inspecting, drawn, name):
  workdir, num_outside, total, pixels = inspecting(name), 0, 0, 0
  masks = [*(drawn / 'disc' / 'ground_truth').rglob('*.png')]
  for path in masks:
    truth = image_io.read_mask(path)
    labels, sizes = regions.label_regions(truth)
    total += len(sizes)
    num_outside += sum(not MASK[labels == i].any() for i in range(1, len(sizes) + 1))
    pixels += int((truth & ~MASK).sum())
  result = small_runs.result(workdir)
  counts = result['metrics']['counts']
  num_images = counts['good'] + counts['defective']
  assert counts['unseen_pixels'] == num_images * int((~MASK).sum())
  assert counts['unseen_defect_pixels'] == pixels
  assert (counts['defects'], counts['unseen_defects']) == (total, num_outside)
  assert 0 < num_outside < total, 'the region must be such'
  (warning,) = [w for w in result['warnings'] if w['code'] == 'defects_outside_region']
  text = f'{num_outside} of {total} labeled defects lie outside of the region of interest'
  assert text in warning['message']
  assert text in (workdir / 'train.log').read_text()
  assert text in (workdir / 'report.html').read_text()


@ANY_NAME
def test_a_white_region_changes_no_bit(trained, masks, name):
  plain, white = trained(name), trained(name, f'--config.data.roi={masks}/white.png')
  files = [(workdir / 'model' / 'fitted.safetensors').read_bytes() for workdir in (plain, white)]
  assert files[0] == files[1]
  assert small_runs.manifest(plain)['thresholds'] == small_runs.manifest(white)['thresholds']
  assert small_runs.table(plain / 'scores.csv') == small_runs.table(white / 'scores.csv')
  assert not (white / 'model' / 'region.png').exists()


def test_the_model_has_the_region_and_its_hash(inspecting, copied):
  workdir = inspecting('padim')
  np.testing.assert_array_equal(np.asarray(Image.open(copied / 'region.png')), MASK)
  sha256 = model_dir.read_info(copied).ops.region.sha256
  assert small_runs.manifest(workdir)['region_sha256'] == sha256


@pytest.mark.parametrize('damage', ['other', 'missing', 'no image', 'without hash'])
def test_a_damaged_region_is_refused(copied, masks, damage):
  path, manifest = copied / 'region.png', json.loads((copied / 'manifest.json').read_text())
  if damage == 'other':
    shutil.copy(masks / 'white.png', path)
  elif damage == 'missing':
    path.unlink()
  elif damage == 'no image':
    path.write_bytes(b'?')
  else:
    del manifest['region_sha256']
    (copied / 'manifest.json').write_text(json.dumps(manifest))
  with pytest.raises(ModelError) as caught:
    model_dir.read_info(copied)
  assert str(copied) in str(caught.value)


@ANY_NAME
def test_a_graph_contains_the_region(inspecting, drawn, tmp_path, name):
  model = model_dir.load(inspecting(name) / 'model')
  images = [image_io.decode(path) for path in sorted((drawn / 'disc' / 'test').rglob('*.png'))[:4]]
  network_images = np.stack([model.ops.apply(image) for image in images])
  expected = jax.device_get(model.score(model.fitted, network_images))
  inspected = model.ops.network_region()
  assert inspected is not None
  path = tmp_path / 'model.onnx'
  metadata = exporter.export(model, output=path).metadata
  assert metadata['region_sha256'] == model.ops.region.sha256
  scores = runtimes.open_graph(path, 'onnxruntime').run(network_images)
  np.testing.assert_allclose(scores.map, expected.map, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(scores.image, expected.image, rtol=1e-4)
  assert (np.asarray(scores.map)[:, ~inspected] == 0).all()
  # With the resizing in the graph, it gives maps of the size of the camera.
  camera = tmp_path / 'camera.onnx'
  exporter.export(model, output=camera, camera_size=(SIDE, SIDE))
  restored = np.asarray(runtimes.open_graph(camera, 'onnxruntime').run(np.stack(images)).map)
  for anomaly_map, original in zip(restored, expected.map, strict=True):
    want = model.ops.restore(original, SIDE, SIDE).anomaly_map
    np.testing.assert_allclose(anomaly_map, want, rtol=1e-4, atol=1e-6)
  with pytest.raises(DataError):
    exporter.export(model, output=camera, camera_size=(SIDE, 2 * SIDE))


def test_a_graph_of_another_region_is_not_used(inspecting, copied):
  info = model_dir.read_info(copied)
  path = cached_graph.cache_path(info)
  other = info._replace(ops=info.ops._replace(region=None))
  assert cached_graph.cache_path(other) != path
  assert cached_graph.cache_path(model_dir.read_info(inspecting('padim') / 'model')) == path


def test_an_image_of_another_aspect_gets_an_error_and_the_others_go_on(inspecting, drawn):
  model = opened(inspecting('padim'))
  wide = np.zeros((SIDE, 2 * SIDE, 3), np.uint8)
  good = image_io.decode(drawn / 'disc' / 'test' / 'good' / '000.png')
  large = np.repeat(np.repeat(good, 2, 0), 2, 1)
  results = list(model.predict([wide, good, large]))
  assert [bool(result.error) for result in results] == [True, False, False]
  np.testing.assert_array_equal(results[2].visible, MASK.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize(
  ('roi', 'error', 'key'),
  [
    ('black.png', DataError, 'data.roi'),
    ('nowhere.png', DataError, 'data.roi'),
    ('narrow.png', DataError, None),
    ('disc.png', ConfigError, 'data.roi'),
  ],
)
def test_a_region_that_cannot_be_used_is_refused(drawn, masks, tmp_path, roi, error, key):
  ops = 'tile(32, 8)' if error is ConfigError else 'resize(32, 48)'
  overrides = {'data.roi': str(masks / roi), 'data.category': 'disc', 'data.ops': ops}
  with pytest.raises(error) as caught:
    uadjax.fit_model(drawn, 'padim', tmp_path / 'run', overrides=overrides)
  assert caught.value.key == key
  assert not (tmp_path / 'run').exists()


def test_an_extended_model_keeps_its_region(inspecting, drawn, masks, tmp_path):
  directory = inspecting('padim') / 'model'
  images = drawn / 'disc' / 'train' / 'good'
  overrides = {'mesh.data': 1, 'fit.batch_size': 4}
  model = uadjax.fit_model(images, workdir=tmp_path / 'run', extend=directory, overrides=overrides)
  np.testing.assert_array_equal(model.model.ops.region.mask, MASK)
  with pytest.raises(ConfigError) as caught:
    uadjax.fit_model(
      images, workdir=tmp_path / 'other', extend=directory,
      overrides={**overrides, 'data.roi': str(masks / 'white.png')},
    )  # fmt: skip
  assert caught.value.key == 'data.roi'


def test_an_evaluation_uses_the_region_of_the_model(inspecting, drawn, tmp_path):
  """Even if the file that the run read is gone."""
  directory = shutil.copytree(inspecting('padim') / 'model', tmp_path / 'model')
  flags = small_runs.flags('padim', drawn)
  where = f'--config.evaluate.model_dir={directory}', '--config.data.roi=gone.png'
  assert small_runs.run(*flags, '--config.mode=evaluate', f'--workdir={tmp_path}/run', *where) == 0
  result = small_runs.result(tmp_path / 'run', 'evaluate')
  expected = small_runs.result(inspecting('padim'))
  assert result['metrics']['counts'] == expected['metrics']['counts']
  assert result['metrics']['pixel_auroc'] == pytest.approx(expected['metrics']['pixel_auroc'])


@pytest.fixture(scope='session')
def tiled(trained, masks):
  """Work directory of a small run of PatchCore that inspects the region, in tiles."""
  flags = f'--config.data.roi={masks}/disc.png', '--config.data.ops=tile(32, 8)'
  return trained('patchcore', *flags)


def test_each_tile_takes_its_part_of_the_region(tiled, drawn):
  model = opened(tiled)
  rule = model.model.config.detector.image_score
  paths = sorted((drawn / 'disc' / 'test').rglob('*.png'))[:4]
  images = [image_io.decode(path) for path in paths]
  noise = np.random.default_rng(0).integers(0, 256, images[0].shape, np.uint8)
  changed = [np.where(MASK[..., None], image, noise) for image in images]
  results = [list(model.predict(x)) for x in (images, changed)]
  for plain, other in zip(*results, strict=True):
    np.testing.assert_array_equal(plain.visible, MASK)
    assert (plain.network_map[~MASK] == 0).all()
    assert plain.network_map[MASK].max() > 0
    assert plain.score == image_score.of_map(plain.network_map, rule, MASK)
    # A defect that lies outside changes nothing.
    assert (plain.score, plain.label) == (other.score, other.label)
    np.testing.assert_array_equal(plain.network_map, other.network_map)


def test_thresholds_of_tiles_are_those_of_the_region(tiled, drawn):
  """The bank has images of the region only, so that its margin does not raise the thresholds."""
  result = small_runs.result(tiled)
  counts = result['metrics']['counts']
  assert counts['unseen_pixels'] == 9 * int((~MASK).sum())
  assert result['metrics']['pixel_auroc'] > 0.8
  scores = [float(row['score']) for row in small_runs.table(tiled / 'model' / 'calibration.csv')]
  assert min(scores) > 0


def test_a_graph_of_tiles_scores_as_the_model(tiled, drawn):
  image = sorted((drawn / 'disc' / 'test').rglob('*.png'))[0]
  results = []
  for backend in ('jax', 'onnxruntime'):
    directory = tiled / 'model'
    model = pipelines.create_model(model_dir=directory, device='cpu:0', backend=backend)
    results += model.predict(image)
  np.testing.assert_allclose(*(r.network_map for r in results), rtol=1e-4, atol=1e-6)
  assert results[0].score == pytest.approx(results[1].score, rel=1e-4)
