"""Laws of tiles: they cover an image, their maps are joined, and thresholds are of whole images."""

import functools
import itertools
from pathlib import Path

from hypothesis import given, strategies as st
from jax import numpy as jnp
import numpy as np
from PIL import Image
import pytest
import small_runs

from uadjax.data import image_io, transforms
from uadjax.data.image_cache import ImageCache
from uadjax.data.tiles import Tile, TileGrid
from uadjax.detectors import image_score
from uadjax.errors import ConfigError, ExportError
from uadjax.export import exporter
from uadjax.inference import pipelines
from uadjax.model import model_dir

TILED = '--config.data.ops=tile(32, 8)'
GRIDS = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(1, 20), st.integers(0, 19))


def inner_distance(pixel, start, size, n):
  """Distance of a pixel of a tile to its nearer edge within the image; at most the tile's size."""
  edges = [pixel + 0.5] * (start > 0) + [size - pixel - 0.5] * (start + size < n)
  return min([*edges, size])


def build(numbers):
  """Return a grid of square tiles, given two overhangs, a size, and an overlap."""
  extra_height, extra_width, size, overlap = numbers
  return TileGrid.build(size + extra_height, size + extra_width, size, size, overlap % size)


@given(GRIDS)
def test_tiles_cover_an_image_and_joining_them_gives_it_back(numbers):
  grid = build(numbers)
  image = np.random.default_rng(0).integers(0, 256, (*grid.size, 3), np.uint8)
  tiles = grid.cut(image)
  assert len(tiles) == grid.num_tiles
  assert {tile.shape for tile in tiles} == {(*grid.tile_size, 3)}
  maps = (tile[..., 0].astype(np.float32) for tile in tiles)
  np.testing.assert_allclose(grid.join(maps), image[..., 0], rtol=1e-5)


@given(GRIDS)
def test_tiles_are_as_few_as_the_overlap_allows_and_end_with_the_image(numbers):
  grid, size, overlap = build(numbers), numbers[2], numbers[3] % numbers[2]
  for n, starts in zip(grid.size, (grid.tops, grid.lefts), strict=True):
    assert starts[0] == 0
    assert starts[-1] == n - size
    assert all(0 < b - a <= size - overlap for a, b in itertools.pairwise(starts))
    # One less could not cover the image.
    assert (len(starts) - 2) * (size - overlap) + size < n or len(starts) == 1


