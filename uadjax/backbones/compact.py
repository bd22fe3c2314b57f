"""A compact network with the stages of ResNet-18, distilled from it on generated images alone.

Its stages have ResNet-18's names, channels and strides, so that whatever works on those works on
these; experiments/distill_backbone.py is the recipe of its weights. Time on a CPU goes with the
multiplications, of which this network has 60 % of ResNet-18's: it is thin inside, and begins with
blocks of 2x2 pixels instead of a large kernel and a pool. From stage to stage passes the output
alone: each can then be taught on its own, with the teacher's output for input.

Letters: b batch, h w map, c channels.
"""

import functools
from typing import NamedTuple

from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float

from uadjax.backbones import convolution


class StageConfig(NamedTuple):
  """What a stage is made of.

  Attributes:
    enter: channels, size and stride of the convolutions that it begins with.
    depth: residual blocks of two 3x3 convolutions, as wide as the last of those.
    channels: of its output, brought there by a 1x1 convolution.
    fold: side of the blocks of pixels that become one with more channels first.
  """

  stem: tuple[tuple[int, int, int], ...]
  depth: int
  channels: int
  space_to_depth: int = 1


NAME = 'compact'

STAGE_CONFIGS = {
  'layer1': StageConfig(((24, 3, 1), (48, 3, 2)), 2, 64, space_to_depth=2),
  'layer2': StageConfig(((80, 3, 2),), 2, 128),
  'layer3': StageConfig(((160, 3, 2),), 3, 256),
}
STAGES = tuple(STAGE_CONFIGS)


class Compact(nn.Module):
  """The network up to the last stage asked for.

  Attributes:
    stages: the stages returned; nothing after the last of them is computed or has parameters.
    arch: its name.
    axis: that a batch to train on is split over, for BatchNorm to see all of it.
  """

  stages: tuple[str, ...] = STAGES
  arch: str = NAME
  axis_name: str | None = None

  @property
  def depths(self) -> tuple[int, ...]:
    """Blocks in each stage."""
    return tuple(config.depth for config in STAGE_CONFIGS.values())

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w 3'], train: bool = False
  ) -> dict[str, Float[Array, 'b _h _w _c']]:
    """Compute the stages; in training, BatchNorm sees the batch and moves its statistics."""
    outputs = {}
    for name, config in STAGE_CONFIGS.items():
      x = Stage(config, self.axis_name, name=name)(x, train)
      if name in self.stages:
        outputs[name] = x
      if len(outputs) == len(set(self.stages)):
        break
    return outputs


class Stage(nn.Module):
  """A stage as planned; of images or of the output of the stage before."""

  config: StageConfig
  axis_name: str | None = None

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], train: bool = False, use_running_stats: bool = False
  ) -> Float[Array, 'b _h _w _c']:
    """Compute; with `steady`, training leaves BatchNorm's statistics as they are, and uses them."""
    conv_bn = functools.partial(_ConvBatchNorm, axis_name=self.axis_name)
    x = _space_to_depth(x, self.config.space_to_depth)
    for i, (channels, kernel_size, stride) in enumerate(self.config.stem):
      x = conv_bn(channels, kernel_size, stride, name=f'enter_{i}')(x, train, use_running_stats)
    for i in range(self.config.depth):
      y = conv_bn(x.shape[-1], 3, name=f'{i}_conv1')(x, train, use_running_stats)
      x = nn.relu(
        x + conv_bn(x.shape[-1], 3, linear=True, name=f'{i}_conv2')(y, train, use_running_stats)
      )
    return conv_bn(self.config.channels, 1, name='leave')(x, train, use_running_stats)


def _space_to_depth(x: Float[Array, 'b h w c'], block_size: int) -> Float[Array, 'b _h _w _c']:
  """Make blocks of side x side pixels one with as many times the channels, zeros beyond the end."""
  _, h, w, c = x.shape
  rows, columns = -(-h // block_size), -(-w // block_size)
  x = jnp.pad(x, ((0, 0), (0, rows * block_size - h), (0, columns * block_size - w), (0, 0)))
  x = x.reshape(-1, rows, block_size, columns, block_size, c).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(-1, rows, columns, block_size * block_size * c)


class _ConvBatchNorm(nn.Module):
  """A convolution, its BatchNorm, and a ReLU unless `linear`."""

  features: int
  kernel_size: int
  stride: int = 1
  linear: bool = False
  axis_name: str | None = None

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], train: bool, use_running_stats: bool
  ) -> Float[Array, 'b _h _w _c']:
    """Compute."""
    x = convolution.Conv(self.features, self.kernel_size, self.stride, name='conv')(x, train)
    use_running_average = not train or use_running_stats
    x = nn.BatchNorm(
      use_running_average, axis_name=self.axis_name, momentum=0.9, epsilon=1e-5, name='bn'
    )(x)
    return x if self.linear else nn.relu(x)
