"""Resources of a request are limited, whoever sends it; others are answered meanwhile."""

import base64
import concurrent.futures
import contextlib
import http.server
import io
import itertools
import socket
import tempfile
import threading
import time

import httpx2 as httpx
import numpy as np
import orjson
from PIL import Image
import pytest
from starlette import testclient

from uadjax.data import image_io, inputs, transforms
from uadjax.inference import pipelines
from uadjax.inference.predictor import Predictor
from uadjax.inference.result import Result
from uadjax.model import model_dir
from uadjax.model.calibration import Thresholds
from uadjax.model.scorer import Scorer
from uadjax.serve import (
  app as apps,
  connections,
  json_body,
  requests as parsing,
  response_size,
  responses,
)
from uadjax.serve.errors import RequestError
from uadjax.serve.requests import RequestOptions
from uadjax.serve.settings import Settings
from uadjax.system import http as downloads
from uadjax.types import Scores

ROUTE, INFER = '/image-anomaly-detection', '/v2/models/disc/infer'
RAW = {'Content-Type': 'application/octet-stream'}
MAX_RESPONSE_BYTES, QUEUE = 200_000, 4


def png(height, width, noise=False):
  shape = height, width, 3
  pixels = np.random.default_rng(0).integers(0, 256, shape) if noise else np.full(shape, 99)
  file = io.BytesIO()
  Image.fromarray(pixels.astype(np.uint8)).save(file, 'PNG')
  return file.getvalue()


def tensor(*files):
  texts = [file if isinstance(file, str) else base64.b64encode(file).decode() for file in files]
  return {'name': 'image', 'datatype': 'BYTES', 'shape': [len(texts)], 'data': texts}


def until(is_true, seconds=60):
  end = time.monotonic() + seconds
  while not is_true():
    assert time.monotonic() < end
    time.sleep(0.02)


def score_mean(images):
  """A score in place of a detector, which takes no time."""
  maps = images.mean(axis=3, dtype=np.float32)
  return Scores(maps, maps.max(axis=(1, 2)))


def raise_error(images):
  raise RuntimeError('the device is lost')


def score_nan(images):
  maps = np.full(images.shape[:3], np.nan, np.float32)
  return Scores(maps, maps[:, 0, 0])


@pytest.fixture(scope='module')
def predictor(directory):
  return Predictor(model_dir.read_info(directory), ['numpy'], Scorer([score_mean]), {})


@pytest.fixture(scope='module')
def running(directory, predictor, served):
  """A service with small limits, and a client of it."""
  access = downloads.Access(urls=True, private=True)
  settings = Settings(
    {'disc': directory}, queue=QUEUE, max_answer_bytes=MAX_RESPONSE_BYTES, access=access
  )
  application = apps.build_app(settings)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(pipelines, 'create_model', lambda **options: predictor)
    with served(application) as address, httpx.Client(base_url=address, timeout=60) as client:
      yield application.state.service, client


@pytest.fixture
def connect(running):
  """Function that opens a connection and sends bytes."""
  url = running[1].base_url
  with contextlib.ExitStack() as stack:

    def connect(content=b'', receive_buffer=None):
      sock = stack.enter_context(socket.socket())
      if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
      sock.settimeout(60)
      sock.connect((url.host, url.port))
      sock.sendall(content)
      return sock

    yield connect


def request_head(length):
  lines = (
    f'POST {ROUTE} HTTP/1.1',
    'Host: x',
    'Content-Type: image/png',
    f'Content-Length: {length}',
  )
  return '\r\n'.join((*lines, '', '')).encode()


def received(sock):
  """Everything until the service closes the connection."""
  content = b''
  with contextlib.suppress(ConnectionResetError):
    while piece := sock.recv(1 << 16):
      content += piece
  return content


@pytest.mark.parametrize('size', [(1, 1), (1, 300), (300, 1), (40, 50), (257, 190), (3, 33_000)])
def test_no_response_is_larger_than_its_estimate(size):
  """Noise, long numbers and masks of 255 make the largest responses."""
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (*size, 3), np.uint8)
  anomaly_map = -1e-5 * rng.random(size, np.float32)
  thresholds = Thresholds(0.0, -1.0, 0.0, 'manual', 0.01, 0.05, 9, 0.1, 0.1, 9)
  source = inputs.Source('x', image)
  result = Result(source, 'x', transforms.Ops(()), thresholds, size, 1.0, anomaly_map)
  result.restored = transforms.RestoredMap(anomaly_map, np.ones(size, bool))

  def num_bytes(options):
    return len(responses.verdict('', '', result, options).body)

  plain = num_bytes(RequestOptions(labelMap=False))
  for label_map, visualize, heatmap in itertools.product((False, True), repeat=3):
    options = RequestOptions(labelMap=label_map, visualize=visualize, heatmap=heatmap)
    if (growth := num_bytes(options) - plain - 100) > 0:  # 100 for names and numbers of fields.
      with pytest.raises(RequestError):
        response_size.check_verdict(size, options, growth - 1)
  response_size.check_verdict(size, RequestOptions(labelMap=False), 0)
  num_map_bytes = len(orjson.dumps(responses.to_json_list(anomaly_map.ravel())))
  with pytest.raises(RequestError):
    response_size.check_maps([size], num_map_bytes - 3)  # Brackets, and no last comma.


