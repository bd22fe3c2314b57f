"""Exported graphs have the scores of their model in every runtime, or are not written at all."""

import functools
import json
from pathlib import Path
import shutil

from flax import linen as nn
import jax
import numpy as np
import onnx
import onnxruntime
import pytest
import small_runs

from uadjax import cli, config as configs, create_model, errors, main, types
from uadjax.backbones import convolution
from uadjax.data import demo, image_io, transforms
from uadjax.detectors import base
from uadjax.export import (
  bisect,
  cached_graph,
  exporter,
  graph as graphs,
  onnx as onnx_files,
  quantize,
  runtimes,
  settings,
  verify,
)
from uadjax.model import model_dir

CAMERA = 57, 75


@pytest.fixture(scope='module')
def model_of(exported):
  """The model of a detector with its ONNX graph, exported when a test first asks."""
  return functools.cache(lambda name: model_dir.load(exported(name)))


@pytest.fixture(scope='module')
def photos(drawn):
  """Neither square nor of the network's size."""
  paths = sorted((drawn / 'disc' / 'test').rglob('*.png'))[:5]
  camera = transforms.parse(f'resize({CAMERA[0]}, {CAMERA[1]})')
  return np.stack([camera.apply(image_io.decode(path)) for path in paths])


@pytest.fixture(scope='module')
def patchcore(model_of):
  """An ONNX file of any batch."""
  return model_of('patchcore').directory / 'model.onnx'


# All formats write the same graph, and every graph is compared when it is written. The default run
# tries one pair.
PAIRS = [
  pytest.param(name, format, marks=() if (name, format) == ('padim', 'onnx') else pytest.mark.slow)
  for name in small_runs.NAMES
  for format in exporter._FORMATS
]


@pytest.mark.parametrize(('name', 'format'), PAIRS)
def test_a_graph_says_the_same(model_of, name, format, photos, tmp_path):
  model = model_of(name)
  path = tmp_path / f'it.{format}'
  if format == 'onnx':  # As it is written where no file is named.
    for suffix in ('', '.json'):
      shutil.copy(model.directory / f'model.onnx{suffix}', f'{path}{suffix}')
  else:
    assert exporter.export(model, format, path).path == path
  beside = json.loads(path.with_name(f'it.{format}.json').read_text())
  taken = np.stack([model.ops.apply(photo) for photo in photos])
  want = jax.device_get(model.score(model.fitted, taken))
  run, batch = exporter._FORMATS[format].load(path), beside['input']['shape'][0]
  got = [run(part) for part in np.split(taken, range(1, len(taken)))] if batch else [run(taken)]
  np.testing.assert_allclose(np.concatenate([item.map for item in got]), want.map, rtol=1e-4)
  np.testing.assert_allclose(np.concatenate([item.image for item in got]), want.image, rtol=1e-4)
  assert beside['thresholds'] == model.thresholds._asdict()
  assert beside['agreement']['source'] == 'good images'
  assert 0 < beside['agreement']['images'] <= small_runs.TRAIN
  assert {item.name.partition('.')[0] for item in tmp_path.iterdir()} == {'it'}


def test_onnx_runtime_alone_runs_the_file_at_any_batch(model_of, patchcore, photos):
  model = model_of('patchcore')
  session = onnxruntime.InferenceSession(patchcore)
  assert [value.name for value in session.get_inputs()] == ['image']
  assert [value.name for value in session.get_outputs()] == ['map', 'score']
  taken = np.stack([model.ops.apply(photo) for photo in photos])
  want = jax.device_get(model.score(model.fitted, taken))
  for count in range(1, len(taken) + 1):
    map, score = session.run(None, {'image': taken[:count]})
    assert map.shape == (count, 32, 48)
    np.testing.assert_allclose(map, want.map[:count], rtol=1e-4)
    np.testing.assert_allclose(score, want.image[:count], rtol=1e-4)


