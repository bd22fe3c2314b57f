"""MVTec AD: one category as it was published, with masks in `ground_truth`."""

import functools
from pathlib import Path

from uadjax.data import image_io, layouts
from uadjax.data.convert import samples
from uadjax.data.records import Record
from uadjax.errors import DataError
from uadjax.system.progress import Track


def read(source: Path, track: Track) -> samples.Found:
  """Read a category, or the only one in a folder; all of test/ is held out, good images too."""
  if not (source / 'train').is_dir():
    names = [path.parent.name for path in sorted(source.glob('*/train'))]
    if not names:
      raise DataError(
        f"{source} is no category of MVTec AD: there is no folder 'train' in it, nor in a folder of"
        " it; a category holds 'train/good', 'test' and 'ground_truth'."
      )
    if len(names) > 1:
      raise DataError(f'{source} holds several categories; name one of them: {", ".join(names)}.')
    source = source / names[0]
  splits = layouts.load(source, layout='mvtec')
  jobs = [
    functools.partial(_sample, record, f'{split}/{record.path.name}', split == 'test')
    for split, records in splits._asdict().items()
    for record in records
  ]
  return samples.Found(*samples.collect(jobs, track, 'Reading masks'))


def _sample(record: Record, name: str, held_out: bool) -> samples.Sample:
  if not record.anomalous:
    return samples.good(name, record.path, held_out)
  if record.mask is None:
    raise DataError(f'{record.path}: no mask in ground_truth/{record.defect}; draw one.')
  mask = image_io.read_mask(record.mask)
  samples.fits(record.path, f'{record.mask}: its image', *mask.shape)
  return samples.drawn(name, record.path, [samples.Shape(record.defect, mask)], held_out)
