"""A folder in, a model out: `fit_model` and `uadjax fit`."""

import json
from pathlib import Path
import shutil
import subprocess
import sys

import pytest

import uadjax
from uadjax import cli
from uadjax.errors import ConfigError, DataError, UnknownName
from uadjax.model import model_dir
from uadjax.training import settings

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
  ('name', 'error', 'told'),
  [
    ('EfficientAD', UnknownName, r"'EfficientAD'.*PaDiM.*PatchCore.*STFPM"),
    ('PatchCore:eleven', UnknownName, "'eleven' of patchcore.*ten"),
  ],
)
def test_an_unknown_name_lists_those_there_are(drawn, name, error, told):
  with pytest.raises(error, match=told):
    uadjax.fit_model(drawn, name)


@pytest.mark.parametrize('dataset', ['', 'nowhere'])
def test_what_is_no_folder_is_refused_and_leaves_none(dataset, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(DataError, match=f"'{dataset}' is not a folder"):
    uadjax.fit_model(dataset)
  assert not any(tmp_path.iterdir())


def test_a_wrong_setting_names_the_nearest(drawn):
  with pytest.raises(ConfigError) as caught:
    uadjax.fit_model(drawn, overrides={'fit.batchsize': 4})
  assert (caught.value.key, caught.value.allowed) == ('fit.batchsize', ('fit.batch_size',))


@pytest.mark.slow
def test_the_command_does_the_same(drawn, tmp_path, capsys):
  words = ['fit', str(drawn), '--category', 'disc', '--model', 'PaDiM', '--device', 'cpu']
  words += [f'--override={key}={value}' for key, value in SMALL.items()]
  assert cli.main([*words, '--workdir', str(tmp_path / 'a')]) == 0
  told = capsys.readouterr().out
  assert 'image AUROC' in told
  assert f'Model: {tmp_path}/a/model\n' in told
  assert f'Report: {tmp_path}/a/report.html\n' in told
  assert cli.main([*words, '--workdir', str(tmp_path / 'b'), '--json']) == 0
  result = json.loads(capsys.readouterr().out)
  assert result['workdir'] == str(tmp_path / 'b')
  assert result['metrics'] == json.loads((tmp_path / 'a/train_result.json').read_text())['metrics']


@pytest.mark.parametrize('name', ['padim', 'patchcore:ten', 'stfpm:paddlex'])
def test_configs_have_names(name):
  file, _, variant = name.partition(':')
  path = f'{Path(__file__).parent.parent}/configs/{file}.py:{variant}'
  assert settings.load(name) == settings.load(path)


def test_what_fails_is_told_in_the_commands_own_words(trained, drawn, tmp_path, capsys):
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