def test_the_file_is_sound_and_tells_what_it_is(model_of, patchcore):
  graph = onnx.load(patchcore)
  onnx.checker.check_model(graph, full_check=True)
  assert [(item.domain, item.version) for item in graph.opset_import] == [('', onnx_files.OPSET)]
  about = json.loads({item.key: item.value for item in graph.metadata_props}[runtimes.METADATA_KEY])
  assert about['thresholds'] == model_of('patchcore').thresholds._asdict()
  assert about['preprocessing']['ops'] == 'resize(32, 48)'
  assert (
    about['arrays_sha256'] == model_dir.read_info(model_of('patchcore').directory).arrays_sha256
  )
  beside = patchcore.with_name('model.onnx.json')
  assert json.loads(beside.read_text())['opset'] == onnx_files.OPSET


def test_a_fixed_batch_is_fixed(model_of, photos, tmp_path):
  path = tmp_path / 'three.onnx'
  exporter.export(model_of('patchcore'), output=path, batch=3)
  assert onnxruntime.InferenceSession(path).get_inputs()[0].shape[0] == 3
  run = runtimes.open_graph(path, 'onnxruntime').run
  taken = np.stack([model_of('patchcore').ops.apply(photo) for photo in photos])
  assert run(taken[:3]).map.shape == (3, 32, 48)
  with pytest.raises(Exception, match='invalid dimensions'):
    run(taken[:2])


@pytest.mark.parametrize('format', ['onnx', pytest.param('tflite', marks=pytest.mark.slow)])
def test_a_cameras_pixels_get_the_score_and_the_map_of_predict(model_of, format, photos, tmp_path):
  model = model_of('patchcore')
  path = tmp_path / f'camera.{format}'
  done = exporter.export(model, format, path, camera_size=CAMERA)
  assert done.metadata['input']['shape'][1:] == [*CAMERA, 3]
  run = exporter._FORMATS[format].load(path)
  for photo, want in zip(
    photos, create_model(model_dir=model.directory).predict([*photos]), strict=True
  ):
    got = run(photo[None])
    np.testing.assert_allclose(got.image[0], want.score, rtol=1e-4)
    np.testing.assert_allclose(got.map[0], want.anomaly_map, rtol=1e-4)


# Quickly: of resizing alone, in test_resize_in_graph.py.
@pytest.mark.slow
def test_a_crop_is_undone_in_the_graph(fitted, photos):
  ops = '--config.data.ops=keep_ratio(40)|center_crop(32)'
  model = model_dir.load(fitted('padim', ops))
  done = exporter.export(model, camera_size=CAMERA)
  run = runtimes.open_graph(done.path).run
  (want,) = create_model(model_dir=model.directory).predict(photos[0])
  assert not want.visible.all()
  np.testing.assert_allclose(run(photos[:1]).map[0], want.anomaly_map, rtol=1e-4)


@pytest.fixture(scope='module')
def resnet(fitted):
  """A model whose network has a pool, as none of the embedded weights has."""
  return model_dir.load(fitted('padim', '--config.backbone.weights=random'))


# Quickly: as the fixture `exact` of test_quantize.py, for no graph is written that differs.
@pytest.mark.slow
def test_with_the_layers_of_a_resnet(resnet, tmp_path):
  assert exporter.export(resnet, output=tmp_path / 'x.onnx').agreement.is_within_tolerance


@pytest.mark.slow
def test_with_bottlenecks(fitted):
  flags = ('--config.backbone.name=wide_resnet50_2', '--config.detector.layers=layer1',
           '--config.backbone.weights=random')  # fmt: skip
  assert exporter.export(model_dir.load(fitted('patchcore', *flags))).agreement.is_within_tolerance


def test_arrays_too_large_for_one_file_lie_in_another(model_of, photos, tmp_path, monkeypatch):
  model = model_of('padim')  # Its graph, which other tests share, is in one file.
  monkeypatch.setattr(onnx_files, '_MAX_PROTOBUF_BYTES', 1000)
  path = tmp_path / 'large.onnx'
  done = exporter.export(model, output=path)
  assert done.metadata['external_data'] == 'large.onnx.data'
  assert path.stat().st_size < 1e6 < (tmp_path / 'large.onnx.data').stat().st_size
  assert runtimes.open_graph(path).run(np.zeros((1, 32, 48, 3), np.uint8)).map.shape == (1, 32, 48)


