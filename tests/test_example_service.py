"""The documented programs, run against a service as they are, are told what `predict` says."""

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

pytestmark = pytest.mark.slow  # They are recipes; what the service says is in test_serve.py.

EXAMPLE = Path(__file__).resolve().parent.parent / 'docs' / 'examples' / 'service'


@pytest.fixture(scope='module')
def photo_and_model(drawn, fitted):
  return next((drawn / 'disc' / 'test' / 'missing').glob('*.png')), fitted('padim')


@pytest.fixture(scope='module')
def service(photo_and_model):
  """Its address; it is asked for port 8000 in the programs, which take another, too."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  command = [sys.executable, '-m', 'uadjax', 'serve', str(photo_and_model[1]), '--port', str(port)]
  process = subprocess.Popen([*command, '--backend', 'jax'], stderr=subprocess.DEVNULL)
  url = f'http://127.0.0.1:{port}'
  try:
    end = time.monotonic() + 60
    while True:
      try:
        urllib.request.urlopen(f'{url}/v2/health/ready').close()
        break
      except (urllib.error.URLError, ConnectionError):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)
    yield url
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
  finally:
    process.kill()


def printed(*command):
  done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.fixture(scope='module')
def known(photo_and_model):
  photo, model = photo_and_model
  (result,) = create_model(model_dir=model).predict(photo)
  return result


def test_python(service, photo_and_model, known):
  label, score, _ = printed(
    sys.executable, EXAMPLE / 'client.py', photo_and_model[0], service
  ).split(' ', 2)
  assert (label, float(score)) == (known.label, known.score)


def test_javascript(service, photo_and_model, known):
  if shutil.which('node') is None:
    pytest.skip('needs node')
  label, score, _ = printed('node', EXAMPLE / 'client.mjs', photo_and_model[0], service).split(
    ' ', 2
  )
  assert (label, float(score)) == (known.label, known.score)


def test_cpp(service, photo_and_model, known, tmp_path):
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
  told = json.loads(printed(program, photo_and_model[0], service))['result']
  assert (told['label'], told['score']) == (known.label, known.score)


def test_curl(service, photo_and_model, known):
  if shutil.which('curl') is None:
    pytest.skip('needs curl')
  photo, text = photo_and_model[0], (EXAMPLE / 'README.md').read_text().replace('\\\n', ' ')
  commands = re.findall(r'^curl .+$', text, re.MULTILINE)
  assert len(commands) == 2
  for command in commands:
    line = command.replace('localhost:8000', service).replace('photo.png', str(photo))
    told = json.loads(printed('bash', '-c', line.replace('curl ', 'curl -sS ')))['result']
    assert (told['label'], told['score']) == (known.label, known.score)
