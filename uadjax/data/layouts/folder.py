"""Layout of a plain folder: good images, and a subfolder for each type of defect."""

from pathlib import Path

from uadjax.data import problems
from uadjax.data.layouts import scanning
from uadjax.data.records import Record, Splits


def read_splits(directory: Path) -> scanning.SplitsAndProblems:
  """List the images of a plain folder.

  Normal images lie in the folder itself or in a subfolder 'good', 'normal' or 'ok'; any other
  subfolder contains the images of one type of defect.
  """
  folders = scanning.normal_folders(directory)
  train = tuple(Record(path) for folder in folders for path in scanning.files_in(folder))
  test = tuple(r for r in scanning.test_records(directory, None) if r.is_anomalous)
  if train:
    return Splits(train, test), []
  suffixes, names = ', '.join(scanning.SUFFIXES), ' or '.join(scanning.NORMAL_FOLDER_NAMES)
  message = f'No normal images in {directory}; put {suffixes} files there, or in a folder {names}.'
  return Splits(train, test), [problems.error('empty split', directory, message)]
