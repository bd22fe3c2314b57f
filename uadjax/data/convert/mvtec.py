"""Reader of MVTec AD: one category as published, with masks in `ground_truth`."""

from pathlib import Path

from uadjax.data import image_io, layouts
from uadjax.data.convert import outlines, samples
from uadjax.data.records import GOOD, Record
from uadjax.errors import DataError
from uadjax.system.progress import Progress


def read(source: Path, progress: Progress) -> samples.SourceContents:
  """Read a category, or the only one in a folder; hold out all images of test/ and validation/.

  Raises:
    DataError: the folder is not a category and does not contain exactly one.
  """
  is_category = (source / 'train').is_dir()
  categories = [source] if is_category else [path.parent for path in sorted(source.glob('*/train'))]
  if len(categories) != 1:
    names = ', '.join(path.name for path in categories)
    hint = f' It contains several; name one of them: {names}.' if names else ''
    message = f'{source} is not a category of MVTec AD with folders train, test and ground_truth'
    raise DataError(f'{message}.{hint}')
  splits, directory = layouts.load(categories[0], layout='mvtec'), categories[0]
  items = [(r, _name(r, directory), r.held_out) for r in splits.train]
  items += [(r, _name(r, directory), True) for r in splits.test]
  return samples.SourceContents(*samples.collect(_read_sample, items, progress))


def _name(record: Record, directory: Path) -> str:
  """Return the path of an image in a category, without the folder of its type of defect."""
  split, *folders, name = record.path.relative_to(directory).parts
  return '/'.join((split, *folders[1:], name))


def _read_sample(item: tuple[Record, str, bool]) -> samples.Sample:
  (path, defect, mask_path, *_), name, held_out = item
  masks = []
  if defect != GOOD:
    if mask_path is None:
      raise DataError(f'{path}: no mask in ground_truth/{defect}; add one.')
    masks = [(str(mask_path), mask_path)]

  def read_mask(mask_path: Path) -> samples.Shape:
    mask = image_io.read_mask(mask_path)
    samples.require_matching_size(path, 'its image', *mask.shape)
    return samples.Shape(defect, [outlines.Patch(0, 0, mask)])

  return samples.make_sample(name, path, masks, read_mask, held_out)
