"""Demo dataset: rendered parts and materials as an inspection camera sees them.

It needs no real images, and its ground truth is exact. Good images vary in light, position, grain,
weave and noise, which a detector must learn to ignore.

The strength of the defects makes the demo neither trivial nor infeasible.
"""

from collections.abc import Sequence
import contextlib
import itertools
from pathlib import Path
import tempfile

import numpy as np
from PIL import Image

from uadjax.data.demo import rendering
from uadjax.data.records import GOOD
from uadjax.errors import ConfigError, UnknownName
from uadjax.system import files, threads
from uadjax.system.progress import no_progress, Progress

DEFAULT_CATEGORY = 'disc'
TEXTURES, OBJECTS = ('fabric', 'steel', 'wood'), ('board', 'disc')
CATEGORIES = tuple(sorted(rendering.PRODUCTS))
VERSION = 2  # Version of the rendered images; increase it when they change.

_Job = tuple[str, str, str, int]  # Category, split, defect and number of an image.
_CATEGORY_GROUPS = {'all': CATEGORIES, 'textures': TEXTURES, 'objects': OBJECTS}
_MIN_SIZE = 16  # Pixels; at this size, a washer's ring is four pixels wide.
# Strategy Z_RLE of zlib: noise has no long repeats, so the files are as small as with other
# strategies, in a fraction of the time.
_PNG_COMPRESS_TYPE = 3


def defect_names(*categories: str) -> list[str]:
  """Return the names of the defects of some categories, or of all if none is given."""
  return sorted({d for name in categories or CATEGORIES for d in rendering.PRODUCTS[name].defects})


_ALL_DEFECTS = tuple(defect_names())


def write_dataset(
  directory: str | Path,
  seed: int = 0,
  train: int = 60,
  test_good: int = 15,
  test_defect: int = 4,
  size: int = 256,
  categories: Sequence[str] = CATEGORIES,
  defects: Sequence[str] = _ALL_DEFECTS,
  progress: Progress = no_progress,
) -> Path:
  """Render categories of the demo dataset in MVTec AD's layout; write all of them or nothing.

  The same arguments write the same bytes, and an image does not depend on the number of images.

  Args:
    directory: folder of the categories; existing ones of the same name are replaced.
    seed: seed of all images.
    train: number of good training images per category.
    test_good: number of good test images per category.
    test_defect: number of test images per defect.
    size: side of the images in pixels.
    categories: names from `CATEGORIES`.
    defects: names from `defect_names()`; a category skips those that it does not support.
    progress: wrapper that shows progress.

  Returns:
    The directory, which is the root of the dataset.

  Raises:
    UnknownName: there is no category or defect of that name.
    ConfigError: the size is too small to show defects.
  """
  _require_names('category', categories, CATEGORIES)
  _require_names('defect', defects, _ALL_DEFECTS)
  if size < _MIN_SIZE:
    raise ConfigError(f'Demo images cannot be {size} pixels wide; at least {_MIN_SIZE} are needed.')
  jobs = _list_jobs(categories, defects, train, test_good, test_defect)
  # The size is that of pixels without compression.
  files.announce_size('the demo dataset', Path(directory), 3 * size**2 * len(jobs))
  with contextlib.ExitStack() as stack:
    folders = {
      name: stack.enter_context(files.atomic_directory(Path(directory) / name))
      for name in categories
    }
    # Threads use all cores, because NumPy releases the GIL.
    pool = stack.enter_context(threads.thread_pool(threads.num_cores(), 'demo'))
    written = pool.map(lambda job: _write_image(folders[job[0]], job, seed, size), jobs)
    for _ in progress(written, len(jobs), 'Drawing'):
      pass
  return Path(directory)


def _list_jobs(
  categories: Sequence[str], defects: Sequence[str], train: int, test_good: int, test_defect: int
) -> list[_Job]:
  """Return the images to render; see `write_dataset` for the arguments."""
  num_images = {('train', GOOD): train, ('test', GOOD): test_good}
  num_images |= {('test', defect): test_defect for defect in defects}
  return [
    (category, split, defect, number)
    for category, (split, defect) in itertools.product(categories, num_images)
    if defect in (GOOD, *defect_names(category))
    for number in range(num_images[split, defect])
  ]


def _write_image(folder: Path, job: _Job, seed: int, size: int) -> None:
  """Render an image into the folder of its category, with its mask if it has a defect."""
  _, split, defect, number = job
  image = rendering.render_image(*job, seed, size)
  _save_image(image.pixels, folder / split / defect / f'{number:03d}.png')
  if defect != GOOD:
    mask = image.mask[..., None].astype(np.uint8) * 255
    _save_image(mask, folder / 'ground_truth' / defect / f'{number:03d}_mask.png')


def cached_dataset(category: str = DEFAULT_CATEGORY, progress: Progress = no_progress) -> Path:
  """Return the root of the demo dataset in the user's cache; render the category on first use.

  Raises:
    ConfigError: the cache cannot be written.
  """
  directory = files.cache_dir() / f'demo-{VERSION}'
  if not (directory / category).is_dir():
    files.require_writable_cache()
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.', dir=directory) as temp_dir:
      write_dataset(temp_dir, categories=[category], progress=progress)
      with contextlib.suppress(OSError):  # Another process has written the category first.
        Path(temp_dir, category).rename(directory / category)
  return directory


def expand_category(category: str) -> list[str]:
  """Return the categories that a name selects: itself, or those of a group.

  Groups are 'all', 'textures' and 'objects'; an empty name means `DEFAULT_CATEGORY`.
  """
  category = category or DEFAULT_CATEGORY
  return list(_CATEGORY_GROUPS.get(category, (category,)))


def _require_names(noun: str, names: Sequence[str], choices: Sequence[str]) -> None:
  for name in names:
    if name not in choices:
      raise UnknownName(f'The demo dataset has no {noun} {name!r}; choose from {sorted(choices)}.')


def _save_image(pixels: rendering.Pixels, path: Path) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
  image.save(path, compress_type=_PNG_COMPRESS_TYPE)
