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

from uadjax.data.demo import rendering
from uadjax.errors import ConfigError, UnknownName
from uadjax.system import files
from uadjax.system.progress import no_progress, Progress

DEFAULT_CATEGORY = 'disc'  # Where none is named.
TEXTURES, OBJECTS = ('fabric', 'steel', 'wood'), ('board', 'disc')
CATEGORIES = tuple(sorted(rendering.PRODUCTS))
VERSION = 2  # Of the drawing.

_CATEGORY_GROUPS = {'all': CATEGORIES, 'textures': TEXTURES, 'objects': OBJECTS}
_MIN_SIZE = 16  # Pixels; a washer's ring has four then.
_PNG_COMPRESS_TYPE = (
  3  # Of zlib: noise holds no longer repeats; as small as others, at a fraction of the time.
)
_FULL_SET = {'train': 60, 'test_good': 15, 'test_defect': 4, 'size': 256}


class _RenderJob(NamedTuple):
  category: str
  split: str
  defect: str
  number: int
  seed: int
  size: int


def write_dataset(
  directory: str | Path,
  seed: int = 0,
  train: int = 24,
  test_good: int = 6,
  test_defect: int = 6,
  size: int = 96,
  categories: Sequence[str] = (DEFAULT_CATEGORY,),
  defects: Sequence[str] = ('missing', 'scratch', 'spot'),
  progress: Progress = no_progress,
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
  _require_names('category', categories, CATEGORIES)
  _require_names('defect', defects, defect_names())
  if size < _MIN_SIZE:
    raise ConfigError(
      f'The demo set cannot be {size} pixels wide; at least {_MIN_SIZE} are needed.'
    )
  with contextlib.ExitStack() as exit_stack:
    folders = {
      category: exit_stack.enter_context(files.atomic_directory(Path(directory) / category))
      for category in categories
    }
    jobs = [
      _RenderJob(category, split, defect, number, seed, size)
      for category in categories
      for split, defect, num_images in (
        ('train', rendering.GOOD, train),
        ('test', rendering.GOOD, test_good),
        *(('test', defect, test_defect) for defect in defect_names(category) if defect in defects),
      )
      for number in range(num_images)
    ]
    for _ in progress(_write_images(jobs, folders), len(jobs), 'Drawing'):
      pass
  return Path(directory)


def write_full_dataset(
  directory: str | Path,
  seed: int = 0,
  size: int = _FULL_SET['size'],
  categories: Sequence[str] = CATEGORIES,
  progress: Progress = no_progress,
) -> Path:
  """Draw the demo set as people get it: every category with every defect."""
  options = {**_FULL_SET, 'size': size}
  return write_dataset(
    directory, seed, **options, categories=categories, defects=defect_names(), progress=progress
  )


def cached_dataset(category: str = DEFAULT_CATEGORY, progress: Progress = no_progress) -> Path:
  """The demo set in the user's cache; a category is drawn when first asked for."""
  directory = files.cache_dir() / f'demo-{VERSION}'
  if not (directory / category).is_dir():
    _require_names('category', [category], CATEGORIES)
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.', dir=directory) as temporary_folder:
      category_folder = (
        write_full_dataset(
          temporary_folder, size=_FULL_SET['size'], categories=[category], progress=progress
        )
        / category
      )
      with contextlib.suppress(OSError):  # Another process was quicker.
        category_folder.rename(directory / category)
  return directory


def expand_category(category: str) -> list[str]:
  """The categories that a name stands for: itself, or those of 'all', 'textures', 'objects'."""
  return list(_CATEGORY_GROUPS.get(category or DEFAULT_CATEGORY, (category or DEFAULT_CATEGORY,)))


def defect_names(*categories: str) -> list[str]:
  """Names of the defects of some categories; of all, where none is named."""
  products = [rendering.PRODUCTS[category] for category in categories or CATEGORIES]
  return sorted({defect for product in products for defect in product.defects})


def _require_names(noun: str, names: Sequence[str], choices: Sequence[str]) -> None:
  for name in names:
    if name not in choices:
      raise UnknownName(f'The demo set has no {noun} {name!r}; choose from {sorted(choices)}.')


def _write_images(jobs: Sequence[_RenderJob], folders: dict[str, Path]) -> Iterator[None]:
  """Draw and save, on all cores: NumPy leaves the lock to others while it computes."""

  def write_image(job: _RenderJob) -> None:
    rendered_image, name = rendering.render_image(*job), f'{job.number:03d}'
    folder = folders[job.category]
    _save_image(rendered_image.pixels, folder / job.split / job.defect / f'{name}.png')
    if job.defect != rendering.GOOD:
      mask_pixels = rendered_image.mask[..., None].astype(np.uint8) * 255
      _save_image(mask_pixels, folder / 'ground_truth' / job.defect / f'{name}_mask.png')

  pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
  try:
    yield from pool.map(write_image, jobs)
  finally:
    pool.shutdown(cancel_futures=True)


def _save_image(pixels: rendering.Pixels, path: Path) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
  image.save(path, compress_type=_PNG_COMPRESS_TYPE)
