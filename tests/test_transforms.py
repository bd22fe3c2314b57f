"""Laws of the one pixel path."""

import io
import itertools
from pathlib import Path
import re
import threading
import warnings

from hypothesis import given, settings, strategies as st
import numpy as np
from PIL import Image, ImageOps, PngImagePlugin
import pytest

from uadjax.data import image_io, image_values, transforms
from uadjax.errors import ConfigError, DataError

RGB = np.random.default_rng(0).integers(0, 256, (23, 31, 3), dtype=np.uint8)
GRAY = RGB[..., 0]


def saved(image: Image.Image, kind: str = 'PNG', **options) -> bytes:
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def gray3(gray: np.ndarray) -> np.ndarray:
  return np.stack([gray] * 3, axis=-1)


def test_lossless_files_keep_their_pixels(tmp_path):
  for kind in ('PNG', 'BMP', 'TIFF', 'WEBP'):
    options = {'lossless': True} if kind == 'WEBP' else {}
    path = tmp_path / kind
    path.write_bytes(saved(Image.fromarray(RGB), kind, **options))
    np.testing.assert_array_equal(image_io.decode(path), RGB, kind)
    np.testing.assert_array_equal(image_io.decode(str(path)), RGB, kind)
    np.testing.assert_array_equal(image_io.decode(path.read_bytes()), RGB, kind)
    with path.open('rb') as file:
      np.testing.assert_array_equal(image_io.decode(file), RGB, kind)
    assert image_io.image_size(path) == (23, 31), kind


def test_gray_images_of_every_mode_decode_to_the_same_pixels():
  deep = GRAY.astype(np.uint16) * 257
  for content in (
    saved(Image.fromarray(GRAY)),
    saved(Image.fromarray(deep)),
    saved(Image.fromarray(deep), 'TIFF'),
    saved(Image.fromarray(deep.astype('>u2')), 'TIFF'),
  ):
    np.testing.assert_array_equal(image_io.decode(content), gray3(GRAY))


def test_16_bits_are_rounded():
  deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
  expected = np.round(deep / 257).astype(np.uint8)
  np.testing.assert_array_equal(image_io.decode(saved(Image.fromarray(deep)))[..., 1], expected)


def test_one_bit_and_palettes():
  np.testing.assert_array_equal(
    image_io.decode(saved(Image.fromarray(GRAY > 99))), gray3(np.uint8(255) * (GRAY > 99))
  )
  few = (RGB // 128) * 255
  palette = Image.fromarray(few).quantize(8, dither=Image.Dither.NONE)
  np.testing.assert_array_equal(image_io.decode(saved(palette)), few)
  np.testing.assert_array_equal(image_io.decode(saved(palette, transparency=b'\0\x80')), few)
  np.testing.assert_array_equal(image_io.decode(saved(palette, transparency=3)), few)


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'YCbCr'])
def test_large_images_that_are_converted_in_strips_keep_their_pixels(mode, monkeypatch):
  pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).convert(mode).save(file, 'TIFF')
  whole = image_io.decode(file.getvalue())
  for size in (1, 20, 62):
    monkeypatch.setattr(image_values, '_STRIP_PIXELS', size)
    np.testing.assert_array_equal(image_io.decode(file.getvalue()), whole)


def test_alpha_is_dropped():
  alpha = np.concatenate([RGB, GRAY[..., None]], axis=-1)
  np.testing.assert_array_equal(image_io.decode(saved(Image.fromarray(alpha))), RGB)
  shade = Image.merge('LA', [Image.fromarray(GRAY), Image.fromarray(RGB[..., 1])])
  np.testing.assert_array_equal(image_io.decode(saved(shade)), gray3(GRAY))
  np.testing.assert_array_equal(
    image_io.decode(saved(Image.fromarray(RGB), transparency=(1, 2, 3))), RGB
  )


def test_cmyk_jpeg_shows_its_colors():
  color = np.zeros((16, 16, 3), np.uint8) + np.array([200, 40, 90], np.uint8)
  inks = Image.fromarray(color).convert('CMYK')
  plain = saved(inks, 'JPEG', quality=98)  # Pillow writes Adobe's marker and inverts.
  assert b'Adobe' in plain
  np.testing.assert_allclose(image_io.decode(plain).astype(int), color, atol=4)


