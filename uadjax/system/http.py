"""Download of images from untrusted URLs, with limits on addresses, size and time.

Uses the standard library's client over a connection that is opened here, to combine three
guarantees: it connects to exactly the address that was checked, TLS verifies the host name, and one
deadline applies to the whole download.
"""

from collections.abc import Iterator, Sequence
import contextlib
import http.client
from http.client import HTTPResponse
import ipaddress
import socket
import ssl
import threading
import time
from typing import Any, NamedTuple
import urllib.parse

from uadjax.errors import DataError, Setting
from uadjax.system import special_addresses

_REDIRECT_STATUSES = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 3
_HEADERS = {
  'User-Agent': 'uadjax',
  'Accept': 'image/*',
  'Accept-Encoding': 'identity',  # Compression would defeat max_bytes.
  'Connection': 'close',
}
_DEFAULT_PORTS = {'http': 80, 'https': 443}
# These stay unquoted in a path and its query; '%' is among them because URLs are quoted already.
_SAFE_CHARACTERS = "%/?:@!$&'()*+,;=~"

# IANA has allocated public IPv6 addresses in this block only.
_GLOBAL_UNICAST = ipaddress.IPv6Network('2000::/3')
# As `socket.getaddrinfo` returns it: family, type, protocol, canonical name, address.
_Address = tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[Any, ...]]


class Access(NamedTuple):
  """Permissions and limits for downloads.

  Attributes:
    urls: whether URLs may be fetched at all.
    private: whether addresses outside the public internet are allowed: those of this machine, of
      the local network, and of a cloud's own services.
    max_bytes: maximum size of a response, without its headers.
    timeout_s: time limit for a URL with all its redirects. Host names are resolved by the system,
      which has a limit of its own.
  """

  urls: bool = True
  private: bool = False
  max_bytes: int = 64 << 20
  timeout_s: float = 10.0


PUBLIC_ONLY = Access()


def get(url: str, access: Access = PUBLIC_ONLY) -> bytes:
  """Return the content of a URL; redirects are followed, proxies are ignored.

  Raises:
    DataError: the download failed. The message names the URL, without user, password and query,
      and the reason.
  """
  if not access.urls:
    raise DataError(
      f'Cannot fetch {redact_url(url)}: URLs are not allowed here; pass the image itself.'
    )
  deadline = time.monotonic() + access.timeout_s
  current_url = url
  try:
    for _ in range(1 + _MAX_REDIRECTS):
      with _request(current_url, access, deadline) as response:
        if response.status not in _REDIRECT_STATUSES:
          return _read_content(response, access.max_bytes)
        current_url = urllib.parse.urljoin(current_url, response.headers.get('Location', ''))
    reason = f'it redirects more than {_MAX_REDIRECTS} times'
  except TimeoutError:
    reason = f'it takes longer than {access.timeout_s:g} s; increase timeout_s to allow it'
  except http.client.HTTPException as error:
    reason = f'the response is incomplete or not HTTP ({type(error).__name__})'
  except ssl.SSLCertVerificationError as error:
    reason = f'its certificate is not accepted: {error.verify_message.rstrip(".")}'
  except OSError as error:
    reason = error.strerror or type(error).__name__
  except DataError as error:
    reason = str(error)
  redirect_note = '' if current_url == url else f', which leads to {redact_url(current_url)}'
  raise DataError(f'Cannot fetch {redact_url(url)}{redirect_note}: {reason}.')


def redact_url(url: str) -> str:
  """Return the URL without user, password and query, for messages."""
  try:
    components = urllib.parse.urlsplit(url)
    components.port  # noqa: B018  # Raises if part of a password is parsed as the port.
  except ValueError:
    return 'the URL'
  if not components.netloc:
    return f'{components.scheme}:...'  # A data: URL contains a whole image.
  text = f'{components.scheme}://{components.netloc.rpartition("@")[2]}{components.path}'
  text = ''.join(c if c.isprintable() else '?' for c in text)
  return (text if len(text) <= 200 else text[:200] + '...') + ('?...' if components.query else '')


def _parse(url: str) -> tuple[str, str, int, str]:
  """Return scheme, host in ASCII and without brackets, port, and quoted path with query."""
  try:
    components = urllib.parse.urlsplit(url)
    host = (components.hostname or '').encode('idna').decode('ascii')
    port = components.port
    path = (components.path or '/') + (f'?{components.query}' if components.query else '')
    path = urllib.parse.quote(path, _SAFE_CHARACTERS)
  except ValueError:  # The text of this error may contain the password.
    raise DataError('it is not a valid URL') from None
  if components.scheme not in _DEFAULT_PORTS:
    raise DataError(f'only http and https are supported, not {components.scheme!r}')
  if not host:
    raise DataError('it has no host')
  if '@' in components.netloc:
    raise DataError('it contains a user or a password, which are never sent; remove them')
  return components.scheme, host, port or _DEFAULT_PORTS[components.scheme], path


