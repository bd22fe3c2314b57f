"""Geometry without pixels: which rectangle of the original a network image shows.

A chain of ops is a chain of frames, the first of which is the original itself.
"""

from collections.abc import Callable
import math
from typing import NamedTuple

from uadjax.errors import DataError


class Frame(NamedTuple):
  """What an image shows: a rectangle of the original, and in how many pixels.

  Attributes:
    top: edge of the rectangle in pixels of the original, as are left, bottom and right.
    left: likewise.
    bottom: likewise.
    right: likewise.
    height: of the image, in its own pixels.
    width: likewise.
  """

  top: float
  left: float
  bottom: float
  right: float
  height: int
  width: int


def full_frame(h: int, w: int) -> Frame:
  """The original itself."""
  return Frame(0.0, 0.0, float(h), float(w), h, w)


def resize(frame: Frame, height: int, width: int) -> Frame:
  """The same rectangle in other pixels."""
  return frame._replace(height=height, width=width)


def keep_ratio(frame: Frame, height: int, width: int) -> Frame:
  """Scale until (height, width) is covered, and cuts the overhang."""
  scale = max(height / frame.height, width / frame.width)
  h, w = min(height / scale, frame.height), min(width / scale, frame.width)
  cropped = _crop(frame, (frame.height - h) / 2, (frame.width - w) / 2, h, w)
  return cropped._replace(height=height, width=width)


def center_crop(frame: Frame, height: int, width: int) -> Frame:
  """Keep whole pixels: of an odd overhang, the larger half goes at the bottom and the right."""
  if height > frame.height or width > frame.width:
    raise DataError(
      f'Cannot crop {height} x {width} from an image of {frame.height} x {frame.width};'
      " put 'resize(...)' before 'center_crop(...)'."
    )
  top, left = (frame.height - height) // 2, (frame.width - width) // 2
  return _crop(frame, top, left, height, width)._replace(height=height, width=width)


def _crop(
  frame: Frame, top: float | int, left: float | int, height: float | int, width: float | int
) -> Frame:
  """A part of the frame, given in the frame's own pixels."""
  y_scale = (frame.bottom - frame.top) / frame.height
  x_scale = (frame.right - frame.left) / frame.width
  return frame._replace(
    top=frame.top + y_scale * top,
    left=frame.left + x_scale * left,
    bottom=frame.top + y_scale * (top + height),
    right=frame.left + x_scale * (left + width),
  )


def pixel_range(low: float, high: float, n: int, size: int) -> tuple[int, int, float, float]:
  """First and end of the n pixels whose centers lie in [low, high), and these edges in the map."""
  # Edges are sums of quotients: a center on one must not change sides by the last bit.
  first, end = max(math.ceil(low - 0.5 - 1e-9), 0), min(math.ceil(high - 0.5 - 1e-9), n)
  scale = size / (high - low)
  return first, end, (first - low) * scale, (end - low) * scale


OPS: dict[str, Callable[[Frame, int, int], Frame]] = {
  'resize': resize,
  'keep_ratio': keep_ratio,
  'center_crop': center_crop,
}
