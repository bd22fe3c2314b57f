"""Who names no model gets the demo's, fitted once, and is told what it is."""

import pytest
import small_runs
import yaml

import uadjax
from uadjax import config as configs, detectors
from uadjax.backbones import weights
from uadjax.data import demo
from uadjax.detectors.base import RunContext
from uadjax.errors import ModelError
from uadjax.inference import demo_model
from uadjax.model import model_dir
from uadjax.training import settings

COMMAND = '`uadjax fit DIR`'


@pytest.fixture(scope='module')
def few(tmp_path_factory):
  """A cache with a demo set of few and small pictures."""
  folder = tmp_path_factory.mktemp('cache') / f'demo-{demo.VERSION}'
  few = {'train': 12, 'test_good': 6, 'test_defect': 6, 'size': 96}
  return demo.write_dataset(folder, **few, **small_runs.DISCS).parent


@pytest.fixture
def cache(few, monkeypatch):
  monkeypatch.setenv('UADJAX_CACHE', str(few))
  return few


def answer(name, picture):
  (result,) = uadjax.create_model(name, device='cpu').predict(str(picture))
  return result


@pytest.mark.slow
def test_the_demo_model_predicts_and_is_fitted_once(cache, caplog):
  disc = cache / f'demo-{demo.VERSION}' / demo.DEFAULT_CATEGORY / 'test'
  good = answer('', disc / 'good' / '000.png')
  (place,) = (cache / 'demo-models').iterdir()
  before = (place / 'manifest.json').stat().st_mtime_ns
  assert COMMAND in caplog.text
  assert 'is fitted now' in caplog.text
  caplog.clear()
  assert answer(demo_model.DEFAULT_TITLE.upper(), disc / 'good' / '000.png').score == good.score
  assert answer('', disc / 'missing' / '000.png').score > good.score
  assert (place / 'manifest.json').stat().st_mtime_ns == before
  assert [path.name for path in (cache / 'demo-models').iterdir()] == [place.name]
  assert COMMAND in caplog.text
  assert 'is being fitted' not in caplog.text


def test_a_failed_fit_is_one_error_and_leaves_nothing(monkeypatch, tmp_path):
  monkeypatch.setenv('UADJAX_CACHE', str(tmp_path))
  empty = tmp_path / f'demo-{demo.VERSION}' / demo.DEFAULT_CATEGORY / 'train' / 'good'
  empty.mkdir(parents=True)
  with pytest.raises(ModelError, match=r'(?s)demo model could not be fitted: .*image'):
    uadjax.create_model('PaDiM')
  assert not any((tmp_path / 'demo-models').iterdir())


@pytest.mark.parametrize('title', detectors.TITLES)
def test_every_detector_has_settings(title, monkeypatch, tmp_path):
  monkeypatch.setenv('UADJAX_CACHE', str(tmp_path))
  config = demo_model.demo_config(detectors.find(title))
  assert config['backbone.weights'] == 'embedded'  # This cache is empty.
  path = tmp_path / 'config.yaml'
  path.write_text(yaml.safe_dump(config))
  loaded = settings.load(str(path), [('backbone.name', 'compact')])
  _, detector = model_dir.build_detector(loaded, RunContext(64, 64, 60, learning_rate=0.1))
  assert (detector.leave_one_out is None) == bool(loaded.fit.steps)
  flat = configs.flatten(configs.to_plain_dict(loaded)) | {'backbone.name': 'resnet18'}
  assert flat == {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}


def test_downloaded_weights_are_used(monkeypatch, tmp_path):
  monkeypatch.setenv('UADJAX_CACHE', str(tmp_path))
  place = weights.cache_path('resnet18')
  place.parent.mkdir()
  place.touch()
  assert demo_model.demo_config('padim')['backbone.weights'] == 'imagenet'
