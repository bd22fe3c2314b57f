"""Inputs of `predict`: conversion of user inputs to a lazy stream of named image sources.

Letters: h w height and width of an image, height width the network image.
"""

import collections
from collections.abc import Iterator, Mapping
import contextlib
import io
import itertools
import os
from pathlib import Path
import re
from typing import Any, BinaryIO, NamedTuple, TypeAlias

from jaxtyping import UInt8
import numpy as np
from PIL import Image

from uadjax.data import image_io, image_statistics, transforms
from uadjax.data.image_io import DecodedImage
from uadjax.data.layouts import scanning, text_list
from uadjax.data.pixel_range import FULL_RANGE, PixelRange
from uadjax.errors import DataError
from uadjax.system import files, http, logging as log

# A file, a URL, an encoded image, or pixels.
Origin: TypeAlias = Path | str | bytes | np.ndarray | Image.Image

_URL = re.compile(r'[a-z][a-z0-9+.-]+://|data:', re.IGNORECASE)  # Does not match 'C:\\'.
_WINDOWS_PATH = re.compile(r'[a-zA-Z]:[\\/]|\\\\')
_CONTAINERS = list | tuple | Iterator


class Source(NamedTuple):
  """Named source of one image.

  Attributes:
    name: name of the image in results: path, URL, or generated, such as 'array_0000'; valid UTF-8.
    origin: file, URL, encoded image, image of Pillow or array that `read` reads; an array is not
      copied.
    subfolder: folder of the image relative to the input folder that was searched; else Path().
    location: list and line that name the image, which begin the message of its error; else ''.
  """

  name: str
  origin: Origin
  subfolder: Path = Path()
  location: str = ''


def expand(
  inputs: object,
  skip: Path | None = None,
  warn: bool = True,
  pixel_range: PixelRange = FULL_RANGE,
) -> Iterator[Source]:
  """List the image sources of a user's input, lazily and in order; folders in natural order.

  A folder is walked once, even if several links lead to it. An unreadable item is listed like any
  other, so that the remaining ones are processed; `read` raises the error. The error of a single
  input is raised here.

  Args:
    inputs: path, URL, folder, array (of NumPy, JAX or another library with DLPack), image of
      Pillow, bytes of an image file, {'img': any of these}, or an arbitrarily nested list, tuple or
      iterator of any of these.
    skip: folder to exclude, such as the folder of the results.
    warn: whether to warn of files in folders that are not read, and of masks that are.
    pixel_range: values of black and white in images of more than 8 bits, to check a single array.

  Raises:
    DataError: the single input cannot be opened or contains no image; or, during iteration, an
      input has an unsupported type, or a list contains itself.
  """
  counters = collections.defaultdict(itertools.count)
  item = inputs.get('img') if isinstance(inputs, Mapping) else inputs
  if isinstance(item, _CONTAINERS | Mapping):
    return (s for origin in _flatten(inputs) for s in _expand_origin(origin, counters, skip, warn))
  (origin,) = _flatten(inputs)
  sources = _expand_origin(origin, counters, skip, warn)
  first = next(sources)
  if first.origin is origin:  # Not an image that was listed from a folder.
    if isinstance(origin, Path):
      _open_regular(origin, first.name).close()
    elif isinstance(origin, np.ndarray | Image.Image):
      read(first, pixel_range=pixel_range)
  return itertools.chain([first], sources)


def read(
  source: Source,
  access: http.Access = http.PUBLIC_ONLY,
  max_pixels: int = image_io.MAX_PIXELS,
  pixel_range: PixelRange = FULL_RANGE,
) -> UInt8[np.ndarray, 'h w 3']:
  """Read an image as upright RGB; arrays of 8 bits are returned unchanged, except that gray is RGB.

  Args:
    source: the image.
    access: policy on the URLs that may be read.
    max_pixels: largest number of pixels of an encoded image; the error for more is a `TooLarge`.
    pixel_range: values of black and white in images of more than 8 bits.

  Raises:
    DataError: the image cannot be read; the message has its name and the reason.
  """
  return _read(fetch(source, access), max_pixels, pixel_range).pixels


def _read(source: Source, max_pixels: int, pixel_range: PixelRange) -> DecodedImage:
  """Read an image that has no URL, or was fetched from it."""
  origin, name = source.origin, source.name
  if isinstance(origin, np.ndarray | Image.Image):
    return DecodedImage(_to_rgb(origin, name, pixel_range))
  if isinstance(origin, Path):
    with _located_errors(source), _open_regular(origin, name) as file:
      return image_io.read_image(file, max_pixels, pixel_range)
  assert isinstance(origin, bytes)
  try:
    return image_io.read_image(origin, max_pixels, pixel_range)
  except DataError as error:  # The message has no name, because bytes have none.
    public_name = http.redact_url(name) if _URL.match(name) else name
    start = f'{source.location}: ' if source.location else ''
    error.message = f'{start}{public_name}: {error.message}'
    raise


