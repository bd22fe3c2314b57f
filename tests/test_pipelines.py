"""From a name, a directory or a YAML file to a model; errors name the fix."""

import numpy as np
import pytest
import yaml

import uadjax
from uadjax.errors import ConfigError, ModelError, UnknownName
from uadjax.inference import pipelines

NEW = """
pipeline_name: anomaly_detection
SubModules:
  AnomalyDetection:
    module_name: anomaly_detection
    model_name: STFPM
    model_dir: {directory}
    batch_size: 3
Serving:
  visualize: False
"""
OLD = """
Global:
  pipeline_name: anomaly_detection
  input: https://example.com/uad_grid.png
Pipeline:
  model: {directory}
  batch_size: 3
  device: "cpu:1"
"""


@pytest.fixture(scope='module')
def directory(trained):
  return trained('stfpm') / 'model'


@pytest.fixture
def image():
  return np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)


@pytest.mark.parametrize('name', ['STFPM', 'stfpm', 'StFpM', ''])
def test_names_are_known_in_any_case(directory, name, image):
  model = uadjax.create_model(name, model_dir=directory, device='cpu')
  assert next(model.predict(image)).label in ('OK', 'review', 'NG')


def test_a_directory_is_a_name(directory):
  assert uadjax.create_model(str(directory)).model.name == 'STFPM'


def test_a_name_that_contradicts_the_directory_is_refused(directory):
  with pytest.raises(ConfigError, match='is STFPM, not PatchCore') as caught:
    uadjax.create_model('patchcore', model_dir=directory)
  assert caught.value.allowed == ('STFPM',)


def test_an_unknown_name_lists_those_there_are():
  with pytest.raises(UnknownName, match=r"'EfficientAD'.*PaDiM.*PatchCore.*STFPM.*directory"):
    uadjax.create_model('EfficientAD')


def test_the_run_of_a_model_is_not_the_model(directory):
  with pytest.raises(ModelError, match=r'is not a model directory.*/model'):
    uadjax.create_model(str(directory.parent))


@pytest.mark.parametrize('text', [NEW, OLD])
def test_both_forms_of_paddlex_are_read(directory, text, tmp_path, image):
  path = tmp_path / 'mine.yaml'
  path.write_text(text.format(directory=directory))
  pipeline = uadjax.create_pipeline(pipeline=path)
  assert pipeline.config.SubModules.AnomalyDetection.batch_size == 3
  result = next(pipeline.predict(input=image))
  same = next(uadjax.create_model(model_dir=directory).predict(image, batch_size=3))
  assert result.score == same.score


def test_the_device_of_the_file_holds_unless_another_is_named(directory, tmp_path):
  path = tmp_path / 'mine.yaml'
  path.write_text(OLD.format(directory=directory))
  assert [device.id for device in uadjax.create_pipeline(path).model.devices] == [1]
  assert [device.id for device in uadjax.create_pipeline(path, device='cpu:2').model.devices] == [2]


def test_written_settings_can_be_read_and_are_not_overwritten(tmp_path):
  path = pipelines.write_settings(tmp_path / 'new')
  assert path.name == 'anomaly_detection.yaml'
  assert pipelines.read_settings(path) == pipelines.PipelineSettings()
  with pytest.raises(ConfigError, match='exists already'):
    pipelines.write_settings(tmp_path / 'new')


def test_the_content_of_a_file_may_be_given(directory):
  settings = yaml.safe_load(NEW.format(directory=directory))
  pipeline = uadjax.create_pipeline(config=settings, overrides={'batch_size': '5'})
  assert pipeline.config.SubModules.AnomalyDetection.batch_size == 5


@pytest.mark.parametrize(
  ('key', 'near'),
  [
    ('SubModules.AnomalyDetection.batchsize', 'SubModules.AnomalyDetection.batch_size'),
    ('pipeline_nam', 'pipeline_name'),
    ('modeldir', 'model_dir'),
  ],
)
def test_a_wrong_key_names_the_nearest(key, near):
  with pytest.raises(ConfigError) as caught:
    uadjax.create_pipeline(overrides={key: '1'})
  assert (caught.value.key, caught.value.allowed) == (key, (near,))


def test_a_value_of_another_type_is_refused():
  key = 'SubModules.AnomalyDetection.batch_size'
  for value in ('many', 0):
    with pytest.raises(ConfigError) as caught:
      uadjax.create_pipeline(overrides={'batch_size': value})
    assert (caught.value.key, caught.value.value) == (key, value)


def test_unknown_pipelines_are_refused(tmp_path):
  (tmp_path / 'ocr.yaml').write_text('pipeline_name: ocr')
  for pipeline in ('ocr', tmp_path / 'ocr.yaml'):
    with pytest.raises(UnknownName) as caught:
      uadjax.create_pipeline(pipeline)
    assert (caught.value.value, caught.value.allowed) == ('ocr', pipelines.NAMES)
  for text in ('[1, 2]', '{', '', 'devise: cpu', 'shard_model: maybe'):
    (tmp_path / 'ocr.yaml').write_text(text)
    with pytest.raises(ConfigError, match=r'ocr\.yaml'):
      uadjax.create_pipeline(tmp_path / 'ocr.yaml')


def test_the_exported_graph_judges_as_the_model_does(exported, image):
  settings = yaml.safe_load(NEW.replace('STFPM', 'PaDiM').format(directory=exported('padim')))
  (want,) = uadjax.create_pipeline(config=settings).predict(image)
  for name in ('use_hpip', 'enable_hpi'):
    fast = uadjax.create_pipeline(config=settings, **{name: True})
    assert fast.model.devices[0].startswith('ONNX Runtime'), name
    (got,) = fast.predict(image)
    assert got.score == pytest.approx(want.score, rel=1e-4), name
    assert (got.label, got.thresholds) == (want.label, want.thresholds), name
