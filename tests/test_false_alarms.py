"""On real images: unseen good ones exceed the thresholds about as often as the budget says."""

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from uadjax import main
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
  with (tmp_path / 'scores.csv').open(newline='') as file:
    rows = list(csv.DictReader(file))
  unseen = np.array([float(row['score']) for row in rows if row['defect'] == 'good'])
  assert stats.mannwhitneyu(left_out, unseen).pvalue > SURPRISE
  for budget in (0.01, 0.05, 0.1, 0.2, 0.3):
    limits = calibration.from_normals(left_out, left_out, budget, review_budget=0.5)
    alarms = int((unseen > limits.image_threshold).sum())
    # The share is itself uncertain, as the left out images are a sample, too.
    above = len(left_out) - round((1 - limits.expected_false_alarm_rate) * (len(left_out) + 1))
    chance = stats.betabinom(len(unseen), above + 1, len(left_out) - above)
    assert min(chance.cdf(alarms), chance.sf(alarms - 1)) > SURPRISE, (budget, alarms)
