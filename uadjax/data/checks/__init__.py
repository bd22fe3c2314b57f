"""Check of a dataset: it decodes every file and reports all problems at once.

`rules` has the rules, one function each.

Letters: h w height and width of an image.
"""

from collections.abc import Collection, Mapping, Sequence
import concurrent.futures
import contextvars
import functools
import itertools
from pathlib import Path
from typing import NamedTuple

from uadjax.data import image_io, layouts, problems as dataset_problems, transforms
from uadjax.data.checks import rules, unused_files
from uadjax.data.pixel_range import FULL_RANGE, PixelRange
from uadjax.data.problems import ERROR, Problem
from uadjax.data.records import Record, Splits
from uadjax.errors import DataError, Setting
from uadjax.system.progress import no_progress, Progress

MIN_IMAGES = 1  # PaDiM and PatchCore need no more.

ImageFunction = rules.ImageFunction
NotUsed = unused_files.NotUsed


class Report(NamedTuple):
  """Result of a check; `str()` of it is the message for the user.

  Attributes:
    directory: folder of the category.
    splits: images of the category, as far as they could be listed.
    problems: all problems, errors first.
    defective_fractions: fraction of defective pixels of each readable mask.
    mask_reading: how masks mark defects, see `image_io.parse_mask_reading`.
    labels_by_mask: whether masks alone determine which images are good.
    not_used: files below the folder that no record uses, by reason.
    pixel_range: values of black and white in images of more than 8 bits.
  """

  directory: Path
  splits: Splits
  problems: tuple[Problem, ...]
  defective_fractions: Mapping[Path, float]
  mask_reading: str
  labels_by_mask: bool = False
  not_used: tuple[NotUsed, ...] = ()
  pixel_range: PixelRange = FULL_RANGE

  @property
  def errors(self) -> list[Problem]:
    """Problems that prevent training."""
    return [problem for problem in self.problems if problem.severity == ERROR]

  @property
  def passed(self) -> bool:
    """Return whether there are no errors, so that training may start."""
    return not self.errors

  def error_paths(self, kind: str) -> set[Path]:
    """Return the files and folders that have an error of one kind."""
    return {problem.path for problem in self.errors if problem.kind == kind}

  def describe_not_used(self) -> str:
    """Return the number of unused files per reason as text; '' if every file is used."""
    return unused_files.describe(self.not_used)

  def __str__(self) -> str:
    train, test = self.splits
    num_held_out = sum(record.held_out for record in train)
    held_out = f' ({num_held_out} held out for calibration)' if num_held_out else ''
    num_errors = len(self.errors)
    verdict = 'Check dataset passed !' if self.passed else 'Check dataset failed.'
    num_defective = sum(record.is_anomalous for record in test)
    num_unreadable = len(self.error_paths(rules.UNREADABLE))
    unreadable = f'; unreadable images and masks: {num_unreadable}' if num_unreadable else ''
    lines = [
      f'{verdict} {self.directory}: {len(train)} training images{held_out}, '
      f'{len(test)} test images ({len(test) - num_defective} good, {num_defective} '
      f'defective){unreadable}. '
      f'Errors: {num_errors}, warnings: {len(self.problems) - num_errors}.'
    ]
    by_kind = sorted(self.problems, key=lambda p: p[:2])
    for (severity, kind), group in itertools.groupby(by_kind, key=lambda p: p[:2]):
      messages = dataset_problems.join_messages([problem.message for problem in group])
      lines.append(f'{severity}, {kind}:\n  {messages}')
    if self.not_used:
      lines.append(self.describe_not_used())
    return '\n'.join(lines)


def check(
  root: str | Path,
  category: str = '',
  layout: str = 'auto',
  mask_reading: str = image_io.NONZERO,
  min_images: int = MIN_IMAGES,
  progress: Progress = no_progress,
  on_train_image: ImageFunction | None = None,
  on_test_image: ImageFunction | None = None,
  pixel_range: PixelRange = FULL_RANGE,
  ops: transforms.Ops | None = None,
) -> Report:
  """Check one category of a dataset and report all its problems.

  Args:
    root: folder of categories, or, with an empty category, the category itself.
    category: name of a folder in root.
    layout: name of a layout, or 'auto'; see `layouts.load`.
    mask_reading: how masks mark defects, see `image_io.parse_mask_reading`.
    min_images: smallest number of good training images that is not an error.
    progress: wrapper that shows progress.
    on_train_image: function to call in a thread with path and decoded image of each readable
      training image.
    on_test_image: the same for test images.
    pixel_range: values of black and white in images of more than 8 bits.
    ops: operations that will scale the images, to warn of small defects, and whose region of
      interest must fit to all images; None for neither.

  Raises:
    DataError: the folder does not exist.
    ConfigError: there is no layout of that name.
  """
  listing = layouts.scan(root, category, layout)
  splits = listing.splits
  on_image = {record.path: on_train_image for record in splits.train}
  on_image |= {record.path: on_test_image for record in splits.test}
  images, masks = _inspect_files(splits, mask_reading, progress, on_image, pixel_range, ops)
  if listing.layout.labels_by_mask:
    defective_masks = {path for path, mask in masks.items() if mask.defective_fraction > 0}
    is_excluding = listing.layout.excludes_training_defects
    splits = layouts.label_by_mask(splits, defective_masks, is_excluding)
  splits = rules.mark_near_duplicates(splits, images)
  unused = unused_files.find(listing.directory, splits, listing.layout.list_files)
  dataset = rules.Dataset(listing, splits, images, masks, mask_reading, min_images, unused, ops)
  fractions = {path: mask.defective_fraction for path, mask in masks.items() if mask.size}
  properties = listing.directory, splits, _find_problems(dataset), fractions, mask_reading
  not_used = unused_files.summarize(unused)
  return Report(*properties, listing.layout.labels_by_mask, not_used, pixel_range)


