"""Vision transformers DINO, DINOv2 and DINOv3 (arXiv 2104.14294, 2304.07193, 2508.10104).

A transformer (Dosovitskiy et al. 2020, arXiv 2010.11929) reads an image as a sequence of patches,
after a class token and registers (Darcet et al. 2023, arXiv 2309.16588). Positions are either
learned and added to the patches, or rotate queries and keys (Su et al. 2021, arXiv 2104.09864).

Layer scales are factors of the outputs of linear layers, so `weights.vit_files` multiplies them
into these layers; likewise the class token contains its position. What a file lacks, such as
biases of keys, is zero.

Letters: b batch, h w patch grid, c channels, n tokens (class token, registers, patches), t heads,
k channels of a head.
"""

import math

from flax import linen as nn
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from uadjax.backbones import convolution
from uadjax.backbones.architecture import Architecture
from uadjax.errors import refuse, Setting
from uadjax.numerics import resampling

TOKENS = 'tokens'  # The stage of the patch tokens after the final norm.

_ROTARY_BASE = 100.0  # Ratio of the longest period to the shortest, nearly.


class VisionTransformer(nn.Module):
  """Vision transformer up to the last requested stage.

  Attributes:
    arch: name of the architecture, under which weights are published.
    stages: names of the returned stages: block1 and so on, the patch tokens after a block; or
      `tokens`, those of the last block after the final norm. Later blocks are not computed and have
      no parameters.
    config: sizes.
    dtype: type of the factors of matrix products, 'float32' or 'bfloat16'. Sums of the residual
      connections, norms, softmax and parameters are always float32.
  """

  arch: str
  stages: tuple[str, ...]
  config: Architecture
  dtype: str = 'float32'

  can_train = False  # Trained on a few good images, it would not learn their features.

  @property
  def available_stages(self) -> tuple[str, ...]:
    """Names of all stages that can be requested."""
    return (*(f'block{i}' for i in range(1, self.config.depth + 1)), TOKENS)

  @property
  def min_side(self) -> int:
    """Height and width of the smallest images, in pixels."""
    return self.config.patch

  @property
  def num_blocks(self) -> int:
    """Number of blocks that the requested stages need."""
    last = max(self.available_stages.index(stage) for stage in self.stages)
    return min(last + 1, self.config.depth)

  def __call__(self, x: Float[Array, 'b h w 3'], train: bool = False) -> convolution.FeatureMaps:
    """Return the patch tokens of the requested stages as feature maps, by name."""
    if train:
      raise ValueError('a vision transformer is not trained')
    h, w = self._patch_grid(x.shape[1], x.shape[2])
    return {
      stage: tokens[:, 1 + self.config.registers :].reshape(-1, h, w, self.config.width)
      for stage, tokens in self.encode(x).items()
    }

  @nn.compact
  def encode(self, x: Float[Array, 'b h w 3']) -> dict[str, Float[Array, 'b n c']]:
    """Return all tokens of the requested stages, by name: class token, registers, patches."""
    config, outputs = self.config, {}
    grid = self._patch_grid(x.shape[1], x.shape[2])
    # By default, accelerators would round float32 factors to 8 or 11 bits of mantissa.
    with jax.default_matmul_precision('highest' if self.dtype == 'float32' else 'default'):
      x = self._embed(x, grid)
      rotation = None if config.positions else rotary_angles(grid, config.width // config.heads)
      for i in range(1, self.num_blocks + 1):
        x = Block(config, self.dtype, name=f'block{i}')(x, rotation)
        if f'block{i}' in self.stages:
          outputs[f'block{i}'] = x
      if TOKENS in self.stages:
        outputs[TOKENS] = _norm(config, 'norm')(x)
    return outputs

  def _embed(self, x: Float[Array, 'b _h _w 3'], grid: tuple[int, int]) -> Float[Array, 'b n c']:
    """Return the tokens of images before the first block."""
    config, (h, w) = self.config, grid
    x = convolution.space_to_depth(x, config.patch)  # A patch is a matrix product, and no padding.
    x = nn.Dense(config.width, dtype=self.dtype, name='patch_embed')(x).astype(jnp.float32)
    normal = nn.initializers.normal(0.02)
    if config.positions:
      shape = (config.positions, config.positions, config.width)
      x += interpolate_positions(self.param('positions', normal, shape), config, grid)
    num_prefix = 1 + config.registers
    prefix = self.param('prefix', normal, (num_prefix, config.width))  # Class token and registers.
    prefix = jnp.broadcast_to(prefix, (x.shape[0], num_prefix, config.width))
    return jnp.concatenate([prefix, x.reshape(-1, h * w, config.width)], axis=1)

  def _patch_grid(self, height: int, width: int) -> tuple[int, int]:
    patch = self.config.patch
    if height % patch or width % patch:
      nearest = [max(1, round(side / patch)) * patch for side in (height, width)]
      message = (
        f'{self.arch} reads images in patches of {patch}x{patch} pixels, but an image has '
        f'{height}x{width} pixels; the nearest size is {nearest[0]}x{nearest[1]}.'
      )
      ops = f'resize({nearest[0]}, {nearest[1]})'
      hint = 'Change the size in ', Setting('data.ops'), f', as in {ops}.'
      refuse('data.ops', f'{height}x{width}', message, *hint, allowed=f'multiples of {patch}')
    return height // patch, width // patch


class Block(nn.Module):
  """Attention and an MLP, each after a norm and around it a residual connection."""

  config: Architecture
  dtype: str

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b n c'], rotation: Float[np.ndarray, 'p k'] | None
  ) -> Float[Array, 'b n c']:
    """Return the tokens after the block."""
    x += self._attend(_norm(self.config, 'norm1')(x), rotation)
    return x + self._transform(_norm(self.config, 'norm2')(x))

  def _attend(
    self, x: Float[Array, 'b n c'], rotation: Float[np.ndarray, 'p k'] | None
  ) -> Float[Array, 'b n c']:
    """Return the output of multi-head self-attention."""
    b, n, c = x.shape
    x = self._dense(3 * c, 'qkv')(x).reshape(b, n, 3, self.config.heads, -1)
    query, key, value = (x[:, :, i] for i in range(3))
    if rotation is not None:
      query, key = rotate(query, rotation), rotate(key, rotation)
    with jax.numpy_dtype_promotion('standard'):  # It promotes bfloat16 to float32.
      x = jax.nn.dot_product_attention(query, key, value)  # Axes b n t k; scaled by 1 / sqrt(k).
    return self._dense(c, 'proj')(x.reshape(b, n, c)).astype(jnp.float32)

  def _transform(self, x: Float[Array, 'b n c']) -> Float[Array, 'b n c']:
    """Return the output of the MLP; with a gate it is SwiGLU (Shazeer 2020, arXiv 2002.05202)."""
    config = self.config
    y = self._dense(config.hidden, 'up')(x)
    if config.gated:
      y *= jax.nn.silu(self._dense(config.hidden, 'gate')(x))
    else:
      y = jax.nn.gelu(y, approximate=False)
    return self._dense(config.width, 'down')(y).astype(jnp.float32)

  def _dense(self, features: int, name: str) -> nn.Dense:
    return nn.Dense(features, dtype=self.dtype, name=name)


