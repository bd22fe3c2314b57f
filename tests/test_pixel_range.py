"""Images of more than 8 bits: the same values give the same pixels, however they are stored."""

import base64
import io
import json
from pathlib import Path
import time

import deep_images
from jax import numpy as jnp
import numpy as np
from PIL import Image
import pytest
import small_runs
from starlette import testclient

from uadjax import create_model, data
from uadjax.data import bit_depth, checks, image_io, inputs, pixel_range, transforms
from uadjax.data.image_cache import ImageCache
from uadjax.data.pixel_range import PixelRange
from uadjax.data.records import Record
from uadjax.data.settings import DataSettings
from uadjax.errors import ConfigError, DataError
from uadjax.export import graph as graphs, runtimes
from uadjax.model import model_dir
from uadjax.serve import app as apps, settings as serve_settings

DEPTHS = 8, 10, 12, 14, 16
OPS = transforms.parse('resize(16)')


def noise(bits: int, *shape: int, seed: int = 0) -> np.ndarray:
  """Values of which one is the largest."""
  values = np.random.default_rng(seed).integers(0, 1 << bits, shape, np.uint16)
  values.flat[0] = (1 << bits) - 1
  return values


def expected(values: np.ndarray, low: float, high: float) -> np.ndarray:
  """Scale each value by itself, as RGB."""
  scaled = [round(255 * (float(v) - low) / (high - low)) for v in values.ravel()]
  pixels = np.array(scaled, np.uint8).reshape(*values.shape[:2], -1)
  return pixels if pixels.shape[-1] == 3 else np.repeat(pixels, 3, axis=-1)


def encoded(values: np.ndarray, image_format: str, **options: object) -> bytes:
  file = io.BytesIO()
  Image.fromarray(values).save(file, image_format, **options)
  return file.getvalue()


def portable(values: np.ndarray, maximum: int) -> bytes:
  """A PPM or PGM whose header names a maximum."""
  kind = 'P6' if values.ndim == 3 else 'P5'
  header = f'{kind} {values.shape[1]} {values.shape[0]} {maximum}\n'
  return header.encode() + values.astype('>u2').tobytes()


def files(values: np.ndarray, bits: int) -> dict[str, bytes]:
  """Encode values of a bit depth in each container; return the files by its name."""
  maximum = max((1 << bits) - 1, 256)  # A smaller one means a byte per value.
  stored = {'PPM': portable(values, 65535), 'PPM with maximum': portable(values, maximum)}
  if values.ndim == 2:
    alpha = np.stack([values, np.full_like(values, 7)], axis=-1)
    return stored | {
      'PNG': encoded(values, 'PNG'), 'PNG with alpha': deep_images.png(alpha),
      'TIFF': encoded(values, 'TIFF'), 'LZW': encoded(values, 'TIFF', compression='tiff_lzw'),
      'big-endian TIFF': encoded(values.astype('>u2'), 'TIFF'),
    }  # fmt: skip
  alpha = np.concatenate([values, np.full_like(values[..., :1], 7)], axis=-1)
  return stored | {
    'PNG': deep_images.png(values), 'PNG with alpha': deep_images.png(alpha),
    **{
      f'TIFF {order} {is_compressed} {x.shape[-1]}': deep_images.tiff(x, order, is_compressed)
      for order in '<>' for is_compressed in (False, True) for x in (values, alpha)
    },
  }  # fmt: skip


@pytest.mark.parametrize('bits', DEPTHS)
def test_every_value_is_scaled_and_rounded(bits):
  values = np.arange(1 << bits, dtype=np.uint16).reshape(4, -1)
  for stored in (values, values.astype('>u2'), np.asfortranarray(values)):
    got = image_io.to_rgb(stored, PixelRange(bits))
    np.testing.assert_array_equal(got, expected(values, 0, (1 << bits) - 1))


@pytest.mark.parametrize('shape', [(13, 17), (13, 17, 3)])
@pytest.mark.parametrize('bits', DEPTHS)
def test_the_same_values_are_the_same_pixels_in_every_container(bits, shape, tmp_path):
  values, reading = noise(bits, *shape), PixelRange(bits)
  want = expected(values, 0, (1 << bits) - 1)
  path = tmp_path / 'image'
  for name, content in files(values, bits).items():
    path.write_bytes(content)
    with path.open('rb') as file:
      for source in (content, path, str(path), file):
        got = image_io.decode(source, pixel_range=reading)
        np.testing.assert_array_equal(got, want, name)
        assert image_io.largest_16_bit_value(source) == values.max(), name
  array = inputs.Source('array', values)
  np.testing.assert_array_equal(inputs.read(array, pixel_range=reading), want)


