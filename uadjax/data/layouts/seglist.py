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


class _Outside(ValueError):
  pass


def read(file: Path) -> tuple[list[Line], list[Problem]]:
  """Read a list: the lines that can be used, and what is wrong with the others."""
  try:
    content = file.read_bytes().removeprefix(codecs.BOM_UTF8)
  except OSError as error:
    return [], [problems.error('missing file', file, f'Cannot read {file}: {error.strerror}.')]
  lines, wrong = [], []
  for number, raw in enumerate(content.splitlines(), 1):
    where = f'{file} line {number}'
    try:
      parts = _parts(raw)
      paths = [_inside(part, file.parent) for part in parts]
    except _Outside as error:
      wrong.append(problems.error('path leaves the root', file, f'{where}: {error}'))
      continue
    except ValueError as error:
      wrong.append(problems.error('list syntax', file, f'{where}: {error}'))
      continue
    absent = [path for path in paths if not _is_file(path)]
    hint = '; where a path holds spaces, put a tab between the two' if b' ' in raw.strip() else ''
    wrong += [
      problems.error('missing file', path, f'{where}: there is no file {path}{hint}.')
      for path in absent
    ]
    if paths and paths[0] not in absent:
      mask = paths[1] if len(paths) == 2 and paths[1] not in (*absent, paths[0]) else None
      lines.append(Line(paths[0], mask))
  return lines, wrong


def _parts(raw: bytes) -> list[str]:
  try:
    text = raw.decode('utf-8')
  except UnicodeDecodeError as error:
    raise ValueError(f'byte {error.start + 1} is not UTF-8; save the list as UTF-8.') from None
  if '\0' in text:
    raise ValueError('it holds a null character; save the list as UTF-8.')
  if not text.strip():
    return []
  # Not str.split(): an ideographic space, say, may be part of a name.
  parts = [part.strip(' ') for part in text.split('\t' if '\t' in text else ' ')]
  if '\t' in text and not parts[0]:
    raise ValueError('it begins with a tab; the image comes first.')
  parts = [part for part in parts if part]
  if len(parts) > 2:
    raise ValueError(
      f"it has {len(parts)} parts, not 'image mask'; where a path holds spaces, put a tab between"
      ' the two.'
    )
  return parts


def _inside(text: str, directory: Path) -> Path:
  """The path in the directory that a list means; links are followed, for they were put there."""
  slashed = text.replace('\\', '/')
  root = Path(os.path.normpath(directory.absolute()))
  whole = Path(os.path.normpath(root / slashed))
  if PureWindowsPath(slashed).drive or not whole.is_relative_to(root):
    raise _Outside(f'{text} leaves {directory}; paths must be relative to it, and stay inside.')
  return directory / whole.relative_to(root)


def _is_file(path: Path) -> bool:
  try:
    return path.is_file()
  except OSError:  # Such as a name that is too long for any file.
    return False


_SPLITS = ('train', 'val', 'test')  # Names of a folder that say nothing of defects, likewise.


def fits(directory: Path) -> bool:
  """Whether there is a list to learn from."""
  return (directory / 'train.txt').is_file()


def splits(directory: Path) -> scanning.Found:
  """<category>/{train.txt, val.txt}, which name images and masks: PaddleX's layout."""
  learn, wrong = read(directory / 'train.txt')
  test, wrong_test = [], []
  if (directory / 'val.txt').exists():  # Fitting needs no test set.
    test, wrong_test = read(directory / 'val.txt')
  if not learn and not wrong:
    told = f"{directory / 'train.txt'} lists no image; a line must be 'image mask', or 'image'."
    wrong.append(problems.error('empty split', directory / 'train.txt', told))
  records = [
    tuple(Record(line.image, _defect_of(line.image, directory), line.mask) for line in lines)
    for lines in (learn, test)
  ]
  return record_types.Splits(*records), wrong + wrong_test


def _defect_of(image: Path, directory: Path) -> str:
  """What a defect of this image is called: the first telling folder in 'images', if there is."""
  first, *folders = image.relative_to(directory).parts[:-1] or ('',)
  telling = [name for name in folders if name.lower() not in (*scanning.NORMAL, *_SPLITS)]
  return telling[0] if first == 'images' and telling else 'defect'
