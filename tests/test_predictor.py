"""A file has one score whatever way it comes; a bad one loses no other."""

import itertools
import json
from pathlib import Path
import shutil
import subprocess
import sys
import threading
import time

import jax
import numpy as np
from PIL import Image
import pytest
import small_runs

from uadjax import create_model
from uadjax.data import image_io, image_statistics, transforms
from uadjax.data.pixel_range import FULL_RANGE
from uadjax.distributed import mesh
from uadjax.errors import ConfigError, DataError
from uadjax.inference import predictor
from uadjax.model import calibration, model_dir
from uadjax.system import threads
from uadjax.training import settings
from uadjax.types import Scores


@pytest.fixture(scope='module', params=small_runs.ANY_NAME)
def directory(request, trained):
  """A model of each detector."""
  return trained(request.param) / 'model'


@pytest.fixture(scope='module')
def model(directory):
  return create_model(model_dir=directory, device='cpu:0')


@pytest.fixture(scope='module')
def folder(drawn, tmp_path_factory):
  """Images of several sizes, neither square nor of the network's size, in two folders."""
  image_paths = sorted((drawn / 'disc' / 'test').rglob('*.png'))[:5]
  return cropped(image_paths, tmp_path_factory.mktemp('images'))


def cropped(image_paths, folder):
  for number, path in enumerate(image_paths):
    inner = folder / ('b' if number % 2 else 'a')
    inner.mkdir(exist_ok=True)
    image = Image.fromarray(image_io.decode(path))
    image.crop((3 * number, 0, image.width, image.height - 5)).save(inner / f'{number}.png')
  return folder


@pytest.fixture
def paths(folder):
  return sorted(folder.rglob('*.png'))


def as_tuples(results):
  return [
    (result.input_path, result.score, result.label, result.anomaly_map.tobytes())
    for result in results
  ]


def without_names(results):
  """Without the names."""
  return [result[1:] for result in as_tuples(results)]


def assert_one_score_each(model, folder, rows):
  """Of a file, whatever way it comes."""
  paths = sorted(folder.rglob('*.png'))
  one_by_one = [without_names(model.predict(str(path), rows))[0] for path in paths]
  arrays = [image_io.decode(path) for path in paths]
  for model_input in (
    folder,
    [*paths],
    [[paths[0]], {'img': str(paths[1])}, paths[2:]],
    arrays,
    (path.read_bytes() for path in paths),
  ):
    assert without_names(model.predict(model_input, rows)) == one_by_one, (rows, type(model_input))
  # Other mates in the batch, and other places in it.
  assert without_names(model.predict(paths[::-1], rows)) == one_by_one[::-1], rows


@pytest.mark.parametrize('rows', [1, 3])
def test_a_file_has_one_score_whatever_way_it_comes(model, folder, rows):
  assert_one_score_each(model, folder, rows)


@pytest.mark.real
def test_so_has_a_photograph(trained, shared, tmp_path):
  image_paths = sorted((shared / 'data' / 'originals').rglob('test/*/*.png'))[:2]
  image_paths += sorted((shared / 'data' / 'mvtec_ad' / 'screw' / 'test').rglob('*.png'))[::40]
  model = create_model(model_dir=trained('patchcore') / 'model', device='cpu:0')
  assert_one_score_each(model, cropped(image_paths, tmp_path), 3)


def test_results_come_in_order_under_their_names(model, folder, paths):
  results = list(model.predict(folder, 2))
  assert [result.input_path for result in results] == [str(path) for path in paths]


def test_batch_sizes_differ_by_rounding_alone(model, folder, paths):
  alone = list(model.predict(folder, 1))
  for rows in (2, 8):
    for result, other in zip(alone, model.predict(folder, rows), strict=True):
      assert other.score == pytest.approx(result.score, rel=1e-5)
      assert other.label == result.label
      scale = np.abs(result.anomaly_map).max()
      np.testing.assert_allclose(other.anomaly_map, result.anomaly_map, atol=1e-5 * scale, rtol=0)


def test_a_model_that_is_opened_again_says_the_same(model, directory, folder, tmp_path):
  copy = shutil.copytree(directory, tmp_path / 'elsewhere')
  again = create_model(copy, device='cpu:0')
  assert as_tuples(again.predict(folder, 2)) == as_tuples(model.predict(folder, 2))


def test_image_sizes_and_short_batches_compile_nothing_anew(directory, folder):
  model = model_dir.load(directory)
  fresh = predictor.open_on_devices(model, jax.devices()[:1])
  results = [*fresh.predict(folder, 4), *fresh.predict([folder] * 2, 4)]
  assert len({result.size for result in results}) > 2
  assert model.score._cache_size() == 1  # pyright: ignore[reportFunctionMemberAccess]


