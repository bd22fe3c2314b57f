"""Batches of network images from records, with tf.data.

The order of images is a pure function of the position in the run: position p belongs to epoch
p // n and takes image shuffle(p % n) of that epoch. Starting at a later step therefore costs
nothing, a resumed run is bit-identical to an uninterrupted one, and each host reads only
its share of every global batch.

Letters: b batch, n images, h w network image.
"""

import atexit
from collections.abc import Callable, Generator, Sequence
import contextlib
from typing import Any
import weakref

from jaxtyping import Int, UInt8
import numpy as np

from uadjax.data import image_io, transforms
from uadjax.data.records import Record
from uadjax.errors import ConfigError, DataError
from uadjax.system import tensorflow
from uadjax.types import Batch

_PREFETCH = 2  # Batches; more would only use memory.

_open_streams: weakref.WeakSet[Generator[Batch, None, None]] = weakref.WeakSet()


def train_batches(
  records: Sequence[Record],
  ops: transforms.Ops,
  batch_size: int,
  seed: int,
  start: int = 0,
  host_index: int = 0,
  num_hosts: int = 1,
  cache_bytes: int = 2**30,
) -> Generator[Batch, None, None]:
  """Generate shuffled full batches indefinitely; a batch may span two epochs.

  Args:
    records: images, each of which occurs once per epoch.
    ops: operations that bring an image to network size.
    batch_size: size of the global batch.
    seed: seed of the order, which differs in each epoch.
    start: first step; batches equal those of a run that started at step 0.
    host_index: index of this process, which selects its share of every global batch.
    num_hosts: number of processes, each of which reads one share.
    cache_bytes: memory for images at network size; images that do not fit are decoded every time.

  Raises:
    DataError: there are no records; or, while iterating, an image cannot be read.
    ConfigError: the batch size is not a positive multiple of `num_hosts`.
  """
  tf = tensorflow.import_tensorflow()
  host_batch_size, n = _host_batch_size(records, batch_size, host_index, num_hosts), len(records)

  def shuffled_index(position: Any) -> Any:
    epoch, offset = position // n, position % n
    seeds = tf.cast(tf.stack([seed % 2**31, epoch % 2**31]), tf.int32)
    return tf.random.experimental.index_shuffle(offset, seeds, n - 1)

  indices = _map_dataset(
    tf, shuffled_index, _positions(tf, start, batch_size, host_batch_size, host_index)
  )
  return _batch_stream(tf, indices, records, ops, host_batch_size, cache_bytes)


def eval_batches(
  records: Sequence[Record],
  ops: transforms.Ops,
  batch_size: int,
  host_index: int = 0,
  num_hosts: int = 1,
) -> Generator[Batch, None, None]:
  """Generate batches that contain every image once and in order.

  The last batch is padded with rows that are marked as not valid, so that all hosts get the same
  number of batches of the same shape.

  Raises:
    DataError: there are no records; or, while iterating, an image cannot be read.
    ConfigError: the batch size is not a positive multiple of `num_hosts`.
  """
  tf = tensorflow.import_tensorflow()
  host_batch_size, n = _host_batch_size(records, batch_size, host_index, num_hosts), len(records)
  num_steps = -(-n // batch_size)
  positions = _positions(tf, 0, batch_size, host_batch_size, host_index).take(
    num_steps * host_batch_size
  )
  indices = _map_dataset(tf, lambda position: tf.where(position < n, position, -1), positions)
  return _batch_stream(tf, indices, records, ops, host_batch_size, cache_bytes=0)


def _host_batch_size(
  records: Sequence[Record], batch_size: int, host_index: int, num_hosts: int
) -> int:
  if not records:
    raise DataError('The dataset has no images to read.')
  if batch_size < 1 or batch_size % num_hosts or not 0 <= host_index < num_hosts:
    raise ConfigError(
      f'A batch of {batch_size} cannot be shared by {num_hosts} hosts (this is host {host_index});'
      f' use a positive multiple of {num_hosts}.'
    )
  return batch_size // num_hosts


def _positions(tf: Any, start: int, batch_size: int, host_batch_size: int, host_index: int) -> Any:
  """Return the positions in the run of the images that this host reads from step `start` on."""
  local_positions = tf.data.Dataset.range(start * host_batch_size, np.iinfo(np.int64).max)
  return _map_dataset(
    tf,
    lambda i: (
      i // host_batch_size * batch_size + host_index * host_batch_size + i % host_batch_size
    ),
    local_positions,
  )


def _map_dataset(tf: Any, f: Callable[..., Any], dataset: Any, **options: Any) -> Any:
  # AutoGraph would look for the source code of f and warn if it cannot find any.
  return dataset.map(tf.autograph.experimental.do_not_convert(f), **options)


def _batch_stream(
  tf: Any,
  indices: Any,
  records: Sequence[Record],
  ops: transforms.Ops,
  host_batch_size: int,
  cache_bytes: int,
) -> Generator[Batch, None, None]:
  failures: list[Exception] = []
  shape = (ops.height, ops.width, 3)
  read_image = _cached_reader(records, ops, cache_bytes, failures)

  def load_image(index: Any) -> tuple[Any, Any]:
    image = tf.numpy_function(read_image, [index], tf.uint8, stateful=False)
    return tf.ensure_shape(image, shape), tf.cast(index, tf.int32)

  dataset = _map_dataset(
    tf, load_image, indices, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
  )
  dataset = dataset.batch(host_batch_size, drop_remainder=True).prefetch(_PREFETCH)

  def generate() -> Generator[Batch, None, None]:
    for image, index in dataset.as_numpy_iterator():
      if failures:
        raise failures[0]
      yield Batch(image, index >= 0, index)

  batches = generate()
  _open_streams.add(batches)
  return batches


@atexit.register
def _close_all() -> None:
  """End tf.data's threads while they can still take the GIL; otherwise the exit would hang."""
  for batches in list(_open_streams):
    with contextlib.suppress(ValueError):  # Another thread is executing the generator.
      batches.close()


def _cached_reader(
  records: Sequence[Record], ops: transforms.Ops, cache_bytes: int, failures: list[Exception]
) -> Callable[[Int[np.ndarray, '']], UInt8[np.ndarray, 'h w 3']]:
  """Return a function from index to network image that caches the first images, as many as fit.

  The function appends exceptions to `failures` instead of raising them, because tf.data would turn
  them into InvalidArgumentError and print them.
  """
  shape = (ops.height, ops.width, 3)
  num_cached = min(len(records), cache_bytes // int(np.prod(shape)))
  cache = np.empty((num_cached, *shape), np.uint8)  # Pages take memory only once written.
  is_cached = np.zeros(num_cached, bool)

  def read_image(index: Any) -> Any:
    if index < 0 or failures:
      return np.zeros(shape, np.uint8)
    if index < num_cached and is_cached[index]:
      return cache[index]
    try:
      image = ops.apply(image_io.decode(records[index].path))
    except Exception as error:
      failures.append(error)
      return np.zeros(shape, np.uint8)
    if index < num_cached:
      cache[index], is_cached[index] = image, True
    return image

  return read_image
