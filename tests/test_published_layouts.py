"""Laws of published layouts: a small copy of each is read as its authors split and labeled it."""

from collections.abc import Iterator
import csv
from pathlib import Path
import shutil
from typing import NamedTuple

from image_files import touch
import numpy as np
from PIL import Image
import pytest
import small_runs

from uadjax.data import checks, convert, layouts
from uadjax.data.layouts import scanning
from uadjax.data.records import Record
from uadjax.errors import ConfigError, DataError
from uadjax.system.progress import no_progress

SIDE = 8
# Each line is a file of one category and its role: 'train', 'held out', a type of defect, or 'good'
# for test images, each with its mask if there is one; 'empty' for a mask that marks nothing;
# 'unused' for other images; '-' for other files.
TREES = {
  'MVTec AD': ('mvtec', """
    train/good/000.png        train
    test/good/000.png         good
    test/hole/000.png         hole     ground_truth/hole/000_mask.png
    test/hole/001.png         hole     ground_truth/hole/001_mask.png
    test/scratch/000.png      scratch  ground_truth/scratch/000_mask.png
    license.txt               -
  """),
  'MVTec LOCO': ('mvtec', """
    train/good/000.png                     train
    validation/good/000.png                held out
    test/good/000.png                      good
    test/logical_anomalies/000.png         logical_anomalies ground_truth/logical_anomalies/000
    test/structural_anomalies/000.png   structural_anomalies ground_truth/structural_anomalies/000
    test/structural_anomalies/001.png   structural_anomalies ground_truth/structural_anomalies/001
    defects_config.json                    -
  """),
  'MVTec AD 2': ('mvtec_ad_2', """
    train/good/000_regular.png             train
    train/good/000_shift_1.png             train
    validation/good/000_overexposed.png    held out
    test_public/good/000_regular.png       good
    test_public/bad/000_regular.png        bad test_public/ground_truth/bad/000_regular_mask.png
    test_public/bad/000_overexposed.png    bad test_public/ground_truth/bad/000_overexposed_mask.png
    test_private/000_regular.png           unused
    test_private_mixed/000_mixed.png       unused
  """),
  'MVTec 3D-AD': ('mvtec_3d', """
    calibration/camera_parameters.json     -
    train/good/rgb/000.png                 train
    train/good/xyz/000.tiff                unused
    validation/good/rgb/000.png            held out
    validation/good/xyz/000.tiff           unused
    test/good/rgb/000.png                  good  test/good/gt/000.png
    test/good/gt/000.png                   empty
    test/good/xyz/000.tiff                 unused
    test/cut/rgb/000.png                   cut   test/cut/gt/000.png
    test/cut/xyz/000.tiff                  unused
  """),
  'BTAD': ('mvtec', """
    train/ok/0000.bmp         train
    test/ok/0000.bmp          good
    test/ko/0000.bmp          ko   ground_truth/ko/0000.png
    test/ko/0001.bmp          ko   ground_truth/ko/0001.bmp
  """),
  'MPDD': ('mvtec', """
    train/good/000.png        train
    test/good/000.png         good
    test/hole/000.png         hole          ground_truth/hole/000_mask.png
    test/parts_mismatch/0.png parts_mismatch ground_truth/parts_mismatch/0_mask.png
  """),
  'VisA': ('visa', """
    Data/Images/Normal/0000.JPG    train
    Data/Images/Normal/0001.JPG    good
    Data/Images/Anomaly/000.JPG    anomaly  Data/Masks/Anomaly/000.png
    Data/Images/Normal/0002.JPG    unused
    image_anno.csv                 -
  """),
  'KolektorSDD': ('kolektor', """
    kos01/Part0.jpg           train  kos01/Part0_label.bmp
    kos01/Part0_label.bmp     empty
    kos01/Part1.jpg           defect kos01/Part1_label.bmp
    kos02/Part0.jpg           train  kos02/Part0_label.bmp
    kos02/Part0_label.bmp     empty
  """),
  'KolektorSDD2': ('kolektor_2', """
    train/10301.png           train  train/10301_GT.png
    train/10301_GT.png        empty
    train/10302.png           unused train/10302_GT.png
    test/20000.png            good   test/20000_GT.png
    test/20000_GT.png         empty
    test/20001.png            defect test/20001_GT.png
  """),
  'Roboflow': ('kolektor_2', """
    train/a_jpg.rf.01.jpg       train   train/a_jpg.rf.01_mask.png
    train/a_jpg.rf.01_mask.png  empty
    train/b_jpg.rf.02.jpg       unused  train/b_jpg.rf.02_mask.png
    valid/c_jpg.rf.03.jpg       held out valid/c_jpg.rf.03_mask.png
    valid/c_jpg.rf.03_mask.png  empty
    valid/d_jpg.rf.04.jpg       unused  valid/d_jpg.rf.04_mask.png
    test/e_jpg.rf.05.jpg        good    test/e_jpg.rf.05_mask.png
    test/e_jpg.rf.05_mask.png   empty
    test/f_jpg.rf.06.jpg        defect  test/f_jpg.rf.06_mask.png
    train/_classes.csv          -
  """),
  'DAGM': ('dagm', """
    Train/0001.PNG            unused Train/Label/0001_label.PNG
    Train/0002.PNG            train
    Train/Label/Labels.txt    -
    Test/0001.PNG             good
    Test/0002.PNG             defect Test/Label/0002_label.PNG
    Test/Label/Labels.txt     -
  """),
  'magnetic tiles': ('magnetic_tile', """
    MT_Free/Imgs/exp1_num_4727.jpg       train     MT_Free/Imgs/exp1_num_4727.png
    MT_Free/Imgs/exp1_num_4727.png       empty
    MT_Blowhole/Imgs/exp1_num_108889.jpg Blowhole  MT_Blowhole/Imgs/exp1_num_108889.png
  """),
}  # fmt: skip


