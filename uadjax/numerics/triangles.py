"""Matrices that their lower triangles determine: triangular or symmetric ones.

A triangle with its diagonal has little more than half the numbers of its matrix. Computations take
whole matrices, in which products are fast. Files store triangles, row by row, as LAPACK's packed
storage does.

Letters: d rows and columns of a matrix, t numbers of its triangle, n matrices.
"""

from collections.abc import Iterator
import math
from typing import NamedTuple

from jaxtyping import Array, Float
import numpy as np

# Matrices are packed and unpacked in blocks of about as many bytes, which fit into the CPU cache.
_BLOCK_BYTES = 1 << 20


class Triangles(NamedTuple):
  """Arrays of matrices, in a tree of arrays whose file stores their lower triangles only.

  Attributes:
    matrices: triangular or symmetric matrices, or what stands for them in the tree.
  """

  matrices: Float[Array, '*shape d d']

  @property
  def packed_shape(self) -> tuple[int, ...]:
    """Shape of the array in which `pack` puts the triangles."""
    *shape, d, _ = self.matrices.shape
    return (*shape, num_entries(d))

  @property
  def packed_bytes(self) -> int:
    """Number of bytes of that array."""
    return math.prod(self.packed_shape) * self.matrices.dtype.itemsize

  def pack_blocks(self) -> Iterator[Float[np.ndarray, 'n t']]:
    """Yield the triangles of a few matrices at a time, so that no copy of all of them is needed."""
    d = self.matrices.shape[-1]
    matrices, size = np.asarray(self.matrices).reshape(-1, d, d), block_size(d)
    return (pack(matrices[i : i + size]) for i in range(0, len(matrices), size))


def num_entries(d: int) -> int:
  """Return the number of entries of a triangle, its diagonal included."""
  return d * (d + 1) // 2


def num_rows(t: int) -> int:
  """Return the number of rows of a triangle with t entries: the inverse of `num_entries`."""
  return (math.isqrt(8 * t + 1) - 1) // 2


def diagonal_positions(d: int) -> np.ndarray:
  """Return the positions of the diagonal in a packed triangle."""
  return np.cumsum(np.arange(d) + 1) - 1


def block_size(d: int) -> int:
  """Return the number of matrices to pack or unpack at a time."""
  return max(1, _BLOCK_BYTES // (4 * d * d))


def pack(matrices: Float[np.ndarray, 'n d d']) -> Float[np.ndarray, 'n t']:
  """Return the lower triangles of matrices, row by row."""
  n, d, _ = matrices.shape
  packed = np.empty((n, num_entries(d)), matrices.dtype)
  for i in range(d):
    packed[:, num_entries(i) : num_entries(i + 1)] = matrices[:, i, : i + 1]
  return packed


def unpack(
  packed: Float[np.ndarray, '*shape t'],
  out: Float[np.ndarray, '*shape d d'],
  symmetric: bool = False,
) -> None:
  """Write matrices from their lower triangles.

  Args:
    packed: triangles of `pack`.
    out: contiguous array to write to. Entries above the diagonals are left as they are, unless
      `symmetric`.
    symmetric: whether the matrices are symmetric.
  """
  d = out.shape[-1]
  packed, out, size = packed.reshape(-1, num_entries(d)), out.reshape(-1, d, d), block_size(d)
  for start in range(0, len(out), size):
    block, target = packed[start : start + size], out[start : start + size]
    for i in range(d):
      row = block[:, num_entries(i) : num_entries(i + 1)]
      target[:, i, : i + 1] = row
      if symmetric:
        target[:, : i + 1, i] = row
