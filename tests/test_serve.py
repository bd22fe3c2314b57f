"""The service says over HTTP what `predict` says, and whatever is wrong with a request."""

import base64
import concurrent.futures
import contextlib
import errno
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from typing import Any
import zlib

import httpx2 as httpx
import numpy as np
from PIL import Image
import pytest
from starlette import testclient

from uadjax import create_model, serve as service
from uadjax.cli import serve
from uadjax.errors import ConfigError, ModelError
from uadjax.serve import app as apps, requests, settings as options
from uadjax.system import http
from uadjax.visualization import sheet

ROUTE = '/image-anomaly-detection'


@pytest.fixture(scope='module')
def directory(exported):
  return exported('patchcore')


@pytest.fixture(scope='module')
def photos(drawn):
  return sorted((drawn / 'disc' / 'test').rglob('*.png'))


@pytest.fixture(scope='module')
def predictions(directory, photos):
  """Results of `predict`."""
  results = create_model(model_dir=directory, backend='auto').predict(photos)
  return {result.input_path: result for result in results}


@pytest.fixture(scope='module')
def ask(directory):
  with open_client(directory) as client:
    yield client


def open_client(directory, **limits):
  """A service in this process."""
  limits = {'batch': 8, **limits}
  settings = options.Settings({'disc': directory, 'again': directory}, backend='auto', **limits)
  options.validate_settings(settings)
  application = apps.build_app(settings)
  client = Warm(application, raise_server_exceptions=False)
  client.service = application.state.service
  return client


class Warm(testclient.TestClient):
  """Waits for the models."""

  service: Any

  def __enter__(self):
    super().__enter__()
    until(lambda: self.get('/v2/health/ready').status_code == 200)
    return self


def until(true, seconds=60):
  end = time.monotonic() + seconds
  while not true():
    assert time.monotonic() < end
    time.sleep(0.02)


def test_a_service_whose_address_cannot_be_printed_stops(directory):
  error, stopped = OSError(errno.ENOSPC, 'No space left on device'), threading.Event()

  def print_address():
    raise error

  settings = options.Settings({'disc': directory}, backend='auto')
  application = apps.build_app(settings, stopped.set, print_address)
  with Warm(application):
    assert stopped.wait(60)
    assert application.state.service.failure is error


def coded(path):
  return base64.b64encode(path.read_bytes()).decode()


def fields_of(result):
  return result['score'], result['label'], result['regions'], result['labelMap']


def expected(result):
  regions = json.loads(json.dumps([region._asdict() for region in result.regions]))
  return result.score, result.label, regions, result.pred.ravel().tolist()


def test_each_form_of_request_has_the_result_of_predict(ask, photos, predictions):
  for path in photos:
    content = path.read_bytes()
    ways = [
      ask.post(ROUTE, json={'image': coded(path)}),
      ask.post(ROUTE, json={'image': f'data:image/png;base64,{coded(path)}', 'visualize': None}),
      ask.post(ROUTE, files={'image': ('x.png', content)}),
      ask.post(ROUTE, content=content, headers={'Content-Type': 'application/octet-stream'}),
      ask.post(f'{ROUTE}?model=again', content=content, headers={'Content-Type': 'image/png'}),
    ]
    for response in ways:
      assert response.status_code == 200, response.text
      body = response.json()
      assert (body['errorCode'], body['errorMsg']) == (0, 'Success')
      assert body['logId'] == response.headers['X-Log-Id']
      result = body['result']
      assert fields_of(result) == expected(predictions[str(path)])
      assert result['size'] == list(predictions[str(path)].size)
      assert result['warnings'] == []
      assert result['model'] == ('again' if 'model=again' in str(response.url) else 'disc')
      assert result['imageThreshold'] == predictions[str(path)].image_threshold
      assert result['peak'] == predictions[str(path)].peak
      assert result['at'] == list(predictions[str(path)].at)
      assert result['regionsPixelThreshold'] == predictions[str(path)].regions_pixel_threshold
      assert 'image' not in result
      assert 'heatmap' not in result


