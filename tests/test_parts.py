"""Verdicts on parts: the worst of a part's images, whatever their order and batches."""

import itertools
import json
from pathlib import Path
import shutil
import time

import hypothesis
from hypothesis import strategies as st
import pytest
import small_runs
from starlette import testclient

from uadjax import cli, main
from uadjax.errors import ConfigError
from uadjax.inference import parts, score_table
from uadjax.serve import app as apps, settings as options
from uadjax.system import files
from uadjax.system.progress import no_progress

PATTERN = r'(?P<part>.+)_cam\d+'
SEVERITY = {'OK': 0, 'review': 1, 'unreadable': 2, 'NG': 3}
ROUTE = '/image-anomaly-detection'

labels = st.sampled_from(list(SEVERITY))


@pytest.fixture(scope='module')
def folder(drawn, tmp_path_factory):
  """Nine images of three parts from three cameras each."""
  folder = tmp_path_factory.mktemp('cameras')
  for i, path in enumerate(sorted((drawn / 'disc' / 'test').rglob('*.png'))[:9]):
    shutil.copy(path, folder / f'part {i // 3}_cam{i % 3}.png')
  return folder


@pytest.fixture(scope='module')
def verdicts(model, folder):
  """The worst label of each part, one image at a time."""
  labels_by_part = {}
  for result in model.predict(folder):
    labels_by_part.setdefault(Path(result.input_path).stem.partition('_')[0], []).append(
      result.label
    )
  assert len(labels_by_part) == 3
  return {part: max(labels, key=SEVERITY.get) for part, labels in labels_by_part.items()}


@hypothesis.given(st.lists(st.tuples(st.sampled_from('abc'), labels), max_size=12), st.randoms())
def test_the_verdict_is_the_maximum_in_any_order(images, random):
  expected = {
    part: max((label for p, label in images if p == part), key=SEVERITY.get)
    for part in sorted({part for part, _ in images})
  }
  for _ in range(2):
    verdicts = parts.PartVerdicts()
    for part, label in images:
      verdicts.add(part, label)
    assert list(verdicts.labels.items()) == list(expected.items())
    assert verdicts.counts.total() == len(expected)
    assert sum(row['images'] for row in verdicts.rows()) == len(images)
    random.shuffle(images)


@pytest.mark.parametrize(
  ('name', 'pattern', 'part'),
  [
    ('a/b/x_cam1.png', PATTERN, 'x'),
    ('http://host/x.2_cam12.png?sig=1', PATTERN, 'x.2'),
    ('a/cam1/x.png', r'cam\d/(?P<part>[^/]+)', 'x'),
    ('a/x/cam1.png', r'(?P<part>.+)/cam\d', 'x'),
    ('/x_cam1.png', PATTERN, 'x'),
  ],
)
def test_the_pattern_matches_the_end_of_the_path(name, pattern, part):
  assert parts.part_of(name, pattern) == part


@pytest.mark.parametrize(
  ('name', 'pattern'),
  [
    ('x_cam1.png', '('), ('x_cam1.png', r'.+_cam\d+'), ('x_cam.png', PATTERN),
    ('a/_cam1.png', PATTERN), ('x.png', '(?P<part>y)?x'),
    ('.', PATTERN), ('/', PATTERN),
  ],
)  # fmt: skip
def test_whatever_has_no_part_is_refused(name, pattern):
  with pytest.raises(ConfigError) as refused:
    parts.part_of(name, pattern)
  assert (refused.value.key, refused.value.value) == ('predict.part_pattern', pattern)


def run(capsys, *words):
  status = cli.main([str(word) for word in words])
  return status, *capsys.readouterr()


@pytest.mark.parametrize('batch_size', [1, 2, 4])
def test_predict_gives_the_worst_label_for_any_batch_size(
  batch_size, directory, folder, verdicts, tmp_path, capsys
):
  paths = [*folder.iterdir()][::-1]
  words = ['--part-pattern', PATTERN, '--batch-size', batch_size, '--save-path', tmp_path]
  status, out, _ = run(capsys, 'predict', directory, *paths, *words, '--json', '--no-pictures')
  assert status == 0
  lines = [json.loads(line) for line in out.splitlines()]
  images, rows = lines[:9], lines[9:]
  assert {row['part']: row['label'] for row in rows} == verdicts
  assert all(row['images'] == 3 for row in rows)
  for image in images:
    assert image['part'] == Path(image['input_path']).stem.partition('_')[0]
  table = list(files.read_csv(tmp_path / 'parts.csv'))
  assert {row['part']: row['label'] for row in table} == verdicts


def test_people_see_the_parts_and_their_number(directory, folder, verdicts, capsys):
  status, out, _ = run(capsys, 'predict', directory, folder, '--part-pattern', PATTERN, '--no-save')
  assert status == 0
  for part, label in verdicts.items():
    assert any(part in line and label in line and '3 images' in line for line in out.splitlines())
  assert 'parts' in out


