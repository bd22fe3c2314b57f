"""Laws of reading folders."""

import functools
import inspect
from pathlib import Path
import re

from hypothesis import given, strategies as st
from image_files import touch, write_noise
import numpy as np
from PIL import Image
import pytest

from uadjax import serve
from uadjax.data import image_io, inputs, layouts, records as record_types
from uadjax.data.layouts import mvtec as mvtecs, scanning, seglist
from uadjax.data.records import Record
from uadjax.errors import ConfigError, DataError, UnknownName


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
  train, test = layouts.load(tmp_path, 'any name', layout)
  assert train == tuple(Record(directory / 'train/good' / name) for name in ('2.PNG', '10.png'))
  truth = directory / 'ground_truth/cut'
  assert test == (
    Record(directory / 'test/cut/0.png', 'cut', truth / '0_mask.png'),
    Record(directory / 'test/cut/1.TIFF', 'cut', truth / '1.png'),
    Record(directory / 'test/good/0.jpg', 'good', None),
    Record(directory / 'test/hole/5.png', 'hole', None),
    Record(directory / 'test/hole/6.png', 'hole', None),
  )
  assert [record.is_anomalous for record in test] == [True, True, False, True, True]
  assert layouts.load(str(directory)) == (train, test)


def test_folder(tmp_path):
  touch(*(tmp_path / 'parts' / f'{i}.bmp' for i in (1, 2, 11)))
  assert [r.path.stem for r in layouts.load(tmp_path, 'parts').train] == ['1', '2', '11']
  assert layouts.load(tmp_path, 'parts').test == ()
  touch(tmp_path / 'line/Normal/1.webp', tmp_path / 'line/anomalous/7.jpeg')
  splits = layouts.load(tmp_path, 'line', 'folder')
  assert splits.train == (Record(tmp_path / 'line/Normal/1.webp'),)
  assert splits.test == (Record(tmp_path / 'line/anomalous/7.jpeg', 'anomalous'),)


@pytest.mark.parametrize('suffix', scanning.SUFFIXES)
def test_each_suffix_is_read_in_any_case(tmp_path, suffix):
  pixels = np.tile(np.array([[10, 200]], np.uint8), (16, 8))
  formats = {'.jfif': 'JPEG', '.jpe': 'JPEG', '.pnm': 'PPM'}
  for name in (f'a{suffix}', f'b{suffix.upper()}'):
    Image.fromarray(pixels).save(tmp_path / name, formats.get(suffix))
  paths = [record.path for record in layouts.load(tmp_path).train]
  assert [path.name for path in paths] == [f'a{suffix}', f'b{suffix.upper()}']
  assert paths == [source.origin for source in inputs.expand(tmp_path)]
  for path in paths:
    assert abs(image_io.decode(path)[..., 0].astype(int) - pixels).mean() < 12


def test_the_page_of_the_service_takes_the_same_suffixes():
  folder = Path(inspect.getfile(serve)).parent / 'page'
  listed = re.search(r'IMAGE_SUFFIX = /(.*)/i', (folder / 'upload.js').read_text())
  offered = re.search(r'accept="image/\*,([^"]*)"', (folder / 'index.html').read_text())
  assert listed
  assert offered
  # Browsers know the others as images.
  assert {*offered[1].split(',')} <= {*scanning.SUFFIXES}
  for suffix in (*scanning.SUFFIXES, '.heic', '.svg', '.txt', '.ps', '.jp2k'):
    assert bool(re.search(listed[1], f'a{suffix}')) == (suffix in scanning.SUFFIXES), suffix


def mask(path: Path, *values: int) -> Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.array([[0, 0, *values]], np.uint8)).save(path)
  return path


def paddlex(root: Path) -> Path:
  directory = root / 'line 1'
  names = ('1.png', '2.png', 'scratch/1.png', 'val/dent/1.png', 'good/7.jpg', 'good/7.png')
  touch(*(directory / 'images' / name for name in names), directory / 'elsewhere/deep/3.png')
  for name, value in (('none', 0), ('weak', 1), ('strong', 255)):
    mask(directory / f'annotations/{name}.png', value)
  (directory / 'train.txt').write_text('images/2.png annotations/none.png\nimages/1.png\n')
  (directory / 'val.txt').write_text(
    'images/scratch/1.png annotations/strong.png\n'
    'images/val/dent/1.png annotations/weak.png\n'
    'images/good/7.jpg annotations/strong.png\n'
    'images/good/7.png annotations/none.png\n'
    'elsewhere/deep/3.png annotations/strong.png\n'
    'images/scratch/1.png\n'
  )
  return directory


