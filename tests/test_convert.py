"""Laws of conversion, on files as the labeling tools write them."""

import base64
import io
import json
from pathlib import Path
import unicodedata

from hypothesis import assume, given, strategies as st
import numpy as np
from PIL import Image
import pytest

from uadjax import config as configs
from uadjax.data import convert as converting, image_io, layouts
from uadjax.data.convert import outlines
from uadjax.data.settings import ConvertSettings
from uadjax.errors import ConfigError, DataError, UnknownName
from uadjax.numerics import regions

H, W = 24, 32


def silently(items, total, what):
  return items


def convert(source, kind, target):
  return converting.convert(source, kind, target, silently)


def picture(path: Path, seed=0, size=(H, W)) -> Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
  Image.fromarray(pixels).save(path)
  return path


def write(path: Path, value) -> Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)
  path.write_text(text, 'utf-8')
  return path


def content(root: Path) -> dict[str, bytes]:
  return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob('*') if p.is_file()}


def lists(target: Path) -> tuple[list[list[str]], list[list[str]]]:
  train, val = ((target / f'{name}.txt').read_text('utf-8') for name in ('train', 'val'))
  return [x.split('\t') for x in train.splitlines()], [x.split('\t') for x in val.splitlines()]


def mask(target: Path, name: str) -> np.ndarray:
  image = Image.open(target / 'annotations' / name)
  values = np.asarray(image)
  assert image.mode == 'L'
  assert set(np.unique(values)) <= {0, 255}
  return values > 0


def block(top, bottom, left, right, size=(H, W)) -> np.ndarray:
  out = np.zeros(size, bool)
  out[top:bottom, left:right] = True
  return out


# LabelMe


def shape(label, points, kind: str | None = 'polygon', **more):
  return {
    'label': label,
    'points': points,
    'group_id': None,
    'description': '',
    'shape_type': kind,
    'flags': {},
    'mask': None,
    **more,
  }


def labelme(image: str | None, shapes, data: str | None = None, size=(H, W)):
  return {
    'version': '5.5.0',
    'flags': {},
    'shapes': shapes,
    'imagePath': image,
    'imageData': data,
    'imageHeight': size[0],
    'imageWidth': size[1],
  }


SQUARE = [[4.0, 5.0], [10.0, 5.0], [10.0, 9.0], [4.0, 9.0]]


def test_labelme(tmp_path):
  source, target = tmp_path / 'in', tmp_path / 'out/set'
  for seed, name in enumerate(('a.jpg', 'a.png', 'b c.png', 'sub/d.bmp', 'ünï/划痕.png')):
    picture(source / 'images' / name, seed)
  write(source / 'labels/a.json', labelme('..\\images\\a.jpg', [shape('scratch', SQUARE)]))
  write(source / 'labels/b.json', labelme('../images/b c.png', [shape('划/痕', SQUARE, None)]))
  decomposed = unicodedata.normalize('NFD', '..\\Images\\ÜNÏ\\划痕.png')
  write(source / 'labels/e.json', labelme(decomposed, [shape('_background_', SQUARE)]))
  before = content(source)
  summary = convert(source, 'labelme', target)
  assert content(source) == before
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
  want = block(3, 7, 2, 10) | block(3, 6, 20, 24) | block(10, 13, 2, 6)
  want[21:24, 30:32] = [[1, 0], [0, 1], [1, 1]]
  np.testing.assert_array_equal(only_mask(tmp_path, shapes), want)


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
    'few': labelme('a.png', [shape('x', SQUARE[:2]), shape('x', [[1, 'y'], [2, 3], [4, 5]])]),
    'lines': labelme('a.png', [shape('x', SQUARE[:2], 'line'), shape('x', SQUARE[:1], 'point')]),
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
  told = str(error.value)
  for line in (
    "missing.json: no image 'nowhere.png'",
    'few.json: shape 1: a polygon needs 3 points but has 2',
    'few.json: shape 2: points must be pairs',
    "lines.json: shape 1: a line 'x' has no area",
    "lines.json: shape 2: a point 'x' has no area",
    "unknown.json: shape 1: unknown shape_type 'spline'; allowed are",
    'unknown.json: shape 2: it has no label',
    'unknown.json: shape 3: it has no label',
    'size.json: labeled as 24x32 pixels, but the image is 32x24',
    "a shape 'x' lies outside of the image",
    "a shape is labeled 'OK'",
    'endless.json: shape 1: points must be pairs',
    "other.json: not a LabelMe file, because it has no list 'shapes'",
    'broken.json: not JSON in UTF-8',
    '14 problems',
  ):
    assert line in told, line
  assert not target.exists()
  assert sorted(path.name for path in tmp_path.iterdir()) == ['in']


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


