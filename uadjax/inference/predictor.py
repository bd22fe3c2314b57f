"""Prediction: threads read images while devices or runtimes score them; results come in order.

Each batch is padded to full size and scored by one device. So a score depends neither on the other
images in the batch nor on the number of devices, and there is one compilation per batch size.

This module never imports TensorFlow.

Letters: b batch, h w the original image, height width the network image.
"""

import collections
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent import futures
import itertools
import os
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import jax
from jaxtyping import UInt8
import numpy as np

from uadjax.data import inputs
from uadjax.distributed import mesh as meshes
from uadjax.errors import ConfigError, DataError
from uadjax.export import cached_graph, runtimes
from uadjax.inference.result import Result
from uadjax.model import model_dir
from uadjax.system import http, logging, threads
from uadjax.types import Scores

Future = futures.Future


class Predictor(NamedTuple):
  """Model that is ready to score images.

  Attributes:
    model: opened model directory.
    devices: devices that share the batches, or the name of an inference runtime.
    scorers: one function per device that scores images at network resolution.
    max_concurrent_batches: number of batches that are scored at the same time.
    access: policy on the URLs that may be read.
    anonymous_names: names used so far for results of images without a file, such as those of a
      camera, which come in separate calls; maps each to its last number.
  """

  model: model_dir.Model
  devices: Sequence[Any]
  scorers: Sequence[runtimes.RunFunction]
  max_concurrent_batches: int
  access: http.Access
  anonymous_names: dict[str, int]

  def __repr__(self) -> str:
    devices = ', '.join(map(str, self.devices))
    return f'{self.model.name} of {self.model.directory} on {devices}: {self.model.thresholds}'

  def predict(
    self, input: Any, batch_size: int = 1, strict: bool = False, skip: Path | None = None
  ) -> Iterator[Result]:
    """Yield a result for each image, in order.

    Args:
      input: path, URL, directory, RGB or gray uint8 array [h w 3] or [h w], {'img': any of
        these}, or a list or other iterable of any of these, which is read lazily.
      batch_size: images per call of the detector. Scores of the same image differ by rounding
        between batch sizes, but not between batches of one size.
      strict: whether to raise an error at the first unreadable image, instead of yielding a result
        with `error` set.
      skip: folder to skip when directories are listed, such as that of the results.

    Raises:
      ConfigError: `batch_size` is not a whole number of at least 1.
      DataError: `input` is a single file, folder or array that cannot be read; or, during
        iteration, an item has a type that cannot be an image.
    """
    return self.predict_sources(inputs.expand(input, skip), batch_size, strict)

  def predict_sources(
    self, sources: Iterator[inputs.Source], batch_size: int, strict: bool
  ) -> Generator[Result, None, None]:
    """Yield a result for each image listed by `inputs.expand`, in order.

    Raises:
      ConfigError: `batch_size` is not a whole number of at least 1.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
      raise ConfigError(f'batch_size must be a whole number, at least 1, got {batch_size!r}.')
    return _iterate_results(self, sources, batch_size, strict)


def open_on_devices(
  model: model_dir.Model, devices: Sequence[Any], access: http.Access = http.PUBLIC_ONLY
) -> Predictor:
  """Copy a model to devices, each of which scores batches of its own.

  Only one CPU device is used if copies of the model for all would fill the memory.
  """
  devices = meshes.devices_that_fit(devices, model.fitted)
  scorers = [
    _device_scorer(device, model.score, jax.device_put(model.fitted, device)) for device in devices
  ]
  return Predictor(model, devices, scorers, num_concurrent_batches(devices), access, {})


def open_sharded(
  model: model_dir.Model, mesh: meshes.Mesh, access: http.Access = http.PUBLIC_ONLY
) -> Predictor:
  """Return a predictor for a sharded model: all devices of the mesh score each batch together."""

  def score_padded(images: UInt8[np.ndarray, 'b height width 3']) -> Scores:
    num_images, num_padding = len(images), -len(images) % mesh.size
    padded = np.pad(images, ((0, num_padding), (0, 0), (0, 0), (0, 0)))
    scores = jax.device_get(model.score(model.fitted, meshes.shard_batch(mesh, padded)))
    return Scores(scores.map[:num_images], scores.image[:num_images])

  return Predictor(model, list(mesh.devices.ravel()), [score_padded], 1, access, {})


def open_graph(directory: Path, backend: str, access: http.Access = http.PUBLIC_ONLY) -> Predictor:
  """Open the exported graph of a model directory, which is exported first if necessary.

  Args:
    directory: model directory, whose own arrays are not loaded.
    backend: one of `runtimes.BACKENDS`.
    access: policy on the URLs that may be read.

  Raises:
    UnknownName: unknown backend.
    ConfigError: the backend is not installed, or the cache folder cannot be written.
    ExportError: the model cannot be exported.
  """
  backend = runtimes.resolve_backend(backend)  # Fails early, before a graph is exported.
  runtime = runtimes.open_graph(cached_graph.get_or_export(directory), backend)
  logging.LOG.info('Scoring with %s.', runtime.name)
  model = model_dir.open_without_arrays(directory, lambda _, images: runtime.run(images))
  # All cores score one batch, while the images of the next one are collected.
  return Predictor(model, [runtime.name], [runtime.run], 2, access, {})


def _device_scorer(
  device: Any, score: Callable[[Any, Any], Scores], fitted: Any
) -> runtimes.RunFunction:
  return lambda images: jax.device_get(score(fitted, jax.device_put(images, device)))


def save_results(
  results: Iterator[Result], folder: Path, pictures: bool = True
) -> Iterator[Result]:
  """Save results to a folder in threads, and yield each when it is saved, in order.

  Args:
    results: results to save, of which a few are taken ahead.
    folder: folder for the files.
    pictures: whether to save pictures, too, and not only JSON.
  """
  with futures.ThreadPoolExecutor(threads.num_cores(), 'uadjax-save') as save_pool:
    pending: collections.deque[tuple[Future[Any], Result]] = collections.deque()
    for result in results:
      save = result.save_all if pictures else result.save_to_json
      pending.append((save_pool.submit(save, folder), result))
      if len(pending) > 2 * threads.num_cores():
        yield _wait_until_saved(*pending.popleft())
    while pending:
      yield _wait_until_saved(*pending.popleft())


def _wait_until_saved(future: 'Future[Any]', result: Result) -> Result:
  future.result()
  return result


class _LoadedImage(NamedTuple):
  """Image as network input, or the reason why it is unreadable.

  Attributes:
    source: origin of the image, which holds its content if that was downloaded.
    stem: start of the names of files that the result is saved as.
    size: height and width of the original image.
    pixels: image at network resolution; None if unreadable.
    error: why the image is unreadable, or ''.
  """

  source: inputs.Source
  stem: str
  size: tuple[int, int] = (0, 0)
  pixels: UInt8[np.ndarray, 'height width 3'] | None = None
  error: str = ''


def _load_image(predictor: Predictor, source: inputs.Source, stem: str) -> _LoadedImage:
  try:
    source = inputs.fetch(source, predictor.access)
    image = inputs.read(source)
  except DataError as error:
    return _LoadedImage(source, stem, error=str(error))
  return _LoadedImage(source, stem, image.shape[:2], predictor.model.ops.apply(image))


def _score_batch(
  predictor: Predictor,
  batch_index: int,
  image_futures: Sequence['Future[_LoadedImage]'],
  batch_size: int,
) -> list[Result]:
  """Wait until the images of a batch are loaded, and score them on the batch's device."""
  ops, thresholds = predictor.model.ops, predictor.model.thresholds
  pixels = np.zeros((batch_size, ops.height, ops.width, 3), np.uint8)
  loaded_images = [future.result() for future in image_futures]
  for row, image in enumerate(loaded_images):
    if image.pixels is not None:
      pixels[row] = image.pixels
  scores = predictor.scorers[batch_index % len(predictor.scorers)](pixels)
  anomaly_maps, image_scores = np.asarray(scores.map), np.asarray(scores.image)
  return [
    Result.unreadable(image.source, image.stem, thresholds, image.error)
    if image.pixels is None
    # The map is copied, so that a result does not keep all maps of its batch in memory.
    else Result(
      image.source,
      image.stem,
      ops,
      thresholds,
      image.size,
      float(image_scores[row]),
      anomaly_maps[row].copy(),
    )
    for row, image in enumerate(loaded_images)
  ]


