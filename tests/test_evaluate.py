"""Metrics, against a slow loop over every image and pixel."""

import collections
from pathlib import Path
import subprocess
import sys

import numpy as np
import pytest
import small_runs

from uadjax.data import image_io, inputs, layouts, selection, transforms
from uadjax.data.records import Record
from uadjax.distributed import mesh as meshes
from uadjax.evaluation import evaluate, verdicts
from uadjax.inference.result import Result
from uadjax.model import calibration, model_dir
from uadjax.system import files

OPS = transforms.parse('resize(4)')
LIMITS = calibration.Thresholds(7.5, 3.0, 6.5, 'normals', 0.01, 0.05, 9, 0.1, 0.1, 299)
SHAPES = ((5, 7), (6, 4), (8, 8), (3, 9), (7, 7))


def slow_auroc(pairs):
  anomalous = [score for bad, score in pairs if bad]
  normal = [score for bad, score in pairs if not bad]
  wins = [1.0 if a > n else 0.5 if a == n else 0.0 for a in anomalous for n in normal]
  return sum(wins) / len(wins)


def slow_regions(mask):
  """Sets of pixels that touch each other, at a corner at least, grown from one pixel at a time."""
  left = {tuple(at) for at in np.argwhere(mask)}
  while left:
    region, edge = set(), {left.pop()}
    while edge:
      region |= edge
      edge = {(y, x) for y, x in left if any(max(abs(y - v), abs(x - u)) <= 1 for v, u in edge)}
      left -= edge
    yield region


@pytest.fixture
def cases():
  """(record, result, truth) of test images: of odd sizes, cropped, one without a mask."""
  rng = np.random.default_rng(0)
  cases = []
  for number, (shape, defect) in enumerate(
    zip(SHAPES, ('good', 'good', 'spot', 'spot', 'scratch'), strict=True)
  ):
    values = rng.integers(0, 6, shape).astype(np.float32)  # Ties abound.
    visible = np.ones(shape, bool)
    visible[0] = number % 2 == 0  # Some crops leave the first row out.
    truth = rng.random(shape) < 0.3 if defect != 'good' else np.zeros(shape, bool)
    record = Record(Path(f'{number}.png'), defect)
    score = float(values.max() + number)
    label = 'NG' if score > 7.5 else 'review' if score > 6.5 else 'OK'
    source = inputs.Source(str(record.path), record.path)
    result = Result(source, '', OPS, LIMITS, shape, score, np.zeros((4, 4), np.float32))
    assert result.label == label
    result.restored = transforms.RestoredMap(values, visible)
    cases.append((record, result, None if number == 3 else truth))
  return cases


def measured(cases):
  judged = [evaluate.compare_with_mask(*case) for case in cases]
  return evaluate.compute_metrics(judged, evaluate.rank_images(judged), None)


def test_pixels_at_the_threshold_are_counted_one_by_one(cases):
  tp = fp = fn = tn = unseen = lost = 0
  for _, result, truth in cases:
    if truth is None:
      continue
    for at in np.ndindex(truth.shape):
      if not result.visible[at]:
        unseen += 1
        lost += bool(truth[at])
        continue
      marked, bad = bool(result.predicted_mask[at]), bool(truth[at])
      tp, fp = tp + (marked and bad), fp + (marked and not bad)
      fn, tn = fn + (bad and not marked), tn + (not marked and not bad)
  metrics = measured(cases)
  at = metrics['at_threshold']
  assert at['pixel_precision'] == tp / (tp + fp)
  assert at['pixel_recall'] == tp / (tp + fn)
  assert at['iou'] == tp / (tp + fp + fn)
  assert at['dice'] == at['pixel_f1'] == 2 * tp / (2 * tp + fp + fn)
  assert at['accuracy'] == (tp + tn) / (tp + fp + fn + tn)
  chance = ((tp + fp) * (tp + fn) + (tn + fn) * (tn + fp)) / (tp + fp + fn + tn) ** 2
  assert at['kappa'] == pytest.approx((at['accuracy'] - chance) / (1 - chance), abs=1e-12)
  assert metrics['counts']['unseen_pixels'] == unseen > 0
  assert metrics['counts']['unseen_defect_pixels'] == lost
  assert metrics['counts']['without_mask'] == 1
  regions = at['miss_rate_by_region_size']['<100']
  hits = [
    any(result.predicted_mask[at] for at in region)
    for _, result, truth in cases
    if truth is not None
    for region in slow_regions(truth & result.visible)
  ]
  assert len(hits) > 2
  assert 0 < sum(hits) < len(hits)  # Else a constant would pass.
  assert regions == {'regions': len(hits), 'missed': pytest.approx(1 - sum(hits) / len(hits))}


