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
import re
import struct
import threading
from typing import BinaryIO, NamedTuple, TypeAlias
import warnings

from jaxtyping import Bool, Num, UInt8
import numpy as np
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from uadjax.data import image_values
from uadjax.data.pixel_range import FULL_RANGE, PixelRange
from uadjax.errors import DataError, refuse

Source: TypeAlias = image_values.Source

_PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
_PNG_METADATA = (b'eXIf', b'tEXt', b'zTXt', b'iTXt')

# Pillow's name of each format that is read, and the suffixes of its files in lower case; any case
# matches. Pillow goes by the content of a file. It must never try other formats: it would start
# Ghostscript for a file that claims to be EPS, and others run programs of their own, too.
_SUFFIXES_BY_FORMAT = {
  'JPEG': ('.jpg', '.jpeg', '.jfif', '.jpe'),
  'PNG': ('.png',),
  'BMP': ('.bmp',),
  'DIB': ('.dib',),
  'TIFF': ('.tif', '.tiff'),
  'WEBP': ('.webp',),
  'GIF': ('.gif',),
  'PPM': ('.ppm', '.pgm', '.pnm'),
  'JPEG2000': ('.jp2',),
}
_FORMATS = tuple(_SUFFIXES_BY_FORMAT)
SUFFIXES = tuple(itertools.chain.from_iterable(_SUFFIXES_BY_FORMAT.values()))
FORMAT_NAMES = 'JPEG, PNG, BMP, TIFF, WebP, GIF, PPM or JPEG 2000'  # For messages.

# Ways to read a mask, `data.mask`: what the value of a defective pixel is.
NONZERO, INVERTED, ALPHA = 'nonzero', 'inverted', 'alpha'
MASK_READINGS = (NONZERO, 'above:N', 'equals:N', INVERTED, ALPHA)
_MASK_LEVEL = re.compile(r'(above|equals):(\d{1,5})', re.ASCII)
_JPEG_MASK_LEVEL = 127  # A JPEG has noise around 0 and 255.

# First bytes of files in the formats; WebP is more complicated.
_SIGNATURES = (
  b'\xff\xd8\xff', b'\x89PNG\r\n', b'BM', b'II*\0', b'MM\0*', b'GIF8', b'P5', b'P6',
  b'\0\0\0\x0cjP  ',
)  # fmt: skip
# First bytes of small files that stand for an image elsewhere -> what the file is.
_POINTERS = {
  b'version https://git-lfs.github.com/spec/': "a Git LFS pointer; run 'git lfs pull'",
  b'/annex/objects/': "a git-annex pointer; run 'git annex get'",
}

MAX_PIXELS = 178_956_970  # Equals Pillow's limit, which other code in the process may have lifted.

# EXIF orientation, 1 to 8 -> whether to transpose first, then the steps through rows and columns.
_STEPS = (1, 1), (1, -1), (-1, -1), (-1, 1)
_ORIENTATIONS = dict(enumerate(itertools.product((False, True), _STEPS), 1))

_pillow_lock = threading.Lock()
_suppression_lock = threading.Lock()
_suppression = contextlib.ExitStack()
_num_suppressing = 0


class DecodedImage(NamedTuple):
  """Image as decoded from a file.

  Attributes:
    pixels: upright RGB.
    has_further_pages: whether the file is a TIFF with further pages, which are not decoded.
  """

  pixels: UInt8[np.ndarray, 'h w 3']
  has_further_pages: bool = False


def decode(
  source: Source, max_pixels: int = MAX_PIXELS, pixel_range: PixelRange = FULL_RANGE
) -> UInt8[np.ndarray, 'h w 3']:
  """Decode an image to upright RGB; see `read_image`."""
  return read_image(source, max_pixels, pixel_range).pixels


def read_image(
  source: Source, max_pixels: int = MAX_PIXELS, pixel_range: PixelRange = FULL_RANGE
) -> DecodedImage:
  """Decode an image to upright RGB, and say whether its file has more than is decoded.

  Gray becomes RGB. More than 8 bits are scaled to 8 bits by `pixel_range`. Alpha is dropped, as
  `cv2.imread` and `Image.convert('RGB')` do, because an inspection camera does not record
  transparency. Only the first frame or page of a file is used.

  Raises:
    TooLarge: the image has more than `max_pixels` pixels.
    DataError: the image cannot be read, or has values outside of `pixel_range`; the message names
      the file and the reason.
  """
  with _open_image(source, max_pixels) as image:
    pixels = _to_upright(to_rgb(image_values.read(image, source), pixel_range), image)
    return DecodedImage(pixels, image_values.has_further_pages(image))


