"""Vision transformers compute what the programs of their authors, timm and Transformers compute."""

import functools
import math
import re

from flax import traverse_util
import jax
from jax import numpy as jnp
import numpy as np
import pytest
import small_runs
from tiny_transformer import random_tensors, TINY, write

from uadjax import backbones, create_model
from uadjax.backbones import architecture, vit, weights
from uadjax.backbones.weights import download
from uadjax.detectors import base, patchcore, stfpm
from uadjax.detectors.settings import PatchcoreSettings, StfpmSettings
from uadjax.errors import ConfigError, UserError, WeightsError
from uadjax.types import Batch

NOWHERE = 'http://127.0.0.1:9'  # Nobody answers there.
REFERENCES = (
  'dino_timm', 'dinov2_hf', 'dinov2_official', 'dinov2_timm', 'dinov2_reg4_hf',
  'dinov2_reg4_official', 'dinov2_reg4_timm', 'dinov2_swiglu_official', 'dinov3_hf',
  'dinov3_gated_hf', 'dinov3_timm',
)  # fmt: skip
ROTARY = TINY._replace(gated=True, positions=0, offset=0.0)


def relative(actual, expected):
  return np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()


def load(path, settings, stages=None, dtype='float32'):
  """The module and the variables of a file, whose architecture is read off it."""
  text = weights.complete_architecture('vit', path, settings)
  depth = architecture.from_text(text).depth
  stages = stages or (*(f'block{i + 1}' for i in range(depth)), 'tokens')
  module = backbones.build('vit', stages, text, dtype)
  return module, weights.load(path, module)[0]


def reference_errors(shared, name, sizes, dtype='float32'):
  """The relative errors of all stages, for sizes 0 (square) and 1 (not) of a reference file."""
  path = shared / 'weights' / 'vit' / f'{name}.safetensors'
  module, variables = load(str(path), 'heads=3', dtype=dtype)
  arrays = np.load(path.with_suffix('.npz'))
  encode = jax.jit(functools.partial(module.apply, method='encode'))
  errors = {}
  for size in sizes:
    x = jnp.asarray(arrays[f'input_{size}'].transpose(0, 2, 3, 1))
    tokens = encode(variables, x)
    for stage, value in tokens.items():
      index = int(stage.removeprefix('block')) if stage != 'tokens' else 0
      names = [f'block_{index - 1}_{size}', f'hidden_{index}_{size}']
      if stage == 'tokens':
        names = [f'tokens_{size}', f'normed_{module.config.depth - 1}_{size}']
      (name, *_) = (name for name in names if name in arrays)
      errors[stage, size] = relative(value, arrays[name])
  return errors


@pytest.mark.real
@pytest.mark.parametrize('name', ['dino_timm', 'dinov2_official', 'dinov3_gated_hf'])
def test_interpolated_tokens_are_those_of_the_reference_program(name, shared):
  errors = reference_errors(shared, name, [1])
  assert len(errors) == 4
  assert max(errors.values()) < 1e-5, errors


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize('name', REFERENCES)
def test_all_tokens_are_those_of_the_reference_program(name, shared):
  errors = reference_errors(shared, name, [0, 1])
  assert len(errors) == 8
  assert max(errors.values()) < 1e-5, errors


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize('name', REFERENCES)
def test_bfloat16_deviates_by_at_most_one_and_a_half_percent(name, shared):
  errors = reference_errors(shared, name, [1], 'bfloat16')
  assert 1e-4 < max(errors.values()) < 0.015, errors


