"""Shared state of all requests: models with their batchers, queue, admission, and metrics.

The routes on top of it are in `app` (PaddleX's) and `protocol` (Open Inference Protocol).
"""

import asyncio
import collections
from collections.abc import AsyncIterator, Callable
from concurrent import futures
import contextlib
import logging
from typing import Any

from starlette.requests import Request

from uadjax.data.inputs import LoadedImage
from uadjax.inference import parts
from uadjax.inference.result import Result
from uadjax.serve import batching, models, observability, requests
from uadjax.serve.capacity import Capacity
from uadjax.serve.errors import RequestError, RETRY_HEADERS
from uadjax.serve.settings import Settings
from uadjax.system import threads

_NUM_PARSERS = 2
_MAX_PARTS = 10_000  # Enough, because the images of a part arrive close together.


class Service:
  """Shared state of the service.

  Attributes:
    settings: validated settings.
    metrics: Prometheus metrics.
    models: open models by name.
    batchers: batchers by name of the model.
    is_open: whether every model was opened and tested.
    failure: error because of which the service stops, such as that of opening a model, or None.
    part_verdicts: label and number of images by model and part, for the last _MAX_PARTS parts.
    executor: threads for blocking functions.
    parse_executor: threads for the parsing of bodies. There are few of them, since they share the
      interpreter with the event loop.
    download_executor: threads for downloads, which wait for servers of others.
    images: capacity for images that are read, queued or scored.
    downloads: capacity for downloads.
    incomplete_bytes: capacity for bodies that are not complete yet. They do not count as images,
      since clients that send slowly would then keep others waiting.
    admission: semaphore that requests hold while their images are decoded and scored.
  """

  def __init__(self, settings: Settings):
    self.settings = settings
    self.metrics = observability.Metrics()
    self.models: dict[str, models.ServedModel] = {}
    self.batchers: dict[str, batching.Batcher] = {}
    self.is_open = False
    self.failure: BaseException | None = None
    self.part_verdicts = collections.OrderedDict[tuple[str, str], tuple[str, int]]()
    self.executor = futures.ThreadPoolExecutor(threads.num_cores(), 'uadjax-serve')
    self.parse_executor = futures.ThreadPoolExecutor(_NUM_PARSERS, 'uadjax-parse')
    # First in, first out: if all requests started at once, none would meet its deadline.
    self.admission = asyncio.Semaphore(0)
    self.download_executor = futures.ThreadPoolExecutor(settings.queue, 'uadjax-download')
    self.images = Capacity(settings.queue, 'images', self.metrics.images_in_progress.set)
    self.downloads = Capacity(settings.queue, 'downloads')
    self.incomplete_bytes = Capacity(settings.queue * settings.max_bytes, 'bytes of bodies')

  @property
  def is_ready(self) -> bool:
    """Return whether every model is open and has passed its test."""
    return self.is_open and not any(model.failure for model in self.models.values())

  async def open(self) -> None:
    """Open, warm up and test the models one by one, then admit requests."""
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
      level, message = (logging.ERROR, 'not_ready') if model.failure else (logging.INFO, 'ready')
      observability.LOG.log(level, message, extra={'log_fields': model.describe()})
    self.is_open = True

  async def close(self) -> None:
    """Stop the batchers and the threads."""
    for batcher in self.batchers.values():
      await batcher.close()
    for executor in (self.executor, self.parse_executor, self.download_executor):
      executor.shutdown(wait=False, cancel_futures=True)

  async def run_in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
    """Run a blocking function in a thread, and return its result."""
    return await asyncio.get_running_loop().run_in_executor(self.executor, function, *args)

  async def read_body(self, request: Request) -> bytes:
    """Return the body of a request, which takes no place in the queue before it is complete.

    Raises:
      RequestError: the queue is full already, or see `requests.read_body`.
    """
    self.images.check()
    return await requests.read_body(request, self.settings.max_bytes, self.incomplete_bytes)

  async def parse(self, function: Callable[..., Any], *args: Any) -> Any:
    """Run a function that parses a body in a thread, and return its result.

    The body takes a place in the queue meanwhile, so that few wait for a thread.

    Raises:
      RequestError: the queue is full.
    """
    loop = asyncio.get_running_loop()
    with self.images.reserve():
      return await loop.run_in_executor(self.parse_executor, function, *args)

  async def download(self, url: str) -> bytes:
    """Return the image file at a URL, which takes no place in the queue meanwhile.

    Raises:
      RequestError: there are too many downloads, or see `requests.download`.
    """
    loop, access = asyncio.get_running_loop(), self.settings.access
    with self.downloads.reserve():
      return await loop.run_in_executor(self.download_executor, requests.download, url, access)

  def require_open(self) -> None:
    """Raise a `RequestError` if not every model is open and tested yet."""
    if not self.is_open:
      raise RequestError(503, 'The models are warming up; try again.', RETRY_HEADERS)

  def get_model(self, name: str) -> models.ServedModel:
    """Return the model of that name, or the first one for ''.

    Raises:
      RequestError: the name is unknown, the model failed its test, or see `require_open`.
    """
    names = list(self.settings.models)
    if name and name not in names:
      raise RequestError(404, f'Unknown model {name!r}; choose from {names}.')
    self.require_open()
    model = self.models[name or names[0]]
    if model.failure:
      raise RequestError(503, f'The model {model.name!r} is not ready: {model.failure}')
    return model

  @contextlib.asynccontextmanager
  async def deadline(self) -> AsyncIterator[None]:
    """Enforce the deadline of a request.

    Raises:
      RequestError: the deadline has passed.
    """
    try:
      async with asyncio.timeout(self.settings.deadline_s):
        yield
    except TimeoutError:
      problem = (
        f'The request exceeded the deadline of {self.settings.deadline_s:g} s; send fewer or '
        'smaller images at a time, or ask the operator for a longer deadline.'
      )
      raise RequestError(504, problem, RETRY_HEADERS) from None

  async def predict(self, served_model: models.ServedModel, image: LoadedImage) -> Result:
    """Score a decoded image, and return the result with its verdict."""
    predictor, batcher = served_model.predictor, self.batchers[served_model.name]
    predictions = await asyncio.gather(*map(batcher.score, predictor.cut_tiles(image)))
    result = predictor.result(image, predictor.join_tiles(image, predictions), 'image')
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
