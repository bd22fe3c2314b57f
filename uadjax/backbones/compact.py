"""Compact network with three stages of ResNet-18, distilled from it on synthetic images only.

Its stages have the names, channels and strides of ResNet-18's and can replace them.
experiments/distill_backbone.py made its weights. Time on a CPU is proportional to multiplications,
of which this network has 60 % of ResNet-18's: its inner layers are narrow, and it begins with
blocks of 2x2 pixels instead of a large kernel and a pool. Each stage depends only on the output
of the previous stage. So it can be trained separately, with the teacher's output as input.

Axes: b batch, h height, w width, c channels.
"""

import functools
from typing import NamedTuple

from flax import linen as nn
from jaxtyping import Array, Float

from uadjax.backbones import convolution


class StageConfig(NamedTuple):
  """Architecture of a stage: space-to-depth, stem, residual blocks, projection, in this order.

  Attributes:
    stem: channels, kernel size and stride of each convolution of the stem.
    depth: number of residual blocks of two 3x3 convolutions, as wide as the end of the stem.
    channels: number of output channels, which a 1x1 convolution produces.
    space_to_depth: side of the pixel blocks that are moved into channels at the input; 1 for none.
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
  """Compact network up to the last requested stage.

  Attributes:
    stages: names of the returned stages. Later stages are not computed and have no parameters.
    arch: name of the architecture.
    axis_name: mesh axis over which training batches are sharded, so that BatchNorm uses statistics
      of the whole batch; None when not sharded.
    zero_init_residual: whether new parameters make each residual block start as its shortcut, as
      the scales of its last BatchNorm are 0.
  """

  stages: tuple[str, ...] = STAGES
  arch: str = NAME
  axis_name: str | None = None
  zero_init_residual: bool = False

  # All stages that can be requested, and the number of residual blocks in each.
  available_stages = STAGES
  # Sides of the smallest images, and whether it may be trained anew.
  min_side, can_train = 32, True
  depths = tuple(config.depth for config in STAGE_CONFIGS.values())

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w 3'], train: bool = False) -> convolution.FeatureMaps:
    """Return the feature maps of the requested stages, by name.

    In training, BatchNorm normalizes by batch statistics and updates its running statistics.
    """
    outputs = {}
    for name, config in STAGE_CONFIGS.items():
      x = Stage(config, self.axis_name, self.zero_init_residual, name=name)(x, train)
      if name in self.stages:
        outputs[name] = x
      if len(outputs) == len(set(self.stages)):
        break
    return outputs


class Stage(nn.Module):
  """Stage of the compact network, which takes images or the output of the previous stage."""

  config: StageConfig
  axis_name: str | None = None
  zero_init_residual: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c'], train: bool = False) -> Float[Array, 'b _h _w _c']:
    """Return the output of the stage."""
    conv_bn = functools.partial(_ConvBatchNorm, train=train, axis_name=self.axis_name)
    x = convolution.space_to_depth(x, self.config.space_to_depth)
    for i, (channels, kernel_size, stride) in enumerate(self.config.stem):
      x = conv_bn(channels, kernel_size, stride, name=f'enter_{i}')(x)
    for i in range(self.config.depth):
      y = conv_bn(x.shape[-1], 3, name=f'{i}_conv1')(x)
      y = conv_bn(
        x.shape[-1],
        3,
        is_linear=True,
        starts_at_zero=self.zero_init_residual,
        name=f'{i}_conv2',
      )(y)
      x = nn.relu(x + y)
    return conv_bn(self.config.channels, 1, name='leave')(x)


class _ConvBatchNorm(nn.Module):
  """Convolution, BatchNorm, and a ReLU unless `is_linear`; new scales are 0 or 1."""

  features: int
  kernel_size: int
  stride: int = 1
  is_linear: bool = False
  starts_at_zero: bool = False
  train: bool = False
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b _h _w _c']:
    conv = convolution.Conv(self.features, self.kernel_size, self.stride, name='conv')
    batch_norm = convolution.BatchNorm(
      not self.train,
      axis_name=self.axis_name,
      scale_init=convolution.scale_init(self.starts_at_zero),
      name='bn',
    )
    x = batch_norm(conv(x, self.train))
    return x if self.is_linear else nn.relu(x)
