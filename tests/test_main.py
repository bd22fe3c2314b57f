"""The whole job on drawn images, through the front door, with every detector.

What holds of one way of learning alone is in test_main_one_pass.py, what concerns data sets in
test_main_data.py.
"""

import os
from pathlib import Path
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
from PIL import Image
import pytest
from sklearn import metrics as reference
import small_runs
from small_runs import result, run, table
import yaml

from uadjax import experiment
from uadjax.data import image_io, image_statistics, transforms

EVERY = pytest.mark.parametrize('name', small_runs.EVERY_NAME)
ANY = pytest.mark.parametrize('name', small_runs.ANY_NAME)


@pytest.fixture
def flags(drawn):
  return small_runs.flags('stfpm', drawn)


@EVERY
def test_training_leaves_what_the_contract_promises(trained, name):
  workdir = trained(name)
  report, manifest = result(workdir), small_runs.manifest(workdir)
  assert report['done_flag'] is True
  assert report['model_name'] == manifest['model_name'] == small_runs.TITLES[name]
  assert report['weights']['name'] == 'compact.safetensors'
  assert report['timing'].keys() == {
    'check_s', 'fit_s', 'calibrate_s', 'evaluate_s', 'images_per_s', 'peak_memory_mb',
  }  # fmt: skip
  assert all(value > 0 for value in report['timing'].values())
  assert 'drift' not in report
  names = {path.name for path in workdir.iterdir()}
  assert {'model', 'pictures', 'scores.csv', 'disc.csv', 'report.html', 'config.yaml'} <= names
  assert not any(name.startswith('.') for name in names)  # Nor what was only for a while.
  assert yaml.safe_load((workdir / report['config']).read_text())['fit']['batch_size'] == 4
  best = report['models']['best']
  assert (workdir / best['model_dir'] / 'manifest.json').is_file()
  steps = small_runs.STEPS if name == 'stfpm' else small_runs.TRAIN // 4
  assert (workdir / report['train_log']).read_text().count(f'step {steps}/{steps}') == 1
  if name == 'stfpm':
    assert any((workdir / 'tensorboard').iterdir())
    assert best['score'] > 0
    assert (workdir / best['checkpoint']).is_dir()
    assert (workdir / report['models']['last_1']).is_dir()
  else:
    assert report['models'] == {'best': {'score': None, 'checkpoint': None, 'model_dir': 'model'}}
    assert report['summary'] == manifest['summary']
    assert manifest['summary']['images'] == small_runs.TRAIN
    assert 'state' in names
    assert 'checkpoints' not in names


@EVERY
def test_every_step_is_announced_in_order_with_those_that_follow(trained, name):
  log = (trained(name) / 'train.log').read_text()
  coreset = ['coreset'] if name == 'patchcore' else []
  steps = ['dataset check', 'fit', *coreset, 'calibration', 'evaluation']
  announced = [
    line.partition('Next step: ')[2] for line in log.splitlines() if 'Next step:' in line
  ]
  assert announced == [
    '; then '.join(filter(None, [step, ', '.join(steps[i:])])) + '.'
    for i, step in enumerate(steps, 1)
  ]


@EVERY
def test_the_model_has_the_range_of_the_training_images(trained, drawn, name):
  ops = transforms.parse('resize(32, 48)')
  images = [image_io.decode(p) for p in (drawn / 'disc' / 'train' / 'good').glob('*.png')]
  measured = [image_statistics.measure(ops.apply(image), image.shape[:2]) for image in images]
  assert len(measured) == small_runs.TRAIN
  for key, (low, high) in small_runs.manifest(trained(name))['image_statistics'].items():
    values = [getattr(statistics, key) for statistics in measured]
    assert (low, high) == (min(values), max(values))


