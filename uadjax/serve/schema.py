"""What OpenAPI says of bodies that are read by hand."""

from typing import Any

import pydantic

from uadjax.serve import requests


class _Envelope(pydantic.BaseModel):
  logId: str
  errorCode: int
  errorMsg: str


class _Region(pydantic.BaseModel):
  box: list[int] = pydantic.Field(description='Left, top, right, bottom; the last just outside.')
  area: int
  peak: float
  at: list[int]


class _Heatmap(pydantic.BaseModel):
  image: str = pydantic.Field(description='A gray PNG in base64.')
  low: float = pydantic.Field(description='What 0 stands for.')
  high: float = pydantic.Field(description='What 255 stands for.')


class _Verdict(pydantic.BaseModel):
  model: str = pydantic.Field(description='Which one judged, by name.')
  labelMap: list[int] | None = pydantic.Field(
    None, description='Row by row, 255 where anomalous, else 0.'
  )
  size: list[int] = pydantic.Field(description='Height and width.')
  score: float | None
  label: str = pydantic.Field(description='OK, review or NG.')
  imageThreshold: float | None = pydantic.Field(description='null: no score exceeds it.')
  reviewThreshold: float | None
  pixelThreshold: float | None
  regions: list[_Region]
  image: str | None = pydantic.Field(None, description='If asked for: a JPEG in base64.')
  heatmap: _Heatmap | None = None


class _VerdictResponse(_Envelope):
  result: _Verdict


class _RequestLimits(pydantic.BaseModel):
  max_bytes: int = pydantic.Field(description='Of a request.')
  max_pixels: int = pydantic.Field(description='Of an image.')
  queue: int = pydantic.Field(description='Images under way at a time.')
  deadline_s: float


class _ModelList(pydantic.BaseModel):
  models: list[dict[str, Any]]
  limits: _RequestLimits


class _ModelListResponse(_Envelope):
  result: _ModelList


def _error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
  descriptions = {
    401: 'No token, or a wrong one.',
    404: 'There is no such model.',
    413: 'Too many bytes or pixels.',
    415: 'A body of another type.',
    422: 'No image that can be read; errorMsg lists the problems.',
    503: 'Too much to do, or not warm yet; try again.',
    504: 'Not answered in time.',
  }
  return {status: {'model': _Envelope, 'description': descriptions[status]} for status in statuses}


HEALTH_RESPONSES: dict[int | str, dict[str, Any]] = {200: {'model': _Envelope}}
MODELS_RESPONSES = {200: {'model': _ModelListResponse}, **_error_responses(401, 503)}
VERDICT_RESPONSES = {
  200: {'model': _VerdictResponse},
  **_error_responses(401, 404, 413, 415, 422, 503, 504),
}

_QUERY_PARAMETERS = [
  {
    'name': name,
    'in': 'query',
    'required': False,
    'schema': {'type': 'string' if name == 'model' else 'boolean'},
    'description': f'{description} With JSON it is in the body.',
  }
  for name, description in {
    'visualize': 'Whether the answer has a picture.',
    'heatmap': 'Whether the answer has the map.',
    'labelMap': 'False: an answer without labelMap.',
    'model': 'Which model; the first one where none is named.',
  }.items()
]
_FILE_SCHEMA = {'type': 'string', 'format': 'binary'}
PREDICT_OPENAPI: dict[str, Any] = {
  'parameters': _QUERY_PARAMETERS,
  'requestBody': {
    'required': True,
    'content': {
      'application/json': {'schema': requests.PredictRequest.model_json_schema()},
      'multipart/form-data': {
        'schema': {'type': 'object', 'properties': {'image': _FILE_SCHEMA}, 'required': ['image']}
      },
      'application/octet-stream': {'schema': _FILE_SCHEMA},
      'image/*': {'schema': _FILE_SCHEMA},
    },
  },
}
