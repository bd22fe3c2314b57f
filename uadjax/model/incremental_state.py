"""What learning more needs, in the folder `state/` beside the model: arrays, and some embeddings.

The embeddings of a few images let a run that extends this one set its thresholds on old images as
well, which it no longer has.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Float, Int
import numpy as np

from uadjax.errors import ModelError
from uadjax.system import files
from uadjax.types import Arrays

_METADATA_FILE = 'state.json'


class RetainedEmbeddings(NamedTuple):
  """Embeddings of images that were folded in, and the numbers of those images."""

  embeddings: Float[np.ndarray, 'b h w d']
  image_ids: Int[np.ndarray, ' b']


class IncrementalState(NamedTuple):
  """What is read back.

  Attributes:
    kept: see `OnePass.kept`.
    retained: embeddings for calibration.
    images: folded in so far.
  """

  state_arrays: Arrays
  retained: RetainedEmbeddings
  num_images: int


def save_state_arrays(folder: Path, state_arrays: Arrays) -> None:
  """Write the arrays one by one, without a copy of any: a covariance may have gigabytes."""
  for name, value in state_arrays.items():
    np.save(folder / f'{name}.npy', np.asarray(value), allow_pickle=False)


def save_retained_embeddings(folder: Path, retained: RetainedEmbeddings, num_images: int) -> None:
  """Write the embeddings, and the notes that make the folder whole."""
  np.save(folder / 'retained_embeddings.npy', retained.embeddings, allow_pickle=False)
  np.save(folder / 'retained_image_ids.npy', retained.image_ids, allow_pickle=False)
  arrays = sorted(path.stem for path in folder.glob('*.npy'))
  files.write_json(folder / _METADATA_FILE, {'num_images': num_images, 'arrays': arrays})


def load_state_arrays(folder: Path, memory_map: bool = False) -> dict[str, Any]:
  """Read the arrays, or map them into memory.

  What is written into a mapped array takes the place of the file's pages in memory; the file stays.
  """
  return {
    path.stem: _read_array(path, memory_map)
    for path in sorted(folder.glob('*.npy'))
    if not path.stem.startswith('retained_')
  }


def load(folder: Path) -> IncrementalState:
  """Read a folder.

  Raises:
    ModelError: it is not there or not whole.
  """
  try:
    metadata = json.loads((folder / _METADATA_FILE).read_text())
    state_arrays = {name: _read_array(folder / f'{name}.npy') for name in metadata['arrays']}
    retained = RetainedEmbeddings(
      *(state_arrays.pop(f'retained_{name}') for name in RetainedEmbeddings._fields)
    )
    return IncrementalState(state_arrays, retained, metadata['num_images'])
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ModelError(
      f'{folder} does not hold what learning more needs ({error}); a run of PaDiM or PatchCore '
      'leaves it beside its model. Name its model directory in fit.extend, or leave that out.'
    ) from None


def _read_array(path: Path, memory_map: bool = False) -> Any:
  """Read one array; np.load would also open zip files, and fail in more ways."""
  if memory_map:
    return np.lib.format.open_memmap(path, mode='c')
  with path.open('rb') as file:
    return np.lib.format.read_array(file, allow_pickle=False)
