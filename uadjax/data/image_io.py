"""Decoding of image files to upright RGB pixels, and of mask files to their values.

Training, evaluation, `predict`, the server and the tests all decode with this module, based on
Pillow, so that the same file gets the same score everywhere.

Letters: h w height and width of the original.
"""

from collections.abc import Iterator
import contextlib
import io
import itertools
from pathlib import Path
import threading
from typing import BinaryIO, NamedTuple
import warnings

from jaxtyping import Bool, Num, UInt8
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from uadjax.errors import DataError

Source = str | Path | bytes | BinaryIO  # Path, content of a file, or open file.

# Other formats are never opened: Pillow would start Ghostscript for a file that claims to be EPS.
_FORMATS = ('JPEG', 'PNG', 'BMP', 'TIFF', 'WEBP')

MAX_PIXELS = 178_956_970  # Equals Pillow's limit, which other code in the process may have lifted.

# EXIF orientation, 1 to 8 -> whether to transpose first, then the steps through rows and columns.
_STEPS = (1, 1), (1, -1), (-1, -1), (-1, 1)
_ORIENTATIONS = dict(enumerate(itertools.product((False, True), _STEPS), 1))

_suppression_lock = threading.Lock()
_suppression = contextlib.ExitStack()
_num_suppressing = 0


def decode(source: Source, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, 'h w 3']:
  """Decode an image to upright RGB.

  Gray becomes RGB. 16-bit gray is scaled by its full range (65535 is white), float gray by [0, 1].
  Alpha is dropped, as `cv2.imread` and `Image.convert('RGB')` do, because an inspection camera does
  not record transparency. Only the first frame of a file is used.

  Raises:
    TooLarge: the image has more than `max_pixels` pixels.
    DataError: the image cannot be read; the message names the file and the reason.
  """
  with _open_image(source, max_pixels) as image:
    image.load()
    return _to_upright(_to_rgb(image), image)


class RawMask(NamedTuple):
  """Values of a mask as stored in its file.

  Attributes:
    values: 0-255 for 8 bits, 0-65535 for 16 bits, the palette index (which is the class in masks
      that labeling tools write), or the largest channel of a color. Alpha is ignored.
    is_color: whether the file has several channels.
  """

  values: Num[np.ndarray, 'h w']
  is_color: bool


def read_raw_mask(source: Source) -> RawMask:
  """Read the values of a mask, turned upright by its EXIF orientation.

  Raises:
    DataError: the mask cannot be read; the message names the file and the reason.
  """
  with _open_image(source) as image:
    image.load()
    is_single_channel = image.mode in ('L', 'P', 'F') or image.mode.startswith('I')
    pixels = np.asarray(image if is_single_channel else image.convert('RGB'))
    values = pixels if is_single_channel else pixels.max(axis=-1)
    is_color = len(set(image.getbands()) - {'A', 'a'}) > 1
    return RawMask(_to_upright(values, image), is_color)


def read_mask(source: Source, threshold: int = 0) -> Bool[np.ndarray, 'h w']:
  """Read a defect mask, which is True where the raw value exceeds the threshold."""
  return read_raw_mask(source).values > threshold


def has_defect(mask: Source | None, threshold: int = 0) -> bool:
  """Return whether a mask marks any pixel as defective; False without a mask."""
  return mask is not None and bool(read_mask(mask, threshold).any())


class TooLarge(DataError):
  """Error for an image with too many pixels."""


def image_size(source: Source) -> tuple[int, int]:
  """Return height and width of the upright image, from its header where the format allows."""
  with _open_image(source) as image:
    is_transposed = _orientation(image)[0]
    return (image.width, image.height) if is_transposed else (image.height, image.width)


def verify(source: Source) -> None:
  """Check an image's header, and the checksums of a PNG.

  This is much faster than decoding, but accepts a truncated JPEG.

  Raises:
    DataError: the header or a checksum is wrong.
  """
  with _open_image(source) as image:
    image.verify()