def test_8_bits_are_unchanged_at_any_bit_depth(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (13, 17, 3), np.uint8)
  for reading in (PixelRange(8), PixelRange(12, (-5.0, 3.0))):
    for content in (encoded(pixels, 'PNG'), encoded(pixels, 'TIFF'), encoded(pixels, 'PPM')):
      np.testing.assert_array_equal(image_io.decode(content, pixel_range=reading), pixels)
      assert image_io.largest_16_bit_value(content) is None
    got = inputs.read(inputs.Source('array', pixels), pixel_range=reading)
    np.testing.assert_array_equal(got, pixels)


def test_large_images_are_converted_in_strips(monkeypatch):
  values = noise(12, 50, 30, 3)
  whole = PixelRange(12).to_uint8(values)
  for size in (1, 100, 1000):
    monkeypatch.setattr(pixel_range, '_STRIP_VALUES', size)
    np.testing.assert_array_equal(PixelRange(12).to_uint8(values), whole)


def test_larger_values_are_refused_with_the_file_the_value_and_the_setting(tmp_path):
  values = noise(12, 9, 9)
  values[3, 4] = 5000
  path = tmp_path / 'bright.png'
  path.write_bytes(encoded(values, 'PNG'))
  for source in (path, values, encoded(values, 'PNG')):
    with pytest.raises(DataError, match=r'its largest value is 5000, but .* 12 .* 4095') as caught:
      inputs.read(inputs.Source('bright.png', source), pixel_range=PixelRange(12))
    error = caught.value
    assert (error.key, error.value, error.allowed) == ('data.bits', 5000, 'at most 4095')
    assert 'bright.png' in str(error)
    assert str(error).endswith('Such images need data.bits=14.')


def test_floats_signed_and_32_bits_need_a_range(tmp_path):
  values = np.random.default_rng(0).integers(-300, 700, (9, 11)).astype(np.int16)
  low, high = -300.0, 700.0
  kinds = values, values.astype(np.int32), values.astype(np.float32)
  sources = [encoded(x, 'TIFF') for x in kinds[1:]]
  sources += [*kinds, values.astype(np.float64), values.astype(np.int64)]
  for origin in sources:
    source = inputs.Source('x', origin)
    got = inputs.read(source, pixel_range=PixelRange(12, (low, high)))
    np.testing.assert_array_equal(got, expected(values, low, high))
    with pytest.raises(DataError, match=r'from -\d+ to \d+, and no setting says') as caught:
      inputs.read(source)
    assert caught.value.key == 'data.range'
    with pytest.raises(DataError, match='must be in 0 to 500') as caught:
      inputs.read(source, pixel_range=PixelRange(12, (0.0, 500.0)))
    assert (caught.value.key, caught.value.allowed) == ('data.range', '0 to 500')
  for wrong in (np.nan, np.inf):
    with pytest.raises(DataError, match='must be in 0 to 1'):
      PixelRange(16, (0.0, 1.0)).to_uint8(np.full((2, 2), wrong))
  with pytest.raises(DataError, match=r'Or scale the values to 0-255 .*uint8'):
    inputs.expand(np.full((2, 2), 0.5))


def test_a_range_is_two_finite_numbers_in_order():
  assert pixel_range.parse_limits('') is None
  assert pixel_range.parse_limits(' -1.5, 2e3') == (-1.5, 2000.0)
  for text in ('1', '1,2,3', 'a,b', '2,1', '1,1', 'nan,1', '0,inf', ','):
    with pytest.raises(ConfigError) as caught:
      pixel_range.parse_limits(text)
    assert (caught.value.key, caught.value.value) == ('data.range', text)


def test_auto_is_the_smallest_depth_that_holds_all_training_images(tmp_path, caplog):
  records = []

  def add(content: bytes) -> None:
    records.append(Record(tmp_path / f'{len(records)}.png'))
    records[-1].path.write_bytes(content)

  caplog.set_level('INFO', 'uadjax')
  add(encoded(np.zeros((9, 9), np.uint8), 'PNG'))
  add(b'no image')
  add(encoded(np.full((9, 9), 70_000, np.int32), 'TIFF'))
  assert bit_depth.decide(records) == '16'
  assert not caplog.records  # There is nothing to decide.
  for largest, bits in ((255, 8), (256, 10), (1023, 10), (1024, 12), (4096, 14), (16384, 16)):
    add(encoded(np.full((9, 9), largest, np.uint16), 'PNG'))
    for order in (records, records[::-1]):
      assert bit_depth.decide(order) == str(bits)
    assert f'{bits}, because the training image {records[-1].path} has' in caplog.text
    assert pixel_range.bits_for(largest) == bits


