"""The detector of docs/new_detector.md, from the code of the page, tested like built-in ones."""

import importlib.util
from pathlib import Path
import re

import jax
from jax import numpy as jnp
import numpy as np
import pytest
import small_runs

from uadjax import backbones, create_model, detectors
from uadjax.data import image_io
from uadjax.detectors.base import RunContext
from uadjax.export import exporter
from uadjax.model import incremental_state, model_dir
from uadjax.types import Batch

PAGE = Path(__file__).resolve().parent.parent / 'docs' / 'new_detector.md'
CODE, CONFIG = re.findall(r'```python\n(.*?)```', PAGE.read_text(), re.DOTALL)


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  """Add the detector to the table; yield the path of its config file."""
  folder = tmp_path_factory.mktemp('pooled')
  (folder / 'detector.py').write_text(CODE)
  (folder / 'config.py').write_text(CONFIG)
  spec = importlib.util.spec_from_file_location('pooled', folder / 'detector.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  with pytest.MonkeyPatch.context() as patch:
    entry = detectors._Entry('Pooled', module.make, module.Settings, learns_in_one_pass=True)
    patch.setitem(detectors._DETECTORS, 'pooled', entry)
    yield folder / 'config.py'


@pytest.fixture(scope='module')
def run(config, drawn):
  def run(workdir, *more):
    where = f'--config.data.root={drawn}', '--config.data.category=disc', f'--workdir={workdir}'
    assert small_runs.run(f'--config={config}', *small_runs.SMALL, *where, *more) == 0
    return workdir

  return run


@pytest.fixture(scope='module')
def workdir(run, tmp_path_factory):
  return run(tmp_path_factory.mktemp('runs') / 'single')


def predictions(workdir, drawn, device):
  model = create_model(model_dir=workdir / 'model', device=device)
  return list(model.predict(sorted((drawn / 'disc' / 'test').rglob('*.png')), 4))


def test_the_detector_is_fitted_saved_and_evaluated(workdir):
  result = small_runs.result(workdir)
  assert result['done_flag']
  assert result['summary'] == {'images': small_runs.TRAIN}
  assert result['metrics']['image_auroc'] > 0.5
  assert small_runs.arrays(workdir)['mean'].shape == (1, 1, 64 + 128)


def test_leaving_an_image_out_equals_fitting_the_others(workdir):
  """NumPy computes the scores from the embeddings of the stored images, which are all."""
  model, state = model_dir.load(workdir / 'model'), incremental_state.load(workdir / 'state')
  _, detector = model_dir.build_detector(
    model.config, RunContext(model.ops.height, model.ops.width)
  )
  images, n = state.images, small_runs.TRAIN
  batch = Batch(np.stack(images.split_pixels()), np.ones(n, bool), images.tile_ids)
  embeddings = detector.leave_one_out.embed(model.fitted.backbone, batch)
  x = np.asarray(embeddings, np.float64)[:, 0, 0]
  scores = model_dir.load_calibration_scores(workdir / 'model').scores
  assert len(x) == len(scores) == n
  for i in range(n):
    rest = np.delete(x, i, axis=0)
    covariance = np.cov(rest, rowvar=False) + 0.01 * np.eye(x.shape[1])
    delta = x[i] - rest.mean(axis=0)
    want = np.sqrt(delta @ np.linalg.solve(covariance, delta))
    np.testing.assert_allclose(scores[i], want, rtol=1e-2)


def test_predicting_agrees_with_the_arrays_and_the_thresholds(workdir, drawn):
  model = model_dir.load(workdir / 'model')
  for result in predictions(workdir, drawn, 'cpu:0'):
    images = jnp.asarray(model.ops.apply(image_io.decode(result.input_path))[None])
    assert result.score == pytest.approx(float(model.score(model.fitted, images).image[0]))
    assert (result.label == 'NG') == (result.score > model.thresholds.image_threshold)


@pytest.mark.slow
def test_two_devices_learn_and_say_the_same(workdir, run, tmp_path, drawn):
  two = run(tmp_path / 'two', '--config.mesh.data=2', '--config.mesh.shard_state=always')
  single = small_runs.arrays(workdir)
  for name, array in small_runs.arrays(two).items():
    scale = np.abs(single[name]).max()
    np.testing.assert_allclose(array, single[name], 1e-3, 1e-3 * scale, err_msg=name)
  pairs = zip(predictions(workdir, drawn, 'cpu:0'), predictions(two, drawn, 'cpu:0,1'), strict=True)
  for a, b in pairs:
    assert a.score == pytest.approx(b.score, rel=1e-3)


@pytest.mark.slow
def test_the_detector_learns_from_more_images(workdir, run, tmp_path):
  more = run(tmp_path / 'more', f'--config.fit.extend={workdir / "model"}')
  drift, n = small_runs.result(more)['drift'], small_runs.TRAIN
  assert (drift['images_before'], drift['images_after']) == (n, 2 * n)
  # The same images once more: their mean stays.
  before, after = (small_runs.arrays(folder)['mean'] for folder in (workdir, more))
  np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_its_graph_agrees(workdir, tmp_path):
  pytest.importorskip('onnxruntime', reason='needs the extra export')
  exporter.export(model_dir.load(workdir / 'model'), output=tmp_path / 'pooled.onnx')
  assert (tmp_path / 'pooled.onnx').is_file()  # It is only written if it agrees with the model.


def test_no_array_is_a_constant_of_its_graph(config):
  backbone = backbones.build('resnet18', ('layer1',))
  detector = detectors.build(detectors.settings_types()['pooled'](), backbone, RunContext(32, 32))
  image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.uint8)

  def fitted():
    variables = backbone.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return detector.finalize(detector.init(jax.random.key(0), variables))

  consts = jax.make_jaxpr(detector.score)(jax.eval_shape(fitted), image).consts
  assert sum(np.size(x) for x in consts) < 1000  # The mean and deviation of a row of pixels.
