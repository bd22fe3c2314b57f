"""OpenAPI schemas of bodies that are parsed and written without FastAPI's models."""

from typing import Any

import pydantic

from uadjax.serve import requests


class _Envelope(pydantic.BaseModel):
  logId: str
  errorCode: int
  errorMsg: str


class _Warning(pydantic.BaseModel):
  code: str = pydantic.Field(description='Kind of the problem, such as no_content.')
  message: str


class _Region(pydantic.BaseModel):
  box: list[int] = pydantic.Field(description='Left, top, and exclusive right and bottom.')
  area: int
  peak: float
  at: list[int]


class _Heatmap(pydantic.BaseModel):
  image: str = pydantic.Field(description='A gray PNG in base64.')
  low: float = pydantic.Field(description='Map value of level 0.')
  high: float = pydantic.Field(description='Map value of level 255.')


class _Part(pydantic.BaseModel):
  part: str
  label: str = pydantic.Field(description='The worst label of its images: OK, review or NG.')
  images: int = pydantic.Field(description='Number of its images so far.')


class _Verdict(pydantic.BaseModel):
  model: str = pydantic.Field(description='Name of the model.')
  labelMap: list[int] | None = pydantic.Field(None, description='Pixels by row: 255 if anomalous.')
  size: list[int] = pydantic.Field(description='Height and width.')
  score: float | None
  label: str = pydantic.Field(description='OK, review or NG.')
  warnings: list[_Warning] = pydantic.Field(
    description='Reasons why the image is for review even if its score is OK.'
  )
  imageThreshold: float | None = pydantic.Field(description='null: infinite, no score exceeds it.')
  reviewThreshold: float | None
  pixelThreshold: float | None
  peak: float | None = pydantic.Field(description='Largest value of the anomaly map.')
  at: list[int] = pydantic.Field(description='x and y of the peak.')
  regionsPixelThreshold: float | None = pydantic.Field(
    description='Value that the pixels of regions exceed: pixelThreshold, or less for review.'
  )
  regions: list[_Region]
  image: str | None = pydantic.Field(
    None, description='If requested: a JPEG in base64; a PNG if a side exceeds 65,500 pixels.'
  )
  imageScale: float | None = pydantic.Field(
    None, description='If `image` shows the image reduced: its size relative to the original.'
  )
  heatmap: _Heatmap | None = None
  part: _Part | None = pydantic.Field(None, description='If requested: the verdict on the part.')


class _VerdictResponse(_Envelope):
  result: _Verdict


class _RequestLimits(pydantic.BaseModel):
  max_bytes: int = pydantic.Field(description='Maximum size of a request body.')
  max_pixels: int = pydantic.Field(description='Maximum number of pixels of an image.')
  max_answer_bytes: int = pydantic.Field(description='Maximum size of a response, as estimated.')
  queue: int = pydantic.Field(description='Maximum number of images in progress.')
  deadline_s: float


class _ModelList(pydantic.BaseModel):
  models: list[dict[str, Any]]
  limits: _RequestLimits


class _ModelListResponse(_Envelope):
  result: _ModelList


_ERRORS = {
  401: 'The token is missing or wrong.',
  404: 'The model is unknown.',
  408: 'The body stalled.',
  413: 'The request has too many bytes or pixels, or its response would have.',
  415: 'The type of the body is not supported.',
  422: 'The image or an option is invalid; errorMsg lists the problems.',
  503: 'The queue is full, or the model is not ready; try again.',
  504: 'The deadline has passed.',
}
_ERROR_RESPONSES = {n: {'model': _Envelope, 'description': text} for n, text in _ERRORS.items()}

Responses = dict[int | str, dict[str, Any]]
HEALTH_RESPONSES: Responses = {200: {'model': _Envelope}}
MODELS_RESPONSES: Responses = {
  200: {'model': _ModelListResponse},
  401: _ERROR_RESPONSES[401],
  503: _ERROR_RESPONSES[503],
}
VERDICT_RESPONSES: Responses = {200: {'model': _VerdictResponse}, **_ERROR_RESPONSES}

_OPTION_SCHEMAS = requests.RequestOptions.model_json_schema()['properties']
_FILE_SCHEMA = {'type': 'string', 'format': 'binary'}
_FORM_SCHEMA = {'type': 'object', 'properties': {'image': _FILE_SCHEMA}, 'required': ['image']}
_BODY_SCHEMAS = {
  'application/json': requests.PredictRequest.model_json_schema(),
  'multipart/form-data': _FORM_SCHEMA,
  'application/octet-stream': _FILE_SCHEMA,
  'image/*': _FILE_SCHEMA,
}
PREDICT_OPENAPI: dict[str, Any] = {
  'parameters': [
    {
      'name': name,
      'in': 'query',
      'schema': _OPTION_SCHEMAS[name]['anyOf'][0],  # The other choice is null.
      'description': f'{field.description} JSON requests have it in the body.',
    }
    for name, field in requests.RequestOptions.model_fields.items()
  ],
  'requestBody': {
    'required': True,
    'content': {media_type: {'schema': schema} for media_type, schema in _BODY_SCHEMAS.items()},
  },
}
