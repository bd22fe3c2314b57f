"""The example in C++ says what Python says."""

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

pytestmark = pytest.mark.slow  # It is a recipe, and takes a compiler.

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / 'docs' / 'examples' / 'cpp'
CAMERA = 57, 75


class Exported(NamedTuple):
  model: model_dir.Model
  path: Path


def ran(*command):
  return subprocess.run([str(one) for one in command], capture_output=True, text=True, check=False)


def told(program, *files):
  done = ran(program, *files)
  assert (done.returncode, done.stderr) == (0, '')
  return json.loads(done.stdout)


def refused(program, *files):
  done = ran(program, *files)
  assert (done.returncode, done.stdout) == (1, '')
  assert len(done.stderr.splitlines()) == 1
  return done.stderr


def saved(path, photo):
  Image.fromarray(photo).save(path)
  return path


@pytest.fixture(scope='module')
def score(tmp_path_factory):
  """The program, compiled; a warning fails it."""
  if not shutil.which('cmake'):
    pytest.skip('needs cmake, which is absent')
  if not any(map(shutil.which, ('c++', 'g++', 'clang++'))):
    pytest.skip('needs a C++ compiler, and there is none')
  found = importlib.util.find_spec('openvino')  # Not imported: it would look for its telemetry.
  if found is None or found.origin is None:
    pytest.skip('needs the package openvino, which is absent')
  config = Path(found.origin).parent / 'cmake'
  if not config.is_dir():
    pytest.skip('needs the CMake files of the package openvino, which has none here')
  build = tmp_path_factory.mktemp('build')
  setup = f'-DOpenVINO_DIR={config}', '-DCMAKE_CXX_FLAGS=-Werror'
  for command in (['-S', SOURCE, '-B', build, *setup], ['--build', build]):
    done = ran('cmake', *command)
    assert done.returncode == 0, done.stdout + done.stderr
  return build / 'score'


@pytest.fixture(scope='module')
def photos(drawn):
  """Neither square nor of the network's size."""
  paths = sorted((drawn / 'disc' / 'test').rglob('*.png'))[:3]
  camera = transforms.parse(f'resize({CAMERA[0]}, {CAMERA[1]})')
  return np.stack([camera.apply(image_io.decode(path)) for path in paths])


@pytest.fixture(scope='module', params=['patchcore', 'stfpm'])
def exported(request, score, fitted):
  """A model, and its graph for the camera; not made where the program cannot be."""
  model = model_dir.load(fitted(request.param))
  return Exported(model, exporter.export(model, camera=CAMERA).path)


@pytest.fixture
def constant(tmp_path):
  """Writes a graph that gives every 2x3 image the same score, with any metadata."""

  def write(value, about):
    float32, uint8 = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8
    scored = helper.make_tensor('value', float32, [1], [value])
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
      [scored, channel],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 20)])
    helper.set_model_props(model, about)
    path = tmp_path / 'constant.onnx'
    onnx.save(model, path)
    return path

  return write


@pytest.fixture
def small(tmp_path):
  return saved(tmp_path / 'small.ppm', np.arange(18, dtype=np.uint8).reshape(2, 3, 3))


def test_score_label_and_map_are_those_of_predict(score, exported, photos, tmp_path):
  expected = create_model(model_dir=exported.model.directory).predict([*photos])
  for photo, want in zip(photos, expected, strict=True):
    map = tmp_path / 'map.bin'
    got = told(score, exported.path, saved(tmp_path / 'photo.ppm', photo), map)
    assert list(got) == ['score', 'label', 'threshold']
    np.testing.assert_allclose(got['score'], want.score, rtol=1e-4)
    assert got['label'] == want.label
    assert got['threshold'] == want.image_threshold
    drawn = np.fromfile(map, np.float32).reshape(CAMERA)
    np.testing.assert_allclose(drawn, want.anomaly_map, rtol=1e-4)


def test_an_image_of_another_size_is_refused_with_both_sizes(score, exported, photos, tmp_path):
  path = saved(tmp_path / 'turned.ppm', photos[0].swapaxes(0, 1))
  error = refused(score, exported.path, path)
  assert '75x57' in error
  assert '57x75' in error


