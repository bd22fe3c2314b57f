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

_REDIRECT_STATUSES = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 3
_DEFAULT_PORTS = {'http': 80, 'https': 443}
_SAFE_CHARACTERS = (
  "%/?:@!$&'()*+,;=~"  # Stay as they are in a path and its query: '%' is quoted already.
)

# All of IPv6 that was given out. Outside lie this machine, the local network, and IPv4 in disguise
# (mapped, NAT64); inside, Teredo and 6to4 are disguises too.
_GLOBAL_UNICAST = ipaddress.IPv6Network('2000::/3')
_TUNNEL_NETWORKS = (ipaddress.IPv6Network('2001::/32'), ipaddress.IPv6Network('2002::/16'))


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


PUBLIC_ONLY = Access()  # What may be fetched where nobody says so.


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


def get(url: str, access: Access = PUBLIC_ONLY) -> bytes:
  """Fetch what a URL, or one that it redirects to, holds. No proxy is asked.

  Raises:
    DataError: with the URL and the reason; never with a password or a query.
  """
  if not access.urls:
    raise DataError(
      f'Cannot fetch {redact_url(url)}: URLs are not allowed here; give the image itself.'
    )
  deadline = time.monotonic() + access.timeout_s
  current_url = url
  try:
    for _ in range(1 + _MAX_REDIRECTS):
      target = _parse_target(current_url)
      with (
        _connect(target, access, deadline) as connection,
        _send_request(connection, target) as response,
      ):
        if response.status not in _REDIRECT_STATUSES:
          return _read_content(response, access.max_bytes)
        current_url = urllib.parse.urljoin(current_url, response.headers.get('Location', ''))
    reason = f'it is redirected more than {_MAX_REDIRECTS} times'
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
  redirect_note = '' if current_url == url else f', which leads to {redact_url(current_url)}'
  raise DataError(f'Cannot fetch {redact_url(url)}{redirect_note}: {reason}.')


def redact_url(url: str) -> str:
  """A URL as messages may name it: without user, password and query."""
  try:
    components = urllib.parse.urlsplit(url)
    components.port  # noqa: B018  # Raises where a password with a slash is taken for it.
  except ValueError:
    return 'the URL'
  if not components.netloc:
    return f'{components.scheme}:...'  # As 'data:', which holds all of an image.
  text = f'{components.scheme}://{components.netloc.rpartition("@")[2]}{components.path}'
  text = ''.join(character if character.isprintable() else '?' for character in text)
  return (text if len(text) <= 200 else text[:200] + '...') + ('?...' if components.query else '')


def _parse_target(url: str) -> _Target:
  try:
    components = urllib.parse.urlsplit(url)
    host = (components.hostname or '').encode('idna').decode('ascii')
    port = components.port
    path = urllib.parse.quote(components.path or '/', _SAFE_CHARACTERS)
    query = urllib.parse.quote(components.query, _SAFE_CHARACTERS)
  except ValueError:  # Its text may hold the password.
    raise DataError('it is no valid URL') from None
  if components.scheme not in _DEFAULT_PORTS:
    raise DataError(f'only http and https are fetched, not {components.scheme!r}')
  if not host:
    raise DataError('it names no host')
  if '@' in components.netloc:
    raise DataError('it holds a user or a password, which are not sent; leave them out')
  path += f'?{query}' if query else ''
  return _Target(components.scheme, host, port or _DEFAULT_PORTS[components.scheme], path)


@contextlib.contextmanager
def _connect(
  target: _Target, access: Access, deadline: float
) -> Iterator[http.client.HTTPConnection]:
  addresses = _resolve_addresses(target, access)
  with contextlib.ExitStack() as stack:
    sock = stack.enter_context(_connect_to_any(addresses, deadline))
    if target.scheme == 'https':
      context = ssl.create_default_context()
      sock.settimeout(_remaining_s(deadline))  # Of a handshake it is a timeout for the whole.
      sock = stack.enter_context(context.wrap_socket(sock, server_hostname=target.host))
    stack.enter_context(_close_at_deadline(sock, deadline))
    connection = http.client.HTTPConnection(target.host, target.port)
    connection.default_port = _DEFAULT_PORTS[target.scheme]  # Is left out of the header Host.
    connection.sock = sock
    yield connection