def convert_pillow_image(
  image: Image.Image, pixel_range: PixelRange = FULL_RANGE
) -> UInt8[np.ndarray, 'h w 3']:
  """Return the pixels of an image that Pillow opened or made, as those of its file are read.

  Raises:
    DataError: it cannot be decoded, has values outside of `pixel_range`, or 16 bits per channel in
      color, of which Pillow keeps 8; the message continues a sentence.
  """
  with _pillow_lock:  # The same object may be in a list more than once, and loads only once.
    try:
      return _to_upright(to_rgb(image_values.read(image, None), pixel_range), image)
    except DataError:
      raise
    except Exception as error:  # Pillow raises nearly anything on damaged files.
      raise DataError(f'{error or type(error).__name__}.') from None


def largest_16_bit_value(source: Source) -> int | None:
  """Return the largest value of an image of 16 bits; None for others, which are not decoded.

  Raises:
    DataError: the image cannot be read; the message names the file and the reason.
  """
  with _open_image(source) as image:
    return int(image_values.read(image, source).max()) if image_values.is_16_bit(image) else None


def to_rgb(
  values: Num[np.ndarray, 'h w ...'], pixel_range: PixelRange
) -> UInt8[np.ndarray, 'h w 3']:
  """Convert the values of an image in gray, [h w] or [h w 1], or in color, [h w 3], to RGB.

  Raises:
    DataError: a value is outside of the range; the message continues a sentence.
  """
  pixels = pixel_range.to_uint8(values)
  pixels = pixels.reshape(*pixels.shape[:2], -1)
  return pixels if pixels.shape[-1] == 3 else np.repeat(pixels, 3, axis=-1)


class RawMask(NamedTuple):
  """Values of a mask as stored in its file.

  Attributes:
    values: 0-255 for 8 bits, 0-65535 for 16 bits, the palette index (which is the class in masks
      that labeling tools write), or the largest channel of a color.
    is_color: whether the file has several channels.
    is_palette: whether the values are indices of a palette.
    is_jpeg: whether the file is a JPEG, whose values have noise.
    alpha: opacity; None for a file without it.
  """

  values: Num[np.ndarray, 'h w']
  is_color: bool = False
  is_palette: bool = False
  is_jpeg: bool = False
  alpha: UInt8[np.ndarray, 'h w'] | None = None

  def defects(self, reading: str = NONZERO) -> Bool[np.ndarray, 'h w']:
    """Return where a way to read masks, see `parse_mask_reading`, finds a defect.

    Raises:
      DataError: the reading is 'alpha', and the mask has no alpha channel.
    """
    kind, level = parse_mask_reading(reading)
    if kind == ALPHA:
      if self.alpha is None:
        raise DataError(f'it has no alpha channel, which data.mask={ALPHA} reads')
      return self.alpha > 0
    if kind == 'equals':
      return self.values == level
    if kind == 'above':
      return self.values > level
    is_marked = self.values > (_JPEG_MASK_LEVEL if self.is_jpeg else 0)
    return ~is_marked if kind == INVERTED else is_marked


def parse_mask_reading(text: str) -> tuple[str, int]:
  """Parse a way to read masks: return its name, and N, or 0 without one.

  A pixel is defective if its value is not zero (`nonzero`; above 127 in a JPEG), zero
  (`inverted`), greater than N (`above:N`) or N (`equals:N`), or if it is not transparent (`alpha`).

  Raises:
    ConfigError: it is none of these.
  """
  if text in (NONZERO, INVERTED, ALPHA):
    return text, 0
  match = _MASK_LEVEL.fullmatch(text)
  if not match:
    message = f'Unknown way to read masks {text!r}; choose from {", ".join(MASK_READINGS)}'
    refuse('data.mask', text, f'{message}, as in above:127.', allowed=MASK_READINGS)
  return match[1], int(match[2])


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
    alpha = None
    if image.has_transparency_data:
      alpha = _to_upright(np.asarray(image.convert('RGBA').getchannel('A')), image)
    is_jpeg = image.format in ('JPEG', 'MPO')
    is_palette = image.mode in ('P', 'PA')
    return RawMask(_to_upright(values, image), is_color, is_palette, is_jpeg, alpha)


def mask_files(mask: Path) -> list[Path]:
  """Return the files of a mask: itself, or the images in it if it is a folder.

  Some datasets, such as MVTec LOCO, have a folder per image with one mask per region.
  """
  if not mask.is_dir():
    return [mask]
  return sorted(
    path
    for path in mask.iterdir()
    if path.suffix.lower() in SUFFIXES and not path.name.startswith('.')
  )


def read_mask(source: Source, reading: str = NONZERO) -> Bool[np.ndarray, 'h w']:
  """Read a mask, which is True where `reading` finds a defect; join the masks of a folder.

  Raises:
    DataError: a mask cannot be read, or those of a folder differ in size.
  """
  if isinstance(source, Path) and source.is_dir():
    masks = [read_mask(path, reading) for path in mask_files(source)]
    if len({mask.shape for mask in masks}) != 1:
      raise DataError(f'Cannot read {source}: its masks differ in size, or there is none.')
    return np.logical_or.reduce(masks)
  mask = read_raw_mask(source)
  try:
    return mask.defects(reading)
  except DataError as error:
    raise DataError(f'Cannot read {_name(source)}: {error}.') from None


