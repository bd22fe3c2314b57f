"""Every installed runtime runs the same file, and says what is wrong with another."""

import subprocess
import sys

import numpy as np
import pytest

from uadjax import create_model
from uadjax.errors import ConfigError, ModelError, UnknownName
from uadjax.export import cached_graph, runtimes
from uadjax.model import model_dir


@pytest.fixture(scope='module')
def directory(exported):
  return exported('padim')


@pytest.fixture(scope='module')
def graph(directory):
  return directory / 'model.onnx'


@pytest.mark.parametrize('backend', ['onnxruntime', 'openvino'])
def test_a_runtime_judges_as_the_model_does(directory, graph, backend):
  pytest.importorskip(backend)
  images = list(np.random.default_rng(0).integers(0, 256, (5, 60, 70, 3), np.uint8))
  fast = create_model(model_dir=directory, backend=backend)
  for want, got in zip(
    create_model(model_dir=directory).predict(images), fast.predict(images, 2), strict=True
  ):
    assert got.score == pytest.approx(want.score, rel=1e-4)
    assert got.label == want.label
    np.testing.assert_allclose(got.anomaly_map, want.anomaly_map, rtol=1e-4)


def test_a_model_that_has_a_graph_needs_no_second_one(directory, graph, tmp_path, monkeypatch):
  monkeypatch.setenv('UADJAX_CACHE', str(tmp_path))
  assert cached_graph.get_or_export(model_dir.read_info(directory)) == graph
  assert not [*tmp_path.iterdir()]


def test_a_graph_of_other_arrays_is_not_taken(directory, graph, tmp_path, monkeypatch):
  monkeypatch.setenv('UADJAX_CACHE', str(tmp_path))
  beside = graph.with_name(f'{graph.name}.json')
  told = beside.read_text()
  try:
    beside.write_text(told.replace('"arrays_sha256": "', '"arrays_sha256": "0'))
    kept = cached_graph.get_or_export(model_dir.read_info(directory))
  finally:
    beside.write_text(told)
  assert kept.parent == tmp_path / 'exports'
  assert cached_graph.get_or_export(model_dir.read_info(directory)) == graph


def test_thresholds_of_ones_own_are_kept(directory, graph):
  fast = create_model(model_dir=directory, backend='auto', image_threshold=0.5)
  assert fast.model.thresholds.image_threshold == 0.5


def test_what_cannot_be_is_refused(directory, graph, tmp_path, monkeypatch):
  with pytest.raises(UnknownName, match='choose from'):
    runtimes.open_graph(graph, 'torch')
  with pytest.raises(UnknownName, match='choose from'):
    create_model(model_dir=directory, backend='torch')
  with pytest.raises(ConfigError, match='computes on the CPU'):
    create_model(model_dir=directory, backend='auto', device='gpu:0')
  with pytest.raises(ModelError, match='uadjax export MODEL_DIR'):
    runtimes.open_graph(tmp_path / 'none.onnx')
  damaged = tmp_path / 'damaged.onnx'
  damaged.write_bytes(graph.read_bytes()[:1000])
  for backend in runtimes.installed_backends():
    with pytest.raises(ModelError, match='cannot be opened'):
      runtimes.open_graph(damaged, backend)
  monkeypatch.setattr(runtimes, '_is_installed', lambda name: False)
  with pytest.raises(ConfigError, match=r'\[openvino\]'):
    runtimes.open_graph(graph, 'openvino')
  with pytest.raises(ConfigError, match=r'\[export\]'):
    runtimes.open_graph(graph)


@pytest.mark.parametrize('backend', ['onnxruntime', 'openvino'])
def test_the_first_inferences_may_come_from_many_threads_at_once(graph, backend):
  """OpenVINO's binding waited for itself for ever, in five of six processes."""
  pytest.importorskip(backend)
  code = f"""
import faulthandler, sys, threading
faulthandler.dump_traceback_later(60, exit=True)
from pathlib import Path
import subprocess
import sys

import numpy as np
from uadjax.export import runtimes
sys.setswitchinterval(1e-6)
run = runtimes.open_graph(Path({str(graph)!r}), {backend!r}).run
start = threading.Barrier(8)
def infer():
  start.wait()
  run(np.zeros((1, 32, 48, 3), np.uint8))
threads = [threading.Thread(target=infer) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
  subprocess.run([sys.executable, '-c', code], check=True)
