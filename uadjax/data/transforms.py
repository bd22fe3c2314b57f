"""Scaling of images for the network, and of anomaly maps back to the original size.

Each op maps a frame to a frame; the first frame is the original itself. So for any chain of ops, a
scaled image shows one rectangle of the original and is sampled once:
`resize(256)|center_crop(224)` equals resizing followed by cropping.

The network sees the scaled image in one piece, or, with `tile(size, overlap)` as the last op, in
tiles (see `tiles`).

A region of interest goes through the same ops as the images.

Letters: h w the original, height width the scaled image.
"""

from collections.abc import Sequence
import functools
import itertools
import math
import re
from typing import NamedTuple, TypeAlias

from jaxtyping import Bool, Float, UInt8
import numpy as np
from PIL import Image

from uadjax.data import region_of_interest
from uadjax.data.region_of_interest import RegionOfInterest
from uadjax.data.tiles import TileGrid
from uadjax.errors import ConfigError, DataError, Setting

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

  @property
  def scale(self) -> tuple[float, float]:
    """Height and width of a pixel of the original, in pixels of the image."""
    return self.height / (self.bottom - self.top), self.width / (self.right - self.left)


def resize(frame: Frame, height: int, width: int) -> Frame:
  """Return a frame that shows the same rectangle at another size."""
  return frame._replace(height=height, width=width)


def keep_ratio(frame: Frame, height: int, width: int) -> Frame:
  """Scale with the aspect ratio kept until (height, width) is covered, and crop the overhang."""
  scale = max(height / frame.height, width / frame.width)
  h, w = min(height / scale, frame.height), min(width / scale, frame.width)
  cropped = _crop(frame, (frame.height - h) / 2, (frame.width - w) / 2, h, w)
  return cropped._replace(height=height, width=width)


def fit_within(frame: Frame, side: int) -> Frame:
  """Scale down with the aspect ratio kept until the longer side has at most `side` pixels."""
  scale = min(1.0, side / max(frame.height, frame.width))
  height, width = (max(1, round(scale * n)) for n in (frame.height, frame.width))
  return frame._replace(height=height, width=width)


def tile(frame: Frame, size: int, overlap: int) -> Frame:
  """Enlarge with the aspect ratio kept until the image has the size of a tile, if it is smaller."""
  del overlap
  scale = max(1.0, size / min(frame.height, frame.width))
  height, width = (max(size, round(scale * n)) for n in (frame.height, frame.width))
  return frame._replace(height=height, width=width)


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


def covered_pixels(low: float, high: float, n: int, size: int) -> tuple[int, int, float, float]:
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


OPS = {
  'resize': resize,
  'keep_ratio': keep_ratio,
  'center_crop': center_crop,
  'fit_within': fit_within,
  'tile': tile,
}
_FIT_WITHIN, _TILE = 'fit_within', 'tile'


class RestoredMap(NamedTuple):
  """Anomaly map at the size of the original.

  Attributes:
    anomaly_map: scores of the pixels; those that are not visible have the map's minimum.
    visible: True for pixels that the scaled image shows and that are inspected; False outside of
      the crop and of the region of interest.
  """

  anomaly_map: Float[np.ndarray, 'h w']
  visible: Bool[np.ndarray, 'h w']


class Step(NamedTuple):
  """One op with its arguments, which are a height and a width unless the op says otherwise."""

  name: str
  arguments: tuple[int, ...]


