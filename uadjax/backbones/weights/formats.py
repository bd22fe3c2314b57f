"""Tensors from PyTorch, Paddle, safetensors and NumPy files, without importing PyTorch or Paddle.

The content determines the format. Files are not trusted: nothing in them is executed. Reading one
allocates at most twice the file's size, and `ALLOWANCE` for small files.
"""

from collections.abc import Callable
import io
import math
import zipfile

from jax import numpy as jnp
import numpy as np
import safetensors

from uadjax.backbones.weights import pickle_interpreter
from uadjax.backbones.weights.pickle_interpreter import Budget
from uadjax.system import npy

ALLOWANCE = 1 << 20

Tensors = dict[str, np.ndarray]

# torch.save wrote this format before version 1.6.
_LEGACY_MAGIC = b'\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.'
_SAFETENSORS_DTYPES = {'F64': '<f8', 'F32': '<f4', 'F16': '<f2', 'BF16': jnp.bfloat16.dtype}
# The objects that describe an entry of a zip archive, or a byte of a safetensors header, take at
# most so many bytes, which is more than they have in the file.
_BYTES_PER_ZIP_ENTRY, _BYTES_PER_HEADER_BYTE = 1024, 16
_BYTES_PER_VIEW = 1024  # Of a tensor without its numbers.
_MAX_INFLATED_BYTES = 6 << 30  # The largest published backbone, ViT-g, has 4.5 GB.
_WRAPPER_KEYS = ('state_dict', 'model', 'state_dict')  # Lightning, MoCo and others nest these.
_MAX_DIMENSIONS = 64  # As NumPy.
_PADDLE_SLICES_KEY = 'UnpackBigParamInfor@@'  # Paddle's list of tensors in slices below 1 GiB.


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
  if data[8:9] == b'{':  # Cut within the header; the reader says so.
    return _read_safetensors
  problem = f'it begins with {data[:16]!r}, which is not a known format'
  raise ValueError(problem if data else 'it is empty')


def _read_safetensors(data: bytes) -> Tensors:
  header_bytes = int.from_bytes(data[:8], 'little')
  if header_bytes * _BYTES_PER_HEADER_BYTE > len(data) + ALLOWANCE:
    raise ValueError(f'its header of {header_bytes} bytes is too long for its {len(data)} bytes')
  # safetensors.numpy does not support bfloat16.
  return {
    name: np.frombuffer(x['data'], _SAFETENSORS_DTYPES[x['dtype']]).reshape(x['shape'])
    for name, x in safetensors.deserialize(data)
    if x['dtype'] in _SAFETENSORS_DTYPES
  }


def _read_zip(data: bytes) -> Tensors:
  # Signatures bound the number of entries, each of which zipfile would describe by an object.
  num_entries = data.count(b'PK\x01\x02')
  if num_entries * _BYTES_PER_ZIP_ENTRY > len(data) + ALLOWANCE:
    raise ValueError(f'{num_entries} entries are too many for its {len(data)} bytes')
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    entries = archive.infolist()
    names = archive.namelist()
    pickle_names = [name for name in names if name.split('/', 1)[-1] == 'data.pkl']
    is_stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    if pickle_names and not is_stored:
      raise ValueError('its storages are compressed, which PyTorch never does')
    # Entries may overlap, so that also those which are not compressed may be longer than the file.
    max_bytes = len(data) if is_stored else 2 * len(data) + ALLOWANCE
    max_bytes = min(max_bytes, _MAX_INFLATED_BYTES)
    if sum(entry.file_size for entry in entries) > max_bytes:
      raise ValueError(f'it inflates to more than {max_bytes} bytes; save it with numpy.savez')
    if pickle_names:
      return _read_torch_zip(archive, pickle_names[0].removesuffix('data.pkl'), len(data))
    if all(name.endswith('.npy') for name in names):
      return {name.removesuffix('.npy'): _read_npy(_read_entry(archive, name)) for name in names}
  raise ValueError('it is a zip archive from neither PyTorch nor NumPy')


def _read_entry(archive: zipfile.ZipFile, name: str) -> bytes:
  """Return the content of an entry; unlike this, `ZipFile.read` may inflate 2 GB of a short one."""
  entry = archive.getinfo(name)
  if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    raise ValueError(f'{name} is compressed in a way that NumPy does not use')
  with archive.open(entry) as file:
    return file.read(entry.file_size)


