"""Responses of the service: PaddleX's envelope, and the verdict on an image as JSON."""

import base64
from collections.abc import Mapping
import io

from jaxtyping import Num
import numpy as np
import orjson
from PIL import Image
from starlette.responses import Response

from uadjax.inference.result import Result
from uadjax.model import calibration
from uadjax.serve.requests import RequestOptions
from uadjax.visualization import heatmap, picture_file

_JPEG_QUALITY = 90
_CHUNK = 1 << 16  # Numbers that are serialized at a time, which takes a few milliseconds.
Headers = dict[str, str] | None


def json_response(data: object, status: int = 200, headers: Headers = None) -> Response:
  """Return a JSON response; numbers that are not finite become null."""
  content = orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY)
  return Response(content, status, headers, 'application/json')


def to_json_list(values: Num[np.ndarray, ' n']) -> orjson.Fragment:
  """Serialize a long array in chunks, between which other threads can run.

  One call would hold the interpreter's lock, and so stop the service, for up to a second.
  """
  chunks = (values[i : i + _CHUNK] for i in range(0, len(values), _CHUNK))
  lists = (orjson.dumps(chunk, option=orjson.OPT_SERIALIZE_NUMPY) for chunk in chunks)
  return orjson.Fragment(b'[' + b','.join(text[1:-1] for text in lists) + b']')


def envelope(log_id: str, message: str = 'Success', **fields: object) -> Response:
  """Return a successful response with PaddleX's three fields, and any others."""
  return json_response({'logId': log_id, 'errorCode': 0, 'errorMsg': message, **fields})


def verdict(
  log_id: str,
  model: str,
  result: Result,
  options: RequestOptions,
  part: Mapping[str, object] | None = None,
) -> Response:
  """Return the verdicts on an image and its part, with what the request asks for.

  It is slow, so call it in a thread.
  """
  fields: dict[str, object] = {
    'model': model,
    'size': list(result.size),
    'score': result.score,
    'label': result.label,
    'warnings': result.warnings,
    **thresholds_in_camel_case(result.thresholds),
    'peak': result.peak,
    'at': list(result.at),
    'regionsPixelThreshold': result.regions_pixel_threshold,
    'regions': [region._asdict() for region in result.regions],
  }
  if part:
    fields['part'] = part
  if options.labelMap is not False:
    fields['labelMap'] = to_json_list(result.pred.ravel())
  if options.visualize:
    picture, file = result.picture(), io.BytesIO()
    picture_file.write(picture, file, '.jpg', _JPEG_QUALITY)
    fields['image'] = base64.b64encode(file.getvalue()).decode()
    if result.picture_scale < 1:
      fields['imageScale'] = result.picture_scale
  if options.heatmap:
    # In the gray PNG, v stands for low + v / 255 * (high - low).
    levels, low, high = heatmap.to_levels(result.anomaly_map)
    image = _encode_image(Image.fromarray(levels), 'PNG', compress_level=1)
    fields['heatmap'] = {'image': image, 'low': low, 'high': high}
  return envelope(log_id, result=fields)


def thresholds_in_camel_case(thresholds: calibration.Thresholds) -> dict[str, float]:
  """Return the thresholds by their names in responses, such as imageThreshold."""
  return {name.replace('_t', 'T'): value for name, value in calibration.by_name(thresholds).items()}


def _encode_image(image: Image.Image, image_format: str, **save_options: int) -> str:
  buffer = io.BytesIO()
  image.save(buffer, image_format, **save_options)
  return base64.b64encode(buffer.getvalue()).decode()
