"""Layout of a plain folder: good images, and a subfolder for each type of defect."""

from pathlib import Path

from uadjax.data import problems, records
from uadjax.data.layouts import scanning
from uadjax.data.records import Record


def detect(directory: Path) -> bool:
  """Return True, because any folder may have this layout."""
  return True


def read_splits(directory: Path) -> scanning.SplitsAndProblems:
  """List the images of a plain folder.

  Normal images lie in the folder itself or in a subfolder 'good', 'normal' or 'ok'; any other
  subfolder contains the images of one type of defect.
  """
  subfolders = scanning.folders_in(directory)
  normal_folders = [
    folder for folder in subfolders if folder.name.lower() in scanning.NORMAL_FOLDER_NAMES
  ]
  train = tuple(
    Record(path) for folder in (directory, *normal_folders) for path in scanning.images_in(folder)
  )
  defect_folders = [folder for folder in subfolders if folder not in normal_folders]
  test = tuple(
    record
    for folder in defect_folders
    for record in scanning.defect_records(folder, folder.name, None)
  )
  if train:
    return records.Splits(train, test), []
  message = (
    f'No normal images in {directory}; put {", ".join(scanning.SUFFIXES)} files there, or into a '
    f'subfolder {" or ".join(map(repr, scanning.NORMAL_FOLDER_NAMES[:2]))}.'
  )
  if category_names := [
    f.name for f in subfolders if (f / 'train').is_dir() or (f / 'train.txt').is_file()
  ]:
    message = (
      f'{directory} contains categories; set data.category to one of {category_names}, or to all.'
    )
  return records.Splits(train, test), [problems.error('empty split', directory, message)]
