"""Images from the network: only from where they may come, only so much, only for so long.

The standard library's client over a connection of ours: no other that we know has the checked
address be the connected one, TLS still verify the name, and one deadline hold for the whole.
"""

from collections.abc import Iterator, Sequence
import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from typing import Any, NamedTuple
import urllib.parse

from uadjax.errors import DataError, Setting

_REDIRECTS = (301, 302, 303, 307, 308)
_FOLLOWED = 3
_PORTS = {'http': 80, 'https': 443}
_SAFE = "%/?:@!$&'()*+,;=~"  # Stay as they are in a path and its query: '%' is quoted already.

# All of IPv6 that was given out. Outside lie this machine, the local network, and IPv4 in disguise
# (mapped, NAT64); inside, Teredo and 6to4 are disguises too.
_GIVEN_OUT = ipaddress.IPv6Network('2000::/3')
_TUNNELS = (ipaddress.IPv6Network('2001::/32'), ipaddress.IPv6Network('2002::/16'))


class Access(NamedTuple):
  """What may be fetched.

  Attributes:
    urls: whether any URL may be.
    private: whether it may come from addresses that are not on the public internet: those of this
      machine, of the local network, of a cloud's own services.
    max_bytes: of an answer, without its headers.
    timeout_s: for a URL with all its redirects. To look a host up is the system's, which has its
      own limit.
  """

  urls: bool = True
  private: bool = False
  max_bytes: int = 64 << 20
  timeout_s: float = 10.0


PUBLIC = Access()  # What may be fetched where nobody says so.


class _Target(NamedTuple):
  """A URL, taken apart.

  Attributes:
    scheme: 'http' or 'https'.
    host: a name in ASCII, or an address without brackets.
    port: given or the scheme's.
    path: with the query, quoted.
  """

  scheme: str
  host: str
  port: int
  path: str


def get(url: str, access: Access = PUBLIC) -> bytes:
  """Fetch what a URL, or one that it redirects to, holds. No proxy is asked.

  Raises:
    DataError: with the URL and the reason; never with a password or a query.
  """
  if not access.urls:
    raise DataError(f'Cannot fetch {shown(url)}: URLs are not allowed here; give the image itself.')
  deadline = time.monotonic() + access.timeout_s
  here = url
  try:
    for _ in range(1 + _FOLLOWED):
      target = _target(here)
      with _connected(target, access, deadline) as connection, _ask(connection, target) as answer:
        if answer.status not in _REDIRECTS:
          return _content(answer, access.max_bytes)
        here = urllib.parse.urljoin(here, answer.headers.get('Location', ''))
    reason = f'it is redirected more than {_FOLLOWED} times'
  except TimeoutError:
    reason = f'it takes longer than {access.timeout_s:g} s; allow more (timeout_s)'
  except http.client.HTTPException as error:
    reason = f'the answer is not whole, or no HTTP ({type(error).__name__})'
  except ssl.SSLCertVerificationError as error:
    reason = f'its certificate is not accepted: {error.verify_message.rstrip(".")}'
  except OSError as error:
    reason = error.strerror or type(error).__name__
  except DataError as error:
    reason = str(error)
  led = '' if here == url else f', which leads to {shown(here)}'
  raise DataError(f'Cannot fetch {shown(url)}{led}: {reason}.')


def shown(url: str) -> str:
  """A URL as messages may name it: without user, password and query."""
  try:
    parts = urllib.parse.urlsplit(url)
    parts.port  # noqa: B018  # Raises where a password with a slash is taken for it.
  except ValueError:
    return 'the URL'
  if not parts.netloc:
    return f'{parts.scheme}:...'  # As 'data:', which holds all of an image.
  text = f'{parts.scheme}://{parts.netloc.rpartition("@")[2]}{parts.path}'
  text = ''.join(letter if letter.isprintable() else '?' for letter in text)
  return (text if len(text) <= 200 else text[:200] + '...') + ('?...' if parts.query else '')


def _target(url: str) -> _Target:
  try:
    parts = urllib.parse.urlsplit(url)
    host = (parts.hostname or '').encode('idna').decode('ascii')
    port = parts.port
    path = urllib.parse.quote(parts.path or '/', _SAFE)
    query = urllib.parse.quote(parts.query, _SAFE)
  except ValueError:  # Its text may hold the password.
    raise DataError('it is no valid URL') from None
  if parts.scheme not in _PORTS:
    raise DataError(f'only http and https are fetched, not {parts.scheme!r}')
  if not host:
    raise DataError('it names no host')
  if '@' in parts.netloc:
    raise DataError('it holds a user or a password, which are not sent; leave them out')
  path += f'?{query}' if query else ''
  return _Target(parts.scheme, host, port or _PORTS[parts.scheme], path)


