"""The backbones are torchvision's, and their weight gradient is the gradient."""

import functools
import zlib

import jax
from jax import export, numpy as jnp
import numpy as np
import pytest

from uadjax import backbones
from uadjax.backbones import convolution, resnet, weights
from uadjax.backbones.weights import key_mapping
from uadjax.errors import UnknownName

STAGES = ('layer1', 'layer2', 'layer3')
# Of those that differ in depth or width alone the larger ones are slow.
NAMES = (
  'resnet18',
  pytest.param('resnet34', marks=pytest.mark.slow),
  'resnet50',
  pytest.param('resnet101', marks=pytest.mark.slow),
  pytest.param('wide_resnet50_2', marks=pytest.mark.slow),
)


def filled(name, shape):
  """A tensor made from its name, as shared/weights/make_reference.py makes it."""
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  if len(shape) == 4:
    value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
  elif name.endswith('running_var'):
    value = 1 + 0.2 * rng.random(shape)
  elif name.endswith(('running_mean', 'bias')):
    value = 0.1 * rng.standard_normal(shape)
  else:
    value = 1 + 0.1 * rng.standard_normal(shape)
  return value.astype(np.float32)


def relative(actual, expected):
  return np.abs(actual - expected).max() / np.abs(expected).max()


@pytest.fixture(scope='module')
def reference(shared):
  return np.load(shared / 'weights' / 'reference_activations.npz')


def activations(module, variables):
  x = np.random.default_rng(0).standard_normal((2, 3, 97, 75)).astype(np.float32)
  features = jax.jit(module.apply)(variables, jnp.asarray(x.transpose(0, 2, 3, 1)))
  return {stage: np.asarray(value).transpose(0, 3, 1, 2) for stage, value in features.items()}


@pytest.mark.real
@pytest.mark.parametrize('name', NAMES)
def test_stages_are_those_of_torchvision(name, reference, tmp_path):
  module = backbones.build(name, STAGES)
  tensors = {
    key: filled(key, shape) for key, (_, shape) in key_mapping.expected_tensors(module).items()
  }
  np.savez(tmp_path / 'weights.npz', **tensors)
  variables, _ = weights.load(str(tmp_path / 'weights.npz'), module)
  features = activations(module, variables)
  assert list(features) == list(STAGES)
  for stage, value in features.items():
    assert relative(value[:1], reference[f'{name}/{stage}']) < 1e-4, stage


@pytest.mark.real
@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_the_real_weights_compute_what_torchvision_computes(suffix, reference, shared):
  module = backbones.build('resnet18', STAGES)
  path = shared / 'weights' / f'resnet18_imagenet_bnfolded.{suffix}'
  variables, _ = weights.load(str(path), module)
  for stage, value in activations(module, variables).items():
    assert relative(value, reference[f'imagenet18/{stage}']) < 1e-4, stage


def both_ways(plain, fast, *inputs):
  """Values and gradients of the plain function and of the fast one, in one compilation."""

  @jax.jit
  def both(*inputs):
    value, transpose = jax.vjp(plain, *inputs)
    g = jax.random.normal(jax.random.key(1), value.shape)
    other, fast_transpose = jax.vjp(fast, *inputs)
    return (value, transpose(g)), (other, fast_transpose(g))

  return jax.tree.map(np.asarray, both(*inputs))


KERNELS = ((7, 2), (3, 1), (3, 2), (1, 1), (1, 2))  # Size and stride, as the ResNets have them.
GRADIENT_CASES = {
  'odd': [(kernel, ((7, 9), 6, 4)) for kernel in KERNELS],
  'even': [(kernel, ((8, 8), 3, 5)) for kernel in KERNELS],
  'tiny': [((7, 2), ((1, 2), 3, 5)), ((3, 2), ((1, 2), 6, 4))],
}
# Without a cache, a product has as many positions as there are output channels, in whole rows.
CHUNK_CASES = [((3, 2), ((12, 8), 3, 8)), ((3, 1), ((5, 4), 3, 20)), ((1, 1), ((3, 4), 3, 2))]


@pytest.mark.parametrize(
  'maps', ['odd', *(pytest.param(maps, marks=pytest.mark.slow) for maps in ('even', 'tiny'))]
)
def test_the_weight_gradient_is_the_gradient(maps):
  compare_weight_gradients(GRADIENT_CASES[maps])


def test_the_weight_gradient_is_the_sum_over_chunks_of_rows_or_images(monkeypatch):
  monkeypatch.setattr(convolution, '_CACHE_BYTES', 0)
  compare_weight_gradients(CHUNK_CASES)


