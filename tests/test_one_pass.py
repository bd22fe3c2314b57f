"""One pass with a detector small enough to follow by hand: the mean of all images, thumbnail-sized.

Letters: b batch, n images.
"""

import functools
import itertools
import math
from pathlib import Path
import tempfile
from typing import NamedTuple
import weakref

import jax
from jax import numpy as jnp
import numpy as np
import pytest
import small_runs

from uadjax.data import demo, image_io, layouts, transforms
from uadjax.data.image_cache import ImageCache
from uadjax.data.tiles import Tile
from uadjax.detectors.base import Detector, Incremental, LeaveOneOut
from uadjax.distributed import mesh as meshes
from uadjax.model import incremental_state
from uadjax.training import image_table, leave_one_out, loop, one_pass
from uadjax.training.embedding_store import EmbeddingStore
from uadjax.types import Batch, Scores

SIZE, OFFSET, MOST, FOLDS = 32, 0.5, 64, 3
OPS = transforms.parse(f'resize({SIZE})')
SHAPE = (2, 2, 3)  # Of an embedding.


class State(NamedTuple):
  extractor: jax.Array  # An offset of the embeddings.
  total: jax.Array
  n: jax.Array
  folded: jax.Array  # How often each number was folded in.


def thumbnails(pixels):
  return pixels[:, 8::16, 8::16] / np.float32(255)


def averaging(calls=None, selects=True):
  """The mean of thumbnails; what happens on the host is noted in `told`."""
  calls = [] if calls is None else calls

  def embed(offset, batch):
    if batch.features is not None:
      return batch.features
    return thumbnails(jnp.asarray(batch.image).astype(jnp.float32)) + offset

  def update(state, batch):
    x, valid = embed(state.extractor, batch), jnp.asarray(batch.valid)
    calls.append(('traced', x.shape, batch.image.shape))
    total = state.total + jnp.sum(jnp.where(valid[:, None, None, None], x, 0.0), axis=0)
    folded = state.folded.at[jnp.where(valid, batch.index, MOST)].add(1, mode='drop')
    n = state.n + jnp.sum(valid, dtype=jnp.float32)
    return State(state.extractor, total, n, folded), {'images': n}

  def make_room(state, images):
    calls.append(('room', images))
    return state

  def select_all(state):
    calls.append(('select', float(state.n)))
    return state

  def select_coresets(state, before):
    calls.append(('coresets', float(state.n), sorted(before)))
    return {'stood': state.n}

  def reference(variables, arrays, fold):
    calls.append(('reference', fold))
    assert arrays['stood'] == arrays['n']
    return variables['offset'], arrays['total'], arrays['n'], np.float32(fold)

  def score_left_out(reference, batch):
    offset, total, n, fold = reference
    x = embed(offset, batch)
    rest = (total[None] - x) / (n - 1)
    # The fold is in the score, so that a wrong one shows.
    distance = jnp.abs(x - rest).sum(axis=-1) + 100 * fold
    return Scores(distance, 2 * distance.max(axis=(1, 2)))

  incremental = Incremental(
    to_arrays=lambda state: {'total': state.total, 'n': state.n, 'folded': state.folded},
    restore=lambda state, arrays: State(
      state.extractor, arrays['total'], arrays['n'], arrays['folded']
    ),
    summarize=lambda arrays, embeddings: {},
    drift=lambda before, after: {},
    compact=make_room,
    select=select_all if selects else None,
  )
  return Detector(
    init=lambda key, variables: State(
      variables['offset'], jnp.zeros(SHAPE), jnp.zeros(()), jnp.zeros(MOST, jnp.int32)
    ),
    update=update,
    finalize=lambda state: state.total / state.n,
    score=lambda fitted, images: Scores(jnp.zeros((1, 1, 1)), jnp.zeros(1)),
    leave_one_out=LeaveOneOut(FOLDS, embed, reference, score_left_out, select_coresets),
    incremental=incremental,
  )


@pytest.fixture(scope='module')
def records(tmp_path_factory):
  few = {'train': 10, 'test_good': 1, 'test_defect': 1, 'size': 40}
  root = demo.write_dataset(tmp_path_factory.mktemp('drawn'), **few, **small_runs.DISCS)
  return layouts.load(root, 'disc').train


@pytest.fixture(scope='module')
def embeddings(records):
  """By hand, from the files."""
  pixels = np.stack([OPS.apply(image_io.decode(record.path)) for record in records])
  return thumbnails(pixels) + np.float32(OFFSET)


def a_run(detector, records, folder, before=None, devices=1, most=99):
  variables = {'offset': jnp.float32(OFFSET)}
  functions = detector, detector.leave_one_out, detector.incremental
  before, mesh = before or incremental_state.EMPTY, meshes.make_mesh('cpu', devices, 0)
  cache = ImageCache(OPS, 1 << 20)
  images = image_table.build(before.images, records, FOLDS, most, cache)
  return one_pass.OnePassRun(
    'averaging', *functions, variables, records, images, before, cache, 0, mesh, folder
  )


