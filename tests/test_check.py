"""Laws of the check: each problem is reported, alone and together with all others."""

from collections.abc import Callable
import functools
from pathlib import Path
import re
import struct
import zlib

import image_files
import numpy as np
from PIL import Image
import pytest

from uadjax.data import checks, image_io, layouts, prepare, problems, transforms
from uadjax.data.settings import DataSettings
from uadjax.errors import ConfigError, DataError

SIZE = 24
picture = functools.partial(image_files.write_noise, shape=(SIZE, SIZE, 3))


def mask(path: Path, *values: int, size: tuple[int, int] = (SIZE, SIZE)) -> None:
  """A mask with one pixel of each value, zero elsewhere."""
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.zeros(size, np.uint8)
  pixels[0, : len(values)] = values
  Image.fromarray(pixels).save(path)


def bomb(path: Path) -> None:
  """A PNG whose header claims 30,000 x 30,000 pixels."""

  def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack('>I', zlib.crc32(kind + content))
    return struct.pack('>I', len(content)) + kind + content + checksum

  header = struct.pack('>IIBBBBB', 30_000, 30_000, 8, 0, 0, 0, 0)
  content = chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(bytes(9))) + chunk(b'IEND', b'')
  path.write_bytes(b'\x89PNG\r\n\x1a\n' + content)


