"""Images of many requests are computed together, and each gets its own answer."""

import asyncio
import itertools
import threading

import numpy as np

from uadjax.model.scorer import Scorer
from uadjax.serve import batching
from uadjax.types import Scores


def image(value):
  return np.full((2, 3, 3), value, np.uint8)


def mean(images):
  """A score that tells images apart."""
  return Scores(images.mean(axis=3, dtype=np.float32), images.mean(axis=(1, 2, 3)))


def scored(values, run=mean, sizes=(1, 2, 4), at_once=2):
  """The answers, and how many images each batch had."""
  batch_sizes = []

  async def ask():
    batcher = batching.Batcher(Scorer([run], at_once, sizes), batch_sizes.append)
    try:
      return await asyncio.gather(
        *(batcher.score(image(value)) for value in values), return_exceptions=True
      )
    finally:
      await batcher.close()

  return asyncio.run(ask()), batch_sizes


def test_each_gets_its_own_answer():
  for sizes, at_once in itertools.product([(1,), (4,), (1, 2, 4), (3, 7)], (1, 3)):
    answers, batch_sizes = scored(range(23), sizes=sizes, at_once=at_once)
    assert [answer.score for answer in answers] == list(range(23)), (sizes, at_once)
    assert all((answer.anomaly_map == answer.score).all() for answer in answers), (sizes, at_once)
    assert sum(batch_sizes) == 23, (sizes, at_once)
    assert max(batch_sizes) <= sizes[-1], (sizes, at_once)


def test_queued_images_are_computed_in_one_batch():
  begun, go = threading.Event(), threading.Event()

  def slow(images):
    begun.set()
    assert go.wait(10)
    return mean(images)

  batch_sizes = []

  async def ask():
    batcher = batching.Batcher(Scorer([slow], 1, (1, 2, 4, 8)), batch_sizes.append)
    first = asyncio.create_task(batcher.score(image(0)))
    await asyncio.to_thread(begun.wait, 10)
    others = [asyncio.create_task(batcher.score(image(value))) for value in range(1, 6)]
    gone = asyncio.create_task(batcher.score(image(9)))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    go.set()
    answers = await asyncio.gather(first, *others)
    await batcher.close()
    return [answer.score for answer in answers]

  assert asyncio.run(ask()) == [0, 1, 2, 3, 4, 5]
  assert batch_sizes == [1, 5]  # Whoever was given up was not computed.


def test_a_failed_batch_fails_only_its_own_images():
  def fails_at_7(images):
    if (images == 7).any():
      raise RuntimeError('seven')
    return mean(images)

  answers, _ = scored([1, 7, 3], fails_at_7, sizes=(1,))
  assert [answers[0].score, answers[2].score] == [1, 3]
  assert str(answers[1]) == 'seven'


def test_only_batch_sizes_that_change_no_answer_are_used():
  assert batching.exact_batch_sizes(Scorer([mean]), 2, 3, 8) == (1, 2, 4, 8)
  assert batching.exact_batch_sizes(Scorer([mean]), 2, 3, 1) == (1,)

  def rounds(images):
    """As a runtime may that adds up in another order for two."""
    scores = mean(images)
    return scores._replace(image=scores.image * (1 + 1e-12 * (len(images) == 2)))

  assert batching.exact_batch_sizes(Scorer([rounds]), 2, 3, 8) == (1, 4, 8)
  assert batching.exact_batch_sizes(Scorer([mean, rounds]), 2, 3, 8) == (1, 4, 8)