def _iterate_results(
  predictor: Predictor, sources: Iterator[inputs.Source], batch_size: int, strict: bool
) -> Generator[Result, None, None]:
  with (
    threads.thread_pool(threads.num_cores(), 'uadjax-read') as read_pool,
    threads.thread_pool(predictor.max_concurrent_batches, 'uadjax-score') as score_pool,
    threads.prefetch(
      _submit_batches(predictor, sources, batch_size, read_pool, score_pool),
      2 * predictor.max_concurrent_batches,
    ) as batches,
  ):
    for batch in batches:
      for result in batch.result():
        if strict and result.error:
          raise DataError(result.error)
        yield result


def _submit_batches(
  predictor: Predictor,
  sources: Iterator[inputs.Source],
  batch_size: int,
  read_pool: futures.Executor,
  score_pool: futures.Executor,
) -> Iterator['Future[list[Result]]']:
  """Start reading and scoring one batch per iteration, and yield its future."""
  used_names: dict[str, int] = {}
  for batch_index in itertools.count():
    image_futures = [
      read_pool.submit(
        _load_image, predictor, source, _unique_stem(source, used_names, predictor.anonymous_names)
      )
      for source in itertools.islice(sources, batch_size)
    ]
    if not image_futures:
      return
    yield score_pool.submit(_score_batch, predictor, batch_index, image_futures, batch_size)


def _unique_stem(
  source: inputs.Source, used_names: dict[str, int], anonymous_names: dict[str, int]
) -> str:
  """Return a name for an image's results that is unique in their folder: x, x_2, x_3."""
  used_names = used_names if isinstance(source.origin, Path | str) else anonymous_names
  stem = _shorten(PurePath(source.name).stem)
  first_key = f'{source.subfolder}/{stem}'.casefold()  # Some file systems ignore case.
  for number in itertools.count(used_names.get(first_key, 0) + 1):
    used_names[first_key] = number
    name = stem if number == 1 else f'{stem}_{number}'
    key = f'{source.subfolder}/{name}'.casefold()
    if number == 1 or key not in used_names:
      used_names.setdefault(key, 1)
      return name
  raise AssertionError  # Unreachable: the counter is infinite.


def _shorten(name: str) -> str:
  """Shorten a name to 200 bytes, since file names, suffix included, have at most 255."""
  return os.fsdecode(os.fsencode(name)[:200])


def num_concurrent_batches(devices: Sequence[Any]) -> int:
  """Return how many batches to score at the same time.

  On a CPU it is one per core, since XLA leaves most of a second core idle for one batch
  (experiments/README.md). Otherwise it is two per device, so that one batch is transferred while
  the other is computed.
  """
  return (
    max(len(devices), threads.num_cores()) if devices[0].platform == 'cpu' else 2 * len(devices)
  )
