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

_RETRY_HEADERS = {'Retry-After': '1'}


class Service:
  """What requests share: models, how many requests are under way, and the numbers of it all."""

  def __init__(self, settings: Settings):
    self.settings = settings
    self.metrics = observability.Metrics()
    self.models: dict[str, models.ServedModel] = {}
    self.batchers: dict[str, batching.Batcher] = {}
    self.failure: BaseException | None = None
    self.executor = futures.ThreadPoolExecutor(threads.num_cores(), 'uadjax-serve')
    # Who came first is answered first: what all of them began none would end in time.
    self.admission = asyncio.Semaphore(0)
    self._num_images_in_progress = 0

  @property
  def is_ready(self) -> bool:
    """Whether every model is warm."""
    return len(self.batchers) == len(self.settings.models)

  async def open(self) -> None:
    """Open and warm up the models, one after the other."""
    for name, directory in self.settings.models.items():
      self.models[name] = await self.run_in_thread(
        models.open_model, name, directory, self.settings
      )
    largest_batch = max(model.batch_sizes[-1] for model in self.models.values())
    for _ in range(
      2 * max(threads.num_cores(), largest_batch)
    ):  # One half is read while one is computed.
      self.admission.release()
    for name, model in self.models.items():
      self.batchers[name] = model.make_batcher(self.metrics.batch_sizes.labels(name).observe)
      observability.LOG.info('ready', extra={'log_fields': model.describe()})

  async def close(self) -> None:
    """Stop computing."""
    for batcher in self.batchers.values():
      await batcher.close()
    self.executor.shutdown(wait=False, cancel_futures=True)

  async def run_in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
    """Wait for what takes its time, done in a thread."""
    return await asyncio.get_running_loop().run_in_executor(self.executor, function, *args)

  def get_model(self, name: str) -> models.ServedModel:
    """By name; the first where none is named.

    Raises:
      requests.Refused: there is none of that name, or it is not warm yet.
    """
    names = list(self.settings.models)
    if name and name not in names:
      raise requests.RequestError(404, f'There is no model {name!r}; choose from {names}.')
    if not self.is_ready:
      raise requests.RequestError(503, 'The models are being warmed up; try again.', _RETRY_HEADERS)
    return self.models[name or names[0]]

  @contextlib.asynccontextmanager
  async def reserve_queue(self, num_images: int = 1) -> AsyncIterator[None]:
    """Room for so many images, until their deadline.

    Raises:
      requests.Refused: there is no room, or the time is over.
    """
    max_images = self.settings.queue
    if self._num_images_in_progress + num_images > max_images:
      raise requests.RequestError(
        503,
        f'{self._num_images_in_progress} images are under way, and {max_images} are the most; try again.',
        _RETRY_HEADERS,
      )
    self._num_images_in_progress += num_images
    self.metrics.images_in_progress.set(self._num_images_in_progress)
    try:
      async with asyncio.timeout(self.settings.deadline_s):
        yield
    except TimeoutError:
      raise requests.RequestError(
        504,
        f'There was no answer within {self.settings.deadline_s:g} s; send fewer or smaller images '
        'at a time, or ask the operator for a longer deadline.',
        _RETRY_HEADERS,
      ) from None
    finally:
      self._num_images_in_progress -= num_images
      self.metrics.images_in_progress.set(self._num_images_in_progress)

  async def predict(self, served_model: models.ServedModel, image: requests.InputImage) -> Result:
    """The verdict on an image that was read."""
    prediction = await self.batchers[served_model.name].score(image.pixels)
    model = served_model.predictor.model
    result = Result(
      image.source,
      'image',
      model.ops,
      model.thresholds,
      image.size,
      prediction.score,
      prediction.anomaly_map,
    )
    self.metrics.scored_images.labels(served_model.name, result.label).inc()
    return result