@given(GRIDS)
def test_a_pixel_is_the_mean_of_its_tiles_weighted_by_the_distance_to_their_edges(numbers):
  grid = build(numbers)
  maps = np.random.default_rng(0).random((grid.num_tiles, *grid.tile_size)).astype(np.float32)
  joined = grid.join(maps)
  (height, width), (h, w) = grid.tile_size, grid.size
  for y, x in [(0, 0), (h - 1, w - 1), (h // 2, w // 2), (h // 3, 2 * w // 3)]:
    total = weights = 0.0
    for i, (top, left) in enumerate(itertools.product(grid.tops, grid.lefts)):
      row, column = y - top, x - left
      if 0 <= row < height and 0 <= column < width:
        weight = inner_distance(row, top, height, h) * inner_distance(column, left, width, w)
        total, weights = total + weight * maps[i, row, column], weights + weight
    assert joined[y, x] == pytest.approx(total / weights, rel=1e-5)


@given(st.integers(0, 60), st.integers(2, 20), st.integers(1, 19))
def test_a_joined_map_has_no_jumps(extra, size, overlap):
  """From one tile to the next, it changes by a share of their difference in each pixel."""
  overlap = 1 + overlap % (size // 2)
  grid = TileGrid.build(size + extra, size, size, size, overlap)
  maps = [np.full(grid.tile_size, i % 2, np.float32) for i in range(grid.num_tiles)]
  assert np.abs(np.diff(grid.join(maps), axis=0)).max() <= 1 / overlap + 1e-6


def test_images_are_scaled_down_with_their_aspect_and_up_to_a_tile():
  ops = transforms.parse('fit_within(1024)|tile(256, 32)')
  assert str(ops) == 'fit_within(1024)|tile(256, 32)'
  assert (ops.height, ops.width) == (256, 256)
  sizes = {(3000, 4000): (768, 1024), (500, 800): (500, 800), (100, 300): (256, 768)}
  assert {size: ops.scaled_size(*size) for size in sizes} == sizes
  assert ops.tile_grid((768, 1024)).tops == (0, 224, 448, 512)
  assert transforms.parse('resize(64, 48)').tile_grid((64, 48)).num_tiles == 1


@pytest.mark.parametrize(
  'text', ['tile(256)', 'tile(32, 32)', 'tile(0, 0)', 'tile(32, 8)|resize(8)', 'fit_within(9)',
           'fit_within(9, 9)|tile(8, 1)'],
)  # fmt: skip
def test_bad_tiles_are_refused_with_an_example(text):
  with pytest.raises(ConfigError) as caught:
    transforms.parse(text)
  assert text.partition('|')[0] in str(caught.value)


def test_tiles_of_an_image_that_does_not_fit_into_memory_are_decoded_once(tmp_path, monkeypatch):
  path = tmp_path / 'a.png'
  pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
  Image.fromarray(pixels).save(path)
  cache, read, calls = ImageCache(transforms.parse('tile(32, 8)'), 0), image_io.read_image, []
  monkeypatch.setattr(image_io, 'read_image', lambda *args: calls.append(args) or read(*args))
  tiles = cache.list_tiles([path])
  assert not calls, 'the header suffices'
  assert tiles == [Tile(path, i) for i in range(3 * 4)]
  maps = (cache.load_tile(tile)[..., 1].astype(np.float32) for tile in tiles)
  joined = cache.tile_grid(path).join(maps)
  np.testing.assert_allclose(joined, pixels[..., 1], rtol=1e-5)
  assert len(calls) == 1


@pytest.mark.parametrize('rule', ['max', 'top:0.01', 'top:0.5', 'top:1'])
def test_the_score_of_a_joined_map_is_that_of_the_detector(rule):
  maps = np.random.default_rng(0).gamma(2.0, size=(3, 37, 50)).astype(np.float32)
  expected = np.asarray(image_score.from_map(jnp.asarray(maps), rule).image)
  actual = [image_score.of_map(anomaly_map, rule) for anomaly_map in maps]
  np.testing.assert_allclose(actual, expected, rtol=1e-4)


@pytest.fixture(scope='module')
def tiled(drawn, tmp_path_factory):
  """Returns a function that runs a detector on tiles of the drawn images, which are 60 x 60."""

  @functools.cache
  def run(name):
    workdir = tmp_path_factory.mktemp(f'tiled_{name}')
    assert small_runs.run(*small_runs.flags(name, drawn), TILED, f'--workdir={workdir}') == 0
    return workdir

  return run


@pytest.fixture(params=small_runs.ANY_NAME)
def workdir(request, tiled):
  return tiled(request.param)


def join_slowly(model, image):
  """Score each tile of a 60 x 60 image by itself; a tile counts by the distance to its edges."""
  starts = (0, 24, 28)
  maps = {
    (top, left): np.asarray(
      model.score(model.fitted, image[None, top : top + 32, left : left + 32]).map[0]
    )
    for top in starts
    for left in starts
  }
  joined, total = np.zeros((60, 60)), np.zeros((60, 60))
  for (top, left), tile_map in maps.items():
    for row, column in np.ndindex(32, 32):
      weight = inner_distance(row, top, 32, 60) * inner_distance(column, left, 32, 60)
      joined[top + row, left + column] += weight * tile_map[row, column]
      total[top + row, left + column] += weight
  return (joined / total).astype(np.float32)


def test_predictions_are_those_of_the_tiles_joined(workdir, drawn):
  model = model_dir.load(workdir / 'model')
  predictor = pipelines.create_model(model_dir=workdir / 'model')
  paths = sorted((drawn / 'disc' / 'test').rglob('*.png'))[:3]
  maps = [join_slowly(model, image_io.decode(path)) for path in paths]
  for batch_size in (1, 4):
    for expected, result in zip(maps, predictor.predict(paths, batch_size), strict=True):
      np.testing.assert_allclose(result.anomaly_map, expected, rtol=1e-4, atol=1e-5)
      score = image_score.of_map(expected, model.config.detector.image_score)
      assert result.score == pytest.approx(score, rel=1e-4)


def test_the_evaluation_has_the_scores_of_predict_and_thresholds_of_images(workdir):
  rows = small_runs.table(workdir / 'scores.csv')
  predictor = pipelines.create_model(model_dir=workdir / 'model')
  results = list(predictor.predict([Path(row['path']) for row in rows]))
  np.testing.assert_allclose(
    [float(row['score']) for row in rows], [result.score for result in results], rtol=1e-5
  )
  scores = model_dir.load_calibration_scores(workdir / 'model')
  assert len(set(scores.paths)) == len(scores.paths)
  assert all(Path(path).is_file() for path in scores.paths)


def test_an_image_is_calibrated_by_a_model_without_any_of_its_tiles(tiled, tmp_path):
  """A model that learned all other images gives the same score."""
  scores = model_dir.load_calibration_scores(tiled('padim') / 'model')
  held_out = Path(scores.paths[4])
  paths = [path for path in map(Path, scores.paths) if path != held_out]
  others = small_runs.write_part(tmp_path / 'images', paths)
  flags = *small_runs.flags('padim', others), TILED, small_runs.NO_EVALUATION
  assert small_runs.run(*flags, f'--workdir={tmp_path / "rest"}') == 0
  (result,) = pipelines.create_model(model_dir=tmp_path / 'rest' / 'model').predict(held_out)
  assert result.score == pytest.approx(scores.scores[4], rel=0.02)


def test_a_tiled_model_can_be_extended_after_its_files_are_gone(tiled, drawn, tmp_path):
  records = sorted((drawn / 'disc' / 'train' / 'good').glob('*.png'))
  for part, paths in (('first', records[:7]), ('second', records[7:])):
    small_runs.write_part(tmp_path / part, paths)
  flags = *small_runs.flags('padim', tmp_path / 'first'), TILED, small_runs.NO_EVALUATION
  assert small_runs.run(*flags, f'--workdir={tmp_path / "a"}') == 0
  for path in (tmp_path / 'first').rglob('*.png'):
    path.unlink()
  flags = *small_runs.flags('padim', tmp_path / 'second'), TILED, small_runs.NO_EVALUATION
  extend = f'--config.fit.extend={tmp_path / "a" / "model"}'
  assert small_runs.run(*flags, f'--workdir={tmp_path / "b"}', extend) == 0
  whole, extended = (
    model_dir.load_calibration_scores(workdir / 'model')
    for workdir in (tiled('padim'), tmp_path / 'b')
  )
  np.testing.assert_allclose(sorted(extended.scores), sorted(whole.scores), rtol=0.02)


def test_a_graph_scores_one_tile_and_the_runtime_joins(workdir, drawn, tmp_path):
  pytest.importorskip('onnxruntime')
  model = model_dir.load(workdir / 'model')
  exported = exporter.export(model)
  assert exported.metadata['input']['shape'][1:] == [32, 32, 3]
  with pytest.raises(ExportError, match='one tile'):
    exporter.export(model, output=tmp_path / 'a.onnx', camera_size=(60, 60))
  path = sorted((drawn / 'disc' / 'test').rglob('*.png'))[0]
  by_jax, by_graph = (
    next(iter(pipelines.create_model(model_dir=workdir / 'model', backend=backend).predict(path)))
    for backend in ('jax', 'onnxruntime')
  )
  np.testing.assert_allclose(by_graph.anomaly_map, by_jax.anomaly_map, rtol=1e-4, atol=1e-5)
  assert by_graph.score == pytest.approx(by_jax.score, rel=1e-4)
