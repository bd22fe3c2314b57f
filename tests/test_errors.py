"""Errors carry data: the settings they name are written as the front end takes them."""

import ast
import concurrent.futures
import functools
from pathlib import Path
import pickle
import shlex

import pytest

import uadjax
from uadjax import config as configs, errors
from uadjax.cli import commands, runtime
from uadjax.distributed import mesh
from uadjax.distributed.processes import ProcessLost
from uadjax.errors import ConfigError, Interrupted, Setting, UserError
from uadjax.experiment import fit_model, flags
from uadjax.system import threads
from uadjax.training import settings

# Key and value; what is between them and the end of the word must survive a shell and a parser.
SETTINGS = [
  Setting('calibrate.review_budget', 0.1),
  Setting('calibrate.budget', 1e-05),
  Setting('data.ops', 'resize(32, 48)'),
  Setting('data.ops', 'keep_ratio(256, 320)|center_crop(224)'),
  Setting('data.root', "/data/Bob's parts [new], 2.5 mm"),
  Setting('data.category', 'a "b" $HOME `c` *;&'),
  Setting('backbone.weights', '~/weights/r18.v2.pth'),
  Setting('detector.layers', ('layer1', 'layer2')),
  Setting('detector.layers', ['layer1']),
  Setting('hosts.coordinator', '10.0.0.1:9876'),
  Setting('fit.overwrite', True),
  Setting('check.enforce', False),
  Setting('fit.resume', 'latest'),
  Setting('fit.steps', 60),
]


def by_flags(words: str) -> list[tuple[str, str]]:
  overrides, rest = flags.extract_overrides(shlex.split(words))
  assert not rest
  return overrides


def by_options(words: str) -> list[tuple[str, str]]:
  option, word = shlex.split(words)
  assert option == '--override'
  return [*runtime.parse_overrides([word]).items()]


def by_arguments(code: str) -> list[tuple[str, object]]:
  return [*eval(f'dict({code})')['overrides'].items()]


fit_option = functools.partial(runtime.format_setting, 'fit')
FRONT_ENDS = [
  (flags.format_setting, by_flags),
  (fit_option, by_options),
  (fit_model.format_setting, by_arguments),
]


@pytest.mark.parametrize(('spelling', 'read'), FRONT_ENDS)
def test_settings_in_messages_can_be_pasted_back(spelling, read):
  for setting in SETTINGS:
    error = ConfigError('It is wrong.', hint=('Pass ', setting, '; or nothing.'))
    with pytest.raises(ConfigError) as caught, errors.setting_format(spelling):
      raise error
    text = str(caught.value)
    assert text.startswith('It is wrong. Pass ')
    words = text.removeprefix('It is wrong. Pass ').removesuffix('; or nothing.')
    overrides = read(words)
    assert [key for key, _ in overrides] == [setting.key]
    config = settings.load('padim', overrides)
    expected = tuple(setting.value) if isinstance(setting.value, list) else setting.value
    assert configs.describe(config)[setting.key].value == expected, words


def test_each_front_end_has_its_own_words():
  settings = Setting('fit.overwrite', True), Setting('workdir'), Setting('backbone.weights', 'FILE')
  spelled = [[spelling(setting) for setting in settings] for spelling, _ in FRONT_ENDS]
  assert spelled == [
    ['--config.fit.overwrite=true', '--workdir', '--config.backbone.weights=FILE'],
    ['--override fit.overwrite=true', '--workdir', '--override backbone.weights=FILE'],
    ["overrides={'fit.overwrite': True}", 'workdir', "overrides={'backbone.weights': 'FILE'}"],
  ]
  assert fit_option(Setting('access.private', True)) == '--allow-private-urls'
  config = Setting('config', 'padim')
  assert fit_option(config) == '--model=padim'
  assert runtime.format_setting('sweep', config) == '--models=padim'
  assert fit_model.format_setting(config) == "model_name='padim'"
  extend = Setting('fit.extend', 'runs/a/model')
  assert [spelling(extend) for spelling, _ in FRONT_ENDS] == [
    '--config.fit.extend=runs/a/model', '--extend=runs/a/model', "extend='runs/a/model'"
  ]  # fmt: skip
  written = runtime.format_setting('sweep', extend)
  assert written == '--override fit.extend=runs/a/model'
  assert fit_option(Setting('calibrate.labeled')) == '--override calibrate.labeled=...'
  threshold_option = functools.partial(runtime.format_setting, 'threshold')
  assert threshold_option(Setting('calibrate.review_budget', 0.1)) == '--review-budget=0.1'
  review = Setting('review_threshold', 0.9)
  for name in ('threshold', 'predict', 'root'):
    assert runtime.format_setting(name, review) == '--review-threshold=0.9'
  for name in ('predict', 'root'):
    assert runtime.format_setting(name, Setting('predict.part_pattern')) == '--part-pattern'
  export_option = functools.partial(runtime.format_setting, 'export')
  assert export_option(Setting('export.images', 'my images')) == "'--images=my images'"
  assert [str(setting) for setting in settings] == [
    'fit.overwrite=true', 'workdir', 'backbone.weights=FILE'
  ]  # fmt: skip


