"""Lists of images and masks, as PaddleX reads them, become pairs of paths.

A line is `image mask`, relative to the list's folder, or `image` alone. Where it has a tab, that is
what separates, and paths may hold spaces (`my image.png` and a tab is an image alone). An image
that is its own mask is one alone, too: so PaddleX's conversion of MVTec AD lists good ones. Lists
come from Windows as well: CRLF, a byte order mark and backslashes are read, blank lines passed
over. Nothing outside the folder is ever named by a list, whoever wrote it.
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
  """A line that names an image, which is there; so is its mask."""

  image: Path
  mask: Path | None


class _OutsideRootError(ValueError):
  pass


def read_list(file: Path) -> tuple[list[Line], list[Problem]]:
  """Read a list: the lines that can be used, and what is wrong with the others."""
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
    missing = [path for path in paths if not _is_file(path)]
    hint = (
      '; where a path holds spaces, put a tab between the two' if b' ' in raw_line.strip() else ''
    )
    line_problems += [
      problems.error('missing file', path, f'{location}: there is no file {path}{hint}.')
      for path in missing
    ]
    if paths and paths[0] not in missing:
      mask = paths[1] if len(paths) == 2 and paths[1] not in (*missing, paths[0]) else None
      lines.append(Line(paths[0], mask))
  return lines, line_problems


def _fields(raw_line: bytes) -> list[str]:
  try:
    text = raw_line.decode('utf-8')
  except UnicodeDecodeError as error:
    raise ValueError(f'byte {error.start + 1} is not UTF-8; save the list as UTF-8.') from None
  if '\0' in text:
    raise ValueError('it holds a null character; save the list as UTF-8.')
  if not text.strip():
    return []
  # Not str.split(): an ideographic space, say, may be part of a name.
  fields = [field.strip(' ') for field in text.split('\t' if '\t' in text else ' ')]
  if '\t' in text and not fields[0]:
    raise ValueError('it begins with a tab; the image comes first.')
  fields = [field for field in fields if field]
  if len(fields) > 2:
    raise ValueError(
      f"it has {len(fields)} parts, not 'image mask'; where a path holds spaces, put a tab between"
      ' the two.'
    )
  return fields


def _resolve_inside(text: str, directory: Path) -> Path:
  """The path in the directory that a list means; links are followed, for they were put there."""
  posix_text = text.replace('\\', '/')
  root = Path(os.path.normpath(directory.absolute()))
  resolved = Path(os.path.normpath(root / posix_text))
  if PureWindowsPath(posix_text).drive or not resolved.is_relative_to(root):
    raise _OutsideRootError(
      f'{text} leaves {directory}; paths must be relative to it, and stay inside.'
    )
  return directory / resolved.relative_to(root)


def _is_file(path: Path) -> bool:
  try:
    return path.is_file()
  except OSError:  # Such as a name that is too long for any file.
    return False


_SPLIT_FOLDER_NAMES = (
  'train',
  'val',
  'test',
)  # Names of a folder that say nothing of defects, likewise.


def detect(directory: Path) -> bool:
  """Whether there is a list to learn from."""
  return (directory / 'train.txt').is_file()


def read_splits(directory: Path) -> scanning.SplitsAndProblems:
  """<category>/{train.txt, val.txt}, which name images and masks: PaddleX's layout."""
  train_lines, train_problems = read_list(directory / 'train.txt')
  val_lines, val_problems = [], []
  if (directory / 'val.txt').exists():  # Fitting needs no test set.
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
  """What a defect of this image is called: the first telling folder in 'images', if there is."""
  top_folder, *subfolders = image.relative_to(directory).parts[:-1] or ('',)
  candidates = [
    name
    for name in subfolders
    if name.lower() not in (*scanning.NORMAL_FOLDER_NAMES, *_SPLIT_FOLDER_NAMES)
  ]
  return candidates[0] if top_folder == 'images' and candidates else 'defect'
