"""Every setting is checked before images are read, weights are fetched or anything is written."""

import dataclasses
import itertools

import pytest
import small_runs

from uadjax import config as configs, errors
from uadjax.backbones.weights import download
from uadjax.data import image_io
from uadjax.experiment import validation
from uadjax.training import settings

# Settings without choices or bounds: a mode that reads them, an invalid value, and other settings
# without which they would be ignored.
WRONG_TEXTS = {
  'device': ('train', 'gpuu', {}),
  'data.root': ('train', '/nowhere', {}),
  'data.category': ('train', 'dics', {}),
  'data.ops': ('train', 'rezise(32)', {}),
  'data.mask': ('train', 'above', {}),
  'data.range': ('train', '9,1', {}),
  'data.roi': ('train', '/nowhere.png', {}),
  'backbone.weights': ('train', '/no/file.pth', {}),
  'backbone.architecture': ('train', 'heads=x', {}),
  'detector.name': ('train', 'patchcoer', {}),
  'detector.layers': ('train', 'layer9', {}),
  'detector.image_score': ('train', 'top:2', {}),
  'fit.resume': ('train', 'latest', {}),
  'fit.extend': ('train', '/nowhere', {}),
  'fit.augment': ('train', 'rotate(1)', {}),
  'calibrate.labeled': ('train', '/nowhere', {'calibrate.method': 'f1'}),
  'check.convert.output': (
    'check_dataset', '/', {'check.convert.enable': True, 'check.convert.src_dataset_type': 'COCO'},
  ),
  'evaluate.model_dir': ('evaluate', '/nowhere', {}),
  'predict.input': ('predict', '/nowhere.png', {}),
  'predict.model_dir': ('predict', '/nowhere', {}),
  'predict.table': ('predict', '/dev/null/table', {}),
  'predict.shard': ('predict', '4/4', {'predict.table': 'scores'}),
  'predict.part_pattern': ('predict', '.+', {}),
  'evaluate.part_pattern': ('evaluate', '(', {}),
  'export.model_dir': ('export', '/nowhere', {}),
  'export.output': ('export', '/nowhere/model.onnx', {}),
  'export.include_resize': ('export', '5', {}),
  'export.images': ('export', '/nowhere', {}),
  'hosts.coordinator': ('train', 'localhost', {}),
}  # fmt: skip
# Settings that contradict others, or the detector.
CONTRADICTIONS = [
  ('stfpm', 'fit.held_out', 'train', {'fit.held_out': 0}),
  ('stfpm', 'fit.extend', 'train', {'fit.extend': 'model'}),
  ('stfpm', 'fit.augment', 'train', {'fit.augment': 'rotate(8)'}),
  ('padim', 'fit.steps', 'train', {'fit.steps': 3}),
  ('padim', 'fit.resume', 'train', {'fit.resume': 'latest'}),
  ('padim', 'detector.channels', 'train', {'detector.channels': 10_000}),
  ('patchcore', 'detector.window', 'train', {'detector.window': 1, 'data.ops': 'tile(64, 8)'}),
  ('patchcore', 'detector.approx', 'train', {'detector.window': 1, 'detector.approx': True}),
  ('patchcore', 'detector.channels', 'train',
   {'detector.channels': 9, 'detector.layers_apart': True}),
  ('padim', 'mesh.data', 'train', {'mesh.data': 0}),
  ('padim', 'backbone.weights', 'train', {'backbone.name': 'resnet34'}),
  ('padim', 'backbone.dtype', 'train', {'backbone.dtype': 'bfloat16'}),
  ('padim', 'backbone.architecture', 'train', {'backbone.architecture': 'heads=6'}),
  ('padim', 'check.split.enable', 'train', {'check.split.enable': True}),
  ('padim', 'calibrate.labeled', 'train', {'calibrate.method': 'f1'}),
  ('padim', 'calibrate.review_budget', 'train', {'calibrate.budget': 0.5}),
  ('padim', 'check.split.val_percent', 'check_dataset',
   {'check.split.enable': True, 'check.split.train_percent': 70}),
  ('padim', 'predict.input', 'predict', {'predict.input': ''}),
  ('padim', 'predict.shard', 'predict', {'predict.shard': '0/2'}),
  ('padim', 'predict.review_threshold', 'predict', {'predict.review_threshold': 1e9}),
  ('padim', 'evaluate.review_threshold', 'evaluate', {'evaluate.review_threshold': 1e9}),
  ('padim', 'export.quantize', 'export', {'export.quantize': 'int8', 'export.format': 'tflite'}),
]  # fmt: skip


