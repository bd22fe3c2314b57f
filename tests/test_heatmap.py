import itertools
import json
from pathlib import Path

import hypothesis
from hypothesis import strategies
from hypothesis.extra import numpy as hnp
import matplotlib
import numpy as np

from uadjax.visualization import heatmap

WEB = Path(heatmap.__file__).parent.parent / 'web'
masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12))


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


SCALE = heatmap.color_scale(16.0, 16.0)
some_thresholds = strategies.floats(-100, 100) | strategies.sampled_from([np.inf, -np.inf, 0.0])


def test_a_value_has_one_color_in_all_pictures_of_a_model():
  colors = set()
  for peak in (17.5, 40.0, 4000.0):
    anomaly = np.linspace(3, peak, 900, dtype=np.float32).reshape(30, 30)
    anomaly[5, 5] = 17
    colors.add(tuple(heatmap.overlay(photo(30, 30), anomaly, SCALE)[5, 5].tolist()))
  assert len(colors) == 1


@hypothesis.given(
  hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=6),
    elements=strategies.floats(width=32),
  ),
  some_thresholds,
  some_thresholds,
)
def test_only_what_exceeds_the_pixel_threshold_is_colored(anomaly, pixel, image):
  """This holds for all thresholds; the image is dimmed where there is no map value."""
  picture = photo(*anomaly.shape, 200)
  colored = heatmap.overlay(picture, anomaly, heatmap.color_scale(pixel, image))
  unknown = np.isnan(anomaly)
  assert (colored[unknown] == 80).all()
  marked = anomaly > np.float32(pixel)
  np.testing.assert_array_equal((colored != 200).any(-1), marked | unknown)


@hypothesis.given(some_thresholds, some_thresholds, strategies.integers(0, 2**32 - 1))
def test_colors_get_lighter_and_denser_up_to_the_upper_end(pixel, image, seed):
  scale = heatmap.color_scale(pixel, image)
  values = np.sort(np.random.default_rng(seed).normal(0, 200, 50))
  colors, opacities = heatmap.colors_at(values, scale)
  marked = values > pixel
  np.testing.assert_array_equal(opacities > 0, marked)
  lightness = (colors @ np.array([0.2126, 0.7152, 0.0722]))[marked]
  assert (np.diff(lightness) >= 0).all()
  assert (np.diff(opacities) >= 0).all()
  assert len(set(lightness[values[marked] >= scale.high])) <= 1


def test_the_scale_spans_half_the_larger_threshold():
  for pixel, image, ends in (
    (16.0, 16.0, (16, 24)), (8.0, 16.0, (8, 16)), (16.0, 8.0, (16, 24)), (-3.0, -2.0, (-3, -1.5)),
    (0.0, 0.0, (0, 1)), (2.0, np.inf, (2, 3)), (np.inf, 16.0, (np.inf, np.inf)),
    (-np.inf, np.inf, (-np.inf, -np.inf)),
  ):  # fmt: skip
    assert heatmap.color_scale(pixel, image) == ends, (pixel, image)


def test_colors_are_those_of_plasma_but_the_darkest():
  plasma = matplotlib.colormaps['plasma'](np.linspace(5 / 16, 1, 256))[:, :3] * 255
  bar = heatmap.color_bar(256)[::-1]
  np.testing.assert_allclose(bar, plasma, atol=6)
  assert heatmap.color_bar(1).shape == (1, 3)


BROWSER_COLORS = """
import { colorAt, colorScale } from './heatmap.js';
const number = (value) => Number(value);
const answer = (cases) => cases.map(([pixel, image, values]) => {
  const scale = colorScale(number(pixel), number(image));
  return [scale.low, scale.high].map(String)
    .concat([values.map((value) => [...colorAt(scale, number(value))])]);
});
"""


def test_browsers_use_the_same_scale_colors_and_opacities(in_node):
  rng = np.random.default_rng(0)
  cases = []
  for pixel, image in itertools.product((16.0, 0.7, 0.0, -3.5, 1e-30, np.inf, -np.inf), repeat=2):
    values = [*rng.normal(0, 3 * max(abs(pixel), 1) if np.isfinite(pixel) else 9, 40), pixel]
    cases.append((pixel, image, [*values, 2 * pixel, np.inf, -np.inf]))
  text = json.dumps(cases).replace('Infinity', '"Infinity"').replace('-"Inf', '"-Inf')
  answers = in_node(WEB, BROWSER_COLORS, json.loads(text))
  for (pixel, image, values), (low, high, colors) in zip(cases, answers, strict=True):
    scale = heatmap.color_scale(pixel, image)
    assert (float(low.replace('Infinity', 'inf')), float(high.replace('Infinity', 'inf'))) == scale
    expected, opacities = heatmap.colors_at(np.array(values), scale)
    is_marked = opacities > 0
    actual = np.array(colors)
    np.testing.assert_array_equal(actual[:, 3] > 0, is_marked)
    np.testing.assert_allclose(actual[is_marked, :3], expected[is_marked], atol=1)
    np.testing.assert_allclose(actual[:, 3], 255 * opacities, atol=1)
