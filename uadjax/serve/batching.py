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


class Answer(NamedTuple):
  """What a detector says of one image."""

  score: float
  map: Float[np.ndarray, 'h w']


class Batcher:
  """Gives images to a detector in batches of the sizes that leave every score what it is."""

  def __init__(
    self,
    scorers: Sequence[runtimes.Run],
    sizes: Sequence[int],
    at_once: int,
    seen: Callable[[int], Any] = lambda images: None,
  ):
    """Begin; to be called where an event loop runs.

    Args:
      scorers: of the devices, which take turns.
      sizes: of batches, ascending; fewer images are padded to the next one.
      at_once: batches that are computed at the same time.
      seen: told how many images a batch has.
    """
    self._sizes, self._seen = sizes, seen
    self._waiting: collections.deque[tuple[Image, asyncio.Future[Answer]]] = collections.deque()
    self._some = asyncio.Condition()
    self._threads = futures.ThreadPoolExecutor(at_once, 'uadjax-batch')
    self._workers = [
      asyncio.create_task(self._work(scorers[number % len(scorers)])) for number in range(at_once)
    ]

  async def score(self, image: Image) -> Answer:
    """Wait for what the detector says; one that is cancelled is not computed."""
    answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    async with self._some:
      self._waiting.append((image, answer))
      self._some.notify()
    return await answer

  async def close(self) -> None:
    """Stop; what waits is cancelled."""
    for task in self._workers:
      task.cancel()
    await asyncio.gather(*self._workers, return_exceptions=True)
    for _, answer in self._waiting:
      answer.cancel()
    self._threads.shutdown(wait=False, cancel_futures=True)

  async def _work(self, scorer: runtimes.Run) -> None:
    loop = asyncio.get_running_loop()
    while True:
      async with self._some:
        await self._some.wait_for(lambda: self._waiting)
        taken = self._take()
      if not taken:
        continue
      self._seen(len(taken))
      images, answers = zip(*taken, strict=True)
      try:
        found = await loop.run_in_executor(self._threads, computed, scorer, images, self._sizes)
      except Exception as error:
        found = [error] * len(answers)
      for answer, told in zip(answers, found, strict=True):
        if answer.done():
          continue
        if isinstance(told, Exception):
          answer.set_exception(told)
        else:
          answer.set_result(told)

  def _take(self) -> list[tuple[Image, asyncio.Future[Answer]]]:
    """What came first and is still wanted, a batch at most."""
    taken = []
    while self._waiting and len(taken) < self._sizes[-1]:
      one = self._waiting.popleft()
      if not one[1].done():
        taken.append(one)
    return taken


def computed(scorer: runtimes.Run, images: Sequence[Image], sizes: Sequence[int]) -> list[Answer]:
  """Score images in one batch of the smallest size that holds them."""
  rows = next(size for size in sizes if size >= len(images))
  batch = np.zeros((rows, *images[0].shape), np.uint8)
  batch[: len(images)] = images
  scores = scorer(batch)
  # Copies, or one answer that is kept would keep the maps of its batch.
  return [Answer(float(scores.image[row]), np.array(scores.map[row])) for row in range(len(images))]


def faithful(scorer: runtimes.Run, height: int, width: int, most: int) -> tuple[int, ...]:
  """The batch sizes, up to the largest, at which an image has the very answer of a full batch.

  The order in which a runtime adds up may depend on a batch's size, never on what the images show:
  so a few images tell of all. The first call at each size is also what warms up.
  """
  random = np.random.default_rng(0)
  images = list(random.integers(0, 256, (most, height, width, 3), np.uint8))
  full = computed(scorer, images, [most])
  sizes = [most]
  for size in _halved(most):
    found = computed(scorer, images[:size], [size])
    pairs = zip(found, full[:size], strict=True)
    if all(a.score == b.score and np.array_equal(a.map, b.map) for a, b in pairs):
      sizes.insert(0, size)
  return tuple(sizes)


def _halved(size: int) -> list[int]:
  """Half of it, half of that, and so on until one."""
  return [] if size == 1 else [size // 2, *_halved(size // 2)]
