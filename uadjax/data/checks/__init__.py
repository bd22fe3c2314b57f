"""Check of a dataset: it decodes every file and reports all problems at once.

Letters: h w height and width of an image.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import concurrent.futures
import functools
import hashlib
import itertools
from pathlib import Path
import re
from typing import NamedTuple

from jaxtyping import UInt8
import numpy as np

from uadjax.data import image_io, layouts, problems as dataset_problems, records as record_types
from uadjax.data.problems import ERROR, Problem
from uadjax.data.records import Record
from uadjax.errors import DataError, Setting
from uadjax.system.progress import no_progress, Progress

ImageFunction = Callable[[Path, UInt8[np.ndarray, 'h w 3']], None]

# Leave-one-out needs two images in addition to the held-out one, for a variance. STFPM splits the
# images into three groups.
MIN_IMAGES = 3
_MAX_LISTED_VALUES = 4  # Values of a mask that a message lists.
_UNREADABLE, _DEFECT_IN_TRAINING = 'unreadable file', 'defects in training'
_IN_TRAIN_AND_TEST = 'duplicate in train and test'

# Suffix of a label file -> patterns in its content and the labeling tool that writes them.
_LABEL_SIGNATURES = {
  '.json': (
    (rb'"shapes"\s*:', 'LabelMe'),
    (rb'"(annotations|image_id|category_id)"\s*:', 'COCO'),
  ),
  '.xml': ((rb'<annotation[\s>]', 'VOC'),),
}
_MAX_OPENED_FILES = 3  # Files of one folder that are searched for the patterns.
# Bytes that are read at either end of a file. Some tools embed the image, so that only the two ends
# are sure to contain more than pixels.
_END_BYTES = 1 << 16


class Report(NamedTuple):
  """Result of a check; `str()` of it is the message for the user.

  Attributes:
    directory: folder of the category.
    splits: images of the category, as far as they could be listed.
    problems: all problems, errors first.
    defective_fractions: fraction of defective pixels of each readable mask.
    mask_threshold: mask values above it count as defective.
    labels_by_mask: whether masks alone determine which images are good.
  """

  directory: Path
  splits: record_types.Splits
  problems: tuple[Problem, ...]
  defective_fractions: Mapping[Path, float]
  mask_threshold: int
  labels_by_mask: bool = False

  @property
  def errors(self) -> list[Problem]:
    """Problems that prevent training."""
    return [problem for problem in self.problems if problem.severity == ERROR]

  @property
  def passed(self) -> bool:
    """Return whether there are no errors, so that training may start."""
    return not self.errors

  def __str__(self) -> str:
    train, test = self.splits
    num_errors, num_warnings = len(self.errors), len(self.problems) - len(self.errors)
    verdict = 'Check dataset passed !' if self.passed else 'Check dataset failed.'
    num_defective = sum(record.is_anomalous for record in test)
    num_unreadable = len(_error_paths(self, _UNREADABLE))
    lines = [
      f'{verdict} {self.directory}: {len(train)} training images, {len(test)} test images '
      f'({len(test) - num_defective} good, {num_defective} defective)'
      + (f'; unreadable images and masks: {num_unreadable}' if num_unreadable else '')
      + f'. Errors: {num_errors}, warnings: {num_warnings}.'
    ]
    for (severity, kind), group in itertools.groupby(
      sorted(self.problems, key=lambda p: (p.severity, p.kind)), key=lambda p: p[:2]
    ):
      lines.append(
        f'{severity}, {kind}:\n  {dataset_problems.join_messages([p.message for p in group])}'
      )
    return '\n'.join(lines)


def check(
  root: str | Path,
  category: str = '',
  layout: str = 'auto',
  mask_threshold: int = 0,
  min_images: int = MIN_IMAGES,
  progress: Progress = no_progress,
  on_test_image: ImageFunction | None = None,
) -> Report:
  """Check one category of a dataset and report all its problems.

  Args:
    root: folder of categories, or, with an empty category, the category itself.
    category: name of a folder in root.
    layout: 'mvtec', 'seglist', 'folder', or 'auto'; see `layouts.load`.
    mask_threshold: mask values above it count as defective.
    min_images: smallest number of good training images that is not an error; 1 to extend a model.
    progress: wrapper that shows progress.
    on_test_image: function to call in a thread with path and pixels of each readable test image.

  Raises:
    DataError: the folder does not exist.
    ConfigError: there is no layout of that name.
  """
  listing = layouts.scan(root, category, layout)
  image_inspections, mask_inspections = _inspect_files(
    listing.splits, mask_threshold, progress, on_test_image
  )
  splits = listing.splits
  if listing.labels_by_mask:
    masks_with_defect = {
      path for path, inspection in mask_inspections.items() if inspection.defective_fraction > 0
    }
    splits = record_types.Splits(
      *(
        tuple(layouts.label_by_mask(record, record.mask in masks_with_defect) for record in records)
        for records in splits
      )
    )
  all_problems = [
    *listing.problems,
    *(
      problem
      for inspection in (*image_inspections.values(), *mask_inspections.values())
      for problem in inspection.problems
    ),
    *_size_mismatches(splits, image_inspections, mask_inspections),
    *layouts.defects_in_training(splits.train),
    *_label_contradictions(splits.test, mask_inspections, mask_threshold),
    *_missing_masks(listing, splits.test),
    *_shared_masks(splits.test),
    *_duplicates(splits, image_inspections),
    *(() if listing.labels_by_mask else _foreign_labels(splits.train)),
    *_insufficient_splits(listing, splits, min_images),
  ]
  defective_fractions = {
    path: inspection.defective_fraction
    for path, inspection in mask_inspections.items()
    if inspection.size
  }
  sorted_problems = tuple(sorted(all_problems, key=lambda problem: problem.severity != ERROR))
  return Report(
    listing.directory,
    splits,
    sorted_problems,
    defective_fractions,
    mask_threshold,
    listing.labels_by_mask,
  )


def require_valid(report: Report) -> record_types.Splits:
  """Return the images of a report that has no errors.

  Raises:
    DataError: the check failed; the message lists the problems.
  """
  if report.passed:
    return report.splits
  hint = 'Fix the data', ', or pass ', Setting('check.enforce', False), ' to use the other images'
  raise DataError(
    f'{report}\n', hint=(*(hint if _usable_or_empty(report).train else hint[:1]), '.')
  )


def usable_splits(report: Report) -> record_types.Splits:
  """Return the images that can be used in spite of the errors of a check.

  Excluded are unreadable images, defective training images, and good test images that are also
  training images, because they would make the metrics look too good. In a seglist, where masks
  determine which images are good, images with unreadable masks are excluded as well. In other
  layouts, masks that are unreadable or have the wrong size count as absent.

  Raises:
    DataError: no training images remain.
  """
  splits = _usable_or_empty(report)
  if not splits.train:
    raise DataError(f'{report}\nNo usable training images remain.')
  return splits


def _usable_or_empty(report: Report) -> record_types.Splits:
  """Return the images that `usable_splits` selects; unlike it, allow an empty training split."""
  unreadable = _error_paths(report, _UNREADABLE)
  bad_masks = unreadable | _error_paths(report, 'size mismatch')
  defects_in_training, duplicates = (
    _error_paths(report, _DEFECT_IN_TRAINING),
    _error_paths(report, _IN_TRAIN_AND_TEST),
  )
  train, test = (
    [
      r._replace(mask=None) if r.mask in bad_masks else r
      for r in records
      if r.path not in unreadable
      and (r.is_anomalous or not report.labels_by_mask or r.mask not in unreadable)
    ]
    for records in report.splits
  )
  train = tuple(r for r in train if not r.is_anomalous and r.path not in defects_in_training)
  return record_types.Splits(
    train, tuple(r for r in test if r.is_anomalous or r.path not in duplicates)
  )


def describe_excluded(report: Report, splits: record_types.Splits) -> str:
  """Describe in a sentence which checked images and masks are not in `splits`; '' if all are."""
  clauses, num_masks_excluded = [], 0
  for split, all_records, usable_records in zip(
    ('training', 'test'), report.splits, splits, strict=True
  ):
    if len(usable_records) < len(all_records):
      num_excluded = len(all_records) - len(usable_records)
      clauses.append(f'{num_excluded} of {len(all_records)} {split} images')
    paths_with_mask = {record.path for record in all_records if record.mask}
    num_masks_excluded += sum(
      record.mask is None and record.path in paths_with_mask for record in usable_records
    )
  if num_masks_excluded:
    clauses.append(f'the masks of {num_masks_excluded} other images')
  return f'Excluded because of problems in the data: {", ".join(clauses)}.' if clauses else ''


def _error_paths(report: Report, kind: str) -> set[Path]:
  return {problem.path for problem in report.errors if problem.kind == kind}


class _Inspection(NamedTuple):
  """Properties of one image or mask file.

  Attributes:
    size: height and width; None for an unreadable file.
    digest: hash of an image's pixels, which does not depend on the file format.
    defective_fraction: fraction of a mask's pixels that are defective.
    problems: problems of the file by itself.
  """

  size: tuple[int, int] | None = None
  digest: bytes = b''
  defective_fraction: float = 0.0
  problems: tuple[Problem, ...] = ()


def _inspect_files(
  splits: record_types.Splits,
  threshold: int,
  progress: Progress,
  on_test_image: ImageFunction | None,
) -> tuple[dict[Path, _Inspection], dict[Path, _Inspection]]:
  """Decode every image and every mask once; return the inspections of images and of masks."""
  records = [*splits.train, *splits.test]
  image_paths = list(dict.fromkeys(record.path for record in records))
  mask_paths = list(dict.fromkeys(record.mask for record in records if record.mask))
  test_paths = {record.path for record in splits.test} if on_test_image else set()
  jobs = [
    functools.partial(_inspect_image, path, on_test_image if path in test_paths else None)
    for path in image_paths
  ]
  jobs += [functools.partial(_inspect_mask, path, threshold) for path in mask_paths]
  with concurrent.futures.ThreadPoolExecutor() as pool:
    results = pool.map(lambda job: job(), jobs)
    inspections = list(progress(results, len(jobs), 'Checking'))
  return (
    dict(zip(image_paths, inspections[: len(image_paths)], strict=True)),
    dict(zip(mask_paths, inspections[len(image_paths) :], strict=True)),
  )


def _inspect_image(path: Path, on_image: ImageFunction | None) -> _Inspection:
  try:
    image = image_io.decode(path)
  except DataError as error:
    return _Inspection(problems=(dataset_problems.error(_UNREADABLE, path, str(error)),))
  if on_image:
    on_image(path, image)
  height, width = image.shape[:2]
  # The shape is included because images of a single color may differ in nothing else.
  content = f'{height} {width} '.encode() + image.tobytes()
  return _Inspection((height, width), hashlib.sha256(content).digest())


def _inspect_mask(path: Path, threshold: int) -> _Inspection:
  try:
    values, is_color = image_io.read_raw_mask(path)
  except DataError as error:
    return _Inspection(problems=(dataset_problems.error(_UNREADABLE, path, str(error)),))
  mask_problems = []
  if is_color:
    message = f'{path} is in color; its largest channel is used. Store masks as 8-bit gray.'
    mask_problems.append(dataset_problems.warning('mask in color', path, message))
  unique_values = np.unique(values)
  if len(unique_values) > 2:
    listed_values = ', '.join(f'{value:g}' for value in unique_values[:_MAX_LISTED_VALUES])
    last_value = f', … {unique_values[-1]:g}' if len(unique_values) > _MAX_LISTED_VALUES else ''
    message = (
      f'{path} is not binary: it has {len(unique_values)} values, {listed_values}{last_value}. '
      f'Values above data.mask_threshold={threshold} count as defective.'
    )
    mask_problems.append(dataset_problems.warning('mask not binary', path, message))
  height, width = values.shape
  defective_fraction = float((values > threshold).mean())
  return _Inspection(
    (height, width), defective_fraction=defective_fraction, problems=tuple(mask_problems)
  )


def _size_mismatches(
  splits: record_types.Splits,
  image_inspections: Mapping[Path, _Inspection],
  mask_inspections: Mapping[Path, _Inspection],
) -> Iterator[Problem]:
  for record in itertools.chain(*splits):
    image, mask = (
      image_inspections[record.path].size,
      record.mask and mask_inspections[record.mask].size,
    )
    if (
      record.mask
      and image
      and mask
      and (message := layouts.mask_size_mismatch(record, image, mask))
    ):
      yield dataset_problems.error('size mismatch', record.mask, message)


def _label_contradictions(
  test: Sequence[Record], mask_inspections: Mapping[Path, _Inspection], threshold: int
) -> Iterator[Problem]:
  """Yield a problem for each test image whose folder and mask contradict each other."""
  for record in test:
    if record.mask is None or not mask_inspections[record.mask].size:
      continue
    has_defect = mask_inspections[record.mask].defective_fraction > 0
    if has_defect and not record.is_anomalous:
      message = (
        f'{record.path} is in a folder of good images, but its mask {record.mask} marks defects.'
      )
      yield dataset_problems.error('good image with defects', record.path, message)
    if record.is_anomalous and not has_defect:
      message = (
        f'{record.mask} marks nothing: no value in it is above data.mask_threshold={threshold}, '
        f'but {record.path} is in a folder of defective images ({record.defect}).'
      )
      yield dataset_problems.warning('empty mask', record.mask, message)


def _missing_masks(listing: layouts.Listing, test: Sequence[Record]) -> Iterator[Problem]:
  """Yield a warning for defective images without a mask, which pixel metrics exclude."""
  defective_records = [record for record in test if record.is_anomalous]
  if listing.labels_by_mask:
    defect_types = {record.defect for record in defective_records} - {'defect'}
    for record in itertools.chain(*listing.splits):
      if record.mask is None and record.defect in defect_types:
        message = (
          f'{record.path} has no mask and therefore counts as good, although other images in '
          f'{record.path.parent} are defective.'
        )
        yield dataset_problems.warning('no mask', record.path, message)
    return
  without_mask = [r for r in defective_records if r.mask is None and listing.has_masks]
  if without_mask and without_mask == defective_records:
    message = (
      f'None of the {len(without_mask)} defective images in {listing.directory} has a mask, so '
      'pixel metrics cannot be computed.'
    )
    yield dataset_problems.warning('no mask', listing.directory, message)
    return
  for record in without_mask:
    message = (
      f'{record.path} is defective ({record.defect}) and has no mask; pixel metrics exclude it.'
    )
    yield dataset_problems.warning('no mask', record.path, message)


def _shared_masks(test: Sequence[Record]) -> Iterator[Problem]:
  record_by_mask: dict[Path, Record] = {}
  for record in test:
    if record.mask is None or not record.is_anomalous:
      continue
    first_record = record_by_mask.setdefault(record.mask, record)
    if first_record.path != record.path:
      message = (
        f'{record.mask} is the mask of both {first_record.path} and {record.path}; unless they are '
        f'the same image, give each its own, such as {record.path.name}_mask.png in the mvtec '
        'layout.'
      )
      yield dataset_problems.warning('shared mask', record.mask, message)


def _duplicates(
  splits: record_types.Splits, image_inspections: Mapping[Path, _Inspection]
) -> Iterator[Problem]:
  """Yield a problem for each image whose pixels equal those of another image."""
  # Digest -> training records and test records.
  records_by_digest: dict[bytes, tuple[list[Record], list[Record]]] = {}
  for split_index, records in enumerate(splits):
    for record in records:
      if digest := image_inspections[record.path].digest:
        records_by_digest.setdefault(digest, ([], []))[split_index].append(record)
  for train, test in records_by_digest.values():
    yield from _duplicates_in_split(train, 'training')
    if not train:
      yield from _duplicates_in_split(test, 'test')
    for test_record in test if train else ():
      yield from _test_image_in_training(test_record, train)


def _duplicates_in_split(records: Sequence[Record], split: str) -> Iterator[Problem]:
  for record in records[1:]:
    first_path = records[0].path
    message = f'{record.path} is the same image as {first_path}; both are in the {split} set.'
    if first_path == record.path:
      message = f'{first_path} is listed more than once in the {split} set.'
    yield dataset_problems.warning('duplicate', record.path, message)


def _test_image_in_training(test_record: Record, train: Sequence[Record]) -> Iterator[Problem]:
  """Yield an error for a test image whose pixels are also in the training set.

  A good one makes metrics too optimistic; a defective one must not be trained on.
  """
  if not test_record.is_anomalous:
    message = f'{test_record.path} in the test set is the same image as {train[0].path} in the'
    if any(record.path == test_record.path for record in train):
      message = f'{test_record.path} is in the test set and in the'
    message += ' training set, which makes metrics too optimistic; remove one of them.'
    yield dataset_problems.error(_IN_TRAIN_AND_TEST, test_record.path, message)
    return
  for record in train:
    if record.is_anomalous:
      continue  # `layouts.defects_in_training` already reports images whose own mask has a defect.
    message = (
      f'{record.path} in the training set is the same image as {test_record.path} in the test set, '
      f'which is defective ({test_record.defect}); remove {record.path}.'
    )
    if test_record.path == record.path:
      message = (
        f'{record.path} is in the training set, and in the test set as defective '
        f'({test_record.defect}); remove it from the training set.'
      )
    yield dataset_problems.error(_DEFECT_IN_TRAINING, record.path, message)


def _foreign_labels(train: Sequence[Record]) -> Iterator[Problem]:
  """Yield a warning for each training folder that contains label files, which are not read."""
  for folder in dict.fromkeys(record.path.parent for record in train):
    visible_paths = sorted(path for path in folder.iterdir() if not path.name.startswith('.'))
    for suffix in _LABEL_SIGNATURES:
      label_files = [
        path for path in visible_paths if path.suffix.lower() == suffix and path.is_file()
      ]
      for path in label_files[:_MAX_OPENED_FILES]:
        if tool := _labeling_tool(path):
          message = (
            f'{folder} has {len(label_files)} *{suffix} files such as {path}, which looks like '
            f'{tool} labels. They are not read: every image there is used for training as good. If '
            'some are not good, convert the labels first, with mode check_dataset and '
            f'check.convert.enable=true, check.convert.src_dataset_type={tool}.'
          )
          yield dataset_problems.warning('labels of another tool', folder, message)
          break


def _labeling_tool(path: Path) -> str:
  """Return the name of the labeling tool that wrote a file; '' if it is unknown or unreadable."""
  try:
    with path.open('rb') as file:
      content = file.read(_END_BYTES)
      size = path.stat().st_size
      if size > _END_BYTES:
        file.seek(max(_END_BYTES, size - _END_BYTES))
        content += file.read(_END_BYTES)
  except OSError:
    return ''
  tools = (
    tool for pattern, tool in _LABEL_SIGNATURES[path.suffix.lower()] if re.search(pattern, content)
  )
  return next(tools, '')


def _insufficient_splits(
  listing: layouts.Listing, splits: record_types.Splits, min_images: int
) -> Iterator[Problem]:
  """Yield a problem for each split that is too small or lacks good or defective images."""
  directory = listing.directory
  empty_paths = [problem.path for problem in listing.problems if problem.kind == 'empty split']
  num_good = sum(not record.is_anomalous for record in splits.train)
  if not splits.train and not any(path != directory / 'test' for path in empty_paths):
    yield dataset_problems.error('empty split', directory, f'{directory} has no training images.')
  elif splits.train and num_good < min_images:
    message = f'{directory} has {num_good} good training images; at least {min_images} are needed.'
    yield dataset_problems.error('too few images', directory, message)
  if not splits.test:
    if directory / 'test' not in empty_paths:
      message = f'{directory} has no test images: a model can be trained, but not evaluated.'
      yield dataset_problems.warning('empty split', directory, message)
    return
  num_defective = sum(record.is_anomalous for record in splits.test)
  for count, label in ((len(splits.test) - num_defective, 'good'), (num_defective, 'defective')):
    if not count:
      message = (
        f'{directory} has no {label} test images; metrics that need both classes are omitted.'
      )
      yield dataset_problems.warning(f'no {label} test images', directory, message)
