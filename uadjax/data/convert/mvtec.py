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
    categories = [path.parent.name for path in sorted(source.glob('*/train'))]
    if not categories:
      raise DataError(
        f"{source} is not a category of MVTec AD: neither it nor a subfolder has a folder 'train';"
        " a category contains 'train/good', 'test' and 'ground_truth'."
      )
    if len(categories) > 1:
      raise DataError(
        f'{source} contains several categories; name one of them: {", ".join(categories)}.'
      )
    source = source / categories[0]
  splits = layouts.load(source, layout='mvtec')
  jobs = [
    functools.partial(_read_sample, record, f'{split}/{record.path.name}', split == 'test')
    for split, records in splits._asdict().items()
    for record in records
  ]
  return samples.SourceContents(*samples.collect_samples(jobs, progress, 'Reading masks'))


def _read_sample(record: Record, name: str, held_out: bool) -> samples.Sample:
  if not record.is_anomalous:
    return samples.good_sample(name, record.path, held_out)
  if record.mask is None:
    raise DataError(f'{record.path}: no mask in ground_truth/{record.defect}; add one.')
  mask = image_io.read_mask(record.mask)
  samples.require_matching_size(record.path, f'{record.mask}: its image', *mask.shape)
  return samples.sample_from_shapes(
    name, record.path, [samples.Shape(record.defect, mask)], held_out
  )
