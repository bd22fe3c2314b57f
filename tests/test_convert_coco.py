"""Laws of the conversion of COCO, on files as the tools of the field write them."""

from label_samples import block, convert, H, labelme, lists, mask, picture, W, write
import numpy as np
import pytest

from uadjax.data.convert import samples
from uadjax.errors import DataError


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
  expected = block(4, 10, 5, 8) & ~block(6, 8, 6, 7)
  np.testing.assert_array_equal(mask(target, 'crack/train2017/sub/b.png'), expected)
  np.testing.assert_array_equal(mask(target, 'crack/train2017/ü.png'), block(3, 8, 2, 6))
  assert mask(target, 'crack/train2017/c.png').any()
  assert summary.notes == (
    '1 images that no JSON file lists were ignored.',
    f'{samples.BOXES_FILLED} (1): annotations/instances_train2017.json: train2017/ü.png: '
    'annotation 3.',
    f'{samples._HELD_OUT} (2): val2017/a.png; val2017/v.png.',
  )


def test_coco_problems(tmp_path):
  source = tmp_path / 'in'
  picture(source / 'x/a.png')
  picture(source / 'y/a.png')
  picture(source / 'b.png')
  annotations = [
    {'image_id': 2, 'bbox': [1, 1, 5]},
    {'image_id': 2, 'segmentation': [[1, 1, 5, 5, 6]]},
    {'image_id': 2, 'segmentation': {'size': [H, W], 'counts': [5, 6]}},
    {'image_id': 2, 'segmentation': {'size': [W, H], 'counts': [H * W]}},
    {'image_id': 2, 'segmentation': {'size': [H, W], 'counts': 'ä'}},
    {'image_id': 2, 'category_id': 9},
    {'image_id': 2, 'category_id': [1]},
    {'image_id': 2, 'segmentation': 'polygon'},
  ]
  write(source / 'set.json', coco({1: 'a.png', 2: 'b.png', 3: 'c.png'}, annotations))
  write(source / 'stray.json', coco({}, [{'image_id': 8}]))
  write(source / 'other.json', [])
  with pytest.raises(DataError) as error:
    convert(source, 'COCO', tmp_path / 'out')
  for line in (
    'set.json: b.png: annotation 1: its bbox must be [x, y, width, height]',
    'annotation 2: a polygon must be a list',
    f'annotation 3: its run lengths do not sum to {W}x{H} pixels',
    'annotation 4: its run lengths have size [32, 24]',
    "annotation 5: 'ä' is not a valid character",
    'annotation 6: unknown category_id 9',
    'annotation 7: unknown category_id [1]',
    'annotation 8: its segmentation is no list or object',
    "'a.png' is ambiguous: it matches ['x/a.png', 'y/a.png']",
    "no image 'c.png'",
    "stray.json: 1 annotations have an image_id that the file does not list: ['8']",
    'other.json: not a COCO file',
    '12 problems',
  ):
    assert line in str(error.value), line


def test_at_most_five_files_that_are_not_coco_are_named(tmp_path):
  for number in range(30):
    write(tmp_path / f'in/{number:02d}.json', labelme('a.png', []))
  with pytest.raises(DataError, match='25 more JSON files like these') as error:
    convert(tmp_path / 'in', 'COCO', tmp_path / 'out')
  assert str(error.value).count('not a COCO file') == 5


RING = [4.0, 5.0, 10.0, 5.0, 10.0, 9.0, 4.0, 9.0]


@pytest.mark.parametrize(
  'instance',
  [
    {'segmentation': [], 'bbox': [0, 0, 0, 0], 'area': 0},
    {'segmentation': [[]], 'bbox': [], 'area': 0.0},
    {'segmentation': [[5, 5]], 'bbox': [5, 5, 0, 0], 'area': 0},
    {'segmentation': [[5, 5, 5, 5, 5, 5]], 'bbox': [5, 5, 0, 0], 'area': 0},
    {'segmentation': None, 'bbox': None, 'area': None},
    {'segmentation': {'size': [H, W], 'counts': [H * W]}, 'bbox': [0, 0, 0, 0], 'area': 0},
    {'segmentation': [], 'bbox': [3, 3, 0, 5], 'area': 0},
  ],
)
def test_an_instance_that_was_never_drawn_is_no_defect(tmp_path, instance):
  picture(tmp_path / 'in/a.png')
  write(tmp_path / 'in/set.json', coco({1: 'a.png'}, [{'image_id': 1, **instance}]))
  summary = convert(tmp_path / 'in', 'COCO', tmp_path / 'out')
  assert (summary.num_train, summary.num_per_defect) == (1, {'good': 1})
  (note,) = [note for note in summary.notes if 'mark nothing' in note]
  assert 'set.json: a.png: annotation 1' in note


