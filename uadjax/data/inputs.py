"""What users give becomes a stream of images, each with a name, none opened before its turn.

Letters: h w the image.
"""

import collections
from collections.abc import Iterator, Mapping
import io
import itertools
import os
from pathlib import Path
import re
import stat
from typing import Any, BinaryIO, NamedTuple, TypeAlias

from jaxtyping import UInt8
import numpy as np

from uadjax.data import image_io
from uadjax.data.layouts import scanning
from uadjax.errors import DataError
from uadjax.system import http

Origin: TypeAlias = Path | str | bytes | np.ndarray  # A file, a URL, an encoded image, pixels.

_URL = re.compile(r'[a-z][a-z0-9+.-]+://|data:', re.IGNORECASE)  # 'C:\\' is none.
_SEVERAL = list | tuple | Iterator
_LIST = '.txt'  # Of a file that lists images.

_ALLOWED = (
  'a path or URL of an image, a folder, an array (uint8; [h w 3] in RGB, or [h w]), the bytes of an'
  " image file, {'img': any of these}, or a list of any of these"
)


class Source(NamedTuple):
  """Where an image comes from.

  Attributes:
    name: what results call it: path, URL, or 'array_0000'. Can always be encoded.
    origin: what `read` reads; an array is the user's own.
    inner: the image's folder, relative to the one that it was found in; else Path().
  """

  name: str
  origin: Origin
  inner: Path = Path()


def expand(inputs: Any, skip: Path | None = None) -> Iterator[Source]:
  """List the images in what a user gives, in order; folders in natural order, each in its turn.

  A folder is walked once, however many links lead to it. What cannot be read is a source like any
  other, for the rest must go on: `read` raises. Only where it is all that was given, it is refused
  here and now.

  Args:
    inputs: path, URL, folder, array, bytes of an image file, {'img': any of these}, or a list,
      tuple or iterator of any of these, however deep.
    skip: a folder that is passed over, as that of the results is.

  Raises:
    DataError: the only input cannot be opened, or has no image in it; or, when its turn comes, an
      input is of no such type, or a list contains itself.
  """
  held = inputs.get('img') if isinstance(inputs, Mapping) else inputs
  alone = not isinstance(held, _SEVERAL | Mapping)
  sources = _sources(inputs, alone, skip)
  return itertools.chain([next(sources)], sources) if alone else sources


def read(source: Source, access: http.Access = http.PUBLIC) -> UInt8[np.ndarray, 'h w 3']:
  """Read an image as `image_io.decode` does; an array is taken as it is, gray becoming RGB.

  Raises:
    DataError: with the name and the reason.
  """
  if isinstance(source.origin, np.ndarray):
    return _pixels(source.origin, source.name)
  if isinstance(source.origin, Path):
    with _opened(source.origin, source.name) as file:
      return image_io.decode(file)
  content = held(source, access).origin
  assert isinstance(content, bytes)  # All else is dealt with above.
  try:
    return image_io.decode(content)
  except DataError as error:  # Bytes have no name of their own to be called by.
    raise DataError(f'{_shown(source)}: {error}') from None


def held(source: Source, access: http.Access = http.PUBLIC) -> Source:
  """Fetch what lies behind a URL, so that it is fetched once; anything else is at hand.

  Raises:
    DataError: as `http.get`.
  """
  if not isinstance(source.origin, str):
    return source
  return source._replace(origin=http.get(source.origin, access))


def _shown(source: Source) -> str:
  return http.shown(source.name) if _URL.match(source.name) else source.name


def _sources(inputs: Any, alone: bool, skip: Path | None) -> Iterator[Source]:
  numbers = collections.defaultdict(itertools.count)
  for origin in _origins(inputs):
    for source in _found(origin, numbers, skip):
      if alone and source.origin is origin:  # And not one of the images in a folder.
        _check(source)
      yield source


def _origins(inputs: Any) -> Iterator[Origin]:
  """Take lists apart, with a stack of our own: they may be nested deeper than Python's."""
  opened: list[tuple[Any, Iterator[Any]]] = [(None, iter([inputs]))]
  inside = {id(None)}
  while opened:
    for item in opened[-1][1]:
      within = _within(item)
      if within is None:
        yield _origin(item)
      elif id(item) in inside:
        raise DataError(f'A {type(item).__name__} of images contains itself.')
      else:
        opened.append((item, within))
        inside.add(id(item))
        break
    else:
      inside.remove(id(opened.pop()[0]))


def _within(item: Any) -> Iterator[Any] | None:
  """What a container holds; None for what is none. An open file would be its lines."""
  if isinstance(item, Mapping):
    if 'img' not in item:
      raise DataError(f"A dict of an image has the key 'img'; this one has {list(item)}.")
    return iter([item['img']])
  return iter(item) if isinstance(item, _SEVERAL) and not isinstance(item, io.IOBase) else None


def _origin(item: Any) -> Origin:
  if isinstance(item, np.ndarray | bytes):
    return item
  if isinstance(item, bytearray | memoryview):
    return bytes(item)
  if isinstance(item, str) and _URL.match(item):
    return item
  if isinstance(item, str | os.PathLike) and item != '':
    return Path(os.fsdecode(item))
  kind, way = type(item).__name__, ''
  if hasattr(item, '__array__') or hasattr(item, '__array_interface__'):
    way = ' Pass numpy.asarray() of it.'
  elif isinstance(item, io.IOBase):
    way = ' Pass what its read() returns.'
  what = 'an empty path' if isinstance(item, str) else f'what is of type {kind}'
  raise DataError(f'Cannot read {what} as an image.{way} An image can be {_ALLOWED}.')


