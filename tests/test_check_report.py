"""Laws of the files that a check leaves."""

import json
from pathlib import Path

from hypothesis import given, strategies as st
from image_files import write_noise
from matplotlib import figure
import numpy as np
from PIL import Image
import pytest

from uadjax.data import checks, image_io
from uadjax.data.checks import report as reports


def mask(path: Path, height: int = 24, width: int = 32) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.zeros((height, width), np.uint8)
  pixels[2:9, 3:9] = 1
  Image.fromarray(pixels).save(path)


def bottles(root: Path, defects: tuple[str, ...] = ('cut', 'hole')) -> Path:
  """Named alike everywhere, as MVTec's are: their samples must not be."""
  for i in range(12):
    write_noise(root / f'train/good/{i:03d}.png', i)
    write_noise(root / f'test/good/{i:03d}.png', 100 + i)
    for number, defect in enumerate(defects):
      write_noise(root / f'test/{defect}/{i:03d}.png', 1000 * (number + 1) + i)
      mask(root / f'ground_truth/{defect}/{i:03d}_mask.png')
  return root


def test_a_passed_check_leaves_ten_samples_of_each_split_and_a_histogram(tmp_path):
  report = checks.check(bottles(tmp_path / 'bottles'))
  result = reports.write(report, tmp_path / 'run')
  attributes = result['attributes']
  assert result['check_pass'] is True
  assert result['problems'] == []
  assert {k: result[k] for k in ('show_type', 'dataset_type', 'dataset_path')} == {
    'show_type': 'image',
    'dataset_type': 'SegDataset',
    'dataset_path': str(tmp_path / 'bottles'),
  }
  assert attributes['train_samples'] == 12
  assert attributes['val_samples'] == 36
  assert attributes['num_classes'] == 1
  assert attributes['defects'] == {'cut': 12, 'hole': 12}
  assert result['analysis'] == {'histogram': 'check_dataset/histogram.png'}
  samples = attributes['train_sample_paths'] + attributes['val_sample_paths']
  assert len(set(samples)) == 20
  pictures = {*samples, 'check_dataset/histogram.png'}
  written = {p.relative_to(tmp_path / 'run').as_posix() for p in (tmp_path / 'run').rglob('*.png')}
  assert written == pictures
  for name in pictures:
    assert min(image_io.image_size(tmp_path / 'run' / name)) > 100
  json.dumps(result, allow_nan=False)


def test_samples_are_of_every_type_and_from_everywhere(tmp_path):
  records = checks.check(bottles(tmp_path)).splits.test
  chosen = reports._choose_evenly(records, 10)
  assert [r.defect for r in chosen] == ['good'] * 3 + ['cut'] * 4 + ['hole'] * 3
  assert [r.path.stem for r in chosen if r.defect == 'hole'] == ['000', '004', '008']
  assert reports._choose_evenly(records[:3], 10) == list(records[:3])
  assert reports._choose_evenly([], 10) == []


def test_the_mask_is_outlined_on_the_right_and_only_there(tmp_path):
  result = reports.write(checks.check(bottles(tmp_path / 'bottles')), tmp_path)
  outlined = []
  for name in result['attributes']['val_sample_paths']:
    cyan = (image_io.decode(tmp_path / name) == (0, 229, 255)).all(-1)
    half = cyan.shape[1] // 2
    assert not cyan[:, :half].any()
    outlined.append(bool(cyan[:, half:].any()))
  assert outlined == [False] * 3 + [True] * 7  # The good ones come first.


def test_a_failed_check_leaves_a_sheet_and_no_broken_samples(tmp_path):
  root = bottles(tmp_path / 'bottles')
  (root / 'train/good/0000.png').touch()
  mask(root / 'ground_truth/cut/003_mask.png', 9, 9)
  Image.open(root / 'ground_truth/cut/004_mask.png').convert('RGB').save(
    root / 'ground_truth/cut/004_mask.png'
  )
  result = reports.write(checks.check(root), tmp_path)
  assert result['check_pass'] is False
  assert result['analysis']['problems'] == 'check_dataset/problems.png'
  assert image_io.image_size(tmp_path / 'check_dataset/problems.png')[1] == 3 * 260
  assert len(result['attributes']['train_sample_paths']) == 10
  listed = [(p['severity'], p['path']) for p in result['problems']]
  assert listed == [
    ('error', 'train/good/0000.png'),
    ('error', 'ground_truth/cut/003_mask.png'),
    ('warning', 'ground_truth/cut/004_mask.png'),
  ]