def test_an_image_without_content_is_not_ok(ask, directory):
  file = io.BytesIO()
  Image.new('RGB', (60, 60)).save(file, 'PNG')
  result = ask.post(ROUTE, content=file.getvalue(), headers=RAW).json()['result']
  (expected,) = create_model(model_dir=directory, backend='auto').predict([file.getvalue()])
  assert result['warnings'] == expected.warnings
  assert [warning['code'] for warning in result['warnings']] == ['no_content']
  assert result['label'] == expected.label != 'OK'


def test_pictures_are_in_the_response_if_requested(ask, photos, predictions):
  prediction = predictions[str(photos[0])]
  result = ask.post(
    ROUTE, json={'image': coded(photos[0]), 'visualize': True, 'heatmap': True}
  ).json()['result']
  picture = Image.open(io.BytesIO(base64.b64decode(result['image'])))
  assert picture.format == 'JPEG'
  assert picture.size == prediction.picture().size
  assert 'imageScale' not in result
  gray = np.asarray(Image.open(io.BytesIO(base64.b64decode(result['heatmap']['image']))))
  low, high = result['heatmap']['low'], result['heatmap']['high']
  np.testing.assert_allclose(
    low + gray / 255 * (high - low), prediction.anomaly_map, atol=(high - low) / 500
  )


def test_pictures_of_long_and_thin_images_have_a_bound(ask, monkeypatch):
  def picture_of(height, width):
    file = io.BytesIO()
    Image.new('L', (width, height), 128).save(file, 'PNG')
    image = base64.b64encode(file.getvalue()).decode()
    result = ask.post(ROUTE, json={'image': image, 'visualize': True, 'labelMap': False}).json()
    picture = Image.open(io.BytesIO(base64.b64decode(result['result']['image'])))
    return picture, result['result'].get('imageScale')

  for size, image_format in (((1, 2000), 'JPEG'), ((20_000, 2), 'JPEG'), ((1, 70_000), 'PNG')):
    picture, scale = picture_of(*size)
    assert (picture.format, scale) == (image_format, None)
    assert max(size) < max(picture.size) < max(size) + 300
    assert min(picture.size) < 400
  monkeypatch.setattr(sheet, 'MAX_PIXELS', 1_000_000)
  picture, scale = picture_of(20_000, 2)
  assert picture.width * picture.height <= 1_000_000
  assert 0 < scale < 1


def test_a_label_map_can_be_left_out(ask, photos):
  content = photos[0].read_bytes()
  for response in (
    ask.post(ROUTE, json={'image': coded(photos[0]), 'labelMap': False}),
    ask.post(f'{ROUTE}?labelMap=false', content=content, headers=RAW),
  ):
    assert response.status_code == 200
    assert 'labelMap' not in response.json()['result']


def test_scores_do_not_depend_on_concurrent_requests(ask, photos, predictions):
  paths = [photos[number % len(photos)] for number in range(60)]
  with concurrent.futures.ThreadPoolExecutor(12) as threads:
    responses = list(threads.map(lambda path: ask.post(ROUTE, json={'image': coded(path)}), paths))
  for path, response in zip(paths, responses, strict=True):
    assert fields_of(response.json()['result']) == expected(predictions[str(path)])
  batches = ask.get('/metrics').text
  assert 'uadjax_batch_images_bucket{le="1.0",model="disc"}' in batches


def bomb():
  """A small file that claims to be a large picture."""
  chunk = struct.pack('>IIBBBBB', 60000, 60000, 8, 2, 0, 0, 0)
  head = b'IHDR' + chunk
  return (
    b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + head + struct.pack('>I', zlib.crc32(head))
    + struct.pack('>I', 0) + b'IDAT' + struct.pack('>I', zlib.crc32(b'IDAT'))
  )  # fmt: skip


JSON, RAW = {'Content-Type': 'application/json'}, {'Content-Type': 'application/octet-stream'}


