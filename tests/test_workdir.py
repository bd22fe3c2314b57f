"""The lock of a work directory, and what a killed run leaves in it."""

import contextlib
import errno
import os
from pathlib import Path
import shutil
import subprocess
import sys
import tempfile

import filelock
import pytest
import small_runs

import uadjax
from uadjax import config as configs
from uadjax.errors import ConfigError
from uadjax.system import files
from uadjax.training import settings, workdir as workdirs

CONFIG = settings.load('padim')


def refused(workdir):
  """The message with which a second run is refused; the first changes nothing meanwhile."""
  before = small_runs.contents(workdir)
  with pytest.raises(workdirs.WorkdirLocked) as caught:
    workdirs.lock(workdir, CONFIG).__enter__()
  assert small_runs.contents(workdir) == before
  assert (caught.value.key, caught.value.value) == ('workdir', workdir)
  return str(caught.value)


def test_one_run_at_a_time(tmp_path):
  workdir = tmp_path / 'new' / 'run'
  with workdirs.lock(workdir, CONFIG):
    message = refused(workdir)
    assert f'{workdir} is in use by another run: process {os.getpid()} on ' in message
    (workdir / 'train.log').touch()
  with workdirs.lock(workdir, CONFIG):
    refused(workdir)
  assert [*workdir.iterdir()] == [workdir / 'train.log']


@pytest.mark.parametrize('existing', ['', 'new', 'new/run'])
def test_a_run_that_writes_nothing_leaves_nothing(existing, tmp_path):
  (tmp_path / existing).mkdir(parents=True, exist_ok=True)
  before = {*tmp_path.rglob('*')}
  for error in (None, KeyError):
    with contextlib.suppress(KeyError), workdirs.lock(tmp_path / 'new' / 'run', CONFIG):
      if error:
        raise error
  assert {*tmp_path.rglob('*')} == before


