"""The command `uadjax threshold`: what it shows, what it writes, and what stays as it is."""

import concurrent.futures
import hashlib
import itertools
import json
import math
from pathlib import Path
import shutil
import tempfile
import time

import numpy as np
import onnx
import pytest
import small_runs

from uadjax import cli, create_model, create_pipeline
from uadjax.cli import serve as serve_command
from uadjax.errors import ConfigError, DataError, ModelError
from uadjax.evaluation import labeled
from uadjax.experiment import model_thresholds
from uadjax.export import cached_graph, exporter, runtimes
from uadjax.inference.result import Result
from uadjax.model import calibration, model_dir, trade_off
from uadjax.model.settings import CalibrateSettings
from uadjax.system import locks

NAMES = ('image_threshold', 'review_threshold', 'pixel_threshold')


# Values of `change` for each kind of change. The last ones leave maps or scores of no or all images
# above a threshold.
CHANGES = (
  ({'budget': 0.3}, {}),
  ({'budget': 0.1, 'review_budget': 0.6, 'method': 'confident'}, {}),
  ({'method': 'f1'}, {}),
  ({'method': 'cost', 'miss_cost': 100.0}, {}),
  ({'method': 'cost', 'miss_cost': 0.01, 'review_budget': 0.9}, {'pixel_threshold': 1e9}),
  ({}, {'image_threshold': 0.0, 'pixel_threshold': 1e9}),
  ({}, {'image_threshold': 1e9, 'review_threshold': 0.0, 'pixel_threshold': 1e9}),
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
  """No graph of another test is in the current folder or in the cache."""
  (tmp_path / 'here').mkdir()
  monkeypatch.chdir(tmp_path / 'here')
  monkeypatch.setenv('UADJAX_CACHE', str(tmp_path / 'cache'))


@pytest.fixture
def directory(exported, tmp_path):
  """A model with its ONNX graph in its directory, which has nothing beside it."""
  return exported('padim').rename(tmp_path / 'model')


@pytest.fixture
def uadjax(capfd):
  """Carry out the command; gives its status, stdout and stderr."""

  def command(*words):
    status = cli.main(['threshold', *map(str, words)])
    return status, *capfd.readouterr()

  return command


def manifest(directory):
  return json.loads((directory / 'manifest.json').read_text())


def without_record(directory):
  """Of each file its content, without the record of changes and the hash of the earlier graph."""
  contents = small_runs.contents(directory)
  fields = json.loads(contents.pop(Path('manifest.json')))
  for path in [path for path in contents if path.suffix == '.json']:
    metadata = json.loads(contents[path])
    contents[path] = {k: v for k, v in metadata.items() if k != 'previous_sha256'}
  return contents, {k: v for k, v in fields.items() if k != 'threshold_changes'}


def by_choice(choice):
  """Thresholds of a row of the table."""
  limits = choice.image_threshold, 1.0, choice.review_threshold
  return calibration.Thresholds(*limits, 'normals', 0.01, 0.05, 99, 0.01, 0.03, 299)


def table_rows(text):
  """Cells of the rows of a printed table by option, without the mark, and the marked options."""
  lines = [line for line in text.splitlines() if line[2:].startswith('--budget ')]
  rows = {line[2:].partition('  ')[0].strip(): line[2:].split()[2:] for line in lines}
  return rows, [line[2:].partition('  ')[0].strip() for line in lines if line.startswith('* ')]


# What is shown.


def test_the_rates_of_the_table_are_those_of_its_thresholds():
  scores = np.random.default_rng(0).permutation(150) / 10  # Distinct.
  anomalous = np.arange(5.0, 25.0)
  calibrated = calibration.CalibrationScores(('',) * 150, scores, scores)
  choices = trade_off.choices(calibrated, CalibrateSettings(budget=0.03), anomalous)
  assert 0.03 in [choice.budget for choice in choices]
  assert [c.budget for c in choices] == sorted({c.budget for c in choices})
  for choice in choices:
    num_above = int((scores > choice.image_threshold).sum())
    assert choice.expected_false_alarm_rate == (num_above + 1) / 151
    assert choice.expected_false_alarm_rate < choice.false_alarm_rate_bound
    labels = [calibration.label(score, by_choice(choice)) for score in anomalous]
    counts = choice.defects_found, choice.defects_to_review, choice.defects_missed
    assert counts == tuple(map(labels.count, ('NG', 'review', 'OK')))
    assert choice.review_threshold <= choice.image_threshold
    # Only if there are too few images for a budget is its rate larger.
    assert choice.expected_false_alarm_rate <= max(choice.budget, 1 / 151)
  thresholds = [choice.image_threshold for choice in choices]
  assert thresholds == sorted(set(thresholds), reverse=True)
  assert trade_off.choices(None, CalibrateSettings()) == []


def test_showing_changes_nothing(directory, uadjax):
  before = small_runs.contents(directory)
  status, text, _ = uadjax(directory)
  assert status == 0
  overview = json.loads(uadjax(directory, '--json')[1])
  assert small_runs.contents(directory) == before
  assert str(model_dir.read_info(directory).thresholds) in text
  assert overview['thresholds'] == manifest(directory)['thresholds']
  assert len(overview['trade_off']) > 1
  rows, current = table_rows(text)
  assert [*rows] == [row['option'] for row in overview['trade_off']]
  for row in overview['trade_off']:
    numbers = [f'{row[name]:.4g}' for name in ('image_threshold', 'review_threshold')]
    assert rows[row['option']][:2] == numbers
    assert row['defects_found'] is row['defects_to_review'] is row['defects_missed'] is None
  assert len(current) == 1
  assert f'uadjax threshold {directory} OPTION' in text


def test_a_table_fits_80_columns_and_marks_the_thresholds_of_the_model():
  rng = np.random.default_rng(0)
  scores = 1e-7 * rng.random(500)
  calibrated = calibration.CalibrationScores(('',) * 500, scores, scores)
  for anomalous in (None, 1e-7 * 3 * rng.random(1200)):
    choices = trade_off.choices(calibrated, CalibrateSettings(budget=0.001), anomalous)
    num_defective = 0 if anomalous is None else len(anomalous)
    for current in choices:
      text = model_thresholds.TradeOff(Path('model'), choices, num_defective).table(
        by_choice(current)
      )
      assert max(map(len, text.splitlines())) <= 80
      rows, marked = table_rows(text)
      assert len(rows) == len(choices)
      assert marked == [f'--budget {current.budget}']
      if anomalous is not None:
        counts = current.defects_found, current.defects_to_review, current.defects_missed
        assert rows[marked[0]][-3:] == [*map(str, counts)]


# What is written.


def test_written_thresholds_equal_the_row_of_the_table(directory, uadjax):
  # The table does not depend on what was written before.
  uadjax(directory, '--budget', 0.02, '--review-budget', 0.4, '--method', 'confident')
  for row in json.loads(uadjax(directory, '--json')[1])['trade_off']:
    assert uadjax(directory, *row['option'].split())[0] == 0
    written = manifest(directory)['thresholds']
    for name in ('budget', 'image_threshold', 'review_threshold', 'expected_false_alarm_rate'):
      assert written[name] == row[name]
    assert written['false_alarm_rate_bound'] == row['false_alarm_rate_bound']
    assert written['review_budget'] >= written['budget']
    assert written['review_threshold'] <= written['image_threshold']


def test_the_same_budget_again_changes_nothing_but_the_record(directory, uadjax):
  first = json.loads(uadjax(directory, '--budget', 0.2, '--json')[1])
  once = without_record(directory)
  second = json.loads(uadjax(directory, '--budget', 0.2, '--json')[1])
  assert without_record(directory) == once
  assert first['threshold_changes'] == second['threshold_changes'][:1]
  for change in second['threshold_changes']:
    assert change['reason'] == 'budget=0.2'
    assert change['time'].endswith('Z')
    assert {name: change[name] for name in NAMES} == {
      name: once[1]['thresholds'][name] for name in NAMES
    }


def test_an_earlier_change_has_no_effect_on_a_new_calibration(directory, uadjax):
  uadjax(directory, '--budget', 0.1)
  want = without_record(directory)
  for words in (('--image-threshold', 0), ('--budget', 0.3), ('--budget', 0.1)):
    assert uadjax(directory, *words)[0] == 0
  assert without_record(directory) == want


def test_scores_stay_and_only_verdicts_change(directory, uadjax, drawn):
  photos = drawn / 'disc' / 'test'
  before = [*create_model(model_dir=directory).predict(photos)]
  lowest = min(result.score for result in before)
  assert uadjax(directory, '--image-threshold', lowest, '--pixel-threshold', 0)[0] == 0
  after = [*create_model(model_dir=directory).predict(photos)]
  assert [result.score for result in after] == [result.score for result in before]
  assert [result.label == 'NG' for result in after] == [r.score > lowest for r in before]
  assert [result.label for result in after] != [result.label for result in before]
  assert all((result.pred == 255).all() for result in after)


def test_thresholds_by_hand_are_said_to_be_so(directory, uadjax):
  before = manifest(directory)['thresholds']
  assert uadjax(directory, '--pixel-threshold', 5)[0] == 0
  assert manifest(directory)['thresholds'] == before | {'pixel_threshold': 5}
  value = before['review_threshold'] / 2  # The review threshold follows.
  status, text, _ = uadjax(directory, '--image-threshold', value)
  thresholds = model_dir.read_info(directory).thresholds
  assert status == 0
  assert thresholds.review_threshold == thresholds.image_threshold == value
  assert thresholds.is_manual
  assert math.isnan(thresholds.expected_false_alarm_rate)
  scores = model_dir.load_calibration_scores(directory).scores
  assert f'{(scores > value).sum()} of {len(scores)} good calibration images exceed' in text


def test_the_metadata_of_graphs_is_that_of_the_manifest(directory, uadjax):
  cached = cached_graph.cache_path(model_dir.read_info(directory))
  cached.parent.mkdir(parents=True)
  for suffix in ('', '.json'):
    shutil.copy(directory / f'model.onnx{suffix}', f'{cached}{suffix}')
  inputs = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), np.uint8)
  before = runtimes.open_graph(directory / 'model.onnx').run(inputs)
  status, out, _ = uadjax(directory, '--budget', 0.3, '--json')
  assert status == 0
  assert json.loads(out)['updated_graphs'] == [str(directory / 'model.onnx'), str(cached)]
  want = manifest(directory)['thresholds']
  for graph in (directory / 'model.onnx', cached):
    metadata = json.loads(graph.with_name(f'{graph.name}.json').read_text())
    assert metadata['thresholds'] == want
    assert metadata['sha256'] == hashlib.sha256(graph.read_bytes()).hexdigest()
    entries = {entry.key: entry.value for entry in onnx.load(graph).metadata_props}
    embedded = json.loads(entries[runtimes.METADATA_KEY])
    assert embedded['thresholds'] == want
    assert embedded['arrays_sha256'] == metadata['arrays_sha256']
    after = runtimes.open_graph(graph).run(inputs)
    np.testing.assert_array_equal(after.image, before.image)
  info = model_dir.read_info(directory)
  assert cached_graph.get_or_export(info) == directory / 'model.onnx'  # It is still usable.


