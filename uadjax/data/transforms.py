"""Resizing of images to network size, and of anomaly maps back to the original size.

Each op maps a frame to a frame; the first frame is the original itself. So for any chain of ops, a
network image shows one rectangle of the original and is sampled once:
`resize(256)|center_crop(224)` equals resizing followed by cropping.

Letters: h w the original, height width the network image.
"""

import itertools
import math
import re
from typing import NamedTuple, TypeAlias

from jaxtyping import Bool, Float, UInt8
import numpy as np
from PIL import Image

from uadjax.errors import ConfigError, DataError

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
    message = f'Cannot crop {height} x {width} from an image of {frame.height} x {frame.width}'
    raise DataError(f"{message}; add 'resize(...)' before 'center_crop(...)'.")
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


class RestoredMap(NamedTuple):
  """Anomaly map at the size of the original.

  Attributes:
    anomaly_map: scores of the pixels; those that are not visible have the map's minimum.
    visible: True for pixels that the network image shows; False outside of the crop.
  """

  anomaly_map: Float[np.ndarray, 'h w']
  visible: Bool[np.ndarray, 'h w']


class Step(NamedTuple):
  """One op with its arguments."""

  name: str
  height: int
  width: int


class Ops(NamedTuple):
  """Chain of ops from an original to a network image, and back for anomaly maps."""

  steps: tuple[Step, ...]

  def __str__(self) -> str:
    return '|'.join(f'{name}({height}, {width})' for name, height, width in self.steps)

  @property
  def height(self) -> int:
    """Height of the network image, which is that of the last op."""
    return self.steps[-1].height

  @property
  def width(self) -> int:
    """Width of the network image, which is that of the last op."""
    return self.steps[-1].width

  def frame(self, h: int, w: int) -> Frame:
    """Return the rectangle of an h x w original that the network image shows."""
    frame = Frame(0.0, 0.0, float(h), float(w), h, w)
    for name, height, width in self.steps:
      frame = OPS[name](frame, height, width)
    # Rounding must not move an edge out of the image.
    return frame._replace(bottom=min(frame.bottom, float(h)), right=min(frame.right, float(w)))

  def apply(self, image: UInt8[np.ndarray, 'h w 3']) -> UInt8[np.ndarray, 'height width 3']:
    """Resize an image to network size, bilinearly and with antialiasing."""
    frame = self.frame(*image.shape[:2])
    box = (frame.left, frame.top, frame.right, frame.bottom)
    pil_image = Image.fromarray(image)
    return np.asarray(pil_image.resize((self.width, self.height), Image.Resampling.BILINEAR, box))

  def restore(self, anomaly_map: Float[np.ndarray, 'height width'], h: int, w: int) -> RestoredMap:
    """Resize an anomaly map at network size back to the h x w original."""
    frame = self.frame(h, w)
    top, bottom, box_top, box_bottom = pixel_range(frame.top, frame.bottom, h, self.height)
    left, right, box_left, box_right = pixel_range(frame.left, frame.right, w, self.width)
    restored = RestoredMap(np.full((h, w), anomaly_map.min(), np.float32), np.zeros((h, w), bool))
    if top < bottom and left < right:
      # The outermost pixels may begin outside of the frame, where the map's edge is repeated.
      overhang = max(-box_top, -box_left, box_bottom - self.height, box_right - self.width, 0)
      margin = math.ceil(overhang)
      padded = Image.fromarray(np.pad(np.asarray(anomaly_map, np.float32), margin, mode='edge'))
      box = (box_left + margin, box_top + margin, box_right + margin, box_bottom + margin)
      size = (right - left, bottom - top)
      window = slice(top, bottom), slice(left, right)
      restored.anomaly_map[window] = padded.resize(size, Image.Resampling.BILINEAR, box)
      restored.visible[window] = True
    return restored


# Larger images would take more memory than any machine has: the first features of a network take 64
# bytes per pixel, and a matrix that upsamples a side takes as many bytes as twice its square.
_MAX_SIDE, _MAX_PIXELS = 1 << 14, 1 << 26
_STEP = r'\s*(\w+)\s*\(\s*(\d{1,9})\s*(?:,\s*(\d{1,9})\s*)?\)\s*'


def parse(text: str) -> Ops:
  """Parse ops such as 'resize(256)|center_crop(224)'; two arguments are height and width.

  Raises:
    ConfigError: an op is unknown, malformed or too large, or a crop is larger than its input.
  """
  steps = tuple(_parse_step(op_text, text) for op_text in text.split('|'))
  last = steps[-1]
  if last.height * last.width > _MAX_PIXELS:
    message = f'{text!r} has {last.height} x {last.width} pixels; use at most {_MAX_PIXELS}.'
    raise ConfigError(message)
  for previous, step in itertools.pairwise(steps):
    is_larger = step.height > previous.height or step.width > previous.width
    if step.name == 'center_crop' and is_larger:
      message = f'{text!r} crops {step[1:]} from {previous[1:]}; a crop must not be larger.'
      raise ConfigError(message)
  return Ops(steps)


def _parse_step(op_text: str, text: str) -> Step:
  match = re.fullmatch(_STEP, op_text, re.ASCII)
  name, height, width = match.groups() if match else ('', '0', '0')
  step = Step(name, int(height), int(width or height))
  if name not in OPS or not step.height or not step.width:
    message = f'Cannot read the op {op_text.strip()!r} in {text!r}; choose from {sorted(OPS)}'
    raise ConfigError(f"{message}, with a positive size or height and width, as in 'resize(256)'.")
  if max(step[1:]) > _MAX_SIDE:
    raise ConfigError(f'{op_text.strip()!r} is too large; a side has at most {_MAX_SIDE} pixels.')
  return step
