"""From the body of a request to pixels: what may come in, and how much of it.

Letters: h w the original, height width the network image.
"""

import base64
import binascii
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any, NamedTuple

from jaxtyping import UInt8
import numpy as np
import pydantic
from starlette import datastructures, formparsers
from starlette.requests import Request

from uadjax.data import image_io, inputs, transforms
from uadjax.errors import DataError
from uadjax.serve.settings import Settings
from uadjax.system import http

_JSON, _FORM = 'application/json', 'multipart/form-data'
_RAW = (
  'application/octet-stream',
  *(f'image/{kind}' for kind in ('jpeg', 'png', 'bmp', 'tiff', 'webp')),
)
_FIELDS = ('image', 'file')
_OPTIONS = 'visualize', 'heatmap', 'labelMap', 'model'
_TRUE, _FALSE = ('true', '1', 'yes'), ('false', '0', 'no', '')


class Refused(Exception):
  """A request that is not answered.

  Attributes:
    status: of HTTP.
    problem: what is wrong, and the way out.
    headers: of the answer.
  """

  def __init__(self, status: int, problem: str, headers: dict[str, str] | None = None):
    super().__init__(problem)
    self.status, self.problem, self.headers = status, problem, headers or {}


class Asked(pydantic.BaseModel):
  """An image, and what is wanted of it."""

  model_config = pydantic.ConfigDict(extra='forbid', strict=True)

  image: str = pydantic.Field(
    description='A JPEG, PNG, BMP, TIFF or WebP file in base64; or its URL, if allowed.',
    min_length=1,
  )
  visualize: bool | None = pydantic.Field(None, description='Whether the answer has a picture.')
  heatmap: bool | None = pydantic.Field(None, description='Whether the answer has the map.')
  labelMap: bool | None = pydantic.Field(None, description='False: an answer without labelMap.')
  model: str | None = pydantic.Field(None, description='Which model; the first if none.')


class Wanted(NamedTuple):
  """What a request asks for, whatever form it came in.

  Attributes:
    image: an encoded image, or a URL.
    visualize: whether the answer has a picture.
    heatmap: whether it has the map.
    label_map: whether it has the mask, a number for each pixel.
    model: by name; '' for the first.
  """

  image: bytes | str
  visualize: bool
  heatmap: bool
  label_map: bool
  model: str


class Picture(NamedTuple):
  """An image that was read.

  Attributes:
    source: it as it came, for pictures to be drawn on.
    size: height and width of the original.
    pixels: at network size.
  """

  source: inputs.Source
  size: tuple[int, int]
  pixels: UInt8[np.ndarray, 'height width 3']


async def body(request: Request, most: int) -> bytes:
  """All of a request's body.

  Raises:
    Refused: it has more bytes than that, or is compressed.
  """
  if request.headers.get('content-encoding', 'identity') != 'identity':
    raise Refused(415, 'Send the body as it is, without Content-Encoding.')
  too_large = Refused(413, f'The body has more than {most} bytes; send a smaller image.')
  announced = request.headers.get('content-length', '')
  if announced.isdigit() and int(announced) > most:
    raise too_large
  parts, size = [], 0
  async for part in request.stream():
    size += len(part)
    if size > most:
      raise too_large
    parts.append(part)
  return b''.join(parts)