def test_a_response_that_could_be_too_large_is_refused_before_an_image_is_decoded(
  running, monkeypatch
):
  client = running[1]
  pixels = {'name': 'image', 'datatype': 'UINT8', 'shape': [2, 100, 100, 3], 'data': [9] * 60_000}
  large, small = png(300, 300), png(100, 100)
  refused = [
    ({'content': large}, 'labelMap=false'),
    ({'content': large, 'params': {'labelMap': False, 'visualize': True}}, 'visualize=false'),
    ({'content': large, 'params': {'labelMap': False, 'heatmap': True}}, 'heatmap=false'),
    ({'json': {'inputs': [tensor(large)]}}, "without 'map'"),
    ({'json': {'inputs': [tensor(small, small)]}}, 'fewer or smaller images'),
    ({'json': {'inputs': [pixels]}}, 'fewer or smaller images'),
  ]
  accepted = [
    {'content': large, 'params': {'labelMap': False}},
    {'content': small},
    {'json': {'inputs': [tensor(large, large)], 'outputs': [{'name': 'score'}]}},
    {'json': {'inputs': [tensor(small)]}},
  ]

  def post(body):
    if 'json' in body:
      return client.post(INFER, **body)
    return client.post(ROUTE, headers=RAW, **body)

  for body in accepted:
    response = post(body)
    assert response.status_code == 200, response.text
    assert len(response.content) <= MAX_RESPONSE_BYTES
  decoded = []
  monkeypatch.setattr(image_io, 'decode', lambda *arguments: decoded.append(arguments))
  for body, way_out in refused:
    response = post(body)
    assert response.status_code == 413, response.text
    assert str(MAX_RESPONSE_BYTES) in response.text
    assert 'max_answer_bytes' in response.text
    assert way_out in response.text
  assert not decoded


def test_an_output_is_requested_once(running):
  for names in (['map', 'map'], ['score', 'label', 'score']):
    body = {'inputs': [tensor(png(9, 9))], 'outputs': [{'name': name} for name in names]}
    response = running[1].post(INFER, json=body)
    assert response.status_code == 400
    assert f'{names[-1]!r} occurs twice' in response.json()['error']


def test_long_arrays_are_serialized_in_chunks_and_in_a_thread(running, monkeypatch):
  client, calls = running[1], []
  monkeypatch.setattr(responses, '_CHUNK', 1000)
  for length in (0, 1, 999, 1000, 1001, 2000):
    values = np.linspace(-1, 1, length, dtype=np.float32)
    values[::7] = np.nan
    parsed_values = orjson.loads(orjson.dumps(responses.to_json_list(values)))
    assert parsed_values == orjson.loads(orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY))

  class Recorder:
    def __getattr__(self, name):
      return getattr(orjson, name)

    def dumps(self, data, **options):
      calls.append((np.size(data), threading.current_thread().name))
      return orjson.dumps(data, **options)

  monkeypatch.setattr(responses, 'orjson', Recorder())
  for response in (
    client.post(ROUTE, content=png(90, 100), headers=RAW),
    client.post(INFER, json={'inputs': [tensor(png(90, 100))]}),
  ):
    assert response.status_code == 200
  sizes, names = zip(*calls, strict=True)
  assert max(sizes) == 1000
  assert len(calls) > 18
  assert all(name.startswith('uadjax-serve') for name in names)


def test_bodies_are_parsed_in_a_thread_and_take_a_place_meanwhile(running, monkeypatch):
  service, client = running
  calls = []

  def recorded(function):
    def record(*args):
      calls.append((threading.current_thread().name, service.images.in_progress))
      return function(*args)

    return record

  monkeypatch.setattr(json_body, 'parse', recorded(json_body.parse))
  monkeypatch.setattr(parsing, '_parse_form', recorded(parsing._parse_form))
  content = png(20, 20)
  text = base64.b64encode(content).decode()
  for response in (
    client.post(ROUTE, json={'image': text}),
    client.post(ROUTE, files={'image': ('x.png', content)}),
    client.post(INFER, json={'inputs': [tensor(content)]}),
  ):
    assert response.status_code == 200, response.text
  names, counts = zip(*calls, strict=True)
  assert counts == (1, 1, 1)
  assert all(name.startswith('uadjax-parse') for name in names)
  until(lambda: service.images.in_progress == 0)