@pytest.mark.parametrize('layout', ['auto', 'seglist'])
def test_in_a_seglist_the_mask_determines_what_is_good(tmp_path, layout):
  directory = paddlex(tmp_path)
  images, truth = directory / 'images', directory / 'annotations'
  train, test = layouts.load(tmp_path, 'line 1', layout)
  assert train == (Record(images / '2.png', 'good', truth / 'none.png'), Record(images / '1.png'))
  assert test == (
    Record(images / 'scratch/1.png', 'scratch', truth / 'strong.png'),
    Record(images / 'val/dent/1.png', 'dent', truth / 'weak.png'),
    Record(images / 'good/7.jpg', 'defect', truth / 'strong.png'),  # Never 'good'.
    Record(images / 'good/7.png', 'good', truth / 'none.png'),
    Record(directory / 'elsewhere/deep/3.png', 'defect', truth / 'strong.png'),
    Record(images / 'scratch/1.png'),
  )
  assert [r.defect for r in layouts.load(directory, mask_reading='above:1').test[:2]] == [
    'scratch',
    'good',
  ]
  assert layouts.categories(tmp_path) == ['line 1']


def test_a_folder_train_comes_before_a_list(tmp_path):
  directory = paddlex(tmp_path)
  touch(directory / 'train/good/1.png')
  assert layouts.load(directory).train == (Record(directory / 'train/good/1.png'),)


def test_a_seglist_needs_no_test_set_but_something_to_learn_from(tmp_path):
  directory = paddlex(tmp_path)
  (directory / 'val.txt').unlink()
  assert layouts.load(directory).test == ()
  (directory / 'train.txt').write_text('\n\r\n  \n')
  with pytest.raises(DataError, match=r"train\.txt lists no image.*'image mask'"):
    layouts.load(directory)
  (directory / 'train.txt').unlink()
  with pytest.raises(DataError, match=r'Cannot read .*train\.txt: No such file'):
    layouts.load(directory, layout='seglist')


def test_defects_are_never_learned_from(tmp_path):
  directory = paddlex(tmp_path)
  with (directory / 'train.txt').open('a') as file:
    file.write('images/scratch/1.png annotations/weak.png\n')
  with pytest.raises(DataError, match=r'scratch/1\.png.*weak\.png shows a defect.*val\.txt'):
    layouts.load(directory)
  assert len(layouts.load(directory, mask_reading='above:1').train) == 3
  assert layouts.scan(directory).problems == ()


WRITTEN = (
    b'a.png b.png\n', b'a.png b.png', b'a.png   b.png  \n', b'\xef\xbb\xbfa.png b.png\r\n\r\n',
    b'a.png\tb.png\r\n', b'a.png\t\tb.png\t\n', b'.\\a.png .\\b.png\r\n', b'\n \n\t\na.png b.png\r',
    b'c d/../a.png\tb.png\n',
    b'"a.png" "b.png"\r\n', b'"c d/../a.png" b.png', b'"a.png"\t"b.png"', b"'a.png' 'b.png'",
    b'a.png \t b.png \t \r\n', 'a.png b.png\r\n'.encode('utf-16'),
    b'\xfe\xff' + 'a.png\tb.png'.encode('utf-16-be'), b'# a comment\n#c.png\n\na.png b.png',
    b'image mask\na.png b.png', b'\xef\xbb\xbfImage_Path\tmask\r\na.png b.png',
)  # fmt: skip


def test_lists_as_they_are_written(tmp_path):
  touch(tmp_path / 'a.png', tmp_path / 'b.png', tmp_path / 'c d/e.png')
  expected = [Record(tmp_path / 'a.png', 'defect', tmp_path / 'b.png')], []
  for content in WRITTEN:
    (tmp_path / 'list.txt').write_bytes(content)
    assert seglist.read_list(tmp_path / 'list.txt') == expected, content


