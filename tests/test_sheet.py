from concurrent import futures
import itertools
import tracemalloc

import hypothesis
from hypothesis import strategies
from hypothesis.extra import numpy as arrays
import numpy as np
from PIL import ExifTags, Image

from uadjax.visualization import heatmap, sheet

LABELS = ('OK', 'review', 'NG')
SCALE = heatmap.color_scale(16.0, 16.0)
CAPTION = 'score 26.1, NG (not good) above 16, to review above 14'


def photo(height, width, seed=3):
  return np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)


def drawn(*images, name='000.png', caption=CAPTION, label='NG', scale=SCALE):
  titled = {f'title {i}': sheet.Tile(image) for i, image in enumerate(images)}
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
  titled = {letter * 20: sheet.Tile(photo(8, 8)) for letter in 'mw'}
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


def test_no_sheet_is_larger_than_its_bound_and_a_reduced_one_says_so(monkeypatch, caplog):
  caplog.set_level('INFO')
  monkeypatch.setattr(sheet, 'MAX_PIXELS', 300_000)
  for size in ((200, 300), (700, 900), (2000, 40), (40, 2000), (30, 90_000), (90_000, 1)):
    caplog.clear()
    tiles = {'image': sheet.Tile(photo(*size)), 'map': sheet.Tile(np.ones(size, bool))}
    canvas = sheet.draw_sheet(tiles, 'part.png', CAPTION, 'NG', SCALE)
    assert canvas.width * canvas.height <= 300_000
    scale, note = sheet.scale_of(canvas), canvas.getexif().get(ExifTags.Base.ImageDescription, '')
    if scale == 1:
      assert size == (200, 300)
      assert not note
      assert not caplog.messages
    else:
      assert f'reduced from {size[1]} x {size[0]} to ' in note
      assert caplog.messages == [f'Picture of part.png: {note}.']
      lines = sheet._fit_layout(size, [*tiles], CAPTION, True).lines
      assert ' '.join(lines).endswith(note)  # It is drawn, too.
      assert canvas.width * canvas.height > 200_000, size  # No smaller than necessary.


def test_text_and_color_bar_are_small_beside_long_and_thin_images():
  for length, short in ((20_000, 30), (20_000, 1), (3000, 8)):
    for size in ((length, short), (short, length)):
      canvas = drawn(photo(*size), photo(*size), caption=f'{CAPTION}, ' * 3)
      height, width = canvas.shape[:2]
      long_side, short_side = (height, width) if size[0] > size[1] else (width, height)
      assert length < long_side < length + 300, size
      assert 2 * short < short_side < 2 * short + 400, size


def test_reduced_images_are_averaged_whatever_the_strips(monkeypatch):
  image, values = photo(211, 307), np.random.default_rng(0).normal(20, 5, (211, 307))
  tile = sheet.Tile(image, values.astype(np.float32))
  monkeypatch.setattr(sheet, 'MAX_PIXELS', 100_000)
  canvases = []
  for strip_pixels in (1, 2000, 10**9):
    monkeypatch.setattr(sheet, '_STRIP_PIXELS', strip_pixels)
    canvas = sheet.draw_sheet({'a': sheet.Tile(image), 'b': tile}, 'name', scale=SCALE)
    canvases.append(np.asarray(canvas).astype(int))
  assert sheet.scale_of(canvas) < 1
  for canvas in canvases[1:]:
    assert np.abs(canvas - canvases[0]).max() <= 1
  layout = sheet._fit_layout((211, 307), ['a', 'b'], '', True)
  size = layout.width, layout.height
  expected = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX)).astype(int)
  y, x = layout.top + 2 * layout.em, layout.em
  drawn_image = canvases[0][y : y + layout.height, x : x + layout.width]
  assert np.abs(drawn_image - expected).max() <= 1


@hypothesis.given(
  arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, max_side=12)),
  strategies.randoms(use_true_random=False),
)
def test_every_marked_pixel_remains_in_a_reduced_mask(mask, random):
  h, w = mask.shape
  height, width = random.randint(1, h), random.randint(1, w)
  expected = np.zeros((height, width), bool)
  for i, j in np.ndindex(height, width):
    rows = slice(i * h // height, (i + 1) * h // height)
    expected[i, j] = mask[rows, j * w // width : (j + 1) * w // width].any()
  np.testing.assert_array_equal(sheet._reduce_mask(mask, (height, width)), expected)
  cut = random.randint(0, height - 1)
  rows = slice(cut, random.randint(cut + 1, height))
  np.testing.assert_array_equal(sheet._reduce_mask(mask, (height, width), rows), expected[rows])


def test_a_tile_shows_its_map_and_the_outline_of_its_mask():
  image, mask = photo(60, 60), np.zeros((60, 60), bool)
  mask[20:40, 20:40] = True
  values = np.where(mask, np.float32(30), np.float32(0))
  visible = np.ones_like(mask)
  visible[:5] = False
  expected = heatmap.overlay(image, np.where(visible, values, np.float32('nan')), SCALE)
  expected = heatmap.draw_outline(expected, mask)
  tiles = {'map': sheet.Tile(image, values, visible, mask), 'mask': sheet.Tile(mask)}
  canvas = np.asarray(sheet.draw_sheet(tiles, 'name', scale=SCALE))
  place(canvas, expected)  # Fails unless it is there.
  place(canvas, heatmap.render_mask(mask))
  blank = {'map': sheet.Tile(image, outline=np.zeros_like(mask))}
  place(np.asarray(sheet.draw_sheet(blank, 'name')), image)


def test_drawing_takes_little_memory_besides_the_sheet(monkeypatch):
  """Pillow's own memory is not traced: four bytes per pixel of the sheet."""
  monkeypatch.setattr(sheet, '_STRIP_PIXELS', 50_000)
  image, values = np.zeros((2000, 2000, 3), np.uint8), np.full((2000, 2000), 99, np.float32)
  tile = sheet.Tile(image, values, values > 0, values > 0)
  tracemalloc.start()
  try:
    sheet.draw_sheet({'image': sheet.Tile(image), 'map': tile}, 'name', scale=SCALE)
    assert tracemalloc.get_traced_memory()[1] < 2.5 * image.nbytes
  finally:
    tracemalloc.stop()


def test_a_tile_dims_what_is_not_inspected_and_outlines_the_rest():
  image, mask = np.full((90, 90, 3), 200, np.uint8), np.zeros((90, 90), bool)
  mask[20:70, 10:60] = True
  values = np.zeros((90, 90), np.float32)
  canvas = np.asarray(
    sheet.draw_sheet({'map': sheet.Tile(image, values, mask, region=mask)}, 'name', scale=SCALE)
  )
  (left, top), border, casing = heatmap.find_outline(mask, 800)
  expected = np.where(mask[..., None], image, (0.4 * image).astype(np.uint8))
  window = expected[top : top + border.shape[0], left : left + border.shape[1]]
  window[casing], window[border] = heatmap.CASING_COLOR, heatmap.REGION_COLOR
  place(canvas, expected)
  assert border.sum() == 4 * 49  # One pixel wide.
