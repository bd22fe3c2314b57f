"""The whole job on drawn images, through the front door; small enough to take seconds.

One stage at 32 pixels with random weights: what is tested is the machinery, not the detection.
"""

import csv
import json
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
from PIL import Image
import pytest
import safetensors.numpy
import yaml

from uadjax import main
from uadjax.data import demo

STFPM = Path(__file__).resolve().parent.parent / 'configs' / 'stfpm.py'
SMALL = (
  '--config.data.ops=resize(32)',
  '--config.detector.layers=layer1',
  '--config.backbone.weights=random',
  '--config.fit.batch_size=4',
  '--config.fit.steps=60',
  '--config.mesh.data=1',
  '--config.evaluate.batch_size=5',
)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return demo.draw(tmp_path_factory.mktemp('drawn'), size=48, train=16, test_good=3, test_defect=2)


@pytest.fixture(scope='module')
def flags(root):
  return (f'--config={STFPM}', *SMALL, f'--config.data.root={root}', '--config.data.category=disc')


def run(*argv):
  return main.main([str(word) for word in argv])


def result(workdir, mode='train'):
  return json.loads((workdir / f'{mode}_result.json').read_text())


def table(path):
  return list(csv.DictReader(path.read_text().splitlines()))


def arrays(workdir):
  return safetensors.numpy.load_file(workdir / 'model' / 'fitted.safetensors')


@pytest.fixture(scope='module')
def straight(tmp_path_factory, flags):
  """A run from the beginning to the end."""
  workdir = tmp_path_factory.mktemp('straight')
  assert run(*flags, f'--workdir={workdir}') == 0
  return workdir


def test_training_leaves_what_the_contract_promises(straight):
  report = result(straight)
  assert report['done_flag'] is True
  assert report['model_name'] == 'STFPM'
  assert (straight / report['train_log']).read_text().count('step 60/60') == 1
  assert yaml.safe_load((straight / report['config']).read_text())['fit']['steps'] == 60
  assert (straight / report['models']['last_1']).is_dir()
  best = report['models']['best']
  assert best['score'] > 0
  assert (straight / best['checkpoint']).is_dir()
  assert (straight / best['model_dir'] / 'manifest.json').is_file()
  assert {'fit_s', 'calibrate_s', 'evaluate_s', 'images_per_s', 'peak_memory_mb'} == set(
    report['timing']
  )
  assert report['weights']['name'] == 'random'
  assert any((straight / 'tensorboard').iterdir())


def test_metrics_are_in_the_json_and_the_csv(straight):
  metrics = result(straight)['metrics']
  assert 0 <= metrics['image_auroc'] <= 1
  assert 0 <= metrics['pixel_auroc'] <= 1
  assert metrics['counts'] == {
    'good': 3, 'defective': 6, 'without_mask': 0, 'unseen_pixels': 0, 'unseen_defect_pixels': 0,
  }  # fmt: skip
  assert set(metrics['at_threshold']['miss_rate']) == {'missing', 'scratch', 'spot'}
  rows = table(straight / 'disc.csv')
  assert [row['category'] for row in rows] == ['disc']
  assert float(rows[0]['Image_AUROC']) == metrics['image_auroc']


def test_every_kind_of_image_gets_pictures(straight):
  names = {path.stem.split('_')[0] for path in (straight / 'pictures').iterdir()}
  assert names == {'good', 'missing', 'scratch', 'spot'}
  with Image.open(next((straight / 'pictures').iterdir())) as picture:
    assert picture.width > 4 * 48


def test_evaluating_again_gives_the_same_numbers(straight, flags, tmp_path):
  model = straight / 'model'
  more = ('--config.mode=evaluate', f'--config.evaluate.model_dir={model}')
  assert run(*flags, f'--workdir={tmp_path}', *more) == 0
  assert result(tmp_path, 'evaluate')['metrics'] == result(straight)['metrics']


def test_a_model_is_evaluated_on_its_own_data_unless_told(straight, tmp_path):
  more = ('--config.mode=evaluate', f'--config.evaluate.model_dir={straight / "model"}')
  assert run(f'--config={STFPM}', f'--workdir={tmp_path}', *more) == 0
  assert result(tmp_path, 'evaluate')['metrics'] == result(straight)['metrics']
  assert (tmp_path / 'disc.csv').is_file()


