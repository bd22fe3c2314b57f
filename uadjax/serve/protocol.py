"""The Open Inference Protocol, version 2, over HTTP: what KServe, Triton and others speak."""

import asyncio
import base64
import binascii
import contextlib
import math
from typing import Any

import fastapi
from jaxtyping import UInt8
import numpy as np
import pydantic
from starlette.requests import Request
from starlette.responses import Response

import uadjax
from uadjax.data import inputs
from uadjax.serve import requests, responses
from uadjax.serve.service import Service

PREFIX = '/v2'
_IMAGE = 'image'
_OUTPUTS = ('score', 'label', 'map')
_FIELDS = pydantic.ConfigDict(extra='forbid', strict=True)


class Tensor(pydantic.BaseModel):
  """An input."""

  model_config = _FIELDS
  name: str
  shape: list[pydantic.NonNegativeInt] = pydantic.Field(max_length=4)
  datatype: str = pydantic.Field(
    description='UINT8: RGB pixels, [b, h, w, 3]. BYTES: image files in base64, [b].'
  )
  data: list[Any]
  parameters: dict[str, Any] | None = None


class Output(pydantic.BaseModel):
  """An output that is wanted."""

  model_config = _FIELDS
  name: str
  parameters: dict[str, Any] | None = None


class Infer(pydantic.BaseModel):
  """A request."""

  model_config = _FIELDS
  inputs: list[Tensor] = pydantic.Field(min_length=1, max_length=1)
  outputs: list[Output] | None = None
  id: str | None = None
  parameters: dict[str, Any] | None = None


class _Error(pydantic.BaseModel):
  error: str


_ERRORS: dict[int | str, dict[str, Any]] = {
  status: {'model': _Error} for status in (400, 401, 404, 413, 415, 422, 503, 504)
}
_BODY = {
  'requestBody': {
    'required': True,
    'content': {'application/json': {'schema': Infer.model_json_schema()}},
  }
}


def router(service: Service) -> fastapi.APIRouter:
  """The routes."""
  routes = fastapi.APIRouter(prefix=PREFIX)

  @routes.get('/health/live')
  async def live() -> Response:
    return responses.reply({'live': True})

  @routes.get('/health/ready', responses={503: {}})
  async def ready() -> Response:
    return responses.reply({'ready': service.ready}, 200 if service.ready else 503)

  @routes.get('', responses={401: _ERRORS[401]})
  async def server() -> Response:
    return responses.reply({'name': 'uadjax', 'version': uadjax.__version__, 'extensions': []})

  @routes.get('/models/{name}', responses=_ERRORS)
  async def model(name: str) -> Response:
    found = service.model(name)
    return responses.reply(
      {
        'name': name,
        'platform': f'uadjax_{found.predictor.model.name.lower()}',
        'inputs': [{'name': _IMAGE, 'datatype': 'UINT8', 'shape': [-1, -1, -1, 3]}],
        'outputs': [
          {'name': 'score', 'datatype': 'FP32', 'shape': [-1]},
          {'name': 'label', 'datatype': 'BYTES', 'shape': [-1]},
          {'name': 'map', 'datatype': 'FP32', 'shape': [-1, -1, -1]},
        ],
      }
    )

  @routes.get('/models/{name}/ready', responses=_ERRORS)
  async def model_ready(name: str) -> Response:
    service.model(name)
    return responses.reply({'name': name, 'ready': True})

  @routes.post('/models/{name}/infer', responses=_ERRORS, openapi_extra=_BODY)
  async def infer(name: str, request: Request) -> Response:
    found = service.model(name)
    async with contextlib.AsyncExitStack() as admitted:
      await admitted.enter_async_context(service.admitted())
      asked = _asked(await requests.body(request, service.settings.max_bytes))
      wanted = [one.name for one in asked.outputs or ()] or list(_OUTPUTS)
      if unknown := [one for one in wanted if one not in _OUTPUTS]:
        raise requests.Refused(400, f'There is no output {unknown[0]!r}; choose from {_OUTPUTS}.')
      others = _count(asked, service.settings.queue) - 1
      await admitted.enter_async_context(service.admitted(others))
      ops = found.predictor.model.ops
      await admitted.enter_async_context(service.turns)
      pictures = await service.thread(_pictures, asked.inputs[0], ops, service.settings)
      if 'map' in wanted and len({picture.size for picture in pictures}) > 1:
        raise requests.Refused(
          400, "Maps of images of several sizes are no tensor; name outputs without 'map'."
        )
      results = await asyncio.gather(*(service.judge(found, picture) for picture in pictures))
      told = await service.thread(_told, results, wanted)
      request.state.told = {
        'model': name, 'images': len(results), 'labels': [result.label for result in results]
      }  # fmt: skip
    own = {'id': asked.id} if asked.id else {}
    return responses.reply({'model_name': name, **own, 'outputs': told})

  return routes


