"""Geometry of image ops: which rectangle of the original a network image shows.

Each op maps a frame to a frame; the first frame is the original image itself.
"""

import math
from typing import NamedTuple, TypeAlias

from uadjax.errors import DataError

Number: TypeAlias = float | int


class Frame(NamedTuple):
  """Rectangle of the original that an image shows, and the image's size.

  Attributes:
    top: upper edge of the rectangle, in pixels of the original.
    left: left edge of the rectangle, in pixels of the original.
    bottom: lower edge of the rectangle, in pixels of the original.
    right: right edge of the rectangle, in pixels of the original.
    height: height of the image in its own pixels.
    width: width of the image in its own pixels.
  """

  top: float
  left: float
  bottom: float
  right: float
  height: int
  width: int


def resize(frame: Frame, height: int, width: int) -> Frame:
  """Return a frame that shows the same rectangle at another size."""
  return frame._replace(height=height, width=width)


def keep_ratio(frame: Frame, height: int, width: int) -> Frame:
  """Scale with the aspect ratio kept until (height, width) is covered, and crop the overhang."""
  scale = max(height / frame.height, width / frame.width)
  h, w = min(height / scale, frame.height), min(width / scale, frame.width)
  cropped = _crop(frame, (frame.height - h) / 2, (frame.width - w) / 2, h, w)
  return cropped._replace(height=height, width=width)


def center_crop(frame: Frame, height: int, width: int) -> Frame:
  """Crop the center at whole pixels; an odd overhang loses one pixel more at bottom and right.

  Raises:
    DataError: the crop is larger than the image.
  """
  if height > frame.height or width > frame.width:
    raise DataError(
      f'Cannot crop {height} x {width} from an image of {frame.height} x {frame.width};'
      " add 'resize(...)' before 'center_crop(...)'."
    )
  top, left = (frame.height - height) // 2, (frame.width - width) // 2
  return _crop(frame, top, left, height, width)._replace(height=height, width=width)


def _crop(frame: Frame, top: Number, left: Number, height: Number, width: Number) -> Frame:
  """Return the part of a frame inside a rectangle that is given in the frame's own pixels."""
  y_scale = (frame.bottom - frame.top) / frame.height
  x_scale = (frame.right - frame.left) / frame.width
  bottom, right = frame.top + y_scale * (top + height), frame.left + x_scale * (left + width)
  top, left = frame.top + y_scale * top, frame.left + x_scale * left
  return frame._replace(top=top, left=left, bottom=bottom, right=right)


def pixel_range(low: float, high: float, n: int, size: int) -> tuple[int, int, float, float]:
  """Find the pixels of the original that a map covers along one axis.

  Args:
    low: lower edge of the frame, in pixels of the original.
    high: upper edge of the frame, in pixels of the original.
    n: number of pixels of the original.
    size: number of pixels of the map.

  Returns:
    First pixel and end (exclusive) of the pixels whose centers lie in [low, high), and the
    coordinates of these two edges in the map.
  """
  # The tolerance absorbs rounding of the edges for pixel centers that lie exactly on an edge.
  first, end = max(math.ceil(low - 0.5 - 1e-9), 0), min(math.ceil(high - 0.5 - 1e-9), n)
  scale = size / (high - low)
  return first, end, (first - low) * scale, (end - low) * scale


OPS = {'resize': resize, 'keep_ratio': keep_ratio, 'center_crop': center_crop}
