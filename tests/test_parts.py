"""Verdicts on parts: the worst of a part's images, whatever their order and batches."""

import base64
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

import uadjax
from uadjax import cli, main
from uadjax.errors import ConfigError
from uadjax.evaluation import curves
from uadjax.inference import parts, score_table
from uadjax.serve import app as apps, settings as options
from uadjax.system import files
from uadjax.system.progress import no_progress

PATTERN = r'(?P<part>.+)_cam\d+'
SEVERITY = {'OK': 0, 'review': 1, 'unreadable': 2, 'NG': 3}
ROUTE, INFER = '/image-anomaly-detection', '/v2/models/disc/infer'
PACKAGE = Path(uadjax.__file__).parent

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
def test_paths_without_a_part_are_refused(name, pattern):
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


@pytest.fixture(scope='module')
def client(directory):
  application = apps.build_app(options.Settings({'disc': directory}, batch=1))
  with testclient.TestClient(application) as client:
    while client.get('/v2/health/ready').status_code != 200:
      time.sleep(0.02)
    yield client


@pytest.fixture
def part_verdicts(client):
  """Verdicts of parts that the service holds: none at first."""
  remembered = client.app.state.service.part_verdicts
  remembered.clear()
  return remembered


def test_requests_of_one_part_have_one_verdict(client, part_verdicts, folder, verdicts):
  headers = {'Content-Type': 'image/png'}
  paths = sorted(folder.iterdir())
  labels_by_part: dict[str, list[str]] = {}
  for path in itertools.chain(paths[::2], paths[1::2]):
    name = path.stem.partition('_')[0]
    url = f'{ROUTE}?labelMap=false'
    answer = client.post(url, params={'part': name}, content=path.read_bytes(), headers=headers)
    result = answer.json()['result']
    labels_by_part.setdefault(name, []).append(result['label'])
    worst = max(labels_by_part[name], key=SEVERITY.get)
    assert result['part'] == {'part': name, 'label': worst, 'images': len(labels_by_part[name])}
  assert {
    name: max(labels, key=SEVERITY.get) for name, labels in labels_by_part.items()
  } == verdicts
  answer = client.post(ROUTE, content=paths[0].read_bytes(), headers=headers)
  assert 'part' not in answer.json()['result']


def image_tensor(paths):
  data = [base64.b64encode(path.read_bytes()).decode() for path in paths]
  return {'name': 'image', 'datatype': 'BYTES', 'shape': [len(data)], 'data': data}


def part_tensor(names):
  return {'name': 'part', 'datatype': 'BYTES', 'shape': [len(names)], 'data': names}


@pytest.mark.parametrize('cuts', [(), (4,), (1, 2, 7)])
def test_the_protocol_has_one_verdict_for_all_images_of_a_part(
  cuts, client, part_verdicts, folder, verdicts
):
  """It counts the images of the request and of those before it, however they are divided."""
  paths = sorted(folder.iterdir(), key=lambda path: path.name[::-1])
  labels_by_part: dict[str, list[str]] = {}
  worst: dict[str, str] = {}
  for start, stop in itertools.pairwise((0, *cuts, len(paths))):
    names = [path.stem.partition('_')[0] for path in paths[start:stop]]
    tensors = [part_tensor(names), image_tensor(paths[start:stop])]
    answer = client.post(INFER, json={'inputs': tensors}).json()
    outputs = {tensor['name']: tensor['data'] for tensor in answer['outputs']}
    for name, label in zip(names, outputs['label'], strict=True):
      labels_by_part.setdefault(name, []).append(label)
    worst = {name: max(labels, key=SEVERITY.get) for name, labels in labels_by_part.items()}
    assert outputs['part_label'] == [worst[name] for name in names]
    assert outputs['part_images'] == [len(labels_by_part[name]) for name in names]
  assert worst == verdicts


def test_the_protocol_describes_the_tensors_of_parts(client, part_verdicts, folder):
  image = image_tensor([next(folder.iterdir())])
  model = client.get('/v2/models/disc').json()
  tensor = {'name': 'part', 'datatype': 'BYTES', 'shape': [-1]}
  assert tensor in model['inputs']
  types = {'part_label': 'BYTES', 'part_images': 'INT64'}
  for inputs in ([image, part_tensor(['x'])], [image]):
    answer = client.post(INFER, json={'inputs': inputs}).json()
    outputs = {t['name']: t for t in answer['outputs'] if t['name'].startswith('part')}
    assert outputs.keys() == (types.keys() if len(inputs) == 2 else set())
    for name, output in outputs.items():
      assert (output['datatype'], output['shape']) == (types[name], [1])
      assert {'name': name, 'datatype': types[name], 'shape': [-1]} in model['outputs']
  assert list(part_verdicts) == [('disc', 'x')]


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'data': ['x'], 'shape': [1]}, 'of shape [2]'),
    ({'data': ['x', 'y', 'z'], 'shape': [3]}, 'of shape [2]'),
    ({'data': ['x']}, 'with 1 values'),
    ({'shape': [2, 1]}, 'got BYTES of shape [2, 1]'),
    ({'datatype': 'INT64', 'data': [1, 2]}, 'got INT64'),
    ({'data': ['x', 2]}, '1 to 200 characters'),
    ({'data': ['x', '']}, '1 to 200 characters'),
    ({'data': ['x', 'y' * 201]}, '1 to 200 characters'),
    ({'name': 'parts'}, "'parts'; choose from ['image', 'part']"),
    ({'name': 'image'}, "'image' occurs twice"),
  ],
)
def test_tensors_that_name_no_parts_are_refused(changes, message, client, part_verdicts, folder):
  tensors = [image_tensor(sorted(folder.iterdir())[:2]), part_tensor(['x', 'y']) | changes]
  answer = client.post(INFER, json={'inputs': tensors})
  assert answer.status_code == 400
  assert message in answer.json()['error']
  assert not part_verdicts  # No image of the request is counted.


