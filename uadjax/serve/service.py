"""The state that requests share: opened models with their batchers, admission, and the metrics.

The application (`app`) and the Open Inference Protocol (`protocol`) are routes over it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent import futures
import contextlib
from typing import Any

from uadjax.inference.result import Result
from uadjax.serve import batching, models, observability, requests
from uadjax.serve.settings import Settings
from uadjax.system import threads

_RETRY = {'Retry-After': '1'}


class Service:
  """What requests share: models, how many requests are under way, and the numbers of it all."""

  def __init__(self, settings: Settings):
    self.settings = settings
    self.numbers = observability.Numbers()
    self.models: dict[str, models.Opened] = {}
    self.batchers: dict[str, batching.Batcher] = {}
    self.failure: BaseException | None = None
    self.threads = futures.ThreadPoolExecutor(threads.cores(), 'uadjax-serve')
    # Who came first is answered first: what all of them began none would end in time.
    self.turns = asyncio.Semaphore(0)
    self._under_way = 0

  @property
  def ready(self) -> bool:
    """Whether every model is warm."""
    return len(self.batchers) == len(self.settings.models)

  async def open(self) -> None:
    """Open and warm up the models, one after the other."""
    for name, directory in self.settings.models.items():
      self.models[name] = await self.thread(models.opened, name, directory, self.settings)
    largest = max(model.sizes[-1] for model in self.models.values())
    for _ in range(2 * max(threads.cores(), largest)):  # One half is read while one is computed.
      self.turns.release()
    for name, model in self.models.items():
      self.batchers[name] = model.batcher(self.numbers.batches.labels(name).observe)
      observability.LOG.info('ready', extra={'told': model.about()})

  async def close(self) -> None:
    """Stop computing."""
    for batcher in self.batchers.values():
      await batcher.close()
    self.threads.shutdown(wait=False, cancel_futures=True)

  async def thread(self, work: Callable[..., Any], *args: Any) -> Any:
    """Wait for what takes its time, done in a thread."""
    return await asyncio.get_running_loop().run_in_executor(self.threads, work, *args)

  def model(self, name: str) -> models.Opened:
    """By name; the first where none is named.

    Raises:
      requests.Refused: there is none of that name, or it is not warm yet.
    """
    known = list(self.settings.models)
    if name and name not in known:
      raise requests.Refused(404, f'There is no model {name!r}; choose from {known}.')
    if not self.ready:
      raise requests.Refused(503, 'The models are being warmed up; try again.', _RETRY)
    return self.models[name or known[0]]

  @contextlib.asynccontextmanager
  async def admitted(self, images: int = 1) -> AsyncIterator[None]:
    """Room for so many images, until their deadline.

    Raises:
      requests.Refused: there is no room, or the time is over.
    """
    most = self.settings.queue
    if self._under_way + images > most:
      raise requests.Refused(
        503, f'{self._under_way} images are under way, and {most} are the most; try again.', _RETRY
      )
    self._under_way += images
    self.numbers.under_way.set(self._under_way)
    try:
      async with asyncio.timeout(self.settings.deadline_s):
        yield
    except TimeoutError:
      raise requests.Refused(
        504,
        f'There was no answer within {self.settings.deadline_s:g} s; send fewer or smaller images '
        'at a time, or ask the operator for a longer deadline.',
        _RETRY,
      ) from None
    finally:
      self._under_way -= images
      self.numbers.under_way.set(self._under_way)

  async def judge(self, model: models.Opened, picture: requests.Picture) -> Result:
    """The verdict on an image that was read."""
    answer = await self.batchers[model.name].score(picture.pixels)
    own = model.predictor.model
    result = Result(
      picture.source, 'image', own.ops, own.limits, picture.size, answer.score, answer.map
    )
    self.numbers.images.labels(model.name, result.label).inc()
    return result
