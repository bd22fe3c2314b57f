"""A small vision transformer with random weights, in a file as the authors of DINOv2 write it."""

import math
from pathlib import Path

import numpy as np
from safetensors import numpy as safetensors

from uadjax.backbones import architecture

TINY = architecture.Architecture(4, 16, 2, 2, 24, registers=2, positions=3, offset=0.1)


def random_tensors(sizes: architecture.Architecture) -> dict[str, np.ndarray]:
  """Tensors of a file of the authors' program."""
  c, p, hidden = sizes.width, sizes.patch, sizes.hidden
  shapes: dict[str, tuple[int, ...]] = {
    'cls_token': (1, 1, c), 'mask_token': (1, c), 'patch_embed.proj.weight': (c, 3, p, p),
    'patch_embed.proj.bias': (c,), 'norm.weight': (c,), 'norm.bias': (c,),
  }  # fmt: skip
  if sizes.registers:
    shapes['register_tokens'] = 1, sizes.registers, c
  if sizes.positions:
    shapes['pos_embed'] = 1, 1 + sizes.positions**2, c
  up, down = ('w12', 'w3') if sizes.gated else ('fc1', 'fc2')
  for i in range(sizes.depth):
    for name, shape in {
      'norm1': (c,), 'attn.qkv': (3 * c, c), 'attn.proj': (c, c), 'norm2': (c,),
      f'mlp.{up}': ((2 if sizes.gated else 1) * hidden, c), f'mlp.{down}': (c, hidden),
    }.items():  # fmt: skip
      shapes[f'blocks.{i}.{name}.weight'], shapes[f'blocks.{i}.{name}.bias'] = shape, shape[:1]
    shapes |= {f'blocks.{i}.ls{k}.gamma': (c,) for k in (1, 2)}
  random = np.random.default_rng(0)
  return {
    name: (random.normal(size=shape) / math.sqrt(np.prod(shape[1:]))).astype(np.float32)
    for name, shape in shapes.items()
  }


def write(folder: Path, tensors: dict[str, np.ndarray]) -> str:
  """Write tensors to a file in a folder, and return its path."""
  path = folder / 'weights.safetensors'
  safetensors.save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, path)
  return str(path)