def _read_npy(data: bytes) -> np.ndarray:
  # np.load would return the content of a file that is no array.
  file = io.BytesIO(data)
  shape, order, dtype = npy.read_header(file, len(data))
  return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape, order=order)


def _read_torch_zip(archive: zipfile.ZipFile, root: str, num_bytes: int) -> Tensors:
  names, budget = archive.namelist(), Budget(num_bytes + ALLOWANCE)
  is_big_endian = f'{root}byteorder' in names and _read_entry(archive, f'{root}byteorder') == b'big'
  pickled = io.BytesIO(_read_entry(archive, f'{root}data.pkl'))
  content, storages = pickle_interpreter.load(pickled, budget)
  arrays = {
    key: _storage_array(storage, _read_entry(archive, f'{root}data/{key}'), is_big_endian)
    for key, storage in storages.items()
  }
  return _state_dict_tensors(content, arrays, budget)


def _read_torch_legacy(data: bytes) -> Tensors:
  """Read the format of torch.save before version 1.6.

  It has five pickles (magic, version, machine, content, keys), then each storage after its length.
  """
  stream, budget = io.BytesIO(data), Budget(len(data) + ALLOWANCE)
  (_, _, (machine_info, _), (content, storages), (keys, _)) = (
    pickle_interpreter.load(stream, budget) for _ in range(5)
  )
  is_big_endian = not machine_info['little_endian']
  arrays = {}
  for key in keys:
    length = int.from_bytes(stream.read(8), 'big' if is_big_endian else 'little')
    raw = stream.read(length * storages[key].dtype.itemsize)
    arrays[key] = _storage_array(storages[key], raw, is_big_endian)
  return _state_dict_tensors(content, arrays, budget)


def _storage_array(
  storage: pickle_interpreter.Storage, raw: bytes, is_big_endian: bool
) -> np.ndarray:
  dtype = storage.dtype.newbyteorder('>') if is_big_endian else storage.dtype
  return np.frombuffer(raw[: len(raw) // dtype.itemsize * dtype.itemsize], dtype)


def _read_pickle(data: bytes) -> Tensors:
  budget = Budget(2 * len(data) + ALLOWANCE)
  content, _ = pickle_interpreter.load(io.BytesIO(data), budget)
  return _state_dict_tensors(content, {}, budget)


def _state_dict_tensors(
  content: pickle_interpreter.Value, storages: Tensors, budget: Budget
) -> Tensors:
  """Return the tensors of a state_dict, or of one that a checkpoint nests under a usual key."""
  for key in _WRAPPER_KEYS:
    if isinstance(content, dict) and isinstance(content.get(key), dict):
      content = content[key]
  if not isinstance(content, dict):
    raise ValueError(f'it holds a {type(content).__name__}, not a dict of tensors')
  tensors = {}
  for name, value in content.items():
    array = value.value if isinstance(value, pickle_interpreter.Holder) else value
    budget.spend(_BYTES_PER_VIEW)
    if isinstance(array, pickle_interpreter.Tensor):
      tensors[str(name)] = _tensor_view(name, array, storages)
    elif isinstance(array, np.ndarray):
      tensors[str(name)] = array
  for name, entry in (content.get(_PADDLE_SLICES_KEY) or {}).items():
    slices = [tensors.pop(key) for key in entry['slices']]
    budget.spend(sum(array.nbytes for array in slices))  # They may share a storage.
    tensors[name] = np.concatenate(slices).reshape(entry['OriginShape'])
  return tensors


def _tensor_view(name: object, tensor: pickle_interpreter.Tensor, storages: Tensors) -> np.ndarray:
  storage, offset, shape, strides = tensor
  sizes = (offset, storage.length, *shape, *strides)
  is_valid = all(isinstance(n, int) and 0 <= n < 1 << 63 for n in sizes)
  if not is_valid or len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS:
    raise ValueError(f'tensor {name} has shape {shape}, strides {strides} and offset {offset}')
  array = storages.get(storage.key, np.zeros(0, storage.dtype))
  end = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + 1
  size = math.prod(shape)
  # With strides of 0 it would have more numbers than its storage.
  length = max(storage.length, size, end if size else 0)
  if length > len(array):
    raise ValueError(f'tensor {name} needs {length} numbers, but its storage has {len(array)}')
  if not size:
    return np.zeros(shape, array.dtype)
  byte_strides = [stride * array.itemsize for stride in strides]
  return np.lib.stride_tricks.as_strided(array[offset:end], shape, byte_strides, writeable=False)
