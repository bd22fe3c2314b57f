"""State arrays as they are read back from files, without the files."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from uadjax.numerics.triangles import Triangles


def stored(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Return host copies of arrays, and the packed triangles of `Triangles`."""
  return {
    name: np.concatenate([*value.pack_blocks()]).reshape(value.packed_shape)
    if isinstance(value, Triangles)
    else np.array(value)
    for name, value in arrays.items()
  }
