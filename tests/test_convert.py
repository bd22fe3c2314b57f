"""Laws of conversion that hold for all label formats, and those of MVTec AD."""

import tracemalloc

from label_samples import block, convert, H, labelme, lists, mask, picture, shape, SQUARE, W, write
import numpy as np
from PIL import Image
import pytest

from uadjax import config as configs
from uadjax.data import convert as converting, image_io, layouts
from uadjax.data.settings import ConvertSettings
from uadjax.errors import ConfigError, DataError, UnknownName


def test_several_types_in_an_image_are_combined_unless_one_hides_the_other(tmp_path):
  picture(tmp_path / 'in/a.png')
  picture(tmp_path / 'in/b.png')
  large = [[0, 0], [20, 0], [20, 20], [0, 20]]
  write(tmp_path / 'in/a.json', labelme('a.png', [shape('x', large), shape('y', SQUARE)]))
  write(tmp_path / 'in/b.json', labelme('b.png', [shape('x', SQUARE), shape('y', large)]))
  assert convert(tmp_path / 'in', 'LabelMe', tmp_path / 'out').num_per_defect == {
    'combined': 1,
    'y': 1,
  }


def test_labels_become_names_of_folders(tmp_path):
  for number, label in enumerate(('a/b', '..', 'é' * 300)):
    picture(tmp_path / f'in/{number}.png')
    write(tmp_path / f'in/{number}.json', labelme(f'{number}.png', [shape(label, SQUARE)]))
  types = convert(tmp_path / 'in', 'LabelMe', tmp_path / 'out').num_per_defect
  assert types == {'a_b': 1, 'defect': 1, 'é' * 50: 1}
  assert {path.name for path in (tmp_path / 'out/images').iterdir()} == set(types)


def test_at_most_twenty_problems_are_shown(tmp_path):
  for number in range(23):
    write(tmp_path / f'in/{number}.json', '?')
  with pytest.raises(DataError, match=r'23 problems') as error:
    convert(tmp_path / 'in', 'LabelMe', tmp_path / 'out')
  assert str(error.value).count('not JSON') == 20
  assert str(error.value).endswith('and 3 more')


def test_an_image_labeled_twice_is_refused(tmp_path):
  picture(tmp_path / 'in/a.png')
  for name in 'ab':
    write(tmp_path / f'in/{name}.json', labelme('a.png', [shape('x', SQUARE)]))
  with pytest.raises(DataError, match=r'a\.png: labeled twice'):
    convert(tmp_path / 'in', 'LabelMe', tmp_path / 'out')


def test_names_that_would_break_a_list_are_refused(tmp_path):
  picture(tmp_path / 'in/a\tb.png')
  write(tmp_path / 'in/a.json', labelme('a\tb.png', []))
  with pytest.raises(DataError, match='tab or line break'):
    convert(tmp_path / 'in', 'LabelMe', tmp_path / 'out')


# MVTec AD


def test_folders_that_are_no_category_are_refused(tmp_path):
  picture(tmp_path / 'in/a.png')
  with pytest.raises(DataError, match='is not a category of MVTec AD'):
    convert(tmp_path / 'in', 'MVTec_AD', tmp_path / 'out')
  for name in ('bottle', 'screw'):
    picture(tmp_path / f'in/{name}/train/good/0.png')
  with pytest.raises(DataError, match='name one of them: bottle, screw'):
    convert(tmp_path / 'in', 'MVTec_AD', tmp_path / 'out')