def test_a_file_with_many_problems_makes_no_long_sheet(tmp_path):
  for i in range(4):
    write_noise(tmp_path / f'{i}.png', i)
  (tmp_path / 'train.txt').write_text('0.png\n1.png\n2.png\n' + 200 * '3.png\n')
  reports.write(checks.check(tmp_path), tmp_path / 'run')
  assert image_io.image_size(tmp_path / 'run/check_dataset/problems.png')[0] < 1000


def test_an_unreadable_image_is_a_gray_tile_above_its_message(tmp_path):
  root = bottles(tmp_path / 'bottles')
  (root / 'train/good/0000.png').touch()
  reports.write(checks.check(root), tmp_path)
  sheet = image_io.decode(tmp_path / 'check_dataset/problems.png')
  gray = (sheet == 200).all(-1)
  rows = np.flatnonzero(gray.sum(1) > 200)
  assert len(rows) > 100
  assert (sheet[rows.max() + 1 :, :, 0] > sheet[rows.max() + 1 :, :, 1] + 50).any()  # In red.


@given(st.floats(1e-6, 100), st.floats(1, 1e5))
def test_ticks_are_plain_numbers_and_more_than_one(least, span):
  axes = figure.Figure().subplots()
  axes.set_xscale('log')
  axes.xaxis.set_major_locator(reports._log_ticks(span))
  low, high = least / 1.1, least * span * 1.1
  axes.set_xlim(low, high)
  inside = [tick for tick in axes.get_xticks() if low <= tick <= high]
  assert inside
  for tick in inside:
    assert 'e' not in reports._format_plain(tick)
    np.testing.assert_allclose(float(reports._format_plain(tick)), tick, rtol=1e-5)


def test_problems_of_folders_have_no_sheet(tmp_path):
  root = bottles(tmp_path / 'bottles')
  write_noise(root / 'train/scratch/0.png', 500)  # A folder is what is wrong.
  result = reports.write(checks.check(root), tmp_path)
  assert result['problems']
  assert 'problems' not in result['analysis']
  assert not (tmp_path / 'check_dataset/problems.png').exists()


def test_a_second_check_replaces_the_first(tmp_path):
  root = bottles(tmp_path / 'bottles')
  mask(root / 'ground_truth/cut/003_mask.png', 9, 9)
  reports.write(checks.check(root), tmp_path)
  mask(root / 'ground_truth/cut/003_mask.png')
  reports.write(checks.check(root), tmp_path)
  assert not (tmp_path / 'check_dataset/problems.png').exists()


@pytest.mark.parametrize('names', [('$x_$', '瑕疵'), ()], ids=['strange names', 'no defects'])
def test_a_histogram_is_drawn_whatever_the_names_of_defects(tmp_path, names):
  report = checks.check(bottles(tmp_path / 'bottles', names))
  reports.write(report, tmp_path)
  assert (tmp_path / 'check_dataset/histogram.png').stat().st_size > 1000


def test_samples_have_a_largest_size_whatever_their_shape(tmp_path):
  for number, (height, width) in enumerate([(5, 900), (900, 5), (1, 1), (700, 600)]):
    write_noise(tmp_path / f'parts/{number}.png', number, (height, width, 3))
  result = reports.write(checks.check(tmp_path / 'parts'), tmp_path)
  assert result['check_pass']
  assert result['attributes']['val_sample_paths'] == []
  for name in result['attributes']['train_sample_paths']:
    assert max(image_io.image_size(tmp_path / name)) <= 2 * 400 + 50
