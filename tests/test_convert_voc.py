"""Laws of the conversion of Pascal VOC, on files as the tools of the field write them."""

from pathlib import Path

from label_samples import block, convert, H, lists, mask, picture, W, write
import numpy as np
from PIL import Image, ImageDraw
import pytest

from uadjax.errors import DataError


def palette_mask(path: Path, values: np.ndarray) -> Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  image = Image.fromarray(values.astype(np.uint8)).convert('P')
  image.putdata(values.ravel().tolist())
  image.putpalette([i * 37 % 256 for i in range(768)])
  image.save(path)
  return path


def test_voc_masks(tmp_path):
  source, target = tmp_path / 'VOCdevkit/VOC2012', tmp_path / 'out'
  values = np.zeros((H, W), int)
  values[3:9, 4:9] = 255  # Void around ...
  values[4:8, 5:8] = 2  # ... a defect of class 2.
  void = np.where(values == 2, 255, values)
  for name, value in (('a', values), ('b', values * 0), ('c', values * 0), ('d', void)):
    picture(source / f'JPEGImages/{name}.jpg')
    palette_mask(source / f'SegmentationClass/{name}.png', value)
  picture(source / 'JPEGImages/unlisted.jpg')
  write(source / 'ImageSets/Segmentation/train.txt', 'a\nb\nd\n')
  write(source / 'ImageSets/Segmentation/val.txt', '\ufeffc\r\n\r\n')
  write(source / 'ImageSets/Segmentation/trainval.txt', 'a\nb\nc\nd\n')
  write(source / 'class_names.txt', '_background_\ndent\nscratch\n')
  summary = convert(tmp_path / 'VOCdevkit', 'VOC', target)
  train, val = lists(target)
  assert [image for image, _ in train] == ['images/good/b.jpg', 'images/good/d.jpg']
  assert [image for image, _ in val] == ['images/good/c.jpg', 'images/scratch/a.jpg']
  np.testing.assert_array_equal(mask(target, 'scratch/a.png'), values == 2)
  assert summary.notes[0] == '1 images that no list in ImageSets names were ignored.'


def test_voc_of_cvat_has_colors(tmp_path):
  source = tmp_path / 'in'
  colors = np.zeros((H, W, 3), np.uint8)
  colors[2:5, 2:9] = 128, 0, 0
  picture(source / 'JPEGImages/sub/a.png')
  mask_path = picture(source / 'SegmentationClass/sub/a.png')
  Image.fromarray(colors).save(mask_path)
  write(source / 'ImageSets/Segmentation/default.txt', 'sub/a\n')
  labels = '# label:color_rgb:parts:actions\nbackground:0,0,0::\nrust:128,0,0::\n'
  write(source / 'labelmap.txt', labels)
  assert convert(source, 'voc', tmp_path / 'out').num_per_defect == {'rust': 1}
  np.testing.assert_array_equal(mask(tmp_path / 'out', 'rust/a.png'), block(2, 5, 2, 9))
  write(source / 'labelmap.txt', 'background:0,0,0::\nrust:1,1,1::\n')
  with pytest.raises(DataError, match=r'does not name the color \(128, 0, 0\)'):
    convert(source, 'VOC', tmp_path / 'out2')


XML = """<annotation>
\t<folder>JPEGImages</folder>
\t<filename>{name}</filename>
\t<path>C:\\data\\JPEGImages\\{name}</path>
\t<size>
\t\t<width>{w}</width>
\t\t<height>{h}</height>
\t\t<depth>3</depth>
\t</size>
\t<segmented>0</segmented>
{objects}</annotation>
"""

OBJECT = """\t<object>
\t\t<name>{label}</name>
\t\t<pose>Unspecified</pose>
\t\t<truncated>0</truncated>
\t\t<difficult>0</difficult>
\t\t<bndbox>
\t\t\t<xmin>{0}</xmin>
\t\t\t<ymin>{1}</ymin>
\t\t\t<xmax>{2}</xmax>
\t\t\t<ymax>{3}</ymax>
\t\t</bndbox>
\t</object>
"""


