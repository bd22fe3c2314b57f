import hashlib
import json
import pathlib

import jax
from jax import numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from uadjax import config as configs
from uadjax.backbones import weights
from uadjax.data.image_statistics import ImageStatistics, StatisticsRange
from uadjax.detectors.base import RunContext
from uadjax.errors import ModelError
from uadjax.model import array_file, calibration, model_dir
from uadjax.system import files
from uadjax.training import settings

NORMALS = calibration.CalibrationScores(
  ('a.png', ''), np.array([0.25, 0.5]), np.array([0.125, 0.25])
)
LIMITS = calibration.from_normals(NORMALS.scores, NORMALS.peaks, 0.01)
WEIGHTS = weights.Provenance('resnet18', 'random', '')
STATISTICS = StatisticsRange(
  ImageStatistics(50.0, 20.0, 0.25, 0.0, 400, 600), ImageStatistics(70.5, 30.0, 0.5, 0.0, 400, 700)
)


@pytest.fixture(scope='module')
def config():
  file = pathlib.Path(__file__).resolve().parent.parent / 'configs' / 'stfpm.py'
  return settings.load(str(file), [('detector.layers', 'layer1'), ('data.ops', 'resize(32)')])


@pytest.fixture(scope='module')
def fitted(config):
  backbone, detector = model_dir.build_detector(config, RunContext(32, 32))
  variables = backbone.init(jax.random.key(1), jnp.zeros((1, 32, 32, 3)))
  return detector.finalize(detector.init(jax.random.key(2), variables))


@pytest.fixture
def directory(tmp_path, config, fitted):
  model_dir.save(tmp_path / 'model', config, fitted, LIMITS, NORMALS, STATISTICS, WEIGHTS)
  return tmp_path / 'model'


def test_a_loaded_model_equals_the_saved_one(directory, config, fitted):
  model = model_dir.load(directory)
  assert model.name == 'STFPM'
  assert model.thresholds == LIMITS
  assert model.image_statistics == STATISTICS
  assert model.weights == WEIGHTS
  for name in ('data', 'backbone', 'detector'):
    assert getattr(model.config, name) == getattr(config, name)
  assert model_dir.read_settings(directory) == configs.to_plain_dict(config)
  assert jax.tree.structure(model.fitted) == jax.tree.structure(fitted)
  jax.tree.map(np.testing.assert_array_equal, model.fitted, fitted)


def test_a_loaded_model_scores_as_the_fitted_one(directory, config, fitted):
  _, detector = model_dir.build_detector(config, RunContext(32, 32))
  model = model_dir.load(directory)
  images = jax.random.randint(jax.random.key(3), (2, 32, 32, 3), 0, 256).astype(jnp.uint8)
  before, after = jax.jit(detector.score)(fitted, images), model.score(model.fitted, images)
  np.testing.assert_array_equal(before.map, after.map)


def _read(directory):
  return safetensors.numpy.load_file(directory / 'fitted.safetensors')


def test_the_file_is_one_of_safetensors(tmp_path):
  tree = {
    'floats': {'map': jnp.arange(600.0).reshape(2, 3, 100), 'number': jnp.float32(7)},
    'bytes': jnp.arange(5, dtype=jnp.uint8),
    'bits': jnp.array([True, False, True]),
    'none': jnp.zeros((0, 4)),
    'integers': np.arange(12, dtype=np.int32).reshape(3, 4).T,  # Not in the order of memory.
  }
  digest = array_file.save_arrays(tmp_path, tree)
  assert digest == hashlib.sha256((tmp_path / 'fitted.safetensors').read_bytes()).hexdigest()
  floats = tree.pop('floats')
  want = {**tree, 'floats/map': floats['map'], 'floats/number': floats['number']}
  got = _read(tmp_path)
  assert got.keys() == want.keys()
  for name, array in want.items():
    assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(got[name], array)


def test_a_file_that_safetensors_wrote_is_read(directory, fitted):
  path = directory / 'fitted.safetensors'
  safetensors.numpy.save_file(_read(directory), path, metadata={'by': 'the library'})
  _change_manifest(directory, arrays_sha256=hashlib.sha256(path.read_bytes()).hexdigest())
  jax.tree.map(np.testing.assert_array_equal, model_dir.load(directory).fitted, fitted)


@pytest.mark.parametrize('piece', [100, 1 << 20])
def test_arrays_stay_in_the_memory_that_they_were_read_into(directory, fitted, monkeypatch, piece):
  """Those of the sizes that big ones have; a copy of gigabytes would double the peak."""
  monkeypatch.setattr(array_file, '_CHUNK_BYTES', piece)
  loaded = jax.tree.leaves(model_dir.load(directory).fitted)
  content = (directory / 'fitted.safetensors').read_bytes()
  starts = {
    leaf.unsafe_buffer_pointer() - content.index(np.asarray(leaf).tobytes())
    for leaf in loaded
    if leaf.nbytes > 16384  # No two of them are equal.
  }
  assert len(starts) == 1
  jax.tree.map(np.testing.assert_array_equal, loaded, jax.tree.leaves(fitted))