@pytest.mark.parametrize(('num_shards', 'form'), [(1, 'csv'), (3, 'parquet')])
def test_tables_have_all_images_of_a_part_in_one_shard(
  num_shards, form, model, folder, verdicts, tmp_path
):
  for index in range(num_shards):
    table = score_table.Table(tmp_path, form, (index, num_shards), PATTERN)
    summary = score_table.score_images(model, folder, table, 2, no_progress)
    again = score_table.score_images(model, folder, table, 2, no_progress)
    assert again.part_verdicts.rows() == summary.part_verdicts.rows()  # Resumed equals whole.
  rows = [row for path in tmp_path.glob('_parts-*.csv') for row in files.read_csv(path)]
  assert len(rows) == 3
  assert {row['part']: row['label'] for row in rows} == verdicts
  table = score_table.Table(tmp_path, form, (0, 1), PATTERN)
  whole = score_table.score_images(model, folder, table, 2, no_progress)
  assert whole.part_verdicts.labels == verdicts
  assert [path.name for path in tmp_path.glob('_parts-*')] == ['_parts-00000-of-00001.csv']


@pytest.mark.parametrize('more', [(), ('--table', 'table')])
def test_a_name_without_a_part_is_refused_before_work_begins(
  more, directory, folder, tmp_path, capsys, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  words = ('predict', directory, folder, '--part-pattern', r'(?P<part>.+)_cam[01]', *more)
  status, out, err = run(capsys, *words)
  assert (status, out) == (2, '')
  assert 'part 0_cam2.png' in err
  assert '--part-pattern' in err
  assert not list(tmp_path.iterdir())


def test_a_run_refuses_a_wrong_pattern_and_predicts_parts(directory, folder, verdicts, tmp_path):
  flags = {
    'mode': 'predict', 'predict.model_dir': directory, 'predict.input': folder,
    'predict.part_pattern': PATTERN,
  }  # fmt: skip
  words = [f'--config.{key}={value}' for key, value in flags.items()]
  assert main.main(['--config=padim', f'--workdir={tmp_path}', *words]) == 0
  result = json.loads((tmp_path / 'predict_result.json').read_text())
  assert {row['part']: row['label'] for row in result['parts']} == verdicts
  refused = [*words, '--config.evaluate.part_pattern=.*']
  assert main.main(['--config=padim', f'--workdir={tmp_path / "no"}', *refused]) != 0
  assert not (tmp_path / 'no').exists()


def test_an_evaluation_counts_parts(trained, drawn, tmp_path):
  """Images with the same number are those of one part, in folders of its defects."""
  workdir = trained('padim')
  flags = [f'--workdir={tmp_path}', '--config.mode=evaluate']
  flags += [f'--config.evaluate.model_dir={workdir / "model"}']
  pattern = r'--config.evaluate.part_pattern=(?P<part>\d+)'
  assert small_runs.run(*small_runs.flags('padim', drawn), *flags, pattern) == 0
  rows = small_runs.table(tmp_path / 'scores.csv')
  expected = {}
  for row in rows:
    assert row['part'] == Path(row['path']).stem
    expected.setdefault(row['part'], []).append((row['label'], row['defect'] != 'good'))
  table = {row['part']: row for row in small_runs.table(tmp_path / 'parts.csv')}
  assert table.keys() == expected.keys()
  counts = {name: {'ng': 0, 'review': 0, 'ok': 0} for name in ('defective', 'good')}
  for part, images in expected.items():
    label = max((label for label, _ in images), key=SEVERITY.get)
    is_defective = any(bad for _, bad in images)
    assert (table[part]['label'], table[part]['defective']) == (label, str(is_defective))
    counts['defective' if is_defective else 'good'][label.lower()] += 1
  metrics = json.loads((tmp_path / 'evaluate_result.json').read_text())['metrics']
  assert metrics['parts'] == counts


def test_requests_of_one_part_have_one_verdict(directory, folder, verdicts):
  application = apps.build_app(options.Settings({'disc': directory}, batch=1))
  headers = {'Content-Type': 'image/png'}
  with testclient.TestClient(application) as client:
    while client.get('/v2/health/ready').status_code != 200:
      time.sleep(0.02)
    paths = sorted(folder.iterdir())
    seen: dict[str, list[str]] = {}
    for path in itertools.chain(paths[::2], paths[1::2]):
      name = path.stem.partition('_')[0]
      url = f'{ROUTE}?labelMap=false'
      answer = client.post(url, params={'part': name}, content=path.read_bytes(), headers=headers)
      result = answer.json()['result']
      seen.setdefault(name, []).append(result['label'])
      worst = max(seen[name], key=SEVERITY.get)
      assert result['part'] == {'part': name, 'label': worst, 'images': len(seen[name])}
    assert {name: max(found, key=SEVERITY.get) for name, found in seen.items()} == verdicts
    answer = client.post(ROUTE, content=paths[0].read_bytes(), headers=headers)
    assert 'part' not in answer.json()['result']