def fold(detector, records, folder, before=None, batch_size=4, devices=1, store=None):
  run = a_run(detector, records, folder, before, devices)
  folded = one_pass.fit_one_pass(run, batch_size, 10, store or EmbeddingStore((), 0))
  # Fitted must be what the kept arrays say, or scoring and learning more would disagree.
  arrays = incremental_state.load_state_arrays(folder)
  np.testing.assert_allclose(folded.fitted, arrays['total'] / arrays['n'], rtol=1e-6)
  return folded, arrays


def earlier(arrays, records, most=99):
  """State of a run over these images, of which at most so many are stored."""
  run = a_run(averaging(), records, None, most=most)
  return incremental_state.IncrementalState(
    arrays, image_table.to_learned_images(run.image_table, run.cache)
  )


@pytest.mark.parametrize(('batch_size', 'devices'), [(4, 1), (1, 1), (32, 1), (4, 8), (32, 8)])
def test_every_image_is_folded_in_once(records, embeddings, tmp_path, batch_size, devices):
  _, arrays = fold(averaging(), records, tmp_path, batch_size=batch_size, devices=devices)
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    'folded.npy',
    'n.npy',
    'stood.npy',
    'total.npy',
  ]
  assert arrays['n'] == 10
  np.testing.assert_array_equal(arrays['folded'], np.arange(MOST) < 10)
  np.testing.assert_allclose(arrays['total'], embeddings.sum(0), rtol=1e-5)


def test_a_fold_goes_on_from_an_earlier_one(records, embeddings, tmp_path):
  _, arrays = fold(averaging(), records[:7], tmp_path)
  _, arrays = fold(averaging(), records[7:], tmp_path, earlier(arrays, records[:7], 2))
  assert arrays['n'] == 10
  np.testing.assert_array_equal(arrays['folded'], np.arange(MOST) < 10)
  np.testing.assert_allclose(arrays['total'], embeddings.sum(0), rtol=1e-5)


def test_batches_are_even_and_bring_no_pixels(records, tmp_path):
  for selects in (True, False):
    calls = []
    detector = averaging(calls, selects)
    fold(detector, records, tmp_path, batch_size=8)  # Batches of 6 and 4, not of 8 and 2.
    traced = [note for note in calls if note[0] == 'traced']
    # The update is traced only once, although it is compiled ahead.
    assert traced == [('traced', (6, *SHAPE), (6, 1, 1, 3))]


def test_compaction_precedes_every_batch_and_coresets_precede_the_selection(records, tmp_path):
  calls = []
  fold(averaging(calls), records, tmp_path, batch_size=4)
  calls = [note for note in calls if note[0] != 'traced']
  assert calls == [('room', 4)] * 3 + [('coresets', 10, []), ('select', 10)]


def test_padding_has_no_image_id():
  batch = Batch(
    np.zeros((3, 1, 1, 3), np.uint8), np.array([True, True, False]), np.array([0, 1, -1], np.int32)
  )
  numbered = one_pass.use_tile_ids(batch, np.array([7, 9], np.int32))
  np.testing.assert_array_equal(numbered.index, [7, 9, -1])
  assert numbered.index.dtype == np.int32


def left_out(
  records, folder, before=None, calls=None, batch_size=4, devices=1, most=99, store=None
):
  run = a_run(averaging(calls), records, folder, before, devices, most)
  extractor = meshes.replicate(run.mesh, jnp.float32(OFFSET))
  return leave_one_out.score(run, extractor, store or EmbeddingStore((), 0), batch_size)


def slow_left_out(embeddings, numbers):
  """Of each image: the largest distance to the mean of all others, and what tells its fold."""
  highest = []
  for k, number in enumerate(numbers):
    rest = np.delete(embeddings, k, axis=0).mean(axis=0)
    highest.append(np.abs(embeddings[k] - rest).sum(axis=-1).max() + 100 * (number % FOLDS))
  return np.array(highest)