@pytest.mark.parametrize(
  ('content', 'headers', 'status', 'message'),
  [
    (b'{', JSON, 422, 'Invalid JSON'),
    (b'{}', JSON, 422, 'image: Field required'),
    (b'{"image": 3}', JSON, 422, 'image: Input should be a valid string'),
    (b'{"image": "x", "visualise": true}', JSON, 422, 'visualise: unknown field; /openapi.json'),
    (b'{"image": "?"}', JSON, 422, 'neither base64 nor a URL'),
    (b'{"image": "aGVsbG8="}', JSON, 422, 'not a JPEG, PNG'),
    (b'{"image": "http://127.0.0.1/x.png"}', JSON, 422, 'URLs are not allowed'),
    (b'{"image": "aGVsbG8=", "model": "bolt"}', JSON, 404, "model 'bolt'; choose from ['disc'"),
    (b'', RAW, 422, 'body is empty'),
    (bomb(), RAW, 413, 'at most 4000 are allowed'),
    (b'x' * 200_001, RAW, 413, 'more than 200000 bytes'),
    (b'<image/>', {'Content-Type': 'text/xml'}, 415, 'send application/json'),
    (b'', {}, 415, 'send application/json'),
    (b'x', {**RAW, 'Content-Encoding': 'gzip'}, 415, 'Content-Encoding'),
    (b'x', {'Content-Type': 'multipart/form-data'}, 422, 'form cannot be read'),
  ],
  ids=lambda part: part if isinstance(part, str) else '',
)
def test_invalid_requests_have_an_error_status_and_message(
  strict, content, headers, status, message
):
  response = strict.post(ROUTE, content=content, headers=headers)
  assert response.status_code == status, response.text
  body = response.json()
  assert body['errorCode'] == status
  assert message in body['errorMsg']
  assert body['logId']


@pytest.fixture(scope='module')
def strict(directory):
  with open_client(directory, max_bytes=200_000, max_pixels=4000) as client:
    yield client


def test_more_pixels_than_allowed_are_not_decoded(strict, photos):
  response = strict.post(ROUTE, content=photos[0].read_bytes() * 1, headers=RAW)
  assert response.status_code == 200  # 60 x 60.
  file = io.BytesIO()
  Image.new('L', (100, 41)).save(file, 'PNG')
  response = strict.post(ROUTE, content=file.getvalue(), headers=RAW)
  assert (response.status_code, response.json()['errorCode']) == (413, 413)


def test_private_urls_are_refused_even_if_urls_are_allowed(directory):
  with open_client(directory, access=http.Access(urls=True)) as client:
    for url in ('http://127.0.0.1:9/x.png', 'http://169.254.169.254/latest', 'http://[::1]/x.png'):
      response = client.post(ROUTE, json={'image': url})
      assert response.status_code == 422
      assert 'public' in response.json()['errorMsg']


def test_other_routes_and_methods(ask):
  assert ask.get('/health').json()['errorMsg'] == 'Healthy'
  for response, status in ((ask.get(ROUTE), 405), (ask.get('/nowhere'), 404)):
    assert response.status_code == response.json()['errorCode'] == status
  listing = ask.get('/models').json()['result']
  assert [model['name'] for model in listing['models']] == ['disc', 'again']
  assert listing['limits']['max_bytes'] == ask.service.settings.max_bytes
  page = ask.get('/')
  assert page.headers['Content-Type'].startswith('text/html')
  assert "default-src 'self'" in page.headers['Content-Security-Policy']
  assert ask.get('/page/../app.py').status_code == 404


def test_a_service_with_a_token_requires_it(directory, photos):
  with open_client(directory, token='s3cret') as client:
    body = {'image': coded(photos[0])}
    for headers in ({}, {'Authorization': 'Bearer wrong'}, {'Authorization': 'Basic s3cret'}):
      response = client.post(ROUTE, json=body, headers=headers)
      assert response.status_code == response.json()['errorCode'] == 401
      assert response.headers['WWW-Authenticate'] == 'Bearer'
      assert client.get('/metrics', headers=headers).status_code == 401
    right = {'Authorization': 'Bearer s3cret'}
    assert client.post(ROUTE, json=body, headers=right).status_code == 200
    assert client.get('/health').status_code == 200