async def wanted(request: Request, content: bytes) -> Wanted:
  """Read a body: JSON, a form with a file, or the file itself.

  Raises:
    Refused: it is none of these.
  """
  kind = request.headers.get('content-type', '').partition(';')[0].strip().lower()
  query = dict(request.query_params)
  if kind == _JSON:
    _known(query, 'the query beside JSON, which says it all', ())
    return _from_json(content)
  _known(query, 'the query', _OPTIONS)
  if kind == _FORM:
    form = await _form(request, content)
    files = [part for name in _FIELDS for part in form.getlist(name)]
    if len(files) != 1 or not isinstance(files[0], datastructures.UploadFile):
      raise Refused(
        422, f"The form needs one file, in a field called 'image' (curl: -F image=@FILE); it has "
        f'{", ".join(form) or "nothing"}, and {sum(map(_is_file, form.values()))} files.'
      )  # fmt: skip
    image = await files[0].read()
    fields = {name: value for name, value in form.items() if isinstance(value, str)}
    await form.close()
    _known(fields, 'the form', _OPTIONS)
    if twice := sorted(fields.keys() & query.keys()):
      raise Refused(422, f'{twice[0]!r} is in the query and in the form; once is enough.')
    query |= fields
  elif kind in _RAW:
    image = content
  else:
    raise Refused(
      415, f'Content-Type {kind!r} is not understood; send {_JSON}, {_FORM} or {", ".join(_RAW)}.'
    )
  if not image:
    raise Refused(422, 'There is no image: the body is empty.')
  flags = _flag(query, 'visualize'), _flag(query, 'heatmap'), _flag(query, 'labelMap', 'true')
  return Wanted(image, *flags, query.get('model', ''))


def picture(image: bytes | str, ops: transforms.Ops, settings: Settings) -> Picture:
  """Read an image; takes its time, in a thread.

  Raises:
    Refused: it cannot be read, may not be, or has too many pixels.
  """
  try:
    content = http.get(image, settings.access) if isinstance(image, str) else image
    height, width = image_io.image_size(content)
    if height * width > settings.max_pixels:
      raise Refused(
        413,
        f'The image has {width} x {height} pixels, and {settings.max_pixels} are the most here.',
      )
    decoded = image_io.decode(content)
  except image_io.TooLarge:
    raise Refused(413, f'More than {settings.max_pixels} pixels are not taken.') from None
  except DataError as error:
    raise Refused(422, str(error)) from None
  return Picture(inputs.Source('image', content), decoded.shape[:2], ops.apply(decoded))


def _from_json(content: bytes) -> Wanted:
  try:
    asked = Asked.model_validate_json(content)
  except pydantic.ValidationError as error:
    raise Refused(422, problems(error)) from None
  image: bytes | str = asked.image
  if not asked.image.startswith(('http://', 'https://')):
    text = asked.image.partition(',')[2] if asked.image.startswith('data:') else asked.image
    try:
      image = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
      raise Refused(
        422, 'image: neither base64 nor a URL (http:// or https://); lines must not be broken.'
      ) from None
  label_map = asked.labelMap is not False
  return Wanted(image, bool(asked.visualize), bool(asked.heatmap), label_map, asked.model or '')


def problems(error: pydantic.ValidationError) -> str:
  """What is wrong with JSON, one after the other."""
  told = []
  for one in error.errors(include_url=False, include_context=False, include_input=False):
    place = '.'.join(map(str, one['loc']))
    told.append(f'{place}: {one["msg"]}' if place else one['msg'])
  return '; '.join(told)


async def _form(request: Request, content: bytes) -> datastructures.FormData:
  async def parts() -> AsyncGenerator[bytes]:
    yield content

  try:
    parser = formparsers.MultiPartParser(
      request.headers, parts(), max_files=1, max_fields=8, max_part_size=max(1, len(content))
    )
    return await parser.parse()
  except (formparsers.MultiPartException, KeyError, ValueError, AssertionError) as error:
    told = getattr(error, 'message', '') or 'its parts cannot be told apart'
    raise Refused(422, f'The form cannot be read: {told}.') from None


def _is_file(part: Any) -> bool:
  return isinstance(part, datastructures.UploadFile)


def _known(given: Iterable[str], where: str, names: Sequence[str]) -> None:
  """Refuse what would be passed over: of a model that is misspelled another would judge."""
  if unknown := sorted(set(given) - set(names)):
    way = f'choose from {", ".join(names)}' if names else 'leave it out'
    raise Refused(422, f'There is no {unknown[0]!r} in {where}; {way}.')


def _flag(query: dict[str, Any], name: str, default: str = '') -> bool:
  value = query.get(name, default).lower()
  if value not in (*_TRUE, *_FALSE):
    raise Refused(422, f'{name}: {value!r} is neither true nor false.')
  return value in _TRUE
