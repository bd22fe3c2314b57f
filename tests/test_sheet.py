from concurrent import futures
import itertools

import numpy as np

from uadjax.visualization import heatmap, sheet

LABELS = ('OK', 'review', 'NG')
SCALE = heatmap.color_scale(16.0, 16.0)
CAPTION = 'score 26.1, NG (not good) above 16, to review above 14'


def photo(height, width, seed=3):
  return np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)


def drawn(*images, name='000.png', caption=CAPTION, label='NG', scale=SCALE):
  titled = {f'title {i}': image for i, image in enumerate(images)}
  return np.asarray(sheet.draw_sheet(titled, name, caption, label, scale))


def place(canvas, image):
  """Find the only place of an image on a sheet: x and y."""
  rows, columns = canvas.shape[0] - image.shape[0] + 1, canvas.shape[1] - image.shape[1] + 1
  starts = np.argwhere((canvas[:rows, :columns] == image[0, 0]).all(-1))
  height, width = image.shape[:2]
  places = [(x, y) for y, x in starts if (canvas[y : y + height, x : x + width] == image).all()]
  (only,) = places
  return only


def test_images_are_untouched_beside_each_other_or_below_where_wide():
  for size in ((64, 64), (100, 200), (100, 201), (90, 400), (300, 20), (700, 500)):
    images = [photo(*size, seed) for seed in range(3)]
    for label in LABELS:
      places = [place(drawn(*images, label=label), image) for image in images]
      xs, ys = zip(*places, strict=True)
      if size[1] > 2 * size[0]:
        assert len(set(xs)) == 1, size
        assert min(np.diff(ys)) > size[0], size
      else:
        assert len(set(ys)) == 1, size
        assert min(np.diff(xs)) > size[1], size


def test_labels_are_distinct_without_color():
  canvases = [drawn(photo(64, 64), label=label) for label in LABELS]
  grays = [canvas[6:28, 16:70].mean(-1) for canvas in canvases]  # The badges.
  for gray, other in itertools.combinations(grays, 2):
    assert (np.abs(gray - other) > 40).mean() > 0.15
  fills = [np.median(gray[2:5, 3:30]) for gray in grays]  # Above the word.
  assert fills[0] > fills[1] + 30 > fills[2] + 60


def test_a_color_bar_stands_beside_maps():
  image = np.zeros((200, 200, 3), np.uint8)
  bar = heatmap.color_bar(200)
  for scale in (SCALE, None):
    canvas = drawn(image, scale=scale)
    columns = [(canvas[:, x].tolist()) for x in range(canvas.shape[1])]
    # The first and last pixels are those of its frame.
    has_bar = any(
      column[y : y + 198] == bar[1:-1].tolist() for column in columns for y in range(40, 120)
    )
    assert has_bar == (scale is not None)


def test_letters_grow_with_the_images():
  tops = [place(drawn(photo(side, side)), photo(side, side))[1] for side in (64, 1000, 2000)]
  assert tops[0] > 60  # Legible on a small image.
  assert tops[2] > 1.4 * tops[1] > tops[0]


def test_long_names_widen_nothing():
  short = drawn(photo(64, 64), name='a.png')
  for name in ('x' * 250 + '.png', '瓶' * 80, 'a\nb\udc80.png', ''):
    assert drawn(photo(64, 64), name=name).shape == short.shape


def test_long_captions_and_titles_are_not_cut_off():
  canvas = drawn(photo(8, 8), photo(8, 8), caption='m' * 99)
  assert (canvas[:, -4:] == 255).all()
  titled = {letter * 20: photo(8, 8) for letter in 'mw'}
  plain = np.asarray(sheet.draw_sheet(titled, 'name'))
  assert (plain[:, -4:] == 255).all()


def test_no_size_and_no_threshold_is_too_odd():
  sizes = itertools.cycle([(1, 1), (1, 2000), (3, 2), (2000, 1)])
  for pixel, image in itertools.product((np.inf, -np.inf, 0.0, -7.0, 1e30), repeat=2):
    size = next(sizes)
    canvas = drawn(np.full((*size, 3), 9, np.uint8), scale=heatmap.color_scale(pixel, image))
    assert canvas.shape[0] > size[0]
    assert canvas.shape[1] > size[1]


def test_threads_draw_the_same():
  image = photo(64, 64)
  jobs = [(f'{n}_瓶.png', label) for n in range(12) for label in LABELS]

  def draw(job):
    return drawn(image, name=job[0], label=job[1])

  with futures.ThreadPoolExecutor(8) as pool:
    together = list(pool.map(draw, jobs))
  for job, canvas in zip(jobs, together, strict=True):
    np.testing.assert_array_equal(canvas, draw(job))
