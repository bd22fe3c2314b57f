"""Files: locks, outputs that cannot be written, and the announcement of large ones.

A locked file is locked for everyone else, until whoever locked it closes it or ends.
"""

import os
from pathlib import Path
import subprocess
import sys
import tempfile

import numpy as np
import pytest

from uadjax import errors
from uadjax.data import demo
from uadjax.errors import ConfigError
from uadjax.model import array_file, incremental_state
from uadjax.system import files, locks, logging

# Exits with status 0 if it can lock the file, and with 3 if another process has locked it.
LOCKING = (
  'import sys; from uadjax.system import locks\n'
  'with open(sys.argv[1], "r+b") as file: sys.exit(0 if locks.try_lock(file) else 3)'
)


def is_free(path):
  status = subprocess.run([sys.executable, '-c', LOCKING, path]).returncode
  assert status in (0, 3)
  return status == 0


def test_a_locked_file_is_refused_to_others_until_it_is_closed(tmp_path):
  path = tmp_path / 'table'
  path.write_bytes(b'a line\n')
  with path.open('r+b') as file, path.open('r+b') as second:
    assert locks.try_lock(file)
    assert locks.try_lock(file)  # As often as one likes.
    assert not locks.try_lock(second)  # In the same process, too.
    assert not is_free(path)
  assert is_free(path)


def test_locking_leaves_the_file_and_its_folder_as_they_are(tmp_path):
  path = tmp_path / 'table'
  path.write_bytes(b'a line\n')
  with path.open('a+b') as file:
    file.seek(2)
    assert locks.try_lock(file)
    assert file.tell() == 2
  assert path.read_bytes() == b'a line\n'
  assert [*tmp_path.iterdir()] == [path]


def test_a_process_that_inherits_a_lock_holds_it_until_it_ends(tmp_path):
  path = tmp_path / 'lock'
  waiting = [sys.executable, '-c', 'input()']
  with path.open('wb') as file:
    assert locks.try_lock(file)
    child = subprocess.Popen(waiting, stdin=subprocess.PIPE, pass_fds=(file.fileno(),))
  try:
    assert not is_free(path)
  finally:
    child.communicate(b'\n')
  assert is_free(path)


def test_the_first_staged_file_is_replaced_last(tmp_path, monkeypatch):
  names, replace = ('commits', 'second', 'third'), Path.replace

  def write(num_allowed):
    order = []

    def interrupted(path, target):
      if len(order) == num_allowed:
        raise KeyboardInterrupt
      order.append(target.name)
      return replace(path, target)

    monkeypatch.setattr(Path, 'replace', interrupted)
    with files.atomic_files() as stage:
      for name in names:
        stage(tmp_path / name, b'new')
    return order

  for num_allowed in range(len(names)):
    for name in names:
      (tmp_path / name).write_bytes(b'old')
    with pytest.raises(KeyboardInterrupt):
      write(num_allowed)
    assert (tmp_path / 'commits').read_bytes() == b'old'
    assert {path.name for path in tmp_path.iterdir()} == set(names)
  assert write(len(names)) == [*reversed(names)]
  assert all((tmp_path / name).read_bytes() == b'new' for name in names)


def test_an_exception_while_files_are_staged_replaces_none(tmp_path):
  for name in ('a', 'b'):
    (tmp_path / name).write_bytes(b'old')

  def fail():
    with files.atomic_files() as stage:
      stage(tmp_path / 'a', b'new')
      stage(tmp_path / 'b', b'new')
      raise OSError('No space left on device')

  with pytest.raises(OSError, match='No space'):
    fail()
  assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {'a': b'old', 'b': b'old'}


@pytest.mark.parametrize('path', ['', 'new', 'new/and/deeper'])
def test_a_folder_that_can_be_written_is_left_as_it_is(path, tmp_path):
  assert files.unwritable_reason(tmp_path / path) == ''
  assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize('path', ['file', 'file/below', 'file/far/below'])
def test_below_a_file_nothing_can_be_written(path, tmp_path, monkeypatch):
  (tmp_path / 'file').write_bytes(b'a line\n')
  assert files.unwritable_reason(tmp_path / path)
  assert [*tmp_path.iterdir()] == [tmp_path / 'file']
  monkeypatch.setenv('UADJAX_CACHE', str(tmp_path / path))
  with pytest.raises(ConfigError, match='UADJAX_CACHE'):
    files.require_writable_cache()


