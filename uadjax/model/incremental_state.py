"""State for incremental fitting, in the folder `state/` next to the model: arrays and embeddings.

The embeddings of a few images let a run that extends this one calibrate its thresholds on old
images as well, although their pixels are no longer available.
"""

import json
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float, Int
import numpy as np

from uadjax.errors import ModelError, Setting
from uadjax.system import files
from uadjax.types import Arrays

_METADATA_FILE = 'state.json'


class RetainedEmbeddings(NamedTuple):
  """Embeddings of some of the fitted images, and their ids; -1 for images not to be scored."""

  embeddings: Float[np.ndarray, 'b h w d']
  image_ids: Int[np.ndarray, ' b']


class IncrementalState(NamedTuple):
  """State of an earlier run, which a further run extends.

  Attributes:
    state_arrays: arrays by name, as `Incremental.to_arrays` of the detector returned them.
    retained: embeddings for calibration.
    num_images: number of images that have been fitted so far.
    next_image_id: smallest id that is larger than those of all these images.
  """

  state_arrays: Arrays
  retained: RetainedEmbeddings
  num_images: int
  next_image_id: int


# State of no run, for a new model.
EMPTY = IncrementalState(
  {}, RetainedEmbeddings(np.zeros((0, 0, 0, 0)), np.zeros(0, np.int32)), 0, 0
)


def save_state_arrays(folder: Path, state_arrays: Arrays) -> None:
  """Write arrays one by one, without copies, because a covariance may have gigabytes."""
  for name, value in state_arrays.items():
    np.save(folder / f'{name}.npy', np.asarray(value), allow_pickle=False)


def save_retained_embeddings(
  folder: Path, retained: RetainedEmbeddings, num_images: int, next_image_id: int
) -> None:
  """Write the embeddings, and last the metadata that completes the folder."""
  np.save(folder / 'retained_embeddings.npy', retained.embeddings, allow_pickle=False)
  np.save(folder / 'retained_image_ids.npy', retained.image_ids, allow_pickle=False)
  arrays = sorted(path.stem for path in folder.glob('*.npy'))
  metadata = {'num_images': num_images, 'next_image_id': next_image_id, 'arrays': arrays}
  files.write_json(folder / _METADATA_FILE, metadata)


def load_state_arrays(folder: Path, memory_map: bool = False) -> dict[str, np.ndarray]:
  """Return the state arrays of a folder, read or mapped into memory, without retained embeddings.

  Mapped arrays are copy-on-write: writing into them changes memory, never the file.
  """
  return {
    path.stem: _read_array(path, memory_map)
    for path in sorted(folder.glob('*.npy'))
    if not path.stem.startswith('retained_')
  }


def load(folder: Path) -> IncrementalState:
  """Read the state of an earlier run from its folder.

  Raises:
    ModelError: the folder is missing or incomplete.
  """
  try:
    metadata = json.loads((folder / _METADATA_FILE).read_text())
    state_arrays = {name: _read_array(folder / f'{name}.npy') for name in metadata['arrays']}
    retained = RetainedEmbeddings(
      *(state_arrays.pop(f'retained_{name}') for name in RetainedEmbeddings._fields)
    )
    num_images, next_image_id = metadata['num_images'], metadata['next_image_id']
    return IncrementalState(state_arrays, retained, num_images, next_image_id)
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ModelError(
      f'{folder} does not hold a complete incremental state ({error}). A run of PaDiM or PatchCore '
      'writes one next to its model.',
      hint=('Set ', Setting('fit.extend'), ' to that model, or omit it to start from scratch.'),
    ) from None


def _read_array(path: Path, memory_map: bool = False) -> np.ndarray:
  """Return one array. Unlike this, np.load would also open zip files, and fail in more ways."""
  if memory_map:
    return np.lib.format.open_memmap(path, mode='c')
  with path.open('rb') as file:
    return np.lib.format.read_array(file, allow_pickle=False)
