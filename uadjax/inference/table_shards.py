"""Shards of a table on disk: written as JSON lines, and converted when they are finished.

Names of unfinished shards begin with _, because readers of whole folders, such as pandas and Arrow,
skip such files. Finished shards are Parquet, JSON lines or CSV.
"""

from collections.abc import Iterable, Iterator
import contextlib
import itertools
import json
from pathlib import Path
import re
from typing import Any, BinaryIO

from uadjax.errors import DataError, refuse, Setting
from uadjax.system import files, locks

FORMATS = ('parquet', 'jsonl', 'csv')
# For an unreadable image, all columns but `path`, `part` and `error` are null.
COLUMNS = (
  'path', 'score', 'label', 'warnings', 'height', 'width', 'marked_pixels', 'peak', 'at', 'regions',
  'part', 'error',
)  # fmt: skip
_UNFINISHED_PREFIX = '_'
_SHARD_NAME = re.compile(r'_?part-(\d+)-of-(\d+)')
_ROWS_PER_BATCH = 10_000  # Number of rows in memory at a time.


def is_shard(path: Path) -> bool:
  """Return whether a file has the name of a shard, finished or not."""
  return bool(_SHARD_NAME.match(path.name))


@contextlib.contextmanager
def open_shard(folder: Path, shard: tuple[int, int]) -> Iterator[BinaryIO]:
  """Open and lock an unfinished shard for appending, after removing an incomplete last line.

  Raises:
    ConfigError: another process is writing this shard.
  """
  index, count = shard
  path = folder / f'{_UNFINISHED_PREFIX}part-{index:05d}-of-{count:05d}.jsonl'
  with path.open('a+b') as file:
    if not _try_lock(file):
      message = f'Another process is writing shard {index}/{count} of {folder}.'
      hint = 'Give each process its own ', Setting('predict.shard'), '.'
      refuse('predict.shard', f'{index}/{count}', message, *hint)
    _drop_partial_line(file)
    try:
      yield file
    finally:
      with contextlib.suppress(FileNotFoundError):
        if not path.stat().st_size:
          path.unlink()


def _try_lock(file: BinaryIO) -> bool:
  """Lock a file until it is closed; return False if another process has locked or renamed it."""
  # Another process may just have finished the shard, and renamed or removed its file.
  return locks.try_lock(file) and locks.is_in_place(file)


def _drop_partial_line(file: BinaryIO) -> None:
  """Truncate a file after its last complete line."""
  file.seek(0)
  end = 0
  for line in file:
    end += len(line) if line.endswith(b'\n') else 0
  file.truncate(end)
  file.seek(end)


def take_over(folder: Path, file_format: str, shard: tuple[int, int]) -> None:
  """Finish shards that runs with another number of processes left unfinished.

  Args:
    folder: folder of the table.
    file_format: one of FORMATS.
    shard: index of this process's shard, and number of shards. A process takes over the shards
      whose index modulo that number is its own.
  """
  index, count = shard
  for path in sorted(folder.glob(f'{_UNFINISHED_PREFIX}part-*')):
    match = _SHARD_NAME.match(path.name)
    if match and int(match[2]) != count and int(match[1]) % count == index:
      with contextlib.suppress(FileNotFoundError), path.open('r+b') as file:
        if _try_lock(file):
          _drop_partial_line(file)
          finish_shard(path, file_format)


def finish_shard(unfinished_path: Path, file_format: str) -> None:
  """Convert an unfinished shard under the first free name; remove it if it is empty."""
  if not unfinished_path.stat().st_size:
    unfinished_path.unlink()
    return
  stem = unfinished_path.stem.removeprefix(_UNFINISHED_PREFIX)
  suffixes = itertools.chain([''], (f'.{number}' for number in itertools.count(2)))
  paths = (unfinished_path.with_name(f'{stem}{suffix}.{file_format}') for suffix in suffixes)
  final_path = next(path for path in paths if not path.exists())
  if file_format == 'jsonl':
    unfinished_path.replace(final_path)
    return
  write = _write_csv if file_format == 'csv' else _write_parquet
  with files.atomic_write(final_path) as file:
    write(_read_rows(unfinished_path), file)
  unfinished_path.unlink()


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
  with path.open('rb') as file:
    for line in file:
      if line.endswith(b'\n'):  # Another process may be writing the last line.
        yield json.loads(line)


def _write_parquet(rows: Iterable[dict[str, Any]], file: BinaryIO) -> None:
  import pyarrow
  from pyarrow import parquet

  text, integer, real = pyarrow.string(), pyarrow.int32(), pyarrow.float64()
  integers = pyarrow.list_(integer)
  region = pyarrow.struct({'box': integers, 'area': integer, 'peak': real, 'at': integers})
  regions = pyarrow.list_(region)
  types = (
    text, real, text, text, integer, integer, integer, real, integers, regions, text,
    text,
  )  # fmt: skip
  schema = pyarrow.schema(dict(zip(COLUMNS, types, strict=True)))
  rows = iter(rows)
  with parquet.ParquetWriter(file, schema) as writer:
    while batch := list(itertools.islice(rows, _ROWS_PER_BATCH)):
      writer.write_table(pyarrow.Table.from_pylist(batch, schema))


def _write_csv(rows: Iterable[dict[str, Any]], file: BinaryIO) -> None:
  """Write rows as CSV, in which lists are JSON."""

  def to_cell(value: object) -> object:
    return files.to_json(value, None) if isinstance(value, list) else value

  table = itertools.chain([COLUMNS], ([to_cell(row.get(name)) for name in COLUMNS] for row in rows))
  while batch := list(itertools.islice(table, _ROWS_PER_BATCH)):
    file.write(files.to_csv(batch).encode('utf-8', 'backslashreplace'))


def scored_paths(folder: Path) -> Iterator[tuple[str, str | None]]:
  """Yield path and label of each image in any shard; the label of an unreadable image is None.

  Raises:
    DataError: a shard is damaged.
  """
  read_files: set[Path] = set()
  # A shard that is finished during this loop is renamed, and found under its new name.
  while unread_files := sorted(set(folder.glob('*part-*')) - read_files):
    for path in unread_files:
      read_files.add(path)
      with contextlib.suppress(FileNotFoundError):
        yield from _scored_paths_in(path)


def _scored_paths_in(shard_file: Path) -> Iterator[tuple[str, str | None]]:
  from pyarrow import parquet

  try:
    if shard_file.suffix == '.parquet':
      table = parquet.ParquetFile(shard_file)
      for batch in table.iter_batches(_ROWS_PER_BATCH, columns=['path', 'label']):
        # Unlike `to_pydict`, this fails for a missing column.
        yield from zip(*(batch[name].to_pylist() for name in ('path', 'label')), strict=True)
    elif shard_file.suffix == '.csv':
      yield from ((row['path'], row['label'] or None) for row in files.read_csv(shard_file))
    elif shard_file.suffix == '.jsonl':
      yield from ((row['path'], row['label']) for row in _read_rows(shard_file))
  except (ValueError, KeyError, TypeError) as error:
    raise DataError(f'{shard_file} is not a valid shard: {error}. Repair or remove it.') from None
