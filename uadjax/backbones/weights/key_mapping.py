"""What a backbone's tensors are called in files: torchvision's and timm's names, and Paddle's."""

from collections.abc import Iterable
import itertools
import re

import jax
from jax import numpy as jnp

from uadjax.backbones import Backbone, resnet

PARTS = ('conv1', 'bn1', *resnet.STAGES)

Path = tuple[str, ...]  # Of a leaf in a module's variables.

_LEAVES = {
  'kernel': 'weight',
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'var': 'running_var',
}
_PADDLE_LEAVES = {'_mean': 'running_mean', '_variance': 'running_var'}


def expected(module: Backbone) -> dict[str, tuple[Path, tuple[int, ...]]]:
  """What `module` needs: by torchvision's name, the path in its variables and the file's shape."""
  images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  variables = jax.eval_shape(module.init, jax.random.key(0), images)
  found = {}
  for keys, leaf in jax.tree.leaves_with_path(variables):
    path = tuple(key.key for key in keys)
    rooms = [room.replace('_', '.') for room in path[1:-1]]
    shape = leaf.shape
    if path[-1] == 'kernel':
      height, width, inner, outer = shape
      shape = (outer, inner, height, width)
    found['.'.join([*rooms, _LEAVES[path[-1]]])] = (path, shape)
  return found


def torchvisions(name: str, depths: tuple[int, ...]) -> str:
  """The name that torchvision has for a tensor of torchvision, timm, Paddle or PaddleClas."""
  name = name.removeprefix('module.')
  room, _, leaf = name.rpartition('.')
  name = f'{room}.{_PADDLE_LEAVES.get(leaf, leaf)}'
  if match := re.fullmatch(r'stem\.0\.(conv|bn)\.(\w+)', name):
    return f'{match[1]}1.{match[2]}'
  if match := re.fullmatch(r'blocks\.(\d+)\.(conv(\d+)|short)\.(conv|bn)\.(\w+)', name):
    kind, leaf = match[4], match[5]
    part = f'{kind}{int(match[3]) + 1}' if match[3] else f'downsample.{int(kind == "bn")}'
    return f'{_block(int(match[1]), depths)}.{part}.{leaf}'
  return name


def _block(number: int, depths: tuple[int, ...]) -> str:
  """PaddleClas counts blocks through all stages."""
  starts = (0, *itertools.accumulate(depths))
  for stage, start, depth in zip(resnet.STAGES, starts, depths, strict=False):
    if number < start + depth:
      return f'{stage}.{number - start}'
  return f'layer5.{number - starts[-1]}'  # There is none, so that this is of another network.


def part(name: str) -> str:
  """The part of the network that a tensor of torchvision's name belongs to."""
  return name.split('.')[0]


def parts(tensors: Iterable[str]) -> list[str]:
  """The parts that tensors of these names belong to, in the order of the network."""
  held = {part(name) for name in tensors}
  return [part for part in PARTS if part in held]
