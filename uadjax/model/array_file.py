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

ARRAYS = 'fitted.safetensors'

# The types of arrays in fitted models, by safetensors' names.
_TYPES = {'F32': np.dtype('f4'), 'I32': np.dtype('i4'), 'U8': np.dtype('u1'), 'BOOL': np.dtype('?')}
_ALIGNED = 64  # Bytes: JAX takes memory of the host as its own, uncopied, where it is aligned so.
_PIECE = 1 << 20  # Bytes hashed while they are in the processor's cache, being copied.


def save_arrays(folder: Path, fitted: Any) -> str:
  """Write the fitted arrays into the folder of a model; the manifest comes after them.

  The file is as safetensors has it: 8 bytes that tell the length of a JSON header, the header, the
  raw little-endian arrays. It is written and hashed piece by piece, from where the arrays lie.

  Returns:
    The SHA-256 of the file.
  """
  leaves, type_names = named(fitted), {dtype: name for name, dtype in _TYPES.items()}
  # All that fill whole units of alignment first, so that each of them begins with one.
  names = sorted(leaves, key=lambda name: (leaves[name].nbytes % _ALIGNED != 0, name))
  header, end = {}, 0
  for name in names:
    begin, end = end, end + leaves[name].nbytes
    about = {'dtype': type_names[leaves[name].dtype], 'shape': leaves[name].shape}
    header[name] = {**about, 'data_offsets': [begin, end]}
  text = json.dumps(header).encode()
  text += b' ' * (-(8 + len(text)) % _ALIGNED)
  digest = hashlib.sha256()
  with (folder / ARRAYS).open('wb') as file:
    pieces = itertools.chain.from_iterable(_pieces(leaves[name]) for name in names)
    for piece in itertools.chain([len(text).to_bytes(8, 'little'), text], pieces):
      digest.update(piece)
      file.write(piece)
  return digest.hexdigest()


def named(tree: Any) -> dict[str, Any]:
  """Leaves of a tree by their path, as the file names them."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def _pieces(leaf: Any) -> Iterator[memoryview]:
  """The bytes of an array, from where they lie."""
  data = np.asarray(leaf).reshape(-1).view(np.uint8).data
  return (data[at : at + _PIECE] for at in range(0, len(data), _PIECE))


def read(path: Path) -> tuple[mmap.mmap, str]:
  """Read a file for arrays to lie in, and take its SHA-256.

  Read and not mapped: what is opened stays as it was hashed, whatever becomes of the file. Pages of
  its own rather than malloc's: they are aligned, and return to the system with the last array.
  """
  digest = hashlib.sha256()
  try:
    with path.open('rb') as file:
      size = path.stat().st_size
      memory = mmap.mmap(-1, max(size, 1), access=mmap.ACCESS_COPY)
      for at in range(0, size, _PIECE):
        piece = memoryview(memory)[at : min(at + _PIECE, size)]
        file.readinto(piece)
        digest.update(piece)
  except OSError as error:
    raise ModelError(f'{path} cannot be read: {error.strerror}.') from None
  return memory, digest.hexdigest()


def arrays(memory: mmap.mmap) -> dict[str, np.ndarray]:
  """The arrays of a safetensors file, where they lie."""
  first = 8 + int.from_bytes(memory[:8], 'little')
  header = json.loads(memory[8:first])
  header.pop('__metadata__', None)
  return {
    name: np.ndarray(
      about['shape'], _TYPES[about['dtype']], memory, first + about['data_offsets'][0]
    )
    for name, about in header.items()
  }
