"""Names of a backbone's tensors in the files of torchvision, timm and Paddle."""

from collections.abc import Iterable
import re

import jax
from jax import numpy as jnp

from uadjax.backbones import ConvNet, resnet

# By name: the keys that lead to a leaf of a module's variables, and the shape in a file.
ExpectedTensors = dict[str, tuple[tuple[str, ...], tuple[int, ...]]]

_TORCHVISION_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias'}
_TORCHVISION_LEAVES |= {'mean': 'running_mean', 'var': 'running_var'}
_PADDLE_LEAVES = {'_mean': 'running_mean', '_variance': 'running_var'}


def expected_tensors(module: ConvNet) -> ExpectedTensors:
  """Return the path of each variable and the tensor's shape in a file, by torchvision's name."""
  images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  variables = jax.eval_shape(module.init, jax.random.key(0), images)
  tensors = {}
  for keys, leaf in jax.tree.leaves_with_path(variables):
    path = tuple(key.key for key in keys)
    module_names = [module_name.replace('_', '.') for module_name in path[1:-1]]
    shape = leaf.shape
    if path[-1] == 'kernel':
      height, width, in_channels, out_channels = shape
      shape = (out_channels, in_channels, height, width)
    tensors['.'.join([*module_names, _TORCHVISION_LEAVES[path[-1]]])] = (path, shape)
  return tensors


def to_torchvision_name(name: str, depths: tuple[int, ...]) -> str:
  """Return the torchvision name of a tensor named by torchvision, timm, Paddle or PaddleClas."""
  name = name.removeprefix('module.')
  prefix, _, leaf = name.rpartition('.')
  name = f'{prefix}.{_PADDLE_LEAVES.get(leaf, leaf)}'
  if match := re.fullmatch(r'stem\.0\.(conv|bn)\.(\w+)', name):
    return f'{match[1]}1.{match[2]}'
  if match := re.fullmatch(r'blocks\.(\d+)\.(conv(\d+)|short)\.(conv|bn)\.(\w+)', name):
    kind, leaf = match[4], match[5]
    layer = f'{kind}{int(match[3]) + 1}' if match[3] else f'downsample.{int(kind == "bn")}'
    return f'{_block_prefix(int(match[1]), depths)}.{layer}.{leaf}'
  return name


def _block_prefix(block_index: int, depths: tuple[int, ...]) -> str:
  """Return the torchvision prefix of a block that PaddleClas numbers across all stages."""
  stages = zip(resnet.STAGES, depths, strict=False)
  prefixes = [f'{stage}.{i}' for stage, depth in stages for i in range(depth)]
  if block_index < len(prefixes):
    return prefixes[block_index]
  return f'layer5.{block_index - len(prefixes)}'  # No backbone has it, so the file does not fit.


def top_level_modules(tensor_names: Iterable[str]) -> list[str]:
  """Return the top-level modules, such as layer1, of tensors, in the order of the network."""
  present = {name.split('.')[0] for name in tensor_names}
  return [name for name in ('conv1', 'bn1', *resnet.STAGES) if name in present]
