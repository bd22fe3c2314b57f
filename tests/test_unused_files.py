"""Laws of accounting: each file of a dataset is used, or counted with a reason."""

import collections
import functools
import json
import os
from pathlib import Path
import re

import image_files
import numpy as np
from PIL import Image

from uadjax import data
from uadjax.data import checks, layouts, prepare
from uadjax.data.checks import label_files, report as reports, unused_files
from uadjax.data.settings import DataSettings

LFS = 'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 21873\n'


picture = functools.partial(image_files.write_noise, shape=(12, 12), image_format='PNG')


def write(path: Path, content: str | bytes) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content.encode() if isinstance(content, str) else content)


def dataset(root: Path) -> Path:
  for i in range(4):
    picture(root / f'train/good/{i}.png', i)
  picture(root / 'test/cut/0.png', 9)
  Image.fromarray(np.eye(12, dtype=np.uint8)).save(root / 'test/cut/0_mask.png')
  return root


def reasons(root: Path) -> dict[str, str]:
  listing = layouts.scan(root)
  unused = unused_files.find(listing.directory, listing.splits, listing.layout.list_files)
  paths = [file.path for file in unused]
  assert len(paths) == len(set(paths))
  return {file.path: file.reason for file in unused}


# File, what it contains (None for a link to nothing, a color for an image), and the reason.
UNUSED = [
  ('train/good/0.heic', b'ftypheic', 'format that is not read (.heic)'),
  ('train/good/1.AVIF', b'avif', 'format that is not read (.avif)'),
  ('train/good/drawing.svg', b'<svg/>', 'format that is not read (.svg)'),
  ('train/good/scan', 'image', 'image with no suffix'),
  ('train/good/5.JPG_large', 'image', "image with suffix '.JPG_large'"),
  ('train/good/notes', b'by hand', 'neither an image nor a label file (no suffix)'),
  ('train/good/frame.0001', b'raw', 'neither an image nor a label file (no suffix)'),
  ('readme.md', b'# Bolts', 'neither an image nor a label file (.md)'),
  ('train/good/6.png', None, 'link to a missing file'),
  ('train/good/7', None, 'link to a missing file'),
  ('train/cut/0.png', LFS, 'Git LFS pointer'),
  ('train/good.dvc', b'outs:', 'DVC pointer'),
  ('train/good/NG/0.png', 'image', 'in a folder that the layout does not read'),
  ('pictures/2025/0.png', 'image', 'in a folder that the layout does not read'),
  ('0.png', 'image', 'in a folder that the layout does not read'),
  ('ground_truth/cut/7_mask.png', 'image', 'mask of no image'),
  ('train/good/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg', 'image', 'hidden file, thumbnail or system'),
  ('__MACOSX/train/good/._0.png', b'\0', 'hidden file, thumbnail or system'),
  ('train/good/._0.png', b'\0', 'hidden file, thumbnail or system'),
  ('train/good/.DS_Store', b'\0', 'hidden file, thumbnail or system'),
  ('train/good/Thumbs.db', b'\0', 'hidden file, thumbnail or system'),
  ('.git/objects/ab/cd', b'\0', 'hidden file, thumbnail or system'),
  ('files.txt', b'train/good/0.png\ntrain/good/1.png\n', 'list of images'),
  ('labels.csv', b'image,label\r\n0.png,good\r\n', 'labels of a table'),
  ('names.csv', b'image\r\n0.png\r\n', 'list of images'),
  ('scores.csv', b'image,label,score\r\n0.png,OK,1.5\r\n', 'list of images'),
  ('log.csv', b'time,label\r\n12:00,OK\r\n', 'neither an image nor a label file (.csv)'),
  ('bolts.zip', b'PK', 'archive that is not unpacked (.zip)'),
  ('shard-000.tar', b'x', 'archive that is not unpacked (.tar)'),
  ('train.tfrecord-00000-of-00001', b'x', 'archive that is not unpacked (.tfrecord)'),
  ('data/train-00000-of-00001.parquet', b'x', 'archive that is not unpacked (.parquet)'),
]  # fmt: skip


