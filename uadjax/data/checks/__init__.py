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
from uadjax.system.progress import silently, Track

FEWEST = 3  # One to be left out, and two others for a variance; or three parts, for STFPM.
_VALUES = 4  # Of a mask that are spelled out.
_UNREADABLE, _LEARNED_DEFECT = 'unreadable file', 'defects in training'
_TWICE = 'duplicate in train and test'

# What files of labeling tools are called and what is in them; who writes such. Where a tool embeds
# the image itself, only the two ends of a file are sure to hold more than pixels.
_LABELS = {
  '.json': (
    (rb'"shapes"\s*:', 'LabelMe'),
    (rb'"(annotations|image_id|category_id)"\s*:', 'COCO'),
  ),
  '.xml': ((rb'<annotation[\s>]', 'VOC'),),
}
_OPENED, _END = 3, 1 << 16  # Files of a folder that are looked into; bytes of either end.


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
  shares: Mapping[Path, float]
  mask_threshold: int
  by_mask: bool = False

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
    errors, warnings = len(self.errors), len(self.problems) - len(self.errors)
    verdict = 'Check dataset passed !' if self.passed else 'Check dataset failed.'
    defects = sum(record.anomalous for record in test)
    unreadable = len(_paths(self, _UNREADABLE))
    lines = [
      f'{verdict} {self.directory}: {len(train)} images to learn from, {len(test)} to test on '
      f'({len(test) - defects} good, {defects} defective)'
      + (f'; unreadable files among them and their masks: {unreadable}' if unreadable else '')
      + f'. Errors: {errors}, warnings: {warnings}.'
    ]
    for (severity, kind), group in itertools.groupby(
      sorted(self.problems, key=lambda p: (p.severity, p.kind)), key=lambda p: p[:2]
    ):
      lines.append(f'{severity}, {kind}:\n  {dataset_problems.listed([p.message for p in group])}')
    return '\n'.join(lines)


