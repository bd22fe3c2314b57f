"""Functions that list images, masks and folders in natural order, shared by the layouts."""

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
import re

from uadjax.data import problems, records
from uadjax.data.problems import Problem
from uadjax.data.records import Record
from uadjax.errors import DataError

# Suffixes of images and names of folders of normal images, both in lower case; any case matches.
SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
NORMAL_FOLDER_NAMES = ('good', 'normal', 'ok')


def find_images(directory: Path) -> list[Path]:
  """Return all images in a folder and, recursively, in its subfolders.

  Raises:
    DataError: there are no images.
  """
  images = _find_images(directory)
  if not images:
    raise DataError(
      f'No images in or below {directory}; image files must end in {", ".join(SUFFIXES)}.'
    )
  return images


SplitsAndProblems = tuple[records.Splits, list[Problem]]


def training_records(folder: Path) -> tuple[tuple[Record, ...], list[Problem]]:
  """Return records of the normal images of a folder, or a problem if there are none."""
  images = images_in(folder) if folder.is_dir() else []
  if images:
    return tuple(Record(path) for path in images), []
  message = f'No images in {folder}; image files must end in {", ".join(SUFFIXES)}.'
  if not folder.is_dir():
    message = f'No folder {folder}; it must contain the normal training images.'
  return (), [problems.error('empty split', folder, message)]


def defect_records(folder: Path, defect: str, mask_folder: Path | None) -> list[Record]:
  """Return records of the images of one defect.

  Args:
    folder: folder of the images.
    defect: type of defect; the name of a folder of normal images counts as 'good'.
    mask_folder: folder of their masks, which may be absent.
  """
  defect = 'good' if defect.lower() in NORMAL_FOLDER_NAMES else defect
  masks = collections.defaultdict(list)
  for path in images_in(mask_folder) if mask_folder and mask_folder.is_dir() else ():
    masks[path.stem].append(path)
  return [Record(path, defect, _find_mask(path, masks)) for path in images_in(folder)]


def _find_mask(image: Path, masks: Mapping[str, Sequence[Path]]) -> Path | None:
  """Find the mask of an image by name; prefer the image's suffix if several masks match."""
  for name in (f'{image.name}_mask', f'{image.stem}_mask', image.name, image.stem):
    if name in masks:
      return min(masks[name], key=lambda mask: mask.suffix.lower() != image.suffix.lower())
  return None


def images_in(folder: Path) -> list[Path]:
  """Return the image files in a folder, in natural order and without hidden ones."""
  return [
    path for path in _visible_entries(folder) if path.suffix.lower() in SUFFIXES and path.is_file()
  ]


def _find_images(directory: Path) -> list[Path]:
  return [
    *images_in(directory),
    *(path for folder in folders_in(directory) for path in _find_images(folder)),
  ]


def folders_in(directory: Path) -> list[Path]:
  """Return the subfolders of a folder, in natural order and without hidden ones."""
  return [path for path in _visible_entries(directory) if path.is_dir()]


def _visible_entries(directory: Path) -> list[Path]:
  entries = (path for path in directory.iterdir() if not path.name.startswith('.'))
  return sorted(entries, key=natural_sort_key)


def natural_sort_key(path: Path) -> tuple[list[str | int], str]:
  """Return a sort key that puts '2.png' before '10.png'."""
  # Text and digits alternate, so that sorting never compares a string with an integer.
  segments = re.split(r'(\d+)', path.name)
  return [int(segment) if i % 2 else segment for i, segment in enumerate(segments)], path.name
