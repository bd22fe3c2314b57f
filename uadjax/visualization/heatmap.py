"""Heatmaps, outlines and masks of anomaly maps, drawn over the image."""

from collections.abc import Sequence
import math
from typing import NamedTuple

from jaxtyping import Bool, Float, UInt8
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Lightness increases evenly, which color-blind readers see too (Smith and van der Walt 2015). The
# colormap begins in blue, not in black, so that low map values are visible on dark products.
_COLORMAP = matplotlib.colormaps['plasma']
CONTOUR_COLOR = (0, 229, 255)  # Cyan is absent from plasma and rare on products.
CASING_COLOR = (16, 16, 16)  # A dark edge makes the contour visible on white products.
_TITLE_HEIGHT = 22
_MAX_SAMPLE_PIXELS = 40_000  # A quantile of this many pixels is as good as that of all.
_MIN_SPAN = 1e-30


class TitledImage(NamedTuple):
  """Image with a title."""

  title: str
  image: UInt8[np.ndarray, 'h w 3']


class ColorScale(NamedTuple):
  """Map values of a color scale, which is linear in each of its halves.

  Attributes:
    low: value of the first color.
    middle: pixel threshold, so that it has the same color in all pictures of a model.
    high: value of the last color; at least as far from the middle as `low`.
  """

  low: float
  middle: float
  high: float


