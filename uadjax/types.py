"""Types that all packages share: batches, scores, and aliases for arrays.

Letters used in shapes throughout: b batch, h w image or map, c channels, n images.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, TYPE_CHECKING, TypeAlias

from jaxtyping import Bool, Float, Int, UInt8

if TYPE_CHECKING:
  import jax

# Commands that compute nothing in JAX import this module, too, so it names JAX's type as a string.
Key: TypeAlias = 'jax.Array'  # A typed key of jax.random.key.
Variables = Mapping[str, Any]  # The variable collections of a linen module.
Metrics = dict[str, 'jax.Array']
PyTree: TypeAlias = Any  # A tree of arrays, or of what stands for them, such as PartitionSpecs.
Arrays = Mapping[str, Any]  # Arrays by name, as they are stored in files.


class Batch(NamedTuple):
  """Images at network size, as they enter a detector; arrays of JAX or of NumPy.

  Attributes:
    image: RGB pixels.
    valid: False for padding rows, which must not influence any result.
    index: position of each image in its list of records, or its id in `LeaveOneOut`; -1 where not
      valid.
    features: features of these images computed earlier, by `Detector.precompute` or
      `LeaveOneOut.embed`; None to compute them from `image`.
  """

  image: UInt8[Any, 'b h w 3']
  valid: Bool[Any, ' b']
  index: Int[Any, ' b']  # pyright: ignore[reportIncompatibleMethodOverride]
  features: Any = None


class Scores(NamedTuple):
  """Raw anomaly scores, in arrays of JAX or of NumPy: larger is more anomalous; not normalized.

  Attributes:
    map: anomaly map, one score per pixel.
    image: one anomaly score per image.
  """

  map: Float[Any, 'b h w']
  image: Float[Any, ' b']
