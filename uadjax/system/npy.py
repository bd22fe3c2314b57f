"""Headers of arrays in NumPy's format, checked against the size of the file before any is used."""

import io
import math
from typing import Literal, NamedTuple

import numpy as np

_HEADER_READERS = {
  (1, 0): np.lib.format.read_array_header_1_0,
  (2, 0): np.lib.format.read_array_header_2_0,
}


class Header(NamedTuple):
  """Shape, order and type of the array that follows."""

  shape: tuple[int, ...]
  order: Literal['C', 'F']
  dtype: np.dtype


def read_header(file: io.BufferedIOBase, num_bytes: int) -> Header:
  """Read the header of a file, and leave the file at the first byte of the array.

  `np.lib.format.read_array` would allocate whatever a header claims.

  Args:
    file: file at its beginning.
    num_bytes: size of the file.

  Raises:
    ValueError: the file is not in NumPy's format, has no numbers, or is too short or too long.
  """
  version = np.lib.format.read_magic(file)
  if version not in _HEADER_READERS:
    raise ValueError(f'it has version {version} of the format of NumPy')
  shape, is_fortran_order, dtype = _HEADER_READERS[version](file)
  if dtype.kind not in 'fiub':
    raise ValueError(f'it holds an array of type {dtype}, which is not numeric')
  expected, actual = math.prod(shape) * dtype.itemsize, num_bytes - file.tell()
  if min(shape, default=0) < 0 or expected != actual:
    raise ValueError(f'an array of shape {shape} and type {dtype} has {actual} bytes')
  return Header(shape, 'F' if is_fortran_order else 'C', dtype)
