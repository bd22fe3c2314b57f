"""Arrays of a model in one safetensors file, written and hashed in chunks."""

from collections.abc import Collection, Iterator, Mapping
import hashlib
import io
import itertools
import json
import math
import os
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from uadjax.errors import ModelError
from uadjax.model.manifest import HINT
from uadjax.numerics import triangles
from uadjax.numerics.triangles import Triangles
from uadjax.system import files, memory
from uadjax.types import Arrays

ARRAYS_FILE = 'fitted.safetensors'

# Fitted models have arrays of these types, here by safetensors' names.
_DTYPES = {'F32': 'f4', 'I32': 'i4', 'U8': 'u1', 'BOOL': '?'}
_ALIGNMENT = 64  # JAX uses host memory without a copy only if it is aligned to 64 bytes.
_MAX_HEADER_BYTES = 1 << 24
_CHUNK_BYTES = 1 << 20  # A chunk is hashed while it is in the CPU cache from being copied.


def save_arrays(folder: Path, fitted: object) -> str:
  """Write fitted arrays as `fitted.safetensors` into the folder of a model.

  The file has safetensors' format: 8 bytes with the length of a JSON header, the header, and the
  raw little-endian arrays. It is written and hashed in chunks, without copying the arrays. Of
  `Triangles`, it has the packed lower triangles.

  Returns:
    The SHA-256 of the file, which the manifest has to contain.
  """
  leaves = leaves_by_path(fitted)
  stored = {name: _stored_struct(leaf) for name, leaf in leaves.items()}
  type_names = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
  # Arrays whose size is a multiple of the alignment come first, so that each of them is aligned.
  names = sorted(stored, key=lambda name: (_num_bytes(stored[name]) % _ALIGNMENT != 0, name))
  header, end = {}, 0
  for name in names:
    struct, begin = stored[name], end
    dtype, end = type_names[struct.dtype], end + _num_bytes(struct)
    header[name] = {'dtype': dtype, 'shape': struct.shape, 'data_offsets': [begin, end]}
  files.announce_size('the model', folder, end)
  header_bytes = json.dumps(header).encode()
  header_bytes += b' ' * (-(8 + len(header_bytes)) % _ALIGNMENT)
  digest = hashlib.sha256()
  with (folder / ARRAYS_FILE).open('wb') as file:
    chunks = itertools.chain.from_iterable(_byte_chunks(leaves[name]) for name in names)
    for chunk in itertools.chain([len(header_bytes).to_bytes(8, 'little'), header_bytes], chunks):
      digest.update(chunk)
      file.write(chunk)
  return digest.hexdigest()


def leaves_by_path(tree: object) -> Arrays:
  """Return the arrays and `Triangles` of a tree by path, such as `bank/rows`: their names."""
  leaves = jax.tree_util.tree_flatten_with_path(tree, lambda node: isinstance(node, Triangles))[0]
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def _stored_struct(
  leaf: jax.Array | np.ndarray | jax.ShapeDtypeStruct | Triangles,
) -> jax.ShapeDtypeStruct:
  """Return shape and type of the array that a file has of a leaf."""
  if isinstance(leaf, Triangles):
    return jax.ShapeDtypeStruct(leaf.packed_shape, leaf.matrices.dtype)
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _num_bytes(struct: jax.ShapeDtypeStruct) -> int:
  return math.prod(struct.shape) * struct.dtype.itemsize


def _byte_chunks(leaf: jax.Array | np.ndarray | Triangles) -> Iterator[memoryview]:
  """Return chunks of the bytes that a file has of a leaf, without copying a NumPy array."""
  if isinstance(leaf, Triangles):
    return (block.reshape(-1).view(np.uint8).data for block in leaf.pack_blocks())
  data = np.asarray(leaf).reshape(-1).view(np.uint8).data
  return (data[offset : offset + _CHUNK_BYTES] for offset in range(0, len(data), _CHUNK_BYTES))


def read_arrays(
  path: Path, template: Arrays, bank_leaves: Collection[str]
) -> tuple[dict[str, np.ndarray], str]:
  """Read a file into anonymous memory; return its arrays by name, as views, and its SHA-256.

  The header is compared with the template and with the size of the file before anything else is
  read. The file is read rather than mapped, so that the data stays as hashed even if the file
  changes. Of `Triangles` in the template, whole matrices are returned.

  Args:
    path: the file.
    template: shapes and types of the arrays by name, from `leaves_by_path`.
    bank_leaves: names of the arrays that may have another number of rows, which is the same for
      all of them.

  Raises:
    ModelError: the file cannot be read, or does not match the template.
  """
  digest = hashlib.sha256()
  try:
    with files.open_regular(path) as file:
      num_bytes = os.fstat(file.fileno()).st_size
      entries = _read_header(file, num_bytes, path)
      _require_template(entries, template, bank_leaves, path)
      _require_contiguous(entries, num_bytes - file.tell(), path)
      data_start = file.tell()
      file.seek(0)
      digest.update(file.read(data_start))
      arrays = _allocate(entries, template, path)
      for name, array in arrays.items():
        read = _read_triangles if isinstance(template[name], Triangles) else _read_array
        read(file, array, digest)
  except OSError as error:
    raise ModelError(f'{path} cannot be read: {error.strerror}.') from None
  return arrays, digest.hexdigest()


def _read_array(file: io.BufferedReader, array: np.ndarray, digest: 'hashlib._Hash') -> None:
  """Read an array in chunks."""
  data = array.reshape(-1).view(np.uint8).data
  for offset in range(0, len(data), _CHUNK_BYTES):
    chunk = data[offset : offset + _CHUNK_BYTES]
    file.readinto(chunk)
    digest.update(chunk)


