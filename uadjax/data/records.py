"""Records of a dataset's images, and their partition into splits."""

from collections.abc import Sequence
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from uadjax.errors import DataError

GOOD = 'good'  # Type of defect of images without one, and the name of their folder.


class Record(NamedTuple):
  """Files and label of one image.

  Attributes:
    path: file of the image.
    defect: 'good', or the type of defect, which is the name of a folder.
    mask: file of the ground truth, nonzero where defective; None if there is none.
  """

  path: Path
  defect: str = GOOD
  mask: Path | None = None

  @property
  def is_anomalous(self) -> bool:
    """Return whether the image shows a defect."""
    return self.defect != GOOD


class Splits(NamedTuple):
  """Training images and test images of a category; `test` may be empty."""

  train: tuple[Record, ...]
  test: tuple[Record, ...]


def partition(
  records: Sequence[Record], fractions: Sequence[float], seed: int
) -> tuple[tuple[Record, ...], ...]:
  """Partition records at random into nonempty groups whose sizes are about these fractions.

  The same records, fractions and seed give the same groups; each keeps the order of the records.

  Args:
    records: records to partition.
    fractions: positive relative sizes, such as (0.8, 0.2).
    seed: seed of the random permutation.

  Raises:
    DataError: there are fewer records than groups.
  """
  assert all(0 < fraction < math.inf for fraction in fractions)
  n = len(fractions)
  if len(records) < n:
    place = records[0].path.parent if records else 'The dataset'
    raise DataError(f'{place} has {len(records)} images; splitting needs at least {n} images.')
  ends = np.round(np.cumsum(fractions) / np.sum(fractions) * len(records)).astype(int)
  sizes = np.diff(ends, prepend=0)
  while not sizes.all():  # Move records from the largest group to an empty one.
    sizes[sizes.argmin()] += 1
    sizes[sizes.argmax()] -= 1
  permutation = np.random.default_rng(seed).permutation(len(records))
  groups = np.split(permutation, np.cumsum(sizes)[:-1])
  return tuple(tuple(records[i] for i in sorted(indices)) for indices in groups)
