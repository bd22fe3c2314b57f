"""The HTTP service `uadjax serve`: FastAPI and uvicorn, batches across requests, a page at /.

`app` has PaddleX's routes, `protocol` the Open Inference Protocol's, both over `service`. Files in
`page` are what a browser gets; whatever the report needs as well lies in `uadjax/web`.
"""

import asyncio
import logging
import signal
from types import FrameType

from starlette.requests import ClientDisconnect
import uvicorn

from uadjax.serve import app as app_module, observability, settings as settings_module
from uadjax.serve.settings import Settings


def serve(settings: Settings, host: str = '127.0.0.1', port: int = 8000) -> None:
  """Answer requests until SIGTERM or Ctrl-C; what was accepted by then is answered still.

  Args:
    settings: of the service.
    host: address to listen at; 0.0.0.0 for all of the machine's.
    port: 0 for any that is free.

  Raises:
    UserError: the settings are wrong, or a model cannot be opened.
    OSError: the port is taken.
  """
  settings = settings_module.with_fallbacks(settings)
  settings_module.validate_settings(settings)
  application = app_module.build_app(settings, lambda: setattr(server, 'should_exit', True))
  config = uvicorn.Config(
    application,
    host,
    port,
    log_config=None,
    access_log=False,
    timeout_graceful_shutdown=max(1, round(settings.drain_s)),
    server_header=False,
  )
  server = uvicorn.Server(config)
  _configure_logging()
  previous_handlers = {
    signal_number: signal.signal(signal_number, _ignore_signal)
    for signal_number in (signal.SIGTERM, signal.SIGINT)
  }
  try:
    server.run()  # Hears the signals itself, and raises them again when it is done.
  except SystemExit as exit_error:
    raise OSError(f'Cannot listen at {host}:{port}; another program may.') from exit_error
  finally:
    for signal_number, handler in previous_handlers.items():
      signal.signal(signal_number, handler)
  if failure := application.state.service.failure:
    raise failure


def _ignore_signal(signal_number: int, frame: FrameType | None) -> None:
  """A service that was told to stop, and did, has not failed."""


def _is_reportable(record: logging.LogRecord) -> bool:
  """All but where a request ended that was given up, by its client or when the time was over."""
  exception_type = record.exc_info[0] if record.exc_info else None
  return exception_type is None or not issubclass(
    exception_type, (asyncio.CancelledError, ClientDisconnect)
  )


def _configure_logging() -> None:
  """Lines of JSON on stderr, uvicorn's own among them."""
  handler = logging.StreamHandler()
  handler.setFormatter(observability.JsonFormatter())
  handler.addFilter(_is_reportable)
  for name in ('uadjax', 'uvicorn.error'):
    logger = logging.getLogger(name)
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)


__all__ = ['Settings', 'serve']
