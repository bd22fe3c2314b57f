"""Locks of open files, and of folders whose files several processes may change.

On a file system without locks, nothing is locked and every process continues.
"""

from collections.abc import Iterator
import contextlib
import errno
import os
from pathlib import Path
import platform
import time
from typing import Any, IO

from uadjax.system import logging

_LOCK_FILE = '.lock'
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # Errors of a file system without locks.


def try_lock(file: IO[Any], wait: bool = False, without_locks: bool = True) -> bool:
  """Lock an open file until it is closed; return False if it is already locked elsewhere.

  A child process that inherits the descriptor keeps the lock until it ends, except on Windows.

  Args:
    file: the file.
    wait: whether to wait until it is not locked elsewhere.
    without_locks: result on a file system without locks.
  """
  import filelock  # Takes long to import.

  try:
    return filelock.lock_descriptor(file.fileno(), blocking=wait)
  except OSError as error:
    if error.errno not in _NO_LOCKS:
      raise
    logging.LOG.debug('The file system of %s has no locks.', file.name)
    return without_locks


def is_in_place(file: IO[Any]) -> bool:
  """Return whether the path of an open file still leads to that file."""
  try:
    return os.path.samestat(os.fstat(file.fileno()), Path(file.name).stat())
  except FileNotFoundError:
    return False


class FolderLocked(Exception):
  """Folder whose lock is held elsewhere; its text describes the holder."""


@contextlib.contextmanager
def lock_folder(folder: Path, name: str = _LOCK_FILE, wait: bool = True) -> Iterator[None]:
  """Hold the lock of a folder, after waiting for another process or thread that holds it.

  The lock is on a file in the folder, which is removed in the end. It is released when its process
  ends, however that happens. It is advisory: processes that do not take it can change the files.

  Args:
    folder: the folder.
    name: name of the file; locks of different names are independent.
    wait: whether to wait; otherwise a lock that is held is an error.

  Raises:
    FolderLocked: the lock is held elsewhere, and `wait` is false.
    OSError: the folder cannot be written.
  """
  path, is_held = folder / name, False
  while not is_held:
    with path.open('ab', buffering=0) as file:
      if not try_lock(file):
        if not wait:
          raise FolderLocked(_read_holder(path))
        logging.LOG.info('Waiting for another command that changes %s.', folder)
        try_lock(file, wait=True)
      # Its previous holder has removed the file. Then others may lock a new one.
      is_held = is_in_place(file)
      if is_held:
        with contextlib.suppress(OSError):  # The disk may be full.
          file.truncate(0)
          file.write(_describe_self().encode())
        try:
          yield
        finally:
          # A fit may have replaced the folder, whose new lock file is another's.
          with contextlib.suppress(OSError):  # Windows keeps a file that is open.
            if is_in_place(file):
              path.unlink()


def _describe_self() -> str:
  return f'process {os.getpid()} on {platform.node()}, since {time.strftime("%Y-%m-%d %H:%M:%S")}'


def _read_holder(path: Path) -> str:
  """Return the description of a holder, which may not have written it yet."""
  with contextlib.suppress(OSError):  # Windows does not let others read a locked file.
    return path.read_text(errors='replace') or 'another process'
  return 'another process'
