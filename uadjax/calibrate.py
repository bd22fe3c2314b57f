"""Thresholds from normal images that the detector has not learned from."""

import math
from typing import NamedTuple

from jaxtyping import Float
import numpy as np

from uadjax.types import ConfigError, DataError


class Limits(NamedTuple):
  """Thresholds, and what they stand on.

  Attributes:
    image: an image whose score exceeds it is called defective.
    pixel: a pixel whose map value exceeds it is marked.
    budget: the share of good images that may be called defective.
    normals: number of good images that it was set on.
    expected: the share of unseen good images that will be called defective, in expectation and
      free of any assumption but that they are of the same kind. Above `budget` where `normals`
      are too few for it.
  """

  image: float
  pixel: float
  budget: float
  normals: int
  expected: float

  def __str__(self) -> str:
    return (
      f'Thresholds: image {self.image:.4g}, pixel {self.pixel:.4g}, from {self.normals} good '
      f'images held or left out; {self.expected:.1%} of unseen good images are expected to exceed '
      f'them (budget {self.budget:.1%}).'
    )


def from_normals(
  scores: Float[np.ndarray, ' n'], peaks: Float[np.ndarray, ' n'], budget: float
) -> Limits:
  """Set thresholds by the conformal quantile of good images (Vovk et al. 2005, section 2.2).

  Of n + 1 exchangeable scores the last exceeds the k-th smallest of the others with a chance of
  at most 1 − k/(n+1). The pixel threshold is set likewise on the maps' peaks, so that as few good
  images show any marked pixel.

  Args:
    scores: image scores.
    peaks: the largest map value of each image.
    budget: share of good images that may be called defective, in (0, 1).
  """
  n = len(scores)
  if not n:
    raise DataError('Calibration needs at least one held-out good image, got none.')
  check(budget)
  rank = min(n, math.ceil((1 - budget) * (n + 1) - 1e-9))
  # A hair above: in another batch size or runtime a score may come out an ulp larger.
  image, pixel = (float(np.sort(x)[rank - 1]) * (1 + 1e-6) for x in (scores, peaks))
  return Limits(image, pixel, budget, n, 1 - rank / (n + 1))


def check(budget: float) -> None:
  """Raise ConfigError for what is no share; before hours of fitting, not after."""
  if not 0 < budget < 1:
    raise ConfigError(f'calibrate.budget must lie between 0 and 1, got {budget}.')
