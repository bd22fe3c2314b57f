"""State for incremental fitting, in the folder `state/` next to the model: arrays and images.

A run that extends this one calibrates its thresholds also on images of this run. Their files may no
longer exist, so their scaled pixels are stored.

Letters: n images, t tiles of all images, m stored images, k values of a fingerprint.
"""

import math
from pathlib import Path
import re
import reprlib
from typing import NamedTuple

from jaxtyping import Float, Int, UInt8
import numpy as np

from uadjax.errors import describe, ModelError, Setting
from uadjax.numerics.triangles import Triangles
from uadjax.system import files, npy
from uadjax.types import Arrays

_METADATA_FILE = 'state.json'
_IMAGES_PREFIX = 'images_'  # The names of the arrays of `LearnedImages` begin with it.


class LearnedImages(NamedTuple):
  """Images that a model has learned from, over all runs in the order of learning.

  Attributes:
    num_tiles: number of tiles of each image, those of its augmented copies included; 1 for an image
      that is neither tiled nor augmented.
    tile_ids: unique id of each tile, image by image; the folds of the images follow from it.
    groups: position of the first near-duplicate of each image; its own if it is the first.
    fingerprints: fingerprint of each image, by which `near_duplicates` recognizes it.
    export_keys: number that exports of one image share (see `near_duplicates`); 0 for others.
    stored_rows: positions of the images whose pixels are stored.
    sizes: height and width of these images, scaled.
    pixels: RGB pixels of these images, one image after another.
  """

  num_tiles: Int[np.ndarray, ' n']
  tile_ids: Int[np.ndarray, ' t']
  groups: Int[np.ndarray, ' n']
  fingerprints: Float[np.ndarray, 'n k']
  export_keys: Int[np.ndarray, ' n']
  stored_rows: Int[np.ndarray, ' m']
  sizes: Int[np.ndarray, 'm 2']
  pixels: UInt8[np.ndarray, ' bytes']

  def split_pixels(self) -> list[UInt8[np.ndarray, 'h w 3']]:
    """Return the stored images, each as a view of `pixels`."""
    shapes = [(height, width, 3) for height, width in self.sizes.tolist()]
    ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
    parts = np.split(self.pixels, ends) if shapes else []
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


class IncrementalState(NamedTuple):
  """State of an earlier run, which a further run extends.

  Attributes:
    state_arrays: arrays by name, as `Incremental.to_arrays` of the detector returned them.
    images: images that the model has learned from.
  """

  state_arrays: Arrays
  images: LearnedImages

  @property
  def num_images(self) -> int:
    """Number of images that the model has learned from."""
    return len(self.images.num_tiles)


# State of no run, for a new model.
EMPTY = IncrementalState(
  {},
  LearnedImages(
    np.zeros(0, np.int64),
    np.zeros(0, np.int32),
    np.zeros(0, np.int64),
    np.zeros((0, 0), np.float32),
    np.zeros(0, np.int64),
    np.zeros(0, np.int64),
    np.zeros((0, 2), np.int64),
    np.zeros(0, np.uint8),
  ),
)


def save_state_arrays(folder: Path, state_arrays: Arrays) -> None:
  """Write arrays one by one, without copies, because a covariance may have gigabytes.

  Of `Triangles`, the packed lower triangles are written.
  """
  num_bytes = sum(
    value.packed_bytes if isinstance(value, Triangles) else getattr(value, 'nbytes', 0)
    for value in state_arrays.values()
  )
  files.announce_size('the state for adding images later', folder, num_bytes)
  for name, value in state_arrays.items():
    path = folder / f'{name}.npy'
    if isinstance(value, Triangles):
      _write_triangles(path, value)
    else:
      np.save(path, np.asarray(value), allow_pickle=False)


def _write_triangles(path: Path, triangles: Triangles) -> None:
  dtype = np.lib.format.dtype_to_descr(np.dtype(triangles.matrices.dtype))
  header = {'descr': dtype, 'fortran_order': False, 'shape': triangles.packed_shape}
  with path.open('wb') as file:
    np.lib.format.write_array_header_1_0(file, header)
    for block in triangles.pack_blocks():
      file.write(block.data)


def save_images(folder: Path, images: LearnedImages) -> None:
  """Write the arrays of the images, and then the metadata file, which completes the folder."""
  arrays = {_IMAGES_PREFIX + name: value for name, value in images._asdict().items()}
  save_state_arrays(folder, arrays)
  names = sorted(path.stem for path in folder.glob('*.npy'))
  files.write_json(folder / _METADATA_FILE, {'arrays': names})


