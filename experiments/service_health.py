"""Health checks while the service parses large bodies and serializes large responses, on loopback.

  python experiments/service_health.py RUN/model

Each row is one kind of request, of which --clients are in progress at a time, --rounds times. A
further process asks /v2/health/live every 5 ms. The table has the statuses, the seconds of a round,
and the median and the largest latency of the health checks. All processes share the same cores.
"""

import argparse
import base64
import collections
from collections.abc import Iterator
import concurrent.futures
import http.client
import io
import json
import multiprocessing
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
import statistics
import time

import httpx2 as httpx
import numpy as np
from PIL import Image
import service_load
import subprocess_runs

from uadjax.sweep import tables

_ROUTE = '/image-anomaly-detection'
_JSON = 'application/json'
_MAX_BYTES = 32 << 20  # Of a body, by default.
_INTERVAL_S = 0.005
_NUM_WARM_UP = 20  # Health checks before requests are sent.


def encode(pixels: np.ndarray, image_format: str = 'PNG', **options: int) -> bytes:
  """Return an image file."""
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, image_format, **options)
  return file.getvalue()


def infer_body(datatype: str, shape: list[int], data: str, output: str) -> bytes:
  """Return an inference request; `data` is JSON."""
  image = {'name': 'image', 'datatype': datatype, 'shape': shape, 'data': None}
  text = json.dumps({'inputs': [image], 'outputs': [{'name': output}]})
  return text.replace('null', data).encode()


def requests(model: str) -> Iterator[tuple[str, str, str, bytes]]:
  """Yield description, path, content type and body of each request."""
  infer, no_map = f'/v2/models/{model}/infer', f'{_ROUTE}?labelMap=false'
  rng = np.random.default_rng(0)
  gray = encode(np.full((4000, 4000, 3), 99, np.uint8))
  yield 'labelMap of 16 megapixels', _ROUTE, 'image/png', gray
  yield 'visualize, 16 megapixels', f'{no_map}&visualize=true', 'image/png', gray
  yield 'heatmap, 16 megapixels', f'{no_map}&heatmap=true', 'image/png', gray
  small = base64.b64encode(encode(np.full((1900, 1900, 3), 99, np.uint8))).decode()
  yield 'map of 3.6 megapixels', infer, _JSON, infer_body('BYTES', [1], f'["{small}"]', 'map')
  side = 1500
  pixels = rng.integers(100, 256, (1, side, side, 3), np.uint8)
  for name, values in (('flat', pixels.ravel()), ('nested', pixels)):
    data = json.dumps(values.tolist(), separators=(',', ':'))
    body = infer_body('UINT8', [*pixels.shape], data, 'score')
    yield f'{len(body) >> 20} MiB of {name} pixels in JSON', infer, _JSON, body
  file = encode(rng.integers(0, 256, (2700, 2700, 3), np.uint8), compress_level=0)
  text = base64.b64encode(file).decode()
  body = json.dumps({'image': text, 'labelMap': False}).encode()
  yield f'{len(body) >> 20} MiB of base64 in JSON', _ROUTE, _JSON, body
  body = body.replace(b'/', b'\\/')
  yield f'{len(body) >> 20} MiB of base64, slashes escaped', _ROUTE, _JSON, body
  head = b'--X\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
  form = 'multipart/form-data; boundary=X'
  body = head + file + b'\r\n--X--\r\n'
  yield f'{len(body) >> 20} MiB in a form', no_map, form, body
  for name, content in (('line ends', b'\r\n'), ('near-boundaries', b'\r\n--Y')):
    body = head + content * (_MAX_BYTES // len(content) - 99) + b'\r\n--X--\r\n'
    yield f'{len(body) >> 20} MiB of {name} in a form', no_map, form, body
  for name, content in (('brackets', '['), ('empty texts', '"",'), ('decimals', '1.5,')):
    data = f'[{content * ((_MAX_BYTES - 999) // len(content))}]'
    body = infer_body('UINT8', [1, 1, 1, 3], data, 'score')
    yield f'{len(body) >> 20} MiB of {name} in JSON', infer, _JSON, body


def check_health(address: str, is_done: Event, latencies: Connection) -> None:
  """Ask whether the service is alive until the event, then send the latencies in seconds.

  None is sent once the process is warm.
  """
  seconds: list[float] = []
  client = http.client.HTTPConnection(address, timeout=60)
  while not is_done.is_set():
    if len(seconds) == _NUM_WARM_UP:
      latencies.send(None)
    start = time.perf_counter()
    client.request('GET', '/v2/health/live')
    assert client.getresponse().read() == b'{"live":true}'
    seconds.append(time.perf_counter() - start)
    time.sleep(_INTERVAL_S)
  latencies.send(seconds[_NUM_WARM_UP:])


def measure(
  url: str, path: str, content_type: str, body: bytes, clients: int, rounds: int
) -> tuple[collections.Counter[int], float, list[float]]:
  """Return the statuses, the seconds of all requests, and the latencies of health checks."""
  statuses: collections.Counter[int] = collections.Counter()

  def send() -> None:
    with httpx.Client(timeout=120) as http_client:
      for _ in range(rounds):
        headers = {'Content-Type': content_type}
        statuses[http_client.post(f'{url}{path}', content=body, headers=headers).status_code] += 1

  # In a process of its own, so that it does not wait for the clients that send and receive.
  context = multiprocessing.get_context('spawn')
  is_done, (receiver, sender) = context.Event(), context.Pipe(duplex=False)
  arguments = url.removeprefix('http://'), is_done, sender
  process = context.Process(target=check_health, args=arguments)
  process.start()
  receiver.recv()
  start = time.perf_counter()
  with concurrent.futures.ThreadPoolExecutor(clients) as pool:
    for future in [pool.submit(send) for _ in range(clients)]:
      future.result()
  duration = time.perf_counter() - start
  is_done.set()
  latencies = receiver.recv()
  process.join()
  return statuses, duration, latencies


def main() -> None:
  """Measure and print the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('model', type=Path)
  parser.add_argument('--clients', type=int, default=1)
  parser.add_argument('--rounds', type=int, default=3)
  flags = parser.parse_args()
  print(subprocess_runs.describe_machine(), flush=True)
  titles = ['request', 'status', 'seconds', 'median ms', 'largest ms']
  print(tables.markdown_table(titles, []), flush=True)
  with service_load.running_service(flags.model) as (_, url):
    name = httpx.get(f'{url}/models').json()['result']['models'][0]['name']
    for description, path, content_type, body in requests(name):
      statuses, duration, latencies = measure(
        url, path, content_type, body, flags.clients, flags.rounds
      )
      cells = [
        description,
        ', '.join(map(str, sorted(statuses))),
        f'{duration / flags.rounds:.1f}',
        f'{1e3 * statistics.median(latencies):.0f}',
        f'{1e3 * max(latencies):.0f}',
      ]
      print(f'| {" | ".join(cells)} |', flush=True)


if __name__ == '__main__':
  main()
