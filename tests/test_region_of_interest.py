"""Laws of a region of interest: what lies outside is neither learned nor scored."""

import dataclasses

from hypothesis import given, strategies as st
import jax
from jax import numpy as jnp
import numpy as np
from PIL import Image
import pytest
from scipy import ndimage
from stored_arrays import stored
from tiny_network import TinyNetwork

from uadjax import backbones, data
from uadjax.data import image_statistics, inputs, region_of_interest, transforms
from uadjax.data.region_of_interest import RegionOfInterest
from uadjax.data.settings import DataSettings
from uadjax.detectors import image_score, inspection, padim, patchcore, patchcore_by_layer, stfpm
from uadjax.detectors.base import RunContext
from uadjax.detectors.settings import PadimSettings, PatchcoreSettings, StfpmSettings
from uadjax.errors import ConfigError, DataError
from uadjax.types import Batch

# The features of layer1 depend on 26 pixels around a cell of 4, averaging of neighbors included.
HEIGHT, WIDTH, CELL, FIELD = 32, 96, 4, 26
BACKBONE = TinyNetwork(('layer1',))
INSPECTED = np.zeros((HEIGHT, WIDTH), bool)
INSPECTED[5:26, 3:26] = True
# Half of each cell in this row and in this column.
INSPECTED[26:30, 8:10] = INSPECTED[12:14, 26:30] = True
NUM_IMAGES = 5


def save(path, mask):
  Image.fromarray(mask).save(path)
  return path


def region(height=40, width=60):
  mask = np.zeros((height, width), bool)
  mask[4 : height // 2, width // 5 :] = True
  return mask


# The region as data.


def test_white_is_inspected_and_the_category_names_the_file(tmp_path):
  mask = region()
  save(tmp_path / 'bolt.png', mask)
  gray = np.where(mask, 128, 127).astype(np.uint8)
  Image.fromarray(gray).save(tmp_path / 'nut.png')
  for category in ('bolt', 'nut'):
    for root, name in ((tmp_path, category), (tmp_path / category, '')):
      settings = DataSettings(root=str(root), category=name, roi=f'{tmp_path}/{{category}}.png')
      loaded = data.load_ops(settings).region
      assert loaded is not None
      np.testing.assert_array_equal(loaded.mask, mask)
  assert data.load_ops(DataSettings()).region is None


def test_a_white_region_is_no_region(tmp_path):
  save(tmp_path / 'white.png', np.ones((40, 60), bool))
  settings = DataSettings(roi=str(tmp_path / 'white.png'))
  assert data.load_ops(settings) == data.load_ops(dataclasses.replace(settings, roi=''))
  # The same if a crop shows nothing else.
  ops = transforms.parse('resize(40)|center_crop(20)')
  mask = np.zeros((60, 60), bool)
  mask[12:48, 12:48] = True
  assert ops.with_region(RegionOfInterest(mask)).network_region() is None


@pytest.mark.parametrize('content', [None, b'no image', 'black'])
def test_a_region_without_white_or_that_is_unreadable_is_refused(tmp_path, content):
  path = tmp_path / 'roi.png'
  if content == 'black':
    Image.fromarray(np.full((40, 60), 1, np.uint8)).save(path)
  elif content:
    path.write_bytes(content)
  with pytest.raises(DataError) as caught:
    data.load_ops(DataSettings(roi=str(path)))
  assert (caught.value.key, caught.value.value) == ('data.roi', str(path))
  assert str(path) in str(caught.value)


def test_a_region_that_no_scaled_image_shows_is_refused():
  mask = np.zeros((60, 60), bool)
  mask[:5] = True
  with pytest.raises(DataError) as caught:
    transforms.parse('resize(60)|center_crop(30)').with_region(RegionOfInterest(mask))
  assert caught.value.key == 'data.roi'


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 4))
def test_an_image_fits_if_it_is_the_region_scaled(height, width, factor):
  mask = np.zeros((height, width), bool)
  mask[0, 0] = True
  region = RegionOfInterest(mask)
  region.require_fit(height, width)
  region.require_fit(factor * height, factor * width)
  RegionOfInterest(np.resize(mask, (factor * height, factor * width))).require_fit(height, width)
  with pytest.raises(DataError):
    region.require_fit(2 * height + 2, width)


