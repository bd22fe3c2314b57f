"""Every image is judged once, by any number of processes, however often they are cut off."""

import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time
from typing import Any

import hypothesis
from hypothesis import strategies as st
from PIL import Image
from pyarrow import dataset
import pytest

from uadjax import cli, main
from uadjax.distributed import processes
from uadjax.errors import ConfigError, DataError, UnknownName
from uadjax.inference import score_table, table_shards
from uadjax.system import files
from uadjax.system.progress import no_progress


@pytest.fixture(scope='module')
def listed(drawn, tmp_path_factory):
  """A list of eleven images, one of them unreadable, another listed twice."""
  folder = tmp_path_factory.mktemp('listed')
  image_paths = sorted((drawn / 'disc').rglob('*good/*.png'))[:10]
  for number, path in enumerate(image_paths):
    Image.open(path).save(folder / f'{number}.png')
  (folder / 'broken.png').write_bytes(b'no image')
  names = [f'{number}.png' for number in range(10)]
  (folder / 'list.txt').write_text('\n'.join([*names, '', 'broken.png', names[3]]) + '\n')
  return folder / 'list.txt'


@pytest.fixture(scope='module')
def expected(model, listed):
  """Verdicts or errors of the listed images by path."""
  verdicts = {}
  for result in model.predict(listed, 2):
    verdicts[result.input_path] = result.error or (result.score, result.label)
  assert len(verdicts) == 11
  return verdicts


def from_csv(row: dict[str, str]) -> dict[str, Any]:
  """The values that the cells of a row stand for."""
  texts = ('path', 'label', 'warnings', 'error')
  return {
    key: None if not text and key != 'warnings' else text if key in texts else json.loads(text)
    for key, text in row.items()
  }


def rows(folder):
  tables = [row for path in folder.glob('part-*.csv') for row in files.read_csv(path)]
  if tables:
    return [from_csv(row) for row in tables]
  lines = [line for path in folder.glob('part-*.jsonl') for line in path.read_text().splitlines()]
  if lines or not any(folder.glob('part-*')):
    return [json.loads(line) for line in lines]
  return dataset.dataset(folder).to_table().to_pylist()  # As readers of whole folders see it.


def read_verdicts(folder):
  table_rows = rows(folder)
  by_path = {row['path']: row['error'] or (row['score'], row['label']) for row in table_rows}
  assert len(by_path) == len(table_rows)  # Each once.
  return by_path


def cut_off(after):
  """Shows no progress, and stops the run after so many images."""

  def track(items, total, what):
    for number, item in enumerate(items):
      if number == after:
        raise KeyboardInterrupt
      yield item

  return track


@pytest.mark.parametrize('form', table_shards.FORMATS)
@pytest.mark.parametrize('count', [1, 3, 13])
def test_parts_together_tell_of_every_image_once(form, count, model, listed, expected, tmp_path):
  for index in reversed(range(count)):
    score_table.score_images(
      model, listed, score_table.Table(tmp_path, form, (index, count)), 2, no_progress
    )
  assert read_verdicts(tmp_path) == expected
  assert all(path.stat().st_size for path in tmp_path.glob('part-*'))
  assert len(list(tmp_path.glob(f'part-*.{form}'))) in range(1, count + 1)


@hypothesis.settings(max_examples=6)
@hypothesis.given(
  st.lists(st.tuples(st.integers(1, 4), st.integers(0, 4)), max_size=4), st.sampled_from('pj')
)
def test_cut_off_runs_go_on_with_any_number_of_processes(
  tmp_path_factory, model, listed, expected, attempts, kind
):
  folder, form = tmp_path_factory.mktemp('table'), {'p': 'parquet', 'j': 'jsonl'}[kind]
  judged = 0
  for count, after in attempts:
    for index in range(count):
      table = score_table.Table(folder, form, (index, count))
      try:
        judged += score_table.score_images(model, listed, table, 2, cut_off(after)).counts.total()
      except KeyboardInterrupt:
        judged += after
        part = folder / f'_part-{index:05d}-of-{count:05d}.jsonl'
        with part.open('a') as file:  # Killed within a line.
          file.write('{"path": "torn')
  last = score_table.score_images(
    model, listed, score_table.Table(folder, form, (0, 1)), 2, no_progress
  )
  assert judged + last.counts.total() == 11
  assert read_verdicts(folder) == expected
  assert not list(folder.glob('_part-*'))


def test_further_images_come_into_a_part_of_their_own(model, listed, tmp_path):
  few = sorted(listed.parent.glob('*.png'))[:4]
  table = score_table.Table(tmp_path, 'parquet', (0, 1))
  score_table.score_images(model, few[:2], table, 2, no_progress)
  more = score_table.score_images(model, few, table, 2, no_progress)
  assert (more.counts.total(), more.previous_counts.total()) == (2, 2)
  names = sorted(path.name for path in tmp_path.glob('part-*'))
  assert names == ['part-00000-of-00001.2.parquet', 'part-00000-of-00001.parquet']
  assert len(read_verdicts(tmp_path)) == 4


