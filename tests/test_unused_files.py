"""Laws of accounting: each file of a dataset is used, or counted with a reason."""

import collections
import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

from uadjax.data import checks, layouts, prepare
from uadjax.data.checks import label_files, report as reports, unused_files
from uadjax.data.settings import DataSettings

LFS = 'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 21873\n'


def picture(path: Path, seed: int = 0) -> Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.random.default_rng(seed).integers(0, 256, (12, 12), np.uint8)
  Image.fromarray(pixels).save(path, 'PNG')
  return path


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
  found = unused_files.find(listing.directory, listing.splits, listing.layout.list_files)
  paths = [file.path for file in found]
  assert len(paths) == len(set(paths))
  return {file.path: file.reason for file in found}


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
  ('labels.csv', b'image,label\r\n0.png,good\r\n', 'list of images'),
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
  found = reasons(root)
  for name, _, reason in UNUSED:
    assert reason in found.get(name, ''), name
  assert len(found) == len(UNUSED)
  report = checks.check(root)
  files = [path for path in root.rglob('*') if not path.is_dir()]
  counts = collections.Counter(found.values())
  assert {group.reason: group.num_files for group in report.not_used} == dict(counts)
  assert sum(counts.values()) == len(files) - 6  # Five images and a mask are used.
  assert [group.num_files for group in report.not_used] == sorted(counts.values(), reverse=True)


def test_of_a_dataset_without_other_files_all_is_used(tmp_path):
  assert checks.check(dataset(tmp_path)).not_used == ()
  assert 'not used' not in str(checks.check(tmp_path))


def test_lists_are_used_and_images_that_they_do_not_name_are_counted(tmp_path):
  for i in range(4):
    picture(tmp_path / f'images/{i}.png', i)
  write(tmp_path / 'train.txt', 'images/0.png\nimages/1.png\nimages/2.png\n')
  write(tmp_path / 'val.txt', '')
  assert reasons(tmp_path) == {'images/3.png': 'image that is not listed'}


def test_what_a_link_leads_to_is_used(tmp_path):
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


def test_everything_in_a_folder_that_is_too_large_is_said_to_be_unexamined(tmp_path, monkeypatch):
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
  ('a table of boxes', 'boxes.csv', 'filename,width,height,class,xmin,ymin,xmax,ymax\n'),
]  # fmt: skip


def test_label_files_are_recognized_in_any_encoding(tmp_path):
  for encoding in ('utf-8', 'utf-8-sig', 'utf-16'):
    for tool, name, text in TOOLS:
      write(tmp_path / Path(name).name, text.encode(encoding))
      file = Path(name).name, len(text)
      found = label_files.find_tool(tmp_path, Path(name).suffix, [file, ('none', 0)])
      assert found == tool, (encoding, name)


def test_label_files_are_a_warning_that_names_the_tool_and_the_way_out(tmp_path):
  for number, (tool, name, text) in enumerate(TOOLS):
    root = dataset(tmp_path / str(number))
    write(root / name, text)
    empty = (root / name).with_name(f'9{"".join(Path(name).suffixes)}')
    write(empty, '[]' if name.endswith('.json') else '')
    report = checks.check(root)
    assert f'labels of {tool}' in [group.reason for group in report.not_used], name
    told = [p for p in report.problems if p.kind == 'labels of another tool']
    assert len(told) == 1, name
    assert f'labels of {tool}' in told[0].message
    assert 'not read' in told[0].message
    converts = f'src_dataset_type={tool}' in told[0].message
    assert converts == (tool in label_files.CONVERTIBLE), name
    assert converts or 'Export them' in told[0].message, name


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
