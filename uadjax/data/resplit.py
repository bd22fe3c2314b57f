"""New random lists for a `seglist` dataset.

Good images are split at random; defective images always go to val.txt. The old lists are kept next
to the new ones as `*.bak`.
"""

from collections.abc import Sequence
import concurrent.futures
from pathlib import Path
import shutil
from typing import NamedTuple

from uadjax.data import image_io, problems, records
from uadjax.data.layouts import seglist
from uadjax.data.records import Record
from uadjax.errors import ConfigError, DataError
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
  directory: Path, train_percent: int, val_percent: int, seed: int, mask_threshold: int = 0
) -> Summary:
  """Split the images of train.txt and val.txt at random into two new lists.

  The result depends only on the images and the seed, not on the previous split.

  Args:
    directory: folder of the lists.
    train_percent: percentage of the good images that become training images.
    val_percent: percentage of the good images that become test images; the two sum to 100.
    seed: seed of the random split.
    mask_threshold: limit above which a mask value makes an image defective.

  Raises:
    ConfigError: the percentages are not positive integers that sum to 100.
    DataError: there are no lists, or a listed file cannot be read.
  """
  _validate_percentages(train_percent, val_percent)
  lines = _read_lists(directory)
  with concurrent.futures.ThreadPoolExecutor() as pool:
    has_defect = [*pool.map(lambda line: image_io.has_defect(line.mask, mask_threshold), lines)]
  defective = [line for line, is_defective in zip(lines, has_defect, strict=True) if is_defective]
  good = [
    Record(line.image, mask=line.mask)
    for line, is_defective in zip(lines, has_defect, strict=True)
    if not is_defective
  ]
  train_lines, val_lines = (
    [seglist.Line(record.path, record.mask) for record in chunk]
    for chunk in records.partition(good, (train_percent / 100, val_percent / 100), seed)
  )
  val_lines += defective
  # Both old lists are backed up before the first is replaced, and each list exists at all times.
  backups = [_back_up(directory / name) for name in _LISTS if (directory / name).is_file()]
  for name, split_lines in zip(_LISTS, (train_lines, val_lines), strict=True):
    files.write_text(directory / name, _format_list(split_lines, directory))
  return Summary(len(train_lines), len(val_lines), len(defective), tuple(backups))


def _validate_percentages(train_percent: int, val_percent: int) -> None:
  # isinstance() would accept bool.
  are_integers = all(type(percent) is int for percent in (train_percent, val_percent))
  if not are_integers or min(train_percent, val_percent) <= 0 or train_percent + val_percent != 100:
    raise ConfigError(
      f'check.split.train_percent={train_percent} and check.split.val_percent={val_percent} must be'
      ' integers above 0 that sum to 100, such as 80 and 20.'
    )


def _read_lists(directory: Path) -> list[seglist.Line]:
  """Return the images of both lists, each once, sorted by path.

  Raises:
    DataError: there are no lists, a listed file cannot be used, or an image has two masks.
  """
  list_files = [directory / name for name in _LISTS if (directory / name).is_file()]
  if not list_files:
    raise DataError(
      f'{directory} has neither train.txt nor val.txt, and only the layout seglist can be split; '
      'convert other data first, with check.convert.enable=True.'
    )
  lines: dict[Path, seglist.Line] = {}
  all_problems: list[problems.Problem] = []
  for file in list_files:
    file_lines, file_problems = seglist.read_list(file)
    all_problems += file_problems
    for line in file_lines:
      if lines.setdefault(line.image, line).mask != line.mask:
        masks = f'{lines[line.image].mask} and {line.mask}'
        message = f'{line.image} is listed with two masks, {masks}; delete one of the lines.'
        all_problems.append(problems.error('listed twice', line.image, message))
  problems.raise_errors(all_problems)
  return [lines[image] for image in sorted(lines)]


def _back_up(file: Path) -> str:
  """Copy a list to the first free name of .bak, .bak.1, .bak.2 …, and return that name."""
  backup, suffix = file.with_name(f'{file.name}.bak'), 0
  while backup.exists():
    suffix += 1
    backup = file.with_name(f'{file.name}.bak.{suffix}')
  shutil.copyfile(file, backup)
  return backup.name


def _format_list(lines: Sequence[seglist.Line], directory: Path) -> str:
  """Format lines as a list, with a tab even without a mask, because names may contain spaces."""
  return ''.join(
    f'{_relative_posix(line.image, directory)}\t{_relative_posix(line.mask, directory)}\n'
    for line in lines
  )


def _relative_posix(path: Path | None, directory: Path) -> str:
  return path.relative_to(directory).as_posix() if path else ''
