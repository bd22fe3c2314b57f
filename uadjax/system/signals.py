"""SIGTERM and Ctrl-C: leave cleanly, or note the wish and finish the step."""

from collections.abc import Callable, Iterator
import contextlib
import signal
import sys
import threading
from typing import Any

from uadjax.errors import Interrupted

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_AGAIN_S = 0.05


@contextlib.contextmanager
def raised() -> Iterator[None]:
  """Raise Interrupted where the program is; what is being written has its own cleaning up.

  It may be in a place from which Python lets nothing out, such as an object's end; then it is
  raised again, a little later.
  """

  def leave(number: int, frame: Any) -> None:
    raise Interrupted(f'Stopped by {signal.Signals(number).name}.')

  before = sys.unraisablehook

  def swallowed(what: Any) -> None:
    if not isinstance(what.exc_value, Interrupted):
      before(what)
      return
    number = next(number for number in _SIGNALS if number.name in str(what.exc_value))
    main = threading.main_thread().ident  # No other is woken by what is to be woken.
    threading.Timer(_AGAIN_S, signal.pthread_kill, (main, number)).start()

  with _handled(leave):
    sys.unraisablehook = swallowed
    try:
      yield
    finally:
      sys.unraisablehook = before


@contextlib.contextmanager
def noted() -> Iterator[threading.Event]:
  """Set an event that the loop looks at between steps; a second signal does what it did before."""
  wish = threading.Event()
  with contextlib.ExitStack() as stack:

    def note(number: int, frame: Any) -> None:
      wish.set()
      stack.close()
      print('Stopping after this step; once more to stop at once.', file=sys.stderr)

    stack.enter_context(_handled(note))
    yield wish


@contextlib.contextmanager
def _handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
  if threading.current_thread() is not threading.main_thread():
    yield  # Only the main thread may handle signals; others are not sent any.
    return
  before = {number: signal.signal(number, handler) for number in _SIGNALS}
  try:
    yield
  finally:
    for number, old in before.items():
      signal.signal(number, old)
