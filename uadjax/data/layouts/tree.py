"""Layouts that patterns of folders describe: those of good images, of defects and of masks.

A pattern is a path below the category. Each of its parts matches a name in any case:

- `*` matches any characters, and `{kind}` the name of a type of defect.
- `{good}` matches a word for good images, `{validation}` a word for a validation set, and `{mask}`
  an ending of the names of masks beside images.
- `**` at the end adds the subfolders of a folder, except those of masks or of defects.
"""

from collections.abc import Iterator
import functools
from pathlib import Path
import re
from typing import NamedTuple

from uadjax.data import image_io, problems
from uadjax.data.layouts import scanning
from uadjax.data.problems import Problem
from uadjax.data.records import GOOD, Record, Splits

_NESTED = '/**'
# Folders of the validation set of a layout that users fill themselves.
VALIDATION = '{validation}', '{validation}/{good}/**'


class Tree(NamedTuple):
  """Patterns of the folders of a layout; '' if there are none.

  Attributes:
    marker: file or folder that other layouts do not have; '' if there is none.
    train: folders of training images.
    test: folders of test images. Those that are also training images are left out.
    validation: folders of good images that are held out for calibration.
    masks: folder of the masks of a folder of images, as a path from that folder. Masks may also lie
      beside the images, or in a subfolder named after masks.
    labels_by_mask: whether an image is defective only if its mask marks a defect. Otherwise, it is
      defective if its folder is that of a type of defect.
  """

  marker: str
  train: str
  test: str = ''
  validation: tuple[str, ...] = ()
  masks: str = ''
  labels_by_mask: bool = False

  def reads(self, entry: str) -> bool:
    """Return whether training, validation or test images lie in an entry of the category."""
    patterns = filter(None, (self.train, self.test, *self.validation))
    return any(_regex(pattern.partition('/')[0]).fullmatch(entry) for pattern in patterns)


class _Folder(NamedTuple):
  """Folder of images.

  Attributes:
    path: the folder.
    kind: name that `{kind}` matched; '' if the pattern does not have it.
    subfolder: path from the folder that the pattern matched without `**`.
  """

  path: Path
  kind: str
  subfolder: Path = Path()


def exists(directory: Path, pattern: str) -> bool:
  """Return whether a file or folder below a directory matches a pattern."""
  part, _, rest = pattern.partition('/')
  if not directory.is_dir():
    return False
  matches = (path for path in directory.iterdir() if _regex(part).fullmatch(path.name))
  return any(not rest or exists(path, rest) for path in matches)


def read_splits(tree: Tree, directory: Path) -> scanning.SplitsAndProblems:
  """List the images of a category by the patterns of its layout, with their masks."""
  train = _records(directory, tree, tree.train)
  train_paths = {record.path for record in train}
  test = [r for r in _records(directory, tree, tree.test) if r.path not in train_paths]
  issues = [] if train else [_no_training_images(directory, tree.train)]
  test_folder = directory / tree.test.partition('/')[0]
  if not test and test_folder != directory and test_folder.is_dir():
    message = f'No images in the folders of {test_folder}.'
    issues.append(problems.error('empty split', test_folder, message))
  if '{good}' in tree.train:
    issues += _other_training_folders(directory, tree.train, test_folder)
  if '{kind}' in tree.test:
    folders = _find_folders(directory, tree.test.removesuffix(_NESTED))
    kinds = [folder.path for folder in folders if folder.path.name == folder.kind]
    issues += scanning.unnamed_defect_folders(kinds)
    issues += scanning.photographs_in_mask_folders(
      [f for f in kinds if scanning.is_mask_folder(f.name)]
    )
  issues += _masks_without_image(directory, tree, test)
  return Splits((*train, *validation_records(directory, tree)), tuple(test)), issues


def validation_records(directory: Path, tree: Tree) -> tuple[Record, ...]:
  """Return held-out records of the good images in the validation set of a category."""
  records = (r for pattern in tree.validation for r in _records(directory, tree, pattern))
  return tuple(record._replace(held_out=True) for record in records)


@functools.cache
def _regex(part: str) -> re.Pattern[str]:
  """Return the regular expression of one part of a pattern."""
  expressions = {
    r'\*': '.*',
    r'\{kind\}': '(?P<kind>.+)',
    r'\{good\}': f'(?:{scanning.NORMAL_FOLDER_PATTERN})',
    r'\{mask\}': '(?:gt|mask)',
    r'\{validation\}': f'(?:{scanning.VALIDATION_FOLDER_PATTERN})',
  }
  expression = re.escape(part)
  for text, replacement in expressions.items():
    expression = expression.replace(text, replacement)
  return re.compile(expression, re.IGNORECASE)


