"""Resizing: pixels become a network image, and a map goes back to the original size.

Whatever the ops are, a network image shows one rectangle of the original (a `geometry.Frame`) and
is sampled once: `resize(256)|center_crop(224)` gives what resizing and then cropping would.

Letters: h w the original, height width the network image.
"""

import itertools
import math
import re
from typing import NamedTuple

from jaxtyping import Bool, Float, UInt8
import numpy as np
from PIL import Image

from uadjax.data import geometry
from uadjax.errors import ConfigError


class Restored(NamedTuple):
  """A map at the original size.

  Attributes:
    map: where not seen, the map's minimum.
    seen: whether the network saw the pixel; False outside the crop.
  """

  map: Float[np.ndarray, 'h w']
  seen: Bool[np.ndarray, 'h w']


class Step(NamedTuple):
  """One op with its arguments."""

  name: str
  height: int
  width: int


class Ops(NamedTuple):
  """How an original becomes a network image, and how a map comes back."""

  steps: tuple[Step, ...]

  def __str__(self) -> str:
    return '|'.join(f'{name}({height}, {width})' for name, height, width in self.steps)

  @property
  def height(self) -> int:
    """Height of the network image; every op ends at the size it names."""
    return self.steps[-1].height

  @property
  def width(self) -> int:
    """Width of the network image."""
    return self.steps[-1].width

  def frame(self, h: int, w: int) -> geometry.Frame:
    """The rectangle of an h x w original that the network sees."""
    frame = geometry.whole(h, w)
    for name, height, width in self.steps:
      frame = geometry.OPS[name](frame, height, width)
    # Rounding must not carry an edge out of the picture.
    return frame._replace(bottom=min(frame.bottom, float(h)), right=min(frame.right, float(w)))

  def apply(self, image: UInt8[np.ndarray, 'h w 3']) -> UInt8[np.ndarray, 'height width 3']:
    """Bring an image to network size, bilinearly and with antialiasing."""
    frame = self.frame(*image.shape[:2])
    box = (frame.left, frame.top, frame.right, frame.bottom)
    picture = Image.fromarray(image)
    return np.asarray(picture.resize((self.width, self.height), Image.Resampling.BILINEAR, box))

  def restore(self, map: Float[np.ndarray, 'height width'], h: int, w: int) -> Restored:
    """Bring a map at network size back to the h x w original."""
    frame = self.frame(h, w)
    top, bottom, above, below = geometry.seen(frame.top, frame.bottom, h, self.height)
    left, right, before, after = geometry.seen(frame.left, frame.right, w, self.width)
    restored = Restored(np.full((h, w), map.min(), np.float32), np.zeros((h, w), bool))
    if top < bottom and left < right:
      # The outermost pixels may begin outside the frame; there the map goes on as it ends.
      margin = math.ceil(max(-above, -before, below - self.height, after - self.width, 0))
      picture = Image.fromarray(np.pad(np.asarray(map, np.float32), margin, mode='edge'))
      box = (before + margin, above + margin, after + margin, below + margin)
      size = (right - left, bottom - top)
      inside = slice(top, bottom), slice(left, right)
      restored.map[inside] = picture.resize(size, Image.Resampling.BILINEAR, box)
      restored.seen[inside] = True
    return restored


def parse(text: str) -> Ops:
  """Read ops such as 'resize(256)|center_crop(224)'; two arguments are height and width."""
  steps = tuple(_step(part, text) for part in text.split('|'))
  for before, step in itertools.pairwise(steps):
    if step.name == 'center_crop' and (step.height > before.height or step.width > before.width):
      raise ConfigError(f'{text!r} crops {step[1:]} from the smaller {before[1:]}.')
  return Ops(steps)


def _step(part: str, text: str) -> Step:
  found = re.fullmatch(r'\s*(\w+)\s*\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\)\s*', part, re.ASCII)
  name, height, width = found.groups() if found else ('', '0', '0')
  step = Step(name, int(height), int(width or height))
  if name not in geometry.OPS or not step.height or not step.width:
    raise ConfigError(
      f'Cannot read the op {part.strip()!r} in {text!r}; choose from {sorted(geometry.OPS)}, with '
      f'one'
      " positive size or height and width, as in 'resize(256)|center_crop(224)'."
    )
  return step