def test_voc_boxes_are_filled_and_noted(tmp_path):
  source, target = tmp_path / 'in', tmp_path / 'out'
  objects = OBJECT.format(1, 2, 5, 6, label='Kratzer ß') + OBJECT.format(
    '7.0', 2, 8, 3, label='Kratzer ß'
  )
  for name, elements in (('größe 1', objects), ('b', '')):
    picture(source / f'JPEGImages/{name}.jpg')
    write(
      source / f'Annotations/{name}.xml', XML.format(name=f'{name}.jpg', h=H, w=W, objects=elements)
    )
  picture(source / 'JPEGImages/c.png')
  summary = convert(source, 'VOC', target)
  assert summary.num_per_defect == {'Kratzer ß': 1, 'good': 2}
  assert [n for n in summary.notes if 'boxes were filled' in n and '(2)' in n]
  # VOC counts pixels from one, and the last one belongs to the box.
  expected = block(1, 6, 0, 5) | block(1, 3, 6, 8)
  np.testing.assert_array_equal(mask(target, 'Kratzer ß/größe 1.png'), expected)


def test_voc_problems(tmp_path):
  source = tmp_path / 'in'
  for name in ('ab.jpg', 'ab.png', 'c.png', 'd.png', 'e.png', 'f.png', 'g.png', 'h.png'):
    picture(source / 'JPEGImages' / name)
  palette_mask(source / 'SegmentationClass/c.png', np.zeros((H, H)))
  binary = source / 'SegmentationClass/d.png'
  Image.fromarray(block(2, 5, 2, 5).astype(np.uint8) * 255).save(binary)
  write(source / 'Annotations/e.xml', '<annotation><object>')
  box = '<bndbox><xmin>1</xmin></bndbox>'
  write(source / 'Annotations/f.xml', f'<a><object><name>x</name>{box}</object><object/></a>')
  write(source / 'Annotations/g.xml', XML.format(name='g.png', h=9, w=9, objects=''))
  palette_mask(source / 'SegmentationClass/lost.png', np.zeros((H, W)))
  write(source / 'ImageSets/Segmentation/train.txt', 'ab\nc\nd\ne\nf\ng\nh\nlost\n')
  with pytest.raises(DataError) as error:
    convert(source, 'VOC', tmp_path / 'out')
  for line in (
    'ab: ab.jpg, ab.png share its labels',
    'SegmentationClass/c.png: labeled as 24x24 pixels, but the image is 32x24',
    'd.png: the mask has only the values 0 and 255',
    'e.xml: not XML',
    'Annotations/f.xml: object 1: points must be pairs [x, y] of finite numbers',
    'Annotations/f.xml: object 2: it has no name',
    'Annotations/g.xml: labeled as 9',
    'h.png: listed, but without a mask',
    'SegmentationClass/lost.png: no such image',
    '9 problems',
  ):
    assert line in str(error.value), line


def test_unlabeled_images_are_noted_and_labels_without_an_image_refused(tmp_path):
  source = tmp_path / 'in'
  for name in 'ab':
    picture(source / f'{name}.png')
  palette_mask(source / 'SegmentationClass/a.png', block(2, 5, 2, 5))
  summary = convert(source, 'VOC', tmp_path / 'out')
  assert summary.num_per_defect == {'class_1': 1, 'good': 1}  # Nor is the mask an image.
  assert summary.notes == ('1 images without an XML file or a mask count as good.',)
  (source / 'a.png').rename(source / 'other.png')
  with pytest.raises(DataError, match=r'SegmentationClass/a.png: no such image'):
    convert(source, 'VOC', tmp_path / 'again')