def slowed(client, go):
  """Hold whatever is computed until it may go on."""
  for batcher in client.service.batchers.values():
    batcher._threads.submit(go.wait)
    batcher._threads.submit(go.wait)


def test_a_full_queue_refuses_and_recovers(directory, photos):
  with open_client(directory, queue=4) as client:
    go = threading.Event()
    slowed(client, go)
    with concurrent.futures.ThreadPoolExecutor(20) as threads:
      post = lambda _: client.post(ROUTE, json={'image': coded(photos[0])})  # noqa: E731
      futures = [threads.submit(post, number) for number in range(20)]
      until(lambda: sum(future.done() for future in futures) == 16)
      go.set()
      responses = [future.result() for future in futures]
    statuses = sorted(response.status_code for response in responses)
    assert statuses == [200] * 4 + [503] * 16
    refused = next(response for response in responses if response.status_code == 503)
    assert refused.headers['Retry-After'] == '1'
    assert client.post(ROUTE, json={'image': coded(photos[0])}).status_code == 200
    assert client.service.images.in_progress == 0


def test_unknown_options_are_refused(ask, photos):
  """Otherwise another model than the requested one could respond."""
  content, file = photos[0].read_bytes(), {'image': ('x.png', photos[0].read_bytes())}
  for response, message in (
    (ask.post(f'{ROUTE}?modell=again', content=content, headers=RAW), "'modell' in the query"),
    (ask.post(f'{ROUTE}?model=again', json={'image': coded(photos[0])}), 'of a JSON request'),
    (ask.post(ROUTE, files=file, data={'Model': 'again'}), "'Model' in the form"),
    (ask.post(f'{ROUTE}?model=again', files=file, data={'model': 'disc'}), 'send it once'),
  ):
    assert response.status_code == 422
    assert message in response.json()['errorMsg']


def test_fields_that_are_sent_twice_are_refused(ask, photos):
  """Otherwise one of two images, models or parts would be ignored silently."""
  content = photos[0].read_bytes()
  image, other = ('image', ('x.png', content)), ('file', ('y.png', content))
  options = '?model=disc&model=again'
  for response, message in (
    (ask.post(ROUTE, files=[image, image]), "files in ['image', 'image']"),
    (ask.post(ROUTE, files=[image, other]), "files in ['image', 'file']"),
    (ask.post(ROUTE, files=[('mask', image[1])]), "files in ['mask']"),
    (ask.post(ROUTE, files=[image], data={'model': ['disc', 'again']}), "'model' is repeated"),
    (ask.post(ROUTE + options, files=[image]), "'model' is repeated in the query"),
    (ask.post(ROUTE + options, content=content, headers=RAW), "'model' is repeated in the query"),
  ):
    assert response.status_code == 422
    assert message in response.json()['errorMsg']


def test_an_unknown_path_is_refused_with_the_way_out(ask):
  response = ask.get('/ready')
  assert response.status_code == 404
  assert response.json()['errorMsg'] == 'Not Found: GET /ready; /openapi.json lists all routes.'


def test_a_secret_that_was_forgotten_does_not_open_the_service(monkeypatch):
  with pytest.raises(ConfigError, match='is empty'):
    serve.resolve_token('')
  monkeypatch.setenv('UADJAX_TOKEN', '')
  with pytest.raises(ConfigError, match='is empty'):
    serve.resolve_token(None)
  monkeypatch.delenv('UADJAX_TOKEN')
  assert serve.resolve_token(None) == ''


def test_damaged_arrays_are_reported_even_if_a_graph_exists(directory, tmp_path):
  broken = shutil.copytree(directory, tmp_path / 'model')
  path = broken / 'fitted.safetensors'
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(ModelError, match='damaged'):
    create_model(model_dir=broken, backend='auto')


