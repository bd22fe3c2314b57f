"""Values of images that Pillow has opened, with all bits, of which Pillow drops half in color.

Letters: h w height and width of an image, c its channels.
"""

import io
import math
from pathlib import Path
import sys
from typing import BinaryIO, TypeAlias

from jaxtyping import Num, UInt8, UInt16
import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin

from uadjax.errors import DataError

Source: TypeAlias = str | Path | bytes | BinaryIO  # Path, content of a file, or open file.

_STRIP_PIXELS = 1 << 20  # Number of pixels that are converted at once.
# Byte order of 16 bits in Pillow's names of pixels, big, little or native, -> the other one.
_OTHER_BYTE_ORDER = {'B': 'L', 'L': 'B', 'N': 'B' if sys.byteorder == 'little' else 'L'}

# Tag of a page of a TIFF, and its bits of pages that show the first one again.
_SUBFILE_TYPE, _REDUCED_OR_MASK = 254, 1 | 4
_MAX_PAGES = 100  # That are examined.


def read(image: Image.Image, source: Source | None) -> Num[np.ndarray, 'h w ...']:
  """Decode an image to its values: [h w] for gray of more than 8 bits, else [h w 3].

  Args:
    image: image that was opened.
    source: where it was opened, for a second time; None if it cannot be opened again.
  """
  if _is_16_bit_ppm(image):
    return _read_16_bit_ppm(image)
  if _is_16_bit_color(image):
    return _read_16_bit_color(image, source)
  image.load()
  if image.mode.startswith(('I', 'F')):
    values = np.asarray(image)
    return values.astype(np.uint16) if is_16_bit(image) else values
  return _convert_in_strips(image)


def is_16_bit(image: Image.Image) -> bool:
  """Return whether an image has 16 bits per channel and no sign."""
  # Pillow reads 16 bits of some formats in its mode of 32 bits, as those of a TIFF with a sign.
  is_unsigned = image.mode.startswith('I;16') or image.format in ('PNG', 'PPM', 'JPEG2000')
  return (image.mode.startswith('I') and is_unsigned) or _is_16_bit_color(image)


def _raw_mode(image: Image.Image) -> str:
  """Return Pillow's name of the pixels of a file; '' for an image that is not from a file."""
  tiles = image.tile if isinstance(image, ImageFile.ImageFile) else ()
  arguments = tiles[0].args if tiles else ''
  return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _is_16_bit_color(image: Image.Image) -> bool:
  """Return whether a file has 16 bits per channel, and several channels."""
  if image.mode.startswith(('I', 'F')):
    return False
  if isinstance(image, TiffImagePlugin.TiffImageFile):  # The name of planes has no number of bits.
    return max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))) == 16
  return ';16' in _raw_mode(image) or _is_16_bit_ppm(image)


def _is_16_bit_ppm(image: Image.Image) -> bool:
  """Return whether a file is a binary PPM or PGM whose values are not those of Pillow.

  Pillow scales values by the maximum that the header names, in color to 8 bits.
  """
  tiles = image.tile if isinstance(image, ImageFile.ImageFile) else ()
  arguments = tiles[0].args if tiles and tiles[0].codec_name == 'ppm' else ()
  return isinstance(arguments, tuple) and arguments[1:] > (255,)


def _read_16_bit_ppm(image: Image.Image) -> UInt16[np.ndarray, 'h w ...']:
  assert isinstance(image, ImageFile.ImageFile)
  channels = (3,) if image.mode == 'RGB' else ()
  shape = image.height, image.width, *channels
  file, num_bytes = image.fp, 2 * math.prod(shape)
  if file is None:
    raise DataError('its file is closed.')
  file.seek(image.tile[0].offset)
  content = file.read(num_bytes)
  if len(content) < num_bytes:
    raise DataError('it is truncated.')
  return np.frombuffer(content, '>u2').reshape(shape).astype(np.uint16)


def _read_16_bit_color(image: Image.Image, source: Source | None) -> UInt16[np.ndarray, 'h w ...']:
  """Decode both bytes of each channel, of which Pillow otherwise keeps the high one.

  Pillow decodes the low bytes if its name of the pixels has the other byte order.
  """
  assert isinstance(image, ImageFile.ImageFile)
  if source is None:
    raise DataError('Pillow keeps 8 of its 16 bits per channel; pass the path of its file.')
  raw_mode = _raw_mode(image)
  if raw_mode == 'LA;16B':  # Gray and alpha: the four bytes of a pixel.
    high_bytes, low_bytes, *_ = np.moveaxis(_decode_as(image, 'RGBA'), -1, 0)
    return high_bytes.astype(np.uint16) << 8 | low_bytes
  is_tiff = isinstance(image, TiffImagePlugin.TiffImageFile)
  is_planar = is_tiff and image.tag_v2.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1) != 1
  if raw_mode[:-1] not in ('RGB;16', 'RGBA;16', 'RGBX;16') or is_planar:
    raise DataError('it has 16 bits per channel, but not as interleaved RGB; save it as that.')
  high_bytes = _decode_as(image, raw_mode)[..., :3]
  file = io.BytesIO(source) if isinstance(source, bytes) else source
  with Image.open(file, formats=(image.format or '',)) as second:
    low_bytes = _decode_as(second, raw_mode[:-1] + _OTHER_BYTE_ORDER[raw_mode[-1]])[..., :3]
  return high_bytes.astype(np.uint16) << 8 | low_bytes


def _decode_as(image: ImageFile.ImageFile, raw_mode: str) -> UInt8[np.ndarray, 'h w c']:
  """Decode a file that was opened with another name of its pixels."""
  for i, tile in enumerate(image.tile):
    arguments = (raw_mode, *tile.args[1:]) if isinstance(tile.args, tuple) else raw_mode
    image.tile[i] = tile._replace(args=arguments)
  return np.asarray(image)


def has_further_pages(image: Image.Image) -> bool:
  """Return whether a TIFF has further pages, apart from reduced copies and masks of the first."""
  if not isinstance(image, TiffImagePlugin.TiffImageFile):
    return False
  try:
    for page in range(1, _MAX_PAGES):
      image.seek(page)
      if not image.tag_v2.get(_SUBFILE_TYPE, 0) & _REDUCED_OR_MASK:
        return True
  except EOFError:
    return False
  except Exception:  # Pillow raises nearly anything on pages that it cannot read.
    return True
  return True


def _convert_in_strips(image: Image.Image) -> UInt8[np.ndarray, 'h w 3']:
  if image.width * image.height <= _STRIP_PIXELS:
    return _convert_to_rgb(image)
  # Pillow's images take four bytes per pixel, and each conversion copies them. In strips, the
  # copies are small.
  pixels = np.empty((image.height, image.width, 3), np.uint8)
  rows = max(1, _STRIP_PIXELS // image.width)
  for top in range(0, image.height, rows):
    strip = image.crop((0, top, image.width, min(top + rows, image.height)))
    pixels[top : top + rows] = _convert_to_rgb(strip)
  return pixels


def _convert_to_rgb(image: Image.Image) -> UInt8[np.ndarray, 'h w 3']:
  if image.mode in ('P', 'PA', 'La', 'RGBa'):  # Pillow has no direct lossless conversion to RGB.
    image = image.convert('LA' if image.mode == 'La' else 'RGBA')
  # Conversion to the same mode would be a copy.
  return np.asarray(image if image.mode == 'RGB' else image.convert('RGB'))
