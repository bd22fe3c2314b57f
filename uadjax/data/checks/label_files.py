"""Recognition of label files, by suffix and content, whatever tool wrote them."""

import codecs
import collections
from collections.abc import Iterator, Sequence, Set
import contextlib
import itertools
import mmap
import os
from pathlib import Path
import re

from uadjax.data.layouts import scanning

CONVERTIBLE = ('LabelMe', 'COCO', 'VOC')  # Tools whose labels `check.convert` converts.
LIST = 'list of images that the layout does not read'
TABLE = 'a table'
MASK = 'mask that lies outside of the folder'
_OF_IMAGES = (TABLE, 'Hugging Face', 'WebDataset')  # Their labels are about whole images.

# With more files of a suffix in a folder, three are opened, and all count as files of one tool.
_MAX_OPENED_FILES = 8
_MAX_FILES_WITH_NAMES = 20  # Files of a suffix in a folder that are searched for image names.
_MAX_FOLDERS_BESIDE = 50  # Folders beside that of the images, per level, that are considered.
_MAX_FOLDERS_AROUND = 200  # Folders around that of the images that are searched for labels.
_NUM_LEVELS_ABOVE = 2  # Labels of images/train/ may be in labels/train/, beside images/.
_MAX_FILES_BESIDE = 1000  # Files below a folder among which an image is searched for.
_MIN_BYTES = 3  # Labels of an image without a defect may be empty, or '[]'.
_MAX_BYTES = 1 << 28  # Larger files are not searched.
_MAX_SEARCHED_BYTES = 1 << 25  # Beginning of a file that is searched for names of images.

_IMAGE_SUFFIX = rb'\.(?:%s)' % '|'.join(suffix[1:] for suffix in scanning.SUFFIXES).encode()
# A line, possibly after a header, whose first field is an image.
_LIST_PATTERN = rb'(?i)\A([^\n]*\n)?["\']?[^\s,;"\']+%s(["\'\s,;]|\Z)' % _IMAGE_SUFFIX
# A header with a column of labels, but none of scores, above a line that names an image.
_TABLE_PATTERN = (
  rb'(?i)\A(?![^\n]*score)[^\n]*\b(label|class|category|defect|anomaly|target|choice|encodedpixels|%s)s?'
  rb'(\b|_?(id|name|type)\b)[^\n]*\n[^\n]*%s\b'
  % ('|'.join(scanning.NORMAL_FOLDER_NAMES).encode(), _IMAGE_SUFFIX)
)
_JSON_LINES = '.json', '.jsonl', '.ndjson', '.manifest'
# Tool, suffix of its label files, and a pattern in their content. The first that matches counts:
# several tools use names such as "annotations".
_SIGNATURES = (
  ('LabelMe', '.json', rb'"shapes"\s*:'),
  ('VIA', '.json', rb'"(_via_\w+|shape_attributes|file_attributes)"\s*:'),
  ('Label Studio', '.json', rb'"(original_width|[a-z]+labels|to_name|file_upload)"\s*:'),
  ('Supervisely', '.json', rb'"(classTitle|geometryType|classId|projectType)"\s*:'),
  ('Supervisely', '.json', rb'"size"\s*:\s*\{\s*"(height|width)"[^}]*\}\s*,\s*"objects"\s*:'),
  ('ISAT', '.json', rb'"description"\s*:\s*"ISAT|"iscrowd"[^}]*"note"\s*:'),
  ('EISeg', '.json', rb'"labelIdx"\s*:'),
  ('CreateML', '.json', rb'"annotations"\s*:\s*\[\s*\{[^]]*"coordinates"\s*:'),
  ('Datumaro', '.json', rb'"dm_format_version"\s*:|"items"\s*:\s*\[\s*\{[^]]*"annotations"\s*:'),
  *(('Labelbox', suffix, rb'"(data_row|Labeled Data)"\s*:') for suffix in _JSON_LINES),
  *(('SageMaker Ground Truth', suffix, rb'"source-ref"\s*:') for suffix in _JSON_LINES),
  *(('Vertex AI', suffix, rb'"imageGcsUri"\s*:') for suffix in _JSON_LINES),
  ('Azure Machine Learning', '.jsonl', rb'"image_url"\s*:'),
  ('Hugging Face', '.jsonl', rb'"file_name"\s*:'),
  ('FiftyOne', '.json', rb'"(_cls|sample_fields)"\s*:'),
  ('FiftyOne', '.json', rb'\A\s*\{\s*"classes"\s*:\s*(\[[^]]*\]|null)\s*,\s*"labels"\s*:\s*\{'),
  ('Darwin', '.json', rb'"(schema_ref|workview_url|bounding_box)"\s*:'),
  ('SuperAnnotate', '.json', rb'"(instances|attribute_groups)"\s*:\s*\['),
  ('Azure Custom Vision', '.json', rb'"(tagName|originalImageUri)"\s*:'),
  ('VoTT', '.json', rb'"assets?"\s*:\s*\{'),
  ('COCO', '.json', rb'"images"\s*:\s*\[|"(image|category)_id"\s*:'),
  ('an unknown tool', '.json', rb'"annotations?"\s*:'),
  ('VOC', '.xml', rb'<annotation[\s>]'),
  ('CVAT', '.xml', rb'<annotations[\s>]'),
  ('VOC', '.txt', rb'\A#\s*label:color_rgb:parts:actions'),  # The labelmap.txt of CVAT.
  ('YOLO', '.txt', rb'\A\s*\d+([ \t]+-?\d*\.?\d+(e-?\d+)?){4,}[ \t]*\r?(\n|\Z)'),
  ('DOTA', '.txt', rb'(?m)(?:^|\A)(-?\d+(\.\d+)?[ \t]+){8}\S+[ \t]+\d\s*$'),
  ('VIA', '.csv', rb'region_shape_attributes'),
  ('a table of boxes', '.csv', rb'(?i)\A[^\n]*\bx_?min\b'),
  ('Vertex AI', '.csv', rb'(?i)\A([^\n,]*,)?"?gs://'),
  *((TABLE, suffix, _TABLE_PATTERN) for suffix in ('.csv', '.tsv')),
  ('WebDataset', '.cls', rb'\A\s*-?\d+\s*\Z'),
  *(('Cognex', suffix, b'') for suffix in ('.vrlf', '.vglf', '.vmf')),
  ('HALCON', '.hdict', b''),
  *((LIST, suffix, _LIST_PATTERN) for suffix in ('.txt', '.csv', '.tsv', '.lst', '.list')),
)  # fmt: skip
_SUFFIXES = tuple(dict.fromkeys(suffix for _, suffix, _ in _SIGNATURES))


