"""Handling of SIGTERM and Ctrl-C: raise an exception, or note the signal and finish the step."""

import _thread
from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import signal
import sys
import threading
import types
from typing import Any

from uadjax.errors import Interrupted

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_RETRY_DELAY_S = 0.05


@dataclasses.dataclass
class StopRequest:
  """Request to stop, for a loop to check between steps.

  Attributes:
    signal_number: signal that asked to stop; 0 until one does.
  """

  signal_number: int = 0


@contextlib.contextmanager
def raise_on_signal() -> Iterator[None]:
  """Raise Interrupted in the main thread on SIGTERM or SIGINT, so that context managers clean up.

  Python discards exceptions in some places, such as the finalization of an object. The signal is
  then sent again a little later.
  """

  def raise_interrupted(signal_number: int, frame: types.FrameType | None) -> None:
    error = Interrupted(f'Stopped by {signal.Signals(signal_number).name}.')
    error.signal_number = signal_number
    raise error

  previous_hook = sys.unraisablehook

  def handle_unraisable(unraisable: Any) -> None:
    error = unraisable.exc_value
    if isinstance(error, Interrupted) and error.signal_number is not None:
      threading.Timer(_RETRY_DELAY_S, _signal_main_thread, [error.signal_number]).start()
    else:
      previous_hook(unraisable)

  with _signal_handlers(raise_interrupted):
    sys.unraisablehook = handle_unraisable
    try:
      yield
    finally:
      sys.unraisablehook = previous_hook


@contextlib.contextmanager
def request_stop_on_signal() -> Iterator[StopRequest]:
  """Yield a request that gets the number of the first SIGTERM or SIGINT.

  A second signal is handled as before the call.
  """
  request = StopRequest()
  with contextlib.ExitStack() as stack:

    def request_stop(signal_number: int, frame: types.FrameType | None) -> None:
      request.signal_number = signal_number
      stack.close()
      print('Stopping after this step; a second signal stops at once.', file=sys.stderr)

    stack.enter_context(_signal_handlers(request_stop))
    yield request


def _signal_main_thread(signal_number: int) -> None:
  """Send a signal to the main thread; one sent to another would not interrupt a blocking call."""
  main_thread_id = threading.main_thread().ident
  if hasattr(signal, 'pthread_kill') and main_thread_id:  # Windows lacks it.
    signal.pthread_kill(main_thread_id, signal_number)
  else:
    _thread.interrupt_main(signal.Signals(signal_number))


@contextlib.contextmanager
def _signal_handlers(handler: Callable[[int, types.FrameType | None], None]) -> Iterator[None]:
  if threading.current_thread() is not threading.main_thread():
    yield  # Python allows signal handlers in the main thread only.
    return
  with contextlib.ExitStack() as stack:
    for number in _SIGNALS:
      stack.callback(signal.signal, number, signal.signal(number, handler))
    yield