def test_each_image_of_a_request_takes_a_place_in_the_queue(directory, photos):
  def post(count):
    tensor = {'name': 'image', 'datatype': 'BYTES', 'shape': [count]}
    body = {'inputs': [{**tensor, 'data': [coded(photos[0])] * count}]}
    return client.post('/v2/models/disc/infer', json=body)

  with open_client(directory, queue=4) as client:
    assert post(4).status_code == 200
    assert post(5).status_code == 400
    client.service.images.in_progress = 1
    assert post(3).status_code == 200
    assert post(4).status_code == 503
    client.service.images.in_progress = 4
    # Nothing of it was read.
    assert client.post('/v2/models/disc/infer', content=b'no JSON').status_code == 503
    client.service.images.in_progress = 0
    assert client.post('/v2/models/disc/infer', content=b'no JSON').status_code == 400
    assert client.service.images.in_progress == 0


def test_a_request_past_its_deadline_has_status_504(directory, photos):
  with open_client(directory, deadline_s=0.3) as client:
    go = threading.Event()
    slowed(client, go)
    response = client.post(ROUTE, json={'image': coded(photos[0])})
    assert response.status_code == response.json()['errorCode'] == 504
    go.set()
    until(lambda: client.post(ROUTE, json={'image': coded(photos[0])}).status_code == 200)


def test_under_overload_the_first_requests_succeed(directory, photos, monkeypatch):
  """Rather than all being begun, and none ended."""
  picture = requests.read_image

  def slowly(*arguments):
    time.sleep(0.2)
    return picture(*arguments)

  monkeypatch.setattr(requests, 'read_image', slowly)
  with open_client(directory, deadline_s=2.0, batch=1) as client:
    monkeypatch.setattr(client.service, 'executor', concurrent.futures.ThreadPoolExecutor(2))
    post = lambda _: client.post(ROUTE, json={'image': coded(photos[0])})  # noqa: E731
    with concurrent.futures.ThreadPoolExecutor(40) as threads:
      statuses = [response.status_code for response in threads.map(post, range(40))]
  assert set(statuses) == {200, 504}
  assert statuses.count(200) >= 5


def test_the_open_inference_protocol(ask, photos, predictions):
  assert ask.get('/v2/health/live').json() == {'live': True}
  assert ask.get('/v2').json()['name'] == 'uadjax'
  model = ask.get('/v2/models/disc').json()
  assert {output['name'] for output in model['outputs']} >= {'score', 'label', 'warnings', 'map'}
  assert ask.get('/v2/models/disc/ready').json() == {'name': 'disc', 'ready': True}
  assert 'error' in ask.get('/v2/models/none').json()
  version = '/v2/models/disc/versions/1'
  for response in (ask.get(version), ask.post(f'{version}/infer', json={})):
    assert response.status_code == 404
    assert response.json() == {'error': 'Models have no versions; use /v2/models/disc.'}
  pixels = np.stack([np.asarray(Image.open(path).convert('RGB')) for path in photos])
  results = [predictions[str(path)] for path in photos]
  files = [coded(path) for path in photos]
  for tensor in (
    {'datatype': 'UINT8', 'shape': pixels.shape, 'data': pixels.ravel().tolist()},
    {'datatype': 'UINT8', 'shape': pixels.shape, 'data': pixels.tolist()},
    {'datatype': 'BYTES', 'shape': [len(files)], 'data': files},
  ):
    body = {'id': 'seven', 'inputs': [{'name': 'image', **tensor}]}
    response = ask.post('/v2/models/disc/infer', json=body).json()
    assert (response['model_name'], response['id']) == ('disc', 'seven')
    outputs = {output['name']: output for output in response['outputs']}
    assert outputs['label']['data'] == [result.label for result in results]
    assert outputs['warnings']['data'] == [''] * len(results)
    assert np.float32(outputs['score']['data']).tolist() == [result.score for result in results]
    maps = np.float32(outputs['map']['data']).reshape(outputs['map']['shape'])
    np.testing.assert_array_equal(maps, [result.anomaly_map for result in results])
    partial_response = ask.post(
      '/v2/models/disc/infer', json={**body, 'outputs': [{'name': 'score'}]}
    ).json()
    assert [output['name'] for output in partial_response['outputs']] == ['score']


