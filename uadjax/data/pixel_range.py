"""Conversion of images of more than 8 bits per channel to 8 bits, which everything else uses.

A camera of 10, 12 or 14 bits stores its values in files of 16 bits, which do not say how many bits
are in use. Read by the full range of 16 bits, an image of 12 bits would have 16 gray levels left.

Letters: h w height and width of an image.
"""

import math
from typing import NamedTuple

from jaxtyping import Num, UInt8
import numpy as np

from uadjax.errors import DataError, refuse, Setting

AUTO = 'auto'
_BIT_DEPTHS = 8, 10, 12, 14, 16
BITS = (AUTO, *map(str, _BIT_DEPTHS))  # Values of the setting `data.bits`.
_STRIP_VALUES = 1 << 20  # Number of values that are converted at once, in a small copy.


class PixelRange(NamedTuple):
  """Values that become black and white in images of more than 8 bits.

  Attributes:
    bits: bit depth of images of 16 bits: 0 is black, 2^bits - 1 white.
    limits: black and white of images of floats, and of integers that are not unsigned 8 or 16 bits;
      None if such images are refused.
  """

  bits: int = 16
  limits: tuple[float, float] | None = None

  @property
  def largest(self) -> int:
    """Largest value of an image of 16 bits."""
    return (1 << self.bits) - 1

  def to_uint8(self, values: Num[np.ndarray, 'h w ...']) -> UInt8[np.ndarray, 'h w ...']:
    """Scale values to 0-255 and round them; those of 8 bits are returned unchanged.

    Raises:
      DataError: a value is outside of the range, or the range of such values is unknown. Its
        message begins with 'its' and continues a sentence.
    """
    if values.dtype == np.uint8 or not values.size:
      return values.astype(np.uint8, copy=False)
    if is_16_bit(values):
      low, high = 0.0, float(self.largest)
      self._require_bits(int(values.max()))
    else:
      low, high = self._require_limits(values)
    pixels = np.empty(values.shape, np.uint8)
    rows = max(1, _STRIP_VALUES * values.shape[0] // values.size)
    for top in range(0, len(values), rows):
      # In double precision, so that equal values of any type give equal pixels.
      strip = (values[top : top + rows].astype(np.float64) - low) / (high - low)
      pixels[top : top + rows] = np.rint(strip * 255)
    return pixels

  def _require_bits(self, largest: int) -> None:
    if largest > self.largest:
      message = f'its largest value is {largest}, but with a bit depth of {self.bits} the largest '
      hint = 'Such images need ', Setting('data.bits', bits_for(largest)), '.'
      raise DataError(
        f'{message}is {self.largest}.', key='data.bits', value=largest,
        allowed=f'at most {self.largest}', hint=hint,
      )  # fmt: skip

  def _require_limits(self, values: Num[np.ndarray, '...']) -> tuple[float, float]:
    smallest, largest = float(values.min()), float(values.max())
    description = f'its values are {values.dtype.name} from {smallest:g} to {largest:g}'
    if self.limits is None:
      hint = 'Such images need ', Setting('data.range', 'LOW,HIGH'), ': black and white.'
      message = f'{description}, and no setting says which are black and white.'
      raise DataError(message, key='data.range', value=f'{smallest:g},{largest:g}', hint=hint)
    low, high = self.limits
    if not (low <= smallest and largest <= high):  # The negated form also rejects NaN.
      allowed = f'{low:g} to {high:g}'
      hint = 'Choose another ', Setting('data.range'), ', or clip the values.'
      message = f'{description}; they must be in {allowed}.'
      value = f'{smallest:g},{largest:g}'
      raise DataError(message, key='data.range', value=value, allowed=allowed, hint=hint)
    return low, high

  def to_dict(self) -> dict[str, object]:
    """Return the settings of the range as JSON-compatible values."""
    return {'bits': self.bits, 'range': list(self.limits) if self.limits else None}


FULL_RANGE = PixelRange()


def is_16_bit(values: Num[np.ndarray, '...']) -> bool:
  """Return whether values are unsigned integers of 16 bits, in any byte order."""
  return values.dtype.kind == 'u' and values.dtype.itemsize == 2


def bits_for(largest: int) -> int:
  """Return the smallest bit depth that has a value of at most 16 bits."""
  return next(bits for bits in _BIT_DEPTHS if largest < 1 << bits)


def from_settings(bits: str, limits: str) -> PixelRange:
  """Return the range of the settings `data.bits`, where `auto` stands for 16, and `data.range`."""
  return PixelRange(16 if bits == AUTO else int(bits), parse_limits(limits))


def parse_limits(text: str) -> tuple[float, float] | None:
  """Parse the values of black and white, such as '0,4095'; '' stands for None.

  Raises:
    ConfigError: the text is not two finite numbers, the smaller one first.
  """
  if not text:
    return None
  try:
    low, high = (float(number) for number in text.split(','))
  except ValueError:
    low = high = math.nan
  if not -math.inf < low < high < math.inf:
    allowed = 'two numbers, the smaller one first'
    message = f'data.range must be {allowed}, as in 0,4095, got {text!r}.'
    refuse('data.range', text, message, allowed=allowed)
  return low, high