def test_a_saved_config_repeats_the_run(straight, flags, tmp_path):
  config = straight / 'config.yaml'
  assert run(f'--config={config}', f'--workdir={tmp_path}', '--config.evaluate.do_eval=False') == 0
  for name, array in arrays(straight).items():
    np.testing.assert_array_equal(array, arrays(tmp_path)[name])


def test_predicting_agrees_with_evaluating(straight, flags, root, tmp_path):
  test = root / 'disc' / 'test'
  folder = tmp_path / 'in'
  folder.mkdir()
  for path in sorted(test.rglob('*.png')):
    target = folder / path.relative_to(test)
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(path.read_bytes())
  (folder / 'broken.png').write_bytes(b'no image')
  more = (f'--config.predict.model_dir={straight / "model"}', f'--config.predict.input={folder}')
  # The mode did its work, but one file could not be read.
  assert run(*flags, f'--workdir={tmp_path}', '--config.mode=predict', *more) == 1
  assert result(tmp_path, 'predict')['failed'] == 1
  results = result(tmp_path, 'predict')['results']
  assert len(results) == 10
  assert ['error' in r for r in results].count(True) == 1
  limits = json.loads((straight / 'model' / 'manifest.json').read_text())['thresholds']
  scores = table(straight / 'scores.csv')
  judged = [r for r in results if 'error' not in r]
  assert all(r['label'] == verdict(r['score'], limits['review'], limits['image']) for r in judged)
  evaluated = {Path(row['path']).parent.name + Path(row['path']).name: row for row in scores}
  for one in judged:
    path = Path(one['input_path'])
    row = evaluated[path.parent.name + path.name]
    assert one['score'] == pytest.approx(float(row['score']), rel=1e-5)  # Other batch sizes.
    assert one['label'] == row['label']
  assert (tmp_path / 'predictions' / 'spot' / '000_res.png').is_file()
  assert (tmp_path / 'predictions' / 'good' / '000_res.json').is_file()


def verdict(score, review, threshold):
  return 'NG' if score > threshold else 'review' if score > review else 'OK'


@pytest.mark.parametrize('mode', ['predict', 'evaluate'])
def test_thresholds_may_be_overridden(straight, flags, root, tmp_path, mode):
  scores = sorted(float(row['score']) for row in table(straight / 'scores.csv'))
  image, review = (scores[3] + scores[4]) / 2, (scores[1] + scores[2]) / 2
  given = {'threshold': image, 'review_threshold': review, 'pixel_threshold': -1.0}
  more = [f'--config.{mode}.{name}={value}' for name, value in given.items()]
  more += [f'--config.mode={mode}', f'--config.{mode}.model_dir={straight / "model"}']
  if mode == 'predict':
    more.append(f'--config.predict.input={root / "disc" / "test"}')
  assert run(*flags, f'--workdir={tmp_path}', *more) == 0
  if mode == 'evaluate':
    judged = table(tmp_path / 'scores.csv')
    assert result(tmp_path, 'evaluate')['metrics']['at_threshold']['pixel_recall'] == 1.0
  else:
    judged = result(tmp_path, 'predict')['results']
    assert all(one['marked_pixels'] == np.prod(one['size']) for one in judged)
  labels = [one['label'] for one in judged]
  assert labels == [verdict(float(one['score']), review, image) for one in judged]
  assert (labels.count('OK'), labels.count('review')) == (2, 2)


def test_a_group_gets_a_run_each_and_a_mean_row(root, flags, tmp_path):
  group = tmp_path / 'data'
  for name in ('one', 'two'):
    (group / name).parent.mkdir(exist_ok=True)
    (group / name).symlink_to(root / 'disc')
  more = (f'--config.data.root={group}', '--config.data.category=all', '--config.fit.steps=2')
  assert run(*flags, *more, f'--workdir={tmp_path / "out"}') == 0
  rows = table(tmp_path / 'out' / 'all.csv')
  assert [row['category'] for row in rows] == ['one', 'two', 'mean']
  numbers = [float(row['Pixel_AUROC']) for row in rows]
  assert numbers[2] == pytest.approx((numbers[0] + numbers[1]) / 2)
  assert result(tmp_path / 'out' / 'two')['done_flag']