def _resolve_addresses(target: _Target, access: Access) -> Sequence[Any]:
  """Where a host may be reached. Nobody looks it up again, for the answer could be another."""
  try:
    addresses = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
  except (OSError, UnicodeError):
    raise DataError(f'no address of {target.host} is known') from None
  allowed_addresses = [
    address for address in addresses if access.private or _is_public(address[4][0])
  ]
  if not allowed_addresses:  # The address is not told: whoever asks a server may not know it.
    raise DataError(
      f'{target.host} is not on the public internet; allow private addresses '
      f'({Setting("access.private", True)}) if everyone who can pass URLs may see what is there'
    )
  return allowed_addresses


def _is_public(address: str | int) -> bool:
  ip = ipaddress.ip_address(address)
  if isinstance(ip, ipaddress.IPv6Address):
    return (
      ip in _GLOBAL_UNICAST
      and ip.is_global
      and not any(ip in tunnel for tunnel in _TUNNEL_NETWORKS)
    )
  return ip.is_global and not (ip.is_multicast or ip.is_reserved)


def _connect_to_any(addresses: Sequence[Any], deadline: float) -> socket.socket:
  """Connect to the first address that answers; the others leave the last its share of time."""
  *earlier_addresses, last_address = addresses
  for index, address in enumerate(earlier_addresses):
    with contextlib.suppress(OSError):
      return _open_socket(address, _remaining_s(deadline) / (len(addresses) - index))
  return _open_socket(last_address, _remaining_s(deadline))


def _open_socket(address: Any, timeout_s: float) -> socket.socket:
  family, socket_type, protocol, _, socket_address = address
  sock = socket.socket(family, socket_type, protocol)
  try:
    sock.settimeout(timeout_s)
    sock.connect(socket_address)
  except BaseException:
    sock.close()
    raise
  return sock


def _remaining_s(deadline: float) -> float:
  remaining_s = deadline - time.monotonic()
  if remaining_s <= 0:
    raise TimeoutError
  return remaining_s


@contextlib.contextmanager
def _close_at_deadline(sock: socket.socket, deadline: float) -> Iterator[None]:
  """Shut a connection down at the deadline, whatever waits for it then.

  A socket's own timeout begins anew with every byte that drips in.
  """
  expired = threading.Event()

  def shut_down() -> None:
    expired.set()
    with contextlib.suppress(OSError):  # The other side was quicker.
      socket.socket.shutdown(sock, socket.SHUT_RDWR)  # TLS's own does not bear other threads.

  timer = threading.Timer(_remaining_s(deadline), shut_down)
  timer.daemon = True
  sock.settimeout(None)
  timer.start()
  try:
    yield
  finally:
    timer.cancel()
    if expired.is_set():
      raise TimeoutError


def _send_request(
  connection: http.client.HTTPConnection, target: _Target
) -> http.client.HTTPResponse:
  headers = {
    'User-Agent': 'uadjax',
    'Accept': 'image/*',
    'Accept-Encoding': 'identity',  # What is small stays small.
    'Connection': 'close',
  }
  connection.request('GET', target.path, headers=headers)
  return connection.getresponse()


def _read_content(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
  if response.status != 200:
    raise DataError(f'the server answers {response.status}')
  # What is announced is refused before it comes, what is not, once it has come.
  content = b'' if (response.length or 0) > max_bytes else response.read(max_bytes + 1)
  if len(content) > max_bytes or (response.length or 0) > max_bytes:
    raise DataError(f'it has more than {max_bytes} bytes; allow more (max_bytes)')
  if response.length:
    raise http.client.IncompleteRead(content, response.length)
  return content