def test_only_large_files_are_announced(tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(logging.LOG, 'propagate', True)
  caplog.set_level('INFO', 'uadjax')
  files.announce_size('a model', tmp_path, files.ANNOUNCED_BYTES)
  assert not caplog.messages
  files.announce_size('a model', tmp_path / 'not' / 'yet', files.ANNOUNCED_BYTES + 1)
  (message,) = caplog.messages
  assert message.startswith('Writing a model: up to 0.2 GB, and ')


ARRAYS = {'values': np.zeros(9, np.float32)}
WRITERS = {
  'the model': lambda folder: array_file.save_arrays(folder, ARRAYS),
  'the state': lambda folder: incremental_state.save_state_arrays(folder, ARRAYS),
  'the demo dataset': lambda folder: demo.write_dataset(
    folder, train=1, test_good=0, test_defect=0, size=60, categories=('disc',)
  ),
}


@pytest.mark.parametrize('content', WRITERS)
def test_sizes_are_announced_before_anything_is_written(content, tmp_path, monkeypatch):
  announced = []

  def announce(text, folder, num_bytes):
    written = sum(path.stat().st_size for path in tmp_path.rglob('*.*'))
    announced.append((text, folder, num_bytes, written))

  monkeypatch.setattr(files, 'announce_size', announce)
  WRITERS[content](tmp_path)
  ((text, folder, num_bytes, written_before),) = announced
  assert text.startswith(content)
  assert (folder, written_before) == (tmp_path, 0)
  assert num_bytes >= 36


@pytest.fixture
def full_disk(monkeypatch):
  """Lets every temporary file be on a full disk."""
  if not Path('/dev/full').exists():
    pytest.skip('needs /dev/full')
  make = tempfile.mkstemp

  def mkstemp(**options):
    descriptor, name = make(**options)
    os.close(descriptor)
    Path(name).unlink()
    Path(name).symlink_to('/dev/full')
    return os.open(name, os.O_WRONLY), name

  monkeypatch.setattr(tempfile, 'mkstemp', mkstemp)


@pytest.mark.parametrize('content', ['short', 'long' * 100_000])
def test_a_full_disk_is_named_with_path_and_bytes(content, tmp_path, full_disk):
  path = tmp_path / 'a.json'
  path.write_text('old')
  with pytest.raises(OSError, match='No space left') as caught:
    files.write_text(path, content)
  message = errors.describe(caught.value)
  assert message.startswith(f'{path}: No space left on device (0 bytes were written, ')
  assert message.endswith(' are free)')
  assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {'a.json': 'old'}


def test_a_full_disk_is_named_for_a_folder_too(tmp_path, full_disk):
  def write():
    with files.atomic_directory(tmp_path / 'model') as new:
      (new / 'first').write_bytes(b'12345')
      Path('/dev/full').write_bytes(b'1')

  with pytest.raises(OSError, match='No space left') as caught:
    write()
  assert errors.describe(caught.value).startswith(
    f'{tmp_path / "model"}: No space left on device (5'
  )
  assert not [*tmp_path.iterdir()]


def test_other_errors_stay_as_they_are(tmp_path):
  def write():
    with files.atomic_write(tmp_path / 'a.json'):
      raise PermissionError(13, 'Permission denied', 'another')

  with pytest.raises(PermissionError) as caught:
    write()
  assert errors.describe(caught.value) == 'another: Permission denied'


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs pipes with names')
def test_only_files_are_replaced(tmp_path):
  """As root, a rename would put a file in the place of /dev/null."""
  os.mkfifo(tmp_path / 'pipe')
  (tmp_path / 'folder').mkdir()
  for name in ('pipe', 'folder'):
    with pytest.raises(OSError, match='a device, not a file') as caught:
      files.write_text(tmp_path / name, 'x')
    assert caught.value.filename == str(tmp_path / name)
  assert (tmp_path / 'pipe').is_fifo()
  assert len([*tmp_path.iterdir()]) == 2


def test_a_log_that_cannot_be_written_is_reported_once(capfd):
  if not Path('/dev/full').exists():
    pytest.skip('needs /dev/full')
  with logging.logging_to(Path('/dev/full')):
    logging.LOG.debug('a detail')
  stderr = capfd.readouterr().err
  assert stderr.startswith('/dev/full cannot be written: [Errno 28]')
  assert stderr.count('\n') == 1
