"""Laws of outlines and run lengths drawn as masks."""

import math

from hypothesis import assume, given, strategies as st
from label_samples import block
import numpy as np
from PIL import Image, ImageDraw
import pytest

from uadjax.data.convert import outlines
from uadjax.numerics import regions


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('m06300LO010O01400`0', block(2, 8, 3, 9, (9, 11)) & ~block(4, 6, 5, 7, (9, 11))),
    ('S3', np.zeros((9, 11), bool)),
    ('0S3', np.ones((9, 11), bool)),
  ],
)
def test_compressed_run_lengths_are_those_of_pycocotools(text, expected):
  """As pycocotools 2.0.11 encoded these masks."""
  np.testing.assert_array_equal(regions.decode_run_lengths(text, 9, 11), expected)


def slow_ring(points: np.ndarray, h: int, w: int) -> np.ndarray:
  """Count, for each pixel, the edges that a ray from its center to the left crosses."""
  out = np.zeros((h, w), bool)
  for i in range(h):
    for j in range(w):
      y, x = i + 0.5, j + 0.5
      for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if (y0 < y) != (y1 < y) and x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x:
          out[i, j] ^= True
  return out


def through_a_center(points: np.ndarray, h: int, w: int) -> bool:
  """Whether an edge meets the center of a pixel, but for rounding: that may count as inside."""
  for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
    for y in np.arange(h) + 0.5:
      if (y0 < y) != (y1 < y):
        crossing = x0 + (y - y0) * (x1 - x0) / (y1 - y0)
        if np.abs(crossing - (np.arange(w) + 0.5)).min() < 1e-9:
          return True
  return False


def painted(patch: outlines.Patch, h: int, w: int) -> np.ndarray:
  canvas = np.zeros((h, w), np.uint8)
  patch.paint(canvas, 1)
  return canvas > 0


coordinates = st.floats(-5, 20).map(lambda x: round(x, 1) + 0.03)


@given(st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=8))
def test_a_ring_holds_the_pixels_whose_centers_it_holds(points):
  outline = np.array(points)
  assume(not through_a_center(outline, 12, 15))
  expected = slow_ring(outline, 12, 15)
  if not expected.any():
    expected = painted(outlines.fill_polygon(outline, 12, 15), 12, 15)
  got = painted(outlines.fill_polygon_even_odd(outline, 12, 15), 12, 15)
  np.testing.assert_array_equal(got, expected)


wide = st.floats(-60, 120)


@given(st.lists(st.tuples(wide, wide), min_size=2, max_size=6))
def test_shapes_on_a_part_of_the_image_equal_those_on_the_whole(points):
  """Drawing begins at the first pixel of a shape, but labelme draws on the whole image."""
  h, w = 40, 60
  outline = np.array(points)
  (left, top), (right, bottom) = outline.min(0).tolist(), outline.max(0).tolist()
  box = [left, top, right, bottom]
  (x, y), (edge_x, edge_y) = points[:2]
  whole = np.round(outline)
  r = math.hypot(edge_x - x, edge_y - y)
  for fill, shape, drawn, options in (
    (outlines.fill_polygon, 'polygon', outline.ravel().tolist(), {'outline': 1, 'fill': 1}),
    (outlines.fill_rectangle, 'rectangle', box, {'outline': 1, 'fill': 1}),
    (outlines.fill_ellipse, 'ellipse', box, {'outline': 1, 'fill': 1}),
    (outlines.fill_circle, 'ellipse', [x - r, y - r, x + r, y + r], {'outline': 1, 'fill': 1}),
    (outlines.draw_line, 'line', whole.ravel().tolist(), {'fill': 1, 'width': 10}),
    (outlines.draw_point, 'ellipse', [x - 5, y - 5, x + 5, y + 5], {'outline': 1, 'fill': 1}),
  ):
    image = Image.new('L', (w, h))
    getattr(ImageDraw.Draw(image), shape)(drawn, **options)
    # Corners of wide lines depend on rounding; whole numbers make them exact.
    patch = fill(whole if shape == 'line' else outline, h, w)
    np.testing.assert_array_equal(painted(patch, h, w), np.asarray(image) > 0)


@given(st.integers(-9, 9), st.integers(-9, 9))
def test_the_part_of_a_placed_mask_inside_the_image_remains(top, left):
  mask = np.random.default_rng(0).random((4, 5)) > 0.5
  expected = np.zeros((26, 27), bool)
  expected[9 + top : 13 + top, 9 + left : 14 + left] = mask
  patch = outlines.place(mask, top, left, 7, 8)
  np.testing.assert_array_equal(painted(patch, 7, 8), expected[9:16, 9:17])


@pytest.mark.parametrize('text', ['o' * 3_000_000, 'P' * 3_000_000 + '0', '6o', 'P'])
def test_no_number_of_run_lengths_is_endless(text):
  """The time of a number grows with the square of its length: this would take minutes."""
  with pytest.raises(ValueError, match=r'a number in its run lengths|end within a number'):
    regions.decode_run_lengths(text, 9, 11)


@pytest.mark.parametrize('counts', [[], [100], [-1, 100], [50, 50], [10**30, 99 - 10**30]])
def test_run_lengths_of_another_size_are_refused(counts):
  with pytest.raises(ValueError, match='do not sum to 11x9 pixels'):
    regions.decode_run_lengths(counts, 9, 11)
