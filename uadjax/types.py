"""Types that all packages share: batches, scores, and names for arrays.

Letters used in shapes throughout: b batch, h w image or map, c channels, n images.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
from jaxtyping import Array, Bool, Float, Int, UInt8
import numpy as np

Key: TypeAlias = jax.Array  # A typed key of jax.random.key.
Variables = Mapping[str, Any]  # A linen module's variable collections.
Metrics = dict[str, jax.Array]
Arrays = Mapping[str, Any]  # Arrays by name, as files hold them.
Config = Any  # An ml_collections.ConfigDict, whose fields no type checker can know.


class Batch(NamedTuple):
  """Images at network size, as they enter a detector.

  Attributes:
    image: RGB pixels.
    valid: False for rows that only fill the batch up; they must change nothing.
    index: each row's position in its list of records, -1 where not valid.
    features: what `Detector.prepare` made of these images, where it was kept; else None.
  """

  image: UInt8[Array, 'b h w 3'] | UInt8[np.ndarray, 'b h w 3']
  valid: Bool[Array, ' b'] | Bool[np.ndarray, ' b']
  index: Int[Array, ' b'] | Int[np.ndarray, ' b']  # pyright: ignore[reportIncompatibleMethodOverride]
  features: Any = None


class Scores(NamedTuple):
  """How anomalous images are: the larger, the more. Raw, neither normalized nor clamped."""

  map: Float[Array, 'b h w'] | Float[np.ndarray, 'b h w']
  image: Float[Array, ' b'] | Float[np.ndarray, ' b']
