"""Layout of VisA: a list of the images of all categories, beside the folders of the categories.

`split_csv/1cls.csv` has the columns object, split, label, image and mask. Its images and masks are
paths from the folder that contains the categories.
"""

from collections.abc import Mapping
import csv
from pathlib import Path, PurePosixPath

from uadjax.data import problems
from uadjax.data.layouts import scanning
from uadjax.data.problems import Problem
from uadjax.data.records import GOOD, Record, Splits

MARKER = 'data/images/normal'
LIST = 'split_csv/1cls.csv'  # Relative to the folder that contains the categories.
_COLUMNS = frozenset(('object', 'split', 'label', 'image', 'mask'))
_SPLITS = 'train', 'test'


def list_path(directory: Path) -> Path:
  """Return the file that lists the images of a category."""
  return directory.absolute().parent / LIST


def read_splits(directory: Path) -> scanning.SplitsAndProblems:
  """List the images of a category that the list beside its folder names."""
  category, list_file = directory.absolute().name, list_path(directory)
  try:
    with list_file.open(encoding='utf-8-sig', newline='') as file:
      reader = csv.DictReader(file, restval='')
      if missing := _COLUMNS.difference(reader.fieldnames or ()):
        raise ValueError(f'it has no column {", ".join(sorted(missing))}')
      rows = [(reader.line_num, row) for row in reader if row['object'] == category]
  except (OSError, ValueError, csv.Error) as error:
    reason = getattr(error, 'strerror', None) or error
    message = f'Cannot read {list_file}: {reason}. It lists the training and test images of VisA.'
    return Splits((), ()), [problems.error('list syntax', list_file, message)]
  records: dict[str, list[Record]] = {split: [] for split in _SPLITS}
  issues: list[Problem] = []
  for number, row in rows:
    if kind_and_reason := _find_problem(row, directory):
      kind, reason = kind_and_reason
      issues.append(problems.error(kind, list_file, f'{list_file} line {number}: {reason}.'))
    else:
      records[row['split']].append(_read_row(row, directory))
  if not records['train'] and not issues:
    message = f'{list_file} lists no training images of {category!r}.'
    issues.append(problems.error('empty split', list_file, message))
  return Splits(*map(tuple, records.values())), issues


def _find_problem(row: Mapping[str, str], directory: Path) -> tuple[str, str] | None:
  """Return kind and message of the problem of a line; None if there is none."""
  if not row['image']:
    return 'list syntax', 'it names no image'
  if row['split'] not in _SPLITS:
    return 'list syntax', f'the split is {row["split"]!r}, not {" or ".join(_SPLITS)}'
  if row['split'] == 'train' and not scanning.is_normal(row['label']):
    return 'defects in training', f'{row["image"]} is a training image with label {row["label"]!r}'
  for text in filter(None, (row['image'], row['mask'])):
    parts = PurePosixPath(text).parts
    if parts[:1] != (directory.absolute().name,) or '..' in parts:
      return 'path leaves the root', f'{text} leaves the folder of the category'
    if not _resolve(text, directory).is_file():
      return 'missing file', f'no file {_resolve(text, directory)}'
  return None


def _read_row(row: Mapping[str, str], directory: Path) -> Record:
  defect = GOOD if scanning.is_normal(row['label']) else row['label']
  mask = _resolve(row['mask'], directory) if row['mask'] else None
  return Record(_resolve(row['image'], directory), defect, mask)


def _resolve(text: str, directory: Path) -> Path:
  """Return the path below a category's folder that a path from the folder above it names."""
  return directory.joinpath(*PurePosixPath(text).parts[1:])