def folder(root: Path, bits: int, test_bits: int) -> DataSettings:
  """A dataset of images of 16 bits in color and in gray."""
  for split, depth, count in (('train', bits, 6), ('test', test_bits, 2)):
    for i in range(count):
      path = root / 'disc' / split / 'good' / f'{i}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      values = noise(depth, 40, 44, *((3,) if i % 2 else ()), seed=i + len(split))
      path.write_bytes(deep_images.png(values) if i % 2 else encoded(values, 'PNG'))
  return DataSettings(root=str(root), category='disc')


def test_the_check_decides_and_refuses_larger_values(tmp_path):
  assert data.check_dataset(folder(tmp_path / 'a', 12, 10)).pixel_range.bits == 12
  report = data.check_dataset(folder(tmp_path / 'b', 10, 12))
  assert report.pixel_range.bits == 10
  assert [p.kind for p in report.errors] == ['unreadable file'] * 2
  assert all('data.bits=12' in p.message for p in report.errors)


def test_the_cache_and_the_check_have_the_same_pixels(tmp_path):
  settings = folder(tmp_path, 12, 12)
  caches = [ImageCache(OPS, 1 << 20, PixelRange(12)) for _ in range(2)]
  report = data.check_dataset(settings, on_train_image=caches[0].add)
  for record in report.splits.train:
    got, want = (cache.load(record.path) for cache in caches)
    np.testing.assert_array_equal(got, want)
    assert want.max() > 100  # Not crushed to the lowest levels.


def test_further_pages_are_reported_and_not_judged(tmp_path):
  pages = [Image.fromarray(np.full((8, 9), i, np.uint8)) for i in (50, 60, 70)]
  paths = [tmp_path / 'good' / f'{i}.tif' for i in range(3)]
  paths[0].parent.mkdir()
  pages[0].save(paths[0], save_all=True, append_images=pages[1:])
  pages[1].save(paths[1])
  pages[2].encoderinfo = {'tiffinfo': {254: 1}}  # A reduced copy of the first page.
  pages[2].save(paths[2], save_all=True, append_images=[pages[2]], tiffinfo={254: 1})
  images = [image_io.read_image(path) for path in paths]
  assert [image.has_further_pages for image in images] == [True, False, False]
  assert [int(image.pixels.max()) for image in images] == [50, 60, 70]
  problems = checks.check(tmp_path / 'good').problems
  assert [p.path for p in problems if p.kind == 'further pages'] == [paths[0]]
  loaded = [inputs.load(inputs.Source('x', path), OPS) for path in paths]
  assert [x.require_statistics().further_pages for x in loaded] == [1, 0, 0]


class Dlpack:
  """An array of a library that has nothing but DLPack."""

  def __init__(self, array: np.ndarray):
    self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__


class OnGpu:
  """An array in the memory of another device."""

  def __dlpack__(self, **_: object) -> None:
    raise BufferError('it is on a GPU')


def test_arrays_of_other_libraries_and_images_of_pillow_are_read():
  color = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
  deep = noise(12, 9, 11)
  depths = (color, PixelRange()), (color[..., 0], PixelRange()), (deep, PixelRange(12))
  for array, reading in depths:
    want = inputs.read(inputs.Source('x', array), pixel_range=reading)
    others = jnp.asarray(array), Dlpack(array), Image.fromarray(array)
    for other in (*others, [others[0]], {'img': others[2]}):
      (source,) = inputs.expand(other)
      np.testing.assert_array_equal(inputs.read(source, pixel_range=reading), want)
  names = [s.name for s in inputs.expand([jnp.asarray(color), Image.fromarray(color)])]
  assert names == ['array_0000', 'array_0001']
  with pytest.raises(DataError, match=r'it is on a GPU.*CPU'):
    inputs.expand(OnGpu())


def test_an_image_that_pillow_opened_is_read_as_its_file_is(tmp_path):
  gray, color = noise(12, 9, 11), noise(12, 9, 11, 3)
  turned = np.arange(99, dtype=np.uint8).reshape(9, 11)
  exif = Image.Exif()
  exif[274] = 6
  for content in (encoded(gray, 'PNG'), encoded(turned, 'PNG', exif=exif), encoded(gray, 'TIFF')):
    with Image.open(io.BytesIO(content)) as opened:
      for _ in range(2):  # The second time it is loaded.
        got = inputs.read(inputs.Source('x', opened), pixel_range=PixelRange(12))
        want = image_io.decode(content, pixel_range=PixelRange(12))
        np.testing.assert_array_equal(got, want)
  for content in (deep_images.png(color), deep_images.tiff(color)):
    with Image.open(io.BytesIO(content)) as opened, pytest.raises(DataError, match='its file'):
      inputs.read(inputs.Source('x', opened))


