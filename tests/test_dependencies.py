"""Declared dependencies are consistent; missing or broken optional ones fall back."""

import dataclasses
from importlib import metadata
import json
import logging
from pathlib import Path
import re
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from uadjax import create_model, main
from uadjax.errors import ConfigError, ExportError
from uadjax.export import runtimes

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def model_dir(fitted):
  return fitted('padim')


@pytest.fixture(scope='module')
def scored(model_dir):
  """Two images and their scores."""
  images = [*np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)]
  return images, [result['score'] for result in create_model(model_dir=model_dir).predict(images)]


@pytest.fixture
def warnings(caplog):
  """Returns a function that lists the warnings logged so far."""
  return lambda: [
    record.getMessage() for record in caplog.records if record.levelno == logging.WARNING
  ]


def break_converter(monkeypatch, tmp_path):
  """The fault of jax2onnx 0.17.1 with JAX 0.12."""
  import jax2onnx

  def to_onnx(*args, **options):
    raise AttributeError("module 'jax._src.core' has no attribute 'ClosedJaxpr'")

  monkeypatch.setattr(jax2onnx, 'to_onnx', to_onnx)


def hide_runtimes(monkeypatch, tmp_path):
  monkeypatch.setattr(runtimes, '_is_installed', lambda backend: False)


def hide_converter(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, 'jax2onnx', None)  # So that its import fails.


def break_runtime(monkeypatch, tmp_path):
  def fail(path):
    raise ImportError('libfast.so: cannot open shared object file')

  monkeypatch.setattr(runtimes, '_OPENERS', {'onnxruntime': fail})


def block_cache(monkeypatch, tmp_path):
  (tmp_path / 'cache').write_text('a file where the folder should be')


BROKEN = (
  break_converter,
  hide_runtimes,
  hide_converter,
  pytest.param(break_runtime, marks=pytest.mark.slow),  # A graph is written and checked before.
  block_cache,
)


@pytest.mark.parametrize('broken', BROKEN, ids=lambda broken: broken.__name__)
def test_auto_falls_back_to_jax_with_one_warning(
  model_dir, scored, broken, monkeypatch, tmp_path, warnings
):
  images, expected = scored
  monkeypatch.setenv('UADJAX_CACHE', str(tmp_path / 'cache'))
  broken(monkeypatch, tmp_path)
  model = create_model(model_dir=model_dir, backend='auto')
  assert [result['score'] for result in model.predict(images)] == expected
  (warning,) = warnings()
  assert str(model_dir) in warning
  with pytest.raises((ConfigError, ExportError)):
    create_model(model_dir=model_dir, backend='onnxruntime')  # A named runtime never falls back.


def test_a_service_starts_without_its_accelerators(model_dir, monkeypatch, tmp_path, warnings):
  pytest.importorskip('fastapi', reason='needs the extra serve')
  from uadjax.serve import models, settings as options

  monkeypatch.setenv('UADJAX_CACHE', str(tmp_path / 'cache'))
  hide_runtimes(monkeypatch, tmp_path)
  requested = options.Settings({'it': model_dir}, device='tpu', backend='auto')
  settings = options.with_fallbacks(requested)
  options.validate_settings(settings)
  assert settings.device == 'auto'
  assert models.open_model('it', model_dir, settings).predictor.devices[0].platform == 'cpu'
  assert len(warnings()) == 2  # One for the device, one for the runtime.
  requested = options.Settings({'it': model_dir}, backend='onnxruntime')
  assert options.with_fallbacks(requested).backend == 'auto'
  with pytest.raises(ConfigError, match='cup'):
    options.with_fallbacks(dataclasses.replace(requested, device='cup'))


def test_the_declared_ranges_fit_what_is_installed():
  check = subprocess.run([sys.executable, '-m', 'pip', 'check'], capture_output=True, text=True)
  assert check.returncode in (0, 1)
  assert metadata.version('uadjax')
  assert check.stdout.strip(), check.stderr
  ours = [line for line in check.stdout.splitlines() if line.startswith('uadjax ')]
  assert not ours


@pytest.mark.slow
def test_the_declared_ranges_can_be_installed_together(tmp_path):
  """Resolve the newest versions of all extras, and hold JAX below what jax2onnx breaks with."""
  command = [sys.executable, '-m', 'pip', 'install', '--dry-run', '--quiet', '--ignore-installed']
  subprocess.run([*command, '--report', tmp_path / 'report.json', f'{ROOT}[all]'], check=True)
  report = json.loads((tmp_path / 'report.json').read_text())
  versions = {
    package['metadata']['name'].lower(): package['metadata']['version']
    for package in report['install']
  }
  major, minor = map(int, versions['jax'].split('.')[:2])
  assert (0, 10) <= (major, minor) < (0, 12)
  assert {'jax2onnx', 'onnxruntime', 'openvino', 'fastapi', 'pyright'} <= versions.keys()


@pytest.mark.slow
def test_sharded_programs_are_compiled_in_one_thread(drawn, tmp_path):
  """Programs of a split run compile in the main thread only."""
  threads = set()

  def compiled(event, seconds, **about):
    if event == '/jax/core/compile/backend_compile_duration':
      threads.add(threading.current_thread())

  jax.clear_caches()  # Else what other tests compiled is not compiled again.
  jax.monitoring.register_event_duration_secs_listener(compiled)
  try:
    flags = {
      'data.root': drawn,
      'data.category': 'disc',
      'data.ops': 'resize(32, 48)',
      'detector.layers': 'layer1,layer2',
      'detector.channels': 9,
      'backbone.weights': 'random',
      'evaluate.do_eval': 'false',
      'mesh.shard_state': 'always',
    }
    flags = [f'--config.{key}={value}' for key, value in flags.items()]
    config = f'--config={ROOT / "configs" / "padim.py"}'
    assert main.main([config, f'--workdir={tmp_path / "run"}', *flags]) == 0
  finally:
    jax.monitoring.clear_event_listeners()
  assert threads == {threading.main_thread()}


def test_no_text_promises_a_package_index_that_does_not_have_uadjax():
  folders = ('uadjax', 'docs', 'configs', 'colabs', 'docker', 'experiments')
  paths = [path for folder in folders for path in (ROOT / folder).rglob('*') if path.is_file()]
  paths += [*ROOT.glob('*.md')]
  texts = [path for path in paths if path.suffix in ('.py', '.md', '.ipynb', '.html', '.js', '.sh')]
  promise = re.compile(r'pip install (-\S+ )*["\'\\]*uadjax')
  assert not [path for path in texts if promise.search(path.read_text())]