TRIANGLE = [(4, 5), (20, 5), (4, 15)]
NUMBERED = ''.join(f'<x{i}>{x}</x{i}><y{i}>{y}</y{i}>' for i, (x, y) in enumerate(TRIANGLE, 1))
XS_FIRST = ''.join(f'<x{i}>{x}.0</x{i}>' for i, (x, _) in reversed([*enumerate(TRIANGLE, 1)])) + (
  ''.join(f'<y{i}>{y}</y{i}>' for i, (_, y) in enumerate(TRIANGLE, 1))
)
PAIRS = ''.join(f'<pt><x>{x}</x><y>{y}</y></pt>' for x, y in TRIANGLE)
BOX = '<bndbox><xmin>4</xmin><ymin>5</ymin><xmax>20</xmax><ymax>15</ymax></bndbox>'


def voc_object(inner: str) -> str:
  return f'<object><name>裂纹</name><pose>Unspecified</pose>{inner}</object>'


def voc_file(path: Path, *objects: str, size=(H, W), name='a.jpg') -> Path:
  return write(path, XML.format(name=name, h=size[0], w=size[1], objects=''.join(objects)))


@pytest.mark.parametrize('size', [(H, W), (0, 0)])
@pytest.mark.parametrize('box', ['', BOX])
@pytest.mark.parametrize('points', [NUMBERED, XS_FIRST, PAIRS])
def test_polygons_are_drawn_in_all_forms_with_and_without_a_box(tmp_path, points, box, size):
  picture(tmp_path / 'in/a.jpg')
  inner = f'{box}<polygon><username>me</username>{points}</polygon>'
  voc_file(tmp_path / 'in/a.xml', voc_object(inner), size=size)
  assert convert(tmp_path / 'in', 'VOC', tmp_path / 'out').notes[:-1] == ()
  image = Image.new('1', (W, H))
  ImageDraw.Draw(image).polygon(TRIANGLE, fill=1, outline=1)
  np.testing.assert_array_equal(mask(tmp_path / 'out', '裂纹/a.png'), np.asarray(image))


def test_a_polygon_with_an_unequal_number_of_coordinates_is_refused(tmp_path):
  picture(tmp_path / 'in/a.jpg')
  voc_file(tmp_path / 'in/a.xml', voc_object(f'<polygon>{NUMBERED}<x4>1</x4></polygon>'))
  with pytest.raises(DataError, match=r'a\.xml: object 1: its polygon has 4 x but 3 y'):
    convert(tmp_path / 'in', 'VOC', tmp_path / 'out')


def test_rotated_boxes_are_drawn(tmp_path):
  picture(tmp_path / 'in/a.jpg')
  box = '<cx>16</cx><cy>12</cy><w>10</w><h>4</h><angle>1.5707963</angle>'
  voc_file(tmp_path / 'in/a.xml', voc_object(f'<type>robndbox</type><robndbox>{box}</robndbox>'))
  summary = convert(tmp_path / 'in', 'VOC', tmp_path / 'out')
  got = mask(tmp_path / 'out', '裂纹/a.png')
  assert got[8:17, 15:18].all()
  assert not (got & ~block(6, 19, 13, 20)).any()
  assert any('boxes were filled' in note for note in summary.notes)


def test_objects_without_a_place_make_their_image_defective_and_empty_ones_do_not(tmp_path):
  for name in 'ab':
    picture(tmp_path / f'in/{name}.jpg')
  empty = '<bndbox><xmin>0</xmin><ymin>0</ymin><xmax>0</xmax><ymax>0</ymax></bndbox>'
  voc_file(tmp_path / 'in/a.xml', voc_object(''))
  voc_file(tmp_path / 'in/b.xml', voc_object(empty), name='b.jpg')
  summary = convert(tmp_path / 'in', 'VOC', tmp_path / 'out')
  assert summary.num_per_defect == {'good': 1, '裂纹': 1}
  assert lists(tmp_path / 'out')[1] == [['images/裂纹/a.jpg', 'annotations/裂纹/a.png']]
  for text, place in (('neither an outline', 'a.xml: object 1'), ('mark nothing', 'b.xml')):
    assert any(text in note and place in note for note in summary.notes)


