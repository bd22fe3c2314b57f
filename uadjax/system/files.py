"""Atomic writing of files and directories: complete or absent, never partial."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import csv
import errno
import hashlib
import io
import json
import math
import numbers
import os
from pathlib import Path
import re
import shutil
import stat
import tempfile
from typing import Any, BinaryIO, NoReturn, TypeAlias

from uadjax.errors import ConfigError, UserError
from uadjax.system import locks, logging

ANNOUNCED_BYTES = 200_000_000  # Larger files are announced before they are written.

# Function (path, content) that prepares a file which will replace the one at `path`.
Stage: TypeAlias = Callable[[Path, bytes], None]

# Names of temporary files and folders begin with it, so that no other file is taken for one.
_TEMPORARY_PREFIX = '.uadjax-'
_NOT_REGULAR = 'Not a regular file: it is a pipe, a socket or a device'
_CAN_LOCK_TEMPORARY = os.name == 'posix'
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)  # Numbers of errors.

# Spreadsheets evaluate text with this beginning as a formula, which may run commands or send data
# away (OWASP, "CSV Injection"). The apostrophes of a text itself count as part of the beginning, so
# that `read_csv` removes only an added one.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_CSV_SPECIAL = re.compile('[",\r\n]')
_QUOTED_EMPTY = '""'  # Readers would skip a blank line.
_MAX_JSON_BYTES = 64 << 20  # Manifests and metadata have some kilobytes.
_MAX_CSV_CELL = 1 << 30  # Enough for a million regions; the csv module's default is 128 KiB.


def cache_dir() -> Path:
  """Return the folder for files that can be recreated: $UADJAX_CACHE or ~/.cache/uadjax."""
  return Path(os.environ.get('UADJAX_CACHE') or '~/.cache/uadjax').expanduser()


def unwritable_reason(folder: Path) -> str:
  """Return why no file can be created in a folder, which may not exist yet; '' if one can.

  Nothing is left behind, not even the folder.
  """
  try:
    with tempfile.TemporaryFile(dir=_existing_folder(folder)):
      return ''
  except OSError as error:
    return error.strerror or str(error)


def require_writable_cache() -> None:
  """Raise ConfigError if the cache folder cannot be written."""
  if reason := unwritable_reason(cache_dir()):
    hint = 'Set UADJAX_CACHE to a folder that can be written.'
    raise ConfigError(f'Cannot write to the cache {cache_dir()} ({reason}).', hint=hint)


def announce_size(content: str, folder: Path, num_bytes: int) -> None:
  """Log how much disk space an output takes, if it is more than ANNOUNCED_BYTES.

  Args:
    content: description of what will be written.
    folder: folder on the disk that is written to; it may not exist yet.
    num_bytes: size of the output, or an upper bound.
  """
  if num_bytes > ANNOUNCED_BYTES:
    free_bytes = shutil.disk_usage(_existing_folder(folder)).free
    logging.LOG.info(
      'Writing %s: up to %.1f GB, and %.1f GB are free.', content, num_bytes / 1e9, free_bytes / 1e9
    )


def _existing_folder(folder: Path) -> Path:
  """Return the folder, or the nearest one above it that exists."""
  while not os.path.lexists(folder):
    folder = folder.parent
  return folder


@contextlib.contextmanager
def new_output(path: Path) -> Iterator[None]:
  """Create the folder of an output that the block writes.

  Raises:
    UserError: the folder or the output cannot be written; the message names the output.
  """
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    yield
  except OSError as error:
    raise UserError(f'Cannot write {path} ({error.strerror or error}).') from error


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
  """Yield an open binary file that replaces `path` on success and is deleted on an exception.

  Raises:
    OSError: the file cannot be written, or `path` is a folder, a pipe or a device.
  """
  if path.exists() and not path.is_file():  # A device would be replaced by a file.
    raise OSError(errno.EINVAL, 'It is a folder, a pipe or a device, not a file', str(path))
  with _temporary_path(path.parent) as temporary_path:
    with _full_disk_named(path, temporary_path), temporary_path.open('wb') as file:
      yield file
    temporary_path.chmod(0o644)  # It was created with access for the owner only.
    temporary_path.replace(path)


@contextlib.contextmanager
def _temporary_path(folder: Path) -> Iterator[Path]:
  """Yield the path of a new file; delete the file at the end, if it still exists.

  Meanwhile the file is locked, so that `remove_leftovers` does not remove it, except on Windows,
  where open files can be neither replaced nor deleted.
  """
  with contextlib.ExitStack() as stack:
    while True:
      descriptor, name = tempfile.mkstemp(prefix=_TEMPORARY_PREFIX, dir=folder)
      stack.callback(Path(name).unlink, missing_ok=True)
      file = stack.enter_context(open(name, 'ab', opener=lambda *_, fd=descriptor: fd))
      if not _CAN_LOCK_TEMPORARY:
        file.close()
        break
      # Before it was locked, `remove_leftovers` may have taken it for a leftover.
      if locks.try_lock(file) and locks.is_in_place(file):
        break
    yield Path(name)


@contextlib.contextmanager
def atomic_files() -> Iterator[Stage]:
  """Yield a function (path, content) that stages a file; replace all staged files on success.

  The file that is staged first commits the change: it is replaced last, and only if all others
  were. On an exception inside the block no file is replaced.
  """
  with contextlib.ExitStack() as stack:

    def stage(path: Path, content: bytes) -> None:
      file = stack.enter_context(atomic_write(path))
      file.write(content)
      file.flush()  # So that a full disk is noticed before any file is replaced.

    yield stage


def open_regular(
  path: Path, max_bytes: int | None = None, name: str | None = None
) -> io.BufferedReader:
  """Open a regular file to read it; unlike `open`, never wait for a FIFO or read a device.

  Args:
    path: the file.
    max_bytes: largest size of the file.
    name: attribute `name` of the open file, which messages contain; by default, the path.

  Raises:
    OSError: the file cannot be read, is not a regular file, or has more than `max_bytes`.
  """
  if not stat.S_ISREG(mode := path.stat().st_mode) and not stat.S_ISDIR(mode):
    raise OSError(errno.EINVAL, _NOT_REGULAR, str(path))
  no_wait = getattr(os, 'O_NONBLOCK', 0)  # It may have become a FIFO since; Windows has none.
  file = open(name or path, 'rb', opener=lambda _, flags: os.open(path, flags | no_wait))  # noqa: SIM115
  status = os.fstat(file.fileno())
  if stat.S_ISREG(status.st_mode) and (max_bytes is None or status.st_size <= max_bytes):
    return file
  file.close()
  if stat.S_ISREG(status.st_mode):
    raise OSError(errno.EFBIG, f'It has {status.st_size} bytes, more than {max_bytes}', str(path))
  raise OSError(errno.EINVAL, _NOT_REGULAR, str(path))


def read_json(path: Path, max_bytes: int = _MAX_JSON_BYTES) -> Any:
  """Return the content of a strict JSON file; no name may be repeated within an object.

  Raises:
    OSError: the file cannot be read.
    ValueError: the file is not strict JSON.
  """
  with open_regular(path, max_bytes) as file:
    return parse_json(file.read())


def parse_json(content: bytes) -> Any:
  """Return the value of strict JSON; no name may be repeated within an object.

  Raises:
    ValueError: the content is not strict JSON.
  """

  def to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
      repeated = next(name for name, count in Counter(k for k, _ in pairs).items() if count > 1)
      raise ValueError(f'{repeated[:100]!r} is repeated')
    return values

  def refuse_constant(name: str) -> NoReturn:
    raise ValueError(f'{name} is not JSON')

  try:
    text = content.decode()
    return json.loads(text, object_pairs_hook=to_dict, parse_constant=refuse_constant)
  except RecursionError:
    raise ValueError('it is nested too deeply') from None


def sha256(path: Path) -> str:
  """Return the SHA-256 of a regular file, in hexadecimal."""
  with open_regular(path) as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def write_text(path: Path, text: str) -> None:
  """Write a UTF-8 text file atomically."""
  with atomic_write(path) as file:
    file.write(_encode(text))


def to_json(value: object, indent: int | None = 2, ensure_ascii: bool = False) -> str:
  """Return strict JSON, which every parser reads: NaN and infinities become null."""
  value = _replace_nonfinite(value)
  return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)


def to_json_bytes(value: object) -> bytes:
  """Return the content of a file with a value as strict JSON; NaN and infinities become null."""
  return _encode(to_json(value) + '\n')


def write_json(path: Path, value: object) -> None:
  """Write a value as strict JSON, atomically; NaN and infinities become null."""
  write_text(path, to_json(value) + '\n')


def to_csv(rows: Iterable[Sequence[object]]) -> str:
  """Return rows as lines of CSV, which no spreadsheet evaluates as formulas.

  Text that begins with =, +, -, @, a tab or a carriage return gets a leading apostrophe. Numbers
  are unchanged, and None is an empty cell.
  """
  # The csv module would not quote carriage returns, but could not read them either.
  return ''.join(f'{",".join(map(_to_csv_cell, row)) or _QUOTED_EMPTY}\n' for row in rows)


def _to_csv_cell(value: object) -> str:
  text = '' if value is None else str(value)
  if not isinstance(value, numbers.Number) and _FORMULA.match(text):
    text = f"'{text}"
  return '"{}"'.format(text.replace('"', '""')) if _CSV_SPECIAL.search(text) else text


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
  """Write rows, the first of which has the column names, as a CSV file, atomically."""
  write_text(path, to_csv(rows))


def read_csv(path: Path) -> Iterator[dict[str, str]]:
  """Yield each row of a file that `to_csv` wrote as texts by column, without added apostrophes.

  Raises:
    OSError: the file cannot be opened.
    ValueError: the file is not valid CSV, or a row is not complete.
  """
  csv.field_size_limit(_MAX_CSV_CELL)
  with io.TextIOWrapper(open_regular(path), encoding='utf-8', newline='') as file:
    lines = ([_from_csv_cell(cell) for cell in line] for line in csv.reader(file))
    try:
      names = next(lines, [])
      for line in lines:
        yield dict(zip(names, line, strict=True))
    except csv.Error as error:
      raise ValueError(f'invalid CSV: {error}') from None


def _from_csv_cell(text: str) -> str:
  return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


@contextlib.contextmanager
def atomic_directory(directory: Path) -> Iterator[Path]:
  """Yield an empty folder that replaces `directory` on success and is deleted on an exception."""
  directory.parent.mkdir(parents=True, exist_ok=True)
  with _temporary_path(directory.parent) as lock_path:
    temporary_dir = Path(f'{lock_path}.{directory.name}')
    new_dir = temporary_dir / 'new'
    try:
      new_dir.mkdir(parents=True)
      with _full_disk_named(directory, new_dir):
        yield new_dir
      if directory.exists():
        directory.replace(temporary_dir / 'old')
      new_dir.replace(directory)
    finally:
      _remove_temporary_dir(temporary_dir)


def remove_leftovers(folder: Path) -> None:
  """Remove temporary files and folders that processes left in a folder when they were killed.

  A folder that was being replaced is restored. Files that a process still writes are locked, and
  are not removed. On Windows, and on a file system without locks, nothing is removed.
  """
  if not _CAN_LOCK_TEMPORARY:
    return
  for path in folder.glob(f'{_TEMPORARY_PREFIX}*'):
    with contextlib.suppress(OSError):  # Its writer may remove it now, or be another user.
      if path.is_file():
        _remove_leftover(path)


def _remove_leftover(path: Path) -> None:
  """Remove a temporary file, and the folder that its lock protects, if no process writes them."""
  with path.open('r+b') as file:
    if locks.try_lock(file, without_locks=False) and locks.is_in_place(file):
      for temporary_dir in path.parent.glob(f'{path.name}.*'):
        _remove_temporary_dir(temporary_dir)
      path.unlink()


def _remove_temporary_dir(temporary_dir: Path) -> None:
  """Remove the temporary folder of a directory; restore the directory if replacing it failed."""
  old_dir = temporary_dir / 'old'
  _, _, name = temporary_dir.name.removeprefix(_TEMPORARY_PREFIX).partition('.')
  directory = temporary_dir.with_name(name)
  if old_dir.exists() and not directory.exists():
    old_dir.replace(directory)
  shutil.rmtree(temporary_dir, ignore_errors=True)


@contextlib.contextmanager
def _full_disk_named(output: Path, written: Path) -> Iterator[None]:
  """Name an output, and the bytes written and free, in the error of a full disk or quota.

  Args:
    output: the output.
    written: temporary file or folder that becomes the output.
  """
  try:
    yield
  except OSError as error:
    if error.errno not in DISK_FULL:
      raise
    raise full_disk_error(error.errno, output, written) from error


def full_disk_error(number: int, output: Path, written: Path) -> OSError:
  """Return the error of a full disk, or of a quota, with the bytes written and free.

  Args:
    number: number of the error.
    output: the output.
    written: temporary file or folder that becomes the output.
  """
  paths = [written] if written.is_file() else written.rglob('*')
  num_bytes = sum(path.stat().st_size for path in paths if path.is_file())
  free_bytes = shutil.disk_usage(output.parent).free
  sizes = f'{num_bytes:,} bytes were written, {free_bytes:,} are free'
  return OSError(number, f'{os.strerror(number)} ({sizes})', str(output))


def _encode(text: str) -> bytes:
  # File names that are not UTF-8 hold surrogates such as \udcff, which UTF-8 cannot encode.
  return text.encode('utf-8', 'backslashreplace')


def _replace_nonfinite(value: object) -> object:
  if isinstance(value, dict):
    return {k: _replace_nonfinite(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [_replace_nonfinite(v) for v in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value
