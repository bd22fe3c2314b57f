"""Files of pictures: formats by suffix, and PNG for what is too large for its format."""

import io
import math
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from uadjax.system import files
from uadjax.system.logging import LOG

SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp')
# Largest side and number of pixels. WebP could be larger, but its encoder needs much memory.
_LIMITS = {'JPEG': (65_500, math.inf), 'WEBP': (16_383, 32_000_000)}
# Level 1 writes PNG four times as fast as the default, 20 % larger. JPEG and WebP have a quality.
_COMPRESS_LEVEL, _QUALITY = 1, 95


def format_of(picture: Image.Image, suffix: str) -> str:
  """Return Pillow's name of the format of a suffix, or 'PNG' if the picture is too large for it."""
  name = Image.registered_extensions()[suffix.lower()]
  max_side, max_pixels = _LIMITS.get(name, (math.inf, math.inf))
  is_small = max(picture.size) <= max_side and math.prod(picture.size) <= max_pixels
  return name if is_small else 'PNG'


def write(
  picture: Image.Image, file: BinaryIO | io.BytesIO, suffix: str, quality: int = _QUALITY
) -> None:
  """Write a picture, with its EXIF data, to an open file in the format of a suffix, or as PNG."""
  exif = {'exif': data} if (data := picture.getexif()) else {}
  options = {'compress_level': _COMPRESS_LEVEL, 'quality': quality}
  picture.save(file, format_of(picture, suffix), **options, **exif)


def save(picture: Image.Image, path: Path) -> Path:
  """Save a picture atomically in the format of its suffix, or as PNG; return the path."""
  is_png = format_of(picture, path.suffix) == 'PNG'
  saved_path = path.with_suffix('.png') if is_png and path.suffix.lower() != '.png' else path
  with files.atomic_write(saved_path) as file:
    write(picture, file, saved_path.suffix)
  if saved_path != path:
    size = f'{picture.width} x {picture.height}'
    LOG.info(
      '%s of %s pixels is too large for %s; saved as %s.', path, size, path.suffix, saved_path
    )
  return saved_path
