"""Limits of what is in progress at the same time, beyond which requests are rejected."""

from collections.abc import Callable, Iterator
import contextlib

from uadjax.serve.errors import RequestError, RETRY_HEADERS


class Capacity:
  """Number of things in progress, and its limit.

  Attributes:
    in_progress: current number.
    maximum: largest number.
  """

  def __init__(self, maximum: int, noun: str, on_change: Callable[[int], object] = lambda n: None):
    """Create a capacity of which nothing is used.

    Args:
      maximum: largest number.
      noun: what is counted, for messages.
      on_change: function to call with each new number.
    """
    self.in_progress, self.maximum = 0, maximum
    self._noun, self._on_change = noun, on_change

  def check(self, number: int = 1) -> None:
    """Raise a `RequestError` (503) if a number of further things would not fit."""
    if self.in_progress + number > self.maximum:
      problem = f'{self.in_progress} of {self.maximum} {self._noun} are in progress'
      problem += f', {number} more would not fit; try again.'
      raise RequestError(503, problem, RETRY_HEADERS)

  def add(self, number: int) -> None:
    """Change the number in progress, which a negative number reduces; see `check`."""
    self.check(number)
    self.in_progress += number
    self._on_change(self.in_progress)

  @contextlib.contextmanager
  def reserve(self, number: int = 1) -> Iterator[None]:
    """Count a number of things while the context is open; see `check`."""
    self.add(number)
    try:
      yield
    finally:
      self.add(-number)