def test_a_category_that_fails_does_not_stop_the_group(root, flags, tmp_path):
  group = tmp_path / 'data'
  (group / 'bad' / 'train' / 'good').mkdir(parents=True)
  (group / 'well').symlink_to(root / 'disc')
  more = (f'--config.data.root={group}', '--config.data.category=all', '--config.fit.steps=2')
  assert run(*flags, *more, f'--workdir={tmp_path / "out"}') == 1
  assert 'No images' in result(tmp_path / 'out' / 'bad')['err_msg']
  assert result(tmp_path / 'out' / 'well')['done_flag']
  assert '1 of 2 categories failed' in result(tmp_path / 'out')['err_msg']
  assert [row['category'] for row in table(tmp_path / 'out' / 'all.csv')] == ['well']
  # And once it is mended, the sweep goes on where it was.
  (group / 'bad').rename(tmp_path / 'gone')
  (group / 'bad').symlink_to(root / 'disc')
  more = (*more, '--config.fit.resume=latest')
  assert run(*flags, *more, f'--workdir={tmp_path / "out"}') == 0
  assert [r['category'] for r in table(tmp_path / 'out' / 'all.csv')] == ['bad', 'well', 'mean']


def test_good_images_alone_are_enough(root, flags, tmp_path):
  good = root / 'disc' / 'train' / 'good'
  more = (f'--config.data.root={good}', '--config.data.category=', '--config.fit.steps=2')
  assert run(*flags, *more, f'--workdir={tmp_path}') == 0
  assert result(tmp_path)['done_flag']
  assert 'metrics' not in result(tmp_path)


def test_a_finished_run_is_written_over_only_when_asked(straight, flags, capfd, tmp_path):
  workdir = tmp_path / 'copy'
  shutil.copytree(straight, workdir)
  before = result(workdir)
  for words in ([], ['--config.fit.stepz=4']):
    assert run(*flags, f'--workdir={workdir}', *words) == 1
    assert result(workdir) == before
  assert '--config.fit.overwrite=true' in capfd.readouterr().err
  more = ('--config.fit.overwrite=true', '--config.fit.steps=2')
  assert run(*flags, f'--workdir={workdir}', *more) == 0
  assert [p.name for p in (workdir / 'checkpoints' / 'rolling').iterdir()] == ['2']


def test_a_fault_of_ours_is_told_without_a_traceback(flags, tmp_path, capfd, monkeypatch):
  def fail(*args):
    raise RuntimeError('out of memory')

  monkeypatch.setattr(main.run, 'run', fail)
  assert run(*flags, f'--workdir={tmp_path}') == 1
  said = capfd.readouterr().err
  assert 'RuntimeError: out of memory' in said
  assert 'Traceback' not in said
  assert 'Traceback' in (tmp_path / 'train.log').read_text()
  assert result(tmp_path)['err_type'] == 'RuntimeError'


def start(flags, workdir):
  """A process of its own, caught as soon as it has saved something."""
  words = [sys.executable, '-m', 'uadjax.main', *flags, f'--workdir={workdir}']
  words += ['--config.fit.checkpoint_every_s=0.0', '--config.fit.log_every=1']
  process = subprocess.Popen(
    words, stderr=subprocess.PIPE, text=True, env={**os.environ, 'JAX_PLATFORMS': 'cpu'}
  )
  rolling = workdir / 'checkpoints' / 'rolling'
  deadline = time.monotonic() + 120
  while not (rolling.is_dir() and any(p.name.isdigit() for p in rolling.iterdir())):
    assert process.poll() is None, process.communicate()[1]
    assert time.monotonic() < deadline
    time.sleep(0.01)
  return process


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_killed_and_resumed_equals_uninterrupted_to_the_bit(
  number, straight, flags, tmp_path, capfd
):
  process = start(flags, tmp_path)
  process.send_signal(number)
  _, said = process.communicate(timeout=120)
  if number == signal.SIGTERM:
    assert process.returncode == 1, said
    assert 'Traceback' not in said
    assert result(tmp_path)['err_type'] == 'Interrupted'
    assert 'fit.resume=latest' in result(tmp_path)['err_msg']
  assert not (tmp_path / 'model').exists()

  assert run(*flags, f'--workdir={tmp_path}') == 1  # Nothing is written over by accident.
  assert 'holds a run' in capfd.readouterr().err

  assert run(*flags, f'--workdir={tmp_path}', '--config.fit.resume=latest') == 0
  want = arrays(straight)
  for name, array in arrays(tmp_path).items():
    np.testing.assert_array_equal(array, want[name], err_msg=name)
  ours, theirs = result(tmp_path), result(straight)
  assert ours['metrics'] == theirs['metrics']
  assert ours['models']['best'] == theirs['models']['best']


