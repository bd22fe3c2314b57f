"""A data set that is drawn: parts and materials as an inspection camera sees them.

It is there before any real image is, and every pixel of its truth is known. What varies among good
pictures (light, place, grain, weave, noise) is what a detector must learn to pass over.

Defects were made as strong as it takes for the demo to be neither trivial nor hopeless.
"""

from collections.abc import Iterator, Sequence
import concurrent.futures
import contextlib
import os
from pathlib import Path
import tempfile
from typing import NamedTuple

import numpy as np
from PIL import Image

from uadjax.data.demo import picture
from uadjax.errors import ConfigError, UnknownName
from uadjax.system import files
from uadjax.system.progress import silently, Track

CATEGORY = 'disc'  # Where none is named.
TEXTURES, OBJECTS = ('fabric', 'steel', 'wood'), ('board', 'disc')
CATEGORIES = tuple(sorted(picture.PRODUCTS))
VERSION = 2  # Of the drawing.

_GROUPS = {'all': CATEGORIES, 'textures': TEXTURES, 'objects': OBJECTS}
_SMALLEST = 16  # Pixels; a washer's ring has four then.
_RUNS = 3  # Of zlib: noise holds no longer repeats; as small as others, at a fraction of the time.
_WHOLE = {'train': 60, 'test_good': 15, 'test_defect': 4, 'size': 256}


class _Job(NamedTuple):
  category: str
  part: str
  defect: str
  number: int
  seed: int
  size: int


def draw(
  directory: str | Path,
  seed: int = 0,
  train: int = 24,
  test_good: int = 6,
  test_defect: int = 6,
  size: int = 96,
  categories: Sequence[str] = (CATEGORY,),
  defects: Sequence[str] = ('missing', 'scratch', 'spot'),
  track: Track = silently,
) -> Path:
  """Write categories in MVTec's layout; all of it or, interrupted, nothing.

  The same arguments write the same bytes, and a picture does not depend on how many there are.

  Args:
    directory: where the categories will lie; any that is there already is replaced.
    seed: decides every picture.
    train: number of good pictures to learn from, of each category.
    test_good: number of good pictures to test on.
    test_defect: number of pictures of each defect.
    size: side of the pictures in pixels.
    categories: some of `CATEGORIES`.
    defects: some of `kinds()`; a category goes without those that it cannot have.
    track: shows progress.

  Returns:
    The directory: the root of this data set.

  Raises:
    UnknownName: for a category or defect that there is not.
    ConfigError: for a size at which nothing could be told.
  """
  _known('category', categories, CATEGORIES)
  _known('defect', defects, kinds())
  if size < _SMALLEST:
    raise ConfigError(
      f'The demo set cannot be {size} pixels wide; at least {_SMALLEST} are needed.'
    )
  with contextlib.ExitStack() as drafts:
    places = {c: drafts.enter_context(files.replacing(Path(directory) / c)) for c in categories}
    jobs = [
      _Job(category, part, defect, number, seed, size)
      for category in categories
      for part, defect, many in (
        ('train', picture.GOOD, train),
        ('test', picture.GOOD, test_good),
        *(('test', kind, test_defect) for kind in kinds(category) if kind in defects),
      )
      for number in range(many)
    ]
    for _ in track(_written(jobs, places), len(jobs), 'Drawing'):
      pass
  return Path(directory)


def write(
  directory: str | Path,
  seed: int = 0,
  size: int = _WHOLE['size'],
  categories: Sequence[str] = CATEGORIES,
  track: Track = silently,
) -> Path:
  """Draw the demo set as people get it: every category with every defect."""
  options = {**_WHOLE, 'size': size}
  return draw(directory, seed, **options, categories=categories, defects=kinds(), track=track)


def cached(category: str = CATEGORY, track: Track = silently) -> Path:
  """The demo set in the user's cache; a category is drawn when first asked for."""
  directory = files.cache() / f'demo-{VERSION}'
  if not (directory / category).is_dir():
    _known('category', [category], CATEGORIES)
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.', dir=directory) as draft:
      done = write(draft, size=_WHOLE['size'], categories=[category], track=track) / category
      with contextlib.suppress(OSError):  # Another process was quicker.
        done.rename(directory / category)
  return directory


def expand(category: str) -> list[str]:
  """The categories that a name stands for: itself, or those of 'all', 'textures', 'objects'."""
  return list(_GROUPS.get(category or CATEGORY, (category or CATEGORY,)))


def kinds(*categories: str) -> list[str]:
  """Names of the defects of some categories; of all, where none is named."""
  products = [picture.PRODUCTS[category] for category in categories or CATEGORIES]
  return sorted({defect for product in products for defect in product.defects})


def _known(what: str, names: Sequence[str], there: Sequence[str]) -> None:
  for name in names:
    if name not in there:
      raise UnknownName(f'The demo set has no {what} {name!r}; choose from {sorted(there)}.')


def _written(jobs: Sequence[_Job], places: dict[str, Path]) -> Iterator[None]:
  """Draw and save, on all cores: NumPy leaves the lock to others while it computes."""

  def do(job: _Job) -> None:
    taken, name = picture.take(*job), f'{job.number:03d}'
    place = places[job.category]
    _save(taken.pixels, place / job.part / job.defect / f'{name}.png')
    if job.defect != picture.GOOD:
      white = taken.mask[..., None].astype(np.uint8) * 255
      _save(white, place / 'ground_truth' / job.defect / f'{name}_mask.png')

  pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
  try:
    yield from pool.map(do, jobs)
  finally:
    pool.shutdown(cancel_futures=True)


def _save(pixels: picture.Pixels, path: Path) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
  image.save(path, compress_type=_RUNS)
