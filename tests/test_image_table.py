"""Laws of the table of images: ids, folds, and the images to score and to store."""

from pathlib import Path

from hypothesis import given, strategies as st
import numpy as np
from PIL import Image
import pytest

from uadjax.data import transforms
from uadjax.data.image_cache import ImageCache
from uadjax.data.records import Record
from uadjax.model import incremental_state
from uadjax.training import image_table

OPS = transforms.parse('resize(32)')

group_lists = st.lists(st.integers(0, 6), min_size=1, max_size=30)


def firsts(names):
  return np.array([names.index(name) for name in names])


@given(
  names=group_lists,
  num_folds=st.integers(1, 10),
  num_previous=st.integers(0, 30),
  seed=st.integers(0, 99),
)
def test_near_duplicates_and_all_tiles_have_ids_of_one_fold(names, num_folds, num_previous, seed):
  groups, num_previous = firsts(names), min(num_previous, len(names))
  num_tiles = np.random.default_rng(seed).integers(1, 4, len(names)) if seed else len(names) * [1]
  num_tiles = np.asarray(num_tiles)
  none = np.zeros(0, np.int32)
  previous_ids = image_table.assign_tile_ids(
    groups[:num_previous], num_tiles[:num_previous], num_folds, none
  )
  ids = image_table.assign_tile_ids(groups, num_tiles, num_folds, previous_ids)
  assert ids.dtype == np.int32
  assert len(set(ids.tolist())) == len(ids) == num_tiles.sum()
  np.testing.assert_array_equal(ids[: len(previous_ids)], previous_ids)
  name_of_tile = np.repeat(names, num_tiles).tolist()
  fold_of_group = dict(zip(name_of_tile, ids % num_folds, strict=True))
  assert [fold_of_group[name] for name in name_of_tile] == (ids % num_folds).tolist()
  if not num_previous:
    # Folds are evenly filled.
    assert len(set(fold_of_group.values())) == min(num_folds, len(fold_of_group))
  if len(fold_of_group) == len(ids):
    np.testing.assert_array_equal(ids, np.arange(len(names)))


@given(
  names=group_lists,
  num_folds=st.integers(1, 10),
  max_scored=st.integers(1, 40),
  seed=st.integers(0, 99),
)
def test_one_image_of_each_known_group_is_scored(names, num_folds, max_scored, seed):
  groups, n = firsts(names), len(names)
  is_known = np.random.default_rng(seed).random(n) < 0.7
  is_known[-1] = True
  records = [Record(Path(str(i))) if is_known[i] else None for i in range(n)]
  ids = image_table.assign_tile_ids(groups, np.ones(n, int), num_folds, np.zeros(0, np.int32))
  rows = image_table.choose_scored(records, ids % num_folds, groups, num_folds, max_scored)
  scored_groups = groups[rows].tolist()
  assert len(set(scored_groups)) == len(scored_groups)
  assert is_known[rows].all()
  members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
  usable = [x for x in members if is_known[x].any()]  # Folds are those of whole groups here.
  if num_folds == 1:
    usable = [x for x in usable if is_known[x].all()]
  assert len(rows) == min(max_scored, len(usable))
  # No fold could be omitted.
  folds = [int(ids[x[is_known[x]][0]]) % num_folds for x in usable]
  if len(rows):
    assert sum(fold < (ids[rows] % num_folds).max() for fold in folds) < len(rows)


def write_images(folder, count, seed):
  """Write images of random blocks, which are no near-duplicates; return their records."""
  rng = np.random.default_rng(seed)
  records = []
  for i in range(count):
    blocks = rng.integers(0, 255, (4, 4, 3), np.uint8)
    path = folder / f'{seed}_{i}.png'
    Image.fromarray(blocks).resize((32, 32), Image.Resampling.NEAREST).save(path)
    records.append(Record(path))
  return records


def build(previous, records, num_folds, max_scored):
  cache = ImageCache(OPS, 0)
  table = image_table.build(previous, records, num_folds, max_scored, cache)
  return table, image_table.to_learned_images(table, cache)


def copy_image(record, name):
  copy = record.path.with_name(name)
  copy.write_bytes(record.path.read_bytes())
  return Record(copy, duplicate_of=record.path)