def cut_short(path: Path) -> None:
  picture(path, 900)
  content = path.read_bytes()
  path.write_bytes(content[: len(content) // 2])


def mvtec(root: Path) -> None:
  for i in range(4):
    picture(root / f'train/good/{i}.png', i)
  for i in range(2):
    picture(root / f'test/good/{i}.png', 10 + i)
    picture(root / f'test/cut/{i}.png', 20 + i)
    mask(root / f'ground_truth/cut/{i}_mask.png', 255)
  picture(root / 'test/hole/0.png', 30)
  mask(root / 'ground_truth/hole/0_mask.png', 255, 255)


def folder(root: Path) -> None:
  for i in range(4):
    picture(root / f'good/{i}.png', i)
    picture(root / f'broken/{i}.png', 10 + i)


def seglist(root: Path) -> None:
  mask(root / 'annotations/none.png')
  train, val = [], []
  for i in range(4):
    picture(root / f'images/{i}.png', i)
    train.append(f'images/{i}.png annotations/none.png')
  for i in range(2):
    picture(root / f'images/good/{i}.png', 10 + i)
    picture(root / f'images/cut/{i}.png', 20 + i)
    mask(root / f'annotations/cut_{i}.png', 255)
    val += [f'images/good/{i}.png', f'images/cut/{i}.png annotations/cut_{i}.png']
  (root / 'train.txt').write_text('\n'.join(train) + '\n')
  (root / 'val.txt').write_text('\n'.join(val) + '\n')


LAYOUTS: dict[str, Callable[[Path], None]] = {
  'mvtec': mvtec,
  'folder': folder,
  'seglist': seglist,
}


def line(root: Path, name: str, text: str) -> None:
  with (root / name).open('a') as file:
    file.write(text + '\n')


def copy(root: Path, source: str, target: str) -> None:
  """Return a file of other bytes with the pixels of a file."""
  Image.open(root / source).save(root / target, compress_level=1, optimize=False)


def to_color(path: Path) -> None:
  Image.open(path).convert('RGB').save(path)


def remove(root: Path, pattern: str) -> None:
  for path in root.glob(pattern):
    path.unlink()


# Layout, a change to it, and the problem: severity, kind, path, words of its message.
BAD = [
  ('mvtec', lambda d: (d / 'train/good/a.png').touch(),
   'error', 'unreadable file', 'train/good/a.png', r'is empty \(0 bytes\)'),
  ('mvtec', lambda d: cut_short(d / 'test/good/b.jpg'),
   'error', 'unreadable file', 'test/good/b.jpg', '(?i)truncated'),
  ('mvtec', lambda d: bomb(d / 'test/good/c.png'),
   'error', 'unreadable file', 'test/good/c.png', 'too many pixels'),
  ('mvtec', lambda d: mask(d / 'ground_truth/cut/0_mask.png', 255, size=(9, 8)),
   'error', 'size mismatch', 'ground_truth/cut/0_mask.png', r'is 8x9 pixels.*is 24x24'),
  ('mvtec', lambda d: copy(d, 'train/good/1.png', 'test/hole/x.png'),
   'error', 'defects in training', 'train/good/1.png',
   r'same image as .*test/hole/x\.png.*defective \(hole\); remove .*train/good/1\.png'),
  ('mvtec', lambda d: copy(d, 'train/good/2.png', 'test/good/y.png'),
   'error', 'duplicate in train and test', 'test/good/y.png',
   r'same image as .*train/good/2\.png.*too optimistic'),
  ('mvtec', lambda d: (d / 'train/good/a.json').write_text('{"version": "5", "shapes": []}'),
   'warning', 'labels of another tool', 'train/good', r'1 \*\.json .*a\.json.*type=LabelMe'),
  ('mvtec', lambda d: mask(d / 'ground_truth/good/1_mask.png', 255),
   'error', 'good image with defects', 'test/good/1.png', '1_mask.png marks'),
  ('mvtec', lambda d: mask(d / 'ground_truth/cut/1_mask.png', 1, 2, 3, 9, 200),
   'warning', 'mask not binary', 'ground_truth/cut/1_mask.png',
   r'6 values from 0 to 200.*data.mask=nonzero'),
  ('mvtec', lambda d: to_color(d / 'ground_truth/cut/0_mask.png'),
   'warning', 'mask in color', 'ground_truth/cut/0_mask.png', 'largest channel'),
  ('mvtec', lambda d: mask(d / 'ground_truth/cut/9_mask.png', 255),
   'warning', 'mask without image', 'ground_truth/cut/9_mask.png', 'no matching .*test/cut'),
  ('mvtec', lambda d: (d / 'ground_truth/hole/0_mask.png').unlink(),
   'warning', 'no mask', 'test/hole/0.png', r'defective \(hole\)'),
  ('mvtec', lambda d: mask(d / 'ground_truth/hole/0_mask.png'),
   'warning', 'empty mask', 'ground_truth/hole/0_mask.png', 'marks nothing.*hole'),
  ('mvtec', lambda d: picture(d / 'test/cut/1.bmp', 800),
   'warning', 'shared mask', 'ground_truth/cut/1_mask.png', r'1\.bmp and .*1\.png'),
  ('mvtec', lambda d: copy(d, 'train/good/1.png', 'train/good/x.png'),
   'warning', 'duplicate', 'train/good/x.png', 'same image as .*training set'),
  ('mvtec', lambda d: copy(d, 'test/good/1.png', 'test/good/x.png'),
   'warning', 'duplicate', 'test/good/x.png', 'same image as .*test set'),
  ('mvtec', lambda d: picture(d / 'train/scratch/0.png', 700),
   'warning', 'defects in training', 'train/scratch', r'\(1 images\) is not used'),
  ('mvtec', lambda d: remove(d, 'train/good/*'),
   'error', 'empty split', 'train/good', 'No images in'),
  ('mvtec', lambda d: remove(d, 'train/good/[1-3].png'),
   'warning', 'few images', '.', 'has 1 good training image; STFPM needs 3'),
  ('mvtec', lambda d: remove(d, 'test/*/*'),
   'error', 'empty split', 'test', 'No images in the folders'),
  ('mvtec', lambda d: remove(d, 'test/good/*'),
   'warning', 'no good test images', '.', 'no good test images'),
  ('mvtec', lambda d: [remove(d, f'{p}/{k}/*')
    for p in ('test', 'ground_truth') for k in ('cut', 'hole')],
   'warning', 'no defective test images', '.', 'no defective test images'),
  ('mvtec', lambda d: remove(d, 'ground_truth/*/*'),
   'warning', 'no mask', '.', 'None of the 3 defective images'),
  ('folder', lambda d: (d / 'good/a.png').touch(),
   'error', 'unreadable file', 'good/a.png', r'is empty \(0 bytes\)'),
  ('folder', lambda d: copy(d, 'good/1.png', 'broken/x.png'),
   'error', 'defects in training', 'good/1.png', 'same image as .*broken/x'),
  ('folder', lambda d: (d / 'good/1.xml').write_text('<annotation>\n</annotation>'),
   'warning', 'labels of another tool', 'good', 'dataset_type=VOC'),
  ('folder', lambda d: remove(d, 'good/*'),
   'error', 'empty split', '.', 'No normal images'),
  ('folder', lambda d: remove(d, 'good/[1-3].png'),
   'warning', 'few images', '.', '1 good'),
  ('seglist', lambda d: line(d, 'val.txt', 'images/../../x.png'),
   'error', 'path leaves the root', 'val.txt', r'val\.txt line 5: .* leaves'),
  ('seglist', lambda d: line(d, 'train.txt', 'my image.png and mask.png'),
   'error', 'list syntax', 'train.txt', r'train\.txt line 5: .*4 fields'),
  ('seglist', lambda d: line(d, 'train.txt', 'images/9.png annotations/none.png'),
   'error', 'missing file', 'images/9.png', r'train\.txt line 5: no file'),
  ('seglist', lambda d: line(d, 'train.txt', 'images/cut/a.png annotations/cut_0.png')
    or picture(d / 'images/cut/a.png', 600),
   'error', 'defects in training', 'images/cut/a.png', 'shows a defect'),
  ('seglist', lambda d: line(d, 'val.txt', 'images/1.png'),
   'error', 'duplicate in train and test', 'images/1.png',
   r'in the test set and in the training set'),
  ('seglist', lambda d: line(d, 'train.txt', 'images/cut/0.png'),
   'error', 'defects in training', 'images/cut/0.png', r'in the test set as defective \(cut\)'),
  ('seglist', lambda d: line(d, 'train.txt', 'images/2.png'),
   'warning', 'duplicate', 'images/2.png', 'training set more than once'),
  ('seglist', lambda d: line(d, 'val.txt', 'images/cut/c.png')
    or picture(d / 'images/cut/c.png', 500),
   'warning', 'no mask', 'images/cut/c.png', 'counts as good'),
  ('seglist', lambda d: (d / 'annotations/cut_1.png').write_bytes(b''),
   'error', 'unreadable file', 'annotations/cut_1.png', 'is empty'),
  ('seglist', lambda d: (d / 'train.txt').write_text(''),
   'error', 'empty split', 'train.txt', 'lists no image'),
  ('seglist', lambda d: (d / 'val.txt').write_text(''),
   'warning', 'empty split', '.', 'no test images'),
  ('seglist', lambda d: (d / 'val.txt').write_text('images/good/1.png'),
   'warning', 'no defective test images', '.', 'no defective'),
]  # fmt: skip


def summaries(report: checks.Report) -> list[tuple[str, str, str]]:
  return [
    (p.severity, p.kind, p.path.relative_to(report.directory).as_posix()) for p in report.problems
  ]


@pytest.mark.parametrize('layout', LAYOUTS)
def test_a_correct_dataset_passes(tmp_path, layout):
  LAYOUTS[layout](tmp_path / 'my parts')
  report = checks.check(tmp_path, 'my parts')
  lacking = [('warning', 'no good test images', '.')] if layout == 'folder' else []
  assert summaries(report) == lacking
  assert report.passed
  assert str(report).startswith('Check dataset passed !')
  assert report.splits == layouts.load(tmp_path, 'my parts', layout)
  checks.require_valid(report)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_each_problem_is_reported(tmp_path, layout):
  for number, (where, spoil, severity, kind, path, pattern) in enumerate(BAD):
    if where != layout:
      continue
    root, case = tmp_path / f'{number}', (layout, kind, path)
    LAYOUTS[layout](root)
    before = set(summaries(checks.check(root, layout=layout)))
    spoil(root)
    report = checks.check(root, layout=layout)
    assert (severity, kind, path) in set(summaries(report)) - before, case
    problem = report.problems[summaries(report).index((severity, kind, path))]
    assert re.search(pattern, problem.message), case
    assert str(problem.path) in problem.message, case
    assert report.passed == (severity == 'warning'), case
    assert problem.message in str(report), case
    if severity == 'error':
      with pytest.raises(DataError, match='failed') as refused:
        checks.require_valid(report)
      usable = bool(checks.usable_splits(report).train)
      assert ('check.enforce=false' in str(refused.value)) == usable, case


@pytest.mark.parametrize('layout', LAYOUTS)
def test_all_problems_are_reported_at_once_errors_first_and_always_alike(tmp_path, layout):
  LAYOUTS[layout](tmp_path)
  expected = set()
  for where, spoil, severity, kind, path, _ in BAD:
    # What empties a split, or spoils a file a second time, would hide another problem.
    if where == layout and path != '.' and kind != 'empty split' and (kind, path) not in HIDDEN:
      spoil(tmp_path)
      expected.add((severity, kind, path))
  report = checks.check(tmp_path, layout=layout)
  assert expected <= set(summaries(report))
  assert len(expected) >= {'mvtec': 12, 'folder': 2, 'seglist': 7}[layout]
  severities = [problem.severity for problem in report.problems]
  assert severities == sorted(severities)
  assert checks.check(tmp_path, layout=layout) == report


@pytest.mark.parametrize('layout', LAYOUTS)
def test_all_records_of_a_correct_dataset_are_usable(tmp_path, layout):
  LAYOUTS[layout](tmp_path)
  report = checks.check(tmp_path)
  assert checks.usable_splits(report) == checks.require_valid(report) == report.splits
  assert checks.describe_excluded(report, checks.usable_splits(report)) == ''


@pytest.mark.parametrize('layout', LAYOUTS)
def test_records_without_errors_stay_usable(tmp_path, layout):
  LAYOUTS[layout](tmp_path)
  for where, spoil, *_, kind, path, _ in BAD:
    if where == layout and kind not in ('empty split', 'too few images') and path != '.':
      spoil(tmp_path)
  report = checks.check(tmp_path, layout=layout)
  before = {record.path: record for record in (*report.splits.train, *report.splits.test)}
  train, test = checks.usable_splits(report)
  assert train
  assert not any(record.is_anomalous for record in train)
  for record in (*train, *test):
    height, width = image_io.decode(record.path).shape[:2]
    if record.mask:
      assert image_io.read_raw_mask(record.mask).values.shape == (height, width)
    assert record.defect == before[record.path].defect
  # Neither is anything left out that can be used.
  wrong = {problem.path for problem in report.errors}
  usable = {path for path, r in before.items() if path not in wrong and r.mask not in wrong}
  assert usable <= {record.path for record in (*train, *test)}


def test_an_image_without_a_usable_mask_stays_defective(tmp_path):
  mvtec(tmp_path)
  (tmp_path / 'ground_truth/cut/0_mask.png').write_bytes(b'')
  mask(tmp_path / 'ground_truth/cut/1_mask.png', 255, size=(9, 8))
  test = checks.usable_splits(checks.check(tmp_path)).test
  masks = {record.path.parent.name + record.path.stem: record.mask for record in test}
  assert masks['cut0'] is masks['cut1'] is None
  assert masks['hole0'] == tmp_path / 'ground_truth/hole/0_mask.png'
  assert sum(record.is_anomalous for record in test) == 3


def test_an_image_whose_class_needs_an_unreadable_mask_is_excluded(tmp_path):
  seglist(tmp_path)
  (tmp_path / 'annotations/cut_1.png').write_bytes(b'')
  line(tmp_path, 'train.txt', 'images/new.png annotations/new.png')
  picture(tmp_path / 'images/new.png', 400)
  (tmp_path / 'annotations/new.png').write_bytes(b'')
  train, test = checks.usable_splits(checks.check(tmp_path))
  assert [record.path.stem for record in train] == ['0', '1', '2', '3']
  assert [record.path.name for record in test if record.is_anomalous] == ['0.png']
  assert tmp_path / 'images/cut/1.png' not in {record.path for record in test}


def test_an_image_in_a_folder_good_is_good_whatever_its_mask(tmp_path):
  mvtec(tmp_path)
  mask(tmp_path / 'ground_truth/good/0_mask.png')
  (tmp_path / 'ground_truth/good/0_mask.png').write_bytes(b'?')
  report = checks.check(tmp_path)
  mask_by_image = {r.path: r.mask for r in checks.usable_splits(report).test}
  assert mask_by_image[tmp_path / 'test/good/0.png'] is None
  assert len(mask_by_image) == len(report.splits.test)


def test_duplicates_are_not_in_both_train_and_test(tmp_path):
  mvtec(tmp_path)
  copy(tmp_path, 'train/good/0.png', 'train/good/again.png')
  copy(tmp_path, 'train/good/0.png', 'test/cut/same.png')  # Defective: no copy may be learned.
  copy(tmp_path, 'train/good/1.png', 'test/good/same.png')
  report = checks.check(tmp_path)
  train, test = checks.usable_splits(report)
  assert [record.path.name for record in train] == ['1.png', '2.png', '3.png']
  assert tmp_path / 'test/cut/same.png' in {record.path for record in test}
  assert tmp_path / 'test/good/same.png' not in {record.path for record in test}
  description = checks.describe_excluded(report, checks.usable_splits(report))
  assert '2 of 5 training images, 1 of 7 test images.' in description


def test_excluded_masks_are_counted(tmp_path):
  mvtec(tmp_path)
  (tmp_path / 'ground_truth/cut/0_mask.png').write_bytes(b'')
  mask(tmp_path / 'ground_truth/cut/1_mask.png', 255, size=(9, 8))
  report = checks.check(tmp_path)
  description = checks.describe_excluded(report, checks.usable_splits(report))
  assert description == 'Excluded because of problems in the data: the masks of 2 other images.'
  assert 'unreadable images and masks: 1. Errors: 2' in str(report)


def test_label_files_are_recognized_whatever_precedes_the_pattern(tmp_path):
  for number, (name, content, tool) in enumerate(
    (
      ('a.json', '{"imageData": "' + 'A' * 300_000 + '", "shapes": []}', 'LabelMe'),
      ('a.json', '{"images": [' + ' ' * 300_000 + '], "annotations" : []}', 'COCO'),
      ('a.XML', '<?xml version="1.0"?><annotation verified="yes"/>', 'VOC'),
      ('a.json', '{"exposure": 3, "gain": "shapes"}', ''),
      ('a.xml', '<camera/>', ''),
      ('.a.json', '{"shapes": []}', ''),
    )
  ):
    root = tmp_path / f'{number}'
    folder(root)
    (root / 'good' / name).write_text(content)
    messages = [
      p.message for p in checks.check(root).problems if p.kind == 'labels of another tool'
    ]
    assert len(messages) == bool(tool), content[:40]
    assert all(f'src_dataset_type={tool},' in message for message in messages), messages


def test_a_dataset_without_usable_training_images_is_refused(tmp_path):
  mvtec(tmp_path)
  for path in (tmp_path / 'train/good').iterdir():
    path.write_bytes(b'')
  assert checks.usable_splits(checks.check(tmp_path)).train == ()
  with pytest.raises(DataError, match=r'(?s)is empty.*No usable training images remain'):
    prepare.checked_splits(DataSettings(str(tmp_path)), enforce=False, min_images=3)


HIDDEN = {('empty mask', 'ground_truth/hole/0_mask.png')}  # For another bad input removes it.


def test_the_reading_of_masks_determines_which_images_are_defective(tmp_path):
  seglist(tmp_path)
  mask(tmp_path / 'annotations/cut_0.png', 9)
  assert [r.defect for r in checks.check(tmp_path).splits.test] == ['good', 'cut', 'good', 'cut']
  report = checks.check(tmp_path, mask_reading='above:9')
  assert [r.defect for r in report.splits.test] == ['good', 'good', 'good', 'cut']
  assert report.defective_fractions[tmp_path / 'annotations/cut_1.png'] == 1 / SIZE**2


def test_one_image_suffices_unless_the_detector_needs_more(tmp_path):
  mvtec(tmp_path)
  remove(tmp_path, 'train/good/[1-3].png')
  assert checks.check(tmp_path).passed
  assert not checks.check(tmp_path, min_images=3).passed


def test_gray_and_palette_masks_of_two_values_are_binary(tmp_path):
  mvtec(tmp_path)
  truth = tmp_path / 'ground_truth/cut'
  pixels = np.zeros((SIZE, SIZE), np.uint8)
  pixels[3, 4] = 1
  palette = Image.fromarray(pixels).convert('P')
  palette.putpalette([0, 0, 0, 128, 0, 0])
  palette.save(truth / '0_mask.png')
  Image.fromarray(pixels > 0).save(truth / '1_mask.png')
  report = checks.check(tmp_path)
  assert report.problems == ()
  assert (
    report.defective_fractions[truth / '0_mask.png']
    == report.defective_fractions[truth / '1_mask.png']
    > 0
  )


def test_progress_is_shown_over_every_file(tmp_path):
  mvtec(tmp_path)
  calls = []

  def track(items, total, what):
    for item in items:
      calls.append((total, what))
      yield item

  checks.check(tmp_path, progress=track)
  assert calls == [(9 + 3, 'Checking')] * 12


def test_every_image_is_passed_to_the_function_of_its_split(tmp_path):
  mvtec(tmp_path)
  train, test = {}, {}
  report = checks.check(tmp_path, on_train_image=train.__setitem__, on_test_image=test.__setitem__)
  for images, records in zip((train, test), report.splits, strict=True):
    assert images.keys() == {record.path for record in records}
    for path, image in images.items():
      np.testing.assert_array_equal(image.pixels, image_io.decode(path))


def test_absent_folders_and_unknown_layouts_are_refused(tmp_path):
  with pytest.raises(DataError, match='No folder'):
    checks.check(tmp_path / 'absent')
  with pytest.raises(ConfigError, match='coco'):
    checks.check(tmp_path, layout='coco')


def test_long_lists_of_problems_are_cut_in_messages_only(tmp_path):
  mvtec(tmp_path)
  for i in range(30):
    (tmp_path / f'train/good/bad{i}.png').touch()
  report = checks.check(tmp_path)
  assert len(report.errors) == 30
  assert str(report).count('Cannot read') == 10
  assert 'and 20 more' in str(report)
  assert all(problem.severity == problems.ERROR for problem in report.errors)


@pytest.mark.real
@pytest.mark.parametrize('category', ['bottle', 'toothbrush'])
def test_real_data_pass(shared: Path, category):
  report = checks.check(shared / 'data/mvtec_ad', category)
  assert report.problems == ()
  shares = [report.defective_fractions[r.mask] for r in report.splits.test if r.mask]
  assert 0 < min(shares) < max(shares) < 0.5


def test_strong_reduction_and_small_defects_are_reported_with_the_setting_that_keeps_them(tmp_path):
  """Four images of 24 x 24 and one of 48 x 24; defects of one pixel."""
  mvtec(tmp_path)
  image_files.write_noise(tmp_path / 'train/good/4.png', 99, shape=(2 * SIZE, SIZE, 3))

  def summaries_with(text: str) -> dict[str, str]:
    report = checks.check(tmp_path, ops=transforms.parse(text))
    return {p.kind: p.message for p in report.problems if p.kind in KINDS}

  reduced = summaries_with('resize(8)')
  assert [*reduced] == KINDS
  assert '1 of 10 images are reduced more than 4 times' in reduced['strong reduction']
  assert '4.png: 6.0 times, from 48 x 24 to 8 x 8 pixels' in reduced['strong reduction']
  assert 'of 3 of 3 images' in reduced['small defects']
  for message in reduced.values():
    assert 'fit_within(48)|tile(256, 32)' in message
  # A pixel of an image of 24 x 24 becomes 114 here.
  small_defects = summaries_with('tile(256, 32)')['small defects']
  assert 'detector.layers' in small_defects
  small_defects = summaries_with('resize(8)|tile(8, 2)')['small defects']
  assert 'Raise the size before the tiles' in small_defects
  assert not summaries_with('resize(512)')
  assert not summaries_with('center_crop(30)')  # Which the smaller images do not allow.


KINDS = ['strong reduction', 'small defects']
