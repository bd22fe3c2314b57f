"""Reader of MVTec AD: one category as published, with masks in `ground_truth`."""

import functools
from pathlib import Path

from uadjax.data import image_io, layouts
from uadjax.data.convert import samples
from uadjax.data.records import Record
from uadjax.errors import DataError
from uadjax.system.progress import Progress


def read(source: Path, progress: Progress) -> samples.SourceContents:
  """Read a category, or the only one in a folder; hold out all of test/, including good images.

  Raises:
    DataError: the folder is not a category and does not contain exactly one.
  """
  if not (source / 'train').is_dir():
    categories = [path.parent for path in sorted(source.glob('*/train'))]
    if not categories:
      raise DataError(
        f"{source} is not a category of MVTec AD: neither it nor a subfolder has a folder 'train';"
        " a category contains 'train/good', 'test' and 'ground_truth'."
      )
    if len(categories) > 1:
      names = ', '.join(path.name for path in categories)
      raise DataError(f'{source} contains several categories; name one of them: {names}.')
    source = categories[0]
  jobs = [
    functools.partial(_read_sample, record, f'{split}/{record.path.name}', split == 'test')
    for split, records in layouts.load(source, layout='mvtec')._asdict().items()
    for record in records
  ]
  return samples.SourceContents(*samples.collect_samples(jobs, progress))


def _read_sample(record: Record, name: str, held_out: bool) -> samples.Sample:
  path, defect, mask_path = record
  shapes = []
  if record.is_anomalous:
    if mask_path is None:
      raise DataError(f'{path}: no mask in ground_truth/{defect}; add one.')
    mask = image_io.read_mask(mask_path)
    samples.require_matching_size(path, f'{mask_path}: its image', *mask.shape)
    shapes = [samples.Shape(defect, mask)]
  return samples.sample_from_shapes(name, path, shapes, held_out)
