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


def num_cores() -> int:
  """How many this process may use."""
  if hasattr(os, 'sched_getaffinity'):  # Not on every system.
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


@contextlib.contextmanager
def thread_pool(num_threads: int, name: str) -> Iterator[futures.ThreadPoolExecutor]:
  """A thread pool in the caller's context that drops waiting work on exit."""
  context = contextvars.copy_context()

  def set_context() -> None:
    for variable, value in context.items():
      variable.set(value)

  pool = futures.ThreadPoolExecutor(num_threads, name, set_context)
  try:
    yield pool
  finally:
    pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def prefetch(items: Iterator[Item], num_ahead: int) -> Iterator[Iterator[Item]]:
  """Take items in a thread of its own, so many ahead of their use.

  It may wait long for the next item, as for a camera's: what came before is yielded meanwhile.
  """
  buffer: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(num_ahead)
  stop_event = threading.Event()

  def put(item: Item | None, error: BaseException | None = None) -> bool:
    while not stop_event.is_set():
      with contextlib.suppress(queue.Full):
        buffer.put((item, error), timeout=0.1)
        return True
    return False

  def produce() -> None:
    try:
      for item in items:
        if not put(item):
          return
      put(None)
    except BaseException as error:  # Raised where the items are used.
      put(None, error)

  def consume() -> Iterator[Item]:
    while True:
      item, error = buffer.get()
      if error:
        raise error
      if item is None:
        return
      yield item

  threading.Thread(target=produce, name='uadjax-feed', daemon=True).start()
  try:
    yield consume()
  finally:
    stop_event.set()