def test_arrays_too_large_for_a_format_are_refused_with_their_size(model_of, tmp_path, monkeypatch):
  small = exporter._FORMATS['tflite']._replace(max_array_bytes=1000)
  monkeypatch.setitem(exporter._FORMATS, 'tflite', small)
  with pytest.raises(errors.ExportError, match='GB, but tflite is limited'):
    exporter.export(model_of('padim'), 'tflite', tmp_path / 'x.tflite')
  assert not [*tmp_path.iterdir()]


def test_an_operation_that_comes_out_otherwise_is_named_and_nothing_is_left(
  resnet, tmp_path, monkeypatch
):
  """The exporter drops the padding of such a pool, silently."""

  def pool(x):
    return nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))

  monkeypatch.setattr(convolution, 'max_pool', pool)
  with pytest.raises(errors.ExportError, match='first operation that differs is reduce_window_max'):
    exporter.export(resnet, output=tmp_path / 'wrong.onnx')
  assert not [*tmp_path.iterdir()]


def test_a_difference_is_told_though_its_operation_cannot_be_found(model_of, tmp_path, monkeypatch):
  def fail(*_):
    raise AttributeError('with_unknown_names')

  wrong = exporter._FORMATS['onnx']._replace(load=lambda path: lambda images: 1 / 0)
  monkeypatch.setitem(exporter._FORMATS, 'onnx', wrong)
  monkeypatch.setattr(bisect, 'first_mismatch', fail)
  with pytest.raises(errors.ExportError, match=r'division by zero; .* cannot be found: with_unkn'):
    exporter.export(model_of('padim'), output=tmp_path / 'x.onnx')
  assert not [*tmp_path.iterdir()]


def test_the_first_mismatch_after_a_correct_pool_is_named(tmp_path):
  def call(images):
    x = nn.relu(images.astype(np.float32))
    x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding='VALID')
    x = nn.max_pool(x, window_shape=(3, 3), strides=(1, 1), padding=((1, 1), (1, 1)))
    return x[..., 0], x.max(axis=(1, 2, 3))

  graph = graphs.Graph(call, (None, 33, 47, 3), {})
  images = np.random.default_rng(0).integers(0, 256, (2, 33, 47, 3), np.uint8)
  named = bisect.first_mismatch(graph, onnx_files.write, onnx_files.load, images, 1e-4)
  assert 'reduce_window_max(float32[1,16,23,3])' in named


# Quickly: the bounds alone, in test_stfpm.py. Each floor is compiled.
@pytest.mark.slow
def test_rounding_may_move_a_value_over_the_floor_and_no_more(model_of):
  plain = model_of('stfpm')
  on = verify.select_images(plain, None, None)
  maps = np.sort(jax.device_get(plain.score(plain.fitted, on.network_inputs)).map.ravel())

  def floors(share):
    """Three models whose floors lie around a value of the map."""
    value = float(maps[round(share * (len(maps) - 1))])
    return [with_floor(plain, value * (1 + shift)) for shift in (-3e-5, 3e-5, 0.02)]

  def differ(candidate, other):
    return np.any(
      candidate.score(candidate.fitted, on.network_inputs).map
      != other.score(other.fitted, on.network_inputs).map
    )

  # Not every value survives the opening: take the first whose passing changes the map.
  trios = (floors(share) for share in np.linspace(0.5, 0.95, 10))
  low, high, far = next(trio for trio in trios if differ(*trio[:2]))
  for model, other, holds in ((low, high, True), (high, low, True), (low, far, False)):
    agreement = verify.compare(model, lambda x, other=other: other.score(other.fitted, x), None, on)
    assert agreement.is_within_tolerance == holds, (
      model.config.detector.floor,
      other.config.detector.floor,
    )
    ours, theirs = (
      candidate.score(candidate.fitted, on.network_inputs).map for candidate in (model, other)
    )
    assert np.abs(ours - theirs).max() > 1e-4 * ours.max()


