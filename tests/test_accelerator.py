"""Laws of the default device: its results equal those of float64 and of the CPU.

On a GPU or TPU, `experiments/gpu.py` runs them. In the ordinary run the device is the CPU itself:
then only the comparisons with float64 in NumPy, and with other runtimes, can fail.
"""

import functools
import shutil

import jax
from jax import extend, numpy as jnp
import numpy as np
import pytest
import small_runs

from uadjax import backbones
from uadjax.backbones import convolution, weights
from uadjax.data import inputs
from uadjax.data.layouts import scanning
from uadjax.detectors import image_score, stfpm
from uadjax.detectors.base import RunContext
from uadjax.detectors.settings import StfpmSettings
from uadjax.export import graph as graphs, runtimes, stablehlo, verify
from uadjax.model import model_dir, scorer
from uadjax.numerics import coreset, gaussian, resampling
from uadjax.training import settings
from uadjax.types import Batch

pytestmark = pytest.mark.accelerator

# Relative to the largest value. Float32 errs by 1e-6 or less, TF32 by 1e-4 and bfloat16 by 1e-3.
TOLERANCE = 1e-5
SCORE_TOLERANCE = 2e-5  # Scores amplify the rounding of features.
FIT_TOLERANCE = 1e-3  # For scores of models that were fitted on different devices.
HEIGHT, WIDTH, NUM_IMAGES = 32, 48, 4


@pytest.fixture(scope='module')
def device():
  return jax.devices()[0]


@pytest.fixture(scope='module')
def cpu():
  return jax.devices('cpu')[0]


def relative(actual, expected):
  """The largest difference, relative to the largest expected value; NaN if anything is NaN."""
  actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
  return np.abs(actual - expected).max() / np.abs(expected).max()


def rounded(x, bits):
  """The numbers, rounded to a number of bits of mantissa."""
  mantissa, exponent = np.frexp(np.asarray(x, np.float64))
  return np.ldexp(np.round(mantissa * 2.0**bits) / 2.0**bits, exponent)


# Products.


def jaxprs(jaxpr):
  """The jaxpr and all jaxprs within it."""
  yield jaxpr
  for equation in jaxpr.eqns:
    for inner in extend.core.jaxprs_in_params(equation.params):
      yield from jaxprs(inner)


def precisions(function, *arguments):
  """Precisions of all products of floats in a function and the functions that it calls."""
  return [
    equation.params['precision']
    for jaxpr in jaxprs(jax.make_jaxpr(function)(*arguments).jaxpr)
    for equation in jaxpr.eqns
    if equation.primitive.name in ('dot_general', 'conv_general_dilated')
  ]


def is_exact(precision):
  """Whether a product, or both of its factors, ask for float32."""
  highest = jax.lax.Precision.HIGHEST
  return precision in (highest, (highest, highest))


# One backbone per kind of block is tested in the ordinary run; the others are slow.
BACKBONES = [
  name
  if name in ('compact', 'resnet18', 'resnet50')
  else pytest.param(name, marks=pytest.mark.slow)
  for name in sorted(backbones._BACKBONES)
]


@pytest.mark.parametrize('name', BACKBONES)
def test_every_product_of_a_backbone_asks_for_float32(name):
  module, images = backbones.build(name, ('layer1',)), jnp.zeros((2, HEIGHT, WIDTH, 3))
  variables = jax.eval_shape(module.init, jax.random.key(0), images)

  def step(variables):
    def loss(params):
      out, _ = module.apply(
        {**variables, 'params': params}, images, train=True, mutable=['batch_stats']
      )
      return out['layer1'].sum()

    return jax.grad(loss)(variables['params'])

  for function in (functools.partial(module.apply, x=images), step):
    products = precisions(function, variables)
    assert products
    assert all(map(is_exact, products))