def has_defect(mask: Source | None, reading: str = NONZERO) -> bool:
  """Return whether a mask marks any pixel as defective; False without a mask."""
  return mask is not None and bool(read_mask(mask, reading).any())


class TooLarge(DataError):
  """Error for an image with too many pixels."""


def image_size(source: Source, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
  """Return height and width of the upright image, from its header where the format allows.

  Raises:
    TooLarge: the image has more than `max_pixels` pixels.
    DataError: the header cannot be read.
  """
  with _open_image(source, max_pixels) as image:
    # Pillow decodes a PNG to look for EXIF data behind the pixels, which few files have.
    is_png = isinstance(image, PngImagePlugin.PngImageFile)
    is_loaded = not is_png or _has_metadata_behind_pixels(image)
    exif = image.getexif() if is_loaded else Image.Image.getexif(image)
    is_transposed = _orientation(image, exif)[0]
    return (image.width, image.height) if is_transposed else (image.height, image.width)


def _has_metadata_behind_pixels(image: PngImagePlugin.PngImageFile) -> bool:
  """Return whether a PNG that was opened, not loaded, has EXIF data or text after its pixels."""
  file, is_behind = image.fp, False
  if file is None:
    return True
  position = file.tell()
  file.seek(len(_PNG_SIGNATURE))
  try:
    while len(head := file.read(8)) == 8:
      num_bytes, kind = struct.unpack('>I4s', head)
      if is_behind and kind in _PNG_METADATA:
        return True
      is_behind |= kind == b'IDAT'
      file.seek(num_bytes + 4, io.SEEK_CUR)  # Content and checksum.
    return False
  finally:
    file.seek(position)


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
  error_type, cause, details = DataError, None, {}
  try:
    with _suppress_warnings(), Image.open(file, formats=_FORMATS) as image:
      if image.width * image.height > max_pixels:
        size = f'{image.width} x {image.height} pixels'
        raise TooLarge(f'it has {size}; at most {max_pixels} are allowed.')
      yield image
    return
  except DataError as error:
    error_type, reason = type(error), error.message
    details = {name: getattr(error, name) for name in ('key', 'value', 'allowed', 'hint')}
  except Image.DecompressionBombError:
    error_type, reason = TooLarge, f'it has too many pixels; at most {max_pixels} are allowed'
  except UnidentifiedImageError:
    reason = f'not a {FORMAT_NAMES} image'
    if _is_empty(file):  # A full disk or an interrupted copy leaves empty files.
      reason = 'it is empty (0 bytes)'
    elif pointer := describe_pointer(file):
      reason = f'it is {pointer}'
  except Exception as error:  # Pillow raises nearly anything on damaged files.
    cause, reason = error, getattr(error, 'strerror', None) or str(error) or type(error).__name__
  raise error_type(f'Cannot read {_name(source)}: {reason.rstrip(".")}.', **details) from cause


def has_image_signature(path: Path) -> bool:
  """Return whether the content of a file begins like one of the formats that are read."""
  with contextlib.suppress(OSError), path.open('rb') as file:
    head = file.read(12)
    return head.startswith(_SIGNATURES) or (head[:4] == b'RIFF' and head[8:] == b'WEBP')
  return False


def _name(source: Source) -> str | Path:
  return source if isinstance(source, str | Path) else getattr(source, 'name', 'the image')


def describe_pointer(file: str | Path | BinaryIO | io.BytesIO) -> str:
  """Return what a file is that stands for a file elsewhere, and how to get that; '' if none."""
  length = max(map(len, _POINTERS))
  with contextlib.suppress(OSError):
    if isinstance(file, str | Path):
      with open(file, 'rb') as opened:  # noqa: PTH123
        head = opened.read(length)
    else:
      file.seek(0)
      head = file.read(length)
    return next((text for start, text in _POINTERS.items() if head.startswith(start)), '')
  return ''


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


def _orientation(image: Image.Image, exif: Image.Exif) -> tuple[bool, tuple[int, int]]:
  if image.format == 'TIFF':  # Pillow rotates TIFFs itself and reports the upright size.
    return _ORIENTATIONS[1]
  return _ORIENTATIONS.get(exif.get(ExifTags.Base.Orientation, 1), _ORIENTATIONS[1])


def _to_upright(values: Num[np.ndarray, '...'] | Bool[np.ndarray, '...'], image: Image.Image):
  is_transposed, (row_step, column_step) = _orientation(image, image.getexif())
  upright = values.swapaxes(0, 1) if is_transposed else values
  return np.ascontiguousarray(upright[::row_step, ::column_step])
