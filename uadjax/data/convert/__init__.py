"""What labeling tools write becomes a data set in the layout `seglist` of PaddleX.

Images are copied byte for byte to images/<type of defect>/, masks of 0 and 255 are written to
annotations/, and train.txt and val.txt list both, separated by a tab. Good images are learned from,
but for those that the source itself keeps from training; images with defects never are.
"""

from collections.abc import Callable, Sequence
import os
from pathlib import Path
import re
import shutil
from typing import NamedTuple

from uadjax.data.convert import coco, labelme, mvtec, samples, voc
from uadjax.errors import ConfigError, DataError, UnknownName
from uadjax.system import files
from uadjax.system.progress import Track

_READERS: dict[str, Callable[[Path, Track], samples.Found]] = {
  'COCO': coco.read,
  'LabelMe': labelme.read,
  'MVTec_AD': mvtec.read,
  'VOC': voc.read,
}
_SHOWN = 20  # Problems in one message.


class Summary(NamedTuple):
  """What a conversion made.

  Attributes:
    train: number of images to learn from.
    val: number of images to test on.
    types: number of images by type of defect, 'good' among them.
    notes: what a user should know of it.
  """

  train: int
  val: int
  types: dict[str, int]
  notes: tuple[str, ...]


def convert(source: Path, kind: str, target: Path, track: Track) -> Summary:
  """Convert a folder; the source stays as it is, and the target is whole or not there.

  Args:
    source: folder with images and labels.
    kind: 'LabelMe', 'VOC', 'COCO' or 'MVTec_AD', in any case.
    target: a folder that is empty or not there.
    track: shows progress.

  Raises:
    DataError: with up to twenty of the problems of the source; nothing has been written then.
    ConfigError: the target cannot be written to.
    UnknownName: there is no such kind.
  """
  names = {name.lower(): name for name in _READERS}
  if kind.lower() not in names:
    raise UnknownName(
      f'Unknown check.convert.src_dataset_type {kind!r}; choose from {[*_READERS]}.'
    )
  source, target = source.resolve(), target.resolve()
  _refuse(source, target)
  found = _READERS[names[kind.lower()]](source, track)
  entries = _entries(found.samples)
  problems = [*found.problems, *_unlistable(entries)]
  if not entries and not problems:
    problems = [f'No images of {names[kind.lower()]} in {source}.']
  if problems:
    listing = '\n  '.join(problems[:_SHOWN])
    more = f'\n  and {len(problems) - _SHOWN} more' if len(problems) > _SHOWN else ''
    many = f'{len(problems)} problems' if len(problems) > 1 else 'one problem'
    raise DataError(f'{source} cannot be converted; {many}:\n  {listing}{more}')
  lists: dict[str, list[str]] = {'train': [], 'val': []}
  with files.replacing(target) as fresh:
    for entry in track(entries, len(entries), 'Writing'):
      _write(entry, fresh)
      learned = entry.sample.defect == samples.GOOD and not entry.sample.held_out
      lists['train' if learned else 'val'].append(f'{entry.image}\t{entry.mask}\n')
    for name, lines in lists.items():
      files.write_text(fresh / f'{name}.txt', ''.join(lines))
  return _summary(found, lists)


class _Entry(NamedTuple):
  sample: samples.Sample
  image: str
  mask: str


def _refuse(source: Path, target: Path) -> None:
  if not source.is_dir():
    raise DataError(f'No folder {source}; it must hold the data set to convert.')
  if target.is_relative_to(source):
    raise ConfigError(f'check.convert.output {target} lies in {source}, which stays as it is.')
  if target.exists() and (not target.is_dir() or any(target.iterdir())):
    raise ConfigError(f'check.convert.output {target} is not empty; name another folder.')


def _entries(found: Sequence[samples.Sample]) -> list[_Entry]:
  """Where images and masks go, sorted; what all images share of their path is dropped."""
  shared = os.path.commonpath([Path(sample.name).parent for sample in found]) if found else ''
  names = [
    f'{_folder(sample.defect)}/{Path(sample.name).relative_to(shared).as_posix()}'
    for sample in found
  ]
  masks = [samples.without_suffix(name) for name in names]
  if len({mask.casefold() for mask in masks}) < len(masks):
    masks = names  # Some differ in nothing but their suffix.
  entries = (
    _Entry(sample, f'images/{name}', f'annotations/{mask}.png')
    for sample, name, mask in zip(found, names, masks, strict=True)
  )
  return sorted(entries, key=lambda entry: entry.image)


def _folder(defect: str) -> str:
  """A type of defect as the name of a folder on any system."""
  plain = re.sub(r'[\\/:*?"<>|\x00-\x1f]', '_', defect)
  short = plain.encode()[:100].decode(errors='ignore')  # No system takes more than 255 bytes.
  return short.strip(' .') or 'defect'


def _unlistable(entries: Sequence[_Entry]) -> list[str]:
  """Lines for images that are there twice, or whose names would break a list."""
  problems: list[str] = []
  seen: dict[str, str] = {}
  for entry in entries:
    if re.search(r'[\t\r\n\v\f\x1c-\x1e\x85\u2028\u2029]', entry.image):
      problems.append(f'{entry.sample.name!r}: a tab or line break in its name; rename the image.')
    key = entry.image.casefold()
    if key in seen:
      problems.append(f'{entry.sample.name}: labeled twice, or of the same name as {seen[key]}.')
    seen[key] = entry.sample.name
  return problems


def _write(entry: _Entry, target: Path) -> None:
  image, mask = target / entry.image, target / entry.mask
  image.parent.mkdir(parents=True, exist_ok=True)
  mask.parent.mkdir(parents=True, exist_ok=True)
  if isinstance(entry.sample.image, bytes):
    image.write_bytes(entry.sample.image)
  else:
    shutil.copyfile(entry.sample.image, image)
  mask.write_bytes(entry.sample.mask)


def _summary(found: samples.Found, lists: dict[str, list[str]]) -> Summary:
  defects = sorted(_folder(sample.defect) for sample in found.samples)
  notes = list(found.notes)
  boxes = sum(sample.boxes for sample in found.samples)
  if boxes:
    notes.append(
      f'{boxes} defects are bounding boxes, which were filled: trust image metrics, for pixel'
      ' metrics count the good pixels in a box as defective.'
    )
  if set(defects) == {samples.GOOD}:
    notes.append('No label marks a defect: all images were taken for good.')
  if not lists['train']:
    notes.append('No good images to learn from: train.txt is empty.')
  counts = {defect: defects.count(defect) for defect in dict.fromkeys(defects)}
  return Summary(len(lists['train']), len(lists['val']), counts, tuple(notes))