@EVERY
def test_metrics_are_those_of_the_scores(trained, name):
  workdir = trained(name)
  metrics, rows = result(workdir)['metrics'], table(workdir / 'scores.csv')
  defects = np.array([row['defect'] for row in rows])
  bad, scores = defects != 'good', [float(row['score']) for row in rows]
  assert metrics['image_auroc'] == pytest.approx(reference.roc_auc_score(bad, scores))
  assert metrics['image_ap'] == pytest.approx(reference.average_precision_score(bad, scores))
  assert metrics['pixel_auroc'] > 0.75  # Chance gives a half; these defects are easy.
  labels, at = np.array([row['label'] for row in rows]), metrics['at_threshold']
  called = labels == 'NG'
  assert at['image_recall'] == called[bad].mean()
  assert at['false_alarm_rate'] == called[~bad].mean()
  assert at['miss_rate'] == {
    kind: (labels[defects == kind] == 'OK').mean() for kind in small_runs.DEFECTS
  }
  for name, of_class in (('defective', bad), ('good', ~bad)):
    for key, num_images in at['counts'][name].items():
      assert num_images == (np.char.lower(labels[of_class]) == key).sum()
  assert result(workdir)['warnings'] == []  # These are images of the model's own product.
  limits = small_runs.manifest(workdir)['thresholds']
  for row in rows:
    image, review = float(row['image_threshold']), float(row['review_threshold'])
    assert row['label'] == verdict(float(row['score']), review, image)
    for key in ('image_threshold', 'review_threshold', 'pixel_threshold'):
      assert float(row[key]) == limits[key]
  assert metrics['counts'] == {
    'good': 3, 'defective': 6, 'without_mask': 0, 'unseen_pixels': 0, 'unseen_defect_pixels': 0,
    'defects': sum(r['regions'] for r in at['miss_rate_by_region_size'].values()),
    'unseen_defects': 0,
  }  # fmt: skip
  (row,) = table(workdir / 'disc.csv')
  assert row['category'] == 'disc'
  for title, key in (
    ('Image_AUROC', 'image_auroc'), ('Pixel_AUROC', 'pixel_auroc'), ('PRO_score', 'au_pro'),
  ):  # fmt: skip
    assert float(row[title]) == metrics[key]
  counts = metrics['at_threshold']['counts']
  assert int(row['Defective_missed']) == counts['defective']['ok']
  assert int(row['Good_falsely_rejected']) == counts['good']['ng']


def test_only_a_missed_budget_is_a_warning(trained):
  log = (trained('padim') / 'train.log').read_text()
  assert ' INFO Model saved in ' in log
  assert re.search(' WARNING Thresholds: NG above .* For your budget of 1 %', log)


def test_every_kind_of_image_gets_pictures(trained):
  pictures = [*(trained('padim') / 'pictures').iterdir()]
  assert sorted(path.stem.split('_')[0] for path in pictures) == ['good', *small_runs.DEFECTS]
  for path in pictures:
    with Image.open(path) as picture:
      # Image, truth, anomaly map and prediction side by side, below two lines of text.
      assert picture.width > 4 * small_runs.SIDE
      assert picture.height > small_runs.SIDE


@ANY
def test_evaluating_again_gives_the_same_numbers(trained, name, tmp_path):
  """On its own data, for no others are named; the model's own detector counts."""
  workdir = trained(name)
  more = ('--config.mode=evaluate', f'--config.evaluate.model_dir={workdir / "model"}')
  words = (f'--config={small_runs.CONFIGS / "stfpm.py"}', *small_runs.SMALL)
  assert run(*words, f'--workdir={tmp_path}', *more) == 0
  evaluation = result(tmp_path, 'evaluate')
  assert evaluation['metrics'] == result(workdir)['metrics']
  assert table(tmp_path / 'scores.csv') == table(workdir / 'scores.csv')
  assert table(tmp_path / 'disc.csv') == table(workdir / 'disc.csv')


@pytest.mark.slow
def test_a_saved_config_repeats_the_run(trained, tmp_path):
  config = trained('stfpm') / 'config.yaml'
  assert run(f'--config={config}', f'--workdir={tmp_path}', small_runs.NO_EVALUATION) == 0
  for name, array in small_runs.arrays(trained('stfpm')).items():
    np.testing.assert_array_equal(array, small_runs.arrays(tmp_path)[name])


def verdict(score, review, threshold):
  return 'NG' if score > threshold else 'review' if score > review else 'OK'


