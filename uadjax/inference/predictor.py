"""Prediction: threads read images while devices or runtimes score them; results come in order.

Each batch is padded to full size and scored by one device. So a score depends neither on the other
images in the batch nor on the number of devices, and there is one compilation per batch size.

This module never imports TensorFlow.

Letters: b batch, h w the original image, height width a tile.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent import futures
import functools
import itertools
import os
from pathlib import Path, PurePath
from typing import NamedTuple

from jaxtyping import UInt8
import numpy as np

from uadjax.data import image_statistics, inputs
from uadjax.data.inputs import LoadedImage
from uadjax.distributed import mesh as meshes
from uadjax.errors import refuse
from uadjax.export import cached_graph, runtimes
from uadjax.inference.result import Result
from uadjax.inference.settings import MAX_BATCH_SIZE
from uadjax.model import scorer as scorers
from uadjax.model.model_dir import Model, ModelInfo
from uadjax.model.scorer import Prediction, Scorer
from uadjax.system import http, logging, threads

Future = futures.Future
LoadFunction = Callable[[inputs.Source], LoadedImage]


class LoadedTile(NamedTuple):
  """A tile of an image; the only one of an unreadable image has no pixels."""

  image: LoadedImage
  pixels: UInt8[np.ndarray, 'height width 3'] | None


TileGetter = Callable[[], LoadedTile]
ScoredTile = tuple[LoadedImage, Prediction | None]  # None for an unreadable image.


class Predictor(NamedTuple):
  """Model that is ready to score images.

  Attributes:
    model: contents of the model's manifest.
    devices: devices that share the batches, or the name of an inference runtime.
    scorer: scorer of tiles.
    anonymous_names: names used so far for results of images without a file, such as those of a
      camera, which come in separate calls; maps each to its last number.
    access: policy on the URLs that may be read.
  """

  model: ModelInfo
  devices: Sequence[object]
  scorer: Scorer
  anonymous_names: dict[str, int]
  access: http.Access = http.PUBLIC_ONLY

  def __repr__(self) -> str:
    devices = ', '.join(map(str, self.devices))
    return f'{self.model.name} of {self.model.directory} on {devices}: {self.model.thresholds}'

  def predict(
    self, input: object, batch_size: int = 1, strict: bool = False, skip: Path | None = None
  ) -> Iterator[Result]:
    """Yield a result for each image, in order.

    Args:
      input: path, URL, directory, RGB or gray array [h w 3] or [h w] of NumPy, JAX or another
        library with DLPack, image of Pillow, {'img': any of these}, or a list or other iterable of
        any of these, which is read lazily.
      batch_size: images per call of the detector. Scores of the same image differ by rounding
        between batch sizes, but not between batches of one size.
      strict: whether to raise an error at the first unreadable image, instead of yielding a result
        with `error` set.
      skip: folder to skip when directories are listed, such as that of the results.

    Raises:
      ConfigError: `batch_size` is not a whole number from 1 to `MAX_BATCH_SIZE`.
      DataError: `input` is a single file, folder or array that cannot be read; or, during
        iteration, an item has a type that cannot be an image.
    """
    sources = inputs.expand(input, skip, pixel_range=self.model.pixel_range)
    return self.predict_sources(sources, batch_size, strict)

  def predict_sources(
    self,
    sources: Iterable[inputs.Source],
    batch_size: int,
    strict: bool,
    load: LoadFunction | None = None,
  ) -> Generator[Result, None, None]:
    """Yield a result for each source, in order.

    Args:
      sources: images as listed by `inputs.expand`.
      batch_size: images per call of the detector.
      strict: whether to raise an error at the first unreadable image.
      load: thread-safe function that loads and scales an image; by default from its source.

    Raises:
      ConfigError: `batch_size` is not a whole number from 1 to `MAX_BATCH_SIZE`.
    """
    is_number = isinstance(batch_size, int) and not isinstance(batch_size, bool)
    if not is_number or not 1 <= batch_size <= MAX_BATCH_SIZE:
      allowed = f'a whole number, at least 1 and at most {MAX_BATCH_SIZE}'
      message = f'batch_size must be {allowed}, got {batch_size!r}.'
      refuse('batch_size', batch_size, message, allowed=allowed)
    scorer = self.scorer.with_batch_size(batch_size)
    load = load or functools.partial(
      inputs.load, ops=self.model.ops, access=self.access, pixel_range=self.model.pixel_range
    )
    return self._results(scorer, sources, strict, load)

  def result(self, image: LoadedImage, prediction: Prediction, stem: str) -> Result:
    """Return the result of an image; files it is saved as begin with `stem`."""
    model = self.model
    warnings = image_statistics.find_warnings(image.require_statistics(), model.image_statistics)
    if model.thresholds.is_uncalibrated:
      message = 'The model has no thresholds; fit it on at least 2 distinct good images.'
      warnings.append(image_statistics.ImageWarning('no_thresholds', message))
    return Result(
      image.reread_source, stem, model.ops, model.thresholds, image.size, *prediction, warnings,
      model.pixel_range,
    )  # fmt: skip

  def cut_tiles(self, image: LoadedImage) -> list[UInt8[np.ndarray, 'height width 3']]:
    """Return the tiles of a readable image, which the scorer takes."""
    pixels = image.require_pixels()
    return self.model.ops.tile_grid(pixels.shape[:2]).cut(pixels)

  def join_tiles(self, image: LoadedImage, predictions: Iterable[Prediction]) -> Prediction:
    """Return the prediction of a readable image, given those of its tiles, which come first."""
    pixels, model = image.require_pixels(), self.model
    grid = model.ops.tile_grid(pixels.shape[:2])
    inspected = model.ops.inspected_pixels(*image.size)
    return scorers.join_tiles(grid, predictions, model.config.detector.image_score, inspected)

  def _tiles(
    self, sources: Iterator[inputs.Source], load: LoadFunction, read_pool: futures.Executor
  ) -> Iterator[TileGetter]:
    """Yield functions that wait for a tile; whole images are loaded in a pool, one per function.

    Images of several tiles are loaded one by one, when the tiles of the one before are taken.
    """

    def load_whole(source: inputs.Source) -> LoadedTile:
      image = load(source)
      return LoadedTile(image, image.pixels)

    for source in sources:
      if not self.model.ops.is_tiled:
        yield read_pool.submit(load_whole, source).result
        continue
      image = load(source)
      for pixels in [None] if image.pixels is None else self.cut_tiles(image):
        yield functools.partial(LoadedTile, image, pixels)

  def _results(
    self, scorer: Scorer, sources: Iterable[inputs.Source], strict: bool, load: LoadFunction
  ) -> Generator[Result, None, None]:
    """Yield results, while threads load and score the images of the next batches."""
    used_names: dict[str, int] = {}
    with (
      threads.thread_pool(threads.num_cores(), 'uadjax-read') as read_pool,
      threads.thread_pool(scorer.concurrency, 'uadjax-score') as score_pool,
      threads.prefetch(
        _submit_batches(scorer, self._tiles(iter(sources), load, read_pool), score_pool),
        2 * scorer.concurrency,
      ) as batches,
    ):
      tiles = itertools.chain.from_iterable(batch.result() for batch in batches)
      for image, first_prediction in tiles:
        stem = _unique_stem(image.source, used_names, self.anonymous_names)
        if first_prediction:
          others = (prediction for _, prediction in tiles if prediction)
          prediction = self.join_tiles(image, itertools.chain([first_prediction], others))
          yield self.result(image, prediction, stem)
        elif strict and image.error:
          raise image.error
        else:
          yield Result.unreadable(image.source, stem, self.model.thresholds, str(image.error))


def open_on_devices(model: Model, devices: Sequence[meshes.Device]) -> Predictor:
  """Put a model on devices, each of which scores batches of its own."""
  return Predictor(model.info, devices, scorers.on_devices(model, devices), {})


def open_on_mesh(model: Model, mesh: meshes.Mesh) -> Predictor:
  """Return a predictor whose batches all devices of a mesh share, as a sharded model needs."""
  devices = mesh.devices.ravel().tolist()
  return Predictor(model.info, devices, scorers.on_mesh(model, mesh), {})


def open_graph(info: ModelInfo, backend: str) -> Predictor:
  """Open the exported graph of a model, which is exported first if necessary.

  Args:
    info: manifest of the model, whose own arrays are not loaded.
    backend: one of `runtimes.BACKENDS`.

  Raises:
    UnknownName: unknown backend.
    ConfigError: the backend is not installed, or the cache folder cannot be written.
    ExportError: the model cannot be exported.
  """
  backend = runtimes.resolve_backend(backend)  # Fails early, before a graph is exported.
  runtime = runtimes.open_graph(cached_graph.get_or_export(info), backend)
  logging.LOG.info('Scoring with %s.', runtime.name)
  # All cores score one batch, while the images of the next one are collected.
  return Predictor(info, [runtime.name], Scorer([runtime.run], 2), {})


def save_results(
  results: Iterator[Result], folder: Path, pictures: bool = True
) -> Iterator[Result]:
  """Save results to a folder in threads, and yield each when it is saved, in order.

  Args:
    results: results to save, of which a few are taken ahead.
    folder: folder for the files.
    pictures: whether to save pictures, too, and not only JSON.
  """

  def save(result: Result) -> Result:
    if pictures:
      result.save_all(folder)
    else:
      result.save_to_json(folder)
    return result

  with futures.ThreadPoolExecutor(threads.num_cores(), 'uadjax-save') as pool:
    yield from threads.map_ahead(pool, save, results, 2 * threads.num_cores())


def _submit_batches(
  scorer: Scorer, tile_getters: Iterator[TileGetter], score_pool: futures.Executor
) -> Iterator['Future[list[ScoredTile]]']:
  """Start scoring one batch of tiles per iteration, and yield its future.

  Batches are filled across images.
  """

  def score(chunk: Sequence[TileGetter], batch_index: int) -> list[ScoredTile]:
    tiles = [get_tile() for get_tile in chunk]
    pixels = [tile.pixels for tile in tiles if tile.pixels is not None]
    predictions = iter(scorer.score(pixels, batch_index))
    return [(t.image, None if t.pixels is None else next(predictions)) for t in tiles]

  for batch_index in itertools.count():
    chunk = list(itertools.islice(tile_getters, scorer.batch_sizes[-1]))
    if not chunk:
      return
    yield score_pool.submit(score, chunk, batch_index)


def _unique_stem(
  source: inputs.Source, used_names: dict[str, int], anonymous_names: dict[str, int]
) -> str:
  """Return a name for an image's results that is unique in their folder: x, x_2, x_3."""
  used_names = used_names if isinstance(source.origin, Path | str) else anonymous_names
  # File names, suffix included, have at most 255 bytes.
  stem = os.fsdecode(os.fsencode(PurePath(source.name).stem)[:200])

  def key(name: str) -> str:
    return f'{source.subfolder}/{name}'.casefold()  # Some file systems ignore case.

  name, number = stem, used_names.get(key(stem), 0) + 1
  if number > 1:
    while key(name := f'{stem}_{number}') in used_names:
      number += 1
  used_names |= {key(name): 1, key(stem): number}
  return name
