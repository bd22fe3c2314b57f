"""Parsing of requests: from the body to the pixels of an image, within limits."""

import asyncio
import base64
from collections.abc import AsyncGenerator, Iterable, Sequence

import pydantic
from starlette import formparsers
from starlette.requests import Request

from uadjax.data import image_io, inputs
from uadjax.data.inputs import LoadedImage
from uadjax.errors import DataError
from uadjax.model.model_dir import ModelInfo
from uadjax.serve import connections, json_body
from uadjax.serve.capacity import Capacity
from uadjax.serve.errors import RequestError
from uadjax.serve.settings import Settings
from uadjax.system import http

_JSON_TYPE, _FORM_TYPE = 'application/json', 'multipart/form-data'
_IMAGE_TYPES = (
  *('image/jpeg', 'image/png', 'image/bmp', 'image/tiff', 'image/webp', 'image/gif', 'image/jp2'),
  *('image/x-portable-pixmap', 'image/x-portable-graymap', 'image/x-portable-anymap'),
)
_RAW_TYPES = 'application/octet-stream', *_IMAGE_TYPES
_FILE_FIELDS = ('image', 'file')
_MAX_FIELDS = 8  # Of a form, and of files in it.
TEXT_OPTIONS = ('model', 'part')  # The other options are flags.
_BASE64_CHUNK = 1 << 18  # Characters, a multiple of 4.
MAX_PART_LENGTH = 200  # Of the name of a part.


class RequestOptions(pydantic.BaseModel, extra='forbid', strict=True):
  """Options of a request; null stands for the default."""

  visualize: bool | None = pydantic.Field(None, description='Return a picture.')
  heatmap: bool | None = pydantic.Field(None, description='Return the anomaly map.')
  labelMap: bool | None = pydantic.Field(None, description='False: omit labelMap.')
  model: str | None = pydantic.Field(None, description='Name of the model; default: the first.')
  part: str | None = pydantic.Field(
    None,
    description='Name of the part that the image shows, to group its images.',
    max_length=MAX_PART_LENGTH,
  )


class PredictRequest(RequestOptions):
  """Image and options of a JSON request."""

  image: str = pydantic.Field(
    description=f'A {image_io.FORMAT_NAMES} file in base64; or its URL, if allowed.',
    min_length=1,
  )


async def read_body(request: Request, max_bytes: int, incomplete_bytes: Capacity) -> bytes:
  """Return the body of a request.

  Args:
    request: the request.
    max_bytes: largest size of the body.
    incomplete_bytes: capacity for the bytes of all bodies that are not complete yet.

  Raises:
    RequestError: the body has more than `max_bytes` bytes, stalls, or is compressed; or the
      capacity is used up.
  """
  if request.headers.get('content-encoding', 'identity') != 'identity':
    raise RequestError(415, 'Send the body uncompressed, without Content-Encoding.')
  problem = f'The body has more than {max_bytes} bytes; send a smaller image.'
  content_length = request.headers.get('content-length', '')
  if content_length.isdigit() and int(content_length) > max_bytes:
    raise RequestError(413, problem)
  chunks: list[bytes] = []
  num_bytes, timeout_s = 0, connections.TIMEOUT_S
  try:
    async with asyncio.timeout(timeout_s) as timeout:
      async for chunk in request.stream():
        timeout.reschedule(asyncio.get_running_loop().time() + timeout_s)
        incomplete_bytes.add(len(chunk))
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
          raise RequestError(413, problem)
        chunks.append(chunk)
  except TimeoutError:
    problem = f'Nothing of the body arrived for {timeout_s:g} s; send it without breaks.'
    raise RequestError(408, problem, {'Connection': 'close'}) from None
  finally:
    incomplete_bytes.add(-num_bytes)
  return b''.join(chunks)


def parse_request(request: Request, content: bytes) -> tuple[bytes | str, RequestOptions]:
  """Return the image, in an encoded file or at a URL, and the options of a request.

  Its body is JSON, a form with a file, or an image file. Slow, so call it in a thread.

  Raises:
    RequestError: the body is none of these, or an option is unknown.
    pydantic.ValidationError: a value is invalid.
  """
  content_type = request.headers.get('content-type', '').partition(';')[0].strip().lower()
  query = _to_fields(request.query_params.multi_items(), 'the query')
  if content_type == _JSON_TYPE:
    _require_known_names(query, 'the query of a JSON request', ())
    options, _ = json_body.parse(content, PredictRequest)
    return _decode_image(options.image), options
  option_names = tuple(RequestOptions.model_fields)
  _require_known_names(query, 'the query', option_names)
  if content_type == _FORM_TYPE:
    image, fields = asyncio.run(_parse_form(request, content))
    _require_known_names(fields, 'the form', option_names)
    if duplicates := sorted(fields.keys() & query.keys()):
      raise RequestError(422, f'{duplicates[0]!r} is in both the query and the form; send it once.')
    query |= fields
  elif content_type in _RAW_TYPES:
    image = content
  else:
    types = f'{_JSON_TYPE}, {_FORM_TYPE} or {", ".join(_RAW_TYPES)}'
    raise RequestError(415, f'Content-Type {content_type!r} is not supported; send {types}.')
  if not image:
    raise RequestError(422, 'The image is missing: the body is empty.')
  # An empty text option counts as absent, an empty flag as false.
  values = {
    name: value or (None if name in TEXT_OPTIONS else False) for name, value in query.items()
  }
  return image, RequestOptions.model_validate(values, strict=False)