@pytest.mark.parametrize('form', table_shards.FORMATS)
def test_rows_tell_what_results_do(form, model, listed, tmp_path):
  path = listed.parent / '3.png'
  score_table.score_images(model, path, score_table.Table(tmp_path, form, (0, 1)), 1, no_progress)
  (row,), (result,) = rows(tmp_path), model.predict(path)
  summary = result.summary()
  assert [row['height'], row['width']] == summary['size']
  for key in ('score', 'label', 'marked_pixels', 'peak', 'at'):
    assert row[key] == summary[key], key
  assert row['regions'] == json.loads(json.dumps(summary['regions']))
  assert row['warnings'] == ''
  assert row['error'] is None


def test_rows_have_the_codes_of_warnings(model, tmp_path):
  Image.new('RGB', (9, 9)).save(tmp_path / 'black.png')
  for form in table_shards.FORMATS:
    table = score_table.Table(tmp_path / form, form, (0, 1))
    summary = score_table.score_images(model, tmp_path / 'black.png', table, 1, no_progress)
    (row,) = rows(tmp_path / form)
    assert row['warnings'] == 'no_content other_size'
    assert row['label'] != 'OK'
    assert dict(summary.counts) == {row['label']: 1}


def test_names_that_are_formulas_are_quoted_and_recognized(model, listed, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  name = '=1+1.png'
  Path(name).write_bytes((listed.parent / '1.png').read_bytes())
  table = score_table.Table(Path('table'), 'csv', (0, 1))
  score_table.score_images(model, Path(name), table, 1, no_progress)
  assert "\n'=1+1.png," in Path('table', 'part-00000-of-00001.csv').read_text()
  assert list(read_verdicts(Path('table'))) == [name]
  again = score_table.score_images(model, Path(name), table, 1, no_progress)
  assert (again.counts.total(), again.previous_counts.total()) == (0, 1)


def test_tables_are_not_mixed(model, listed, tmp_path):
  table = score_table.Table(tmp_path, 'jsonl', (0, 2))
  score_table.score_images(model, listed, table, 2, no_progress)
  with pytest.raises(ConfigError, match="format is 'jsonl', not 'parquet'"):
    score_table.score_images(model, listed, table._replace(format='parquet'), 2, no_progress)
  changed_model = model.model._replace(
    thresholds=model.model.thresholds._replace(image_threshold=1e9)
  )
  with pytest.raises(ConfigError, match=r'threshold is .*, not 1000000000\.0'):
    score_table.score_images(model._replace(model=changed_model), listed, table, 2, no_progress)
  with pytest.raises(UnknownName, match=r"'xlsx'.*parquet.*jsonl.*csv"):
    score_table.score_images(model, listed, table._replace(format='xlsx'), 2, no_progress)
  (tmp_path / '_table.json').unlink()
  with pytest.raises(ConfigError, match='which names their model'):
    score_table.score_images(model, listed, table, 2, no_progress)


def test_other_spellings_of_the_same_images_are_pointed_out(model, listed, tmp_path, caplog):
  table = score_table.Table(tmp_path / 'table', 'jsonl', (0, 1))
  score_table.score_images(model, listed.parent / '1.png', table, 2, no_progress)
  assert not caplog.records
  other = tmp_path / 'other'
  other.symlink_to(listed.parent)
  score_table.score_images(model, other / '1.png', table, 2, no_progress)
  assert 'None of these images are in' in caplog.text


def test_a_file_is_no_table(model, listed):
  with pytest.raises(ConfigError, match=r'list\.txt cannot be a folder'):
    score_table.score_images(
      model, listed, score_table.Table(listed, 'jsonl', (0, 1)), 2, no_progress
    )


def test_a_part_has_one_process(model, listed, tmp_path):
  table = score_table.Table(tmp_path, 'jsonl', (0, 1))

  def meddle(items, total, what):
    for item in items:
      with pytest.raises(ConfigError, match='Another process is writing shard 0/1'):
        score_table.score_images(model, listed, table, 2, no_progress)
      yield item

  assert score_table.score_images(model, listed, table, 2, meddle).counts.total() == 11
  assert len(read_verdicts(tmp_path)) == 11


def test_damaged_parts_are_named(model, listed, tmp_path):
  table = score_table.Table(tmp_path, 'jsonl', (0, 1))
  score_table.score_images(model, listed, table, 2, no_progress)
  (tmp_path / 'part-00000-of-00001.jsonl').write_text('{}\n')
  with pytest.raises(DataError, match=r'00001\.jsonl is not a valid shard'):
    score_table.score_images(model, listed, table, 2, no_progress)


def test_an_absent_input_leaves_no_table(model, tmp_path):
  with pytest.raises(DataError, match='nowhere'):
    score_table.score_images(
      model,
      tmp_path / 'nowhere',
      score_table.Table(tmp_path / 't', 'jsonl', (0, 1)),
      2,
      no_progress,
    )
  assert not list(tmp_path.iterdir())


def test_a_list_of_nothing_is_refused(model, tmp_path):
  (tmp_path / 'list.txt').write_text('\n\n')
  with pytest.raises(DataError, match=r'list\.txt lists no image'):
    list(model.predict(tmp_path / 'list.txt'))


@pytest.mark.parametrize(
  ('text', 'expected'), [('0/1', (0, 1)), ('3/4', (3, 4)), ('auto', (0, 1)), ('10/200', (10, 200))]
)
def test_shares_are_read(text, expected):
  assert processes.resolve_shard(text) == expected


def test_asking_for_a_share_takes_no_device():
  code = (
    'from uadjax.distributed import processes; from jax._src import xla_bridge; '
    "print(processes.resolve_shard('auto'), xla_bridge.backends_are_initialized())"
  )
  run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert run.stdout.strip() == '(0, 1) False'


@pytest.mark.parametrize('text', ['', '1', '4/4', '-1/4', '1/4/2', 'a/b', '0/0'])
def test_wrong_shares_are_refused(text):
  with pytest.raises(ConfigError, match='got ' + repr(text)):
    processes.resolve_shard(text)


@pytest.mark.parametrize(
  'names',
  [
    ('SLURM_PROCID', 'SLURM_STEP_NUM_TASKS', 'SLURM_LOCALID'),
    ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
  ],
)
def test_launchers_tell_shares(names, monkeypatch):
  for name, value in zip(names, '250', strict=True):
    monkeypatch.setenv(name, value)
  assert processes.resolve_shard('auto') == (2, 5)


def test_the_command_and_the_mode_leave_the_same_table(
  directory, listed, expected, tmp_path, capsys
):
  table = tmp_path / 'command'
  words = ['predict', directory, listed, '--table', table, '--batch-size', '2', '--json']
  assert cli.main([*map(str, words)]) == 1  # One image is broken.
  summary = json.loads(capsys.readouterr().out)
  assert (summary['shard'], summary['scored_before'], summary['scored']['unreadable']) == (
    [0, 1],
    {},
    1,
  )
  assert read_verdicts(table) == expected
  assert cli.main([*map(str, words)]) == 1  # It is still broken.
  summary = json.loads(capsys.readouterr().out)
  assert (summary['scored'], summary['scored_before']['unreadable']) == ({}, 1)
  flags = {
    'mode': 'predict', 'predict.model_dir': directory, 'predict.input': listed,
    'predict.table': tmp_path / 'mode', 'predict.batch_size': 2, 'predict.shard': '0/1',
  }  # fmt: skip
  words = [f'--config.{key}={value}' for key, value in flags.items()]
  assert main.main(['--config=padim', f'--workdir={tmp_path / "run"}', *words]) == 1
  assert read_verdicts(tmp_path / 'mode') == expected


@pytest.mark.parametrize('words', [['--shard=0/2'], ['--format=jsonl'], ['--table=t', '--no-save']])
def test_options_that_mean_nothing_are_refused(words, directory, listed, capsys):
  assert cli.main(['predict', str(directory), str(listed), *words]) == 2
  assert '--table' in capsys.readouterr().err


@pytest.mark.slow
def test_killed_processes_lose_nothing_that_they_wrote(directory, listed, expected, tmp_path):
  """Four are killed within their work, three go on; the images are many links to few."""
  many = tmp_path / 'many'
  many.mkdir()
  for number in range(2000):
    (many / f'{number:04d}.png').symlink_to(listed.parent / f'{number % 10}.png')
  table = tmp_path / 'table'

  def start(count):
    words = [sys.executable, '-m', 'uadjax', 'predict', str(directory), str(many)]
    words += ['--table', str(table), '--batch-size', '2']
    environment = {**os.environ, 'JAX_NUM_CPU_DEVICES': '1'}
    return [
      subprocess.Popen([*words, '--shard', f'{index}/{count}'], env=environment)
      for index in range(count)
    ]

  processes = start(4)
  end = time.monotonic() + 120
  while sum(path.stat().st_size > 5000 for path in table.glob('_part-*')) < 4:
    assert time.monotonic() < end
    time.sleep(0.05)
  for process in processes:
    process.send_signal(signal.SIGKILL)
    process.wait()
  written = sum(path.read_bytes().count(b'\n') for path in table.glob('_part-*'))
  assert 0 < written < 2000
  for process in start(3):
    assert process.wait() == 0
  verdicts = read_verdicts(table)
  assert len(verdicts) == 2000
  for path, verdict in verdicts.items():
    number = int(path[-8:-4]) % 10
    assert verdict == expected[str(listed.parent / f'{number}.png')]