class Entry(NamedTuple):
  """File of a tree, its role, and its mask or the folder of its masks; '' without one."""

  path: str
  role: str
  mask: str = ''


def parse(tree: str) -> list[Entry]:
  lines = (line.replace('held out', 'held_out').split() for line in tree.strip().splitlines())
  return [Entry(*line) for line in lines]


def save(path: Path, pixels: np.ndarray) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels.astype(np.uint8)).save(path)


def write_tree(category: Path, entries: list[Entry]) -> None:
  rng = np.random.default_rng(len(category.name))
  blank, marked = np.zeros((SIDE, SIDE)), np.pad([[255]], (2, SIDE - 3))
  written = {entry.path for entry in entries}
  for path, role, mask in entries:
    if role == '-':
      (category / path).parent.mkdir(parents=True, exist_ok=True)
      (category / path).write_text('{}')
    else:
      save(category / path, blank if role == 'empty' else rng.integers(0, 256, (SIDE, SIDE, 3)))
    if mask and not Path(mask).suffix:  # A folder of masks.
      save(category / mask / '000.png', marked)
      save(category / mask / '001.png', marked.T)
    elif mask and mask not in written:
      save(category / mask, marked)


def write_dataset(root: Path, name: str) -> list[Entry]:
  """Write two categories of a tree, and what lies beside them; return the files of each."""
  layout, tree = TREES[name]
  entries = parse(tree)
  for category in ('candle', 'pcb1'):
    write_tree(root / category, entries)
  (root / 'readme.txt').write_text('license')
  if layout == 'visa':
    (root / 'split_csv').mkdir()
    with (root / 'split_csv/1cls.csv').open('w', newline='') as file:
      writer = csv.writer(file)
      writer.writerow(('object', 'split', 'label', 'image', 'mask'))
      for category in ('candle', 'pcb1'):
        for path, role, mask in (e for e in entries if e.role not in ('unused', '-')):
          split, label = 'train' if role == 'train' else 'test', role if mask else 'normal'
          mask = f'{category}/{mask}' if mask else ''
          writer.writerow((category, split, label, f'{category}/{path}', mask))
  return entries


def expected(category: Path, entries: list[Entry], in_training: bool) -> Iterator[Record]:
  for path, role, mask in entries:
    if role not in ('unused', 'empty', '-') and in_training == (role in ('train', 'held_out')):
      defect = 'good' if in_training else role
      mask_path = category / mask if mask else None
      yield Record(category / path, defect, mask_path, held_out=role == 'held_out')


@pytest.mark.parametrize('name', TREES)
def test_a_dataset_is_read_as_published(tmp_path, name):
  entries = write_dataset(tmp_path, name)
  assert layouts.categories(tmp_path) == ['candle', 'pcb1']
  with pytest.raises(ConfigError, match='contains categories') as raised:
    layouts.load(tmp_path)
  assert raised.value.allowed == ('candle', 'pcb1')
  for category in ('candle', 'pcb1'):
    train, test = layouts.load(tmp_path, category)
    assert set(train) == set(expected(tmp_path / category, entries, True))
    assert set(test) == set(expected(tmp_path / category, entries, False))
    assert len({*train, *test}) == len(train) + len(test)
    assert layouts.load(tmp_path, category, TREES[name][0]) == (train, test)


@pytest.mark.parametrize('name', TREES)
def test_a_published_dataset_passes_the_check(tmp_path, name):
  write_dataset(tmp_path, name)
  report = checks.check(tmp_path, 'candle', min_images=1)
  assert report.passed, report
  train, test = report.splits
  listed = layouts.load(tmp_path, 'candle')
  assert [r.path for r in (*train, *test)] == [r.path for r in (*listed.train, *listed.test)]
  warned = [p for p in report.problems if p.kind == 'defects in training']
  unused = [e for e in parse(TREES[name][1]) if e.role == 'unused' and e.mask]
  assert bool(warned) == bool(unused)


