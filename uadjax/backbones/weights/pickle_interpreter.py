"""Interpreter of PyTorch's and Paddle's pickles that never calls a function which a pickle names.

A pickle is a program. `pickletools` decodes its instructions; `load` executes the few that
weights need, on plain data, and rejects all others. `_GLOBALS` has every name that a pickle may
use.

Memory is bounded, too: each instruction, literal and copy spends from a budget before or as it is
made. Instructions of a few bytes may otherwise copy an object again and again.

A `pickle.Unpickler` with a restricted `find_class` is not enough for hostile files: a dictionary
key of 200,000 nested tuples overflows its stack and ends the process, and it allocates 64 GB if a
pickle of ten bytes asks for a memo of that size.
"""

from collections.abc import Callable, Mapping
import io
import math
import pickletools
import sys
from typing import Any, NamedTuple, TypeAlias

from jax import numpy as jnp
import numpy as np

Value: TypeAlias = Any  # Content of a pickle: plain data of any type, not verified.


# Upper bounds on the memory of an instruction without its literal, that is, of an object and its
# slots in the memo and in a container, and of an item that a call copies.
_BYTES_PER_INSTRUCTION, _BYTES_PER_ITEM = 128, 128


class Budget:
  """Number of bytes that may still be allocated."""

  def __init__(self, num_bytes: int):
    self.num_bytes = num_bytes

  def spend(self, num_bytes: int) -> None:
    """Reduce the budget; raise ValueError if it does not suffice."""
    self.num_bytes -= num_bytes
    if self.num_bytes < 0:
      raise ValueError('it would take more than twice its size in memory')


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


class Holder:
  """NumPy array or dtype in `value`, which a pickle creates empty and fills later."""

  def __init__(self, value: np.ndarray | np.dtype | None = None):
    self.value = value


_NAMES = 'Double', 'Float', 'Half', 'BFloat16', 'Long', 'Int', 'Short', 'Char', 'Byte', 'Bool'
_DTYPES = '<f8', '<f4', '<f2', jnp.bfloat16, '<i8', '<i4', '<i2', 'i1', 'u1', '?'
_STORAGE_DTYPES = {
  f'torch.{name}Storage': np.dtype(dtype) for name, dtype in zip(_NAMES, _DTYPES, strict=True)
}


_MAX_DTYPE_NAME = 16  # Such as complex128; that of a structure could be of any length.


def _make_dtype(name: str | bytes, *_: Value) -> Holder:
  if not isinstance(name, str | bytes) or len(name) > _MAX_DTYPE_NAME:
    raise ValueError('it names a type that is not numeric')
  dtype = np.dtype(name.decode() if isinstance(name, bytes) else name)
  if dtype.kind not in 'fiub':
    raise ValueError(f'it holds an array of type {dtype}, which is not numeric')
  return Holder(dtype)


def _make_array(
  raw: str | bytes | bytearray, dtype: Holder, shape: Value, order: str
) -> np.ndarray:
  raw = raw.encode('latin1') if isinstance(raw, str) else raw
  if not isinstance(dtype.value, np.dtype) or math.prod(shape) * dtype.value.itemsize != len(raw):
    raise ValueError(f'an array of shape {shape} and type {dtype.value} has {len(raw)} bytes')
  return np.frombuffer(raw, dtype.value).reshape(shape, order='F' if order == 'F' else 'C')


def _make_dict(pairs: Value = ()) -> dict[str | int, Value]:
  if not isinstance(pairs, list | tuple):
    pairs = ()  # The factory of a dict, for example.
  if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
    raise ValueError('it makes a dictionary of other items than pairs')
  return _update_dict({}, *(x for pair in pairs for x in pair))


def _update_dict(target: Value, *items: Value) -> dict[str | int, Value]:
  # Hashing a deeply nested tuple as a key would overflow the interpreter's stack.
  if type(target) is not dict or not all(isinstance(key, str | int) for key in items[::2]):
    raise ValueError('it has dictionary keys that are neither strings nor integers')
  target.update(zip(items[::2], items[1::2], strict=True))
  return target


def _make_tuple(items: Value = ()) -> tuple[Value, ...]:
  if not isinstance(items, list | tuple):
    raise ValueError('it makes a tuple of an object that is not a list')
  return tuple(items)


def _extend_list(target: Value, *items: Value) -> list[Value]:
  if type(target) is not list:
    raise ValueError('its pickle appends to an object that is not a list')
  target.extend(items)
  return target


# All names that a pickle may use. Functions are replaced by others, which handle plain data, and
# types of storages by dtypes.
_GLOBALS: Mapping[str, Value] = {
  **_STORAGE_DTYPES,
  'numpy.ndarray': None,
  'collections.OrderedDict': _make_dict,
  'torch._utils._rebuild_tensor_v2': lambda *arguments: Tensor(*arguments[:4]),
  'torch._utils._rebuild_parameter': lambda data, *_: data,
  'torch._utils._rebuild_parameter_with_state': lambda data, *_: data,
  'builtins.tuple': _make_tuple,  # Paddle saves a single tensor as (name, array).
  '_codecs.encode': lambda text, *_: text.encode('latin1'),
  'numpy.dtype': _make_dtype,
  'numpy.core.numeric._frombuffer': _make_array,
  'numpy.core.multiarray._reconstruct': lambda *_: Holder(),
  'numpy.core.multiarray.scalar': lambda dtype, raw: _make_array(raw, dtype, (), 'C')[()],
}