def _norm(config: Architecture, name: str) -> nn.LayerNorm:
  # The fast variance, E[x²] - E[x]², would lose digits where means are large.
  epsilon = 1e-6 if config.positions else 1e-5
  return nn.LayerNorm(epsilon, use_fast_variance=False, name=name)


def interpolate_positions(
  positions: Float[Array, 'p p c'], config: Architecture, grid: tuple[int, int]
) -> Float[Array, '1 h w c']:
  """Return learned position embeddings for a patch grid, interpolated by bicubic convolution."""
  if grid == positions.shape[:2]:
    return positions[None]
  rows, columns = (
    jnp.asarray(resampling.bicubic_matrix(new, old, old / (new + config.offset), config.antialias))
    for new, old in zip(grid, positions.shape[:2], strict=True)
  )
  return resampling.apply_separable(rows, columns, positions[None])


def rotary_angles(grid: tuple[int, int], head_channels: int) -> Float[np.ndarray, 'p k']:
  """Return the angles by which DINOv3 rotates the channels of a head at each patch.

  Rows and columns count from -1 to 1 between the edges of the image, whatever its size. Each has a
  quarter of the frequencies; channels k and k + K/2, a pair, share an angle.
  """
  coordinates = [2 * (np.arange(size) + 0.5) / size - 1 for size in grid]
  positions = np.stack(np.meshgrid(*coordinates, indexing='ij'), -1).reshape(-1, 2, 1)
  frequencies = _ROTARY_BASE ** -(np.arange(0, head_channels, 4) / head_channels)
  angles = (2 * math.pi * positions * frequencies).reshape(len(positions), -1)
  return np.tile(angles, 2).astype(np.float32)


def rotate(x: Float[Array, 'b n t k'], angles: Float[np.ndarray, 'p k']) -> Float[Array, 'b n t k']:
  """Rotate pairs of channels of the patches, which are the last tokens, by their angles."""
  prefix, patches = jnp.split(x, [x.shape[1] - len(angles)], axis=1)
  patches = patches.astype(jnp.float32)
  first, second = jnp.split(patches, 2, axis=-1)
  partner = jnp.concatenate([-second, first], axis=-1)
  cosine, sine = (jnp.asarray(f(angles))[None, :, None] for f in (np.cos, np.sin))
  return jnp.concatenate([prefix, (patches * cosine + partner * sine).astype(x.dtype)], axis=1)