def test_a_graph_without_its_description_is_listed_as_outdated(directory, uadjax):
  (directory / 'model.onnx.json').unlink()
  overview = json.loads(uadjax(directory, '--budget', 0.3, '--json')[1])
  assert overview['outdated_graphs'] == [str(directory / 'model.onnx')]
  assert not (directory / 'model.onnx.json').exists()


@pytest.mark.parametrize(
  'format',
  ['stablehlo', *(pytest.param(f, marks=pytest.mark.slow) for f in ('savedmodel', 'tflite'))],
)
def test_graphs_of_other_formats_have_the_thresholds_beside_them(directory, uadjax, format):
  exported = exporter.export(model_dir.load(directory), format)
  inputs = np.random.default_rng(0).integers(0, 256, (1, 32, 48, 3), np.uint8)
  before, files_before = exporter._FORMATS[format].load(exported.path)(inputs), contents(exported)
  overview = json.loads(uadjax(directory, '--budget', 0.3, '--json')[1])
  graphs = [str(directory / f'model.{suffix}') for suffix in ('onnx', format)]
  assert (overview['updated_graphs'], overview['outdated_graphs']) == (graphs, [])
  assert contents(exported) == files_before  # The graph itself has no thresholds.
  metadata = json.loads((directory / f'model.{format}.json').read_text())
  expected = json.loads(json.dumps({**exported.metadata, 'thresholds': overview['thresholds']}))
  assert metadata == expected
  after = exporter._FORMATS[format].load(exported.path)(inputs)
  np.testing.assert_array_equal(after.image, before.image)


