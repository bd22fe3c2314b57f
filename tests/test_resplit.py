"""Laws of drawing the lists of a dataset anew."""

from pathlib import Path

from hypothesis import given, settings, strategies as st
import numpy as np
from PIL import Image
import pytest

from uadjax.data import layouts, resplit as resplitting
from uadjax.data.layouts import seglist
from uadjax.errors import ConfigError, DataError
from uadjax.training import settings as run_settings

resplit = resplitting.resplit


def png(path: Path, value: int) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.zeros((4, 4), np.uint8)
  pixels[0, 0] = value
  Image.fromarray(pixels).save(path)


def make(root: Path, good=20, bad=5) -> Path:
  """All of it in train.txt, defects too; names hold spaces."""
  lines = []
  for number in range(good + bad):
    name = f'{"bad" if number >= good else "good"} {number}.png'
    png(root / 'images' / name, 9)
    png(root / 'annotations' / name, 200 if number >= good else 0)
    lines.append(f'images/{name}\tannotations/{name}\n')
  (root / 'train.txt').write_text(''.join(lines))
  return root


def listed(root: Path) -> tuple[list[str], list[str]]:
  read = (seglist.read_list(root / name) for name in ('train.txt', 'val.txt'))
  train, val = ([record.path.name for record in records] for records, wrong in read if not wrong)
  return train, val


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  return make(tmp_path_factory.mktemp('whole'))


@settings(max_examples=30)
@given(st.integers(1, 99), st.integers(0, 2**32 - 1))
def test_no_image_is_lost_or_doubled_and_defects_are_never_learned_from(whole, percent, seed):
  for backup in whole.glob('*.bak*'):
    backup.unlink()
  summary = resplit(whole, percent, seed)
  train, val = listed(whole)
  assert sorted(train + val) == sorted(path.name for path in (whole / 'images').iterdir())
  assert all(name.startswith('good') for name in train)
  assert len(train) == min(max(round(20 * percent / 100), 1), 19)
  assert summary[:3] == (len(train), len(val), 5)
  # Whatever the lists were before, the same seed gives the same.
  before = (whole / 'train.txt').read_bytes(), (whole / 'val.txt').read_bytes()
  resplit(whole, 50, seed + 1)
  resplit(whole, percent, seed)
  assert ((whole / 'train.txt').read_bytes(), (whole / 'val.txt').read_bytes()) == before


def test_the_seed_decides(tmp_path):
  make(tmp_path)
  resplit(tmp_path, 50, 0)
  first = listed(tmp_path)
  resplit(tmp_path, 50, 1)
  assert listed(tmp_path) != first
  splits = layouts.load(tmp_path)
  assert len(splits.train) == 10
  assert sum(record.is_anomalous for record in splits.test) == 5


def test_old_lists_are_kept_to_the_byte(tmp_path):
  make(tmp_path)
  (tmp_path / 'val.txt').write_bytes(b'')
  originals = [(tmp_path / 'train.txt').read_bytes(), b'']
  assert resplit(tmp_path, 80, 0).backups == ('train.txt.bak', 'val.txt.bak')
  second = (tmp_path / 'train.txt').read_bytes()
  assert resplit(tmp_path, 80, 1).backups == ('train.txt.bak.1', 'val.txt.bak.1')
  assert resplit(tmp_path, 80, 2).backups == ('train.txt.bak.2', 'val.txt.bak.2')
  assert [(tmp_path / f'{n}.txt.bak').read_bytes() for n in ('train', 'val')] == originals
  assert (tmp_path / 'train.txt.bak.1').read_bytes() == second


def test_lists_of_windows_and_images_without_masks(tmp_path):
  for name in 'abcd':
    png(tmp_path / f'images/{name}.png', 9)
  png(tmp_path / 'images/two words.png', 9)
  png(tmp_path / 'annotations/d.png', 255)
  (tmp_path / 'train.txt').write_bytes(
    b'\xef\xbb\xbfimages\\a.png\r\n\r\n'
    b'images\\b.png images\\b.png\r\n'  # How PaddleX lists a good image of MVTec AD.
    b'images\\two words.png\t\r\n'
  )
  (tmp_path / 'val.txt').write_text('images/c.png\nimages/d.png\tannotations/d.png\nimages/c.png')
  assert resplit(tmp_path, 50, 3)[:3] == (2, 3, 1)
  train, val = listed(tmp_path)
  assert sorted(train + val) == ['a.png', 'b.png', 'c.png', 'd.png', 'two words.png']
  assert 'd.png' in val


def test_the_reading_of_masks_determines_which_images_are_defective(tmp_path):
  make(tmp_path, good=4, bad=2)
  assert resplit(tmp_path, 50, 0, mask_reading='above:200').defective == 0
  assert resplit(tmp_path, 50, 0, mask_reading='above:199').defective == 2


@pytest.mark.parametrize('key', ['train_percent', 'val_percent'])
@pytest.mark.parametrize('percent', [0, 100, -20, 120, True, 79.5])
def test_percentages_that_are_refused(key, percent):
  with pytest.raises(ConfigError) as caught:
    run_settings.load('padim', [(f'check.split.{key}', percent)])
  assert caught.value.key == f'check.split.{key}'


def test_lists_that_cannot_be_split_stay_as_they_are(tmp_path):
  with pytest.raises(DataError, match=r'only the layout seglist can be split; convert'):
    resplit(tmp_path, 80, 0)
  make(tmp_path, good=1, bad=2)
  with pytest.raises(DataError, match='at least 2 images'):
    resplit(tmp_path, 80, 0)
  png(tmp_path / 'other.png', 0)
  (tmp_path / 'val.txt').write_text('images/good 0.png\tother.png\nlost.png\n')
  before = (tmp_path / 'train.txt').read_bytes()
  with pytest.raises(
    DataError, match=r'(?s)2 problems:.*no file .*lost\.png.*listed with two masks'
  ):
    resplit(tmp_path, 80, 0)
  assert (tmp_path / 'train.txt').read_bytes() == before
  assert not [*tmp_path.glob('*.bak')]
