"""Tests of the C++ example: its results equal those of Python."""

import importlib.util
import json
from pathlib import Path
import shutil
import subprocess
from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper
from PIL import Image
import pytest

from uadjax import create_model
from uadjax.data import image_io, transforms
from uadjax.export import exporter, runtimes
from uadjax.model import calibration, model_dir

pytestmark = pytest.mark.slow  # An example, which requires a compiler.

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / 'docs' / 'examples' / 'cpp'
CAMERA = 57, 75


class Exported(NamedTuple):
  model: model_dir.Model
  path: Path


def run(*command):
  return subprocess.run(
    [str(word) for word in command], capture_output=True, text=True, check=False
  )


def output_of(program, *files):
  process = run(program, *files)
  assert (process.returncode, process.stderr) == (0, '')
  return json.loads(process.stdout)


def error_of(program, *files):
  process = run(program, *files)
  assert (process.returncode, process.stdout) == (1, '')
  assert len(process.stderr.splitlines()) == 1
  return process.stderr


def saved(path, photo):
  Image.fromarray(photo).save(path)
  return path


@pytest.fixture(scope='module')
def score(tmp_path_factory):
  """The compiled program; warnings are errors."""
  if not shutil.which('cmake'):
    pytest.skip('needs cmake')
  if not any(map(shutil.which, ('c++', 'g++', 'clang++'))):
    pytest.skip('needs a C++ compiler')
  # Not imported, because importing it starts its telemetry.
  spec = importlib.util.find_spec('openvino')
  if spec is None or spec.origin is None:
    pytest.skip('needs the package openvino')
  config = Path(spec.origin).parent / 'cmake'
  if not config.is_dir():
    pytest.skip('needs the CMake files of the package openvino')
  build = tmp_path_factory.mktemp('build')
  setup = f'-DOpenVINO_DIR={config}', '-DCMAKE_CXX_FLAGS=-Werror'
  for command in (['-S', SOURCE, '-B', build, *setup], ['--build', build]):
    process = run('cmake', *command)
    assert process.returncode == 0, process.stdout + process.stderr
  return build / 'score'


@pytest.fixture(scope='module')
def photos(drawn):
  """Images that are neither square nor of the network's input size."""
  paths = sorted((drawn / 'disc' / 'test').rglob('*.png'))[:3]
  camera = transforms.parse(f'resize({CAMERA[0]}, {CAMERA[1]})')
  return np.stack([camera.apply(image_io.decode(path)) for path in paths])


@pytest.fixture(scope='module', params=['patchcore', 'stfpm'])
def exported(request, score, fitted):
  """A model and its graph for the camera size; skipped together with `score`."""
  model = model_dir.load(fitted(request.param))
  return Exported(model, exporter.export(model, camera_size=CAMERA).path)


@pytest.fixture
def constant(tmp_path):
  """Writes a graph with given metadata that gives every 2x3 image the same score."""

  def write(value, metadata):
    float32, uint8 = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8
    score_tensor = helper.make_tensor('value', float32, [1], [value])
    channel = helper.make_tensor('channel', onnx.TensorProto.INT64, [], [0])
    graph = helper.make_graph(
      [
        helper.make_node('Cast', ['image'], ['floats'], to=float32),
        helper.make_node('Gather', ['floats', 'channel'], ['map'], axis=3),
        helper.make_node('Identity', ['value'], ['score']),
      ],
      'constant',
      [helper.make_tensor_value_info('image', uint8, ['B', 2, 3, 3])],
      [
        helper.make_tensor_value_info('map', float32, ['B', 2, 3]),
        helper.make_tensor_value_info('score', float32, [1]),
      ],
      [score_tensor, channel],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 20)])
    helper.set_model_props(model, metadata)
    path = tmp_path / 'constant.onnx'
    onnx.save(model, path)
    return path

  return write


@pytest.fixture
def small(tmp_path):
  return saved(tmp_path / 'small.ppm', np.arange(18, dtype=np.uint8).reshape(2, 3, 3))


def test_score_label_and_map_are_those_of_predict(score, exported, photos, tmp_path):
  expected = create_model(model_dir=exported.model.directory).predict([*photos])
  for photo, result in zip(photos, expected, strict=True):
    map_path = tmp_path / 'map.bin'
    output = output_of(score, exported.path, saved(tmp_path / 'photo.ppm', photo), map_path)
    assert list(output) == ['score', 'label', 'image_threshold']
    np.testing.assert_allclose(output['score'], result.score, rtol=1e-4)
    assert output['label'] == calibration.label(result.score, result.thresholds)
    assert output['image_threshold'] == result.image_threshold
    anomaly_map = np.fromfile(map_path, np.float32).reshape(CAMERA)
    np.testing.assert_allclose(anomaly_map, result.anomaly_map, rtol=1e-4)