def mask_above(content: bytes, level: int) -> np.ndarray:
  return image_io.read_mask(content, f'above:{level}')


def test_exif_turns_image_mask_and_size():
  smooth = np.indices((24, 40)).sum(0).astype(np.uint8) * 3
  for kind, orientation in itertools.product(('JPEG', 'PNG', 'TIFF', 'WEBP'), range(1, 9)):
    exif, case = Image.Exif(), f'{kind}, {orientation}'
    exif[0x0112] = orientation
    content = saved(Image.fromarray(smooth), kind, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert('RGB'))
    decoded = image_io.decode(content)
    np.testing.assert_array_equal(decoded, expected, case)
    np.testing.assert_array_equal(mask_above(content, 99), expected.max(-1) > 99, case)
    assert image_io.image_size(content) == decoded.shape[:2], case


def move_to_end(content, kinds):
  """A PNG whose chunks of these kinds are moved behind its pixels."""
  position, chunks = 8, []
  while position < len(content):
    end = position + 12 + int.from_bytes(content[position : position + 4])
    chunks.append(content[position:end])
    position = end
  chunks.sort(key=lambda chunk: (chunk[4:8] == b'IEND', chunk[4:8] in kinds))
  return content[:8] + b''.join(chunks)


def test_the_size_of_a_png_is_read_without_its_pixels(monkeypatch):
  """Only EXIF data behind the pixels cannot be read without them."""
  exif, image = Image.Exif(), Image.fromarray(RGB[:4, :9])
  exif[0x0112] = 6
  turned = saved(image, 'PNG', exif=exif)
  late = move_to_end(turned, (b'eXIf',))
  assert late != turned
  for content in (turned, late):
    assert image_io.image_size(content) == image_io.decode(content).shape[:2] == (9, 4)
  monkeypatch.setattr(PngImagePlugin.PngImageFile, 'load', None)
  assert image_io.image_size(turned) == (9, 4)
  assert image_io.image_size(saved(image, 'PNG')) == (4, 9)
  with pytest.raises(DataError):
    image_io.image_size(late)


def test_damaged_files_are_named(tmp_path):
  messages = {}
  for kind in ('PNG', 'JPEG', 'TIFF', 'BMP', 'WEBP'):
    content = saved(Image.fromarray(np.repeat(RGB, 9, axis=0)), kind)
    for length in (0, 7, len(content) // 2):
      path = tmp_path / f'part.{kind.lower()}'
      path.write_bytes(content[:length])
      messages[kind, length] = ''
      try:
        image_io.decode(path)
      except DataError as error:
        messages[kind, length] = str(error)
  expected = re.compile(r'Cannot read .*part\.\w+: .+\.$')
  assert not {case: text for case, text in messages.items() if not expected.search(text)}


def test_empty_files_are_called_empty(tmp_path):
  path = tmp_path / 'a.png'
  path.touch()
  with path.open('rb') as file:
    for source in (path, str(path), b'', file):
      for read in (image_io.decode, image_io.image_size, image_io.read_raw_mask):
        with pytest.raises(DataError, match=r'it is empty \(0 bytes\)\.$'):
          read(source)
  with pytest.raises(DataError, match='not a JPEG'):
    image_io.decode(b'?')


def test_other_unreadable_sources_are_refused(tmp_path):
  text = tmp_path / 'notes.png'
  text.write_text('%!PS not an image')
  for path in (text, tmp_path / 'absent.png', tmp_path):
    for read in (image_io.decode, image_io.image_size, image_io.read_mask, image_io.verify):
      with pytest.raises(DataError, match=path.name):
        read(path)
  for values, text in (
    (np.array([[0.0, 7.0]], np.float32), r'float32 from 0 to 7\b.* data\.range=LOW,HIGH'),
    (np.array([[0, 70000]], np.int32), r'int32 from 0 to 70000\b.* data\.range=LOW,HIGH'),
    (np.array([[0.5, np.nan]], np.float32), 'float32 from nan to nan'),
  ):
    with pytest.raises(DataError, match=text):
      image_io.decode(saved(Image.fromarray(values), 'TIFF'))


def test_decompression_bombs_are_refused_and_large_images_do_not_warn(monkeypatch):
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 500)
  assert image_io.decode(saved(Image.fromarray(RGB))).shape == (23, 31, 3)
  with pytest.raises(DataError, match='too many pixels'):
    image_io.decode(saved(Image.fromarray(np.repeat(RGB, 2, axis=0))))


