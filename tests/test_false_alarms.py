"""Unseen good images exceed the thresholds about as often as the budget says."""

from pathlib import Path
import shutil

import numpy as np
from PIL import Image
import pytest
from scipy import stats
import small_runs

from uadjax import main
from uadjax.data import demo
from uadjax.model import calibration, model_dir

CONFIGS = Path(__file__).resolve().parent.parent / 'configs'
SURPRISE = 1e-3  # How improbable what is seen may be.


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize(('name', 'category'), [('padim', 'bottle'), ('patchcore', 'toothbrush')])
def test_unseen_good_images_score_as_those_left_out(shared, tmp_path, name, category):
  flags = [
    f'--config={CONFIGS / name}.py',
    f'--workdir={tmp_path}',
    f'--config.data.root={shared / "data" / "mvtec_ad"}',
    f'--config.data.category={category}',
    f'--config.backbone.weights={shared / "weights" / "resnet18_imagenet_bnfolded.pth"}',
    '--config.evaluate.save_pictures=0',
  ]
  assert main.main(flags) == 0
  left_out = model_dir.load_calibration_scores(tmp_path / 'model').scores
  rows = small_runs.table(tmp_path / 'scores.csv')
  unseen = np.array([float(row['score']) for row in rows if row['defect'] == 'good'])
  assert stats.mannwhitneyu(left_out, unseen).pvalue > SURPRISE
  for budget in (0.01, 0.05, 0.1, 0.2, 0.3):
    limits = calibration.from_normals(left_out, left_out, budget, review_budget=0.5)
    alarms = int((unseen > limits.image_threshold).sum())
    # The share is itself uncertain, as the left out images are a sample, too.
    above = len(left_out) - round((1 - limits.expected_false_alarm_rate) * (len(left_out) + 1))
    chance = stats.betabinom(len(unseen), above + 1, len(left_out) - above)
    assert min(chance.cdf(alarms), chance.sf(alarms - 1)) > SURPRISE, (budget, alarms)


def save_again(directory, copies):
  """Replace every training image by so many JPEG variants, as exports and shares pile them up."""
  for path in sorted(directory.glob('*.png')):
    image = Image.open(path).convert('RGB')
    path.unlink()
    for copy in range(copies):
      image.save(path.with_name(f'{path.stem} ({copy}).jpg'), quality=95 - 5 * copy)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize('copies', [1, 2, 3])
@pytest.mark.parametrize('category', ['bottle', 'screw'])
def test_copies_of_real_parts_make_no_promise_stronger(shared, tmp_path, category, copies):
  source, target = shared / 'data' / 'mvtec_ad' / category, tmp_path / category
  shutil.copytree(source / 'train', target / 'train')
  (target / 'test').symlink_to(source / 'test')
  num_images = len([*(target / 'train' / 'good').iterdir()])
  if copies > 1:
    save_again(target / 'train' / 'good', copies)
  flags = [
    f'--config={CONFIGS / "padim"}.py', f'--workdir={tmp_path / "run"}',
    f'--config.data.root={tmp_path}', f'--config.data.category={category}',
    '--config.data.ops=resize(128)', '--config.evaluate.save_pictures=0',
    f'--config.backbone.weights={shared / "weights" / "resnet18_imagenet_bnfolded.pth"}',
  ]  # fmt: skip
  assert main.main(flags) == 0
  thresholds = small_runs.manifest(tmp_path / 'run')['thresholds']
  n = thresholds['num_normals']
  assert 0.99 * num_images <= n <= num_images
  rows = small_runs.table(tmp_path / 'run' / 'scores.csv')
  labels = [row['label'] for row in rows if row['defect'] == 'good']
  above = round(thresholds['expected_false_alarm_rate'] * (n + 1)) - 1
  chance = stats.betabinom(len(labels), above + 1, n - above)
  alarms = labels.count('NG')
  assert min(chance.cdf(alarms), chance.sf(alarms - 1)) > SURPRISE, alarms


def test_copies_of_images_count_once(drawn, tmp_path):
  shutil.copytree(drawn / 'disc' / 'train', tmp_path / 'data' / 'disc' / 'train')
  save_again(tmp_path / 'data' / 'disc' / 'train' / 'good', 2)
  flags = *small_runs.flags('padim', tmp_path / 'data'), small_runs.NO_EVALUATION
  assert small_runs.run(*flags, f'--workdir={tmp_path / "run"}') == 0
  assert small_runs.manifest(tmp_path / 'run')['thresholds']['num_normals'] == small_runs.TRAIN


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'more'),
  [('padim', ()), ('patchcore', ()), ('stfpm', ('--config.fit.steps=20',))],
)
@pytest.mark.parametrize('copies', [2, 3])
def test_copies_of_images_make_no_promise_stronger(tmp_path, name, more, copies):
  few = {'train': 20, 'test_good': 40, 'test_defect': 1, 'size': 128}
  root = demo.write_dataset(tmp_path / 'data', **few, **small_runs.DISCS)
  save_again(root / 'disc' / 'train' / 'good', copies)
  assert main.main([*small_runs.flags(name, root), *more, f'--workdir={tmp_path / "run"}']) == 0
  thresholds = small_runs.manifest(tmp_path / 'run')['thresholds']
  assert thresholds['num_normals'] == (2 if name == 'stfpm' else 20)
  assert 'are distinct: near-duplicates count once' in (tmp_path / 'run' / 'train.log').read_text()
  rows = small_runs.table(tmp_path / 'run' / 'scores.csv')
  alarms = sum(row['label'] == 'NG' for row in rows if row['defect'] == 'good')
  # No score of the calibration is above the threshold.
  chance = stats.betabinom(40, 1, thresholds['num_normals'])
  assert chance.sf(alarms - 1) > SURPRISE, alarms
