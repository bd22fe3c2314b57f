"""Laws of the conversion of LabelMe, on files as labelme and X-AnyLabeling write them."""

import base64
import io
import unicodedata

from label_samples import block, convert, H, labelme, lists, mask, picture, shape, SQUARE, W, write
import numpy as np
from PIL import Image
import pytest
import small_runs

from uadjax.data import convert as converting, layouts
from uadjax.errors import DataError


def test_labelme(tmp_path):
  source, target = tmp_path / 'in', tmp_path / 'out/set'
  for seed, name in enumerate(('a.jpg', 'a.png', 'b c.png', 'sub/d.bmp', 'ünï/划痕.png')):
    picture(source / 'images' / name, seed)
  write(source / 'labels/a.json', labelme('..\\images\\a.jpg', [shape('scratch', SQUARE)]))
  write(source / 'labels/b.json', labelme('../images/b c.png', [shape('划/痕', SQUARE, None)]))
  decomposed = unicodedata.normalize('NFD', '..\\Images\\ÜNÏ\\划痕.png')
  write(source / 'labels/e.json', labelme(decomposed, [shape('_background_', SQUARE)]))
  before = small_runs.contents(source)
  summary = convert(source, 'labelme', target)
  assert small_runs.contents(source) == before
  assert lists(target) == (
    [
      ['images/good/a.png', 'annotations/good/a.png'],
      ['images/good/sub/d.bmp', 'annotations/good/sub/d.png'],
      ['images/good/ünï/划痕.png', 'annotations/good/ünï/划痕.png'],
    ],
    [
      ['images/scratch/a.jpg', 'annotations/scratch/a.png'],
      ['images/划_痕/b c.png', 'annotations/划_痕/b c.png'],
    ],
  )
  assert summary == converting.Summary(
    3,
    2,
    {'good': 3, 'scratch': 1, '划_痕': 1},
    ('2 images without a JSON file count as good.',),
  )
  # The outline itself belongs to the defect: that is how labelme draws.
  np.testing.assert_array_equal(mask(target, 'scratch/a.png'), block(5, 10, 4, 11))
  np.testing.assert_array_equal(mask(target, '划_痕/b c.png'), block(5, 10, 4, 11))
  assert not mask(target, 'good/sub/d.png').any()
  copied = (target / 'images/scratch/a.jpg').read_bytes()
  assert copied == (source / 'images/a.jpg').read_bytes()
  splits = layouts.load(target)
  assert [record.defect for record in splits.train] == ['good'] * 3
  assert [record.defect for record in splits.test] == ['scratch', '划_痕']


@pytest.mark.parametrize('is_listed', [False, True])
def test_images_in_a_folder_named_after_defects_are_never_good(tmp_path, is_listed):
  """A partly labeled folder of defects would poison the training set."""
  for seed, name in enumerate(('ok/a.png', 'NG/a.png', 'NG/b.png')):
    picture(tmp_path / 'in' / name, seed)
  write(tmp_path / 'in/NG/a.json', labelme('a.png', [shape('cut', SQUARE)]))
  if is_listed:
    write(tmp_path / 'in/NG/b.json', labelme('b.png', []))
  with pytest.raises(DataError, match=r"NG/b\.png: no label marks a defect, but its folder 'NG'"):
    convert(tmp_path / 'in', 'LabelMe', tmp_path / 'out')
  assert not (tmp_path / 'out').exists()
  # A label of the whole image decides.
  write(tmp_path / 'in/NG/b.json', {**labelme('b.png', []), 'flags': {'OK': True}})
  convert(tmp_path / 'in', 'LabelMe', tmp_path / 'out')
  assert ['images/good/NG/b.png', 'annotations/good/NG/b.png'] in lists(tmp_path / 'out')[0]


def test_images_without_labels_whose_mask_marks_a_defect_are_never_good(tmp_path):
  for seed, name in enumerate(('a.png', 'b.png', 'c.png')):
    picture(tmp_path / 'in' / name, seed)
  write(tmp_path / 'in/a.json', labelme('a.png', [shape('cut', SQUARE)]))
  for name, value in (('a', 1), ('b', 0), ('c', 255)):
    Image.new('L', (W, H), value).save(tmp_path / f'in/{name}_mask.png')
  with pytest.raises(DataError, match=r'one problem:\n  c.png: .* c_mask.png marks a defect'):
    convert(tmp_path / 'in', 'LabelMe', tmp_path / 'out')
  (tmp_path / 'in/c_mask.png').unlink()
  convert(tmp_path / 'in', 'LabelMe', tmp_path / 'out')
  assert [image for image, _ in lists(tmp_path / 'out')[0]] == [
    'images/good/b.png',
    'images/good/c.png',
  ]


