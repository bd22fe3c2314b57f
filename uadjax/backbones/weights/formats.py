"""Tensors from files of PyTorch, Paddle, safetensors and NumPy, without the first two.

The format is told by the content. A file is hostile until shown otherwise: nothing in it is
executed, and no more is allocated than it has bytes, except that NumPy's archives may be deflated.
"""

from collections.abc import Callable, Mapping
import io
import math
from typing import Any
import zipfile

from jax import numpy as jnp
import numpy as np
import safetensors

from uadjax.backbones.weights import unpickler

Tensors = dict[str, np.ndarray]

_LEGACY = b'\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.'  # torch.save before 1.6.
_SAFETENSORS = {'F64': '<f8', 'F32': '<f4', 'F16': '<f2', 'BF16': jnp.bfloat16}
_INFLATED = 4 << 30  # Bytes of an inflated archive: more than ten times the largest ResNet.
_WRAPPERS = ('state_dict', 'model', 'state_dict')  # Lightning, MoCo and others nest one.
_PARTS = 'UnpackBigParamInfor@@'  # Paddle's table of tensors that it cut into slices.


def read(data: bytes) -> Tensors:
  """Every tensor of a file's content, by its name there, in the file's own number format.

  Raises:
    ValueError: saying what is wrong with the file; its subject is the file.
  """
  try:
    return _format(data)(data)
  except MemoryError:
    raise ValueError('it asks for more memory than there is') from None
  except Exception as error:  # Whatever parsers of hostile bytes may come up with.
    message = str(error) if type(error) is ValueError else f'{type(error).__name__}: {error}'
    raise ValueError(message[:300]) from error


def _format(data: bytes) -> Callable[[bytes], Tensors]:
  if data[:4] == b'PK\x03\x04':
    return _zip
  # Before pickles: the length of the header may well begin with their first byte. Of a pickle, read
  # as a length, it would be enormous.
  if data[8:9] == b'{' and int.from_bytes(data[:8], 'little') < len(data):
    return _safetensors
  if data.startswith(_LEGACY):
    return _torch_legacy
  if data[:1] == b'\x80':
    return _pickle
  if data[8:9] == b'{':
    return _safetensors
  raise ValueError(f'it begins with {data[:16]!r}' if data else 'it is empty')


def _safetensors(data: bytes) -> Tensors:
  # safetensors.numpy does not know bfloat16.
  found = {}
  for name, tensor in safetensors.deserialize(data):
    if tensor['dtype'] in _SAFETENSORS:
      dtype = np.dtype(_SAFETENSORS[tensor['dtype']])
      found[name] = np.frombuffer(tensor['data'], dtype).reshape(tensor['shape'])
  return found


def _zip(data: bytes) -> Tensors:
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    entries = archive.infolist()
    if sum(entry.file_size for entry in entries) > _INFLATED:
      raise ValueError(f'it inflates to more than {_INFLATED >> 30} GiB')
    pickled = [e.filename for e in entries if e.filename.split('/', 1)[-1] == 'data.pkl']
    if pickled:
      return _torch(archive, pickled[0].removesuffix('data.pkl'))
    if all(e.filename.endswith('.npy') for e in entries):
      return {e.filename.removesuffix('.npy'): _npy(archive.read(e)) for e in entries}
  raise ValueError('it is a zip archive, but neither of PyTorch nor of NumPy')


def _npy(data: bytes) -> np.ndarray:
  stream = io.BytesIO(data)
  version = np.lib.format.read_magic(stream)
  if version == (1, 0):
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
  else:
    shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
  raw = stream.read()
  if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(raw):
    raise ValueError(f'an array of shape {shape} and type {dtype} has {len(raw)} bytes')
  return np.frombuffer(raw, dtype).reshape(shape, order='F' if fortran else 'C')


def _torch(archive: zipfile.ZipFile, root: str) -> Tensors:
  if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
    raise ValueError('its storages are compressed, which PyTorch never does')
  order = f'{root}byteorder'
  big = order in archive.namelist() and archive.read(order) == b'big'
  content, storages = unpickler.load(io.BytesIO(archive.read(f'{root}data.pkl')))
  raw = {key: archive.read(f'{root}data/{key}') for key in storages}
  return _named(content, raw, big)


def _torch_legacy(data: bytes) -> Tensors:
  """Five pickles (magic, version, machine, content, keys), then each storage behind its length."""
  stream = io.BytesIO(data)
  (_, _, (machine, _), (content, storages), (keys, _)) = (unpickler.load(stream) for _ in range(5))
  big = not machine['little_endian']
  raw = {}
  for key in keys:
    count = int.from_bytes(stream.read(8), 'big' if big else 'little')
    raw[key] = stream.read(count * storages[key].dtype.itemsize)
  return _named(content, raw, big)


def _pickle(data: bytes) -> Tensors:
  content, _ = unpickler.load(io.BytesIO(data))
  return _named(content, {}, False)


def _named(content: Any, raw: Mapping[str, bytes], big: bool) -> Tensors:
  """The tensors of a state_dict, or of the one that a checkpoint has under a usual name."""
  for key in _WRAPPERS:
    if isinstance(content, dict) and isinstance(content.get(key), dict):
      content = content[key]
  if not isinstance(content, dict):
    raise ValueError(f'it holds a {type(content).__name__}, not tensors by name')
  found = {}
  for name, value in content.items():
    if isinstance(value, unpickler.Tensor):
      found[name] = _view(name, value, raw, big)
    elif isinstance(value, unpickler.Holder) and isinstance(value.value, np.ndarray):
      found[name] = value.value
    elif isinstance(value, np.ndarray):
      found[name] = value
  return _joined(found, content.get(_PARTS))


def _view(name: Any, tensor: unpickler.Tensor, raw: Mapping[str, bytes], big: bool) -> np.ndarray:
  storage, offset, shape, strides = tensor
  numbers = (offset, storage.length, *shape, *strides)
  if len(shape) != len(strides) or not all(isinstance(n, int) and n >= 0 for n in numbers):
    raise ValueError(f'tensor {name} has shape {shape}, strides {strides} and offset {offset}')
  end = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + 1
  needed = max(storage.length, end if math.prod(shape) else 0)
  content = raw.get(storage.key, b'')
  if needed * storage.dtype.itemsize > len(content):
    raise ValueError(
      f'tensor {name} needs {needed * storage.dtype.itemsize} bytes, its storage has {len(content)}'
    )
  if not math.prod(shape):
    return np.zeros(shape, storage.dtype)
  dtype = storage.dtype.newbyteorder('>') if big else storage.dtype
  start = offset * dtype.itemsize
  flat = np.frombuffer(content[start : end * dtype.itemsize], dtype)
  steps = [step * dtype.itemsize for step in strides]
  return np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)


def _joined(found: Tensors, parts: Any) -> Tensors:
  """Put together what Paddle cut into slices below 1 GiB, as old pickle protocols need."""
  for name, part in (parts or {}).items():
    slices = [found.pop(key) for key in part['slices']]
    found[name] = np.concatenate(slices).reshape(part['OriginShape'])
  return found