@pytest.mark.parametrize(
  ('tensor', 'message'),
  [
    ({'datatype': 'FP32', 'shape': [1], 'data': []}, 'UINT8 of'),
    ({'datatype': 'UINT8', 'shape': [1, 1, 1, 3], 'data': [1, 2]}, '2 values instead of 3'),
    ({'datatype': 'UINT8', 'shape': [1, 1, 1, 3], 'data': [1, 2, 256]}, 'more than 255'),
    ({'datatype': 'UINT8', 'shape': [1, 1, 1, 3], 'data': [1, 2, 'x']}, 'whole numbers'),
    ({'datatype': 'UINT8', 'shape': [1, 1, 1, 3], 'data': [[1], [2, 3]]}, 'whole numbers'),
    ({'datatype': 'UINT8', 'shape': [99, 1, 1, 3], 'data': []}, 'between 1 and 64'),
    ({'datatype': 'BYTES', 'shape': [2], 'data': ['x']}, '2 strings'),
    ({'datatype': 'BYTES', 'shape': [1], 'data': [3]}, '1 strings'),
    ({'name': 'picture', 'datatype': 'BYTES', 'shape': [1], 'data': ['?']}, "input 'picture'"),
    ({'datatype': 'BYTES', 'shape': [0], 'data': []}, 'between 1 and 64'),
  ],
)
def test_invalid_tensors_are_refused(ask, tensor, message):
  body = {'inputs': [{'name': 'image', **tensor}]}
  response = ask.post('/v2/models/disc/infer', json=body)
  assert response.status_code == 400
  assert message in response.json()['error']


def test_the_settings_are_checked(directory):
  with pytest.raises(ConfigError, match='queue must be'):
    options.validate_settings(options.Settings({'disc': directory}, queue=0))
  options.validate_settings(options.Settings({'disc': directory}, batch=256))
  with pytest.raises(ConfigError, match='batch must be') as caught:
    options.validate_settings(options.Settings({'disc': directory}, batch=257))
  assert caught.value.value == 257


@pytest.fixture
def resolved(monkeypatch):
  """Let the name of a host resolve to these addresses."""

  def resolve(*addresses):
    families = [socket.AF_INET6 if ':' in address else socket.AF_INET for address in addresses]
    answers = [
      (family, socket.SOCK_STREAM, 6, '', (address, 0, *(0, 0) * (family == socket.AF_INET6)))
      for family, address in zip(families, addresses, strict=True)
    ]
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *args, **options: answers)

  return resolve


@pytest.mark.parametrize('port', [0, 1])  # Any free one, or one that is chosen.
def test_all_addresses_of_a_host_are_served_at_one_port(resolved, port):
  with socket.create_server(('127.0.0.1', 0)) as free:
    port *= free.getsockname()[1]
  addresses = ['127.0.0.1', *(['::1'] if has_ipv6() else [])]
  # Repeated in /etc/hosts, or not of this machine.
  resolved(*addresses, '127.0.0.1', '192.0.2.1')
  with contextlib.ExitStack() as stack:
    listeners = service._bind('localhost', port, stack)
    names = [listener.getsockname()[:2] for listener in listeners]
    assert [name[0] for name in names] == addresses
    assert len({name[1] for name in names}) == 1
    assert port in (0, names[0][1])
  assert all(listener.fileno() == -1 for listener in listeners)


def has_ipv6():
  try:
    with socket.create_server(('::1', 0), family=socket.AF_INET6):
      return True
  except OSError:
    return False


