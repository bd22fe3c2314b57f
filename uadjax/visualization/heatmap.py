"""Colors, outlines and masks of anomaly maps, drawn over the image.

All pictures use one rule, which `web/heatmap.js` repeats for browsers: an anomaly map is
transparent up to the pixel threshold, and its colors run from there to an upper end that follows
from the thresholds. So good images look clean, and the images of a model are comparable.

Letters: h w an image and its map, n map values.
"""

import math
from typing import NamedTuple

from jaxtyping import Bool, Float, UInt8
import numpy as np
from scipy import ndimage

OPACITY = 0.75  # Of the highest values.
CONTOUR_COLOR = (0, 229, 255)  # Cyan is absent from the colors and rare on products.
CASING_COLOR = (16, 16, 16)  # A dark edge makes the contour visible on white products.
REGION_COLOR = (255, 255, 255)  # Of the outline of the region of interest.
# Every sixteenth color of matplotlib's plasma but the darkest, which are hardly seen on dark
# products. Lightness increases evenly, which color-blind readers see, too (Smith and van der Walt
# 2015).
_COLOR_STOPS = np.frombuffer(bytes.fromhex(
  '9511a1a92395bb3586cb4777d95969e56c5bf0804df89540fcac32fdc427f8df24eff821'
), np.uint8).reshape(-1, 3)  # fmt: skip
_POSITIONS, _STOPS = np.linspace(0, 1, 256), np.linspace(0, 1, len(_COLOR_STOPS))
_CHANNELS = [np.interp(_POSITIONS, _STOPS, channel) for channel in _COLOR_STOPS.T]
_PALETTE = np.rint(np.stack(_CHANNELS, axis=1)).astype(np.uint8)
_MIN_ALPHA = 0.6  # Opacity just above the threshold, as a share of that of the highest values.
_DIMMED = 0.4  # Brightness of pixels without a map value.
_SQUARE = np.ones((3, 3), bool)


class ColorScale(NamedTuple):
  """Map values of the first and the last color.

  Attributes:
    low: pixel threshold, up to which values are transparent.
    high: value from which on values have the last color.
  """

  low: float
  high: float


def color_scale(pixel_threshold: float, image_threshold: float) -> ColorScale:
  """Return the color scale of a model, which its thresholds determine.

  It spans half the larger magnitude of the thresholds, so that a defect of 1.5 times the threshold
  has the last color: most defects of MVTec AD peak there or higher. An infinite pixel threshold,
  which marks no pixel or all, is both ends.
  """
  sizes = [abs(v) for v in (pixel_threshold, image_threshold) if math.isfinite(v)]
  return ColorScale(pixel_threshold, pixel_threshold + (0.5 * max(sizes, default=0.0) or 1.0))


def colors_at(
  values: Float[np.ndarray, ' n'], scale: ColorScale
) -> tuple[UInt8[np.ndarray, 'n 3'], Float[np.ndarray, ' n']]:
  """Return colors and opacities of map values; values up to the threshold have opacity 0."""
  span = scale.high - scale.low
  with np.errstate(over='ignore', invalid='ignore'):
    shares = (values.astype(np.float64) - scale.low) / span if span > 0 else np.ones(len(values))
    levels = np.floor(255 * np.clip(shares, 0, 1) + 0.5)
    is_marked = values > scale.low
  # The share of an infinite value, or at an infinite threshold, may be NaN.
  levels = np.where(np.isnan(levels), 255, levels).astype(np.uint8)
  alpha = np.where(is_marked, _MIN_ALPHA + (1 - _MIN_ALPHA) * levels / 255, 0)
  return _PALETTE[levels], alpha


def overlay(
  image: UInt8[np.ndarray, 'h w 3'], anomaly_map: Float[np.ndarray, 'h w'], scale: ColorScale
) -> UInt8[np.ndarray, 'h w 3']:
  """Blend an image with the colors of its anomaly map.

  Args:
    image: image at the resolution of the map.
    anomaly_map: raw map values; NaN where the network did not see the image, which is dimmed.
    scale: color scale of the model.
  """
  result = image.copy()
  unknown = np.isnan(anomaly_map)
  result[unknown] = _DIMMED * result[unknown]
  with np.errstate(over='ignore'):
    marked = anomaly_map > scale.low
  colors, alpha = colors_at(anomaly_map[marked], scale)
  alpha = (OPACITY * alpha)[:, None].astype(np.float32)
  result[marked] = np.rint(alpha * colors + (1 - alpha) * result[marked])
  return result


def to_levels(
  anomaly_map: Float[np.ndarray, 'h w'],
) -> tuple[UInt8[np.ndarray, 'h w'], float, float]:
  """Quantize a map to gray levels, and return the map values of levels 0 and 255.

  Level v stands for `low + v / 255 * (high - low)`. Infinite values become the extremes.
  """
  finite = anomaly_map[np.isfinite(anomaly_map)]
  low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
  # In double precision, because the range may exceed single precision; in place, because maps of
  # large originals have many pixels.
  levels = np.clip(anomaly_map, low, high).astype(np.float64)
  levels -= low
  levels *= 255 / (high - low or 1)
  np.nan_to_num(levels, copy=False)
  return np.rint(levels, out=levels).astype(np.uint8), low, high


def color_bar(height: int) -> UInt8[np.ndarray, 'h 3']:
  """Return the colors of a scale from high to low."""
  return _PALETTE[np.linspace(255, 0, height).round().astype(int)]


def draw_outline(
  image: UInt8[np.ndarray, 'h w 3'], mask: Bool[np.ndarray, 'h w']
) -> UInt8[np.ndarray, 'h w 3']:
  """Draw the outermost pixels of a mask on an image, with a dark edge on both sides."""
  result = image.copy()
  (left, top), border, casing = find_outline(mask)
  window = result[top : top + border.shape[0], left : left + border.shape[1]]
  window[casing], window[border] = CASING_COLOR, CONTOUR_COLOR
  return result


def find_outline(
  mask: Bool[np.ndarray, 'h w'],
  num_widths: int = 250,
) -> tuple[tuple[int, int], Bool[np.ndarray, 'height width'], Bool[np.ndarray, 'height width']]:
  """Find the outermost pixels of a mask, and the dark edge on both sides of them.

  Args:
    mask: mask of an image.
    num_widths: side of the image, in widths of the outline.

  Returns:
    x and y of the smallest rectangle that contains them; within it, masks of both.
  """
  if not mask.any():
    return (0, 0), np.zeros((0, 0), bool), np.zeros((0, 0), bool)
  # Visible on an image of this size, and narrow enough to show what it surrounds on a thin one.
  width = max(1, round(min(math.sqrt(mask.size), 4 * min(mask.shape)) / num_widths))
  casing_width = (width + 1) // 2
  indices = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
  rows, columns = (slice(max(0, i[0] - casing_width), i[-1] + casing_width + 1) for i in indices)
  window = mask[rows, columns]
  # A mask has a border also at the edge of the image, beyond which erosion finds no pixels.
  eroded = np.asarray(ndimage.binary_erosion(window, _SQUARE, width), bool)
  border = np.logical_and(window, ~eroded)
  casing = np.asarray(ndimage.binary_dilation(border, _SQUARE, casing_width), bool) & ~border
  return (int(columns.start), int(rows.start)), border, casing


def render_mask(mask: Bool[np.ndarray, 'h w']) -> UInt8[np.ndarray, 'h w 3']:
  """Render a mask as an RGB image, defects white."""
  return np.repeat((mask * np.uint8(255))[..., None], 3, axis=2)
