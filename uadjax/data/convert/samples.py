"""Samples of a labeled source, and functions that the readers of all formats share."""

import collections
from collections.abc import Callable, Iterable, Sequence
import io
from pathlib import Path
import re
from typing import NamedTuple, TypeVar

from jaxtyping import UInt
import numpy as np
from PIL import Image

from uadjax.data import image_io
from uadjax.data.convert.outlines import Patch
from uadjax.data.layouts import scanning
from uadjax.data.records import GOOD
from uadjax.errors import DataError
from uadjax.system.progress import no_progress, Progress

EXCLUDED_LABELS = ('__ignore__', '_background_')  # labelme's names of regions without a defect.

BOXES_FILLED = (
  'Bounding boxes were filled. Trust only image metrics: pixel metrics count the good pixels in a '
  'box as defective'
)
_NOTHING_MARKED = 'Labels that mark nothing, like a click by accident, were ignored'
_WHOLE_IMAGE = (
  'Labels call an image defective but mark no region, so its mask covers the whole image. Trust '
  'only image metrics'
)
_HELD_OUT = (
  'Good images of folders, files and lists for testing, such as valid/, are not learned from'
)

_HELD_OUT_NAMES = {'val', 'valid', 'validation', 'test'}
_UNSPECIFIC_NAMES = {'', 'data', 'image', 'images', 'set'}  # As in test_images/ and val2017/.
_NUM_EXAMPLES = 3  # Locations that a note lists.

Item = TypeVar('Item')
Result = TypeVar('Result')


class Remark(NamedTuple):
  """Decision of a reader that the user should know.

  Attributes:
    text: sentence without a full stop; notes group remarks of the same text.
    location: image or label that the decision is about.
  """

  text: str
  location: str


class Shape(NamedTuple):
  """Labeled region of an image.

  Attributes:
    label: type of the defect, or one of `EXCLUDED_LABELS`.
    patches: parts of the region; none if the label is about the whole image.
    remark: text of a remark about the region; '' for none.
  """

  label: str
  patches: Sequence[Patch] = ()
  remark: str = ''


class Sample(NamedTuple):
  """Image of a source with its label and mask.

  Attributes:
    name: path of the image below the folder of its defect, with '/'.
    image: file of the image, or its content if the source embeds it.
    defect: 'good', or the type of defect.
    mask: encoded PNG, 255 where defective.
    held_out: whether the source itself excludes the image from training.
    remarks: decisions about the image.
  """

  name: str
  image: Path | bytes
  defect: str
  mask: bytes
  held_out: bool = False
  remarks: Sequence[Remark] = ()


class SourceContents(NamedTuple):
  """Usable images of a source, one message for each problem, notes and remarks for the user."""

  samples: Sequence[Sample]
  problems: Sequence[str]
  notes: Sequence[str] = ()
  remarks: Sequence[Remark] = ()


def summarize(remarks: Iterable[Remark]) -> list[str]:
  """Return one note per text of the remarks, with their number and some of their locations."""
  locations: dict[str, list[str]] = collections.defaultdict(list)
  for text, location in remarks:
    locations[text].append(location)
  return [
    f'{text} ({len(places)}): {"; ".join(places[:_NUM_EXAMPLES])}'
    f'{"; …" if len(places) > _NUM_EXAMPLES else "."}'
    for text, places in locations.items()
  ]


def collect(
  read: Callable[[Item], Result], items: Sequence[Item], progress: Progress = no_progress
) -> tuple[list[Result], list[str]]:
  """Read all items; return the results, and the lines of the DataErrors that were raised."""
  results: list[Result] = []
  problems: list[str] = []
  for item in progress(items, len(items), 'Reading labels'):
    try:
      results.append(read(item))
    except DataError as error:
      problems.extend(str(error).splitlines())
  return results, problems


def make_sample(
  name: str,
  image: Path | bytes,
  entries: Sequence[tuple[str, Item]] = (),
  read: Callable[[Item], Shape | None] | None = None,
  held_out: bool = False,
  remarks: Sequence[Remark] = (),
  label_name: str = '',
) -> Sample:
  """Return a sample whose mask is made of shapes painted over each other in their order.

  Without visible shapes, the image is good, unless a label calls the whole image defective. A later
  shape with an excluded label cuts a hole into those below it. An image with several types of
  defects has the type 'combined', as in MVTec AD.

  Args:
    name: path of the image, with '/'.
    image: file of the image, or its content.
    entries: labels as the file has them, with their location, which begins messages.
    read: function that converts an entry to a shape, or to None if it marks nothing. Only one
      shape is in memory at a time.
    held_out: whether the source excludes the image from training. Folders called valid or test in
      the paths of the image and its label file do so, too.
    remarks: decisions about the image so far.
    label_name: path of the label file, if it has a folder of its own.

  Raises:
    DataError: a shape is invalid, covers no pixel or is labeled as good, labels contradict each
      other, or an image without a defect lies in a folder named after defects; the message has a
      line for each.
  """
  canvas = np.zeros(image_io.image_size(image), np.min_scalar_type(len(entries) + 1))
  visible, image_labels, new_remarks = _paint_entries(entries, read, canvas)
  remarks = [*remarks, *new_remarks]
  remarks += [Remark(shape.remark, location) for shape, location in visible if shape.remark]
  defects = {shape.label for shape, _ in visible}
  if not defects and (defects := _image_defects(image_labels)):
    canvas[:] = 1
    remarks.append(Remark(_WHOLE_IMAGE, name))
  _require_no_contradiction(name, image_labels, defects)
  if not defects and not image_labels:
    _require_no_defect_folder(name)
  held_out = held_out or any(map(_is_in_held_out_folder, (name, label_name)))
  if held_out and not defects:
    remarks.append(Remark(_HELD_OUT, name))
  defect = 'combined' if len(defects) > 1 else next(iter(defects), GOOD)
  return Sample(name, image, defect, _encode(canvas), held_out, remarks)