@contextlib.contextmanager
def _open_image(source: Source, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
  file = io.BytesIO(source) if isinstance(source, bytes) else source
  name = source if isinstance(source, str | Path) else getattr(source, 'name', 'the image')
  error_type, cause = DataError, None
  try:
    with _suppress_warnings(), Image.open(file, formats=_FORMATS) as image:
      if image.width * image.height > max_pixels:
        size = f'{image.width} x {image.height} pixels'
        raise TooLarge(f'it has {size}; at most {max_pixels} are allowed.')
      yield image
    return
  except DataError as error:
    error_type, reason = type(error), str(error)
  except Image.DecompressionBombError:
    error_type, reason = TooLarge, f'it has too many pixels; at most {max_pixels} are allowed'
  except UnidentifiedImageError:
    reason = 'not a JPEG, PNG, BMP, TIFF or WebP image'
    if _is_empty(file):  # A full disk or an interrupted copy leaves empty files.
      reason = 'it is empty (0 bytes)'
  except Exception as error:  # Pillow raises nearly anything on damaged files.
    cause, reason = error, getattr(error, 'strerror', None) or str(error) or type(error).__name__
  raise error_type(f'Cannot read {name}: {reason.rstrip(".")}.') from cause


def _is_empty(file: str | Path | BinaryIO | io.BytesIO) -> bool:
  with contextlib.suppress(OSError):  # The size of a pipe or a deleted file is unknown.
    if isinstance(file, str | Path):
      return Path(file).stat().st_size == 0
    return file.seek(0, io.SEEK_END) == 0
  return False


@contextlib.contextmanager
def _suppress_warnings() -> Iterator[None]:
  """Silence Pillow's warnings while any thread is inside.

  `warnings.catch_warnings` by itself is not thread-safe.
  """
  global _num_suppressing
  with _suppression_lock:
    if not _num_suppressing:
      _suppression.enter_context(warnings.catch_warnings())
      warnings.filterwarnings('ignore', module=r'PIL\.')
    _num_suppressing += 1
  try:
    yield
  finally:
    with _suppression_lock:
      _num_suppressing -= 1
      if not _num_suppressing:
        _suppression.close()


def _to_rgb(image: Image.Image) -> UInt8[np.ndarray, 'h w 3']:
  if image.mode.startswith(('I', 'F')):
    return np.repeat(_to_8_bit_gray(image)[..., None], 3, axis=-1)
  if image.mode in ('P', 'PA', 'La', 'RGBa'):  # Pillow has no direct lossless conversion to RGB.
    image = image.convert('LA' if image.mode == 'La' else 'RGBA')
  return np.asarray(image.convert('RGB'))


def _to_8_bit_gray(image: Image.Image) -> UInt8[np.ndarray, 'h w']:
  values = np.asarray(image)
  low, high = values.min(), values.max()
  if image.mode == 'F':
    if not (low >= 0.0 and high <= 1.0):  # The negated form also rejects NaN.
      raise DataError(f'its float values range from {low:g} to {high:g}; they must be in [0, 1].')
    return np.round(values * 255.0).astype(np.uint8)
  if low < 0 or high > 65535:  # Mode 'I' includes 32-bit TIFFs.
    raise DataError(f'its values {low} to {high} are not 8 or 16 bit.')
  # Adding 128 rounds, because 65535 = 255 * 257.
  return ((values.astype(np.int64) + 128) // 257).astype(np.uint8)


def _orientation(image: Image.Image) -> tuple[bool, tuple[int, int]]:
  if image.format == 'TIFF':  # Pillow rotates TIFFs itself and reports the upright size.
    return _ORIENTATIONS[1]
  return _ORIENTATIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1), _ORIENTATIONS[1])


def _to_upright(values: Num[np.ndarray, '...'] | Bool[np.ndarray, '...'], image: Image.Image):
  is_transposed, (row_step, column_step) = _orientation(image)
  upright = values.swapaxes(0, 1) if is_transposed else values
  return np.ascontiguousarray(upright[::row_step, ::column_step])
