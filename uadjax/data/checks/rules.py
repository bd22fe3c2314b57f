"""Rules of a dataset check: each is a function from a dataset to its problems of a few kinds."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import hashlib
import itertools
import math
from pathlib import Path
from typing import NamedTuple, TypeAlias

from jaxtyping import Float
import numpy as np

from uadjax.data import image_io, layouts, near_duplicates, transforms
from uadjax.data.checks import label_files, unused_files
from uadjax.data.image_io import DecodedImage
from uadjax.data.pixel_range import PixelRange
from uadjax.data.problems import error, Problem, warning
from uadjax.data.records import GOOD, Record, Splits
from uadjax.errors import DataError, Setting
from uadjax.system.text import format_percent

_FEW_IMAGES = 3  # STFPM splits the images into three groups.
_MAX_DEFECTIVE_FRACTION = 0.9  # Of a mask that is read as it was meant.
# Images that are reduced more lose defects that a person sees.
_MAX_REDUCTION = 4.0
# A map cell of PatchCore, in pixels of the scaled image; one of PaDiM and STFPM is half as large.
_CELL_SIZE = 8
_MIN_DEFECT_CELLS = 2
_INVERTED_PALETTE = 'The first color of its palette seems to mark the defect'

ImageFunction: TypeAlias = Callable[[Path, DecodedImage], None]

UNREADABLE, SIZE_MISMATCH = 'unreadable file', 'size mismatch'
OTHER_REGION = 'region of interest does not fit'
FULL_MASK = 'mask marks nearly everything'
DEFECT_IN_TRAINING, IN_TRAIN_AND_TEST = 'defects in training', 'duplicate in train and test'


class Inspection(NamedTuple):
  """Properties of one image or mask file.

  Attributes:
    size: height and width; None for an unreadable file.
    digest: hash of an image's pixels, which does not depend on the file format.
    fingerprint: coarse values of an image that survive encoding, for `near_duplicates.group`; None
      for a mask and an unreadable file.
    defective_fraction: fraction of a mask's pixels that are defective.
    hint: sentence on an empty mask.
    problems: problems of the file by itself.
  """

  size: tuple[int, int] | None = None
  digest: bytes = b''
  fingerprint: Float[np.ndarray, ' k'] | None = None
  defective_fraction: float = 0.0
  hint: str = ''
  problems: tuple[Problem, ...] = ()


class Dataset(NamedTuple):
  """Dataset to which the rules are applied.

  Attributes:
    listing: files as the layout lists them.
    splits: images, labeled by their masks if the layout requires it.
    images: inspections of the images, by path.
    masks: inspections of the masks, by path.
    mask_reading: how masks mark defects, see `image_io.parse_mask_reading`.
    min_images: smallest number of good training images that is not an error.
    unused: files below the dataset's folder that no record uses.
    ops: operations that scale the images; None to assume none.
  """

  listing: layouts.Listing
  splits: Splits
  images: Mapping[Path, Inspection]
  masks: Mapping[Path, Inspection]
  mask_reading: str
  min_images: int
  unused: Sequence[unused_files.UnusedFile] = ()
  ops: transforms.Ops | None = None


def inspect_image(
  path: Path,
  pixel_range: PixelRange,
  on_image: ImageFunction | None = None,
  ops: transforms.Ops | None = None,
) -> Inspection:
  """Decode an image, and call a function with path and image if it can be used.

  It cannot if the region of interest of `ops` does not fit.
  """
  try:
    image = image_io.read_image(path, pixel_range=pixel_range)
  except DataError as reason:
    return Inspection(problems=(error(UNREADABLE, path, str(reason)),))
  height, width = image.pixels.shape[:2]
  try:
    if ops:
      ops.require_fit(height, width)
  except DataError as reason:
    return Inspection(problems=(error(OTHER_REGION, path, f'{path}: {reason}'),))
  if on_image:
    on_image(path, image)
  pixels, issues = image.pixels, ()
  if image.has_further_pages:
    message = f'{path} has further pages; only the first is read. Save the others as files.'
    issues = (warning('further pages', path, message),)
  # The shape is included because images of a single color may differ in nothing else.
  content_hash = hashlib.sha256(f'{height} {width} '.encode())
  content_hash.update(pixels.data)  # Without a copy of a large image.
  fingerprint = near_duplicates.fingerprint(pixels)
  return Inspection((height, width), content_hash.digest(), fingerprint, problems=issues)


def inspect_mask(path: Path, reading: str) -> Inspection:
  """Decode a mask, or those of a folder, whose defects are marked as `reading` says."""
  inspections = [_inspect_mask_file(file, reading) for file in image_io.mask_files(path)]
  issues = tuple(itertools.chain.from_iterable(inspection.problems for inspection in inspections))
  if any(inspection.size is None for inspection in inspections):
    # Without one of its files, the whole mask is unknown.
    broken = [error(UNREADABLE, path, p.message) for p in issues if p.kind == UNREADABLE]
    return Inspection(problems=(*broken, *(p for p in issues if p.kind != UNREADABLE)))
  if len(inspections) == 1:
    return inspections[0]
  try:
    mask = image_io.read_mask(path, reading)
  except DataError as reason:
    return Inspection(problems=(*issues, error(UNREADABLE, path, str(reason))))
  return Inspection(mask.shape, defective_fraction=float(mask.mean()), problems=issues)


def _inspect_mask_file(path: Path, reading: str) -> Inspection:
  try:
    mask = image_io.read_raw_mask(path)
    defects = mask.defects(reading)
  except DataError as reason:
    text = str(reason) if str(path) in str(reason) else f'Cannot read {path}: {reason}.'
    return Inspection(problems=(error(UNREADABLE, path, text),))
  issues = []
  if mask.is_color and reading != image_io.ALPHA:
    message = f'{path} is in color; its largest channel is used. Store masks as 8-bit gray.'
    issues.append(warning('mask in color', path, message))
  values = mask.alpha if reading == image_io.ALPHA and mask.alpha is not None else mask.values
  unique = np.unique(values)
  if len(unique) > 2 and not mask.is_jpeg:
    message = f'{path} has {len(unique)} values from {unique[0]:g} to {unique[-1]:g}, not just two'
    setting = Setting('data.mask', reading)
    issues.append(warning('mask not binary', path, f'{message}; it is read with {setting}.'))
  fraction = float(defects.mean())
  if fraction > _MAX_DEFECTIVE_FRACTION:
    message = f'{path} marks {format_percent(fraction)} of its pixels as defective'
    issues.append(warning(FULL_MASK, path, f'{message}. {_explain(mask)}'))
  hint = f' {_explain(mask)}' if fraction == 0 and mask.alpha is not None else ''
  return Inspection(values.shape, defective_fraction=fraction, hint=hint, problems=tuple(issues))


def _explain(mask: image_io.RawMask) -> str:
  """Explain why a mask marks nearly every pixel or none, and name the setting that may read it."""
  values, counts = np.unique(mask.values, return_counts=True)
  background = f'{values[counts.argmax()]:g}'
  readings = [
    (image_io.ALPHA, 'The defect seems to be in its alpha channel'),
    (image_io.INVERTED, _INVERTED_PALETTE if mask.is_palette else 'It seems to be inverted'),
    (f'above:{background}', f'Its background seems to be {background}'),
    (f'equals:{values[0]:g}', f'Its background seems to be {background}'),
  ]
  for reading, cause in readings:
    with contextlib.suppress(DataError):
      if 0 < mask.defects(reading).mean() <= _MAX_DEFECTIVE_FRACTION:
        return f'{cause}; read it with {Setting("data.mask", reading)}.'
  return f'No value of {Setting("data.mask")} finds a defect; save masks in gray, white on black.'


def _size_mismatches(dataset: Dataset) -> Iterator[Problem]:
  for record in (*dataset.splits.train, *dataset.splits.test):
    size = dataset.images[record.path].size
    mask_size = dataset.masks[record.mask].size if record.mask else None
    message = size and mask_size and layouts.mask_size_mismatch(record, size, mask_size)
    if record.mask and message:
      yield error(SIZE_MISMATCH, record.mask, message)


def _reduced_images(dataset: Dataset) -> Iterator[Problem]:
  """Yield a warning if scaling reduces images so much that small defects vanish."""
  if dataset.ops is None:
    return
  sizes = {path: image.size for path, image in dataset.images.items() if image.size}
  frames = {path: frame for path, size in sizes.items() if (frame := _frame(dataset.ops, size))}
  reductions = {path: _reduction(frame) for path, frame in frames.items()}
  reduced = [path for path, reduction in reductions.items() if reduction > _MAX_REDUCTION]
  if not reduced:
    return
  path = max(reduced, key=lambda path: reductions[path])
  scaled_size = frames[path].height, frames[path].width
  message = (
    f'{len(reduced)} of {len(reductions)} images are reduced more than {_MAX_REDUCTION:g} times, '
    f'such as {path}: {reductions[path]:.1f} times, from {_times(sizes[path])} to '
    f'{_times(scaled_size)} pixels. Small defects may be lost.'
  )
  hint = _hint_detail(dataset, path)
  yield warning('strong reduction', dataset.listing.directory, f'{message} {hint}')


def _small_defects(dataset: Dataset) -> Iterator[Problem]:
  """Yield a warning if scaling makes labeled defects smaller than a few cells of the map."""
  if dataset.ops is None:
    return
  min_area, small, total = _MIN_DEFECT_CELLS * _CELL_SIZE**2, dict[Path, float](), 0
  for record in dataset.splits.test:
    size = dataset.images[record.path].size
    fraction = dataset.masks[record.mask].defective_fraction if record.mask else 0.0
    frame = _frame(dataset.ops, size) if size and fraction else None
    if not size or not frame:
      continue
    total += 1
    if (area := fraction * math.prod((*size, *frame.scale))) < min_area:
      small[record.path] = area
  if small:
    path = min(small, key=lambda path: small[path])
    message = (
      f'The defects of {len(small)} of {total} images take less than {_MIN_DEFECT_CELLS} cells of '
      f'the anomaly map ({min_area} pixels after scaling), such as {path} ({small[path]:.0f} '
      'pixels). They are hard to find.'
    )
    hint = _hint_detail(dataset, path)
    yield warning('small defects', dataset.listing.directory, f'{message} {hint}')


def _frame(ops: transforms.Ops, size: tuple[int, int]) -> transforms.Frame | None:
  """Return what a scaled image shows; None if the image is too small for a crop."""
  with contextlib.suppress(DataError):
    return ops.frame(*size)
  return None


def _reduction(frame: transforms.Frame) -> float:
  """Return by how much scaling reduces an image along the axis where it does so more."""
  return 1 / min(frame.scale)


def _hint_detail(dataset: Dataset, path: Path) -> str:
  """Return the setting that keeps small defects, such as those of one image."""
  ops, size = dataset.ops, dataset.images[path].size
  assert ops is not None
  assert size is not None
  if not ops.is_tiled:
    sides = [max(image.size) for image in dataset.images.values() if image.size]
    tiles = f'fit_within({min(max(sides), 1024)})|tile(256, 32)'
    return f'Keep them with {Setting("data.ops", tiles)}.'
  if _reduction(ops.frame(*size)) > 1:
    return f'Raise the size before the tiles in {Setting("data.ops", str(ops))}.'
  return f'Its image is not reduced; use a finer stage in {Setting("detector.layers")}.'


def _times(size: tuple[int, int]) -> str:
  return f'{size[0]} x {size[1]}'


def _unused_defects(dataset: Dataset) -> Iterator[Problem]:
  """Yield a warning if the layout leaves out the defective images of the training set."""
  directory, splits = dataset.listing.directory, dataset.splits
  paths = {record.path for record in (*splits.train, *splits.test)}
  if unused := [r.path for r in dataset.listing.splits.train if r.path not in paths]:
    message = f'{len(unused)} training images in {directory} show defects, such as {unused[0]}'
    message += '; they are neither learned from nor tested, because there is a test set.'
    yield warning(DEFECT_IN_TRAINING, directory, message)


def _label_contradictions(dataset: Dataset) -> Iterator[Problem]:
  """Yield a problem for each image whose folder and mask contradict each other."""
  for path, defect, mask, *_ in dataset.splits.train:
    # `layouts.defects_in_training` reports the others.
    if mask and defect == GOOD and dataset.masks[mask].defective_fraction > 0:
      message = f'{path} is in a folder of good images, but its mask {mask} marks defects'
      yield error(DEFECT_IN_TRAINING, path, f'{message}; move it to a folder of defective ones.')
  for path, defect, mask, *_ in dataset.splits.test:
    if mask is None or not dataset.masks[mask].size:
      continue
    is_good, has_defect = defect == GOOD, dataset.masks[mask].defective_fraction > 0
    if is_good and has_defect:
      message = f'{path} is in a folder of good images, but its mask {mask} marks defects.'
      yield error('good image with defects', path, message)
    if not is_good and not has_defect:
      message = f'{mask} marks nothing with {Setting("data.mask", dataset.mask_reading)}'
      message = f'{message}, but {path} is in a folder of {defect} images.'
      yield warning('empty mask', mask, f'{message}{dataset.masks[mask].hint}')


def _unlabeled_images(dataset: Dataset) -> Iterator[Problem]:
  """Yield a warning for images without the mask that would make them defective."""
  if not dataset.listing.layout.labels_by_mask:
    return
  defects = {record.defect for record in dataset.splits.test if record.is_anomalous} - {'defect'}
  for path, defect, mask, *_ in (*dataset.listing.splits.train, *dataset.listing.splits.test):
    if mask is None and defect in defects:
      message = f'{path} has no mask, so it counts as good, unlike other images in {path.parent}.'
      yield warning('no mask', path, message)


def _missing_masks(dataset: Dataset) -> Iterator[Problem]:
  """Yield a warning for defective images without a mask, which pixel metrics exclude."""
  directory = dataset.listing.directory
  defective = [record for record in dataset.splits.test if record.is_anomalous]
  without_mask = [record for record in defective if record.mask is None]
  if not dataset.listing.layout.has_masks or not without_mask:
    return
  if without_mask == defective:
    message = f'None of the {len(defective)} defective images in {directory} has a mask'
    yield warning('no mask', directory, f'{message}; pixel metrics are omitted.')
    return
  for path, defect, *_ in without_mask:
    message = f'{path} is defective ({defect}) and has no mask; pixel metrics exclude it.'
    yield warning('no mask', path, message)


def _shared_masks(dataset: Dataset) -> Iterator[Problem]:
  path_by_mask: dict[Path, Path] = {}
  for path, defect, mask, *_ in dataset.splits.test:
    if mask and defect != GOOD and (first_path := path_by_mask.setdefault(mask, path)) != path:
      message = f'{mask} is the mask of both {first_path} and {path}'
      hint = f'give each its own, such as {path.name}_mask.png in the mvtec layout'
      yield warning('shared mask', mask, f'{message}; unless these images are copies, {hint}.')


def _duplicates(dataset: Dataset) -> Iterator[Problem]:
  """Yield a problem for each image whose pixels equal those of another image."""
  # Digest -> training records and test records.
  records_by_digest: dict[bytes, tuple[list[Record], list[Record]]] = {}
  for index, records in enumerate(dataset.splits):
    for record in records:
      if digest := dataset.images[record.path].digest:
        records_by_digest.setdefault(digest, ([], []))[index].append(record)
  for train, test in records_by_digest.values():
    split = 'training' if train else 'test'
    first, *others = train or test
    for path, *_ in others:
      message = f'{_with_twin(path, first.path)} is in the {split} set more than once.'
      yield warning('duplicate', path, message)
    for test_record in test if train else ():
      yield from _test_image_in_training(test_record, train)


def _test_image_in_training(test_record: Record, train: Sequence[Record]) -> Iterator[Problem]:
  """Yield errors for a test image whose pixels are also in the training set.

  A good one makes metrics too optimistic; a defective one must not be trained on.
  """
  path, defect, *_ = test_record
  if defect == GOOD:
    message = f'{_with_twin(path, train[0].path)} is in the test set and in the training set'
    yield error(IN_TRAIN_AND_TEST, path, f'{message}: metrics are too optimistic; remove one.')
  # `layouts.defects_in_training` already reports images whose own mask has a defect.
  for train_path in (r.path for r in train if defect != GOOD and not r.is_anomalous):
    message = f'{_with_twin(train_path, path)} is in the test set as defective ({defect})'
    yield error(DEFECT_IN_TRAINING, train_path, f'{message}; remove {train_path} from training.')


def _with_twin(path: Path, twin: Path) -> str:
  return f'{path}' if path == twin else f'{path} (the same image as {twin})'


def mark_near_duplicates(splits: Splits, images: Mapping[Path, Inspection]) -> Splits:
  """Set `Record.duplicate_of` of the readable good images; training images come first.

  Defective images are left alone, because a small defect changes the fingerprint but little.
  """
  fingerprints = {
    record.path: fingerprint
    for record in (*splits.train, *splits.test)
    if not record.is_anomalous and (fingerprint := images[record.path].fingerprint) is not None
  }
  if not fingerprints:
    return splits
  paths = [*fingerprints]
  groups = near_duplicates.group(np.stack([*fingerprints.values()]), paths)
  firsts = {path: paths[i] for path, i in zip(paths, groups, strict=True) if paths[i] != path}
  train, test = (
    tuple(r if r.is_anomalous else r._replace(duplicate_of=firsts.get(r.path)) for r in records)
    for records in splits
  )
  return Splits(train, test)


def _near_duplicates(dataset: Dataset) -> Iterator[Problem]:
  """Yield a warning for each good image that nearly equals another, but is no exact copy."""
  train_paths = {record.path for record in dataset.splits.train}
  for record in dict.fromkeys((*dataset.splits.train, *dataset.splits.test)):
    path, first = record.path, record.duplicate_of
    if first is None or dataset.images[path].digest == dataset.images[first].digest:
      continue
    if path not in train_paths and first in train_paths:
      message = (
        f'{path} is a near-duplicate of the training image {first}: metrics are too optimistic'
      )
      yield warning('near-duplicate in train and test', path, f'{message}; remove one.')
    else:
      effect = (
        'calibration counts them as one image' if path in train_paths else 'metrics count both'
      )
      yield warning('near-duplicate', path, f'{path} is a near-duplicate of {first}; {effect}.')


def _foreign_labels(dataset: Dataset) -> Iterator[Problem]:
  """Yield a warning for each tool whose label files lie below the dataset's folder unread."""
  (directory, _, _, layout), splits = dataset.listing, dataset.splits
  records = (*splits.train, *splits.test)
  if layout.labels_by_mask and records and all(record.mask for record in records):
    return
  labels = [(tool, directory / path) for path, _, tool in dataset.unused]
  if not layout.marker:  # Published datasets have lists of their own beside the folder.
    labels += label_files.find_beside(directory, {record.path.stem for record in records})
  effect = 'only folders and lists say whether an image is good'
  if layout.labels_by_mask:
    effect = 'every image without a mask counts as good'
  paths_by_tool, masks = dict[str, list[Path]](), list[Path]()
  for tool, path in labels:
    if tool == label_files.MASK:
      masks.append(path)
    elif tool not in ('', label_files.LIST):
      paths_by_tool.setdefault(tool, []).append(path)
  for tool, paths in paths_by_tool.items():
    folder, suffix = paths[0].parent, paths[0].suffix
    count = sum(path.parent == folder and path.suffix == suffix for path in paths)
    message = (
      f'{folder} has {count} *{suffix} files such as {paths[0]}, which look like labels of {tool}. '
      f'They are not read: {effect}.'
    )
    yield warning('labels of another tool', folder, f'{message} {label_files.way_out(tool)}')
  if masks and not any(record.mask for record in records):
    message = f'{len(masks)} masks such as {masks[0]} are not read, because they lie outside of'
    hint = f'move {masks[0].parent} into it'
    yield warning('masks outside of the folder', masks[0].parent, f'{message} {directory}; {hint}.')


