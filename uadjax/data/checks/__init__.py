"""The check of a data set: every file is decoded, and all that is wrong is told at once.

Letters: h w an image.
"""

from collections.abc import Iterator, Mapping, Sequence
import concurrent.futures
import functools
import hashlib
import itertools
from pathlib import Path
import re
from typing import NamedTuple

import numpy as np

from uadjax.data import image_io, layouts, problems as dataset_problems, records as record_types
from uadjax.data.problems import ERROR, Problem
from uadjax.data.records import Record
from uadjax.errors import DataError, Setting
from uadjax.system.progress import no_progress, Progress

MIN_IMAGES = 3  # One to be left out, and two others for a variance; or three parts, for STFPM.
_MAX_LISTED_VALUES = 4  # Of a mask that are spelled out.
_UNREADABLE, _DEFECT_IN_TRAINING = 'unreadable file', 'defects in training'
_IN_TRAIN_AND_TEST = 'duplicate in train and test'

# What files of labeling tools are called and what is in them; who writes such. Where a tool embeds
# the image itself, only the two ends of a file are sure to hold more than pixels.
_LABEL_SIGNATURES = {
  '.json': (
    (rb'"shapes"\s*:', 'LabelMe'),
    (rb'"(annotations|image_id|category_id)"\s*:', 'COCO'),
  ),
  '.xml': ((rb'<annotation[\s>]', 'VOC'),),
}
_MAX_OPENED_FILES, _END_BYTES = (
  3,
  1 << 16,
)  # Files of a folder that are looked into; bytes of either end.


class Report(NamedTuple):
  """What a check found; as text, the message of the check.

  Attributes:
    directory: of the category.
    splits: its images, as far as they can be told.
    problems: what is wrong, errors first.
    shares: of the pixels of a mask, those that are defective; by readable mask.
    mask_threshold: mask values above it are defects.
    by_mask: whether nothing but its mask tells if an image is good.
  """

  directory: Path
  splits: record_types.Splits
  problems: tuple[Problem, ...]
  defective_fractions: Mapping[Path, float]
  mask_threshold: int
  labels_by_mask: bool = False

  @property
  def errors(self) -> list[Problem]:
    """What training is refused for."""
    return [problem for problem in self.problems if problem.severity == ERROR]

  @property
  def passed(self) -> bool:
    """Whether nothing speaks against training."""
    return not self.errors

  def __str__(self) -> str:
    train, test = self.splits
    num_errors, num_warnings = len(self.errors), len(self.problems) - len(self.errors)
    verdict = 'Check dataset passed !' if self.passed else 'Check dataset failed.'
    num_defective = sum(record.is_anomalous for record in test)
    num_unreadable = len(_error_paths(self, _UNREADABLE))
    lines = [
      f'{verdict} {self.directory}: {len(train)} images to learn from, {len(test)} to test on '
      f'({len(test) - num_defective} good, {num_defective} defective)'
      + (
        f'; unreadable files among them and their masks: {num_unreadable}' if num_unreadable else ''
      )
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
) -> Report:
  """Look for whatever is wrong with one category.

  Args:
    root: folder of categories, or, with an empty category, the category itself.
    category: name of a folder in root.
    layout: as `layouts.load` has it.
    mask_threshold: mask values above it are defects.
    fewest: good images that can be learned from; 1 for a model that is extended.
    track: shows progress.

  Raises:
    DataError: there is no such folder at all.
    ConfigError: the layout has no such name.
  """
  listing = layouts.scan(root, category, layout)
  image_inspections, mask_inspections = _inspect_files(listing.splits, mask_threshold, progress)
  splits = listing.splits
  if listing.labels_by_mask:
    splits = record_types.Splits(*(
      tuple(layouts.label_by_mask(r, r.mask is not None and mask_inspections[r.mask].defective_fraction > 0) for r in records)
      for records in splits
    ))  # fmt: skip
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
  """The images, where the check passed; else raise DataError."""
  if report.passed:
    return report.splits
  hint = 'Mend the data', ', or pass ', Setting('check.enforce', False), ' to use the rest'
  raise DataError(
    f'{report}\n', hint=(*(hint if _usable_or_empty(report).train else hint[:1]), '.')
  )


def usable_splits(report: Report) -> record_types.Splits:
  """The images that can be used, whatever the check found.

  Left out are unreadable images, defects that were to be learned from, and good test images that
  are learned from as well, for they flatter; in a list, where nothing else tells whether an image
  is good, those whose mask cannot be read. Masks that cannot be read or do not fit count as absent.

  Raises:
    DataError: nothing is left to learn from.
  """
  splits = _usable_or_empty(report)
  if not splits.train:
    raise DataError(f'{report}\nNothing is left to learn from.')
  return splits


