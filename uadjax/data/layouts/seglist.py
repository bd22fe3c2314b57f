"""Layout of PaddleX: train.txt and val.txt list pairs of image and mask.

A line is `image mask`, relative to the list's folder, or `image` alone. If a line has a tab, the
tab separates the two and paths may contain spaces (`my image.png` and a tab is an image alone). An
image that is its own mask has no mask, because PaddleX's conversion of MVTec AD lists good images
this way. Lists may come from any system, see `text_list`. For safety, a path outside of the list's
folder is an error.
"""

import os
from pathlib import Path, PureWindowsPath

from uadjax.data import problems
from uadjax.data.layouts import scanning, text_list
from uadjax.data.records import Record, Splits

_TAB_HINT = 'if a path contains spaces, put a tab between image and mask'
_SPLIT_FOLDER_NAMES = ('train', 'val', 'test')  # Folders named after splits, not after defects.


class _OutsideRootError(ValueError):
  pass


def read_list(file: Path) -> tuple[list[Record], list[problems.Problem]]:
  """Read a list; return records of its usable lines and the problems of the others.

  The type of defect of a record is that which its path suggests.
  """
  try:
    lines = list(text_list.read_lines(file))
  except OSError as error:
    return [], [problems.error('missing file', file, f'Cannot read {file}: {error.strerror}.')]
  records, issues = [], []
  for number, text in lines:
    location = f'{file} line {number}'
    try:
      paths = [_resolve_inside(field, file.parent) for field in _fields(text)]
    except ValueError as error:
      kind = 'path leaves the root' if isinstance(error, _OutsideRootError) else 'list syntax'
      issues.append(problems.error(kind, file, f'{location}: {error}'))
      continue
    # Unlike Path.is_file, os.path.isfile accepts a name that is too long for any file.
    missing = [path for path in paths if not os.path.isfile(path)]  # noqa: PTH113
    hint = f'; {_TAB_HINT}' if ' ' in text.strip() else ''
    for path in missing:
      issues.append(problems.error('missing file', path, f'{location}: no file {path}{hint}.'))
    if paths and paths[0] not in missing:
      image, *masks = paths
      mask = next((mask for mask in masks if mask not in (*missing, image)), None)
      records.append(Record(image, _defect_name(image, file.parent), mask))
  return records, issues


def _fields(text: str) -> list[str]:
  """Split a line into the paths of the image and the mask.

  Raises:
    ValueError: the line is not text, or has too many fields.
  """
  fields = text_list.fields(text)
  if not fields[0]:
    raise ValueError('it begins with a tab; the image comes first.')
  if len(fields) > 2:
    raise ValueError(f"it has {len(fields)} fields, not 'image mask'; {_TAB_HINT}.")
  return fields


def _resolve_inside(text: str, directory: Path) -> Path:
  """Return the path in the directory that a field of a list names.

  Symbolic links may lead out of the directory, because its owner put them there.

  Raises:
    _OutsideRootError: the path leaves the directory.
  """
  relative = text.replace('\\', '/')
  root = Path(os.path.normpath(directory.absolute()))
  path = Path(os.path.normpath(root / relative))
  if PureWindowsPath(relative).drive or not path.is_relative_to(root):
    message = f'{text} leaves {directory}; paths must be relative to it and stay inside.'
    raise _OutsideRootError(message)
  return directory / path.relative_to(root)


def read_splits(directory: Path) -> scanning.SplitsAndProblems:
  """List the images that train.txt and val.txt name, with their masks."""
  train_list, val_list = directory / 'train.txt', directory / 'val.txt'
  train, issues = read_list(train_list)
  if not train and not issues:
    message = f"{train_list} lists no image; a line must be 'image mask', or 'image'."
    issues.append(problems.error('empty split', train_list, message))
  # The test set is optional.
  test, test_issues = read_list(val_list) if val_list.exists() else ([], [])
  return Splits(tuple(train), tuple(test)), issues + test_issues


def _defect_name(image: Path, directory: Path) -> str:
  """Return the type of defect: the first folder below 'images' that names one, else 'defect'."""
  top_folder, *subfolders = image.relative_to(directory).parts[:-1] or ('',)
  names = (
    n for n in subfolders if n.lower() not in _SPLIT_FOLDER_NAMES and not scanning.is_normal(n)
  )
  return next(names, 'defect') if top_folder == 'images' else 'defect'
