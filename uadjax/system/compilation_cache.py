"""Persistent cache of the programs that JAX compiles, which the commands use.

JAX loads an entry of the cache as machine code. So the cache is a folder that only the user can
write, and no part of a model or a work directory, which users copy from machine to machine. Each
type of processor has a folder of its own, because machines may share the folder of a user. JAX
removes the entries that were used longest ago when the cache is full, and compiles again what it
cannot read.
"""

import contextlib
import hashlib
import os
from pathlib import Path
import platform
import stat
import time
import warnings

from uadjax.system import files
from uadjax.system.logging import LOG

_FOLDER_VARIABLE, _ENABLED_VARIABLE = 'JAX_COMPILATION_CACHE_DIR', 'JAX_ENABLE_COMPILATION_CACHE'
_FALSE = ('0', 'f', 'false', 'n', 'no', 'off')  # As JAX reads variables.
_VARIABLES = {
  'JAX_COMPILATION_CACHE_MAX_SIZE': str(10**9),
  # By default JAX keeps only what takes a second. Most programs of a model take less.
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1',
}
# A damaged entry, or a disk that is full, only costs the time to compile.
_WARNINGS = 'Error (reading|writing) persistent compilation cache entry'
_ENTRY_SUFFIX, _TIME_SUFFIX = '-cache', '-atime'  # JAX's names of the two files of an entry.
_MAX_WRITE_S = 60


def enable() -> None:
  """Make this process, and those that it starts, use the cache; call it before JAX is imported.

  JAX's own environment variables take precedence: JAX_COMPILATION_CACHE_DIR names another folder,
  for which the user answers, and JAX_ENABLE_COMPILATION_CACHE=false disables the cache. Without a
  folder that only the user can write there is no cache.
  """
  warnings.filterwarnings('ignore', _WARNINGS, UserWarning)
  is_disabled = os.environ.get(_ENABLED_VARIABLE, '').lower() in _FALSE
  if is_disabled or _FOLDER_VARIABLE in os.environ:
    return
  try:
    folder = _create_folder()
    reason = _distrust_reason(folder)
    if not reason:
      _remove_incomplete(folder)
  except (OSError, RuntimeError) as error:  # A user without a home folder is a RuntimeError.
    LOG.debug('Compiled programs are not cached: %s.', error)
    return
  if reason:
    LOG.warning(
      'Compiled programs are not cached, because %s. Change this, name another folder with %s, or '
      'set %s=false.', reason, _FOLDER_VARIABLE, _ENABLED_VARIABLE,
    )  # fmt: skip
    return
  os.environ[_FOLDER_VARIABLE] = str(folder)
  for name, value in _VARIABLES.items():
    os.environ.setdefault(name, value)


def _create_folder() -> Path:
  """Return the folder of the cache for this processor, without symbolic links in its path."""
  folder = files.cache_dir() / 'compiled'
  folder.parent.mkdir(parents=True, exist_ok=True)
  folder.mkdir(mode=0o700, exist_ok=True)
  folder /= hashlib.sha256(_describe_processor().encode()).hexdigest()[:16]
  folder.mkdir(mode=0o700, exist_ok=True)
  return folder.resolve()


def _describe_processor() -> str:
  """Return the processor with its instruction set, for which JAX compiles."""
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:  # Only Linux has this file.
    return f'{platform.machine()} {platform.processor()}'
  names = 'model name', 'flags', 'CPU part', 'Features'  # The last two are those of ARM.
  return '\n'.join(sorted({line for line in lines if line.startswith(names)}))


def _distrust_reason(folder: Path) -> str:
  """Return why other users could write or replace a folder; '' if they cannot."""
  if not hasattr(os, 'geteuid'):
    return ''  # Windows protects the folders of a user by other means.
  status = folder.stat()
  if status.st_uid != os.geteuid():
    return f'{folder} belongs to another user'
  if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
    return f'other users can write {folder}'
  for parent in folder.parents:
    if _is_replaceable_below(parent):
      return f'other users can write {parent}'
  return ''


def _is_replaceable_below(folder: Path) -> bool:
  """Return whether other users can rename the files of this user in a folder."""
  status = folder.stat()
  if status.st_uid not in (0, os.geteuid()):
    return True
  if status.st_mode & stat.S_ISVTX:  # As that of /tmp.
    return False
  if status.st_mode & stat.S_IWOTH:
    return True
  return bool(status.st_mode & stat.S_IWGRP) and not _has_private_group(folder)


def _has_private_group(folder: Path) -> bool:
  """Return whether only the owner is in the group, which then has the owner's name on Linux."""
  try:
    return folder.group() == folder.owner()
  except KeyError:  # One of them has no name.
    return False


def _remove_incomplete(folder: Path) -> None:
  """Remove entries that were being written when a process was killed or a machine lost power.

  JAX writes the time of an entry last. An entry without it stops JAX from removing any other.
  """
  for entry in folder.glob(f'*{_ENTRY_SUFFIX}'):
    time_path = entry.with_name(entry.name.removesuffix(_ENTRY_SUFFIX) + _TIME_SUFFIX)
    with contextlib.suppress(FileNotFoundError):  # Another process has removed it.
      status = entry.stat()
      is_complete = status.st_size and time_path.exists()
      if not is_complete and time.time() - status.st_mtime > _MAX_WRITE_S:
        entry.unlink()
