"""Laws of masks: they are found by name, never taken for images, and read as they were meant."""

import functools
import itertools
from pathlib import Path

import image_files
import numpy as np
from PIL import Image
import pytest

from uadjax.cli import runtime
from uadjax.data import checks, image_io, layouts
from uadjax.data.checks import rules
from uadjax.errors import ConfigError, DataError, Setting

DEFECT = np.zeros((32, 40), bool)
DEFECT[5:9, 7:30] = True
picture = functools.partial(image_files.write_noise, shape=DEFECT.shape)


def mask(path: Path, values: np.ndarray = DEFECT) -> Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(values.astype(np.uint8) * 255).save(path)
  return path


def palette(indices: np.ndarray, *colors: tuple[int, int, int]) -> Image.Image:
  image = Image.fromarray(indices.astype(np.uint8)).convert('P')
  image.putdata(indices.astype(np.uint8).ravel().tolist())
  image.putpalette([value for color in colors for value in color])
  return image


def rgba(gray: np.ndarray) -> Image.Image:
  bands = [Image.fromarray(gray)] * 3 + [Image.fromarray(np.uint8(255) * DEFECT)]
  return Image.merge('RGBA', bands)


def color(defect: tuple[int, int, int], good: tuple[int, int, int]) -> Image.Image:
  return Image.fromarray(np.where(DEFECT[..., None], defect, good).astype(np.uint8))


WHITE = np.full(DEFECT.shape, 255, np.uint8)
# Kinds of masks as people have them, and the value of data.mask that reads each.
KINDS = {
  'white on black': (Image.fromarray(WHITE * DEFECT), 'nonzero'),
  'one bit': (Image.fromarray(DEFECT), 'nonzero'),
  'zero and one': (Image.fromarray(DEFECT.astype(np.uint8)), 'nonzero'),
  '16 bit': (Image.fromarray(DEFECT.astype(np.uint16)), 'nonzero'),
  'palette, black first': (palette(DEFECT, (0, 0, 0), (128, 0, 0)), 'nonzero'),
  'several classes': (Image.fromarray(DEFECT * np.arange(40, dtype=np.uint8)), 'nonzero'),
  'inverted': (Image.fromarray(WHITE * ~DEFECT), 'inverted'),
  'palette, white first': (palette(~DEFECT, (255, 255, 255), (0, 0, 0)), 'inverted'),
  'one and two': (Image.fromarray(DEFECT + np.uint8(1)), 'above:1'),
  'two and one': (Image.fromarray(np.uint8(2) - DEFECT), 'equals:1'),
  'red on gray': (color((255, 0, 0), (40, 40, 40)), 'above:40'),
  'alpha on black': (rgba(WHITE * 0), 'alpha'),
  'alpha on white': (rgba(WHITE), 'alpha'),
  'gray with alpha': (
    Image.merge('LA', [Image.fromarray(WHITE), Image.fromarray(WHITE * DEFECT)]), 'alpha'
  ),
}  # fmt: skip


@pytest.mark.parametrize('kind', KINDS)
def test_a_mask_marks_the_defect_alone_or_a_warning_names_the_setting_that_reads_it(tmp_path, kind):
  image, reading = KINDS[kind]
  path = tmp_path / 'x_mask.png'
  image.save(path)
  np.testing.assert_array_equal(image_io.read_mask(path, reading), DEFECT)
  inspection = rules.inspect_mask(path, 'nonzero')
  full = [problem for problem in inspection.problems if problem.kind == rules.FULL_MASK]
  if reading == 'nonzero':
    np.testing.assert_array_equal(image_io.read_mask(path), DEFECT)
    assert not full
    return
  assert bool(full) != (inspection.defective_fraction == 0)
  explanation = full[0].message if full else inspection.hint
  assert f'data.mask={reading}.' in explanation
  assert not any(p.kind == rules.FULL_MASK for p in rules.inspect_mask(path, reading).problems)


def test_a_mask_in_which_no_value_is_a_defect_is_a_warning(tmp_path):
  color((255, 0, 0), (255, 255, 255)).save(tmp_path / 'a.png')
  problems = rules.inspect_mask(tmp_path / 'a.png', 'nonzero').problems
  assert any(p.kind == rules.FULL_MASK and 'No value' in p.message for p in problems)


def test_jpeg_masks_are_read_without_their_noise(tmp_path):
  noisy = 0
  for number, inverted in itertools.product(range(8), (False, True)):
    defect = np.zeros((64, 64), bool)
    defect[number : 20 + 3 * number, 8:40] = True
    Image.fromarray(np.where(defect != inverted, 255, 0).astype(np.uint8)).save(
      tmp_path / 'm.jpg', quality=60
    )
    read = image_io.read_mask(tmp_path / 'm.jpg', 'inverted' if inverted else 'nonzero')
    np.testing.assert_array_equal(read, defect)
    noisy += (image_io.read_mask(tmp_path / 'm.jpg', 'above:0') != (defect != inverted)).any()
  assert noisy


def test_readings_of_masks():
  values = np.array([[0, 1, 2, 255]], np.uint8)
  read = image_io.RawMask(values).defects
  assert read('above:1').tolist() == [[False, False, True, True]]
  assert read('equals:1').tolist() == [[False, True, False, False]]
  np.testing.assert_array_equal(read('inverted'), ~read('nonzero'))
  np.testing.assert_array_equal(read('above:0'), read('nonzero'))
  for wrong in ('', 'above', 'above:', 'above:-1', 'above:x', 'equals:1.5', 'Alpha', 'nonzero:1'):
    with pytest.raises(ConfigError) as caught:
      image_io.parse_mask_reading(wrong)
    assert (caught.value.key, caught.value.value) == ('data.mask', wrong)


