"""The check of a data set: every file is decoded, and all that is wrong is told at once.

Letters: h w an image.
"""

from collections.abc import Iterator, Mapping, Sequence
import concurrent.futures
import functools
import hashlib
import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from uadjax.data import datasets, preprocess, problems
from uadjax.data.problems import ERROR, Problem
from uadjax.types import DataError, Record, silently, Track

FEWEST = 3  # One to be left out, and two others for a variance; or three parts, for STFPM.
_VALUES = 4  # Of a mask that are spelled out.


class Report(NamedTuple):
  """What a check found; as text, the message of the check.

  Attributes:
    directory: of the category.
    splits: its images, as far as they can be told.
    problems: what is wrong, errors first.
    shares: of the pixels of a mask, those that are defective; by readable mask.
    mask_threshold: mask values above it are defects.
  """

  directory: Path
  splits: datasets.Splits
  problems: tuple[Problem, ...]
  shares: Mapping[Path, float]
  mask_threshold: int

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
    lines = [
      f'{verdict} {self.directory}: {len(train)} images to learn from, {len(test)} to test on '
      f'({len(test) - defects} good, {defects} defective). Errors: {errors}, warnings: {warnings}.'
    ]
    for (severity, kind), group in itertools.groupby(
      sorted(self.problems, key=lambda p: (p.severity, p.kind)), key=lambda p: p[:2]
    ):
      lines.append(f'{severity}, {kind}:\n  {problems.listed([p.message for p in group])}')
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
    layout: as `datasets.load` has it.
    mask_threshold: mask values above it are defects.
    fewest: good images that can be learned from; 1 for a model that is extended.
    track: shows progress.

  Raises:
    DataError: there is no such folder at all.
    ConfigError: the layout has no such name.
  """
  listing = datasets.survey(root, category, layout)
  images, masks = _look_into(listing.splits, mask_threshold, track)
  splits = listing.splits
  if listing.by_mask:
    splits = datasets.Splits(*(
      tuple(datasets.judged(r, r.mask is not None and masks[r.mask].share > 0) for r in records)
      for records in splits
    ))  # fmt: skip
  found = [
    *listing.problems,
    *(problem for seen in (*images.values(), *masks.values()) for problem in seen.problems),
    *_misfits(splits, images, masks),
    *datasets.defects_in_training(splits.train),
    *_contradictions(splits.test, masks, mask_threshold),
    *_without_mask(listing, splits.test),
    *_shared_masks(splits.test),
    *_duplicates(splits, images),
    *_lacking(listing, splits, fewest),
  ]
  shares = {path: seen.share for path, seen in masks.items() if seen.size}
  ordered = tuple(sorted(found, key=lambda problem: problem.severity != ERROR))
  return Report(listing.directory, splits, ordered, shares, mask_threshold)


def demand(report: Report) -> datasets.Splits:
  """The images, where the check passed; else raise DataError."""
  if report.passed:
    return report.splits
  raise DataError(f'{report}\nMend the data, or pass --config.check.enforce=false.')


def salvage(report: Report) -> datasets.Splits:
  """The images that can be used, whatever the check found.

  Left out are unreadable images, and defects that were to be learned from; of those whose mask
  cannot be read, all but what is known to be defective without it. Masks of defects that cannot be
  read or do not fit count as absent.

  Raises:
    DataError: nothing is left to learn from.
  """
  unreadable = {p.path for p in report.errors if p.kind == 'unreadable file'}
  bad = unreadable | {p.path for p in report.errors if p.kind == 'size mismatch'}
  train, test = (
    tuple(
      r._replace(mask=None) if r.mask in bad else r
      for r in records
      # In a list nothing else tells whether an image is good.
      if r.path not in unreadable and (r.anomalous or r.mask not in unreadable)
    )
    for records in report.splits
  )
  train = tuple(record for record in train if not record.anomalous)
  if not train:
    raise DataError(f'{report}\nNothing is left to learn from.')
  return datasets.Splits(train, test)


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
  splits: datasets.Splits, threshold: int, track: Track
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
    image = preprocess.decode(path)
  except DataError as error:
    return _Seen(problems=(problems.error('unreadable file', path, str(error)),))
  height, width = image.shape[:2]
  # Its shape too: pictures of one color may differ in nothing else.
  content = f'{height} {width} '.encode() + image.tobytes()
  return _Seen((height, width), hashlib.sha256(content).digest())


def _see_mask(path: Path, threshold: int) -> _Seen:
  try:
    values, colored = preprocess.read_raw(path)
  except DataError as error:
    return _Seen(problems=(problems.error('unreadable file', path, str(error)),))
  wrong = []
  if colored:
    told = f'{path} is in color; the largest of its channels counts. Store masks as 8-bit gray.'
    wrong.append(problems.warning('mask in color', path, told))
  different = np.unique(values)
  if len(different) > 2:
    some = ', '.join(f'{value:g}' for value in different[:_VALUES])
    more = f', … {different[-1]:g}' if len(different) > _VALUES else ''
    told = (
      f'{path} is not binary: it has {len(different)} values, {some}{more}. Those above '
      f'data.mask_threshold={threshold} count as defective.'
    )
    wrong.append(problems.warning('mask not binary', path, told))
  height, width = values.shape
  share = float((values > threshold).mean())
  return _Seen((height, width), share=share, problems=tuple(wrong))


def _misfits(
  splits: datasets.Splits, images: Mapping[Path, _Seen], masks: Mapping[Path, _Seen]
) -> Iterator[Problem]:
  for record in itertools.chain(*splits):
    image, mask = images[record.path].size, record.mask and masks[record.mask].size
    if record.mask and image and mask and (told := datasets.misfit(record, image, mask)):
      yield problems.error('size mismatch', record.mask, told)


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
      yield problems.error('good image with defects', record.path, told)
    if record.anomalous and not shows:
      told = (
        f'{record.mask} marks nothing: no value in it is above data.mask_threshold={threshold}, '
        f'but {record.path} is said to be defective ({record.defect}).'
      )
      yield problems.warning('empty mask', record.mask, told)


def _without_mask(listing: datasets.Listing, test: Sequence[Record]) -> Iterator[Problem]:
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
        yield problems.warning('no mask', record.path, told)
    return
  # A folder without masks is what the layout of that name is.
  absent = [r for r in defective if r.mask is None and listing.layout != 'folder']
  if absent and absent == defective:
    told = (
      f'None of the {len(absent)} defective images in {listing.directory} has a mask; there will '
      'be no pixel metrics.'
    )
    yield problems.warning('no mask', listing.directory, told)
    return
  for record in absent:
    told = (
      f'{record.path} is defective ({record.defect}) and has no mask: left out of pixel metrics.'
    )
    yield problems.warning('no mask', record.path, told)


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
      yield problems.warning('shared mask', record.mask, told)


def _duplicates(splits: datasets.Splits, images: Mapping[Path, _Seen]) -> Iterator[Problem]:
  """Pictures that come twice, by their pixels."""
  first: dict[bytes, tuple[Path, str]] = {}
  for split, records in zip(('training', 'test'), splits, strict=True):
    for record in records:
      digest = images[record.path].digest
      if not digest:
        continue
      if digest not in first:
        first[digest] = record.path, split
        continue
      path, where = first[digest]
      if where == split:
        told = f'{record.path} shows the same picture as {path}; both are in the {split} set.'
        if path == record.path:
          told = f'{path} is listed more than once in the {split} set.'
        yield problems.warning('duplicate', record.path, told)
      else:
        told = f'{record.path} of the test set shows the same picture as {path} of the training set'
        if path == record.path:
          told = f'{path} is in the training set and in the test set'
        yield problems.error('duplicate in train and test', record.path, f'{told}; remove one.')


def _lacking(listing: datasets.Listing, splits: datasets.Splits, fewest: int) -> Iterator[Problem]:
  """Splits that are too small, or of one kind only."""
  directory = listing.directory
  empty = [problem.path for problem in listing.problems if problem.kind == 'empty split']
  good = sum(not record.anomalous for record in splits.train)
  if not splits.train and not any(path != directory / 'test' for path in empty):
    yield problems.error('empty split', directory, f'{directory} has no images to learn from.')
  elif splits.train and good < fewest:
    told = f'{directory} has {good} good images to learn from; at least {fewest} are needed.'
    yield problems.error('too few images', directory, told)
  if not splits.test:
    if directory / 'test' not in empty:
      told = f'{directory} has no test images: a model can be trained, but not evaluated.'
      yield problems.warning('empty split', directory, told)
    return
  defects = sum(record.anomalous for record in splits.test)
  for number, what in ((len(splits.test) - defects, 'good'), (defects, 'defective')):
    if not number:
      told = f'{directory} has no {what} test images; metrics that need both kinds are left out.'
      yield problems.warning(f'no {what} test images', directory, told)
