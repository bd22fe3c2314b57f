"""Conversion of labeling tools' files to a dataset in the layout `seglist` of PaddleX.

Images are copied byte for byte to images/<type of defect>/, masks of 0 and 255 are written to
annotations/, and train.txt and val.txt list both, separated by a tab. Good images become training
images, except those that the source itself holds out; defective images never do.
"""

import collections
from collections.abc import Callable, Sequence
import os
from pathlib import Path
import re
import shutil
from typing import NamedTuple, TypeAlias

from uadjax.data import problems as dataset_problems
from uadjax.data.convert import coco, labelme, mvtec, samples, voc
from uadjax.data.convert.images import strip_suffix
from uadjax.data.records import GOOD
from uadjax.errors import ConfigError, DataError, UnknownName
from uadjax.system import files
from uadjax.system.progress import Progress

_READERS: dict[str, Callable[[Path, Progress], samples.SourceContents]] = {
  'COCO': coco.read,
  'LabelMe': labelme.read,
  'MVTec_AD': mvtec.read,
  'VOC': voc.read,
}
_OutputEntry: TypeAlias = tuple[samples.Sample, str, str]  # With the paths of image and mask.
_MAX_LISTED_PROBLEMS = 20  # Problems that one message lists.


class Summary(NamedTuple):
  """Sizes of a converted dataset, and notes for the user.

  Attributes:
    num_train: number of training images.
    num_val: number of test images.
    num_per_defect: number of images per type of defect, including 'good'.
    notes: sentences that the user should read.
  """

  num_train: int
  num_val: int
  num_per_defect: dict[str, int]
  notes: tuple[str, ...]


def convert(source: Path, source_format: str, target: Path, progress: Progress) -> Summary:
  """Convert a folder of labeled images to a seglist; write the whole target or nothing.

  The source is not changed.

  Args:
    source: folder with images and labels.
    source_format: 'LabelMe', 'VOC', 'COCO' or 'MVTec_AD', in any case.
    target: folder that is empty or does not exist.
    progress: wrapper that shows progress.

  Raises:
    DataError: the source has problems, up to twenty of which the message lists.
    ConfigError: the target lies in the source or is not empty.
    UnknownName: there is no format of that name.
  """
  read = next((_READERS[n] for n in _READERS if n.lower() == source_format.lower()), None)
  if not read:
    raise UnknownName(f'Unknown label format {source_format!r}; choose from {[*_READERS]}.')
  source, target = source.resolve(), target.resolve()
  require_convertible(source, target)
  contents = read(source, progress)
  entries = _plan_entries(contents.samples)
  problems = [*contents.problems, *_listing_problems(entries)]
  if not entries and not problems:
    problems = [f'No {source_format} images in {source}.']
  if problems:
    count = f'{len(problems)} problems' if len(problems) > 1 else 'one problem'
    listing = dataset_problems.join_messages(problems, _MAX_LISTED_PROBLEMS)
    raise DataError(f'Cannot convert {source}; {count}:\n  {listing}')
  files.announce_size('the converted dataset', target, sum(map(_num_bytes, contents.samples)))
  train, val = [], []
  with files.atomic_directory(target) as folder:
    for sample, image_path, mask_path in progress(entries, len(entries), 'Writing'):
      for path in (folder / image_path, folder / mask_path):
        path.parent.mkdir(parents=True, exist_ok=True)
      if isinstance(sample.image, bytes):
        (folder / image_path).write_bytes(sample.image)
      else:
        shutil.copyfile(sample.image, folder / image_path)
      (folder / mask_path).write_bytes(sample.mask)
      is_training = sample.defect == GOOD and not sample.held_out
      (train if is_training else val).append(f'{image_path}\t{mask_path}\n')
    files.write_text(folder / 'train.txt', ''.join(train))
    files.write_text(folder / 'val.txt', ''.join(val))
  return _summarize(contents, len(train), len(val))


def require_convertible(source: Path, target: Path) -> None:
  """Raise an error unless `source` exists and `target` is a new or empty folder outside it."""
  if not source.is_dir():
    raise DataError(f'No folder {source}; it must contain the dataset to convert.')
  if target.is_relative_to(source):
    message = f'check.convert.output {target} lies in {source}, which must not change'
    raise ConfigError(f'{message}; name another folder.')
  if target.exists() and (not target.is_dir() or any(target.iterdir())):
    raise ConfigError(f'check.convert.output {target} is not empty; name another folder.')


def _num_bytes(sample: samples.Sample) -> int:
  """Return the size of the files that a sample becomes."""
  image = sample.image
  return len(sample.mask) + (len(image) if isinstance(image, bytes) else image.stat().st_size)


def _plan_entries(source_samples: Sequence[samples.Sample]) -> list[_OutputEntry]:
  """Choose the paths of images and masks, sorted, without the part that all sources share."""
  parents = [Path(sample.name).parent for sample in source_samples]
  shared_parent = os.path.commonpath(parents) if parents else ''
  paths = [
    f'{_folder_name(sample.defect)}/{Path(sample.name).relative_to(shared_parent).as_posix()}'
    for sample in source_samples
  ]
  stems = [strip_suffix(path) for path in paths]
  if len({stem.casefold() for stem in stems}) < len(stems):
    stems = paths  # Some images differ only in their suffix, so masks keep it.
  image_paths = [f'images/{path}' for path in paths]
  mask_paths = [f'annotations/{stem}.png' for stem in stems]
  entries = zip(source_samples, image_paths, mask_paths, strict=True)
  return sorted(entries, key=lambda entry: entry[1])


def _folder_name(defect: str) -> str:
  """Return a folder name for a type of defect that is valid on every operating system."""
  safe_name = re.sub(r'[\\/:*?"<>|\x00-\x1f]', '_', defect)
  # File systems allow at most 255 bytes per name.
  return safe_name.encode()[:100].decode(errors='ignore').strip(' .') or 'defect'


def _listing_problems(entries: Sequence[_OutputEntry]) -> list[str]:
  """Return messages for images that occur twice, or whose names a list cannot contain."""
  problems: list[str] = []
  name_by_key: dict[str, str] = {}
  for sample, path, _ in entries:
    if re.search(r'[\t\r\n\v\f\x1c-\x1e\x85\u2028\u2029]', path):
      problems.append(f'{sample.name!r}: the name has a tab or line break; rename the image.')
    if other := name_by_key.get(path.casefold()):
      message = f'{sample.name}: labeled twice, or its name equals that of {other} except for case'
      problems.append(f'{message}; rename one image or delete one of the labels.')
    name_by_key[path.casefold()] = sample.name
  return problems


def _summarize(contents: samples.SourceContents, num_train: int, num_val: int) -> Summary:
  defects = sorted(_folder_name(sample.defect) for sample in contents.samples)
  remarks = [remark for sample in contents.samples for remark in sample.remarks]
  notes = [*contents.notes, *samples.summarize([*contents.remarks, *remarks])]
  if set(defects) == {GOOD}:
    notes.append('No label marks a defect: all images count as good.')
  if not num_train:
    notes.append('There are no good training images: train.txt is empty.')
  return Summary(num_train, num_val, dict(collections.Counter(defects)), tuple(notes))
