"""Shared state of all requests: models with their batchers, queue, admission, and metrics.

The routes on top of it are in `app` (PaddleX's) and `protocol` (Open Inference Protocol).
"""

import asyncio
import collections
from collections.abc import AsyncIterator, Callable
from concurrent import futures
import contextlib
from typing import Any

from uadjax.data.inputs import LoadedImage
from uadjax.inference import parts
from uadjax.inference.result import Result
from uadjax.serve import batching, models, observability
from uadjax.serve.requests import RequestError
from uadjax.serve.settings import Settings
from uadjax.system import threads

_RETRY_HEADERS = {'Retry-After': '1'}
_MAX_PARTS = 10_000  # Enough, because the images of a part arrive close together.


class Service:
  """Shared state of the service.

  Attributes:
    settings: validated settings.
    metrics: Prometheus metrics.
    models: warm models by name.
    batchers: batchers by name of the model; complete once the service is ready.
    failure: error that kept a model from opening, or None.
    part_verdicts: label and number of images by model and part, for the last _MAX_PARTS parts.
    executor: threads for blocking functions.
    admission: semaphore that requests hold while their images are decoded and scored.
  """

  def __init__(self, settings: Settings):
    self.settings = settings
    self.metrics = observability.Metrics()
    self.models: dict[str, models.ServedModel] = {}
    self.batchers: dict[str, batching.Batcher] = {}
    self.failure: BaseException | None = None
    self.part_verdicts = collections.OrderedDict[tuple[str, str], tuple[str, int]]()
    self.executor = futures.ThreadPoolExecutor(threads.num_cores(), 'uadjax-serve')
    # First in, first out: if all requests started at once, none would meet its deadline.
    self.admission = asyncio.Semaphore(0)
    self._num_images_in_progress = 0

  @property
  def is_ready(self) -> bool:
    """Return whether every model is warm."""
    return len(self.batchers) == len(self.settings.models)

  async def open(self) -> None:
    """Open and warm up the models one by one, then admit requests."""
    for name, directory in self.settings.models.items():
      opening = self.run_in_thread(models.open_model, name, directory, self.settings)
      self.models[name] = await opening
    scorers = {name: model.predictor.scorer for name, model in self.models.items()}
    largest_batch = max(scorer.batch_sizes[-1] for scorer in scorers.values())
    # One half of the admitted images is decoded while the other half is scored.
    self.admission = asyncio.Semaphore(2 * max(threads.num_cores(), largest_batch))
    for name, model in self.models.items():
      on_batch = self.metrics.batch_sizes.labels(name).observe
      self.batchers[name] = batching.Batcher(scorers[name], on_batch)
      observability.LOG.info('ready', extra={'log_fields': model.describe()})

  async def close(self) -> None:
    """Stop the batchers and the threads."""
    for batcher in self.batchers.values():
      await batcher.close()
    self.executor.shutdown(wait=False, cancel_futures=True)

  async def run_in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
    """Run a blocking function in a thread, and return its result."""
    return await asyncio.get_running_loop().run_in_executor(self.executor, function, *args)

  def get_model(self, name: str) -> models.ServedModel:
    """Return the model of that name, or the first one for ''.

    Raises:
      RequestError: the name is unknown, or not every model is warm yet.
    """
    names = list(self.settings.models)
    if name and name not in names:
      raise RequestError(404, f'Unknown model {name!r}; choose from {names}.')
    if not self.is_ready:
      raise RequestError(503, 'The models are warming up; try again.', _RETRY_HEADERS)
    return self.models[name or names[0]]

  @contextlib.asynccontextmanager
  async def reserve_queue(self, num_images: int = 1) -> AsyncIterator[None]:
    """Reserve places in the queue for a number of images, and enforce the deadline.

    Raises:
      RequestError: the queue is full, or the deadline has passed.
    """
    max_images = self.settings.queue
    if self._num_images_in_progress + num_images > max_images:
      problem = f'{self._num_images_in_progress} of {max_images} images are in progress'
      problem += f', {num_images} more would not fit; try again.'
      raise RequestError(503, problem, _RETRY_HEADERS)
    self._add_images_in_progress(num_images)
    try:
      async with asyncio.timeout(self.settings.deadline_s):
        yield
    except TimeoutError:
      problem = (
        f'The request exceeded the deadline of {self.settings.deadline_s:g} s; send fewer or '
        'smaller images at a time, or ask the operator for a longer deadline.'
      )
      raise RequestError(504, problem, _RETRY_HEADERS) from None
    finally:
      self._add_images_in_progress(-num_images)

  def _add_images_in_progress(self, num_images: int) -> None:
    self._num_images_in_progress += num_images
    self.metrics.images_in_progress.set(self._num_images_in_progress)

  async def predict(self, served_model: models.ServedModel, image: LoadedImage) -> Result:
    """Score a decoded image, and return the result with its verdict."""
    prediction = await self.batchers[served_model.name].score(image.require_pixels())
    result = served_model.predictor.result(image, prediction, 'image')
    self.metrics.scored_images.labels(served_model.name, result.label).inc()
    return result

  def judge_part(
    self, served_model: models.ServedModel, part: str, result: Result
  ) -> dict[str, object]:
    """Add an image to its part, and return the verdict on the part: the worst of its images."""
    key = served_model.name, part
    label, num_images = self.part_verdicts.get(key, (result.label, 0))
    verdict = parts.worst_label((label, result.label)), num_images + 1
    self.part_verdicts[key] = verdict
    self.part_verdicts.move_to_end(key)
    if len(self.part_verdicts) > _MAX_PARTS:
      self.part_verdicts.popitem(last=False)
    return dict(zip(parts.COLUMNS, (part, *verdict), strict=True))