def download(url: str, access: http.Access) -> bytes:
  """Return the image file at a URL; slow, so call it in a thread.

  Raises:
    RequestError: the URL is not allowed, or the download failed.
  """
  try:
    return http.get(url, access)
  except DataError as error:
    raise RequestError(422, str(error)) from None


def read_size(image: bytes, settings: Settings, name: str = 'image') -> tuple[int, int]:
  """Return height and width of an image from its header, without decoding it.

  Raises:
    RequestError: the header cannot be read, or the image has too many pixels.
  """
  try:
    return image_io.image_size(image, settings.max_pixels)
  except DataError as error:
    raise RequestError(_status(error), f'{name}: {error}') from None


def read_image(
  image: bytes, model: ModelInfo, settings: Settings, name: str = 'image'
) -> LoadedImage:
  """Load an image; slow, so call it in a thread.

  Args:
    image: bytes of an image file.
    model: model that will score it.
    settings: settings, for the limits.
    name: name of the image in error messages.

  Raises:
    RequestError: the image cannot be read, or has too many pixels.
  """
  loaded_image = inputs.load(
    inputs.Source(name, image), model.ops, max_pixels=settings.max_pixels,
    pixel_range=model.pixel_range,
  )  # fmt: skip
  return require_readable(loaded_image)


def require_readable(image: LoadedImage) -> LoadedImage:
  """Return an image that was loaded; raise a RequestError if it is unreadable."""
  if image.error:
    raise RequestError(_status(image.error), str(image.error))
  return image


def _status(error: DataError) -> int:
  return 413 if isinstance(error, image_io.TooLarge) else 422


def _decode_image(text: str) -> bytes | str:
  """Decode an image in base64, or in a data URL; return other URLs unchanged."""
  if text.startswith(('http://', 'https://')):
    return text
  base64_text = text.partition(',')[2] if text.startswith('data:') else text
  try:
    return decode_base64(base64_text)
  except ValueError:
    problem = 'neither base64 nor a URL (http:// or https://); remove line breaks from base64.'
    raise RequestError(422, f'image: {problem}') from None


def decode_base64(text: str) -> bytes:
  """Decode strict base64 in chunks, between which other threads can run; see `json_body`.

  Raises:
    ValueError: the text is not base64.
  """
  encoded = text.encode('ascii')
  if 0 <= encoded.find(b'=') < len(encoded) - 2:
    raise ValueError('it has padding before its end')
  starts = range(0, len(encoded), _BASE64_CHUNK)
  return b''.join(base64.b64decode(encoded[i : i + _BASE64_CHUNK], validate=True) for i in starts)


async def _parse_form(request: Request, content: bytes) -> tuple[bytes, dict[str, str]]:
  """Return the file of a form, and its other fields."""

  async def stream() -> AsyncGenerator[bytes]:
    yield content

  try:
    parser = formparsers.MultiPartParser(
      request.headers,
      stream(),
      max_files=_MAX_FIELDS,
      max_fields=_MAX_FIELDS,
      max_part_size=max(1, len(content)),
    )
    parser.spool_max_size = 0  # Unlimited: the content is in memory anyway, and a disk may be full.
    form = await parser.parse()
  except (formparsers.MultiPartException, KeyError, ValueError, AssertionError) as error:
    reason = getattr(error, 'message', '') or 'its parts cannot be separated'
    raise RequestError(422, f'The form cannot be read: {reason.rstrip(".")}.') from None
  files = [(name, x) for name, x in form.multi_items() if not isinstance(x, str)]
  texts = [(name, x) for name, x in form.multi_items() if isinstance(x, str)]
  try:
    if len(files) != 1 or files[0][0] not in _FILE_FIELDS:
      problem = "The form needs one file, in a field named 'image' (curl: -F image=@FILE)"
      names = [name for name, _ in files]
      raise RequestError(422, f'{problem}; got fields {list(form)}, files in {names}.')
    return await files[0][1].read(), _to_fields(texts, 'the form')
  finally:
    await form.close()


def _to_fields(pairs: Sequence[tuple[str, str]], location: str) -> dict[str, str]:
  """Return fields by name; reject repeated ones, of which all but the last would be ignored."""
  fields = dict(pairs)
  if len(fields) < len(pairs):
    names = [name for name, _ in pairs]
    repeated = next(name for name in names if names.count(name) > 1)
    raise RequestError(422, f'The field {repeated!r} is repeated in {location}; send it once.')
  return fields


def _require_known_names(names: Iterable[str], location: str, allowed_names: Sequence[str]) -> None:
  """Reject unknown names: ignoring a misspelled `model` would silently select the default model."""
  if unknown_names := sorted(set(names) - set(allowed_names)):
    hint = f'choose from {", ".join(allowed_names)}' if allowed_names else 'move it to the body'
    raise RequestError(422, f'Unknown field {unknown_names[0]!r} in {location}; {hint}.')
