"""Reader of PyTorch and Paddle pickles that never calls a function which a pickle names.

A pickle is a program. `pickletools` decodes its instructions; `_PickleMachine` executes the few
that weights need, on plain data, and rejects all others. `_ALLOWED_GLOBALS` has every name that a
pickle may use.
"""

from collections.abc import Callable, Mapping
import io
import math
import pickletools
from typing import Any, NamedTuple

from jax import numpy as jnp
import numpy as np


class Storage(NamedTuple):
  """Reference to numbers elsewhere in the file.

  Attributes:
    key: name of the storage in the file.
    dtype: type of the numbers.
    length: number of elements.
  """

  key: str
  dtype: np.dtype
  length: int


class Tensor(NamedTuple):
  """Unverified view of a storage, with offset and strides in elements."""

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


class _Global(NamedTuple):
  """Class or function that a pickle refers to, by name only."""

  name: str


class Holder:
  """NumPy array or dtype in `value`, which a pickle creates empty and fills later."""

  def __init__(self, value: Any = None):
    self.value = value


_STORAGE_DTYPES = {
  'torch.DoubleStorage': np.dtype('<f8'),
  'torch.FloatStorage': np.dtype('<f4'),
  'torch.HalfStorage': np.dtype('<f2'),
  'torch.BFloat16Storage': np.dtype(jnp.bfloat16),
  'torch.LongStorage': np.dtype('<i8'),
  'torch.IntStorage': np.dtype('<i4'),
  'torch.ShortStorage': np.dtype('<i2'),
  'torch.CharStorage': np.dtype('i1'),
  'torch.ByteStorage': np.dtype('u1'),
  'torch.BoolStorage': np.dtype('?'),
}


def _make_dtype(name: str | bytes, *_: Any) -> Holder:
  dtype = np.dtype(name.decode() if isinstance(name, bytes) else name)
  if dtype.kind not in 'fiub':
    raise ValueError(f'it holds an array of type {dtype}, which is not numeric')
  return Holder(dtype)


def _make_array(raw: str | bytes | bytearray, dtype: Holder, shape: Any, order: str) -> np.ndarray:
  raw = raw.encode('latin1') if isinstance(raw, str) else raw
  if math.prod(shape) * dtype.value.itemsize != len(raw):
    raise ValueError(f'an array of shape {shape} and type {dtype.value} has {len(raw)} bytes')
  return np.frombuffer(raw, dtype.value).reshape(shape, order='F' if order == 'F' else 'C')


def _make_dict(pairs: Any = ()) -> dict[Any, Any]:
  return _update_dict({}, [x for pair in pairs for x in pair] if isinstance(pairs, list) else [])


def _update_dict(target: Any, items: list[Any]) -> dict[Any, Any]:
  # Hashing a deeply nested tuple as a key would overflow the interpreter's stack.
  if type(target) is not dict or not all(isinstance(key, str | int) for key in items[::2]):
    raise ValueError('it has dictionary keys that are neither strings nor integers')
  target.update(zip(items[::2], items[1::2], strict=True))
  return target


_NUMPY_CALLS = {
  '_reconstruct': lambda *_: Holder(),
  'scalar': lambda dtype, raw: _make_array(raw, dtype, (), 'C')[()],
}

# Everything that a pickle may call, replaced by functions that handle plain data. Pickles of
# protocol 2 use the names of Python 2.
_ALLOWED_CALLS: Mapping[str, Callable[..., Any]] = {
  'collections.OrderedDict': _make_dict,
  'torch._utils._rebuild_tensor_v2': lambda storage, offset, shape, strides, *_: Tensor(
    storage, offset, shape, strides
  ),
  'torch._utils._rebuild_parameter': lambda data, *_: data,
  'torch._utils._rebuild_parameter_with_state': lambda data, *_: data,
  'builtins.tuple': tuple,  # Paddle saves a single tensor as (name, array).
  '__builtin__.tuple': tuple,
  '_codecs.encode': lambda text, *_: text.encode('latin1'),
  'numpy.dtype': _make_dtype,
  'numpy.core.numeric._frombuffer': _make_array,
  'numpy._core.numeric._frombuffer': _make_array,
  **{f'numpy.core.multiarray.{name}': function for name, function in _NUMPY_CALLS.items()},
  **{f'numpy._core.multiarray.{name}': function for name, function in _NUMPY_CALLS.items()},
}
_ALLOWED_GLOBALS = {*_ALLOWED_CALLS, *_STORAGE_DTYPES, 'numpy.ndarray'}

_NUMBER_OPCODES = {
  'INT',
  'BININT',
  'BININT1',
  'BININT2',
  'LONG',
  'LONG1',
  'LONG4',
  'FLOAT',
  'BINFLOAT',
}
_TEXT_OPCODES = {'UNICODE', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8'}
_PYTHON_2_TEXT_OPCODES = {'STRING', 'BINSTRING', 'SHORT_BINSTRING'}
_BYTES_OPCODES = {'BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8', 'BYTEARRAY8'}
_LITERAL_OPCODES = _NUMBER_OPCODES | _TEXT_OPCODES | _PYTHON_2_TEXT_OPCODES | _BYTES_OPCODES
_CONSTANT_OPCODES = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False, 'EMPTY_TUPLE': ()}