def test_a_line_that_names_a_file_is_neither_a_comment_nor_a_header(tmp_path):
  for name in ('#1.png', 'image', '# 2.png'):
    touch(tmp_path / name)
    (tmp_path / 'list.txt').write_text(f'{name}\t\n')
    records, issues = seglist.read_list(tmp_path / 'list.txt')
    assert ([record.path for record in records], issues) == ([tmp_path / name], [])


def test_an_image_that_is_its_own_mask_has_none(tmp_path):
  touch(tmp_path / 'a.png')
  for content in (b'a.png a.png', b'a.png\ta.png\r\n', b'a.png .\\a.png', b'c d/../a.png\ta.png'):
    (tmp_path / 'list.txt').write_bytes(content)
    expected = [Record(tmp_path / 'a.png', 'defect')], []
    assert seglist.read_list(tmp_path / 'list.txt') == expected, content


def test_names_with_spaces_and_of_any_alphabet(tmp_path):
  names = ['my image.png', '瑕疵 1.png', 'Köln\u3000x.png']
  touch(*(tmp_path / name for name in names), tmp_path / '良品.png')
  lines = [f'{names[0]}\t{names[1]}', f'{names[2]}\t', f'良品.png {names[2]}']
  (tmp_path / 'list.txt').write_text('\n'.join(lines), encoding='utf-8')
  assert seglist.read_list(tmp_path / 'list.txt') == (
    [
      Record(tmp_path / names[0], 'defect', tmp_path / names[1]),
      Record(tmp_path / names[2], 'defect'),
      Record(tmp_path / '良品.png', 'defect', tmp_path / names[2]),
    ],
    [],
  )


BAD_LINES = [
  (b'../a.png', 'path leaves the root', r'\.\./a\.png leaves'),
  (b'x/../../a.png', 'path leaves the root', 'leaves'),
  (b'..\\a.png', 'path leaves the root', 'leaves'),
  (b'a.png /etc/passwd', 'path leaves the root', r'/etc/passwd leaves'),
  (b'C:\\data\\a.png', 'path leaves the root', 'leaves'),
  (b'\\\\server\\a.png', 'path leaves the root', 'leaves'),
  (b'a.png b.png c.png', 'list syntax', r'3 fields.*a tab between'),
  (b'\ta.png', 'list syntax', 'begins with a tab'),
  (b'a\xff.png', 'list syntax', r'byte 2 is not UTF-8'),
  (b'a.png\0', 'list syntax', 'null'),
  (b'"a.png" b.png "c d.png"', 'list syntax', '3 fields'),
  (b'image mask', 'missing file', 'no file'),  # A header is the first line.
  (b'c.png', 'missing file', r'no file .*c\.png\.$'),
  (b'my c.png', 'missing file', r'no file .*my; if a path contains spaces'),
  (b'a.png c.png', 'missing file', r'no file .*c\.png'),
  (b'c' * 300 + b'.png', 'missing file', 'no file'),
]


def test_problems_of_a_line_are_reported_with_its_number(tmp_path):
  touch(tmp_path / 'root/a.png', tmp_path / 'root/b.png', tmp_path / 'a.png')
  file = tmp_path / 'root/train.txt'
  for line, kind, pattern in BAD_LINES:
    file.write_bytes(b'a.png b.png\r\n\r\n' + line + b'\r\nb.png\r\n')
    lines, issues = seglist.read_list(file)
    assert lines[0] == Record(tmp_path / 'root/a.png', 'defect', tmp_path / 'root/b.png'), line
    assert lines[-1] == Record(tmp_path / 'root/b.png', 'defect'), line
    assert issues, line
    assert all(p.kind == kind and 'train.txt line 3: ' in p.message for p in issues), issues
    with pytest.raises(DataError, match=pattern):
      layouts.load(tmp_path, 'root')


def test_an_absolute_path_may_lead_inside(tmp_path):
  touch(tmp_path / 'a.png')
  (tmp_path / 'train.txt').write_text(f'{tmp_path}/a.png')
  assert layouts.load(tmp_path).train == (Record(tmp_path / 'a.png'),)