def test_an_image_outside_of_the_source_is_refused(tmp_path):
  picture(tmp_path / 'images/a.png')
  write(tmp_path / 'in/a.json', labelme('..\\images\\a.png', []))
  with pytest.raises(DataError, match='lies outside of'):
    convert(tmp_path / 'in', 'LabelMe', tmp_path / 'out')


def test_names_that_would_break_a_list_are_refused(tmp_path):
  picture(tmp_path / 'in/a\tb.png')
  write(tmp_path / 'in/a.json', labelme('a\tb.png', []))
  with pytest.raises(DataError, match='tab or line break'):
    convert(tmp_path / 'in', 'LabelMe', tmp_path / 'out')


# VOC


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
  assert summary.notes == ('1 images that no list in ImageSets names were ignored.',)


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


def test_voc_boxes_are_filled_and_told(tmp_path):
  source, target = tmp_path / 'in', tmp_path / 'out'
  objects = OBJECT.format(1, 2, 5, 6, label='Kratzer ß') + OBJECT.format(
    '7.0', 2, 8, 3, label='Kratzer ß'
  )
  for name, told in (('größe 1', objects), ('b', '')):
    picture(source / f'JPEGImages/{name}.jpg')
    write(
      source / f'Annotations/{name}.xml', XML.format(name=f'{name}.jpg', h=H, w=W, objects=told)
    )
  picture(source / 'JPEGImages/c.png')
  summary = convert(source, 'VOC', target)
  assert summary.num_per_defect == {'Kratzer ß': 1, 'good': 2}
  assert any('2 defects are bounding boxes' in note for note in summary.notes)
  # VOC counts pixels from one, and the last one belongs to the box.
  want = block(1, 6, 0, 5) | block(1, 3, 6, 8)
  np.testing.assert_array_equal(mask(target, 'Kratzer ß/größe 1.png'), want)


def test_voc_problems(tmp_path):
  source = tmp_path / 'in'
  for name in ('ab.jpg', 'ab.png', 'c.png', 'd.png', 'e.png', 'f.png', 'g.png', 'h.png'):
    picture(source / 'JPEGImages' / name)
  palette_mask(source / 'SegmentationClass/c.png', np.zeros((H, H)))
  binary = source / 'SegmentationClass/d.png'
  Image.fromarray(block(2, 5, 2, 5).astype(np.uint8) * 255).save(binary)
  write(source / 'Annotations/e.xml', '<annotation><object>')
  write(source / 'Annotations/f.xml', '<annotation><object><name>x</name></object></annotation>')
  write(source / 'Annotations/g.xml', XML.format(name='g.png', h=9, w=9, objects=''))
  write(source / 'ImageSets/Segmentation/train.txt', 'ab\nc\nd\ne\nf\ng\nh\nlost\n')
  with pytest.raises(DataError) as error:
    convert(source, 'VOC', tmp_path / 'out')
  for line in (
    'ab: ab.jpg, ab.png share its labels',
    'c.png: its mask: labeled as 24x24 pixels, but the image is 32x24',
    'd.png: the mask has only the values 0 and 255',
    'e.xml: not XML',
    'f.xml: object 1 lacks a name or a numeric bounding box',
    'g.png: labeled as 9',
    'h.png: listed, but without a mask',
    'lost: no such image',
    '8 problems',
  ):
    assert line in str(error.value), line


def test_images_between_those_labeled_are_told_and_labels_without_image_refused(tmp_path):
  source = tmp_path / 'in'
  for name in 'ab':
    picture(source / f'{name}.png')
  palette_mask(source / 'SegmentationClass/a.png', block(2, 5, 2, 5))
  summary = convert(source, 'VOC', tmp_path / 'out')
  assert summary.num_per_defect == {'class_1': 1, 'good': 1}  # Nor is the mask an image.
  assert summary.notes == ('1 images without an XML file or a mask count as good.',)
  (source / 'a.png').rename(source / 'other.png')
  with pytest.raises(DataError, match='a: no such image'):
    convert(source, 'VOC', tmp_path / 'again')


# COCO


