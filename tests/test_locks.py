"""The lock of a folder: one holder at a time, whatever becomes of it."""

import errno
import os
import subprocess
import sys
import threading
import time

import filelock
import pytest

from uadjax.system import locks, logging

HOLD = """
import pathlib, sys, time
from uadjax.system import locks
with locks.lock_folder(pathlib.Path(sys.argv[1])):
  print('held', flush=True)
  time.sleep(60)
"""


def test_one_thread_holds_a_lock_at_a_time(tmp_path):
  holders, most = [], []

  def hold():
    for _ in range(5):
      with locks.lock_folder(tmp_path):
        holders.append(None)
        time.sleep(0.001)
        most.append(len(holders))
        holders.pop()

  threads = [threading.Thread(target=hold) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert most == [1] * 20
  assert not [*tmp_path.iterdir()]


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path, monkeypatch):
  waits = threading.Event()
  monkeypatch.setattr(logging.LOG, 'info', lambda *args: waits.set())
  held = threading.Event()

  def hold():
    with locks.lock_folder(tmp_path):
      held.set()

  command = [sys.executable, '-c', HOLD, str(tmp_path)]
  process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
  thread = threading.Thread(target=hold)
  try:
    assert process.stdout is not None
    assert process.stdout.readline() == 'held\n'
    thread.start()
    assert waits.wait(60)  # It says that it waits.
    assert not held.is_set()
  finally:
    process.kill()
    process.communicate()
  thread.join(60)
  assert held.is_set()
  assert not [*tmp_path.iterdir()]


def test_a_lock_is_free_after_an_error(tmp_path):
  for _ in range(2):
    with pytest.raises(KeyError), locks.lock_folder(tmp_path):
      raise KeyError
  assert not [*tmp_path.iterdir()]


def test_a_held_lock_is_refused_with_its_holder(tmp_path):
  with locks.lock_folder(tmp_path, 'a', wait=False):
    with pytest.raises(locks.FolderLocked, match=f'process {os.getpid()} on '):
      locks.lock_folder(tmp_path, 'a', wait=False).__enter__()
    with locks.lock_folder(tmp_path, 'b', wait=False):  # Locks of other names are independent.
      assert sorted(path.name for path in tmp_path.iterdir()) == ['a', 'b']
  with locks.lock_folder(tmp_path, 'a', wait=False):
    pass
  assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize('number', [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_of_the_file_system_everyone_goes_on(number, tmp_path, monkeypatch):
  monkeypatch.setattr(filelock, 'lock_descriptor', without_locks(number))
  for wait in (True, False):
    with locks.lock_folder(tmp_path, wait=wait), locks.lock_folder(tmp_path, wait=wait):
      assert len([*tmp_path.iterdir()]) == 1
    assert not [*tmp_path.iterdir()]
  with (tmp_path / 'file').open('w') as file:
    assert locks.try_lock(file)
    assert not locks.try_lock(file, without_locks=False)


def test_other_errors_of_locks_are_raised(tmp_path, monkeypatch):
  monkeypatch.setattr(filelock, 'lock_descriptor', without_locks(errno.EIO))
  with pytest.raises(OSError, match='EIO'):
    locks.lock_folder(tmp_path).__enter__()


def without_locks(number):
  def fail(*args, **options):
    raise OSError(number, errno.errorcode[number])

  return fail