@given(
  st.lists(st.sampled_from(['..', '.', 'in', 'a.png', '/', '\\', ' ', '\t', '\n']), max_size=9)
)
def test_no_list_names_anything_outside(tmp_path_factory, parts):
  inside = tmp_path_factory.getbasetemp() / 'fuzzed/in'
  touch(inside.parent / 'a.png', inside / 'a.png', inside / 'in/a.png')
  (inside / 'train.txt').write_text(''.join(parts))
  records, _ = seglist.read_list(inside / 'train.txt')
  allowed = {inside / 'a.png', inside / 'in/a.png', None}
  assert {path for record in records for path in (record.path, record.mask)} <= allowed


def test_images_that_share_a_stem_have_masks_of_their_own(tmp_path):
  touch(tmp_path / 'train/good/0.png')
  touch(*(tmp_path / 'test/cut' / name for name in ('0.jpg', '0.png', '1.bmp', '1.png', '2.png')))
  masks = ('0_mask.jpg', '0_mask.png', '1_mask.png', '1.bmp_mask.png', '2.tif')
  touch(*(tmp_path / 'ground_truth/cut' / name for name in masks))
  mask_names = {r.path.name: r.mask.name for r in layouts.load(tmp_path, layout='mvtec').test}
  assert mask_names == {
    '0.jpg': '0_mask.jpg',
    '0.png': '0_mask.png',
    '1.bmp': '1.bmp_mask.png',
    '1.png': '1_mask.png',
    '2.png': '2.tif',
  }


def test_groups(tmp_path):
  for category in ('wood', 'screw', 'bottle', 'mine'):
    mvtec(tmp_path, category)
  touch(tmp_path / 'notes/readme.txt')
  assert layouts.categories(tmp_path) == ['bottle', 'mine', 'screw', 'wood']
  assert layouts.expand(tmp_path, 'all') == ['bottle', 'mine', 'screw', 'wood']
  assert layouts.expand(tmp_path, 'objects') == ['bottle', 'screw']
  assert layouts.expand(tmp_path, 'textures') == ['wood']
  assert layouts.expand(tmp_path, 'mine') == ['mine']
  assert len(mvtecs.TEXTURES + mvtecs.OBJECTS) == 15
  with pytest.raises(UnknownName, match=r'textures.*carpet'):
    layouts.expand(tmp_path / 'mine', 'textures')


def test_errors_name_what_is_missing(tmp_path):
  with pytest.raises(DataError, match=r'No folder .*absent'):
    layouts.load(tmp_path / 'absent', 'bottle')
  touch(tmp_path / 'group/bottle/train/good/1.png')
  with pytest.raises(ConfigError, match=r"contains categories.*data\.category.*'bottle'"):
    layouts.load(tmp_path / 'group')
  directory = mvtec(tmp_path, 'bottle')
  with pytest.raises(UnknownName, match=r"'botle' in .* mean 'bottle'\? Available: bottle\."):
    layouts.load(tmp_path, 'botle')
  with pytest.raises(ConfigError, match=r"'coco'.*'auto'.*'folder'.*'mvtec'.*'seglist'"):
    layouts.load(tmp_path, 'bottle', 'coco')
  for path in directory.glob('test/*/*'):
    path.unlink()
  with pytest.raises(DataError, match=r'No images in the folders of .*test'):
    layouts.load(tmp_path, 'bottle')
  for path in directory.glob('train/good/*.[pP]*'):
    path.unlink()
  with pytest.raises(DataError, match=r'No images in .*good'):
    layouts.load(tmp_path, 'bottle')
  touch(tmp_path / 'screw/train/fine/1.png')
  with pytest.raises(DataError, match=r'No folder .*screw/train/good'):
    layouts.load(tmp_path, 'screw')
  touch(tmp_path / 'empty/anomalous/1.png')
  with pytest.raises(DataError, match=r'No normal images in .*empty'):
    layouts.load(tmp_path, 'empty')


@given(
  st.integers(0, 40), st.lists(st.floats(0.01, 1.0), min_size=1, max_size=4), st.integers(0, 9)
)
def test_split_is_a_partition(n, fractions, seed):
  records = [Record(Path(f'{i}.png')) for i in range(n)]
  if n < len(fractions):
    with pytest.raises(DataError, match=f'at least {len(fractions)} images'):
      record_types.partition(records, fractions, seed)
    return
  parts = record_types.partition(records, fractions, seed)
  assert parts == record_types.partition(records, fractions, seed)
  assert sorted(record for part in parts for record in part) == sorted(records)
  assert all(parts)
  for part, fraction in zip(parts, fractions, strict=True):
    assert len(part) == 1 or abs(len(part) - n * fraction / sum(fractions)) < len(fractions) + 1
    assert [records.index(record) for record in part] == sorted(map(records.index, part))


