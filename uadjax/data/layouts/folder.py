"""Layout of a plain folder: good images, and a subfolder for each type of defect."""

from pathlib import Path

from uadjax.data import problems
from uadjax.data.layouts import scanning, tree
from uadjax.data.records import GOOD, Record, Splits

_VALIDATION = tree.Tree(marker='', train='', validation=tree.VALIDATION)


def read_splits(directory: Path) -> scanning.SplitsAndProblems:
  """List the images of a plain folder.

  Normal images lie in the folder itself or in a subfolder 'good', 'normal' or 'ok'; any other
  subfolder contains the images of one type of defect, or is named as one of masks. The masks of
  each type of defect may lie in a subfolder of its name. Good images of a subfolder 'val', 'valid'
  or 'validation' are held out for calibration.
  """
  mask_folders = scanning.mask_folders_in(directory)
  mask_folder = next(filter(scanning.find_files, mask_folders), None)
  test = tuple(r for r in scanning.test_records(directory, mask_folder) if r.is_anomalous)
  train: tuple[Record, ...] = ()
  for folder in scanning.normal_folders(directory):
    folders = [] if folder == directory else scanning.mask_folders_in(folder)
    if mask_folder:
      # Masks that lie in one folder are those of the defective images, if there are any.
      folders += [mask_folder / folder.name, *([] if test else [mask_folder])]
    train += scanning.image_records(folder, GOOD, folders)
  if train:
    return Splits((*train, *tree.validation_records(directory, _VALIDATION)), test), []
  names = ' or '.join(scanning.NORMAL_FOLDER_NAMES)
  message = f'No normal images in {directory}; put images there, or in a folder {names}.'
  return Splits(train, test), [problems.error('empty split', directory, message)]
