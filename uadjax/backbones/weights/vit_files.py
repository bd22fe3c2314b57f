"""Vision transformers in files of their authors, of timm and of Hugging Face Transformers.

Tensors are renamed to those of `vit`: block1.norm1.weight and so on. Layer scales are multiplied
into the linear layers before them, and the position of the class token is added to it.
"""

from collections.abc import Mapping
import math
import re
from typing import NamedTuple

import numpy as np

from uadjax.backbones import architecture, vit
from uadjax.backbones.architecture import Architecture
from uadjax.backbones.weights.formats import Tensors

Leaves = dict[tuple[str, ...], np.ndarray]  # By the keys that lead to a leaf of the parameters.

# Tensors that patch tokens do not depend on: of training, of heads, and the periods of DINOv3.
_IGNORED = re.compile(
  r'((embeddings\.)?mask_token|(head|pooler|(local_)?cls_norm)\..*|rope_embed\..*)'
)
_BLOCK = re.compile(r'(?:blocks|(?:encoder\.|model\.)?layer)\.(\d+)\.(.+)')

# Modules and parameters outside of blocks and, by their names there, those inside.
_COMMON = {
  'cls_token': 'class_token', 'register_tokens': 'registers', 'storage_tokens': 'registers',
  'reg_token': 'registers', 'pos_embed': 'positions', 'patch_embed.proj': 'patch_embed',
  'norm': 'norm', 'norm1': 'norm1', 'norm2': 'norm2', 'attn.qkv': 'qkv', 'attn.proj': 'proj',
  'ls1.gamma': 'scale1', 'ls2.gamma': 'scale2', 'mlp.fc1': 'up', 'mlp.fc2': 'down',
}  # fmt: skip
_OFFICIAL = {
  **_COMMON, 'mlp.w12': 'gate_up', 'mlp.w1': 'gate', 'mlp.w2': 'up', 'mlp.w3': 'down',
}  # fmt: skip
_TIMM = {
  **_COMMON, 'gamma_1': 'scale1', 'gamma_2': 'scale2', 'mlp.fc1_g': 'gate', 'mlp.fc1_x': 'up',
}  # fmt: skip
# Published files of DINOv2 have the names that Transformers used before version 5.
_HUGGING_FACE = {
  'embeddings.cls_token': 'class_token', 'embeddings.register_tokens': 'registers',
  'embeddings.position_embeddings': 'positions', 'embeddings.patch_embeddings': 'patch_embed',
  'embeddings.patch_embeddings.projection': 'patch_embed', 'layernorm': 'norm', 'norm': 'norm',
  'norm1': 'norm1', 'norm2': 'norm2',
  'attention.q_proj': 'query', 'attention.k_proj': 'key', 'attention.v_proj': 'value',
  'attention.attention.query': 'query', 'attention.attention.key': 'key',
  'attention.attention.value': 'value', 'attention.o_proj': 'proj',
  'attention.output.dense': 'proj', 'layer_scale1.lambda1': 'scale1',
  'layer_scale2.lambda1': 'scale2', 'mlp.fc1': 'up', 'mlp.fc2': 'down', 'mlp.up_proj': 'up',
  'mlp.gate_proj': 'gate', 'mlp.down_proj': 'down', 'mlp.weights_in': 'gate_up',
  'mlp.weights_out': 'down',
}  # fmt: skip


class Spelling(NamedTuple):
  """Names of a program, and how it interpolates positions, without and with registers.

  Attributes:
    names: our names by its names.
    interpolations: `offset` and `antialias` of an architecture without registers, and with.
  """

  names: Mapping[str, str]
  interpolations: tuple[tuple[float, bool], tuple[float, bool]]


OFFICIAL = Spelling(_OFFICIAL, ((0.1, False), (0.0, True)))
TIMM = Spelling(_TIMM, ((0.0, True), (0.0, True)))
HUGGING_FACE = Spelling(_HUGGING_FACE, ((0.0, False), (0.0, True)))


def detect_spelling(tensors: Tensors) -> Spelling:
  """Return whose names a file has.

  Files of DINO are alike in its authors' program and in timm; the result is timm's.
  """
  if any(name.startswith('embeddings.') for name in tensors):
    return HUGGING_FACE
  # The authors' files of DINOv2 and DINOv3 have the token that hid patches in training.
  return OFFICIAL if 'mask_token' in tensors else TIMM