@contextlib.contextmanager
def _connected(
  target: _Target, access: Access, deadline: float
) -> Iterator[http.client.HTTPConnection]:
  addresses = _looked_up(target, access)
  with contextlib.ExitStack() as stack:
    sock = stack.enter_context(_socket(addresses, deadline))
    if target.scheme == 'https':
      context = ssl.create_default_context()
      sock.settimeout(_left(deadline))  # Of a handshake it is a timeout for the whole.
      sock = stack.enter_context(context.wrap_socket(sock, server_hostname=target.host))
    stack.enter_context(_cut(sock, deadline))
    connection = http.client.HTTPConnection(target.host, target.port)
    connection.default_port = _PORTS[target.scheme]  # Is left out of the header Host.
    connection.sock = sock
    yield connection


def _looked_up(target: _Target, access: Access) -> Sequence[Any]:
  """Where a host may be reached. Nobody looks it up again, for the answer could be another."""
  try:
    found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
  except (OSError, UnicodeError):
    raise DataError(f'no address of {target.host} is known') from None
  allowed = [place for place in found if access.private or _public(place[4][0])]
  if not allowed:  # The address is not told: whoever asks a server may not know it.
    raise DataError(
      f'{target.host} is not on the public internet; allow private addresses '
      f'({Setting("access.private", True)}) if everyone who can pass URLs may see what is there'
    )
  return allowed


def _public(address: str | int) -> bool:
  ip = ipaddress.ip_address(address)
  if isinstance(ip, ipaddress.IPv6Address):
    return ip in _GIVEN_OUT and ip.is_global and not any(ip in tunnel for tunnel in _TUNNELS)
  return ip.is_global and not (ip.is_multicast or ip.is_reserved)


def _socket(addresses: Sequence[Any], deadline: float) -> socket.socket:
  """Connect to the first address that answers; the others leave the last its share of time."""
  *others, last = addresses
  for number, address in enumerate(others):
    with contextlib.suppress(OSError):
      return _dialed(address, _left(deadline) / (len(addresses) - number))
  return _dialed(last, _left(deadline))


def _dialed(address: Any, timeout_s: float) -> socket.socket:
  family, kind, protocol, _, place = address
  sock = socket.socket(family, kind, protocol)
  try:
    sock.settimeout(timeout_s)
    sock.connect(place)
  except BaseException:
    sock.close()
    raise
  return sock


def _left(deadline: float) -> float:
  left = deadline - time.monotonic()
  if left <= 0:
    raise TimeoutError
  return left


@contextlib.contextmanager
def _cut(sock: socket.socket, deadline: float) -> Iterator[None]:
  """Shut a connection down at the deadline, whatever waits for it then.

  A socket's own timeout begins anew with every byte that drips in.
  """
  over = threading.Event()

  def shut() -> None:
    over.set()
    with contextlib.suppress(OSError):  # The other side was quicker.
      socket.socket.shutdown(sock, socket.SHUT_RDWR)  # TLS's own does not bear other threads.

  timer = threading.Timer(_left(deadline), shut)
  timer.daemon = True
  sock.settimeout(None)
  timer.start()
  try:
    yield
  finally:
    timer.cancel()
    if over.is_set():
      raise TimeoutError


def _ask(connection: http.client.HTTPConnection, target: _Target) -> http.client.HTTPResponse:
  headers = {
    'User-Agent': 'uadjax',
    'Accept': 'image/*',
    'Accept-Encoding': 'identity',  # What is small stays small.
    'Connection': 'close',
  }
  connection.request('GET', target.path, headers=headers)
  return connection.getresponse()


def _content(answer: http.client.HTTPResponse, limit: int) -> bytes:
  if answer.status != 200:
    raise DataError(f'the server answers {answer.status}')
  # What is announced is refused before it comes, what is not, once it has come.
  content = b'' if (answer.length or 0) > limit else answer.read(limit + 1)
  if len(content) > limit or (answer.length or 0) > limit:
    raise DataError(f'it has more than {limit} bytes; allow more (max_bytes)')
  if answer.length:
    raise http.client.IncompleteRead(content, answer.length)
  return content