def contents(exported):
  """Of a graph, which may be a folder."""
  path = exported.path
  return small_runs.contents(path) if path.is_dir() else path.read_bytes()


def test_other_graphs_are_named_as_outdated_and_stay(directory, uadjax):
  others = [directory.parent / 'run.onnx', Path.cwd() / 'here.onnx']
  for graph in others:
    for suffix in ('', '.json'):
      shutil.copy(directory / f'model.onnx{suffix}', f'{graph}{suffix}')
  before = [graph.read_bytes() for graph in others]
  overview = json.loads(uadjax(directory, '--budget', 0.3, '--json')[1])
  assert sorted(overview['outdated_graphs']) == sorted(map(str, others))
  assert [graph.read_bytes() for graph in others] == before
  text = uadjax(directory, '--budget', 0.3)[1]
  assert all(str(graph) in text for graph in others)


def test_a_change_does_not_hide_that_a_graph_is_damaged(directory, uadjax):
  graph = directory / 'model.onnx'
  content, harmed = graph.read_bytes(), onnx.load(graph)
  weights = max(harmed.graph.initializer, key=lambda tensor: len(tensor.raw_data))
  weights.raw_data = bytes(len(weights.raw_data))  # Which onnx reads without an error.
  onnx.save(harmed, graph)
  status, out, _ = uadjax(directory, '--budget', 0.3)
  assert status == 0
  assert f'to be exported again: {graph}' in out
  with pytest.raises(ModelError, match='damaged'):
    cached_graph.get_or_export(model_dir.read_info(directory))
  graph.write_bytes(content)
  assert uadjax(directory, '--budget', 0.3)[0] == 0
  assert cached_graph.get_or_export(model_dir.read_info(directory)) == graph