def rename(tensors: Tensors) -> Tensors:
  """Return the tensors by our names, without those that patch tokens do not depend on.

  Further tensors keep their names, and fit no network.
  """
  names, renamed = detect_spelling(tensors).names, {}
  for name, value in tensors.items():
    match = _BLOCK.fullmatch(name)
    prefix, rest = (f'block{int(match[1]) + 1}.', match[2]) if match else ('', name)
    module, _, leaf = rest.rpartition('.')
    if rest in names:
      renamed[prefix + names[rest]] = value
    elif module in names:
      renamed[f'{prefix}{names[module]}.{leaf}'] = value
    elif not _IGNORED.fullmatch(name):
      renamed[prefix + rest] = value
  _split_packed_gates(renamed)
  return renamed


def _split_packed_gates(tensors: Tensors) -> None:
  """Replace the single matrix of a gated MLP, whose upper half is the gate, by two."""
  for name in [name for name in tensors if name.endswith('.down.weight')]:
    block, hidden = name.removesuffix('.down.weight'), tensors[name].shape[-1:]
    up = tensors.get(f'{block}.up.weight')
    packed = 'up' if up is not None and up.shape[:1] == (2 * sum(hidden),) else 'gate_up'
    for leaf in ('weight', 'bias'):
      value = tensors.get(f'{block}.{packed}.{leaf}')
      if value is not None and value.ndim:
        del tensors[f'{block}.{packed}.{leaf}']
        half = len(value) // 2
        tensors[f'{block}.gate.{leaf}'], tensors[f'{block}.up.{leaf}'] = value[:half], value[half:]


def read_sizes(
  tensors: Tensors, spelling: Spelling, replacements: Mapping[str, int | float]
) -> Architecture:
  """Return the architecture of renamed tensors.

  Args:
    tensors: result of `rename`.
    spelling: whose program interpolates positions.
    replacements: sizes that replace those of the file, such as heads, which no tensor shows.

  Raises:
    ValueError: the tensors are of no vision transformer.
  """
  width, colors, patch, other_side = _shape(tensors, 'patch_embed.weight', 4)
  if colors != 3 or patch != other_side:
    raise ValueError(f'its patches are of {patch}x{other_side} pixels with {colors} colors')
  _, hidden = _shape(tensors, 'block1.down.weight', 2)
  registers = _shape(tensors, 'registers', 3)[1] if 'registers' in tensors else 0
  offset, antialias = spelling.interpolations[registers > 0]
  positions = math.isqrt(_num_positions(tensors)) if 'positions' in tensors else 0
  sizes = {
    'patch': patch,
    'width': width,
    'depth': sum(re.fullmatch(r'block\d+\.norm1\.weight', name) is not None for name in tensors),
    'heads': architecture.default_heads(width),
    'hidden': hidden,
    'registers': registers,
    'gated': 'block1.gate.weight' in tensors,
    'positions': positions,
    'offset': offset if positions else 0.0,
    'antialias': antialias and positions > 0,
  }
  return Architecture(**{**sizes, **replacements})


def _shape(tensors: Tensors, name: str, ndim: int) -> tuple[int, ...]:
  if name not in tensors:
    raise ValueError(f'it has no tensor {name}')
  if tensors[name].ndim != ndim:
    raise ValueError(f'{name} has shape {tensors[name].shape}, but must have {ndim} axes')
  return tensors[name].shape


def _num_positions(tensors: Tensors) -> int:
  """Return the number of positions of patches; that of the class token may come before them."""
  count = _shape(tensors, 'positions', 3)[1]
  for num_patches in (count - 1, count):
    if num_patches > 0 and math.isqrt(num_patches) ** 2 == num_patches:
      return num_patches
  raise ValueError(f'its {count} positions are of no square grid')


