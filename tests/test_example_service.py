"""Tests of the documented clients: they receive the results of `predict`."""

import json
from pathlib import Path
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from uadjax import create_model

pytestmark = pytest.mark.slow  # Examples; the service itself is tested in test_serve.py.

EXAMPLE = Path(__file__).resolve().parent.parent / 'docs' / 'examples' / 'service'


@pytest.fixture(scope='module')
def photo_and_model(drawn, fitted):
  return next((drawn / 'disc' / 'test' / 'missing').glob('*.png')), fitted('padim')


@pytest.fixture(scope='module')
def service(photo_and_model):
  """URL of a running service, on a free port instead of the documented 8000."""
  with socket.socket() as free_socket:
    free_socket.bind(('127.0.0.1', 0))
    port = free_socket.getsockname()[1]
  command = [sys.executable, '-m', 'uadjax', 'serve', str(photo_and_model[1]), '--port', str(port)]
  process = subprocess.Popen([*command, '--backend', 'jax'], stderr=subprocess.DEVNULL)
  url = f'http://127.0.0.1:{port}'
  try:
    deadline = time.monotonic() + 60
    while True:
      try:
        urllib.request.urlopen(f'{url}/v2/health/ready').close()
        break
      except (urllib.error.URLError, ConnectionError):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield url
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
  finally:
    process.kill()


def printed(*command):
  process = subprocess.run([str(word) for word in command], capture_output=True, text=True)
  assert process.returncode == 0, process.stderr
  return process.stdout


@pytest.fixture(scope='module')
def expected(photo_and_model):
  photo, model = photo_and_model
  (result,) = create_model(model_dir=model).predict(photo)
  return result


def test_python(service, photo_and_model, expected):
  label, score, _ = printed(
    sys.executable, EXAMPLE / 'client.py', photo_and_model[0], service
  ).split(' ', 2)
  assert (label, float(score)) == (expected.label, expected.score)


def test_javascript(service, photo_and_model, expected):
  if shutil.which('node') is None:
    pytest.skip('needs node')
  label, score, _ = printed('node', EXAMPLE / 'client.mjs', photo_and_model[0], service).split(
    ' ', 2
  )
  assert (label, float(score)) == (expected.label, expected.score)


def test_cpp(service, photo_and_model, expected, tmp_path):
  if shutil.which('g++') is None:
    pytest.skip('needs g++')
  program = tmp_path / 'client'
  flags = [
    '-std=c++17',
    '-Wall',
    '-Wextra',
    '-Werror',
    EXAMPLE / 'client.cpp',
    '-o',
    program,
    '-lcurl',
  ]
  compiled = subprocess.run([str(word) for word in ['g++', *flags]], capture_output=True, text=True)
  if 'curl/curl.h: No such file' in compiled.stderr:
    pytest.skip('needs the headers of libcurl, as the package libcurl4-openssl-dev of Debian')
  assert compiled.returncode == 0, compiled.stderr
  result = json.loads(printed(program, photo_and_model[0], service))['result']
  assert (result['label'], result['score']) == (expected.label, expected.score)


def test_curl(service, photo_and_model, expected):
  if shutil.which('curl') is None:
    pytest.skip('needs curl')
  photo, text = photo_and_model[0], (EXAMPLE / 'README.md').read_text().replace('\\\n', ' ')
  commands = re.findall(r'^curl .+$', text, re.MULTILINE)
  assert len(commands) == 2
  for command in commands:
    line = command.replace('localhost:8000', service).replace('photo.png', str(photo))
    result = json.loads(printed('bash', '-c', line.replace('curl ', 'curl -sS ')))['result']
    assert (result['label'], result['score']) == (expected.label, expected.score)