def only_mask(tmp_path, shapes, size=(H, W)) -> np.ndarray:
  picture(tmp_path / 'in/a.png', size=size)
  write(tmp_path / 'in/a.json', labelme('a.png', shapes, size=size))
  convert(tmp_path / 'in', 'LabelMe', tmp_path / 'out')
  (name,) = (tmp_path / 'out/annotations').rglob('*.png')
  return mask(tmp_path / 'out', str(name.relative_to(tmp_path / 'out/annotations')))


def test_labelme_shapes(tmp_path):
  patch = io.BytesIO()
  Image.fromarray(np.array([[1, 0], [0, 1], [1, 1]], np.uint8)).save(patch, 'PNG')
  encoded = base64.b64encode(patch.getvalue()).decode()
  shapes = [
    shape('cut', [[9, 6], [2, 3]], 'rectangle'),
    shape('cut', [[20, 3], [23, 3], [23, 5], [20, 5]], 'rectangle'),  # X-AnyLabeling's corners.
    shape('cut', [[2, 10], [5, 10], [5, 12], [2, 12]], 'oriented_rectangle'),
    shape('cut', [[30.0, 21.0], [32.0, 24.0]], 'mask', mask=encoded),  # Reaches out of the image.
  ]
  expected = block(3, 7, 2, 10) | block(3, 6, 20, 24) | block(10, 13, 2, 6)
  expected[21:24, 30:32] = [[1, 0], [0, 1], [1, 1]]
  np.testing.assert_array_equal(only_mask(tmp_path, shapes), expected)


def test_labelme_circle(tmp_path):
  got = only_mask(tmp_path, [shape('hole', [[15, 12], [19, 15]], 'circle')])
  y, x = np.ogrid[:H, :W]
  distance = np.hypot(x - 15, y - 12)
  assert got[distance <= 4.5].all()
  assert not got[distance >= 5.6].any()


@pytest.mark.parametrize('label', ['__ignore__', '_background_'])
def test_later_excluded_shapes_cut_holes_and_earlier_ones_do_not(tmp_path, label):
  outer = shape('cut', [[4, 4], [20, 4], [20, 16], [4, 16]])
  inner = [[8, 7], [12, 7], [12, 10], [8, 10]]
  got = only_mask(tmp_path / '1', [outer, shape(label, inner)])
  np.testing.assert_array_equal(got, block(4, 17, 4, 21) & ~block(7, 11, 8, 13))
  got = only_mask(tmp_path / '2', [shape(label, inner), outer])
  np.testing.assert_array_equal(got, block(4, 17, 4, 21))


def test_labelme_falls_back_to_the_stem_beside_it_and_to_embedded_data(tmp_path):
  source, target = tmp_path / 'in', tmp_path / 'out'
  picture(source / 'a.png', 1)
  write(source / 'a.json', labelme('C:\\Users\\me\\renamed.png', [shape('x', SQUARE)]))
  jpeg = picture(tmp_path / 'b.jpg', 2).read_bytes()
  data = base64.b64encode(jpeg).decode()
  write(source / 'b.json', labelme('lost.bmp', [shape('x', SQUARE)], data))
  convert(source, 'LabelMe', target)
  assert lists(target)[1] == [
    ['images/x/a.png', 'annotations/x/a.png'],
    ['images/x/b.jpg', 'annotations/x/b.png'],
  ]
  assert (target / 'images/x/b.jpg').read_bytes() == jpeg


def test_paddlex_lists_keep_good_images_from_training(tmp_path):
  source, target = tmp_path / 'in', tmp_path / 'out'
  for name in 'abc':
    picture(source / f'images/{name}.png')
    shapes = [shape('x', SQUARE)] if name == 'c' else []
    write(source / f'annotations/{name}.json', labelme(f'../images/{name}.png', shapes))
  write(source / 'train_anno_list.txt', 'annotations/a.json\nannotations/c.json\n')
  write(source / 'val_anno_list.txt', 'annotations\\b.json\r\n')
  convert(source, 'LabelMe', target)
  train, val = lists(target)
  assert [image for image, _ in train] == ['images/good/a.png']
  assert [image for image, _ in val] == ['images/good/b.png', 'images/x/c.png']


def test_images_of_one_stem_do_not_share_a_mask(tmp_path):
  for suffix in ('jpg', 'png', 'jpg.png'):
    picture(tmp_path / f'in/a.{suffix}')
    write(tmp_path / f'in/a_{suffix}.json', labelme(f'a.{suffix}', [shape('x', SQUARE)]))
  convert(tmp_path / 'in', 'LabelMe', tmp_path / 'out')
  val = lists(tmp_path / 'out')[1]
  assert [mask for _, mask in val] == [
    f'annotations/x/a.{suffix}.png' for suffix in ('jpg', 'jpg.png', 'png')
  ]


