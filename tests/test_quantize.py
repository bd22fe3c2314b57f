"""Quantized graphs are smaller, say so, and keep labels and rankings, or are not there at all."""

import functools
import json
import shutil
from typing import get_args

import numpy as np
import onnx
import onnx_ir
import onnxruntime
from PIL import Image
import pytest
import small_runs

from uadjax import cli, config as configs, errors, main, types
from uadjax.cli import options
from uadjax.data import image_io, records as record_types, transforms
from uadjax.data.pixel_range import FULL_RANGE
from uadjax.export import (
  cached_graph,
  exporter,
  onnx as onnx_files,
  quantization_check,
  quantize,
  runtimes,
)
from uadjax.model import model_dir


@pytest.fixture(scope='module')
def padim(exported):
  # Far above all scores: no label hangs on the last digit.
  model = model_dir.load(exported('padim'))
  high = model.thresholds._replace(image_threshold=1e6, review_threshold=1e6)
  return model._replace(thresholds=high)


@pytest.fixture(scope='module')
def tested(padim, drawn):
  """Test images at network size."""
  paths = sorted((drawn / 'disc' / 'test').rglob('*.png'))
  ops = padim.ops
  return np.stack([ops.apply(image_io.decode(path)) for path in paths])


@pytest.fixture
def lenient(monkeypatch):
  """Rankings of random weights on few images say nothing."""
  monkeypatch.setattr(quantization_check, 'MAX_AUROC_DROP', 1.0)


@pytest.fixture(scope='module')
def resnets(fitted):
  """Models of ResNet-18, whose arrays are large enough for half precision to pay."""

  @functools.cache
  def resnet(name):
    more = ('--config.fit.steps=1',) if name == 'stfpm' else ()
    model = model_dir.load(fitted(name, '--config.backbone.weights=random', *more))
    return model._replace(
      thresholds=model.thresholds._replace(image_threshold=1e6, review_threshold=1e6)
    )

  return resnet


@pytest.fixture(scope='module')
def exact(resnets, tmp_path_factory):
  """The graph of a ResNet-18 that is not quantized."""
  path = tmp_path_factory.mktemp('exact') / 'exact.onnx'
  return exporter.export(resnets('padim'), output=path)


def test_int8_is_smaller_and_runs_at_any_batch(resnets, exact, tested, lenient, tmp_path):
  path = tmp_path / 'it.onnx'
  exported = exporter.export(resnets('padim'), output=path, quantize='int8')
  assert exported.num_bytes < 0.6 * exact.num_bytes
  session = onnxruntime.InferenceSession(path)
  expected = runtimes.open_graph(exact.path).run(tested)
  for count in (1, 2, 5):
    map, score = session.run(None, {'image': tested[:count]})
    assert map.shape == (count, 32, 48)
    assert np.abs(np.asarray(score) - expected.image[:count]).max() < 0.3 * expected.image.max()
    assert not np.array_equal(score, expected.image[:count])


def test_fp16_is_half_as_large_and_scores_hardly_differ(resnets, exact, tested, tmp_path):
  path = tmp_path / 'it.onnx'
  exported = exporter.export(resnets('padim'), output=path, quantize='fp16')
  assert exported.num_bytes < 0.65 * exact.num_bytes
  expected, actual = (
    runtimes.open_graph(graph_path).run(tested) for graph_path in (exact.path, path)
  )
  np.testing.assert_allclose(actual.image, expected.image, rtol=1e-2)
  np.testing.assert_allclose(actual.map, expected.map, rtol=1e-2, atol=1e-2 * expected.map.max())


