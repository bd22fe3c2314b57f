"""Small banks: images of 2x2 patches in three dimensions."""

import functools
import math
import re

import hypothesis
from hypothesis import strategies as st
import jax
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from uadjax.detectors.base import RunContext
from uadjax.detectors.patchcore import capacity, leave_out, memory_bank
from uadjax.detectors.settings import PatchcoreSettings
from uadjax.distributed import mesh
from uadjax.errors import ConfigError
from uadjax.numerics import coreset
from uadjax.numerics.collectives import SINGLE_SHARD

H, W, D = 2, 2, 3
PATCHES = H * W
KEY = jax.random.key(5)
BYTES_PER_POINT = coreset.bytes_per_point(D)
pytestmark = pytest.mark.usefixtures('one_way_to_measure')


@functools.partial(jax.jit, static_argnames='shards', donate_argnums=0)
def put(bank, x, valid, index, shards):
  specs = memory_bank.BANK_SPECS
  append = shards.shard_map(memory_bank.append, (specs, *[P('data')] * 3), specs)
  return append(bank, x, valid, index)


def plan(images, num_previous=0, ratio=0.1, rows=10**6, dim=0, **more):
  spec, max_bytes = (
    RunContext(8, 8, images, num_previous, **more),
    rows * (BYTES_PER_POINT + 4 * dim),
  )
  options = PatchcoreSettings(ratio=ratio, max_bytes=max_bytes, coreset_dim=dim)
  return capacity.configure_bank(D, PATCHES, spec, options)


def embeddings(n, seed=0):
  """Around a few centers, for that is what patches are like."""
  random = np.random.default_rng(seed)
  centers = 5 * random.normal(size=(6, D))[random.integers(0, 6, (n, H, W))]
  return (centers + random.normal(size=(n, H, W, D))).astype(np.float32)


def fold(bank, plan, x, first=0, size=4):
  """As `fit` does: room is made, then a batch is put in. Tell how many rows were chosen."""
  chosen = []
  for start in range(0, len(x), size):
    part = x[start : start + size]
    valid = np.arange(size) < len(part)
    padded = np.concatenate([part, np.full((size - len(part), H, W, D), 77, np.float32)])
    index = np.where(valid, first + start + np.arange(size), -1).astype(np.int32)
    bank = memory_bank.compact(KEY, bank, plan, size) if plan.needs_compaction else bank
    chosen.append(int(bank.num_selected[0]))
    bank = put(bank, jnp.asarray(padded), jnp.asarray(valid), jnp.asarray(index), plan.shards)
  return bank, chosen


def coreset_bank(plan, x):
  return memory_bank.select_coreset(KEY, fold(memory_bank.empty(plan), plan, x)[0], plan)


def farthest(patches, rows):
  """Of all patches, from the nearest row, by brute force."""
  away = np.asarray(patches, np.float64).reshape(-1, 1, D) - np.asarray(rows, np.float64)[None]
  return np.linalg.norm(away, axis=-1).min(axis=1).max()


def assert_rows_are_patches(patches, x):
  """Every row is a patch of the image it names, and none is there twice."""
  rows, image = np.asarray(patches.embeddings), np.asarray(patches.image_id)
  assert len(np.unique(rows, axis=0)) == len(rows)
  for row, number in zip(rows, image, strict=True):
    assert (x[number].reshape(PATCHES, D) == row).all(axis=1).any()


@hypothesis.given(
  st.lists(st.lists(st.booleans(), min_size=3, max_size=3), max_size=4), st.integers(0, 2**16)
)
@hypothesis.settings(max_examples=30)
def test_valid_rows_are_appended_whatever_the_pattern(patterns, seed):
  """And nothing else: what fills a batch up may be anything."""
  random, x = np.random.default_rng(seed), embeddings(12, seed)
  bank = memory_bank.empty(plan(12))
  want = []
  for start, valid in enumerate(patterns):
    index = np.where(valid, random.integers(0, 1000, 3), -1).astype(np.int32)
    batch = np.where(np.reshape(valid, (3, 1, 1, 1)), x[3 * start : 3 * start + 3], np.nan)
    batch, valid, index = jnp.asarray(batch, jnp.float32), jnp.asarray(valid), jnp.asarray(index)
    bank = put(bank, batch, valid, index, SINGLE_SHARD)
    want += [(batch[i], index[i]) for i in range(3) if valid[i]]
  count = PATCHES * len(want)
  assert (bank.num_rows, bank.num_images) == (count, len(want))
  assert (bank.num_selected, bank.covering_radius) == (0, 0)
  got = jax.tree.map(lambda x: x[:count], bank.patches)
  np.testing.assert_array_equal(
    got.embeddings, np.reshape([patches for patches, _ in want], (-1, D)).astype(np.float32)
  )
  np.testing.assert_array_equal(got.image_id, np.repeat([i for _, i in want], PATCHES))