@pytest.mark.parametrize('value', [1.5, 2.5, 3.5, 2.0, 3.0, np.nan, np.inf])
def test_labels_by_the_thresholds_of_the_file(score, constant, small, value, tmp_path):
  limits = calibration.Limits(3.0, 9.0, 2.0, 'normals', 0.01, 0.05, 10, 0.1, 0.2, 300)
  about = {
    'model_name': 'a "thresholds": {"image": 7} \\',
    'list': [{'review': 8.0}, {'thresholds': {'review': 8.0, 'image': 8.0}}],
    'image': 6.0,
    'thresholds': {'method': 'image', 'deeper': {'image': 5.0}, **limits._asdict()},
    'other': {'image': 4.0},
  }
  map = tmp_path / 'map.bin'
  got = told(score, constant(value, {runtimes.ABOUT: json.dumps(about)}), small, map)
  finite = value if np.isfinite(value) else None
  assert got == {'score': finite, 'label': calibration.label(value, limits), 'threshold': 3.0}
  assert np.fromfile(map, np.float32).tolist() == [0, 3, 6, 9, 12, 15]


@pytest.mark.parametrize(
  ('about', 'error'),
  [
    ({}, 'no graph of uadjax'),
    ({runtimes.ABOUT: '{}'}, 'no number thresholds.review'),
    ({runtimes.ABOUT: '{"thresholds": {"review": 1, "image": "2"}}'}, 'thresholds.image'),
    ({runtimes.ABOUT: '{"thresholds": {"review": "1'}, 'thresholds.review'),
  ],
)
def test_a_graph_without_thresholds_is_refused(score, constant, small, about, error):
  assert error in refused(score, constant(1.0, about), small)


def test_a_damaged_graph_is_named(score, constant, small):
  path = constant(1.0, {})
  path.write_bytes(path.read_bytes()[:-9])
  done = ran(score, path, small)
  assert done.returncode == 1
  assert f'{path} cannot be opened by OpenVINO' in done.stderr


def test_a_comment_in_the_header_is_skipped(score, constant, tmp_path):
  path = tmp_path / 'gimp.ppm'
  path.write_bytes(b'P6\n# Made by hand, 9 9 255\n3 2\n# twice\n255\n' + bytes(18))
  about = {runtimes.ABOUT: json.dumps({'thresholds': {'image': 1e-05, 'review': -2}})}
  assert told(score, constant(1.0, about), path)['threshold'] == 1e-05


@pytest.mark.parametrize(
  ('content', 'error'),
  [
    (b'', 'no binary PPM'),
    (b'\x89PNG\r\n\x1a\n', 'no binary PPM'),
    (b'P3\n3 2\n255\n' + 18 * b'0 ', 'no binary PPM'),
    (b'P6\n3 2', 'header is damaged'),
    (b'P6\n3 -2 255\n' + bytes(18), 'header is damaged'),
    (b'P6\n# no end', 'header is damaged'),
    (b'P6\n99999999999999999999 2 255\n', 'header is damaged'),
    (b'P6\n3 2\n65535\n' + bytes(36), '8 bits per channel'),
    (b'P6\n3 2\n255\n' + bytes(17), '18 bytes of pixels for 2x3, and has 17'),
    (b'P6\n3 2\n255\n' + bytes(19), '18 bytes of pixels for 2x3, and has 19'),
  ],
)
def test_what_is_no_ppm_is_refused(score, content, error, tmp_path):
  path = tmp_path / 'image.ppm'
  path.write_bytes(content)
  assert error in refused(score, 'unread.onnx', path)


def test_files_that_are_not_there_are_named(score, small, tmp_path):
  for image in (tmp_path / 'none.ppm', tmp_path):
    assert f'{image} cannot be read' in refused(score, 'unread.onnx', image)
  assert 'none.onnx is not there' in refused(score, 'none.onnx', small)


def test_without_files_it_tells_how_it_is_used(score):
  done = ran(score)
  assert done.returncode == 2
  assert 'score GRAPH.onnx IMAGE.ppm [MAP.bin]' in done.stderr
