"""How well scores tell defects from normal, exactly.

Letters: n images or pixels.
"""

from jaxtyping import Bool, Float
import numpy as np


def auroc(labels: Bool[np.ndarray, ' n'], scores: Float[np.ndarray, ' n']) -> float:
  """Chance that an anomaly outscores a normal; ties count half (Mann and Whitney 1947).

  Raises:
    ValueError: where a class is missing, or a score is NaN.
  """
  positives, negatives = int(labels.sum()), int((~labels).sum())
  if not positives or not negatives:
    raise ValueError(f'AUROC needs both classes, got {positives} anomalous and {negatives} normal.')
  if np.isnan(scores).any():
    raise ValueError(f'AUROC needs numbers, got {int(np.isnan(scores).sum())} NaN scores.')
  # Sorting each class by itself halves the memory of ranking both, and needs no stable order.
  normal, anomalous = np.sort(scores[~labels]), np.sort(scores[labels])
  below = np.searchsorted(normal, anomalous, 'left').sum(dtype=np.int64)
  not_above = np.searchsorted(normal, anomalous, 'right').sum(dtype=np.int64)
  # Python's integers: the product overflows no type, and the quotient is rounded once.
  return (int(below) + int(not_above)) / (2 * positives * negatives)
