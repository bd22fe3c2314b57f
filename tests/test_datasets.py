"""Laws of reading folders."""

from pathlib import Path

from hypothesis import given, strategies as st
from PIL import Image
import pytest

from uadjax.data import datasets
from uadjax.types import ConfigError, DataError, Record


def touch(*paths: Path) -> None:
  for path in paths:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def mvtec(root: Path, category: str) -> Path:
  directory = root / category
  touch(*(directory / 'train/good' / name for name in ('10.png', '2.PNG', '.hidden.png', 'a.txt')))
  touch(*(directory / 'test' / name for name in ('good/0.jpg', 'cut/0.png', 'cut/1.TIFF')))
  touch(*(directory / 'test' / name for name in ('hole/5.png', 'hole/6.png')))
  touch(directory / 'ground_truth/cut/0_mask.png', directory / 'ground_truth/cut/1.png')
  touch(directory / 'ground_truth/cut/0.png', directory / 'license.txt')
  return directory


@pytest.mark.parametrize('layout', ['auto', 'mvtec'])
def test_mvtec(tmp_path, layout):
  directory = mvtec(tmp_path, 'any name')
  train, test = datasets.load(tmp_path, 'any name', layout)
  assert train == tuple(Record(directory / 'train/good' / name) for name in ('2.PNG', '10.png'))
  truth = directory / 'ground_truth/cut'
  assert test == (
    Record(directory / 'test/cut/0.png', 'cut', truth / '0_mask.png'),
    Record(directory / 'test/cut/1.TIFF', 'cut', truth / '1.png'),
    Record(directory / 'test/good/0.jpg', 'good', None),
    Record(directory / 'test/hole/5.png', 'hole', None),
    Record(directory / 'test/hole/6.png', 'hole', None),
  )
  assert [record.anomalous for record in test] == [True, True, False, True, True]
  assert datasets.load(str(directory)) == (train, test)


def test_folder(tmp_path):
  touch(*(tmp_path / 'parts' / f'{i}.bmp' for i in (1, 2, 11)))
  assert [r.path.stem for r in datasets.load(tmp_path, 'parts').train] == ['1', '2', '11']
  assert datasets.load(tmp_path, 'parts').test == ()
  touch(tmp_path / 'line/Normal/1.webp', tmp_path / 'line/anomalous/7.jpeg')
  splits = datasets.load(tmp_path, 'line', 'folder')
  assert splits.train == (Record(tmp_path / 'line/Normal/1.webp'),)
  assert splits.test == (Record(tmp_path / 'line/anomalous/7.jpeg', 'anomalous'),)


def test_groups(tmp_path):
  for category in ('wood', 'screw', 'bottle', 'mine'):
    mvtec(tmp_path, category)
  touch(tmp_path / 'notes/readme.txt')
  assert datasets.categories(tmp_path) == ['bottle', 'mine', 'screw', 'wood']
  assert datasets.expand(tmp_path, 'all') == ['bottle', 'mine', 'screw', 'wood']
  assert datasets.expand(tmp_path, 'objects') == ['bottle', 'screw']
  assert datasets.expand(tmp_path, 'textures') == ['wood']
  assert datasets.expand(tmp_path, 'mine') == ['mine']
  assert len(datasets.TEXTURES + datasets.OBJECTS) == 15
  with pytest.raises(DataError, match=r'textures.*carpet'):
    datasets.expand(tmp_path / 'mine', 'textures')


def test_errors_name_what_is_missing(tmp_path):
  with pytest.raises(DataError, match=r'No folder .*absent'):
    datasets.load(tmp_path / 'absent', 'bottle')
  directory = mvtec(tmp_path, 'bottle')
  with pytest.raises(DataError, match=r"'botle' in .* mean 'bottle'\? There are: bottle\."):
    datasets.load(tmp_path, 'botle')
  with pytest.raises(ConfigError, match=r"'coco'.*'auto', 'folder', 'mvtec'"):
    datasets.load(tmp_path, 'bottle', 'coco')
  for path in directory.glob('test/*/*'):
    path.unlink()
  with pytest.raises(DataError, match=r'No images in the folders of .*test'):
    datasets.load(tmp_path, 'bottle')
  for path in directory.glob('train/good/*.[pP]*'):
    path.unlink()
  with pytest.raises(DataError, match=r'No images in .*good'):
    datasets.load(tmp_path, 'bottle')
  touch(tmp_path / 'screw/train/fine/1.png')
  with pytest.raises(DataError, match=r'No folder .*screw/train/good'):
    datasets.load(tmp_path, 'screw')
  touch(tmp_path / 'empty/anomalous/1.png')
  with pytest.raises(DataError, match=r'No normal images in .*empty'):
    datasets.load(tmp_path, 'empty')


@given(
  st.integers(0, 40), st.lists(st.floats(0.01, 1.0), min_size=1, max_size=4), st.integers(0, 9)
)
def test_split_is_a_partition(n, fractions, seed):
  records = [Record(Path(f'{i}.png')) for i in range(n)]
  if n < len(fractions):
    with pytest.raises(DataError, match=f'at least {len(fractions)} images'):
      datasets.split(records, fractions, seed)
    return
  parts = datasets.split(records, fractions, seed)
  assert parts == datasets.split(records, fractions, seed)
  assert sorted(record for part in parts for record in part) == sorted(records)
  assert all(parts)
  for part, fraction in zip(parts, fractions, strict=True):
    assert len(part) == 1 or abs(len(part) - n * fraction / sum(fractions)) < len(fractions) + 1
    assert [records.index(record) for record in part] == sorted(map(records.index, part))


def test_split_depends_on_the_seed():
  records = [Record(Path(f'{i}.png')) for i in range(50)]
  assert [len(part) for part in datasets.split(records, (0.8, 0.1, 0.1), 0)] == [40, 5, 5]
  assert datasets.split(records, (0.8, 0.2), 0) != datasets.split(records, (0.8, 0.2), 1)
  with pytest.raises(ConfigError, match='positive'):
    datasets.split(records, (1.0, 0.0), 0)


def test_verify_lists_what_is_unreadable(tmp_path):
  good = tmp_path / 'good.png'
  Image.new('RGB', (9, 9)).save(good)
  datasets.verify([Record(good, 'cut', good)])
  touch(*(tmp_path / f'bad{i}.png' for i in range(12)))
  records = [Record(good), *(Record(tmp_path / f'bad{i}.png') for i in range(12))]
  with pytest.raises(DataError, match='12 of 13 files') as error:
    datasets.verify(records)
  assert 'bad9.png' in str(error.value)
  assert 'bad10.png' not in str(error.value)
  assert 'and 2 more' in str(error.value)


@pytest.mark.real
def test_bottle(shared: Path):
  train, test = datasets.load(shared / 'data/mvtec_ad', 'bottle')
  assert len(train) == 209
  assert len(test) == 83
  assert sum(record.anomalous for record in test) == 63
  assert all((record.mask is not None) == record.anomalous for record in test)
  datasets.verify(test)
  assert datasets.expand(shared / 'data/mvtec_ad', 'objects') == ['bottle', 'screw', 'toothbrush']
