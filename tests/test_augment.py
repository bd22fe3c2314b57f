"""Laws of augmented copies: which pixels they have, who learns from them, and who is not scored."""

import math
from pathlib import Path

from hypothesis import given, strategies as st
import numpy as np
from PIL import Image
import pytest
import small_runs

from uadjax.data import augment, image_io, transforms
from uadjax.data.image_cache import ImageCache
from uadjax.data.records import Record
from uadjax.data.tiles import Tile
from uadjax.errors import ConfigError
from uadjax.inference import pipelines
from uadjax.model import incremental_state, model_dir
from uadjax.training import image_table

AUGMENT = 'rotate(2)|shift(0.1)|brightness(0.9, 1.1)'
FLAG = f'--config.fit.augment={AUGMENT}'
PATCHES = 8 * 12  # Of an image of a small run, on the grid of the first stage.
RATIO = 0.125


def noise(h, w, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)


def make_copies(text, image, seed=0):
  augmentation = augment.parse(text, seed)
  numbers = range(1, 1 + augmentation.num_copies)
  return [augmentation.make_copy(image, number) for number in numbers]


@pytest.mark.parametrize(
  ('text', 'num_copies'),
  [
    ('', 0), ('rotate(8)', 7), (' rotate( 2 ) ', 1), ('shift(.05)', 3), ('brightness(0.8,1.2)', 3),
    ('shift(0.05)|brightness(0.8, 1.2)', 3), (AUGMENT, 1), ('shift(0.5)|rotate(360)', 359),
  ],
)  # fmt: skip
def test_the_ops_determine_the_number_of_copies(text, num_copies):
  assert augment.parse(text).num_copies == num_copies


@pytest.mark.parametrize(
  'text',
  [
    'rotate', 'rotate()', 'rotate(1)', 'rotate(2.5)', 'rotate(361)', 'rotate(4, 4)', 'rotate(-4)',
    'shift(0)', 'shift(0.51)', 'shift(5%)', 'shift(0.1, 0.1)', 'brightness(0.8)',
    'brightness(1.2, 0.8)', 'brightness(1, 1)', 'brightness(0, 1)', 'brightness(1, 11)',
    'flip(2)', 'rotate(8)|', '|', ' ', 'rotate(8)rotate(8)', f'shift({"9" * 5000})',
  ],
)  # fmt: skip
def test_ops_that_cannot_be_read_are_refused_with_an_example(text):
  with pytest.raises(ConfigError, match=r"as in '\w+\(") as caught:
    augment.parse(text)
  assert repr(text) in str(caught.value)
  name = text.partition('(')[0]
  if name in ('rotate', 'shift', 'brightness') and '|' not in text:
    assert f"as in '{name}(" in str(caught.value)


def test_a_repeated_op_is_refused():
  with pytest.raises(ConfigError, match='repeats an op'):
    augment.parse('rotate(8)|shift(0.1)|rotate(4)')


@pytest.mark.parametrize('side', [1, 2, 7, 8])
def test_quarter_turns_of_a_square_image_move_its_pixels(side):
  image = noise(side, side)
  for k, copy in enumerate(make_copies('rotate(4)', image), 1):
    np.testing.assert_array_equal(copy, np.rot90(image, -k))


def mirrored(i, n):
  """Position of a pixel, of an axis that is mirrored at its first and its last pixel."""
  while not 0 <= i < n:
    i = -i if i < 0 else 2 * (n - 1) - i
  return i


def slow_turn(image, angle, shift):
  """Turn an image about its center, then shift it; each pixel is a mean of four."""
  h, w, _ = image.shape
  out = np.zeros(image.shape)
  for y, x in np.ndindex(h, w):
    dy, dx = y - shift[0] - (h - 1) / 2, x - shift[1] - (w - 1) / 2
    v = math.cos(angle) * dy - math.sin(angle) * dx + (h - 1) / 2
    u = math.sin(angle) * dy + math.cos(angle) * dx + (w - 1) / 2
    for a, b in np.ndindex(2, 2):
      weight = (1 - abs(v - math.floor(v) - a)) * (1 - abs(u - math.floor(u) - b))
      pixel = image[mirrored(math.floor(v) + a, h), mirrored(math.floor(u) + b, w)]
      out[y, x] += weight * pixel
  return out


@pytest.mark.parametrize('size', [(9, 9), (6, 13), (12, 5)])
def test_copies_are_sampled_bilinearly_and_mirrored_at_the_edges(size):
  image = noise(*size)
  for k, copy in enumerate(make_copies('rotate(5)', image), 1):
    assert (copy.dtype, copy.shape) == (image.dtype, image.shape)
    expected = slow_turn(image, 2 * math.pi * k / 5, (0, 0))
    np.testing.assert_allclose(copy, expected, rtol=0, atol=0.501)