@ANY
def test_predicting_agrees_with_evaluating(trained, name, drawn, tmp_path):
  workdir = trained(name)
  folder = shutil.copytree(drawn / 'disc' / 'test', tmp_path / 'in')
  (folder / 'broken.png').write_bytes(b'no image')
  more = (f'--config.predict.model_dir={workdir / "model"}', f'--config.predict.input={folder}')
  words = (f'--config={small_runs.CONFIGS / "stfpm.py"}', f'--workdir={tmp_path}')
  # The mode did its work, but one file could not be read.
  assert run(*words, '--config.mode=predict', *more) == 1
  prediction = result(tmp_path, 'predict')
  assert prediction['failed'] == 1
  judged = [image_result for image_result in prediction['results'] if 'error' not in image_result]
  assert (len(judged), len(prediction['results'])) == (9, 10)
  limits = small_runs.manifest(workdir)['thresholds']
  evaluated = {Path(row['path']).parts[-2:]: row for row in table(workdir / 'scores.csv')}
  for image_result in judged:
    row = evaluated[Path(image_result['input_path']).parts[-2:]]
    assert image_result['score'] == pytest.approx(
      float(row['score']), rel=1e-5
    )  # Other batch sizes.
    assert image_result['image_threshold'] == limits['image_threshold']
    assert (
      image_result['label']
      == row['label']
      == verdict(image_result['score'], limits['review_threshold'], limits['image_threshold'])
    )
  assert (tmp_path / 'predictions' / 'spot' / '000_res.png').is_file()
  assert (tmp_path / 'predictions' / 'good' / '000_res.json').is_file()


@pytest.mark.parametrize('mode', ['predict', 'evaluate'])
def test_thresholds_may_be_overridden(trained, drawn, tmp_path, mode):
  workdir = trained('padim')
  scores = sorted(float(row['score']) for row in table(workdir / 'scores.csv'))
  image, review = (scores[3] + scores[4]) / 2, (scores[1] + scores[2]) / 2
  thresholds = {'image_threshold': image, 'review_threshold': review, 'pixel_threshold': -1.0}
  more = [f'--config.{mode}.{name}={value}' for name, value in thresholds.items()]
  more += [f'--config.mode={mode}', f'--config.{mode}.model_dir={workdir / "model"}']
  if mode == 'predict':
    more.append(f'--config.predict.input={drawn / "disc" / "test"}')
  assert run(*small_runs.flags('padim', drawn), f'--workdir={tmp_path}', *more) == 0
  if mode == 'evaluate':
    judged = table(tmp_path / 'scores.csv')
    assert result(tmp_path, 'evaluate')['metrics']['at_threshold']['pixel_recall'] == 1.0
  else:
    judged = result(tmp_path, 'predict')['results']
    assert all(row['marked_pixels'] == np.prod(row['size']) for row in judged)
  labels = [row['label'] for row in judged]
  assert labels == [verdict(float(row['score']), review, image) for row in judged]
  assert (labels.count('OK'), labels.count('review')) == (2, 2)


@pytest.mark.parametrize(
  ('name', 'more'),
  [('padim', ()), ('stfpm', ('--config.fit.steps=2',))],
)
@pytest.mark.slow
def test_a_group_gets_a_run_each_and_a_mean_row(name, more, drawn, tmp_path):
  """A category that fails does not stop the others, and the group goes on once it is mended."""
  group, out = tmp_path / 'data', tmp_path / 'out'
  (group / 'bad' / 'train' / 'good').mkdir(parents=True)
  (group / 'well').symlink_to(drawn / 'disc')
  words = (*small_runs.flags(name, group, 'all'), *more, f'--workdir={out}')
  assert run(*words) == 1
  assert 'No images' in result(out / 'bad')['err_msg']
  assert result(out / 'well')['done_flag']
  assert '1 of 2 categories failed' in result(out)['err_msg']
  assert [row['category'] for row in table(out / 'all.csv')] == ['well']
  (group / 'bad').rename(tmp_path / 'gone')
  (group / 'bad').symlink_to(drawn / 'disc')
  categories = ['bad', 'well']
  if name == 'padim':  # Another was stopped when its model was saved, but not evaluated.
    categories = ['bad', 'cut', 'well']
    (group / 'cut').symlink_to(drawn / 'disc')
    shutil.copytree(out / 'well', out / 'cut')
    (out / 'cut' / 'train_result.json').unlink()
  before = (out / 'well' / 'model' / 'fitted.safetensors').stat().st_mtime_ns
  assert run(*words, '--config.fit.resume=latest') == 0
  rows = table(out / 'all.csv')
  assert [row['category'] for row in rows] == [*categories, 'mean']
  for key in ('Image_AUROC', 'Pixel_AUROC'):
    *numbers, mean = (float(row[key]) for row in rows)
    assert mean == pytest.approx(sum(numbers) / len(numbers))
  for category in categories:
    assert result(out / category)['done_flag']
    left = {path.name for path in (out / category).iterdir()}
    assert {'model', 'checkpoints' if name == 'stfpm' else 'state'} <= left
  if name == 'padim':  # What is learned in one pass is not learned again.
    assert (out / 'well' / 'model' / 'fitted.safetensors').stat().st_mtime_ns == before
  assert run(*words, '--config.mode=evaluate') == 0  # The models are those of the categories.
  assert [row['category'] for row in table(out / 'all.csv')] == [*categories, 'mean']


