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

_NOTES = 'state.json'


class Retained(NamedTuple):
  """Embeddings of images that were folded in, and the numbers of those images."""

  embedding: Float[np.ndarray, 'b h w d']
  image: Int[np.ndarray, ' b']


class Learned(NamedTuple):
  """What is read back.

  Attributes:
    kept: see `OnePass.kept`.
    retained: embeddings for calibration.
    images: folded in so far.
  """

  kept: Arrays
  retained: Retained
  images: int


def save_kept(folder: Path, kept: Arrays) -> None:
  """Write the arrays one by one, without a copy of any: a covariance may have gigabytes."""
  for name, value in kept.items():
    np.save(folder / f'{name}.npy', np.asarray(value), allow_pickle=False)


def save_retained(folder: Path, retained: Retained, images: int) -> None:
  """Write the embeddings, and the notes that make the folder whole."""
  np.save(folder / 'retained_embedding.npy', retained.embedding, allow_pickle=False)
  np.save(folder / 'retained_image.npy', retained.image, allow_pickle=False)
  arrays = sorted(path.stem for path in folder.glob('*.npy'))
  files.write_json(folder / _NOTES, {'images': images, 'arrays': arrays})


def load_kept(folder: Path, mapped: bool = False) -> dict[str, Any]:
  """Read the arrays, or map them into memory.

  What is written into a mapped array takes the place of the file's pages in memory; the file stays.
  """
  return {
    path.stem: _read(path, mapped)
    for path in sorted(folder.glob('*.npy'))
    if not path.stem.startswith('retained_')
  }


def load(folder: Path) -> Learned:
  """Read a folder.

  Raises:
    ModelError: it is not there or not whole.
  """
  try:
    notes = json.loads((folder / _NOTES).read_text())
    arrays = {name: _read(folder / f'{name}.npy') for name in notes['arrays']}
    retained = Retained(*(arrays.pop(f'retained_{name}') for name in Retained._fields))
    return Learned(arrays, retained, notes['images'])
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ModelError(
      f'{folder} does not hold what learning more needs ({error}); a run of PaDiM or PatchCore '
      'leaves it beside its model. Name its model directory in fit.extend, or leave that out.'
    ) from None


def _read(path: Path, mapped: bool = False) -> Any:
  """Read one array; np.load would also open zip files, and fail in more ways."""
  if mapped:
    return np.lib.format.open_memmap(path, mode='c')
  with path.open('rb') as file:
    return np.lib.format.read_array(file, allow_pickle=False)
