"""Accounting of files: those below a dataset's folder that its records do not use, and why.

It knows no layout: whatever a layout leaves out appears here. The folders are walked once.
"""

import collections
from collections.abc import Collection, Iterator, Sequence
import contextlib
import os
from pathlib import Path
import re
import stat
from typing import NamedTuple

from uadjax.data import image_io, problems
from uadjax.data.checks import label_files
from uadjax.data.layouts import scanning
from uadjax.data.records import Splits

_NUM_EXAMPLES = 3  # Files of a reason that are named.
_MAX_ENTRIES = 1_000_000  # Files and folders that are examined; a dataset hardly has more.
_MAX_POINTER_BYTES = 1024
_SUFFIX = re.compile(r'\.[a-z][a-z0-9_-]{0,9}', re.IGNORECASE)  # Not '.001' of a numbered file.

# Suffixes of images, volumes and videos that are not read.
_FOREIGN_SUFFIXES = frozenset((
  '.ai', '.apng', '.arw', '.avi', '.avif', '.bpg', '.cr2', '.cr3', '.dcm', '.dcx', '.dds',
  '.djvu', '.dng', '.emf', '.eps', '.exr', '.fits', '.hdr', '.heic', '.heif', '.hif', '.icns',
  '.ico', '.j2c', '.j2k', '.jpc', '.jpf', '.jpx', '.jxl', '.jxr', '.mat', '.mkv', '.mov', '.mp4',
  '.mpo', '.nef', '.nii', '.npy', '.npz', '.orf', '.pam', '.pbm', '.pcd', '.pcx', '.pdf', '.pef',
  '.pfm', '.ply', '.ps', '.psd', '.raf', '.raw', '.rw2', '.sgi', '.svg', '.svgz', '.tga', '.wdp',
  '.wmf', '.xcf',
))  # fmt: skip
_ARCHIVE = re.compile(
  r'.+\.(7z|arrow|bz2|dltp|feather|gz|h5|hdf5|lmdb|mdb|parquet|pickle|pkl|rar|tar|tfrecords?|tgz|vsa|'
  r'xz|zip|zst)(-\d+-of-\d+)?', re.IGNORECASE,
)  # fmt: skip
_OTHER, _SYSTEM = 'neither an image nor a label file', 'hidden file, thumbnail or system file'
_MASK, _NOT_LISTED = 'mask of no image', 'image that is not listed'
_NESTED = 'image in a folder that the layout does not read'
_DANGLING = 'link to a missing file'


class UnusedFile(NamedTuple):
  """File that no record uses.

  Attributes:
    path: its path relative to the dataset's folder, with slashes.
    reason: why it is not used.
    tool: labeling tool that seems to have written it, or `label_files.LIST`; '' for other files.
  """

  path: str
  reason: str
  tool: str = ''


class NotUsed(NamedTuple):
  """Files that are not used for one reason.

  Attributes:
    reason: why they are not used.
    num_files: number of files.
    examples: some of their paths relative to the dataset's folder.
  """

  reason: str
  num_files: int
  examples: tuple[str, ...]

  def __str__(self) -> str:
    more = ', …' if self.num_files > len(self.examples) else ''
    return f'{self.num_files} x {self.reason}: {", ".join(self.examples)}{more}'

  def to_dict(self) -> dict[str, object]:
    """Return the fields under their names in JSON."""
    return {'reason': self.reason, 'count': self.num_files, 'examples': list(self.examples)}


def find(
  directory: Path,
  splits: Splits,
  list_files: Sequence[str] = (),
  skipped_folders: Collection[str] = (),
) -> list[UnusedFile]:
  """Return the files below a folder that no record uses.

  A file counts as used under all its links. Folders are walked under one link only.

  Args:
    directory: folder of the category.
    splits: images and masks that are used.
    list_files: patterns of other files that the layout reads, relative to the folder.
    skipped_folders: names of folders in it that are not examined.
  """
  used = _used_files(directory, splits, list_files)
  used_paths, image_folders = set(used), {path.parent for path in used}
  unused: list[UnusedFile] = []
  for folder, entries, reason in _walk(directory, skipped_folders):
    if reason:
      unused.append(UnusedFile(folder.as_posix(), reason))
    path = directory / folder
    remaining = [entry for entry in entries if path / entry.name not in used_paths]
    unused += _classify(path, folder, remaining, path in image_folders)
  return _without_links(directory, unused, used)


def summarize(unused: Collection[UnusedFile]) -> tuple[NotUsed, ...]:
  """Count the unused files of each reason, most frequent first."""
  by_reason: dict[str, list[str]] = collections.defaultdict(list)
  for path, reason, _ in unused:
    by_reason[reason].append(path)
  groups = [
    NotUsed(reason, len(paths), tuple(paths[:_NUM_EXAMPLES])) for reason, paths in by_reason.items()
  ]
  return tuple(sorted(groups, key=lambda group: (-group.num_files, group.reason)))


def describe(groups: Sequence[NotUsed]) -> str:
  """Return the number of unused files per reason as text; '' if every file is used."""
  lines = problems.join_messages([str(group) for group in groups])
  return f'Files that are not used:\n  {lines}' if groups else ''