OTHER = {'padim': '--config.seed=4', 'stfpm': '--config.fit.steps=2'}


@pytest.mark.parametrize('name', OTHER)
def test_a_finished_run_is_not_written_over_unasked(name, trained, drawn, capfd, tmp_path):
  workdir, other = shutil.copytree(trained(name), tmp_path / 'copy'), OTHER[name]
  before = small_runs.contents(workdir)
  words = (*small_runs.flags(name, drawn), f'--workdir={workdir}', small_runs.NO_EVALUATION)
  for more in (other, '--config.fit.stepz=4'):
    assert run(*words, more) == 2
    after = small_runs.contents(workdir)
    assert [path for path in before if after[path] != before[path]] in ([], [Path('train.log')])
  stderr = capfd.readouterr().err
  assert ('with a checkpoint of step' if name == 'stfpm' else 'holds a finished run') in stderr
  assert '--config.fit.overwrite=true' in stderr


@pytest.mark.parametrize('name', ['padim', pytest.param('stfpm', marks=pytest.mark.slow)])
def test_a_finished_run_is_written_over_when_asked(name, trained, drawn, tmp_path):
  workdir = shutil.copytree(trained(name), tmp_path / 'copy')
  words = (*small_runs.flags(name, drawn), f'--workdir={workdir}', small_runs.NO_EVALUATION)
  assert run(*words, OTHER[name], '--config.fit.overwrite=true') == 0
  if name == 'stfpm':
    assert [p.name for p in (workdir / 'checkpoints' / 'rolling').iterdir()] == ['2']
  else:
    projection = small_runs.arrays(workdir)['feature_extractor/projection']
    assert (projection != small_runs.arrays(trained(name))['feature_extractor/projection']).any()
    np.testing.assert_array_equal(np.load(workdir / 'state' / 'projection.npy'), projection)


def test_a_fault_of_ours_is_told_without_a_traceback(flags, tmp_path, capfd, monkeypatch):
  def fail(*args):
    raise RuntimeError('out of memory')

  monkeypatch.setattr(experiment, 'run', fail)
  assert run(*flags, f'--workdir={tmp_path}') == 1
  stderr = capfd.readouterr().err
  assert 'RuntimeError: out of memory' in stderr
  assert 'Traceback' not in stderr
  assert 'Traceback' in (tmp_path / 'train.log').read_text()
  assert result(tmp_path)['err_type'] == 'RuntimeError'


def test_a_misspelled_flag_gets_a_suggestion(capfd):
  for word, flag in (
    ('--wrokdir=a', '--workdir'),
    ('--confg=padim', '--config'),
    ('--quite', '--quiet'),
  ):
    with pytest.raises(SystemExit) as caught:
      run('--config=padim', word)
    assert caught.value.code == 2
    assert f'did you mean {flag}?' in capfd.readouterr().err


def test_an_interruption_has_the_status_of_its_signal(flags, tmp_path, capfd, monkeypatch):
  for number in (signal.SIGINT, signal.SIGTERM):
    monkeypatch.setattr(experiment, 'run', lambda *args, number=number: signal.raise_signal(number))
    assert run(*flags, f'--workdir={tmp_path / number.name}') == 128 + number
    assert number.name in capfd.readouterr().err


def test_an_unwritable_output_is_refused_before_an_image_is_read(
  flags, tmp_path, capfd, monkeypatch
):
  monkeypatch.setattr(image_io, 'decode', None)
  (tmp_path / 'file').touch()
  assert run(*flags, f'--workdir={tmp_path / "file" / "run"}') == 2
  message = capfd.readouterr().err
  assert message.startswith('ConfigError: Cannot write to ')
  assert message.endswith('Choose another --workdir.\n')
  assert [*tmp_path.iterdir()] == [tmp_path / 'file']


def saved_steps(workdir):
  rolling = workdir / 'checkpoints' / 'rolling'
  names = [path.name for path in rolling.iterdir()] if rolling.is_dir() else []
  return [int(name) for name in names if name.isdigit()]