def compare_weight_gradients(cases):
  for (kernel, stride), (size, inner, outer) in cases:
    random = np.random.default_rng(0)
    x = random.normal(size=(2, *size, inner)).astype(np.float32)
    k = random.normal(size=(kernel, kernel, inner, outer)).astype(np.float32)
    plain, fast = both_ways(
      functools.partial(convolution.conv, stride=stride),
      lambda x, k, stride=stride: convolution.conv_custom_grad(x, k, stride),
      x,
      k,
    )
    case = f'{kernel=} {stride=} {size=} {inner=}'
    np.testing.assert_array_equal(fast[0], plain[0], case)
    for actual, expected in zip(fast[1], plain[1], strict=True):
      assert relative(actual, expected) < 1e-4, case


def test_the_gradient_of_pooling_is_the_gradient():
  for size in ((8, 8), (7, 9)):
    x = 0.1 + np.random.default_rng(0).random((2, *size, 3), np.float32)
    plain, fast = both_ways(convolution.max_pool, convolution.max_pool_custom_grad, x)
    np.testing.assert_array_equal(fast[0], plain[0], f'{size}')
    np.testing.assert_allclose(fast[1][0], plain[1][0], atol=1e-6, err_msg=f'{size}')


def test_only_a_cpu_gets_the_rewritten_gradient():
  def gradient(x, k):
    return jax.grad(lambda k: jnp.sum(convolution.conv_custom_grad(x, k)))(k)

  x, k = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
  for platform, rewritten in (('cpu', True), ('cuda', False)):
    text = export.export(jax.jit(gradient), platforms=[platform])(x, k).mlir_module()
    assert ('dot_general' in text) == rewritten, platform


def test_inference_is_ordinary_convolutions_with_a_symbolic_batch():
  module = backbones.build('resnet18', ('layer1',))
  variables = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  (batch,) = export.symbolic_shape('b')
  images = jax.ShapeDtypeStruct((batch, 32, 32, 3), jnp.float32)
  assert 'custom_vjp' not in str(jax.make_jaxpr(module.apply)(variables, jnp.ones((1, 32, 32, 3))))
  exported = export.export(jax.jit(module.apply))(variables, images)
  assert exported.mlir_module().count('stablehlo.convolution') == 5
  assert str(exported.out_avals[0].shape) == '(b, 8, 8, 64)'


@pytest.mark.parametrize('name', ['resnet18', 'resnet50'])
def test_nothing_after_the_last_stage_has_parameters(name):
  shapes = {}
  for last, stage in enumerate(resnet.STAGES, 1):
    module = backbones.build(name, (stage,))
    variables = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    rooms = {key.split('_')[0] for key in variables['params']}
    assert rooms == {'conv1', 'bn1', *resnet.STAGES[:last]}
    images = jax.ShapeDtypeStruct((1, 65, 32, 3), jnp.float32)
    shapes |= {k: x.shape for k, x in jax.eval_shape(module.apply, variables, images).items()}
  channels = 64 if name == 'resnet18' else 256
  assert shapes == {
    'layer1': (1, 17, 8, channels),
    'layer2': (1, 9, 4, 2 * channels),
    'layer3': (1, 5, 2, 4 * channels),
    'layer4': (1, 3, 1, 8 * channels),
  }


def test_training_moves_the_statistics_and_has_gradients_everywhere():
  module = backbones.build('resnet18', ('layer1',))
  images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
  variables = jax.jit(module.init)(jax.random.key(0), images)

  @jax.jit
  def step(variables):
    def loss(params):
      out, updates = module.apply(
        {**variables, 'params': params}, images, train=True, mutable=['batch_stats']
      )
      return (out['layer1'] ** 2).mean(), updates['batch_stats']

    return jax.grad(loss, has_aux=True)(variables['params'])

  gradient, statistics = step(variables)
  assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradient))
  before = jax.tree.leaves(variables['batch_stats'])
  for a, b in zip(before, jax.tree.leaves(statistics), strict=True):
    assert not np.allclose(a, b)


def test_normalize_is_imagenets():
  pixels = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
  expected = (pixels / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
  np.testing.assert_allclose(backbones.normalize(jnp.asarray(pixels)), expected, atol=1e-5)


@pytest.mark.parametrize(
  ('name', 'stages', 'choices'),
  [
    ('resnet19', ('layer1',), 'wide_resnet50_2'),
    ('resnet18', ('layer1', 'layer5'), 'layer4'),
    ('resnet18', (), 'layer1'),
  ],
)
def test_unknown_names_list_the_choices(name, stages, choices):
  with pytest.raises(UnknownName, match=choices):
    backbones.build(name, stages)