@pytest.mark.parametrize('name', NAMES)
def test_a_threshold_below_all_scores_is_refused_before_anything_is_written(
  directory, uadjax, name
):
  before = small_runs.contents(directory)
  status, _, err = uadjax(directory, f'--{name.replace("_", "-")}=-1')
  assert status == 2
  assert f'{name} must be a number' in err
  assert small_runs.contents(directory) == before


def test_an_interrupted_change_leaves_the_old_manifest(directory, uadjax, monkeypatch):
  before, names = small_runs.contents(directory), set(small_runs.contents(directory))
  replace, num_files = Path.replace, 3  # The graph, its JSON file and the manifest.
  for num_allowed in range(num_files):
    targets = []

    def interrupted(path, target, targets=targets, num_allowed=num_allowed):
      if len(targets) == num_allowed:
        raise KeyboardInterrupt
      targets.append(target)
      return replace(path, target)

    with monkeypatch.context() as patch:
      patch.setattr(Path, 'replace', interrupted)
      assert uadjax(directory, '--budget', 0.3)[0] == 130
    assert len(targets) == num_allowed
    after = small_runs.contents(directory)
    assert set(after) == names
    assert after[Path('manifest.json')] == before[Path('manifest.json')]
    if not num_allowed:
      assert after == before
    # The graph remains one that is known, whatever was replaced.
    graph = directory / 'model.onnx'
    assert cached_graph.get_or_export(model_dir.read_info(directory)) == graph
  assert uadjax(directory, '--budget', 0.3)[0] == 0  # Again, and all is well.
  metadata = json.loads((directory / 'model.onnx.json').read_text())
  assert metadata['thresholds'] == manifest(directory)['thresholds']


def test_a_folder_that_cannot_be_written_is_told_without_a_change(directory, uadjax, monkeypatch):
  before = small_runs.contents(directory)

  def read_only(*args, **options):
    raise OSError(30, 'Read-only file system')

  monkeypatch.setattr(tempfile, 'mkstemp', read_only)
  status, _, err = uadjax(directory, '--budget', 0.3)
  assert status == 2
  assert str(directory) in err
  assert 'Read-only file system' in err
  assert 'Errno' not in err
  assert small_runs.contents(directory) == before