@pytest.mark.parametrize('path', ['file', 'file/run'])
def test_a_work_directory_below_a_file_is_refused(path, tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(ConfigError, match='Cannot write to') as caught:
    workdirs.lock(tmp_path / path, CONFIG).__enter__()
  assert caught.value.key == 'workdir'


@pytest.mark.parametrize('mode', ['train', 'evaluate', 'predict', 'check_dataset', 'export'])
def test_every_mode_is_refused_while_another_run_goes_on(mode, trained, drawn, capfd, tmp_path):
  workdir = shutil.copytree(trained('padim'), tmp_path / 'run')
  words = (*small_runs.flags('padim', drawn), f'--workdir={workdir}', f'--config.mode={mode}')
  more = f'--config.predict.input={drawn}', '--config.fit.overwrite=true'
  capfd.readouterr()  # What the fit has printed.
  with workdirs.lock(workdir, CONFIG):
    before = small_runs.contents(workdir)
    assert small_runs.run(*words, *more) == 2
    assert small_runs.contents(workdir) == before
  message = capfd.readouterr().err
  assert message.count('\n') == 1
  assert f'process {os.getpid()} on ' in message
  assert message.endswith('or use another --workdir.\n')


def test_a_fit_from_python_is_refused_while_another_goes_on(drawn, tmp_path):
  with workdirs.lock(tmp_path / 'run', CONFIG):
    with pytest.raises(ConfigError) as caught:
      uadjax.fit_model(drawn / 'disc', workdir=tmp_path / 'run')
    assert caught.value.key == 'workdir'
    assert [path.name for path in (tmp_path / 'run').iterdir()] == ['.run.lock']


def test_a_group_leaves_out_a_category_in_use(drawn, capfd, tmp_path):
  words = (*small_runs.flags('padim', drawn, 'all'), f'--workdir={tmp_path}')
  with workdirs.lock(tmp_path / 'disc', CONFIG):
    assert small_runs.run(*words) == 1
    assert [path.name for path in (tmp_path / 'disc').iterdir()] == ['.run.lock']
  assert f'{tmp_path / "disc"} is in use' in small_runs.result(tmp_path)['err_msg']


def test_a_run_stopped_between_its_model_and_its_evaluation_is_not_called_finished(tmp_path):
  (tmp_path / 'model').mkdir()
  with pytest.raises(ConfigError, match=r'did not finish\. Start over .*`uadjax report .*/model'):
    workdirs.require_no_conflict(tmp_path, CONFIG)
  workdirs.write_result(tmp_path, 'train', {})
  with pytest.raises(ConfigError, match='holds a finished run'):
    workdirs.require_no_conflict(tmp_path, CONFIG)


def test_predictions_into_a_table_share_a_work_directory(tmp_path):
  values = {'mode': 'predict', 'predict.table': str(tmp_path / 'table')}
  config = configs.replace(CONFIG, values)
  with workdirs.lock(tmp_path, config), workdirs.lock(tmp_path, config):
    pass


KILLED = """
import os, pathlib, sys
from uadjax.system import files
folder = pathlib.Path(sys.argv[1])
replace = pathlib.Path.replace

def replace_until_new(path, target):
  if path.name == 'new' and sys.argv[2] == 'between':
    os._exit(9)
  return replace(path, target)

pathlib.Path.replace = replace_until_new
with files.atomic_directory(folder / 'model') as new, files.atomic_write(folder / 'a.json') as file:
  (new / 'arrays').write_text('new')
  file.write(b'{')
  file.flush()
  if sys.argv[2] == 'amid':
    os._exit(9)
"""


@pytest.mark.parametrize('moment', ['amid', 'between'])
def test_the_next_run_removes_leftovers_of_a_killed_one(moment, tmp_path):
  """Also when it was killed between the two steps by which a folder is replaced."""
  (tmp_path / 'model').mkdir()
  for path in ('model/arrays', 'a.json', '.htaccess', '.model.backup'):
    (tmp_path / path).write_text('old')
  command = [sys.executable, '-c', KILLED, str(tmp_path), moment]
  assert subprocess.run(command).returncode == 9
  assert [path for path in tmp_path.iterdir() if path.name.startswith('.uadjax-')]
  with workdirs.lock(tmp_path, CONFIG):
    pass
  contents = small_runs.contents(tmp_path)
  assert {*contents} == {Path(p) for p in ('model/arrays', 'a.json', '.htaccess', '.model.backup')}
  new_json = b'{' if moment == 'between' else b'old'
  assert contents.pop(Path('a.json')) == new_json
  assert {*contents.values()} == {b'old'}


def test_files_that_a_process_writes_are_no_leftovers(tmp_path):
  """A prediction or a report takes no lock of the work directory in which it writes."""
  with (
    files.atomic_directory(tmp_path / 'model') as new,
    files.atomic_write(tmp_path / 'a.json') as file,
  ):
    with workdirs.lock(tmp_path, CONFIG):
      pass
    (new / 'arrays').touch()
    file.write(b'{}')
  assert {*small_runs.contents(tmp_path)} == {Path('model/arrays'), Path('a.json')}


def test_a_temporary_file_removed_before_it_is_locked_is_created_again(tmp_path, monkeypatch):
  make, temporary_files = tempfile.mkstemp, []

  def make_and_lose(**options):
    temporary_files.append(make(**options))
    if len(temporary_files) < 3:
      files.remove_leftovers(tmp_path)
    return temporary_files[-1]

  monkeypatch.setattr(tempfile, 'mkstemp', make_and_lose)
  files.write_text(tmp_path / 'a.json', 'new')
  assert len(temporary_files) == 3
  assert small_runs.contents(tmp_path) == {Path('a.json'): b'new'}


def test_without_file_locks_runs_continue_and_leftovers_stay(tmp_path, monkeypatch):
  def fail(*args, **options):
    raise OSError(errno.ENOLCK, 'No locks available')

  monkeypatch.setattr(filelock, 'lock_descriptor', fail)
  with (
    files.atomic_write(tmp_path / 'a.json') as file,
    workdirs.lock(tmp_path, CONFIG),
    workdirs.lock(tmp_path, CONFIG),
  ):
    file.write(b'{}')
  assert small_runs.contents(tmp_path) == {Path('a.json'): b'{}'}
