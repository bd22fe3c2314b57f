"""Folders become records: the layouts that are read, and what is wrong where one cannot be.

No file is opened, but for the masks of a `seglist`, which alone tell what is good. Hidden files are
passed over, and whatever is listed is in natural order ('2.png' before '10.png') or in that of its
list, so that a dataset is the same on every machine.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
import concurrent.futures
import difflib
import math
from pathlib import Path
import re
from typing import NamedTuple

import numpy as np

from uadjax.data import preprocess, problems, seglist
from uadjax.data.problems import Problem
from uadjax.errors import ConfigError, DataError
from uadjax.types import Record

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')  # In any case.

TEXTURES = ('carpet', 'grid', 'leather', 'tile', 'wood')
OBJECTS = (
  'bottle',
  'cable',
  'capsule',
  'hazelnut',
  'metal_nut',
  'pill',
  'screw',
  'toothbrush',
  'transistor',
  'zipper',
)
_GROUPS = {'textures': TEXTURES, 'objects': OBJECTS}  # As MVTec AD sorts its categories.
NORMAL = ('good', 'normal', 'ok')  # Names of a folder of normal images, in any case.
_SPLITS = ('train', 'val', 'test')  # Names of a folder that say nothing of defects, likewise.


class Splits(NamedTuple):
  """What is learned from, and what is tested on; test may be empty."""

  train: tuple[Record, ...]
  test: tuple[Record, ...]


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
  splits: Splits
  problems: tuple[Problem, ...]

  @property
  def by_mask(self) -> bool:
    """Whether a record's defect is only what its mask shows, if it shows any; see `judged`."""
    return self.layout == 'seglist'


def load(
  root: str | Path, category: str = '', layout: str = 'auto', mask_threshold: int = 0
) -> Splits:
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
    return judged(record, preprocess.shows_defect(record.mask, mask_threshold))

  with concurrent.futures.ThreadPoolExecutor() as pool:
    splits = Splits(*(tuple(pool.map(by_mask, records)) for records in listing.splits))
  problems.refuse(defects_in_training(splits.train))
  return splits


def survey(root: str | Path, category: str = '', layout: str = 'auto') -> Listing:
  """List the images as `load` does, and what is wrong instead of raising it.

  Raises:
    DataError: there is no such folder at all.
    ConfigError: the layout has no such name.
  """
  if layout not in ('auto', *_LAYOUTS):
    raise ConfigError(f'Unknown layout {layout!r}; choose from {["auto", *sorted(_LAYOUTS)]}.')
  root = _existing(root)
  directory = root / category
  if not directory.is_dir():
    raise DataError(_no_category(root, category))
  if layout == 'auto':
    by_list = (directory / 'train.txt').is_file()
    by_folder = (directory / 'train').is_dir()
    by_test = (directory / 'test').is_dir()  # To be judged alone.
    layout = 'mvtec' if by_folder else 'seglist' if by_list else 'mvtec' if by_test else 'folder'
  splits, wrong = _LAYOUTS[layout](directory)
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
  return [path.name for path in _folders(_existing(root)) if _is_category(path)]


def below(directory: Path) -> list[Path]:
  """All images in a folder and the folders in it; DataError where there is none."""
  found = _below(directory)
  if not found:
    raise DataError(f'No images in or below {directory}; they must be {", ".join(SUFFIXES)}.')
  return found


def expand(root: str | Path, category: str) -> list[str]:
  """The categories that a name stands for: itself, or those of a group that are in root.

  Groups are 'textures' and 'objects', as MVTec AD sorts its categories, and 'all', which is
  whatever root holds.
  """
  if category not in ('all', *_GROUPS):
    return [category]
  found = categories(root)
  names = [name for name in _GROUPS.get(category, found) if name in found]
  if not names:
    wanted = f': none of {", ".join(_GROUPS[category])}' if category in _GROUPS else ''
    raise DataError(f'No category for {category!r} in {root}{wanted}; there are: {_listed(found)}.')
  return names


