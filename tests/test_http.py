"""Laws of fetching: from servers of our own on this machine."""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import ipaddress
import re
import socket
import ssl
import subprocess
import threading
import time
from typing import NamedTuple

from hypothesis import given, strategies as st
import pytest

from uadjax.errors import DataError
from uadjax.system import http

CONTENT = bytes(range(256)) * 40
PRIVATE_ALLOWED = http.Access(private=True, timeout_s=20.0)
Answer = Callable[[str], Iterable[bytes]]  # Path -> what is sent, piece by piece.


def whole(content: bytes = CONTENT, status: str = '200 OK', *headers: str) -> list[bytes]:
  lines = [f'HTTP/1.1 {status}', f'Content-Length: {len(content)}', *headers]
  return ['\r\n'.join([*lines, '', '']).encode() + content]


def refusal(url: str, *access: http.Access) -> str:
  """Why a URL is not fetched, or '' where it is."""
  try:
    http.get(url, *access)
  except DataError as error:
    return str(error)
  return ''


def to(location: str) -> list[bytes]:
  return whole(b'', '302 Found', f'Location: {location}')


class Servers(NamedTuple):
  """Starts servers.

  Attributes:
    requests: all requests so far.
    stack: ends them.
  """

  requests: list[str]
  stack: contextlib.ExitStack

  def __call__(self, answer: Answer, context: ssl.SSLContext | None = None) -> str:
    """Start one, and return its URL without a path."""
    listener = self.stack.enter_context(socket.create_server(('127.0.0.1', 0)))

    def talk(sock: socket.socket) -> None:
      request = b''
      while b'\r\n\r\n' not in request and (got := sock.recv(4096)):
        request += got
      self.requests.append(request.decode())
      for piece in answer(request.decode().split(' ')[1]):
        sock.sendall(piece)

    def accept() -> None:
      with contextlib.suppress(OSError):  # The listener was shut.
        while True:
          sock, _ = listener.accept()
          with contextlib.suppress(OSError), sock:  # The client went away, or did not trust.
            if not context:
              talk(sock)
              continue
            with context.wrap_socket(sock, server_side=True) as safe:
              talk(safe)

    thread = threading.Thread(target=accept)
    thread.start()
    self.stack.callback(thread.join)
    self.stack.callback(listener.shutdown, socket.SHUT_RDWR)
    port = listener.getsockname()[1]
    return f'{"https" if context else "http"}://127.0.0.1:{port}'


@pytest.fixture
def serve() -> Iterator[Servers]:
  with contextlib.ExitStack() as stack:
    yield Servers([], stack)


@pytest.fixture
def resolved(monkeypatch) -> dict[str, str]:
  """Names and their addresses, for all that is looked up; the rest is as it is."""
  table: dict[str, str] = {}
  look_up = socket.getaddrinfo
  monkeypatch.setattr(
    socket,
    'getaddrinfo',
    lambda host, *args, **options: look_up(table.get(host, host), *args, **options),
  )
  return table