@pytest.mark.parametrize('name', small_runs.NAMES)
def test_every_product_of_a_detector_asks_for_float32(name):
  config = settings.load(name, [('detector.layers', 'layer1,layer2')])
  context = RunContext(HEIGHT, WIDTH, 12, learning_rate=lambda step: 0.1)
  backbone, detector = model_dir.build_detector(config, context)
  images = np.zeros((NUM_IMAGES, HEIGHT, WIDTH, 3), np.uint8)
  batch = Batch(images, np.ones(NUM_IMAGES, bool), np.arange(NUM_IMAGES, dtype=np.int32))
  variables = jax.eval_shape(backbone.init, jax.random.key(0), jnp.zeros((1, HEIGHT, WIDTH, 3)))
  variables = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), variables)
  state = detector.init(jax.random.key(0), variables)
  fitted = jax.eval_shape(detector.finalize, state)
  products = [*precisions(detector.update, state, batch), *precisions(detector.finalize, state)]
  products += precisions(detector.score, fitted, images)
  if detector.validate:
    products += precisions(detector.validate, state, batch)
  assert len(products) > 10
  assert all(map(is_exact, products))


def test_every_product_of_selection_and_leave_one_out_asks_for_float32(monkeypatch):
  monkeypatch.setattr(coreset, '_MAX_PLAIN', 0)  # Few points are selected from without sketches.
  points, valid, number = jnp.zeros((200, 20)), jnp.ones(200, bool), jnp.arange(200)
  point_set = coreset.PointSet(points, number, jnp.zeros(20), jnp.zeros((200, 8)))
  selection = coreset.init(jax.random.key(0), valid, number, 50)
  x, mean, whitening = jnp.zeros((2, 3, 4, 5)), jnp.zeros((3, 4, 5)), jnp.zeros((3, 4, 5, 5))
  products = [
    *precisions(coreset.center_and_sketch, points, valid, number),
    *precisions(coreset.select_until, point_set, selection, jnp.int32(50)),
    *precisions(gaussian.leave_one_out_distance, x, jnp.float32(9), mean, whitening),
  ]
  assert len(products) > 5
  assert all(map(is_exact, products))


