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
from uadjax.system.progress import Track

GOOD = 'good'
EXCLUDED = ('__ignore__', '_background_')  # Labels that mark no defect, as labelme names them.


class Shape(NamedTuple):
  """A region and what it was called.

  Attributes:
    label: type of the defect, or one of EXCLUDED.
    mask: the pixels it covers.
    box: whether it is a mere bounding box.
  """

  label: str
  mask: Bool[np.ndarray, 'h w']
  box: bool = False


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
  boxes: int = 0


class Found(NamedTuple):
  """A source as read: every image that can be used, and one line for everything that cannot."""

  samples: Sequence[Sample]
  problems: Sequence[str]
  notes: Sequence[str] = ()


class Gallery(NamedTuple):
  """The images below a folder, found by names that other machines may spell another way.

  Labeling happens on Windows, where case does not count, and on macOS, which takes accents apart.
  """

  root: Path
  by_name: dict[str, list[Path]]
  by_stem: dict[str, list[Path]]

  def named(self, path: str) -> Path | None:
    """The image at a path relative to the root; its exact spelling comes first."""
    same = [p for p in self.ending(path) if _key(self.relative(p)) == _key(path)]
    exact = [p for p in same if self.relative(p) == path]
    return (exact or same)[0] if exact or len(same) == 1 else None

  def ending(self, path: str) -> list[Path]:
    """All images whose path ends with this one."""
    candidates = self.by_name.get(_key(path.rpartition('/')[2]), [])
    return [p for p in candidates if f'/{_key(self.relative(p))}'.endswith(f'/{_key(path)}')]

  def stem(self, path: str) -> list[Path]:
    """All images at a path relative to the root that is given without suffix."""
    candidates = self.by_stem.get(_key(path.rpartition('/')[2]), [])
    return [p for p in candidates if _key(without_suffix(self.relative(p))) == _key(path)]

  def relative(self, path: Path) -> str:
    """An image's path relative to the root, with '/'."""
    return path.relative_to(self.root).as_posix()

  def __iter__(self):
    """The images, sorted."""
    return iter(sorted(path for paths in self.by_name.values() for path in paths))


def gallery(root: Path) -> Gallery:
  """List the images below a folder."""
  found = Gallery(root, {}, {})
  for path in below(root, *scanning.SUFFIXES):
    found.by_name.setdefault(_key(path.name), []).append(path)
    found.by_stem.setdefault(_key(path.stem), []).append(path)
  return found


def below(root: Path, *suffixes: str) -> list[Path]:
  """All files below a folder with one of the suffixes, in any case; hidden ones are passed over."""
  return sorted(
    path
    for path in root.rglob('*')
    if path.suffix.lower() in suffixes
    and not any(part.startswith('.') for part in path.relative_to(root).parts)
    and path.is_file()
  )


def posix(path: str) -> str:
  r"""A path as Windows or any other system wrote it, with '/' and without '.' and 'a/..'."""
  return os.path.normpath(PureWindowsPath(path).as_posix())


def without_suffix(path: str) -> str:
  """A path with '/', less the suffix of its last part."""
  return path[: len(path) - len(Path(path).suffix)]


def collect(
  jobs: Sequence[Callable[[], Sample]], track: Track, what: str
) -> tuple[list[Sample], list[str]]:
  """Run all jobs; the second list has a line for every problem that one of them raised."""
  samples: list[Sample] = []
  problems: list[str] = []
  for job in track(jobs, len(jobs), what):
    try:
      samples.append(job())
    except DataError as error:
      problems.extend(str(error).splitlines())
  return samples, problems


def good(name: str, image: Path | bytes, held_out: bool = False) -> Sample:
  """An image without defects."""
  return Sample(name, image, GOOD, _empty(*image_io.image_size(image)), held_out)


def drawn(
  name: str, image: Path | bytes, shapes: Sequence[Shape], held_out: bool = False
) -> Sample:
  """An image whose shapes are painted one over the other.

  So a later shape with an excluded label cuts a hole into those below it. An image that shows
  defects of several types is 'combined', as in MVTec AD.

  Raises:
    DataError: shapes that cover no pixel or are called good, a line for each.
  """
  height, width = image_io.image_size(image)
  problems = [problem for shape in shapes if (problem := _problem(name, shape))]
  if problems:
    raise DataError('\n'.join(problems))
  canvas = np.zeros((height, width), np.int32)
  for number, shape in enumerate(shapes, 1):
    canvas[shape.mask] = 0 if shape.label in EXCLUDED else number
  seen = [shapes[number - 1] for number in np.unique(canvas) if number]
  if not seen:
    return good(name, image, held_out)
  types = {shape.label for shape in seen}
  defect = types.pop() if len(types) == 1 else 'combined'
  return Sample(name, image, defect, png(canvas > 0), held_out, sum(s.box for s in seen))


def fits(image: Path | bytes, name: str, height: Any, width: Any) -> tuple[int, int]:
  """The size of an image; DataError where its labels were made for another one."""
  size = image_io.image_size(image)
  if height and width and (height, width) != size:
    raise DataError(
      f'{name}: labeled as {width}x{height} pixels, but the image is {size[1]}x{size[0]}.'
    )
  return size


def png(mask: Bool[np.ndarray, 'h w']) -> bytes:
  """Encode a mask: 255 where true."""
  buffer = io.BytesIO()
  Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, 'PNG')
  return buffer.getvalue()


@functools.lru_cache(8)  # Most images of a source have one size.
def _empty(height: int, width: int) -> bytes:
  return png(np.zeros((height, width), bool))


def _problem(name: str, shape: Shape) -> str | None:
  if not shape.mask.any():
    return f'{name}: a shape {shape.label!r} lies outside of the image or covers no pixel.'
  if shape.label.strip().lower() in scanning.NORMAL:
    return f"{name}: a shape is called {shape.label!r}; call it '_background_' if it is no defect."
  return None


def _key(path: str) -> str:
  return unicodedata.normalize('NFC', path).casefold()