def test_images_are_counted_one_by_one(cases):
  metrics = measured(cases)
  want = slow_auroc([(record.is_anomalous, result.score) for record, result, _ in cases])
  assert metrics['image_auroc'] == pytest.approx(want, abs=1e-12)
  good = [result.label for record, result, _ in cases if not record.is_anomalous]
  bad = [result.label for record, result, _ in cases if record.is_anomalous]
  at = metrics['at_threshold']
  assert at['false_alarm_rate'] == good.count('NG') / len(good)
  assert at['review_rate'] == {
    'good': good.count('review') / len(good), 'defective': bad.count('review') / len(bad),
  }  # fmt: skip
  assert at['image_recall'] == bad.count('NG') / len(bad)
  assert at['image_precision'] == bad.count('NG') / (bad + good).count('NG')
  assert at['counts'] == {
    'defective': {'ng': bad.count('NG'), 'review': bad.count('review'), 'ok': bad.count('OK')},
    'good': {'ok': good.count('OK'), 'review': good.count('review'), 'ng': good.count('NG')},
  }
  assert bad.count('review')  # Else those to review might count as missed.
  for defect in ('spot', 'scratch'):
    missed = [result.label == 'OK' for record, result, _ in cases if record.defect == defect]
    assert at['miss_rate'][defect] == sum(missed) / len(missed)


def test_metrics_are_null_if_a_class_is_missing(cases):
  good = measured([case for case in cases if not case[0].is_anomalous])
  assert good['image_auroc'] is good['pixel_auroc'] is good['au_pro'] is None
  assert good['at_threshold']['image_recall'] is None
  bad = measured([case for case in cases if case[0].is_anomalous])
  assert bad['image_auroc'] is None
  assert bad['at_threshold']['false_alarm_rate'] is None
  unmasked = measured([case for case in cases if case[2] is None])
  assert unmasked['at_threshold']['iou'] is None


def test_the_mean_row_leaves_out_what_has_no_number(tmp_path):
  counts = {'counts': verdicts.count([], [])}
  rows = {
    'a': dict.fromkeys(evaluate._CSV_COLUMNS.values(), 0.5) | {'pixel_auroc': None},
    'b': dict.fromkeys(evaluate._CSV_COLUMNS.values(), 1.0) | {'pixel_auroc': 0.25},
  }
  rows = {name: row | {'at_threshold': counts} for name, row in rows.items()}
  evaluate.write_csv(tmp_path / 'x.csv', rows)
  assert [line.split(',')[:4] for line in (tmp_path / 'x.csv').read_text().splitlines()] == [
    ['category', 'Image_AUROC', 'Pixel_AUROC', 'PRO_score'],
    ['a', '0.5', '', '0.5'], ['b', '1.0', '0.25', '1.0'], ['mean', '0.75', '0.25', '0.75'],
  ]  # fmt: skip