def split(
  records: Sequence[Record], fractions: Sequence[float], seed: int
) -> tuple[tuple[Record, ...], ...]:
  """Partition records at random into parts of about these fractions, none of them empty.

  The same records, fractions and seed give the same parts; each keeps the order of the records.

  Args:
    records: what to partition.
    fractions: relative sizes, such as (0.8, 0.2).
    seed: decides which record falls where.
  """
  if not fractions or not all(0 < fraction < math.inf for fraction in fractions):
    raise ConfigError(f'Cannot split by the fractions {list(fractions)}; all must be positive.')
  if len(records) < len(fractions):
    raise DataError(
      f'Cannot split {len(records)} images into {len(fractions)} parts; at least {len(fractions)}'
      f' images are needed in {records[0].path.parent if records else "the data set"}.'
    )
  ends = np.round(np.cumsum(fractions) / np.sum(fractions) * len(records)).astype(int)
  sizes = np.diff(ends, prepend=0)
  while not sizes.all():  # The largest part lends to the empty ones.
    sizes[sizes.argmin()] += 1
    sizes[sizes.argmax()] -= 1
  order = np.random.default_rng(seed).permutation(len(records))
  parts = np.split(order, np.cumsum(sizes)[:-1])
  return tuple(tuple(records[i] for i in sorted(part)) for part in parts)


def misfit(record: Record, image: tuple[int, int], mask: tuple[int, int]) -> str:
  """Say that a mask has not the height and width of its image; nothing where it has."""
  if image == mask:
    return ''
  return (
    f'{record.mask} is {mask[1]}x{mask[0]} pixels, but its image {record.path} is '
    f'{image[1]}x{image[0]}; give the mask the size of the image.'
  )


_Found = tuple[Splits, list[Problem]]


def _mvtec(directory: Path) -> _Found:
  """<category>/{train/good, test/<defect>, ground_truth/<defect>/<stem>_mask.png}."""
  train, test, truth = (directory / name for name in ('train', 'test', 'ground_truth'))
  learn, wrong = _to_learn(train / 'good')
  records = tuple(
    record
    for folder in (_folders(test) if test.is_dir() else ())  # Fitting needs no test set.
    for record in _defects(folder, folder.name, truth / folder.name)
  )
  if test.is_dir() and not records:
    wrong.append(problems.error('empty split', test, f'No images in the folders of {test}.'))
  wrong += [
    problems.warning(
      'defects in training',
      folder,
      f'Nothing is learned from {folder} ({len(_images(folder))} images), only from '
      f'{train / "good"}; defects belong in {test / folder.name}.',
    )
    for folder in (_folders(train) if train.is_dir() else ())
    if folder.name != 'good' and _images(folder)
  ]
  used = {record.mask for record in records}
  wrong += [
    problems.warning(
      'mask without image', mask, f'{mask} belongs to no image in {test / folder.name}.'
    )
    for folder in (_folders(truth) if truth.is_dir() else ())
    for mask in _images(folder)
    if mask not in used
  ]
  return Splits(learn, records), wrong


def _folder(directory: Path) -> _Found:
  """Normal images, here or in 'good' or 'normal'; any other folder is a type of defect."""
  folders = _folders(directory)
  normal = [folder for folder in folders if folder.name.lower() in NORMAL]
  train = tuple(Record(path) for folder in (directory, *normal) for path in _images(folder))
  defects = [folder for folder in folders if folder not in normal]
  test = tuple(record for folder in defects for record in _defects(folder, folder.name, None))
  if train:
    return Splits(train, test), []
  told = (
    f'No normal images in {directory}; put them there, or into a folder {NORMAL[0]!r} or'
    f' {NORMAL[1]!r} in it, as {", ".join(SUFFIXES)}.'
  )
  if inner := [f.name for f in folders if (f / 'train').is_dir() or (f / 'train.txt').is_file()]:
    told = f'{directory} holds categories: set data.category to one of {inner}, or all.'
  return Splits(train, test), [problems.error('empty split', directory, told)]