def test_an_image_of_another_size_is_rejected_with_both_sizes(score, exported, photos, tmp_path):
  path = saved(tmp_path / 'turned.ppm', photos[0].swapaxes(0, 1))
  error = error_of(score, exported.path, path)
  assert '75x57' in error
  assert '57x75' in error


@pytest.mark.parametrize('value', [1.5, 2.5, 3.5, 2.0, 3.0, np.nan, np.inf])
def test_labels_by_the_thresholds_of_the_file(score, constant, small, value, tmp_path):
  thresholds = calibration.Thresholds(3.0, 9.0, 2.0, 'normals', 0.01, 0.05, 10, 0.1, 0.2, 300)
  image, review = 'image_threshold', 'review_threshold'
  metadata = {
    'model_name': 'a "thresholds": {"image_threshold": 7} \\',
    'list': [{review: 8.0}, {'thresholds': {review: 8.0, image: 8.0}}],
    image: 6.0,
    'thresholds': {'method': image, 'nested': {image: 5.0}, **thresholds._asdict()},
    'other': {image: 4.0},
  }
  map_path = tmp_path / 'map.bin'
  graph = constant(value, {runtimes.METADATA_KEY: json.dumps(metadata)})
  output = output_of(score, graph, small, map_path)
  finite = value if np.isfinite(value) else None
  label = calibration.label(value, thresholds)
  assert output == {'score': finite, 'label': label, image: 3.0}
  assert np.fromfile(map_path, np.float32).tolist() == [0, 3, 6, 9, 12, 15]


@pytest.mark.parametrize(
  ('metadata', 'error'),
  [
    ({}, 'not a graph exported by uadjax'),
    ({runtimes.METADATA_KEY: '{}'}, 'no number thresholds.image_threshold'),
    (
      {runtimes.METADATA_KEY: '{"thresholds": {"image_threshold": 1, "review_threshold": "2"}}'},
      'thresholds.review_threshold',
    ),
    (
      {runtimes.METADATA_KEY: '{"thresholds": {"image_threshold": "1'},
      'thresholds.image_threshold',
    ),
  ],
)
def test_a_graph_without_thresholds_is_rejected(score, constant, small, metadata, error):
  assert error in error_of(score, constant(1.0, metadata), small)


def test_a_damaged_graph_is_named(score, constant, small):
  path = constant(1.0, {})
  path.write_bytes(path.read_bytes()[:-9])
  process = run(score, path, small)
  assert process.returncode == 1
  assert f'{path} cannot be opened by OpenVINO' in process.stderr


def test_a_comment_in_the_header_is_skipped(score, constant, tmp_path):
  path = tmp_path / 'gimp.ppm'
  path.write_bytes(b'P6\n# Made by hand, 9 9 255\n3 2\n# twice\n255\n' + bytes(18))
  thresholds = {'image_threshold': 1e-05, 'review_threshold': -2}
  metadata = {runtimes.METADATA_KEY: json.dumps({'thresholds': thresholds})}
  assert output_of(score, constant(1.0, metadata), path)['image_threshold'] == 1e-05


@pytest.mark.parametrize(
  ('content', 'error'),
  [
    (b'', 'not a binary PPM'),
    (b'\x89PNG\r\n\x1a\n', 'not a binary PPM'),
    (b'P3\n3 2\n255\n' + 18 * b'0 ', 'not a binary PPM'),
    (b'P6\n3 2', 'header is damaged'),
    (b'P6\n3 -2 255\n' + bytes(18), 'header is damaged'),
    (b'P6\n# no end', 'header is damaged'),
    (b'P6\n99999999999999999999 2 255\n', 'header is damaged'),
    (b'P6\n3 2\n65535\n' + bytes(36), '8 bits per channel'),
    (b'P6\n3 2\n255\n' + bytes(17), '18 bytes of pixels for 2x3, but has 17'),
    (b'P6\n3 2\n255\n' + bytes(19), '18 bytes of pixels for 2x3, but has 19'),
  ],
)
def test_an_invalid_ppm_is_rejected(score, content, error, tmp_path):
  path = tmp_path / 'image.ppm'
  path.write_bytes(content)
  assert error in error_of(score, 'unread.onnx', path)


def test_missing_files_are_named(score, small, tmp_path):
  for image in (tmp_path / 'none.ppm', tmp_path):
    assert f'{image} cannot be read' in error_of(score, 'unread.onnx', image)
  assert 'none.onnx does not exist' in error_of(score, 'none.onnx', small)


def test_without_arguments_it_prints_its_usage(score):
  process = run(score)
  assert process.returncode == 2
  assert 'score GRAPH.onnx IMAGE.ppm [MAP.bin]' in process.stderr
