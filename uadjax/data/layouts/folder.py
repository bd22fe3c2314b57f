"""The layout of a plain folder: good images, and a folder for each type of defect."""

from pathlib import Path

from uadjax.data import problems, records
from uadjax.data.layouts import scanning
from uadjax.data.records import Record


def detect(directory: Path) -> bool:
  """Any folder may be one."""
  return True


def read_splits(directory: Path) -> scanning.SplitsAndProblems:
  """Normal images, here or in 'good' or 'normal'; any other folder is a type of defect."""
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
    f'No normal images in {directory}; put them there, or into a folder {scanning.NORMAL_FOLDER_NAMES[0]!r} or'
    f' {scanning.NORMAL_FOLDER_NAMES[1]!r} in it, as {", ".join(scanning.SUFFIXES)}.'
  )
  if category_names := [
    f.name for f in subfolders if (f / 'train').is_dir() or (f / 'train.txt').is_file()
  ]:
    message = f'{directory} holds categories: set data.category to one of {category_names}, or all.'
  return records.Splits(train, test), [problems.error('empty split', directory, message)]