def test_the_mean_row_has_the_means_of_counts(tmp_path):
  classes = {  # By category, labels of defective images and of good ones.
    'a': ('NG NG NG review OK', 'OK OK'), 'b': ('OK OK', 'OK review review NG'), 'c': ('NG', ''),
  }  # fmt: skip
  rows = {}
  for name, (defective, good) in classes.items():
    labels = [*defective.split(), *good.split()]
    is_defective = [i < len(defective.split()) for i in range(len(labels))]
    metrics = dict.fromkeys(evaluate._CSV_COLUMNS.values(), 0.5)
    rows[name] = metrics | {'at_threshold': {'counts': verdicts.count(labels, is_defective)}}
  evaluate.write_csv(tmp_path / 'x.csv', rows)
  table = {row.pop('category'): row for row in files.read_csv(tmp_path / 'x.csv')}
  columns = {
    f'{kind}_{name}': (i, label)
    for i, (kind, names) in enumerate(
      {
        'Defective': {'found': 'NG', 'to_review': 'review', 'missed': 'OK'},
        'Good': {'passed': 'OK', 'to_review': 'review', 'falsely_rejected': 'NG'},
      }.items()
    )
    for name, label in names.items()
  }
  assert [*table['a']][-6:] == [*columns]
  for column, (i, label) in columns.items():
    numbers = [several[i].split().count(label) for several in classes.values()]
    assert [int(table[name][column]) for name in classes] == numbers
    assert float(table['mean'][column]) == pytest.approx(sum(numbers) / 3)


def test_pictures_are_spread_over_the_defects():
  records = [Record(Path(f'{d}{i}'), d) for d in ('good', 'spot', 'scratch') for i in range(9)]
  chosen = selection.spread_over_defects(records, 7)
  assert len(chosen) == 7
  assert {d: sum(r.defect == d for r in chosen) for d in ('good', 'spot', 'scratch')} == {
    'good': 3, 'spot': 2, 'scratch': 2,
  }  # fmt: skip


def evaluation_flags(trained, drawn, workdir):
  return (
    *small_runs.flags('padim', drawn),
    '--config.mode=evaluate',
    f'--config.evaluate.model_dir={trained("padim") / "model"}',
    f'--workdir={workdir}',
  )


def test_evaluating_imports_no_tensorflow(trained, drawn, tmp_path):
  code = (
    'import sys; from uadjax import main; from uadjax.evaluation import curves; '
    'curves.draw = lambda folder, data: None; '  # It takes longest, and matplotlib is imported.
    'print(main.main(sys.argv[1:]), "tensorflow" in sys.modules)'
  )
  command = [sys.executable, '-c', code, *evaluation_flags(trained, drawn, tmp_path)]
  out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
  assert out.split()[-2:] == ['0', 'False']


@pytest.mark.slow
def test_a_test_image_is_decoded_once(trained, drawn, tmp_path, monkeypatch):
  """Check and evaluation share one decoding; so do an evaluation alone and its pictures."""
  decode, counts = image_io.decode, collections.Counter()

  def counted(source, *args):
    counts[str(source if isinstance(source, Path) else source.name)] += 1
    return decode(source, *args)

  monkeypatch.setattr(image_io, 'decode', counted)
  no_pictures = '--config.evaluate.save_pictures=0', '--config.evaluate.report_pictures=0'
  records = layouts.load(drawn, 'disc').test
  training = *small_runs.flags('padim', drawn), f'--workdir={tmp_path / "new"}'
  for flags in (evaluation_flags(trained, drawn, tmp_path / 'run'), training):
    assert small_runs.run(*flags, *no_pictures) == 0
    assert [counts[str(record.path)] for record in records] == [1] * len(records)
    counts.clear()
  model = model_dir.load(trained('padim') / 'model')
  mesh = meshes.make_mesh('cpu', 2, 0)
  evaluate.evaluate(model, records, mesh, 4, 'nonzero', tmp_path, len(records))
  assert len([*tmp_path.glob('pictures/*.png')]) == len(records)
  assert [counts[str(record.path)] for record in records] == [1] * len(records)
