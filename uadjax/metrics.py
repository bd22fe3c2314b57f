"""How well scores tell defects from normal, exactly.

Letters: n normal, m anomalous images or pixels; n alone both.
"""

from jaxtyping import Bool, Float
import numpy as np


def auroc_of(normal: Float[np.ndarray, ' n'], anomalous: Float[np.ndarray, ' m']) -> float:
  """Chance that an anomaly outscores a normal; ties count half (Mann and Whitney 1947).

  Both arrays are sorted in place: a test set of pixels is too large to be copied.

  Raises:
    ValueError: where a class is missing, or a score is NaN.
  """
  if not len(normal) or not len(anomalous):
    raise ValueError(
      f'AUROC needs both classes, got {len(anomalous)} anomalous and {len(normal)} normal.'
    )
  normal.sort()
  anomalous.sort()
  nans = int(np.isnan(normal).sum() + np.isnan(anomalous).sum())
  if nans:
    raise ValueError(f'AUROC needs numbers, got {nans} NaN scores.')
  below = np.searchsorted(normal, anomalous, 'left').sum(dtype=np.int64)
  not_above = np.searchsorted(normal, anomalous, 'right').sum(dtype=np.int64)
  # Python's integers: the product overflows no type, and the quotient is rounded once.
  return (int(below) + int(not_above)) / (2 * len(normal) * len(anomalous))


def auroc(labels: Bool[np.ndarray, ' n'], scores: Float[np.ndarray, ' n']) -> float:
  """The same from one array of both classes; see `auroc_of`."""
  return auroc_of(scores[~labels], scores[labels])