def test_the_largest_lists_of_pixels_are_parsed_in_chunks(running, monkeypatch):
  """Flat or nested, they give the scores of the same image in a file."""
  client, chunks = running[1], []
  parse_chunk = json_body._parse_chunk

  def record(chunk, *args):
    chunks.append(len(chunk))
    return parse_chunk(chunk, *args)

  monkeypatch.setattr(json_body, '_parse_chunk', record)
  pixels = np.random.default_rng(0).integers(0, 256, (1, 200, 200, 3))
  scores = []
  for data in (pixels.ravel().tolist(), pixels.tolist()):
    image = {'name': 'image', 'datatype': 'UINT8', 'shape': pixels.shape, 'data': data}
    response = client.post(INFER, json={'inputs': [image], 'outputs': [{'name': 'score'}]})
    assert response.status_code == 200, response.text
    scores.append(response.json()['outputs'][0]['data'])
  assert max(chunks) <= 1 << 16
  assert len(chunks) > 10
  file = tensor(png(200, 200, noise=True))
  response = client.post(INFER, json={'inputs': [file], 'outputs': [{'name': 'score'}]})
  assert scores == [response.json()['outputs'][0]['data']] * 2


def test_base64_is_decoded_in_chunks_as_in_one_piece(monkeypatch):
  monkeypatch.setattr(parsing, '_BASE64_CHUNK', 8)
  rng = np.random.default_rng(0)
  for length in range(40):
    text = base64.b64encode(rng.bytes(length)).decode()
    edits = [
      text[:i] + c + text[i + n :] for i in range(len(text)) for c in '=A- é' for n in (0, 1)
    ]
    for candidate in (text, f'{text}=', f'{text}====', *edits):
      try:
        decoded = parsing.decode_base64(candidate)
      except ValueError:
        assert candidate != text
      else:
        assert decoded == base64.b64decode(candidate, validate=True)


def test_slow_urls_do_not_delay_other_requests(running, monkeypatch):
  service, client = running
  content, may_answer = png(30, 30), threading.Event()

  class SlowHandler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      may_answer.wait(30)
      self.send_response(200)
      self.end_headers()
      self.wfile.write(content)

    def log_message(self, format, *args):
      pass

  monkeypatch.setattr(connections, 'TIMEOUT_S', 1.0)  # It does not limit the work of the service.
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), SlowHandler)
  body = {'image': f'http://127.0.0.1:{server.server_port}/x.png'}
  serving = threading.Thread(target=server.serve_forever)
  serving.start()
  try:
    with concurrent.futures.ThreadPoolExecutor(QUEUE + 3) as pool:
      slow = [pool.submit(client.post, ROUTE, json=body) for _ in range(QUEUE + 3)]
      until(lambda: sum(future.done() for future in slow) == 3)
      assert service.downloads.in_progress == QUEUE
      assert service.images.in_progress == 0
      start = time.monotonic()
      for _ in range(QUEUE):
        assert client.post(ROUTE, content=content, headers=RAW).status_code == 200
      time.sleep(max(0, 1.2 - (time.monotonic() - start)))
      may_answer.set()
      statuses = sorted(future.result().status_code for future in slow)
  finally:
    may_answer.set()
    server.shutdown()
    serving.join()
    server.server_close()
  assert statuses == [200] * QUEUE + [503] * 3
  assert service.downloads.in_progress == 0


def test_incomplete_bodies_take_no_place_in_the_queue(running, connect):
  service, client = running
  incomplete = [connect(request_head(100) + bytes(10)) for _ in range(2 * QUEUE)]
  until(lambda: service.incomplete_bytes.in_progress == 10 * len(incomplete))
  assert service.images.in_progress == 0
  assert client.post(ROUTE, content=png(9, 9), headers=RAW).status_code == 200
  incomplete[0].sendall(bytes(90))
  assert incomplete[0].recv(99).startswith(b'HTTP/1.1 422')  # Not an image.
  for sock in incomplete:
    sock.close()
  until(lambda: service.incomplete_bytes.in_progress == 0)