def test_everything_is_kept_while_there_is_room():
  sized, x = plan(9), embeddings(9)
  assert not sized.needs_compaction
  bank, _ = fold(memory_bank.empty(sized), sized, x, size=3)
  assert bank.num_rows == sized.capacity == 9 * PATCHES
  np.testing.assert_array_equal(bank.patches.embeddings[: 9 * PATCHES], x.reshape(-1, D))
  np.testing.assert_array_equal(
    bank.patches.image_id[: 9 * PATCHES], np.repeat(np.arange(9), PATCHES)
  )
  assert bank.covering_radius == 0


def test_with_all_patches_kept_settling_only_orders_them():
  x = embeddings(16)
  bank = coreset_bank(plan(16, ratio=1.0), x)
  assert len(bank.patches.embeddings) == 16 * PATCHES
  assert_rows_are_patches(bank.patches, x)
  assert (bank.covering_radius, bank.num_images) == (0, 16)


def slow_select(x, first, count):
  """Greedy, in float64: rows, beginning with the first."""
  x, rows = x.reshape(-1, D).astype(np.float64), [np.asarray(first, np.float64)]
  while len(rows) < count:
    away = np.linalg.norm(x[:, None] - np.stack(rows)[None], axis=-1).min(axis=1)
    rows.append(x[np.argmax(away)])
  return np.stack(rows)


def test_settling_is_selecting_from_everything_where_no_room_had_to_be_made():
  x = embeddings(16)
  bank = coreset_bank(plan(16, ratio=0.25), x)
  np.testing.assert_array_equal(
    bank.patches.embeddings, slow_select(x, bank.patches.embeddings[0], 16)
  )
  assert bank.covering_radius == pytest.approx(farthest(x, bank.patches.embeddings), rel=1e-5)


# Share of patches, and rows until room is made: one bank that ends with the share, and selects only
# from fresh patches; and one that ends with half of what fits, and selects from selected ones.
CASES = [(0.02, 64), pytest.param(0.1, 45, marks=pytest.mark.slow)]