def test_a_response_is_read_in_each_transfer_encoding(serve):
  assert http.get(serve(lambda path: whole()) + '/a.png', PRIVATE_ALLOWED) == CONTENT
  assert http.get(serve(lambda path: whole(b'')), PRIVATE_ALLOWED) == b''
  until_closed = [b'HTTP/1.0 200 OK\r\n\r\n', CONTENT]
  assert http.get(serve(lambda path: until_closed), PRIVATE_ALLOWED) == CONTENT
  chunked = [b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n']
  chunked += [b'%x\r\n%b\r\n' % (len(part), part) for part in (CONTENT[:7], CONTENT[7:], b'')]
  assert http.get(serve(lambda path: chunked), PRIVATE_ALLOWED) == CONTENT


def test_an_answer_ends_where_it_says_and_not_when_the_server_closes(serve):
  fetched = threading.Event()

  def stays(path):
    yield from whole()
    fetched.wait(60)

  assert http.get(serve(stays), PRIVATE_ALLOWED) == CONTENT
  fetched.set()


def test_the_request_says_no_more_than_it_must(serve, monkeypatch):
  monkeypatch.setenv('http_proxy', 'http://127.0.0.1:9')
  url = serve(lambda path: whole())
  http.get(url + '/größe 1.png?q=a b&r=%20#part', PRIVATE_ALLOWED)
  first, *lines = serve.requests[0].split('\r\n')
  assert first == 'GET /gr%C3%B6%C3%9Fe%201.png?q=a%20b&r=%20 HTTP/1.1'
  assert set(filter(None, lines)) == {
    'Host: ' + url.removeprefix('http://'),
    'User-Agent: uadjax',
    'Accept: image/*',
    'Accept-Encoding: identity',
    'Connection: close',
  }


def test_no_more_bytes_than_allowed(serve):
  """Whether the server says how many there are or not."""
  plain = [b'HTTP/1.0 200 OK\r\n\r\n', CONTENT]
  url = serve(lambda path: whole() if path == '/announced' else plain)
  for path in ('/announced', '/not'):
    assert http.get(url + path, PRIVATE_ALLOWED._replace(max_bytes=len(CONTENT))) == CONTENT, path
    with pytest.raises(DataError, match=rf'{path}: .*more than 10239 bytes; .*max_bytes'):
      http.get(url + path, PRIVATE_ALLOWED._replace(max_bytes=len(CONTENT) - 1))


def test_an_endless_answer_ends(serve):
  def endless(path):
    yield b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n'
    while True:
      yield b'400\r\n' + bytes(1024) + b'\r\n'

  with pytest.raises(DataError, match='more than 100000 bytes'):
    http.get(serve(endless), PRIVATE_ALLOWED._replace(max_bytes=100_000))


@pytest.mark.parametrize(
  'start',
  [b'HTTP', b'HTTP/1.1 200 OK\r\nA: ', b'HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n'],
)
def test_a_drip_is_cut(serve, start):
  def drip(path):
    yield start
    while True:
      time.sleep(0.02)
      yield b'x'

  with pytest.raises(DataError, match=r'takes longer than 0\.3 s; .*timeout_s'):
    http.get(serve(drip), PRIVATE_ALLOWED._replace(timeout_s=0.3))


def test_redirects_share_one_deadline(serve):
  def slow(path):
    time.sleep(0.2)
    yield from to(f'/{path}')

  with pytest.raises(DataError, match=r'takes longer than 0\.5 s'):
    http.get(serve(slow), PRIVATE_ALLOWED._replace(timeout_s=0.5))


def test_broken_answers_are_refused(serve):
  cases = [
    ([b''], 'incomplete or not HTTP'),
    ([b'\x89PNG\r\n\x1a\n'], 'incomplete or not HTTP'),
    ([whole()[0][:-1]], 'incomplete or not HTTP'),
    ([b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc'], 'incomplete'),
    (whole(b'', '404 No'), 'answers 404'),
    (whole(b'', '206 Partial Content'), 'answers 206'),
  ]
  url, wrong = serve(lambda path: cases[int(path[1:])][0]), {}
  for number, (answer, reason) in enumerate(cases):
    message = refusal(f'{url}/{number}', PRIVATE_ALLOWED)
    if not re.search(rf'^Cannot fetch http://127\.0\.0\.1:\d+/{number}: .*{reason}', message):
      wrong[number] = answer, message
  assert not wrong


def test_three_redirects_are_followed_and_a_fourth_is_not(serve):
  url = serve(lambda path: whole() if path == '/0' else to(f'{int(path[1:]) - 1}'))
  assert http.get(url + '/3', PRIVATE_ALLOWED) == CONTENT
  with pytest.raises(DataError, match='more than 3 times'):
    http.get(url + '/4', PRIVATE_ALLOWED)


@pytest.mark.parametrize(
  ('location', 'reason'),
  [
    ('http://inside.example/', r'leads to http://inside\.example/: .* not on the public internet'),
    ('http://[::1]/', 'not on the public internet'),
    ('file:///etc/passwd', "not 'file'"),
    ('http://user:secret@outside.example/', 'a user or a password'),
  ],
)
def test_every_redirect_is_checked(serve, resolved, monkeypatch, location, reason):
  url = serve(lambda path: to(location)).replace('127.0.0.1', 'outside.example')
  resolved.update({'outside.example': '127.0.0.1', 'inside.example': '127.0.0.2'})
  public = http._is_public  # This machine has no public address: one of its own stands for it.
  monkeypatch.setattr(http, '_is_public', lambda ip: ip == '127.0.0.1' or public(ip))
  with pytest.raises(DataError, match=reason) as error:
    http.get(url)
  assert 'secret' not in str(error.value)
  assert len(serve.requests) == 1


HOSTS = (
    'localhost', '127.0.0.1', '127.1', '2130706433', '0x7f000001', '0177.0.0.1', '0', '0.0.0.0',
    '169.254.169.254', '10.1.2.3', '172.16.0.1', '192.168.0.1', '100.100.100.200', '224.0.0.1',
    '240.0.0.1', '255.255.255.255', '[::]', '[::1]', '[::ffff:127.0.0.1]', '[::ffff:8.8.8.8]',
    '[::127.0.0.1]', '[fe80::1]', '[fc00::1]', '[fec0::1]', '[ff02::1]', '[64:ff9b::7f00:1]',
    '[64:ff9b:1::1]', '[2002:7f00:1::]', '[2001:0:7f00:1::]', '[2001:db8::1]', '１２７.0.0.1',
)  # fmt: skip


# Of each block of the two registries of IANA, and of other special blocks: first and last address.
SPECIAL = (
  ('0.0.0.0', '0.255.255.255'),
  ('10.0.0.0', '10.255.255.255'),
  ('100.64.0.0', '100.127.255.255'),
  ('127.0.0.0', '127.255.255.255'),
  ('168.63.129.16', '168.63.129.16'),  # Services of Azure.
  ('169.254.0.0', '169.254.255.255'),
  ('172.16.0.0', '172.31.255.255'),
  ('192.0.0.0', '192.0.0.255'),
  ('192.0.0.9', '192.0.0.10'),  # Global by the registry, but anycast to what is near.
  ('192.0.0.170', '192.0.0.192'),
  ('192.0.2.0', '192.0.2.255'),
  ('192.31.196.0', '192.31.196.255'),
  ('192.52.193.0', '192.52.193.255'),
  ('192.88.99.0', '192.88.99.255'),
  ('192.168.0.0', '192.168.255.255'),
  ('192.175.48.0', '192.175.48.255'),
  ('198.18.0.0', '198.19.255.255'),
  ('198.51.100.0', '198.51.100.255'),
  ('203.0.113.0', '203.0.113.255'),
  ('224.0.0.0', '239.255.255.255'),
  ('240.0.0.0', '255.255.255.255'),
  ('::', '::ffff:ffff'),  # This machine, and IPv4-compatible addresses.
  ('::ffff:0.0.0.0', '::ffff:255.255.255.255'),
  ('::ffff:8.8.8.8', '::ffff:0:8.8.8.8'),
  ('64:ff9b::', '64:ff9b::255.255.255.255'),
  ('64:ff9b::8.8.8.8', '64:ff9b::168.63.129.16'),
  ('64:ff9b:1::', '64:ff9b:1:ffff:ffff:ffff:ffff:ffff'),
  ('100::', '100::ffff:ffff:ffff:ffff'),
  ('100:0:0:1::', '100:0:0:1:ffff:ffff:ffff:ffff'),
  ('2001::', '2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff'),
  ('2001:0:a83f:8110::', '2001::f7f7:f7f7'),  # Teredo of 168.63.129.16, and of 8.8.8.8.
  ('2001:1::1', '2001:1::3'),
  ('2001:2::', '2001:2:0:ffff:ffff:ffff:ffff:ffff'),
  ('2001:3::', '2001:4:112:ffff:ffff:ffff:ffff:ffff'),
  ('2001:10::', '2001:3f:ffff:ffff:ffff:ffff:ffff:ffff'),
  ('2001:db8::', '2001:db8:ffff:ffff:ffff:ffff:ffff:ffff'),
  ('2002::', '2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff'),
  ('2002:808:808::', '2002:a83f:8110::1'),  # 6to4 of 8.8.8.8, and of 168.63.129.16.
  ('2620:4f:8000::', '2620:4f:8000:ffff:ffff:ffff:ffff:ffff'),
  ('3fff::', '3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff'),
  ('5f00::', '5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff'),
  ('fc00::', 'fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff'),
  ('fd00:ec2::254', 'fd20:ce::254'),  # Metadata of AWS and Google Cloud.
  ('fe80::', 'febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff'),
  ('fe80::1%1', 'fec0::1%1'),
  ('fec0::', 'feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff'),
  ('ff00::', 'ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff'),
  ('4000::', '1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff'),  # Not allocated.
)
# Beside such blocks, and of well-known servers.
PUBLIC = (
    '1.0.0.0', '8.8.8.8', '9.255.255.255', '11.0.0.0', '93.184.216.34', '100.63.255.255',
    '100.128.0.0', '126.255.255.255', '128.0.0.0', '168.63.129.15', '168.63.129.17',
    '169.253.255.255', '169.255.0.0', '172.15.255.255', '172.32.0.0', '191.255.255.255',
    '192.0.1.0', '192.0.3.0', '192.31.195.255', '192.31.197.0', '192.52.192.255', '192.52.194.0',
    '192.88.98.255', '192.88.100.0', '192.167.255.255', '192.169.0.0', '192.175.47.255',
    '192.175.49.0', '198.17.255.255', '198.20.0.0', '198.51.99.255', '198.51.101.0',
    '203.0.112.255', '203.0.114.0', '223.255.255.255', '2000::', '2000:ffff::1', '2001:200::',
    '2001:4860:4860::8888', '2001:db7:ffff::', '2001:db9::', '2001:ffff:ffff::', '2003::',
    '2606:4700:4700::1111', '2620:4f:7fff::', '2620:4f:8001::', '3ffe:ffff::', '3fff:1000::',
)  # fmt: skip


@pytest.mark.parametrize('python', ['this', 'one that knows no special block'])
def test_special_addresses_are_the_same_in_every_version_of_python(python, monkeypatch):
  if python != 'this':
    for kind in (ipaddress.IPv4Address, ipaddress.IPv6Address):
      monkeypatch.setattr(kind, 'is_global', True)
  special = [address for pair in SPECIAL for address in pair]
  assert [address for address in special if http._is_public(address)] == []
  assert [address for address in PUBLIC if not http._is_public(address)] == []


def test_private_hosts_are_refused(monkeypatch):
  connected = []
  monkeypatch.setattr(socket.socket, 'connect', lambda sock, place: connected.append(place))
  messages = {host: refusal(f'http://{host}/a.png') for host in HOSTS}
  expected = 'not on the public internet; allow private'
  assert not {host: text for host, text in messages.items() if expected not in text}
  assert not connected


def test_a_name_is_what_it_resolves_to(resolved, monkeypatch):
  monkeypatch.setattr(socket.socket, 'connect', None)  # Nothing may get as far.
  for address in ('127.0.0.1', '::1', '::ffff:10.0.0.1', '169.254.169.254'):
    resolved['images.example.com'] = address
    message = refusal('https://images.example.com/a.png')
    assert 'images.example.com is not on the public internet' in message, address
    assert address not in message


@given(st.ip_addresses())
def test_public_addresses_are_a_few_blocks(address):
  """No address is public that the registry calls private."""
  assert not (http._is_public(str(address)) and address.is_private)


def test_a_host_is_looked_up_once_and_its_checked_address_used(serve, monkeypatch):
  url = serve(lambda path: whole())
  host, port = 'rebinding.example', int(url.rpartition(':')[2])
  names, dialed = [], []
  connect = socket.socket.connect

  def look_up(name, number, **options):
    names.append(name)
    address = '93.184.216.34' if len(names) == 1 else '127.0.0.1'  # First public, then not.
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, '', (address, number))]

  def dial(sock, place):
    dialed.append(place)
    connect(sock, ('127.0.0.1', port))

  monkeypatch.setattr(socket, 'getaddrinfo', look_up)
  monkeypatch.setattr(socket.socket, 'connect', dial)
  assert http.get(f'http://{host}:{port}/') == CONTENT
  assert names == [host]
  assert dialed == [('93.184.216.34', port)]
  assert f'Host: {host}:{port}' in serve.requests[0]


def test_private_addresses_of_a_public_name_are_left_out(serve, monkeypatch):
  dialed = []

  def dial(sock, place):
    dialed.append(place[0])
    raise ConnectionRefusedError(111, 'Connection refused')

  places = ['127.0.0.1', '93.184.216.34', '10.0.0.1', '93.184.216.35']
  addresses = [(socket.AF_INET, socket.SOCK_STREAM, 6, '', (place, 80)) for place in places]
  monkeypatch.setattr(socket, 'getaddrinfo', lambda *args, **options: addresses)
  monkeypatch.setattr(socket.socket, 'connect', dial)
  with pytest.raises(DataError, match=r'Connection refused\.$'):
    http.get('http://mixed.example/')
  assert dialed == ['93.184.216.34', '93.184.216.35']


def test_odd_urls_are_refused_and_tell_no_secret(monkeypatch):
  monkeypatch.setattr(socket, 'getaddrinfo', None)  # Nothing may get as far.
  wrong = {}
  for url, reason in (
    ('file:///etc/passwd', "not 'file'"),
    ('ftp://example.com/a.png', "not 'ftp'"),
    ('data:image/png;base64,AAAA', "not 'data'"),
    ('gopher://127.0.0.1:6379/_', "not 'gopher'"),
    ('http:///a.png', 'no host'),
    ('http://user:secret@example.com/', 'a user or a password'),
    ('http://user:sec/ret@example.com/', 'valid'),
    ('http://user:secret@[::1/', 'valid'),
    ('http://user:secret@exa\u2100mple.com/', 'valid'),
    ('http://example.com:99999/', 'valid'),
    ('http://' + 'a' * 64 + '.com/', 'valid'),
    ('http://example.com/\udcff', 'valid'),
  ):
    message = refusal(url).encode().decode()  # Can be written.
    if reason not in message or 'sec' in message or 'AAAA' in message:
      wrong[url] = message
  assert not wrong


def test_urls_can_be_forbidden():
  with pytest.raises(DataError, match='not allowed here') as error:
    http.get('https://me:secret@example.com/a.png?token=secret', http.Access(urls=False))
  assert 'https://example.com/a.png?...' in str(error.value)
  assert 'secret' not in str(error.value)


@given(st.text() | st.text('ht:/@?#[]%.a1\n\\', max_size=30).map('http://'.__add__))
def test_no_url_breaks_the_message(url):
  assert http.redact_url(url).encode()


@pytest.fixture(scope='module')
def certificate(tmp_path_factory):
  """A certificate for camera.example, signed by itself, and its key."""
  folder = tmp_path_factory.mktemp('tls')
  command = 'openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 9'
  command += ' -subj /CN=camera.example -addext subjectAltName=DNS:camera.example'
  try:
    subprocess.run(
      [*command.split(), '-keyout', folder / 'key', '-out', folder / 'crt'],
      check=True,
      capture_output=True,
    )
  except (OSError, subprocess.CalledProcessError) as error:
    pytest.skip(f'needs openssl to make a certificate: {error}')
  return folder / 'crt', folder / 'key'


def test_tls_verifies_the_name_though_an_address_is_dialed(
  serve, resolved, certificate, monkeypatch
):
  context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
  context.load_cert_chain(*certificate)
  url = serve(lambda path: whole(), context)
  resolved.update({'camera.example': '127.0.0.1', 'other.example': '127.0.0.1'})
  named = url.replace('127.0.0.1', 'camera.example')
  with pytest.raises(DataError, match=r'certificate is not accepted: self.signed'):
    http.get(named, PRIVATE_ALLOWED)
  monkeypatch.setenv('SSL_CERT_FILE', str(certificate[0]))
  assert http.get(named, PRIVATE_ALLOWED) == CONTENT
  for wrong in (url, url.replace('127.0.0.1', 'other.example')):
    with pytest.raises(DataError, match=r'certificate is not accepted: .*mismatch'):
      http.get(wrong, PRIVATE_ALLOWED)

  connect, port = socket.socket.connect, int(url.rpartition(':')[2])
  dialed = []

  def dial(sock, place):
    dialed.append(place)
    connect(sock, ('127.0.0.1', port))

  monkeypatch.setattr(socket.socket, 'connect', dial)
  assert http.get('https://camera.example/', PRIVATE_ALLOWED) == CONTENT
  assert dialed == [('127.0.0.1', 443)]
  assert '\r\nHost: camera.example\r\n' in serve.requests[-1]


def test_a_drip_through_tls_is_cut(serve, resolved, certificate, monkeypatch):
  context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
  context.load_cert_chain(*certificate)

  def drip(path):
    yield b'HTTP/1.0 200 OK\r\n\r\n'
    while True:
      time.sleep(0.02)
      yield b'x'

  url = serve(drip, context).replace('127.0.0.1', 'camera.example')
  resolved['camera.example'] = '127.0.0.1'
  monkeypatch.setenv('SSL_CERT_FILE', str(certificate[0]))
  with pytest.raises(DataError, match=r'takes longer than 0\.5 s'):
    http.get(url, PRIVATE_ALLOWED._replace(timeout_s=0.5))


def test_a_handshake_that_never_comes_is_cut():
  with socket.create_server(('127.0.0.1', 0)) as listener:  # Accepts, and is silent.
    url = f'https://127.0.0.1:{listener.getsockname()[1]}/'
    with pytest.raises(DataError, match=r'takes longer than 0\.3 s'):
      http.get(url, PRIVATE_ALLOWED._replace(timeout_s=0.3))