def load_state_arrays(folder: Path, memory_map: bool = False) -> dict[str, np.ndarray]:
  """Return the state arrays of a folder, read or mapped into memory, without those of images.

  Mapped arrays are copy-on-write: writing into them changes memory, never the file.
  """
  return {
    path.stem: _read_array(path, memory_map)
    for path in sorted(folder.glob('*.npy'))
    if not path.stem.startswith(_IMAGES_PREFIX)
  }


def state_folder(model_dir: str | Path) -> Path:
  """Return the folder with the state of a model."""
  return Path(model_dir).resolve().parent / 'state'


def read_array_names(folder: Path) -> list[str]:
  """Return the names of the arrays of a state, without reading them.

  Raises:
    ModelError: the folder is missing or incomplete.
  """
  try:
    names = files.read_json(folder / _METADATA_FILE)['arrays']
    if not isinstance(names, list) or not all(re.fullmatch(r'\w+', name) for name in names):
      raise ValueError(f'the names of its arrays in {_METADATA_FILE} are {reprlib.repr(names)}')
    return names
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise _incomplete(folder, error) from None


def load(folder: Path) -> IncrementalState:
  """Read the state of an earlier run from its folder.

  Raises:
    ModelError: the folder is missing or incomplete.
  """
  names = read_array_names(folder)
  try:
    arrays = {name: _read_array(folder / f'{name}.npy') for name in names}
    images = LearnedImages(*(arrays.pop(_IMAGES_PREFIX + name) for name in LearnedImages._fields))
    _require_consistent(images)
    for name, array in arrays.items():
      if (
        array.dtype.kind == 'f' and array.size and not np.isfinite([array.min(), array.max()]).all()
      ):
        raise ValueError(f'{name} has values that are not finite')
    return IncrementalState(arrays, images)
  except (OSError, ValueError, KeyError) as error:
    raise _incomplete(folder, error) from None


def _require_consistent(images: LearnedImages) -> None:
  """Raise ValueError if the arrays of the images do not match each other."""
  n, m = (array.shape[0] if array.ndim else -1 for array in (images.num_tiles, images.stored_rows))
  expected = {
    'num_tiles': ('iu', (n,)), 'tile_ids': ('iu', (None,)), 'groups': ('iu', (n,)),
    'fingerprints': ('f', (n, None)), 'export_keys': ('iu', (n,)), 'stored_rows': ('iu', (m,)),
    'sizes': ('iu', (m, 2)), 'pixels': ('u', (None,)),
  }  # fmt: skip
  for name, (kinds, shape) in expected.items():
    array = getattr(images, name)
    is_same_shape = len(shape) == array.ndim and all(
      length in (None, actual) for length, actual in zip(shape, array.shape, strict=True)
    )
    if array.dtype.kind not in kinds or not is_same_shape:
      raise ValueError(f'{name} has type {array.dtype} and shape {array.shape}')
  for name in ('groups', 'stored_rows'):
    rows = getattr(images, name)
    if rows.size and not 0 <= rows.min() <= rows.max() < n:
      raise ValueError(f'{name} has positions that are not below {n}')
  for name in ('num_tiles', 'sizes'):
    if getattr(images, name).min(initial=1) < 1:
      raise ValueError(f'{name} has numbers below 1')
  if images.num_tiles.sum() != len(images.tile_ids):
    raise ValueError(f'tile_ids has {len(images.tile_ids)} tiles, not {images.num_tiles.sum()}')
  if 3 * sum(height * width for height, width in images.sizes.tolist()) != len(images.pixels):
    raise ValueError(f'pixels has {len(images.pixels)} values, which differs from the sizes')
  if not np.isfinite(images.fingerprints).all():
    raise ValueError('fingerprints has values that are not finite')


def _incomplete(folder: Path, error: Exception) -> ModelError:
  return ModelError(
    f'{folder} does not hold a complete incremental state ({describe(error)}). A run of PaDiM, '
    'PatchCore or SubspaceAD writes one next to its model.',
    hint=('Set ', Setting('fit.extend'), ' to that model, or omit it to start from scratch.'),
  )


def _read_array(path: Path, memory_map: bool = False) -> np.ndarray:
  """Return one array. Unlike this, np.load would also open zip files, and fail in more ways."""
  if memory_map:
    return np.lib.format.open_memmap(path, mode='c')
  with files.open_regular(path) as file:
    shape, order, dtype = npy.read_header(file, path.stat().st_size)
    return np.fromfile(file, dtype).reshape(shape, order=order)