def fetch(source: Source, access: http.Access = http.PUBLIC_ONLY) -> Source:
  """Download the source of a URL, so that later reads need no network; return others unchanged.

  Raises:
    DataError: the URL is not allowed or the download fails.
  """
  if not isinstance(source.origin, str):
    return source
  with _located_errors(source):
    return source._replace(origin=http.get(source.origin, access))


@contextlib.contextmanager
def _located_errors(source: Source) -> Iterator[None]:
  """Let errors about a listed image begin with its list and line, and end with the way out."""
  try:
    yield
  except DataError as error:
    if source.location:
      error.message = f'{source.location}: {error.message}{_hint(source.origin)}'
    raise


def _hint(origin: Origin) -> str:
  """Return why the line of a list may name no file."""
  if not isinstance(origin, Path) or os.path.lexists(origin):
    return ''
  if os.sep == '/' and _WINDOWS_PATH.match(str(origin)):
    return ' It is a path of Windows; write it relative to the folder of the list.'
  is_text = str(origin) == _printable(origin) and '\ufffd' not in str(origin)
  return '' if is_text else ' The list is not valid text; save it as UTF-8.'


class LoadedImage(NamedTuple):
  """Image at network size, or the reason why it is unreadable.

  Attributes:
    source: the image as it was listed.
    reread_source: the same for reading the original again: with its content if that was
      downloaded, or with its pixels if they were kept.
    size: height and width of the original.
    pixels: image at network size; None if it is unreadable.
    statistics: its statistics; None if it is unreadable.
    error: why it is unreadable.
  """

  source: Source
  reread_source: Source
  size: tuple[int, int] = (0, 0)
  pixels: UInt8[np.ndarray, 'height width 3'] | None = None
  statistics: image_statistics.ImageStatistics | None = None
  error: DataError | None = None

  def require_pixels(self) -> UInt8[np.ndarray, 'height width 3']:
    """Return the image at network size; raise the error if it is unreadable."""
    if self.pixels is None:
      raise self.error or DataError(self.source.name)
    return self.pixels

  def require_statistics(self) -> image_statistics.ImageStatistics:
    """Return the statistics of the image; raise the error if it is unreadable."""
    if self.statistics is None:
      raise self.error or DataError(self.source.name)
    return self.statistics


def load(
  source: Source,
  ops: transforms.Ops,
  access: http.Access = http.PUBLIC_ONLY,
  max_pixels: int = image_io.MAX_PIXELS,
  keep_original: bool = False,
  pixel_range: PixelRange = FULL_RANGE,
) -> LoadedImage:
  """Fetch an image, decode it, and bring it to network size; every scored image is read here.

  Args:
    source: the image.
    ops: pixel operations from the original to network size.
    access: policy on the URLs that may be read.
    max_pixels: largest number of pixels of an original; the error for more is a `TooLarge`.
    keep_original: whether `reread_source` holds the original's pixels, so that it need not be
      decoded again.
    pixel_range: values of black and white in images of more than 8 bits.
  """
  try:
    fetched = fetch(source, access)
    image = _read(fetched, max_pixels, pixel_range)
    if keep_original:
      fetched = fetched._replace(origin=image.pixels)
    return resize(source, fetched, image, ops)
  except DataError as error:
    return LoadedImage(source, source, error=error)


def resize(
  source: Source, reread_source: Source, image: DecodedImage, ops: transforms.Ops
) -> LoadedImage:
  """Bring a decoded image to network size; the sources are those of the result.

  Raises:
    DataError: the image does not fit to the operations; the message has its name.
  """
  size = image.pixels.shape[0], image.pixels.shape[1]
  try:
    pixels = ops.apply(image.pixels)
  except DataError as error:
    name = http.redact_url(source.name) if _URL.match(source.name) else source.name
    error.message = f'{name}: {error.message}'
    raise
  inspected = ops.inspected_pixels(*size)
  statistics = image_statistics.measure(pixels, size, image.has_further_pages, inspected)
  return LoadedImage(source, reread_source, size, pixels, statistics)


def _flatten(inputs: object) -> Iterator[Origin]:
  """Flatten nested containers with an explicit stack, so that depth is not limited by recursion."""
  # Open containers and their remaining items, by the id of the container, the innermost last.
  stack: dict[int, tuple[object, Iterator[object]]] = {id(None): (None, iter([inputs]))}
  while stack:
    for item in next(reversed(stack.values()))[1]:
      items = _container_items(item)
      if items is None:
        yield _to_origin(item)
      elif id(item) in stack:
        raise DataError(f'A {type(item).__name__} of images contains itself.')
      else:
        stack[id(item)] = item, items
        break
    else:
      stack.popitem()