def test_all_problems_at_once_and_nothing_written(tmp_path):
  source, target = tmp_path / 'in', tmp_path / 'out'
  picture(source / 'a.png')
  far = [[100, 100], [110, 100], [110, 110]]
  bad = {
    'missing': labelme('nowhere.png', []),
    'points': labelme('a.png', [shape('x', [[1, 'y'], [2, 3], [4, 5]])]),
    'unknown': labelme('a.png', [shape('x', SQUARE, 'spline'), shape('', SQUARE), 'shape']),
    'size': labelme('a.png', [], size=(W, H)),
    'outside': labelme('a.png', [shape('x', far)]),
    'praised': labelme('a.png', [shape('OK', SQUARE)]),
    'endless': labelme('a.png', [shape('x', [[0, 0], [float('inf'), 0], [3, 3]])]),
    'other': {'categories': []},
    'broken': '{"shapes": [',
  }
  for name, value in bad.items():
    write(source / f'{name}.json', value)
  with pytest.raises(DataError) as error:
    convert(source, 'LabelMe', target)
  message = str(error.value)
  for line in (
    "missing.json: no image 'nowhere.png'",
    'points.json: shape 1: points must be pairs',
    "unknown.json: shape 1: unknown shape_type 'spline'; allowed are",
    'unknown.json: shape 2: it has no label',
    'unknown.json: shape 3: it has no label',
    'size.json: labeled as 24x32 pixels, but the image is 32x24',
    "outside.json: shape 1: a shape 'x' lies outside of the image",
    "praised.json: shape 1: a shape is labeled 'OK'",
    'endless.json: shape 1: points must be pairs',
    "other.json: not a LabelMe file, because it has no list 'shapes'",
    'broken.json: not JSON',
    '11 problems',
  ):
    assert line in message, line
  assert not target.exists()
  assert sorted(path.name for path in tmp_path.iterdir()) == ['in']


def test_an_image_outside_of_the_source_is_refused(tmp_path):
  picture(tmp_path / 'images/a.png')
  write(tmp_path / 'in/a.json', labelme('..\\images\\a.png', []))
  with pytest.raises(DataError, match='lies outside of'):
    convert(tmp_path / 'in', 'LabelMe', tmp_path / 'out')


def flagged(image: str, shapes, flags):
  return {**labelme(image, shapes), 'flags': flags}


@pytest.mark.parametrize(
  ('flags', 'defect'),
  [
    ({'NG': True}, 'NG'),
    ({'NG': True, 'OK': False}, 'NG'),
    ({'scratch': True, 'dent': True, 'good': False}, 'combined'),
    ({'OK': True, 'NG': False}, 'good'),
    ({'Good': True}, 'good'),
    ({'checked': True, 'Difficult': True}, 'good'),
    ({'NG': False}, 'good'),
    ({}, 'good'),
    (None, 'good'),
  ],
)
def test_a_flag_labels_the_whole_image(tmp_path, flags, defect):
  picture(tmp_path / 'in/a.png')
  write(tmp_path / 'in/a.json', flagged('a.png', [], flags))
  summary = convert(tmp_path / 'in', 'LabelMe', tmp_path / 'out')
  assert summary.num_per_defect == {defect: 1}
  assert summary.num_train == (defect == 'good')
  assert any('mark no region' in note for note in summary.notes) == (defect != 'good')
  whole = block(0, H, 0, W) if defect != 'good' else block(0, 0, 0, 0)
  np.testing.assert_array_equal(mask(tmp_path / 'out', f'{defect}/a.png'), whole)


def test_regions_say_more_than_a_flag(tmp_path):
  picture(tmp_path / 'in/a.png')
  write(tmp_path / 'in/a.json', flagged('a.png', [shape('cut', SQUARE)], {'NG': True}))
  summary = convert(tmp_path / 'in', 'LabelMe', tmp_path / 'out')
  assert (summary.num_per_defect, summary.notes[:-1]) == ({'cut': 1}, ())
  np.testing.assert_array_equal(mask(tmp_path / 'out', 'cut/a.png'), block(5, 10, 4, 11))


@pytest.mark.parametrize(
  ('shapes', 'flags'), [([], {'OK': True, 'NG': True}), ([shape('cut', SQUARE)], {'OK': True})]
)
def test_labels_that_contradict_each_other_are_named(tmp_path, shapes, flags):
  picture(tmp_path / 'in/a.png')
  write(tmp_path / 'in/a.json', flagged('a.png', shapes, flags))
  with pytest.raises(DataError, match=r"a\.png: labeled 'OK' as a whole, but also '(NG|cut)'"):
    convert(tmp_path / 'in', 'LabelMe', tmp_path / 'out')