@pytest.fixture(autouse=True)
def untouched(trained, monkeypatch):
  """Make every attempt to read an image or to fetch weights fail."""
  trained('padim')  # Fitting reads images, so it must come first.

  def fail(*args, **options):
    raise AssertionError('too late')

  monkeypatch.setattr(image_io, 'decode', fail)
  monkeypatch.setattr(download, 'fetch', fail)


@pytest.fixture
def load(drawn, fitted):
  """Return a function that loads settings, valid in every mode except for the given values."""
  model = {f'{mode}.model_dir': fitted('padim') for mode in ('evaluate', 'predict', 'export')}

  def load(name, **values):
    flags = [flag.removeprefix('--config.') for flag in small_runs.flags(name, drawn)[1:]]
    base = dict(flag.partition('=')[::2] for flag in flags)
    base |= {**model, 'predict.input': drawn / 'disc' / 'test'}
    return settings.load(name, [*base.items(), *values.items()])

  return load


def wrong_values(info):
  """Yield values that have another type or are out of bounds."""
  if not info.is_optional:
    yield None
  yield ['a', 'list'] if info.type is str else 'many'
  limits = info.limits
  if info.type in (int, float):
    yield from (bound for bound in (limits.above, limits.below) if bound is not None)
    yield from (bound - 1 for bound in (limits.minimum,) if bound is not None)
    yield from (bound + 1 for bound in (limits.maximum,) if bound is not None)
    yield 'nan'
  elif limits.choices:
    yield 'no such choice'
  elif info.type is tuple:
    yield 3


def test_values_of_another_type_or_out_of_bounds_name_their_key(load):
  """Each key once: most are those of every detector."""
  keys = {
    key: (name, info)
    for name in small_runs.NAMES
    for key, info in configs.describe(settings.load(name)).items()
  }
  for key, (name, info) in keys.items():
    for value in wrong_values(info):
      if info.type is tuple and value == 'many':
        continue  # This is a valid tuple with one layer.
      with pytest.raises(errors.UserError) as caught:
        load(name, **{key: value})
      assert caught.value.key == key, (key, value)
      assert caught.value.allowed, (key, value)


def test_every_text_is_checked():
  texts = {
    key
    for name in small_runs.NAMES
    for key, info in configs.describe(settings.load(name)).items()
    if info.type in (str, tuple) and not info.limits.choices
  }
  assert texts == {*WRONG_TEXTS}


@pytest.mark.parametrize('name', small_runs.NAMES)
@pytest.mark.parametrize('mode', settings.MODES)
def test_valid_settings_pass_and_create_no_file(name, mode, load, tmp_path):
  validation.validate(load(name, mode=mode), tmp_path / 'run')
  assert not [*tmp_path.iterdir()]


def test_invalid_settings_are_refused_with_their_key(load, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  cases = [
    ('stfpm' if key == 'fit.resume' else 'padim', key, mode, {key: value, **others})
    for key, (mode, value, others) in WRONG_TEXTS.items()
  ]
  for name, key, mode, values in itertools.chain(cases, CONTRADICTIONS):
    with pytest.raises(errors.UserError) as caught:
      validation.validate(load(name, mode=mode, **values), tmp_path / 'run')
    assert caught.value.key == key, (values, caught.value)
    assert not [*tmp_path.iterdir()]


def test_a_refused_run_leaves_nothing(drawn, trained, tmp_path, capfd):
  words = small_runs.flags('padim', drawn)
  assert small_runs.run(*words, f'--workdir={tmp_path / "new"}', '--config.fit.steps=3') == 2
  assert '--config.fit.extend' in capfd.readouterr().err
  assert not (tmp_path / 'new').exists()
  before = small_runs.contents(trained('padim'))
  weights = '--config.backbone.weights=auto'  # These would be downloaded.
  assert small_runs.run(*words, weights, f'--workdir={trained("padim")}') == 2
  assert '--config.fit.overwrite=true' in capfd.readouterr().err
  assert small_runs.contents(trained('padim')) == before


def test_every_setting_has_a_sentence_and_a_valid_default():
  for name in small_runs.NAMES:
    for key, info in configs.describe(settings.load(name)).items():
      assert info.limits.help.endswith('.'), key
      assert info.value is None or info.limits.allow(info.value), key


def test_settings_cannot_be_changed():
  loaded = settings.load('padim')
  with pytest.raises(dataclasses.FrozenInstanceError):
    loaded.fit.steps = 3
  other = configs.replace(loaded, {'fit.steps': '3', 'check.split.enable': 'yes'})
  assert (other.fit.steps, other.check.split.enable, loaded.fit.steps) == (3, True, None)
