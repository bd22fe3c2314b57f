"""Files: locks, outputs that cannot be written, and the announcement of large ones.

A locked file is locked for everyone else, until whoever locked it closes it or ends.
"""

from pathlib import Path
import subprocess
import sys

import numpy as np
import pytest

from uadjax.data import demo
from uadjax.errors import ConfigError
from uadjax.model import array_file, incremental_state
from uadjax.system import files, logging

# Exits with status 0 if it can lock the file, and with 3 if another process has locked it.
LOCKING = (
  'import sys; from uadjax.system import files\n'
  'with open(sys.argv[1], "r+b") as file: sys.exit(0 if files.try_lock(file) else 3)'
)


def is_free(path):
  status = subprocess.run([sys.executable, '-c', LOCKING, path]).returncode
  assert status in (0, 3)
  return status == 0


def test_a_locked_file_is_refused_to_others_until_it_is_closed(tmp_path):
  path = tmp_path / 'table'
  path.write_bytes(b'a line\n')
  with path.open('r+b') as file, path.open('r+b') as second:
    assert files.try_lock(file)
    assert files.try_lock(file)  # As often as one likes.
    assert not files.try_lock(second)  # In the same process, too.
    assert not is_free(path)
  assert is_free(path)


def test_locking_leaves_the_file_and_its_folder_as_they_are(tmp_path):
  path = tmp_path / 'table'
  path.write_bytes(b'a line\n')
  with path.open('a+b') as file:
    file.seek(2)
    assert files.try_lock(file)
    assert file.tell() == 2
  assert path.read_bytes() == b'a line\n'
  assert [*tmp_path.iterdir()] == [path]


def test_a_process_that_inherits_a_lock_holds_it_until_it_ends(tmp_path):
  path = tmp_path / 'lock'
  waiting = [sys.executable, '-c', 'input()']
  with path.open('wb') as file:
    assert files.try_lock(file)
    child = subprocess.Popen(waiting, stdin=subprocess.PIPE, pass_fds=(file.fileno(),))
  try:
    assert not is_free(path)
  finally:
    child.communicate(b'\n')
  assert is_free(path)


def test_staged_files_are_replaced_together_the_first_at_last(tmp_path, monkeypatch):
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


def test_what_fails_while_files_are_staged_replaces_none(tmp_path):
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