def unused_in_root(root: str | Path, categories: Collection[str]) -> tuple[NotUsed, ...]:
  """Account for the files below a folder of categories that lie in none of them."""
  nothing = Splits((), ())
  unused = unused_files.find(Path(root), nothing, (layouts.LIST_OF_CATEGORIES,), categories)
  return unused_files.summarize(unused)


def _inspect_files(
  splits: Splits,
  mask_reading: str,
  progress: Progress,
  on_image: Mapping[Path, ImageFunction | None],
  pixel_range: PixelRange,
  ops: transforms.Ops | None,
) -> tuple[dict[Path, rules.Inspection], dict[Path, rules.Inspection]]:
  """Decode every image and every mask once; return the inspections of images and of masks."""
  records = [*splits.train, *splits.test]
  images = list(on_image)
  masks = list(dict.fromkeys(record.mask for record in records if record.mask))
  jobs = [
    functools.partial(rules.inspect_image, path, pixel_range, on_image[path], ops)
    for path in images
  ]
  jobs += [functools.partial(rules.inspect_mask, path, mask_reading) for path in masks]
  # Messages name settings, which each front end formats in its own way.
  jobs = [functools.partial(contextvars.copy_context().run, job) for job in jobs]
  with concurrent.futures.ThreadPoolExecutor() as pool:
    results = list(progress(pool.map(lambda job: job(), jobs), len(jobs), 'Checking'))
  n = len(images)
  return dict(zip(images, results[:n], strict=True)), dict(zip(masks, results[n:], strict=True))


def _find_problems(dataset: rules.Dataset) -> tuple[Problem, ...]:
  """Return the problems of a dataset, of its files and by all rules, errors first."""
  problems = [*dataset.listing.problems]
  for inspection in (*dataset.images.values(), *dataset.masks.values()):
    problems += inspection.problems
  for rule in rules.RULES:
    problems += rule(dataset)
  return tuple(sorted(problems, key=lambda problem: problem.severity != ERROR))


def require_valid(report: Report) -> Splits:
  """Return the images of a report that has no errors.

  Raises:
    DataError: the check failed; the message lists the problems.
  """
  if report.passed:
    return report.splits
  hint = 'Fix the data', ', or pass ', Setting('check.enforce', False), ' to use the other images'
  hint = hint if usable_splits(report).train else hint[:1]
  raise DataError(f'{report}\n', hint=(*hint, '.'))


def usable_splits(report: Report) -> Splits:
  """Return the images that can be used in spite of the errors of a check.

  Excluded are unreadable images, images to which the region of interest does not fit, defective
  training images, and good test images that are also training images, because they would make the
  metrics look too good. In a seglist, where masks determine which images are good, images with
  unreadable masks are excluded as well. In other layouts, masks that are unreadable or have the
  wrong size count as absent.
  """
  unreadable = report.error_paths(rules.UNREADABLE) | report.error_paths(rules.OTHER_REGION)
  bad_masks = unreadable | report.error_paths(rules.SIZE_MISMATCH)
  # Masks that determine the label must be readable.
  needed_masks = unreadable if report.labels_by_mask else set()

  def select(records: Sequence[Record], excluding_error: str) -> tuple[Record, ...]:
    excluded = unreadable | report.error_paths(excluding_error)
    usable = [r for r in records if r.path not in excluded and r.mask not in needed_masks]
    return tuple(r._replace(mask=None) if r.mask in bad_masks else r for r in usable)

  train, test = report.splits
  return Splits(select(train, rules.DEFECT_IN_TRAINING), select(test, rules.IN_TRAIN_AND_TEST))


def describe_excluded(report: Report, splits: Splits) -> str:
  """Describe in a sentence which checked images and masks are not in `splits`; '' if all are."""
  clauses, num_masks = [], 0
  for split, records, usable in zip(('training', 'test'), report.splits, splits, strict=True):
    if num_excluded := len(records) - len(usable):
      clauses.append(f'{num_excluded} of {len(records)} {split} images')
    with_mask = {record.path for record in records if record.mask}
    num_masks += sum(record.mask is None and record.path in with_mask for record in usable)
  if num_masks:
    clauses.append(f'the masks of {num_masks} other images')
  return f'Excluded because of problems in the data: {", ".join(clauses)}.' if clauses else ''
