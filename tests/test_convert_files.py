"""Laws of reading label files, and of finding the images that they name."""

import json

from label_samples import convert, H, labelme, lists, picture, shape, SQUARE, W, write
import pytest

from uadjax.data.convert import label_files
from uadjax.data.convert.images import ImageIndex
from uadjax.errors import DataError

CHINESE = '划痕', '瑕疵', '表面裂纹 A'


@pytest.mark.parametrize('label', CHINESE)
@pytest.mark.parametrize(
  'encoding',
  ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'utf-32', 'gb2312', 'gbk', 'gb18030'],
)
def test_files_of_every_encoding_are_read(tmp_path, encoding, label):
  path = tmp_path / 'a'
  is_guess = encoding.startswith('gb')
  path.write_bytes(json.dumps({'shapes': [label]}, ensure_ascii=False).encode(encoding))
  content, remarks = label_files.read_json(path, 'a.json', 'LabelMe', ['shapes'])
  assert (content, [r.location for r in remarks]) == ({'shapes': [label]}, ['a.json'] * is_guess)
  path.write_bytes(f'<a>{label}</a>'.encode(encoding))
  root, remarks = label_files.read_xml(path, 'a.xml')
  assert (root.text, bool(remarks)) == (label, is_guess)
  path.write_bytes(f'a\r\n\r\n{label}\r\n'.encode(encoding))
  assert label_files.read_lines(path) == ['a', label]


@pytest.mark.parametrize(
  ('encoding', 'declared'),
  [
    ('gb2312', 'GB2312'),
    ('gb18030', 'gb2312'),
    ('gbk', 'gbk'),
    ('utf-16', 'UTF-16'),
    ('utf-8', 'gb2312'),  # The tool copied the declaration of another file.
    ('gbk', 'utf-8'),
    ('big5', 'Big5'),
    ('gbk', 'no-such-encoding'),
  ],
)
def test_xml_is_read_in_the_encoding_that_it_has_or_declares(tmp_path, encoding, declared):
  text = f'<?xml version="1.0" encoding="{declared}"?><a>人工</a>'
  (tmp_path / 'a.xml').write_bytes(text.encode(encoding))
  assert label_files.read_xml(tmp_path / 'a.xml', 'a.xml')[0].text == '人工'


@pytest.mark.parametrize(
  ('encoding', 'label', 'likely'),
  [
    ('shift_jis', '欠陥', 'Shift-JIS'),
    ('shift_jis', 'キズ', 'Shift-JIS'),
    ('cp1252', 'Größe', 'Windows-1252'),
    ('cp1252', 'rayé', 'Windows-1252'),
    ('cp1251', 'царапина', 'another code page'),
  ],
)
def test_other_encodings_are_named_with_a_way_out(tmp_path, encoding, label, likely):
  picture(tmp_path / 'in/a.png')
  text = json.dumps(labelme('a.png', [shape(label, SQUARE)]), ensure_ascii=False)
  (tmp_path / 'in/a.json').write_bytes(text.encode(encoding))
  with pytest.raises(
    DataError, match=rf'a\.json: its text .* probably .*{likely}.*save it as UTF-8'
  ):
    convert(tmp_path / 'in', 'LabelMe', tmp_path / 'out')


def test_conversion_notes_which_files_are_not_in_utf_8(tmp_path):
  picture(tmp_path / 'in/a.png')
  text = json.dumps(labelme('a.png', [shape('划痕', SQUARE)]), ensure_ascii=False)
  (tmp_path / 'in/a.json').write_bytes(text.encode('gbk'))
  summary = convert(tmp_path / 'in', 'LabelMe', tmp_path / 'out')
  assert summary.num_per_defect == {'划痕': 1}
  assert any('GB18030' in note and 'a.json' in note for note in summary.notes)