def test_a_sweep_lists_the_categories_of_each_layout(tmp_path):
  for name in TREES:
    write_dataset(tmp_path / name, name)
    assert layouts.expand(tmp_path / name, 'all') == ['candle', 'pcb1'], name


GOOD = (
  'good',
  'Good',
  'OK',
  'ok',
  'NORMAL',
  'Normal',
  '0_good',
  '1_OK',
  '00-normal',
  'defect_free',
)
DEFECTIVE = ('ko', 'NG', 'bad', 'defect', 'goods', 'not_good', 'ok2', 'abnormal')


def test_words_for_good_images_are_the_same_everywhere(tmp_path):
  for word in (*GOOD, *DEFECTIVE):
    root = tmp_path / word
    touch(root / 'tree/train/good/0.png', root / 'tree/test' / word / '0.png')
    touch(root / 'folder/0.png', root / 'folder' / word / '1.png')
    touch(root / 'list/images' / word / '2.png')
    (root / 'list/train.txt').write_text(f'images/{word}/2.png')
    defect = 'good' if word in GOOD else word
    assert [r.defect for r in layouts.load(root, 'tree').test] == [defect]
    train, test = layouts.load(root, 'folder')
    assert [r.defect for r in (*train, *test)] == ['good', defect]
    (record,) = layouts.scan(root, 'list').splits.train
    assert record.defect == ('defect' if word in GOOD else word)


@pytest.mark.parametrize('good', GOOD)
def test_training_images_lie_in_folders_of_any_word(tmp_path, good):
  touch(tmp_path / 'Train' / good / '0.png', tmp_path / 'TEST/cut/1.png')
  touch(tmp_path / 'Ground_Truth/CUT/1_mask.png')
  mask = tmp_path / 'Ground_Truth/CUT/1_mask.png'
  assert layouts.load(tmp_path) == (
    (Record(tmp_path / 'Train' / good / '0.png'),),
    (Record(tmp_path / 'TEST/cut/1.png', 'cut', mask),),
  )


def test_images_in_subfolders_are_found_with_their_masks(tmp_path):
  touch(*(tmp_path / 'train/good' / name for name in ('0.png', 'cam1/0.png', 'a/b/1.png')))
  touch(*(tmp_path / 'train/good' / name for name in ('NG/2.png', 'mask/0.png', 'ok/3.png')))
  touch(*(tmp_path / 'test/cut' / name for name in ('0.png', 'cam1/0.png', 'cam2/7.png')))
  truth = tmp_path / 'ground_truth/cut'
  touch(truth / '0.png', truth / 'cam1/0_mask.png', truth / '7_mask.png')
  train, test = layouts.load(tmp_path)
  names = {str(r.path.relative_to(tmp_path / 'train/good')) for r in train}
  assert names == {'0.png', 'cam1/0.png', 'a/b/1.png', 'ok/3.png'}  # Never defects or masks.
  masks = {str(r.path.relative_to(tmp_path / 'test/cut')): r.mask for r in test}
  assert masks == {
    '0.png': truth / '0.png',
    'cam1/0.png': truth / 'cam1/0_mask.png',
    'cam2/7.png': truth / '7_mask.png',
  }


@pytest.mark.parametrize('good', ['train/good', 'good', '.'])
@pytest.mark.parametrize('folder', ['val', 'Validation', 'valid', 'val/good', 'VALID/ok'])
def test_good_images_of_a_validation_set_are_held_out(tmp_path, folder, good):
  touch(tmp_path / good / '0.png', tmp_path / folder / '1.png', tmp_path / 'val/cut/2.png')
  train, test = layouts.load(tmp_path)
  held_out = Record(tmp_path / folder / '1.png', held_out=True)
  assert train == (Record(tmp_path / good / '0.png'), held_out)
  assert not test  # Defects of a validation set are not test images.


AMBIGUOUS = {
  'two test sets': ('train/good/0.png', 'test/a/0.png', 'test_public/bad/0.png'),
  'a list and folders': ('Data/Images/Normal/0.JPG', 'train.txt'),
  'two datasets': ('kos01/Part0_label.bmp', 'kos01/Part0.jpg', 'MT_Free/Imgs/0.jpg'),
  'converted beside': ('Data/Images/Normal/0.JPG', 'train/good/0.JPG'),
}


