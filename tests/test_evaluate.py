"""What is measured, against a slow loop over every image and pixel."""

from pathlib import Path

import numpy as np
import pytest

from uadjax import evaluate, predict
from uadjax.types import Record

SHAPES = ((5, 7), (6, 4), (8, 8), (3, 9), (7, 7))


def slow_auroc(pairs):
  anomalous = [score for bad, score in pairs if bad]
  normal = [score for bad, score in pairs if not bad]
  wins = [1.0 if a > n else 0.5 if a == n else 0.0 for a in anomalous for n in normal]
  return sum(wins) / len(wins)


@pytest.fixture
def cases():
  """(record, result, truth) of test images: of odd sizes, cropped, one without a mask."""
  rng = np.random.default_rng(0)
  made = []
  for number, (shape, defect) in enumerate(
    zip(SHAPES, ('good', 'good', 'spot', 'spot', 'scratch'), strict=True)
  ):
    values = rng.integers(0, 6, shape).astype(np.float32)  # Ties abound.
    seen = np.ones(shape, bool)
    seen[0] = number % 2 == 0  # Some crops leave the first row out.
    truth = rng.random(shape) < 0.3 if defect != 'good' else np.zeros(shape, bool)
    record = Record(Path(f'{number}.png'), defect)
    score = float(values.max() + number)
    label = 'NG' if score > 7.5 else 'OK'
    result = predict.Result(str(record.path), score, label, 7.5, values > 3, values, seen)
    made.append((record, result, None if number == 3 else truth))
  return made


def measured(cases):
  return evaluate.measure([evaluate._kept(*case) for case in cases])


def test_pixels_are_counted_one_by_one(cases):
  pairs, unseen, lost = [], 0, 0
  for _, result, truth in cases:
    if truth is None:
      continue
    for at in np.ndindex(truth.shape):
      if result.seen[at]:
        pairs.append((truth[at], result.anomaly_map[at]))
      else:
        unseen += 1
        lost += bool(truth[at])
  found = measured(cases)
  assert found['pixel_auroc'] == pytest.approx(slow_auroc(pairs), abs=1e-12)
  assert found['counts']['unseen_pixels'] == unseen > 0
  assert found['counts']['unseen_defect_pixels'] == lost
  assert found['counts']['without_mask'] == 1


def test_images_are_counted_one_by_one(cases):
  found = measured(cases)
  want = slow_auroc([(record.anomalous, result.score) for record, result, _ in cases])
  assert found['image_auroc'] == pytest.approx(want, abs=1e-12)
  alarms = [result.label == 'NG' for record, result, _ in cases if not record.anomalous]
  assert found['at_threshold']['false_alarm_rate'] == sum(alarms) / len(alarms)
  for defect in ('spot', 'scratch'):
    missed = [result.label == 'OK' for record, result, _ in cases if record.defect == defect]
    assert found['at_threshold']['miss_rate'][defect] == sum(missed) / len(missed)


def test_what_lacks_a_class_has_no_number(cases):
  good = measured([case for case in cases if not case[0].anomalous])
  assert good['image_auroc'] is None
  assert good['pixel_auroc'] is None
  bad = measured([case for case in cases if case[0].anomalous])
  assert bad['image_auroc'] is None
  assert bad['at_threshold']['false_alarm_rate'] is None


def test_the_mean_row_leaves_out_what_has_no_number(tmp_path):
  rows = {
    'a': {'image_auroc': 0.5, 'pixel_auroc': None},
    'b': {'image_auroc': 1.0, 'pixel_auroc': 0.25},
  }
  evaluate.write_csv(tmp_path / 'x.csv', rows)
  assert (tmp_path / 'x.csv').read_text().splitlines() == [
    'category,Image_AUROC,Pixel_AUROC', 'a,0.5,', 'b,1.0,0.25', 'mean,0.75,0.25',
  ]  # fmt: skip


def test_pictures_are_spread_over_the_defects():
  records = [Record(Path(f'{d}{i}'), d) for d in ('good', 'spot', 'scratch') for i in range(9)]
  chosen = evaluate._spread(records, 7)
  assert len(chosen) == 7
  assert {d: sum(r.defect == d for r in chosen) for d in ('good', 'spot', 'scratch')} == {
    'good': 3, 'spot': 2, 'scratch': 2,
  }  # fmt: skip
