"""One pass with a detector small enough to follow by hand: the mean of all images, thumbnail-sized.

Letters: b batch, n images.
"""

from pathlib import Path
from typing import NamedTuple

from hypothesis import given, strategies as st
import jax
from jax import numpy as jnp
import numpy as np
import pytest
import small_runs

from uadjax.data import demo, image_io, layouts, transforms
from uadjax.data.records import Record
from uadjax.detectors.base import Detector, Incremental, LeaveOneOut
from uadjax.distributed import mesh as meshes
from uadjax.model import incremental_state
from uadjax.training import one_pass
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


def averaging(told=None, selects=True):
  """The mean of thumbnails; what happens on the host is noted in `told`."""
  told = [] if told is None else told

  def embed(offset, batch):
    if batch.features is not None:
      return batch.features
    return thumbnails(jnp.asarray(batch.image).astype(jnp.float32)) + offset

  def update(state, batch):
    x, valid = embed(state.extractor, batch), jnp.asarray(batch.valid)
    told.append(('traced', x.shape, batch.image.shape))
    total = state.total + jnp.sum(jnp.where(valid[:, None, None, None], x, 0.0), axis=0)
    folded = state.folded.at[jnp.where(valid, batch.index, MOST)].add(1, mode='drop')
    n = state.n + jnp.sum(valid, dtype=jnp.float32)
    return State(state.extractor, total, n, folded), {'images': n}

  def make_room(state, images):
    told.append(('room', images))
    return state

  def settle(state):
    told.append(('settle', float(state.n)))
    return state

  def stand_ins(state, before):
    told.append(('stand_ins', float(state.n), sorted(before)))
    return {'stood': state.n}

  def reference(variables, kept, fold):
    told.append(('reference', fold))
    assert kept['stood'] == kept['n']
    return variables['offset'], kept['total'], kept['n'], np.float32(fold)

  def score_left_out(reference, batch):
    offset, total, n, fold = reference
    x = embed(offset, batch)
    rest = (total[None] - x) / (n - 1)
    # The fold is in the score, so that a wrong one shows.
    distance = jnp.abs(x - rest).sum(axis=-1) + 100 * fold
    return Scores(distance, 2 * distance.max(axis=(1, 2)))

  incremental = Incremental(
    to_arrays=lambda state: {'total': state.total, 'n': state.n, 'folded': state.folded},
    restore=lambda state, kept: State(state.extractor, kept['total'], kept['n'], kept['folded']),
    summarize=lambda kept, embeddings: {},
    drift=lambda before, after: {},
    compact=make_room,
    select=settle if selects else None,
  )
  return Detector(
    init=lambda key, variables: State(
      variables['offset'], jnp.zeros(SHAPE), jnp.zeros(()), jnp.zeros(MOST, jnp.int32)
    ),
    update=update,
    finalize=lambda state: state.total / state.n,
    score=lambda fitted, images: Scores(jnp.zeros((1, 1, 1)), jnp.zeros(1)),
    leave_one_out=LeaveOneOut(FOLDS, embed, reference, score_left_out, stand_ins),
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


def a_run(detector, records, folder, before=None, devices=1, seed=0):
  variables = {'offset': jnp.float32(OFFSET)}
  functions = detector, detector.leave_one_out, detector.incremental
  before, mesh = before or incremental_state.EMPTY, meshes.make_mesh('cpu', devices, 0)
  image_ids = one_pass.assign_image_ids(records, FOLDS, before.next_image_id)
  return one_pass.OnePassRun(
    'averaging', *functions, variables, records, image_ids, before, OPS, seed, mesh, folder
  )


def fold(detector, records, folder, before=None, batch_size=4, devices=1):
  run = a_run(detector, records, folder, before, devices)
  folded = one_pass.fit_one_pass(run, batch_size, log_every=10)
  # Fitted must be what the kept arrays say, or scoring and learning more would disagree.
  kept = incremental_state.load_state_arrays(folder)
  np.testing.assert_allclose(folded.fitted, kept['total'] / kept['n'], rtol=1e-6)
  return folded, kept


def earlier(kept, images, retained):
  """What a run over so many images left, with this many of them retained."""
  numbers = np.linspace(0, images - 1, retained).astype(np.int32)
  embedding = np.stack([np.full(SHAPE, number, np.float32) for number in numbers])
  return incremental_state.IncrementalState(
    kept, incremental_state.RetainedEmbeddings(embedding, numbers), images, images
  )


@pytest.mark.parametrize(('batch_size', 'devices'), [(4, 1), (1, 1), (32, 1), (4, 8), (32, 8)])
def test_every_image_is_folded_in_once(records, embeddings, tmp_path, batch_size, devices):
  _, kept = fold(averaging(), records, tmp_path, batch_size=batch_size, devices=devices)
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    'folded.npy',
    'n.npy',
    'stood.npy',
    'total.npy',
  ]
  assert kept['n'] == 10
  np.testing.assert_array_equal(kept['folded'], np.arange(MOST) < 10)
  np.testing.assert_allclose(kept['total'], embeddings.sum(0), rtol=1e-5)


