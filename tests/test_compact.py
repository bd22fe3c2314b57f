"""The compact network has the stages of ResNet-18, at less than two thirds of its cost."""

import json

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from uadjax import backbones
from uadjax.backbones import compact, weights as pretrained_weights
from uadjax.data import image_io, transforms

apply = jax.jit(compact.Compact().apply)
IMAGE = jax.random.normal(jax.random.key(1), (1, 64, 64, 3))  # One shape, for it is compiled.


@pytest.fixture(scope='module')
def variables():
  """Of random numbers: to compile how a network begins takes longer than all that is tested."""
  random = np.random.default_rng(0)

  def drawn(path, leaf):
    name = path[-1].key
    if name == 'kernel':
      return jnp.asarray(random.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1])), 'f')
    return jnp.asarray((name in ('scale', 'var')) + 0.1 * random.random(leaf.shape), 'f')

  shapes = jax.eval_shape(compact.Compact().init, jax.random.key(0), IMAGE)
  return jax.tree_util.tree_map_with_path(drawn, shapes)


def shapes(module, size):
  images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
  stages, _ = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x), images)
  return {name: x.shape for name, x in stages.items()}


@pytest.mark.parametrize('size', [(256, 256), (224, 224), (97, 250)])
def test_its_maps_are_as_those_of_resnet18(size):
  assert shapes(compact.Compact(), size) == shapes(
    backbones.build('resnet18', compact.STAGES), size
  )


def test_nothing_beyond_the_last_stage_has_parameters(variables):
  short = compact.Compact(stages=('layer2',))
  less = jax.eval_shape(short.init, jax.random.key(0), IMAGE)
  assert set(less['params']) == {'layer1', 'layer2'}
  # What it computes is the same, also with variables that hold more.
  whole, part = apply(variables, IMAGE), jax.jit(short.apply)(variables, IMAGE)
  assert list(part) == ['layer2']
  np.testing.assert_allclose(part['layer2'], whole['layer2'], rtol=1e-5, atol=1e-5)


def test_the_backbone_has_less_than_three_million_parameters(variables):
  assert sum(x.size for x in jax.tree.leaves(variables['params'])) < 3_000_000


def flops(module):
  images = jnp.zeros((1, 256, 256, 3))
  variables = jax.eval_shape(module.init, jax.random.key(0), images)
  cost = jax.jit(module.apply).lower(variables, images).cost_analysis()
  return cost['flops']  # pyright: ignore[reportOptionalSubscript]


def test_the_backbone_takes_less_than_two_thirds_of_the_flops_of_resnet18():
  resnet = backbones.build('resnet18', compact.STAGES)
  assert 1.5 * flops(compact.Compact()) < flops(resnet)


def test_stages_one_by_one_are_the_whole(variables):
  x, whole = IMAGE, apply(variables, IMAGE)
  for name, plan in compact.STAGE_CONFIGS.items():
    stage_variables = {collection: tree[name] for collection, tree in variables.items()}
    x = jax.jit(compact.Stage(plan).apply)(stage_variables, x)
    np.testing.assert_allclose(x, whole[name], rtol=1e-5, atol=1e-5)


def test_training_moves_the_statistics(variables):
  x = jax.random.normal(jax.random.key(1), (2, 32, 32, 3)) + 1
  stage = compact.Stage(compact.STAGE_CONFIGS['layer1'])
  stage_variables = {collection: tree['layer1'] for collection, tree in variables.items()}

  def new_statistics(train):
    _, new = jax.jit(
      lambda stage_variables, x: stage.apply(stage_variables, x, train, mutable=['batch_stats'])
    )(stage_variables, x)
    return new['batch_stats']

  assert any(
    bool((a != b).any())
    for a, b in zip(
      *map(jax.tree.leaves, (new_statistics(True), stage_variables['batch_stats'])), strict=True
    )
  )
  jax.tree.map(np.testing.assert_array_equal, new_statistics(False), stage_variables['batch_stats'])


def test_the_embedded_weights_are_those_of_the_card():
  variables, origin = pretrained_weights.load(
    'embedded', backbones.build('compact', compact.STAGES)
  )
  card = json.loads(pretrained_weights.EMBEDDED.with_suffix('.json').read_text())
  assert origin.sha256 == card['sha256']
  assert pretrained_weights.EMBEDDED.stat().st_size == card['bytes'] < 6e6
  assert card['parameters'] < 3_000_000
  assert origin.license == 'Apache-2.0'
  stages = apply(variables, jnp.zeros_like(IMAGE))
  assert all(bool(jnp.isfinite(x).all()) for x in stages.values())


@pytest.mark.real
def test_the_embedded_weights_see_what_the_teacher_sees(shared):
  file = shared / 'weights' / 'resnet18_imagenet_bnfolded.safetensors'
  paths = sorted((shared / 'data' / 'mvtec_ad' / 'screw' / 'train' / 'good').iterdir())[:4]
  ops = transforms.parse('resize(256)')
  pixels = jnp.asarray(np.stack([ops.apply(image_io.decode(path)) for path in paths]))
  features = []
  for name, weights in (('compact', 'embedded'), ('resnet18', str(file))):
    module = backbones.build(name, compact.STAGES)
    variables, _ = pretrained_weights.load(weights, module)
    features.append(jax.jit(module.apply)(variables, backbones.normalize(pixels)))
  for stage in compact.STAGES:
    ours, theirs = (x[stage].reshape(-1, x[stage].shape[-1]) for x in features)
    ours, theirs = ours - theirs.mean(axis=0, keepdims=True), theirs - theirs.mean(axis=0)[None]
    explained = 1 - jnp.sum((ours - theirs) ** 2) / jnp.sum(theirs**2)
    assert explained > 0.5, stage  # Of the teacher's variance; random weights explain none.