def _find_folders(directory: Path, pattern: str, kind: str = '') -> Iterator[_Folder]:
  """Yield the folders that a pattern matches, in natural order."""
  part, _, rest = pattern.partition('/')
  for path in scanning.folders_in(directory):
    if match := _regex(part).fullmatch(path.name):
      path_kind = match.groupdict().get('kind', kind)
      if rest:
        yield from _find_folders(path, rest, path_kind)
      else:
        yield _Folder(path, path_kind)


def with_subfolders(folder: Path) -> Iterator[Path]:
  """Yield a folder and, recursively, its subfolders, except those of masks or of defects."""
  yield folder
  for path in scanning.folders_in(folder):
    if not (scanning.is_mask_folder(path.name) or scanning.is_defective(path.name)):
      yield from with_subfolders(path)


def _find_image_folders(directory: Path, pattern: str) -> Iterator[_Folder]:
  if not pattern:
    return
  folders = _find_folders(directory, pattern.removesuffix(_NESTED))
  for folder in folders:
    if not scanning.is_mask_folder(folder.kind) and not scanning.is_date_or_content(folder.kind):
      paths = with_subfolders(folder.path) if pattern.endswith(_NESTED) else (folder.path,)
      yield from (_Folder(path, folder.kind, path.relative_to(folder.path)) for path in paths)


def _mask_folders(folder: _Folder, tree: Tree) -> list[Path]:
  """Return the folders in which the masks of a folder's images may lie."""
  folders = scanning.mask_folders_in(folder.path)
  if not tree.masks:
    return folders
  base = folder.path
  for _ in folder.subfolder.parts:
    base = base.parent
  for part in tree.masks.format(kind=folder.kind).split('/'):
    base = base.parent if part == '..' else _child(base, part)
  return [*folders, *dict.fromkeys((base / folder.subfolder, base))]


def _child(directory: Path, name: str) -> Path:
  """Return the entry of a folder that has a name in any case, or the path of that name."""
  names = (path for path in scanning.folders_in(directory) if path.name.lower() == name.lower())
  return next(names, directory / name)


def _records(directory: Path, tree: Tree, pattern: str) -> tuple[Record, ...]:
  """Return records of the images in the folders of a pattern."""
  default, records = 'defect' if tree.labels_by_mask else GOOD, ()
  for folder in _find_image_folders(directory, pattern):
    kind = folder.kind or default
    defect = GOOD if scanning.is_normal(kind) else kind
    records += scanning.image_records(folder.path, defect, _mask_folders(folder, tree))
  return records


def _no_training_images(directory: Path, pattern: str) -> Problem:
  folder = directory / pattern.removesuffix(_NESTED).format(good=GOOD, kind='*')
  message = f'No images in {folder}; image files must end in {", ".join(scanning.SUFFIXES)}.'
  if not folder.is_dir():
    message = f'No folder {folder}; it must contain the normal training images.'
  return problems.error('empty split', folder, message)


def _other_training_folders(directory: Path, pattern: str, test: Path) -> Iterator[Problem]:
  """Yield a warning for each folder beside those of good training images that has images."""
  for parent in _find_folders(directory, pattern.partition('/')[0]):
    good = parent.path / GOOD
    for folder in scanning.folders_in(parent.path):
      is_other = not scanning.is_normal(folder.name) and not scanning.is_mask_folder(folder.name)
      if is_other and (images := scanning.find_files(folder)):
        message = (
          f'{folder} ({len(images)} images) is not used: training images are those in {good}'
        )
        hint = f'defective images belong in {test / folder.name}'
        yield problems.warning('defects in training', folder, f'{message}; {hint}.')


def _masks_without_image(directory: Path, tree: Tree, test: list[Record]) -> Iterator[Problem]:
  """Yield a warning for each file in the folders of masks that is not the mask of a test image."""
  if not tree.masks:
    return
  used = {path for record in test if record.mask for path in image_io.mask_files(record.mask)}
  for folder in _find_folders(directory, tree.test.removesuffix(_NESTED)):
    for mask in scanning.find_files(_mask_folders(folder, tree)[-1]):
      if mask not in used:
        message = f'{mask} has no matching image in {folder.path}.'
        yield problems.warning('mask without image', mask, message)