def _resolve_global(module: Value, name: Value) -> Value:
  full_name = f'{module}.{name}' if isinstance(module, str) and isinstance(name, str) else 'no name'
  # Pickles of protocol 2 use the names of Python 2, and NumPy 2 has renamed its core.
  full_name = full_name.replace('__builtin__.', 'builtins.').replace('numpy._core.', 'numpy.core.')
  if full_name not in _GLOBALS:
    raise ValueError(f'its pickle refers to {full_name[:100]}, which weights do not need')
  return _GLOBALS[full_name]


def _call_function(function: Value, arguments: Value) -> Value:
  if not callable(function):  # A pickle has no functions but those of `_GLOBALS`.
    raise ValueError('its pickle calls an object that is not a function')
  return function(*arguments)


def _set_state(target: Value, state: Value) -> Value:
  if isinstance(target, Holder) and isinstance(target.value, np.dtype):
    target.value = target.value.newbyteorder(state[1]) if state[1] in ('<', '>') else target.value
  elif isinstance(target, Holder):
    _, shape, dtype, is_fortran_order, raw = state
    target.value = _make_array(raw, dtype, shape, 'F' if is_fortran_order else 'C')
  elif type(target) is not dict:  # The state of a dict is a state_dict's `_metadata`: ignored.
    raise ValueError('its pickle sets the state of an object that has none')
  return target


def _make_storage(
  kind: Value, dtype: Value, key: Value, _: Value, length: Value, view: Value = None
) -> Storage:
  is_valid = kind == 'storage' and isinstance(dtype, np.dtype) and isinstance(key, str)
  if not is_valid or view is not None:
    raise ValueError('its pickle describes an invalid storage')
  return Storage(key, dtype, length)


# Instructions that are functions of the values they pop.
_OPERATIONS: Mapping[str, Callable[..., Value]] = {
  name: operation
  for names, operation in {
    'NONE': lambda: None,
    'NEWTRUE': lambda: True,
    'NEWFALSE': lambda: False,
    'EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3': lambda *items: items,
    'EMPTY_LIST LIST': lambda *items: list(items),
    'EMPTY_DICT DICT': lambda *items: _update_dict({}, *items),
    'APPEND APPENDS': _extend_list,
    'SETITEM SETITEMS': _update_dict,
    'STACK_GLOBAL': _resolve_global,
    'REDUCE': _call_function,
    'BUILD': _set_state,
    'STOP': lambda value: value,
  }.items()
  for name in names.split()
}
_CALLS = ('REDUCE', 'BUILD')  # Their second operand has the arguments.
# Types of the values that instructions contain, by the names of pickletools.
_LITERAL_TYPES = {'int', 'int_or_bool', 'float', 'str', 'bytes', 'bytes_or_str', 'bytearray'}


def _literal_bytes(literal: Value) -> int:
  return sys.getsizeof(literal) if isinstance(literal, str | bytes | bytearray) else 0


def _copied_bytes(arguments: Value) -> int:
  """Return the memory that a call may take for copies of its arguments; it copies no bytes."""
  values = arguments if isinstance(arguments, list | tuple) else ()
  num_items = sum(len(x) for x in (arguments, *values) if isinstance(x, list | tuple | dict))
  return _BYTES_PER_ITEM * num_items + sum(_literal_bytes(x) for x in values if type(x) is str)


def load(stream: io.BytesIO, budget: Budget) -> tuple[Value, dict[str, Storage]]:
  """Read one pickle and leave the stream after it.

  Args:
    stream: stream at the beginning of the pickle.
    budget: memory that may be allocated, in bytes.

  Returns:
    The object and the storages that it refers to, by key. NumPy arrays and dtypes are `Holder`s,
    PyTorch tensors are `Tensor`s.

  Raises:
    ValueError, TypeError, LookupError: the pickle is damaged or holds more than weights.
  """
  stacks: list[list[Value]] = [[]]  # The last is in use; the others were saved at marks.
  memo: dict[Value, Value] = {}
  storages: dict[str, Storage] = {}
  for opcode, argument, _ in pickletools.genops(stream):
    operands = _pop_operands(opcode.stack_before, stacks)
    budget.spend(_BYTES_PER_INSTRUCTION + _literal_bytes(argument))
    if opcode.name in _CALLS:
      budget.spend(_copied_bytes(operands[1]))
    match opcode.name:
      case 'PROTO' | 'FRAME':
        continue
      case 'MARK':
        stacks.append([])
        continue
      case 'PUT' | 'BINPUT' | 'LONG_BINPUT':
        memo[argument] = stacks[-1][-1]
        continue
      case 'MEMOIZE':
        value = memo[len(memo)] = operands[0]
      case 'GET' | 'BINGET' | 'LONG_BINGET':
        value = memo[argument]
      case 'GLOBAL':
        value = _resolve_global(*str(argument).split(' ', 1))
      case 'BINPERSID':
        value = _make_storage(*operands[0])
        storages[value.key] = value
      case name if name in _OPERATIONS:
        value = _OPERATIONS[name](*operands)
      case name if opcode.stack_after and opcode.stack_after[0].name in _LITERAL_TYPES:
        value = argument
      case name:
        raise ValueError(f'its pickle has the instruction {name}, which weights do not need')
    stacks[-1].append(value)
  return stacks[-1][-1], storages


def _pop_operands(
  stack_before: list[pickletools.StackObject], stacks: list[list[Value]]
) -> list[Value]:
  """Pop the values that an instruction takes from the last stack."""
  items = []
  if pickletools.stackslice in stack_before:  # All values above the last mark.
    items = stacks.pop()
  count = sum(x not in (pickletools.markobject, pickletools.stackslice) for x in stack_before)
  if len(stacks[-1]) < count:
    raise ValueError('its pickle pops more values than its stack has')
  return [stacks[-1].pop() for _ in range(count)][::-1] + items