def test_an_address_that_cannot_be_served_is_named(resolved):
  with socket.create_server(('127.0.0.1', 0)) as busy, contextlib.ExitStack() as stack:
    port = busy.getsockname()[1]
    for addresses in (['127.0.0.1'], ['192.0.2.1', '127.0.0.1'], ['192.0.2.1']):
      resolved(*addresses)
      with pytest.raises(OSError, match=f'Cannot listen on here:{port} .*choose another'):
        service._bind('here', port, stack)


# A process of its own.


def started(directory, *words, **environment):
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  command = [sys.executable, '-m', 'uadjax', 'serve', f'disc={directory}', '--port', str(port)]
  process = subprocess.Popen(
    [*command, *words],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env={**os.environ, **environment},
  )
  return process, f'http://127.0.0.1:{port}'


def warm(process, url):
  """Wait for it."""

  def ready():
    assert process.poll() is None
    try:
      return httpx.get(f'{url}/v2/health/ready').status_code == 200
    except httpx.TransportError:
      return False

  until(ready)


def test_requests_that_outlast_the_drain_time_have_status_503(directory):
  process, _ = started(directory, '--drain', '1', '--quiet', '--port', '0')
  try:
    # The address appears when the models are ready, whatever the port.
    (url,) = re.findall(r'^Serving at (http://127\.0\.0\.1:\d+) ', process.stdout.readline())
    assert httpx.get(f'{url}/v2/health/ready').status_code == 200
    host, port = url.removeprefix('http://').split(':')
    with socket.create_connection((host, int(port))) as slow:
      head = (
        f'POST {ROUTE} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nContent-Type: image/png\r\n\r\n'
      )
      slow.sendall(head.encode())
      time.sleep(0.5)
      process.send_signal(signal.SIGTERM)
      response = b''.join(iter(lambda: slow.recv(4096), b''))
    _, stderr = process.communicate(timeout=30)
  finally:
    process.kill()
  assert response.startswith(b'HTTP/1.1 503')
  assert json.loads(response.partition(b'\r\n\r\n')[2])['errorCode'] == 503
  assert process.returncode == 0
  assert 'Traceback' not in stderr
  assert '"INFO"' not in stderr


def test_sigterm_loses_no_accepted_request_and_logs_are_json(directory, photos):
  process, url = started(directory)
  try:
    warm(process, url)
    body, responses, lost = {'image': coded(photos[0])}, [], []

    def client():
      with httpx.Client(timeout=30) as session:
        while True:
          try:
            responses.append(session.post(f'{url}{ROUTE}', json=body).status_code)
          except httpx.ConnectError:
            return  # Nobody listens any more.
          except httpx.TransportError as error:
            lost.append(error)
            return

    threads = [threading.Thread(target=client) for _ in range(6)]
    for thread in threads:
      thread.start()
    until(lambda: len(responses) > 30)
    process.send_signal(signal.SIGTERM)
    for thread in threads:
      thread.join()
    _, stderr = process.communicate(timeout=30)
  finally:
    process.kill()
  assert process.returncode == 0, stderr
  lines = [json.loads(line) for line in stderr.splitlines()]
  logged = [line for line in lines if line['message'] == 'request' and line['path'] == ROUTE]
  assert set(responses) == {200}
  # An idle connection may be closed just when a request is on its way: nobody has accepted that.
  assert len(logged) == len(responses)
  assert all(line['label'] and line['logId'] for line in logged)


def test_a_damaged_model_ends_the_service_with_an_error(directory, tmp_path):
  broken = tmp_path / 'model'
  broken.mkdir()
  for file in directory.iterdir():
    (broken / file.name).write_bytes(file.read_bytes())
  (broken / 'fitted.safetensors').write_bytes(b'nothing')
  process, _ = started(broken, '--backend', 'jax')
  _, stderr = process.communicate(timeout=60)
  assert process.returncode == 1
  assert 'fitted.safetensors' in stderr.splitlines()[-1]
