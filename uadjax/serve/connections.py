"""HTTP connections with time limits for clients that stop sending or receiving."""

import asyncio
from typing import Any

from uvicorn.protocols.http import h11_impl

TIMEOUT_S = 10.0  # Longest time without progress; `requests.read_body` enforces it for bodies.


class Connection(h11_impl.H11Protocol):
  """Connection that is closed if its client stalls.

  Uvicorn itself limits only the time between a response and the next request. Here, the head of a
  request must arrive within TIMEOUT_S, and some of a response must be received every TIMEOUT_S.
  """

  _head_timer: asyncio.TimerHandle | None = None
  _response_timer: asyncio.TimerHandle | None = None

  # The transports of uvloop have the methods of asyncio.Transport, but do not derive from it.
  def connection_made(self, transport: Any) -> None:
    """Limit the time until the first request."""
    super().connection_made(transport)
    transport.set_write_buffer_limits(0)  # Any byte that the client does not take pauses writing.
    self._limit_head()

  def connection_lost(self, exc: Exception | None) -> None:
    """Cancel the timers."""
    super().connection_lost(exc)
    for timer in (self._head_timer, self._response_timer):
      if timer:
        timer.cancel()

  def data_received(self, data: bytes) -> None:
    """Process received bytes, and limit the time until a head that they begin is complete."""
    super().data_received(data)
    self._limit_head()

  def pause_writing(self) -> None:
    """Watch that the client takes the response."""
    super().pause_writing()
    self._limit_response()

  def resume_writing(self) -> None:
    """Stop watching; the client has taken everything."""
    super().resume_writing()
    if self._response_timer:
      self._response_timer.cancel()

  def _limit_head(self) -> None:
    is_idle = self.cycle is None or self.cycle.response_complete
    if is_idle and not self._head_timer:
      self._head_timer = self.loop.call_later(TIMEOUT_S, self.timeout_keep_alive_handler)
    elif not is_idle and self._head_timer:
      self._head_timer.cancel()
      self._head_timer = None

  def _limit_response(self, previous_size: int | None = None) -> None:
    size = self.transport.get_write_buffer_size()
    if size == previous_size:
      self.transport.abort()
    else:
      self._response_timer = self.loop.call_later(TIMEOUT_S, self._limit_response, size)