def test_a_fold_goes_on_from_an_earlier_one(records, embeddings, tmp_path):
  _, kept = fold(averaging(), records[:7], tmp_path)
  _, kept = fold(averaging(), records[7:], tmp_path, earlier(kept, 7, 2))
  assert kept['n'] == 10
  np.testing.assert_array_equal(kept['folded'], np.arange(MOST) < 10)
  np.testing.assert_allclose(kept['total'], embeddings.sum(0), rtol=1e-5)


def test_batches_are_even_and_bring_no_pixels(records, tmp_path):
  for selects in (True, False):
    told = []
    detector = averaging(told, selects)
    fold(detector, records, tmp_path, batch_size=8)  # Batches of 6 and 4, not of 8 and 2.
    traced = [note for note in told if note[0] == 'traced']
    # The update is traced only once, although it is compiled ahead.
    assert traced == [('traced', (6, *SHAPE), (6, 1, 1, 3))]


def test_room_is_made_before_every_batch_and_stand_ins_before_the_end_is_settled(records, tmp_path):
  told = []
  fold(averaging(told), records, tmp_path, batch_size=4)
  told = [note for note in told if note[0] != 'traced']
  assert told == [('room', 4)] * 3 + [('stand_ins', 10, []), ('settle', 10)]


def test_padding_has_no_image_id():
  batch = Batch(
    np.zeros((3, 1, 1, 3), np.uint8), np.array([True, True, False]), np.array([0, 1, -1], np.int32)
  )
  numbered = one_pass.use_image_ids(batch, np.array([7, 9], np.int32))
  np.testing.assert_array_equal(numbered.index, [7, 9, -1])
  assert numbered.index.dtype == np.int32


@given(
  groups=st.lists(st.integers(0, 6), min_size=1, max_size=30),
  num_folds=st.integers(1, 10),
  first_id=st.integers(0, 25),
)
def test_near_duplicates_have_ids_of_one_fold(groups, num_folds, first_id):
  paths = [Path(f'{i}.png') for i in range(len(groups))]
  firsts = [paths[groups.index(group)] for group in groups]
  records = [
    Record(path, duplicate_of=None if first == path else first)
    for path, first in zip(paths, firsts, strict=True)
  ]
  ids = one_pass.assign_image_ids(records, num_folds, first_id)
  assert len(set(ids.tolist())) == len(ids)
  assert ids.min() >= first_id
  fold_of_group = dict(zip(groups, ids % num_folds, strict=True))
  assert [fold_of_group[group] for group in groups] == (ids % num_folds).tolist()
  num_groups = len(set(groups))
  assert len(set(fold_of_group.values())) == min(num_folds, num_groups)  # Folds are evenly filled.
  if num_groups == len(groups):
    np.testing.assert_array_equal(ids, first_id + np.arange(len(groups)))


def retain(records, before, count, seed=0, devices=1):
  run = a_run(averaging(), records, None, before, devices, seed)
  offset = meshes.replicate(run.mesh, jnp.float32(OFFSET))
  return one_pass.retain_embeddings(run, offset, count)


@pytest.mark.parametrize(('count', 'want'), [(1, 1), (6, 6), (10, 10), (32, 10)])
@pytest.mark.parametrize('devices', [1, 8])
def test_as_many_embeddings_are_retained_as_asked(records, embeddings, count, want, devices):
  retained = retain(records, None, count, devices=devices)
  assert len(set(retained.image_ids.tolist())) == len(retained.image_ids) == want
  np.testing.assert_allclose(retained.embeddings, embeddings[retained.image_ids], rtol=1e-6)


def test_which_are_retained_is_decided_by_the_seed(records):
  a, b, c = (retain(records, None, 5, seed).image_ids.tolist() for seed in (1, 1, 2))
  assert a == b != c