@pytest.mark.parametrize(
  ('name', 'networks'),
  [
    ('padim', 1),
    pytest.param('stfpm', 2, marks=pytest.mark.slow),
    pytest.param('patchcore', 1, marks=pytest.mark.slow),
  ],
)
def test_only_convolutions_of_features_take_eight_bits(resnets, lenient, name, networks, tmp_path):
  exported = exporter.export(resnets(name), output=tmp_path / 'it.onnx', quantize='int8')
  graph = onnx.load(exported.path).graph
  node_by_output = {name: node for node in graph.node for name in node.output}

  def input_type(node, place):
    return node_by_output[node.input[place]].op_type if node.input[place] in node_by_output else ''

  convolutions = [node for node in graph.node if node.op_type == 'Conv']
  of_pixels = [node for node in convolutions if input_type(node, 0) == 'Transpose']
  assert len(of_pixels) == networks
  for node in graph.node:
    if node in of_pixels:
      assert not input_type(node, 1)
    elif node.op_type == 'Conv':
      assert {input_type(node, 0), input_type(node, 1)} == {'DequantizeLinear'}
    elif node.op_type != 'DequantizeLinear':
      for place in range(len(node.input)):
        if input_type(node, place) == 'DequantizeLinear':  # The output of a convolution.
          rounded = node_by_output[node_by_output[node.input[place]].input[0]]
          assert node_by_output[rounded.input[0]].op_type == 'Conv', node.name


def test_a_quantized_graph_says_so(padim, lenient, tmp_path):
  model, path = padim, tmp_path / 'it.onnx'
  exported = exporter.export(model, output=path, quantize='int8')
  onnx.checker.check_model(path, full_check=True)
  exact_path = model.directory / 'model.onnx'
  metadata, exact_metadata = (
    json.loads(onnx_ir.load(file).metadata_props[runtimes.METADATA_KEY])
    for file in (path, exact_path)
  )
  assert metadata['quantize'] == 'int8'
  assert metadata['thresholds'] == model.thresholds._asdict()
  assert exact_metadata['quantize'] == ''
  assert onnx.load(path).producer_name == 'uadjax'
  report = json.loads((tmp_path / 'it.onnx.json').read_text())
  assert report['quantize'] == 'int8'
  assert 'agreement' not in report  # It does not agree with the model.
  assert report['quantized'] == exported.quantized.to_dict()
  assert report['quantized']['bytes_after'] == path.stat().st_size
  agreements = report['quantized']['agreements']
  images = {name: agreement['images'] for name, agreement in agreements.items()}
  assert images == {'good': small_runs.TRAIN, 'test': 9}
  assert agreements['test']['auroc'] > 0.5
  assert 'int8' in str(exported)
  assert {file.name for file in tmp_path.iterdir()} == {'it.onnx', 'it.onnx.json'}


def test_a_quantized_graph_is_never_used_as_the_exact_one(padim, lenient, tmp_path, monkeypatch):
  monkeypatch.setenv('UADJAX_CACHE', str(tmp_path / 'cache'))
  directory = tmp_path / 'model'
  shutil.copytree(padim.directory, directory)
  model = padim._replace(directory=directory)
  exporter.export(model, output=directory / 'model.onnx', quantize='fp16')
  assert not cached_graph.get_or_export(model_dir.read_info(directory)).is_relative_to(directory)


@pytest.mark.slow
def test_the_exact_graph_is_used_and_a_replaced_file_is_refused(
  padim, lenient, tmp_path, monkeypatch
):
  monkeypatch.setenv('UADJAX_CACHE', str(tmp_path / 'cache'))
  directory = tmp_path / 'model'
  shutil.copytree(padim.directory, directory)
  model = padim._replace(directory=directory)
  small = exporter.export(model, quantize='int8').path
  assert small == directory / 'model.int8.onnx'
  exporter.export(model)
  assert cached_graph.get_or_export(model_dir.read_info(directory)) == directory / 'model.onnx'
  shutil.copy(small, directory / 'model.onnx')  # Its metadata are those of the exact graph.
  with pytest.raises(errors.ModelError, match='damaged') as caught:
    cached_graph.get_or_export(model_dir.read_info(directory))
  assert f'uadjax export {directory}' in str(caught.value)


