"""The arrays of a model as one safetensors file, written and hashed piece by piece."""

from collections.abc import Iterator
import hashlib
import itertools
import json
import mmap
from pathlib import Path
from typing import Any

import jax
import numpy as np

from uadjax.errors import ModelError

ARRAYS_FILE = 'fitted.safetensors'

# The types of arrays in fitted models, by safetensors' names.
_DTYPES = {
  'F32': np.dtype('f4'),
  'I32': np.dtype('i4'),
  'U8': np.dtype('u1'),
  'BOOL': np.dtype('?'),
}
_ALIGNMENT = 64  # Bytes: JAX takes memory of the host as its own, uncopied, where it is aligned so.
_CHUNK_BYTES = 1 << 20  # Bytes hashed while they are in the processor's cache, being copied.


def save_arrays(folder: Path, fitted: Any) -> str:
  """Write the fitted arrays into the folder of a model; the manifest comes after them.

  The file is as safetensors has it: 8 bytes that tell the length of a JSON header, the header, the
  raw little-endian arrays. It is written and hashed piece by piece, from where the arrays lie.

  Returns:
    The SHA-256 of the file.
  """
  leaves, type_names = leaves_by_path(fitted), {dtype: name for name, dtype in _DTYPES.items()}
  # All that fill whole units of alignment first, so that each of them begins with one.
  names = sorted(leaves, key=lambda name: (leaves[name].nbytes % _ALIGNMENT != 0, name))
  header, end = {}, 0
  for name in names:
    begin, end = end, end + leaves[name].nbytes
    entry = {'dtype': type_names[leaves[name].dtype], 'shape': leaves[name].shape}
    header[name] = {**entry, 'data_offsets': [begin, end]}
  header_bytes = json.dumps(header).encode()
  header_bytes += b' ' * (-(8 + len(header_bytes)) % _ALIGNMENT)
  digest = hashlib.sha256()
  with (folder / ARRAYS_FILE).open('wb') as file:
    chunks = itertools.chain.from_iterable(_byte_chunks(leaves[name]) for name in names)
    for chunk in itertools.chain([len(header_bytes).to_bytes(8, 'little'), header_bytes], chunks):
      digest.update(chunk)
      file.write(chunk)
  return digest.hexdigest()


def leaves_by_path(tree: Any) -> dict[str, Any]:
  """Leaves of a tree by their path, as the file names them."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def _byte_chunks(leaf: Any) -> Iterator[memoryview]:
  """The bytes of an array, from where they lie."""
  data = np.asarray(leaf).reshape(-1).view(np.uint8).data
  return (data[offset : offset + _CHUNK_BYTES] for offset in range(0, len(data), _CHUNK_BYTES))


def read_file(path: Path) -> tuple[mmap.mmap, str]:
  """Read a file for arrays to lie in, and take its SHA-256.

  Read and not mapped: what is opened stays as it was hashed, whatever becomes of the file. Pages of
  its own rather than malloc's: they are aligned, and return to the system with the last array.
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
  """The arrays of a safetensors file, where they lie."""
  data_start = 8 + int.from_bytes(buffer[:8], 'little')
  header = json.loads(buffer[8:data_start])
  header.pop('__metadata__', None)
  return {
    name: np.ndarray(
      entry['shape'], _DTYPES[entry['dtype']], buffer, data_start + entry['data_offsets'][0]
    )
    for name, entry in header.items()
  }