@pytest.mark.parametrize(
  ('images', 'retained', 'new', 'count', 'from_old', 'from_new'),
  [
    (30, 8, 10, 8, 6, 2),  # Three quarters are old.
    (10, 8, 10, 8, 4, 4),
    (30, 3, 10, 8, 3, 5),  # There are no more old ones.
    (10, 8, 2, 32, 8, 2),  # All there are.
    (5000, 8, 1, 8, 7, 1),  # One at least is new.
    (30, 8, 10, 1, 0, 1),
  ],
)
def test_old_and_new_are_retained_in_proportion(
  records, embeddings, images, retained, new, count, from_old, from_new
):
  before = earlier({}, images, retained)
  after = retain(records[:new], before, count)
  old, fresh = after.image_ids < images, after.image_ids >= images
  assert (old.sum(), fresh.sum()) == (from_old, from_new)
  assert len(set(after.image_ids.tolist())) == len(after.image_ids)
  assert set(after.image_ids[old].tolist()) <= set(before.retained.image_ids.tolist())
  assert (after.embeddings[old] == after.image_ids[old, None, None, None]).all()
  np.testing.assert_allclose(
    after.embeddings[fresh], embeddings[after.image_ids[fresh] - images], rtol=1e-6
  )


def left_out(records, folder, before=None, told=None, batch_size=4, devices=1, most=99):
  run = a_run(averaging(told), records, folder, before, devices)
  extractor = meshes.replicate(run.mesh, jnp.float32(OFFSET))
  return one_pass.score_leave_one_out(run, extractor, batch_size, most)


def slow_left_out(embeddings, numbers):
  """Of each image: the largest distance to the mean of all others, and what tells its fold."""
  highest = []
  for k, number in enumerate(numbers):
    rest = np.delete(embeddings, k, axis=0).mean(axis=0)
    highest.append(np.abs(embeddings[k] - rest).sum(axis=-1).max() + 100 * (number % FOLDS))
  return np.array(highest)


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


def test_retained_embeddings_are_scored_after_the_files_as_those_would_be(
  records, embeddings, tmp_path
):
  """Numbers go on where the earlier run ended; what it left is handed to the next."""
  early, late = tmp_path / 'early', tmp_path / 'late'
  early.mkdir()
  late.mkdir()
  _, kept = fold(averaging(), records[:7], early)
  before = incremental_state.IncrementalState(kept, retain(records[:7], None, 4), 7, 7)
  told = []
  fold(averaging(told), records[7:], late, before)
  assert ('stand_ins', 10, ['folded', 'n', 'stood', 'total']) in told
  peaks = left_out(records[7:], late, before)
  want = slow_left_out(embeddings, range(10))[[7, 8, 9, *before.retained.image_ids]]
  np.testing.assert_allclose(peaks.peaks, want, rtol=1e-5)
  np.testing.assert_allclose(peaks.scores, 2 * want, rtol=1e-5)
  assert peaks.paths == (*(str(record.path) for record in records[7:]), '', '', '', '')


def test_folds_of_no_image_need_no_reference(records, tmp_path):
  """Of a run over one image after nine, and one of those."""
  told = []
  fold(averaging(), records, tmp_path)
  before = incremental_state.IncrementalState({}, retain(records[:9], None, 1), 9, 9)
  peaks = left_out(records[9:], tmp_path, before, told)
  assert len(peaks.scores) == 2
  folds = {0, int(before.retained.image_ids[0]) % FOLDS}
  assert {note for note in told if note[0] == 'reference'} == {('reference', f) for f in folds}


@pytest.mark.parametrize('most', [1, 4, 6, 9])
def test_of_many_images_some_whole_folds_are_scored(records, embeddings, tmp_path, most):
  told = []
  fold(averaging(), records, tmp_path)
  before = incremental_state.IncrementalState({}, retain(records, None, 5), 10, 10)
  links = [Record(tmp_path / f'{i}.png') for i in range(len(records))]
  for link, record in zip(links, records, strict=True):
    link.path.symlink_to(record.path)
  peaks = left_out([*records, *links], tmp_path, before, told, most=most)
  fewest = max(most, FOLDS)
  folds = set(range(-(-FOLDS * fewest // 20)))
  assert {note[1] for note in told if note[0] == 'reference'} == folds
  files = [path for path in peaks.paths if path]
  assert len(files) == min(fewest, sum(n % FOLDS in folds for n in range(10, 30)))
  assert len(peaks.paths) - len(files) == sum(n % FOLDS in folds for n in before.retained.image_ids)
  # The images are known by their scores.
  alone = slow_left_out(embeddings, range(10))
  at = {str(record.path): n for half in (records, links) for n, record in enumerate(half)}
  for path, score in zip(files, peaks.peaks, strict=False):
    base = np.abs(alone[at[path]] % 100 - score % 100)
    assert base < 1e-3
    assert int(score // 100) in folds
