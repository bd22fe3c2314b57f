"""Dataset layouts, which convert folders to records and report their problems.

A layout of folders is one row of `published.TREES`; another one is a module here and one line of
`_LAYOUTS`. Listing opens no image file, except masks where only they determine which images are
good. Hidden files are ignored. Images are in natural order ('2.png' before '10.png') or in the
order of their list, so that a dataset is the same on every machine.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
import concurrent.futures
import difflib
import functools
from pathlib import Path
from typing import NamedTuple

from uadjax.data import image_io, problems
from uadjax.data.layouts import folder, mvtec, published, scanning, seglist, tree as trees, visa
from uadjax.data.problems import Problem
from uadjax.data.records import GOOD, Record, Splits
from uadjax.errors import DataError, refuse, Setting, UnknownName


class Layout(NamedTuple):
  """One way to organize the files of a dataset.

  Attributes:
    read: function from a category's folder to its records and problems.
    labels_by_mask: whether an image is defective only if its mask marks a defect; see
      `label_by_mask`.
    has_masks: whether defective images are expected to have ground truth.
    excludes_training_defects: whether training images whose masks mark a defect are the test
      images, or are not used if there are others. Otherwise, they are an error.
    marker: pattern of a file or folder that only this layout has, for 'auto'; see `tree`.
    entries: entries of `_MARKERS` that this layout has, too.
    list_files: patterns of the files other than images that `read` reads, relative to the folder.
  """

  read: Callable[[Path], scanning.SplitsAndProblems]
  labels_by_mask: bool = False
  has_masks: bool = True
  excludes_training_defects: bool = False
  marker: str = ''
  entries: tuple[str, ...] = ()
  list_files: tuple[str, ...] = ()


class Listing(NamedTuple):
  """Images of a category as listed before any image is opened.

  Attributes:
    directory: folder of the category.
    splits: records of the images.
    problems: problems of the listing; `load` raises if one of them is an error.
    layout: layout of the category.
  """

  directory: Path
  splits: Splits
  problems: tuple[Problem, ...]
  layout: Layout


def load(
  root: str | Path, category: str = '', layout: str = 'auto', mask_reading: str = image_io.NONZERO
) -> Splits:
  """List the images of one category.

  Args:
    root: folder of categories, or, with an empty category, the category itself.
    category: name of a folder in root.
    layout: name of a layout, or 'auto'. This means the published layout whose marker there is; else
      'mvtec' if there is a folder 'train', 'seglist' if there is a file 'train.txt', 'mvtec' if
      there is a folder 'test', or 'folder'.
    mask_reading: how masks mark defects, see `image_io.parse_mask_reading`. In a seglist, an image
      is defective if its mask marks a defect, and good otherwise or without a mask.

  Raises:
    DataError: a folder or listed file is missing, there are no training images, or a seglist has
      defects in its training set.
    ConfigError: there is no layout of that name, or 'auto' finds the markers of several.
  """
  listing = scan(root, category, layout)
  problems.raise_errors(listing.problems)
  if not listing.layout.labels_by_mask:
    return listing.splits
  train, test = listing.splits
  masks = defective_masks([*train, *test], mask_reading)
  splits = label_by_mask(listing.splits, masks, listing.layout.excludes_training_defects)
  problems.raise_errors(defects_in_training(splits.train))
  return splits


def scan(root: str | Path, category: str = '', layout: str = 'auto') -> Listing:
  """List the images of one category, and the problems of its folder instead of raising them.

  In a seglist, defects are those that paths suggest; `label_by_mask` corrects them.

  Args:
    root: folder of categories, or, with an empty category, the category itself.
    category: name of a folder in root.
    layout: name of a layout, or 'auto'; see `load`.

  Raises:
    DataError: the folder does not exist.
    UnknownName: there is no category of that name.
    ConfigError: the folder contains categories, there is no layout of that name, or 'auto' finds
      the markers of several.
  """
  if layout not in NAMES:
    message = f'Unknown layout {layout!r}; choose from {sorted(NAMES)}.'
    refuse('data.layout', layout, message, allowed=NAMES)
  directory = require_category(root, category)
  if layout == 'auto':
    require_no_categories(directory)
    layout = _find_layout(directory)
  entry = _LAYOUTS[layout]
  splits, issues = entry.read(directory)
  return Listing(directory, splits, tuple(issues), entry)


def require_category(root: str | Path, category: str) -> Path:
  """Return the folder of a category.

  Raises:
    DataError: there is no folder `root`.
    UnknownName: there is no category of that name.
  """
  root = _require_folder(root)
  directory = root / category
  if not directory.is_dir():
    available = categories(root)
    matches = difflib.get_close_matches(category, available, n=1, cutoff=0.5)
    suggestion = f' Did you mean {matches[0]!r}?' if matches else ''
    message = f'No category {category!r} in {root}.{suggestion}{_list_available(available)}'
    raise UnknownName(message, key='data.category', value=category, allowed=available)
  return directory


def require_no_categories(directory: Path) -> None:
  """Raise ConfigError if a folder has no normal images, but contains folders that have some."""
  if _marked_layouts(directory) or _is_category(directory):
    return
  names = [
    folder.name
    for folder in scanning.folders_in(directory)
    # Images directly in the folder may be those of a defect.
    if not scanning.is_mask_folder(folder.name)
    and (
      _has_training_set(folder) or any(map(scanning.files_in, scanning.normal_folders(folder)[1:]))
    )
  ]
  if names:
    hint = 'Choose one with ', Setting('data.category'), f': {", ".join(map(repr, names))}.'
    message = f'{directory} contains categories.'
    refuse('data.category', None, message, *hint, allowed=tuple(names))


def defective_masks(records: Sequence[Record], mask_reading: str) -> set[Path]:
  """Return the masks of records that have a value above the threshold."""
  masks = list(dict.fromkeys(record.mask for record in records if record.mask))
  with concurrent.futures.ThreadPoolExecutor() as pool:
    has_defect = pool.map(lambda mask: image_io.has_defect(mask, mask_reading), masks)
    return {mask for mask, is_defective in zip(masks, has_defect, strict=True) if is_defective}


def label_by_mask(
  splits: Splits, defective_masks: Collection[Path], excludes_training_defects: bool = False
) -> Splits:
  """Return the records with defect 'good' unless their mask is one of those with a defect.

  This is for layouts whose images are defective only if their mask marks a defect.

  Args:
    splits: records as the layout lists them.
    defective_masks: masks that mark a defect.
    excludes_training_defects: see `Layout`.
  """

  def label(record: Record) -> Record:
    return record if record.mask in defective_masks else record._replace(defect=GOOD)

  train, test = tuple(map(label, splits.train)), tuple(map(label, splits.test))
  if not excludes_training_defects:
    return Splits(train, test)
  defective = tuple(record for record in train if record.is_anomalous)
  return Splits(tuple(r for r in train if not r.is_anomalous), test or defective)


def defects_in_training(train: Sequence[Record]) -> Iterator[Problem]:
  """Yield an error for every defective image among the training records."""
  for path, defect, mask, *_ in train:
    if defect != GOOD:
      message = f'{path} is in the training set, but its mask {mask} shows a defect'
      yield problems.error('defects in training', path, f'{message}; move its line to val.txt.')


def categories(root: str | Path) -> list[str]:
  """Return the names of the folders in root that contain images in one of the layouts."""
  folders = scanning.folders_in(_require_folder(root))
  return [f.name for f in folders if _is_category(f) and not scanning.is_mask_folder(f.name)]


def expand(root: str | Path, category: str) -> list[str]:
  """Return the categories that a name selects: itself, or those of a group that are in root.

  Groups are 'textures' and 'objects', as MVTec AD groups its categories, and 'all', which is every
  category in root.

  Raises:
    UnknownName: root has no category of the group.
  """
  if category not in ('all', *mvtec.GROUPS):
    return [category]
  available = categories(root)
  members = mvtec.GROUPS.get(category)
  names = [name for name in members or available if name in available]
  if not names:
    note = f': none of {", ".join(members)}' if members else ''
    message = f'No category of {category!r} in {root}{note}.{_list_available(available)}'
    raise UnknownName(message, key='data.category', value=category, allowed=available)
  return names


def mask_size_mismatch(record: Record, size: tuple[int, int], mask_size: tuple[int, int]) -> str:
  """Return a message if image and mask differ in (height, width); '' if they agree."""
  if size == mask_size:
    return ''
  (height, width), (mask_height, mask_width) = size, mask_size
  message = f'{record.mask} is {mask_width}x{mask_height} pixels, but its image {record.path} is'
  return f'{message} {width}x{height}; resize the mask to match the image.'


def _from_tree(tree: trees.Tree) -> Layout:
  """Return the layout that patterns describe."""
  read, entries = functools.partial(trees.read_splits, tree), tuple(filter(tree.reads, _MARKERS))
  return Layout(
    read,
    labels_by_mask=tree.labels_by_mask,
    excludes_training_defects=tree.labels_by_mask,
    marker=tree.marker,
    entries=entries,
  )


# Entries of a folder without the marker of a published layout, the first of which determines its
# layout.
_MARKERS = {'train': 'mvtec', 'train.txt': 'seglist', 'test': 'mvtec'}
_LAYOUTS = {
  **{name: _from_tree(tree) for name, tree in published.TREES.items()},
  'visa': Layout(visa.read_splits, marker=visa.MARKER),
  'seglist': Layout(seglist.read_splits, labels_by_mask=True, list_files=('train.txt', 'val.txt')),
  'folder': Layout(folder.read_splits, has_masks=False),
}
NAMES = ('auto', *_LAYOUTS)
LIST_OF_CATEGORIES = visa.LIST  # Read from the folder that contains the categories.


def _find_layout(directory: Path) -> str:
  """Return the layout of a folder by its markers; 'folder' if there are none.

  Raises:
    ConfigError: it has the markers of several layouts.
  """
  names = _marked_layouts(directory)
  if len(names) > 1:
    message = f'{directory} has the folders or lists of several layouts: {", ".join(names)}.'
    hint = 'Choose one with ', Setting('data.layout'), '.'
    refuse('data.layout', 'auto', message, *hint, allowed=names)
  return names[0] if names else 'folder'


def _marked_layouts(directory: Path) -> tuple[str, ...]:
  """Return the layouts whose markers a folder has; several if they contradict each other."""
  names = _published_layouts(directory)
  entries = {entry for name in names for entry in _LAYOUTS[name].entries}
  markers = [m for m in _MARKERS if m not in entries and trees.exists(directory, m)]
  others = [_MARKERS[marker] for marker in markers]
  return tuple(dict.fromkeys((*names, *(others if names else others[:1]))))


def _published_layouts(directory: Path) -> list[str]:
  """Return the published layouts whose marker a folder has."""
  return [n for n, x in _LAYOUTS.items() if x.marker and trees.exists(directory, x.marker)]


def _has_training_set(directory: Path) -> bool:
  entries = 'train', 'train.txt'
  is_marked = any(trees.exists(directory, entry) for entry in entries)
  return is_marked or bool(_published_layouts(directory))


def _is_category(directory: Path) -> bool:
  folders = scanning.normal_folders(directory)
  return _has_training_set(directory) or any(map(scanning.files_in, folders))


def _require_folder(root: str | Path) -> Path:
  if not Path(root).is_dir():
    hint = 'Pass ', Setting('data.root'), ', the folder that contains the categories.'
    raise DataError(f'No folder {root}.', hint=hint)
  return Path(root)


def _list_available(names: Sequence[str]) -> str:
  return f' Available: {", ".join(names) or "none"}.'