def test_an_image_that_is_not_said_to_be_good_is_named(tmp_path):
  picture(tmp_path / 'in/a.png')
  write(tmp_path / 'in/a.json', flagged('a.png', [], {'OK': False, 'NG': False}))
  summary = convert(tmp_path / 'in', 'LabelMe', tmp_path / 'out')
  assert any('a flag says that they are not' in n and 'a.json' in n for n in summary.notes)


SKEWED = [[8.0, 4.0], [20.0, 6.0], [18.0, 16.0], [6.0, 14.0]]


@pytest.mark.parametrize('kind', ['rotation', 'quadrilateral', 'rectangle', 'oriented_rectangle'])
def test_shapes_of_four_points_are_polygons(tmp_path, kind):
  expected = only_mask(tmp_path / '1', [shape('cut', SKEWED)])
  got = only_mask(tmp_path / '2', [shape('cut', SKEWED, kind, direction=0.16)])
  np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
  ('kind', 'points', 'min_area', 'max_area', 'note'),
  [
    ('line', [[4, 8], [24, 8]], 180, 240, 'Lines have no area'),
    ('linestrip', [[4, 8], [14, 8], [24, 8]], 180, 240, 'Lines have no area'),
    ('point', [[10, 10]], 69, 100, 'Points have no area'),
    ('points', [[10, 10], [24, 10]], 140, 200, 'Points have no area'),
    ('ellipse', [[4, 4], [24, 14]], 140, 190, 'Ellipses were drawn'),
  ],
)
def test_shapes_without_an_area_are_drawn_as_by_labelme_and_named(
  tmp_path, kind, points, min_area, max_area, note
):
  picture(tmp_path / 'in/a.png')
  write(tmp_path / 'in/a.json', labelme('a.png', [shape('cut', points, kind)]))
  summary = convert(tmp_path / 'in', 'LabelMe', tmp_path / 'out')
  assert min_area < mask(tmp_path / 'out', 'cut/a.png').sum() < max_area
  assert any(n.startswith(note) and 'a.json: shape 1' in n for n in summary.notes)


@pytest.mark.parametrize(
  ('kind', 'points'),
  [
    ('polygon', []),
    ('polygon', [[3, 3]]),
    ('polygon', [[3, 3]] * 3),
    ('rectangle', [[3, 3], [3, 3]]),
    ('circle', [[3, 3], [3, 3]]),
    ('linestrip', [[3, 3]]),
    ('point', []),
  ],
)
def test_clicks_by_accident_are_named_and_refuse_nothing(tmp_path, kind, points):
  for name in 'ab':
    picture(tmp_path / f'in/{name}.png')
  click = shape('cut', points, kind)
  write(tmp_path / 'in/a.json', labelme('a.png', [click]))
  write(tmp_path / 'in/b.json', labelme('b.png', [click, shape('cut', SQUARE)]))
  summary = convert(tmp_path / 'in', 'LabelMe', tmp_path / 'out')
  assert summary.num_per_defect == {'cut': 1, 'good': 1}
  assert any('mark nothing' in n and 'a.json: shape 1' in n for n in summary.notes)
  np.testing.assert_array_equal(mask(tmp_path / 'out', 'cut/b.png'), block(5, 10, 4, 11))


@pytest.mark.parametrize('fraction', [0.0, 0.4, 0.6, 0.9])
def test_the_position_of_a_mask_is_truncated_as_by_labelme(tmp_path, fraction):
  patch = io.BytesIO()
  Image.fromarray(np.ones((3, 5), bool)).save(patch, 'PNG')
  points = [[6 + fraction, 4 + fraction], [10 + fraction, 6 + fraction]]
  encoded = base64.b64encode(patch.getvalue()).decode()
  got = only_mask(tmp_path, [shape('cut', points, 'mask', mask=encoded)])
  np.testing.assert_array_equal(got, block(4, 7, 6, 11))


@pytest.mark.parametrize('folder', ['val', 'Valid', 'validation', 'TEST'])
@pytest.mark.parametrize('with_labels', [False, True])
def test_images_in_folders_of_test_sets_are_held_out(tmp_path, folder, with_labels):
  for name in (f'{folder}/a', 'train/b', 'train/c'):
    picture(tmp_path / f'in/{name}.png')
    if with_labels:
      write(tmp_path / f'in/{name}.json', labelme(f'{name[-1]}.png', []))
  write(tmp_path / 'in/train/c.json', labelme('c.png', [shape('cut', SQUARE)]))
  convert(tmp_path / 'in', 'LabelMe', tmp_path / 'out')
  train, val = ([image for image, _ in images] for images in lists(tmp_path / 'out'))
  assert train == ['images/good/train/b.png']
  assert val == ['images/cut/train/c.png', f'images/good/{folder}/a.png']
