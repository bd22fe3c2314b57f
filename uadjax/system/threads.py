"""Thread pools and prefetching, which stop when their context manager exits."""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
import contextlib
import contextvars
import os
import queue
import threading
from typing import TypeVar

Item = TypeVar('Item')
Output = TypeVar('Output')


def num_cores() -> int:
  """Return the number of CPU cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):  # Some systems, such as macOS, lack it.
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


@contextlib.contextmanager
def thread_pool(num_threads: int, name: str) -> Iterator[futures.ThreadPoolExecutor]:
  """Yield a thread pool that copies the caller's context and cancels pending work on exit."""
  context = contextvars.copy_context()

  def set_context() -> None:
    for variable, value in context.items():
      variable.set(value)

  pool = futures.ThreadPoolExecutor(num_threads, name, set_context)
  try:
    yield pool
  finally:
    pool.shutdown(cancel_futures=True)


def map_ahead(
  pool: futures.Executor, function: Callable[[Item], Output], items: Iterable[Item], num_ahead: int
) -> Iterator[Output]:
  """Yield the results of a function in order, computed in a pool for up to `num_ahead` items."""
  pending: collections.deque[futures.Future[Output]] = collections.deque()
  for item in items:
    pending.append(pool.submit(function, item))
    if len(pending) > num_ahead:
      yield pending.popleft().result()
  while pending:
    yield pending.popleft().result()


@contextlib.contextmanager
def prefetch(items: Iterator[Item], num_ahead: int) -> Iterator[Iterator[Item]]:
  """Yield an iterator over the items, which a background thread reads up to `num_ahead` ahead.

  Items already read are available while the thread waits for the next, for example from a camera.
  An exception in the thread is raised by the iterator.
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
    except BaseException as error:  # The consumer raises it.
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
