"""Parsing of JSON bodies in steps of some milliseconds, between which other threads can run.

A parser holds the interpreter's lock until it ends: it would stop the service for a second with
32 MB of numbers. So long lists of numbers, which are pixels, are first taken out of the text. They
are parsed in chunks.
"""

from collections.abc import Mapping, Sequence
import math
import re
import secrets
from typing import TypeVar

from jaxtyping import UInt8
import numpy as np
import orjson
import pydantic

from uadjax.serve.errors import RequestError

_LONG_BYTES = 1 << 16  # Lists and strings up to this size are parsed together.
_MAX_OTHER_BYTES = 1 << 20  # Limit of a body without its long lists and strings.
_CHUNK_BYTES = 1 << 16  # Part of a list that is parsed at a time.
_VALUES = re.compile(rb'(?:[ \t\r\n\[]*+[0-9]++[ \t\r\n\]]*+,)*+')
_WITHOUT_BRACKETS = bytes.maketrans(b'[]', b'  ')

Model = TypeVar('Model', bound=pydantic.BaseModel)
Lists = Mapping[str, bytes]


def parse(content: bytes, model: type[Model]) -> tuple[Model, Lists]:
  """Parse a body as a model; slow, so call it in a thread.

  Returns:
    The model, and the texts of long lists by the names that replace them; see `list_text`.

  Raises:
    RequestError: too much of the body is neither long lists nor long strings.
    pydantic.ValidationError: the body is not JSON, or does not match the model.
  """
  text, lists = _take_out_lists(content)
  return model.model_validate_json(text), lists


def list_text(values: Sequence[object], lists: Lists) -> bytes:
  """Return the JSON text of a list in a parsed model.

  Raises:
    TypeError: it has values that cannot be written, such as numbers of more than 64 bits.
  """
  name = values[0] if len(values) == 1 else None
  text = lists.get(name) if isinstance(name, str) else None
  return orjson.dumps(values) if text is None else text


def parse_pixels(text: bytes, shape: Sequence[int]) -> UInt8[np.ndarray, '...']:
  """Parse a list of whole numbers from 0 to 255, which is flat or nested as the shape says.

  Raises:
    ValueError: the list is not valid, or has another shape.
  """
  num_values = math.prod(shape)
  if text.count(b',') + 1 != num_values:
    raise ValueError(f'it has {text.count(b",") + 1} values instead of {num_values}')
  is_flat = text.count(b'[') == 1
  lengths = [num_values] if is_flat else [math.prod(shape[i:]) for i in range(len(shape))]
  pixels = np.empty(num_values, np.uint8)
  begin = num_parsed = 0
  while begin < len(text):
    end = len(text)
    if end - begin > _CHUNK_BYTES:
      end = text.rfind(b',', begin, begin + _CHUNK_BYTES) + 1
    chunk = text[begin:end] if end < len(text) else text[begin:] + b','
    values = _parse_chunk(chunk, num_parsed, lengths)
    pixels[num_parsed : num_parsed + len(values)] = values
    begin, num_parsed = end, num_parsed + len(values)
  return pixels.reshape(shape)


def _parse_chunk(chunk: bytes, start: int, lengths: Sequence[int]) -> np.ndarray:
  """Parse consecutive values of a list, each followed by a comma.

  Args:
    chunk: text of the values, with brackets.
    start: index of the first value.
    lengths: numbers of values of the list, of the lists in it, and so on.

  Raises:
    ValueError: a value is not a whole number from 0 to 255, or brackets do not match the lengths.
  """
  if not _VALUES.fullmatch(chunk) or not chunk:
    raise ValueError('it has other values than whole numbers')
  values = np.array(orjson.loads(b'[%b]' % chunk.translate(_WITHOUT_BRACKETS)[:-1]))
  if values.dtype.kind != 'i' or values.max() > 255:
    raise ValueError('it has values of more than 255')
  characters = np.frombuffer(chunk, np.uint8)
  is_comma, indices = characters == ord(','), np.arange(start, start + len(values))
  for bracket, offset in (('[', 0), (']', 1)):
    expected = sum(((indices + offset) % length == 0).astype(int) for length in lengths)
    actual = np.diff(np.cumsum(characters == ord(bracket))[is_comma], prepend=0)
    if not np.array_equal(actual, expected):
      raise ValueError('its lists have other lengths')
  return values


def _take_out_lists(content: bytes) -> tuple[bytes, dict[str, bytes]]:
  """Replace each long list without strings by a list with a name; return the lists by name.

  The names are secret, so that no request can contain one.
  """
  pieces: list[bytes] = []
  lists: dict[str, bytes] = {}
  begin = num_other_bytes = 0
  while begin < len(content):
    quote = content.find(b'"', begin)
    end = quote if quote >= 0 else len(content)
    opening, closing = _find_list(content, begin, end)
    if closing - opening > _LONG_BYTES:
      name = secrets.token_hex(16)
      lists[name] = content[opening:closing]
      pieces += content[begin:opening], b'["%b"]' % name.encode()
      num_other_bytes += opening - begin
      begin = closing
    after_string, num_string_bytes = _skip_string(content, quote) if quote >= 0 else (end, 0)
    pieces.append(content[begin:after_string])
    num_other_bytes += end - begin + num_string_bytes
    if num_other_bytes > _MAX_OTHER_BYTES:
      raise RequestError(
        413, f'The body has more than {_MAX_OTHER_BYTES} bytes beside its image; send only images '
        'and options.'
      )  # fmt: skip
    begin = after_string
  return b''.join(pieces) if lists else content, lists


def _find_list(content: bytes, begin: int, end: int) -> tuple[int, int]:
  """Return where a list begins and ends in a part without strings; an empty range without a list.

  What follows the list in this part can only close objects and lists around it.
  """
  opening = content.find(b'[', begin, end)
  if opening < 0 or end - begin <= _LONG_BYTES:
    return begin, begin
  brace = content.find(b'}', opening, end)
  return opening, content.rfind(b']', opening, end if brace < 0 else brace) + 1


def _skip_string(content: bytes, quote: int) -> tuple[int, int]:
  """Return where the string that begins at a quote ends, and how many of its bytes count.

  All bytes of a short string count, but only the escapes of a long one, whose skipping takes a
  step each.
  """
  begin, num_escapes = quote + 1, 0
  closing = content.find(b'"', begin)
  while closing >= 0 and num_escapes <= _MAX_OTHER_BYTES:
    escape = content.find(b'\\', begin, closing)
    if escape < 0:
      break
    begin, num_escapes = escape + 2, num_escapes + 1
    if begin > closing:
      closing = content.find(b'"', begin)
  end = closing + 1 if closing >= 0 else len(content)
  return end, num_escapes if end - quote > _LONG_BYTES else end - quote
