"""Records: the images of a dataset as files, and how they are split."""

from collections.abc import Sequence
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from uadjax.errors import ConfigError, DataError


class Record(NamedTuple):
  """One image of a dataset, as files.

  Attributes:
    path: the image.
    defect: 'good', or the type of defect, which is the folder's name.
    mask: ground truth, nonzero where defective; None where there is none.
  """

  path: Path
  defect: str = 'good'
  mask: Path | None = None

  @property
  def is_anomalous(self) -> bool:
    """Whether the image shows a defect."""
    return self.defect != 'good'


class Splits(NamedTuple):
  """What is learned from, and what is tested on; test may be empty."""

  train: tuple[Record, ...]
  test: tuple[Record, ...]


def partition(
  records: Sequence[Record], fractions: Sequence[float], seed: int
) -> tuple[tuple[Record, ...], ...]:
  """Partition records at random into parts of about these fractions, none of them empty.

  The same records, fractions and seed give the same parts; each keeps the order of the records.

  Args:
    records: what to partition.
    fractions: relative sizes, such as (0.8, 0.2).
    seed: decides which record falls where.
  """
  if not fractions or not all(0 < fraction < math.inf for fraction in fractions):
    raise ConfigError(f'Cannot split by the fractions {list(fractions)}; all must be positive.')
  if len(records) < len(fractions):
    raise DataError(
      f'Cannot split {len(records)} images into {len(fractions)} parts; at least {len(fractions)}'
      f' images are needed in {records[0].path.parent if records else "the data set"}.'
    )
  group_ends = np.round(np.cumsum(fractions) / np.sum(fractions) * len(records)).astype(int)
  group_sizes = np.diff(group_ends, prepend=0)
  while not group_sizes.all():  # The largest part lends to the empty ones.
    group_sizes[group_sizes.argmin()] += 1
    group_sizes[group_sizes.argmax()] -= 1
  permutation = np.random.default_rng(seed).permutation(len(records))
  index_groups = np.split(permutation, np.cumsum(group_sizes)[:-1])
  return tuple(tuple(records[i] for i in sorted(indices)) for indices in index_groups)