def test_parts_without_images_or_names_are_refused(client, folder):
  image = image_tensor([next(folder.iterdir())])
  for body, message in (
    ({'inputs': [part_tensor(['x'])]}, "The input 'image' is missing"),
    ({'inputs': [image], 'outputs': [{'name': 'part_label'}]}, "needs the input 'part'"),
  ):
    answer = client.post(INFER, json=body)
    assert answer.status_code == 400
    assert message in answer.json()['error']


def test_a_report_groups_images_by_part(directory, drawn, tmp_path, capsys, monkeypatch):
  """Images with the same number are those of one part, in folders of its defects."""
  monkeypatch.setattr(curves, 'draw', lambda folder, data: None)
  page = tmp_path / 'new' / 'report.html'
  words = ('report', directory, drawn, '--category', 'disc', '--output', page, '--part-pattern')
  for pattern in ('(', '.+', r'(?P<part>0+)'):  # The last one does not match every name.
    status, out, err = run(capsys, *words, pattern)
    assert (status, out) == (2, '')
    assert '--part-pattern' in err
    assert not page.exists()
  status, out, _ = run(capsys, *words, r'(?P<part>\d+)')
  assert status == 0
  data = json.loads(page.with_suffix('.json').read_text())
  images_by_part = {}
  for image in data['images']:
    assert image['part'] == Path(image['path']).stem
    images_by_part.setdefault(image['part'], []).append(image)
  counts = {name: {'ng': 0, 'review': 0, 'ok': 0} for name in ('defective', 'good')}
  for images in images_by_part.values():
    name = 'defective' if any(image['defect'] != 'good' for image in images) else 'good'
    counts[name][parts.worst_label(image['label'] for image in images).lower()] += 1
  assert data['metrics']['parts'] == counts
  num_defective = sum(counts['defective'].values())
  assert f'defective parts: found {counts["defective"]["ng"]} of {num_defective}' in ' '.join(
    out.split()
  )


PARTS_OF = """
import { parsePattern } from './pattern.js';
const answer = (cases) => cases.map(([name, pattern]) => {
  try {
    return parsePattern(pattern)(name);
  } catch {
    return null;
  }
});
"""


def test_the_page_finds_the_same_parts(in_node):
  names = ('x_cam1.png', 'a/b/x.2_cam12.png', 'a/cam1/x.png', 'cam1/.png', '_cam1.png', 'x', 'x.')
  patterns = (
    PATTERN, r'cam\d/(?P<part>[^/]+)', r'(?P<part>.+)/cam\d/x', '(?P<part>.*)', '(?P<part>x)?.+',
    '(?P<part>a|x)', r'(?P<part>.)(?P<camera>_cam\d)', '(', '.+', 'a)(?P<part>b', '(?P<part>x)\\',
  )  # fmt: skip
  cases = [*itertools.product(names, patterns)]
  expected = []
  for name, pattern in cases:
    try:
      parts.compile_pattern(pattern)
    except ConfigError:
      expected.append(None)
      continue
    try:
      expected.append(parts.part_of(name, pattern))
    except ConfigError:  # The page groups the other images.
      expected.append('')
  assert in_node(PACKAGE / 'serve' / 'page', PARTS_OF, cases) == expected


WORST_LABELS = """
import { groupByPart, worstLabel } from './parts.js';
const answer = (cases) => cases.map((images) => Object.fromEntries(
  [...groupByPart(images)].map(([part, ofPart]) =>
    [part, worstLabel(ofPart.map(({ label }) => label))])));
"""


def test_browsers_have_the_same_verdicts(in_node):
  names = {'unreadable': 'failed'}
  cases = [[*zip('aabc', labels, strict=True)] for labels in itertools.product(SEVERITY, repeat=4)]
  images = [[{'part': p, 'label': names.get(x, x)} for p, x in case] for case in cases]
  expected = []
  for case in cases:
    verdicts = parts.PartVerdicts()
    for part, label in case:
      verdicts.add(part, label)
    expected.append({part: names.get(label, label) for part, label in verdicts.labels.items()})
  assert in_node(PACKAGE / 'web', WORST_LABELS, images) == expected
