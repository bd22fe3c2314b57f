"""Locks of folders whose files several processes may change."""

from collections.abc import Iterator
import contextlib
import os
from pathlib import Path
from typing import Any, IO

from uadjax.system import logging

_LOCK_FILE = '.lock'


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
  """Hold the lock of a folder, and wait for it while another process or thread holds it.

  The lock is on a file in the folder, which is removed in the end. It is released when its process
  ends, however that happens. It does not keep a process from files that does not ask for it.

  Raises:
    OSError: the folder cannot be written, or its file system has no locks.
  """
  import filelock  # Takes long to import, and few commands lock a file.

  path, is_held = folder / _LOCK_FILE, False
  while not is_held:
    with path.open('ab') as file:
      if not filelock.lock_descriptor(file.fileno(), blocking=False):
        logging.LOG.info('Waiting for another command that changes %s.', folder)
        filelock.lock_descriptor(file.fileno())
      # Its previous holder has removed the file. Then others may lock a new one.
      is_held = _is_in_place(file)
      if is_held:
        try:
          yield
        finally:
          with contextlib.suppress(OSError):  # Windows keeps a file that is open.
            path.unlink()


def _is_in_place(file: IO[Any]) -> bool:
  """Return whether the path of an open file still leads to that file."""
  try:
    return os.path.samestat(os.fstat(file.fileno()), Path(file.name).stat())
  except FileNotFoundError:
    return False
