"""Region of interest: the pixels of images that are inspected.

A region is a mask in the pixels of the original images. It fits all images of its aspect ratio.

Letters: h w an image or its mask.
"""

import dataclasses
import hashlib
import io
from pathlib import Path

from jaxtyping import Bool, UInt8
import numpy as np
from PIL import Image

from uadjax.data import image_io
from uadjax.errors import about, DataError, Setting

KEY = 'data.roi'
CATEGORY = '{category}'  # In a path, it stands for the name of the category.
MAX_BLACK = 127  # Gray values above it are white, that is, inspected.
# Color of pixels outside, in the images of which a network sees tiles: near the mean of ImageNet.
BLANK = (124, 116, 104)

Mask = Bool[np.ndarray, 'h w']


@dataclasses.dataclass(frozen=True, eq=False)
class RegionOfInterest:
  """Pixels that are inspected; regions are compared by identity.

  Attributes:
    mask: True for inspected pixels, which are some, but not all.
  """

  mask: Mask

  @property
  def sha256(self) -> str:
    """SHA-256 of size and pixels, in hexadecimal."""
    height, width = self.mask.shape
    content = f'{height} {width} '.encode() + np.packbits(self.mask).tobytes()
    return hashlib.sha256(content).hexdigest()

  def resized(self, h: int, w: int) -> Mask:
    """Return the mask at another size."""
    if self.mask.shape == (h, w):
      return self.mask
    return np.asarray(Image.fromarray(self.mask).resize((w, h), Image.Resampling.NEAREST))

  def require_fit(self, h: int, w: int) -> None:
    """Check that an image of h x w pixels has the aspect ratio of the region, up to rounding.

    Raises:
      DataError: it has another one.
    """
    height, width = self.mask.shape
    # Rounding moves a side by half a pixel.
    if 2 * abs(h * width - w * height) > max(h, w, height, width):
      message = f'An image of {w} x {h} pixels has another aspect ratio than the region of interest'
      hint = 'Draw the region on such an image: ', Setting(KEY), '.'
      raise DataError(f'{message}, {width} x {height}.', hint=hint)

  def to_png(self) -> bytes:
    """Return the content of a PNG in which inspected pixels are white."""
    file = io.BytesIO()
    Image.fromarray(self.mask).save(file, 'PNG')
    return file.getvalue()


def fill_outside(image: UInt8[np.ndarray, 'h w 3'], mask: Mask) -> UInt8[np.ndarray, 'h w 3']:
  """Return an image whose pixels outside of a mask are BLANK, and no others."""
  result = image.copy()
  result[find_outside(image), 2] += 1
  result[~mask] = BLANK
  return result


def find_outside(image: UInt8[np.ndarray, 'h w 3']) -> Mask:
  """Return the pixels that are BLANK."""
  return (image == np.array(BLANK, np.uint8)).all(axis=-1)


def read(source: Path | bytes) -> RegionOfInterest | None:
  """Read a region from an image, in which white is inspected; None if all of it is white.

  Raises:
    DataError: the image cannot be read, or no pixel is white.
  """
  levels = image_io.read_image(source).pixels.max(axis=-1)
  mask = levels > MAX_BLACK
  if not mask.any():
    name = 'The region of interest' if isinstance(source, bytes) else source
    message = f'{name} has no white pixel (above {MAX_BLACK}); its largest value is {levels.max()}.'
    raise DataError(message, hint='Save it in black and white; white is inspected.')
  return None if mask.all() else RegionOfInterest(mask)


def load(pattern: str, category: str) -> RegionOfInterest | None:
  """Read the region that the setting `data.roi` names; None if all pixels are inspected.

  Args:
    pattern: path of an image, in which `{category}` stands for the category; '' for no region.
    category: name of the category.

  Raises:
    DataError: as for `read`; it names the setting.
  """
  if not pattern:
    return None
  with about(KEY, pattern):
    return read(Path(pattern.replace(CATEGORY, category)).expanduser())