def _container_items(item: object) -> Iterator[object] | None:
  """Return an iterator over a container's items; None for other types and for open files.

  An open file is an iterator, too, but over lines.
  """
  if isinstance(item, Mapping):
    if 'img' not in item:
      raise DataError(f"A dict must have the key 'img'; this one has the keys {list(item)}.")
    return iter([item['img']])
  return iter(item) if isinstance(item, _CONTAINERS) and not isinstance(item, io.IOBase) else None


def _to_origin(item: object) -> Origin:
  is_pixels = isinstance(item, np.ndarray | Image.Image)
  if is_pixels or isinstance(item, bytes) or (isinstance(item, str) and _URL.match(item)):
    return item
  if isinstance(item, bytearray | memoryview):
    return bytes(item)
  if isinstance(item, str | os.PathLike) and item != '':
    return Path(os.fsdecode(item))
  if hasattr(item, '__dlpack__'):
    return _from_dlpack(item)
  type_name, hint = type(item).__name__, ''
  if hasattr(item, '__array__') or hasattr(item, '__array_interface__'):
    hint = ' Pass numpy.asarray() of it.'
  elif isinstance(item, io.IOBase):
    hint = ' Pass what its read() returns.'
  description = 'an empty path' if isinstance(item, str) else f'a value of type {type_name}'
  raise DataError(
    f'Cannot read {description} as an image.{hint} An input must be a path or URL of an image, a'
    ' folder, an array ([h w 3] in RGB, or [h w]), an image of Pillow, the bytes of an image file,'
    " {'img': any of these}, or a list of any of these."
  )


def _from_dlpack(item: Any) -> np.ndarray:
  """Return an array of another library, such as JAX or PyTorch, without a copy where possible."""
  # JAX converts arrays of other devices, and of types that DLPack lacks.
  functions = (np.from_dlpack, *[np.asarray] * hasattr(item, '__array__'))
  reason = ''
  for function in functions:
    try:
      return function(item)
    except Exception as error:  # Each library raises errors of its own.
      reason = str(error).partition('\n')[0].rstrip('.') or type(error).__name__
  message = f'Cannot read a value of type {type(item).__name__} as an image: {reason}.'
  raise DataError(message, hint='Move it to the memory of the CPU.')


def _expand_origin(
  origin: Origin, counters: Mapping[str, Iterator[int]], skip: Path | None, warn: bool
) -> Iterator[Source]:
  if isinstance(origin, Path) and scanning.is_folder(origin):
    images = _walk_folder(origin, skip, warn)
    yield next(images, Source(_printable(origin), origin))  # `read` raises the error if empty.
    yield from images
  elif isinstance(origin, Path) and origin.suffix.lower() == '.txt' and origin.is_file():
    yield from _read_list(origin)
  elif isinstance(origin, str):
    # `read` refuses a URL with a password; its name must not reveal the password.
    has_credentials = '@' in origin.split('?')[0]
    yield Source(http.redact_url(origin) if has_credentials else _printable(origin), origin)
  elif isinstance(origin, Path):
    yield Source(_printable(origin), origin)
  else:
    kind = 'bytes' if isinstance(origin, bytes) else 'array'
    yield Source(f'{kind}_{next(counters[kind]):04d}', origin)


def _read_list(path: Path) -> Iterator[Source]:
  """Yield the images that a text file lists; paths are relative to its folder.

  Raises:
    DataError: the file cannot be read, is not text, or lists nothing.
  """
  name, number = _printable(path), 0
  try:
    for number, text in text_list.read_lines(path):
      if '\0' in text:
        raise DataError(f'{name} line {number} has a null character; save the list as UTF-8.')
      origin = _listed_origin(text, path.parent)
      yield Source(_printable(origin), origin, location=f'{name} line {number}')
  except OSError as error:
    raise DataError(f'Cannot read {name}: {error.strerror}.') from None
  if not number:
    raise DataError(f'{name} lists no image; put one path or URL in each line.')


def _listed_origin(text: str, folder: Path) -> Path | str:
  """Return the file or URL that a line of a list names.

  Most lines have one reading, for which no file is searched, because lists may be very long.
  """
  literal, path, image = text_list.readings(text)
  if _URL.match(path):
    return path
  windows_path = _WINDOWS_PATH.match(literal.strip(' \t"'))
  if literal == path == image and not windows_path:
    return folder / literal
  for reading in (literal, path, image):
    if os.path.lexists(folder / reading):
      return folder / reading
  return Path(windows_path.string) if windows_path else folder / path


