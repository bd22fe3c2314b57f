"""Demo dataset: rendered parts and materials as an inspection camera sees them.

It needs no real images, and its ground truth is exact. Good images vary in light, position, grain,
weave and noise, which a detector must learn to ignore.

The strength of the defects makes the demo neither trivial nor infeasible.

One more product, `LARGE_CATEGORY`, has large images with tiny defects. It is in no group of
categories, because its images take as long as those of all others together.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import functools
import itertools
from pathlib import Path
import tempfile

import numpy as np
from PIL import Image

from uadjax.data.demo import cover, rendering
from uadjax.data.records import GOOD
from uadjax.errors import ConfigError, UnknownName
from uadjax.system import files, threads
from uadjax.system.progress import no_progress, Progress

DEFAULT_CATEGORY = 'disc'
TEXTURES, OBJECTS = ('fabric', 'steel', 'wood'), ('board', 'disc')
CATEGORIES = tuple(sorted(rendering.PRODUCTS))
LARGE_CATEGORY, LARGE_SIZE = 'cover', (cover.HEIGHT, cover.WIDTH)
LARGE_DEFECTS = tuple(sorted(cover.DEFECTS))
REGION_FILE = 'roi.png'  # Region of interest in the folder of the large product.
VERSION = 2  # Version of the rendered images; increase it when they change.

_Job = tuple[str, str, str, int]  # Category, split, defect and number of an image.
_CATEGORY_GROUPS = {'all': CATEGORIES, 'textures': TEXTURES, 'objects': OBJECTS}
_MAX_LARGE_THREADS = 4  # For large images; each thread takes 300 MB.
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
  with _category_folders(Path(directory), categories) as folders:
    render = functools.partial(rendering.render_image, seed=seed, size=size)
    _write_images(folders, jobs, render, threads.num_cores(), progress)
  return Path(directory)


def write_large_dataset(
  directory: str | Path,
  seed: int = 0,
  train: int = 24,
  test_good: int = 10,
  test_defect: int = 4,
  progress: Progress = no_progress,
) -> Path:
  """Render `LARGE_CATEGORY` in MVTec AD's layout; write all of it or nothing.

  Its defects are about 10 pixels wide. Beside the images lies `REGION_FILE`, whose white pixels are
  the product. See `write_dataset` for the arguments and the result.
  """
  counts = {('train', GOOD): train, ('test', GOOD): test_good}
  counts |= {('test', defect): test_defect for defect in LARGE_DEFECTS}
  jobs = [(LARGE_CATEGORY, *key, i) for key, count in counts.items() for i in range(count)]
  height, width = LARGE_SIZE
  files.announce_size('the demo dataset', Path(directory), height * width * len(jobs))

  region = (cover.region_of_interest()[..., None] * 255).astype(np.uint8)
  with _category_folders(Path(directory), [LARGE_CATEGORY]) as folders:
    _save_image(region, folders[LARGE_CATEGORY] / REGION_FILE)
    num_threads = min(threads.num_cores(), _MAX_LARGE_THREADS)
    render = functools.partial(rendering.render_cover, seed=seed)
    _write_images(folders, jobs, lambda _, *job: render(*job), num_threads, progress)
  return Path(directory)


@contextlib.contextmanager
def _category_folders(directory: Path, categories: Sequence[str]) -> Iterator[dict[str, Path]]:
  """Yield empty folders of categories that replace those below a directory on success."""
  with contextlib.ExitStack() as stack:
    yield {
      name: stack.enter_context(files.atomic_directory(directory / name)) for name in categories
    }


def _write_images(
  folders: Mapping[str, Path],
  jobs: Sequence[_Job],
  render: Callable[..., rendering.RenderedImage],
  num_threads: int,
  progress: Progress,
) -> None:
  """Render images into the folders of their categories.

  Args:
    folders: folder of each category.
    jobs: images to render.
    render: function of the fields of a job.
    num_threads: number of images that are rendered at once; NumPy releases the GIL.
    progress: wrapper that shows progress.
  """
  with threads.thread_pool(num_threads, 'demo') as pool:
    written = pool.map(lambda job: _write_image(folders[job[0]], job, render(*job)), jobs)
    for _ in progress(written, len(jobs), 'Drawing'):
      pass


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


def _write_image(folder: Path, job: _Job, image: rendering.RenderedImage) -> None:
  """Write an image into the folder of its category, with its mask if it has a defect."""
  _, split, defect, number = job
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