def _read_triangles(file: io.BufferedReader, matrices: np.ndarray, digest: 'hashlib._Hash') -> None:
  """Read the packed triangles of matrices, which are zero so far, in chunks."""
  d = matrices.shape[-1]
  matrices, size = matrices.reshape(-1, d, d), triangles.block_size(d)
  for start in range(0, len(matrices), size):
    block = matrices[start : start + size]
    packed = np.empty((len(block), triangles.num_entries(d)), matrices.dtype)
    _read_array(file, packed, digest)
    triangles.unpack(packed, block)


def require_finite(arrays: Arrays, path: Path) -> None:
  """Raise a ModelError if an array has values that are NaN or infinite."""
  for name, array in arrays.items():
    # Minimum and maximum need no memory, unlike numpy.isfinite. They are NaN if a value is.
    if array.dtype.kind == 'f' and array.size and not np.isfinite([array.min(), array.max()]).all():
      raise _damaged(path, f'{name} has values that are not finite', name)


class _Entry(NamedTuple):
  """Array in the header of a file; `begin` and `end` count from the end of the header."""

  dtype: np.dtype
  shape: tuple[int, ...]
  begin: int
  end: int


def _read_header(file: io.BufferedReader, num_bytes: int, path: Path) -> dict[str, _Entry]:
  """Read the header of a safetensors file, which says where each array is."""
  header_bytes = int.from_bytes(file.read(8), 'little')
  if not 2 <= header_bytes <= min(num_bytes - 8, _MAX_HEADER_BYTES):
    raise _damaged(path, f'its header cannot have {header_bytes} bytes')
  try:
    header = files.parse_json(file.read(header_bytes))
  except ValueError as error:
    raise _damaged(path, f'its header cannot be read ({error})') from None
  if not isinstance(header, dict):
    raise _damaged(path, 'its header is no JSON object')
  header.pop('__metadata__', None)
  entries = {}
  for name, entry in header.items():
    try:
      entries[name] = _parse_entry(**entry)
    except (ValueError, KeyError, TypeError) as error:
      raise _damaged(path, f'{name} has an invalid header ({error})', name) from None
  return entries


def _parse_entry(dtype: str, shape: list[int], data_offsets: list[int]) -> _Entry:
  begin, end = data_offsets
  for number in (*shape, begin, end):
    if type(number) is not int or not 0 <= number < 1 << 63:
      raise ValueError(f'{number!r} is no size or offset')
  return _Entry(np.dtype(_DTYPES[dtype]), tuple(shape), begin, end)


def _require_template(
  entries: Mapping[str, _Entry], template: Arrays, bank_leaves: Collection[str], path: Path
) -> None:
  if names := sorted(entries.keys() ^ template.keys()):
    problem = f'does not match its manifest: {names[:3]} are missing or unexpected'
    raise ModelError(f'{path} {problem}.', key=names[0], hint=HINT)
  num_rows = {entries[name].shape[:1] for name in bank_leaves}
  for name, leaf in template.items():
    (dtype, shape, *_), struct = entries[name], _stored_struct(leaf)
    expected = tuple(struct.shape)
    if name in bank_leaves and len(num_rows) == 1 and shape[:1] > (0,):
      expected = (shape[0], *expected[1:])
    if (dtype, shape) != (struct.dtype, expected):
      problem = f'must have type {struct.dtype} and shape {expected}, but has {dtype} and {shape}'
      raise _damaged(path, f'{name} {problem}', name)


def _require_contiguous(entries: Mapping[str, _Entry], num_bytes: int, path: Path) -> None:
  """Raise an error unless the arrays fill the file after its header, without gaps and overlaps."""
  position = 0
  for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
    end = position + math.prod(entry.shape) * entry.dtype.itemsize
    if (entry.begin, entry.end) != (position, end):
      problem = f'must be at bytes {position} to {end}, but is at {entry.begin} to {entry.end}'
      raise _damaged(path, f'{name} {problem}', name)
    position = end
  if position != num_bytes:
    raise _damaged(path, f'it has {num_bytes} bytes of arrays instead of {position}')


def _allocate(entries: Mapping[str, _Entry], template: Arrays, path: Path) -> dict[str, np.ndarray]:
  """Return the arrays of a file, in its order, as views of one block of zeros.

  The block has pages of its own rather than malloc's. Its arrays are aligned for JAX.
  """
  offsets, shapes, num_bytes = {}, {}, 0
  for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
    leaf = template[name]
    shapes[name] = leaf.matrices.shape if isinstance(leaf, Triangles) else entry.shape
    offsets[name] = num_bytes
    num_bytes += math.prod(shapes[name]) * entry.dtype.itemsize
    num_bytes += -num_bytes % _ALIGNMENT
  # A sparse file may be larger than any memory, which the system would promise nevertheless.
  total_bytes = memory.total_bytes()
  if total_bytes is not None and num_bytes > total_bytes:
    sizes = f'{num_bytes / 1e9:.1f} GB, but this machine has {total_bytes / 1e9:.1f} GB of memory'
    raise ModelError(f'{path} needs {sizes}.', hint=HINT)
  buffer = memory.allocate_pages(num_bytes)
  return {
    name: np.ndarray(shapes[name], entries[name].dtype, buffer, offset)
    for name, offset in offsets.items()
  }


def _damaged(path: Path, problem: str, key: str | None = None) -> ModelError:
  return ModelError(f'{path} is damaged: {problem}.', key=key, hint=HINT)