def with_floor(model, floor):
  config = configs.replace(model.config, {'detector.floor': floor, 'detector.opening': 1})
  _, detector = model_dir.build_detector(config, base.RunContext(model.ops.height, model.ops.width))
  return model._replace(config=config, score=jax.jit(detector.score))


def test_a_label_that_flips_fails_though_scores_agree(model_of, tmp_path):
  model = model_of('padim')
  on = verify.select_images(model, None, None)
  scores = jax.device_get(model.score(model.fitted, on.network_inputs)).image.astype(float)
  model = model._replace(
    thresholds=model.thresholds._replace(
      image_threshold=scores[0] * (1 + 4e-7), review_threshold=0.0
    )
  )

  def slightly_more(images):
    map, image = jax.device_get(model.score(model.fitted, images))
    return types.Scores(map, image * np.float32(1 + 8e-7))

  agreement = verify.compare(model, slightly_more, None, on)
  assert agreement.score < 2e-6
  assert agreement.flips >= 1
  assert not agreement.is_within_tolerance


def test_scores_that_are_nan_do_not_agree(model_of):
  model = model_of('padim')
  on = verify.select_images(model, None, None)

  def nan(images):
    scores = jax.device_get(model.score(model.fitted, images))
    return types.Scores(scores.map * np.float32(np.nan), scores.image)

  assert not verify.compare(model, nan, None, on).is_within_tolerance


def test_images_of_ones_own_are_compared_on(model_of, drawn, tmp_path):
  folder = drawn / 'disc' / 'test' / 'good'
  done = exporter.export(model_of('padim'), output=tmp_path / 'x.onnx', image_folder=folder)
  assert done.agreement.source == f'images of {folder}'
  assert done.agreement.images == small_runs.GOOD


def test_images_that_are_gone_are_drawn(model_of, drawn, tmp_path, monkeypatch):
  directory = tmp_path / 'model'
  directory.mkdir()
  for path in model_of('padim').directory.iterdir():
    if path.suffix in ('.json', '.safetensors'):
      (directory / path.name).write_bytes(path.read_bytes())
  (tmp_path / 'demo').mkdir()
  (tmp_path / 'demo' / demo.DEFAULT_CATEGORY).symlink_to(drawn / 'disc')
  monkeypatch.setattr(demo, 'cached_dataset', lambda: tmp_path / 'demo')
  on = verify.select_images(model_dir.load(directory), None, None)
  assert 'synthetic images' in on.source
  assert len(on.graph_inputs) > 0


def test_settings_offer_what_the_exporter_can_write():
  choices = {
    key: info.limits.choices for key, info in configs.describe(settings.ExportSettings()).items()
  }
  assert choices['format'] == tuple(exporter._FORMATS)
  assert choices['quantize'] == ('', *quantize.QUANTIZERS)


def test_invalid_options_are_refused(model_of):
  for options, error, message in (
    ({'format': 'pdf'}, errors.UnknownName, 'must be one of .*onnx'),
    ({'batch': 0}, errors.ConfigError, 'must be at least 1'),
    ({'output': Path('nowhere/x.onnx')}, errors.ConfigError, 'Cannot write to nowhere'),
    ({'image_folder': Path('nowhere')}, errors.DataError, 'nowhere'),
  ):
    with pytest.raises(error, match=message):
      exporter.export(model_of('padim'), **options)


def test_a_folder_is_not_taken_for_the_file(model_of, tmp_path):
  precious = tmp_path / 'precious.txt'
  precious.write_text('mine')
  for format in exporter._FORMATS:
    with pytest.raises(errors.ConfigError, match='is a folder; name the file'):
      exporter.export(model_of('padim'), format, tmp_path)
  assert precious.read_text() == 'mine'