def load(stream: io.BytesIO) -> tuple[Any, dict[str, Storage]]:
  """Read one pickle and leave the stream after it.

  Returns:
    The object and the storages that it refers to, by key. NumPy arrays and dtypes are `Holder`s,
    PyTorch tensors are `Tensor`s.

  Raises:
    ValueError, TypeError, LookupError: the pickle is damaged or holds more than weights.
  """
  machine = _PickleMachine()
  for opcode, argument, _ in pickletools.genops(stream):
    machine.execute(opcode.name, argument)
  return machine.stack[-1], machine.storages


class _PickleMachine:
  """Interpreter of pickle instructions: a stack, the stacks saved at marks, and the memo."""

  def __init__(self):
    self.stack: list[Any] = []
    self.metastack: list[list[Any]] = []
    self.memo: dict[int, Any] = {}
    self.storages: dict[str, Storage] = {}

  def execute(self, name: str, argument: Any) -> None:
    """Execute one instruction."""
    stack = self.stack
    if name in _LITERAL_OPCODES:
      stack.append(argument)
      return
    if name in _CONSTANT_OPCODES:
      stack.append(_CONSTANT_OPCODES[name])
      return
    match name:
      case 'PROTO' | 'FRAME' | 'STOP':
        pass
      case 'PUT' | 'BINPUT' | 'LONG_BINPUT':
        self.memo[argument] = stack[-1]
      case 'MEMOIZE':
        self.memo[len(self.memo)] = stack[-1]
      case 'GET' | 'BINGET' | 'LONG_BINGET':
        stack.append(self.memo[argument])
      case 'MARK':
        self.metastack.append(stack)
        self.stack = []
      case 'EMPTY_DICT':
        stack.append({})
      case 'EMPTY_LIST':
        stack.append([])
      case 'DICT':
        items = self._pop_mark()
        self.stack.append(_update_dict({}, items))
      case 'LIST':
        items = self._pop_mark()
        self.stack.append(items)
      case 'TUPLE':
        items = self._pop_mark()
        self.stack.append(tuple(items))
      case 'TUPLE1' | 'TUPLE2' | 'TUPLE3':
        stack.append(tuple(self._pop(int(name[-1]))))
      case 'SETITEM':
        items = self._pop(2)
        _update_dict(stack[-1], items)
      case 'SETITEMS':
        items = self._pop_mark()
        _update_dict(self.stack[-1], items)
      case 'APPEND':
        items = self._pop(1)
        _extend_list(stack[-1], items)
      case 'APPENDS':
        items = self._pop_mark()
        _extend_list(self.stack[-1], items)
      case 'GLOBAL':
        stack.append(_resolve_global(*argument.split(' ', 1)))
      case 'STACK_GLOBAL':
        stack.append(_resolve_global(*self._pop(2)))
      case 'REDUCE':
        function, arguments = self._pop(2)
        stack.append(_call_function(function, arguments))
      case 'BUILD':
        (state,) = self._pop(1)
        _build(stack[-1], state)
      case 'BINPERSID':
        (description,) = self._pop(1)
        storage = _make_storage(*description)
        self.storages[storage.key] = storage
        stack.append(storage)
      case _:
        raise ValueError(f'its pickle has the instruction {name}, which weights do not need')

  def _pop(self, count: int) -> list[Any]:
    if len(self.stack) < count:
      raise ValueError('its pickle pops more values than its stack has')
    values = self.stack[-count:]
    del self.stack[-count:]
    return values

  def _pop_mark(self) -> list[Any]:
    items, self.stack = self.stack, self.metastack.pop()
    return items


def _resolve_global(module: Any, name: Any) -> _Global:
  full_name = f'{module}.{name}' if isinstance(module, str) and isinstance(name, str) else 'no name'
  if full_name not in _ALLOWED_GLOBALS:
    raise ValueError(f'its pickle refers to {full_name[:100]}, which weights do not need')
  return _Global(full_name)


def _call_function(function: Any, arguments: Any) -> Any:
  if not isinstance(function, _Global) or function.name not in _ALLOWED_CALLS:
    raise ValueError('its pickle calls an object that is not an allowed function')
  return _ALLOWED_CALLS[function.name](*arguments)


def _build(target: Any, state: Any) -> None:
  if isinstance(target, Holder) and isinstance(target.value, np.dtype):
    target.value = target.value.newbyteorder(state[1]) if state[1] in ('<', '>') else target.value
  elif isinstance(target, Holder):
    _, shape, dtype, is_fortran_order, raw = state
    target.value = _make_array(raw, dtype, shape, 'F' if is_fortran_order else 'C')
  elif type(target) is not dict:  # The state of a dict is a state_dict's `_metadata`: ignored.
    raise ValueError('its pickle sets the state of an object that has none')


def _extend_list(target: Any, items: list[Any]) -> None:
  if type(target) is not list:
    raise ValueError('its pickle appends to an object that is not a list')
  target.extend(items)


def _make_storage(
  kind: Any, dtype: Any, key: Any, _: Any, length: Any, view: Any = None
) -> Storage:
  name = dtype.name if isinstance(dtype, _Global) else ''
  if (
    kind != 'storage' or name not in _STORAGE_DTYPES or not isinstance(key, str) or view is not None
  ):
    raise ValueError('its pickle describes an invalid storage')
  return Storage(key, _STORAGE_DTYPES[name], length)