def taps(x, kernel, stride):
  """Each tap of a kernel, the padded images, and the index of the pixels that it multiplies."""
  size, half = kernel.shape[0], kernel.shape[0] // 2
  padded = np.pad(np.asarray(x, np.float64), ((0, 0), (half, half), (half, half), (0, 0)))
  h, w = (-(-length // stride) for length in x.shape[1:3])
  for i, j in np.ndindex(size, size):
    rows = slice(i, i + stride * (h - 1) + 1, stride)
    columns = slice(j, j + stride * (w - 1) + 1, stride)
    yield (i, j), padded, np.s_[:, rows, columns]


def slow_conv(x, kernel, stride):
  """A convolution by its definition, tap by tap, in float64."""
  kernel = np.asarray(kernel, np.float64)
  return sum(padded[at] @ kernel[tap] for tap, padded, at in taps(x, kernel, stride))


def slow_gradients(x, kernel, stride, g):
  """Gradients of images and kernel in float64, from the gradient g of a convolution's result."""
  kernel, g = np.asarray(kernel, np.float64), np.asarray(g, np.float64)
  (h, w), half = x.shape[1:3], kernel.shape[0] // 2
  of_kernel = np.zeros(kernel.shape)
  of_padded = np.zeros((len(x), h + 2 * half, w + 2 * half, x.shape[3]))
  for tap, padded, at in taps(x, kernel, stride):
    of_kernel[tap] = np.einsum('bhwc,bhwo->co', padded[at], g)
    of_padded[at] += g @ kernel[tap].T
  return of_padded[:, half : half + h, half : half + w], of_kernel


def convolution_case(size, stride):
  rng = np.random.default_rng(size + stride)
  x = rng.normal(size=(2, 12, 16, 24)).astype(np.float32)
  kernel = rng.normal(size=(size, size, 24, 16)).astype(np.float32)
  g = rng.normal(size=(2, -(-12 // stride), -(-16 // stride), 16)).astype(np.float32)
  return x, kernel, g


@pytest.mark.parametrize(('size', 'stride'), [(3, 1), (3, 2), (1, 1)])
def test_a_convolution_and_its_gradients_equal_float64(size, stride):
  x, kernel, g = convolution_case(size, stride)

  @jax.jit
  def both(x, kernel, g):
    value, transpose = jax.vjp(lambda *pair: convolution.conv_custom_grad(*pair, stride), x, kernel)
    return convolution.conv(x, kernel, stride), value, transpose(g)

  plain, value, gradients = both(x, kernel, g)
  expected = slow_conv(x, kernel, stride)
  assert relative(plain, expected) < TOLERANCE
  assert relative(value, expected) < TOLERANCE
  for actual, expected in zip(gradients, slow_gradients(x, kernel, stride, g), strict=True):
    assert relative(actual, expected) < TOLERANCE


@pytest.mark.parametrize('bits', [11, 8])  # TF32 and bfloat16, the implicit bit included.
def test_the_tolerance_excludes_rounded_factors(bits):
  x, kernel, g = convolution_case(3, 1)
  x, kernel, g, *exact = (rounded(x, bits), rounded(kernel, bits), rounded(g, bits), x, kernel, g)
  assert relative(slow_conv(x, kernel, 1), slow_conv(*exact[:2], 1)) > 10 * TOLERANCE
  pairs = zip(slow_gradients(x, kernel, 1, g), slow_gradients(*exact[:2], 1, exact[2]), strict=True)
  assert all(relative(actual, expected) > 10 * TOLERANCE for actual, expected in pairs)


# Features and scores of small runs, whose backbone is the embedded one.


def slow_block(x, params, statistics, stride=1, is_linear=False):
  """Convolution, BatchNorm with running statistics and ReLU, in float64."""
  params, statistics = jax.tree.map(lambda x: np.asarray(x, np.float64), (params, statistics))
  x = slow_conv(x, params['conv']['kernel'], stride)
  x = (x - statistics['bn']['mean']) / np.sqrt(statistics['bn']['var'] + 1e-5)
  x = x * params['bn']['scale'] + params['bn']['bias']
  return x if is_linear else np.maximum(x, 0)


def slow_features(variables, images, stages):
  """The embedded backbone in float64, stage by stage."""
  x = (images / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
  outputs = {}
  for name, config in backbones.compact.STAGE_CONFIGS.items():
    parts = [variables[kind][name] for kind in ('params', 'batch_stats')]

    def block(x, key, *options, parts=parts):
      return slow_block(x, *(part[key] for part in parts), *options)

    n, (b, h, w, c) = config.space_to_depth, x.shape
    x = x.reshape(b, h // n, n, w // n, n, c).swapaxes(2, 3).reshape(b, h // n, w // n, n * n * c)
    for i, (_, _, stride) in enumerate(config.stem):
      x = block(x, f'enter_{i}', stride)
    for i in range(config.depth):
      x = np.maximum(x + block(block(x, f'{i}_conv1'), f'{i}_conv2', 1, True), 0)
    x = outputs[name] = block(x, 'leave')
    if set(stages) <= set(outputs):
      return outputs
  raise AssertionError(stages)


def slow_upsample(x, size, pool=False, sigma=0.0):
  """Bilinear upsampling in float64, after a mean of 3x3 pixels or before a blur if requested."""
  matrices = []
  for new, old in zip(size, x.shape[1:3], strict=True):
    matrix = resampling.bilinear_matrix(new, old).astype(np.float64)
    matrix = matrix @ resampling.pool_matrix(old) if pool else matrix
    matrices.append(resampling.blur_matrix(new, sigma) @ matrix if sigma else matrix)
  return np.einsum('Hh,Ww,bhw...->bHW...', *matrices, x)


def slow_scores(model, images):
  """Maps and image scores as the papers define them, in float64."""
  functions = {
    'PaDiM': slow_padim,
    'PatchCore': slow_patchcore,
    'STFPM': slow_stfpm,
    'SubspaceAD': slow_subspace,
  }
  return functions[model.name](model, images)


def slow_projected_embeddings(model, images):
  """Projected embeddings of PaDiM, in float64."""
  variables, projection = model.fitted[0]
  stages = [*slow_features(variables, images, model.config.detector.layers).values()]
  x = np.concatenate([slow_upsample(s, stages[0].shape[1:3]) for s in stages], axis=-1)
  return x @ np.asarray(projection, np.float64)


def slow_padim(model, images):
  _, mean, whitening = model.fitted
  delta = slow_projected_embeddings(model, images) - np.asarray(mean, np.float64)
  white = np.einsum('hwij,bhwj->bhwi', np.asarray(whitening.matrices, np.float64), delta)
  return slow_image_scores(model, np.linalg.norm(white, axis=-1))


def slow_embeddings(variables, images, layers, pool):
  """Patch embeddings, in float64."""
  stages = slow_features(variables, images, layers)
  size = stages[layers[0]].shape[1:3]
  return np.concatenate([slow_upsample(stages[k], size, pool) for k in layers], axis=-1)


def slow_distances(x, rows):
  """Distances of vectors to their nearest rows, in float64."""
  rows = np.asarray(rows, np.float64)
  return np.array([np.linalg.norm(v - rows, axis=1).min() for v in x.reshape(-1, x.shape[-1])])


def bank_rows(model):
  """Embeddings of the memory bank, in float64."""
  index = model.fitted.memory_bank
  return np.asarray(index.rows, np.float64) + np.asarray(index.center, np.float64)


def slow_patchcore(model, images):
  x = slow_embeddings(model.fitted.backbone, images, model.config.detector.layers, True)
  return slow_image_scores(model, slow_distances(x, bank_rows(model)).reshape(x.shape[:-1]))


def slow_subspace(model, images):
  (mean, complement), layers = model.fitted.subspace, model.config.detector.layers
  deviation = slow_embeddings(model.fitted.backbone, images, layers, False) - np.asarray(mean)
  residual = deviation @ np.asarray(complement, np.float64).T
  return slow_image_scores(model, (residual**2).sum(axis=-1))


def slow_stfpm(model, images):
  anomaly_maps = 1.0
  both = [
    slow_features(variables, images, model.config.detector.layers) for variables in model.fitted
  ]
  for stage in model.config.detector.layers:
    a, b = (x[stage] / np.linalg.norm(x[stage], axis=-1, keepdims=True) for x in both)
    distance = 0.5 * np.sum((a - b) ** 2, axis=-1)
    anomaly_maps = anomaly_maps * slow_upsample(distance, images.shape[1:3])
  return anomaly_maps, anomaly_maps.max(axis=(1, 2))


def slow_image_scores(model, distances):
  """Blurred maps, and the means of their largest values in every second row and column."""
  anomaly_maps = slow_upsample(distances, (HEIGHT, WIDTH), sigma=4.0)
  values = np.sort(anomaly_maps[:, ::2, ::2].reshape(len(distances), -1), axis=1)
  share = image_score.parse(model.config.detector.image_score)
  return anomaly_maps, values[:, -max(1, round(share * values.shape[1])) :].mean(axis=1)


def test_features_equal_float64():
  module = backbones.build('compact', ('layer1', 'layer2'))
  variables, _ = weights.load('embedded', module)
  images = np.random.default_rng(0).integers(0, 256, (2, HEIGHT, WIDTH, 3), np.uint8)
  features = jax.jit(module.apply)(variables, backbones.normalize(jnp.asarray(images)))
  for stage, expected in slow_features(variables, images, module.stages).items():
    assert relative(features[stage], expected) < TOLERANCE, stage


@functools.cache
def opened(workdir):
  return model_dir.load(workdir / 'model')


def load(model, paths):
  """Images at network size, read from files."""
  return np.stack([model.ops.apply(inputs.read(inputs.Source(str(p), p))) for p in paths])


@pytest.fixture(scope='module')
def images(drawn, trained):
  """One test image of each defect, and a good one."""
  folders = sorted((drawn / 'disc' / 'test').iterdir())
  return load(opened(trained('padim')), [scanning.find_files(folder)[0] for folder in folders])


@pytest.fixture(scope='module')
def learned(drawn, trained):
  """The images of the small runs."""
  paths = scanning.find_files(drawn / 'disc' / 'train')
  return load(opened(trained('padim')), paths)


@pytest.fixture(scope='module')
def fitted_on_cpu(trained, device):
  """A function that opens the model that the CPU fits."""
  flags = () if device.platform == 'cpu' else ('--config.device=cpu',)
  return lambda name: opened(trained(name, *flags))


def scores_on(model, where, images):
  return scorer.on_devices(model, [where]).runs[0](images)


def difference(scores, expected):
  """The largest difference of image scores and maps, relative to the largest value per image."""
  return max(verify.relative_excess(a, b, b).max() for a, b in zip(scores, expected, strict=True))


@pytest.mark.parametrize('name', small_runs.ANY_NAME)
def test_scores_equal_the_cpu_and_float64(name, trained, images, device, cpu, record_property):
  model = opened(trained(name))
  scores = scores_on(model, device, images)
  for reference, expected in (
    ('the CPU', scores_on(model, cpu, images)),
    ('float64', slow_scores(model, images)),
  ):
    record_property(f'difference from {reference}', f'{difference(scores, expected):.1e}')
    assert difference(scores, expected) < SCORE_TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize('name', ['padim', 'patchcore'])
@pytest.mark.parametrize('bits', [10, 7])  # TF32 and bfloat16.
def test_the_tolerance_of_scores_excludes_rounded_convolutions(
  name, bits, trained, images, cpu, monkeypatch, record_property
):
  exact, conv = scores_on(opened(trained(name)), cpu, images), convolution.conv

  def rounded_conv(x, kernel, stride=1):
    return conv(*(jax.lax.reduce_precision(array, 8, bits) for array in (x, kernel)), stride)

  monkeypatch.setattr(convolution, 'conv', rounded_conv)
  scores = scores_on(model_dir.load(trained(name) / 'model'), cpu, images)
  record_property('difference', f'{difference(scores, exact):.1e}')
  assert difference(scores, exact) > 2 * SCORE_TOLERANCE


@pytest.mark.parametrize('name', small_runs.ANY_NAME)
def test_batched_equals_one_by_one_and_repeats_to_the_bit(name, trained, images, device):
  model = opened(trained(name))
  batched = scores_on(model, device, images)
  alone = [scores_on(model, device, images[[i]]) for i in range(len(images))]
  assert difference(batched, jax.tree.map(lambda *x: np.concatenate(x), *alone)) < SCORE_TOLERANCE
  for again, before in zip(scores_on(model, device, images), batched, strict=True):
    np.testing.assert_array_equal(again, before)


@pytest.mark.parametrize('name', small_runs.EVERY_NAME)
def test_image_auroc_equals_the_comparison_of_all_pairs(name, trained):
  """AUROC is the share of ordered pairs, where equal scores count as half a pair."""
  rows = small_runs.table(trained(name) / 'scores.csv')
  good, defective = (
    np.array([float(row['score']) for row in rows if (row['defect'] == 'good') == is_good])
    for is_good in (True, False)
  )
  wins = np.mean((defective[:, None] > good) + 0.5 * (defective[:, None] == good))
  assert small_runs.result(trained(name))['metrics']['image_auroc'] == pytest.approx(wins, abs=1e-6)


# Fits.


def test_a_padim_fit_equals_the_cpu_and_float64(trained, fitted_on_cpu, images, learned, cpu):
  model = opened(trained('padim'))
  train, x = (slow_projected_embeddings(model, batch) for batch in (learned, images))
  distances = np.zeros(x.shape[:3])
  for i, j in np.ndindex(x.shape[1:3]):
    covariance = np.cov(train[:, i, j], rowvar=False)
    inverse = np.linalg.inv(covariance + model.config.detector.ridge * np.eye(x.shape[-1]))
    delta = x[:, i, j] - train[:, i, j].mean(axis=0)
    distances[:, i, j] = np.sqrt(np.einsum('bi,ij,bj->b', delta, inverse, delta))
  scores = scores_on(model, cpu, images)
  assert difference(scores, slow_image_scores(model, distances)) < FIT_TOLERANCE
  assert difference(scores, scores_on(fitted_on_cpu('padim'), cpu, images)) < FIT_TOLERANCE


def test_a_coreset_covers_as_well_as_greedy_selection_and_the_cpu(
  trained, fitted_on_cpu, learned, record_property
):
  """Rounding may swap two equally far patches; the selection then covers as well."""
  model = opened(trained('patchcore'))
  rows, layers = bank_rows(model), model.config.detector.layers
  patches = slow_embeddings(model.fitted.backbone, learned, layers, True)
  patches = patches.reshape(-1, patches.shape[-1])
  picks = [int(np.linalg.norm(patches - rows[0], axis=1).argmin())]
  distance = np.full(len(patches), np.inf)
  while True:
    distance = np.minimum(distance, np.linalg.norm(patches - patches[picks[-1]], axis=1))
    if len(picks) == len(rows):
      break
    picks.append(int(distance.argmax()))
  is_same = np.linalg.norm(rows - patches[picks], axis=1) < 1e-3 * np.linalg.norm(rows, axis=1)
  record_property('centers equal to greedy selection', f'{is_same.sum()} of {len(rows)}')
  assert slow_distances(patches, rows).max() == pytest.approx(distance.max(), rel=0.01)
  others = bank_rows(fitted_on_cpu('patchcore'))
  is_equal = np.linalg.norm(rows - others, axis=1) < 1e-3 * np.linalg.norm(rows, axis=1)
  record_property('centers equal to those of the CPU', f'{is_equal.sum()} of {len(rows)}')
  assert slow_distances(patches, others).max() == pytest.approx(distance.max(), rel=0.01)


@pytest.mark.slow
def test_a_training_step_equals_the_cpu_with_gradients_of_xla(device, cpu, monkeypatch):
  backbone = backbones.build('compact', ('layer1',))
  variables, _ = weights.load('embedded', backbone)
  context = RunContext(16, 16, learning_rate=lambda step: 0.4)
  detector = stfpm.make(backbone, context, StfpmSettings(layers=('layer1',)))
  images = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 16, 16, 3), np.uint8)
  batch = Batch(images, np.ones(NUM_IMAGES, bool), np.arange(NUM_IMAGES, dtype=np.int32))
  state = jax.device_get(detector.init(jax.random.key(0), variables))

  def steps(where):
    update, trained = jax.jit(lambda *x: detector.update(*x)), jax.device_put(state, where)
    with jax.default_device(where):
      trained, _ = update(trained, batch)
      trained, metrics = update(trained, batch)  # With momentum.
    return jax.device_get((trained.student, metrics['loss']))

  student, loss = steps(device)
  monkeypatch.setattr(convolution, 'conv_custom_grad', convolution.conv)
  expected_student, expected_loss = steps(cpu)
  assert loss == pytest.approx(expected_loss, rel=SCORE_TOLERANCE)
  pairs = zip(jax.tree.leaves(student), jax.tree.leaves(expected_student), strict=True)
  assert all(relative(actual, expected) < FIT_TOLERANCE for actual, expected in pairs)


@pytest.mark.slow
def test_resumed_from_a_checkpoint_equals_uninterrupted(trained, drawn, tmp_path, device):
  """Equality is to the bit on a CPU; accelerators may sum gradients in any order."""
  flags = (small_runs.NO_EVALUATION, '--config.fit.steps=4', '--config.fit.checkpoint_every_s=0.0')
  workdir = trained('stfpm', *flags)
  copy = shutil.copytree(workdir, tmp_path / 'copy')
  shutil.rmtree(copy / 'model')
  all_flags = (*small_runs.flags('stfpm', drawn), *flags, f'--workdir={copy}')
  assert small_runs.run(*all_flags, '--config.fit.resume=2') == 0
  expected = small_runs.arrays(workdir)
  for name, array in small_runs.arrays(copy).items():
    if device.platform == 'cpu':
      np.testing.assert_array_equal(array, expected[name], err_msg=name)
    else:
      assert relative(array, expected[name]) < FIT_TOLERANCE, name


# Exported graphs.


@pytest.mark.parametrize('name', small_runs.ANY_NAME)
def test_an_onnx_graph_equals_the_device(name, exported, images, device):
  pytest.importorskip('onnxruntime', reason='needs the extra export')
  directory = exported(name)
  run = runtimes.open_graph(directory / 'model.onnx', 'onnxruntime').run
  scores = scores_on(model_dir.load(directory), device, images)
  assert difference(scores, run(images)) < verify.TOLERANCE


@pytest.mark.parametrize('name', small_runs.ANY_NAME)
def test_a_stablehlo_graph_on_the_device_equals_the_cpu(name, trained, images, cpu, tmp_path):
  model = opened(trained(name))
  stablehlo.write(graphs.from_model(model, None, None), tmp_path / 'graph')
  scores = stablehlo.load(tmp_path / 'graph')(images)
  assert difference(scores, scores_on(model, cpu, images)) < verify.TOLERANCE