def test_shifts_are_random_and_within_their_bounds():
  """Of a ramp, for which a shift is a difference of values."""
  h, w, largest = 60, 40, 0.1
  image = np.zeros((h, w, 3), np.uint8)
  image[..., 0], image[..., 1] = 4 * np.arange(h)[:, None], 4 * np.arange(w)
  shifts = []
  for seed in range(30):
    for copy in make_copies(f'shift({largest})', image, seed):
      inner = (image.astype(float) - copy)[8:-8, 8:-8]
      shift = inner[..., 0].mean() / 4, inner[..., 1].mean() / 4
      np.testing.assert_allclose(copy, slow_turn(image, 0, shift), rtol=0, atol=1)
      shifts.append(shift)
  limits = largest * np.array([h, w])
  assert (np.abs(shifts) <= limits + 0.1).all()
  # Of 90 draws, some come close to either end.
  assert (np.max(shifts, axis=0) > 0.8 * limits).all()
  assert (np.min(shifts, axis=0) < -0.8 * limits).all()


def test_brightness_is_random_and_within_its_bounds():
  image = np.full((4, 4, 3), 100, np.uint8)
  copies = [x for seed in range(30) for x in make_copies('brightness(0.8, 1.2)', image, seed)]
  values = {int(x[0, 0, 0]) for x in copies}
  assert all((x == x[0, 0, 0]).all() for x in copies)
  assert 80 <= min(values) < 85
  assert 115 < max(values) <= 120
  assert make_copies('brightness(9, 10)', image)[0].max() == 255


@given(st.integers(0, 255), st.integers(0, 99))
def test_a_copy_of_a_uniform_image_is_uniform(value, seed):
  image = np.full((5, 8, 3), value, np.uint8)
  for copy in make_copies('rotate(7)|shift(0.2)', image, seed):
    np.testing.assert_array_equal(copy, image)


def test_a_copy_depends_on_pixels_seed_and_number_only():
  image = noise(12, 12)
  copies = make_copies('shift(0.2)', image, seed=1)
  for a, b in zip(copies, make_copies('shift(0.2)', image[::-1][::-1], seed=1), strict=True):
    np.testing.assert_array_equal(a, b)
  others = [*make_copies('shift(0.2)', image, seed=2), *make_copies('shift(0.2)', noise(12, 12, 1))]
  assert len({x.tobytes() for x in [*copies, *others]}) == 9


@pytest.mark.parametrize('max_bytes', [0, 1 << 20])
def test_tiles_of_a_copy_are_cut_from_the_copy_of_the_image(tmp_path, monkeypatch, max_bytes):
  """A file that does not fit into memory is decoded once."""
  path, image = tmp_path / 'a.png', noise(70, 90)
  Image.fromarray(image).save(path)
  augmentation = augment.parse('rotate(3)|shift(0.1)', 5)
  cache = ImageCache(transforms.parse('tile(32, 8)'), max_bytes, augmentation=augmentation)
  read, calls = image_io.read_image, []
  monkeypatch.setattr(image_io, 'read_image', lambda *args: calls.append(args) or read(*args))
  assert cache.list_tiles([path]) == [Tile(path, i) for i in range(12)]
  tiles = cache.list_tiles([path], with_copies=True)
  assert tiles == [Tile(path, i, copy) for copy in range(3) for i in range(12)]
  versions = [image, *(augmentation.make_copy(image, number) for number in (1, 2))]
  for tile in tiles:
    window = cache.tile_grid(path).window(tile.number)
    np.testing.assert_array_equal(cache.load_tile(tile), versions[tile.copy][window])
  assert len(calls) == 1


@pytest.mark.parametrize('num_folds', [1, 5])
def test_copies_are_in_the_fold_of_their_image_and_stored_with_it(tmp_path, num_folds):
  records = []
  for i in range(7):
    blocks = Image.fromarray(noise(4, 4, i)).resize((32, 32), Image.Resampling.NEAREST)
    blocks.save(tmp_path / f'{i}.png')
    records.append(Record(tmp_path / f'{i}.png'))
  cache = ImageCache(transforms.parse('resize(32)'), 0, augmentation=augment.parse('rotate(3)'))
  table = image_table.build(incremental_state.EMPTY.images, records, num_folds, 99, cache)
  assert table.num_tiles.tolist() == [3] * 7
  ids = table.tile_ids.reshape(7, 3)
  assert len(np.unique(ids)) == ids.size
  np.testing.assert_array_equal(ids % num_folds, np.tile(table.folds[:, None], 3))
  np.testing.assert_array_equal(table.folds, np.arange(7) % num_folds)
  learned = image_table.to_learned_images(table, cache)
  assert len(learned.split_pixels()) == 7


@pytest.fixture(scope='module')
def augmented(trained):
  """The work directory of a small run with augmented copies, by detector."""
  return lambda name: trained(name, FLAG, small_runs.NO_EVALUATION)


@pytest.fixture(
  params=['padim', *(pytest.param(n, marks=pytest.mark.slow) for n in ('patchcore', 'subspace'))]
)
def workdir(request, augmented):
  return augmented(request.param)