def _found(
  origin: Origin, numbers: Mapping[str, Iterator[int]], skip: Path | None
) -> Iterator[Source]:
  if isinstance(origin, Path) and _is_folder(origin):
    yield from _below(origin, skip)
  elif isinstance(origin, Path) and origin.suffix.lower() == _LIST and origin.is_file():
    yield from _lines(origin)
  elif isinstance(origin, str):
    # One with a password is refused when it is read, and not told.
    secret = '@' in origin.split('?')[0]
    yield Source(http.shown(origin) if secret else _text(origin), origin)
  elif isinstance(origin, Path):
    yield Source(_text(origin), origin)
  else:
    kind = 'bytes' if isinstance(origin, bytes) else 'array'
    yield Source(f'{kind}_{next(numbers[kind]):04d}', origin)


def _lines(path: Path) -> Iterator[Source]:
  """The images that a text file lists, relative to its folder."""
  empty = True
  with path.open(encoding='utf-8', errors='surrogateescape') as file:
    for line in filter(None, (line.rstrip('\r\n') for line in file)):
      empty = False
      origin = line if _URL.match(line) else path.parent / line
      yield Source(_text(origin), origin)
  if empty:
    raise DataError(f'{_text(path)} lists no image; it must have a path or URL in each line.')


def _below(top: Path, skip: Path | None) -> Iterator[Source]:
  """Find what `scanning.below` does, but list a folder only when all before it was yielded.

  A folder that cannot be listed is a source itself, and so is one without any image.
  """
  waiting, walked, empty = [top], set(), True
  if skip and skip.exists():
    walked.add(_mark(skip))
  while waiting:
    folder = waiting.pop()
    inner = folder.relative_to(top)
    try:
      mark = _mark(folder)
      if mark in walked:
        continue
      walked.add(mark)
      images, folders = _listed(folder)
    except OSError:
      empty = False
      yield Source(_text(folder), folder, inner.parent)
      continue
    waiting += [folder / name for name in reversed(folders)]
    for name in images:
      empty = False
      yield Source(_text(folder / name), folder / name, inner)
  if empty:
    yield Source(_text(top), top)


def _mark(folder: Path) -> tuple[int, int]:
  """What a folder is known by, whatever links lead to it."""
  status = folder.stat()
  return status.st_dev, status.st_ino


def _listed(folder: Path) -> tuple[list[str], list[str]]:
  """Names of the images and of the folders in a folder; hidden ones are passed over."""
  images, folders = [], []
  with os.scandir(folder) as entries:
    for entry in entries:
      if entry.name.startswith('.'):
        continue
      if _is_folder(entry):
        folders.append(entry.name)
      elif entry.name.lower().endswith(scanning.SUFFIXES):
        images.append(entry.name)

  def natural(name: str) -> Any:
    return scanning.natural(Path(name))

  return sorted(images, key=natural), sorted(folders, key=natural)


def _is_folder(entry: Path | os.DirEntry) -> bool:
  try:
    return entry.is_dir()
  except OSError:  # A link to itself, a name too long: `read` will say.
    return False


def _text(name: Path | str) -> str:
  """A name that can be printed and written: bytes that are no UTF-8 are spelled out."""
  return str(name).encode('utf-8', 'backslashreplace').decode('utf-8')


def _check(source: Source) -> None:
  if isinstance(source.origin, Path):
    _opened(source.origin, source.name).close()
  elif isinstance(source.origin, np.ndarray):
    _pixels(source.origin, source.name)


def _opened(path: Path, name: str) -> BinaryIO:
  """Open a regular file: nothing else, for a pipe can wait forever, and a device never end."""

  def opener(_: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, 'O_NONBLOCK', 0))  # By now it may be a pipe.

  try:
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
      raise DataError(f'Cannot read {name}: it is no file, but a pipe, a socket or a device.')
    return open(name, 'rb', opener=opener)  # Messages name a file as it was opened.
  except IsADirectoryError:
    reason = f'no images in or below it; they must be {", ".join(scanning.SUFFIXES)}'
    raise DataError(f'Cannot read the folder {name}: {reason}.') from None
  except (OSError, ValueError) as error:
    reason = getattr(error, 'strerror', None) or str(error)
    raise DataError(f'Cannot read {name}: {reason}.') from None


def _pixels(array: np.ndarray, name: str) -> UInt8[np.ndarray, 'h w 3']:
  way = ''
  if array.dtype != np.uint8:
    way = 'Scale its values to 0-255 and pass array.astype(numpy.uint8)'
  elif array.ndim == 4:
    way = 'Pass the images of a batch as list(array)'
  elif array.ndim == 3 and array.shape[-1] == 4:
    way = 'Drop the alpha with array[..., :3]'
  elif array.ndim == 3 and array.shape[-1] not in (1, 3) and array.shape[0] in (1, 3):
    way = 'Bring the channels to the end with array.transpose(1, 2, 0)'
  elif not array.size or array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,)):
    way = 'Pass one of these shapes'
  if way:
    raise DataError(
      f'Cannot read {name}: its shape is {array.shape} and its type {array.dtype}; an image is '
      f'uint8, (height, width, 3) in RGB or (height, width) in gray. {way}.'
    )
  deep = array.reshape(*array.shape[:2], -1)
  return deep if deep.shape[-1] == 3 else np.repeat(deep, 3, axis=-1)
