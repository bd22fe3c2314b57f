"""The cache of compiled programs: private, bounded, for commands only, never a reason to fail."""

import ast
import hashlib
import json
import os
from pathlib import Path
import subprocess
import sys
import time

import jax
from jax.experimental.compilation_cache import compilation_cache as jax_cache
import numpy as np
import pytest

from uadjax import cli, create_model, main
from uadjax.system import compilation_cache, logging

FOLDER, ENABLED = 'JAX_COMPILATION_CACHE_DIR', 'JAX_ENABLE_COMPILATION_CACHE'
MAX_SIZE = 'JAX_COMPILATION_CACHE_MAX_SIZE'
MIN_SECONDS = 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'
MIN_BYTES = 'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'
PACKAGE = Path(compilation_cache.__file__).parent.parent


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
  """The cache of a user who has set none of JAX's variables; it does not exist yet."""
  monkeypatch.setenv('UADJAX_CACHE', str(tmp_path / 'uadjax'))
  for name in (FOLDER, ENABLED, MAX_SIZE, MIN_SECONDS):
    monkeypatch.setenv(name, '')  # So that it is restored, whoever sets it.
    monkeypatch.delenv(name)
  monkeypatch.setattr(compilation_cache, '_describe_processor', lambda: '')
  name = hashlib.sha256(b'').hexdigest()[:16]
  return tmp_path.resolve() / 'uadjax' / 'compiled' / name


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
  """The warnings that a user sees."""
  messages = []
  monkeypatch.setattr(
    logging.LOG, 'warning', lambda message, *args: messages.append(message % args)
  )
  return messages


@pytest.fixture
def used(folder, monkeypatch):
  """The cache, used by JAX in this process from now on, for programs of any size."""
  monkeypatch.setenv(MIN_SECONDS, '0')
  monkeypatch.setenv(MAX_SIZE, '200000')
  compilation_cache.enable()
  kinds = {FOLDER: str, MAX_SIZE: int, MIN_SECONDS: float, MIN_BYTES: int}
  values = {name.lower(): kind(os.environ[name]) for name, kind in kinds.items()}
  previous_values = {name: getattr(jax.config, name) for name in values}

  def use(values):
    for name, value in values.items():
      jax.config.update(name, value)
    jax_cache.reset_cache()
    jax.clear_caches()

  use(values)
  yield folder
  use(previous_values)


def entries(folder: Path) -> list[Path]:
  return sorted(folder.glob('*-cache'))


def test_each_type_of_processor_has_its_own_folder(tmp_path, monkeypatch):
  monkeypatch.setenv('UADJAX_CACHE', str(tmp_path))
  monkeypatch.setenv(FOLDER, '')
  folders = []
  for features in ('avx2', 'avx512', 'avx2'):
    monkeypatch.delenv(FOLDER)
    monkeypatch.setattr(compilation_cache, '_describe_processor', lambda text=features: text)
    compilation_cache.enable()
    folders.append(os.environ[FOLDER])
  assert folders[0] == folders[2] != folders[1]


def test_only_the_user_can_read_and_write_it_whatever_the_umask(folder, warnings):
  folder.parent.parent.mkdir(mode=0o700)
  previous = os.umask(0)
  try:
    compilation_cache.enable()
  finally:
    os.umask(previous)
  assert os.environ[FOLDER] == str(folder)
  assert {path.stat().st_mode & 0o777 for path in (folder, folder.parent)} == {0o700}
  assert int(os.environ[MAX_SIZE]) <= 10**9
  assert not warnings


def test_variables_of_jax_take_precedence(folder, monkeypatch):
  for name, value in ((ENABLED, 'false'), (ENABLED, '0'), (FOLDER, 'elsewhere')):
    with monkeypatch.context() as patch:
      patch.setenv(name, value)
      compilation_cache.enable()
      assert os.environ.get(FOLDER) == (value if name == FOLDER else None)
      assert not folder.exists()
  monkeypatch.setenv(MAX_SIZE, '5')
  compilation_cache.enable()
  assert (os.environ[FOLDER], os.environ[MAX_SIZE]) == (str(folder), '5')


def test_a_folder_that_others_can_write_or_replace_is_refused(folder, warnings, monkeypatch):
  def is_refused(path: Path) -> bool:
    warnings.clear()
    compilation_cache.enable()
    if FOLDER in os.environ:
      del os.environ[FOLDER]
      assert not warnings
      return False
    (warning,) = warnings
    assert str(path) in warning
    assert FOLDER in warning
    assert ENABLED in warning
    return True

  folder.mkdir(parents=True)
  for mode, is_unsafe in ((0o700, False), (0o755, False), (0o770, True), (0o707, True)):
    folder.chmod(mode)
    assert is_refused(folder) == is_unsafe, mode
  folder.chmod(0o700)
  for mode, is_unsafe in ((0o777, True), (0o1777, False), (0o755, False)):
    folder.parent.chmod(mode)
    assert is_refused(folder.parent) == is_unsafe, mode
  folder.parent.chmod(0o775)
  for group, is_unsafe in ((Path.owner, False), (lambda path: 'staff', True)):
    monkeypatch.setattr(Path, 'group', group)
    assert is_refused(folder.parent) == is_unsafe
  folder.parent.chmod(0o700)
  monkeypatch.setattr(os, 'geteuid', lambda: folder.stat().st_uid + 1)
  assert is_refused(folder)


