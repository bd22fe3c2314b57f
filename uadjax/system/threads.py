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

_JOIN_TIMEOUT_S = 1.0

Item = TypeVar('Item')
Output = TypeVar('Output')


def num_cores() -> int:
  """Return the number of CPU cores that this process may use."""
  # Some systems, such as macOS, lack `sched_getaffinity`.
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


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
  buffer: queue.SimpleQueue[tuple[Item] | BaseException | None] = queue.SimpleQueue()
  free_slots, stop_event = threading.Semaphore(num_ahead), threading.Event()

  def produce() -> None:
    error = None
    try:
      for item in items:
        buffer.put((item,))
        free_slots.acquire()
        if stop_event.is_set():
          return
    except BaseException as exception:  # The consumer raises it.
      error = exception
    buffer.put(error)

  def consume() -> Iterator[Item]:
    while isinstance(entry := buffer.get(), tuple):
      free_slots.release()
      yield entry[0]
    if entry:
      raise entry

  thread = threading.Thread(target=produce, name='uadjax-feed', daemon=True)
  thread.start()
  try:
    yield consume()
  finally:
    stop_event.set()
    free_slots.release()
    # As the last owner of `items` the thread would release JAX's arrays; if Python exits meanwhile,
    # the process aborts. A camera may block it for longer than the timeout.
    thread.join(_JOIN_TIMEOUT_S)