def _walk_folder(root: Path, skip: Path | None, warn: bool) -> Iterator[Source]:
  """Yield the images below a folder in natural order; list each subfolder only when it is reached.

  A subfolder that cannot be listed is itself yielded as a source. With `warn`, a warning counts
  other files, and another one the images that are named like masks.
  """
  pending_folders, visited = [root], {_folder_id(skip)} if skip and skip.exists() else set()
  num_skipped: collections.Counter[str] = collections.Counter()
  num_masks, example = 0, root
  while pending_folders:
    folder = pending_folders.pop()
    subfolder = folder.relative_to(root)
    scanning.require_depth(folder, len(subfolder.parts))
    try:
      if (folder_id := _folder_id(folder)) in visited:
        continue
      visited.add(folder_id)
      with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not scanning.is_hidden(entry.name)]
    except OSError:
      yield Source(_printable(folder), folder, subfolder.parent)
      continue
    visible.sort(key=lambda entry: scanning.natural_sort_key(Path(entry.name)))
    pending_folders += [
      folder / entry.name for entry in reversed(visible) if scanning.is_folder(entry)
    ]
    paths = [folder / entry.name for entry in visible if not scanning.is_folder(entry)]
    images = [path for path in paths if path.name.lower().endswith(scanning.SUFFIXES)]
    others = (path for path in paths if not path.name.lower().endswith(scanning.SUFFIXES))
    num_skipped.update(path.suffix.lower() or 'no suffix' for path in others)
    if warn and (masks := scanning.masks_by_name(images)[0]):
      num_masks, example = num_masks + len(masks), min(masks)
    yield from (Source(_printable(path), path, subfolder) for path in images)
  if num_skipped and warn:
    counts = ', '.join(f'{suffix} {count}' for suffix, count in num_skipped.most_common(10))
    message = 'Files below %s that are not read, by suffix: %s.'
    log.LOG.warning(message, _printable(root), _printable(counts))
  if num_masks:
    log.LOG.warning(
      'Files below %s that are named like masks, and are scored as images: %d, such as %s. Move '
      'masks to another folder.', _printable(root), num_masks, _printable(example),
    )  # fmt: skip


def _folder_id(folder: Path) -> tuple[int, int]:
  """Return the device and inode of a folder, which are the same for all links to it."""
  status = folder.stat()
  return status.st_dev, status.st_ino


def _printable(name: Path | str) -> str:
  """Return a name that can be printed and written, with invalid UTF-8 bytes escaped."""
  return str(name).encode('utf-8', 'backslashreplace').decode('utf-8')


def _open_regular(path: Path, name: str) -> BinaryIO:
  """Open the file of an image, whose name appears in messages.

  Raises:
    DataError: the file cannot be opened or is not a regular file.
  """
  try:
    return files.open_regular(path, name=name)
  except IsADirectoryError:
    reason = f'no images in or below it; image files must end in {", ".join(scanning.SUFFIXES)}'
    raise DataError(f'Cannot read the folder {name}: {reason}.') from None
  except (OSError, ValueError) as error:
    reason = getattr(error, 'strerror', None) or str(error)
    raise DataError(f'Cannot read {name}: {reason}.') from None


def _to_rgb(
  image: np.ndarray | Image.Image, name: str, pixel_range: PixelRange
) -> UInt8[np.ndarray, 'h w 3']:
  try:
    if isinstance(image, Image.Image):
      return image_io.convert_pillow_image(image, pixel_range)
    return image_io.to_rgb(_require_image_array(image), pixel_range)
  except DataError as error:
    error.message = f'Cannot read {name}: {error.message}'
    if error.key == 'data.range' and not error.allowed:  # The range of such values is unknown.
      error.hint = *error.hint, ' Or scale the values to 0-255 and pass them as uint8.'
    raise


def _require_image_array(array: np.ndarray) -> np.ndarray:
  """Return an array without its subclass, after checking its shape and the kind of its type."""
  if np.ma.is_masked(array):
    hint = 'Fill them first, such as with array.filled(0).'
    raise DataError('some of its pixels are masked.', hint=hint)
  array, hint = np.asarray(array), ''  # Subclasses, such as matrices, have other operations.
  if array.dtype.kind not in 'uif':
    hint = 'Scale its values to 0-255 and pass array.astype(numpy.uint8)'
  elif array.ndim == 4:
    hint = 'Pass the images of a batch as list(array)'
  elif array.ndim == 3 and array.shape[-1] == 4:
    hint = 'Drop the alpha with array[..., :3]'
  elif array.ndim == 3 and array.shape[-1] not in (1, 3) and array.shape[0] in (1, 3):
    hint = 'Move the channels to the end with array.transpose(1, 2, 0)'
  elif not array.size or array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,)):
    hint = 'Pass an array of one of these shapes'
  if hint:
    raise DataError(
      f'its shape is {array.shape} and its dtype {array.dtype}; an image must be an array of '
      'numbers, (height, width, 3) in RGB or (height, width) in gray.', hint=f'{hint}.',
    )  # fmt: skip
  return array
