"""The layout of a plain folder: good images, and a folder for each type of defect."""

from pathlib import Path

from uadjax.data import problems, records
from uadjax.data.layouts import scanning
from uadjax.data.records import Record


def fits(directory: Path) -> bool:
  """Any folder may be one."""
  return True


def splits(directory: Path) -> scanning.Found:
  """Normal images, here or in 'good' or 'normal'; any other folder is a type of defect."""
  folders = scanning.folders_in(directory)
  normal = [folder for folder in folders if folder.name.lower() in scanning.NORMAL]
  train = tuple(
    Record(path) for folder in (directory, *normal) for path in scanning.images_in(folder)
  )
  defects = [folder for folder in folders if folder not in normal]
  test = tuple(
    record for folder in defects for record in scanning.defect_records(folder, folder.name, None)
  )
  if train:
    return records.Splits(train, test), []
  told = (
    f'No normal images in {directory}; put them there, or into a folder {scanning.NORMAL[0]!r} or'
    f' {scanning.NORMAL[1]!r} in it, as {", ".join(scanning.SUFFIXES)}.'
  )
  if inner := [f.name for f in folders if (f / 'train').is_dir() or (f / 'train.txt').is_file()]:
    told = f'{directory} holds categories: set data.category to one of {inner}, or all.'
  return records.Splits(train, test), [problems.error('empty split', directory, told)]
