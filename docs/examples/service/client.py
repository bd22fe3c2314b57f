"""Asks a service about an image: `python client.py photo.png [http://localhost:8000]`.

The standard library is all it needs. A service that has too much to do says so (503) and is asked
again; anything else that is wrong is raised with what the service says of it.
"""

import base64
import json
from pathlib import Path
import sys
import time
from typing import Any
import urllib.error
import urllib.request


def judge(
  image: bytes, url: str = 'http://localhost:8000', token: str = '', tries: int = 5, **wanted: Any
) -> dict[str, Any]:
  """The service's verdict: score, label, threshold, regions and more.

  Args:
    image: an encoded image.
    url: of the service.
    token: that it wants, if it does.
    tries: how often it is asked where it has too much to do.
    **wanted: visualize=True, heatmap=True, model='bolts'.
  """
  body = json.dumps({'image': base64.b64encode(image).decode(), **wanted}).encode()
  headers = {'Content-Type': 'application/json'}
  if token:
    headers['Authorization'] = f'Bearer {token}'
  request = urllib.request.Request(f'{url}/image-anomaly-detection', body, headers)
  for left in reversed(range(tries)):
    try:
      with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)['result']
    except urllib.error.HTTPError as error:
      if error.code != 503 or not left:
        raise RuntimeError(f'{error.code}: {json.load(error)["errorMsg"]}') from None
      time.sleep(float(error.headers.get('Retry-After', 1)))
  raise AssertionError('unreachable')


if __name__ == '__main__':
  verdict = judge(Path(sys.argv[1]).read_bytes(), *sys.argv[2:3])
  print(verdict['label'], verdict['score'], verdict['regions'])
