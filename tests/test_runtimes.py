"""Every installed runtime runs the same file, and says what is wrong with another."""

import os
import subprocess
import sys

import numpy as np
import pytest

from uadjax import create_model
from uadjax.errors import ConfigError, ModelError, UnknownName
from uadjax.export import cached_graph, exporter, graph_hash, runtimes
from uadjax.model import model_dir
from uadjax.system import files


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
  metadata = beside.read_text()
  try:
    beside.write_text(metadata.replace('"arrays_sha256": "', '"arrays_sha256": "0'))
    path = cached_graph.get_or_export(model_dir.read_info(directory))
  finally:
    beside.write_text(metadata)
  assert path.parent == tmp_path / 'exports'
  assert cached_graph.get_or_export(model_dir.read_info(directory)) == graph


def test_a_graph_without_its_description_is_not_taken_and_a_warning_says_so(
  exported, tmp_path, monkeypatch, caplog
):
  monkeypatch.setenv('UADJAX_CACHE', str(tmp_path))
  directory = exported('padim')
  (directory / 'model.onnx.json').unlink()
  path = cached_graph.get_or_export(model_dir.read_info(directory))
  assert path.parent == tmp_path / 'exports'
  (warning,) = (r.getMessage() for r in caplog.records if r.levelname == 'WARNING')
  assert warning.startswith(f'{directory / "model.onnx"} is not used: model.onnx.json')
  assert f'uadjax export {directory}' in warning


def flips(content: bytes, count: int):
  """The content with one bit flipped, at random places."""
  rng = np.random.default_rng(0)
  for place in rng.integers(len(content), size=count):
    harmed = bytearray(content)
    harmed[place] ^= 1 << rng.integers(8)
    yield bytes(harmed)


def test_a_damaged_graph_of_a_model_is_never_run(exported, tmp_path, monkeypatch):
  monkeypatch.setenv('UADJAX_CACHE', str(tmp_path))
  directory = exported('padim')
  graph = directory / 'model.onnx'
  content, info = graph.read_bytes(), model_dir.read_info(directory)
  for harmed in (*flips(content, 20), b'', content[:-1], content + b'\0', b'\x08\x07' * 1000):
    graph.write_bytes(harmed)
    with pytest.raises(ModelError, match=f'damaged.*`uadjax export {directory}`'):
      cached_graph.get_or_export(info)
  for backend in ('auto', 'onnxruntime'):
    with pytest.raises(ModelError, match='damaged'):
      create_model(model_dir=directory, backend=backend)
  assert not [*tmp_path.iterdir()]
  graph.unlink()
  os.mkfifo(graph)
  with pytest.raises(ModelError, match='Not a regular file'):
    cached_graph.get_or_export(info)
  graph.unlink()
  graph.write_bytes(content)
  assert cached_graph.get_or_export(info) == graph


def test_a_damaged_graph_in_the_cache_is_written_again(exported, tmp_path, monkeypatch):
  monkeypatch.setenv('UADJAX_CACHE', str(tmp_path))
  directory = exported('padim')
  info, metadata = model_dir.read_info(directory), directory / 'model.onnx.json'
  text_of_graph = metadata.read_bytes()
  metadata.unlink()
  content = (directory / 'model.onnx').read_bytes()
  (directory / 'model.onnx').unlink()
  written = []

  def export(model, output):
    output.write_bytes(content)
    output.with_name(f'{output.name}.json').write_bytes(text_of_graph)
    written.append(output)

  with monkeypatch.context() as patch:
    patch.setattr(exporter, 'export', export)
    cached = cached_graph.get_or_export(info)
    for harmed in (*flips(content, 9), b'', content[:-1], b'\x08\x07' * 1000):
      written.clear()
      cached.write_bytes(harmed)
      assert cached_graph.get_or_export(info) == cached
      assert (written, cached.read_bytes()) == ([cached], content)
    beside = cached.with_name(f'{cached.name}.json')
    for text in (
      None,
      b'',
      b'[]',
      b'{}',
      b'[' * 100_000,
      text_of_graph.replace(b'sha256', b'sha257'),
    ):
      written.clear()
      beside.unlink() if text is None else beside.write_bytes(text)
      assert cached_graph.get_or_export(info) == cached
      assert (written, beside.read_bytes()) == ([cached], text_of_graph)
    written.clear()
    assert cached_graph.get_or_export(info) == cached
    assert not written
  # Through the interface that users have.
  images = list(np.random.default_rng(0).integers(0, 256, (2, 60, 70, 3), np.uint8))
  want = [r.score for r in create_model(model_dir=directory, backend='onnxruntime').predict(images)]
  cached.write_bytes(next(flips(content, 1)))
  got = create_model(model_dir=directory, backend='onnxruntime').predict(images)
  assert [result.score for result in got] == pytest.approx(want, rel=1e-5)
  assert graph_hash.describe_damage(cached) == ''


def test_arrays_beside_a_graph_are_hashed_like_it(tmp_path):
  graph, data = tmp_path / 'a.onnx', tmp_path / 'a.onnx.data'
  graph.write_bytes(b'graph')
  data.write_bytes(bytes(100))
  hashes = graph_hash.compute(graph, data.name)
  metadata = {'external_data': data.name, **hashes}
  files.write_json(tmp_path / 'a.onnx.json', metadata)
  assert graph_hash.describe_damage(graph) == ''
  for harmed in flips(bytes(100), 5):
    data.write_bytes(harmed)
    assert str(data) in graph_hash.describe_damage(graph)
  data.unlink()
  assert str(data) in graph_hash.describe_damage(graph)


def test_thresholds_of_ones_own_are_kept(directory, graph):
  fast = create_model(model_dir=directory, backend='auto', image_threshold=0.5)
  assert fast.model.thresholds.image_threshold == 0.5


def test_unknown_runtimes_and_damaged_graphs_are_refused(directory, graph, tmp_path, monkeypatch):
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
