"""Runs with settings for small defects: a window of positions, and memory banks by layer."""

import shutil

import numpy as np
import pytest
import small_runs

from uadjax import create_model
from uadjax.export import exporter
from uadjax.model import model_dir

WINDOW = '--config.detector.window=1'
LAYERS = '--config.detector.layers_apart=true'


@pytest.fixture(
  scope='module',
  params=[
    (WINDOW,),
    pytest.param((LAYERS,), marks=pytest.mark.slow),
    pytest.param((WINDOW, LAYERS), marks=pytest.mark.slow),
  ],
)
def flags(request):
  return request.param


@pytest.fixture(scope='module')
def workdir(flags, trained):
  return trained('patchcore', *flags)


@pytest.fixture
def directory(workdir, tmp_path):
  """A copy of the model, which tests may write into."""
  return shutil.copytree(workdir / 'model', tmp_path / 'model')


def paths_of(drawn):
  return sorted((drawn / 'disc' / 'test').rglob('*.png'))


def test_the_evaluation_has_the_scores_of_predict(workdir):
  rows = small_runs.table(workdir / 'scores.csv')
  results = create_model(model_dir=workdir / 'model').predict([row['path'] for row in rows])
  np.testing.assert_allclose(
    [float(row['score']) for row in rows], [result.score for result in results], rtol=1e-5
  )
  assert small_runs.manifest(workdir)['thresholds']['num_normals'] == small_runs.TRAIN


@pytest.mark.slow
def test_a_sharded_model_has_the_same_scores(workdir, drawn):
  single, sharded = (
    list(create_model(model_dir=workdir / 'model', device=device, shard_model=shard_model).predict(
      paths_of(drawn), 3
    ))
    for device, shard_model in (('cpu:0', False), ('cpu', True))
  )  # fmt: skip
  for a, b in zip(sharded, single, strict=True):
    assert a.score == pytest.approx(b.score, rel=1e-5)
    np.testing.assert_allclose(a.anomaly_map, b.anomaly_map, 1e-5, 1e-5 * b.score)


@pytest.mark.slow
def test_a_run_on_several_devices_has_the_same_scores(flags, workdir, trained):
  devices = '--config.fit.batch_size=7', '--config.mesh.data=3', '--config.mesh.shard_state=always'
  other = trained('patchcore', *flags, *devices, small_runs.NO_EVALUATION)
  want, got = (model_dir.load_calibration_scores(x / 'model') for x in (workdir, other))
  assert got.paths == want.paths
  np.testing.assert_allclose(got.scores, want.scores, rtol=1e-4)


FORMATS = [
  format if format == 'onnx' else pytest.param(format, marks=pytest.mark.slow)
  for format in exporter._FORMATS
]


@pytest.mark.parametrize('format', FORMATS)
def test_every_format_holds_the_model(directory, drawn, format):
  """An export compares the graph with the model."""
  exported = exporter.export(model_dir.load(directory), format)
  assert exported.agreement.is_within_tolerance
  if format == 'onnx':
    by_jax, by_graph = (
      list(create_model(model_dir=directory, backend=backend).predict(paths_of(drawn), 2))
      for backend in ('jax', 'onnxruntime')
    )
    for a, b in zip(by_graph, by_jax, strict=True):
      np.testing.assert_allclose(a.anomaly_map, b.anomaly_map, 1e-4, 1e-4 * b.score)
      assert a.score == pytest.approx(b.score, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['int8', 'fp16'])
def test_graphs_can_be_quantized(directory, kind):
  exported = exporter.export(model_dir.load(directory), quantize=kind)
  assert exported.quantized.is_within_tolerance


@pytest.mark.slow
def test_a_model_can_be_extended(flags, workdir, trained):
  more = *flags, f'--config.fit.extend={workdir / "model"}', small_runs.NO_EVALUATION
  later = trained('patchcore', *more)
  drift = small_runs.result(later)['drift']
  assert drift['bank_rows_before'] == small_runs.result(workdir)['summary']['bank_rows']
  assert small_runs.result(later)['summary']['images'] == 2 * small_runs.TRAIN


def test_a_window_of_tiles_is_refused(drawn, tmp_path, capfd):
  tiled = '--config.data.ops=tile(32, 8)'
  flags = *small_runs.flags('patchcore', drawn), WINDOW, tiled
  assert small_runs.run(*flags, f'--workdir={tmp_path / "x"}') == 2
  message = capfd.readouterr().err
  assert message.startswith('ConfigError: detector.window compares positions in an image')
  assert '--config.detector.window' in message
  assert not (tmp_path / 'x').exists()


def test_positions_are_stored_with_the_model(trained):
  arrays = small_runs.arrays(trained('patchcore', WINDOW))
  position = arrays['memory_bank/position']
  assert position.shape == (len(arrays['memory_bank/rows']),)
  assert (np.diff(position) >= 0).all()
  assert 'memory_bank/position' not in small_runs.arrays(trained('patchcore'))
  manifest = small_runs.manifest(trained('patchcore', WINDOW))
  assert manifest['config']['detector']['window'] == 1