def _usable_or_empty(report: Report) -> record_types.Splits:
  """The images that `salvage` leaves, which may be none."""
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
  """Say how much of what was checked is not in these splits; nothing where all is."""
  clauses, num_masks_excluded = [], 0
  purposes = ('learn from', 'test on')
  for purpose, checked, used in zip(purposes, report.splits, splits, strict=True):
    if len(used) < len(checked):
      clauses.append(f'{len(checked) - len(used)} of {len(checked)} images to {purpose}')
    paths_with_mask = {record.path for record in checked if record.mask}
    num_masks_excluded += sum(
      record.mask is None and record.path in paths_with_mask for record in used
    )
  if num_masks_excluded:
    clauses.append(f'the masks of {num_masks_excluded} other images')
  return f'Left out for what the check found: {", ".join(clauses)}.' if clauses else ''


def _error_paths(report: Report, kind: str) -> set[Path]:
  return {problem.path for problem in report.errors if problem.kind == kind}


class _Inspection(NamedTuple):
  """What opening a file told.

  Attributes:
    size: height and width; None where it cannot be read.
    digest: of an image's pixels, whatever file they are stored in.
    share: of a mask's pixels, those that are defective.
    problems: what is wrong with the file by itself.
  """

  size: tuple[int, int] | None = None
  digest: bytes = b''
  defective_fraction: float = 0.0
  problems: tuple[Problem, ...] = ()


def _inspect_files(
  splits: record_types.Splits, threshold: int, progress: Progress
) -> tuple[dict[Path, _Inspection], dict[Path, _Inspection]]:
  """Decode every image and every mask once."""
  records = [*splits.train, *splits.test]
  image_paths = list(dict.fromkeys(record.path for record in records))
  mask_paths = list(dict.fromkeys(record.mask for record in records if record.mask))
  jobs = [functools.partial(_inspect_image, path) for path in image_paths]
  jobs += [functools.partial(_inspect_mask, path, threshold) for path in mask_paths]
  with concurrent.futures.ThreadPoolExecutor() as pool:
    results = pool.map(lambda job: job(), jobs)
    inspections = list(progress(results, len(jobs), 'Checking'))
  return (
    dict(zip(image_paths, inspections[: len(image_paths)], strict=True)),
    dict(zip(mask_paths, inspections[len(image_paths) :], strict=True)),
  )


def _inspect_image(path: Path) -> _Inspection:
  try:
    image = image_io.decode(path)
  except DataError as error:
    return _Inspection(problems=(dataset_problems.error(_UNREADABLE, path, str(error)),))
  height, width = image.shape[:2]
  # Its shape too: pictures of one color may differ in nothing else.
  content = f'{height} {width} '.encode() + image.tobytes()
  return _Inspection((height, width), hashlib.sha256(content).digest())


def _inspect_mask(path: Path, threshold: int) -> _Inspection:
  try:
    values, is_color = image_io.read_raw_mask(path)
  except DataError as error:
    return _Inspection(problems=(dataset_problems.error(_UNREADABLE, path, str(error)),))
  mask_problems = []
  if is_color:
    message = f'{path} is in color; the largest of its channels counts. Store masks as 8-bit gray.'
    mask_problems.append(dataset_problems.warning('mask in color', path, message))
  unique_values = np.unique(values)
  if len(unique_values) > 2:
    listed_values = ', '.join(f'{value:g}' for value in unique_values[:_MAX_LISTED_VALUES])
    last_value = f', … {unique_values[-1]:g}' if len(unique_values) > _MAX_LISTED_VALUES else ''
    message = (
      f'{path} is not binary: it has {len(unique_values)} values, {listed_values}{last_value}. Those above '
      f'data.mask_threshold={threshold} count as defective.'
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
  """Where folder and mask tell different things of an image."""
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
        f'but {record.path} is said to be defective ({record.defect}).'
      )
      yield dataset_problems.warning('empty mask', record.mask, message)


