"""Functions that list images, masks and folders in natural order, shared by the layouts.

Masks are found by name, in folders of masks and beside their images. A mask is never listed as an
image.
"""

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence
import itertools
import os
from pathlib import Path
import re

import numpy as np

from uadjax.data import image_io, near_duplicates, problems
from uadjax.data.problems import Problem
from uadjax.data.records import GOOD, Record, Splits
from uadjax.errors import DataError

SUFFIXES = image_io.SUFFIXES
# Names of folders, in lower case; any case matches. Those of good images may begin with a number,
# as in '0_good'.
NORMAL_FOLDER_NAMES = (GOOD, 'normal', 'ok', 'defect_free', 'defect-free', 'no_defect')
NORMAL_FOLDER_PATTERN = rf'(?:\d+[ _-])?(?:{"|".join(NORMAL_FOLDER_NAMES)})'
VALIDATION_FOLDER_PATTERN = 'val|valid|validation'
DEFECT_FOLDER_NAMES = (
  *('bad', 'ko', 'ng', 'nok', 'defect', 'defects', 'defective', 'anomaly', 'anomalies'),
  *('anomalous', 'abnormal', 'reject', 'rejects'),
)
MASK_FOLDER_NAMES = (
  *('mask', 'masks', 'ground_truth', 'groundtruth', 'gt', 'annotation', 'annotations'),
  *('label', 'labels', 'segmentationclass', 'segmentationclasspng', 'segmentationobject'),
)
# Files and folders that systems and archivers leave among images, in lower case.
_SYSTEM_NAMES = frozenset(
  ('@eadir', '__macosx', '#recycle', '$recycle.bin', 'thumbs.db', 'desktop.ini', 'ehthumbs.db')
)
_MASK_ENDINGS = 'mask', 'gt', 'label', 'seg'  # Of the names of masks, such as 'x_mask.png'.
_MASK_STEM = re.compile(rf'(.+)[_-](?:{"|".join(_MASK_ENDINGS)})s?[_-]?\d*', re.IGNORECASE)
# Of pictures that show an image together with its mask, or a mask in color.
_DERIVED_STEM = re.compile(r'(.+)_(?:cutout|overlay|pseudo|viz)', re.IGNORECASE)
# Tool -> pattern of the names of the masks that it exports, which no image is named like.
_EXPORTED_MASKS = {
  'Label Studio': re.compile(r'task-\d+-annotation-\d+-by-.+-\d+\.png', re.IGNORECASE),
  'SuperAnnotate': re.compile(r'.+___(?:save|fuse)\.png', re.IGNORECASE),
}
# Names of folders of masks that a defect may have, too.
_AMBIGUOUS = re.compile('labels?|annotations?', re.IGNORECASE)
# A mask has few values, or nearly all of its pixels are at one end of its range.
_MAX_MASK_VALUES, _END_OF_RANGE, _MIN_MASK_FRACTION = 32, 0.1, 0.9
_YEAR, _MONTH, _DAY = r'(?:19|20)\d\d', r'(?:0[1-9]|1[0-2])', r'(?:0[1-9]|[12]\d|3[01])'
_DATE = re.compile(
  rf'{_YEAR}[-_. ]?{_MONTH}[-_. ]?{_DAY}(?:[-_. T]?\d\d(?:[-_.:h ]?\d\d){{0,2}}[msZ]?)?'
  rf'|{_YEAR}[-_. ]{_MONTH}|{_DAY}[-_. ]{_MONTH}[-_. ]{_YEAR}|{_MONTH}[-_. ]{_DAY}[-_. ]{_YEAR}'
)
_CONTENT = re.compile(
  '(?:(?:all|obj_train|test|train|val|valid)[-_ ]?)?'
  '(?:data|images?|imgs?|jpegimages|photos?|pictures?|samples?)',
  re.IGNORECASE,
)
_LOSSLESS_SUFFIXES = ('.png', '.bmp', '.gif', '.tif', '.tiff', '.pgm')
_NUM_OPENED_PAIRS = 3  # Pairs of one folder that are opened.
_MIN_MASK_DISTANCE = 8.0  # Root mean square difference of fingerprints, in gray values.
_MAX_DEPTH = 100  # Of nested folders; Python's recursion and the length of a path are limited.