def choose_color_scale(anomaly_map: Float[np.ndarray, 'h w'], pixel_threshold: float) -> ColorScale:
  """Choose a color scale that shows the structure of a map but highlights only defects.

  The scale begins at the map's 1 % quantile, since low values of many detectors are far from zero,
  and ends at its peak. A map that is flat, or far from the threshold, is not stretched.
  """
  step = max(1, math.isqrt(anomaly_map.size // _MAX_SAMPLE_PIXELS))
  sample = anomaly_map[::step, ::step]
  finite_values = sample[np.isfinite(sample)]
  peak = float(np.max(anomaly_map, initial=-np.inf, where=np.isfinite(anomaly_map)))
  # A threshold that marks no pixels, or all, may be infinite.
  middle = next((v for v in (pixel_threshold, peak) if math.isfinite(v)), 0.0)
  low_quantile = float(np.quantile(finite_values, 0.01)) if len(finite_values) else middle
  span = max(middle - low_quantile, abs(middle) / 2)
  if span < _MIN_SPAN:  # The threshold is zero, and all values exceed it.
    span = max(peak - middle, _MIN_SPAN)
  return ColorScale(middle - span, middle, max(peak, middle + span))


def overlay(
  image: UInt8[np.ndarray, 'h w 3'],
  anomaly_map: Float[np.ndarray, 'h w'],
  pixel_threshold: float,
  opacity: float = 0.7,
) -> UInt8[np.ndarray, 'h w 3']:
  """Blend an image with the colors of its anomaly map; dim it where the map is NaN.

  High values are more opaque. The pixel threshold is the middle of the color scale, so that defects
  have the colors of the upper half.

  Args:
    image: image at the resolution of the map.
    anomaly_map: raw map values; NaN where the network did not see the image.
    pixel_threshold: map value above which pixels are anomalous.
    opacity: opacity of the highest values.
  """
  index_image = Image.fromarray(
    _color_indices(anomaly_map, choose_color_scale(anomaly_map, pixel_threshold))
  )
  colors, opacities = _colors_and_opacities(opacity)
  alpha_mask = index_image.point((255 * opacities).round().astype(int).tolist())
  index_image.putpalette(colors.tobytes())
  return np.array(Image.composite(index_image.convert('RGB'), Image.fromarray(image), alpha_mask))


def color_bar(
  height: int, background_color: Sequence[float], opacity: float = 0.7
) -> UInt8[np.ndarray, 'h 3']:
  """Return the colors of a scale from high to low, blended with a color as by `overlay`."""
  colors, opacities = _colors_and_opacities(opacity)
  indices = np.linspace(255, 1, height).round().astype(int)
  alpha = opacities[indices][:, None]
  return (
    (colors[indices] * alpha + np.asarray(background_color) * (1 - alpha)).round().astype(np.uint8)
  )


def _colors_and_opacities(
  opacity: float,
) -> tuple[UInt8[np.ndarray, '256 3'], Float[np.ndarray, ' 256']]:
  """Return colors and opacities, first those of NaN, then those of a scale in 255 steps."""
  positions = np.linspace(0, 1, 255)
  colors = np.concatenate([np.zeros((1, 3), np.uint8), _COLORMAP(positions, bytes=True)[:, :3]])
  # Colors are faint far below the threshold, as in a good image, and strong just above it.
  relative_opacities = np.where(positions < 0.5, 0.66 * (2 * positions), positions**0.6)
  return colors, np.concatenate([[0.6], opacity * relative_opacities])


def _color_indices(
  anomaly_map: Float[np.ndarray, 'h w'], color_scale: ColorScale
) -> UInt8[np.ndarray, 'h w']:
  """Return the step on the color scale of each map value, from 1 to 255; 0 for NaN."""
  # Above the middle the upper slope, which is flatter, gives the smaller value.
  lower_slope, upper_slope = (
    127 / (color_scale.middle - color_scale.low),
    127 / (color_scale.high - color_scale.middle),
  )
  with np.errstate(over='ignore', invalid='ignore'):
    indices = np.asarray(anomaly_map, np.float32) - np.float32(color_scale.middle)
    indices = np.minimum(indices * np.float32(lower_slope), indices * np.float32(upper_slope))
    indices += np.float32(128)
  np.clip(indices, 1, 255, out=indices)
  return np.fmax(indices, 0, out=indices).astype(np.uint8)  # `fmax` turns NaN into 0.


def line_width(height: int, width: int) -> int:
  """Return a line width in pixels that is visible on an image of the given size."""
  return max(1, round(math.sqrt(height * width) / 250))


def draw_outline(
  image: UInt8[np.ndarray, 'h w 3'], mask: Bool[np.ndarray, 'h w']
) -> UInt8[np.ndarray, 'h w 3']:
  """Draw the outermost pixels of a mask on an image, with a dark edge on both sides."""
  result = image.copy()
  if not mask.any():
    return result
  border_width = line_width(*mask.shape)
  casing_width = (border_width + 1) // 2
  rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
  window = (
    slice(max(0, rows[0] - casing_width), rows[-1] + casing_width + 1),
    slice(max(0, columns[0] - casing_width), columns[-1] + casing_width + 1),
  )
  padded_mask = np.pad(mask[window], 1)  # A mask has a border also at the edge of the image.
  interior = ~_dilate(~padded_mask, border_width)
  border = padded_mask & ~interior
  casing = _dilate(border, casing_width) & ~border
  result[window][casing[1:-1, 1:-1]] = CASING_COLOR
  result[window][border[1:-1, 1:-1]] = CONTOUR_COLOR
  return result


def _dilate(mask: Bool[np.ndarray, 'h w'], radius: int) -> Bool[np.ndarray, 'h w']:
  """Dilate a mask by a square that extends `radius` pixels to all sides."""
  for axis in (0, 1):
    current_radius, max_radius = 0, min(radius, mask.shape[axis] - 1)
    while current_radius < max_radius:
      # A larger step would leave gaps.
      step = min(current_radius + 1, max_radius - current_radius)
      source, mask = np.moveaxis(mask, axis, 0), mask.copy()
      target = np.moveaxis(mask, axis, 0)
      target[step:] |= source[:-step]
      target[:-step] |= source[step:]
      current_radius += step
  return mask


def render_mask(mask: Bool[np.ndarray, 'h w']) -> UInt8[np.ndarray, 'h w 3']:
  """Render a mask as an RGB image, defects white."""
  return np.repeat((mask * np.uint8(255))[..., None], 3, axis=2)


def join_side_by_side(titled_images: Sequence[TitledImage], headline: str) -> Image.Image:
  """Arrange images of one size in a row, each under its title, all under a headline."""
  height, width = titled_images[0].image.shape[:2]
  gap = 4
  canvas = Image.new(
    'RGB', (len(titled_images) * (width + gap) - gap, height + 2 * _TITLE_HEIGHT), (255, 255, 255)
  )
  draw = ImageDraw.Draw(canvas)
  draw.text((4, 3), headline, (0, 0, 0), ImageFont.load_default(15))
  for index, titled_image in enumerate(titled_images):
    left = index * (width + gap)
    draw.text(
      (left + 4, _TITLE_HEIGHT + 4), titled_image.title, (80, 80, 80), ImageFont.load_default(13)
    )
    canvas.paste(Image.fromarray(titled_image.image), (left, 2 * _TITLE_HEIGHT))
  return canvas