def test_crops_that_show_another_part_at_another_size_are_refused():
  ops = transforms.parse('center_crop(20)').with_region(RegionOfInterest(region(40, 40)))
  ops.require_fit(40, 40)
  with pytest.raises(DataError):
    ops.require_fit(80, 80)
  scaled = transforms.parse('resize(40)|center_crop(20)')
  scaled.with_region(RegionOfInterest(region(40, 40))).require_fit(80, 80)


@pytest.mark.parametrize(
  'text', ['resize(20, 30)', 'keep_ratio(20)', 'resize(30, 45)|center_crop(20)']
)
def test_the_region_goes_through_the_ops_of_the_images(text):
  """A pixel is inspected where an image that is white inside is at least half white."""
  ops, mask = transforms.parse(text), region()
  image = np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)
  inspected = ops.with_region(RegionOfInterest(mask)).network_region()
  np.testing.assert_array_equal(inspected, ops.apply(image)[..., 0] >= 128)


@pytest.mark.parametrize('size', [(40, 60), (80, 120)])
def test_a_restored_map_is_visible_inside_only_and_its_minimum_outside(size):
  ops = transforms.parse('resize(30, 45)|center_crop(20)')
  anomaly_map = np.random.default_rng(0).gamma(2, size=(20, 20)).astype(np.float32)
  plain = ops.restore(anomaly_map, *size)
  restored = ops.with_region(RegionOfInterest(region())).restore(anomaly_map, *size)
  inside = region().repeat(size[0] // 40, 0).repeat(size[1] // 60, 1)
  np.testing.assert_array_equal(restored.visible, plain.visible & inside)
  np.testing.assert_array_equal(restored.anomaly_map[inside], plain.anomaly_map[inside])
  assert (restored.anomaly_map[~inside] == anomaly_map.min()).all()


def test_pixels_outside_change_no_statistic_and_no_label():
  rng = np.random.default_rng(0)
  ops = transforms.parse('resize(40, 60)').with_region(RegionOfInterest(region()))
  image = rng.integers(0, 256, (40, 60, 3), np.uint8)
  changed = np.where(region()[..., None], image, 255).astype(np.uint8)
  loaded = [inputs.load(inputs.Source('x', pixels), ops) for pixels in (image, changed)]
  assert loaded[0].statistics == loaded[1].statistics
  everything = image_statistics.measure(image, (40, 60), False, np.ones((40, 60), bool))
  for value, expected in zip(everything, image_statistics.measure(image, (40, 60)), strict=True):
    assert value == pytest.approx(expected, rel=1e-5)


def test_an_image_of_another_aspect_is_unreadable_by_name():
  ops = transforms.parse('resize(40, 60)').with_region(RegionOfInterest(region()))
  loaded = inputs.load(inputs.Source('tall', np.zeros((60, 40, 3), np.uint8)), ops)
  assert loaded.pixels is None
  assert str(loaded.error).startswith('tall: ')
  assert '60 x 40' in str(loaded.error)


def test_a_region_survives_its_file():
  original = RegionOfInterest(region())
  copy = region_of_interest.read(original.to_png())
  assert copy is not None
  np.testing.assert_array_equal(copy.mask, original.mask)
  assert copy.sha256 == original.sha256
  assert RegionOfInterest(region(42, 60)).sha256 != original.sha256


# The cells of a detector, and the map of the inspected ones.


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_a_cell_is_inspected_unless_more_than_half_of_it_is_outside(h, w, seed):
  mask = np.random.default_rng(seed).random((3 * h + h // 2, 2 * w)) < 0.6
  fine = mask.repeat(2 * h, 0).repeat(w, 1)  # Cells are whole blocks of these pixels.
  blocks = fine.reshape(h, fine.shape[0] // h, w, -1).mean((1, 3))
  if (blocks >= 0.5).any():
    np.testing.assert_array_equal(inspection.find_cells(mask, h, w), blocks >= 0.5)
  else:
    with pytest.raises(ConfigError) as caught:
      inspection.find_cells(mask, h, w)
    assert caught.value.key == 'data.roi'


def slow_cells(stride=CELL):
  blocks = INSPECTED.reshape(HEIGHT // stride, stride, WIDTH // stride, stride)
  return blocks.mean((1, 3)) >= 0.5


def slow_map(distance, cells, sigma=4.0):
  """Mean of the inspected cells near each pixel, by the weights of bilinear resizing and blur."""

  def smooth(values):
    big = Image.fromarray(values.astype(np.float32)).resize(
      (WIDTH, HEIGHT), Image.Resampling.BILINEAR
    )
    return ndimage.gaussian_filter(np.asarray(big, np.float64), sigma, truncate=4)

  return INSPECTED * smooth(distance * cells) / np.maximum(smooth(cells), 1e-3)


@pytest.mark.parametrize('share', [0.0, 0.05, 1.0])
def test_the_score_counts_inspected_cells_and_pixels_only(share):
  cells = slow_cells()
  distance = np.random.default_rng(0).gamma(2, size=(2, *cells.shape)).astype(np.float32)
  rule = f'top:{share}' if share else 'max'
  size = HEIGHT, WIDTH
  scores = image_score.from_distances(jnp.asarray(distance), size, rule, INSPECTED[None])
  for i in range(2):
    expected = slow_map(distance[i], cells)
    np.testing.assert_allclose(scores.map[i], expected, rtol=1e-4, atol=1e-6)
    inside = np.sort(expected[::2, ::2][INSPECTED[::2, ::2]])
    largest = inside[-max(1, round(share * len(inside))) :]
    want = largest.mean() if share else expected.max()
    assert float(scores.image[i]) == pytest.approx(want, rel=1e-3)
  changed = np.where(cells, distance, 1e6).astype(np.float32)
  again = image_score.from_distances(jnp.asarray(changed), size, rule, INSPECTED[None])
  np.testing.assert_array_equal(again.map, scores.map)
  np.testing.assert_array_equal(again.image, scores.image)


# Detectors.


def context(inspected=INSPECTED):
  return RunContext(HEIGHT, WIDTH, NUM_IMAGES, learning_rate=lambda _: 0.1, inspected=inspected)


def make_patchcore(inspected, **options):
  options = PatchcoreSettings(ratio=1.0, **options)
  return patchcore.make(BACKBONE, context(inspected), options)


MAKE = {
  'padim': lambda inspected: padim.make(BACKBONE, context(inspected), PadimSettings(channels=6)),
  'patchcore': make_patchcore,
  'window': lambda inspected: make_patchcore(inspected, window=1),
  'stfpm': lambda inspected: stfpm.make(BACKBONE, context(inspected), StfpmSettings()),
}


def batch(seed=0, outside=False):
  """Images; with `outside`, with other pixels where no inspected cell sees them."""
  images = np.random.default_rng(seed).integers(0, 256, (NUM_IMAGES, HEIGHT, WIDTH, 3), np.uint8)
  if outside:
    images[:, :, 30 + FIELD :] = 255 - images[:, :, 30 + FIELD :]
  return Batch(images, np.ones(NUM_IMAGES, bool), np.arange(NUM_IMAGES, dtype=np.int32))


@pytest.fixture(scope='module')
def variables():
  return jax.jit(BACKBONE.init)(jax.random.key(7), jnp.zeros((1, HEIGHT, WIDTH, 3)))


def learn(detector, variables, training_batch):
  """State after one update, and what a one-pass detector stores."""
  state = detector.init(jax.random.key(1), variables)
  state, _ = jax.jit(detector.update)(state, training_batch)
  return detector.incremental.select(state) if detector.incremental.select else state


@pytest.fixture(scope='module')
def learned(variables):
  """Fitted detectors that inspect the region, by name, with their stored arrays."""

  def fit(name, training_batch):
    detector = MAKE[name](INSPECTED)
    if name == 'stfpm':
      return detector, detector.finalize(detector.init(jax.random.key(1), variables)), {}
    state = learn(detector, variables, training_batch)
    arrays = stored(detector.incremental.to_arrays(state))
    return detector, detector.finalize(state), arrays

  return fit


@pytest.mark.parametrize('name', MAKE)
def test_pixels_that_no_inspected_cell_sees_change_no_score(learned, name):
  detector, fitted, _ = learned(name, batch())
  score = jax.jit(detector.score)
  plain, changed = (score(fitted, batch(1, outside).image) for outside in (False, True))
  np.testing.assert_array_equal(plain.map, changed.map)
  np.testing.assert_array_equal(plain.image, changed.image)
  assert (np.asarray(plain.map)[:, ~INSPECTED] == 0).all()
  assert (np.asarray(plain.map)[:, INSPECTED].max(axis=1) > 0).all()
  # Without the region they do.
  score_all = jax.jit(MAKE[name](None).score)
  whole = [np.asarray(score_all(fitted, batch(1, outside).image).map) for outside in (0, 1)]
  assert (whole[0] != whole[1]).any()


@pytest.mark.parametrize('name', ['padim', 'patchcore', 'window'])
def test_pixels_that_no_inspected_cell_sees_are_not_learned(learned, name):
  _, _, arrays = learned(name, batch())
  _, _, changed = learned(name, batch(outside=True))
  jax.tree.map(np.testing.assert_array_equal, arrays, changed)


@pytest.mark.parametrize('name', ['padim', 'patchcore', 'window'])
def test_held_out_scores_count_the_region_only(learned, variables, name):
  detector, _, arrays = learned(name, batch())
  functions, images = detector.leave_one_out, batch()
  if name != 'padim':
    state, _ = jax.jit(detector.update)(detector.init(jax.random.key(1), variables), images)
    arrays = {**arrays, **functions.select_coresets(state, {})}
  model = functions.leave_fold_out(variables, arrays, 0)
  scores = [jax.jit(functions.score)(model, batch(0, outside)) for outside in (False, True)]
  np.testing.assert_array_equal(scores[0].image, scores[1].image)
  assert (np.asarray(scores[0].map)[:, ~INSPECTED] == 0).all()


def test_the_bank_of_patchcore_has_the_patches_of_the_inspected_cells(learned, variables):
  embed = jax.jit(MAKE['patchcore'](INSPECTED).leave_one_out.embed)
  x = np.asarray(embed(variables, batch()))
  _, _, arrays = learned('patchcore', batch()._replace(features=jnp.asarray(x)))
  inside = {row.tobytes() for row in x[:, slow_cells()].reshape(-1, x.shape[-1])}
  assert len(arrays['embeddings']) == NUM_IMAGES * slow_cells().sum()
  assert {row.tobytes() for row in arrays['embeddings']} == inside


def test_a_window_counts_positions_in_the_whole_grid(learned, variables):
  """The bank has the inspected cells only, of which each keeps its position."""
  detector, fitted, _ = learned('window', batch())
  config = detector.score.args[0]
  embed = jax.jit(detector.leave_one_out.embed)
  bank, x = (np.asarray(embed(variables, batch(seed)), np.float64) for seed in (0, 1))
  distances = patchcore.find_distances(config, fitted, jnp.asarray(x, jnp.float32))
  positions = np.argwhere(slow_cells())
  for i, j in positions:
    near = positions[(abs(positions - (i, j)) <= 1).all(axis=1)]
    rows = bank[:, near[:, 0], near[:, 1]].reshape(-1, bank.shape[-1])
    for image in range(NUM_IMAGES):
      nearest = np.linalg.norm(rows - x[image, i, j], axis=1).min()
      assert distances[image, i, j] == pytest.approx(nearest, rel=1e-4)


def test_the_banks_of_all_layers_have_the_patches_of_the_inspected_cells():
  backbone = TinyNetwork()
  variables = jax.jit(backbone.init)(jax.random.key(7), jnp.zeros((1, HEIGHT, WIDTH, 3)))
  options = PatchcoreSettings(ratio=1.0, layers_apart=True)
  detector = patchcore_by_layer.make(backbone, context(), options)
  state = learn(detector, variables, batch())
  arrays = stored(detector.incremental.to_arrays(state))
  for stage in backbone.stages:
    assert len(arrays[f'{stage}_embeddings']) == NUM_IMAGES * slow_cells().sum()
  scores = jax.jit(detector.score)(detector.finalize(state), batch(1).image)
  assert (np.asarray(scores.map)[:, ~INSPECTED] == 0).all()
  assert (np.asarray(scores.map)[:, INSPECTED].max(axis=1) > 0).all()


def test_the_gaussians_of_padim_are_those_without_a_region(learned, variables):
  _, _, arrays = learned('padim', batch())
  plain = MAKE['padim'](None)
  expected = stored(plain.incremental.to_arrays(learn(plain, variables, batch())))
  cells = slow_cells()
  for name in ('mean', 'm2'):
    inside = arrays[name][cells]
    np.testing.assert_allclose(inside, expected[name][cells], rtol=1e-4, atol=1e-5)
    # Elsewhere nothing is left of the pixels: there is a copy of the first inspected cell.
    others = arrays[name][~cells]
    np.testing.assert_allclose(others, np.broadcast_to(inside[0], others.shape), rtol=1e-4)


def test_the_loss_of_stfpm_is_the_mean_over_inspected_cells(variables):
  detector, images = MAKE['stfpm'](INSPECTED), batch()
  state = detector.init(jax.random.key(1), variables)

  def unit(variables):
    x = BACKBONE.apply(variables, backbones.normalize(jnp.asarray(images.image)))['layer1']
    x = np.asarray(x, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)

  distance = 0.5 * ((unit(state.teacher) - unit(state.student)) ** 2).sum(-1)
  expected = distance[:, slow_cells()].mean()
  assert float(detector.validate(state, images)['loss']) == pytest.approx(expected, rel=1e-5)
  outside = detector.validate(state, batch(outside=True))
  assert float(outside['loss']) == float(detector.validate(state, images)['loss'])


# Tiles, whose pixels outside are blank, because the network does not know where a tile lies.


def blanked(images):
  return np.stack([region_of_interest.fill_outside(image, INSPECTED) for image in images])


def test_scaled_images_that_are_tiled_are_blank_outside_and_nowhere_else():
  ops = transforms.parse('tile(20, 4)').with_region(RegionOfInterest(region()))
  assert ops.network_region() is None
  image = np.random.default_rng(0).integers(0, 256, (80, 120, 3), np.uint8)
  image[::3] = region_of_interest.BLANK
  scaled, inside = ops.apply(image), region().repeat(2, 0).repeat(2, 1)
  np.testing.assert_array_equal(region_of_interest.find_outside(scaled), ~inside)
  inspected = inspection.find_pixels(jnp.asarray(scaled)[None], None, True)
  np.testing.assert_array_equal(inspected, inside[None])
  assert np.abs(scaled[inside].astype(int) - image[inside]).max() == 1
  np.testing.assert_array_equal(ops.inspected_pixels(80, 120), inside)


@pytest.mark.parametrize('name', ['patchcore', 'stfpm'])
def test_blank_images_are_learned_and_scored_as_with_a_known_region(variables, name):
  results = []
  images = batch()._replace(image=blanked(batch().image))
  other = blanked(batch(1).image)
  for has_blanks in (False, True):
    options = PatchcoreSettings(ratio=1.0) if name == 'patchcore' else StfpmSettings()
    spec = context(None if has_blanks else INSPECTED)._replace(
      has_blanks=has_blanks, inspected_share=slow_cells().mean() if has_blanks else 1.0
    )
    module = {'patchcore': patchcore, 'stfpm': stfpm}[name]
    detector = module.make(BACKBONE, spec, options)
    state = detector.init(jax.random.key(1), variables)
    if name == 'stfpm':
      loss = detector.validate(state, images)['loss']
      results.append([loss, *jax.jit(detector.score)(detector.finalize(state), other)])
      continue
    x = np.asarray(jax.jit(detector.leave_one_out.embed)(variables, images))
    with_features = images._replace(features=jnp.asarray(x))
    state, _ = jax.jit(detector.update)(state, with_features)
    coresets = detector.leave_one_out.select_coresets(state, {})
    selected = detector.incremental.select(state)
    arrays = {**stored(detector.incremental.to_arrays(selected)), **coresets}
    model = detector.leave_one_out.leave_fold_out(variables, arrays, 0)
    held_out = jax.jit(detector.leave_one_out.score)(model, with_features)
    scores = jax.jit(detector.score)(detector.finalize(selected), other)
    results.append([len(arrays['embeddings']), *held_out, *scores])
    rows = {row.tobytes() for row in arrays['embeddings']}
    assert rows == {row.tobytes() for row in x[:, slow_cells()].reshape(-1, x.shape[-1])}
  for expected, actual in zip(*results, strict=True):
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_blank_image_is_not_learned_and_scores_0(variables):
  spec = context(None)._replace(has_blanks=True)
  detector = patchcore.make(BACKBONE, spec, PatchcoreSettings(ratio=1.0))
  images = batch()
  images.image[1] = region_of_interest.BLANK
  selected = learn(detector, variables, images)
  arrays = detector.incremental.to_arrays(selected)
  num_cells = slow_cells().size
  assert len(arrays['embeddings']) == (NUM_IMAGES - 1) * num_cells
  assert sorted({*np.asarray(arrays['image_id']).tolist()}) == [0, 2, 3, 4]
  scores = jax.jit(detector.score)(detector.finalize(selected), images.image)
  assert float(scores.image[1]) == 0
  assert (np.asarray(scores.map[1]) == 0).all()
  with pytest.raises(ConfigError) as caught:
    padim.make(BACKBONE, spec, PadimSettings(channels=6))
  assert caught.value.key == 'data.roi'