def stopped(flags, workdir, number):
  """A process of its own, sent a signal as soon as it has saved something; what it said."""
  words = [sys.executable, '-m', 'uadjax.main', *flags, f'--workdir={workdir}']
  words += ['--config.fit.checkpoint_every_s=0.0', '--config.fit.log_every=1']
  before = max(saved_steps(workdir), default=0)
  process = subprocess.Popen(
    # With as many devices as here, it need not compile what is compiled here.
    words,
    stderr=subprocess.PIPE,
    text=True,
    env={**os.environ, 'JAX_NUM_CPU_DEVICES': '8'},
  )
  deadline = time.monotonic() + 120
  while max(saved_steps(workdir), default=0) <= before:
    assert process.poll() is None, process.communicate()[1]
    assert time.monotonic() < deadline
    time.sleep(0.01)
  process.send_signal(number)
  _, stderr = process.communicate(timeout=120)
  assert process.returncode == (128 + number if number == signal.SIGTERM else -number), stderr
  assert 'Traceback' not in stderr
  assert not (workdir / 'model').exists()


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted_to_the_bit(trained, flags, tmp_path, capfd):
  """Once without warning, then, resumed, by a signal that it may answer, then resumed again."""
  stopped(flags, tmp_path, signal.SIGKILL)
  assert run(*flags, f'--workdir={tmp_path}') == 2  # Nothing is written over by accident.
  assert 'holds a run' in capfd.readouterr().err
  resume = '--config.fit.resume=latest'
  stopped([*flags, resume], tmp_path, signal.SIGTERM)
  assert result(tmp_path)['err_type'] == 'Interrupted'
  assert 'fit.resume=latest' in result(tmp_path)['err_msg']
  assert max(saved_steps(tmp_path)) < small_runs.STEPS
  assert run(*flags, f'--workdir={tmp_path}', resume) == 0
  want = small_runs.arrays(trained('stfpm'))
  for name, array in small_runs.arrays(tmp_path).items():
    np.testing.assert_array_equal(array, want[name], err_msg=name)
  ours, theirs = result(tmp_path), result(trained('stfpm'))
  assert ours['metrics'] == theirs['metrics']
  assert ours['models']['best'] == theirs['models']['best']


def test_a_resumed_run_must_be_the_same_run(trained, flags, tmp_path):
  (tmp_path / 'config.yaml').write_bytes((trained('stfpm') / 'config.yaml').read_bytes())
  more = (f'--workdir={tmp_path}', '--config.fit.resume=latest', '--config.fit.learning_rate=0.1')
  assert run(*flags, *more) == 2
  message = result(tmp_path)['err_msg']
  assert 'fit.learning_rate is 0.1' in message
  assert '0.4' in message


WRONG = [
  (['--config.fit.step=3'], "did you mean 'fit.steps'"),
  (['--config.mode=trian'], 'check_dataset'),
  (['--config.data.category=dics'], "'disc'"),
  (['--config.mode=evaluate'], 'not a model directory'),
  (['--config.mode=predict', '--config.predict.input=nothing.png'], 'not a model directory'),
]
DIVERGING = [(['--config.fit.learning_rate=1e9', '--config.fit.steps=9'], 'training diverged')]


@pytest.mark.parametrize('wrong', [WRONG, pytest.param(DIVERGING, marks=pytest.mark.slow)])
def test_errors_of_users_are_one_message(wrong, flags, tmp_path, capfd):
  """One error of each kind; test_settings.py tests all keys."""
  for number, (words, message) in enumerate(wrong):
    workdir = tmp_path / str(number)
    workdir.mkdir()
    status = run(*flags, f'--workdir={workdir}', '--config.fit.steps=1', *words)
    stderr = capfd.readouterr().err
    assert message in stderr, (words, stderr)
    assert 'Traceback' not in stderr, words
    mode = next((w.partition('mode=')[2] for w in words if 'mode=' in w), 'train')
    failure = result(workdir, mode if mode in ('evaluate', 'predict') else 'train')
    assert failure['done_flag'] is False, words
    assert status == (2 if failure['err_type'] in small_runs.USAGE_ERRORS else 1), words
    assert message in failure['err_msg'], words


def test_an_unreadable_image_is_named_before_anything_is_fitted(drawn, tmp_path, capfd):
  good = shutil.copytree(drawn / 'disc' / 'train', tmp_path / 'data' / 'disc' / 'train') / 'good'
  (good / 'zz.png').write_bytes(b'no image')
  assert run(*small_runs.flags('stfpm', tmp_path / 'data'), f'--workdir={tmp_path / "run"}') == 1
  assert 'zz.png' in capfd.readouterr().err
  assert not (tmp_path / 'run' / 'model').exists()
