"""The parts of a table on disk: each grows as JSON lines, and becomes whole in the end.

A name that begins with _ is passed over by what reads whole folders, such as pandas and Arrow: so
growing parts are called, until they are whole, as Parquet or as JSON lines.
"""

from collections.abc import Iterable, Iterator
import contextlib
import itertools
import json
import os
from pathlib import Path
import re
from typing import Any, BinaryIO

from uadjax.errors import ConfigError, DataError, Setting
from uadjax.system import files

FORMATS = ('parquet', 'jsonl')
# Of an image that could not be read all are null but the path and why.
COLUMNS = 'path', 'score', 'label', 'height', 'width', 'marked_pixels', 'regions', 'error'
_GROWING = '_'
_PART = re.compile(r'_?part-(\d+)-of-(\d+)')
_AT_ONCE = 10_000  # Rows that are held in memory.


def any_in(folder: Path) -> bool:
  """Whether there is some part."""
  return any(_PART.match(path.name) for path in folder.iterdir())


@contextlib.contextmanager
def growing(folder: Path, part: tuple[int, int]) -> Iterator[BinaryIO]:
  """Open this process's part where it ends, without a line that was cut off; and no other's.

  Raises:
    ConfigError: another process is at this part.
  """
  index, count = part
  path = folder / f'{_GROWING}part-{index:05d}-of-{count:05d}.jsonl'
  with path.open('a+b') as file:
    if not _mine(file):
      raise ConfigError(
        f'Another process is at part {index}/{count} of {folder}.',
        key='predict.shard',
        value=f'{index}/{count}',
        hint=('Give each its own ', Setting('predict.shard'), '.'),
      )
    _mend(file)
    try:
      yield file
    finally:
      with contextlib.suppress(FileNotFoundError):
        if not path.stat().st_size:
          path.unlink()


def _mine(file: BinaryIO) -> bool:
  """Whether no other process has it open; it is ours then, until it is closed."""
  try:
    # Not one that was finished while we opened it, and has another name now, or none.
    there = os.path.samestat(os.fstat(file.fileno()), Path(file.name).stat())
  except FileNotFoundError:
    return False
  return files.try_lock(file) and there


def _mend(file: BinaryIO) -> None:
  """Cut off a last line that has no end."""
  file.seek(0)
  end = 0
  for line in file:
    end += len(line) if line.endswith(b'\n') else 0
  file.truncate(end)
  file.seek(end)


def adopt(folder: Path, form: str, part: tuple[int, int]) -> None:
  """Finish what processes left that there are no more: parts of another number of them."""
  index, count = part
  for path in sorted(folder.glob(f'{_GROWING}part-*')):
    found = _PART.match(path.name)
    if found and int(found[2]) != count and int(found[1]) % count == index:
      with contextlib.suppress(FileNotFoundError), path.open('r+b') as file:
        if _mine(file):
          _mend(file)
          finish(path, form)


def finish(growing: Path, form: str) -> None:
  """Make a part whole, under the first name that is free; an empty one vanishes."""
  if not growing.stat().st_size:
    growing.unlink()
    return
  stem = growing.stem.removeprefix(_GROWING)
  names = itertools.chain([stem], (f'{stem}.{number}' for number in itertools.count(2)))
  whole = next(path for name in names if not (path := growing.with_name(f'{name}.{form}')).exists())
  if form == 'jsonl':
    growing.replace(whole)
    return
  with files.atomic_write(whole) as file:
    _write_parquet(_lines(growing), file)
  growing.unlink()


def _lines(path: Path) -> Iterator[dict[str, Any]]:
  with path.open('rb') as file:
    for line in file:
      if line.endswith(b'\n'):  # Another process may be writing the last one.
        yield json.loads(line)


def _write_parquet(rows: Iterable[dict[str, Any]], file: BinaryIO) -> None:
  import pyarrow
  from pyarrow import parquet

  schema = _schema(pyarrow)
  rows = iter(rows)
  with parquet.ParquetWriter(file, schema) as writer:
    while some := list(itertools.islice(rows, _AT_ONCE)):
      writer.write_table(pyarrow.Table.from_pylist(some, schema))


def _schema(pyarrow: Any) -> Any:
  text, whole, real = pyarrow.string(), pyarrow.int32(), pyarrow.float64()
  region = {'box': pyarrow.list_(whole), 'area': whole, 'peak': real, 'at': pyarrow.list_(whole)}
  regions = pyarrow.list_(pyarrow.struct(list(region.items())))
  types = text, real, text, whole, whole, whole, regions, text
  return pyarrow.schema(list(zip(COLUMNS, types, strict=True)))


def told(folder: Path) -> Iterator[tuple[str, str | None]]:
  """The images that any part tells of, and their labels; None where they could not be read."""
  read: set[Path] = set()
  # A part that becomes whole meanwhile vanishes, and is found under its other name.
  while fresh := sorted(set(folder.glob('*part-*')) - read):
    for path in fresh:
      read.add(path)
      with contextlib.suppress(FileNotFoundError):
        yield from _told_in(path)


def _told_in(part: Path) -> Iterator[tuple[str, str | None]]:
  from pyarrow import parquet

  try:
    if part.suffix == '.parquet':
      for some in parquet.ParquetFile(part).iter_batches(_AT_ONCE, columns=['path', 'label']):
        yield from zip(*(some.column(name).to_pylist() for name in ('path', 'label')), strict=True)
    elif part.suffix == '.jsonl':
      yield from ((row['path'], row['label']) for row in _lines(part))
  except (ValueError, KeyError, TypeError) as error:
    raise DataError(f'{part} is no part of a table: {error}. Remove it, or mend it.') from None
