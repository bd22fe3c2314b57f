"""The HTTP service `uadjax serve`: FastAPI and uvicorn, dynamic batching, and a web page at /.

`app` has PaddleX's routes and `protocol` those of the Open Inference Protocol, both on top of
`service`. The folder `page` holds the web page; files it shares with the report are in
`uadjax/web`.
"""

import asyncio
from collections.abc import Callable
import contextlib
import errno
import logging
import signal
import socket

from starlette.requests import ClientDisconnect
import uvicorn

from uadjax.serve import app as app_module, connections, observability, settings as settings_module
from uadjax.serve.settings import Settings
from uadjax.system import logging as log


def serve(
  settings: Settings,
  host: str = '127.0.0.1',
  port: int = 8000,
  on_ready: Callable[[str], object] = lambda address: None,
) -> None:
  """Serve requests until SIGTERM or Ctrl-C, then finish those that were accepted.

  Args:
    settings: settings of the service.
    host: address to listen on, or a name: then all its addresses, as localhost has one in IPv4 and
      one in IPv6. 0.0.0.0 is for all IPv4 addresses of the machine.
    port: port to listen on; 0 for any free one.
    on_ready: function to call with the address once the models are open.

  Raises:
    UserError: a setting is invalid, or a model cannot be opened.
    OSError: the host is unknown, or the port is in use.
  """
  settings = settings_module.with_fallbacks(settings)
  settings_module.validate_settings(settings)
  application = app_module.build_app(
    settings, lambda: setattr(server, 'should_exit', True), lambda: on_ready(address)
  )
  config = uvicorn.Config(
    application,
    http=connections.Connection,
    log_config=None,
    access_log=False,
    server_header=False,
    timeout_graceful_shutdown=max(1, round(settings.drain_s)),
  )
  server = uvicorn.Server(config)
  _configure_logging()
  signals = signal.SIGTERM, signal.SIGINT
  # Uvicorn handles the signals itself, and raises them again once it has stopped. They are ignored
  # then, since a requested stop is a success.
  previous_handlers = {number: signal.signal(number, lambda *_: None) for number in signals}
  try:
    with contextlib.ExitStack() as stack:
      listeners = _bind(host, port, stack)
      address = f'http://{f"[{host}]" if ":" in host else host}:{listeners[0].getsockname()[1]}'
      server.run(listeners)
  finally:
    for number, handler in previous_handlers.items():
      signal.signal(number, handler)
  if failure := application.state.service.failure:
    raise failure


def _bind(host: str, port: int, stack: contextlib.ExitStack) -> list[socket.socket]:
  """Return a socket for each address of a host, all bound to one port and closed by `stack`.

  Raises:
    OSError: the host is unknown or of another machine, or one of its addresses has another server.
  """
  listeners: list[socket.socket] = []
  try:
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, _, _, _, address in dict.fromkeys(infos):
      listener = stack.enter_context(socket.socket(family))
      listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      try:
        listener.bind((address[0], port, *address[2:]))
      except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
          raise
        continue  # Such as ::1 of localhost on a machine without IPv6.
      port = listener.getsockname()[1]  # If it was 0, a free one has been chosen.
      listeners.append(listener)
    if not listeners:
      raise OSError(errno.EADDRNOTAVAIL, 'it is not an address of this machine')
  except OSError as error:
    message = f'Cannot listen on {host}:{port} ({error.strerror}); choose another host or port.'
    raise OSError(message) from error
  return listeners


def _is_reportable(record: logging.LogRecord) -> bool:
  """Return whether to log a record: not if its request was canceled or its client disconnected."""
  error = record.exc_info[1] if record.exc_info else None
  return not isinstance(error, asyncio.CancelledError | ClientDisconnect)


def _configure_logging() -> None:
  """Log to stderr as lines of JSON, including uvicorn's messages, at the level of the console."""
  handler = logging.StreamHandler()
  handler.setFormatter(observability.JsonFormatter())
  handler.addFilter(_is_reportable)
  for name in ('uadjax', 'uvicorn.error'):
    logger = logging.getLogger(name)
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(log.shown_level())


__all__ = ['Settings', 'serve']
