"""Layout of a plain folder: good images, and a subfolder for each type of defect."""

from collections.abc import Iterator
from pathlib import Path

from uadjax.data import problems
from uadjax.data.layouts import scanning, tree
from uadjax.data.records import GOOD, Record, Splits

_VALIDATION = tree.Tree(marker='', train='', validation=tree.VALIDATION)


def read_splits(directory: Path) -> scanning.SplitsAndProblems:
  """List the images of a plain folder.

  Good images lie directly in the folder, or in a subfolder 'good', 'normal' or 'ok' and its
  subfolders. Those of 'val', 'valid' or 'validation' are held out for calibration. Each other
  subfolder contains the images of a type of defect, unless it is named after masks, a date or its
  content, such as 'images'. The masks of a type of defect may lie in a subfolder of the folder of
  masks.
  """
  mask_folders = scanning.mask_folders_in(directory)
  mask_folder = next(filter(scanning.find_files, mask_folders), None)
  test = tuple(r for r in scanning.test_records(directory, mask_folder) if r.is_anomalous)
  train: tuple[Record, ...] = ()
  for folder in _good_folders(directory):
    folders = [] if folder == directory else scanning.mask_folders_in(folder)
    if mask_folder and folder != directory:
      folders.append(mask_folder / folder.relative_to(directory))
    if mask_folder and not test:
      # Masks that lie in one folder are those of the defective images, if there are any.
      folders.append(mask_folder)
    train += scanning.image_records(folder, GOOD, folders)
  issues = [*scanning.unnamed_defect_folders(scanning.folders_in(directory))]
  issues += scanning.photographs_in_mask_folders(mask_folders)
  if scanning.is_defective(directory.absolute().name) and scanning.files_in(directory):
    message = f'{directory} is named after defects, but its images count as good'
    hint = 'name a folder of good images, or the folder above'
    issues.append(problems.warning('defects in training', directory, f'{message}; {hint}.'))
  if train:
    return Splits((*train, *tree.validation_records(directory, _VALIDATION)), test), issues
  names = ' or '.join(scanning.NORMAL_FOLDER_NAMES)
  message = f'No normal images in {directory}; put images there, or in a folder {names}.'
  return Splits(train, test), [problems.error('empty split', directory, message), *issues]


def _good_folders(directory: Path) -> Iterator[Path]:
  """Yield the folder itself, and those of good images with their subfolders."""
  yield directory
  for folder in scanning.normal_folders(directory)[1:]:
    yield from tree.with_subfolders(folder)
