"""What every labeled source becomes: images, each with a type of defect and a mask."""

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
EXCLUDED_LABELS = (
  '__ignore__',
  '_background_',
)  # Labels that mark no defect, as labelme names them.


class Shape(NamedTuple):
  """A region and what it was called.

  Attributes:
    label: type of the defect, or one of EXCLUDED.
    mask: the pixels it covers.
    box: whether it is a mere bounding box.
  """

  label: str
  mask: Bool[np.ndarray, 'h w']
  is_box: bool = False


class Sample(NamedTuple):
  """One image of a source.

  Attributes:
    name: its path below the images of its type, with '/'.
    image: the file, or its content where the source embeds it.
    defect: 'good', or the type.
    mask: a PNG, 255 where defective.
    held_out: whether the source itself keeps the image from training.
    boxes: number of its defects that are mere bounding boxes.
  """

  name: str
  image: Path | bytes
  defect: str
  mask: bytes
  held_out: bool = False
  num_boxes: int = 0


class SourceContents(NamedTuple):
  """A source as read: every image that can be used, and one line for everything that cannot."""

  samples: Sequence[Sample]
  problems: Sequence[str]
  notes: Sequence[str] = ()


class ImageIndex(NamedTuple):
  """The images below a folder, found by names that other machines may spell another way.

  Labeling happens on Windows, where case does not count, and on macOS, which takes accents apart.
  """

  root: Path
  paths_by_name: dict[str, list[Path]]
  paths_by_stem: dict[str, list[Path]]

  def find_by_path(self, path: str) -> Path | None:
    """The image at a path relative to the root; its exact spelling comes first."""
    matches = [
      p
      for p in self.find_by_ending(path)
      if _normalize_path(self.relative_to_root(p)) == _normalize_path(path)
    ]
    exact_matches = [p for p in matches if self.relative_to_root(p) == path]
    return (exact_matches or matches)[0] if exact_matches or len(matches) == 1 else None

  def find_by_ending(self, path: str) -> list[Path]:
    """All images whose path ends with this one."""
    candidates = self.paths_by_name.get(_normalize_path(path.rpartition('/')[2]), [])
    return [
      p
      for p in candidates
      if f'/{_normalize_path(self.relative_to_root(p))}'.endswith(f'/{_normalize_path(path)}')
    ]

  def find_by_stem(self, path: str) -> list[Path]:
    """All images at a path relative to the root that is given without suffix."""
    candidates = self.paths_by_stem.get(_normalize_path(path.rpartition('/')[2]), [])
    return [
      p
      for p in candidates
      if _normalize_path(strip_suffix(self.relative_to_root(p))) == _normalize_path(path)
    ]

  def relative_to_root(self, path: Path) -> str:
    """An image's path relative to the root, with '/'."""
    return path.relative_to(self.root).as_posix()

  def __iter__(self):
    """The images, sorted."""
    return iter(sorted(path for paths in self.paths_by_name.values() for path in paths))


def index_images(root: Path) -> ImageIndex:
  """List the images below a folder."""
  index = ImageIndex(root, {}, {})
  for path in find_files(root, *scanning.SUFFIXES):
    index.paths_by_name.setdefault(_normalize_path(path.name), []).append(path)
    index.paths_by_stem.setdefault(_normalize_path(path.stem), []).append(path)
  return index


def find_files(root: Path, *suffixes: str) -> list[Path]:
  """All files below a folder with one of the suffixes, in any case; hidden ones are passed over."""
  return sorted(
    path
    for path in root.rglob('*')
    if path.suffix.lower() in suffixes
    and not any(component.startswith('.') for component in path.relative_to(root).parts)
    and path.is_file()
  )


def to_posix(path: str) -> str:
  r"""A path as Windows or any other system wrote it, with '/' and without '.' and 'a/..'."""
  return os.path.normpath(PureWindowsPath(path).as_posix())


def strip_suffix(path: str) -> str:
  """A path with '/', less the suffix of its last part."""
  return path[: len(path) - len(Path(path).suffix)]


def collect_samples(
  jobs: Sequence[Callable[[], Sample]], progress: Progress, description: str
) -> tuple[list[Sample], list[str]]:
  """Run all jobs; the second list has a line for every problem that one of them raised."""
  results: list[Sample] = []
  problems: list[str] = []
  for read_sample in progress(jobs, len(jobs), description):
    try:
      results.append(read_sample())
    except DataError as error:
      problems.extend(str(error).splitlines())
  return results, problems


def good_sample(name: str, image: Path | bytes, held_out: bool = False) -> Sample:
  """An image without defects."""
  return Sample(name, image, GOOD, _encode_empty_mask(*image_io.image_size(image)), held_out)


def sample_from_shapes(
  name: str, image: Path | bytes, shapes: Sequence[Shape], held_out: bool = False
) -> Sample:
  """An image whose shapes are painted one over the other.

  So a later shape with an excluded label cuts a hole into those below it. An image that shows
  defects of several types is 'combined', as in MVTec AD.

  Raises:
    DataError: shapes that cover no pixel or are called good, a line for each.
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
    sum(shape.box for shape in visible_shapes),
  )


def require_matching_size(
  image: Path | bytes, name: str, labeled_height: Any, labeled_width: Any
) -> tuple[int, int]:
  """The size of an image; DataError where its labels were made for another one."""
  size = image_io.image_size(image)
  if labeled_height and labeled_width and (labeled_height, labeled_width) != size:
    raise DataError(
      f'{name}: labeled as {labeled_width}x{labeled_height} pixels, but the image is {size[1]}x{size[0]}.'
    )
  return size


def encode_png(mask: Bool[np.ndarray, 'h w']) -> bytes:
  """Encode a mask: 255 where true."""
  buffer = io.BytesIO()
  Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, 'PNG')
  return buffer.getvalue()


@functools.lru_cache(8)  # Most images of a source have one size.
def _encode_empty_mask(height: int, width: int) -> bytes:
  return encode_png(np.zeros((height, width), bool))


def _shape_problem(name: str, shape: Shape) -> str | None:
  if not shape.mask.any():
    return f'{name}: a shape {shape.label!r} lies outside of the image or covers no pixel.'
  if shape.label.strip().lower() in scanning.NORMAL_FOLDER_NAMES:
    return f"{name}: a shape is called {shape.label!r}; call it '_background_' if it is no defect."
  return None


def _normalize_path(path: str) -> str:
  return unicodedata.normalize('NFC', path).casefold()
