"""Responses of the service: PaddleX's envelope, and the verdict on an image as JSON."""

import base64
import io
from typing import Any
import uuid

import numpy as np
import orjson
from PIL import Image
from starlette.responses import Response

from uadjax.inference.result import Result

_JPEG_QUALITY = 90
SUCCESS = 'Success'


def new_log_id() -> str:
  """Return a new id for a response and its log line."""
  return uuid.uuid4().hex


def envelope(log_id: str, code: int, message: str, **fields: Any) -> dict[str, Any]:
  """Return the JSON object of a response: PaddleX's three fields, and any others."""
  return {'logId': log_id, 'errorCode': code, 'errorMsg': message, **fields}


def json_response(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
  """Return a JSON response; numbers that are not finite become null."""
  content = orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY)
  return Response(content, status, headers, 'application/json')


def verdict_to_dict(
  model: str, result: Result, visualize: bool, heatmap: bool, label_map: bool
) -> dict[str, Any]:
  """Convert a result to a dict for JSON; slow, so call it in a thread.

  Args:
    model: name of the model.
    result: result of one image.
    visualize: whether to include the original next to its overlay, as one picture.
    heatmap: whether to include the anomaly map, quantized to 256 levels.
    label_map: whether to include the mask, one number per pixel.
  """
  fields = {
    'model': model,
    'size': list(result.size),
    'score': result.score,
    'label': result.label,
    'imageThreshold': result.image_threshold,
    'reviewThreshold': result.thresholds.review_threshold,
    'pixelThreshold': result.thresholds.pixel_threshold,
    'regions': [region._asdict() for region in result.regions],
  }
  if label_map:
    fields['labelMap'] = result.pred.ravel()
  if visualize:
    fields['image'] = _encode_image(result.picture(), 'JPEG', quality=_JPEG_QUALITY)
  if heatmap:
    fields['heatmap'] = _encode_heatmap(result)
  return fields


def _encode_heatmap(result: Result) -> dict[str, Any]:
  """Encode a map as a gray PNG, in which v stands for `low + v / 255 * (high - low)`."""
  low, high = float(result.anomaly_map.min()), float(result.anomaly_map.max())
  scaled = (result.anomaly_map - low) * np.float32(255 / (high - low) if high > low else 0)
  gray = Image.fromarray(np.nan_to_num(scaled).round().astype(np.uint8))
  return {'image': _encode_image(gray, 'PNG', compress_level=1), 'low': low, 'high': high}


def _encode_image(image: Image.Image, image_format: str, **save_options: Any) -> str:
  buffer = io.BytesIO()
  image.convert('RGB' if image_format == 'JPEG' else 'L').save(buffer, image_format, **save_options)
  return base64.b64encode(buffer.getvalue()).decode()
