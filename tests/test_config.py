import contextlib
from pathlib import Path

from hypothesis import given, strategies as st
import pytest
import yaml

from uadjax import config as configs
from uadjax.errors import ConfigError, UnknownName, UserError
from uadjax.experiment import flags
from uadjax.training import settings

STFPM = str(Path(__file__).resolve().parent.parent / 'configs' / 'stfpm.py')


@pytest.mark.parametrize('variant', ['', ':paddlex', ':quick'])
def test_a_saved_config_says_the_same_when_passed_back(variant, tmp_path):
  config = settings.load(STFPM + variant, [('fit.eval_every', '7'), ('data.root', 'a:b=c')])
  saved = tmp_path / 'config.yaml'
  saved.write_text(configs.to_yaml(config))
  assert settings.load(str(saved)) == config


def test_text_becomes_the_type_of_the_key():
  for key, text, value in (
    ('fit.steps', '1e3', 1000),
    ('fit.steps', 'None', None),
    ('fit.learning_rate', '1e-2', 0.01),
    ('evaluate.do_eval', 'False', False),
    ('detector.layers', 'layer1,layer3', ('layer1', 'layer3')),
    ('detector.layers', "('layer2',)", ('layer2',)),
    ('data.category', '3', '3'),
    ('check.convert.src_dataset_type', 'labelme', 'LabelMe'),
    ('data.category', 'None', 'None'),
  ):
    config = settings.load(STFPM, [(key, text)])
    assert configs.describe(config)[key].value == value, (key, text)


def test_a_wrong_override_gets_one_clear_error():
  for key, text, allowed in (
    ('fit.step', '3', 'fit.steps'),
    ('mesh.split', 'auto', 'mesh.'),
    ('dat.root', 'x', 'data.root'),
    ('data.root.x', 'y', 'data.root'),
    ('fit', '3', 'fit.steps'),
    ('fit.steps', '1.5', 'a whole number'),
    ('fit.batch_size', '0', 'at least 1'),
    ('evaluate.do_eval', 'maybe', 'true or false'),
    ('fit.learning_rate', '__import__("os")', 'a number'),
    ('fit.learning_rate', '-1', 'at least 0'),
    ('fit.learning_rate', 'inf', 'at least 0 and finite'),
    ('fit.learning_rate', 'nan', 'at least 0 and finite'),
    ('predict.image_threshold', 'inf', 'finite'),
    ('seed', '9' * 400, 'at most'),
  ):
    with pytest.raises(ConfigError) as caught:
      settings.load(STFPM, [(key, text)])
    assert caught.value.key == key
    assert allowed in str(caught.value.allowed), caught.value.allowed


@given(st.text(max_size=30), st.text(max_size=30))
def test_no_override_whatsoever_escapes_as_another_exception(key, text):
  with contextlib.suppress(UserError):
    settings.load(STFPM, [(key, text), ('fit.steps', text), ('detector.layers', text)])


def test_a_wrong_yaml_gets_one_clear_error(tmp_path):
  file = tmp_path / 'config.yaml'
  for text, key in (
    ('fit: {epochs: 3', 'config'),
    ('- 1\n- 2', 'config'),
    ('seed: 3', 'detector.name'),
    ('detector: {name: padim}\nfit: [3]', 'fit'),
    ('detector: {name: padim}\nfit: {epochs: [3]}', 'fit.epochs'),
  ):
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
      settings.load(str(file))
    assert caught.value.key == key
    assert str(file) in str(caught.value), text


def test_only_errors_of_a_file_name_the_file(tmp_path):
  file = tmp_path / 'config.yaml'
  file.write_text('detector: {name: padim}\nfit: {epochs: 0}\n')
  for override, is_of_file in (
    (('fit.epochs', '3'), None),
    (('fit.epochs', '0'), False),
    (('fit.epoch', '3'), False),
    (('fit.steps', '3'), True),
    (('detector.name', 'padin'), False),
  ):
    if is_of_file is None:
      assert settings.load(str(file), [override]).fit.epochs == 3
      continue
    with pytest.raises(UserError) as caught:
      settings.load(str(file), [override])
    assert (str(file) in str(caught.value)) == is_of_file, override


def test_yaml_runs_no_python(tmp_path):
  values = yaml.safe_load(configs.to_yaml(settings.load(STFPM)))
  file = tmp_path / 'config.yaml'
  file.write_text(yaml.safe_dump(values) + 'evil: !!python/object/apply:os.system ["false"]\n')
  with pytest.raises(ConfigError) as caught:
    settings.load(str(file))
  assert caught.value.key == 'config'


def test_a_wrong_key_is_answered_with_all_keys_that_it_may_stand_for():
  keys = ['predict.image_threshold', 'predict.review_threshold', 'fit.steps', 'a_threshold']
  closest = configs.closest_keys
  assert closest('predict.threshold', keys) == tuple(keys[:2])
  assert closest('fit.step', keys) == ('fit.steps',)
  assert closest('fit.qqq', keys) == ('fit.steps',)  # One of the same section in any case.
  assert closest('threshold', keys) == ('a_threshold',)
  assert closest('qqq', keys) == ()


def test_an_unknown_variant_lists_the_variants():
  with pytest.raises(UnknownName) as caught:
    settings.load(STFPM + ':padlex')
  assert list(caught.value.allowed) == ['paddlex', 'quick']


def test_a_missing_file_is_named():
  with pytest.raises(ConfigError) as caught:
    settings.load('nowhere.py')
  assert (caught.value.key, caught.value.value) == ('config', 'nowhere.py')


@pytest.mark.parametrize(
  ('code', 'words'),
  [
    ('def get_config(arg):\n  return {}', 'returned dict'),
    ('def get_config(arg):\n  pass', 'returned NoneType'),
    ('from uadjax.config import base', r'line 1, raised ImportError: .*base'),
    ('def get_config():\n  return 3', r'raised TypeError: get_config\(\) takes 0'),
    (
      'from uadjax.training import settings\n\ndef get_config(arg):\n'
      "  config = settings.default_config('padim')\n  config.fit.steps = config.fit.step\n",
      'line 5, raised AttributeError: .*step',
    ),
    (
      'from uadjax.training import settings\n\ndef get_config(arg):\n'
      "  return settings.default_config('ganomaly')\n",
      "line 4, raised KeyError: 'ganomaly'",
    ),
    ('assert False', r'line 1, raised AssertionError\.'),
    ('def get_config(arg)', 'not valid Python'),
    ('config = 3', r'does not define get_config\(arg\)'),
  ],
)
def test_an_exception_in_a_config_is_one_message(code, words, tmp_path):
  file = tmp_path / 'own.py'
  file.write_text(code)
  with pytest.raises(ConfigError, match=words) as caught:
    settings.load(str(file))
  assert (caught.value.key, caught.value.value) == ('config', file)
  assert str(file) in str(caught.value)


def test_overrides_are_taken_out_of_the_arguments():
  argv = ['--config=a.py', '--config.x.y=1=2', '--workdir', 'w', '--config.z', '3', '--config.flag']
  overrides, rest = flags.extract_overrides(argv)
  assert overrides == [('x.y', '1=2'), ('z', '3'), ('flag', 'true')]
  assert rest == ['--config=a.py', '--workdir', 'w']