def test_warnings_stay_suppressed_across_threads(monkeypatch):
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 500)
  before = list(warnings.filters)
  content, failures = saved(Image.fromarray(RGB)), []

  def work():
    try:
      for _ in range(50):
        image_io.decode(content)
    except DataError as error:
      failures.append(error)

  threads = [threading.Thread(target=work) for _ in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not failures
  assert list(warnings.filters) == before


def test_masks_are_raw():
  few = GRAY // 64
  palette = Image.fromarray(few, 'L').convert('P')
  palette.putpalette([9, 9, 9, 0, 0, 0, 255, 0, 0, 0, 0, 255])
  for image in (
    Image.fromarray(few),
    palette,
    Image.fromarray(few.astype(np.uint16)),
    Image.fromarray(gray3(few)),
    Image.merge('LA', [Image.fromarray(few), Image.fromarray(GRAY)]),
  ):
    for threshold in (0, 1, 2):
      np.testing.assert_array_equal(mask_above(saved(image), threshold), few > threshold)
  np.testing.assert_array_equal(mask_above(saved(Image.fromarray(GRAY > 99)), 128), GRAY > 99)


def test_ops_parse_and_print():
  for text in ('resize(31)', 'resize(23, 31)', ' keep_ratio( 23 ,31 )'):
    ops = transforms.parse(text)
    assert transforms.parse(str(ops)) == ops, text
  assert transforms.parse('resize(256)|center_crop(224, 200)').width == 200


def test_bad_ops_are_refused():
  messages = {}
  for text in (
    '', 'resize', 'resize()', 'resize(0)', 'resize(2, 0)', 'resize(-1)', 'resize(1.5)', 'blur(3)',
    'resize(8)|', 'resize(8);1', 'resize(8, 8, 8)', "__import__('os')", 'resize(8)|center_crop(9)',
  ):  # fmt: skip
    messages[text] = ''
    try:
      transforms.parse(text)
    except ConfigError as error:
      messages[text] = str(error)
  assert not {text: message for text, message in messages.items() if repr(text) not in message}


def test_apply_is_the_identity_at_network_size():
  for text in ('resize(23, 31)', 'keep_ratio(23, 31)', 'center_crop(23, 31)'):
    np.testing.assert_array_equal(transforms.parse(text).apply(RGB), RGB)
  np.testing.assert_array_equal(transforms.parse('center_crop(20)').apply(RGB), RGB[1:21, 5:25])
  with pytest.raises(DataError, match='Cannot crop 24 x 24 from an image of 23 x 31'):
    transforms.parse('center_crop(24)').apply(RGB)


def test_apply_is_resize_then_crop():
  ops = transforms.parse('resize(64, 48)|center_crop(41, 36)')
  for size in ((23, 31), (300, 201), (64, 64)):
    image = np.asarray(Image.fromarray(RGB).resize(size[::-1]))
    whole = np.asarray(Image.fromarray(image).resize((48, 64), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(
      ops.apply(image).astype(int), whole[11:52, 6:42], atol=1, err_msg=f'{size}'
    )


def triangle(signal: np.ndarray, low: float, high: float, n: int) -> np.ndarray:
  """Bilinear resampling of [low, high) to n samples along the first axis, in one slow loop."""
  scale = (high - low) / n
  support = max(scale, 1.0)
  out = []
  for i in range(n):
    center = low + (i + 0.5) * scale
    weights = np.maximum(1 - abs(np.arange(len(signal)) + 0.5 - center) / support, 0)
    out.append(np.tensordot(weights / weights.sum(), signal, axes=1))
  return np.stack(out)


@pytest.mark.parametrize(
  ('text', 'box'),
  [
    ('resize(16, 12)', (0, 23, 0, 31)),
    ('resize(40, 50)', (0, 23, 0, 31)),
    ('keep_ratio(16)', (0, 23, 4, 27)),
    ('keep_ratio(10, 20)', (3.75, 19.25, 0, 31)),
    ('resize(46, 62)|center_crop(40)', (1.5, 21.5, 5.5, 25.5)),
  ],
)
def test_apply_is_the_triangle_filter(text, box):
  ops = transforms.parse(text)
  rows = triangle(RGB.astype(float), box[0], box[1], ops.height)
  expected = triangle(rows.swapaxes(0, 1), box[2], box[3], ops.width).swapaxes(0, 1)
  np.testing.assert_allclose(ops.apply(RGB), expected, atol=1.01)  # Pillow rounds twice.


CHAINS = [
  'resize(32)',
  'resize(32)|center_crop(24)',
  'keep_ratio(32, 27)',
  'keep_ratio(40)|center_crop(31)',
]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(CHAINS), st.integers(1, 90), st.integers(1, 90))
def test_a_constant_map_comes_back_constant(text, h, w):
  ops = transforms.parse(text)
  restored = ops.restore(np.full((ops.height, ops.width), 0.7, np.float32), h, w)
  assert restored.anomaly_map.shape == restored.visible.shape == (h, w)
  np.testing.assert_allclose(restored.anomaly_map, 0.7, rtol=1e-6)
  if text == 'resize(32)':
    assert restored.visible.all()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(CHAINS), st.integers(20, 90), st.integers(20, 90))
def test_restore_is_bilinear_at_the_original_pixels(text, h, w):
  ops = transforms.parse(text)
  values = np.random.default_rng(h * w).random((ops.height, ops.width), np.float32)
  frame, restored = ops.frame(h, w), ops.restore(values, h, w)
  down = (frame.bottom - frame.top) / ops.height
  right = (frame.right - frame.left) / ops.width
  y = (np.arange(h) + 0.5 - frame.top) / down
  x = (np.arange(w) + 0.5 - frame.left) / right
  low = -1e-6  # A center on an edge is inside at its start and outside at its end.
  rows, columns = ((z > low) & (z < n + low) for z, n in ((y, ops.height), (x, ops.width)))
  np.testing.assert_array_equal(restored.visible, np.outer(rows, columns))
  np.testing.assert_array_equal(restored.anomaly_map[~restored.visible], values.min())
  if down < 1 or right < 1:
    return  # Shrinking is antialiased; the other laws hold there.
  tall = [np.interp(y[rows], np.arange(ops.height) + 0.5, column) for column in values.T]
  wide = [np.interp(x[columns], np.arange(ops.width) + 0.5, row) for row in np.transpose(tall)]
  np.testing.assert_allclose(restored.anomaly_map[np.ix_(rows, columns)], wide, atol=1e-5)


def test_a_blob_comes_back_where_it_was():
  chains = 'resize(64)', 'resize(73)|center_crop(64)', 'keep_ratio(64)'
  for text, size in itertools.product(chains, ((151, 97), (64, 200), (333, 301))):
    ops = transforms.parse(text)
    y, x = size[0] * 0.45, size[1] * 0.58
    rows, columns = np.indices(size) + 0.5
    blob = np.exp(-(((rows - y) / 9) ** 2) - ((columns - x) / 9) ** 2)
    channel = ops.apply(gray3(np.round(blob * 255).astype(np.uint8)))[..., 0]
    restored = ops.restore(channel.astype(np.float32), *size).anomaly_map.astype(float)
    assert abs((restored * rows).sum() / restored.sum() - y) < 1, (text, size)
    assert abs((restored * columns).sum() / restored.sum() - x) < 1, (text, size)


@pytest.mark.real
def test_real_images_decode_as_pillow_reads_them(shared: Path):
  path = shared / 'data/mvtec_ad/screw/train/good/000.png'
  decoded = image_io.decode(path)
  np.testing.assert_array_equal(decoded, np.asarray(Image.open(path).convert('RGB')))
  mask = next((shared / 'data/mvtec_ad/bottle/ground_truth').rglob('*.png'))
  assert 0 < image_io.read_mask(mask).mean() < 0.5