def coco(images, annotations, categories=({'id': 1, 'name': 'crack', 'supercategory': ''},)):
  return {
    'info': {'description': '', 'url': '', 'version': '1.0', 'year': 2024},
    'licenses': [{'id': 0, 'name': '', 'url': ''}],
    'images': [
      {'id': i, 'file_name': name, 'height': H, 'width': W, 'license': 0, 'date_captured': ''}
      for i, name in images.items()
    ],
    'annotations': [
      {'id': number, 'category_id': 1, 'area': 1.0, 'iscrowd': 0, **annotation}
      for number, annotation in enumerate(annotations, 1)
    ],
    'categories': list(categories),
  }


def test_coco(tmp_path):
  source, target = tmp_path / 'in', tmp_path / 'out'
  names = {7: 'a.png', 3: 'sub\\b.png', 4: 'ü.png', 5: 'c.png', 6: 'good.png'}
  for name in names.values():
    picture(source / 'train2017' / name.replace('\\', '/'))
  for name in ('a.png', 'v.png', 'unlisted.png'):
    picture(source / 'val2017' / name, 9)
  ring = [4.0, 5.0, 10.0, 5.0, 10.0, 9.0, 4.0, 9.0]
  other = [9.0, 8.0, 12.0, 8.0, 12.0, 12.0, 9.0, 12.0]
  hole = [5 * H + 4, 6, 18, 2, 2, 2, 18, 6]  # Two columns of six, between them two of 2, 2 gap, 2.
  hole.append(H * W - sum(hole))
  annotations = [
    {'image_id': 7, 'segmentation': [ring, other], 'bbox': [4, 5, 6, 4]},
    {'image_id': 3, 'segmentation': {'size': [H, W], 'counts': hole}, 'iscrowd': 1},
    {'image_id': 4, 'segmentation': [], 'bbox': [2.0, 3.0, 4.0, 5.0]},
    {'image_id': 5, 'segmentation': [[1.1, 1.1, 20.0, 1.2, 20.0, 1.3]]},  # Thinner than a pixel.
  ]
  write(source / 'annotations/instances_train2017.json', coco(names, annotations))
  write(source / 'annotations/instances_val2017.json', coco({1: 'a.png', 2: 'v.png'}, []))
  write(source / 'annotations/captions_train2017.json', {'images': [], 'annotations': []})
  summary = convert(source, 'coco', target)
  train, val = lists(target)
  assert [image for image, _ in train] == ['images/good/train2017/good.png']
  assert [image for image, _ in val] == [
    *(f'images/crack/train2017/{name}.png' for name in ('a', 'c', 'sub/b', 'ü')),
    *(f'images/good/val2017/{name}.png' for name in 'av'),
  ]
  # A box of COCO ends where its last pixel does, and the parts of an instance are a union.
  got = mask(target, 'crack/train2017/a.png')
  np.testing.assert_array_equal(got, block(5, 9, 4, 10) | block(8, 12, 9, 12))
  want = block(4, 10, 5, 8) & ~block(6, 8, 6, 7)
  np.testing.assert_array_equal(mask(target, 'crack/train2017/sub/b.png'), want)
  np.testing.assert_array_equal(mask(target, 'crack/train2017/ü.png'), block(3, 8, 2, 6))
  assert mask(target, 'crack/train2017/c.png').any()
  assert summary.notes == (
    '1 images that no JSON file lists were ignored.',
    '1 defects are bounding boxes, which were filled. Trust only image metrics: pixel metrics count'
    ' the good pixels in a box as defective.',
  )


def test_coco_problems(tmp_path):
  source = tmp_path / 'in'
  picture(source / 'x/a.png')
  picture(source / 'y/a.png')
  picture(source / 'b.png')
  annotations = [
    {'image_id': 2, 'segmentation': [[1, 1, 5, 5]]},
    {'image_id': 2, 'segmentation': [[1, 1, 5, 5, 6]]},
    {'image_id': 2, 'segmentation': {'size': [H, W], 'counts': [5, 6]}},
    {'image_id': 2, 'segmentation': {'size': [W, H], 'counts': [H * W]}},
    {'image_id': 2, 'segmentation': {'size': [H, W], 'counts': 'ä'}},
    {'image_id': 2, 'category_id': 9},
    {'image_id': 2, 'category_id': [1]},
    {'image_id': 2},
  ]
  write(source / 'set.json', coco({1: 'a.png', 2: 'b.png', 3: 'c.png'}, annotations))
  write(source / 'stray.json', coco({}, [{'image_id': 8}]))
  write(source / 'other.json', [])
  with pytest.raises(DataError) as error:
    convert(source, 'COCO', tmp_path / 'out')
  for line in (
    'annotation 1: a polygon needs 3 points but has 2',
    'annotation 2: a polygon must be a list',
    f'annotation 3: its run lengths sum to 11, not to {W}x{H} pixels',
    'annotation 4: its run lengths have size [32, 24]',
    "annotation 5: 'ä' is not a valid character",
    'annotation 6: unknown category_id 9',
    'annotation 7: unknown category_id [1]',
    'annotation 8: it has neither segmentation nor bbox',
    "'a.png' is ambiguous: it matches ['x/a.png', 'y/a.png']",
    "no image 'c.png'",
    "stray.json: 1 annotations have an image_id that the file does not list: ['8']",
    'other.json: not a COCO file',
    '12 problems',
  ):
    assert line in str(error.value), line