def test_a_folder_that_cannot_be_written_is_told_before_images_are_scored(
  directory, uadjax, drawn, monkeypatch
):
  def full(folder):
    raise OSError(28, f'{folder.name} is full')

  monkeypatch.setattr(model_thresholds, '_calibrate', None)
  monkeypatch.setattr(locks, 'lock_folder', full)
  status, _, err = uadjax(directory, '--labeled', drawn / 'disc', '--method', 'f1')
  assert status == 2
  assert f'{directory} cannot be written (model is full)' in err


def test_changes_at_the_same_time_are_all_recorded(directory, monkeypatch):
  override, names = calibration.override, set(small_runs.contents(directory))

  def slow_override(*args, **options):
    time.sleep(0.05)  # Between the reading of the manifest and its replacement.
    return override(*args, **options)

  monkeypatch.setattr(calibration, 'override', slow_override)
  values = [float(number) for number in range(1, 9)]
  with concurrent.futures.ThreadPoolExecutor(len(values)) as pool:
    changed = [
      pool.submit(model_thresholds.change, directory, {}, {'pixel_threshold': value})
      for value in values
    ]
  changes = manifest(directory)['threshold_changes']
  assert sorted(change['pixel_threshold'] for change in changes) == values
  assert manifest(directory)['thresholds']['pixel_threshold'] == changes[-1]['pixel_threshold']
  # Each tells of its own change, and of what was before.
  overviews = [future.result() for future in changed]
  assert [overview.info.thresholds.pixel_threshold for overview in overviews] == values
  before = {overview.changes[-1]['pixel_threshold']: overview.previous for overview in overviews}
  for earlier, later in itertools.pairwise(changes):
    assert before[later['pixel_threshold']].pixel_threshold == earlier['pixel_threshold']
  assert set(small_runs.contents(directory)) == names


def test_a_model_that_is_replaced_meanwhile_stays_as_it_is(directory, uadjax, monkeypatch):
  calibrate, path = model_thresholds._calibrate, directory / 'manifest.json'

  def replaced(*args):
    path.write_text(path.read_text().replace(fields['arrays_sha256'], 64 * '0'))
    return calibrate(*args)

  before = small_runs.contents(directory)
  fields = json.loads(before.pop(Path('manifest.json')))
  monkeypatch.setattr(model_thresholds, '_calibrate', replaced)
  status, _, err = uadjax(directory, '--budget', 0.3)
  assert status == 1
  assert f'{directory} was replaced' in err
  assert manifest(directory) == {**fields, 'arrays_sha256': 64 * '0'}
  assert {k: v for k, v in small_runs.contents(directory).items() if k in before} == before


def test_a_folder_that_is_no_model_is_refused_and_gets_no_file(tmp_path, uadjax):
  for folder in (tmp_path / 'here', tmp_path / 'nowhere'):
    status, _, err = uadjax(folder, '--budget', 0.3)
    assert status == 1
    assert f'{folder} is not a model directory' in err
  assert not [*(tmp_path / 'here').iterdir()]


# Labeled images.


def test_labeled_images_set_the_threshold_of_their_scores(directory, uadjax, drawn):
  records = [*(drawn / 'disc' / 'test').rglob('*.png')]
  results = [*create_model(model_dir=directory).predict(records)]
  scores = np.array([result.score for result in results])
  is_good = np.array([path.parent.name == 'good' for path in records])
  for method, cost in (('f1', None), ('cost', 3.0)):
    words = ('--labeled', drawn / 'disc', '--method', method, '--json')
    words += ('--miss-cost', cost) if cost else ()
    status, out, _ = uadjax(directory, *words)
    assert status == 0
    overview = json.loads(out)
    best = calibration._best_image_threshold(scores[is_good], scores[~is_good], cost)
    assert overview['thresholds']['image_threshold'] == pytest.approx(best, rel=1e-5)
    assert overview['thresholds']['num_anomalous'] == (~is_good).sum()
    for row in overview['trade_off']:
      assert row['defects_found'] == (scores[~is_good] > row['image_threshold']).sum()
      assert row['defects_missed'] == (scores[~is_good] <= row['review_threshold']).sum()
      counts = row['defects_found'], row['defects_to_review'], row['defects_missed']
      assert sum(counts) == (~is_good).sum()
    thresholds = model_dir.read_info(directory).thresholds
    assert thresholds.method == method
    assert 'optimistic' in str(thresholds)


