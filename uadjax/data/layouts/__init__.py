"""Folders become records: the layouts that are read, and what is wrong where one cannot be.

A layout is one module here and one line of `_LAYOUTS`. No file is opened, but for the masks of a
`seglist`, which alone tell what is good. Hidden files are passed over, and whatever is listed is in
natural order ('2.png' before '10.png') or in that of its list, so that a dataset is the same on
every machine.
"""

from collections.abc import Callable, Sequence
import concurrent.futures
import difflib
from pathlib import Path
from typing import NamedTuple

from uadjax.data import image_io, problems, records as record_types
from uadjax.data.layouts import folder, mvtec, scanning, seglist
from uadjax.data.problems import Problem
from uadjax.data.records import Record
from uadjax.errors import ConfigError, DataError


class Listing(NamedTuple):
  """What a folder holds, before a file is opened.

  Attributes:
    directory: the folder.
    layout: how it is laid out; never 'auto'.
    splits: the images.
    problems: what is wrong so far; with an error among them nothing can be loaded.
  """

  directory: Path
  layout: str
  splits: record_types.Splits
  problems: tuple[Problem, ...]

  @property
  def labels_by_mask(self) -> bool:
    """Whether a record's defect is only what its mask shows, if it shows any; see `judged`."""
    return _LAYOUTS[self.layout].labels_by_mask

  @property
  def has_masks(self) -> bool:
    """Whether defective images are expected to have ground truth."""
    return _LAYOUTS[self.layout].has_masks


def load(
  root: str | Path, category: str = '', layout: str = 'auto', mask_threshold: int = 0
) -> record_types.Splits:
  """List the images of one category.

  Args:
    root: folder of categories, or, with an empty category, the category itself.
    category: name of a folder in root.
    layout: 'mvtec', 'seglist', 'folder', or 'auto', which is 'mvtec' where there is a folder
      'train', else 'seglist' where there is a file 'train.txt', else 'mvtec' where there is a
      folder 'test'.
    mask_threshold: in a seglist, an image is defective where its mask has a value above it, and
      good where there is none, or no mask.

  Raises:
    DataError: a folder or listed file is missing, there is nothing to learn from, or a seglist
      has defects in its training set.
    ConfigError: the layout has no such name.
  """
  listing = scan(root, category, layout)
  problems.raise_errors(listing.problems)
  if not listing.labels_by_mask:
    return listing.splits

  def label_record(record: Record) -> Record:
    return label_by_mask(record, image_io.has_defect(record.mask, mask_threshold))

  with concurrent.futures.ThreadPoolExecutor() as pool:
    splits = record_types.Splits(
      *(tuple(pool.map(label_record, records)) for records in listing.splits)
    )
  problems.raise_errors(defects_in_training(splits.train))
  return splits


def scan(root: str | Path, category: str = '', layout: str = 'auto') -> Listing:
  """List the images as `load` does, and what is wrong instead of raising it.

  Raises:
    DataError: there is no such folder at all.
    ConfigError: the layout has no such name.
  """
  if layout not in NAMES:
    raise ConfigError(
      f'Unknown layout {layout!r}; choose from {["auto", *sorted(_LAYOUTS)]}.',
      key='data.layout',
      value=layout,
      allowed=NAMES,
    )
  root = _require_folder(root)
  directory = root / category
  if not directory.is_dir():
    raise DataError(_unknown_category_message(root, category))
  if layout == 'auto':
    layout = next(name for name, entry in _LAYOUTS.items() if entry.detect(directory))
  splits, layout_problems = _LAYOUTS[layout].read(directory)
  return Listing(directory, layout, splits, tuple(layout_problems))


def label_by_mask(record: Record, has_defect: bool) -> Record:
  """The record of a listing by mask, now that the mask was read."""
  return record if has_defect else record._replace(defect='good')


def defects_in_training(train: Sequence[Record]) -> list[Problem]:
  """A problem for every image that must not be learned from."""
  return [
    problems.error(
      'defects in training',
      record.path,
      f'{record.path} is to be learned from, but its mask {record.mask} shows a defect; move its '
      'line to val.txt.',
    )
    for record in train
    if record.is_anomalous
  ]


def categories(root: str | Path) -> list[str]:
  """Names of the folders in root that hold images in one of the layouts."""
  return [path.name for path in scanning.folders_in(_require_folder(root)) if _is_category(path)]


def expand(root: str | Path, category: str) -> list[str]:
  """The categories that a name stands for: itself, or those of a group that are in root.

  Groups are 'textures' and 'objects', as MVTec AD sorts its categories, and 'all', which is
  whatever root holds.
  """
  if category not in ('all', *mvtec.GROUPS):
    return [category]
  available = categories(root)
  names = [name for name in mvtec.GROUPS.get(category, available) if name in available]
  if not names:
    expected_note = (
      f': none of {", ".join(mvtec.GROUPS[category])}' if category in mvtec.GROUPS else ''
    )
    raise DataError(
      f'No category for {category!r} in {root}{expected_note}; there are: {_join_names(available)}.'
    )
  return names


def mask_size_mismatch(
  record: Record, image_size: tuple[int, int], mask_size: tuple[int, int]
) -> str:
  """Say that a mask has not the height and width of its image; nothing where it has."""
  if image_size == mask_size:
    return ''
  return (
    f'{record.mask} is {mask_size[1]}x{mask_size[0]} pixels, but its image {record.path} is '
    f'{image_size[1]}x{image_size[0]}; give the mask the size of the image.'
  )


class Layout(NamedTuple):
  """One way to lay out a data set.

  Attributes:
    splits: folder -> its records, and what is wrong.
    fits: whether a folder is laid out so.
    by_mask: whether a record's defect is only what its mask shows, if it shows any.
    has_masks: whether defective images are expected to have ground truth.
  """

  read: Callable[[Path], scanning.SplitsAndProblems]
  detect: Callable[[Path], bool]
  labels_by_mask: bool = False
  has_masks: bool = True


# 'auto' is the first that fits.
_LAYOUTS = {
  'mvtec': Layout(mvtec.read_splits, mvtec.detect),
  'seglist': Layout(seglist.read_splits, seglist.detect, labels_by_mask=True),
  'folder': Layout(folder.read_splits, folder.detect, has_masks=False),
}
NAMES = ('auto', *_LAYOUTS)


def _is_category(directory: Path) -> bool:
  normal_folders = [
    path
    for path in scanning.folders_in(directory)
    if path.name.lower() in scanning.NORMAL_FOLDER_NAMES
  ]
  has_train = (directory / 'train').is_dir() or (directory / 'train.txt').is_file()
  return has_train or any(scanning.images_in(path) for path in (directory, *normal_folders))


def _require_folder(root: str | Path) -> Path:
  if not Path(root).is_dir():
    raise DataError(f'No folder {root}; data.root must name the folder that holds the categories.')
  return Path(root)


def _unknown_category_message(root: Path, category: str) -> str:
  available = categories(root)
  close_matches = difflib.get_close_matches(category, available, n=1, cutoff=0.5)
  suggestion = f' Did you mean {close_matches[0]!r}?' if close_matches else ''
  return f'No category {category!r} in {root}.{suggestion} There are: {_join_names(available)}.'


def _join_names(names: Sequence[str]) -> str:
  return ', '.join(names) or 'none'
