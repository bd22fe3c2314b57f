from concurrent import futures
import itertools

import numpy as np
import pytest

from uadjax.visualization import heatmap, result_image

LABELS = ('OK', 'review', 'NG')


def told(label='NG', score=26.0, name='000.png', image=16.0, review=14.0, pixel=16.0):
  return result_image.Verdict(name, label, score, image, review, pixel)


def photo(height, width):
  return np.random.default_rng(3).integers(0, 255, (height, width, 3), np.uint8)


def faint(height, width):
  """A map without a marked pixel, and where its peak is."""
  anomaly = np.full((height, width), 5, np.float32)
  peak_at = width // 2, height // 4
  anomaly[peak_at[1], peak_at[0]] = 15
  return anomaly, peak_at


def place(sheet, panel):
  """Find the one place of a panel in a picture: x and y."""
  rows, columns = sheet.shape[0] - panel.shape[0] + 1, sheet.shape[1] - panel.shape[1] + 1
  starts = np.argwhere((sheet[:rows, :columns] == panel[0, 0]).all(-1))
  height, width = panel.shape[:2]
  found = [(x, y) for y, x in starts if (sheet[y : y + height, x : x + width] == panel).all()]
  (one,) = found
  return one


def drawn(image, anomaly, peak_at, what, threshold=16.0):
  return np.asarray(result_image.draw_result(image, anomaly, anomaly > threshold, peak_at, what))


def test_the_original_is_untouched_beside_the_map():
  """Whatever the label and wherever the peak; side by side, or one above the other where wide."""
  for size in ((64, 64), (100, 200), (100, 201), (90, 400), (300, 20), (700, 500)):
    image, (anomaly, peak_at) = photo(*size), faint(*size)
    height, width = size
    for label, corner in zip(LABELS, (peak_at, (0, 0), (width - 1, height - 1)), strict=True):
      left, top = place(drawn(image, anomaly, corner, told(label)), image)
    sheet = drawn(image, anomaly, peak_at, told('OK'))
    (left, top), (x, y) = place(sheet, image), place(sheet, heatmap.overlay(image, anomaly, 16.0))
    if width > 2 * height:
      assert (x, y >= top + height) == (left, True), size
    else:
      assert (x >= left + width, y) == (True, top), size


def test_a_ring_shows_where_unless_all_is_well():
  image, (anomaly, peak_at) = photo(200, 300), faint(200, 300)
  over = heatmap.overlay(image, anomaly, 16.0)
  x, y = place(drawn(image, anomaly, peak_at, told('OK')), over)
  for label in LABELS:
    panel = drawn(image, anomaly, peak_at, told(label))[y : y + 200, x : x + 300]
    changed = np.argwhere((panel != over).any(-1))
    if label == 'OK':
      assert not len(changed)
      continue
    away = np.hypot(*(changed - (peak_at[1], peak_at[0])).T)
    assert away.min() > 2, label  # What is at the peak stays visible.
    assert away.max() < 20, label
    np.testing.assert_allclose(changed.mean(0), (peak_at[1], peak_at[0]), atol=0.5, err_msg=label)


def test_marked_regions_are_outlined():
  image, (anomaly, peak_at) = photo(200, 300), faint(200, 300)
  anomaly[80:120, 60:140] = 20
  over = heatmap.overlay(image, anomaly, 16.0)
  place(drawn(image, anomaly, peak_at, told('OK')), heatmap.draw_outline(over, anomaly > 16))


def test_labels_are_told_apart_without_color():
  image, (anomaly, peak_at) = photo(64, 64), faint(64, 64)
  pictures = [
    result_image.draw_result(image, anomaly, anomaly > 16, peak_at, told(la)) for la in LABELS
  ]
  badges = [np.asarray(picture.convert('L'))[10:46, 14:130].astype(int) for picture in pictures]
  for one, other in itertools.combinations(badges, 2):
    assert (np.abs(one - other) > 60).mean() > 0.15
  body = [np.median(badge[6:12, 15:50]) for badge in badges]  # Above word and sign.
  assert body[0] > body[1] + 40 > body[2] + 80


def test_the_pointer_is_where_the_score_is_and_stays_on_the_gauge():
  for score in (0.0, 5.0, 14.5, 16.5, 31.0):
    place_of = result_image._gauge_mapping(told(score=score))
    assert place_of(16.0) == 0.5
    assert place_of(score) == pytest.approx(score / 32)
  place_of = result_image._gauge_mapping(told())
  assert [place_of(v) for v in (-np.inf, -1e9, 1e9, np.inf, np.nan)] == [0, 0, 1, 1, 1]


def test_letters_grow_with_the_picture():
  heads = []
  for side in (64, 1000, 2000):
    image, (anomaly, peak_at) = photo(side, side), faint(side, side)
    sheet = drawn(image, anomaly, peak_at, told('OK'))
    heads.append(place(sheet[:, : side + 400], image)[1])
  assert heads[0] > 60  # Legible, and so in two rows on so narrow a picture.
  assert heads[2] > 1.8 * heads[1] > heads[0]


def test_long_names_widen_nothing():
  image, (anomaly, peak_at) = photo(64, 64), faint(64, 64)
  short = drawn(image, anomaly, peak_at, told(name='a.png'))
  for name in ('x' * 250 + '.png', '瓶' * 80, 'a\nb\udc80.png', ''):
    assert drawn(image, anomaly, peak_at, told(name=name)).shape == short.shape


ODD = (np.nan, np.inf, -np.inf, 0.0, -7.0, 1e30)


def test_no_result_is_too_odd():
  sizes = itertools.cycle([(1, 1), (1, 2000), (3, 2), (2000, 1)])
  for value, label, threshold in itertools.product(ODD, LABELS, (0.0, -3.0, 5.0)):
    size = next(sizes)
    image, anomaly = np.full((*size, 3), 9, np.uint8), np.full(size, value, np.float32)
    what = told(label, score=value, image=threshold, review=threshold, pixel=threshold)
    sheet = drawn(image, anomaly, (size[1] - 1, 0), what, threshold)
    assert sheet.shape[0] > size[0], (what, size)
    assert sheet.shape[1] > size[1], (what, size)


def test_no_threshold_is_too_odd():
  image, (anomaly, peak_at) = photo(40, 50), faint(40, 50)
  for value in ODD:
    for image_limit, review in itertools.product((value, 16.0), repeat=2):
      what = told(image=image_limit, review=review, pixel=value)
      place(drawn(image, anomaly, peak_at, what, value), image)


def test_threads_draw_what_one_would():
  image, (anomaly, peak_at) = photo(64, 64), faint(64, 64)
  jobs = [told(label, name=f'{n}_瓶.png') for n in range(12) for label in LABELS]
  with futures.ThreadPoolExecutor(8) as pool:
    together = list(pool.map(lambda what: drawn(image, anomaly, peak_at, what), jobs))
  for what, sheet in zip(jobs, together, strict=True):
    np.testing.assert_array_equal(sheet, drawn(image, anomaly, peak_at, what))
