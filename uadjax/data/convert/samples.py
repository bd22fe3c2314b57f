"""Samples of a labeled source, and functions that the readers of all formats share."""

import collections
from collections.abc import Callable, Iterable, Sequence
import io
import json
import os
from pathlib import Path, PureWindowsPath
from typing import NamedTuple, TypeVar
import unicodedata

from jaxtyping import Bool
import numpy as np
from PIL import Image

from uadjax.data import image_io
from uadjax.data.layouts import scanning
from uadjax.data.records import GOOD
from uadjax.errors import DataError
from uadjax.system.progress import no_progress, Progress

EXCLUDED_LABELS = ('__ignore__', '_background_')  # labelme's names of regions without a defect.

Item = TypeVar('Item')
Result = TypeVar('Result')


class Shape(NamedTuple):
  """Labeled region of an image.

  Attributes:
    label: type of the defect, or one of `EXCLUDED_LABELS`.
    mask: pixels that the region covers.
    is_box: whether the region is only a bounding box.
  """

  label: str
  mask: Bool[np.ndarray, 'h w']
  is_box: bool = False


class Sample(NamedTuple):
  """Image of a source with its label and mask.

  Attributes:
    name: path of the image below the folder of its defect, with '/'.
    image: file of the image, or its content if the source embeds it.
    defect: 'good', or the type of defect.
    mask: encoded PNG, 255 where defective.
    held_out: whether the source itself excludes the image from training.
    num_boxes: number of defects that are only bounding boxes.
  """

  name: str
  image: Path | bytes
  defect: str
  mask: bytes
  held_out: bool = False
  num_boxes: int = 0


class SourceContents(NamedTuple):
  """Usable images of a source, one message for each problem, and notes for the user."""

  samples: Sequence[Sample]
  problems: Sequence[str]
  notes: Sequence[str] = ()


class ImageIndex:
  """Index of the images below a folder, by names that ignore case and Unicode composition.

  Labels may come from Windows, which ignores case, or from macOS, which decomposes accents.

  Attributes:
    root: the folder.
    paths: files of the images, sorted.
  """

  def __init__(self, root: Path):
    self.root, self.paths = root, sorted(scanning.find_files(root))
    self._by_ending: dict[str, list[Path]] = collections.defaultdict(list)
    self._by_stem: dict[str, list[Path]] = collections.defaultdict(list)
    for path in self.paths:
      name = _normalize_path(self.relative_to_root(path))
      components = name.split('/')
      for i in range(len(components)):
        self._by_ending['/'.join(components[i:])].append(path)
      self._by_stem[strip_suffix(name)].append(path)

  def relative_to_root(self, path: Path) -> str:
    """Return the path of an image relative to the root, with '/'."""
    return path.relative_to(self.root).as_posix()

  def find_by_path(self, path: str) -> Path | None:
    """Return the image at a path relative to the root, preferring the exact spelling."""
    exact_path = self.root / path
    num_parts = len(exact_path.parts)
    matches = [match for match in self.find_by_ending(path) if len(match.parts) == num_parts]
    if exact_path in matches:
      return exact_path
    return matches[0] if len(matches) == 1 else None

  def find_by_ending(self, path: str) -> list[Path]:
    """Return all images whose path ends with this relative path."""
    return self._by_ending.get(_normalize_path(path), [])

  def find_by_stem(self, path: str) -> list[Path]:
    """Return all images at a path relative to the root, which is given without suffix."""
    return self._by_stem.get(_normalize_path(path), [])


def to_posix(path: str) -> str:
  """Normalize a path of Windows or any other system: with '/' and without '.' and 'a/..'."""
  return os.path.normpath(PureWindowsPath(path).as_posix())


def strip_suffix(path: str) -> str:
  """Return a path without the suffix of its last component."""
  return path[: len(path) - len(Path(path).suffix)]


def read_lines(path: Path) -> list[str]:
  """Return the lines of a text file that are not blank; none if the file does not exist."""
  text = path.read_text('utf-8-sig', errors='replace') if path.is_file() else ''
  return [line.strip() for line in text.splitlines() if line.strip()]


def read_json(path: Path, name: str, tool: str, list_keys: Sequence[str]) -> dict[str, object]:
  """Read a labeling tool's JSON file.

  Args:
    path: the file.
    name: name of the file in messages.
    tool: name of the tool in messages.
    list_keys: keys that must have a list as their value.

  Raises:
    DataError: the file cannot be read, or is not JSON of that tool in UTF-8.
  """
  try:
    content = json.loads(path.read_text('utf-8-sig'))
  except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError.
    raise DataError(f'{name}: not JSON in UTF-8: {error}.') from None
  except OSError as error:
    raise DataError(f'{name}: cannot be read: {error.strerror}.') from None
  content = content if isinstance(content, dict) else {}
  for key in list_keys:
    if not isinstance(content.get(key), list):
      message = f'{name}: not a {tool} file, because it has no list {key!r}; move it elsewhere.'
      raise DataError(message)
  return content


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


def read_shapes(read: Callable[[Item], Shape], entries: Iterable[tuple[str, Item]]) -> list[Shape]:
  """Read the shapes of an image.

  Args:
    read: function that converts one of the entries.
    entries: labels as the file has them, with their location, which begins messages.

  Raises:
    DataError: `read` raised a DataError; the message has a line for each.
  """
  shapes: list[Shape] = []
  problems: list[str] = []
  for location, entry in entries:
    try:
      shapes.append(read(entry))
    except DataError as error:
      problems.append(f'{location} {error}.')
  if problems:
    raise DataError('\n'.join(problems))
  return shapes


def sample_from_shapes(
  name: str, image: Path | bytes, shapes: Sequence[Shape], held_out: bool = False
) -> Sample:
  """Return a sample whose mask is made of shapes painted over each other in their order.

  Without visible shapes, the image is good. A later shape with an excluded label cuts a hole into
  those below it. An image with several types of defects has the type 'combined', as in MVTec AD.

  Raises:
    DataError: a shape covers no pixel or is labeled as good; the message has a line for each.
  """
  problems, canvas = [], np.zeros(image_io.image_size(image), np.int32)
  for layer, (label, mask, _) in enumerate(shapes, 1):
    if not mask.any():
      problems.append(f'{name}: a shape {label!r} lies outside of the image or covers no pixel.')
    elif scanning.is_normal(label.strip()):
      problems.append(f"{name}: a shape is labeled {label!r}; if good, label it '_background_'.")
    canvas[mask] = 0 if label in EXCLUDED_LABELS else layer
  if problems:
    raise DataError('\n'.join(problems))
  visible = [shapes[layer - 1] for layer in np.unique(canvas) if layer]
  labels = {shape.label for shape in visible} or {GOOD}
  defect = labels.pop() if len(labels) == 1 else 'combined'
  png = io.BytesIO()
  Image.fromarray(np.uint8(255) * (canvas > 0)).save(png, 'PNG')
  num_boxes = sum(shape.is_box for shape in visible)
  return Sample(name, image, defect, png.getvalue(), held_out, num_boxes)


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


def _normalize_path(path: str) -> str:
  return unicodedata.normalize('NFC', path).casefold()