def slow_tokens(tensors, sizes, images):
  """The definition in float64, token by token and head by head, for a gated rotary network."""
  t = {name: value.astype(np.float64) for name, value in tensors.items()}
  p, h, w = sizes.patch, images.shape[1] // sizes.patch, images.shape[2] // sizes.patch

  def norm(x, name):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    return x * t[f'{name}.weight'] + t[f'{name}.bias']

  def linear(x, name):
    return x @ t[f'{name}.weight'].T + t[f'{name}.bias']

  def turn(vector, row, column):
    k = len(vector)
    result = vector.copy()
    for j in range(k // 2):
      axis, step = divmod(j, k // 4)
      position = 2 * (((row + 0.5) / h, (column + 0.5) / w)[axis]) - 1
      angle = 2 * math.pi * position / 100 ** (step / (k // 4))
      a, b = vector[j], vector[j + k // 2]
      result[j] = a * math.cos(angle) - b * math.sin(angle)
      result[j + k // 2] = b * math.cos(angle) + a * math.sin(angle)
    return result

  outputs = []
  for image in images.astype(np.float64):
    patches = []
    for row in range(h):
      for column in range(w):
        patch = image[row * p : (row + 1) * p, column * p : (column + 1) * p]
        kernel = t['patch_embed.proj.weight'].transpose(2, 3, 1, 0)
        patches.append(np.tensordot(patch, kernel, 3) + t['patch_embed.proj.bias'])
    x = np.concatenate([t['cls_token'][0], t['register_tokens'][0], patches])
    first = 1 + sizes.registers
    for i in range(sizes.depth):
      block = f'blocks.{i}'
      qkv = linear(norm(x, f'{block}.norm1'), f'{block}.attn.qkv')
      qkv = qkv.reshape(len(x), 3, sizes.heads, -1)
      for n in range(first, len(x)):
        for head in range(sizes.heads):
          for kind in (0, 1):
            qkv[n, kind, head] = turn(qkv[n, kind, head], *divmod(n - first, w))
      attended = np.zeros((len(x), sizes.heads, qkv.shape[-1]))
      for n in range(len(x)):
        for head in range(sizes.heads):
          q, keys, values = qkv[n, 0, head], qkv[:, 1, head], qkv[:, 2, head]
          probability = np.exp(keys @ q / math.sqrt(len(q)))
          attended[n, head] = probability / probability.sum() @ values
      y = linear(attended.reshape(x.shape), f'{block}.attn.proj')
      x = x + y * t[f'{block}.ls1.gamma']
      gate, up = np.split(linear(norm(x, f'{block}.norm2'), f'{block}.mlp.w12'), 2, axis=1)
      x = x + linear(gate / (1 + np.exp(-gate)) * up, f'{block}.mlp.w3') * t[f'{block}.ls2.gamma']
    outputs.append(norm(x, 'norm'))
  return np.stack(outputs)


def random_images(height, width, count=2):
  return np.random.default_rng(1).normal(size=(count, height, width, 3)).astype(np.float32)


@pytest.fixture(scope='module')
def rotary(tmp_path_factory):
  """A module, its variables and the tensors of its file."""
  tensors = random_tensors(ROTARY)
  path = write(tmp_path_factory.mktemp('rotary'), tensors)
  return *load(path, 'heads=2'), tensors


def test_tokens_are_those_of_the_definition(rotary):
  module, variables, tensors = rotary
  assert module.config == ROTARY
  x = random_images(8, 12)
  tokens = jax.jit(functools.partial(module.apply, method='encode'))(variables, jnp.asarray(x))
  expected = slow_tokens(tensors, ROTARY, x)
  assert relative(tokens['tokens'], expected) < 1e-5
  stages = jax.jit(module.apply)(variables, jnp.asarray(x))
  np.testing.assert_array_equal(
    np.asarray(stages['tokens']).reshape(2, 6, 16), np.asarray(tokens['tokens'])[:, 3:]
  )


def test_bfloat16_deviates_little(rotary):
  module, variables, _ = rotary
  x = jnp.asarray(random_images(8, 12))
  half = module.clone(dtype='bfloat16', stages=('tokens',))
  actual = jax.jit(half.apply)(variables, x)['tokens']
  assert actual.dtype == jnp.float32
  assert 1e-4 < relative(actual, np.asarray(jax.jit(module.apply)(variables, x)['tokens'])) < 0.015


def test_rotations_depend_on_the_distance_of_patches_only():
  random = np.random.default_rng(0)
  query, key = (jnp.asarray(random.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))
  angles = vit.rotary_angles((4, 4), 8).reshape(4, 4, 8)

  def product(first, second):
    return float((vit.rotate(query, first[None]) * vit.rotate(key, second[None])).sum())

  for down, right in ((1, 0), (0, 2), (-1, 1)):
    products = [
      product(angles[i, j], angles[i + down, j + right])
      for i in range(1, 4 - max(down, 0))
      for j in range(4 - right)
    ]
    np.testing.assert_allclose(products, products[0], rtol=1e-4)
  assert abs(product(angles[0, 0], angles[0, 1]) - product(angles[0, 0], angles[1, 0])) > 1e-3


def test_without_positions_patches_have_no_order(tmp_path):
  tensors = random_tensors(TINY)
  tensors['pos_embed'][:, 1:] = 0
  module, variables = load(write(tmp_path, tensors), 'heads=2', ('block2',))
  x = random_images(8, 12)
  apply = jax.jit(module.apply)
  before, after = (
    np.asarray(apply(variables, jnp.asarray(images))['block2'])
    for images in (x, np.roll(x, (4, -4), axis=(1, 2)))
  )
  np.testing.assert_allclose(after, np.roll(before, (1, -1), axis=(1, 2)), atol=1e-5)


def test_positions_on_their_own_grid_are_not_interpolated():
  positions = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 16)), jnp.float32)
  same = vit.interpolate_positions(positions, TINY, (3, 3))
  np.testing.assert_array_equal(same[0], positions)
  constant = vit.interpolate_positions(jnp.ones((3, 3, 16)), TINY, (2, 5))
  np.testing.assert_allclose(constant, np.ones((1, 2, 5, 16)), rtol=1e-6)


# One file in the spellings of all programs. Tables of the package are not used here.


def renamed(tensors, pairs):
  result = {}
  for name, value in tensors.items():
    for pattern, replacement in pairs:
      name = re.sub(pattern, replacement, name)
    result[name] = value
  return result


def in_timm(tensors):
  """As timm writes it: the position of the class token is added, and SwiGLU has two matrices."""
  result = renamed(tensors, [('register_tokens', 'reg_token'), (r'ls(\d)\.gamma', r'gamma_\1')])
  del result['mask_token']
  if 'pos_embed' in result:
    result['cls_token'] = result['cls_token'] + result['pos_embed'][:, :1]
    result['pos_embed'] = result['pos_embed'][:, 1:]
  for name in [name for name in result if '.w12.' in name]:
    gate, up = np.split(result.pop(name), 2)
    result |= {name.replace('w12', 'fc1_g'): gate, name.replace('w12', 'fc1_x'): up}
  return renamed(result, [('w3', 'fc2')])


def in_packed_timm(tensors):
  pairs = [('register_tokens', 'reg_token'), ('w12', 'fc1'), ('w3', 'fc2')]
  return renamed({k: v for k, v in tensors.items() if k != 'mask_token'}, pairs)


def in_hugging_face(tensors):
  """As Transformers 5 writes it."""
  result = renamed(
    tensors,
    [
      ('^cls_token|^mask_token|^register_tokens', r'embeddings.\g<0>'),
      ('^pos_embed', 'embeddings.position_embeddings'),
      ('^patch_embed.proj', 'embeddings.patch_embeddings.projection'), ('^norm', 'layernorm'),
      ('^blocks', 'encoder.layer'), (r'attn\.proj', 'attention.o_proj'),
      (r'ls(\d)\.gamma', r'layer_scale\1.lambda1'), ('w12', 'weights_in'), ('w3', 'weights_out'),
    ],
  )  # fmt: skip
  for name in [name for name in result if 'attn.qkv' in name]:
    value = result.pop(name)
    for part, letter in zip(np.split(value, 3), 'qkv', strict=True):
      result[name.replace('attn.qkv', f'attention.{letter}_proj')] = part
  return result


def in_published_hugging_face(tensors):
  """As earlier versions wrote it, and the published files are."""
  pairs = [
    (rf'attention\.{word[0]}_proj', f'attention.attention.{word}')
    for word in ('query', 'key', 'value')
  ]
  return renamed(in_hugging_face(tensors), [*pairs, ('attention.o_proj', 'attention.output.dense')])


def in_dinov3(tensors):
  """As the authors of DINOv3 write it: biases of keys are masked."""
  result = renamed(tensors, [('register_tokens', 'storage_tokens')])
  for name in [name for name in result if '.w12.' in name]:
    gate, up = np.split(result.pop(name), 2)
    result |= {name.replace('w12', 'w1'): gate, name.replace('w12', 'w2'): up}
  for name in [name for name in result if name.endswith('qkv.bias')]:
    mask = np.repeat(np.float32([1, 0, 1]), len(result[name]) // 3)
    tensors[name] *= mask  # What they compute with.
    result |= {name: result[name] + 9 * (1 - mask), f'{name}_mask': mask}
  return result


SPELLINGS = {
  'timm': in_timm, 'timm, packed': in_packed_timm, 'Transformers': in_hugging_face,
  'Transformers, published': in_published_hugging_face, 'DINOv3': in_dinov3,
}  # fmt: skip


@pytest.mark.parametrize('program', SPELLINGS)
def test_every_spelling_has_the_same_parameters(program, tmp_path):
  for sizes in (TINY, ROTARY, TINY._replace(registers=0, gated=True)):
    tensors = random_tensors(sizes)
    respelled = SPELLINGS[program](tensors)
    _, variables = load(write(tmp_path, respelled), 'heads=2')
    _, expected = load(write(tmp_path, tensors), 'heads=2')
    flat, expected = (traverse_util.flatten_dict(v) for v in (variables, expected))
    assert flat.keys() == expected.keys()
    for path, value in flat.items():
      np.testing.assert_array_equal(value, expected[path], str(path))


def test_the_rule_of_interpolation_is_that_of_the_program(tmp_path):
  rules = {}
  for registers in (0, 2):
    tensors = random_tensors(TINY._replace(registers=registers))
    for program, respell in (
      ('authors', dict), ('timm', in_timm), ('Transformers', in_hugging_face)
    ):  # fmt: skip
      module, _ = load(write(tmp_path, respell(tensors)), 'heads=2')
      rules[program, registers] = module.config.offset, module.config.antialias
  assert rules == {
    ('authors', 0): (0.1, False), ('authors', 2): (0, True),
    ('timm', 0): (0, True), ('timm', 2): (0, True),
    ('Transformers', 0): (0, False), ('Transformers', 2): (0, True),
  }  # fmt: skip


def num_parameters(name):
  """Of one block times their number, and the rest: to trace all takes long."""
  module = backbones.build(name, ('tokens',))
  depth, config = module.config.depth, module.config._replace(depth=1)
  images = jnp.zeros((1, module.min_side, module.min_side, 3))
  params = jax.eval_shape(module.clone(config=config).init, jax.random.key(0), images)['params']
  sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(x)) for name, x in params.items()}
  return sum(sizes.values()) + (depth - 1) * sizes['block1']


def test_published_networks_have_the_published_number_of_parameters():
  # Of these, ours lack the mask token, positions of the class token, and layer scales.
  expected = {
    'dino_vits8': 21_670_272 - 384, 'dinov2_vits14': 22_056_576 - (2 + 12 * 2) * 384,
    'dinov2_vitg14': 1_136_480_768 - (2 + 40 * 2) * 1536,
  }  # fmt: skip
  assert {name: num_parameters(name) for name in expected} == expected


def test_no_block_after_the_last_stage_has_parameters(tmp_path, rotary):
  module, variables = load(write(tmp_path, rotary[2]), 'heads=2', ('block1',))
  assert module.available_stages == ('block1', 'block2', 'tokens')
  assert sorted(variables['params']) == ['block1', 'patch_embed', 'prefix']
  x = jnp.asarray(random_images(8, 12))
  shapes = base.stage_shapes(module, 8, 12)
  assert shapes == ((2, 3, 16),)
  first = jax.jit(module.apply)(variables, x)['block1']
  both = jax.jit(rotary[0].apply)(rotary[1], x)['block1']
  np.testing.assert_array_equal(first, both)


# Errors.


def test_other_sizes_than_multiples_of_the_patch_are_refused():
  module = backbones.build('dinov2_vits14', ('block1',))
  with pytest.raises(ConfigError, match=r'14x14 .*256x224 .*252x224.*resize\(252, 224\)') as caught:
    base.stage_shapes(module, 256, 224)
  assert (caught.value.key, caught.value.value) == ('data.ops', '256x224')
  assert base.stage_shapes(module, 28, 14) == ((2, 1, 384),)


def test_a_vision_transformer_is_no_student():
  context = base.RunContext(14, 14)
  module = backbones.build('dinov2_vits14', ('block1',))
  with pytest.raises(ConfigError, match='PatchCore or PaDiM') as caught:
    stfpm.make(module, context, StfpmSettings())
  assert caught.value.key == 'backbone.name'


@pytest.mark.parametrize(
  ('name', 'options', 'key', 'problem'),
  [
    ('resnet18', {'dtype': 'bfloat16'}, 'backbone.dtype', 'not to resnet18'),
    ('dinov2_vits14', {'architecture': 'heads=3'}, 'backbone.architecture', 'not to dinov2'),
    ('vit', {'architecture': 'heads=3'}, 'backbone.architecture', 'lacks patch, width'),
    ('vit', {'architecture': 'heads=x'}, 'backbone.architecture', "'heads=x' is not part"),
    ('vit', {'architecture': 'size=3'}, 'backbone.architecture', "'size=3' is not part"),
    ('vit', {'architecture': str(TINY._replace(heads=3))}, 'backbone.architecture', 'are 3'),
    ('vit', {'architecture': str(TINY._replace(heads=0))}, 'backbone.architecture', 'heads=N'),
  ],
)
def test_wrong_options_name_their_key(name, options, key, problem):
  with pytest.raises(UserError, match=re.escape(problem)) as caught:
    backbones.build(name, ('block1',), **options)
  assert caught.value.key == key


def test_an_architecture_is_read_from_its_text():
  for sizes in (TINY, ROTARY, *architecture.PUBLISHED.values()):
    assert architecture.from_text(str(sizes)) == sizes


def test_files_of_other_networks_are_refused(tmp_path):
  tensors = random_tensors(TINY)
  module, _ = load(write(tmp_path, tensors), 'heads=2')
  extra = {'blocks.0.attn.q_norm.weight': np.zeros(8, np.float32)}
  cases = {
    'patch=4 instead of 14, width=16 instead of 384': (
      tensors, backbones.build('dinov2_vits14', ('block1',))),
    'it has gated=False instead of True, positions=3 instead of 0': (
      tensors, module.clone(config=ROTARY)),
    'no tensor block2.proj.weight': (
      {k: v for k, v in tensors.items() if k != 'blocks.1.attn.proj.weight'}, module),
    'block1.up.bias must have shape (24,), but has (3,)': (
      tensors | {'blocks.0.mlp.fc1.bias': np.zeros(3, np.float32)}, module),
    'unexpected tensor block1.attn.q_norm.weight': (tensors | extra, module),
    'no tensor patch_embed.weight': ({'conv1.weight': np.zeros(3, np.float32)}, module),
    'norm.bias has values that are not finite': (
      tensors | {'norm.bias': np.full(16, np.nan, np.float32)}, module),
    'positions are of no square grid': (
      tensors | {'pos_embed': np.zeros((1, 7, 16), np.float32)}, module),
    'block1.down.weight has shape (1,), but must have 2 axes': (
      tensors | {'blocks.0.mlp.fc2.weight': np.zeros(1, np.float32)}, module),
    'unexpected tensor norm_pre.weight': (
      tensors | {'norm_pre.weight': np.ones(16, np.float32)}, module),
  }  # fmt: skip
  for problem, (content, network) in cases.items():
    with pytest.raises(WeightsError, match=re.escape(problem)):
      weights.load(write(tmp_path, content), network)
  with pytest.raises(WeightsError, match=r'no vision transformer.*no tensor patch_embed\.weight'):
    weights.complete_architecture('vit', write(tmp_path, {'a': np.zeros(3, np.float32)}), '')


# Published files.


@pytest.fixture
def cache(tmp_path, monkeypatch):
  monkeypatch.setattr(weights, 'META', NOWHERE)
  monkeypatch.setenv('UADJAX_CACHE', str(tmp_path))
  return tmp_path / 'weights'


def test_without_network_and_file_nothing_replaces_the_weights(cache):
  module, file = (
    backbones.build('dinov2_vits14_reg', ('block8',)), 'dinov2_vits14_reg4_pretrain.pth',
  )  # fmt: skip
  for refused in (
    functools.partial(weights.choose, module.arch, 'auto', module.stages),
    functools.partial(weights.load, 'published', module),
  ):
    with pytest.raises(WeightsError) as caught:
      refused()
    for way in (f'{NOWHERE}/dinov2/dinov2_vits14/{file}', cache / file, 'backbone.weights=FILE'):
      assert str(way) in str(caught.value)
  with pytest.raises(ConfigError, match='embedded weights support'):
    weights.choose('dinov2_vits14', 'embedded', ('block8',))
  with pytest.raises(ConfigError, match='no published ImageNet weights'):
    weights.choose('dinov2_vits14', 'imagenet', ('block8',))


def test_weights_behind_a_license_are_a_file_only(cache):
  for choice in ('auto', 'published'):
    with pytest.raises(ConfigError) as caught:
      weights.choose('dinov3_vits16', choice, ('block8',))
    for way in (weights.DINOV3, 'dinov3_vits16_pretrain_lvd1689m-08c60483.pth', '=FILE'):
      assert way in str(caught.value)
  file = '/some/dinov3.pth'
  assert weights.choose('dinov3_vits16', file, ('block8',)) == ('dinov3_vits16', file, '')


def test_the_checksum_is_recorded_at_first_use(cache, monkeypatch):
  content = [b'first']

  def fetch(url, target, digest):
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content[0])

  monkeypatch.setattr(download, 'fetch', fetch)
  assert weights.choose('dino_vits8', 'auto', ('block8',)).weights == 'published'
  path = cache / 'dino_deitsmall8_pretrain.pth'
  digest = weights.expected_digest('dino_vits8')
  assert path.with_name(f'{path.name}.sha256').read_text() == f'{digest}  {path.name}\n'
  digests = []
  monkeypatch.setattr(download, 'fetch', lambda url, target, digest: digests.append(digest))
  weights.fetch_published('dino_vits8')
  path.write_bytes(b'changed')
  weights.fetch_published('dino_vits8')
  assert digests == [digest]
  assert not path.exists()


def test_published_files_are_of_published_networks():
  names = {*weights.META_FILES, *weights.DINOV3_FILES}
  assert names == set(architecture.PUBLISHED)
  dinov2 = weights.META_FILES['dinov2_vitg14_reg']
  assert dinov2 == 'dinov2/dinov2_vitg14/dinov2_vitg14_reg4_pretrain.pth'


# Models.


def test_patchcore_scores_by_the_tokens_of_a_vision_transformer(rotary, one_way_to_measure):
  module, variables, _ = rotary
  x = np.random.default_rng(0).integers(0, 256, (4, 8, 12, 3), np.uint8)
  batch = Batch(x[:3], np.ones(3, bool), np.arange(3, dtype=np.int32))
  options = PatchcoreSettings(layers=module.stages, ratio=1.0)
  detector = patchcore.make(module, base.RunContext(8, 12, max_images=3), options)
  state, _ = jax.jit(detector.update)(detector.init(jax.random.key(0), variables), batch)
  fitted = detector.finalize(detector.incremental.select(state))
  assert fitted.memory_bank.rows.shape == (3 * 2 * 3, 3 * module.config.width)
  scores = jax.jit(detector.score)(fitted, x)
  assert scores.image[:3].max() < 1e-2 < scores.image[3]


# It compiles all of a run, for sizes that no other test has.
@pytest.mark.slow
def test_models_on_a_vision_transformer_are_fitted_and_loaded(drawn, tmp_path):
  path = write(tmp_path, random_tensors(TINY))
  workdir = tmp_path / 'run'
  flags = (
    *small_runs.flags('patchcore', drawn), small_runs.NO_EVALUATION, f'--workdir={workdir}',
    '--config.detector.layers=block1,tokens', '--config.backbone.name=vit',
    f'--config.backbone.weights={path}', '--config.backbone.architecture=heads=2',
  )  # fmt: skip
  assert small_runs.run(*flags) == 0
  settings = small_runs.manifest(workdir)['config']['backbone']
  assert settings == {
    'name': 'vit', 'weights': path, 'architecture': str(TINY._replace(offset=0.0, antialias=True)),
    'dtype': 'float32',
  }  # fmt: skip
  images = sorted((drawn / 'disc' / 'train' / 'good').iterdir())[:2]
  model = create_model(model_dir=workdir / 'model', device='cpu:0')
  scores = [result['score'] for result in model.predict([str(image) for image in images])]
  assert all(0 <= score < math.inf for score in scores)