def _paint_entries(
  entries: Sequence[tuple[str, Item]],
  read: Callable[[Item], Shape | None] | None,
  canvas: UInt[np.ndarray, 'h w'],
) -> tuple[list[tuple[Shape, str]], list[str], list[Remark]]:
  """Paint the shapes of labels, each with the number of its entry from 1.

  Returns:
    The shapes that remain visible, without patches, with their locations; the labels of the whole
    image; remarks.

  Raises:
    DataError: entries are invalid; the message has a line for each.
  """
  painted: dict[int, tuple[Shape, str]] = {}
  image_labels, remarks, problems = list[str](), list[Remark](), list[str]()
  for layer, (location, entry) in enumerate(entries, 1):
    try:
      shape = read(entry) if read else None
      if shape is None:
        remarks.append(Remark(_NOTHING_MARKED, location))
      elif not shape.patches:
        image_labels.append(shape.label)
        remarks += [Remark(shape.remark, location)] if shape.remark else []
      else:
        _paint(shape, canvas, layer)
        painted[layer] = shape._replace(patches=()), location
    except DataError as error:
      problems.append(f'{location}: {str(error).rstrip(".")}.')
  if problems:
    raise DataError('\n'.join(problems))
  visible = [painted[layer] for layer in np.unique(canvas[canvas > 0]).tolist()]
  return visible, image_labels, remarks


def _paint(shape: Shape, canvas: UInt[np.ndarray, 'h w'], layer: int) -> None:
  """Paint a shape.

  Raises:
    DataError: it covers no pixel, or is labeled as good.
  """
  if not any(patch.mask.any() for patch in shape.patches):
    raise DataError(f'a shape {shape.label!r} lies outside of the image or covers no pixel')
  if scanning.is_normal(shape.label.strip()):
    raise DataError(f"a shape is labeled {shape.label!r}; if good, label it '_background_'")
  for patch in shape.patches:
    patch.paint(canvas, 0 if shape.label in EXCLUDED_LABELS else layer)


def _image_defects(image_labels: Sequence[str]) -> set[str]:
  """Return the types of defects that labels of a whole image name."""
  return {label for label in image_labels if not scanning.is_normal(label.strip())}


def _require_no_contradiction(name: str, image_labels: Sequence[str], defects: set[str]) -> None:
  good_labels = sorted({*image_labels} - _image_defects(image_labels))
  if good_labels and defects:
    message = f'{name}: labeled {good_labels[0]!r} as a whole, but also {sorted(defects)[0]!r}'
    raise DataError(f'{message}; delete one of the labels.')


def _require_no_defect_folder(name: str) -> None:
  """Raise a DataError if a folder in the path of a good image is named after defects."""
  if folder := next(filter(scanning.is_defective, Path(name).parts[:-1]), ''):
    message = f'{name}: no label marks a defect, but its folder {folder!r} is named after defects'
    raise DataError(f'{message}; label it, move it out if it is good, or rename the folder.')


def _encode(canvas: UInt[np.ndarray, 'h w']) -> bytes:
  png = io.BytesIO()
  Image.fromarray(np.uint8(255) * (canvas > 0)).save(png, 'PNG')
  return png.getvalue()


def _is_in_held_out_folder(name: str) -> bool:
  """Return whether a folder in a path, such as valid/ or test_images/, is not for training."""
  folders = (re.split('[^a-z]+', folder.lower()) for folder in Path(name).parts[:-1])
  names = ({*words} - _UNSPECIFIC_NAMES for words in folders)
  return any(words and words <= _HELD_OUT_NAMES for words in names)


def lists_held_out_images(name: str) -> bool:
  """Return whether the path of a list, such as instances_val2017.json, has a word for test sets."""
  return not _HELD_OUT_NAMES.isdisjoint(re.split('[^a-z]+', name.lower()))


def require_matching_size(
  image: Path | bytes, name: str, labeled_height: object, labeled_width: object
) -> tuple[int, int]:
  """Return height and width of an image, which must agree with the labeled size if that is known.

  Args:
    image: file of the image, or its content.
    name: name of the image in messages.
    labeled_height: height according to the labels; None or 0 if unknown.
    labeled_width: width according to the labels; None or 0 if unknown.

  Raises:
    DataError: the labels were made for an image of another size.
  """
  height, width = size = image_io.image_size(image)
  if labeled_height and labeled_width and (labeled_height, labeled_width) != size:
    labeled_size = f'{labeled_width}x{labeled_height} pixels'
    raise DataError(f'{name}: labeled as {labeled_size}, but the image is {width}x{height}.')
  return size