@contextlib.contextmanager
def _request(url: str, access: Access, deadline: float) -> Iterator[HTTPResponse]:
  scheme, host, port, path = _parse(url)
  addresses = _resolve_addresses(host, port, access)
  with contextlib.ExitStack() as stack:
    sock = stack.enter_context(_connect_to_any(addresses, deadline))
    if scheme == 'https':
      context = ssl.create_default_context()
      sock.settimeout(_remaining_s(deadline))  # Limits the handshake as a whole.
      sock = stack.enter_context(context.wrap_socket(sock, server_hostname=host))
    stack.enter_context(_close_at_deadline(sock, deadline))
    connection = http.client.HTTPConnection(host, port)
    connection.default_port = _DEFAULT_PORTS[scheme]  # The Host header omits it.
    connection.sock = sock
    connection.request('GET', path, headers=_HEADERS)
    with connection.getresponse() as response:
      yield response


def _resolve_addresses(host: str, port: int, access: Access) -> Sequence[_Address]:
  """Return the allowed addresses of a host.

  The connection uses these addresses: a second lookup could return other, unchecked ones.
  """
  try:
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
  except (OSError, UnicodeError):
    raise DataError(f'the host {host} cannot be resolved') from None
  allowed = [address for address in addresses if access.private or _is_public(address[4][0])]
  if not allowed:  # Clients of a server must not learn the address from the message.
    raise DataError(
      f'{host} is not on the public internet; allow private addresses '
      f'({Setting("access.private", True)}) if everyone who can pass URLs may read what they serve'
    )
  return allowed


def _is_public(address: str | int) -> bool:
  ip = ipaddress.ip_address(address)
  is_allocated = ip.version == 4 or ip in _GLOBAL_UNICAST
  # `is_global` is only for blocks that a later version of Python may know.
  return is_allocated and not special_addresses.contain(ip) and ip.is_global


def _connect_to_any(addresses: Sequence[_Address], deadline: float) -> socket.socket:
  """Connect to the first address that answers.

  Each attempt may use an equal share of the remaining time, so that every address gets a try.
  """
  last_error = OSError()
  for i, (family, kind, protocol, _, address) in enumerate(addresses):
    with contextlib.ExitStack() as stack:
      try:
        sock = stack.enter_context(socket.socket(family, kind, protocol))
        sock.settimeout(_remaining_s(deadline) / (len(addresses) - i))
        sock.connect(address)
        stack.pop_all()  # Leaves the socket open.
        return sock
      except OSError as error:
        last_error = error
  raise last_error


def _remaining_s(deadline: float) -> float:
  remaining_s = deadline - time.monotonic()
  if remaining_s <= 0:
    raise TimeoutError
  return remaining_s


@contextlib.contextmanager
def _close_at_deadline(sock: socket.socket, deadline: float) -> Iterator[None]:
  """Shut the connection down at the deadline, which ends calls that block on it.

  A socket's own timeout would start again with every byte received.
  """
  deadline_event = threading.Event()

  def shut_down() -> None:
    deadline_event.set()
    with contextlib.suppress(OSError):  # The peer may have closed the connection.
      socket.socket.shutdown(sock, socket.SHUT_RDWR)  # SSLSocket.shutdown is not thread-safe.

  timer = threading.Timer(_remaining_s(deadline), shut_down)
  timer.daemon = True
  sock.settimeout(None)
  timer.start()
  try:
    yield
  finally:
    timer.cancel()
    if deadline_event.is_set():
      raise TimeoutError


def _read_content(response: HTTPResponse, max_bytes: int) -> bytes:
  if response.status != 200:
    raise DataError(f'the server answers {response.status}')
  # An announced size is checked before reading; otherwise one byte beyond the limit is read.
  content = b'' if (response.length or 0) > max_bytes else response.read(max_bytes + 1)
  if len(content) > max_bytes or (response.length or 0) > max_bytes:
    raise DataError(f'it has more than {max_bytes} bytes; increase max_bytes to allow it')
  if response.length:
    raise http.client.IncompleteRead(content, response.length)
  return content
