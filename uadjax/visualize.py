"""Pictures that people look at: the image, what is known of it, and what the detector sees."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Bool, Float, UInt8
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Lightness rises evenly, and every color-blind reader sees it (Smith and van der Walt 2015).
_COLORS = matplotlib.colormaps['inferno']
_CONTOUR = (0, 229, 255)  # Cyan: absent from inferno and rare on products.
_TITLE = 22  # Pixels.


class Tile(NamedTuple):
  """A picture with its title."""

  title: str
  image: UInt8[np.ndarray, 'h w 3']


def overlay(
  image: UInt8[np.ndarray, 'h w 3'],
  anomaly: Float[np.ndarray, 'h w'],
  threshold: float,
  opacity: float = 0.6,
) -> UInt8[np.ndarray, 'h w 3']:
  """Lay a map over the image in color, the more opaque the hotter: the normal stays visible.

  The threshold is at the middle of the scale: brighter than half is a defect.
  """
  share = np.clip(anomaly / max(2 * threshold, np.finfo(np.float32).tiny), 0, 1)
  heat, opaque = _COLORS(share, bytes=True)[..., :3], opacity * share[..., None]
  mixed = image * (1 - opaque) + heat * opaque
  return mixed.astype(np.uint8)


def outline(
  image: UInt8[np.ndarray, 'h w 3'], mask: Bool[np.ndarray, 'h w']
) -> UInt8[np.ndarray, 'h w 3']:
  """Draw the border of a mask, its width growing with the image."""
  width = max(1, min(mask.shape) // 200)
  inside = mask
  for _ in range(width):
    p = np.pad(inside, 1)
    inside = p[1:-1, 1:-1] & p[:-2, 1:-1] & p[2:, 1:-1] & p[1:-1, :-2] & p[1:-1, 2:]
  out = image.copy()
  out[mask & ~inside] = _CONTOUR
  return out


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