@pytest.mark.slow
def test_models_that_differ_in_an_option_alone_have_graphs_of_their_own(
  exported, fitted, tmp_path, monkeypatch
):
  monkeypatch.setenv('UADJAX_CACHE', str(tmp_path / 'cache'))
  directories = [
    exported('patchcore'),
    fitted('patchcore', '--config.detector.image_score=max'),
  ]
  assert len({model_dir.read_info(directory).arrays_sha256 for directory in directories}) == 1
  assert (
    len({cached_graph.get_or_export(model_dir.read_info(directory)) for directory in directories})
    == 2
  )


def test_a_difference_of_another_runtime_is_found_there(model_of, tmp_path, monkeypatch):
  def wrong(path):
    right = onnx_files.load(path)
    return lambda images: types.Scores(right(images).map * 1.01, right(images).image)

  bad = exporter._FORMATS['onnx']._replace(other_loaders=lambda: [wrong])
  monkeypatch.setitem(exporter._FORMATS, 'onnx', bad)
  with pytest.raises(errors.ExportError, match='first operation that differs is'):
    exporter.export(model_of('padim'), output=tmp_path / 'x.onnx')


def test_sizes_are_read():
  assert settings.parse_size('1024x1280') == (1024, 1280)
  assert settings.parse_size('') is None
  for wrong in ('0x5', '5', 'ax5', '-3x4'):
    with pytest.raises(errors.ConfigError, match='1024x1280'):
      settings.parse_size(wrong)


def test_the_command_tells_what_it_wrote(model_of, tmp_path, capsys, monkeypatch):
  export, done = exporter.export, []

  def export_once(*arguments):
    if not done:
      done.append(export(*arguments))
    return done[0]

  monkeypatch.setattr(exporter, 'export', export_once)
  words = ['export', str(model_of('padim').directory), '--output', str(tmp_path / 'a.onnx')]
  assert cli.main(words) == 0
  assert 'a.onnx: ' in capsys.readouterr().out
  assert cli.main([*words, '--json']) == 0
  output = json.loads(capsys.readouterr().out)
  assert output['agreement']['flips'] == 0
  assert output['output'] == str(tmp_path / 'a.onnx')
  assert cli.main([*words, '--include-resize', 'big']) == 2
  assert 'is not a size' in capsys.readouterr().err


def test_the_mode_leaves_its_result(model_of, tmp_path):
  flags = [
    f'--config={small_runs.CONFIGS / "padim"}.py',
    f'--workdir={tmp_path}',
    '--config.mode=export',
  ]
  flags += [f'--config.export.model_dir={model_of("padim").directory}']
  options = f'--config.export.output={tmp_path / "x.stablehlo"}', '--config.export.format=stablehlo'
  assert main.main([*flags, *options]) == 0
  result = json.loads((tmp_path / 'export_result.json').read_text())
  assert result['done_flag']
  assert (result['format'], result['output']) == ('stablehlo', str(tmp_path / 'x.stablehlo'))
  assert main.main([*flags, '--config.export.format=pdf']) == 2
  result = json.loads((tmp_path / 'export_result.json').read_text())
  assert not result['done_flag']
  assert 'must be one of' in result['err_msg']


def test_a_picture_of_another_size_is_refused_by_the_graph(patchcore):
  with pytest.raises(Exception, match='invalid dimensions'):
    runtimes.open_graph(patchcore, 'onnxruntime').run(np.zeros((1, 8, 8, 3), np.uint8))


def test_pictures_are_those_nearest_to_the_thresholds(model_of):
  model = model_of('padim')
  normals = model_dir.load_calibration_scores(model.directory)
  limits = model.thresholds._replace(
    image_threshold=float(normals.scores[3]), review_threshold=-1e9
  )
  chosen = verify._paths_near_thresholds(model._replace(thresholds=limits))
  assert str(chosen[0]) == normals.paths[3]
  assert {str(path) for path in chosen} <= set(normals.paths)
