"""Tensors from PyTorch, Paddle, safetensors and NumPy files, without importing PyTorch or Paddle.

The content determines the format. Files are not trusted: nothing in them is executed, and no more
memory is allocated than a file has bytes, except for NumPy archives, which may be deflated.
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

# torch.save wrote this format before version 1.6.
_LEGACY_MAGIC = b'\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.'
_SAFETENSORS_DTYPES = {'F64': '<f8', 'F32': '<f4', 'F16': '<f2', 'BF16': jnp.bfloat16}
_MAX_INFLATED_BYTES = 4 << 30  # This is more than ten times the largest ResNet.
_WRAPPER_KEYS = ('state_dict', 'model', 'state_dict')  # Lightning, MoCo and others nest these.
_PADDLE_SLICES_KEY = 'UnpackBigParamInfor@@'  # Paddle lists here the tensors it cut into slices.


def read(data: bytes) -> Tensors:
  """Return the tensors in the content of a file, by their names in it, with their dtypes in it.

  Raises:
    ValueError: the file cannot be read. The message is a clause about the file ("it is empty").
  """
  try:
    return _choose_reader(data)(data)
  except MemoryError:
    raise ValueError('it requires more memory than is available') from None
  except Exception as error:  # Parsers may raise anything on hostile bytes.
    message = str(error) if type(error) is ValueError else f'{type(error).__name__}: {error}'
    raise ValueError(message[:300]) from error


def _choose_reader(data: bytes) -> Callable[[bytes], Tensors]:
  if data[:4] == b'PK\x03\x04':
    return _read_zip
  # This test precedes that for pickles, because the header's length may begin with the same byte.
  # The first bytes of a pickle, read as a length, would be enormous.
  if data[8:9] == b'{' and int.from_bytes(data[:8], 'little') < len(data):
    return _read_safetensors
  if data.startswith(_LEGACY_MAGIC):
    return _read_torch_legacy
  if data[:1] == b'\x80':
    return _read_pickle
  if data[8:9] == b'{':
    return _read_safetensors
  raise ValueError(
    f'it begins with {data[:16]!r}, which is not a known format' if data else 'it is empty'
  )


def _read_safetensors(data: bytes) -> Tensors:
  # safetensors.numpy does not support bfloat16.
  tensors = {}
  for name, tensor in safetensors.deserialize(data):
    if tensor['dtype'] in _SAFETENSORS_DTYPES:
      dtype = np.dtype(_SAFETENSORS_DTYPES[tensor['dtype']])
      tensors[name] = np.frombuffer(tensor['data'], dtype).reshape(tensor['shape'])
  return tensors


def _read_zip(data: bytes) -> Tensors:
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    entries = archive.infolist()
    if sum(entry.file_size for entry in entries) > _MAX_INFLATED_BYTES:
      raise ValueError(f'it inflates to more than {_MAX_INFLATED_BYTES >> 30} GiB')
    pickle_names = [e.filename for e in entries if e.filename.split('/', 1)[-1] == 'data.pkl']
    if pickle_names:
      return _read_torch_zip(archive, pickle_names[0].removesuffix('data.pkl'))
    if all(e.filename.endswith('.npy') for e in entries):
      return {e.filename.removesuffix('.npy'): _read_npy(archive.read(e)) for e in entries}
  raise ValueError('it is a zip archive from neither PyTorch nor NumPy')


def _read_npy(data: bytes) -> np.ndarray:
  stream = io.BytesIO(data)
  version = np.lib.format.read_magic(stream)
  if version == (1, 0):
    shape, is_fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
  else:
    shape, is_fortran_order, dtype = np.lib.format.read_array_header_2_0(stream)
  raw = stream.read()
  if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(raw):
    raise ValueError(f'an array of shape {shape} and type {dtype} has {len(raw)} bytes')
  return np.frombuffer(raw, dtype).reshape(shape, order='F' if is_fortran_order else 'C')


def _read_torch_zip(archive: zipfile.ZipFile, root: str) -> Tensors:
  if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
    raise ValueError('its storages are compressed, which PyTorch never does')
  byteorder_entry = f'{root}byteorder'
  is_big_endian = byteorder_entry in archive.namelist() and archive.read(byteorder_entry) == b'big'
  content, storages = unpickler.load(io.BytesIO(archive.read(f'{root}data.pkl')))
  storage_bytes = {key: archive.read(f'{root}data/{key}') for key in storages}
  return _state_dict_tensors(content, storage_bytes, is_big_endian)


def _read_torch_legacy(data: bytes) -> Tensors:
  """Read the format of torch.save before version 1.6.

  It has five pickles (magic, version, machine, content, keys), then each storage after its length.
  """
  stream = io.BytesIO(data)
  (_, _, (machine_info, _), (content, storages), (keys, _)) = (
    unpickler.load(stream) for _ in range(5)
  )
  is_big_endian = not machine_info['little_endian']
  storage_bytes = {}
  for key in keys:
    num_elements = int.from_bytes(stream.read(8), 'big' if is_big_endian else 'little')
    storage_bytes[key] = stream.read(num_elements * storages[key].dtype.itemsize)
  return _state_dict_tensors(content, storage_bytes, is_big_endian)


def _read_pickle(data: bytes) -> Tensors:
  content, _ = unpickler.load(io.BytesIO(data))
  return _state_dict_tensors(content, {}, False)


def _state_dict_tensors(
  content: Any, storage_bytes: Mapping[str, bytes], is_big_endian: bool
) -> Tensors:
  """Return the tensors of a state_dict, or of one that a checkpoint nests under a usual key."""
  for key in _WRAPPER_KEYS:
    if isinstance(content, dict) and isinstance(content.get(key), dict):
      content = content[key]
  if not isinstance(content, dict):
    raise ValueError(f'it holds a {type(content).__name__}, not a dict of tensors')
  tensors = {}
  for name, value in content.items():
    if isinstance(value, unpickler.Tensor):
      tensors[name] = _tensor_view(name, value, storage_bytes, is_big_endian)
    elif isinstance(value, unpickler.Holder) and isinstance(value.value, np.ndarray):
      tensors[name] = value.value
    elif isinstance(value, np.ndarray):
      tensors[name] = value
  return _join_slices(tensors, content.get(_PADDLE_SLICES_KEY))


def _tensor_view(
  name: Any, tensor: unpickler.Tensor, storage_bytes: Mapping[str, bytes], is_big_endian: bool
) -> np.ndarray:
  storage, offset, shape, strides = tensor
  sizes = (offset, storage.length, *shape, *strides)
  if len(shape) != len(strides) or not all(isinstance(n, int) and n >= 0 for n in sizes):
    raise ValueError(f'tensor {name} has shape {shape}, strides {strides} and offset {offset}')
  end = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + 1
  num_elements = max(storage.length, end if math.prod(shape) else 0)
  content = storage_bytes.get(storage.key, b'')
  if num_elements * storage.dtype.itemsize > len(content):
    raise ValueError(
      f'tensor {name} needs {num_elements * storage.dtype.itemsize} bytes, but its storage has '
      f'{len(content)}'
    )
  if not math.prod(shape):
    return np.zeros(shape, storage.dtype)
  dtype = storage.dtype.newbyteorder('>') if is_big_endian else storage.dtype
  start = offset * dtype.itemsize
  flat_values = np.frombuffer(content[start : end * dtype.itemsize], dtype)
  byte_strides = [stride * dtype.itemsize for stride in strides]
  return np.lib.stride_tricks.as_strided(flat_values, shape, byte_strides, writeable=False)


def _join_slices(tensors: Tensors, slice_table: Any) -> Tensors:
  """Join tensors that Paddle cut into slices below 1 GiB, as old pickle protocols require."""
  for name, entry in (slice_table or {}).items():
    slices = [tensors.pop(key) for key in entry['slices']]
    tensors[name] = np.concatenate(slices).reshape(entry['OriginShape'])
  return tensors