def test_mvtec(tmp_path):
  source, target = tmp_path / 'bottle', tmp_path / 'out'
  for name in ('train/good/000.png', 'test/good/000.png', 'test/cut/000.png', 'test/hole/000.png'):
    picture(source / name)
  for defect, place in (('cut', block(2, 5, 3, 7)), ('hole', block(9, 12, 3, 7))):
    path = source / f'ground_truth/{defect}/000_mask.png'
    path.parent.mkdir(parents=True)
    Image.fromarray(place.astype(np.uint8) * 255).save(path)
  summary = convert(tmp_path / 'bottle', 'MVTec_AD', target)
  assert summary == converting.Summary(1, 3, {'cut': 1, 'good': 2, 'hole': 1}, summary.notes)
  assert [n for n in summary.notes if 'not learned from (1): test/000.png' in n]
  assert lists(target) == (
    [['images/good/train/000.png', 'annotations/good/train/000.png']],
    [
      ['images/cut/test/000.png', 'annotations/cut/test/000.png'],
      ['images/good/test/000.png', 'annotations/good/test/000.png'],
      ['images/hole/test/000.png', 'annotations/hole/test/000.png'],
    ],
  )
  np.testing.assert_array_equal(mask(target, 'cut/test/000.png'), block(2, 5, 3, 7))
  assert [r.defect for r in layouts.load(target).test] == ['cut', 'good', 'hole']
  (source / 'ground_truth/cut/000_mask.png').unlink()
  with pytest.raises(DataError, match='no mask in ground_truth/cut'):
    convert(source, 'MVTec_AD', tmp_path / 'again')


@pytest.mark.real
def test_real_data_survive_conversion(shared, tmp_path):
  source = shared / 'data/mvtec_ad/toothbrush'
  convert(source, 'mvtec_ad', tmp_path / 'out')
  before, after = layouts.load(source), layouts.load(tmp_path / 'out')
  assert len(after.train) == len(before.train)

  def contents(records):
    return {
      r.path.read_bytes(): (r.defect, image_io.read_mask(r.mask).sum() if r.is_anomalous else 0)
      for r in records
    }

  assert contents(after.test) == contents(before.test)


# All


def test_targets_and_kinds_that_are_refused(tmp_path):
  source = tmp_path / 'in'
  picture(source / 'a.png')
  with pytest.raises(
    UnknownName, match=r"'yolo'; choose from \['COCO', 'LabelMe', 'MVTec_AD', 'VOC"
  ):
    convert(source, 'yolo', tmp_path / 'out')
  with pytest.raises(DataError, match=r'No folder .*absent'):
    convert(tmp_path / 'absent', 'LabelMe', tmp_path / 'out')
  with pytest.raises(ConfigError, match='lies in'):
    convert(source, 'LabelMe', source / 'converted')
  keep = write(tmp_path / 'full/keep.txt', 'mine')
  with pytest.raises(ConfigError, match='is not empty'):
    convert(source, 'LabelMe', tmp_path / 'full')
  assert keep.read_text() == 'mine'
  (tmp_path / 'empty').mkdir()
  write(source / 'a.json', labelme('a.png', []))
  conversion = convert(source, 'LabelMe', tmp_path / 'empty')
  assert conversion.num_train == 1
  assert conversion.notes == ('No label marks a defect: all images count as good.',)
  (tmp_path / 'nothing').mkdir()
  for kind in ('LabelMe', 'VOC', 'COCO', 'MVTec_AD'):
    with pytest.raises(DataError):
      convert(tmp_path / 'nothing', kind, tmp_path / 'out')


