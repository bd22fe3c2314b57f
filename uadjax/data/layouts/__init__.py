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
  def by_mask(self) -> bool:
    """Whether a record's defect is only what its mask shows, if it shows any; see `judged`."""
    return _LAYOUTS[self.layout].by_mask

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
  listing = survey(root, category, layout)
  problems.refuse(listing.problems)
  if not listing.by_mask:
    return listing.splits

  def by_mask(record: Record) -> Record:
    return judged(record, image_io.shows_defect(record.mask, mask_threshold))

  with concurrent.futures.ThreadPoolExecutor() as pool:
    splits = record_types.Splits(*(tuple(pool.map(by_mask, records)) for records in listing.splits))
  problems.refuse(defects_in_training(splits.train))
  return splits


def survey(root: str | Path, category: str = '', layout: str = 'auto') -> Listing:
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
  root = _existing(root)
  directory = root / category
  if not directory.is_dir():
    raise DataError(_no_category(root, category))
  if layout == 'auto':
    layout = next(name for name, entry in _LAYOUTS.items() if entry.fits(directory))
  splits, wrong = _LAYOUTS[layout].splits(directory)
  return Listing(directory, layout, splits, tuple(wrong))


def judged(record: Record, shows_defect: bool) -> Record:
  """The record of a listing by mask, now that the mask was read."""
  return record if shows_defect else record._replace(defect='good')


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
    if record.anomalous
  ]


def categories(root: str | Path) -> list[str]:
  """Names of the folders in root that hold images in one of the layouts."""
  return [path.name for path in scanning.folders_in(_existing(root)) if _is_category(path)]


def expand(root: str | Path, category: str) -> list[str]:
  """The categories that a name stands for: itself, or those of a group that are in root.

  Groups are 'textures' and 'objects', as MVTec AD sorts its categories, and 'all', which is
  whatever root holds.
  """
  if category not in ('all', *mvtec.GROUPS):
    return [category]
  found = categories(root)
  names = [name for name in mvtec.GROUPS.get(category, found) if name in found]
  if not names:
    wanted = f': none of {", ".join(mvtec.GROUPS[category])}' if category in mvtec.GROUPS else ''
    raise DataError(f'No category for {category!r} in {root}{wanted}; there are: {_listed(found)}.')
  return names


def misfit(record: Record, image: tuple[int, int], mask: tuple[int, int]) -> str:
  """Say that a mask has not the height and width of its image; nothing where it has."""
  if image == mask:
    return ''
  return (
    f'{record.mask} is {mask[1]}x{mask[0]} pixels, but its image {record.path} is '
    f'{image[1]}x{image[0]}; give the mask the size of the image.'
  )


class _Layout(NamedTuple):
  """One way to lay out a data set.

  Attributes:
    splits: folder -> its records, and what is wrong.
    fits: whether a folder is laid out so.
    by_mask: whether a record's defect is only what its mask shows, if it shows any.
    has_masks: whether defective images are expected to have ground truth.
  """

  splits: Callable[[Path], scanning.Found]
  fits: Callable[[Path], bool]
  by_mask: bool = False
  has_masks: bool = True


# 'auto' is the first that fits.
_LAYOUTS = {
  'mvtec': _Layout(mvtec.splits, mvtec.fits),
  'seglist': _Layout(seglist.splits, seglist.fits, by_mask=True),
  'folder': _Layout(folder.splits, folder.fits, has_masks=False),
}
NAMES = ('auto', *_LAYOUTS)


def _is_category(directory: Path) -> bool:
  normal = [
    folder for folder in scanning.folders_in(directory) if folder.name.lower() in scanning.NORMAL
  ]
  listed = (directory / 'train').is_dir() or (directory / 'train.txt').is_file()
  return listed or any(scanning.images_in(d) for d in (directory, *normal))


def _existing(root: str | Path) -> Path:
  if not Path(root).is_dir():
    raise DataError(f'No folder {root}; data.root must name the folder that holds the categories.')
  return Path(root)


def _no_category(root: Path, category: str) -> str:
  found = categories(root)
  near = difflib.get_close_matches(category, found, n=1, cutoff=0.5)
  nearest = f' Did you mean {near[0]!r}?' if near else ''
  return f'No category {category!r} in {root}.{nearest} There are: {_listed(found)}.'


def _listed(names: Sequence[str]) -> str:
  return ', '.join(names) or 'none'
