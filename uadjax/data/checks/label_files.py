"""Recognition of label files, by suffix and content, whatever tool wrote them."""

import codecs
import collections
from collections.abc import Collection, Iterator, Sequence
import contextlib
import mmap
from pathlib import Path
import re

from uadjax.data.layouts import scanning

CONVERTIBLE = ('LabelMe', 'COCO', 'VOC')  # Tools whose labels `check.convert` converts.
LIST = 'list of images that the layout does not read'

_MAX_OPENED_FILES = 3  # Files with one suffix in one folder that are searched for a pattern.
_MAX_FILES_ABOVE = 20  # Files with one suffix in the folder above that are searched.
_MIN_BYTES = 3  # Labels of an image without a defect may be empty, or '[]'.
_MAX_BYTES = 1 << 28  # Larger files are not searched.

# A line, possibly after a header, whose first field is an image.
_LIST_PATTERN = rb'(?i)\A([^\n]*\n)?["\']?[^\s,;"\']+\.(%s)(["\'\s,;]|\Z)' % (
  '|'.join(suffix[1:] for suffix in scanning.SUFFIXES).encode()
)
# Tool, suffix of its label files, and a pattern in their content. The first that matches counts:
# several tools use names such as "annotations".
_SIGNATURES = (
  ('LabelMe', '.json', rb'"shapes"\s*:'),
  ('VIA', '.json', rb'"(_via_\w+|shape_attributes|file_attributes)"\s*:'),
  ('Label Studio', '.json', rb'"(original_width|[a-z]+labels|to_name)"\s*:'),
  ('Supervisely', '.json', rb'"(classTitle|geometryType|classId)"\s*:'),
  ('Supervisely', '.json', rb'"size"\s*:\s*\{\s*"(height|width)"[^}]*\}\s*,\s*"objects"\s*:'),
  ('ISAT', '.json', rb'"description"\s*:\s*"ISAT|"iscrowd"[^}]*"note"\s*:'),
  ('EISeg', '.json', rb'"labelIdx"\s*:'),
  ('CreateML', '.json', rb'"annotations"\s*:\s*\[\s*\{[^]]*"coordinates"\s*:'),
  ('Datumaro', '.json', rb'"dm_format_version"\s*:|"items"\s*:\s*\[\s*\{[^]]*"annotations"\s*:'),
  ('Darwin', '.json', rb'"bounding_box"\s*:'),
  ('COCO', '.json', rb'"(annotations|(image|category)_id)"\s*:'),
  ('VOC', '.xml', rb'<annotation[\s>]'),
  ('CVAT', '.xml', rb'<annotations[\s>]'),
  ('YOLO', '.txt', rb'\A\s*\d+([ \t]+-?\d*\.?\d+(e-?\d+)?){4,}[ \t]*\r?(\n|\Z)'),
  ('DOTA', '.txt', rb'(?m)(?:^|\A)(-?\d+(\.\d+)?[ \t]+){8}\S+[ \t]+\d\s*$'),
  ('VIA', '.csv', rb'region_shape_attributes'),
  ('a table of boxes', '.csv', rb'(?i)\A[^\n]*\bx_?min\b'),
  *((LIST, suffix, _LIST_PATTERN) for suffix in ('.txt', '.csv', '.tsv', '.lst', '.list')),
)  # fmt: skip
_SUFFIXES = tuple(dict.fromkeys(suffix for _, suffix, _ in _SIGNATURES))


def way_out(tool: str) -> str:
  """Return a sentence that says how to use the labels of a tool."""
  if tool in CONVERTIBLE:
    settings = f'check.convert.enable=true, check.convert.src_dataset_type={tool}'
    return f'To convert them, use mode check_dataset with {settings}.'
  return 'Export them from that tool as COCO or VOC; mode check_dataset converts those.'


def find_tool(directory: Path, suffix: str, files: Sequence[tuple[str, int]]) -> str:
  """Return the tool that seems to have written the files of one suffix in a folder; '' if none.

  Few of them are opened: the smallest that is not empty, the largest, and one between.

  Args:
    directory: the folder.
    suffix: their suffix, in lower case.
    files: their names and sizes in bytes.
  """
  patterns = [(tool, pattern) for tool, s, pattern in _SIGNATURES if s == suffix]
  sizes = sorted((size, name) for name, size in files if _MIN_BYTES <= size <= _MAX_BYTES)
  if not patterns or not sizes:
    return ''
  step = max(1, (len(sizes) - 1) // (_MAX_OPENED_FILES - 1))
  for _, name in [*sizes[::step][: _MAX_OPENED_FILES - 1], sizes[-1]]:
    for tool, pattern in patterns:
      if _contains(directory / name, pattern):
        return tool
  return ''


def find_beside(directory: Path, stems: Collection[str]) -> Iterator[tuple[str, Path]]:
  """Yield label files, with their tools, that lie beside a folder of images instead of in it.

  They are those in a folder such as `labels` that have the name of an image, or that name the
  folder of images or an image.

  Args:
    directory: the folder of images.
    stems: names of the images without suffix.
  """
  parent = directory.resolve().parent
  with contextlib.suppress(OSError):  # The folder above may be closed to the user.
    folders = scanning.mask_folders_in(parent)
    for folder in (parent, *(f for f in folders if not f.samefile(directory))):
      paths_by_suffix: dict[str, list[Path]] = collections.defaultdict(list)
      for path in scanning.files_in(folder, _SUFFIXES):
        paths_by_suffix[path.suffix.lower()].append(path)
      for suffix, paths in paths_by_suffix.items():
        if folder == parent:
          pattern = rb'["/]%s[/\\]' % re.escape(directory.resolve().name.encode())
          paths = [path for path in paths[:_MAX_FILES_ABOVE] if _contains(path, pattern)]
        else:
          paths = [path for path in paths if path.name.partition('.')[0] in stems]
        tool = find_tool(folder, suffix, [(path.name, path.stat().st_size) for path in paths])
        yield from ((tool, path) for path in paths if tool)


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