def test_split_depends_on_the_seed():
  records = [Record(Path(f'{i}.png')) for i in range(50)]
  assert [len(part) for part in record_types.partition(records, (0.8, 0.1, 0.1), 0)] == [40, 5, 5]
  assert record_types.partition(records, (0.8, 0.2), 0) != record_types.partition(
    records, (0.8, 0.2), 1
  )
  with pytest.raises(AssertionError):
    record_types.partition(records, (1.0, 0.0), 0)


@pytest.mark.real
def test_bottle(shared: Path):
  train, test = layouts.load(shared / 'data/mvtec_ad', 'bottle')
  assert len(train) == 209
  assert len(test) == 83
  assert sum(record.is_anomalous for record in test) == 63
  assert all((record.mask is not None) == record.is_anomalous for record in test)
  assert layouts.expand(shared / 'data/mvtec_ad', 'objects') == ['bottle', 'screw', 'toothbrush']


def test_a_link_to_a_folder_above_is_not_followed(tmp_path):
  folder = tmp_path / 'a' / 'b'
  folder.mkdir(parents=True)
  (folder / 'x.png').touch()
  (folder / 'loop').symlink_to(tmp_path)
  assert scanning.find_files(tmp_path) == [folder / 'x.png']


NO_KINDS = (
  *('2024-05-01', '20240501', '2024_05', '01.05.2024', '2024-05-01_15-30', '20240501T153000Z'),
  *('images', 'IMG', 'JPEGImages', 'data'),
)
KINDS = ('scratch', '2024', '0001', '12345678', '2024-13-01', 'batch 2024-05-01', '1.5', 'M6x20')


photograph = functools.partial(write_noise, shape=(12, 12))


def test_folders_named_after_dates_or_content_are_no_kinds_of_defects(tmp_path):
  for number, name in enumerate((*NO_KINDS, *KINDS)):
    for prefix, good in (('', 'good'), ('test/', 'train/good')):
      root = tmp_path / f'{number}{prefix[:-1]}'
      touch(root / good / '0.png', root / prefix / 'cut/0.png', root / prefix / name / '0.png')
      listing = layouts.scan(root)
      kinds = {record.defect for record in listing.splits.test}
      problems = [p for p in listing.problems if p.kind == 'unnamed type of defect']
      assert kinds == ({'cut'} if name in NO_KINDS else {'cut', name}), name
      assert [p.path for p in problems] == ([root / prefix / name] if name in NO_KINDS else []), (
        name
      )


def test_folders_of_dates_among_good_images_are_read(tmp_path):
  for root, good in ((tmp_path / 'a', 'good'), (tmp_path / 'b', 'train/good')):
    names = ('2024-05-01/0.png', '2024-05-02/cam1/0.png')
    touch(*(root / good / name for name in (*names, 'NG/0.png', 'mask/0.png')))
    expected = [root / good / name for name in names]
    assert [record.path for record in layouts.scan(root).splits.train] == expected


def test_photographs_in_a_folder_named_like_masks_are_refused(tmp_path):
  for name in ('label', 'Labels', 'annotation', 'annotations'):
    for prefix, good in (('', 'good'), ('test/', 'train/good')):
      root = tmp_path / name / good.replace('/', ' ')
      for i in range(3):
        photograph(root / good / f'{i}.png', i)
        photograph(root / prefix / name / f'{i}.png', 9 + i)
      (problem,) = [p for p in layouts.scan(root).problems if 'folder of masks' in p.kind]
      assert problem.path == root / prefix / name
      assert f'{name}_defect' in problem.message
      for i in range(3):
        mask(root / prefix / name / f'{i}.png', 255)
      assert not [p for p in layouts.scan(root).problems if 'folder of masks' in p.kind]


def test_a_dataset_named_after_defects_is_a_warning(tmp_path):
  for name in ('NG', 'bad', 'Defects', 'good', 'bolts'):
    photograph(tmp_path / name / '0.png')
    kinds = [problem.kind for problem in layouts.scan(tmp_path / name).problems]
    assert ('defects in training' in kinds) == (name not in ('good', 'bolts')), name
