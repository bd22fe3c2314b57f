"""Pictures that people look at: the image, what is known of it, and what the detector sees."""

from collections.abc import Sequence
import math
from typing import NamedTuple

from jaxtyping import Bool, Float, UInt8
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Lightness rises evenly, and every color-blind reader sees it (Smith and van der Walt 2015). It
# begins in blue, not in black, and so shows on dark products what little good ones have to show.
_COLORS = matplotlib.colormaps['plasma']
CONTOUR = (0, 229, 255)  # Cyan: absent from plasma and rare on products.
CASING = (16, 16, 16)  # Beside the contour, for white products.
_TITLE = 22  # Pixels.
_SAMPLE = 40_000  # Pixels; a quantile of so many is as good as that of all.
_TINY = 1e-30


class Tile(NamedTuple):
  """A picture with its title."""

  title: str
  image: UInt8[np.ndarray, 'h w 3']


class Scale(NamedTuple):
  """What colors mean: map values, in each half of the scale evenly spread.

  Attributes:
    low: where the colors begin.
    middle: the threshold, so that it has the same color in all pictures of a model.
    top: where they end; at least as far from the middle as `low`.
  """

  low: float
  middle: float
  top: float


def scale(anomaly: Float[np.ndarray, 'h w'], threshold: float) -> Scale:
  """Choose a scale on which the structure of a map is seen, and only defects look like defects.

  It begins at the image's own low values, for those of many detectors are far from zero, and ends
  at its peak. But a map that is flat, or far from the threshold, is not blown up.
  """
  step = max(1, math.isqrt(anomaly.size // _SAMPLE))
  sample = anomaly[::step, ::step]
  known = sample[np.isfinite(sample)]
  peak = float(np.max(anomaly, initial=-np.inf, where=np.isfinite(anomaly)))
  # A threshold that marks nothing, or all, is nowhere on the map.
  middle = next((v for v in (threshold, peak) if math.isfinite(v)), 0.0)
  usual = float(np.quantile(known, 0.01)) if len(known) else middle
  span = max(middle - usual, abs(middle) / 2)
  if span < _TINY:  # The threshold is zero, and all exceed it.
    span = max(peak - middle, _TINY)
  return Scale(middle - span, middle, max(peak, middle + span))


def overlay(
  image: UInt8[np.ndarray, 'h w 3'],
  anomaly: Float[np.ndarray, 'h w'],
  threshold: float,
  opacity: float = 0.7,
) -> UInt8[np.ndarray, 'h w 3']:
  """Lay a map over the image in color, the more opaque the hotter; dim it where the map is NaN.

  The threshold is at the middle of the scale: brighter than half is a defect.
  """
  index = Image.fromarray(_index(anomaly, scale(anomaly, threshold)))
  heat, opaque = _inks(opacity)
  mask = index.point((255 * opaque).round().astype(int).tolist())
  index.putpalette(heat.tobytes())
  return np.array(Image.composite(index.convert('RGB'), Image.fromarray(image), mask))


def color_bar(
  height: int, paper: Sequence[float], opacity: float = 0.7
) -> UInt8[np.ndarray, 'h 3']:
  """Show the colors of a scale from its top down, as `overlay` lays them over a color."""
  heat, opaque = _inks(opacity)
  index = np.linspace(255, 1, height).round().astype(int)
  share = opaque[index][:, None]
  return (heat[index] * share + np.asarray(paper) * (1 - share)).round().astype(np.uint8)


def _inks(opacity: float) -> tuple[UInt8[np.ndarray, '256 3'], Float[np.ndarray, ' 256']]:
  """Colors and opacities: of what is not known, then of a scale in 255 steps."""
  share = np.linspace(0, 1, 255)
  heat = np.concatenate([np.zeros((1, 3), np.uint8), _COLORS(share, bytes=True)[:, :3]])
  # Faint far below the threshold, where all of a good image lies; early strong above it.
  rise = np.where(share < 0.5, 0.66 * (2 * share), share**0.6)
  return heat, np.concatenate([[0.6], opacity * rise])


def _index(anomaly: Float[np.ndarray, 'h w'], scale: Scale) -> UInt8[np.ndarray, 'h w']:
  """Find the steps of a scale, from 1 on; 0 where the map is NaN."""
  # Two lines, of which the flatter one is the lower beyond the middle.
  below, above = 127 / (scale.middle - scale.low), 127 / (scale.top - scale.middle)
  with np.errstate(over='ignore', invalid='ignore'):
    step = np.asarray(anomaly, np.float32) - np.float32(scale.middle)
    step = np.minimum(step * np.float32(below), step * np.float32(above))
    step += np.float32(128)
  np.clip(step, 1, 255, out=step)
  return np.fmax(step, 0, out=step).astype(np.uint8)  # Of NaN and 0 it is 0.


def stroke(height: int, width: int) -> int:
  """How wide lines are that are seen on a picture of a size, in pixels."""
  return max(1, round(math.sqrt(height * width) / 250))


def outline(
  image: UInt8[np.ndarray, 'h w 3'], mask: Bool[np.ndarray, 'h w']
) -> UInt8[np.ndarray, 'h w 3']:
  """Draw the border of a mask, its outermost pixels, dark on both sides of it."""
  out = image.copy()
  if not mask.any():
    return out
  thick = stroke(*mask.shape)
  beside = (thick + 1) // 2
  rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
  part = (
    slice(max(0, rows[0] - beside), rows[-1] + beside + 1),
    slice(max(0, columns[0] - beside), columns[-1] + beside + 1),
  )
  inside = np.pad(mask[part], 1)  # The mask ends where the image does.
  deep = ~_grown(~inside, thick)
  border = inside & ~deep
  casing = _grown(border, beside) & ~border
  out[part][casing[1:-1, 1:-1]] = CASING
  out[part][border[1:-1, 1:-1]] = CONTOUR
  return out


def _grown(mask: Bool[np.ndarray, 'h w'], by: int) -> Bool[np.ndarray, 'h w']:
  """Grow a mask by so many pixels to all sides, a square around each."""
  for axis in (0, 1):
    reach, most = 0, min(by, mask.shape[axis] - 1)
    while reach < most:
      step = min(reach + 1, most - reach)  # Further, and gaps would be left.
      before, mask = np.moveaxis(mask, axis, 0), mask.copy()
      after = np.moveaxis(mask, axis, 0)
      after[step:] |= before[:-step]
      after[:-step] |= before[step:]
      reach += step
  return mask


def black_and_white(mask: Bool[np.ndarray, 'h w']) -> UInt8[np.ndarray, 'h w 3']:
  """Show a mask, defects white."""
  return np.repeat((mask * np.uint8(255))[..., None], 3, axis=2)


def side_by_side(tiles: Sequence[Tile], headline: str) -> Image.Image:
  """Put pictures of one size next to each other, each under its title, all under a headline."""
  height, width = tiles[0].image.shape[:2]
  gap = 4
  sheet = Image.new('RGB', (len(tiles) * (width + gap) - gap, height + 2 * _TITLE), (255, 255, 255))
  draw = ImageDraw.Draw(sheet)
  draw.text((4, 3), headline, (0, 0, 0), ImageFont.load_default(15))
  for number, tile in enumerate(tiles):
    left = number * (width + gap)
    draw.text((left + 4, _TITLE + 4), tile.title, (80, 80, 80), ImageFont.load_default(13))
    sheet.paste(Image.fromarray(tile.image), (left, 2 * _TITLE))
  return sheet