def test_a_mask_without_alpha_is_unreadable_as_alpha(tmp_path):
  path = mask(tmp_path / 'a.png')
  with pytest.raises(DataError, match=r'a\.png: it has no alpha'):
    image_io.read_mask(path, 'alpha')
  problem, *_ = rules.inspect_mask(path, 'alpha').problems
  assert (problem.severity, problem.kind) == ('error', rules.UNREADABLE)


def test_masks_of_a_folder_are_joined(tmp_path):
  regions = [np.roll(DEFECT, (5 * i, i), (0, 1)) for i in range(3)]
  for i, region in enumerate(regions):
    mask(tmp_path / f'{i:03d}.png', region)
  np.testing.assert_array_equal(image_io.read_mask(tmp_path), np.logical_or.reduce(regions))
  fraction = float(np.logical_or.reduce(regions).mean())
  assert rules.inspect_mask(tmp_path, 'nonzero').defective_fraction == fraction
  mask(tmp_path / '3.png', DEFECT[:9])
  for damage in (lambda: None, lambda: (tmp_path / '3.png').write_bytes(b'?')):
    damage()
    with pytest.raises(DataError, match=r'Cannot read'):
      image_io.read_mask(tmp_path)
    problem = rules.inspect_mask(tmp_path, 'nonzero').problems[0]
    assert (problem.kind, problem.path) == (rules.UNREADABLE, tmp_path)


# Places and names of the mask of `crack/7.jpg`.
MASK_FILES = [
  *(f'{folder}/{name}' for folder in ('mask', 'Masks', 'ground_truth', 'annotations', 'label',
                                      'mask/crack', 'ground_truth/crack', 'crack/masks')
    for name in ('7.png', '7_mask.png', '7/000.png')),
  *(f'crack/7{ending}' for ending in ('_GT.png', '_mask.bmp', '_label.bmp', '-seg.png', '.png')),
]  # fmt: skip


@pytest.mark.parametrize('name', MASK_FILES)
def test_masks_are_found_and_are_no_images(tmp_path, name):
  for i in range(4):
    picture(tmp_path / f'good/{i}.jpg', i)
  picture(tmp_path / 'crack/7.jpg', 7)
  expected = mask(tmp_path / name)
  report = checks.check(tmp_path)
  [record] = report.splits.test
  assert (record.path, record.defect) == (tmp_path / 'crack/7.jpg', 'crack')
  assert record.mask is not None
  assert image_io.mask_files(record.mask) == [expected]
  assert len(report.splits.train) == 4
  assert report.not_used == ()
  assert report.defective_fractions[record.mask] == DEFECT.mean()


def test_masks_beside_good_images_are_not_learned_from(tmp_path):
  for i in range(5):
    picture(tmp_path / f'{i}.jpg', i)
    mask(tmp_path / f'{i}_label.bmp', DEFECT & (i == 4))
  report = checks.check(tmp_path)
  assert [record.path.name for record in report.splits.train] == [f'{i}.jpg' for i in range(5)]
  wrong = {p.path.name for p in report.errors if p.kind == rules.DEFECT_IN_TRAINING}
  assert wrong == {'4.jpg'}
  assert len(checks.usable_splits(report).train) == 4


def test_one_picture_in_two_formats_is_two_images(tmp_path):
  for i in range(3):
    pixels = Image.open(picture(tmp_path / f'{i}.png', i)).resize((64, 64))
    pixels.save(tmp_path / f'{i}.png')
    pixels.save(tmp_path / f'{i}.jpg', quality=95)
  assert len(layouts.load(tmp_path).train) == 6
  for i in range(3):
    Image.fromarray(np.eye(64, dtype=np.uint8)).save(tmp_path / f'{i}.png')
  assert [r.path.suffix for r in layouts.load(tmp_path).train] == ['.jpg'] * 3


def test_a_name_like_that_of_a_mask_is_an_image_if_there_is_no_other(tmp_path):
  for i in range(3):
    picture(tmp_path / f'box_label_{i}.png', i)
    picture(tmp_path / f'{i}_mask.png', 9 + i)
  assert len(layouts.load(tmp_path).train) == 6


def test_a_front_end_names_the_setting_for_masks_as_its_own_option():
  setting = Setting('data.mask', 'inverted')
  assert runtime.format_setting('check', setting) == '--mask=inverted'
  assert runtime.format_setting('fit', setting) == '--override data.mask=inverted'


def test_pictures_that_labeling_tools_write_are_neither_images_nor_masks(tmp_path):
  for i in range(4):
    picture(tmp_path / f'{i}.jpg', i)
  picture(tmp_path / 'lens_overlay.jpg', 4)  # No image beside it has the name lens.
  derived = ('0_pseudo.png', '1_cutout.png', '2_overlay.png', '3_viz.png')
  exported = (
    'task-3-annotation-7-by-1-tag-cut-0.png', '0.jpg___save.png', '0.jpg___fuse.png',
    'brush/task-12-annotation-7-by-a@b.c-tag-deep cut-1.png',
  )  # fmt: skip
  for name in (*derived, *exported):
    mask(tmp_path / name)
  report = checks.check(tmp_path)
  assert [r.path.name for r in report.splits.train] == [
    *(f'{i}.jpg' for i in range(4)),
    'lens_overlay.jpg',
  ]
  assert report.splits.test == ()
  assert all(record.mask is None for record in report.splits.train)
  counts = {group.reason: group.num_files for group in report.not_used}
  assert counts == {
    'mask of no image': 4,
    'labels of Label Studio': 2,
    'labels of SuperAnnotate': 2,
  }