def test_each_file_is_used_or_counted_with_its_reason(tmp_path):
  root = dataset(tmp_path / 'bolts')
  for name, content, _ in UNUSED:
    if content is None:
      (root / name).symlink_to('nowhere/0.png')
    elif content == 'image':
      picture(root / name)
    else:
      write(root / name, content)
  unused = reasons(root)
  for name, _, reason in UNUSED:
    assert reason in unused.get(name, ''), name
  assert len(unused) == len(UNUSED)
  report = checks.check(root)
  files = [path for path in root.rglob('*') if not path.is_dir()]
  counts = collections.Counter(unused.values())
  assert {group.reason: group.num_files for group in report.not_used} == dict(counts)
  assert sum(counts.values()) == len(files) - 6  # Five images and a mask are used.
  assert [group.num_files for group in report.not_used] == sorted(counts.values(), reverse=True)


def test_a_dataset_without_other_files_has_no_unused_files(tmp_path):
  assert checks.check(dataset(tmp_path)).not_used == ()
  assert 'not used' not in str(checks.check(tmp_path))


def test_lists_are_used_and_images_that_they_do_not_name_are_counted(tmp_path):
  for i in range(4):
    picture(tmp_path / f'images/{i}.png', i)
  write(tmp_path / 'train.txt', 'images/0.png\nimages/1.png\nimages/2.png\n')
  write(tmp_path / 'val.txt', '')
  assert reasons(tmp_path) == {'images/3.png': 'image that is not listed'}


def test_the_target_of_a_link_counts_as_used(tmp_path):
  for i in range(3):
    picture(tmp_path / f'all/{i}.png', i)
  good = tmp_path / 'bolts/train/good'
  good.mkdir(parents=True)
  (tmp_path / 'bolts/store').symlink_to(tmp_path / 'all')
  (good / '0.png').symlink_to(tmp_path / 'all/0.png')
  os.link(tmp_path / 'all/1.png', good / '1.png')
  assert set(reasons(tmp_path / 'bolts')) == {'store/2.png'}
  (good.parent / 'loop').symlink_to(tmp_path / 'bolts')
  (tmp_path / 'bolts/self').symlink_to('self')
  assert set(reasons(tmp_path / 'bolts')) == {'store/2.png', 'self'}
  (tmp_path / 'nuts/train').mkdir(parents=True)
  (tmp_path / 'nuts/train/good').symlink_to(tmp_path / 'all')
  (tmp_path / 'nuts/all').symlink_to(tmp_path / 'all')
  assert reasons(tmp_path / 'nuts') == {}


def test_a_folder_with_too_many_files_is_reported_as_unexamined(tmp_path, monkeypatch):
  root = dataset(tmp_path)
  for i in range(20):
    write(root / f'zz{i}/notes.md', '')
  monkeypatch.setattr(unused_files, '_MAX_ENTRIES', 10)
  assert any('not examined' in reason for reason in reasons(root).values())


