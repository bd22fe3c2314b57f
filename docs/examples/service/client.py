"""Sends an image to the service: `python client.py photo.png [http://localhost:8000]`.

It needs the standard library only. A busy service (status 503) is asked again; every other error is
raised with the message of the service.
"""

import base64
import json
from pathlib import Path
import sys
import time
from typing import Any
import urllib.error
import urllib.request


def score_image(
  image: bytes,
  url: str = 'http://localhost:8000',
  token: str = '',
  max_attempts: int = 5,
  **options: Any,
) -> dict[str, Any]:
  """Return the verdict of the service: score, label, thresholds, regions and more.

  Args:
    image: an encoded image.
    url: URL of the service.
    token: token of the service, if it requires one.
    max_attempts: maximum number of requests while the service is busy.
    **options: request fields, such as visualize=True, heatmap=True or model='bolts'.

  Raises:
    RuntimeError: the service returned an error.
  """
  body = json.dumps({'image': base64.b64encode(image).decode(), **options}).encode()
  headers = {'Content-Type': 'application/json'}
  if token:
    headers['Authorization'] = f'Bearer {token}'
  request = urllib.request.Request(f'{url}/image-anomaly-detection', body, headers)
  for remaining_attempts in reversed(range(max_attempts)):
    try:
      with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)['result']
    except urllib.error.HTTPError as error:
      if error.code != 503 or not remaining_attempts:
        raise RuntimeError(f'{error.code}: {json.load(error)["errorMsg"]}') from None
      time.sleep(float(error.headers.get('Retry-After', 1)))
  raise AssertionError('unreachable')


if __name__ == '__main__':
  verdict = score_image(Path(sys.argv[1]).read_bytes(), *sys.argv[2:3])
  print(verdict['label'], verdict['score'], verdict['regions'])
