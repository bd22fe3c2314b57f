"""Layout of PaddleX: train.txt and val.txt list pairs of image and mask.

A line is `image mask`, relative to the list's folder, or `image` alone. If a line has a tab, the
tab separates the two and paths may contain spaces (`my image.png` and a tab is an image alone). An
image that is its own mask has no mask, because PaddleX's conversion of MVTec AD lists good images
this way. Lists may come from Windows: CRLF, a byte order mark and backslashes are accepted. Blank
lines are ignored. For safety, a path outside of the list's folder is an error.
"""

import codecs
import os
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from uadjax.data import problems, records as record_types
from uadjax.data.layouts import scanning
from uadjax.data.problems import Problem
from uadjax.data.records import Record


class Line(NamedTuple):
  """Image of one line of a list, and its mask; both files exist."""

  image: Path
  mask: Path | None


class _OutsideRootError(ValueError):
  pass


def read_list(file: Path) -> tuple[list[Line], list[Problem]]:
  """Read a list; return its usable lines and the problems of the others."""
  try:
    content = file.read_bytes().removeprefix(codecs.BOM_UTF8)
  except OSError as error:
    return [], [problems.error('missing file', file, f'Cannot read {file}: {error.strerror}.')]
  lines, line_problems = [], []
  for line_number, raw_line in enumerate(content.splitlines(), 1):
    location = f'{file} line {line_number}'
    try:
      fields = _fields(raw_line)
      paths = [_resolve_inside(field, file.parent) for field in fields]
    except _OutsideRootError as error:
      line_problems.append(problems.error('path leaves the root', file, f'{location}: {error}'))
      continue
    except ValueError as error:
      line_problems.append(problems.error('list syntax', file, f'{location}: {error}'))
      continue
    missing_paths = [path for path in paths if not _is_file(path)]
    hint = (
      '; if a path contains spaces, put a tab between image and mask'
      if b' ' in raw_line.strip()
      else ''
    )
    line_problems += [
      problems.error('missing file', path, f'{location}: no file {path}{hint}.')
      for path in missing_paths
    ]
    if paths and paths[0] not in missing_paths:
      mask = paths[1] if len(paths) == 2 and paths[1] not in (*missing_paths, paths[0]) else None
      lines.append(Line(paths[0], mask))
  return lines, line_problems


def _fields(raw_line: bytes) -> list[str]:
  try:
    text = raw_line.decode('utf-8')
  except UnicodeDecodeError as error:
    raise ValueError(f'byte {error.start + 1} is not UTF-8; save the list as UTF-8.') from None
  if '\0' in text:
    raise ValueError('it contains a null character; save the list as UTF-8.')
  if not text.strip():
    return []
  # str.split() would also split at, for example, an ideographic space, which may be part of a name.
  fields = [field.strip(' ') for field in text.split('\t' if '\t' in text else ' ')]
  if '\t' in text and not fields[0]:
    raise ValueError('it begins with a tab; the image comes first.')
  fields = [field for field in fields if field]
  if len(fields) > 2:
    raise ValueError(
      f"it has {len(fields)} fields, not 'image mask'; if a path contains spaces, put a tab between"
      ' image and mask.'
    )
  return fields


def _resolve_inside(text: str, directory: Path) -> Path:
  """Return the path in the directory that a field of a list names.

  Symbolic links may lead out of the directory, because its owner put them there.

  Raises:
    _OutsideRootError: the path leaves the directory.
  """
  posix_text = text.replace('\\', '/')
  root = Path(os.path.normpath(directory.absolute()))
  normalized_path = Path(os.path.normpath(root / posix_text))
  if PureWindowsPath(posix_text).drive or not normalized_path.is_relative_to(root):
    raise _OutsideRootError(
      f'{text} leaves {directory}; paths must be relative to it and stay inside.'
    )
  return directory / normalized_path.relative_to(root)


def _is_file(path: Path) -> bool:
  try:
    return path.is_file()
  except OSError:  # Raised, for example, for a name that is too long for any file.
    return False


_SPLIT_FOLDER_NAMES = ('train', 'val', 'test')  # Folders named after splits, not after defects.


def detect(directory: Path) -> bool:
  """Return whether there is a list of training images."""
  return (directory / 'train.txt').is_file()


def read_splits(directory: Path) -> scanning.SplitsAndProblems:
  """List the images that train.txt and val.txt name, with their masks."""
  train_lines, train_problems = read_list(directory / 'train.txt')
  val_lines, val_problems = [], []
  if (directory / 'val.txt').exists():  # The test set is optional.
    val_lines, val_problems = read_list(directory / 'val.txt')
  if not train_lines and not train_problems:
    message = f"{directory / 'train.txt'} lists no image; a line must be 'image mask', or 'image'."
    train_problems.append(problems.error('empty split', directory / 'train.txt', message))
  records = [
    tuple(Record(line.image, _defect_name(line.image, directory), line.mask) for line in lines)
    for lines in (train_lines, val_lines)
  ]
  return record_types.Splits(*records), train_problems + val_problems


def _defect_name(image: Path, directory: Path) -> str:
  """Return the type of defect: the first folder below 'images' that names one, else 'defect'."""
  top_folder, *subfolders = image.relative_to(directory).parts[:-1] or ('',)
  candidates = [
    name
    for name in subfolders
    if name.lower() not in (*scanning.NORMAL_FOLDER_NAMES, *_SPLIT_FOLDER_NAMES)
  ]
  return candidates[0] if top_folder == 'images' and candidates else 'defect'
