"""Conversion of labeling tools' files to a dataset in the layout `seglist` of PaddleX.

Images are copied byte for byte to images/<type of defect>/, masks of 0 and 255 are written to
annotations/, and train.txt and val.txt list both, separated by a tab. Good images become training
images, except those that the source itself holds out; defective images never do.
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
from uadjax.system.progress import Progress

_READERS: dict[str, Callable[[Path, Progress], samples.SourceContents]] = {
  'COCO': coco.read,
  'LabelMe': labelme.read,
  'MVTec_AD': mvtec.read,
  'VOC': voc.read,
}
_MAX_LISTED_PROBLEMS = 20  # Problems that one message lists.


class ConversionSummary(NamedTuple):
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


def convert(
  source: Path, source_format: str, target: Path, progress: Progress
) -> ConversionSummary:
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
  formats_by_lowercase = {name.lower(): name for name in _READERS}
  if source_format.lower() not in formats_by_lowercase:
    raise UnknownName(
      f'Unknown check.convert.src_dataset_type {source_format!r}; choose from {[*_READERS]}.'
    )
  source, target = source.resolve(), target.resolve()
  require_convertible(source, target)
  contents = _READERS[formats_by_lowercase[source_format.lower()]](source, progress)
  entries = _plan_entries(contents.samples)
  problems = [*contents.problems, *_listing_problems(entries)]
  if not entries and not problems:
    problems = [f'No {formats_by_lowercase[source_format.lower()]} images in {source}.']
  if problems:
    listing = '\n  '.join(problems[:_MAX_LISTED_PROBLEMS])
    omitted_line = (
      f'\n  and {len(problems) - _MAX_LISTED_PROBLEMS} more'
      if len(problems) > _MAX_LISTED_PROBLEMS
      else ''
    )
    problem_count = f'{len(problems)} problems' if len(problems) > 1 else 'one problem'
    raise DataError(f'Cannot convert {source}; {problem_count}:\n  {listing}{omitted_line}')
  lines_by_split: dict[str, list[str]] = {'train': [], 'val': []}
  with files.atomic_directory(target) as temporary_folder:
    for entry in progress(entries, len(entries), 'Writing'):
      _write_entry(entry, temporary_folder)
      is_training = entry.sample.defect == samples.GOOD and not entry.sample.held_out
      line = f'{entry.image_path}\t{entry.mask_path}\n'
      lines_by_split['train' if is_training else 'val'].append(line)
    for split, lines in lines_by_split.items():
      files.write_text(temporary_folder / f'{split}.txt', ''.join(lines))
  return _summarize(contents, lines_by_split)


class _OutputEntry(NamedTuple):
  sample: samples.Sample
  image_path: str
  mask_path: str


def require_convertible(source: Path, target: Path) -> None:
  """Raise an error unless `source` exists and `target` is a new or empty folder outside it."""
  if not source.is_dir():
    raise DataError(f'No folder {source}; it must contain the dataset to convert.')
  if target.is_relative_to(source):
    raise ConfigError(
      f'check.convert.output {target} lies in {source}, which must not change; name another folder.'
    )
  if target.exists() and (not target.is_dir() or any(target.iterdir())):
    raise ConfigError(f'check.convert.output {target} is not empty; name another folder.')


def _plan_entries(source_samples: Sequence[samples.Sample]) -> list[_OutputEntry]:
  """Choose the paths of images and masks, sorted, without the part that all sources share."""
  shared_parent = (
    os.path.commonpath([Path(sample.name).parent for sample in source_samples])
    if source_samples
    else ''
  )
  relative_paths = [
    f'{_folder_name(sample.defect)}/{Path(sample.name).relative_to(shared_parent).as_posix()}'
    for sample in source_samples
  ]
  mask_stems = [samples.strip_suffix(relative_path) for relative_path in relative_paths]
  if len({mask_stem.casefold() for mask_stem in mask_stems}) < len(mask_stems):
    mask_stems = relative_paths  # Some images differ only in their suffix, so masks keep it.
  entries = (
    _OutputEntry(sample, f'images/{relative_path}', f'annotations/{mask_stem}.png')
    for sample, relative_path, mask_stem in zip(
      source_samples, relative_paths, mask_stems, strict=True
    )
  )
  return sorted(entries, key=lambda entry: entry.image_path)


def _folder_name(defect: str) -> str:
  """Return a folder name for a type of defect that is valid on every operating system."""
  safe_name = re.sub(r'[\\/:*?"<>|\x00-\x1f]', '_', defect)
  # File systems allow at most 255 bytes per name.
  truncated_name = safe_name.encode()[:100].decode(errors='ignore')
  return truncated_name.strip(' .') or 'defect'


def _listing_problems(entries: Sequence[_OutputEntry]) -> list[str]:
  """Return messages for images that occur twice, or whose names a list cannot contain."""
  problems: list[str] = []
  name_by_key: dict[str, str] = {}
  for entry in entries:
    if re.search(r'[\t\r\n\v\f\x1c-\x1e\x85\u2028\u2029]', entry.image_path):
      problems.append(f'{entry.sample.name!r}: the name has a tab or line break; rename the image.')
    key = entry.image_path.casefold()
    if key in name_by_key:
      problems.append(
        f'{entry.sample.name}: labeled twice, or its name equals that of {name_by_key[key]} except '
        'for case; rename one image or delete one of the labels.'
      )
    name_by_key[key] = entry.sample.name
  return problems


def _write_entry(entry: _OutputEntry, target: Path) -> None:
  image_path, mask_path = target / entry.image_path, target / entry.mask_path
  image_path.parent.mkdir(parents=True, exist_ok=True)
  mask_path.parent.mkdir(parents=True, exist_ok=True)
  if isinstance(entry.sample.image, bytes):
    image_path.write_bytes(entry.sample.image)
  else:
    shutil.copyfile(entry.sample.image, image_path)
  mask_path.write_bytes(entry.sample.mask)


def _summarize(
  contents: samples.SourceContents, lines_by_split: dict[str, list[str]]
) -> ConversionSummary:
  defects = sorted(_folder_name(sample.defect) for sample in contents.samples)
  notes = list(contents.notes)
  num_boxes = sum(sample.num_boxes for sample in contents.samples)
  if num_boxes:
    notes.append(
      f'{num_boxes} defects are bounding boxes, which were filled. Trust only image metrics: pixel'
      ' metrics count the good pixels in a box as defective.'
    )
  if set(defects) == {samples.GOOD}:
    notes.append('No label marks a defect: all images count as good.')
  if not lines_by_split['train']:
    notes.append('There are no good training images: train.txt is empty.')
  num_per_defect = {defect: defects.count(defect) for defect in dict.fromkeys(defects)}
  return ConversionSummary(
    len(lines_by_split['train']), len(lines_by_split['val']), num_per_defect, tuple(notes)
  )