def test_text_is_spelled_by_the_front_end_at_work_in_its_threads_too():
  setting = Setting('mode', 'train')
  with errors.setting_format(flags.format_setting):
    assert f'{setting}' == '--config.mode=train'
    with errors.setting_format(fit_option):
      assert f'{setting}' == '--override mode=train'
    with threads.thread_pool(1, 'test') as pool:
      assert pool.submit(str, setting).result() == '--config.mode=train'
  assert f'{setting}' == 'mode=train'
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    assert pool.submit(str, setting).result() == 'mode=train'


@pytest.mark.parametrize('kind', [UserError, ConfigError, ProcessLost, Interrupted])
def test_errors_keep_their_data(kind):
  hint = 'Use less than ', Setting('fit.steps', 3), '.'
  error = kind('Too many.', key='fit.steps', value=9, allowed=(1, 3), hint=hint)
  again = pickle.loads(pickle.dumps(error))
  for copy in (error, again):
    assert (copy.key, copy.value, copy.allowed, copy.hint) == ('fit.steps', 9, (1, 3), hint)
    assert copy.message == 'Too many.'
    assert str(copy) == 'Too many. Use less than fit.steps=3.'
  assert str(kind('Only this.')) == 'Only this.'
  assert str(kind('Lines:\na\n', hint='Mend them.')) == 'Lines:\na\nMend them.'
  assert isinstance(kind(), Exception) == (kind is not Interrupted)


def test_every_setting_that_a_message_names_exists():
  """The keys of all `Setting(...)` in the package, constants resolved."""
  names = ('padim', 'patchcore', 'stfpm', 'subspace')
  keys = {key for name in names for key in configs.describe(settings.load(name))}
  keys |= set(errors.OTHER_KEYS)
  wrong, count = [], 0
  for path in Path(uadjax.__file__).parent.rglob('*.py'):
    tree = ast.parse(path.read_text())
    constants = {
      target.id: node.value.value
      for node in tree.body
      if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
      for target in node.targets
      if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
      if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        continue
      if node.func.id != 'Setting':
        continue
      key = node.args[0]
      name = key.value if isinstance(key, ast.Constant) else constants.get(getattr(key, 'id', ''))
      count += 1
      if name is not None and name not in keys:  # Else it is a loop over keys of a configuration.
        wrong.append((path.name, node.lineno, name))
  assert count > 20
  assert not wrong


def test_commands_without_override_name_the_experiment_that_has_the_setting():
  setting = Setting('check.enforce', False)
  written = runtime.format_setting('report', setting)
  assert written == '--config.check.enforce=false of python -m uadjax.main'
  for name in ('fit', 'sweep'):
    assert runtime.format_setting(name, setting) == '--override check.enforce=false'
    assert 'override' in commands.COMMANDS[name]._fields


def test_a_missing_device_is_named_as_each_interface_takes_it():
  with pytest.raises(errors.MissingDevice) as caught:
    mesh.select_devices('tpu')
  written = []
  for format_setting, _ in FRONT_ENDS:
    caught.value.setting_format = format_setting
    written.append(str(caught.value).partition(' Use ')[2].partition(', or')[0])
  assert written == ['--config.device=auto', '--device=auto', "device='auto'"]


def test_a_set_without_any_usable_image_is_not_offered_to_be_used(tmp_path):
  (tmp_path / 'empty').mkdir()
  with pytest.raises(errors.DataError) as caught:
    fit_model.fit_model(tmp_path / 'empty', workdir=tmp_path / 'run')
  assert 'check.enforce' not in str(caught.value)


def test_a_setting_may_be_set_to_none():
  setting = Setting('detector.coreset_dim', None)
  assert flags.format_setting(setting) == '--config.detector.coreset_dim=None'
  assert fit_model.format_setting(setting) == "overrides={'detector.coreset_dim': None}"
