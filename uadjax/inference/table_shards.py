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
_UNFINISHED_PREFIX = '_'
_SHARD_NAME = re.compile(r'_?part-(\d+)-of-(\d+)')
_ROWS_PER_BATCH = 10_000  # Rows that are held in memory.


def has_shards(folder: Path) -> bool:
  """Whether there is some part."""
  return any(_SHARD_NAME.match(path.name) for path in folder.iterdir())


@contextlib.contextmanager
def open_shard(folder: Path, shard: tuple[int, int]) -> Iterator[BinaryIO]:
  """Open this process's part where it ends, without a line that was cut off; and no other's.

  Raises:
    ConfigError: another process is at this part.
  """
  index, count = shard
  path = folder / f'{_UNFINISHED_PREFIX}part-{index:05d}-of-{count:05d}.jsonl'
  with path.open('a+b') as file:
    if not _try_lock(file):
      raise ConfigError(
        f'Another process is at part {index}/{count} of {folder}.',
        key='predict.shard',
        value=f'{index}/{count}',
        hint=('Give each its own ', Setting('predict.shard'), '.'),
      )
    _drop_partial_line(file)
    try:
      yield file
    finally:
      with contextlib.suppress(FileNotFoundError):
        if not path.stat().st_size:
          path.unlink()


def _try_lock(file: BinaryIO) -> bool:
  """Whether no other process has it open; it is ours then, until it is closed."""
  try:
    # Not one that was finished while we opened it, and has another name now, or none.
    is_same_file = os.path.samestat(os.fstat(file.fileno()), Path(file.name).stat())
  except FileNotFoundError:
    return False
  return files.try_lock(file) and is_same_file


def _drop_partial_line(file: BinaryIO) -> None:
  """Cut off a last line that has no end."""
  file.seek(0)
  end = 0
  for line in file:
    end += len(line) if line.endswith(b'\n') else 0
  file.truncate(end)
  file.seek(end)


def take_over(folder: Path, file_format: str, shard: tuple[int, int]) -> None:
  """Finish what processes left that there are no more: parts of another number of them."""
  index, count = shard
  for path in sorted(folder.glob(f'{_UNFINISHED_PREFIX}part-*')):
    match = _SHARD_NAME.match(path.name)
    if match and int(match[2]) != count and int(match[1]) % count == index:
      with contextlib.suppress(FileNotFoundError), path.open('r+b') as file:
        if _try_lock(file):
          _drop_partial_line(file)
          finish_shard(path, file_format)


def finish_shard(unfinished_path: Path, file_format: str) -> None:
  """Make a part whole, under the first name that is free; an empty one vanishes."""
  if not unfinished_path.stat().st_size:
    unfinished_path.unlink()
    return
  stem = unfinished_path.stem.removeprefix(_UNFINISHED_PREFIX)
  names = itertools.chain([stem], (f'{stem}.{number}' for number in itertools.count(2)))
  final_path = next(
    path
    for name in names
    if not (path := unfinished_path.with_name(f'{name}.{file_format}')).exists()
  )
  if file_format == 'jsonl':
    unfinished_path.replace(final_path)
    return
  with files.atomic_write(final_path) as file:
    _write_parquet(_read_rows(unfinished_path), file)
  unfinished_path.unlink()


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
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
    while batch := list(itertools.islice(rows, _ROWS_PER_BATCH)):
      writer.write_table(pyarrow.Table.from_pylist(batch, schema))


def _schema(pyarrow: Any) -> Any:
  text, integer, real = pyarrow.string(), pyarrow.int32(), pyarrow.float64()
  region = {
    'box': pyarrow.list_(integer),
    'area': integer,
    'peak': real,
    'at': pyarrow.list_(integer),
  }
  regions = pyarrow.list_(pyarrow.struct(list(region.items())))
  column_types = text, real, text, integer, integer, integer, regions, text
  return pyarrow.schema(list(zip(COLUMNS, column_types, strict=True)))


def scored_paths(folder: Path) -> Iterator[tuple[str, str | None]]:
  """The images that any part tells of, and their labels; None where they could not be read."""
  read_files: set[Path] = set()
  # A part that becomes whole meanwhile vanishes, and is found under its other name.
  while unread_files := sorted(set(folder.glob('*part-*')) - read_files):
    for path in unread_files:
      read_files.add(path)
      with contextlib.suppress(FileNotFoundError):
        yield from _scored_paths_in(path)


def _scored_paths_in(shard_file: Path) -> Iterator[tuple[str, str | None]]:
  from pyarrow import parquet

  try:
    if shard_file.suffix == '.parquet':
      for batch in parquet.ParquetFile(shard_file).iter_batches(
        _ROWS_PER_BATCH, columns=['path', 'label']
      ):
        yield from zip(*(batch.column(name).to_pylist() for name in ('path', 'label')), strict=True)
    elif shard_file.suffix == '.jsonl':
      yield from ((row['path'], row['label']) for row in _read_rows(shard_file))
  except (ValueError, KeyError, TypeError) as error:
    raise DataError(
      f'{shard_file} is no part of a table: {error}. Remove it, or mend it.'
    ) from None
