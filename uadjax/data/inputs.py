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
_CONTAINERS = list | tuple | Iterator
_LIST_SUFFIX = '.txt'  # Of a file that lists images.

_ALLOWED_INPUTS = (
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
  subfolder: Path = Path()


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
  item = inputs.get('img') if isinstance(inputs, Mapping) else inputs
  is_single = not isinstance(item, _CONTAINERS | Mapping)
  sources = _list_sources(inputs, is_single, skip)
  return itertools.chain([next(sources)], sources) if is_single else sources


def read(source: Source, access: http.Access = http.PUBLIC_ONLY) -> UInt8[np.ndarray, 'h w 3']:
  """Read an image as `image_io.decode` does; an array is taken as it is, gray becoming RGB.

  Raises:
    DataError: with the name and the reason.
  """
  if isinstance(source.origin, np.ndarray):
    return _to_rgb(source.origin, source.name)
  if isinstance(source.origin, Path):
    with _open_regular(source.origin, source.name) as file:
      return image_io.decode(file)
  content = fetch(source, access).origin
  assert isinstance(content, bytes)  # All else is dealt with above.
  try:
    return image_io.decode(content)
  except DataError as error:  # Bytes have no name of their own to be called by.
    raise DataError(f'{_name_without_secrets(source)}: {error}') from None


def fetch(source: Source, access: http.Access = http.PUBLIC_ONLY) -> Source:
  """Fetch what lies behind a URL, so that it is fetched once; anything else is at hand.

  Raises:
    DataError: as `http.get`.
  """
  if not isinstance(source.origin, str):
    return source
  return source._replace(origin=http.get(source.origin, access))


def _name_without_secrets(source: Source) -> str:
  return http.redact_url(source.name) if _URL.match(source.name) else source.name


def _list_sources(inputs: Any, is_single: bool, skip: Path | None) -> Iterator[Source]:
  counters = collections.defaultdict(itertools.count)
  for origin in _flatten(inputs):
    for source in _expand_origin(origin, counters, skip):
      if is_single and source.origin is origin:  # And not one of the images in a folder.
        _require_readable(source)
      yield source


def _flatten(inputs: Any) -> Iterator[Origin]:
  """Take lists apart, with a stack of our own: they may be nested deeper than Python's."""
  stack: list[tuple[Any, Iterator[Any]]] = [(None, iter([inputs]))]
  open_ids = {id(None)}
  while stack:
    for item in stack[-1][1]:
      items = _container_items(item)
      if items is None:
        yield _to_origin(item)
      elif id(item) in open_ids:
        raise DataError(f'A {type(item).__name__} of images contains itself.')
      else:
        stack.append((item, items))
        open_ids.add(id(item))
        break
    else:
      open_ids.remove(id(stack.pop()[0]))


def _container_items(item: Any) -> Iterator[Any] | None:
  """What a container holds; None for what is none. An open file would be its lines."""
  if isinstance(item, Mapping):
    if 'img' not in item:
      raise DataError(f"A dict of an image has the key 'img'; this one has {list(item)}.")
    return iter([item['img']])
  return iter(item) if isinstance(item, _CONTAINERS) and not isinstance(item, io.IOBase) else None


def _to_origin(item: Any) -> Origin:
  if isinstance(item, np.ndarray | bytes):
    return item
  if isinstance(item, bytearray | memoryview):
    return bytes(item)
  if isinstance(item, str) and _URL.match(item):
    return item
  if isinstance(item, str | os.PathLike) and item != '':
    return Path(os.fsdecode(item))
  type_name, hint = type(item).__name__, ''
  if hasattr(item, '__array__') or hasattr(item, '__array_interface__'):
    hint = ' Pass numpy.asarray() of it.'
  elif isinstance(item, io.IOBase):
    hint = ' Pass what its read() returns.'
  description = 'an empty path' if isinstance(item, str) else f'what is of type {type_name}'
  raise DataError(
    f'Cannot read {description} as an image.{hint} An image can be {_ALLOWED_INPUTS}.'
  )


def _expand_origin(
  origin: Origin, counters: Mapping[str, Iterator[int]], skip: Path | None
) -> Iterator[Source]:
  if isinstance(origin, Path) and _is_folder(origin):
    yield from _walk_folder(origin, skip)
  elif isinstance(origin, Path) and origin.suffix.lower() == _LIST_SUFFIX and origin.is_file():
    yield from _read_list(origin)
  elif isinstance(origin, str):
    # One with a password is refused when it is read, and not told.
    has_credentials = '@' in origin.split('?')[0]
    yield Source(http.redact_url(origin) if has_credentials else _printable(origin), origin)
  elif isinstance(origin, Path):
    yield Source(_printable(origin), origin)
  else:
    kind = 'bytes' if isinstance(origin, bytes) else 'array'
    yield Source(f'{kind}_{next(counters[kind]):04d}', origin)


def _read_list(path: Path) -> Iterator[Source]:
  """The images that a text file lists, relative to its folder."""
  is_empty = True
  with path.open(encoding='utf-8', errors='surrogateescape') as file:
    for line in filter(None, (line.rstrip('\r\n') for line in file)):
      is_empty = False
      origin = line if _URL.match(line) else path.parent / line
      yield Source(_printable(origin), origin)
  if is_empty:
    raise DataError(f'{_printable(path)} lists no image; it must have a path or URL in each line.')


def _walk_folder(root: Path, skip: Path | None) -> Iterator[Source]:
  """Find what `scanning.below` does, but list a folder only when all before it was yielded.

  A folder that cannot be listed is a source itself, and so is one without any image.
  """
  pending, visited, is_empty = [root], set(), True
  if skip and skip.exists():
    visited.add(_folder_id(skip))
  while pending:
    folder = pending.pop()
    subfolder = folder.relative_to(root)
    try:
      folder_id = _folder_id(folder)
      if folder_id in visited:
        continue
      visited.add(folder_id)
      images, folders = _list_folder(folder)
    except OSError:
      is_empty = False
      yield Source(_printable(folder), folder, subfolder.parent)
      continue
    pending += [folder / name for name in reversed(folders)]
    for name in images:
      is_empty = False
      yield Source(_printable(folder / name), folder / name, subfolder)
  if is_empty:
    yield Source(_printable(root), root)


def _folder_id(folder: Path) -> tuple[int, int]:
  """What a folder is known by, whatever links lead to it."""
  status = folder.stat()
  return status.st_dev, status.st_ino


def _list_folder(folder: Path) -> tuple[list[str], list[str]]:
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

  def sort_key(name: str) -> Any:
    return scanning.natural_sort_key(Path(name))

  return sorted(images, key=sort_key), sorted(folders, key=sort_key)


def _is_folder(entry: Path | os.DirEntry) -> bool:
  try:
    return entry.is_dir()
  except OSError:  # A link to itself, a name too long: `read` will say.
    return False


def _printable(name: Path | str) -> str:
  """A name that can be printed and written: bytes that are no UTF-8 are spelled out."""
  return str(name).encode('utf-8', 'backslashreplace').decode('utf-8')


def _require_readable(source: Source) -> None:
  if isinstance(source.origin, Path):
    _open_regular(source.origin, source.name).close()
  elif isinstance(source.origin, np.ndarray):
    _to_rgb(source.origin, source.name)


def _open_regular(path: Path, name: str) -> BinaryIO:
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


def _to_rgb(array: np.ndarray, name: str) -> UInt8[np.ndarray, 'h w 3']:
  hint = ''
  if array.dtype != np.uint8:
    hint = 'Scale its values to 0-255 and pass array.astype(numpy.uint8)'
  elif array.ndim == 4:
    hint = 'Pass the images of a batch as list(array)'
  elif array.ndim == 3 and array.shape[-1] == 4:
    hint = 'Drop the alpha with array[..., :3]'
  elif array.ndim == 3 and array.shape[-1] not in (1, 3) and array.shape[0] in (1, 3):
    hint = 'Bring the channels to the end with array.transpose(1, 2, 0)'
  elif not array.size or array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,)):
    hint = 'Pass one of these shapes'
  if hint:
    raise DataError(
      f'Cannot read {name}: its shape is {array.shape} and its type {array.dtype}; an image is '
      f'uint8, (height, width, 3) in RGB or (height, width) in gray. {hint}.'
    )
  with_channels = array.reshape(*array.shape[:2], -1)
  return with_channels if with_channels.shape[-1] == 3 else np.repeat(with_channels, 3, axis=-1)
