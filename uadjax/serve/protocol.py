"""The Open Inference Protocol, version 2, over HTTP, as in KServe, Triton and others."""

import asyncio
import base64
from collections.abc import Sequence
import contextlib
from typing import Any

import fastapi
from jaxtyping import UInt8
import numpy as np
import pydantic
from starlette.requests import Request
from starlette.responses import Response

import uadjax
from uadjax.data import inputs
from uadjax.data.transforms import Ops
from uadjax.inference.result import Result
from uadjax.serve import requests, responses
from uadjax.serve.requests import RequestError
from uadjax.serve.service import Service
from uadjax.serve.settings import Settings

PREFIX = '/v2'
_INPUT_NAME = 'image'
_OUTPUT_TYPES = {'score': 'FP32', 'label': 'BYTES', 'warnings': 'BYTES', 'map': 'FP32'}
_TENSORS = {
  'inputs': [{'name': _INPUT_NAME, 'datatype': 'UINT8', 'shape': [-1, -1, -1, 3]}],
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
    description='UINT8: RGB pixels, [b, h, w, 3]. BYTES: image files in base64, [b].'
  )
  data: list[Any]
  parameters: dict[str, Any] | None = None


class RequestedOutput(pydantic.BaseModel, extra='forbid', strict=True):
  """Output tensor to include in the response."""

  name: str
  parameters: dict[str, Any] | None = None


class InferRequest(pydantic.BaseModel, extra='forbid', strict=True):
  """Inference request."""

  inputs: list[InputTensor] = pydantic.Field(min_length=1, max_length=1)
  outputs: list[RequestedOutput] | None = None
  id: str | None = None
  parameters: dict[str, Any] | None = None


class _Error(pydantic.BaseModel):
  error: str


_ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
  status: {'model': _Error} for status in (400, 401, 404, 413, 415, 422, 503, 504)
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

  @router.post('/models/{name}/infer', responses=_ERROR_RESPONSES, openapi_extra=_INFER_BODY)
  async def infer(name: str, request: Request) -> Response:
    return responses.json_response(await _infer(service, name, request))

  return router


async def _infer(service: Service, name: str, request: Request) -> dict[str, object]:
  """Score the images of an inference request, and return the response."""
  model, settings = service.get_model(name), service.settings
  async with contextlib.AsyncExitStack() as stack:
    await stack.enter_async_context(service.reserve_queue())
    content = await requests.read_body(request, settings.max_bytes)
    infer_request = InferRequest.model_validate_json(content)
    output_names = [output.name for output in infer_request.outputs or ()] or list(_OUTPUT_TYPES)
    if unknown := [x for x in output_names if x not in _OUTPUT_TYPES]:
      raise RequestError(400, f'Unknown output {unknown[0]!r}; choose from {list(_OUTPUT_TYPES)}.')
    tensor, ops = infer_request.inputs[0], model.predictor.model.ops
    num_images = tensor.shape[0]
    if not 0 < num_images <= settings.queue:
      problem = f'got {num_images} images; send between 1 and {settings.queue}.'
      raise RequestError(400, f'inputs.0.shape: {problem}')
    await stack.enter_async_context(service.reserve_queue(num_images - 1))
    await stack.enter_async_context(service.admission)
    images = await service.run_in_thread(_read_images, tensor, ops, settings)
    if 'map' in output_names and len({image.size for image in images}) > 1:
      problem = 'Maps of images of different sizes do not form a tensor'
      raise RequestError(400, f"{problem}; request outputs without 'map'.")
    results = await asyncio.gather(*(service.predict(model, image) for image in images))
    outputs = await service.run_in_thread(_encode_outputs, results, output_names)
  labels = [result.label for result in results]
  request.state.log_fields = {'model': name, 'images': len(results), 'labels': labels}
  id_field = {'id': infer_request.id} if infer_request.id else {}
  return {'model_name': name, **id_field, 'outputs': outputs}


def _read_images(tensor: InputTensor, ops: Ops, settings: Settings) -> list[inputs.LoadedImage]:
  if tensor.name != _INPUT_NAME:
    raise RequestError(400, f'Unknown input {tensor.name!r}; it must be {_INPUT_NAME!r}.')
  if tensor.datatype == 'UINT8':
    images = _to_array(tensor)
    if images.shape[1] * images.shape[2] > settings.max_pixels:
      problem = f'The images have more than {settings.max_pixels} pixels each; send smaller ones.'
      raise RequestError(413, problem)
    return [inputs.load(inputs.Source('image', image), ops) for image in images]
  if tensor.datatype != 'BYTES' or len(tensor.shape) != 1:
    raise RequestError(
      400, f'{_INPUT_NAME!r} must be UINT8 of shape [b, h, w, 3] or BYTES of shape [b]; got '
      f'{tensor.datatype} of shape {tensor.shape}.'
    )  # fmt: skip
  try:
    if len(tensor.data) != tensor.shape[0]:
      raise ValueError
    files = [base64.b64decode(text, validate=True) for text in tensor.data]
  except (TypeError, ValueError):
    problem = f'must be {tensor.shape[0]} strings, which are image files in base64.'
    raise RequestError(400, f'BYTES of shape {tensor.shape} {problem}') from None
  return [requests.read_image(x, ops, settings, f'image {i}') for i, x in enumerate(files)]


def _to_array(tensor: InputTensor) -> UInt8[np.ndarray, 'b h w 3']:
  """Convert a flat or nested list of numbers to an array."""
  try:
    values = np.asarray(tensor.data).reshape(tensor.shape)
    is_valid = values.dtype.kind == 'i' and values.shape[3:] == (3,)
    if not is_valid or values.min() < 0 or values.max() > 255:
      raise ValueError
  except (ValueError, OverflowError):  # A list without numbers has no minimum.
    raise RequestError(
      400,
      'UINT8 data must have a shape [b, h, w, 3] without zeros, and b*h*w*3 whole numbers from 0 '
      f'to 255; got shape {tensor.shape}.',
    ) from None
  return values.astype(np.uint8)


def _encode_outputs(results: Sequence[Result], output_names: list[str]) -> list[dict[str, Any]]:
  outputs = []
  for name in output_names:
    if name == 'map':
      maps = np.stack([result.anomaly_map for result in results])
      shape, data = list(maps.shape), maps.ravel()
    elif name == 'warnings':
      shape, data = [len(results)], [result.warning_codes for result in results]
    else:
      shape, data = [len(results)], [result[name] for result in results]
    outputs.append({'name': name, 'datatype': _OUTPUT_TYPES[name], 'shape': shape, 'data': data})
  return outputs