def test_a_link_leads_to_a_folder_that_is_checked(folder, tmp_path, warnings):
  target = tmp_path / 'of all' / 'compiled'
  target.mkdir(parents=True)
  folder.parent.mkdir(parents=True)
  folder.symlink_to(target)
  compilation_cache.enable()
  assert os.environ.pop(FOLDER) == str(target)
  target.parent.chmod(0o777)
  compilation_cache.enable()
  assert FOLDER not in os.environ
  assert str(target.parent) in warnings[0]


def test_without_a_folder_there_is_no_cache_and_no_complaint(folder, warnings, monkeypatch):
  folder.parent.parent.write_text('a file where the folder should be')
  compilation_cache.enable()
  assert FOLDER not in os.environ

  def fail(path):
    raise RuntimeError('Could not determine home directory.')

  monkeypatch.setattr(Path, 'expanduser', fail)
  compilation_cache.enable()
  assert FOLDER not in os.environ
  assert not warnings


def test_incomplete_entries_are_removed(folder):
  folder.mkdir(mode=0o700, parents=True)
  now = time.time()
  cases = {  # Bytes, whether the time was written, age in seconds -> whether it stays.
    'complete': (b'program', True, 3600, True),
    'killed': (b'prog', False, 3600, False),
    'power_cut': (b'', True, 3600, False),
    'being_written': (b'prog', False, 1, True),
  }
  for name, (content, has_time, age, _) in cases.items():
    entry = folder / f'jit_{name}-0f-cache'
    entry.write_bytes(content)
    os.utime(entry, (now - age, now - age))
    if has_time:
      (folder / f'jit_{name}-0f-atime').write_bytes(bytes(8))
  compilation_cache.enable()
  expected = [f'jit_{name}-0f-cache' for name, case in cases.items() if case[-1]]
  assert [path.name for path in entries(folder)] == sorted(expected)


def test_scores_are_the_same_cold_warm_and_from_damaged_entries(used, directory):
  image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)

  def score() -> bytes:
    (result,) = create_model(model_dir=directory, device='cpu:0').predict(image)
    return np.float64(result['score']).tobytes() + result['anomaly_map'].tobytes()

  def last_use() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in used.glob('jit_score*-atime')}

  cold, first_use = score(), last_use()
  assert first_use
  assert score() == cold
  assert last_use() != first_use  # JAX has read the program.
  for damage in (lambda data: data[: len(data) // 2], lambda data: b'', lambda data: b'x' + data):
    for entry in entries(used):
      entry.write_bytes(damage(entry.read_bytes()))
    assert score() == cold


def test_the_cache_stays_within_its_size(used):
  limit, names = 20_000, set()
  jax.config.update('jax_compilation_cache_max_size', limit)
  jax_cache.reset_cache()
  for power in range(2, 16):
    jax.jit(lambda x, power=power: sum(x**i for i in range(power)))(np.float32(2))
    assert 0 < sum(path.stat().st_size for path in entries(used)) <= limit
    names |= {path.name for path in entries(used)}
  assert len(names) > len(entries(used))  # Some were removed.


def test_commands_enable_it_and_nothing_else_does(folder, capsys):
  assert cli.main(['--help']) == 0
  assert not folder.exists()
  for command, arguments in ((cli.main, ['config', 'seed']), (main.main, ['--config=missing'])):
    command(arguments)
    assert os.environ.pop(FOLDER) == str(folder)
  callers = {
    str(path.relative_to(PACKAGE))
    for path in PACKAGE.rglob('*.py')
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Attribute) and ast.unparse(node) == 'compilation_cache.enable'
  }
  assert callers == {'main.py', 'cli/commands.py'}


@pytest.mark.slow
def test_several_commands_at_once_share_an_empty_cache(folder, directory, drawn):
  image = drawn / 'disc' / 'test' / 'good' / '000.png'
  words = ['-m', 'uadjax', 'predict', directory, image, '--json', '--no-save', '--quiet']

  def start():
    command = [sys.executable, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

  processes = [start() for _ in range(4)]
  outputs = [process.communicate() for process in processes]
  outputs.append(start().communicate())  # From a full cache.
  assert json.loads(outputs[0][0])['label']
  assert outputs == [(outputs[0][0], b'')] * 5
  (used,) = folder.parent.iterdir()  # That of this processor.
  assert entries(used)