def test_the_drawn_parts_of_an_instance_count(tmp_path):
  """Empty polygons beside drawn ones, and boxes of instances without an outline."""
  names = {i: f'{i}.png' for i in range(3)}
  for name in names.values():
    picture(tmp_path / 'in' / name)
  empty = {'size': [H, W], 'counts': [H * W]}
  annotations = [
    {'image_id': 0, 'segmentation': [[], [1, 1], RING]},
    {'image_id': 1, 'segmentation': [[5, 5]], 'bbox': [4, 5, 6, 4]},
    {'image_id': 2, 'segmentation': empty, 'bbox': [4, 5, 6, 4]},
  ]
  write(tmp_path / 'in/set.json', coco(names, annotations))
  convert(tmp_path / 'in', 'COCO', tmp_path / 'out')
  for name in names.values():
    np.testing.assert_array_equal(mask(tmp_path / 'out', f'crack/{name}'), block(5, 9, 4, 10))


@pytest.mark.parametrize(
  'instance', [{}, {'area': 4.0, 'segmentation': []}, {'area': 4, 'bbox': [0, 0, 0, 0]}]
)
def test_an_instance_without_a_place_makes_its_image_defective(tmp_path, instance):
  picture(tmp_path / 'in/a.png')
  content = coco({1: 'a.png'}, [{'image_id': 1, **instance}])
  content['annotations'][0] |= {'area': instance.get('area')}
  write(tmp_path / 'in/set.json', content)
  summary = convert(tmp_path / 'in', 'COCO', tmp_path / 'out')
  assert (summary.num_train, summary.num_per_defect) == (0, {'crack': 1})
  assert any('mark no region' in note and 'a.png' in note for note in summary.notes)


def test_compressed_run_lengths_are_read(tmp_path):
  picture(tmp_path / 'in/a.png', size=(9, 11))
  run_lengths = {'size': [9, 11], 'counts': 'm06300LO010O01400`0'}
  content = coco({1: 'a.png'}, [{'image_id': 1, 'segmentation': run_lengths}])
  content['images'][0] |= {'height': 9, 'width': 11}
  write(tmp_path / 'in/set.json', content)
  convert(tmp_path / 'in', 'COCO', tmp_path / 'out')
  expected = block(2, 8, 3, 9, (9, 11)) & ~block(4, 6, 5, 7, (9, 11))
  np.testing.assert_array_equal(mask(tmp_path / 'out', 'crack/a.png'), expected)


def test_images_of_another_size_than_labeled_are_named_with_their_file(tmp_path):
  picture(tmp_path / 'in/a.png', size=(9, 11))
  write(tmp_path / 'in/set.json', coco({1: 'a.png'}, []))
  with pytest.raises(DataError, match=r'set\.json: a\.png: labeled as 32x24 pixels, but .* 11x9'):
    convert(tmp_path / 'in', 'COCO', tmp_path / 'out')


@pytest.mark.parametrize('folder', ['valid', 'Val', 'TEST', 'validation', 'test2017', 'val_images'])
def test_images_of_one_file_in_folders_of_test_sets_are_held_out(tmp_path, folder):
  names = {1: 'train/a.png', 2: f'{folder}/b.png', 3: 'test bench/c.png', 4: 'contest/d.png'}
  for name in names.values():
    picture(tmp_path / 'in' / name)
  write(tmp_path / 'in/set.json', coco(names, []))
  summary = convert(tmp_path / 'in', 'COCO', tmp_path / 'out')
  assert [image for image, _ in lists(tmp_path / 'out')[1]] == [f'images/good/{folder}/b.png']
  assert any(f'{folder}/b.png' in note for note in summary.notes)