# Tool, name of its file, and its content. Label files of good images may be empty.
TOOLS = [
  ('LabelMe', 'LABELS/0.json', '{"version": "5", "flags": {}, "shapes": []}'),
  ('COCO', 'result.json', '{"images": [], "annotations": [], "categories": []}'),
  ('VOC', 'Annotations/0.xml', '<annotation>\n<folder>x</folder></annotation>'),
  ('CVAT', 'annotations.xml', '<?xml version="1.0"?>\n<annotations><version>1.1</version>'),
  ('YOLO', 'labels/0.txt', '0 0.47 0.47 0.31 0.31\n'),
  ('YOLO', 'train/good/0.txt', '1 0.1 0.2 0.3 0.4 0.5 0.6 0.7 0.8\r\n0 0.1 0.1 0.1 0.1\r\n'),
  ('DOTA', 'labels/0.txt', '30 30 60 35 55 60 20 40 scratch 0\n'),
  ('VIA', 'via_region_data.json', '{"0.png1": {"filename": "0.png", "regions": [], '
                                  '"file_attributes": {}}}'),
  ('VIA', 'via.csv', 'filename,file_size,region_shape_attributes\n0.png,1,"{}"\n'),
  ('ISAT', 'train/good/0.json', '{"info": {"description": "ISAT"}, "objects": []}'),
  ('Supervisely', 'ann/0.png.json', '{"size": {"height": 9, "width": 9}, "objects": []}'),
  ('Supervisely', 'ann/1.png.json', '{"objects": [{"classTitle": "cut"}]}'),
  ('Label Studio', 'project-1.json', '[{"image": "/data/0.png", "label": [{"x": 1, '
                                     '"rectanglelabels": ["cut"], "original_width": 9}]}]'),
  ('Label Studio', 'project.json', '[{"annotations": [{"result": [{"to_name": "image"}]}]}]'),
  ('EISeg', 'train/good/0.json', '[{"name": "cut", "labelIdx": 1, "points": []}]'),
  ('CreateML', 'createml.json', '[{"image": "0.png", "annotations": [{"label": "cut", '
                                '"coordinates": {"x": 1}}]}]'),
  ('Datumaro', 'default.json', '{"dm_format_version": "1.0", "items": []}'),
  ('Darwin', 'ann/0.json', '{"version": "2.0", "schema_ref": "https://x", "annotations": []}'),
  ('Darwin', 'ann/1.json', '{"dataset": "x", "image": {"workview_url": ""}, "annotations": []}'),
  ('FiftyOne', 'samples.json', '{"samples": [{"filepath": "data/0.png", "ground_truth": {"_cls": '
                               '"Detections", "detections": [{"bounding_box": [0, 0, 1, 1]}]}}]}'),
  ('FiftyOne', 'labels.json', '{"classes": ["cut"], "labels": {"0": [{"bounding_box": []}]}}'),
  ('Labelbox', 'export.ndjson', '{"data_row": {"external_id": "0.png"}, "projects": {}}\n'),
  ('SageMaker Ground Truth', 'output.manifest', '{"source-ref": "s3://b/0.png", "x": {}}\n'),
  ('Vertex AI', 'data.jsonl', '{"imageGcsUri": "gs://b/0.png", "boundingBoxAnnotations": []}\n'),
  ('Vertex AI', 'import.csv', 'training,gs://b/0.png,cut,0.1,0.1,,,0.2,0.2,,\n'),
  ('Hugging Face', 'metadata.jsonl', '{"file_name": "0.png", "objects": {"bbox": []}}\n'),
  ('Azure Machine Learning', 'train.jsonl', '{"image_url": "azureml://x/0.png", "label": []}\n'),
  ('Azure Custom Vision', 'images.json', '[{"originalImageUri": "https://x", "tags": []}]'),
  ('VoTT', 'x-export.json', '{"assets": {"a1": {"asset": {"name": "0.png"}, "regions": []}}}'),
  ('SuperAnnotate', '0.png___objects.json', '{"metadata": {"name": "0.png"}, "instances": []}'),
  ('an unknown tool', 'other.json', '[{"img": "0.png", "annotations": []}]'),
  ('a table of boxes', 'boxes.csv', 'filename,width,height,class,xmin,ymin,xmax,ymax\n'),
  ('a table', 'metadata.csv', 'file_name,label\n0.png,cut\n'),
  ('a table', '_classes.csv', 'filename, good, cut\n0.png, 0, 1\n'),
  ('a table', 'train.csv', 'ImageId,ClassId,EncodedPixels\n0002cc93b.jpg,1,29102 12\n'),
  ('WebDataset', '0.cls', '1'),
  ('Cognex', '0.vrlf', '\0\0\0\0'),
  ('HALCON', 'bolts.hdict', 'HDict'),
]  # fmt: skip