def _small_splits(dataset: Dataset) -> Iterator[Problem]:
  """Yield a problem for each split that is too small or lacks good or defective images."""
  directory, (train, test), minimum = dataset.listing.directory, dataset.splits, dataset.min_images
  num_good = sum(not record.is_anomalous and not record.held_out for record in train)
  if train and num_good < minimum:  # The layout reports why there are none.
    message = f'{directory} has {num_good} good training images; at least {minimum} are needed.'
    yield error('too few images', directory, message)
  elif train and num_good < _FEW_IMAGES:
    needs = f'STFPM needs {_FEW_IMAGES}, and thresholds that promise a rate of false alarms need'
    message = f'{directory} has {num_good} good training image{"s" * (num_good > 1)}; {needs} more.'
    yield warning('few images', directory, message)
  if not test and directory / 'test' not in {p.path for p in dataset.listing.problems}:
    message = f'{directory} has no test images: a model can be trained, but not evaluated.'
    yield warning('empty split', directory, message)
  classes = {'defective' if record.is_anomalous else 'good' for record in test}
  for label in sorted({'good', 'defective'} - classes) if test else ():
    message = f'{directory} has no {label} test images; metrics that need both classes are omitted.'
    yield warning(f'no {label} test images', directory, message)


RULES: tuple[Callable[[Dataset], Iterator[Problem]], ...] = (
  _size_mismatches,
  lambda dataset: layouts.defects_in_training(dataset.splits.train),
  _unused_defects,
  _label_contradictions,
  _unlabeled_images,
  _missing_masks,
  _shared_masks,
  _duplicates,
  _near_duplicates,
  _foreign_labels,
  _small_splits,
  _reduced_images,
  _small_defects,
)