class _Reader:
  """Tensors of a file that are taken one by one, and verified."""

  def __init__(self, tensors: Tensors):
    self.tensors = dict(tensors)

  def take(self, name: str, shape: tuple[int, ...], default: float | None = None) -> np.ndarray:
    """Return a tensor; if it is absent, one of `default`, or an error if that is None."""
    value = self.tensors.pop(name, None)
    if value is None and default is not None:
      return np.full(shape, default, np.float32)
    if value is None:
      raise ValueError(f'it has no tensor {name}')
    if value.shape != shape:
      raise ValueError(f'{name} must have shape {shape}, but has {value.shape}')
    return value

  def linear(self, name: str, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return weight and bias of a linear layer; without a bias in the file, it is zero."""
    weight, bias = self.take(f'{name}.weight', shape), self.take(f'{name}.bias', shape[:1], 0.0)
    mask = self.take(f'{name}.bias_mask', shape[:1], 1.0)  # DINOv3's is zero for keys.
    return weight, np.where(mask == 0, np.float32(0), bias)


def to_leaves(tensors: Tensors, module: vit.VisionTransformer) -> Leaves:
  """Return the parameters of a vision transformer from renamed tensors of float32.

  Raises:
    ValueError: they are of another architecture. The message is a clause about the file.
  """
  config = module.config
  sizes = read_sizes(tensors, OFFICIAL, {})
  differences = [
    f'{name}={getattr(sizes, name)} instead of {getattr(config, name)}'
    for name in ('patch', 'width', 'depth', 'hidden', 'registers', 'gated', 'positions')
    if getattr(sizes, name) != getattr(config, name)
  ]
  if differences:
    raise ValueError(f'it has {", ".join(differences)}')
  reader, leaves = _Reader(tensors), {}
  kernel = reader.take('patch_embed.weight', (config.width, 3, config.patch, config.patch))
  leaves['patch_embed', 'kernel'] = kernel.transpose(2, 3, 1, 0).reshape(-1, config.width)
  leaves['patch_embed', 'bias'] = reader.take('patch_embed.bias', (config.width,), 0.0)
  leaves.update(_embedding_leaves(reader, config))
  for i in range(1, module.num_blocks + 1):
    leaves.update(_block_leaves(reader, f'block{i}', config))
  norm_leaves = _norm_leaves(reader, ('norm',), config)
  later_blocks = tuple(f'block{i}.' for i in range(module.num_blocks + 1, config.depth + 1))
  if unexpected := [name for name in reader.tensors if not name.startswith(later_blocks)]:
    raise ValueError(f'unexpected tensor {unexpected[0]}')
  return leaves | norm_leaves if vit.TOKENS in module.stages else leaves


def _embedding_leaves(reader: _Reader, config: Architecture) -> Leaves:
  """Return the prefix, and the positions if they are learned."""
  leaves, width = {}, config.width
  prefix = reader.take('class_token', (1, 1, width))[0]
  if config.positions:
    num_patches, num_positions = config.positions**2, reader.tensors['positions'].shape[1]
    positions = reader.take('positions', (1, num_positions, width))[0]
    if num_positions > num_patches:
      prefix = prefix + positions[:1]
    grid = positions[-num_patches:].reshape(config.positions, config.positions, width)
    leaves['positions',] = grid
  if config.registers:
    prefix = np.concatenate([prefix, reader.take('registers', (1, config.registers, width))[0]])
  return {**leaves, ('prefix',): prefix}


def _block_leaves(reader: _Reader, block: str, config: Architecture) -> Leaves:
  leaves, width, hidden = {}, config.width, config.hidden

  def add(name: str, weight: np.ndarray, bias: np.ndarray, scale: np.ndarray | None = None) -> None:
    if scale is not None:
      weight, bias = weight * scale[:, None], bias * scale
    leaves[block, name, 'kernel'], leaves[block, name, 'bias'] = weight.T, bias

  for name in ('norm1', 'norm2'):
    leaves.update(_norm_leaves(reader, (block, name), config))
  scale1, scale2 = (reader.take(f'{block}.scale{i}', (width,), 1.0) for i in (1, 2))
  if f'{block}.qkv.weight' in reader.tensors:
    add('qkv', *reader.linear(f'{block}.qkv', (3 * width, width)))
  else:
    projections = (
      reader.linear(f'{block}.{name}', (width, width)) for name in ('query', 'key', 'value')
    )
    add('qkv', *(np.concatenate(parts) for parts in zip(*projections, strict=True)))
  add('proj', *reader.linear(f'{block}.proj', (width, width)), scale1)
  for name in ('gate', 'up') if config.gated else ('up',):
    add(name, *reader.linear(f'{block}.{name}', (hidden, width)))
  add('down', *reader.linear(f'{block}.down', (width, hidden)), scale2)
  return leaves


def _norm_leaves(reader: _Reader, keys: tuple[str, ...], config: Architecture) -> Leaves:
  name, shape = '.'.join(keys), (config.width,)
  weight, bias = reader.take(f'{name}.weight', shape), reader.take(f'{name}.bias', shape)
  return {(*keys, 'scale'): weight, (*keys, 'bias'): bias}
