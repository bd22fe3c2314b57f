"""The Open Inference Protocol, version 2, over HTTP, as in KServe, Triton and others."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import fastapi
from jaxtyping import UInt8
import numpy as np
import pydantic
from starlette.requests import Request
from starlette.responses import Response

import uadjax
from uadjax.data import inputs
from uadjax.inference.result import Result
from uadjax.model.model_dir import ModelInfo
from uadjax.serve import json_body, requests, response_size, responses
from uadjax.serve.errors import RequestError
from uadjax.serve.service import Service
from uadjax.serve.settings import Settings

PREFIX = '/v2'
_IMAGE, _PART = 'image', 'part'  # Names of the inputs; the second one is optional.
_IMAGE_OUTPUTS = {'score': 'FP32', 'label': 'BYTES', 'warnings': 'BYTES', 'map': 'FP32'}
_PART_OUTPUTS = {'part_label': 'BYTES', 'part_images': 'INT64'}  # Only with the input `part`.
_OUTPUT_TYPES = _IMAGE_OUTPUTS | _PART_OUTPUTS
_TENSORS = {
  'inputs': [
    {'name': _IMAGE, 'datatype': 'UINT8', 'shape': [-1, -1, -1, 3]},
    {'name': _PART, 'datatype': 'BYTES', 'shape': [-1]},
  ],
  'outputs': [
    {'name': name, 'datatype': datatype, 'shape': [-1, -1, -1] if name == 'map' else [-1]}
    for name, datatype in _OUTPUT_TYPES.items()
  ],
}


class InputTensor(pydantic.BaseModel, extra='forbid', strict=True):
  """Input tensor."""

  name: str
  shape: list[pydantic.NonNegativeInt] = pydantic.Field(min_length=1, max_length=4)
  datatype: str = pydantic.Field(
    description='For image, UINT8: RGB pixels, [b, h, w, 3]; or BYTES: image files in base64, [b]. '
    'For part, BYTES: names, [b].'
  )
  data: list[Any]
  parameters: dict[str, Any] | None = None


class RequestedOutput(pydantic.BaseModel, extra='forbid', strict=True):
  """Output tensor to include in the response."""

  name: str
  parameters: dict[str, Any] | None = None


class InferRequest(pydantic.BaseModel, extra='forbid', strict=True):
  """Inference request."""

  inputs: list[InputTensor] = pydantic.Field(
    min_length=1,
    max_length=2,
    description='image and, optionally, part: the name of the part that each image shows.',
  )
  outputs: list[RequestedOutput] | None = None
  id: str | None = None
  parameters: dict[str, Any] | None = None


class _Error(pydantic.BaseModel):
  error: str


_ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
  status: {'model': _Error} for status in (400, 401, 404, 408, 413, 415, 422, 503, 504)
}
_INFER_BODY = {
  'requestBody': {
    'required': True,
    'content': {'application/json': {'schema': InferRequest.model_json_schema()}},
  }
}


def make_router(service: Service) -> fastapi.APIRouter:
  """Return the routes of the protocol for a service."""
  router = fastapi.APIRouter(prefix=PREFIX)

  @router.get('/health/live')
  async def health_live() -> Response:
    return responses.json_response({'live': True})

  @router.get('/health/ready', responses={503: {}})
  async def health_ready() -> Response:
    return responses.json_response({'ready': service.is_ready}, 200 if service.is_ready else 503)

  @router.get('', responses={401: _ERROR_RESPONSES[401]})
  async def server_metadata() -> Response:
    version = uadjax.__version__
    return responses.json_response({'name': 'uadjax', 'version': version, 'extensions': []})

  @router.get('/models/{name}', responses=_ERROR_RESPONSES)
  async def model_metadata(name: str) -> Response:
    detector = service.get_model(name).predictor.model.name
    metadata = {'name': name, 'platform': f'uadjax_{detector.lower()}', **_TENSORS}
    return responses.json_response(metadata)

  @router.get('/models/{name}/ready', responses=_ERROR_RESPONSES)
  async def model_ready(name: str) -> Response:
    service.get_model(name)
    return responses.json_response({'name': name, 'ready': True})

  @router.api_route(
    '/models/{name}/versions/{rest:path}', methods=['GET', 'POST'], include_in_schema=False
  )
  async def model_version(name: str) -> Response:
    """Explain that models have no versions, which the protocol leaves optional."""
    service.get_model(name)
    raise RequestError(404, f'Models have no versions; use {PREFIX}/models/{name}.')

  @router.post('/models/{name}/infer', responses=_ERROR_RESPONSES, openapi_extra=_INFER_BODY)
  async def infer(name: str, request: Request) -> Response:
    return await _infer(service, name, request)

  return router


async def _infer(service: Service, name: str, request: Request) -> Response:
  """Score the images of an inference request, and return the response."""
  model, settings = service.get_model(name), service.settings
  async with service.deadline():
    content = await service.read_body(request)
    infer_request, lists = await service.parse(json_body.parse, content, InferRequest)
    tensors = _tensors_by_name(infer_request)
    output_names = _output_names(infer_request, has_parts=_PART in tensors)
    tensor, info = tensors[_IMAGE], model.predictor.model
    num_images = tensor.shape[0]
    if not 0 < num_images <= settings.queue:
      problem = f'got {num_images} images; send between 1 and {settings.queue}.'
      raise RequestError(400, f'Shape of {_IMAGE!r}: {problem}')
    part_names = _read_part_names(tensors[_PART], num_images) if _PART in tensors else []
    with service.images.reserve(num_images):
      async with service.admission:
        has_maps = 'map' in output_names
        images = await service.run_in_thread(_read_images, tensor, lists, has_maps, info, settings)
        results = await asyncio.gather(*(service.predict(model, image) for image in images))
        named_results = zip(part_names, results, strict=False)  # None without names.
        # The last verdict on a part counts all its images of the request.
        verdicts = {part: service.judge_part(model, part, result) for part, result in named_results}
        image_parts = [verdicts[part] for part in part_names]
        fields = {'model_name': name} | ({'id': infer_request.id} if infer_request.id else {})
        response = await service.run_in_thread(
          _response, fields, results, image_parts, output_names
        )
  labels = [result.label for result in results]
  request.state.log_fields = {'model': name, 'images': len(results), 'labels': labels}
  return response


def _tensors_by_name(infer_request: InferRequest) -> dict[str, InputTensor]:
  tensors: dict[str, InputTensor] = {}
  for tensor in infer_request.inputs:
    if tensor.name not in (_IMAGE, _PART):
      problem = f'Unknown input {tensor.name!r}; choose from {[_IMAGE, _PART]}.'
      raise RequestError(400, problem)
    if tensor.name in tensors:
      raise RequestError(400, f'The input {tensor.name!r} occurs twice; send it once.')
    tensors[tensor.name] = tensor
  if _IMAGE not in tensors:
    raise RequestError(400, f'The input {_IMAGE!r} is missing.')
  return tensors


def _output_names(infer_request: InferRequest, has_parts: bool) -> list[str]:
  """Return the requested outputs, or else all that the inputs allow."""
  allowed_names = list(_OUTPUT_TYPES if has_parts else _IMAGE_OUTPUTS)
  names = [output.name for output in infer_request.outputs or ()] or allowed_names
  if unknown := [x for x in names if x not in _OUTPUT_TYPES]:
    raise RequestError(400, f'Unknown output {unknown[0]!r}; choose from {list(_OUTPUT_TYPES)}.')
  if repeated := [x for i, x in enumerate(names) if x in names[:i]]:
    raise RequestError(400, f'The output {repeated[0]!r} occurs twice; request it once.')
  if missing := [x for x in names if x not in allowed_names]:
    problem = f'The output {missing[0]!r} needs the input {_PART!r}: a name for each image.'
    raise RequestError(400, problem)
  return names


def _read_part_names(tensor: InputTensor, num_images: int) -> list[str]:
  """Return the name of the part that each image shows."""
  names, limit = tensor.data, requests.MAX_PART_LENGTH
  are_names = all(isinstance(name, str) and 0 < len(name) <= limit for name in names)
  is_shape_right = (tensor.datatype, tensor.shape) == ('BYTES', [num_images])
  if not (is_shape_right and are_names and len(names) == num_images):
    raise RequestError(
      400, f'{_PART!r} must be BYTES of shape [{num_images}], a name of 1 to {limit} characters '
      f'for each image; got {tensor.datatype} of shape {tensor.shape} with {len(names)} values.'
    )  # fmt: skip
  return names


def _read_images(
  tensor: InputTensor, lists: json_body.Lists, has_maps: bool, model: ModelInfo, settings: Settings
) -> list[inputs.LoadedImage]:
  """Load the images, unless their maps would be too large or do not form a tensor.

  Args:
    tensor: the images.
    lists: long lists of the request.
    has_maps: whether the response will have the maps.
    model: model that will score them.
    settings: settings, for the limits.
  """
  if tensor.datatype == 'UINT8':
    array = _to_array(tensor, lists)
    if array.shape[1] * array.shape[2] > settings.max_pixels:
      problem = f'The images have more than {settings.max_pixels} pixels each; send smaller ones.'
      raise RequestError(413, problem)
    if has_maps:
      response_size.check_maps([array.shape[1:3]] * len(array), settings.max_answer_bytes)
    images = (inputs.load(inputs.Source('image', image), model.ops) for image in array)
    return [requests.require_readable(image) for image in images]
  files = {f'image {i}': file for i, file in enumerate(_decode_files(tensor))}
  sizes = [requests.read_size(file, settings, name) for name, file in files.items()]
  if has_maps:
    if len(set(sizes)) > 1:
      problem = 'Maps of images of different sizes do not form a tensor'
      raise RequestError(400, f"{problem}; request outputs without 'map'.")
    response_size.check_maps(sizes, settings.max_answer_bytes)
  return [requests.read_image(file, model, settings, name) for name, file in files.items()]


def _decode_files(tensor: InputTensor) -> list[bytes]:
  """Return the image files of a BYTES tensor."""
  if tensor.datatype != 'BYTES' or len(tensor.shape) != 1:
    raise RequestError(
      400, f'{_IMAGE!r} must be UINT8 of shape [b, h, w, 3] or BYTES of shape [b]; got '
      f'{tensor.datatype} of shape {tensor.shape}.'
    )  # fmt: skip
  files: list[bytes] = []
  if len(tensor.data) != tensor.shape[0] or not all(isinstance(x, str) for x in tensor.data):
    problem = f'must be {tensor.shape[0]} strings, which are image files in base64.'
    raise RequestError(400, f'BYTES of shape {tensor.shape} {problem}')
  for i, text in enumerate(tensor.data):
    try:
      files.append(requests.decode_base64(text))
    except ValueError:
      raise RequestError(422, f'image {i}: it is not an image file in base64.') from None
  return files


def _to_array(tensor: InputTensor, lists: json_body.Lists) -> UInt8[np.ndarray, 'b h w 3']:
  """Return the pixels of a flat or nested list of numbers."""
  try:
    if tensor.shape[3:] != [3]:
      raise ValueError('it has no 3 channels')
    return json_body.parse_pixels(json_body.list_text(tensor.data, lists), tensor.shape)
  except (ValueError, TypeError) as error:
    raise RequestError(
      400,
      'UINT8 data must have a shape [b, h, w, 3] without zeros, and b*h*w*3 whole numbers from 0 '
      f'to 255, in one list or nested in this shape; got shape {tensor.shape}: {error}.',
    ) from None


def _response(
  fields: Mapping[str, object],
  results: Sequence[Result],
  image_parts: Sequence[Mapping[str, object]],
  output_names: list[str],
) -> Response:
  """Return the response with the outputs; slow, so call it in a thread.

  Args:
    fields: other fields of the response.
    results: result of each image.
    image_parts: verdict on the part that each image shows; empty without parts.
    output_names: names of the outputs.
  """
  outputs: list[dict[str, object]] = []
  for name in output_names:
    if name == 'map':
      maps = np.stack([result.anomaly_map for result in results])
      shape, data = list(maps.shape), responses.to_json_list(maps.ravel())
    elif name in _PART_OUTPUTS:
      shape, data = [len(results)], [part[name.removeprefix('part_')] for part in image_parts]
    elif name == 'warnings':
      shape, data = [len(results)], [result.warning_codes for result in results]
    else:
      shape, data = [len(results)], [result[name] for result in results]
    outputs.append({'name': name, 'datatype': _OUTPUT_TYPES[name], 'shape': shape, 'data': data})
  return responses.json_response({**fields, 'outputs': outputs})