def test_after_any_change_what_is_not_ok_says_where_to_look(directory, drawn, monkeypatch):
  results = [*create_model(model_dir=directory).predict(drawn / 'disc' / 'test')]
  score, scored = labeled.score, []

  def score_once(*args):
    scored.extend([] if scored else [score(*args)])
    return scored[0]

  monkeypatch.setattr(labeled, 'score', score_once)
  is_unmarked, previous = [], model_dir.read_info(directory).thresholds
  for calibrate_values, by_name in CHANGES:
    if calibrate_values.get('method') in ('f1', 'cost'):
      calibrate_values = {**calibrate_values, 'labeled': str(drawn / 'disc')}
    overview = model_thresholds.change(directory, calibrate_values, by_name)
    thresholds = overview.info.thresholds
    assert thresholds.review_threshold <= thresholds.image_threshold
    assert model_dir.read_info(directory).thresholds.review_threshold == thresholds.review_threshold
    if thresholds.review_threshold == thresholds.image_threshold:
      assert 'nothing to review (' in str(overview)
    assert overview.previous == previous
    for name in NAMES:
      limits = f'from {getattr(previous, name):.4g} to {getattr(thresholds, name):.4g}'
      is_told = f'{name.replace("_", " ")} {limits}' in str(overview)
      assert is_told == (getattr(previous, name) != getattr(thresholds, name))
    previous = thresholds
    for old in results:
      parts = old._source, old._stem, old._ops, thresholds, old.size, old.score, old.network_map
      result = Result(*parts)
      if result.label != 'OK':
        assert result.regions[0].peak == result.peak
        is_unmarked.append((result.label, not result.predicted_mask.any()))
  assert {('NG', True), ('NG', False), ('review', True)} <= set(is_unmarked)


def test_training_images_are_no_labeled_images(directory, drawn, tmp_path):
  source = drawn / 'disc'
  for name, path in (('good', 'train/good/000.png'), ('spot', 'test/spot/000.png')):
    (tmp_path / 'labeled' / name).mkdir(parents=True)
    (tmp_path / 'labeled' / name / '0.png').symlink_to(source / path)
  values = {'labeled': str(tmp_path / 'labeled'), 'method': 'f1'}
  with pytest.raises(DataError, match='training images') as caught:
    model_thresholds.change(directory, values, {})
  assert caught.value.key == 'calibrate.labeled'


def test_without_calibration_scores_thresholds_are_set_by_hand_only(directory, uadjax):
  (directory / 'calibration.csv').unlink()
  assert uadjax(directory)[0] == 0
  status, _, err = uadjax(directory, '--budget', 0.1)
  assert status == 1
  assert '--image-threshold' in err
  assert uadjax(directory, '--image-threshold', 1)[0] == 0


# A review threshold above the image threshold.


def test_a_wrong_order_is_refused_in_every_interface(directory, drawn, tmp_path, capfd):
  image = manifest(directory)['thresholds']['image_threshold']
  photo = drawn / 'disc' / 'test' / 'good' / '000.png'
  options = {'model_dir': str(directory), 'review_threshold': 1e9}
  for opened in (
    lambda: create_model(**options),
    lambda: create_pipeline(overrides=options),
    lambda: create_pipeline(config={'SubModules': {'AnomalyDetection': options}}),
    lambda: model_thresholds.change(directory, {}, {'review_threshold': 1e9}),
  ):
    with pytest.raises(ConfigError) as caught:
      opened()
    assert (caught.value.key, caught.value.value) == ('review_threshold', 1e9)
    assert f'review_threshold={image}' in str(caught.value)
  for words in (
    ('threshold', directory),
    ('predict', directory, photo, '--no-save'),
    ('--input', photo, '--model-dir', directory, '--no-save'),
  ):
    assert cli.main([*map(str, words), '--review-threshold', '1e9']) == 2
    assert f'--review-threshold={image} or less' in capfd.readouterr().err
  for mode in ('predict', 'evaluate'):
    words = [f'--config.mode={mode}', f'--config.{mode}.model_dir={directory}']
    words += [f'--config.predict.input={photo}', f'--config.{mode}.review_threshold=1e9']
    workdir = tmp_path / 'run'
    assert small_runs.run(*small_runs.flags('padim', drawn), f'--workdir={workdir}', *words) == 2
    assert f'--config.{mode}.review_threshold={image} or less' in capfd.readouterr().err
    assert not workdir.exists()