@pytest.mark.parametrize(
  ('images', 'labels'),
  [
    ('{split}', '{split}'),
    ('{split}/JPEGImages', '{split}/Annotations'),
    ('JPEGImages/{split}', 'Annotations/{split}'),
    ('{split}/images', '{split}/annotations'),
    ('photos/{split}', 'xml/{split}'),
  ],
)
@pytest.mark.parametrize('held_out', ['valid', 'Val', 'TEST', 'validation'])
def test_images_in_folders_of_test_sets_are_held_out(tmp_path, images, labels, held_out):
  for split in ('train', held_out):
    for name, objects in (('a', ()), ('b', (voc_object(BOX),))):
      picture(tmp_path / 'in' / images.format(split=split) / f'{name}.jpg')
      path = tmp_path / 'in' / labels.format(split=split) / f'{name}.xml'
      voc_file(path, *objects, name=f'{name}.jpg')
  summary = convert(tmp_path / 'in', 'VOC', tmp_path / 'out')
  assert summary.num_per_defect == {'good': 2, '裂纹': 2}
  ((image, _),) = lists(tmp_path / 'out')[0]
  assert 'train' in image
  assert any('not learned from' in note and held_out in note for note in summary.notes)


def test_masks_of_split_folders_belong_to_the_images_of_their_split(tmp_path):
  for split, value in (('train', 0), ('valid', 1)):
    picture(tmp_path / f'in/{split}/JPEGImages/a.jpg')
    palette_mask(tmp_path / f'in/{split}/SegmentationClass/a.png', np.full((H, W), value))
    palette_mask(tmp_path / f'in/{split}/SegmentationObject/a.png', np.full((H, W), value))
  summary = convert(tmp_path / 'in', 'VOC', tmp_path / 'out')
  assert summary.num_per_defect == {'class_1': 1, 'good': 1}
  assert [image for image, _ in lists(tmp_path / 'out')[1]] == [
    'images/class_1/valid/JPEGImages/a.jpg'
  ]


def test_labels_that_an_image_has_twice_are_refused(tmp_path):
  picture(tmp_path / 'in/JPEGImages/a.jpg')
  for folder in ('Annotations', 'JPEGImages'):
    voc_file(tmp_path / 'in' / folder / 'a.xml', voc_object(BOX))
  with pytest.raises(DataError, match=r'a: it has labels in .*a\.xml and in .*a\.xml; delete one'):
    convert(tmp_path / 'in', 'VOC', tmp_path / 'out')


def test_several_folders_with_lists_are_an_error_that_names_them(tmp_path):
  for year in ('VOC2007', 'VOC2012'):
    write(tmp_path / f'in/{year}/ImageSets/Main/train.txt', 'a\n')
  with pytest.raises(DataError, match='several VOC folders; name one of them: VOC2007, VOC2012'):
    convert(tmp_path / 'in', 'VOC', tmp_path / 'out')


def test_names_of_classes_lie_in_the_only_voc_folder(tmp_path):
  root = tmp_path / 'in/VOC2012'
  picture(root / 'JPEGImages/a.jpg')
  palette_mask(root / 'SegmentationClass/a.png', np.ones((H, W)))
  write(root / 'class_names.txt', '_background_\ndent\n')
  assert convert(tmp_path / 'in', 'VOC', tmp_path / 'out').num_per_defect == {'dent': 1}


def test_an_image_is_found_by_the_name_in_its_file_or_of_its_file(tmp_path):
  for name in ('a.jpg', 'b.jpg'):
    picture(tmp_path / 'in/photos' / name)
  voc_file(tmp_path / 'in/xml/001.xml', voc_object(BOX), name='a.jpg')
  voc_file(tmp_path / 'in/xml/b.xml', voc_object(BOX), name='lost.jpg')
  assert convert(tmp_path / 'in', 'VOC', tmp_path / 'out').num_per_defect == {'裂纹': 2}