@pytest.mark.parametrize(
  ('file', 'name'),
  [
    ('images/1a2b3c4d-part_1.png', '1a2b3c4d-part_1.png'),
    ('images/part_1.png', '1a2b3c4d-part_1.png'),
    ('1a2b3c4d-part_1.png', 'part_1.png'),
    ('images/part_1.png', '/data/upload/3/1a2b3c4d-part_1.png'),
    ('images/part 1.png', '/data/local-files/?d=images/part%201.png'),
    ('images/100%25.png', '100%25.png'),
    ('deep/folder/part.png', 'C:\\Users\\me\\photos\\part.png'),
    ('deep/folder/part.png', '/home/me/photos/PART.PNG'),
    ('deep/folder/part.png', '../../elsewhere/part.bmp'),
    ('1a2b3c4d-part.jpg', '1a2b3c4d-part.png'),
  ],
)
def test_files_with_a_unique_name_are_found(tmp_path, file, name):
  picture(tmp_path / 'other.png')
  path = picture(tmp_path / file)
  assert ImageIndex(tmp_path).find(name, 'labels/result.json') == path


@pytest.mark.parametrize('name', ['11112222-part.png', 'par.png', 'part.png/x.png', ''])
def test_files_with_another_name_are_not_found(tmp_path, name):
  picture(tmp_path / '1a2b3c4d-part.png')
  assert ImageIndex(tmp_path).find(name, 'result.json') is None


def test_the_nearest_of_several_images_is_found_and_equally_near_ones_are_refused(tmp_path):
  for folder in ('train/images', 'valid/images', 'x', 'y'):
    picture(tmp_path / folder / 'a.png')
  images = ImageIndex(tmp_path)
  for split in ('train', 'valid'):
    path = tmp_path / split / 'images/a.png'
    assert images.find('C:/old/a.png', f'{split}/labels/a.json') == path
    assert images.find('a.jpg', f'labels/{split}/a.json') == path
  with pytest.raises(DataError, match=r"z/a\.json: 'a\.png' is ambiguous"):
    images.find('a.png', 'z/a.json')


def test_images_found_by_name_alone_are_noted_and_not_learned_from(tmp_path):
  picture(tmp_path / 'in/img/1a2b3c4d-a.png')
  picture(tmp_path / 'in/img/b.png')
  write(tmp_path / 'in/json/x.json', labelme('D:\\photos\\a.png', [shape('cut', SQUARE)]))
  summary = convert(tmp_path / 'in', 'LabelMe', tmp_path / 'out')
  assert [image for image, _ in lists(tmp_path / 'out')[0]] == ['images/good/b.png']
  assert any('found by name' in note and '1a2b3c4d-a.png' in note for note in summary.notes)


def test_label_studio_exports_of_coco_and_voc_are_read(tmp_path):
  for name in ('1a2b3c4d-a.png', '5e6f7a8b-b.png'):
    picture(tmp_path / 'coco/images' / name)
    picture(tmp_path / 'voc/images' / name)
  images = [
    {'id': i, 'file_name': f'..\\media\\upload\\7\\{name}', 'width': W, 'height': H}
    for i, name in enumerate(('1a2b3c4d-a.png', '5e6f7a8b-b.png'))
  ]
  instance = {'id': 0, 'image_id': 0, 'category_id': 0, 'segmentation': [], 'bbox': [4, 5, 6, 4]}
  content = {'images': images, 'categories': [{'id': 0, 'name': 'cut'}], 'annotations': [instance]}
  write(tmp_path / 'coco/result.json', content)
  box = '<bndbox><xmin>4</xmin><ymin>5</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>'
  text = f'<annotation><filename>1a2b3c4d-a</filename><object><name>cut</name>{box}</object>'
  write(tmp_path / 'voc/Annotations/1a2b3c4d-a.xml', f'{text}</annotation>')
  for kind in ('COCO', 'VOC'):
    summary = convert(tmp_path / kind.lower(), kind, tmp_path / f'{kind}-out')
    assert summary.num_per_defect == {'cut': 1, 'good': 1}