def test_a_resumed_run_must_be_the_same_run(straight, flags, tmp_path):
  (tmp_path / 'config.yaml').write_bytes((straight / 'config.yaml').read_bytes())
  more = (f'--workdir={tmp_path}', '--config.fit.resume=latest', '--config.fit.learning_rate=0.1')
  assert run(*flags, *more) == 1
  message = result(tmp_path)['err_msg']
  assert 'fit.learning_rate is 0.1' in message
  assert '0.4' in message


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (['--config.fit.step=3'], "did you mean 'fit.steps'"),
    (
      ['--config.mode=trian'],
      "choose from ['check_dataset', 'evaluate', 'export', 'predict', 'train']",
    ),
    (['--config.device=gpuu'], 'choose auto, cpu, gpu'),
    (['--config.data.root=/nowhere/at/all'], '/nowhere/at/all'),
    (['--config.data.category=dics'], "'disc'"),
    (['--config.data.ops=rezise(32)'], 'rezise'),
    (['--config.backbone.name=resnet19'], 'resnet101'),
    (['--config.backbone.weights=/no/file.pth'], '/no/file.pth'),
    (['--config.detector.name=stfmp'], "['padim', 'patchcore', 'stfpm']"),
    (['--config.detector.layers=layer9'], 'layer9'),
    (['--config.calibrate.budget=3'], 'calibrate.budget'),
    (['--config.fit.held_out=1.5'], 'fit.held_out'),
    (['--config.fit.batch_size=0'], 'fit.batch_size must be positive'),
    (['--config.fit.batch_size=None'], 'cannot be None'),
    (['--config.fit.learning_rate=nan'], 'fit.learning_rate must be zero or more and finite'),
    (['--config.fit.learning_rate=1e9', '--config.fit.steps=9'], 'training diverged'),
    (['--config.device=cpu:0,0'], 'must name different devices'),
    (['--config.mesh.data=0'], 'mesh.data=0'),
    (['--config.mode=evaluate'], 'no model directory'),
    (['--config.mode=predict', '--config.predict.input=nothing.png'], 'no model directory'),
  ],
)
def test_what_a_user_gets_wrong_is_one_message(words, message, flags, tmp_path, capfd):
  assert run(*flags, f'--workdir={tmp_path}', '--config.fit.steps=1', *words) == 1
  said = capfd.readouterr().err
  assert message in said, said
  assert 'Traceback' not in said
  mode = next((w.partition('mode=')[2] for w in words if 'mode=' in w), 'train')
  mode = mode if mode in ('evaluate', 'predict') else 'train'
  assert result(tmp_path, mode)['done_flag'] is False
  assert message in result(tmp_path, mode)['err_msg']


def test_an_unreadable_image_is_named_before_anything_is_fitted(root, flags, tmp_path, capfd):
  bad = tmp_path / 'data' / 'disc' / 'train' / 'good'
  bad.mkdir(parents=True)
  for path in (root / 'disc' / 'train' / 'good').iterdir():
    (bad / path.name).write_bytes(path.read_bytes())
  (bad / 'zz.png').write_bytes(b'no image')
  assert run(*flags, f'--workdir={tmp_path}', f'--config.data.root={tmp_path / "data"}') == 1
  assert 'zz.png' in capfd.readouterr().err