@pytest.mark.parametrize(
  ('kind', 'pattern'),
  [
    (
      'VOC',
      r'No VOC annotations in .*: neither Annotations/\*\.xml nor SegmentationClass/\*\.png;',
    ),
    ('LabelMe', r'No LabelMe annotations \(\*\.json\) in .*;'),
    ('COCO', 'No JSON file below'),
  ],
)
def test_a_source_without_labels_is_refused(tmp_path, kind, pattern):
  for name in ('JPEGImages/a.png', 'JPEGImages/b.png'):
    picture(tmp_path / 'in' / name)
  write(tmp_path / 'in/ImageSets/Main/train.txt', 'a\nb\n')
  with pytest.raises(DataError, match=pattern):
    convert(tmp_path / 'in', kind, tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


def test_a_conversion_that_is_interrupted_leaves_nothing(tmp_path):
  for name in 'abc':
    picture(tmp_path / f'in/{name}.png')
    write(tmp_path / f'in/{name}.json', labelme(f'{name}.png', []))

  def stop_while_writing(items, total, what):
    for number, item in enumerate(items):
      if what == 'Writing' and number == 2:
        raise KeyboardInterrupt
      yield item

  with pytest.raises(KeyboardInterrupt):
    converting.convert(tmp_path / 'in', 'LabelMe', tmp_path / 'out', stop_while_writing)
  assert [path.name for path in tmp_path.iterdir()] == ['in']


def test_masks_are_upright_as_their_images(tmp_path):
  """Tools show, and label, what EXIF has turned; the pixels in the file lie on their side."""
  path = picture(tmp_path / 'in/a.jpg', size=(W, H))
  exif = Image.Exif()
  exif[0x0112] = 6
  Image.open(path).save(tmp_path / 'in/b.jpg', exif=exif)
  path.unlink()
  write(tmp_path / 'in/b.json', labelme('b.jpg', [shape('x', SQUARE)]))
  convert(tmp_path / 'in', 'LabelMe', tmp_path / 'out')
  np.testing.assert_array_equal(mask(tmp_path / 'out', 'x/b.png'), block(5, 10, 4, 11))


def test_settings_offer_what_can_be_converted():
  choices = configs.describe(ConvertSettings())['src_dataset_type'].limits.choices
  assert {*choices} == {'', *converting._READERS}


SIDE = 600
CORNERS = [[1, 1], [SIDE - 1, 1], [SIDE - 1, SIDE - 1], [1, SIDE - 1]]
MANY_SHAPES = {
  'LabelMe': labelme('a.png', [shape(f'{i % 3}', CORNERS) for i in range(150)], size=(SIDE, SIDE)),
  'COCO': {
    'images': [{'id': 1, 'file_name': 'a.png'}],
    'categories': [{'id': 1, 'name': 'x'}],
    'annotations': [
      {'id': i, 'image_id': 1, 'category_id': 1, 'segmentation': [np.ravel(CORNERS).tolist()] * 2}
      for i in range(150)
    ],
  },
}


@pytest.mark.parametrize('kind', MANY_SHAPES)
def test_many_shapes_take_the_memory_of_a_few(tmp_path, kind):
  """Only the mask of one shape is in memory; all of them would take 150 times the image."""
  picture(tmp_path / 'in/a.png', size=(SIDE, SIDE))
  write(tmp_path / 'in/a.json', MANY_SHAPES[kind])
  tracemalloc.start()
  try:
    assert convert(tmp_path / 'in', kind, tmp_path / 'out').num_val == 1
    assert tracemalloc.get_traced_memory()[1] < 30 * SIDE * SIDE
  finally:
    tracemalloc.stop()


@pytest.mark.parametrize('kind', ['LabelMe', 'VOC'])
def test_masks_beside_images_are_not_learned_from(tmp_path, kind):
  names = 'a_json/img.png', 'a_json/label.png', 'masks/a.png', 'SegmentationObject/a.png'
  for name in ('a.png', 'b_json/b.png', *names):
    picture(tmp_path / 'in' / name)
  if kind == 'LabelMe':
    write(tmp_path / 'in/a.json', labelme('a.png', [shape('x', SQUARE)]))
  else:
    write(tmp_path / 'in/a.xml', '<annotation><object><name>x</name></object></annotation>')
  summary = convert(tmp_path / 'in', kind, tmp_path / 'out')
  assert summary.num_per_defect == {'x': 1, 'good': 1}
  assert lists(tmp_path / 'out')[0] == [
    ['images/good/b_json/b.png', 'annotations/good/b_json/b.png']
  ]
  assert any('folders of masks were ignored' in note for note in summary.notes)


def test_masks_beside_images_do_not_become_images(tmp_path):
  for name in ('a.png', 'b.png', 'b_mask.png', 'a_overlay.png', 'b.png___save.png'):
    picture(tmp_path / 'in' / name)
  Image.new('L', (W, H)).save(tmp_path / 'in/b_mask.png')
  write(tmp_path / 'in/a.json', labelme('a.png', [shape('x', SQUARE)]))
  summary = convert(tmp_path / 'in', 'LabelMe', tmp_path / 'out')
  assert summary.num_per_defect == {'good': 1, 'x': 1}
  assert any('were ignored (3)' in note and 'b_mask.png' in note for note in summary.notes)