@pytest.mark.parametrize(('ratio', 'rows'), CASES)
def test_a_full_bank_ends_with_the_share_or_half_of_what_fits(ratio, rows):
  done = []
  sized = plan(
    62, ratio=ratio, rows=rows, progress=lambda items, _, what: done.append(what) or items
  )
  assert sized.needs_compaction
  x = embeddings(62)
  bank = coreset_bank(sized, x)
  assert set(done) == {'Compacting the memory bank', 'Selecting the coreset'}
  assert len(bank.patches.embeddings) == min(round(ratio * 62 * PATCHES), rows // 2)
  assert len(bank.patches.embeddings) == len(bank.patches.image_id) == len(bank.patches.patch_id)
  assert bank.num_images == 62
  assert_rows_are_patches(bank.patches, x)


@pytest.mark.parametrize(('ratio', 'rows'), CASES)
def test_no_patch_ever_folded_in_is_farther_than_the_radius(ratio, rows):
  """Whenever one looks, and in the end, though most patches are long gone."""
  sized, x = plan(62, ratio=ratio, rows=rows), embeddings(62, 1)
  bank, reduced = memory_bank.empty(sized), []
  for start in range(0, 62, 4):
    bank, chosen = fold(bank, sized, x[start : start + 4], start)
    reduced += chosen
    patches, in_use = x[: start + 4], bank.patches.embeddings[: int(bank.num_rows[0])]
    assert farthest(patches, in_use) <= bank.covering_radius * (1 + 1e-5) + 1e-5
  bank = memory_bank.select_coreset(KEY, bank, sized)
  assert farthest(x, bank.patches.embeddings) <= bank.covering_radius * (1 + 1e-5)
  assert rows // 2 in reduced or ratio == 0.02  # What was chosen has been chosen from again.


def test_fresh_patches_alone_are_selected_from_while_the_chosen_are_few():
  sized, x = plan(62, ratio=0.02, rows=64), embeddings(62)
  bank, chosen = fold(memory_bank.empty(sized), sized, x[:36])
  first, second = np.unique(chosen)[1:3]
  assert first == math.ceil(4 * 0.02 * 64)
  assert second == first + math.ceil(4 * 0.02 * 48)
  # The first choice has stayed as it was.
  early, _ = fold(memory_bank.empty(sized), sized, x[:20])
  np.testing.assert_array_equal(bank.patches.embeddings[:first], early.patches.embeddings[:first])


def test_making_room_covers_at_most_twice_as_far_as_selecting_at_once():
  for seed in range(4):
    x = embeddings(62, seed)
    bank = coreset_bank(plan(62, ratio=0.1, rows=45), x)
    assert len(bank.patches.embeddings) == 22
    at_once = farthest(x, slow_select(x, x[0, 0, 0], 22))
    assert farthest(x, bank.patches.embeddings) <= 2 * at_once, seed


def test_there_is_room_for_a_batch_whenever_one_was_made():
  sized = plan(100, ratio=0.1, rows=45)
  bank = memory_bank.empty(sized)
  for start in range(0, 100, 4):
    bank = memory_bank.compact(KEY, bank, sized, 4)
    assert int(bank.num_rows[0]) + 4 * PATCHES <= sized.capacity
    bank, _ = fold(bank, sized, embeddings(4, start), size=4)


def test_a_bank_that_has_room_is_left_alone():
  sized = plan(62, rows=64)
  bank, _ = fold(memory_bank.empty(sized), sized, embeddings(12))
  assert memory_bank.compact(KEY, bank, sized, 4) is bank


def test_too_few_bytes_for_four_images_are_refused_with_how_many_would_do():
  with pytest.raises(ConfigError, match=r'detector.max_bytes=\d+ holds .* 3.8 images') as refused:
    plan(10, rows=15)
  (needed,) = re.findall(r'at least (\d+) bytes are needed', str(refused.value))
  options = PatchcoreSettings(ratio=0.1, max_bytes=int(needed))
  capacity.configure_bank(D, PATCHES, RunContext(8, 8, 10), options)


def test_batches_of_more_than_half_of_the_bank_are_refused_with_a_way_out():
  sized = plan(62, rows=45)
  bank, _ = fold(memory_bank.empty(sized), sized, embeddings(8))
  with pytest.raises(
    ConfigError, match=r'holds 11 images, .* batches of 6\. Lower fit.batch_size or'
  ):
    memory_bank.compact(KEY, bank, sized, 6)
  assert memory_bank.compact(KEY, bank, sized, 5).num_rows <= 22


@pytest.mark.parametrize(
  ('images', 'more', 'rows'),
  [(16, 12, 10**6), pytest.param(40, 40, 45, marks=pytest.mark.slow)],
)
def test_a_bank_can_be_taken_up_again(images, more, rows):
  """Old rows compete with new patches; numbers, counts and the radius go on."""
  x = embeddings(images + more, 2)
  old = coreset_bank(plan(images, ratio=0.25, rows=rows), x[:images])
  arrays = jax.tree.map(np.asarray, memory_bank.to_arrays(old))
  further = plan(more, num_previous=images, ratio=0.25, rows=rows)
  bank = memory_bank.from_arrays(memory_bank.empty(further), arrays, further)
  np.testing.assert_array_equal(
    bank.patches.embeddings[: len(old.patches.embeddings)], arrays['embeddings']
  )
  bank, _ = fold(bank, further, x[images:], first=images)
  bank = memory_bank.select_coreset(KEY, bank, further)
  assert len(bank.patches.embeddings) == min(
    images + more, rows // 2
  )  # A quarter of four patches each.
  assert bank.num_images == images + more
  assert_rows_are_patches(bank.patches, x)
  is_old = np.asarray(bank.patches.image_id) < images
  assert 0 < is_old.sum() < len(is_old)
  of_old = {row.tobytes() for row in np.asarray(bank.patches.embeddings)[is_old]}
  assert of_old <= {row.tobytes() for row in arrays['embeddings']}
  assert old.covering_radius <= bank.covering_radius
  assert farthest(x, bank.patches.embeddings) <= bank.covering_radius * (1 + 1e-5)


def test_a_bank_that_is_taken_up_and_put_down_is_the_same():
  old = coreset_bank(plan(16, ratio=0.25), embeddings(16))
  arrays, further = (
    jax.tree.map(np.asarray, memory_bank.to_arrays(old)),
    plan(12, num_previous=16, ratio=0.25),
  )
  again = memory_bank.select_coreset(
    KEY, memory_bank.from_arrays(memory_bank.empty(further), arrays, further), further
  )
  rows = np.asarray(again.patches.embeddings)
  assert {x.tobytes() for x in rows} == {x.tobytes() for x in arrays['embeddings']}
  assert len(rows) == len(arrays['embeddings'])
  assert (again.covering_radius, again.num_images) == (arrays['covering_radius'], 16)


def test_a_projection_decides_what_stays_but_not_how_it_looks():
  x = embeddings(16)
  whole, projected = (coreset_bank(plan(16, ratio=0.25, dim=dim), x) for dim in (0, 2))
  assert len(projected.patches.embeddings) == 16
  assert_rows_are_patches(projected.patches, x)
  assert sorted(projected.patches.embeddings.tolist()) != sorted(whole.patches.embeddings.tolist())


def test_a_projection_to_as_many_dimensions_is_none():
  x = embeddings(16)
  whole, same = (coreset_bank(plan(16, ratio=0.25, dim=dim), x) for dim in (0, D))
  np.testing.assert_array_equal(same.patches.embeddings, whole.patches.embeddings)


def stood(plan, x, before=None):
  bank, _ = fold(memory_bank.empty(plan), plan, x)
  return leave_out.select_calibration_coresets(KEY, bank, plan, before)


@pytest.mark.parametrize(
  ('images', 'ratio', 'dim'),
  [
    (23, 0.1, 0),
    pytest.param(3, 1.0, 0, marks=pytest.mark.slow),
    pytest.param(23, 0.1, 2, marks=pytest.mark.slow),
  ],
)
def test_of_every_fold_a_share_stands_in(images, ratio, dim):
  """Which images are of which fold goes by their numbers; where there are few, each is alone."""
  sized, x = plan(images, ratio=ratio, dim=dim), embeddings(images)
  num_folds = min(sized.num_folds, images)  # In use.
  got = stood(sized, x)
  assert_rows_are_patches(got, x)
  row_counts = np.bincount(np.asarray(got.image_id) % sized.num_folds)
  patch_counts = np.bincount(np.arange(images) % sized.num_folds) * PATCHES
  np.testing.assert_array_equal(
    row_counts, np.minimum(patch_counts, math.ceil(4 * sized.coreset_size / num_folds))
  )


@pytest.mark.parametrize('dim', [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_bank_without_a_fold_has_no_row_of_it_and_covers_the_others(dim):
  sized, x = plan(23, ratio=0.1, dim=dim), embeddings(23, 3)
  coresets = stood(sized, x)
  for out in (0, 3, 4):
    patches = leave_out.coreset_without_fold(coresets, sized, out, sized.coreset_size)
    rows = patches.embeddings
    assert len(rows) == sized.coreset_size
    others = x[np.arange(23) % sized.num_folds != out]
    other_patches = {patch.tobytes() for patch in others.reshape(-1, D)}
    assert all(row.tobytes() in other_patches for row in np.asarray(rows)), out
    if not dim:
      at_once = slow_select(others, rows[0], len(rows))
      assert farthest(others, rows) <= 2 * farthest(others, at_once), out


def test_where_fewer_stand_in_than_asked_for_all_are_taken():
  sized, x = plan(3, ratio=1.0), embeddings(3)
  patches = leave_out.coreset_without_fold(stood(sized, x), sized, 1, 3 * PATCHES)
  rows = np.asarray(patches.embeddings)
  assert sorted(rows.tolist()) == sorted(x[[0, 2]].reshape(-1, D).tolist())


@pytest.mark.slow
def test_a_compacted_bank_has_calibration_coresets_of_its_rows():
  sized, x = plan(62, ratio=0.1, rows=45), embeddings(62)
  bank, _ = fold(memory_bank.empty(sized), sized, x)
  got = leave_out.select_calibration_coresets(KEY, bank, sized, None)
  assert_rows_are_patches(got, x)
  assert len(got.embeddings) <= sized.num_folds * math.ceil(
    4 * sized.coreset_size / sized.num_folds
  )
  in_use = set(np.asarray(bank.patches.image_id[: int(bank.num_rows[0])]).tolist())
  assert set(np.asarray(got.image_id).tolist()) <= in_use
  assert len(np.unique(np.asarray(got.image_id) % sized.num_folds)) > 1


def on(devices):
  return mesh.shards(jax.sharding.Mesh(np.array(jax.devices()[:devices]), ('data',)))


@pytest.mark.parametrize(
  ('images', 'before', 'numbers'),
  [
    pytest.param(3, True, (1, 8), marks=pytest.mark.slow),
    pytest.param(3, False, (1, 2, 4, 8), marks=pytest.mark.slow),
    pytest.param(37, True, (1, 2, 4, 8), marks=pytest.mark.slow),
  ],
)
def test_the_bank_does_not_depend_on_the_devices(images, before, numbers):
  """Fewer images than devices, two of which hold no row; a number of images that none divides.

  After an earlier bank, and without one.
  """
  x, first = embeddings(images + 11), 11 if before else 0
  earlier = plan(11, ratio=0.25)
  old = fold(memory_bank.empty(earlier), earlier, x[images:])[0]
  stood = leave_out.select_calibration_coresets(KEY, old, earlier, None)
  arrays = jax.tree.map(
    np.asarray, memory_bank.to_arrays(memory_bank.select_coreset(KEY, old, earlier))
  )
  results = []
  for devices in numbers:
    sized = plan(
      images, num_previous=first, ratio=0.25, shards=on(devices), max_extra_images_per_shard=1
    )
    bank = memory_bank.empty(sized)
    if before:
      bank = memory_bank.from_arrays(bank, arrays, sized)
    bank, _ = fold(bank, sized, x[:images], first, size=8)
    assert bank.num_rows.shape == (devices,)
    rows = bank.patches.embeddings
    assert rows.addressable_shards[0].data.shape[0] == len(rows) // devices
    coresets = leave_out.select_calibration_coresets(KEY, bank, sized, stood if before else None)
    without = leave_out.coreset_without_fold(coresets, sized, 2, sized.coreset_size)
    results.append(
      jax.device_get((memory_bank.select_coreset(KEY, bank, sized), coresets, without))
    )
  for got in results[1:]:
    np.testing.assert_allclose(got[0].covering_radius, results[0][0].covering_radius, rtol=1e-5)
    got, want = ((bank._replace(covering_radius=0), *rest) for bank, *rest in (got, results[0]))
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.slow
@pytest.mark.parametrize('devices', [2, 4])
def test_every_device_makes_room_for_itself(devices):
  x = embeddings(31 * devices, 1)
  sized = plan(len(x), ratio=0.1, rows=45, shards=on(devices), max_extra_images_per_shard=1)
  bank, _ = fold(memory_bank.empty(sized), sized, x, size=4 * devices)
  assert (np.asarray(bank.num_rows) <= 45).all()
  selected = memory_bank.select_coreset(KEY, bank, sized)
  assert len(selected.patches.embeddings) == sized.coreset_size == round(0.1 * len(x) * PATCHES)
  assert_rows_are_patches(selected.patches, x)
  assert farthest(x, selected.patches.embeddings) <= selected.covering_radius * (1 + 1e-5)