def check(
  root: str | Path,
  category: str = '',
  layout: str = 'auto',
  mask_threshold: int = 0,
  fewest: int = FEWEST,
  track: Track = silently,
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
  listing = layouts.survey(root, category, layout)
  images, masks = _look_into(listing.splits, mask_threshold, track)
  splits = listing.splits
  if listing.by_mask:
    splits = record_types.Splits(*(
      tuple(layouts.judged(r, r.mask is not None and masks[r.mask].share > 0) for r in records)
      for records in splits
    ))  # fmt: skip
  found = [
    *listing.problems,
    *(problem for seen in (*images.values(), *masks.values()) for problem in seen.problems),
    *_misfits(splits, images, masks),
    *layouts.defects_in_training(splits.train),
    *_contradictions(splits.test, masks, mask_threshold),
    *_without_mask(listing, splits.test),
    *_shared_masks(splits.test),
    *_duplicates(splits, images),
    *(() if listing.by_mask else _foreign_labels(splits.train)),
    *_lacking(listing, splits, fewest),
  ]
  shares = {path: seen.share for path, seen in masks.items() if seen.size}
  ordered = tuple(sorted(found, key=lambda problem: problem.severity != ERROR))
  return Report(listing.directory, splits, ordered, shares, mask_threshold, listing.by_mask)


def demand(report: Report) -> record_types.Splits:
  """The images, where the check passed; else raise DataError."""
  if report.passed:
    return report.splits
  hint = 'Mend the data', ', or pass ', Setting('check.enforce', False), ' to use the rest'
  raise DataError(f'{report}\n', hint=(*(hint if _usable(report).train else hint[:1]), '.'))


def salvage(report: Report) -> record_types.Splits:
  """The images that can be used, whatever the check found.

  Left out are unreadable images, defects that were to be learned from, and good test images that
  are learned from as well, for they flatter; in a list, where nothing else tells whether an image
  is good, those whose mask cannot be read. Masks that cannot be read or do not fit count as absent.

  Raises:
    DataError: nothing is left to learn from.
  """
  splits = _usable(report)
  if not splits.train:
    raise DataError(f'{report}\nNothing is left to learn from.')
  return splits


def _usable(report: Report) -> record_types.Splits:
  """The images that `salvage` leaves, which may be none."""
  unreadable = _paths(report, _UNREADABLE)
  bad = unreadable | _paths(report, 'size mismatch')
  defects, twice = _paths(report, _LEARNED_DEFECT), _paths(report, _TWICE)
  train, test = (
    [
      r._replace(mask=None) if r.mask in bad else r
      for r in records
      if r.path not in unreadable
      and (r.anomalous or not report.by_mask or r.mask not in unreadable)
    ]
    for records in report.splits
  )
  train = tuple(r for r in train if not r.anomalous and r.path not in defects)
  return record_types.Splits(train, tuple(r for r in test if r.anomalous or r.path not in twice))


def left_out(report: Report, splits: record_types.Splits) -> str:
  """Say how much of what was checked is not in these splits; nothing where all is."""
  told, bare = [], 0
  purposes = ('learn from', 'test on')
  for purpose, before, after in zip(purposes, report.splits, splits, strict=True):
    if len(after) < len(before):
      told.append(f'{len(before) - len(after)} of {len(before)} images to {purpose}')
    masked = {record.path for record in before if record.mask}
    bare += sum(record.mask is None and record.path in masked for record in after)
  if bare:
    told.append(f'the masks of {bare} other images')
  return f'Left out for what the check found: {", ".join(told)}.' if told else ''


def _paths(report: Report, kind: str) -> set[Path]:
  return {problem.path for problem in report.errors if problem.kind == kind}


class _Seen(NamedTuple):
  """What opening a file told.

  Attributes:
    size: height and width; None where it cannot be read.
    digest: of an image's pixels, whatever file they are stored in.
    share: of a mask's pixels, those that are defective.
    problems: what is wrong with the file by itself.
  """

  size: tuple[int, int] | None = None
  digest: bytes = b''
  share: float = 0.0
  problems: tuple[Problem, ...] = ()


def _look_into(
  splits: record_types.Splits, threshold: int, track: Track
) -> tuple[dict[Path, _Seen], dict[Path, _Seen]]:
  """Decode every image and every mask once."""
  records = [*splits.train, *splits.test]
  images = list(dict.fromkeys(record.path for record in records))
  masks = list(dict.fromkeys(record.mask for record in records if record.mask))
  jobs = [functools.partial(_see, path) for path in images]
  jobs += [functools.partial(_see_mask, path, threshold) for path in masks]
  with concurrent.futures.ThreadPoolExecutor() as pool:
    looks = pool.map(lambda job: job(), jobs)
    seen = list(track(looks, len(jobs), 'Checking'))
  return (
    dict(zip(images, seen[: len(images)], strict=True)),
    dict(zip(masks, seen[len(images) :], strict=True)),
  )


def _see(path: Path) -> _Seen:
  try:
    image = image_io.decode(path)
  except DataError as error:
    return _Seen(problems=(dataset_problems.error(_UNREADABLE, path, str(error)),))
  height, width = image.shape[:2]
  # Its shape too: pictures of one color may differ in nothing else.
  content = f'{height} {width} '.encode() + image.tobytes()
  return _Seen((height, width), hashlib.sha256(content).digest())


def _see_mask(path: Path, threshold: int) -> _Seen:
  try:
    values, colored = image_io.read_raw(path)
  except DataError as error:
    return _Seen(problems=(dataset_problems.error(_UNREADABLE, path, str(error)),))
  wrong = []
  if colored:
    told = f'{path} is in color; the largest of its channels counts. Store masks as 8-bit gray.'
    wrong.append(dataset_problems.warning('mask in color', path, told))
  different = np.unique(values)
  if len(different) > 2:
    some = ', '.join(f'{value:g}' for value in different[:_VALUES])
    more = f', … {different[-1]:g}' if len(different) > _VALUES else ''
    told = (
      f'{path} is not binary: it has {len(different)} values, {some}{more}. Those above '
      f'data.mask_threshold={threshold} count as defective.'
    )
    wrong.append(dataset_problems.warning('mask not binary', path, told))
  height, width = values.shape
  share = float((values > threshold).mean())
  return _Seen((height, width), share=share, problems=tuple(wrong))


def _misfits(
  splits: record_types.Splits, images: Mapping[Path, _Seen], masks: Mapping[Path, _Seen]
) -> Iterator[Problem]:
  for record in itertools.chain(*splits):
    image, mask = images[record.path].size, record.mask and masks[record.mask].size
    if record.mask and image and mask and (told := layouts.misfit(record, image, mask)):
      yield dataset_problems.error('size mismatch', record.mask, told)


def _contradictions(
  test: Sequence[Record], masks: Mapping[Path, _Seen], threshold: int
) -> Iterator[Problem]:
  """Where folder and mask tell different things of an image."""
  for record in test:
    if record.mask is None or not masks[record.mask].size:
      continue
    shows = masks[record.mask].share > 0
    if shows and not record.anomalous:
      told = (
        f'{record.path} is in a folder of good images, but its mask {record.mask} marks defects.'
      )
      yield dataset_problems.error('good image with defects', record.path, told)
    if record.anomalous and not shows:
      told = (
        f'{record.mask} marks nothing: no value in it is above data.mask_threshold={threshold}, '
        f'but {record.path} is said to be defective ({record.defect}).'
      )
      yield dataset_problems.warning('empty mask', record.mask, told)


def _without_mask(listing: layouts.Listing, test: Sequence[Record]) -> Iterator[Problem]:
  """Defective images without ground truth: legal, and left out of pixel metrics."""
  defective = [record for record in test if record.anomalous]
  if listing.by_mask:
    types = {record.defect for record in defective} - {'defect'}
    for record in itertools.chain(*listing.splits):
      if record.mask is None and record.defect in types:
        told = (
          f'{record.path} has no mask, and so is taken as good, though others of '
          f'{record.path.parent} are defective.'
        )
        yield dataset_problems.warning('no mask', record.path, told)
    return
  absent = [r for r in defective if r.mask is None and listing.has_masks]
  if absent and absent == defective:
    told = (
      f'None of the {len(absent)} defective images in {listing.directory} has a mask; there will '
      'be no pixel metrics.'
    )
    yield dataset_problems.warning('no mask', listing.directory, told)
    return
  for record in absent:
    told = (
      f'{record.path} is defective ({record.defect}) and has no mask: left out of pixel metrics.'
    )
    yield dataset_problems.warning('no mask', record.path, told)


def _shared_masks(test: Sequence[Record]) -> Iterator[Problem]:
  owners: dict[Path, Record] = {}
  for record in test:
    if record.mask is None or not record.anomalous:
      continue
    first = owners.setdefault(record.mask, record)
    if first.path != record.path:
      told = (
        f'{record.mask} is the mask of {first.path} and of {record.path}; if they are not the same '
        f'picture, give each its own, such as {record.path.name}_mask.png in the mvtec layout.'
      )
      yield dataset_problems.warning('shared mask', record.mask, told)


def _duplicates(splits: record_types.Splits, images: Mapping[Path, _Seen]) -> Iterator[Problem]:
  """Pictures that come twice, by their pixels."""
  alike: dict[bytes, tuple[list[Record], list[Record]]] = {}  # Those of training, of test.
  for number, records in enumerate(splits):
    for record in records:
      if digest := images[record.path].digest:
        alike.setdefault(digest, ([], []))[number].append(record)
  for train, test in alike.values():
    yield from _repeated(train, 'training')
    if not train:
      yield from _repeated(test, 'test')
    for shown in test if train else ():
      yield from _learned(shown, train)


def _repeated(records: Sequence[Record], split: str) -> Iterator[Problem]:
  for record in records[1:]:
    first = records[0].path
    told = f'{record.path} shows the same picture as {first}; both are in the {split} set.'
    if first == record.path:
      told = f'{first} is listed more than once in the {split} set.'
    yield dataset_problems.warning('duplicate', record.path, told)


def _learned(shown: Record, train: Sequence[Record]) -> Iterator[Problem]:
  """A test image that is learned from too: if it is defective, that must not be learned."""
  if not shown.anomalous:
    told = f'{shown.path} of the test set shows the same picture as {train[0].path} of the'
    if any(record.path == shown.path for record in train):
      told = f'{shown.path} is in the test set and in the'
    told += ' training set; metrics on it flatter: remove one.'
    yield dataset_problems.error(_TWICE, shown.path, told)
    return
  for record in train:
    if record.anomalous:
      continue  # Its own mask says so already.
    told = (
      f'{record.path} is learned from, and shows the same picture as {shown.path} of the test set, '
      f'which is defective ({shown.defect}); remove {record.path}.'
    )
    if shown.path == record.path:
      told = (
        f'{record.path} is learned from, and is in the test set as defective ({shown.defect}); '
        'take it out of the training set.'
      )
    yield dataset_problems.error(_LEARNED_DEFECT, record.path, told)


def _foreign_labels(train: Sequence[Record]) -> Iterator[Problem]:
  """Files of labeling tools beside pictures that are all taken for good."""
  for folder in dict.fromkeys(record.path.parent for record in train):
    files = sorted(path for path in folder.iterdir() if not path.name.startswith('.'))
    for suffix in _LABELS:
      same = [path for path in files if path.suffix.lower() == suffix and path.is_file()]
      for path in same[:_OPENED]:
        if tool := _labeling_tool(path):
          told = (
            f'{folder} holds {len(same)} *{suffix} files such as {path}, which looks like labels of'
            f' {tool}. They are not read: every picture there is learned from as good. If some are '
            'not, convert the labels first, with mode check_dataset and check.convert.enable=true, '
            f'check.convert.src_dataset_type={tool}.'
          )
          yield dataset_problems.warning('labels of another tool', folder, told)
          break


def _labeling_tool(path: Path) -> str:
  """Who wrote such a file; nothing where it is none of labels, or cannot be told."""
  try:
    with path.open('rb') as file:
      content = file.read(_END)
      size = path.stat().st_size
      if size > _END:
        file.seek(max(_END, size - _END))
        content += file.read(_END)
  except OSError:
    return ''
  tools = (tool for mark, tool in _LABELS[path.suffix.lower()] if re.search(mark, content))
  return next(tools, '')


def _lacking(
  listing: layouts.Listing, splits: record_types.Splits, fewest: int
) -> Iterator[Problem]:
  """Splits that are too small, or of one kind only."""
  directory = listing.directory
  empty = [problem.path for problem in listing.problems if problem.kind == 'empty split']
  good = sum(not record.anomalous for record in splits.train)
  if not splits.train and not any(path != directory / 'test' for path in empty):
    yield dataset_problems.error(
      'empty split', directory, f'{directory} has no images to learn from.'
    )
  elif splits.train and good < fewest:
    told = f'{directory} has {good} good images to learn from; at least {fewest} are needed.'
    yield dataset_problems.error('too few images', directory, told)
  if not splits.test:
    if directory / 'test' not in empty:
      told = f'{directory} has no test images: a model can be trained, but not evaluated.'
      yield dataset_problems.warning('empty split', directory, told)
    return
  defects = sum(record.anomalous for record in splits.test)
  for number, what in ((len(splits.test) - defects, 'good'), (defects, 'defective')):
    if not number:
      told = f'{directory} has no {what} test images; metrics that need both kinds are left out.'
      yield dataset_problems.warning(f'no {what} test images', directory, told)