@pytest.mark.parametrize('name', AMBIGUOUS)
def test_ambiguous_layouts_are_refused(tmp_path, name):
  touch(*(tmp_path / path for path in AMBIGUOUS[name]))
  with pytest.raises(ConfigError) as raised:
    layouts.load(tmp_path)
  assert raised.value.key == 'data.layout'
  names = raised.value.allowed
  assert isinstance(names, tuple)
  assert len(names) == 2
  for layout in names:  # The setting decides.
    assert layouts.scan(tmp_path, layout=layout).layout is layouts.scan(tmp_path, '', layout).layout


def visa_list(root: Path, *rows: str, header: str = 'object,split,label,image,mask') -> None:
  (root / 'split_csv').mkdir(exist_ok=True)
  text = '\ufeff' + '\r\n'.join((header, *rows))
  (root / 'split_csv/1cls.csv').write_text(text, encoding='utf-8')


WRONG_ROWS = {
  'candle,dev,normal,candle/Data/Images/Normal/0.JPG,': 'list syntax',
  'candle,train,normal,,': 'list syntax',
  'candle,train,normal,.,': 'path leaves the root',
  'candle,train': 'list syntax',
  'candle,train,anomaly,candle/Data/Images/Normal/0.JPG,': 'defects in training',
  'candle,train,normal,candle/../../etc/passwd,': 'path leaves the root',
  'candle,train,normal,/etc/passwd,': 'path leaves the root',
  'candle,train,normal,pcb1/Data/Images/Normal/0.JPG,': 'path leaves the root',
  'candle,test,normal,candle/Data/Images/Normal/1.JPG,': 'missing file',
  'candle,test,x,candle/Data/Images/Normal/0.JPG,candle/0.png': 'missing file',
}


def test_wrong_lines_of_the_list_of_visa_are_named(tmp_path):
  touch(tmp_path / 'candle/Data/Images/Normal/0.JPG')
  right = 'candle,train,normal,candle/Data/Images/Normal/0.JPG,'
  for row, kind in WRONG_ROWS.items():
    visa_list(tmp_path, right, row, right)
    splits, problems = layouts.scan(tmp_path, 'candle')[1:3]
    assert [(p.severity, p.kind) for p in problems] == [('error', kind)], row
    assert 'line 3: ' in problems[0].message, row
    assert len(splits.train) == 2, row


@pytest.mark.parametrize(
  ('header', 'rows'),
  [
    ('object,split,label,image', ()),
    ('object,split,label,image,mask', ('pcb1,train,a,b,',)),
    ('', ()),
  ],
)
def test_a_list_of_visa_that_names_nothing_is_an_error(tmp_path, header, rows):
  touch(tmp_path / 'candle/Data/Images/Normal/0.JPG')
  with pytest.raises(DataError, match=r'1cls\.csv'):
    layouts.load(tmp_path, 'candle')
  visa_list(tmp_path, *rows, header=header)
  with pytest.raises(DataError, match=r'1cls\.csv'):
    layouts.load(tmp_path, 'candle')


def test_a_conversion_learns_from_no_image_of_a_validation_or_test_set(tmp_path):
  write_dataset(tmp_path, 'MVTec LOCO')
  source, target = tmp_path / 'candle', tmp_path / 'converted'
  shutil.copytree(source / 'train/good', source / 'train/good/camera1')
  convert.convert(source, 'MVTec_AD', target, no_progress)
  splits, read = layouts.load(target), layouts.load(source)
  count = len(read.train) + len(read.test)
  assert len(splits.train) == len(read.learned()) == 2
  assert len(splits.test) == count - len(read.learned())
  assert {r.path.read_bytes() for r in splits.train} == {
    r.path.read_bytes() for r in read.learned()
  }


@pytest.mark.parametrize('name', small_runs.ANY_NAME)
def test_a_validation_set_calibrates_and_is_never_learned_from(drawn, tmp_path, name):
  good = tmp_path / 'data/disc/train/good'
  shutil.copytree(drawn / 'disc/train/good', good)
  held_out = sorted(scanning.files_in(good))[:4]
  for path in held_out:
    path.rename(tmp_path / path.name)
  flags = (*small_runs.flags(name, tmp_path / 'data'), small_runs.NO_EVALUATION)
  without, with_validation = tmp_path / 'without', tmp_path / 'with'
  assert small_runs.run(*flags, f'--workdir={without}') == 0
  (tmp_path / 'data/disc/val').mkdir()
  for path in held_out:
    (tmp_path / path.name).rename(tmp_path / 'data/disc/val' / path.name)
  assert small_runs.run(*flags, f'--workdir={with_validation}') == 0
  before, after = small_runs.arrays(without), small_runs.arrays(with_validation)
  assert before.keys() == after.keys()
  for key, array in before.items():
    np.testing.assert_array_equal(array, after[key], key)
  num_before, num_after = (
    small_runs.manifest(workdir)['thresholds']['num_normals']
    for workdir in (without, with_validation)
  )
  assert num_after == num_before + len(held_out)
