"""SIGTERM and Ctrl-C: leave cleanly, or note the wish and finish the step."""

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
  """Raise Interrupted where the program is; what is being written has its own cleaning up.

  It may be in a place from which Python lets nothing out, such as an object's end; then it is
  raised again, a little later.
  """

  def raise_interrupted(signal_number: int, frame: Any) -> None:
    raise Interrupted(f'Stopped by {signal.Signals(signal_number).name}.')

  previous_hook = sys.unraisablehook

  def handle_unraisable(unraisable: Any) -> None:
    if not isinstance(unraisable.exc_value, Interrupted):
      previous_hook(unraisable)
      return
    signal_number = next(number for number in _SIGNALS if number.name in str(unraisable.exc_value))
    main_thread_id = threading.main_thread().ident  # No other is woken by what is to be woken.
    threading.Timer(_RETRY_DELAY_S, signal.pthread_kill, (main_thread_id, signal_number)).start()

  with _signal_handlers(raise_interrupted):
    sys.unraisablehook = handle_unraisable
    try:
      yield
    finally:
      sys.unraisablehook = previous_hook


@contextlib.contextmanager
def stop_event_on_signal() -> Iterator[threading.Event]:
  """Set an event that the loop looks at between steps; a second signal does what it did before."""
  stop_event = threading.Event()
  with contextlib.ExitStack() as stack:

    def request_stop(signal_number: int, frame: Any) -> None:
      stop_event.set()
      stack.close()
      print('Stopping after this step; once more to stop at once.', file=sys.stderr)

    stack.enter_context(_signal_handlers(request_stop))
    yield stop_event


@contextlib.contextmanager
def _signal_handlers(handler: Callable[[int, Any], None]) -> Iterator[None]:
  if threading.current_thread() is not threading.main_thread():
    yield  # Only the main thread may handle signals; others are not sent any.
    return
  previous_handlers = {
    signal_number: signal.signal(signal_number, handler) for signal_number in _SIGNALS
  }
  try:
    yield
  finally:
    for signal_number, previous_handler in previous_handlers.items():
      signal.signal(signal_number, previous_handler)
