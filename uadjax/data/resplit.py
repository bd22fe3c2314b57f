"""New random lists for a `seglist` dataset.

Good images are split at random; defective images always go to val.txt. The old lists are kept next
to the new ones as `*.bak`.
"""

from collections.abc import Sequence
import itertools
from pathlib import Path
import shutil
from typing import NamedTuple

from uadjax.data import image_io, layouts, problems, records as record_types
from uadjax.data.layouts import seglist
from uadjax.data.records import Record
from uadjax.errors import DataError
from uadjax.system import files

_LISTS = ('train.txt', 'val.txt')


class Summary(NamedTuple):
  """Sizes of the new lists.

  Attributes:
    train: number of training images.
    val: number of test images.
    defective: number of test images with a defect.
    backups: names of the files with the old lists.
  """

  train: int
  val: int
  defective: int
  backups: tuple[str, ...]


def resplit(
  directory: Path, train_percent: int, seed: int, mask_reading: str = image_io.NONZERO
) -> Summary:
  """Split the images of train.txt and val.txt at random into two new lists.

  The result depends only on the images and the seed, not on the previous split.

  Args:
    directory: folder of the lists.
    train_percent: percentage of the good images that become training images, above 0 and below
      100; the others become test images.
    seed: seed of the random split.
    mask_reading: how masks mark defects, see `image_io.parse_mask_reading`.

  Raises:
    DataError: there are no lists, or a listed file cannot be read.
  """
  old_lists = [directory / name for name in _LISTS if (directory / name).is_file()]
  if not old_lists:
    message = f'{directory} has neither train.txt nor val.txt; only the layout seglist can be split'
    raise DataError(f'{message}; convert other data first, with check.convert.enable=True.')
  records = _read_lists(old_lists)
  defective_masks = layouts.defective_masks(records, mask_reading)
  good = [r for r in records if r.mask not in defective_masks]
  defective = [r for r in records if r.mask in defective_masks]
  train, val = record_types.partition(good, (train_percent / 100, 1 - train_percent / 100), seed)
  val = (*val, *defective)
  # Both old lists are backed up before the first is replaced, and each list exists at all times.
  backups = tuple(_back_up(path) for path in old_lists)
  for name, split in zip(_LISTS, (train, val), strict=True):
    files.write_text(directory / name, ''.join(_format_line(r, directory) for r in split))
  return Summary(len(train), len(val), len(defective), backups)


def _read_lists(list_files: Sequence[Path]) -> list[Record]:
  """Return the images of all lists, each once, sorted by path.

  Raises:
    DataError: a listed file cannot be used, or an image has two masks.
  """
  record_by_path: dict[Path, Record] = {}
  issues: list[problems.Problem] = []
  for file in list_files:
    records, list_issues = seglist.read_list(file)
    issues += list_issues
    for path, _, mask, *_ in records:
      first_mask = record_by_path.setdefault(path, Record(path, mask=mask)).mask
      if first_mask != mask:
        message = f'{path} is listed with two masks, {first_mask} and {mask}; delete one line.'
        issues.append(problems.error('listed twice', path, message))
  problems.raise_errors(issues)
  return [record_by_path[path] for path in sorted(record_by_path)]


def _back_up(file: Path) -> str:
  """Copy a list to the first free name of .bak, .bak.1, .bak.2 …, and return that name."""
  suffixes = itertools.chain(['.bak'], (f'.bak.{number}' for number in itertools.count(1)))
  backups = (file.with_name(f'{file.name}{suffix}') for suffix in suffixes)
  backup = next(path for path in backups if not path.exists())
  return shutil.copyfile(file, backup).name


def _format_line(record: Record, directory: Path) -> str:
  """Format a line of a list, with a tab even without a mask, because names may contain spaces."""
  mask = record.mask.relative_to(directory).as_posix() if record.mask else ''
  return f'{record.path.relative_to(directory).as_posix()}\t{mask}\n'
