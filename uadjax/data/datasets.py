"""Folders become records: the layouts that are read, and what is wrong where one cannot be.

Nothing but `verify` opens a file. Hidden files are passed over, and whatever is listed is in
natural order ('2.png' before '10.png'), so that a dataset is the same on every machine.
"""

from collections.abc import Callable, Sequence
import concurrent.futures
import difflib
import math
from pathlib import Path
import re
from typing import NamedTuple

import numpy as np

from uadjax.data import preprocess
from uadjax.types import ConfigError, DataError, Record

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
_NORMAL = ('good', 'normal', 'ok')  # Names of a folder of normal images, in any case.


class Splits(NamedTuple):
  """What is learned from, and what is tested on; test may be empty."""

  train: tuple[Record, ...]
  test: tuple[Record, ...]


def load(root: str | Path, category: str = '', layout: str = 'auto') -> Splits:
  """List the images of one category.

  Args:
    root: folder of categories, or, with an empty category, the category itself.
    category: name of a folder in root.
    layout: 'mvtec', 'folder', or 'auto', which is 'mvtec' where there is a folder 'train'.

  Raises:
    DataError: a folder is missing or holds no image.
    ConfigError: the layout has no such name.
  """
  if layout not in ('auto', *_LAYOUTS):
    raise ConfigError(f'Unknown layout {layout!r}; choose from {["auto", *sorted(_LAYOUTS)]}.')
  root = _existing(root)
  directory = root / category
  if not directory.is_dir():
    raise DataError(_no_category(root, category))
  if layout == 'auto':
    layout = 'mvtec' if (directory / 'train').is_dir() else 'folder'
  return _LAYOUTS[layout](directory)


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


def verify(records: Sequence[Record]) -> None:
  """Look into every image and mask, without decoding them; lists up to ten that cannot be used."""
  paths = [path for record in records for path in (record.path, record.mask) if path]
  with concurrent.futures.ThreadPoolExecutor() as pool:
    problems = [problem for problem in pool.map(_problem, paths) if problem]
    if not problems:
      problems = [problem for problem in pool.map(_misfit, records) if problem]
  if problems:
    more = [f'and {len(problems) - 10} more'] if len(problems) > 10 else []
    listing = '\n  '.join(problems[:10] + more)
    raise DataError(f'{len(problems)} of {len(paths)} files cannot be used:\n  {listing}')


def _problem(path: Path) -> str | None:
  try:
    preprocess.check(path)
  except DataError as error:
    return str(error)
  return None


def _misfit(record: Record) -> str | None:
  if record.mask is None:
    return None
  image, mask = preprocess.image_size(record.path), preprocess.image_size(record.mask)
  if image == mask:
    return None
  return (
    f'{record.mask} is {mask[1]}x{mask[0]} pixels, but its image {record.path} is '
    f'{image[1]}x{image[0]}; give the mask the size of the image.'
  )


def _mvtec(directory: Path) -> Splits:
  """<category>/{train/good, test/<defect>, ground_truth/<defect>/<stem>_mask.png}."""
  train = tuple(Record(path) for path in _some_images(directory / 'train' / 'good'))
  test = directory / 'test'
  records = tuple(
    record
    for folder in (_folders(test) if test.is_dir() else ())  # Fitting needs no test set.
    for record in _defects(folder, folder.name, directory / 'ground_truth' / folder.name)
  )
  if test.is_dir() and not records:
    raise DataError(f'No images in the folders of {test}.')
  return Splits(train, records)


def _folder(directory: Path) -> Splits:
  """Normal images, here or in 'good' or 'normal'; any other folder is a type of defect."""
  folders = _folders(directory)
  normal = [folder for folder in folders if folder.name.lower() in _NORMAL]
  train = tuple(Record(path) for folder in (directory, *normal) for path in _images(folder))
  if not train and (inner := [f.name for f in folders if (f / 'train').is_dir()]):
    raise DataError(f'{directory} holds categories: set data.category to one of {inner}, or all.')
  if not train:
    raise DataError(
      f'No normal images in {directory}; put them there, or into a folder {_NORMAL[0]!r} or'
      f' {_NORMAL[1]!r} in it, as {", ".join(SUFFIXES)}.'
    )
  defects = [folder for folder in folders if folder not in normal]
  return Splits(train, tuple(r for folder in defects for r in _defects(folder, folder.name, None)))


_LAYOUTS: dict[str, Callable[[Path], Splits]] = {'mvtec': _mvtec, 'folder': _folder}


def _defects(folder: Path, defect: str, truth: Path | None) -> list[Record]:
  defect = 'good' if defect.lower() in _NORMAL else defect
  masks = {path.stem: path for path in _images(truth)} if truth and truth.is_dir() else {}
  return [
    Record(path, defect, masks.get(f'{path.stem}_mask') or masks.get(path.stem))
    for path in _images(folder)
  ]


def _some_images(folder: Path) -> list[Path]:
  if not folder.is_dir():
    raise DataError(f'No folder {folder}; it must hold the normal images to learn from.')
  images = _images(folder)
  if not images:
    raise DataError(f'No images in {folder}; they must be {", ".join(SUFFIXES)}.')
  return images


def _images(folder: Path) -> list[Path]:
  return [p for p in _listing(folder) if p.suffix.lower() in SUFFIXES and p.is_file()]


def _below(directory: Path) -> list[Path]:
  return [*_images(directory), *(p for folder in _folders(directory) for p in _below(folder))]


def _folders(directory: Path) -> list[Path]:
  return [path for path in _listing(directory) if path.is_dir()]


def _listing(directory: Path) -> list[Path]:
  visible = (path for path in directory.iterdir() if not path.name.startswith('.'))
  return sorted(visible, key=_natural)


def _natural(path: Path) -> tuple[list[str | int], str]:
  parts = re.split(r'(\d+)', path.name)  # Text and digits take turns: only like meets like.
  return [int(part) if i % 2 else part for i, part in enumerate(parts)], path.name


def _is_category(directory: Path) -> bool:
  normal = [folder for folder in _folders(directory) if folder.name.lower() in _NORMAL]
  return (directory / 'train').is_dir() or any(_images(d) for d in (directory, *normal))


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
