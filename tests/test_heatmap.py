import hypothesis
from hypothesis import strategies
from hypothesis.extra import numpy as some
import numpy as np

from uadjax.visualization import heatmap

masks = some.arrays(bool, some.array_shapes(min_dims=2, max_dims=2, max_side=12))


def disc(side=500, radius=120):
  y, x = np.ogrid[:side, :side]
  return (x - side // 3) ** 2 + (y - side // 2) ** 2 < radius**2


def near(mask, by):
  """Which pixels have one of the mask's at most so far away, found one by one."""
  out = np.zeros_like(mask)
  for y, x in np.ndindex(*mask.shape):
    out[y, x] = mask[max(0, y - by) : y + by + 1, max(0, x - by) : x + by + 1].any()
  return out


def is_of(image, color):
  return (image == color).all(-1)


def photo(height, width, value=128):
  return np.full((height, width, 3), value, np.uint8)


@hypothesis.given(masks, strategies.integers(0, 15))
def test_masks_grow_to_all_sides(mask, by):
  np.testing.assert_array_equal(heatmap._dilate(mask, by), near(mask, by))


@hypothesis.given(masks)
def test_an_outline_is_the_outermost_pixels_of_a_mask(mask):
  image = photo(*mask.shape)
  drawn = heatmap.draw_outline(image, mask)
  border = mask & near(np.pad(~mask, 1, constant_values=True), 1)[1:-1, 1:-1]
  np.testing.assert_array_equal(is_of(drawn, heatmap.CONTOUR_COLOR), border)
  np.testing.assert_array_equal(is_of(drawn, heatmap.CASING_COLOR), near(border, 1) & ~border)
  rest = ~near(border, 1)
  np.testing.assert_array_equal(drawn[rest], image[rest])


def test_an_outline_is_seen_on_black_and_on_white():
  for value in (0, 255):
    drawn = heatmap.draw_outline(photo(500, 500, value), disc()).astype(int).sum(-1)
    # From the line to the photograph or to the line's dark side.
    assert np.abs(np.diff(drawn[250])).max() > 300, value


def test_outlines_are_wider_on_larger_pictures():
  small = is_of(heatmap.draw_outline(photo(60, 60), disc(60, 15)), heatmap.CONTOUR_COLOR)
  large = is_of(heatmap.draw_outline(photo(1000, 1000), disc(1000, 250)), heatmap.CONTOUR_COLOR)
  assert small[30, :20].sum() == 1
  assert large[500, :300].sum() == 4


def test_the_threshold_has_one_color_in_all_pictures_of_a_model():
  colors = set()
  for peak in (10.0, 17.0, 40.0, 4000.0):
    anomaly = np.linspace(3, peak, 900, dtype=np.float32).reshape(30, 30)
    anomaly[5, 5] = 16
    colors.add(tuple(heatmap.overlay(photo(30, 30), anomaly, 16.0)[5, 5].tolist()))
  assert len(colors) == 1


def test_good_images_show_their_structure_and_look_like_no_defect():
  good = np.linspace(4, 12, 10_000, dtype=np.float32).reshape(100, 100)
  shown = heatmap.overlay(photo(100, 100), good, 16.0).astype(int)
  assert np.abs(shown[99, 99] - shown[0, 0]).max() > 30
  assert np.abs(shown[50, 50] - shown[0, 0]).max() > 10
  defect = heatmap.overlay(photo(100, 100), good + 16, 16.0).astype(int)
  assert defect[99, 99, 0] > shown[..., 0].max() + 30


def test_what_is_flat_is_not_blown_up():
  anomaly = np.full((50, 50), 0.2, np.float32)
  anomaly[20, 20] = 0.201
  np.testing.assert_allclose(heatmap.overlay(photo(50, 50), anomaly, 16.0), 128, atol=1)


def test_the_unknown_is_dim_and_infinity_the_hottest():
  anomaly = np.linspace(3, 30, 400, dtype=np.float32).reshape(20, 20)
  anomaly[0, :3] = np.nan, np.inf, -np.inf
  shown = heatmap.overlay(photo(20, 20, 200), anomaly, 16.0)
  assert shown[0, 0].max() < 100
  np.testing.assert_array_equal(shown[0, 1], shown[19, 19])
  np.testing.assert_allclose(shown[0, 2].astype(int), 200, atol=4)


@hypothesis.given(
  some.arrays(
    np.float32,
    some.array_shapes(min_dims=2, max_dims=2, max_side=6),
    elements=strategies.floats(width=32),
  ),
  strategies.floats(),
)
def test_no_map_and_no_threshold_is_too_odd(anomaly, threshold):
  image = photo(*anomaly.shape)
  scale = heatmap.choose_color_scale(anomaly, threshold)
  assert scale.low < scale.middle < scale.high
  assert heatmap.overlay(image, anomaly, threshold).shape == image.shape


def test_a_color_bar_goes_from_hot_to_what_it_lies_on():
  for height in (1, 84, 3000):
    bar = heatmap.color_bar(height, (10.0, 20.0, 30.0))
    assert bar.shape == (height, 3)
    if height > 1:
      assert bar[0].astype(int).sum() > 250, height
      np.testing.assert_allclose(bar[-1], (10, 20, 30), atol=1, err_msg=f'{height}')