def test_an_opened_model_does_not_need_its_files_any_more(directory, fitted):
  model, path = model_dir.load(directory), directory / 'fitted.safetensors'
  path.write_bytes(bytes(path.stat().st_size))
  jax.tree.map(np.testing.assert_array_equal, model.fitted, fitted)


def test_there_is_no_pickle_in_it(directory):
  names = sorted(path.name for path in directory.iterdir())
  assert names == ['calibration.csv', 'fitted.safetensors', 'manifest.json']


def test_the_scores_that_thresholds_stand_on_are_kept(directory, tmp_path):
  scores = model_dir.load_calibration_scores(directory)
  assert scores.paths == NORMALS.paths
  np.testing.assert_array_equal(scores.scores, NORMALS.scores)
  np.testing.assert_array_equal(scores.peaks, NORMALS.peaks)
  assert model_dir.load_calibration_scores(tmp_path) is None


def test_an_old_model_is_replaced_whole(directory, config, fitted):
  model_dir.save(
    directory, config, fitted, LIMITS._replace(image_threshold=0.75), NORMALS, STATISTICS, WEIGHTS
  )
  assert model_dir.load(directory).thresholds.image_threshold == 0.75
  assert [p.name for p in directory.parent.iterdir()] == ['model']


def test_a_failed_save_leaves_the_old_model(directory, config, fitted, monkeypatch):
  def full(*args, **kwargs):
    raise OSError('No space left on device')

  monkeypatch.setattr(files, 'write_json', full)
  with pytest.raises(OSError, match='No space'):
    model_dir.save(
      directory, config, fitted, LIMITS._replace(image_threshold=0.75), NORMALS, STATISTICS, WEIGHTS
    )
  monkeypatch.undo()
  assert model_dir.load(directory).thresholds == LIMITS
  assert [p.name for p in directory.parent.iterdir()] == ['model']


@pytest.mark.parametrize('error', [OSError, KeyboardInterrupt])
def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(tmp_path, monkeypatch, error):
  place, rename = tmp_path / 'deep' / 'place', pathlib.Path.replace
  with files.atomic_directory(place) as fresh:
    (fresh / 'old').touch()

  def refuse(path, target):
    if path == fresh:
      raise error
    return rename(path, target)

  monkeypatch.setattr(pathlib.Path, 'replace', refuse)
  with pytest.raises(error), files.atomic_directory(place) as fresh:
    (fresh / 'new').touch()
  assert [path.name for path in place.iterdir()] == ['old']
  assert [path.name for path in place.parent.iterdir()] == ['place']


def _change_manifest(directory, **fields):
  path = directory / 'manifest.json'
  manifest = json.loads(path.read_text())
  path.write_text(json.dumps({k: v for k, v in (manifest | fields).items() if v is not None}))


@pytest.mark.parametrize(
  ('harm', 'words'),
  [
    (lambda d: (d / 'manifest.json').unlink(), 'is not a model directory'),
    (lambda d: (d / 'manifest.json').write_text('{'), 'cannot be read.*restore the file'),
    (lambda d: (d / 'manifest.json').write_text('[]'), 'cannot be read.*restore the file'),
    (lambda d: _change_manifest(d, format=99), 'format 99'),
    (lambda d: _change_manifest(d, thresholds=None), "lacks 'thresholds'"),
    (lambda d: _change_manifest(d, image_statistics={}), "lacks 'image_statistics.brightness'"),
    (lambda d: (d / 'fitted.safetensors').unlink(), 'cannot be read'),
    (lambda d: (d / 'fitted.safetensors').write_bytes(b'harm'), 'is damaged'),
  ],
)
def test_a_harmed_model_gets_one_clear_error(directory, harm, words):
  harm(directory)
  with pytest.raises(ModelError, match=words):
    model_dir.load(directory)


def test_a_model_of_another_format_is_refused_with_a_way_to_fit_again(directory, config, fitted):
  model_dir.save(directory, config, fitted, LIMITS, NORMALS, STATISTICS, WEIGHTS)
  path = directory / 'manifest.json'
  path.write_text(json.dumps({**json.loads(path.read_text()), 'format': 6}))
  with pytest.raises(ModelError, match=r'format 6.* reads format 7 only.*uadjax fit DATASET'):
    model_dir.load(directory)


def test_a_model_that_is_older_than_a_setting_has_its_default(directory, config):
  manifest = json.loads((directory / 'manifest.json').read_text())
  assert config.detector.opening == 0
  del manifest['config']['detector']['opening'], manifest['config']['data']['range']
  digest = model_dir.hash_settings(manifest['config'])
  _change_manifest(directory, config=manifest['config'], config_sha256=digest)
  assert model_dir.read_info(directory).config.detector == config.detector