def _used_files(directory: Path, splits: Splits, list_files: Sequence[str]) -> list[Path]:
  records = (*splits.train, *splits.test)
  masks = dict.fromkeys(record.mask for record in records if record.mask)
  used = [record.path for record in records]
  used += [path for mask in masks for path in image_io.mask_files(mask)]
  return used + [path for pattern in list_files for path in directory.glob(pattern)]


def _walk(
  directory: Path, skipped_folders: Collection[str]
) -> Iterator[tuple[Path, list[os.DirEntry[str]], str]]:
  """Yield each folder, relative to the directory, with its files, in natural order.

  Folders that are links come last, and only those whose target was not reached before. The third
  item is the reason why a folder was not examined; '' if it was.
  """
  pending, links, visited, num_entries = [Path()], list[Path](), set[tuple[int, int]](), 0
  while pending or links:
    folder = pending.pop() if pending else links.pop()
    if num_entries > _MAX_ENTRIES:
      yield folder, [], f'folder that is not examined, after {_MAX_ENTRIES:,} files'
      continue
    try:
      status = (directory / folder).stat()
      if (status.st_dev, status.st_ino) in visited:
        continue
      visited.add((status.st_dev, status.st_ino))
      with os.scandir(directory / folder) as listing:
        entries = sorted(listing, key=lambda entry: scanning.natural_sort_key(Path(entry.name)))
    except OSError as error:
      yield folder, [], f'folder that cannot be opened ({error.strerror})'
      continue
    by_kind: dict[bool, list[os.DirEntry[str]]] = {True: [], False: []}
    for entry in entries:
      by_kind[scanning.is_folder(entry)].append(entry)
    subfolders = by_kind[True]
    if folder == Path():
      subfolders = [entry for entry in subfolders if entry.name not in skipped_folders]
    for entry in reversed(subfolders):
      (links if entry.is_symlink() else pending).append(folder / entry.name)
    yield folder, by_kind[False], ''
    num_entries += len(entries)


def _classify(
  directory: Path, relative: Path, entries: Sequence[os.DirEntry[str]], is_image_folder: bool
) -> Iterator[UnusedFile]:
  """Yield the unused files of one folder with their reasons.

  Args:
    directory: the folder.
    relative: the same, relative to the dataset's folder.
    entries: the unused files in it.
    is_image_folder: whether the layout uses other files of the folder.
  """
  is_system = any(map(scanning.is_hidden, relative.parts))
  is_mask_folder = any(map(scanning.is_mask_folder, relative.parts))
  files_by_suffix: dict[str, list[tuple[str, int]]] = collections.defaultdict(list)
  for entry in entries:
    path = (relative / entry.name).as_posix()
    reason = _SYSTEM if is_system or scanning.is_hidden(entry.name) else ''
    size = 0
    if not reason:
      try:
        status = entry.stat()
        size = status.st_size
        reason = '' if stat.S_ISREG(status.st_mode) else 'pipe, socket or device'
      except OSError:
        reason = _DANGLING
    if reason:
      yield UnusedFile(path, reason)
    else:
      files_by_suffix[_suffix(entry.name)].append((entry.name, size))
  image_reason = _NOT_LISTED if is_image_folder else _NESTED
  for suffix, files in files_by_suffix.items():
    is_image = suffix in scanning.SUFFIXES
    tools = {} if is_image else label_files.find_tools(directory, suffix, files)
    for name, size in files:
      tool = scanning.exporting_tool(name) if is_image else tools[name]
      reason = _label_reason(tool) or _reason(directory / name, suffix, size)
      if not reason:
        reason = _MASK if is_mask_folder or scanning.is_mask_name(name) else image_reason
      yield UnusedFile((relative / name).as_posix(), reason, tool)


def _label_reason(tool: str) -> str:
  return tool if tool in ('', label_files.LIST) else f'labels of {tool}'


def _suffix(name: str) -> str:
  suffix = Path(name).suffix.lower()
  return suffix if _SUFFIX.fullmatch(suffix) else ''


def _reason(path: Path, suffix: str, size: int) -> str:
  """Return why a file is not used, by itself; '' for an image in one of the formats."""
  if size <= _MAX_POINTER_BYTES and (pointer := image_io.describe_pointer(path)):
    return pointer
  if suffix in scanning.SUFFIXES:
    return ''
  if suffix == '.dvc':
    return "a DVC pointer; run 'dvc pull'"
  if suffix in _FOREIGN_SUFFIXES:
    return f'format that is not read ({suffix}); convert images to PNG'
  if match := _ARCHIVE.fullmatch(path.name):
    return f'archive that is not unpacked (.{match[1].lower()})'
  name = f'suffix {path.suffix!r}' if suffix else 'no suffix'
  if image_io.has_image_signature(path):
    return f'image with {name}, which is not read; rename it'
  return f'{_OTHER} ({name if suffix == "" else suffix})'


def _without_links(
  directory: Path, unused: list[UnusedFile], used: Sequence[Path]
) -> list[UnusedFile]:
  """Return the unused files without those that a record uses under another link."""
  images = [file for file in unused if file.reason in (_MASK, _NESTED, _NOT_LISTED)]
  if not images:
    return unused
  used_ids = set(map(_file_id, used))
  linked = {file.path for file in images if _file_id(directory / file.path) in used_ids}
  return [file for file in unused if file.path not in linked]


def _file_id(path: Path) -> tuple[int, int] | None:
  with contextlib.suppress(OSError):
    status = path.stat()
    return status.st_dev, status.st_ino
  return None