def test_incomplete_bodies_are_limited_together(running, connect, monkeypatch):
  service, client = running
  monkeypatch.setattr(service.incomplete_bytes, 'maximum', 100)
  with connect(request_head(100) + bytes(99)):
    until(lambda: service.incomplete_bytes.in_progress == 99)
    refused = client.post(ROUTE, content=bytes(2), headers=RAW)
    assert refused.status_code == 503
    assert 'Retry-After' in refused.headers
    assert client.post(ROUTE, content=bytes(1), headers=RAW).status_code == 422
  until(lambda: service.incomplete_bytes.in_progress == 0)


def test_a_stalled_body_has_status_408_and_a_slow_one_is_read(running, connect, monkeypatch):
  monkeypatch.setattr(connections, 'TIMEOUT_S', 1.0)
  stalled, slow = connect(request_head(100) + bytes(10)), connect(request_head(8))
  for _ in range(8):
    slow.sendall(b'x')
    time.sleep(0.2)
  response = received(stalled)  # The connection is closed.
  assert response.startswith(b'HTTP/1.1 408')
  assert b'Nothing of the body arrived for 1 s' in response
  assert slow.recv(99).startswith(b'HTTP/1.1 422')
  assert running[0].incomplete_bytes.in_progress == 0


def test_a_connection_without_a_complete_head_is_closed(running, connect, monkeypatch):
  monkeypatch.setattr(connections, 'TIMEOUT_S', 0.5)
  start = time.monotonic()
  silent, partial, dripping = connect(), connect(b'GET /health HT'), connect()
  second = connect(b'GET /health HTTP/1.1\r\nHost: x\r\n\r\n')
  second.recv(999)
  second.sendall(b'GET /health')
  with contextlib.suppress(ConnectionError):
    while time.monotonic() < start + 30:
      dripping.sendall(b'G')
      time.sleep(0.05)
  assert time.monotonic() < start + 30
  for sock in (silent, partial, dripping, second):
    received(sock)


def test_a_client_that_reads_no_response_is_disconnected(running, connect, monkeypatch):
  monkeypatch.setattr(connections, 'TIMEOUT_S', 0.5)
  number = 3000
  sock = connect(b'GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n' * number, receive_buffer=4096)
  time.sleep(2.5)
  assert received(sock).count(b'HTTP/1.1 200') < number
  assert running[1].get('/openapi.json').status_code == 200


def test_forms_are_not_written_to_disk(running, monkeypatch):
  def fail(file):
    raise OSError('No space left on device')

  monkeypatch.setattr(tempfile.SpooledTemporaryFile, 'rollover', fail)
  content = png(700, 700, noise=True)
  assert len(content) > 1 << 20
  form = {'files': {'image': ('x.png', content)}, 'data': {'labelMap': 'false'}}
  response = running[1].post(ROUTE, **form)
  assert response.status_code == 200, response.text


def test_a_batch_with_an_unreadable_image_is_refused_with_its_index(running):
  good = png(20, 20)
  for bad in (b'', b'no image', good[:-30], '?'):
    for index in range(3):
      files = [good] * 3
      files[index] = bad
      response = running[1].post(INFER, json={'inputs': [tensor(*files)]})
      assert response.status_code == 422, (bad, response.text)
      assert f'image {index}' in response.json()['error'], bad


@pytest.mark.parametrize(
  ('run', 'reason'), [(raise_error, 'the device is lost'), (score_nan, 'not finite')]
)
def test_a_model_that_fails_its_test_is_not_ready(directory, predictor, monkeypatch, run, reason):
  broken = predictor._replace(scorer=Scorer([run]))
  opened = iter([predictor, broken])
  monkeypatch.setattr(pipelines, 'create_model', lambda **options: next(opened))
  application = apps.build_app(Settings({'good': directory, 'bad': directory}))
  with testclient.TestClient(application, raise_server_exceptions=False) as client:
    until(lambda: client.get('/models').status_code == 200)
    good, bad = client.get('/models').json()['result']['models']
    assert (good['ready'], good['reason'], bad['ready']) == (True, '', False)
    assert reason in bad['reason']
    assert client.get('/v2/health/ready').status_code == 503
    assert client.get('/v2/health/live').status_code == 200
    for name, status in (('good', 200), ('bad', 503)):
      all_responses = (
        client.get(f'/v2/models/{name}/ready'),
        client.post(f'{ROUTE}?model={name}', content=png(20, 20), headers=RAW),
        client.post(f'/v2/models/{name}/infer', json={'inputs': [tensor(png(20, 20))]}),
      )
      assert [response.status_code for response in all_responses] == [status] * 3
      assert all((reason in response.text) == (name == 'bad') for response in all_responses)