class Ops(NamedTuple):
  """Chain of ops from an original to a scaled image and its tiles, and back for anomaly maps.

  Attributes:
    steps: the ops.
    region: pixels of the originals that are inspected; None for all.
  """

  steps: tuple[Step, ...]
  region: RegionOfInterest | None = None

  def __str__(self) -> str:
    return '|'.join(f'{name}({", ".join(map(str, arguments))})' for name, arguments in self.steps)

  @property
  def is_tiled(self) -> bool:
    """Whether the network sees tiles of the scaled image."""
    return self.steps[-1].name == _TILE

  @property
  def height(self) -> int:
    """Height of the network's input: that of the scaled image, or of a tile."""
    return self.steps[-1].arguments[0]

  @property
  def width(self) -> int:
    """Width of the network's input: that of the scaled image, or of a tile."""
    return self.height if self.is_tiled else self.steps[-1].arguments[1]

  def frame(self, h: int, w: int) -> Frame:
    """Return the rectangle of an h x w original that the scaled image shows."""
    frame = Frame(0.0, 0.0, float(h), float(w), h, w)
    for name, arguments in self.steps:
      frame = OPS[name](frame, *arguments)
    # Rounding must not move an edge out of the image.
    return frame._replace(bottom=min(frame.bottom, float(h)), right=min(frame.right, float(w)))

  def scaled_size(self, h: int, w: int) -> tuple[int, int]:
    """Return height and width of the scaled image of an h x w original."""
    frame = self.frame(h, w)
    return frame.height, frame.width

  def tile_grid(self, size: Sequence[int]) -> TileGrid:
    """Return the tiles of a scaled image, which is one tile if the network sees it as a whole.

    Args:
      size: height and width of the scaled image.
    """
    height, width = size
    overlap = self.steps[-1].arguments[1] if self.is_tiled else 0
    return TileGrid.build(height, width, self.height, self.width, overlap)

  def with_region(self, region: RegionOfInterest | None) -> 'Ops':
    """Return the ops for images of which a region is inspected; None for whole images.

    Raises:
      DataError: the scaled image shows no pixel of the region.
    """
    ops, key = self._replace(region=region), region_of_interest.KEY
    if region is None:
      return ops
    if not _scale_region(ops, *region.mask.shape).any():
      message = f'The images that {self} makes show no pixel of the region of interest.'
      hint = 'Enlarge the region, or change ', Setting('data.ops'), '.'
      raise DataError(message, key=key, hint=hint)
    return ops

  @property
  def has_blanks(self) -> bool:
    """Whether pixels outside of the region of interest are blank: in images that are tiled."""
    return self.is_tiled and self.region is not None

  def network_region(self) -> Bool[np.ndarray, 'height width'] | None:
    """Return the inspected pixels of images at network size; None for all, and for tiles."""
    if self.region is None or self.is_tiled:
      return None
    return self.inspected_pixels(*self.region.mask.shape)

  def inspected_pixels(self, h: int, w: int) -> Bool[np.ndarray, 'height width'] | None:
    """Return which pixels of the scaled image of an h x w original are inspected; None for all.

    At least half of such a pixel lies inside of the region.
    """
    if self.region is None:
      return None
    # Without tiles, all scaled images have the size of that of the region.
    inspected = _scale_region(self, *((h, w) if self.is_tiled else self.region.mask.shape))
    return None if inspected.all() else inspected

  def require_fit(self, h: int, w: int) -> None:
    """Check that the region of interest, if there is one, can be placed on an h x w original.

    Raises:
      DataError: the original has another aspect ratio than the region, or its scaled image shows
        another part.
    """
    if self.region is None:
      return
    self.region.require_fit(h, w)
    height, width = self.region.mask.shape
    frame, frame_of_region = self.frame(h, w), self.frame(height, width)
    edges = np.divide(frame[:4], (h, w, h, w))
    edges_of_region = np.divide(frame_of_region[:4], (height, width, height, width))
    if np.abs(edges - edges_of_region).max() > 1 / max(frame_of_region[4:]):
      message = f'{self} crops an image of {w} x {h} pixels to another part than'
      hint = 'Scale images before they are cropped: ', Setting('data.ops'), '.'
      raise DataError(f'{message} the region of interest, {width} x {height}.', hint=hint)

  def apply(self, image: UInt8[np.ndarray, 'h w 3']) -> UInt8[np.ndarray, 'height width 3']:
    """Scale an image, bilinearly and with antialiasing.

    If it will be tiled, pixels outside of the region of interest become blank.

    Raises:
      DataError: it does not fit to a crop or to the region of interest.
    """
    h, w = image.shape[:2]
    self.require_fit(h, w)
    scaled = np.asarray(self._scale(Image.fromarray(image)))
    if not self.has_blanks:
      return scaled
    return region_of_interest.fill_outside(scaled, _scale_region(self, h, w))

  def _scale(self, image: Image.Image) -> Image.Image:
    frame = self.frame(image.height, image.width)
    box = (frame.left, frame.top, frame.right, frame.bottom)
    return image.resize((frame.width, frame.height), Image.Resampling.BILINEAR, box)

  def restore(
    self,
    anomaly_map: Float[np.ndarray, 'height width'],
    h: int,
    w: int,
    size: tuple[int, int] | None = None,
  ) -> RestoredMap:
    """Resize the anomaly map of a scaled image back to its h x w original.

    Args:
      anomaly_map: map of the scaled image.
      h: height of the original.
      w: width of the original.
      size: height and width of a map for a thumbnail of the original; None for the original's.
    """
    frame, (restored_h, restored_w) = self.frame(h, w), size or (h, w)
    y_scale, x_scale = restored_h / h, restored_w / w
    top, bottom, left, right = (
      frame.top * y_scale, frame.bottom * y_scale, frame.left * x_scale, frame.right * x_scale
    )  # fmt: skip
    restored = _restore(anomaly_map, (top, left, bottom, right), restored_h, restored_w)
    if self.region is not None:
      outside = ~self.region.resized(restored_h, restored_w)
      restored.anomaly_map[outside] = anomaly_map.min()
      restored.visible[outside] = False
    return restored