def way_out(tool: str) -> str:
  """Return a sentence that says how to use the labels of a tool."""
  if tool in CONVERTIBLE:
    settings = f'check.convert.enable=true, check.convert.src_dataset_type={tool}'
    return f'To convert them, use mode check_dataset with {settings}, check.convert.output=FOLDER.'
  if tool in _OF_IMAGES:
    return 'Move the images that they call defective to a folder that is named after the defect.'
  return 'Export them from that tool as COCO or VOC; mode check_dataset converts those.'


def find_tools(directory: Path, suffix: str, files: Sequence[tuple[str, int]]) -> dict[str, str]:
  """Return the tool that seems to have written each file of a suffix in a folder; '' for none.

  Of many files, three are opened: the smallest that is not empty, the median and the largest.

  Args:
    directory: the folder.
    suffix: suffix of the files, in lower case.
    files: names of the files, and their sizes in bytes.
  """
  patterns = [
    (tool, pattern) for tool, tool_suffix, pattern in _SIGNATURES if tool_suffix == suffix
  ]
  sizes = sorted((size, name) for name, size in files if 0 < size <= _MAX_BYTES)
  if not patterns or not sizes:
    return {name: '' for name, _ in files}
  is_each_opened = len(sizes) <= _MAX_OPENED_FILES
  if not is_each_opened:
    large = [pair for pair in sizes if pair[0] >= _MIN_BYTES] or sizes
    sizes = [large[0], large[(len(large) - 1) // 2], large[-1]]
  tools = {name: _tool_of(directory / name, patterns) for _, name in sizes}
  tool = next(filter(None, tools.values()), '')
  if is_each_opened:
    # A file too small for a pattern belongs to the tool of the others.
    return {name: tools.get(name) or (tool if size < _MIN_BYTES else '') for name, size in files}
  return {name: tool for name, _ in files}


def _tool_of(path: Path, patterns: Sequence[tuple[str, bytes]]) -> str:
  """Return the tool of the first pattern that a file contains; '' if it contains none."""
  return next((tool for tool, pattern in patterns if _contains(path, pattern)), '')


def find_beside(directory: Path, stems: Set[str]) -> Iterator[tuple[str, Path]]:
  """Yield label files, with their tools, that lie beside a folder of images instead of in it.

  They have the name of an image or contain it, and lie in the folder above, below a folder beside
  that of images, or in a parallel folder such as `labels/train` for `images/train`. `MASK` is the
  tool of masks.

  Args:
    directory: the folder of images.
    stems: names of the images without suffix.
  """
  with contextlib.suppress(OSError):  # The folders above may be closed to the user.
    directory = directory.resolve()
    folders = dict.fromkeys(itertools.islice(_folders_around(directory), _MAX_FOLDERS_AROUND))
    for folder in folders:
      yield from _find_in_folder(folder, directory.name, stems)
      if any(map(scanning.is_mask_folder, folder.parts[len(directory.parts) - 2 :])):
        masks = scanning.files_in(folder)
        yield from ((MASK, path) for path in masks if scanning.image_stem(path.name) in stems)


def _folders_around(directory: Path) -> Iterator[Path]:
  """Yield the folders in which labels of the images in a folder may lie."""
  for above in directory.parents[:_NUM_LEVELS_ABOVE]:
    if above == above.parent:
      return  # The root of the file system has no labels.
    yield above
    folder_name, *subfolders = directory.relative_to(above).parts
    for folder in scanning.folders_in(above)[:_MAX_FOLDERS_BESIDE]:
      is_mask_folder = scanning.is_mask_folder(folder.name)
      # Labels in a folder that has images are about those.
      if folder.name == folder_name or (not is_mask_folder and _has_image(folder)):
        continue
      yield folder.joinpath(*subfolders)
      if not subfolders or is_mask_folder:
        yield from (Path(path) for path, _, _ in os.walk(folder))


def _has_image(folder: Path) -> bool:
  """Return whether an image is among the first files below a folder."""
  files = (name for _, _, names in os.walk(folder) for name in names)
  return any(
    name.lower().endswith(scanning.SUFFIXES) for name in itertools.islice(files, _MAX_FILES_BESIDE)
  )


def _find_in_folder(folder: Path, image_folder: str, stems: Set[str]) -> Iterator[tuple[str, Path]]:
  """Yield the label files in a folder, with their tools, that are about images elsewhere."""
  own_stems = {path.stem for path in scanning.files_in(folder)}
  paths_by_suffix: dict[str, list[Path]] = collections.defaultdict(list)
  for path in scanning.files_in(folder, _SUFFIXES):
    paths_by_suffix[path.suffix.lower()].append(path)
  for suffix, paths in paths_by_suffix.items():
    named = [path for path in paths if _image_stems(path) & (stems - own_stems)]
    others = [path for path in paths if not _image_stems(path) & stems][:_MAX_FILES_WITH_NAMES]
    sizes = [(path.name, path.stat().st_size) for path in (*named, *others)]
    tools = find_tools(folder, suffix, sizes)
    yield from ((tools[path.name], path) for path in named if tools[path.name])
    for path in others:
      if tools[path.name] and _names_images(path, image_folder, stems):
        yield tools[path.name], path


def _image_stems(label_file: Path) -> set[str]:
  """Return the names without suffix that the image of a label file may have."""
  name = label_file.name
  return {label_file.stem, Path(label_file.stem).stem, name.partition('.')[0]}


def _names_images(path: Path, folder_name: str, stems: Set[str]) -> bool:
  """Return whether the beginning of a file contains the name of a folder or of an image."""
  folder = re.escape(folder_name.encode())
  pattern = rb'["/]%s[/\\]|([^"\'/\\,;:<>=\r\n\t]+)%s\b|"([^"\r\n]{4,200})"\s*:'
  with contextlib.suppress(OSError), path.open('rb') as file:
    content = file.read(_MAX_SEARCHED_BYTES)
    if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
      content = content.replace(b'\0', b'')
    for match in re.finditer(pattern % (folder, _IMAGE_SUFFIX), content, re.IGNORECASE):
      name = match[1] or match[2]
      if not name or name.decode(errors='replace').strip() in stems:
        return True
  return False


def _contains(path: Path, pattern: bytes) -> bool:
  """Return whether a pattern matches the content of a file; False if it is unreadable."""
  try:
    # Mapped, because a label file with embedded images is large.
    with path.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
      if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return bool(re.search(pattern, content[2:].replace(b'\0', b'')))
      return bool(re.search(pattern.replace(rb'\A', rb'\A(?:\xef\xbb\xbf)?'), content))
  except (OSError, ValueError):
    return False