def test_a_manifest_in_the_wrong_order_is_refused_with_its_path(directory, drawn, capfd):
  path = directory / 'manifest.json'
  fields = manifest(directory)
  fields['thresholds']['review_threshold'] = 1e9
  path.write_text(json.dumps(fields))
  with pytest.raises(ModelError) as caught:
    serve_command._parse_model_dirs([str(directory)])
  assert (caught.value.key, caught.value.value) == ('review_threshold', 1e9)
  assert str(path) in str(caught.value)
  for words in (('predict', directory, drawn), ('report', directory, drawn / 'disc')):
    assert cli.main([str(word) for word in words]) == 1
    assert str(path) in capfd.readouterr().err


# After an evaluation.


def test_good_ranking_with_poor_recall_is_told_and_nothing_else(directory):
  model = model_dir.load(directory)
  calibrated = model_dir.load_calibration_scores(directory).scores
  anomalous = np.linspace(calibrated.min(), 1.5 * calibrated.max(), 40)
  cases = [(0.95, 0.3, True), (0.95, 0.9, False), (0.7, 0.3, False), (None, None, False)]
  for auroc, recall, is_told in cases:
    metrics = {'image_auroc': auroc, 'at_threshold': {'image_recall': recall}}
    advice = model_thresholds.advise(model, metrics, anomalous)
    assert (advice is not None) == is_told
    if advice:
      count = (anomalous > model.thresholds.image_threshold).sum()
      assert f'{count} of 40 defective images' in advice.message
      rows, current = table_rows(str(advice))
      assert len(current) == 1
      for row in advice.to_dict()['trade_off']:
        count = (anomalous > row['image_threshold']).sum()
        assert row['defects_found'] == count
        assert rows[row['option']][-3] == str(count)
      json.dumps(advice.to_dict())


def test_a_damaged_calibration_ends_no_evaluation(directory):
  model, path = model_dir.load(directory), directory / 'calibration.csv'
  header, row, *rows = path.read_text().splitlines()
  name, _, peak = row.split(',')
  path.write_text('\n'.join([header, f'{name},nan,{peak}', *rows, '']))
  metrics = {'image_auroc': 0.95, 'at_threshold': {'image_recall': 0.3}}
  assert model_thresholds.advise(model, metrics, np.ones(3)) is None


def test_an_evaluation_gives_the_advice_in_log_report_and_result(
  directory, drawn, tmp_path, monkeypatch
):
  monkeypatch.setattr(model_thresholds, '_GOOD_AUROC', 0.0)
  words = ['--config.mode=evaluate', f'--config.evaluate.model_dir={directory}']
  words += ['--config.evaluate.image_threshold=1e9']
  workdir = tmp_path / 'run'
  assert small_runs.run(*small_runs.flags('padim', drawn), f'--workdir={workdir}', *words) == 0
  metrics = small_runs.result(workdir, 'evaluate')['metrics']
  advice = metrics['threshold_advice']
  rows = small_runs.table(workdir / 'scores.csv')
  scores = np.array([float(row['score']) for row in rows if row['defect'] != 'good'])
  assert advice['trade_off']
  log = (workdir / 'evaluate.log').read_text()
  assert advice['message'] in log
  for row in advice['trade_off']:
    assert row['defects_found'] == (scores > row['image_threshold']).sum()
    assert row['option'] in log
  report = json.loads((workdir / 'report.json').read_text())
  assert report['metrics']['threshold_advice'] == advice
