"""Where to look and what is worst: the same rules in Python and in the browser."""

import itertools
from pathlib import Path

import hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
import numpy as np
import pytest

import uadjax
from uadjax.data import inputs, transforms
from uadjax.data.image_statistics import ImageWarning
from uadjax.inference.result import Result
from uadjax.model import calibration

WEB = Path(uadjax.__file__).parent / 'web'
OPS = transforms.parse('resize(8)')
WARNING = ImageWarning('blurred', 'It is blurred.')
LABELS = ('OK', 'review', 'NG')


def thresholds(image, review, pixel):
  return calibration.Thresholds(image, pixel, review, 'normals', 0.01, 0.05, 99, 0.01, 0.03, 299)


values = st.floats(-8, 8, width=32)


@hypothesis.given(
  arrays.arrays(np.float32, (8, 8), elements=values),
  values,
  values,
  values,
  st.booleans(),
  st.booleans(),
)
def test_each_result_that_is_not_ok_has_a_region(map, score, band, pixel, has_warning, is_ng):
  image_threshold = score - 0.5 if is_ng else score + abs(band)
  limits = thresholds(image_threshold, score if has_warning else score - abs(band) - 0.5, pixel)
  limits = limits._replace(review_threshold=min(limits.review_threshold, image_threshold))
  image = np.zeros((12, 10, 3), np.uint8)
  warnings = [WARNING] * has_warning
  result = Result(inputs.Source('x.png', image), 'x', OPS, limits, (12, 10), score, map, warnings)
  assert result.label == ('NG' if is_ng else 'review')
  x, y = result.at
  assert result.peak == result.anomaly_map[y, x] == result.anomaly_map.max()
  assert result.regions[0].peak == result.peak
  assert result.region_mask[y, x]
  assert (result.region_mask >= result.predicted_mask).all()  # It only adds pixels.
  summary = result.summary()
  assert summary['regions']
  assert (summary['peak'], summary['at']) == (result.peak, [x, y])
  above = result.anomaly_map > np.float32(summary['regions_pixel_threshold'])
  np.testing.assert_array_equal(result.region_mask, above)


def test_the_review_pixel_threshold_is_scaled_like_the_review_threshold():
  assert thresholds(4.0, 3.0, 8.0).review_pixel_threshold == 6.0
  for image, review, pixel in (
    (4.0, 4.0, 8.0), (4.0, -1.0, 8.0), (-1.0, -2.0, 8.0), (np.inf, 2.0, 8.0), (4.0, 3.0, -8.0),
    (4.0, 3.0, np.inf), (4.0, 3.0, -np.inf),
  ):  # fmt: skip
    assert thresholds(image, review, pixel).review_pixel_threshold == pixel, (image, review, pixel)


def test_only_images_to_review_have_regions_of_the_review_pixel_threshold():
  limits = thresholds(4.0, 3.0, 8.0)
  for label, threshold in (('OK', 8.0), ('NG', 8.0), ('review', 6.0)):
    assert calibration.region_threshold(label, 9.0, limits) == threshold
    assert calibration.region_threshold(label, np.nan, limits) == threshold
  for label, threshold in (('OK', 8.0), ('NG', 1.9), ('review', 1.9)):
    assert calibration.region_threshold(label, 2.0, limits) == pytest.approx(threshold)


REGION_THRESHOLDS = """
import { regionThreshold } from './thresholds.js';
const answer = (cases) => cases.map(([label, peak, imageThreshold, reviewThreshold,
  pixelThreshold]) => regionThreshold(label, peak,
    { imageThreshold, reviewThreshold, pixelThreshold }));
"""


def test_browsers_use_the_same_thresholds_of_regions(in_node):
  numbers = (-1.5, 0.0, 1e-40, 0.7, 3.1)
  cases = list(itertools.product(LABELS, *[numbers] * 4))
  expected = [
    calibration.region_threshold(label, peak, thresholds(image, review, pixel))
    for label, peak, image, review, pixel in cases
  ]
  assert in_node(WEB, REGION_THRESHOLDS, cases) == expected


def slow_order(images, limits):
  """Indices by the definition: wrong ones, then the farthest on the wrong side, then the input."""

  def is_worse(a, b):
    wrong = [label == ('OK' if bad else 'NG') for _, label, bad in (a, b)]
    sides = [
      (limits.image_threshold - score) if bad else (score - limits.image_threshold)
      for score, _, bad in (a, b)
    ]
    return wrong[0] > wrong[1] or (wrong[0] == wrong[1] and sides[0] > sides[1])

  order = []
  for i, image in enumerate(images):
    place = next((k for k, j in enumerate(order) if is_worse(image, images[j])), len(order))
    order.insert(place, i)
  return order


def draw(rng, count):
  """(score, label, is_defective) of images, and their thresholds."""
  limits = thresholds(2.0, 1.5, 3.0)
  images = []
  for _ in range(count):
    score, has_warning = float(rng.integers(0, 9) / 2), rng.random() < 0.2
    label = calibration.label(score, limits, bool(has_warning))
    images.append((score, label, bool(rng.random() < 0.5)))
  return images, limits


def order(images, limits):
  keys = [
    calibration.worst_first_key(score, label, limits.image_threshold, bad)
    for score, label, bad in images
  ]
  return sorted(range(len(images)), key=keys.__getitem__)


@hypothesis.given(st.integers(0, 2**32 - 1))
def test_wrong_verdicts_come_first_then_the_margin_decides(seed):
  images, limits = draw(np.random.default_rng(seed), 20)
  assert order(images, limits) == slow_order(images, limits)


def test_without_classes_the_highest_scores_come_first():
  limits = thresholds(2.0, 1.5, 3.0)
  scores = [1.0, float('nan'), 3.0, 1.7, 2.5]
  images = [(score, calibration.label(score, limits), False) for score in scores]
  assert [scores[i] for i in order(images, limits)][1:] == [3.0, 2.5, 1.7, 1.0]


ORDERS = """
import { compareWorst } from './thresholds.js';
const limits = { imageThreshold: 2, reviewThreshold: 1.5 };
const answer = (groups) => groups.map((images) => images.map((image, i) => ({ ...image, i }))
  .sort((a, b) => compareWorst(a, b, limits)).map(({ i }) => i));
"""


def test_browsers_use_the_same_order(in_node):
  rng = np.random.default_rng(0)
  groups, expected = [], []
  for _ in range(60):
    images, limits = draw(rng, 15)
    images.append((float('nan'), 'NG', bool(rng.random() < 0.5)))
    expected.append(order(images, limits))
    # An image whose score is OK is for review because of a warning.
    groups.append([
      {
        'score': None if np.isnan(score) else score, 'isDefective': bad,
        'warnings': ['blurred'] * (label == 'review' and score <= 1.5),
      }
      for score, label, bad in images
    ])  # fmt: skip
  assert in_node(WEB, ORDERS, groups) == expected