def test_planes_of_16_bits_are_refused():
  with pytest.raises(DataError, match='interleaved'):
    image_io.decode(deep_images.tiff(noise(12, 9, 11, 3), is_planar=True))


def with_bits(model: Path, bits: int) -> Path:
  """A model directory as if it had been fitted with a bit depth."""
  path = model / 'manifest.json'
  manifest = json.loads(path.read_text())
  manifest['config']['data']['bits'] = str(bits)
  manifest['config_sha256'] = model_dir.hash_settings(manifest['config'])
  path.write_text(json.dumps(manifest))
  return model


def test_file_array_service_and_graph_give_the_same_score(drawn, exported, tmp_path):
  folder = with_bits(exported('padim'), 12)
  path = next((drawn / 'disc' / 'test').rglob('*.png'))
  pixels = image_io.decode(path)
  deep = np.round(pixels / 255 * 4095).astype(np.uint16)  # Rounds to the same 8 bits.
  (tmp_path / 'deep.png').write_bytes(deep_images.png(deep))
  (tmp_path / 'deep.tiff').write_bytes(deep_images.tiff(deep))
  model = create_model(model_dir=folder, backend='onnxruntime')
  inputs_of_same_score = path, pixels, deep, tmp_path / 'deep.png', tmp_path / 'deep.tiff'
  results = list(model.predict([*inputs_of_same_score, jnp.asarray(deep)]))
  scores = [result.score for result in results]
  assert scores == [scores[0]] * 6
  np.testing.assert_array_equal(results[3].read_image(), pixels)

  settings = serve_settings.Settings({'disc': folder}, backend='onnxruntime')
  with testclient.TestClient(apps.build_app(settings)) as client:
    end = time.monotonic() + 60
    while client.get('/v2/health/ready').status_code != 200:
      assert time.monotonic() < end, client.get('/models').text
      time.sleep(0.02)
    content = base64.b64encode((tmp_path / 'deep.png').read_bytes()).decode()
    answer = client.post('/image-anomaly-detection', json={'image': content}).json()
    assert answer['result']['score'] == scores[0]
    bright = base64.b64encode(encoded(np.full((9, 9), 4096, np.uint16), 'PNG')).decode()
    answer = client.post('/image-anomaly-detection', json={'image': bright})
    assert (answer.status_code, 'data.bits=14' in answer.json()['errorMsg']) == (422, True)

  opened = model_dir.load(folder)
  about = graphs.from_model(opened, None, None).metadata['preprocessing']
  assert (about['bits'], about['range']) == (12, None)
  taken = np.round(deep * 255.0 / (2 ** about['bits'] - 1)).astype(np.uint8)  # As docs/deploy.md.
  run = runtimes.open_graph(folder / 'model.onnx', 'onnxruntime').run
  np.testing.assert_allclose(run(opened.ops.apply(taken)[None]).image, scores[0], rtol=1e-5)


@pytest.mark.slow
def test_a_fit_decides_stores_and_keeps_the_depth(tmp_path, capfd):
  folder(tmp_path / 'a', 12, 12)
  flags = small_runs.flags('padim', tmp_path / 'a')
  run = tmp_path / 'run'
  assert small_runs.run(*flags, f'--workdir={run}') == 0
  assert small_runs.manifest(run)['config']['data']['bits'] == '12'
  assert 'bits: auto' in (run / 'config.yaml').read_text()
  assert '(data.bits=auto): 12, because' in (run / 'train.log').read_text()
  # The model's depth holds for its evaluation and its extension, whatever the images are.
  folder(tmp_path / 'b', 10, 10)
  flags = small_runs.flags('padim', tmp_path / 'b')
  evaluation = '--config.mode=evaluate', f'--config.evaluate.model_dir={run / "model"}'
  assert small_runs.run(*flags, *evaluation, f'--workdir={tmp_path / "eval"}') == 0
  extend = f'--config.fit.extend={run / "model"}', f'--workdir={tmp_path / "more"}'
  assert small_runs.run(*flags, *extend) == 0
  assert small_runs.manifest(tmp_path / 'more')['config']['data']['bits'] == '12'
  capfd.readouterr()
  assert small_runs.run(*flags, *extend, '--config.data.bits=16') == 2
  assert '--config.data.bits=12' in capfd.readouterr().err
  (tmp_path / 'bright.png').write_bytes(encoded(np.full((9, 9), 5000, np.uint16), 'PNG'))
  (result,) = create_model(model_dir=run / 'model').predict([tmp_path / 'bright.png'])
  assert 'its largest value is 5000' in result.error