@pytest.mark.parametrize('kind', ['int8', pytest.param('fp16', marks=pytest.mark.slow)])
def test_labels_that_change_are_refused_and_nothing_is_left(padim, kind, tmp_path, monkeypatch):
  model = padim
  on = quantization_check.select_images(model, None, None)
  images = np.stack([on.read_tiles(record.path)[1][0] for record in (*on.good, *on.test)])
  threshold = 0.5 * float(np.asarray(model.score(model.fitted, images).image).min())

  def shifted(*arguments):
    model_proto = onnx_ir.to_proto(quantize_of_kind(*arguments))
    node = next(node for node in model_proto.graph.node if 'score' in node.output)
    node.output[list(node.output).index('score')] = 'unshifted'
    factor = onnx.helper.make_tensor('factor', onnx.TensorProto.FLOAT, [], [0.01])
    model_proto.graph.initializer.append(factor)
    model_proto.graph.node.append(onnx.helper.make_node('Mul', ['unshifted', 'factor'], ['score']))
    return onnx_ir.from_proto(model_proto)

  quantize_of_kind = quantize.QUANTIZERS[kind]
  monkeypatch.setitem(quantize.QUANTIZERS, kind, shifted)
  low = model.thresholds._replace(image_threshold=threshold, review_threshold=threshold)
  with pytest.raises(
    errors.ExportError, match=r'12 of 12 labels change.*9 of 9 labels change.*Nothing was written'
  ):
    exporter.export(model._replace(thresholds=low), output=tmp_path / 'it.onnx', quantize=kind)
  assert not [*tmp_path.iterdir()]


def test_agreement_is_within_tolerance_up_to_its_limits():
  def is_within_tolerance(*numbers):
    return quantization_check.QuantizationAgreement(*numbers).is_within_tolerance

  assert is_within_tolerance(3, 1, 0.1)  # One label may always change.
  assert not is_within_tolerance(3, 2, 0.1)
  assert is_within_tolerance(200, 4, 0.1)
  assert not is_within_tolerance(200, 5, 0.1)
  assert is_within_tolerance(10, 0, 0.1, 0.95, 0.9401)
  assert not is_within_tolerance(10, 0, 0.1, 0.95, 0.9399)
  assert is_within_tolerance(10, 0, 0.1, 0.95, 1.0)
  assert not is_within_tolerance(10, 0, float('nan'))


def test_scores_that_are_nan_are_not_within_tolerance(padim):
  on = quantization_check.select_images(padim, None, None)
  agreement = quantization_check.compare([constant(1), constant(np.nan)], on.good, on, None)
  assert not agreement.is_within_tolerance


def constant(score):
  return lambda images: types.Scores(images[..., 0], np.full(len(images), score, np.float32))


def test_images_are_decoded_once_for_both_graphs(padim, monkeypatch):
  on = quantization_check.select_images(padim, None, None)
  load, names = quantization_check.inputs.load, []

  def load_and_record(source, *arguments, **keywords):
    names.append(source.name)
    return load(source, *arguments, **keywords)

  monkeypatch.setattr(quantization_check.inputs, 'load', load_and_record)
  quantization_check.compare([constant(1), constant(2)], on.good, on, None)
  assert names == [str(record.path) for record in on.good]


def test_an_exception_of_the_quantizer_is_reported_and_leaves_no_file(padim, tmp_path, monkeypatch):
  def broken(*_):
    raise RuntimeError('no such operation\nTraceback')

  monkeypatch.setitem(quantize.QUANTIZERS, 'int8', broken)
  with pytest.raises(errors.ExportError, match=r'cannot be quantized: no such operation\. Nothing'):
    exporter.export(padim, output=tmp_path / 'it.onnx', quantize='int8')
  assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize('format', sorted(exporter._FORMATS.keys() - {'onnx'}))
def test_other_formats_are_refused(padim, format):
  with pytest.raises(errors.ConfigError) as caught:
    exporter.export(padim, format, quantize='int8')
  assert (caught.value.key, caught.value.value) == ('export.quantize', 'int8')
  assert errors.Setting('export.format', 'onnx') in caught.value.hint


def test_unknown_kinds_of_quantization_are_refused(padim):
  with pytest.raises(errors.UnknownName) as caught:
    exporter.export(padim, quantize='int4')
  assert (caught.value.key, caught.value.allowed) == ('export.quantize', ('', 'int8', 'fp16'))


def test_arrays_beside_the_file_are_refused(padim, tmp_path, monkeypatch):
  monkeypatch.setattr(onnx_files, '_MAX_PROTOBUF_BYTES', 1000)
  with pytest.raises(errors.ExportError, match='2 GB or larger'):
    exporter.export(padim, output=tmp_path / 'it.onnx', quantize='fp16')
  assert not [*tmp_path.iterdir()]


