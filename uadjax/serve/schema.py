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
  threshold: float | None = pydantic.Field(description='null: no score exceeds it.')
  reviewThreshold: float | None
  pixelThreshold: float | None
  regions: list[_Region]
  image: str | None = pydantic.Field(None, description='If asked for: a JPEG in base64.')
  heatmap: _Heatmap | None = None


class _Judged(_Envelope):
  result: _Verdict


class _Limits(pydantic.BaseModel):
  max_bytes: int = pydantic.Field(description='Of a request.')
  max_pixels: int = pydantic.Field(description='Of an image.')
  queue: int = pydantic.Field(description='Images under way at a time.')
  deadline_s: float


class _Models(pydantic.BaseModel):
  models: list[dict[str, Any]]
  limits: _Limits


class _Listed(_Envelope):
  result: _Models


def _also(*statuses: int) -> dict[int | str, dict[str, Any]]:
  why = {
    401: 'No token, or a wrong one.',
    404: 'There is no such model.',
    413: 'Too many bytes or pixels.',
    415: 'A body of another type.',
    422: 'No image that can be read; errorMsg lists the problems.',
    503: 'Too much to do, or not warm yet; try again.',
    504: 'Not answered in time.',
  }
  return {status: {'model': _Envelope, 'description': why[status]} for status in statuses}


HEALTH: dict[int | str, dict[str, Any]] = {200: {'model': _Envelope}}
MODELS = {200: {'model': _Listed}, **_also(401, 503)}
VERDICT = {200: {'model': _Judged}, **_also(401, 404, 413, 415, 422, 503, 504)}

_FLAGS = [
  {
    'name': name,
    'in': 'query',
    'required': False,
    'schema': {'type': 'string' if name == 'model' else 'boolean'},
    'description': f'{told} With JSON it is in the body.',
  }
  for name, told in {
    'visualize': 'Whether the answer has a picture.',
    'heatmap': 'Whether the answer has the map.',
    'labelMap': 'False: an answer without labelMap.',
    'model': 'Which model; the first one where none is named.',
  }.items()
]
_FILE = {'type': 'string', 'format': 'binary'}
ASKED: dict[str, Any] = {
  'parameters': _FLAGS,
  'requestBody': {
    'required': True,
    'content': {
      'application/json': {'schema': requests.Asked.model_json_schema()},
      'multipart/form-data': {
        'schema': {'type': 'object', 'properties': {'image': _FILE}, 'required': ['image']}
      },
      'application/octet-stream': {'schema': _FILE},
      'image/*': {'schema': _FILE},
    },
  },
}
