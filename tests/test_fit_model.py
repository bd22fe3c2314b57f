"""A folder in, a model out: `fit_model` and `uadjax fit`, which also extend a model."""

import dataclasses
import json
from pathlib import Path
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import small_runs

import uadjax
from uadjax import cli, config as configs, detectors, experiment
from uadjax.errors import ConfigError, DataError, ModelError, Setting, UnknownName
from uadjax.experiment import fit_model
from uadjax.model import model_dir
from uadjax.training import one_pass, settings

ROOT = Path(__file__).resolve().parent.parent

SMALL = {
  'data.ops': 'resize(32, 48)', 'detector.layers': 'layer1,layer2', 'detector.channels': 9,
  'backbone.weights': 'embedded', 'fit.batch_size': 4, 'mesh.data': 1,
}  # fmt: skip


def test_a_plain_folder_becomes_a_model(drawn, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  plain = drawn / 'disc' / 'train' / 'good'
  model = uadjax.fit_model(plain, 'PADIM', overrides=SMALL)
  saved = tmp_path / 'runs' / 'padim_disc' / 'model'
  image = drawn / 'disc' / 'test' / 'missing' / '000.png'
  (now,), (later,) = (m.predict(image) for m in (model, uadjax.create_model(model_dir=saved)))
  assert now.score == later.score
  assert model_dir.read_settings(saved)['fit']['batch_size'] == 4
  announced = re.findall('Next step: (.*)', (saved.parent / 'train.log').read_text())
  assert len(announced) == 3
  assert 'evaluation' not in ' '.join(announced)  # There are no test images.
  with pytest.raises(ConfigError) as caught:
    uadjax.fit_model(plain, 'PaDiM', overrides=SMALL)
  assert caught.value.key == 'workdir'


@pytest.mark.parametrize('categories', [1, 2])
def test_a_group_is_refused(drawn, tmp_path, categories):
  (tmp_path / 'all').mkdir()
  for name in ('one', 'two')[:categories]:
    (tmp_path / 'all' / name).symlink_to(drawn / 'disc')
  with pytest.raises(ConfigError, match="'all' is a group"):
    uadjax.fit_model(tmp_path / 'all', overrides={'data.category': 'all'})


@pytest.mark.parametrize(
  ('name', 'error', 'message'),
  [
    ('EfficientAD', UnknownName, r"'EfficientAD'.*PaDiM.*PatchCore.*STFPM"),
    ('PatchCore:eleven', UnknownName, "'eleven' of patchcore.*ten"),
  ],
)
def test_an_unknown_name_lists_those_there_are(drawn, name, error, message):
  with pytest.raises(error, match=message):
    uadjax.fit_model(drawn, name)


@pytest.mark.parametrize('dataset', ['', 'nowhere'])
def test_a_dataset_that_is_no_folder_is_refused_and_leaves_no_file(dataset, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(DataError, match=f"'{dataset}' is not a folder"):
    uadjax.fit_model(dataset)
  assert not any(tmp_path.iterdir())


@pytest.mark.parametrize('workdir', ['', 'own', 'new/inner'])
@pytest.mark.parametrize('content', [{}, {'1.png': b'no image', '2.png': b'', '3.png': b'?'}])
def test_refused_images_leave_nothing(content, workdir, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for path in (tmp_path / 'own' / 'notes.txt', *(tmp_path / 'images' / name for name in content)):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.get(path.name, b'notes'))
  (tmp_path / 'images').mkdir(exist_ok=True)
  before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*') if path.is_file()}
  with pytest.raises(DataError):
    uadjax.fit_model('images', 'PaDiM', workdir, overrides=SMALL)
  after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*') if path.is_file()}
  assert after == before
  assert {path.name for path in tmp_path.iterdir()} == {'images', 'own'}


def test_a_failed_fit_leaves_its_log(drawn, tmp_path, monkeypatch):
  def fail(*args):
    raise DataError('A score is not finite.')

  monkeypatch.setattr(one_pass, 'fit_one_pass', fail)
  with pytest.raises(DataError):
    uadjax.fit_model(drawn / 'disc' / 'train', 'PaDiM', tmp_path / 'run', overrides=SMALL)
  assert 'A score is not' in (tmp_path / 'run' / 'train_result.json').read_text()
  assert 'Next step: fit' in (tmp_path / 'run' / 'train.log').read_text()


def test_the_code_of_the_readme_runs_twice(drawn, tmp_path, monkeypatch, capsys):
  (code,) = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)
  shutil.copytree(drawn / 'disc' / 'train' / 'good', tmp_path / 'good_images')
  shutil.copytree(drawn / 'disc' / 'test' / 'spot', tmp_path / 'new_images')
  monkeypatch.chdir(tmp_path)
  fit = uadjax.fit_model  # With a detector and settings that take seconds.
  monkeypatch.setattr(
    uadjax,
    'fit_model',
    lambda folder, overrides: fit(folder, 'PaDiM', overrides={**SMALL, **overrides}),
  )
  for _ in range(2):
    exec(code, {})
    *verdicts, place = capsys.readouterr().out.splitlines()
    assert [line.split()[0] in ('OK', 'review', 'NG') for line in verdicts] == [True] * 2
    (directory,) = re.findall(r'^PaDiM of (\S+) on ', place)
    assert (tmp_path / directory / 'manifest.json').is_file()


def test_a_wrong_setting_names_the_nearest(drawn):
  with pytest.raises(ConfigError) as caught:
    uadjax.fit_model(drawn, overrides={'fit.batchsize': 4})
  assert (caught.value.key, caught.value.allowed) == ('fit.batchsize', ('fit.batch_size',))


@pytest.mark.slow
def test_the_command_does_the_same(drawn, tmp_path, capsys):
  words = ['fit', str(drawn), '--category', 'disc', '--model', 'PaDiM', '--device', 'cpu']
  words += [f'--override={key}={value}' for key, value in SMALL.items()]
  assert cli.main([*words, '--workdir', str(tmp_path / 'a')]) == 0
  stdout = capsys.readouterr().out
  assert stdout.index('missed') < stdout.index('falsely rejected') < stdout.index('image AUROC')
  assert 'F1-max (oracle)' in stdout
  assert f'Model: {tmp_path}/a/model\n' in stdout
  assert f'Report: {tmp_path}/a/report.html\n' in stdout
  assert cli.main([*words, '--workdir', str(tmp_path / 'b'), '--json']) == 0
  result = json.loads(capsys.readouterr().out)
  assert result['workdir'] == str(tmp_path / 'b')
  assert result['metrics'] == json.loads((tmp_path / 'a/train_result.json').read_text())['metrics']


@pytest.fixture
def plan(monkeypatch):
  """Returns a function that prepares a run as `fit_model` does, and gives settings and folder."""

  def prepare(dataset, extend=None, name=None, workdir=None, **overrides):
    with monkeypatch.context() as patch:  # Fixtures carry out runs.
      patch.setattr(experiment, 'run', lambda config, run_dir: {'config': config})
      result, run_dir = fit_model.run_training(dataset, name, workdir, 'cpu', extend, overrides)
    return result['config'], run_dir

  return prepare


def edit_settings(model, **sections):
  """Change the settings in the manifest of a model, as if it had been fitted with them."""
  manifest = json.loads((model / 'manifest.json').read_text())
  config = manifest['config'] | sections
  name = detectors.title(config['detector']['name'])
  manifest |= {
    'config': config,
    'config_sha256': model_dir.hash_settings(config),
    'model_name': name,
  }
  (model / 'manifest.json').write_text(json.dumps(manifest))


def test_a_model_is_extended_with_its_own_settings(plan, drawn, fitted):
  model, fresh = fitted('padim'), settings.load('padim')
  before = model_dir.read_settings(model)
  calibrate = before['calibrate'] | {'method': 'confident', 'budget': 0.02}
  fit = before['fit'] | {'overwrite': True, 'log_every': 3}
  data = before['data'] | {'mask': 'above:7', 'layout': 'mvtec', 'category': 'disc'}
  others = {'mesh': {'data': 1, 'shard_state': 'never'}, 'evaluate': {'do_eval': False}}
  check = before['check'] | {'enforce': False}
  edit_settings(model, seed=5, calibrate=calibrate, fit=fit, data=data, check=check, **others)
  folder = drawn / 'disc' / 'train' / 'good'
  config = plan(folder, model)[0]
  info = model_dir.read_info(model)
  assert (config.detector, config.backbone) == (info.config.detector, info.config.backbone)
  assert dataclasses.asdict(config.calibrate) == calibrate
  assert (config.seed, config.fit.batch_size) == (5, 4)
  want = dataclasses.replace(
    fresh.data, root=str(folder), mask='above:7', ops=data['ops'], bits='16'
  )
  assert config.data == want
  assert config.fit == dataclasses.replace(fresh.fit, batch_size=4, extend=str(model))
  for section in ('check', 'evaluate', 'mesh', 'hosts'):
    assert getattr(config, section) == getattr(fresh, section), section
  assert plan(folder, model, 'PADIM')[0] == config  # The name may be repeated.
  assert plan(folder, **{'fit.extend': model})[0] == config
  changes = {'seed': 6, 'calibrate.budget': 0.03, 'check.enforce': False}
  assert plan(folder, model, **changes)[0] == configs.replace(config, changes)


def test_settings_that_differ_from_the_extended_model_are_refused(plan, drawn, fitted, capfd):
  model = fitted('padim')
  for key, value, want in (
    ('detector.channels', '8', '9'),
    ('data.ops', 'resize(40)', 'resize(32, 48)'),
    ('backbone.name', 'resnet34', 'compact'),
  ):
    with pytest.raises(ConfigError) as caught:
      plan(drawn / 'disc', model, **{key: value})
    assert (caught.value.key, caught.value.allowed) == (key, (type(caught.value.value)(want),))
    words = ['fit', str(drawn / 'disc'), '--extend', str(model), '--override', f'{key}={value}']
    assert cli.main(words) == 2
    assert f'--override {shlex.quote(f"{key}={want}")}' in capfd.readouterr().err
  with pytest.raises(ConfigError) as caught:  # A variant has settings of its own.
    plan(drawn / 'disc', model, 'PaDiM:wide')
  assert (caught.value.key, caught.value.value) == ('backbone.name', 'wide_resnet50_2')


def test_a_model_is_not_extended_by_another_detector(plan, drawn, fitted, capfd):
  model = fitted('padim')
  for name in ('PatchCore', 'patchcore:ten', 'STFPM'):
    with pytest.raises(ConfigError) as caught:
      plan(drawn / 'disc', model, name)
    assert (caught.value.key, caught.value.value) == ('config', name)
    assert caught.value.allowed == ('PaDiM',)
  words = ['fit', str(drawn / 'disc'), '--extend', str(model), '--model', 'PatchCore']
  assert cli.main(words) == 2
  assert '--model' in capfd.readouterr().err
  with pytest.raises(UnknownName):
    plan(drawn / 'disc', model, 'EfficientAD')


def test_a_network_that_was_trained_in_steps_is_not_extended(fitted, tmp_path, capfd):
  model = fitted('padim')
  edit_settings(model, detector=dataclasses.asdict(settings.load('stfpm').detector))
  for name in (None, 'STFPM'):
    with pytest.raises(ConfigError) as caught:  # Before it is noticed that there are no images.
      uadjax.fit_model(tmp_path, name, tmp_path / 'run', extend=model)
    assert (caught.value.key, caught.value.value) == ('fit.extend', str(model))
    assert Setting('fit.extend') in caught.value.hint
  assert cli.main(['fit', str(tmp_path), '--extend', str(model)]) == 2
  assert 'without --extend.' in capfd.readouterr().err
  assert not any(tmp_path.iterdir())


def test_extending_a_folder_that_is_no_model_is_refused(plan, drawn, trained, tmp_path, capfd):
  run = trained('padim')
  for folder in (run, tmp_path, tmp_path / 'nowhere'):
    with pytest.raises(ModelError) as caught:
      plan(drawn / 'disc', folder)
    assert (caught.value.key, caught.value.value) == ('fit.extend', str(folder))
  assert cli.main(['fit', str(drawn / 'disc'), '--extend', str(run)]) == 1
  stderr = capfd.readouterr().err
  assert stderr.startswith(f'Error: --extend: {run} is not a model directory')
  assert str(run / 'model') in stderr


def test_a_model_is_not_replaced_by_default(plan, drawn, fitted, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  folder, run_dir = drawn / 'disc', plan(drawn / 'disc', name='PaDiM')[1]
  for number in range(3):  # Each extends the one before by images of the same name.
    assert not run_dir.exists(), number
    shutil.copytree(fitted('padim').parent, run_dir)
    run_dir = plan(folder, run_dir / 'model', **{'fit.overwrite': True})[1]
  assert run_dir == Path('runs/padim_disc_disc_disc_disc')
  with pytest.raises(ConfigError) as caught:
    plan(folder, run_dir.parent / 'padim_disc' / 'model', workdir='runs/padim_disc')
  assert caught.value.key == 'workdir'


@pytest.mark.slow
def test_a_command_extends_a_model(trained, drawn, tmp_path, monkeypatch, capsys):
  """In a run of its own, and in place, with the same result as an experiment."""
  monkeypatch.chdir(tmp_path)
  run = shutil.copytree(trained('padim'), tmp_path / 'run')
  before = json.loads((run / 'model' / 'manifest.json').read_text())['thresholds']
  folder, contents = drawn / 'disc' / 'test' / 'good', small_runs.contents(run)
  extend = f'--config.fit.extend={run / "model"}', f'--workdir={tmp_path / "want"}'
  flags = (*small_runs.flags('padim', folder, ''), *extend)
  assert small_runs.run(*flags) == 0
  want = small_runs.contents(tmp_path / 'want' / 'state')
  words = ['fit', str(folder), '--extend', str(run / 'model'), '--override=mesh.data=1']
  words += ['--override=evaluate.batch_size=5']  # Not inherited.
  assert cli.main(words) == 0
  stdout = capsys.readouterr().out
  assert f'{small_runs.TRAIN + small_runs.GOOD} good images' in stdout
  assert f'{before["image_threshold"]:.4g}' in stdout
  assert small_runs.contents(tmp_path / 'runs' / 'run_test' / 'state') == want
  assert small_runs.contents(run) == contents
  options = '--workdir', str(run), '--override=fit.overwrite=true', '--json'
  assert cli.main([*words, *options]) == 0
  drift = json.loads(capsys.readouterr().out)['drift']
  assert drift['image_threshold_before'] == before['image_threshold']
  assert small_runs.contents(run / 'state') == want


@pytest.mark.slow
def test_a_model_learns_from_further_images(trained, drawn, tmp_path):
  model, folder = trained('padim') / 'model', drawn / 'disc' / 'test' / 'good'
  overrides = {'mesh.data': 1}
  extended = uadjax.fit_model(
    folder, workdir=tmp_path / 'run', device='cpu', extend=model, overrides=overrides
  )
  assert extended.model.name == 'PaDiM'
  assert extended.model.directory == tmp_path / 'run' / 'model'
  num_images = small_runs.manifest(tmp_path / 'run')['summary']['images']
  assert num_images == small_runs.TRAIN + small_runs.GOOD


@pytest.mark.parametrize('name', ['padim', 'patchcore:ten', 'stfpm:paddlex'])
def test_configs_have_names(name):
  file, _, variant = name.partition(':')
  path = f'{Path(__file__).parent.parent}/configs/{file}.py:{variant}'
  assert settings.load(name) == settings.load(path)


def test_errors_of_a_command_name_its_own_options(trained, drawn, tmp_path, capsys):
  shutil.copytree(trained('padim'), tmp_path / 'a')
  words = ['fit', str(drawn / 'disc'), '--model', 'padim', '--workdir', str(tmp_path / 'a')]
  words += [f'--override={key}={value}' for key, value in SMALL.items()]
  assert cli.main(words) == 2
  assert '--override fit.overwrite=true' in capsys.readouterr().err
  assert json.loads((tmp_path / 'a' / 'train_result.json').read_text())['done_flag']
  assert cli.main([*words[:-1], '--workdir', str(tmp_path / 'b'), '--override=fit.steps=3']) == 2
  assert not (tmp_path / 'b').exists()


# Prints which settings of the process a fit has changed, its threads, and how much memory glibc
# retains of a large block that is freed after the fit.
CHANGES = """
import json, logging, os, signal, sys, threading, warnings
import jax, numpy as np
# Imports may add filters of warnings, and these are imported at first use.
import orbax.checkpoint, requests, scipy.special, tensorflow
import uadjax

def settings():
  found = {f'jax {name}': repr(value) for name, value in jax.config.values.items()}
  found |= {f'signal {number}': repr(signal.getsignal(number)) for number in signal.valid_signals()}
  found |= {f'variable {name}': value for name, value in os.environ.items()}
  for name in ('', 'uadjax', 'jax', 'absl', 'orbax'):
    logger = logging.getLogger(name)
    found[f'logger {name}'] = repr([logger.level, logger.handlers, logger.propagate])
  found['hooks'] = repr([sys.excepthook, sys.unraisablehook, threading.excepthook])
  return found | {'folder': os.getcwd(), 'warnings': repr(warnings.filters)}

def resident_pages():
  return int(open('/proc/self/statm').read().split()[1])

def retained_mb():
  if sys.platform != 'linux':
    return 0
  before = resident_pages()
  np.ones(1 << 28, np.uint8)
  return (resident_pages() - before) * os.sysconf('SC_PAGESIZE') >> 20

dataset, workdir, overrides, tune_process = json.loads(sys.argv[1])
fit_model, before = uadjax.fit_model, settings()
fit_model(dataset, 'padim', workdir, 'cpu', overrides=overrides, tune_process=tune_process)
after = settings()
changed = {
  name: [before.get(name), after.get(name)]
  for name in {**before, **after}
  if before.get(name) != after.get(name)
}
threads = [thread.name for thread in threading.enumerate() if not thread.daemon]
print(json.dumps([changed, threads, retained_mb()]))
"""


@pytest.mark.slow
@pytest.mark.parametrize('tune_process', [False, True])
def test_the_process_stays_as_it_was_unless_asked(drawn, tmp_path, monkeypatch, tune_process):
  monkeypatch.delenv('JAX_NUM_CPU_DEVICES', raising=False)
  arguments = str(drawn / 'disc'), str(tmp_path / 'run'), SMALL, tune_process
  process = subprocess.run(
    [sys.executable, '-c', CHANGES, json.dumps(arguments)], capture_output=True, text=True
  )
  assert process.returncode == 0, process.stderr
  changed, threads, retained_mb = json.loads(process.stdout.splitlines()[-1])
  assert threads == ['MainThread']
  if tune_process:
    assert list(changed) == ['jax jax_num_cpu_devices']
  else:
    assert not changed
    assert retained_mb < 64
