"""No good image is warned about; an image without content, light, focus or color is."""

from concurrent import futures
import functools
import json

from hypothesis import given, strategies as st
import numpy as np
from PIL import Image, ImageFilter
import pytest

from uadjax.data import image_io, image_statistics, layouts, transforms
from uadjax.data.image_statistics import ImageStatistics, StatisticsRange

SETS = 'mvtec_ad/bottle', 'mvtec_ad/screw', 'mvtec_ad/toothbrush', 'magnetic_tile', 'kolektor'
OPS = transforms.parse('resize(256)')


def part(seed, color=(200, 120, 60), size=(300, 400)):
  """A drawn part in varying light, under noise."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[: size[0], : size[1]]
  disc = (y - size[0] / 2) ** 2 + (x - size[1] / 2) ** 2 < (0.4 * size[0]) ** 2
  stripes = disc & (x // 8 % 2 == 0)
  image = np.where(stripes[..., None], 40, np.where(disc[..., None], color, 200))
  image = image * rng.normal(1, 0.03) + rng.normal(0, 3, image.shape)
  return np.clip(image, 0, 255).astype(np.uint8)


def filled(image, value):
  return np.full_like(image, value)


def blurred(image, sigma=8):
  return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))


def gray(image):
  return np.asarray(Image.fromarray(image).convert('L').convert('RGB'))


def scaled(image, factor):
  return np.clip(image * factor, 0, 255).astype(np.uint8)


def measured(image):
  return image_statistics.measure(OPS.apply(image), image.shape[:2])


def codes(image, training_range):
  return {w.code for w in image_statistics.find_warnings(measured(image), training_range)}


@pytest.fixture(scope='module')
def training_range():
  return StatisticsRange.from_statistics(measured(part(seed)) for seed in range(20))


def test_good_images_are_not_warned_about(training_range):
  assert [codes(part(seed), training_range) for seed in range(100, 140)] == [set()] * 40


@pytest.mark.parametrize(
  ('change', 'code'),
  [
    (lambda image: filled(image, 0), 'no_content'),
    (lambda image: filled(image, 255), 'no_content'),
    (lambda image: filled(image, 128), 'no_content'),
    (lambda image: part(0, (90, 90, 90)) // 20, 'no_content'),  # Noise of a dark camera.
    (lambda image: scaled(image, 0.3), 'underexposed'),
    (lambda image: 255 - scaled(255 - image, 0.3), 'overexposed'),
    (blurred, 'blurred'),
    (gray, 'gray_instead_of_color'),
    (lambda image: image[:, :-1], 'other_size'),
    (lambda image: image.swapaxes(0, 1), 'other_size'),
  ],
)
def test_an_unusual_image_has_one_warning(training_range, change, code):
  """With the value and the range in words."""
  changed = np.ascontiguousarray(change(part(100)))
  warnings = image_statistics.find_warnings(measured(changed), training_range)
  assert [warning.code for warning in warnings] == [code]
  assert warnings[0].message.startswith('The image ')
  assert warnings[0].message.endswith('.')


def test_color_is_warned_about_where_all_training_images_are_gray():
  grays = [gray(part(seed)) for seed in range(20)]
  gray_range = StatisticsRange.from_statistics(map(measured, grays))
  assert codes(gray(part(100)), gray_range) == set()
  assert codes(part(100), gray_range) == {'color_instead_of_gray'}
  mixed = StatisticsRange.from_statistics(map(measured, [*grays, part(0)]))
  for image in (part(100), gray(part(100))):
    assert codes(image, mixed) == set()


def test_sizes_between_those_of_training_are_not_warned_about():
  image = measured(part(0))
  sizes = [(300, 400), (320, 380), (280, 400)]
  several = StatisticsRange.from_statistics(
    image._replace(height=height, width=width) for height, width in sizes
  )

  def codes_of(height, width, statistics_range=several):
    resized = image._replace(height=height, width=width)
    return [warning.code for warning in image_statistics.find_warnings(resized, statistics_range)]

  for size in (*sizes, (290, 390), (279, 401)):
    assert codes_of(*size) == [], size
  for size in ((100, 400), (300, 900)):
    assert codes_of(*size) == ['other_size'], size
  single = StatisticsRange(image, image)
  assert codes_of(300, 400, single) == []
  assert codes_of(300, 401, single) == ['other_size']


@pytest.mark.parametrize('side', [256, 512, 1024, 2048])
def test_blur_is_recognized_in_originals_of_any_size(side):
  """Which are reduced by up to eight times, and their blur as well."""
  image, rng = np.zeros((side, side, 3), np.uint8), np.random.default_rng(0)
  for _ in range(300):  # Rectangles of all sizes, as natural scenes have details of all sizes.
    height, width = (side * 2 ** rng.uniform(-7, -1, 2)).astype(int)
    top, left = rng.integers(-(side // 4), side, 2).clip(0)
    image[top : top + height, left : left + width] = rng.integers(0, 256)
  assert measured(blurred(image)).sharpness < 0.4 * measured(image).sharpness


def test_smooth_images_have_no_sharpness():
  ramp = np.linspace(20, 90, 256).astype(np.uint8)
  image = np.broadcast_to(ramp[:, None], (256, 256, 3))
  assert measured(np.ascontiguousarray(image)).sharpness < 0.01


def test_statistics_are_those_of_a_slow_loop():
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (5, 7, 3), np.uint8)
  levels = pixels @ np.array([0.299, 0.587, 0.114])
  laplacian = np.zeros_like(levels)
  for y, x in np.ndindex(levels.shape):
    for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
      neighbor = levels[min(max(v, 0), 4), min(max(u, 0), 6)]
      laplacian[y, x] += neighbor - levels[y, x]
  saturation = np.mean([int(p.max()) - int(p.min()) for p in pixels.reshape(-1, 3)])
  sharpness = np.sqrt(laplacian.var() - 20 / 12) / levels.std()
  expected = (levels.mean(), levels.std(), sharpness, saturation, 50, 70, 0)
  np.testing.assert_allclose(image_statistics.measure(pixels, (50, 70)), expected, rtol=1e-5)


statistics = st.builds(
  ImageStatistics, *[st.floats(0, 255, width=32)] * 4, *[st.integers(1, 9999)] * 2
)


@given(st.lists(statistics, min_size=2, max_size=6), st.data())
def test_merged_ranges_are_those_of_all_images(images, data):
  cut = data.draw(st.integers(1, len(images) - 1))
  whole = StatisticsRange.from_statistics(images)
  parts = [StatisticsRange.from_statistics(part) for part in (images[:cut], images[cut:])]
  assert parts[0].merge(parts[1]) == parts[1].merge(parts[0]) == whole
  assert StatisticsRange.from_dict(json.loads(json.dumps(whole.to_dict()))) == whole


@given(statistics, statistics)
def test_training_images_are_never_warned_about(first, second):
  both = StatisticsRange.from_statistics([first, second])
  assert image_statistics.find_warnings(first, both) == []


@given(statistics, statistics, statistics)
def test_more_training_images_never_make_a_usual_image_unusual(image, first, second):
  few = StatisticsRange.from_statistics([first])
  more = StatisticsRange.from_statistics([first, second])
  codes_of_few, codes_of_more = (
    {warning.code for warning in image_statistics.find_warnings(image, statistics_range)}
    for statistics_range in (few, more)
  )
  # A code may give way to another, because some replace others.
  assert codes_of_few or not codes_of_more


@functools.cache
def real(root, name):
  """Statistics of training and test images, and those test images of the whole set `name`."""
  splits = layouts.load(root, name)
  with futures.ThreadPoolExecutor() as pool:
    decoded = pool.map(lambda record: image_io.decode(record.path), splits.train)
    training_range = StatisticsRange.from_statistics(pool.map(measured, decoded))
    good = [record.path for record in splits.test if not record.is_anomalous]
    return training_range, list(pool.map(image_io.decode, good))


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize('name', SETS)
def test_good_images_of_real_sets_are_not_warned_about_and_spoiled_ones_are(shared, name):
  training_range, images = real(shared / 'data', name)
  is_color = training_range.minimum.saturation > 0
  for image in images:
    assert codes(image, training_range) == set()
    for value in (0, 128, 255):
      assert codes(filled(image, value), training_range) == {'no_content'}
    assert 'blurred' in codes(blurred(image), training_range)
    assert codes(gray(image), training_range) == ({'gray_instead_of_color'} if is_color else set())