@pytest.mark.parametrize(
  ('text', 'want'),
  [
    ('m06300LO010O01400`0', block(2, 8, 3, 9, (9, 11)) & ~block(4, 6, 5, 7, (9, 11))),
    ('S3', np.zeros((9, 11), bool)),
    ('0S3', np.ones((9, 11), bool)),
  ],
)
def test_compressed_run_lengths_are_those_of_pycocotools(text, want):
  """As pycocotools 2.0.11 encoded these masks."""
  np.testing.assert_array_equal(regions.decode_run_lengths(text, 9, 11), want)


def slow_ring(points: np.ndarray, h: int, w: int) -> np.ndarray:
  """Count, for each pixel, the edges that a ray from its center to the left crosses."""
  out = np.zeros((h, w), bool)
  for i in range(h):
    for j in range(w):
      y, x = i + 0.5, j + 0.5
      for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if (y0 < y) != (y1 < y) and x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x:
          out[i, j] ^= True
  return out


def through_a_center(points: np.ndarray, h: int, w: int) -> bool:
  """Whether an edge meets the center of a pixel, but for rounding: that may count as inside."""
  for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
    for y in np.arange(h) + 0.5:
      if (y0 < y) != (y1 < y):
        crossing = x0 + (y - y0) * (x1 - x0) / (y1 - y0)
        if np.abs(crossing - (np.arange(w) + 0.5)).min() < 1e-9:
          return True
  return False


coordinates = st.floats(-5, 20).map(lambda x: round(x, 1) + 0.03)


@given(st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=8))
def test_a_ring_holds_the_pixels_whose_centers_it_holds(points):
  outline = np.array(points)
  assume(not through_a_center(outline, 12, 15))
  want = slow_ring(outline, 12, 15)
  if not want.any():
    want = outlines.fill_polygon(outline, 12, 15)
  np.testing.assert_array_equal(outlines.fill_polygon_even_odd(outline, 12, 15), want)


def test_of_files_that_are_not_coco_five_are_named(tmp_path):
  for number in range(30):
    write(tmp_path / f'in/{number:02d}.json', labelme('a.png', []))
  with pytest.raises(DataError, match='25 more JSON files like these') as error:
    convert(tmp_path / 'in', 'COCO', tmp_path / 'out')
  assert str(error.value).count('not a COCO file') == 5


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
  assert summary == converting.Summary(1, 3, {'cut': 1, 'good': 2, 'hole': 1}, ())
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

  def known(records):
    return {
      r.path.read_bytes(): (r.defect, image_io.read_mask(r.mask).sum() if r.is_anomalous else 0)
      for r in records
    }

  assert known(after.test) == known(before.test)


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
  made = convert(source, 'LabelMe', tmp_path / 'empty')
  assert made.num_train == 1
  assert made.notes == ('No label marks a defect: all images count as good.',)
  (tmp_path / 'nothing').mkdir()
  for kind in ('LabelMe', 'VOC', 'COCO', 'MVTec_AD'):
    with pytest.raises(DataError):
      convert(tmp_path / 'nothing', kind, tmp_path / 'out')


@pytest.mark.parametrize(
  ('kind', 'told'),
  [
    (
      'VOC',
      r'No VOC annotations in .*: neither Annotations/\*\.xml nor SegmentationClass/\*\.png;',
    ),
    ('LabelMe', r'No LabelMe annotations \(\*\.json\) in .*;'),
    ('COCO', 'No JSON file below'),
  ],
)
def test_what_has_no_labels_is_not_taken_for_good(tmp_path, kind, told):
  for name in ('JPEGImages/a.png', 'JPEGImages/b.png'):
    picture(tmp_path / 'in' / name)
  write(tmp_path / 'in/ImageSets/Main/train.txt', 'a\nb\n')
  with pytest.raises(DataError, match=told):
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