def _seglist(directory: Path) -> _Found:
  """<category>/{train.txt, val.txt}, which name images and masks: PaddleX's layout."""
  learn, wrong = seglist.read(directory / 'train.txt')
  test, wrong_test = [], []
  if (directory / 'val.txt').exists():  # Fitting needs no test set.
    test, wrong_test = seglist.read(directory / 'val.txt')
  if not learn and not wrong:
    told = f"{directory / 'train.txt'} lists no image; a line must be 'image mask', or 'image'."
    wrong.append(problems.error('empty split', directory / 'train.txt', told))
  records = [
    tuple(Record(line.image, _defect_of(line.image, directory), line.mask) for line in lines)
    for lines in (learn, test)
  ]
  return Splits(*records), wrong + wrong_test


def _defect_of(image: Path, directory: Path) -> str:
  """What a defect of this image is called: the first telling folder in 'images', if there is."""
  first, *folders = image.relative_to(directory).parts[:-1] or ('',)
  telling = [name for name in folders if name.lower() not in (*NORMAL, *_SPLITS)]
  return telling[0] if first == 'images' and telling else 'defect'


_LAYOUTS: dict[str, Callable[[Path], _Found]] = {
  'mvtec': _mvtec,
  'seglist': _seglist,
  'folder': _folder,
}


def _to_learn(folder: Path) -> tuple[tuple[Record, ...], list[Problem]]:
  images = _images(folder) if folder.is_dir() else []
  if images:
    return tuple(Record(path) for path in images), []
  told = f'No images in {folder}; they must be {", ".join(SUFFIXES)}.'
  if not folder.is_dir():
    told = f'No folder {folder}; it must hold the normal images to learn from.'
  return (), [problems.error('empty split', folder, told)]


def _defects(folder: Path, defect: str, truth: Path | None) -> list[Record]:
  defect = 'good' if defect.lower() in NORMAL else defect
  masks = collections.defaultdict(list)
  for path in _images(truth) if truth and truth.is_dir() else ():
    masks[path.stem].append(path)
  return [Record(path, defect, _mask_of(path, masks)) for path in _images(folder)]


def _mask_of(image: Path, masks: Mapping[str, Sequence[Path]]) -> Path | None:
  """Find a mask by name. Where images share a stem, a suffix tells whose it is, if one does."""
  for name in (f'{image.name}_mask', f'{image.stem}_mask', image.name, image.stem):
    if name in masks:
      return min(masks[name], key=lambda mask: mask.suffix.lower() != image.suffix.lower())
  return None


def _images(folder: Path) -> list[Path]:
  return [p for p in _listing(folder) if p.suffix.lower() in SUFFIXES and p.is_file()]


def _below(directory: Path) -> list[Path]:
  return [*_images(directory), *(p for folder in _folders(directory) for p in _below(folder))]


def _folders(directory: Path) -> list[Path]:
  return [path for path in _listing(directory) if path.is_dir()]


def _listing(directory: Path) -> list[Path]:
  visible = (path for path in directory.iterdir() if not path.name.startswith('.'))
  return sorted(visible, key=natural)


def natural(path: Path) -> tuple[list[str | int], str]:
  """What to sort by, so that '2.png' comes before '10.png'."""
  parts = re.split(r'(\d+)', path.name)  # Text and digits take turns: only like meets like.
  return [int(part) if i % 2 else part for i, part in enumerate(parts)], path.name


def _is_category(directory: Path) -> bool:
  normal = [folder for folder in _folders(directory) if folder.name.lower() in NORMAL]
  listed = (directory / 'train').is_dir() or (directory / 'train.txt').is_file()
  return listed or any(_images(d) for d in (directory, *normal))


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