SplitsAndProblems = tuple[Splits, list[Problem]]


def find_files(directory: Path, suffixes: Sequence[str] = SUFFIXES, depth: int = 0) -> list[Path]:
  """Return the files in a folder and, recursively, in its subfolders that have a suffix of a list.

  Args:
    directory: the folder.
    suffixes: suffixes in lower case; any case matches.
    depth: number of folders that the search has entered to reach this one.

  Raises:
    DataError: folders are nested too deeply.
  """
  require_depth(directory, depth)
  # A link to a folder above would be followed without end.
  resolved = directory.resolve()
  folders = [f for f in folders_in(directory) if not resolved.is_relative_to(f.resolve())]
  nested = (path for f in folders for path in find_files(f, suffixes, depth + 1))
  return [*files_in(directory, suffixes), *nested]


def require_depth(folder: Path, depth: int) -> None:
  """Raise DataError if a folder is nested too deeply.

  Args:
    folder: the folder.
    depth: number of folders that a search has entered to reach it.
  """
  if depth > _MAX_DEPTH:
    name = f'{folder}'[:200]
    message = f'Folders are nested more than {_MAX_DEPTH} deep below {name}…'
    raise DataError(f'{message}; name a folder that is nearer to the images.')


def files_in(directory: Path, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
  """Return the visible files in a folder that have a suffix of a list, in natural order."""
  return [p for p in _visible(directory) if p.suffix.lower() in suffixes and p.is_file()]


def folders_in(directory: Path) -> list[Path]:
  """Return the visible subfolders of a folder, in natural order."""
  return [path for path in _visible(directory) if path.is_dir()]


def is_folder(entry: Path | os.DirEntry[str]) -> bool:
  """Return whether an entry is a folder; a link to itself or too long a name is none."""
  try:
    return entry.is_dir()
  except OSError:
    return False


def is_normal(folder_name: str) -> bool:
  """Return whether a folder of this name contains normal images."""
  return re.fullmatch(NORMAL_FOLDER_PATTERN, folder_name, re.IGNORECASE) is not None


def is_defective(folder_name: str) -> bool:
  """Return whether a folder of this name contains defective images of unknown type."""
  return folder_name.lower() in DEFECT_FOLDER_NAMES


def is_validation(folder_name: str) -> bool:
  """Return whether a folder of this name contains a validation set."""
  return re.fullmatch(VALIDATION_FOLDER_PATTERN, folder_name, re.IGNORECASE) is not None


def normal_folders(directory: Path) -> list[Path]:
  """Return the folders of the normal images of a plain folder: itself and, say, 'good'."""
  return [directory, *(f for f in folders_in(directory) if is_normal(f.name))]


def is_mask_folder(folder_name: str) -> bool:
  """Return whether a folder of this name contains masks."""
  return folder_name.lower() in MASK_FOLDER_NAMES


def is_mask_name(file_name: str) -> bool:
  """Return whether a file of this name may show the mask of an image beside it."""
  stem = Path(file_name).stem
  return bool(_MASK_STEM.fullmatch(stem) or _DERIVED_STEM.fullmatch(stem))


def image_stem(mask_name: str) -> str:
  """Return the name without suffix that the image of a mask has."""
  stem = Path(mask_name).stem
  match = _MASK_STEM.fullmatch(stem)
  return match[1] if match else stem


def exporting_tool(file_name: str) -> str:
  """Return the labeling tool that exports masks with names like this one; '' if none does."""
  return next((t for t, pattern in _EXPORTED_MASKS.items() if pattern.fullmatch(file_name)), '')


def is_date_or_content(folder_name: str) -> bool:
  """Return whether a folder is named after a date or its content, not after a type of defect."""
  return any(pattern.fullmatch(folder_name) for pattern in (_DATE, _CONTENT))


def unnamed_defect_folders(folders: Iterable[Path]) -> Iterator[Problem]:
  """Yield an error if folders of images are named after dates or content, not after defects."""
  unnamed = [folder for folder in folders if is_date_or_content(folder.name) and files_in(folder)]
  if unnamed:
    others = f' and {len(unnamed) - 1} more folders are' if len(unnamed) > 1 else ' is'
    message = f'{unnamed[0]}{others} not named after a type of defect'
    hint = 'move good images to a folder good/, and others to a folder named after their defect'
    yield problems.error('unnamed type of defect', unnamed[0], f'{message}; {hint}.')


def photographs_in_mask_folders(mask_folders: Iterable[Path]) -> Iterator[Problem]:
  """Yield an error for each folder that is named after masks, but contains photographs.

  They may show a type of defect: the labels of bottles, for example, have defects, too.
  """
  for folder in mask_folders:
    paths = find_files(folder)[:_NUM_OPENED_PAIRS] if _AMBIGUOUS.fullmatch(folder.name) else []
    if paths and all(map(_is_photograph, paths)):
      message = f'{folder} is named like a folder of masks, but its images are photographs'
      hint = f'if they show a defect, rename it, for example to {folder.name}_defect'
      yield problems.error('images in a folder of masks', folder, f'{message}; {hint}.')


def _is_photograph(path: Path) -> bool:
  """Return whether a file has many values, most of them neither near black nor near white."""
  try:
    values = image_io.read_raw_mask(path).values
  except DataError:
    return False
  low, high = float(values.min()), float(values.max())
  margin = _END_OF_RANGE * (high - low)
  is_at_end = (values <= low + margin) | (values >= high - margin)
  is_varied = len(np.unique(values)) > _MAX_MASK_VALUES
  return is_varied and bool(is_at_end.mean() < _MIN_MASK_FRACTION)


def mask_folders_in(directory: Path) -> list[Path]:
  """Return the subfolders of a folder that contain masks, by their names."""
  return [folder for folder in folders_in(directory) if is_mask_folder(folder.name)]


def is_hidden(name: str) -> bool:
  """Return whether a file or folder is hidden or belongs to an operating system or archiver."""
  return name.startswith('.') or name.lower() in _SYSTEM_NAMES


def test_records(folder: Path, mask_folder: Path | None) -> tuple[Record, ...]:
  """Return records of the images in the subfolders of a folder, each named after a defect.

  Subfolders of masks, of a validation set or without the name of a defect are left out.

  Args:
    folder: folder of the subfolders; the name of one of normal images counts as 'good'.
    mask_folder: folder of subfolders with their masks, or of the masks of all defective images;
      None if there are no masks.
  """
  records = []
  for subfolder in folders_in(folder):
    if any(test(subfolder.name) for test in (is_mask_folder, is_validation, is_date_or_content)):
      continue
    defect = GOOD if is_normal(subfolder.name) else subfolder.name
    folders = mask_folders_in(subfolder)
    if mask_folder:
      subfolder_masks = mask_folder / subfolder.name
      # Good images may share their names with defective ones, whose masks these are.
      is_separate = subfolder_masks.is_dir() or defect == GOOD
      folders.append(subfolder_masks if is_separate else mask_folder)
    records += image_records(subfolder, defect, folders)
  return tuple(records)


def image_records(
  folder: Path, defect: str = GOOD, mask_folders: Sequence[Path] = ()
) -> tuple[Record, ...]:
  """Return records of the images directly in a folder, with their masks.

  The mask of `x.png` is a file `x_mask.png`, `x_GT.bmp`, `x_label.png` or `x.png`, or a folder
  `x` of several masks, in one of the folders of masks. Or it lies beside the image, see
  `split_masks`.

  Args:
    folder: folder of the images.
    defect: 'good', or the type of defect.
    mask_folders: folders that contain masks.
  """
  images, masks_beside = split_masks(files_in(folder))
  masks: dict[str, list[Path]] = collections.defaultdict(list)
  for mask_folder in mask_folders:
    for path in files_in(mask_folder):
      masks[path.stem.lower()].append(path)
    for subfolder in folders_in(mask_folder):
      if files_in(subfolder):
        masks[subfolder.name.lower()].append(subfolder)
  return tuple(
    Record(path, defect, _find_mask(path, masks) or masks_beside.get(path)) for path in images
  )


def split_masks(paths: Sequence[Path]) -> tuple[list[Path], dict[Path, Path]]:
  """Split the files of a folder into images, and masks beside them; return the mask per image.

  Masks of `x.jpg` are `x_mask.png`, `x_GT.png`, `x_label.bmp` and the like, whatever their suffix,
  and `x.png`, unless it shows the same picture as `x.jpg`. Other pictures that labeling tools
  write, such as `x_overlay.png`, are neither images nor masks.
  """
  masks, by_image = masks_by_name(paths)
  paths_by_stem = _group_by_stem(path for path in paths if path not in masks)
  pairs = [
    (image, other)
    for image, other in itertools.chain.from_iterable(
      itertools.permutations(same_stem, 2) for same_stem in paths_by_stem.values()
    )
    if _is_lossy(image) and other.suffix.lower() in _LOSSLESS_SUFFIXES and image not in by_image
  ]
  if pairs and all(_is_mask(other, image) for image, other in pairs[:_NUM_OPENED_PAIRS]):
    masks.update(other for _, other in pairs)
    by_image.update(pairs)
  return [path for path in paths if path not in masks], by_image


def masks_by_name(paths: Sequence[Path]) -> tuple[set[Path], dict[Path, Path]]:
  """Return the files of a folder whose names say that they are no images, and the mask per image.

  They are masks, other pictures of labels, and masks that labeling tools export.
  """
  paths_by_stem = _group_by_stem(paths)
  pictures, by_image = {path for path in paths if exporting_tool(path.name)}, dict[Path, Path]()
  for path in paths:
    match = _MASK_STEM.fullmatch(path.stem)
    for image in paths_by_stem.get(match[1].lower(), ()) if match else ():
      pictures.add(path)
      by_image.setdefault(image, path)
    if (match := _DERIVED_STEM.fullmatch(path.stem)) and match[1].lower() in paths_by_stem:
      pictures.add(path)
  return pictures, by_image


def _group_by_stem(paths: Iterable[Path]) -> dict[str, list[Path]]:
  paths_by_stem: dict[str, list[Path]] = collections.defaultdict(list)
  for path in paths:
    paths_by_stem[path.stem.lower()].append(path)
  return paths_by_stem


def _is_lossy(path: Path) -> bool:
  return path.suffix.lower() in ('.jpg', '.jpeg', '.jfif', '.jpe')


def _is_mask(path: Path, image_path: Path) -> bool:
  """Return whether a file has two values or shows another picture than an image of its name."""
  try:
    pixels, image = image_io.decode(path), image_io.decode(image_path)
  except DataError:
    return False
  if len(np.unique(pixels)) <= 2:
    return True
  difference = near_duplicates.fingerprint(pixels) - near_duplicates.fingerprint(image)
  return bool(np.sqrt((difference**2).mean()) > _MIN_MASK_DISTANCE)


def _find_mask(image: Path, masks: Mapping[str, Sequence[Path]]) -> Path | None:
  """Find the mask of an image by name; prefer the image's suffix if several masks match."""
  names = image.name.lower(), image.stem.lower()
  endings = (f'{name}_{ending}' for ending in _MASK_ENDINGS for name in names)
  for name in (*endings, *names):
    if name in masks:
      return min(masks[name], key=lambda mask: mask.suffix.lower() != image.suffix.lower())
  return None


def _visible(directory: Path) -> list[Path]:
  """Return the entries of a folder that are not hidden; none if it does not exist."""
  entries = directory.iterdir() if directory.is_dir() else ()
  return sorted((p for p in entries if not is_hidden(p.name)), key=natural_sort_key)


def natural_sort_key(path: Path) -> tuple[list[str | int], str]:
  """Return a sort key that puts '2.png' before '10.png'."""
  # Text and digits alternate, so that sorting never compares a string with an integer.
  segments = re.split(r'(\d+)', path.name)
  return [int(segment) if i % 2 else segment for i, segment in enumerate(segments)], path.name
