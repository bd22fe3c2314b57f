"""Augmented copies of good images: turned, shifted, brighter or darker.

A copy is made of the scaled image, before tiles are cut and before normalization. It depends only
on the pixels of the image, the seed and the number of the copy. So all processes make the same
copies, and so does a run that extends another.

Letters: h w scaled image.
"""

import re
from typing import Any, NamedTuple
import zlib

from jaxtyping import UInt8
import numpy as np
from scipy import ndimage

from uadjax.errors import ConfigError

_NUM_COPIES = 3  # Of images that are not turned: as many as rotate(4) makes.
_MAX_ANGLES, _MAX_SHIFT, _MAX_FACTOR = 360, 0.5, 10
_NUMBER = r'\s*(\d{0,9}\.?\d{1,9})\s*'
_OP = rf'\s*\w+\s*\({_NUMBER}(?:,{_NUMBER})?\)\s*'
_ARGUMENTS = {
  'rotate': f"a number of angles from 2 to {_MAX_ANGLES}, as in 'rotate(8)'",
  'shift': f"a share of the sides above 0 and up to {_MAX_SHIFT}, as in 'shift(0.05)'",
  'brightness': (
    f"two ascending factors above 0 and up to {_MAX_FACTOR}, as in 'brightness(0.8, 1.2)'"
  ),
}
_EXAMPLE = "as in 'rotate(8)|shift(0.05)|brightness(0.8, 1.2)'"


class Augmentation(NamedTuple):
  """Ops that make augmented copies of an image.

  Attributes:
    num_angles: number of angles of the image and its copies, which are the multiples of an equal
      part of a full turn; 1 to turn none.
    max_shift: largest random shift along each side, as a share of that side.
    brightness: smallest and largest random factor of the pixels.
    seed: seed of the random shifts and factors.
  """

  num_angles: int = 1
  max_shift: float = 0.0
  brightness: tuple[float, float] = (1.0, 1.0)
  seed: int = 0

  @property
  def num_copies(self) -> int:
    """Number of copies of each image, in addition to the image itself."""
    if self.num_angles > 1:
      return self.num_angles - 1
    return _NUM_COPIES if self.max_shift or self.brightness != (1.0, 1.0) else 0

  def make_copy(self, image: UInt8[np.ndarray, 'h w 3'], number: int) -> UInt8[np.ndarray, 'h w 3']:
    """Return a copy of an image: turned about its center, shifted, and brightened.

    It has the size of the image and is sampled bilinearly. Beyond its edges the image is mirrored.

    Args:
      image: scaled image.
      number: number of the copy, from 1 to `num_copies`.
    """
    random = np.random.default_rng(
      (self.seed, zlib.crc32(np.ascontiguousarray(image).data), number)
    )
    size = np.array(image.shape[:2])
    shift = random.uniform(-self.max_shift, self.max_shift, 2) * size
    factor = random.uniform(*self.brightness)
    angle = 2 * np.pi * (number % self.num_angles) / self.num_angles
    # Rounded, so that quarter turns of a square image move pixels without interpolation.
    cos, sin = np.round((np.cos(angle), np.sin(angle)), 15)
    rotation, center = np.array([[cos, -sin], [sin, cos]]), (size - 1) / 2
    origin: Any = center - rotation @ (center + shift)  # SciPy's type is that of a number only.
    turned = np.empty_like(image)
    for i in range(3):
      ndimage.affine_transform(
        image[..., i], rotation, origin, output=turned[..., i], order=1, mode='mirror'
      )
    levels = np.clip(np.round(factor * np.arange(256)), 0, 255).astype(np.uint8)
    return levels[turned]


NONE = Augmentation()


def parse(text: str, seed: int = 0) -> Augmentation:
  """Parse ops such as 'rotate(8)|shift(0.05)|brightness(0.8, 1.2)', in any order; '' for none.

  Raises:
    ConfigError: an op is unknown, malformed, out of range or repeated.
  """
  steps = [_parse_op(op_text, text) for op_text in text.split('|')] if text else []
  arguments = dict(steps)
  if len(arguments) < len(steps):
    raise ConfigError(f'{text!r} repeats an op; name each at most once, {_EXAMPLE}.')
  (num_angles,), (max_shift,) = arguments.get('rotate', (1,)), arguments.get('shift', (0.0,))
  low, high = arguments.get('brightness', (1.0, 1.0))
  return Augmentation(int(num_angles), max_shift, (low, high), seed)


def _parse_op(op_text: str, text: str) -> tuple[str, tuple[float, ...]]:
  name, match = op_text.partition('(')[0].strip(), re.fullmatch(_OP, op_text, re.ASCII)
  arguments = tuple(float(number) for number in match.groups() if number) if match else ()
  match name, arguments:
    case 'rotate', (n,):
      is_valid = n in range(2, _MAX_ANGLES + 1)
    case 'shift', (share,):
      is_valid = 0 < share <= _MAX_SHIFT
    case 'brightness', (low, high):
      is_valid = 0 < low < high <= _MAX_FACTOR
    case _:
      is_valid = False
  if not is_valid:
    message = f'Cannot read the op {op_text.strip()!r} in {text!r}; choose from {[*_ARGUMENTS]}'
    raise ConfigError(f'{message}, with {_ARGUMENTS.get(name, f"numbers, {_EXAMPLE}")}.')
  return name, arguments
