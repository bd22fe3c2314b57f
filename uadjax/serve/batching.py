"""Dynamic batching of the images of concurrent requests.

A free worker takes whatever is queued, up to a full batch, without waiting for a batch to fill up.
So the batch size follows the load, and a single request is as fast as without batching.

Letters: h w network image.
"""

import asyncio
import collections
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any, NamedTuple

from jaxtyping import Float, UInt8
import numpy as np

from uadjax.export import runtimes

Image = UInt8[np.ndarray, 'h w 3']


class Prediction(NamedTuple):
  """Anomaly score and anomaly map of one image."""

  score: float
  anomaly_map: Float[np.ndarray, 'h w']


class Batcher:
  """Queue of images, and workers that score them in batches."""

  def __init__(
    self,
    scorers: Sequence[runtimes.RunFunction],
    batch_sizes: Sequence[int],
    max_concurrent_batches: int,
    on_batch: Callable[[int], Any] = lambda num_images: None,
  ):
    """Start the workers; requires a running event loop.

    Args:
      scorers: functions that score a batch, one per device; workers are spread over them.
      batch_sizes: allowed batch sizes, ascending; a batch is padded to the next one.
      max_concurrent_batches: number of workers and thus of batches scored concurrently.
      on_batch: function to call with the number of images of each batch.
    """
    self._batch_sizes, self._on_batch = batch_sizes, on_batch
    self._queue: collections.deque[tuple[Image, asyncio.Future[Prediction]]] = collections.deque()
    self._not_empty = asyncio.Condition()
    self._threads = futures.ThreadPoolExecutor(max_concurrent_batches, 'uadjax-batch')
    self._workers = [
      asyncio.create_task(self._run_worker(scorers[index % len(scorers)]))
      for index in range(max_concurrent_batches)
    ]

  async def score(self, image: Image) -> Prediction:
    """Queue an image and wait for its prediction; canceled images are not scored."""
    future: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()
    async with self._not_empty:
      self._queue.append((image, future))
      self._not_empty.notify()
    return await future

  async def close(self) -> None:
    """Stop the workers, and cancel the queued images."""
    for task in self._workers:
      task.cancel()
    await asyncio.gather(*self._workers, return_exceptions=True)
    for _, future in self._queue:
      future.cancel()
    self._threads.shutdown(wait=False, cancel_futures=True)

  async def _run_worker(self, scorer: runtimes.RunFunction) -> None:
    loop = asyncio.get_running_loop()
    while True:
      async with self._not_empty:
        await self._not_empty.wait_for(lambda: self._queue)
        items = self._take_batch()
      if not items:
        continue
      self._on_batch(len(items))
      images, result_futures = zip(*items, strict=True)
      try:
        predictions = await loop.run_in_executor(
          self._threads, score_batch, scorer, images, self._batch_sizes
        )
      except Exception as error:
        predictions = [error] * len(result_futures)
      for future, prediction in zip(result_futures, predictions, strict=True):
        if future.done():
          continue
        if isinstance(prediction, Exception):
          future.set_exception(prediction)
        else:
          future.set_result(prediction)

  def _take_batch(self) -> list[tuple[Image, asyncio.Future[Prediction]]]:
    """Remove the oldest images from the queue, at most a batch, and drop canceled ones."""
    items = []
    while self._queue and len(items) < self._batch_sizes[-1]:
      item = self._queue.popleft()
      if not item[1].done():
        items.append(item)
    return items


def score_batch(
  scorer: runtimes.RunFunction, images: Sequence[Image], batch_sizes: Sequence[int]
) -> list[Prediction]:
  """Score images in one batch of the smallest size that holds them."""
  batch_size = next(size for size in batch_sizes if size >= len(images))
  batch = np.zeros((batch_size, *images[0].shape), np.uint8)
  batch[: len(images)] = images
  scores = scorer(batch)
  # Without the copy, a single prediction would keep the maps of its whole batch in memory.
  return [
    Prediction(float(scores.image[row]), np.array(scores.map[row])) for row in range(len(images))
  ]


def exact_batch_sizes(
  scorer: runtimes.RunFunction, height: int, width: int, max_batch_size: int
) -> tuple[int, ...]:
  """Return the batch sizes, ascending, at which predictions equal those of a full batch exactly.

  The summation order of a runtime may depend on the batch size, but not on the contents of images,
  so a few random images suffice. The first call at each size also warms up the runtime.
  """
  rng = np.random.default_rng(0)
  images = list(rng.integers(0, 256, (max_batch_size, height, width, 3), np.uint8))
  full_batch = score_batch(scorer, images, [max_batch_size])
  sizes = [max_batch_size]
  for size in _successive_halves(max_batch_size):
    predictions = score_batch(scorer, images[:size], [size])
    pairs = zip(predictions, full_batch[:size], strict=True)
    if all(a.score == b.score and np.array_equal(a.anomaly_map, b.anomaly_map) for a, b in pairs):
      sizes.insert(0, size)
  return tuple(sizes)


def _successive_halves(size: int) -> list[int]:
  """Return half of a size, half of that, and so on down to 1."""
  return [] if size == 1 else [size // 2, *_successive_halves(size // 2)]
