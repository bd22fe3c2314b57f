"""Types that all packages share: batches, scores, and aliases for arrays.

Letters used in shapes throughout: b batch, h w image or map, c channels, n images.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
from jaxtyping import Array, Bool, Float, Int, UInt8
import numpy as np

Key: TypeAlias = jax.Array  # A typed key of jax.random.key.
Variables = Mapping[str, Any]  # The variable collections of a linen module.
Metrics = dict[str, jax.Array]
PyTree: TypeAlias = Any  # A tree of arrays, or of what stands for them, such as PartitionSpecs.
Arrays = Mapping[str, Any]  # Arrays by name, as they are stored in files.


class Batch(NamedTuple):
  """Images at network size, as they enter a detector.

  Attributes:
    image: RGB pixels.
    valid: False for padding rows, which must not influence any result.
    index: position of each image in its list of records, or its id in `LeaveOneOut`; -1 where not
      valid.
    features: features of these images computed earlier, by `Detector.precompute` or
      `LeaveOneOut.embed`; None to compute them from `image`.
  """

  image: UInt8[Array, 'b h w 3'] | UInt8[np.ndarray, 'b h w 3']
  valid: Bool[Array, ' b'] | Bool[np.ndarray, ' b']
  index: Int[Array, ' b'] | Int[np.ndarray, ' b']  # pyright: ignore[reportIncompatibleMethodOverride]
  features: Any = None


class Scores(NamedTuple):
  """Raw anomaly scores: larger is more anomalous; neither normalized nor clamped.

  Attributes:
    map: anomaly map, one score per pixel.
    image: one anomaly score per image.
  """

  map: Float[Array, 'b h w'] | Float[np.ndarray, 'b h w']
  image: Float[Array, ' b'] | Float[np.ndarray, ' b']
