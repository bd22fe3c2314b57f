"""Records of a dataset's images, and their partition into splits."""

from collections.abc import Sequence
import math
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Int
import numpy as np

from uadjax.errors import DataError

GOOD = 'good'  # Type of defect of images without one, and the name of their folder.


class Record(NamedTuple):
  """Files and label of one image.

  Attributes:
    path: file of the image.
    defect: 'good', or the type of defect, which is the name of a folder.
    mask: file or folder of the ground truth, see `image_io.read_mask`; None if there is none.
    duplicate_of: path of the first near-duplicate of this image (see `near_duplicates`). None for
      the first one itself, for an image without near-duplicates, for a defective image, and before
      the dataset check.
    held_out: whether a good image is not learned from: its score calibrates the thresholds.
  """

  path: Path
  defect: str = GOOD
  mask: Path | None = None
  duplicate_of: Path | None = None
  held_out: bool = False

  @property
  def is_anomalous(self) -> bool:
    """Return whether the image shows a defect."""
    return self.defect != GOOD


class Splits(NamedTuple):
  """Training images and test images of a category; `test` may be empty.

  The training images include those of a validation set, which are held out for calibration.
  """

  train: tuple[Record, ...]
  test: tuple[Record, ...]

  def learned(self) -> tuple[Record, ...]:
    """Return the training images to learn from."""
    return tuple(record for record in self.train if not record.held_out)

  def validation(self) -> tuple[Record, ...]:
    """Return the distinct held-out images, without near-duplicates of images to learn from."""
    return tuple(r for r in self.train if r.held_out and r.duplicate_of is None)


def group_duplicates(records: Sequence[Record]) -> Int[np.ndarray, ' n']:
  """Return the position of the first near-duplicate of each image: its own if it is the first."""
  first_by_path: dict[Path, int] = {}
  keys = [record.duplicate_of or record.path for record in records]
  return np.array([first_by_path.setdefault(key, i) for i, key in enumerate(keys)], np.int64)


def distinct(records: Sequence[Record]) -> list[Record]:
  """Return the records without near-duplicates of earlier ones."""
  return [records[i] for i in np.unique(group_duplicates(records)).tolist()]


def partition(
  records: Sequence[Record], fractions: Sequence[float], seed: int
) -> tuple[tuple[Record, ...], ...]:
  """Partition records at random into nonempty splits whose sizes are about these fractions.

  Near-duplicates are in the same split, and the fractions are those of distinct images. The same
  records, fractions and seed give the same splits; each keeps the order of the records.

  Args:
    records: records to partition.
    fractions: positive relative sizes, such as (0.8, 0.2).
    seed: seed of the random permutation.

  Raises:
    DataError: there are fewer distinct images than splits.
  """
  assert all(0 < fraction < math.inf for fraction in fractions)
  n, groups = len(fractions), group_duplicates(records)
  firsts = np.unique(groups)
  if len(firsts) < n:
    place = records[0].path.parent if records else 'The dataset'
    raise DataError(
      f'{place} has {len(firsts)} distinct images; splitting needs at least {n} images.'
    )
  ends = np.round(np.cumsum(fractions) / np.sum(fractions) * len(firsts)).astype(int)
  sizes = np.diff(ends, prepend=0)
  while not sizes.all():  # Move images from the largest split to an empty one.
    sizes[sizes.argmin()] += 1
    sizes[sizes.argmax()] -= 1
  permutation = np.random.default_rng(seed).permutation(len(firsts))
  splits = [firsts[indices] for indices in np.split(permutation, np.cumsum(sizes)[:-1])]
  return tuple(
    tuple(records[i] for i in np.flatnonzero(np.isin(groups, split)).tolist()) for split in splits
  )
