"""The lists of a `seglist` data set, drawn anew.

Good images are shared out at random; those with a defect go to val.txt, always. The old lists are
kept beside the new ones as `*.bak`.
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
  """What was drawn.

  Attributes:
    train: number of images to learn from.
    val: number of images to test on.
    defective: how many of these show a defect.
    backups: names of the files that hold the old lists.
  """

  train: int
  val: int
  defective: int
  backups: tuple[str, ...]


def resplit(
  directory: Path, train_percent: int, val_percent: int, seed: int, mask_threshold: int = 0
) -> Summary:
  """Share the images of train.txt and val.txt out again.

  The outcome depends on the images and the seed alone, not on how they were shared out before.

  Args:
    directory: folder of the lists.
    train_percent: how many of the good images are learned from.
    val_percent: how many of the good images are tested on; the two sum to 100.
    seed: decides which image falls where.
    mask_threshold: an image is defective where its mask has a value above it.

  Raises:
    ConfigError: the percentages are not positive integers that sum to 100.
    DataError: there are no such lists, or what they name cannot be read.
  """
  _check(train_percent, val_percent)
  lines = _read(directory)
  with concurrent.futures.ThreadPoolExecutor() as pool:
    shows = [*pool.map(lambda line: image_io.shows_defect(line.mask, mask_threshold), lines)]
  defective = [line for line, shown in zip(lines, shows, strict=True) if shown]
  good = [
    Record(line.image, mask=line.mask)
    for line, shown in zip(lines, shows, strict=True)
    if not shown
  ]
  learned, tested = (
    [seglist.Line(record.path, record.mask) for record in part]
    for part in records.split(good, (train_percent / 100, val_percent / 100), seed)
  )
  tested += defective
  # Both old lists are safe before the first is replaced, and there is a list at every moment.
  backups = [_keep(directory / name) for name in _LISTS if (directory / name).is_file()]
  for name, chosen in zip(_LISTS, (learned, tested), strict=True):
    files.write_text(directory / name, _text(chosen, directory))
  return Summary(len(learned), len(tested), len(defective), tuple(backups))


def _check(train_percent: int, val_percent: int) -> None:
  whole = all(type(percent) is int for percent in (train_percent, val_percent))  # bool is no int.
  if not whole or min(train_percent, val_percent) <= 0 or train_percent + val_percent != 100:
    raise ConfigError(
      f'check.split.train_percent={train_percent} and check.split.val_percent={val_percent} must be'
      ' integers above 0 that sum to 100, such as 80 and 20.'
    )


def _read(directory: Path) -> list[seglist.Line]:
  """The images of both lists, each once, in the order of their paths."""
  present = [directory / name for name in _LISTS if (directory / name).is_file()]
  if not present:
    raise DataError(
      f'{directory} has neither train.txt nor val.txt, and only the layout seglist is split;'
      ' convert other data first, with check.convert.enable=True.'
    )
  lines: dict[Path, seglist.Line] = {}
  wrong: list[problems.Problem] = []
  for file in present:
    found, more = seglist.read(file)
    wrong += more
    for line in found:
      if lines.setdefault(line.image, line).mask != line.mask:
        masks = f'{lines[line.image].mask} and {line.mask}'
        told = f'{line.image} is listed with two masks, {masks}; keep one line of it.'
        wrong.append(problems.error('listed twice', line.image, told))
  problems.refuse(wrong)
  return [lines[image] for image in sorted(lines)]


def _keep(file: Path) -> str:
  """Copy a list to the first of .bak, .bak.1, .bak.2 … that is free."""
  copy, number = file.with_name(f'{file.name}.bak'), 0
  while copy.exists():
    number += 1
    copy = file.with_name(f'{file.name}.bak.{number}')
  shutil.copyfile(file, copy)
  return copy.name


def _text(lines: Sequence[seglist.Line], directory: Path) -> str:
  """A list. The tab is there even without a mask, for names may hold spaces."""
  return ''.join(
    f'{_relative(line.image, directory)}\t{_relative(line.mask, directory)}\n' for line in lines
  )


def _relative(path: Path | None, directory: Path) -> str:
  return path.relative_to(directory).as_posix() if path else ''
