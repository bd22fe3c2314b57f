"""Samples of a labeled source: images, each with a type of defect and a mask."""

from collections.abc import Callable, Sequence
import functools
import io
import os
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple
import unicodedata

from jaxtyping import Bool
import numpy as np
from PIL import Image

from uadjax.data import image_io
from uadjax.data.layouts import scanning
from uadjax.errors import DataError
from uadjax.system.progress import Progress

GOOD = 'good'
EXCLUDED_LABELS = ('__ignore__', '_background_')  # labelme's names of regions without a defect.


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


class ImageIndex(NamedTuple):
  """Index of the images below a folder, by names that ignore case and Unicode composition.

  Labels may come from Windows, which ignores case, or from macOS, which decomposes accents.
  """

  root: Path
  paths_by_name: dict[str, list[Path]]
  paths_by_stem: dict[str, list[Path]]

  def find_by_path(self, path: str) -> Path | None:
    """Return the image at a path relative to the root, preferring the exact spelling."""
    matches = [
      p
      for p in self.find_by_ending(path)
      if _normalize_path(self.relative_to_root(p)) == _normalize_path(path)
    ]
    exact_matches = [p for p in matches if self.relative_to_root(p) == path]
    return (exact_matches or matches)[0] if exact_matches or len(matches) == 1 else None

  def find_by_ending(self, path: str) -> list[Path]:
    """Return all images whose path ends with this relative path."""
    candidates = self.paths_by_name.get(_normalize_path(path.rpartition('/')[2]), [])
    return [
      p
      for p in candidates
      if f'/{_normalize_path(self.relative_to_root(p))}'.endswith(f'/{_normalize_path(path)}')
    ]

  def find_by_stem(self, path: str) -> list[Path]:
    """Return all images at a path relative to the root, which is given without suffix."""
    candidates = self.paths_by_stem.get(_normalize_path(path.rpartition('/')[2]), [])
    return [
      p
      for p in candidates
      if _normalize_path(strip_suffix(self.relative_to_root(p))) == _normalize_path(path)
    ]

  def relative_to_root(self, path: Path) -> str:
    """Return the path of an image relative to the root, with '/'."""
    return path.relative_to(self.root).as_posix()

  def __iter__(self):
    """Iterate over the images, sorted by path."""
    return iter(sorted(path for paths in self.paths_by_name.values() for path in paths))


def index_images(root: Path) -> ImageIndex:
  """Build the index of the images below a folder."""
  index = ImageIndex(root, {}, {})
  for path in find_files(root, *scanning.SUFFIXES):
    index.paths_by_name.setdefault(_normalize_path(path.name), []).append(path)
    index.paths_by_stem.setdefault(_normalize_path(path.stem), []).append(path)
  return index


def find_files(root: Path, *suffixes: str) -> list[Path]:
  """Return all files below a folder with one of the suffixes, ignoring case and hidden files."""
  return sorted(
    path
    for path in root.rglob('*')
    if path.suffix.lower() in suffixes
    and not any(component.startswith('.') for component in path.relative_to(root).parts)
    and path.is_file()
  )


def to_posix(path: str) -> str:
  """Normalize a path of Windows or any other system: with '/' and without '.' and 'a/..'."""
  return os.path.normpath(PureWindowsPath(path).as_posix())


def strip_suffix(path: str) -> str:
  """Return a path without the suffix of its last component."""
  return path[: len(path) - len(Path(path).suffix)]


def collect_samples(
  jobs: Sequence[Callable[[], Sample]], progress: Progress, description: str
) -> tuple[list[Sample], list[str]]:
  """Run all jobs; return their samples and the messages of the DataErrors that they raised."""
  results: list[Sample] = []
  problems: list[str] = []
  for read_sample in progress(jobs, len(jobs), description):
    try:
      results.append(read_sample())
    except DataError as error:
      problems.extend(str(error).splitlines())
  return results, problems


def good_sample(name: str, image: Path | bytes, held_out: bool = False) -> Sample:
  """Return a sample without defects."""
  return Sample(name, image, GOOD, _encode_empty_mask(*image_io.image_size(image)), held_out)


def sample_from_shapes(
  name: str, image: Path | bytes, shapes: Sequence[Shape], held_out: bool = False
) -> Sample:
  """Return a sample whose mask is made of shapes painted over each other in their order.

  A later shape with an excluded label cuts a hole into those below it. An image with several types
  of defects has the type 'combined', as in MVTec AD.

  Raises:
    DataError: a shape covers no pixel or is labeled as good; the message has a line for each.
  """
  height, width = image_io.image_size(image)
  problems = [problem for shape in shapes if (problem := _shape_problem(name, shape))]
  if problems:
    raise DataError('\n'.join(problems))
  canvas = np.zeros((height, width), np.int32)
  for layer, shape in enumerate(shapes, 1):
    canvas[shape.mask] = 0 if shape.label in EXCLUDED_LABELS else layer
  visible_shapes = [shapes[layer - 1] for layer in np.unique(canvas) if layer]
  if not visible_shapes:
    return good_sample(name, image, held_out)
  labels = {shape.label for shape in visible_shapes}
  defect = labels.pop() if len(labels) == 1 else 'combined'
  return Sample(
    name,
    image,
    defect,
    encode_png(canvas > 0),
    held_out,
    sum(shape.is_box for shape in visible_shapes),
  )


def require_matching_size(
  image: Path | bytes, name: str, labeled_height: Any, labeled_width: Any
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
  size = image_io.image_size(image)
  if labeled_height and labeled_width and (labeled_height, labeled_width) != size:
    raise DataError(
      f'{name}: labeled as {labeled_width}x{labeled_height} pixels, but the image is '
      f'{size[1]}x{size[0]}.'
    )
  return size


def encode_png(mask: Bool[np.ndarray, 'h w']) -> bytes:
  """Encode a mask as a PNG with 255 where it is True and 0 elsewhere."""
  buffer = io.BytesIO()
  Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, 'PNG')
  return buffer.getvalue()


@functools.lru_cache(8)  # Most images of a source have the same size.
def _encode_empty_mask(height: int, width: int) -> bytes:
  return encode_png(np.zeros((height, width), bool))


def _shape_problem(name: str, shape: Shape) -> str | None:
  if not shape.mask.any():
    return f'{name}: a shape {shape.label!r} lies outside of the image or covers no pixel.'
  if shape.label.strip().lower() in scanning.NORMAL_FOLDER_NAMES:
    return (
      f"{name}: a shape is labeled {shape.label!r}; label it '_background_' if it is not a defect."
    )
  return None


def _normalize_path(path: str) -> str:
  return unicodedata.normalize('NFC', path).casefold()