def _missing_masks(listing: layouts.Listing, test: Sequence[Record]) -> Iterator[Problem]:
  """Defective images without ground truth: legal, and left out of pixel metrics."""
  defective_records = [record for record in test if record.is_anomalous]
  if listing.labels_by_mask:
    defect_types = {record.defect for record in defective_records} - {'defect'}
    for record in itertools.chain(*listing.splits):
      if record.mask is None and record.defect in defect_types:
        message = (
          f'{record.path} has no mask, and so is taken as good, though others of '
          f'{record.path.parent} are defective.'
        )
        yield dataset_problems.warning('no mask', record.path, message)
    return
  without_mask = [r for r in defective_records if r.mask is None and listing.has_masks]
  if without_mask and without_mask == defective_records:
    message = (
      f'None of the {len(without_mask)} defective images in {listing.directory} has a mask; there will '
      'be no pixel metrics.'
    )
    yield dataset_problems.warning('no mask', listing.directory, message)
    return
  for record in without_mask:
    message = (
      f'{record.path} is defective ({record.defect}) and has no mask: left out of pixel metrics.'
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
        f'{record.mask} is the mask of {first_record.path} and of {record.path}; if they are not the same '
        f'picture, give each its own, such as {record.path.name}_mask.png in the mvtec layout.'
      )
      yield dataset_problems.warning('shared mask', record.mask, message)


def _duplicates(
  splits: record_types.Splits, image_inspections: Mapping[Path, _Inspection]
) -> Iterator[Problem]:
  """Pictures that come twice, by their pixels."""
  records_by_digest: dict[
    bytes, tuple[list[Record], list[Record]]
  ] = {}  # Those of training, of test.
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
    message = f'{record.path} shows the same picture as {first_path}; both are in the {split} set.'
    if first_path == record.path:
      message = f'{first_path} is listed more than once in the {split} set.'
    yield dataset_problems.warning('duplicate', record.path, message)


def _test_image_in_training(test_record: Record, train: Sequence[Record]) -> Iterator[Problem]:
  """A test image that is learned from too: if it is defective, that must not be learned."""
  if not test_record.is_anomalous:
    message = f'{test_record.path} of the test set shows the same picture as {train[0].path} of the'
    if any(record.path == test_record.path for record in train):
      message = f'{test_record.path} is in the test set and in the'
    message += ' training set; metrics on it flatter: remove one.'
    yield dataset_problems.error(_IN_TRAIN_AND_TEST, test_record.path, message)
    return
  for record in train:
    if record.is_anomalous:
      continue  # Its own mask says so already.
    message = (
      f'{record.path} is learned from, and shows the same picture as {test_record.path} of the test set, '
      f'which is defective ({test_record.defect}); remove {record.path}.'
    )
    if test_record.path == record.path:
      message = (
        f'{record.path} is learned from, and is in the test set as defective ({test_record.defect}); '
        'take it out of the training set.'
      )
    yield dataset_problems.error(_DEFECT_IN_TRAINING, record.path, message)


def _foreign_labels(train: Sequence[Record]) -> Iterator[Problem]:
  """Files of labeling tools beside pictures that are all taken for good."""
  for folder in dict.fromkeys(record.path.parent for record in train):
    visible_paths = sorted(path for path in folder.iterdir() if not path.name.startswith('.'))
    for suffix in _LABEL_SIGNATURES:
      label_files = [
        path for path in visible_paths if path.suffix.lower() == suffix and path.is_file()
      ]
      for path in label_files[:_MAX_OPENED_FILES]:
        if tool := _labeling_tool(path):
          message = (
            f'{folder} holds {len(label_files)} *{suffix} files such as {path}, which looks like labels of'
            f' {tool}. They are not read: every picture there is learned from as good. If some are '
            'not, convert the labels first, with mode check_dataset and check.convert.enable=true, '
            f'check.convert.src_dataset_type={tool}.'
          )
          yield dataset_problems.warning('labels of another tool', folder, message)
          break


def _labeling_tool(path: Path) -> str:
  """Who wrote such a file; nothing where it is none of labels, or cannot be told."""
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
  """Splits that are too small, or of one kind only."""
  directory = listing.directory
  empty_paths = [problem.path for problem in listing.problems if problem.kind == 'empty split']
  num_good = sum(not record.is_anomalous for record in splits.train)
  if not splits.train and not any(path != directory / 'test' for path in empty_paths):
    yield dataset_problems.error(
      'empty split', directory, f'{directory} has no images to learn from.'
    )
  elif splits.train and num_good < min_images:
    message = (
      f'{directory} has {num_good} good images to learn from; at least {min_images} are needed.'
    )
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
        f'{directory} has no {label} test images; metrics that need both kinds are left out.'
      )
      yield dataset_problems.warning(f'no {label} test images', directory, message)