@pytest.mark.parametrize('num_folds', [1, 10])
@pytest.mark.parametrize(('max_scored', 'copies'), [(8, 1), (20, 1), (100, 1), (20, 3), (100, 2)])
def test_further_images_never_reduce_the_number_of_scores(tmp_path, num_folds, max_scored, copies):
  """The false-alarm rate that n scores promise decreases with n; all scored images are stored."""
  previous, num_scored, total = incremental_state.EMPTY.images, 0, 0
  for run, count in enumerate([13, 1, 5, 17, 2, 9]):
    records = write_images(tmp_path, count, run)
    names = [f'{copy}_{record.path.name}' for copy in range(1, copies) for record in records]
    records += [copy_image(x, name) for x, name in zip(records * copies, names, strict=False)]
    table, previous = build(previous, records, num_folds, max_scored)
    total += count
    assert len(table.scored_rows) == min(max_scored, total) >= num_scored
    num_scored = len(table.scored_rows)
    num_stored = num_scored * (copies if num_folds == 1 else 1)
    assert len(set(previous.stored_rows.tolist())) == num_stored


@pytest.mark.parametrize('num_folds', [1, 10])
def test_near_duplicates_of_an_earlier_run_are_recognized(tmp_path, num_folds):
  """Copies, under other names, of images that the earlier run learned from."""
  old = write_images(tmp_path, 12, 0)
  _, previous = build(incremental_state.EMPTY.images, old, num_folds, 100)
  copies = [Record(record.path.with_name(f'copy{i}.png')) for i, record in enumerate(old[:5])]
  for record, copy in zip(old, copies, strict=False):
    copy.path.write_bytes(record.path.read_bytes())
  table, learned = build(previous, [*copies, *write_images(tmp_path, 4, 1)], num_folds, 100)
  assert table.groups.tolist() == [*range(12), *range(5), *range(17, 21)]
  assert len(table.scored_rows) == 16
  np.testing.assert_array_equal(table.folds[12:17], table.folds[:5])
  # Groups are stored as a whole where they must be removed from a model as a whole.
  assert len(learned.stored_rows) == (21 if num_folds == 1 else 16)


def test_images_of_earlier_runs_do_not_calibrate_a_model_that_learned_from_them(tmp_path):
  old, new = write_images(tmp_path, 12, 0), write_images(tmp_path, 4, 1)
  cache = ImageCache(OPS, 0)
  copies = [copy_image(record, f'copy{i}.png') for i, record in enumerate(old[:5])]
  records = [copies[0], *new, *copies[1:]]
  none = incremental_state.EMPTY.images
  _, previous = build(none, old, 10, 100)
  assert image_table.exclude_learned(records, previous, cache) == tuple(new)
  assert image_table.exclude_learned(copies, previous, cache) == ()
  assert image_table.exclude_learned((), previous, cache) == ()
  assert image_table.exclude_learned(records, none, cache) == tuple(records)


def test_exports_of_an_earlier_image_are_recognized_by_their_names(tmp_path):
  """Augmented exports look different."""
  old, new = (write_images(tmp_path, 5, run) for run in range(2))
  for records, code in ((old, 'a' * 32), (new, 'b' * 32)):
    path = records[3].path.with_name(f'part_jpg.rf.{code}.png')
    records[3] = Record(records[3].path.rename(path))
  _, previous = build(incremental_state.EMPTY.images, old, 1, 100)
  table, _ = build(previous, new, 1, 100)
  assert table.groups.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 3, 9]


def test_the_pixels_of_earlier_images_are_read_from_the_state(tmp_path):
  old = write_images(tmp_path, 3, 0)
  _, previous = build(incremental_state.EMPTY.images, old, 1, 100)
  for record in old:
    record.path.unlink()
  cache = ImageCache(OPS, 0)
  table = image_table.build(previous, write_images(tmp_path, 2, 1), 1, 100, cache)
  for record, pixels in zip(table.records[:3], previous.split_pixels(), strict=True):
    np.testing.assert_array_equal(cache.load(record.path), pixels)


def test_a_group_of_several_folds_is_not_scored(tmp_path):
  """An image between two earlier images, which the model of neither fold lacks."""
  records = write_images(tmp_path, 4, 0)
  groups, folds = np.array([0, 0, 2, 0]), np.array([0, 1, 2, 0])
  rows = image_table.choose_scored(records, folds, groups, 10, 100)
  assert rows.tolist() == [2]
  rows = image_table.choose_scored(records, np.zeros(4, int), groups, 1, 100)
  assert rows.tolist() == [0, 2]
