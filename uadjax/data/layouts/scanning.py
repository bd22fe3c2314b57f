"""Images, masks and folders in a directory, in natural order: what several layouts need."""

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
import re

from uadjax.data import problems, records
from uadjax.data.problems import Problem
from uadjax.data.records import Record
from uadjax.errors import DataError

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')  # In any case.
NORMAL_FOLDER_NAMES = ('good', 'normal', 'ok')  # Names of a folder of normal images, in any case.


def find_images(directory: Path) -> list[Path]:
  """All images in a folder and the folders in it; DataError where there is none."""
  images = _find_images(directory)
  if not images:
    raise DataError(f'No images in or below {directory}; they must be {", ".join(SUFFIXES)}.')
  return images


SplitsAndProblems = tuple[records.Splits, list[Problem]]


def training_records(folder: Path) -> tuple[tuple[Record, ...], list[Problem]]:
  """Good images of a folder to learn from, and a problem where there is none."""
  images = images_in(folder) if folder.is_dir() else []
  if images:
    return tuple(Record(path) for path in images), []
  message = f'No images in {folder}; they must be {", ".join(SUFFIXES)}.'
  if not folder.is_dir():
    message = f'No folder {folder}; it must hold the normal images to learn from.'
  return (), [problems.error('empty split', folder, message)]


def defect_records(folder: Path, defect: str, mask_folder: Path | None) -> list[Record]:
  """Images of a folder that is called after a defect, with their masks from another."""
  defect = 'good' if defect.lower() in NORMAL_FOLDER_NAMES else defect
  masks = collections.defaultdict(list)
  for path in images_in(mask_folder) if mask_folder and mask_folder.is_dir() else ():
    masks[path.stem].append(path)
  return [Record(path, defect, _find_mask(path, masks)) for path in images_in(folder)]


def _find_mask(image: Path, masks: Mapping[str, Sequence[Path]]) -> Path | None:
  """Find a mask by name. Where images share a stem, a suffix tells whose it is, if one does."""
  for name in (f'{image.name}_mask', f'{image.stem}_mask', image.name, image.stem):
    if name in masks:
      return min(masks[name], key=lambda mask: mask.suffix.lower() != image.suffix.lower())
  return None


def images_in(folder: Path) -> list[Path]:
  """Image files in a folder, in natural order."""
  return [
    path for path in _visible_entries(folder) if path.suffix.lower() in SUFFIXES and path.is_file()
  ]


def _find_images(directory: Path) -> list[Path]:
  return [
    *images_in(directory),
    *(path for folder in folders_in(directory) for path in _find_images(folder)),
  ]


def folders_in(directory: Path) -> list[Path]:
  """Folders in a folder that are not hidden, in natural order."""
  return [path for path in _visible_entries(directory) if path.is_dir()]


def _visible_entries(directory: Path) -> list[Path]:
  entries = (path for path in directory.iterdir() if not path.name.startswith('.'))
  return sorted(entries, key=natural_sort_key)


def natural_sort_key(path: Path) -> tuple[list[str | int], str]:
  """What to sort by, so that '2.png' comes before '10.png'."""
  segments = re.split(r'(\d+)', path.name)  # Text and digits take turns: only like meets like.
  return [int(segment) if i % 2 else segment for i, segment in enumerate(segments)], path.name