def test_a_model_without_its_dataset_needs_images(padim, drawn, lenient, tmp_path):
  directory = tmp_path / 'model'
  shutil.copytree(padim.directory, directory)
  (directory / 'calibration.csv').unlink()
  model = padim
  config = configs.replace(model.config, {'data.root': str(tmp_path / 'gone')})
  model = model._replace(directory=directory, config=config)
  for kind in quantize.QUANTIZERS:
    with pytest.raises(errors.ConfigError, match=r'export\.images=DIR'):
      exporter.export(model, quantize=kind)
  of_set = exporter.export(model, quantize='fp16', image_folder=drawn / 'disc').quantized
  assert of_set.agreements['good'].images == small_runs.TRAIN
  assert of_set.agreements['test'].auroc is not None
  folder = exporter.export(
    model, quantize='fp16', image_folder=drawn / 'disc' / 'test' / 'good'
  ).quantized
  assert folder.agreements['good'].images == small_runs.GOOD
  assert 'test' not in folder.agreements


def test_a_fixed_batch_and_a_cameras_pixels(padim, lenient, tmp_path):
  path = tmp_path / 'it.onnx'
  exporter.export(padim, output=path, batch=3, camera_size=(57, 75), quantize='int8')
  assert onnxruntime.InferenceSession(path).get_inputs()[0].shape == [3, 57, 75, 3]
  run = runtimes.open_graph(path).run
  assert run(np.zeros((3, 57, 75, 3), np.uint8)).map.shape == (3, 57, 75)


def test_the_last_batch_is_filled_with_images(padim, tmp_path):
  records = [record_types.Record(tmp_path / f'{i}.png') for i in range(1, 6)]
  for i, record in enumerate(records, 1):
    Image.fromarray(np.full((2, 2, 3), i, np.uint8)).save(record.path)
  ops = transforms.parse('resize(2)')
  images = quantization_check.EvaluationImages(
    records, [], ops, FULL_RANGE, 'max', padim.thresholds
  )
  chunks = [*images.read_batches(records, 3)]
  assert [images[:, 0, 0, 0].tolist() for images in chunks] == [[1, 2, 3], [4, 5, 4]]


def test_the_command_quantizes(padim, tmp_path, capsys, lenient):
  kinds = get_args(get_args(options.ExportOptions.__annotations__['quantize'])[0])
  assert kinds == tuple(quantize.QUANTIZERS)
  directory, path = str(padim.directory), tmp_path / 'a.onnx'
  assert cli.main(['export', directory, '--output', str(path), '--quantize', 'fp16', '--json']) == 0
  assert json.loads(capsys.readouterr().out)['quantized']['kind'] == 'fp16'
  assert cli.main(['export', directory, '--format', 'tflite', '--quantize', 'fp16']) == 2
  assert 'requires onnx' in capsys.readouterr().err


@pytest.mark.slow
def test_the_mode_quantizes(padim, tmp_path, lenient):
  flags = [
    f'--config={small_runs.CONFIGS / "padim"}.py',
    f'--workdir={tmp_path}',
    '--config.mode=export',
  ]
  flags += [f'--config.export.model_dir={padim.directory}', '--config.export.quantize=fp16']
  assert main.main([*flags, f'--config.export.output={tmp_path / "b.onnx"}']) == 0
  outcome = json.loads((tmp_path / 'export_result.json').read_text())
  assert outcome['quantize'] == 'fp16'


@pytest.mark.real
@pytest.mark.slow
def test_int8_keeps_the_metrics_of_real_data(shared, tmp_path):
  flags = [
    f'--config={small_runs.CONFIGS / "patchcore"}.py',
    f'--workdir={tmp_path}',
    f'--config.data.root={shared / "data" / "mvtec_ad"}',
    '--config.data.category=toothbrush',
    '--config.detector.ratio=0.01',
    f'--config.backbone.weights={shared / "weights" / "resnet18_imagenet_bnfolded.pth"}',
    '--config.calibrate.images=8',  # Quicker.
    '--config.evaluate.do_eval=false',
  ]
  assert main.main(flags) == 0
  model = model_dir.load(tmp_path / 'model')
  quantized = exporter.export(model, quantize='int8').quantized
  assert quantized.bytes_after < 0.6 * quantized.bytes_before
  test = quantized.agreements['test']
  assert test.images == 42
  assert test.auroc is not None
  assert (test.auroc_quantized or 0.0) >= test.auroc - 0.01
  assert test.label_changes <= 1
