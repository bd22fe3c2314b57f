"""Arrays of a model in one safetensors file, written and hashed in chunks."""

from collections.abc import Iterator
import hashlib
import itertools
import json
import mmap
from pathlib import Path

import jax
import numpy as np

from uadjax.errors import ModelError
from uadjax.system import files
from uadjax.types import Arrays

ARRAYS_FILE = 'fitted.safetensors'

# Fitted models have arrays of these types, here by safetensors' names.
_DTYPES = {'F32': 'f4', 'I32': 'i4', 'U8': 'u1', 'BOOL': '?'}
_ALIGNMENT = 64  # JAX uses host memory without a copy only if it is aligned to 64 bytes.
_CHUNK_BYTES = 1 << 20  # A chunk is hashed while it is in the CPU cache from being copied.


def save_arrays(folder: Path, fitted: object) -> str:
  """Write fitted arrays as `fitted.safetensors` into the folder of a model.

  The file has safetensors' format: 8 bytes with the length of a JSON header, the header, and the
  raw little-endian arrays. It is written and hashed in chunks, without copying the arrays.

  Returns:
    The SHA-256 of the file, which the manifest has to contain.
  """
  leaves = leaves_by_path(fitted)
  type_names = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
  # Arrays whose size is a multiple of the alignment come first, so that each of them is aligned.
  names = sorted(leaves, key=lambda name: (leaves[name].nbytes % _ALIGNMENT != 0, name))
  header, end = {}, 0
  for name in names:
    leaf, begin = leaves[name], end
    dtype, end = type_names[leaf.dtype], end + leaf.nbytes
    header[name] = {'dtype': dtype, 'shape': leaf.shape, 'data_offsets': [begin, end]}
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
  """Return the leaves of a tree by path, such as `bank/rows`: their names in the file."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def _byte_chunks(leaf: jax.Array | np.ndarray) -> Iterator[memoryview]:
  """Return chunks of an array's bytes, without copying a NumPy array."""
  data = np.asarray(leaf).reshape(-1).view(np.uint8).data
  return (data[offset : offset + _CHUNK_BYTES] for offset in range(0, len(data), _CHUNK_BYTES))


def read_file(path: Path) -> tuple[mmap.mmap, str]:
  """Read a file into anonymous memory, and return the memory and the file's SHA-256.

  The file is read rather than mapped, so that the data stays as hashed even if the file changes.
  The memory has pages of its own rather than malloc's: they are aligned, and are returned to the
  system with the last array.

  Raises:
    ModelError: the file cannot be read.
  """
  digest = hashlib.sha256()
  try:
    with path.open('rb') as file:
      num_bytes = path.stat().st_size
      buffer = mmap.mmap(-1, max(num_bytes, 1), access=mmap.ACCESS_COPY)
      for offset in range(0, num_bytes, _CHUNK_BYTES):
        chunk = memoryview(buffer)[offset : min(offset + _CHUNK_BYTES, num_bytes)]
        file.readinto(chunk)
        digest.update(chunk)
  except OSError as error:
    raise ModelError(f'{path} cannot be read: {error.strerror}.') from None
  return buffer, digest.hexdigest()


def parse_arrays(buffer: mmap.mmap) -> dict[str, np.ndarray]:
  """Return the arrays of a safetensors file by name, as views of its bytes."""
  data_start = 8 + int.from_bytes(buffer[:8], 'little')
  header = json.loads(buffer[8:data_start])
  header.pop('__metadata__', None)
  return {
    name: np.ndarray(
      entry['shape'], _DTYPES[entry['dtype']], buffer, data_start + entry['data_offsets'][0]
    )
    for name, entry in header.items()
  }
