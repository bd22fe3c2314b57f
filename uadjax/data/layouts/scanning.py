"""Functions that list images, masks and folders in natural order, shared by the layouts."""

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
import re

from uadjax.data.problems import Problem
from uadjax.data.records import GOOD, Record, Splits

# Suffixes of images and names of folders of normal images, both in lower case; any case matches.
SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
NORMAL_FOLDER_NAMES = (GOOD, 'normal', 'ok')

SplitsAndProblems = tuple[Splits, list[Problem]]


def find_files(directory: Path, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
  """Return the files with some suffixes in a folder and, recursively, in its subfolders."""
  # A link to a folder above would be followed without end.
  resolved = directory.resolve()
  folders = [f for f in folders_in(directory) if not resolved.is_relative_to(f.resolve())]
  nested = (path for f in folders for path in find_files(f, suffixes))
  return [*files_in(directory, suffixes), *nested]


def files_in(directory: Path, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
  """Return the files in a folder with some suffixes, in natural order and without hidden ones."""
  return [p for p in _visible(directory) if p.suffix.lower() in suffixes and p.is_file()]


def folders_in(directory: Path) -> list[Path]:
  """Return the subfolders of a folder, in natural order and without hidden ones."""
  return [path for path in _visible(directory) if path.is_dir()]


def is_normal(folder_name: str) -> bool:
  """Return whether a folder of this name contains normal images."""
  return folder_name.lower() in NORMAL_FOLDER_NAMES


def normal_folders(directory: Path) -> list[Path]:
  """Return the folders of the normal images of a plain folder: itself and, say, 'good'."""
  return [directory, *(f for f in folders_in(directory) if is_normal(f.name))]


def has_training_set(directory: Path) -> bool:
  """Return whether a folder has training images in the layout 'mvtec' or 'seglist'."""
  return (directory / 'train').is_dir() or (directory / 'train.txt').is_file()


def test_records(folder: Path, mask_folder: Path | None) -> tuple[Record, ...]:
  """Return records of the images in the subfolders of a folder, each named after a defect.

  Args:
    folder: folder of the subfolders; the name of one of normal images counts as 'good'.
    mask_folder: folder of subfolders with their masks; None if there are no masks.
  """
  records = []
  for subfolder in folders_in(folder):
    defect = GOOD if is_normal(subfolder.name) else subfolder.name
    masks = collections.defaultdict(list)
    for path in files_in(mask_folder / subfolder.name) if mask_folder else ():
      masks[path.stem].append(path)
    records += [Record(path, defect, _find_mask(path, masks)) for path in files_in(subfolder)]
  return tuple(records)


def _find_mask(image: Path, masks: Mapping[str, Sequence[Path]]) -> Path | None:
  """Find the mask of an image by name; prefer the image's suffix if several masks match."""
  for name in (f'{image.name}_mask', f'{image.stem}_mask', image.name, image.stem):
    if name in masks:
      return min(masks[name], key=lambda mask: mask.suffix.lower() != image.suffix.lower())
  return None


def _visible(directory: Path) -> list[Path]:
  """Return the entries of a folder that are not hidden; none if it does not exist."""
  entries = directory.iterdir() if directory.is_dir() else ()
  return sorted((p for p in entries if not p.name.startswith('.')), key=natural_sort_key)


def natural_sort_key(path: Path) -> tuple[list[str | int], str]:
  """Return a sort key that puts '2.png' before '10.png'."""
  # Text and digits alternate, so that sorting never compares a string with an integer.
  segments = re.split(r'(\d+)', path.name)
  return [int(segment) if i % 2 else segment for i, segment in enumerate(segments)], path.name