def test_label_files_are_recognized_in_any_encoding(tmp_path):
  for encoding in ('utf-8', 'utf-8-sig', 'utf-16'):
    for tool, name, text in TOOLS:
      write(tmp_path / Path(name).name, text.encode(encoding))
      file = Path(name).name, len(text)
      recognized = label_files.find_tools(tmp_path, Path(name).suffix, [file, ('none', 0)])
      assert recognized == {file[0]: tool, 'none': tool}, (encoding, name)


def test_label_files_are_a_warning_that_names_the_tool_and_the_way_out(tmp_path):
  for number, (tool, name, text) in enumerate(TOOLS):
    root = dataset(tmp_path / str(number))
    write(root / name, text)
    empty = (root / name).with_name(f'9{"".join(Path(name).suffixes)}')
    write(empty, '[]' if name.endswith('.json') else '')
    report = checks.check(root)
    assert f'labels of {tool}' in [group.reason for group in report.not_used], name
    warnings = [p for p in report.problems if p.kind == 'labels of another tool']
    assert len(warnings) == 1, name
    assert f'labels of {tool}' in warnings[0].message
    assert 'not read' in warnings[0].message
    converts = f'src_dataset_type={tool}' in warnings[0].message
    assert converts == (tool in label_files.CONVERTIBLE), name
    assert converts or re.search('Export them|Move the images', warnings[0].message), name


def test_label_files_beside_the_folder_of_images_are_a_warning(tmp_path):
  for i in range(4):
    picture(tmp_path / f'pictures/{i}.png', i)
  write(tmp_path / 'other.json', '{"annotations": []}')
  write(tmp_path / 'labels/part.txt', '0 0.5 0.5 0.1 0.1')
  kinds = [problem.kind for problem in checks.check(tmp_path / 'pictures').problems]
  assert 'labels of another tool' not in kinds
  labels = [
    ('labels/3.txt', '0 0.5 0.5 0.1 0.1', 'YOLO'),
    ('result.json', '{"images": [{"file_name": "pictures/0.png"}], "annotations": []}', 'COCO'),
  ]
  for name, text, tool in labels:
    write(tmp_path / name, text)
    messages = [p.message for p in checks.check(tmp_path / 'pictures').problems]
    assert any(f'labels of {tool}' in message and name in message for message in messages), tool


def test_unused_files_are_in_the_text_the_log_and_the_json(tmp_path, caplog):
  root = dataset(tmp_path / 'bolts')
  for i in range(5):
    picture(root / f'pictures/cam/{i}.png', i)
  text = (
    '5 x image in a folder that the layout does not read: pictures/cam/0.png, '
    'pictures/cam/1.png, pictures/cam/2.png, …'
  )
  report = checks.check(root)
  assert text in str(report)
  result = json.loads(json.dumps(reports.write(report, tmp_path / 'run')))
  assert result['not_used'] == [
    {
      'reason': 'image in a folder that the layout does not read',
      'count': 5,
      'examples': [f'pictures/cam/{i}.png' for i in range(3)],
    }
  ]
  assert prepare.checked_splits(DataSettings(str(root)), enforce=True, min_images=3).train
  assert text in caplog.text


# Folder of images, a label file elsewhere, its content, and the tool that wrote it.
BESIDE = [
  ('images', 'annotations.xml', '<annotations><image id="9" name="2.png"><box/></image>', 'CVAT'),
  ('train2017', 'annotations/instances_train2017.json',
   '{"images": [{"file_name": "2.png"}], "annotations": []}', 'COCO'),
  ('images/train', 'labels/train/2.txt', '0 0.5 0.5 0.1 0.1', 'YOLO'),
  ('images/default', 'annotations/default.json',
   '{"items": [{"id": "2", "annotations": [], "image": {"path": "2.png"}}]}', 'Datumaro'),
  ('ds0/img', 'ds0/ann/2.png.json', '{"objects": [{"classTitle": "cut"}]}', 'Supervisely'),
  ('train_images', 'train.csv', 'ImageId,EncodedPixels\n2.png,29102 12\n', 'a table'),
  ('images', 'output.manifest', '{"source-ref": "s3://bucket/2.png"}\n', 'SageMaker Ground Truth'),
  ('images', 'releases/latest/annotations/2.json', '{"schema_ref": "", "annotations": []}',
   'Darwin'),
  ('images', 'manifests/output/output.manifest', '{"source-ref": "s3://b/2.png"}',
   'SageMaker Ground Truth'),
  ('data', 'labels.json', '{"classes": ["cut"], "labels": {"part 2": [{"label": 0}]}}', 'FiftyOne'),
]  # fmt: skip


