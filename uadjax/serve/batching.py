"""Dynamic batching of the images of concurrent requests.

A free worker takes whatever is queued, up to a full batch, without waiting for a batch to fill up.
So the batch size follows the load, and a single request is as fast as without batching.

Letters: h w network image.
"""

import asyncio
from collections.abc import Callable
from concurrent import futures
import itertools

import numpy as np

from uadjax.model.scorer import Image, Prediction, Scorer


class Batcher:
  """Queue of images, and workers that score them in batches."""

  def __init__(self, scorer: Scorer, on_batch: Callable[[int], object] = lambda num_images: None):
    """Start the workers; requires a running event loop.

    Args:
      scorer: scorer, with as many workers as it scores batches concurrently.
      on_batch: function to call with the number of images of each batch.
    """
    self._scorer, self._on_batch = scorer, on_batch
    self._queue: asyncio.Queue[tuple[Image, asyncio.Future[Prediction]]] = asyncio.Queue()
    self._threads = futures.ThreadPoolExecutor(scorer.concurrency, 'uadjax-batch')
    self._workers = [asyncio.create_task(self._run_worker(i)) for i in range(scorer.concurrency)]

  async def score(self, image: Image) -> Prediction:
    """Queue an image and wait for its prediction; canceled images are not scored."""
    future: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()
    self._queue.put_nowait((image, future))
    return await future

  async def close(self) -> None:
    """Stop the workers, and cancel the queued images."""
    for task in self._workers:
      task.cancel()
    await asyncio.gather(*self._workers, return_exceptions=True)
    while not self._queue.empty():
      self._queue.get_nowait()[1].cancel()
    self._threads.shutdown(wait=False, cancel_futures=True)

  async def _run_worker(self, index: int) -> None:
    loop = asyncio.get_running_loop()
    while True:
      items, item = [], await self._queue.get()
      while True:
        if not item[1].done():  # Others were canceled.
          items.append(item)
        if self._queue.empty() or len(items) == self._scorer.batch_sizes[-1]:
          break
        item = self._queue.get_nowait()
      if not items:
        continue
      self._on_batch(len(items))
      images, result_futures = zip(*items, strict=True)
      try:
        predictions = await loop.run_in_executor(self._threads, self._scorer.score, images, index)
      except Exception as error:
        predictions = [error] * len(result_futures)
      for future, prediction in zip(result_futures, predictions, strict=True):
        if future.done():
          continue
        if isinstance(prediction, Exception):
          future.set_exception(prediction)
        else:
          future.set_result(prediction)


def exact_batch_sizes(scorer: Scorer, height: int, width: int, max_size: int) -> tuple[int, ...]:
  """Return the batch sizes, ascending, at which predictions equal those of a full batch exactly.

  The summation order of a runtime may depend on the batch size, but not on the contents of images,
  so a few random images suffice. The first call at each size also warms up the runtime.

  Raises:
    ValueError: a prediction is not finite.
  """
  rng = np.random.default_rng(0)
  images = list(rng.integers(0, 256, (max_size, height, width, 3), np.uint8))
  devices = range(len(scorer.runs))

  def predict(size: int) -> list[list[Prediction]]:
    return [scorer.with_batch_size(size).score(images[:size], device) for device in devices]

  def equals_full_batch(size: int) -> bool:
    return all(
      a.score == b.score and np.array_equal(a.anomaly_map, b.anomaly_map)
      for predictions, full_batch in zip(predict(size), full_batches, strict=True)
      for a, b in zip(predictions, full_batch[:size], strict=True)
    )

  full_batches = predict(max_size)
  if not all(
    np.isfinite(p.score) and np.isfinite(p.anomaly_map).all()
    for p in itertools.chain(*full_batches)
  ):
    raise ValueError('scores or anomaly maps of random images are not finite')
  smaller_sizes = [max_size >> n for n in range(max_size.bit_length() - 1, 0, -1)]
  return (*filter(equals_full_batch, smaller_sizes), max_size)