def test_held_out_images_are_scored_in_few_batches_with_little_padding():
  for num_images, max_size in itertools.product(range(1, 70), range(1, 40)):
    size = leave_one_out._even_batch_size(num_images, max_size)
    num_batches = -(-num_images // max_size)
    assert size <= max_size
    assert 0 <= size * num_batches - num_images < num_batches


@pytest.mark.parametrize(('batch_size', 'devices'), [(4, 1), (1, 1), (32, 8)])
def test_every_image_is_scored_by_the_reference_of_its_fold(
  records, embeddings, tmp_path, batch_size, devices
):
  """In the order of the records, though they are scored fold by fold."""
  fold(averaging(), records, tmp_path)
  peaks = left_out(records, tmp_path, None, None, batch_size, devices)
  assert peaks.paths == tuple(str(record.path) for record in records)
  want = slow_left_out(embeddings, range(10))
  np.testing.assert_allclose(peaks.peaks, want, rtol=1e-5)
  np.testing.assert_allclose(peaks.scores, 2 * want, rtol=1e-5)


@pytest.mark.parametrize('devices', [1, 8])
@pytest.mark.parametrize('num_stored', [1, 6, 10])
def test_stored_embeddings_are_not_computed_again(records, tmp_path, num_stored, devices):
  """Scores are the same with all, some or no embeddings; files need not be there any more."""
  size = 4 * math.prod(SHAPE)
  store = EmbeddingStore([Tile(record.path) for record in records], num_stored * size)
  fold(averaging(), records, tmp_path, devices=devices, store=store)
  stored = [record for record in records if store.get([Tile(record.path)]) is not None]
  assert len(stored) == num_stored
  got = left_out(records, tmp_path, store=store, devices=devices)
  want = left_out(records, tmp_path, devices=devices)
  np.testing.assert_allclose(got.scores, want.scores, rtol=1e-5)


def test_no_batch_stays_while_the_next_one_is_made():
  """Neither micro-batches nor the batch of the step before; those of PaDiM have 50 MB each."""
  alive = []  # Weak references to all arrays of images.

  def make(image):
    alive.append(weakref.ref(image))
    n = len(image)
    return Batch(image, np.ones(n, bool), np.arange(n, dtype=np.int32))

  def micro_batches():
    for i in range(6):
      if i % 2 == 0:
        assert all(reference() is None for reference in alive)
      yield make(np.zeros((1, 2, 2, 3), np.uint8))

  def concatenate(group):
    return make(np.concatenate([batch.image for batch in group]))

  def update(state, batch):
    return [*state, len(batch.image)], {}

  batches = one_pass._join_groups(micro_batches(), 2, concatenate)
  assert loop.run(update, [], batches, range(9), []) == [2, 2, 2]


def test_only_runs_with_a_large_state_drop_compiled_programs(monkeypatch):
  """To compile again would take longer than all else of a small run."""
  cleared = []
  monkeypatch.setattr(jax, 'clear_caches', lambda: cleared.append(True))
  for num_bytes in (0, (1 << 27) - 1, 1 << 27):
    assert not cleared
    one_pass.release_memory(num_bytes)
  assert cleared == [True]


@pytest.mark.parametrize('max_images', [1, 9, 10])
def test_a_store_holds_views_only_where_all_images_fit(records, max_images):
  """Copies of a few let the array of all be freed; views cost nothing."""
  everything = np.arange(120, dtype=np.float32).reshape(10, *SHAPE)
  store = EmbeddingStore([Tile(r.path) for r in records[1:]], max_images * everything[0].nbytes)
  store.add_views([Tile(record.path) for record in records], everything)
  stored = [i for i, record in enumerate(records) if store.get([Tile(record.path)]) is not None]
  assert stored == [*range(1, 1 + min(max_images, 9))]
  for i in stored:
    np.testing.assert_array_equal(
      store.get([Tile(records[i].path)], 1), [everything[i], 0 * everything[i]]
    )
  assert len(store._views) == (9 if max_images == 10 else 0)
  assert all(np.shares_memory(view, everything) for view in store._views.values())


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='needs a full disk')
def test_embeddings_that_a_full_disk_cannot_hold_are_not_stored(records, monkeypatch):
  monkeypatch.setattr(tempfile, 'TemporaryFile', functools.partial(Path('/dev/full').open, 'w+b'))
  tiles = [Tile(records[0].path)]
  store = EmbeddingStore(tiles, 1 << 20)
  store.add(tiles, jnp.ones((1, *SHAPE)))
  assert store.get(tiles) is None


def test_images_of_an_earlier_run_are_scored_like_files(records, embeddings, tmp_path):
  """Ids continue those of the earlier run; its arrays are passed to the next one."""
  early, late = tmp_path / 'early', tmp_path / 'late'
  early.mkdir()
  late.mkdir()
  _, arrays = fold(averaging(), records[:7], early)
  before = earlier(arrays, records[:7])
  calls = []
  fold(averaging(calls), records[7:], late, before)
  assert ('coresets', 10, ['folded', 'n', 'stood', 'total']) in calls
  peaks = left_out(records[7:], late, before)
  want = slow_left_out(embeddings, range(10))
  np.testing.assert_allclose(peaks.peaks, want, rtol=1e-5)
  np.testing.assert_allclose(peaks.scores, 2 * want, rtol=1e-5)
  assert peaks.paths == (*[''] * 7, *(str(record.path) for record in records[7:]))


@pytest.mark.parametrize('most', [1, 3, 4, 7, 10, 99])
def test_of_many_images_as_few_folds_as_possible_are_scored(records, embeddings, tmp_path, most):
  calls = []
  fold(averaging(), records, tmp_path)
  peaks = left_out(records, tmp_path, None, calls, most=most)
  assert len(peaks.scores) == min(most, 10)
  sizes = np.cumsum(np.bincount(np.arange(10) % FOLDS))
  num_folds = 1 + np.searchsorted(sizes, min(most, 10))
  assert {note[1] for note in calls if note[0] == 'reference'} == set(range(num_folds))
  alone = dict(
    zip((str(r.path) for r in records), slow_left_out(embeddings, range(10)), strict=True)
  )
  np.testing.assert_allclose(peaks.peaks, [alone[path] for path in peaks.paths], rtol=1e-5)