def test_a_model_learns_from_copies_and_is_calibrated_on_images(workdir):
  assert small_runs.result(workdir)['summary']['images'] == 2 * small_runs.TRAIN
  assert small_runs.manifest(workdir)['thresholds']['num_normals'] == small_runs.TRAIN
  scores = model_dir.load_calibration_scores(workdir / 'model')
  assert len(set(scores.paths)) == len(scores.paths) == small_runs.TRAIN
  assert (
    'good images for training, augmented copies of each: 1' in (workdir / 'train.log').read_text()
  )


@pytest.mark.slow
def test_a_memory_bank_has_its_share_of_all_patches(augmented):
  bank = small_runs.arrays(augmented('patchcore'))['memory_bank/rows']
  assert len(bank) == RATIO * 2 * small_runs.TRAIN * PATCHES


@pytest.mark.slow
def test_scores_do_not_depend_on_batches_nor_devices(augmented, trained):
  other = trained(
    'patchcore', FLAG, small_runs.NO_EVALUATION, '--config.fit.batch_size=7',
    '--config.mesh.data=3', '--config.mesh.shard_state=always', '--config.fit.cache_bytes=0',
  )  # fmt: skip
  want, got = (
    model_dir.load_calibration_scores(x / 'model') for x in (augmented('patchcore'), other)
  )
  assert got.paths == want.paths
  np.testing.assert_allclose(got.scores, want.scores, rtol=1e-4)


def test_an_image_is_calibrated_by_a_model_without_its_copies(augmented, tmp_path):
  """A model that learned all other images gives the same score."""
  scores = model_dir.load_calibration_scores(augmented('padim') / 'model')
  held_out = Path(scores.paths[4])
  others = small_runs.write_part(
    tmp_path, [path for path in map(Path, scores.paths) if path != held_out]
  )
  flags = *small_runs.flags('padim', others), FLAG, small_runs.NO_EVALUATION
  assert small_runs.run(*flags, f'--workdir={tmp_path / "rest"}') == 0
  (result,) = pipelines.create_model(model_dir=tmp_path / 'rest' / 'model').predict(held_out)
  assert result.score == pytest.approx(scores.scores[4], rel=0.02)


def test_a_model_with_copies_can_be_extended_after_its_files_are_gone(augmented, drawn, tmp_path):
  paths = sorted((drawn / 'disc' / 'train' / 'good').glob('*.png'))
  first, second = (
    small_runs.write_part(tmp_path / 'a', paths[:7]),
    small_runs.write_part(tmp_path / 'b', paths[7:]),
  )
  flags = *small_runs.flags('padim', first), FLAG, small_runs.NO_EVALUATION
  assert small_runs.run(*flags, f'--workdir={tmp_path / "1"}') == 0
  for path in first.rglob('*.png'):
    path.unlink()
  flags = *small_runs.flags('padim', second), small_runs.NO_EVALUATION
  flags = *flags, f'--config.fit.extend={tmp_path / "1" / "model"}'
  assert small_runs.run(*flags, FLAG, f'--workdir={tmp_path / "2"}') == 0
  for name, array in small_runs.arrays(augmented('padim')).items():
    np.testing.assert_allclose(
      small_runs.arrays(tmp_path / '2')[name], array, rtol=1e-3, atol=1e-3 * np.abs(array).max()
    )
  whole, extended = (
    model_dir.load_calibration_scores(workdir / 'model')
    for workdir in (augmented('padim'), tmp_path / '2')
  )
  np.testing.assert_allclose(sorted(extended.scores), sorted(whole.scores), rtol=0.02)


def test_a_run_that_could_not_remove_earlier_copies_is_refused(augmented, drawn, tmp_path, capfd):
  flags = *small_runs.flags('padim', drawn), small_runs.NO_EVALUATION
  flags = *flags, f'--config.fit.extend={augmented("padim") / "model"}', f'--workdir={tmp_path}/x'
  for more, key in (((), 'fit.augment'), ((FLAG, '--config.seed=4'), 'seed')):
    capfd.readouterr()
    assert small_runs.run(*flags, *more) == 2
    message = capfd.readouterr().err
    assert message.startswith(f'ConfigError: {key} is '), message
    assert f'--config.{key}=' in message


def test_stfpm_refuses_copies(drawn, tmp_path, capfd):
  flags = *small_runs.flags('stfpm', drawn), FLAG, f'--workdir={tmp_path / "x"}'
  assert small_runs.run(*flags) == 2
  assert (
    'Only PaDiM, PatchCore and SubspaceAD learn from augmented copies' in capfd.readouterr().err
  )


def test_a_region_of_interest_refuses_copies(drawn, tmp_path, capfd):
  roi = tmp_path / 'roi.png'
  Image.new('L', (8, 8), 255).save(roi)
  flags = *small_runs.flags('padim', drawn), FLAG, f'--config.data.roi={roi}'
  assert small_runs.run(*flags, f'--workdir={tmp_path / "x"}') == 2
  error = capfd.readouterr().err
  assert 'fit.augment' in error
  assert 'data.roi' in error
  assert not (tmp_path / 'x/model').exists()