def test_label_files_that_are_about_images_elsewhere_are_a_warning(tmp_path):
  for number, (images, name, text, tool) in enumerate(BESIDE):
    for encoding in ('utf-8', 'utf-16'):
      root = tmp_path / f'{number}{encoding}'
      for i in range(3):
        picture(root / images / (f'part {i}.png' if tool == 'FiftyOne' else f'{i}.png'), i)
      write(
        root / name, text.replace('2.png', '7.png').replace('part 2', 'part 7').encode(encoding)
      )
      kinds = [problem.kind for problem in checks.check(root / images).problems]
      assert Path(name).name.startswith('2.') or 'labels of another tool' not in kinds, name
      write(root / name, text.encode(encoding))
      messages = [problem.message for problem in checks.check(root / images).problems]
      assert any(f'labels of {tool}' in message for message in messages), (name, encoding)


def test_labels_of_images_of_the_same_name_beside_them_are_no_warning(tmp_path):
  for folder in ('bolts', 'nuts'):
    for i in range(3):
      picture(tmp_path / f'{folder}/{i}.png', i)
  write(tmp_path / 'nuts/0.json', '{"shapes": []}')
  kinds = [problem.kind for problem in checks.check(tmp_path / 'bolts').problems]
  assert 'labels of another tool' not in kinds


def test_labels_of_listed_images_without_masks_are_a_warning(tmp_path):
  for i in range(4):
    picture(tmp_path / f'images/{i}.png', i)
    Image.fromarray(np.zeros((12, 12), np.uint8)).save(tmp_path / f'images/{i}_mask.png')
  write(tmp_path / 'labels/3.txt', '0 0.5 0.5 0.1 0.1')
  for has_masks in (False, True):
    lines = [f'./images/{i}.png' + has_masks * f'\timages/{i}_mask.png' for i in range(4)]
    write(tmp_path / 'train.txt', '\n'.join(lines))
    messages = [p.message for p in checks.check(tmp_path).problems]
    assert any('labels of YOLO' in message for message in messages) != has_masks


def test_files_outside_of_all_categories_are_counted(tmp_path):
  for name in ('bolts', 'nuts'):
    dataset(tmp_path / name)
    write(tmp_path / name / 'notes.md', '')
  write(tmp_path / 'readme.md', '')
  picture(tmp_path / 'raw/cam/0.png')
  settings = DataSettings(str(tmp_path), 'all')
  groups = data.unused_in_root(settings, data.expand(settings))
  assert sorted(path for group in groups for path in group.examples) == [
    'raw/cam/0.png',
    'readme.md',
  ]
  assert data.unused_in_root(DataSettings(str(tmp_path), 'bolts'), ['bolts']) == ()


def test_masks_beside_the_folder_of_images_are_a_warning(tmp_path):
  for i in range(3):
    picture(tmp_path / f'images/good/{i}.png', i)
    picture(tmp_path / f'images/cut/a{i}.png', 9 + i)
  for name in ('labels/cut/a0.png', 'labels/cut/a1_mask.png', 'other/a2.png'):
    picture(tmp_path / name)
  problems = [p for p in checks.check(tmp_path / 'images').problems if 'outside' in p.kind]
  assert [problem.path for problem in problems] == [tmp_path / 'labels/cut']
  assert problems[0].message.startswith('2 masks such as ')
  (tmp_path / 'labels').rename(tmp_path / 'images/labels')
  report = checks.check(tmp_path / 'images')
  assert sum(record.mask is not None for record in report.splits.test) == 2