@functools.lru_cache(16)  # Most images of a run share a mask.
def _scale_region(ops: Ops, h: int, w: int) -> Bool[np.ndarray, 'height width']:
  assert ops.region is not None
  # In gray, because Pillow samples black and white without antialiasing.
  levels = np.asarray(ops._scale(Image.fromarray(ops.region.resized(h, w) * np.uint8(255))))
  inspected = levels > region_of_interest.MAX_BLACK
  inspected.flags.writeable = False
  return inspected


def _restore(
  anomaly_map: Float[np.ndarray, 'height width'],
  rectangle: tuple[float, float, float, float],
  h: int,
  w: int,
) -> RestoredMap:
  """Resize a map into the rectangle (top, left, bottom, right) of an h x w image."""
  (height, width), (top_edge, left_edge, bottom_edge, right_edge) = anomaly_map.shape, rectangle
  top, bottom, box_top, box_bottom = covered_pixels(top_edge, bottom_edge, h, height)
  left, right, box_left, box_right = covered_pixels(left_edge, right_edge, w, width)
  restored = RestoredMap(np.full((h, w), anomaly_map.min(), np.float32), np.zeros((h, w), bool))
  if top < bottom and left < right:
    # The outermost pixels may begin outside of the frame, where the map's edge is repeated.
    overhang = max(-box_top, -box_left, box_bottom - height, box_right - width, 0)
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
# The overlap of tiles may be 0.
_ARGUMENTS = {
  'fit_within': "one positive size, as in 'fit_within(1024)'",
  'tile': "a positive size and a smaller overlap, as in 'tile(256, 32)'",
}
_SIZE_ARGUMENTS = "a positive size or height and width, as in 'resize(256)'"


def parse(text: str) -> Ops:
  """Parse ops such as 'resize(256)|center_crop(224)'; two arguments are height and width.

  Raises:
    ConfigError: an op is unknown, malformed or too large, a crop is larger than its input, an op
      follows `tile`, or the scaled images have different sizes and are not tiled.
  """
  ops = Ops(tuple(_parse_step(op_text, text) for op_text in text.split('|')))
  if any(step.name == _TILE for step in ops.steps[:-1]):
    raise ConfigError(f'{text!r} has an op after tile, which must be the last.')
  if ops.steps[-1].name == _FIT_WITHIN:
    hint = f"add tiles, as in '{ops}|tile(256, 32)', or use resize(height, width)"
    raise ConfigError(f'{text!r} scales images to different sizes; {hint}.')
  if ops.height * ops.width > _MAX_PIXELS:
    message = f'{text!r} has {ops.height} x {ops.width} pixels; use at most {_MAX_PIXELS}.'
    raise ConfigError(message)
  for previous, step in itertools.pairwise(ops.steps):
    if step.name != 'center_crop' or previous.name == _FIT_WITHIN:
      continue
    if any(a > b for a, b in zip(step.arguments, previous.arguments, strict=True)):
      crop = f'{step.arguments} from {previous.arguments}'
      raise ConfigError(f'{text!r} crops {crop}; a crop must not be larger.')
  return ops


def _parse_step(op_text: str, text: str) -> Step:
  match = re.fullmatch(_STEP, op_text, re.ASCII)
  name, first, second = match.groups() if match else ('', '0', None)
  size = int(first)
  if name == _TILE:
    step, is_valid = Step(name, (size, int(second or 0))), second is not None
    is_valid &= int(second or 0) < size
  elif name == _FIT_WITHIN:
    step, is_valid = Step(name, (size,)), second is None
  else:
    step = Step(name, (size, int(second or first)))
    is_valid = name in OPS and all(step.arguments)
  if not is_valid or not size:
    message = f'Cannot read the op {op_text.strip()!r} in {text!r}; choose from {sorted(OPS)}'
    raise ConfigError(f'{message}, with {_ARGUMENTS.get(name, _SIZE_ARGUMENTS)}.')
  if max(step.arguments) > _MAX_SIDE:
    raise ConfigError(f'{op_text.strip()!r} is too large; a side has at most {_MAX_SIDE} pixels.')
  return step