def test_several_devices_say_the_same_in_the_same_order(model, directory, folder):
  several = create_model(model_dir=directory, device='cpu:0,3,5')
  assert len(several.devices) == 3
  assert as_tuples(several.predict([folder] * 4, 2)) == as_tuples(model.predict([folder] * 4, 2))


def test_the_peak_at_original_size_is_that_at_network_size(model, folder):
  for result in model.predict(folder):
    h, w = result.size
    at_y, at_x = np.unravel_index(result.anomaly_map.argmax(), result.size)
    y, x = int((at_y + 0.5) * 32 / h), int((at_x + 0.5) * 48 / w)
    # Of peaks that are nearly equal, the smaller one may be the larger between the pixels.
    neighborhood = result.network_map[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
    assert neighborhood.max() >= 0.98 * result.network_map.max()


@pytest.mark.parametrize('rows', [1, 2])
def test_a_bad_file_loses_no_other_result(model, folder, paths, rows, tmp_path):
  bad = tmp_path / 'bad.png'
  bad.write_bytes(paths[0].read_bytes()[:200])
  results = list(model.predict([paths[0], bad, tmp_path / 'absent.png', *paths[1:]], rows))
  assert [bool(result.error) for result in results] == [
    False,
    True,
    True,
    *[False] * len(paths[1:]),
  ]
  assert str(bad) in results[1].error
  assert as_tuples([results[0], *results[3:]]) == as_tuples(model.predict(paths, rows))


def test_strict_raises_for_a_bad_file(model, paths, tmp_path):
  (tmp_path / 'bad.png').write_text('no image')
  results = model.predict([paths[0], tmp_path / 'bad.png', paths[1]], strict=True)
  assert next(results).input_path == str(paths[0])
  with pytest.raises(DataError, match=r'bad\.png'):
    next(results)


def test_thresholds_may_be_overridden(directory, drawn):
  path = min((drawn / 'disc' / 'test' / 'good').iterdir())  # Without warnings.
  score = next(create_model(model_dir=directory).predict(path)).score
  for image, review, label in (
    (score / 2, 0.0, 'NG'),
    (2 * score, 0.0, 'review'),
    (1e9, 1e9, 'OK'),
  ):
    model = create_model(model_dir=directory, image_threshold=image, review_threshold=review)
    result = next(model.predict(path))
    assert (result.label, result.image_threshold) == (label, image)


def test_an_image_without_content_is_reviewed_whatever_its_score(directory):
  black = np.zeros((small_runs.SIDE, small_runs.SIDE, 3), np.uint8)
  for threshold, label in ((1e9, 'review'), (-1.0, 'NG')):
    model = create_model(model_dir=directory, image_threshold=threshold, review_threshold=threshold)
    result = next(model.predict(black))
    assert (result.label, result.warning_codes) == (label, 'no_content')


@pytest.mark.parametrize('batch_size', [0, -1, True, 65_537, 10**9])
def test_a_batch_has_a_sensible_size(batch_size, model, paths):
  with pytest.raises(ConfigError, match='batch_size must be a whole number, at least 1') as caught:
    model.predict(paths, batch_size)
  assert (caught.value.key, caught.value.value) == ('batch_size', batch_size)


ODD_VALUES = """
import numpy
import uadjax
from uadjax.errors import UserError

model = uadjax.create_model(model_dir=MODEL)
for function, arguments in (
  (uadjax.create_model, {'device': 5}),
  (uadjax.create_model, {'device': 0}),
  (uadjax.create_model, {'device': True}),
  (uadjax.create_model, {'device': ['cpu']}),
  (uadjax.create_model, {'model_name': 5}),
  (uadjax.create_model, {'model_dir': 5}),
  (uadjax.create_model, {'backend': 5}),
  (uadjax.create_model, {'image_threshold': 'high'}),
  (uadjax.create_pipeline, {'device': 5}),
  (uadjax.create_pipeline, {'overrides': {'batch_size': True}}),
  (uadjax.create_pipeline, {'overrides': {'batch_size': 10**9}}),
  (uadjax.fit_model, {'dataset': 5}),
  (uadjax.fit_model, {'dataset': IMAGES, 'device': 5, 'workdir': 'x'}),
  (uadjax.fit_model, {'dataset': IMAGES, 'model_name': 5}),
  (uadjax.fit_model, {'dataset': IMAGES, 'workdir': 5, 'overrides': {'fit.batch_size': True}}),
  (model.predict, {'input': IMAGES, 'batch_size': 2.0}),
  (model.predict, {'input': IMAGES, 'batch_size': '2'}),
  (model.predict, {'input': IMAGES, 'batch_size': None}),
  (model.predict, {'input': IMAGES, 'batch_size': numpy.array(2)}),
):
  try:
    function(**({'model_dir': MODEL} if function is uadjax.create_model else {}) | arguments)
  except UserError as error:
    assert str(error), arguments
  else:
    raise AssertionError(arguments)
"""


def test_odd_values_of_arguments_are_errors_of_the_user(directory, drawn, tmp_path):
  """In a process whose functions do not check the types of their arguments."""
  names = f'MODEL, IMAGES = {str(directory)!r}, {str(drawn / "disc" / "train")!r}'
  command = [sys.executable, '-c', names + ODD_VALUES]
  process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
  assert process.returncode == 0, process.stderr
  assert not [*tmp_path.iterdir()]


def means(fitted, images):
  values = images.astype('float32')
  return Scores(values.mean(3), values.mean((1, 2, 3)))


class Stub:
  """A predictor that says what the mean of an image is, and counts how many are on their way."""

  def __init__(self):
    self.most = self.read = self.yielded = 0
    limits = calibration.Thresholds(9.0, 9.0, 9.0, 'normals', 0.01, 0.05, 9, 0.1, 0.1, 299)
    statistics = image_statistics.measure(np.zeros((4, 4, 3), np.uint8), (5, 5))
    training_range = image_statistics.StatisticsRange.from_statistics([statistics])
    info = model_dir.ModelInfo(
      'Stub',
      settings.default_config('padim'),
      transforms.parse('resize(4)'),
      FULL_RANGE,
      limits,
      training_range,
      None,
      Path(),
      '',
    )
    model = model_dir.Model(*info, (), jax.jit(means))
    self.predictor = predictor.open_on_devices(model, mesh.select_devices('cpu')[:2])

  def images(self, number):
    for n in range(number):
      self.read += 1
      self.most = max(self.most, self.read - self.yielded)
      yield np.full((5, 5, 3), n % 251, np.uint8)


@pytest.mark.parametrize('rows', [1, 7])
def test_images_in_progress_are_bounded_and_in_order(rows):
  stub = Stub()
  for number, result in enumerate(stub.predictor.predict(stub.images(400), rows)):
    stub.yielded += 1
    assert result.score == number % 251
  assert stub.yielded == 400
  # Waiting to be taken, being computed, being put together, being yielded.
  assert stub.most <= (3 * max(2, threads.num_cores()) + 2) * rows


def test_a_result_comes_before_the_next_image_does():
  """As from a camera that waits."""
  stub, gone = Stub(), threading.Event()

  def camera():
    yield np.full((5, 5, 3), 7, np.uint8)
    assert gone.wait(60)

  results = stub.predictor.predict(camera())
  assert next(results).score == 7
  gone.set()
  assert list(results) == []


def test_exceptions_of_the_input_are_raised():
  def broken():
    yield np.zeros((5, 5, 3), np.uint8)
    raise ZeroDivisionError('of the camera')

  results = Stub().predictor.predict(broken())
  assert next(results).score == 0
  with pytest.raises(ZeroDivisionError, match='of the camera'):
    next(results)


def test_leaving_early_leaves_no_thread_behind():
  stub, before = Stub(), set(threading.enumerate())
  results = stub.predictor.predict(stub.images(10**9))
  list(itertools.islice(results, 3))
  results.close()
  for _ in range(100):
    if not [x for x in set(threading.enumerate()) - before if x.name.startswith('uadjax')]:
      break
    time.sleep(0.1)
  else:
    pytest.fail(f'{threading.enumerate()}')


def test_saved_results_equal_the_yielded_ones(model, folder, paths, tmp_path):
  results = list(predictor.save_results(model.predict(folder, 2), tmp_path))
  assert [result.input_path for result in results] == [str(path) for path in paths]
  for path, result in zip(paths, results, strict=True):
    place = tmp_path / path.relative_to(folder).parent
    assert json.loads((place / f'{path.stem}_res.json').read_text())['score'] == result.score
    with Image.open(place / f'{path.stem}_res.png') as picture:
      assert picture.height >= result.size[0]


def test_images_of_one_name_are_saved_under_several(tmp_path):
  image = Image.new('RGB', (6, 6))
  for name in ('one/x.png', 'two/x.jpg', 'two/x.png', 'three/X.bmp', 'three/x_2.png'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    image.save(tmp_path / name)
  image_paths = sorted(tmp_path.rglob('*.*'))
  output = tmp_path / 'out'
  assert len(list(predictor.save_results(Stub().predictor.predict(image_paths), output))) == len(
    image_paths
  )
  assert len({path.name.casefold() for path in output.glob('*.json')}) == len(image_paths)


def test_a_reader_ends_with_the_block_that_reads_ahead():
  """Otherwise it might release arrays of JAX while Python exits, which aborts the process."""

  def items():
    yield 0
    time.sleep(0.2)
    yield 1

  previous_threads = {*threading.enumerate()}
  with threads.prefetch(items(), 1) as numbers:
    assert next(numbers) == 0
  assert {*threading.enumerate()} == previous_threads
