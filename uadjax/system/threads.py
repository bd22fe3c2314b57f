"""Threads that work ahead, and stop when nobody wants more."""

from collections.abc import Iterator
from concurrent import futures
import contextlib
import contextvars
import os
import queue
import threading
from typing import TypeVar

Item = TypeVar('Item')


def cores() -> int:
  """How many this process may use."""
  if hasattr(os, 'sched_getaffinity'):  # Not on every system.
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


@contextlib.contextmanager
def pool(threads: int, name: str) -> Iterator[futures.ThreadPoolExecutor]:
  """A thread pool in the caller's context that drops waiting work on exit."""
  context = contextvars.copy_context()

  def inherit() -> None:
    for variable, value in context.items():
      variable.set(value)

  pool = futures.ThreadPoolExecutor(threads, name, inherit)
  try:
    yield pool
  finally:
    pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def fed(items: Iterator[Item], ahead: int) -> Iterator[Iterator[Item]]:
  """Take items in a thread of its own, so many ahead of their use.

  It may wait long for the next item, as for a camera's: what came before is yielded meanwhile.
  """
  waiting: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(ahead)
  enough = threading.Event()

  def put(item: Item | None, error: BaseException | None = None) -> bool:
    while not enough.is_set():
      with contextlib.suppress(queue.Full):
        waiting.put((item, error), timeout=0.1)
        return True
    return False

  def feed() -> None:
    try:
      for item in items:
        if not put(item):
          return
      put(None)
    except BaseException as error:  # Raised where the items are used.
      put(None, error)

  def taken() -> Iterator[Item]:
    while True:
      item, error = waiting.get()
      if error:
        raise error
      if item is None:
        return
      yield item

  threading.Thread(target=feed, name='uadjax-feed', daemon=True).start()
  try:
    yield taken()
  finally:
    enough.set()