def _asked(content: bytes) -> Infer:
  try:
    return Infer.model_validate_json(content)
  except pydantic.ValidationError as error:
    raise requests.Refused(400, requests.problems(error)) from None


def _count(asked: Infer, most: int) -> int:
  """How many images a request has."""
  shape = asked.inputs[0].shape
  if not shape or not 0 < shape[0] <= most:
    raise requests.Refused(
      400, f'inputs.0.shape: {shape[:1]} images; between 1 and {most} are answered.'
    )
  return shape[0]


def _pictures(tensor: Tensor, ops: Any, settings: Any) -> list[requests.Picture]:
  if tensor.name != _IMAGE:
    raise requests.Refused(400, f'There is no input {tensor.name!r}; it is {_IMAGE!r}.')
  if tensor.datatype == 'UINT8':
    images = _pixels(tensor)
    if images.shape[1] * images.shape[2] > settings.max_pixels:
      raise requests.Refused(413, f'More than {settings.max_pixels} pixels are not taken.')
    return [
      requests.Picture(inputs.Source('image', image), image.shape[:2], ops.apply(image))
      for image in images
    ]
  if tensor.datatype != 'BYTES' or len(tensor.shape) != 1:
    raise requests.Refused(
      400, f'{_IMAGE} is UINT8 of [b, h, w, 3], or BYTES of [b]; got {tensor.datatype} of '
      f'{tensor.shape}.'
    )  # fmt: skip
  if len(tensor.data) != tensor.shape[0] or not all(isinstance(x, str) for x in tensor.data):
    raise requests.Refused(400, f'BYTES of {tensor.shape} are {tensor.shape[0]} strings in base64.')
  try:
    files = [base64.b64decode(text, validate=True) for text in tensor.data]
  except (binascii.Error, ValueError):
    raise requests.Refused(400, 'BYTES must be image files in base64.') from None
  found = []
  for number, file in enumerate(files):
    try:
      found.append(requests.picture(file, ops, settings))
    except requests.Refused as refused:
      raise requests.Refused(refused.status, f'image {number}: {refused.problem}') from None
  return found


def _pixels(tensor: Tensor) -> UInt8[np.ndarray, 'b h w 3']:
  """Numbers in a list, nested or not, as an array."""
  problem = requests.Refused(
    400, f'UINT8 of [b, h, w, 3] are that many whole numbers from 0 to 255, got {tensor.shape}.'
  )
  if len(tensor.shape) != 4 or tensor.shape[3] != 3 or not all(tensor.shape):
    raise problem
  try:
    values = np.asarray(tensor.data)
  except (ValueError, OverflowError):
    raise problem from None
  right = values.dtype.kind == 'i' and values.size == math.prod(tensor.shape)
  if not right or values.min() < 0 or values.max() > 255:
    raise problem
  return values.astype(np.uint8).reshape(tensor.shape)


def _told(results: Any, wanted: list[str]) -> list[dict[str, Any]]:
  outputs = []
  for name in wanted:
    if name == 'map':
      maps = np.stack([result.anomaly_map for result in results])
      outputs.append(
        {'name': name, 'datatype': 'FP32', 'shape': list(maps.shape), 'data': maps.ravel()}
      )
    elif name == 'score':
      scores = np.array([result.score for result in results], np.float32)
      outputs.append({'name': name, 'datatype': 'FP32', 'shape': [len(scores)], 'data': scores})
    else:
      labels = [result.label for result in results]
      outputs.append({'name': name, 'datatype': 'BYTES', 'shape': [len(labels)], 'data': labels})
  return outputs
