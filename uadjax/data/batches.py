"""Batches of network images from records, with tf.data: of whole images, or of their tiles.

The order of tiles is a pure function of the position in the run: position p belongs to epoch
p // n and takes tile shuffle(p % n) of that epoch. Starting at a later step therefore costs
nothing, a resumed run is bit-identical to an uninterrupted one, and each host reads only
its share of every global batch.

An image that is not tiled counts as one tile.

Letters: b batch, n tiles, h w network image.
"""

import atexit
from collections.abc import Callable, Generator, Sequence
import contextlib
from typing import Any, TypeAlias
import weakref

from jaxtyping import UInt8
import numpy as np

from uadjax.data.image_cache import ImageCache
from uadjax.data.records import Record
from uadjax.data.tiles import Tile
from uadjax.errors import ConfigError, DataError
from uadjax.system import tensorflow
from uadjax.types import Batch

Tensor: TypeAlias = Any  # A tf.Tensor; TensorFlow is imported on demand and has no types.

_open_streams: weakref.WeakSet[Generator[Batch, None, None]] = weakref.WeakSet()


def train_batches(
  records: Sequence[Record],
  cache: ImageCache,
  batch_size: int,
  seed: int,
  start: int = 0,
  host: tuple[int, int] = (0, 1),
) -> Generator[Batch, None, None]:
  """Generate shuffled full batches indefinitely; a batch may span two epochs.

  Args:
    records: images, each tile of which occurs once per epoch.
    cache: reads the images, or has them in memory.
    batch_size: size of the global batch.
    seed: seed of the order, which differs in each epoch.
    start: first step; batches equal those of a run that started at step 0.
    host: index of this process, which selects its share of every global batch, and the number of
      processes.

  Raises:
    DataError: there are no records; or, while iterating, an image cannot be read.
    ConfigError: the batch size is not a positive multiple of the number of processes.
  """
  tf, tiles = tensorflow.import_tensorflow(), cache.list_tiles(record.path for record in records)
  n = len(tiles)

  def shuffled_index(position: Tensor) -> Tensor:
    seeds = tf.cast(tf.stack([seed % 2**31, position // n % 2**31]), tf.int32)
    return tf.random.experimental.index_shuffle(position % n, seeds, n - 1)

  return _batch_stream(tiles, cache, batch_size, host, shuffled_index, start, None)


def eval_batches(
  records: Sequence[Record],
  cache: ImageCache,
  batch_size: int,
  host: tuple[int, int] = (0, 1),
  with_copies: bool = False,
) -> Generator[Batch, None, None]:
  """Generate batches that contain every tile once and in order; `Batch.index` is its position.

  The last batch is padded with rows that are marked as not valid, so that all hosts get the same
  number of batches of the same shape.

  Args:
    records: the images.
    cache: reads the images, or has them in memory.
    batch_size: size of the global batch.
    host: as for `train_batches`.
    with_copies: whether the tiles of the augmented copies of an image follow its own.

  Raises:
    DataError: there are no records; or, while iterating, an image cannot be read.
    ConfigError: the batch size is not a positive multiple of the number of processes.
  """
  tf = tensorflow.import_tensorflow()
  tiles = cache.list_tiles((record.path for record in records), with_copies)
  n = len(tiles)

  def index_or_padding(position: Tensor) -> Tensor:
    return tf.where(position < n, position, -1)

  return _batch_stream(tiles, cache, batch_size, host, index_or_padding, 0, -(-n // batch_size))


def _batch_stream(
  tiles: Sequence[Tile],
  cache: ImageCache,
  batch_size: int,
  host: tuple[int, int],
  index_at: Callable[[Tensor], Tensor],
  start: int,
  num_steps: int | None,
) -> Generator[Batch, None, None]:
  """Return the batches of a host, given the index of the tile at each position in the run."""
  host_index, num_hosts = host
  if not tiles:
    raise DataError('The dataset has no images to read.')
  _require_shares(batch_size, host_index, num_hosts)
  tf, rows = tensorflow.import_tensorflow(), batch_size // num_hosts
  shape = (cache.ops.height, cache.ops.width, 3)
  blank, failures = np.zeros(shape, np.uint8), []

  def read_image(index: Tensor) -> UInt8[np.ndarray, 'h w 3']:
    if index < 0 or failures:
      return blank
    try:
      return cache.load_tile(tiles[index])
    except Exception as error:  # tf.data would raise InvalidArgumentError instead, and print it.
      failures.append(error)
      return blank

  def load_image(i: Tensor) -> tuple[Tensor, Tensor]:
    index = index_at(i // rows * batch_size + host_index * rows + i % rows)
    image = tf.numpy_function(read_image, [index], tf.uint8, stateful=False)
    return tf.ensure_shape(image, shape), tf.cast(index, tf.int32)

  # AutoGraph would look for the source code of the function and warn if it cannot find any.
  load_image = tf.autograph.experimental.do_not_convert(load_image)
  end = np.iinfo(np.int64).max if num_steps is None else num_steps * rows
  dataset = tf.data.Dataset.range(start * rows, end)
  dataset = dataset.map(load_image, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
  # More than two batches ahead would only use memory.
  dataset = dataset.batch(rows, drop_remainder=True).prefetch(2)

  def generate() -> Generator[Batch, None, None]:
    for image, index in dataset.as_numpy_iterator():
      if failures:
        raise failures[0]
      yield Batch(image, index >= 0, index)

  batches = generate()
  _open_streams.add(batches)
  return batches


def _require_shares(batch_size: int, host_index: int, num_hosts: int) -> None:
  if batch_size < 1 or batch_size % num_hosts or not 0 <= host_index < num_hosts:
    raise ConfigError(
      f'A batch of {batch_size} cannot be shared by {num_hosts} hosts (this is host {host_index});'
      f' use a positive multiple of {num_hosts}.'
    )


@atexit.register
def _close_all() -> None:
  """End tf.data's threads while they can still take the GIL; otherwise the exit would hang."""
  for batches in list(_open_streams):
    with contextlib.suppress(ValueError):  # Another thread is executing the generator.
      batches.close()
