"""Laws of the batches."""

import itertools
from pathlib import Path
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from uadjax.data import batches as batch_streams, image_io, inputs, transforms
from uadjax.data.image_cache import ImageCache
from uadjax.data.records import Record
from uadjax.errors import ConfigError, DataError
from uadjax.types import Batch

OPS = transforms.parse('resize(8, 6)')


def a_cache(max_bytes: int = 1 << 20) -> ImageCache:
  return ImageCache(OPS, max_bytes)


@pytest.fixture(scope='module')
def records(tmp_path_factory) -> list[Record]:
  folder, rng = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
  paths = [folder / f'{i}.png' for i in range(11)]
  for path in paths:
    Image.fromarray(rng.integers(0, 256, (12, 9, 3), np.uint8)).save(path)
  return [Record(path) for path in paths]


def take(batches, n: int) -> list[Batch]:
  taken = list(itertools.islice(batches, n))
  batches.close()
  return taken


def assert_same(a: list[Batch], b: list[Batch]) -> None:
  assert len(a) == len(b)
  for x, y in zip(a, b, strict=True):
    np.testing.assert_array_equal(x.image, y.image)
    np.testing.assert_array_equal(x.index, y.index)
    np.testing.assert_array_equal(x.valid, y.valid)


def test_rows_are_the_pixels_of_their_records(records):
  for batch in take(batch_streams.train_batches(records, a_cache(), 4, 0), 3):
    assert (batch.image.dtype, batch.index.dtype, batch.valid.dtype) == ('uint8', 'int32', 'bool')
    assert batch.valid.all()
    for image, i in zip(batch.image, batch.index, strict=True):
      np.testing.assert_array_equal(image, OPS.apply(image_io.decode(records[i].path)))


def test_every_epoch_is_another_permutation(records):
  batches = take(batch_streams.train_batches(records, a_cache(), 4, 7), 11)
  epochs = np.concatenate([batch.index for batch in batches]).reshape(4, 11)
  np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(11), (4, 1)))
  assert len({tuple(epoch) for epoch in epochs}) == 4
  other = take(batch_streams.train_batches(records, a_cache(), 4, 8), 3)
  assert tuple(np.concatenate([batch.index for batch in other])[:11]) != tuple(epochs[0])


def test_resumed_is_uninterrupted(records):
  whole = take(batch_streams.train_batches(records, a_cache(), 4, 3), 9)
  assert_same(take(batch_streams.train_batches(records, a_cache(), 4, 3, start=5), 4), whole[5:])


def test_memory_changes_nothing(records):
  row = 8 * 6 * 3
  whole = take(batch_streams.train_batches(records, a_cache(), 4, 3), 8)
  for max_bytes in (0, row - 1, 5 * row, 11 * row):
    assert_same(take(batch_streams.train_batches(records, a_cache(max_bytes), 4, 3), 8), whole)


@pytest.mark.parametrize('num_cached', [0, 5, 11])
def test_cached_files_are_read_once(records, monkeypatch, num_cached):
  reads = []
  load = inputs.load

  def load_and_record(source, *args, **options):
    reads.append(source.origin)
    return load(source, *args, **options)

  monkeypatch.setattr(inputs, 'load', load_and_record)
  cache = a_cache(num_cached * 8 * 6 * 3)
  for _ in range(3):
    take(batch_streams.eval_batches(records, cache, 11), 9)
  counts = sorted(reads.count(record.path) for record in records)
  assert counts == [1] * num_cached + [3] * (11 - num_cached)


@pytest.mark.parametrize('hosts', [2, 4])
def test_hosts_together_read_the_single_host_batch(records, hosts):
  def joined(make, n):
    parts = [take(make(host), n) for host in range(hosts)]
    assert len({len(part) for part in parts}) == 1
    return [
      Batch(*(np.concatenate(rows) for rows in list(zip(*step, strict=True))[:3]))
      for step in zip(*parts, strict=True)
    ]

  single = take(batch_streams.train_batches(records, a_cache(), 4, 3, 2), 5)
  shares = joined(lambda h: batch_streams.train_batches(records, a_cache(), 4, 3, 2, (h, hosts)), 5)
  assert_same(shares, single)
  single = take(batch_streams.eval_batches(records, a_cache(), 8), 99)
  assert_same(
    joined(lambda h: batch_streams.eval_batches(records, a_cache(), 8, (h, hosts)), 99), single
  )


@pytest.mark.parametrize('batch_size', [1, 4, 11, 16])
def test_evaluation_keeps_order_and_tail(records, batch_size):
  batches = take(batch_streams.eval_batches(records, a_cache(), batch_size), 99)
  assert len(batches) == -(-11 // batch_size)
  assert {batch.image.shape for batch in batches} == {(batch_size, 8, 6, 3)}
  index = np.concatenate([batch.index for batch in batches])
  valid = np.concatenate([batch.valid for batch in batches])
  np.testing.assert_array_equal(index[:11], np.arange(11))
  assert (index[11:] == -1).all()
  np.testing.assert_array_equal(valid, index >= 0)
  assert not np.concatenate([batch.image for batch in batches])[11:].any()


def test_one_image_fills_any_batch(records):
  (batch,) = take(batch_streams.train_batches(records[:1], a_cache(), 3, 0), 1)
  assert batch.index.tolist() == [0, 0, 0]


def test_unreadable_files_are_named(records, tmp_path, capfd):
  (tmp_path / 'bad.png').write_bytes(b'nothing')
  mixed = [*records[:5], Record(tmp_path / 'bad.png'), *records[5:]]
  with pytest.raises(DataError, match=r'bad\.png: not a JPEG'):
    list(batch_streams.eval_batches(mixed, a_cache(), 4))
  with pytest.raises(DataError, match=r'bad\.png'):
    take(batch_streams.train_batches(mixed, a_cache(), 4, 0), 3)
  assert capfd.readouterr().err == ''


def test_errors_come_at_once(records):
  with pytest.raises(DataError, match='no images'):
    batch_streams.train_batches([], a_cache(), 4, 0)
  with pytest.raises(ConfigError, match='batch of 4 cannot be shared by 3 hosts'):
    batch_streams.eval_batches(records, a_cache(), 4, (0, 3))
  with pytest.raises(ConfigError, match='multiple of 2'):
    batch_streams.eval_batches(records, a_cache(), 4, (2, 2))


ABANDONED = """
import sys
from pathlib import Path
from uadjax.data import batches, image_cache, transforms
from uadjax.data.records import Record
records = [Record(Path(sys.argv[1]))]
cache = image_cache.ImageCache(transforms.parse('resize(256)'), 0)
batches = batches.train_batches(records, cache, 32, 0)
next(batches)
"""


def test_silent_in_a_fresh_process_and_abandoned_without_harm(tmp_path):
  Image.new('RGB', (900, 900)).save(tmp_path / 'large.png')  # Its decoding outlives the script.
  command = [sys.executable, '-W', 'error', '-c', ABANDONED, str(tmp_path / 'large.png')]
  done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
  assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


@pytest.mark.real
def test_bottle_goes_through(shared: Path):
  paths = sorted((shared / 'data/mvtec_ad/bottle/train/good').glob('*.png'))[:5]
  ops = transforms.parse('resize(256)|center_crop(224)')
  cache = ImageCache(ops, 0)
  (batch,) = take(batch_streams.eval_batches([Record(path) for path in paths], cache, 8), 9)
  assert batch.image.shape == (8, 224, 224, 3)
  assert batch.image[:5].std() > 10
