"""Handling of SIGTERM and Ctrl-C: raise an exception, or set an event and finish the step."""

import _thread
from collections.abc import Callable, Iterator
import contextlib
import signal
import sys
import threading
from typing import Any

from uadjax.errors import Interrupted

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_RETRY_DELAY_S = 0.05


@contextlib.contextmanager
def raise_on_signal() -> Iterator[None]:
  """Raise Interrupted in the main thread on SIGTERM or SIGINT, so that context managers clean up.

  Python discards exceptions in some places, such as the finalization of an object. The signal is
  then sent again a little later.
  """

  def raise_interrupted(signal_number: int, frame: Any) -> None:
    raise Interrupted(f'Stopped by {signal.Signals(signal_number).name}.')

  previous_hook = sys.unraisablehook

  def handle_unraisable(unraisable: Any) -> None:
    if not isinstance(unraisable.exc_value, Interrupted):
      previous_hook(unraisable)
      return
    signal_number = next(number for number in _SIGNALS if number.name in str(unraisable.exc_value))
    threading.Timer(_RETRY_DELAY_S, _signal_main_thread, [signal_number]).start()

  with _signal_handlers(raise_interrupted):
    sys.unraisablehook = handle_unraisable
    try:
      yield
    finally:
      sys.unraisablehook = previous_hook


@contextlib.contextmanager
def stop_event_on_signal() -> Iterator[threading.Event]:
  """Yield an event that the first SIGTERM or SIGINT sets, for a loop to check between steps.

  A second signal is handled as before the call.
  """
  stop_event = threading.Event()
  with contextlib.ExitStack() as stack:

    def request_stop(signal_number: int, frame: Any) -> None:
      stop_event.set()
      stack.close()
      print('Stopping after this step; a second signal stops at once.', file=sys.stderr)

    stack.enter_context(_signal_handlers(request_stop))
    yield stop_event


def _signal_main_thread(signal_number: signal.Signals) -> None:
  """Send a signal to the main thread; one sent to another would not interrupt a blocking call."""
  if hasattr(signal, 'pthread_kill'):  # Windows lacks it.
    main_thread_id = threading.main_thread().ident
    assert main_thread_id is not None
    signal.pthread_kill(main_thread_id, signal_number)
  else:
    _thread.interrupt_main(signal_number)


@contextlib.contextmanager
def _signal_handlers(handler: Callable[[int, Any], None]) -> Iterator[None]:
  if threading.current_thread() is not threading.main_thread():
    yield  # Python allows signal handlers in the main thread only.
    return
  previous_handlers = {
    signal_number: signal.signal(signal_number, handler) for signal_number in _SIGNALS
  }
  try:
    yield
  finally:
    for signal_number, previous_handler in previous_handlers.items():
      signal.signal(signal_number, previous_handler)
