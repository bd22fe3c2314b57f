"""Images of many requests, computed together.

Whoever is free takes what waits, at most a batch of it: nobody waits for a batch to fill up. So
batches are as large as the load makes them, and one request alone is not slower than without.

Letters: r rows of a batch, h w the network image.
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
  """What a detector says of one image."""

  score: float
  anomaly_map: Float[np.ndarray, 'h w']


class Batcher:
  """Gives images to a detector in batches of the sizes that leave every score what it is."""

  def __init__(
    self,
    scorers: Sequence[runtimes.RunFunction],
    batch_sizes: Sequence[int],
    max_concurrent_batches: int,
    on_batch: Callable[[int], Any] = lambda num_images: None,
  ):
    """Begin; to be called where an event loop runs.

    Args:
      scorers: of the devices, which take turns.
      sizes: of batches, ascending; fewer images are padded to the next one.
      at_once: batches that are computed at the same time.
      seen: told how many images a batch has.
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
    """Wait for what the detector says; one that is cancelled is not computed."""
    future: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()
    async with self._not_empty:
      self._queue.append((image, future))
      self._not_empty.notify()
    return await future

  async def close(self) -> None:
    """Stop; what waits is cancelled."""
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
    """What came first and is still wanted, a batch at most."""
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
  # Copies, or one answer that is kept would keep the maps of its batch.
  return [
    Prediction(float(scores.image[row]), np.array(scores.map[row])) for row in range(len(images))
  ]


def exact_batch_sizes(
  scorer: runtimes.RunFunction, height: int, width: int, max_batch_size: int
) -> tuple[int, ...]:
  """The batch sizes, up to the largest, at which an image has the very answer of a full batch.

  The order in which a runtime adds up may depend on a batch's size, never on what the images show:
  so a few images tell of all. The first call at each size is also what warms up.
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
  """Half of it, half of that, and so on until one."""
  return [] if size == 1 else [size // 2, *_successive_halves(size // 2)]
